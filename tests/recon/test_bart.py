"""The baselines against `bart pics`, where BART is installed."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from raw_formats import write_cfl

from recon.baselines import baseline

pytestmark = pytest.mark.skipif(shutil.which("bart") is None, reason="needs the `bart` command (Debian package bart)")
LAMBDA = 0.02
_OPTIONS = {
    "cg-sense": ["-l2", "-r", str(LAMBDA)],
    "l1-wavelet": ["-l1", "-r", str(LAMBDA)],
    "tv": ["-R", f"T:3:0:{LAMBDA}", "-m", "-u", "0.1"],
}


def _pics(scan, folder, words):
    """BART's image, (H, W): no scaling of its own, and no more than 300 iterations."""
    for name, array in (("kspace", scan.kspace), ("maps", scan.sens_maps), ("mask", scan.mask[None])):
        planes = array.numpy().transpose(1, 2, 0)
        write_cfl(folder / name, planes, (*planes.shape[:2], 1, planes.shape[2]))
    files = [str(folder / name) for name in ("mask", "kspace", "maps", "image")]
    command = ["bart", "pics", "-S", "-w", "1", "-i", "300", *words, "-p", *files]
    subprocess.run(command, check=True, capture_output=True)
    return np.fromfile(folder / "image.cfl", np.complex64).reshape(scan.shape, order="F")


@pytest.mark.parametrize(
    ("method", "difference", "decibels"),
    [
        ("cg-sense", 1e-3, 0.01),
        ("l1-wavelet", 0.2, 1.5),  # another wavelet, shifted at random in every iteration
        ("tv", 0.06, 2.0),  # the length of the gradient where sigpy takes its two parts
    ],
)
@pytest.mark.parametrize("pattern", ["random", "points"])
def test_a_baseline_is_barts_as_far_as_their_regularisers_are_alike(
    make_scan, tmp_path, pattern, method, difference, decibels
):
    scan = make_scan(pattern=pattern, coils=8)
    ours, theirs = baseline(method, scan, LAMBDA).numpy(), _pics(scan, tmp_path, _OPTIONS[method])
    assert np.linalg.norm(ours - theirs) < difference * np.linalg.norm(theirs)
    qualities = [_psnr(image, scan.target) for image in (ours, theirs)]
    assert abs(qualities[0] - qualities[1]) < decibels


def _psnr(image, target):
    error = torch.from_numpy(np.abs(image)) - target.abs()
    return float(10 * torch.log10(target.abs().max() ** 2 / error.square().mean()))
