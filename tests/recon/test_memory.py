"""`--batch auto` keeps within the memory that is free."""

from types import SimpleNamespace

import pytest
import torch

from recon import memory
from recon.memory import MOST_CPU, bytes_per_draw, draws_at_once

CPU = torch.device("cpu")
CHANNELS = (24, 48)


@pytest.fixture
def scan(make_scan):
    return make_scan((16, 12))


def _free(monkeypatch, free):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(free)))


@pytest.mark.parametrize("draws", [1, 3, 6])
def test_as_many_draws_as_fit(monkeypatch, scan, draws):
    _free(monkeypatch, (draws + 0.5) * bytes_per_draw(scan, CHANNELS) / memory._SHARE)
    assert draws_at_once(scan, CHANNELS, CPU) == draws
    assert draws_at_once(scan, CHANNELS, CPU, workers=2) == max(draws // 2, 1)


def test_at_least_one_and_at_most_what_brings_anything(monkeypatch, scan):
    _free(monkeypatch, 0)
    assert draws_at_once(scan, CHANNELS, CPU) == 1
    _free(monkeypatch, 1e12)
    assert draws_at_once(scan, CHANNELS, CPU) == MOST_CPU


def test_coils_and_pixels_take_memory(make_scan):
    small, coils, large = make_scan((16, 12)), make_scan((16, 12), coils=8), make_scan((32, 12))
    assert bytes_per_draw(coils, CHANNELS) > bytes_per_draw(small, CHANNELS)
    assert bytes_per_draw(large, CHANNELS) == 2 * bytes_per_draw(small, CHANNELS)
