"""Pictures show the pixels as they are: whole factors, one window, errors where they belong."""

import numpy as np
import pytest

from recon.figures import Case, comparison
from recon.reconstruction import Reconstruction


def _read(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def _image(shape=(100, 100)):
    """Random tissue in the middle of air."""
    image = np.random.default_rng(0).choice(np.float32([0.25, 0.5, 1.0]), size=shape)
    return np.pad(image[15:-15, 15:-15], 15)


def test_pixels_are_enlarged_by_a_whole_factor_without_interpolation(tmp_path):
    image = _image()
    comparison(tmp_path / "a.png", [Case("", {"m": image})], crop=False)
    picture = _read(tmp_path / "a.png").mean(-1)
    expected = np.kron(image, np.ones((3, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(picture, expected.shape)
    assert min(np.abs(window - expected).max() for row in windows for window in row[20:40]) < 0.01


def test_a_truth_adds_error_maps_and_figures_to_each_method(tmp_path):
    image = _image()
    wrong = image.copy()
    wrong[50:55, 40:45] += 0.5
    cases = [Case("with truth", {"good": image, "bad": wrong}, truth=image, std=0.1 * image)]
    comparison(tmp_path / "with.png", cases)
    comparison(tmp_path / "without.png", [Case("without", {"good": image, "bad": wrong}, std=0.1 * image)])
    with_truth, without = _read(tmp_path / "with.png"), _read(tmp_path / "without.png")
    assert with_truth.shape[0] > 1.5 * without.shape[0]
    hottest = (with_truth[with_truth.shape[0] * 2 // 3 :] > 0.6).all(-1)  # in the error row
    _, good, bad, _ = np.array_split(hottest, 4, axis=1)  # truth, the two methods, uncertainty
    assert good.sum() == 0
    assert bad.sum() >= 25  # the 5 x 5 pixels, enlarged


def test_the_same_picture_has_the_same_bytes_and_leaves_no_partial_file(tmp_path):
    for name in ("a.png", "b.png"):
        comparison(tmp_path / name, [Case("", {"m": _image()}, std=0.1 * _image())])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_cases_of_different_sizes_share_a_figure(tmp_path):
    cases = [
        Case("small", {"m": _image((60, 90))}, truth=_image((60, 90))),
        Case("large", {"m": _image((120, 160))}),
    ]
    comparison(tmp_path / "a.png", cases)
    assert _read(tmp_path / "a.png").shape[0] > 500


def test_no_pyplot(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from recon.figures import Case, comparison;"
        f"comparison({str(tmp_path / 'a.png')!r}, [Case('', {{'m': np.eye(32)}})]);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("samples", [1, 8])
def test_titles_name_method_prior_and_acceleration(samples):
    record = {"method": "posterior", "prior": "shipped", "samples": samples, "acceleration": 4.0}
    title = Reconstruction(np.zeros((1, 4, 4), np.complex64), record=record).title
    assert "prior shipped" in title
    assert "R = 4" in title
    assert ("mean of 8" in title) == (samples == 8)
