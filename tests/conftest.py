"""Shared by all tests: the repository's root, data that does not ship, and the command line in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The arrays are tiny: a second thread gains nothing, and on a busy machine each waits for the other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans for development, kept beside the repository; tests that need them skip without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the development data in ../shared/data, which does not ship")
    return folder


@pytest.fixture(scope="session")
def python():
    """Run `python WORDS...` in a process of its own, with the mrigsure that is under test."""
    import mrigsure

    home = str(Path(mrigsure.__file__).resolve().parents[1])

    def run(*words, cwd=None):
        environment = os.environ | {"PYTHONPATH": home, "COLUMNS": "100"}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)

    return run


@pytest.fixture(scope="session")
def mrigsure_command(python):
    """Run `mrigsure WORDS...` as a user does."""
    return lambda *words, cwd=None: python("-m", "mrigsure.cli", *words, cwd=cwd)
