"""Unconditional samples have the prior's distribution, and are written with their seed."""

from types import SimpleNamespace

import h5py
import pytest

from mrigsure.denoiser import DenoiserConfig
from mrigsure.errors import InputError
from mrigsure.sampling import sample, sample_prior
from mrigsure.seeds import generator
from mrigsure.settings import SampleSettings


def test_samples_of_a_gaussian_prior_have_its_variance():
    variance = 0.25
    prior = SimpleNamespace(
        denoise=lambda x, sigma: variance / (variance + sigma[:, None, None] ** 2) * x,
        config=DenoiserConfig(sigma_min=0.01, sigma_max=20.0),
    )
    images = sample_prior(prior, (64, 16, 16), 60, generator(0))
    assert float(images.abs().square().mean() / 2) == pytest.approx(variance, rel=0.03)
    assert abs(complex(images.mean())) < 0.02


def test_the_same_seed_gives_the_same_file(tmp_path):
    options = {"count": 1, "matrix": (16, 24), "levels": 4, "device": "cpu"}
    paths = [sample(SampleSettings(out=str(tmp_path / name), seed=3, **options)) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with h5py.File(paths[0]) as file:
        assert file["samples"].shape == (1, 16, 24) and file.attrs["seed"] == 3
        assert len(file.attrs["prior_sha256"]) == 64
    with pytest.raises(InputError, match=r"levels"):
        sample(SampleSettings(out=str(tmp_path / "c"), count=1, levels=1))


def test_nothing_is_random_but_by_the_seed(tmp_path):
    first = sample(SampleSettings(out=str(tmp_path / "a"), count=1, matrix=16, levels=4, device="cpu", seed=1))
    other = sample(SampleSettings(out=str(tmp_path / "b"), count=1, matrix=16, levels=4, device="cpu", seed=2))
    assert first.read_bytes() != other.read_bytes()
