"""The demo's figures and its words: nothing is flattered."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mrigsure import demo
from mrigsure.scan import Scan
from mrigsure.seeds import complex_noise, generator

SHAPE, COILS, SIGMA0, SCALE = (32, 32), 4, 0.05, 3.0


@pytest.fixture
def scanned():
    """A scan of random points, the same with some held out, and the image."""
    rng = generator(1)
    image = complex_noise(SHAPE, rng)
    maps = complex_noise((COILS, *SHAPE), rng)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = (torch.rand(SHAPE, generator=rng) < 0.5).float()
    full = Scan(torch.zeros(COILS, *SHAPE, dtype=torch.complex64), mask, maps, 0.5 * torch.ones(SHAPE), SIGMA0, SCALE)
    kspace = full.batch().operator.coil_kspace(image[None])[0] + SIGMA0 * complex_noise((COILS, *SHAPE), rng)
    scan = Scan(mask * kspace, mask, maps, full.density, SIGMA0, SCALE)
    return scan, scan.held_out(0.3, rng), image


def figures(scanned, image, draws=None, pairs=False):
    scan, kept, _ = scanned
    samples = None if draws is None else draws.numpy()[None] / SCALE
    made = SimpleNamespace(image=image.numpy()[None] / SCALE, samples=samples, record={"pairs": pairs})
    return demo._held_out_figures(scan, kept, made)


def test_the_held_out_error_is_0_for_the_truth_and_1_for_nothing(scanned):
    image = scanned[2]
    assert figures(scanned, image)["residual"] == pytest.approx(0, abs=1e-3)
    assert figures(scanned, 0 * image)["residual"] == pytest.approx(1, abs=1e-3)


def test_the_held_out_error_sees_only_what_was_held_out(scanned):
    scan, kept, image = scanned
    wrong_elsewhere = replace(scan, kspace=scan.kspace + 100 * kept.mask)
    assert figures((wrong_elsewhere, kept, image), image)["residual"] == pytest.approx(0, abs=1e-3)


def test_z_squared_is_1_where_draws_scatter_as_they_err(scanned):
    image, rng = scanned[2], generator(2)
    draws = image + 0.3 * complex_noise((8, *SHAPE), rng)
    wrong_mean = image + 0.3 * complex_noise(SHAPE, rng)
    shifted = draws - draws.mean(0) + wrong_mean
    assert figures(scanned, wrong_mean, shifted)["z_squared"] == pytest.approx(8 / 9, rel=0.15)


def test_z_squared_knows_that_the_mean_of_pairs_scatters_less(scanned):
    image, rng = scanned[2], generator(2)
    wrong_mean = image + 0.3 * complex_noise(SHAPE, rng)
    deviations = 0.3 * complex_noise((4, *SHAPE), rng)
    draws = wrong_mean + torch.stack([deviations, -deviations], 1).flatten(0, 1)  # whose mean does not scatter
    assert figures(scanned, wrong_mean, draws, pairs=True)["z_squared"] == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(("ours", "verb"), [(31.0, "wins over"), (29.0, "loses to")])
def test_the_verdict_names_the_best_rival_and_who_won(ours, verb):
    image = np.zeros(SHAPE)
    scores = {"zero-filled": 20.0, "l1-wavelet": 30.0, "cg-sense": 28.0, "posterior": ours}
    rows = [demo.Row("R = 4", method, image, None, {}, psnr=value) for method, value in scores.items()]
    text = demo._verdict(rows)
    assert verb in text and "L1-wavelet" in text and "by 1.0 dB" in text


def test_without_truth_the_smaller_held_out_error_wins():
    image = np.zeros(SHAPE)
    rows = [
        demo.Row("acquired", "l1-wavelet", image, None, {}, residual=0.4),
        demo.Row("acquired", "posterior", image, None, {}, residual=0.3),
    ]
    assert "wins over" in demo._verdict(rows)
    assert "with 0.300 against 0.400" in demo._verdict(rows)


def test_every_classical_baseline_is_in_the_table_and_in_the_picture(scanned, monkeypatch, tmp_path):
    """Total variation too, its lambda by held-out lines like the others': no rival is left out."""
    from recon.baselines import BASELINES

    scan, _, image = scanned
    assert list(demo.METHODS) == [*BASELINES, "posterior"]
    row = demo._row("R = 2", replace(scan, target=image), "tv", None, demo.SMALLEST, 0)
    assert demo._label(row) == "total variation"
    assert demo._origin(row.record)[1].endswith("held-out lines")
    drawn = []
    monkeypatch.setattr("recon.figures.comparison", lambda path, cases: drawn.extend(cases))
    demo._write(tmp_path, {"R = 2": scan}, [row])
    assert list(drawn[0].images) == ["total variation"]
    best = replace(row, psnr=25.0)
    ours = demo.Row("R = 2", "posterior", row.image, None, {}, psnr=24.0)
    assert "loses to[/] total variation" in demo._verdict([best, ours])
