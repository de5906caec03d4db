"""The page beside a reconstruction shows magnitude, phase, standard deviation and interval, each on its own scale."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from recon.preview import _title, panels_of, preview
from recon.reconstruction import Reconstruction


def _read(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.fixture
def drawn():
    """Three slices of a bright square in faint air, whose phase falls from top to bottom, with spread and intervals."""
    shape = (3, 40, 40)
    magnitude = np.full(shape, 0.01, np.float32)
    magnitude[:, 10:30, 10:30] = np.float32([1, 2, 3])[:, None, None]
    image = magnitude * np.exp(1j * np.linspace(-1, 1, 40))[:, None]
    record = {"method": "posterior", "samples": 8, "prior": "p", "interval": 0.8, "scan": "a.h5"}
    spread = {"std": 0.1 * magnitude, "lower": 0.9 * magnitude, "upper": 1.2 * magnitude}
    return Reconstruction(image.astype(np.complex64), **spread, record=record)


def test_the_panels_hold_the_middle_slice_and_the_width_of_its_interval(drawn):
    magnitude, phase, std, width = panels_of(drawn)
    np.testing.assert_allclose(magnitude.values, np.abs(drawn.image[1]))
    np.testing.assert_allclose(phase.values[10:30, 10:30], np.angle(drawn.image[1, 10:30, 10:30]))
    assert np.isnan(phase.values[:10]).all(), "the phase of air is noise"
    np.testing.assert_allclose(std.values, drawn.std[1])
    np.testing.assert_allclose(width.values, drawn.upper[1] - drawn.lower[1])
    assert width.title == "width of the 80% interval"


def test_scales_are_stated_as_number_and_as_share_of_white(drawn):
    magnitude, phase, std, width = panels_of(drawn)
    assert (phase.low, phase.high) == (-math.pi, math.pi)
    for panel, share in ((magnitude, 1), (std, 0.2), (width, 0.5)):
        assert (panel.low, panel.high) == (0, pytest.approx(2 * share))
        assert panel.ticks[2].startswith(f"{2 * share:.3g}\n")
    assert std.ticks[2].endswith("20% of white")
    assert width.ticks[2].endswith("50% of white")


@pytest.mark.parametrize(("field", "place"), [("std", 2), ("upper", 3), ("lower", 3)])
def test_each_map_has_its_place_on_the_page(drawn, field, place, tmp_path):
    other = getattr(drawn, field).copy()
    other[1, 15:20, 15:20] *= 1.1
    preview(tmp_path / "a.png", drawn)
    preview(tmp_path / "b.png", replace(drawn, **{field: other}))
    changed = (_read(tmp_path / "a.png") != _read(tmp_path / "b.png")).any((0, 2))
    quarters = [part.any() for part in np.array_split(changed, 4)]
    assert quarters == [number == place for number in range(4)]


def test_without_draws_the_page_has_magnitude_and_phase_alone(drawn, tmp_path):
    plain = Reconstruction(drawn.image, record={"method": "cg-sense"})
    assert [panel.title for panel in panels_of(plain)] == ["magnitude", "phase"]
    preview(tmp_path / "a.png", plain)
    assert _read(tmp_path / "a.png").shape[1] < 800


def test_an_empty_image_has_a_page(tmp_path):
    preview(tmp_path / "a.png", Reconstruction(np.zeros((1, 8, 8), np.complex64), record={"method": "x"}))
    assert _read(tmp_path / "a.png").size


def test_the_same_page_has_the_same_bytes_and_leaves_no_partial_file(drawn, tmp_path):
    for name in ("a.png", "b.png"):
        preview(tmp_path / name, drawn)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_scorecard_is_shown_and_what_breaks_it_marked(drawn):
    card = {name: {"value": 1.234, "least": None, "most": 2.0, "holds": name == "z2"} for name in ("z2", "inside")}
    shown = replace(drawn, record={"method": "x", "scan": "a.h5", "scorecard": json.dumps(card)})
    assert _title(shown) == ["x", "a.h5   slice 2 of 3   z2 1.23  inside 1.23 !"]
