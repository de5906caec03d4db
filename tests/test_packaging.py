"""What a stranger gets: declared dependencies, quick imports, data files in the wheel, nothing of our machines."""

import ast
import fnmatch
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from mrigsure.cli import COMMANDS

PACKAGES = ("mrigsure", "data_prep", "recon")
DISTRIBUTION = {
    "skimage": "scikit-image",
    "yaml": "pyyaml",
    "docstring_parser": "docstring-parser",
    "distributed": "dask",
}
BROKEN_BESIDE_CPU_TORCH = {"torchvision", "torchmetrics", "diffusers", "deepinv"}
MACHINE_PATH = re.compile(rb"(?<![\w.~$}/:-])/(?:home|root|work|tmp|Users)/\w")


@pytest.fixture(scope="module")
def pyproject(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def committed(root):
    """Every file of the repository, those about to be committed included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return [path for path in (root / name for name in listed.stdout.splitlines()) if path.is_file()]


def imported_modules(root):
    """(top-level module, file) of every import in the three packages, lazy ones included."""
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"relative import in {path}"
                names = [node.module]
            else:
                continue
            yield from ((name.split(".")[0], path.relative_to(root)) for name in names)


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def test_environment_and_pyproject_agree(root, pyproject):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip[0] == "-c constraints.txt"
    assert sorted(pip[1:]) == sorted(pyproject["project"]["dependencies"])
    assert f"python{pyproject['project']['requires-python']}" in conda


def test_torch_is_pinned(root):
    assert "torch==2.13.0" in (root / "constraints.txt").read_text().splitlines()


def test_every_import_is_a_declared_dependency(root, pyproject):
    declared = {name_of(requirement) for requirement in pyproject["project"]["dependencies"]}
    for module, path in imported_modules(root):
        if module not in sys.stdlib_module_names and module not in PACKAGES:
            assert DISTRIBUTION.get(module, module) in declared, f"{path} imports {module}"


def test_nothing_imports_what_breaks_beside_the_cpu_torch(root):
    assert not [(module, path) for module, path in imported_modules(root) if module in BROKEN_BESIDE_CPU_TORCH]


def test_importing_the_packages_is_light(python):
    run = python("-c", "import mrigsure, data_prep, recon, mrigsure.cli, mrigsure.progress, sys; print(*sys.modules)")
    assert run.returncode == 0, run.stderr
    assert not {"torch", "fastmri", "monai", "sigpy", "matplotlib", "rich"} & set(run.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_has_its_function(command):
    assert callable(getattr(importlib.import_module(COMMANDS[command].module), command.replace("-", "_")))


def test_the_wheel_holds_every_data_file(root, pyproject):
    """The patterns name every file, and the mrigsure under test, a wheel's in .ci/run, has it."""
    data = root / "mrigsure" / "data"
    patterns = pyproject["tool"]["setuptools"]["package-data"]["mrigsure"]
    installed = Path(str(files("mrigsure")))
    shipped = [path for path in data.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert shipped
    for path in shipped:
        name = path.relative_to(root / "mrigsure")
        assert any(fnmatch.fnmatch(name.as_posix(), pattern.replace("**/", "")) for pattern in patterns)
        assert (installed / name).read_bytes() == path.read_bytes()


def test_what_ships_has_its_licence(root):
    for folder in ("anatomy", "scans"):
        names = [path.name.upper() for path in (root / "mrigsure" / "data" / folder).iterdir()]
        assert any("LICEN" in name or "NOTICE" in name for name in names), folder


def test_the_readme_gives_exactly_the_two_commands(root):
    commands = re.findall(r"^ {4}(pip install .*)$", (root / "README.md").read_text(), re.M)
    assert commands[:2] == [
        "pip install -c constraints.txt . && mrigsure demo",
        "pip install -c constraints.txt '.[test]' && pytest",
    ]


def test_the_readme_points_at_files_that_exist(root):
    text = (root / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (root / target).exists(), target


def test_no_file_names_a_path_of_our_machines(committed, root):
    for path in committed:
        found = MACHINE_PATH.search(path.read_bytes())
        assert not found, f"{path.relative_to(root)}: {found[0]}"


def test_ci_can_be_run(root):
    assert (root / ".ci" / "run").stat().st_mode & 0o111
