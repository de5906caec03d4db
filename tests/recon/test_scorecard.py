"""The scorecard holds for scans of the prior's own kind, and breaks for wrong noise levels and wrong maps."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

from mrigsure.errors import ScanWarning
from mrigsure.fourier import fft2c
from mrigsure.seeds import complex_noise, generator
from recon.reconstruct import reconstruct_scans
from recon.scorecard import DataSums, Figure, as_json, scorecard
from recon.spread_scale import BANDS, HeldOut


@pytest.fixture
def own_scan(make_scan):
    """A scan of a white Gaussian image, which is the Gaussian prior's own kind."""
    scan = make_scan((32, 32), noise_std=0.05)
    image = 0.5 * complex_noise(scan.shape, generator(0, "image"))
    noise = scan.noise_std * complex_noise(scan.kspace.shape, generator(0, "noise"))
    return replace(scan, kspace=scan.mask * (fft2c(scan.sens_maps * image) + noise), target=image)


def _judged(scan, prior, **options):
    """The scorecard's figures by name, and the warnings that name one of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScanWarning)
        made = reconstruct_scans([scan], "posterior", prior, samples=3, nfe=24, **options)
    said = [str(warning.message) for warning in caught]
    return json.loads(made.record["scorecard"]), [text for text in said if "uncertainty may not hold" in text]


def test_a_scan_of_the_priors_own_kind_keeps_all_limits(own_scan, gaussian_prior):
    figures, said = _judged(own_scan, gaussian_prior)
    assert set(figures) == {"data_fit", "inside", "z2", "residual"}
    assert all(figure["holds"] for figure in figures.values()), figures
    assert figures["data_fit"]["value"] == pytest.approx(1, abs=0.1)
    assert said == []


@pytest.mark.parametrize("wrong", [3.0, 1 / 3])
def test_a_wrong_noise_level_breaks_the_fit(own_scan, gaussian_prior, wrong):
    figures, (text,) = _judged(replace(own_scan, noise_std=wrong * own_scan.noise_std), gaussian_prior)
    assert not figures["data_fit"]["holds"]
    assert (figures["data_fit"]["value"] < 1) == (wrong > 1)
    assert "data_fit" in text and own_scan.name in text


def test_maps_of_other_coils_break_the_fit(own_scan, gaussian_prior):
    wrong = replace(own_scan, sens_maps=own_scan.sens_maps.roll(6, -1))
    figures, (text,) = _judged(wrong, gaussian_prior)
    assert not figures["data_fit"]["holds"]
    assert "wrong maps" in text


def test_without_held_out_lines_the_figures_of_the_draws_remain(own_scan, gaussian_prior):
    figures, _ = _judged(own_scan, gaussian_prior, calibrate_scan=False)
    assert set(figures) == {"data_fit", "inside"}


def test_scans_of_several_sets_of_maps_are_not_judged(own_scan, gaussian_prior):
    maps = own_scan.sens_maps
    other = maps.roll(1, 0).conj()
    other = other - maps * (maps.conj() * other).sum(0)
    scan = replace(own_scan, sens_maps=maps.new_zeros(2, *maps.shape))
    scan.sens_maps[0], scan.sens_maps[1] = maps, other / (other.abs() ** 2).sum(0).sqrt()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = reconstruct_scans([scan], "posterior", gaussian_prior, samples=2, nfe=6)
    assert "scorecard" not in made.record and "spread_scale" not in made.record


def _card(record, error=1.0, data=9.0):
    sums_per_band = (np.full(BANDS, value) for value in (error, 0.0, 1.0, data, 1.0))
    held = HeldOut(*sums_per_band, samples=2)
    sums = DataSums(misfit=1.0, noise=1.0, inside=0.1, outside=1.0, inside_modes=1.0, outside_modes=1.0)
    return {figure.name: figure for figure in scorecard([sums], [held], record)}


def test_limits_follow_what_the_prior_did_on_its_own_scans():
    found = ((9.0, 9.0), (0.9, 0.3), (8.0, 8.0))  # of which training chose the second round
    history = [{"round": number, "z2": z2, "residual": residual} for number, (z2, residual) in enumerate(found)]
    card = _card({"rounds": 1, "history": history})
    assert (card["z2"].least, card["z2"].most) == pytest.approx((0.36, 1.8))
    assert card["residual"].most == pytest.approx(1.2)
    assert _card({"rounds": 0, "history": [{"round": 0, "z2": 1.0, "residual": 0.1}]})["residual"].most == 1.0
    assert _card({})["z2"].most == 2.0


def test_a_residual_is_told_only_where_the_held_out_data_are_above_the_noise():
    assert "residual" in _card({}, data=1.2)
    assert "residual" not in _card({}, data=1.05)


def test_figures_hold_within_their_limits():
    assert Figure("a", 1.0, 0.5, 2.0).holds
    assert not Figure("a", 0.4, 0.5, 2.0).holds
    assert not Figure("a", 2.1, None, 2.0).holds
    assert json.loads(as_json([Figure("a", 0.4, None, 2.0)])) == {
        "a": {"value": 0.4, "least": None, "most": 2.0, "holds": True}
    }


def test_a_scan_with_no_line_to_hold_out_keeps_the_priors_spread(own_scan, gaussian_prior):
    centre = own_scan.mask > 0
    centre[:, :15] = centre[:, 18:] = False
    mask = centre.float()
    scan = replace(own_scan, mask=mask, kspace=own_scan.kspace * mask, density=mask)
    with pytest.warns(ScanWarning, match="signal"):
        made = reconstruct_scans([scan], "posterior", gaussian_prior, samples=2, nfe=6)
    assert "spread_scale" not in made.record
    assert set(json.loads(made.record["scorecard"])) == {"data_fit", "inside"}
