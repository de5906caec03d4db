"""What an archive can teach is decided by the ensemble's normal operator, coils included."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mrigsure.errors import InputError
from mrigsure.identifiability import ensemble_spectrum, refuse_unidentifiable
from mrigsure.phantoms import coil_maps
from mrigsure.scan import Scan, VolumeFacts

SHAPE = (16, 16)


def scan(coils, lines):
    mask = torch.zeros(SHAPE)
    mask[:, lines] = 1
    maps = coil_maps(np.random.default_rng(0), coils, SHAPE) if coils > 1 else np.ones((1, *SHAPE), np.complex64)
    maps = torch.from_numpy(maps)
    return Scan(torch.zeros(coils, *SHAPE, dtype=torch.complex64), mask, maps, mask, 0.1)


def test_spectrum_matches_dense_algebra():
    scans = [scan(4, [0, 1, 4, 7, 8, 9, 15]), scan(4, [2, 5, 7, 8, 9, 11, 14])]
    units = torch.eye(256, dtype=torch.complex64).reshape(-1, *SHAPE)
    dense = torch.zeros(256, 256, dtype=torch.complex64)
    for one in scans:
        batch = one.batch()
        dense += torch.stack([batch.operator.normal(unit[None])[0].flatten() for unit in units]).T / 2
    exact = torch.linalg.eigvalsh(dense)
    estimate = ensemble_spectrum(scans, steps=80)
    assert estimate.smallest == pytest.approx(float(exact[0]), abs=5e-3)
    assert estimate.blind_share == pytest.approx(float((exact < 0.01).double().mean()), abs=0.04)


def test_coils_see_lines_that_are_never_sampled():
    half = list(range(0, 16, 2)) + [15]
    assert ensemble_spectrum([scan(8, half)]).smallest > 0.02
    one = ensemble_spectrum([scan(1, half)])
    assert one.smallest < 0.01 and one.blind_share == pytest.approx(7 / 16, abs=0.1)


def facts(coils, lines, name="a.h5"):
    mask = np.zeros(16, bool)
    mask[lines] = True
    return VolumeFacts(Path(name), (1, coils, *SHAPE), mask, 0.1)


def test_single_coil_lines_that_no_scan_sampled_are_refused_with_their_share():
    with pytest.raises(InputError, match=r"3 of 10 k-space lines \(30% of the modes\)"):
        refuse_unidentifiable([facts(1, [3, 4, 7, 8, 12]), facts(1, [5, 7, 8, 10, 12])], "archive")


def test_zero_padding_is_no_blind_spot_and_coils_are_never_refused():
    refuse_unidentifiable([facts(1, [4, 6, 7, 9]), facts(1, [4, 5, 8, 9])], "archive")
    refuse_unidentifiable([facts(8, [3, 8, 12])], "archive")
