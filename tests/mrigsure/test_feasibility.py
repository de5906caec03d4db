"""What `mrigsure feasibility` says of an archive agrees with dense algebra, and its advice holds what it promises."""

import json

import numpy as np
import pytest
import torch

from mrigsure import cli
from mrigsure.feasibility import CAN, CANNOT, PARTLY, examine, feasibility
from mrigsure.operators import SenseOperator
from mrigsure.phantoms import coil_maps, complex_normal
from mrigsure.protocols import Protocol, changes, observed_protocol
from mrigsure.scan import PreparedVolume, ScanSet, write_prepared
from mrigsure.settings import FeasibilitySettings

SHAPE = (12, 24)
HALF = np.arange(24) % 2 == 0
CENTER = np.abs(np.arange(24) - 12) < 2


def write(folder, masks, coils, shape=SHAPE):
    for index, mask in enumerate(masks):
        rng = np.random.default_rng(index)
        maps = coil_maps(rng, coils, shape) if coils > 1 else np.ones((1, *shape), np.complex64)
        kspace = (complex_normal(rng, (1, coils, *shape)) * mask).astype(np.complex64)
        volume = PreparedVolume(kspace, mask, maps[None], mask.astype(np.float32), 0.1, 1.0)
        write_prepared(folder / f"{shape[1]}_{index:02}.h5", volume)
    return folder


def run(folder, **options):
    path = feasibility(FeasibilitySettings([str(folder)], out=str(folder / "out" / "report"), **options))
    return json.loads(path.read_text())


def by_name(report, start):
    return next(change for change in report["sizes"][0]["changes"] if change["name"].startswith(start))


def test_one_coil_with_a_fixed_mask_is_half_blind_and_a_shift_cures_it(tmp_path, capsys):
    report = run(write(tmp_path, [HALF | CENTER] * 3, coils=1))
    now = report["sizes"][0]["now"]
    assert report["verdict"] == CANNOT and now["smallest"] == 0
    assert now["blind_share"] == pytest.approx(9 / 23, abs=1e-4), "of lines 0 to 22, the odd ones outside the centre"
    shift = by_name(report, "shifted by 1 line in every other patient")
    assert shift["blind_share"] == 0 and shift["smallest"] == pytest.approx(0.5, abs=0.01)
    assert abs(shift["extra_time"]) < 0.1
    assert report["sizes"][0]["changes"][0] == shift, "no scan time, and the smallest change"
    assert "Smallest cure: to shift the mask by 1 line in every other patient" in report["advice"]
    shown = capsys.readouterr().out
    assert "This archive cannot teach a prior." in shown and "39.1%" in shown
    assert (tmp_path / "out" / "report.png").stat().st_size > 10_000


def test_a_shift_alone_leaves_the_lines_of_one_input_to_tell_the_rest(tmp_path):
    """The first stage never sees an odd line beside an even one; lines at random cost as little and cure that too."""
    report = run(write(tmp_path, [HALF | CENTER] * 3, coils=1))
    shift, anew = by_name(report, "shifted by 1 line"), by_name(report, "lines at random")
    assert shift["unsupervised"] == pytest.approx(9 / 23, abs=0.05) and anew["unsupervised"] == 0
    assert "Better: to draw as many lines at random, anew for every patient, at no extra scan time" in report["advice"]


def test_eight_coils_fill_a_fixed_mask_of_every_second_line(tmp_path):
    report = run(write(tmp_path, [HALF | CENTER] * 3, coils=8))
    now = report["sizes"][0]["now"]
    assert report["verdict"] == CAN and now["blind_share"] == 0 and 0.1 < now["smallest"] < 0.35
    assert report["advice"].startswith("Every mode is measured")


def test_every_change_has_the_spectrum_that_dense_algebra_gives_it(tmp_path):
    masks = [(np.arange(24) % 4 == 1) | CENTER] * 2
    scans = ScanSet([write(tmp_path, masks, coils=2)])
    report = examine(scans, SHAPE)
    assert not report.now.cures and len(report.changes) >= 6
    cures = [change.cures for change in report.changes]
    assert cures == sorted(cures, reverse=True) and len(set(cures)) == 2, "what cures comes first, whatever the cost"
    support = observed_protocol(np.stack(masks)).density > 0
    inside = slice(np.flatnonzero(support)[0], np.flatnonzero(support)[-1] + 1)
    protocols = {change.name: change.protocol for change in changes(observed_protocol(np.stack(masks)))}
    for outcome in report.changes:
        values = dense_eigenvalues([scan.sens_maps for scan in scans], protocols[outcome.name].density, inside)
        assert outcome.smallest == pytest.approx(max(float(values[0]), 0), abs=1e-5)
        assert outcome.blind_share == pytest.approx(float((values < 0.01).double().mean()), abs=2 / 24)


def dense_eigenvalues(maps, density, inside):
    """Of the mean of S^H F^H P F S, on images whose k-space lies in the columns `inside`."""
    plane = torch.from_numpy(np.broadcast_to(density, SHAPE).copy())[None, None]
    units = torch.zeros(SHAPE[0] * SHAPE[1], *SHAPE, dtype=torch.complex128)
    units.view(len(units), -1).fill_diagonal_(1)
    columns = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(units, dim=-1), norm="ortho"), dim=-1)
    normal = 0
    for one in maps:
        operator = SenseOperator(plane, one[None].to(torch.complex128))
        normal = normal + torch.cat([operator.normal(unit[None]) for unit in units]).flatten(1).T / len(maps)
    window = torch.zeros(SHAPE, dtype=torch.bool)
    window[:, inside] = True
    basis = columns.flatten(1).conj()[:, window.flatten()]
    return torch.linalg.eigvalsh(basis.mH @ normal @ basis)


def test_sizes_are_judged_one_by_one(tmp_path):
    write(tmp_path, [HALF | CENTER] * 2, coils=1)
    write(tmp_path, [np.ones(16, bool)] * 2, coils=4, shape=(12, 16))
    report = run(tmp_path)
    assert [size["matrix"] for size in report["sizes"]] == [[12, 16], [12, 24]]
    assert [size["now"]["blind_share"] > 0 for size in report["sizes"]] == [False, True]
    assert report["verdict"] == PARTLY, "some of its scans are multi-coil: nothing is refused"
    assert "12 x 24: Smallest cure" in report["advice"]


def test_point_masks_are_examined_and_the_same_seed_gives_the_same_bytes(tmp_path):
    mask = np.random.default_rng(0).random((12, 12)) < 0.4
    mask[4:9, 4:9] = True
    write(tmp_path, [mask] * 2, coils=2, shape=(12, 12))
    first = run(tmp_path, seed=1)
    assert first["sizes"][0]["now"]["blind_share"] > 0.02 and first["verdict"] == PARTLY
    assert by_name(first, "points at random")["blind_share"] < 0.01
    picture = (tmp_path / "out" / "report.png").read_bytes()
    assert run(tmp_path, seed=1) == first and (tmp_path / "out" / "report.png").read_bytes() == picture


def test_without_held_out_lines_training_lacks_supervision_and_delta_is_the_cure(tmp_path):
    rng = np.random.default_rng(3)
    masks = [(rng.random(24) < 0.4) | CENTER for _ in range(12)]
    report = run(write(tmp_path, masks, coils=2), delta=0.0)
    now, held = report["sizes"][0]["now"], by_name(report, "hold out half of the lines")
    assert now["unsupervised"] > 0.1 and held["unsupervised"] == 0 and held["extra_time"] == 0


def test_supervision_is_what_counting_masks_gives():
    """E[W^2 q] over the draws is 1 on every line of the density: q/p averages to 1 whatever the protocol."""
    rng = np.random.default_rng(0)
    comb = np.array([[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]], float)
    for protocol in (
        Protocol(np.array([0.3, 0.7]), comb),
        Protocol(np.ones(1), np.array([[0.2, 0.5, 1, 0.5, 0.2, 0.4]])),
        Protocol(np.array([0.5, 0.5]), np.stack([comb[0], np.full(6, 0.5)])),
    ):
        mean = np.mean([protocol.supervision(0.4, rng) for _ in range(2000)], axis=0)
        assert mean == pytest.approx(np.ones(6), abs=0.15)


def test_the_command_exits_with_0_whatever_the_verdict(tmp_path):
    write(tmp_path, [HALF] * 2, coils=1)
    assert cli.main(["feasibility", str(tmp_path), "--out", str(tmp_path / "out" / "r")]) == 0
