"""Scans to train on in a second."""

import pytest
from tiny_training import write_scans

from mrigsure import training


@pytest.fixture(scope="session")
def tiny_scans(tmp_path_factory):
    """A folder of 12 prepared scans at R = 4, 24 x 24 with 4 coils, targets included."""
    return write_scans(tmp_path_factory.mktemp("scans"), 12)


@pytest.fixture
def brief(monkeypatch):
    """Few levels for the truth-free figures, where a test is not about them."""
    monkeypatch.setattr(training, "_NFE", 3)
    monkeypatch.setattr(training, "_VALIDATION_LEVELS", 2)
