"""Draws depend on seed, file, slice and number alone: not on the batch, nor on the memory that a GPU has."""

from dataclasses import replace

import pytest
import torch

from mrigsure.denoiser import Denoiser, DenoiserConfig, Prior
from mrigsure.errors import InputError
from mrigsure.seeds import generator
from recon import drawing
from recon.drawing import Drawing


@pytest.fixture
def network_prior():
    """A small U-Net of random weights: other than the Gaussian's it adds up many numbers."""
    denoiser, rng = Denoiser((8, 16)), generator(0)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=rng)
    return Prior(denoiser, DenoiserConfig(channels=(8, 16), sigma_max=10.0))


def drawn(scans, prior, **options):
    """(slices, samples, H, W)."""
    return torch.stack(list(Drawing(**{"samples": 3, "nfe": 6, "name": "file"} | options).of(scans, prior)))


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        ("default", 1e-4),
        ("ula", 1e-2),  # its first solves are as ill conditioned as (sigma_max / sigma0)^2, in float32
    ],
)
def test_the_batch_does_not_change_the_draws(make_scan, network_prior, sampler, tolerance):
    scans = [make_scan((16, 12), seed=seed) for seed in range(3)]
    whole = drawn(scans, network_prior, batch=16, sampler=sampler)
    assert whole.shape == (3, 3, 16, 12)
    for batch in (1, 2, 3, 7, "auto"):
        part = drawn(scans, network_prior, batch=batch, sampler=sampler)
        torch.testing.assert_close(part, whole, rtol=tolerance, atol=tolerance)
    assert (whole[0, 0] - whole[0, 1]).abs().max() > 0.1


def test_the_batch_does_not_change_the_draws_of_pairs(make_scan, network_prior):
    scans = [make_scan((16, 12), seed=seed) for seed in range(2)]
    whole = drawn(scans, network_prior, samples=4, batch=8)
    for batch in (1, 3):
        part = drawn(scans, network_prior, samples=4, batch=batch)
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)


def _common(draws):
    """Power of the scatter of the pairs' means over that in pairs: 0 where the draws of a pair are opposite."""
    first, second = draws[:, ::2], draws[:, 1::2]
    means, halves = (first + second) / 2, (first - second) / 2
    return float((means - means.mean(1, keepdim=True)).abs().square().sum() / halves.abs().square().sum())


def test_only_an_even_number_of_the_default_samplers_draws_is_in_pairs(make_scan, gaussian_prior):
    scans = [make_scan((16, 12), seed=seed) for seed in range(2)]
    assert _common(drawn(scans, gaussian_prior, samples=4)) < 1e-3
    assert _common(drawn(scans, gaussian_prior, samples=4, stack_noise="shared")) < 1e-3
    assert _common(drawn(scans, gaussian_prior, samples=4, independent=True)) > 0.3
    assert _common(drawn(scans, gaussian_prior, samples=5)[:, :4]) > 0.3
    assert _common(drawn(scans, gaussian_prior, samples=4, sampler="ula")) > 0.3


def test_more_samples_begin_with_the_same_ones(make_scan, gaussian_prior):
    few, many = (drawn([make_scan((16, 12))], gaussian_prior, samples=count) for count in (2, 4))
    torch.testing.assert_close(many[:, :2], few, rtol=1e-4, atol=1e-4)


def test_shared_noise_gives_identical_slices_identical_draws(make_scan, gaussian_prior):
    scans = [make_scan((16, 12))] * 3
    shared = drawn(scans, gaussian_prior, stack_noise="shared", batch=2)
    torch.testing.assert_close(shared[1:], shared[:1].expand(2, -1, -1, -1), rtol=1e-4, atol=1e-4)
    assert (shared[:, 0] - shared[:, 1]).abs().max() > 0.01, "the draws of a slice still differ"
    independent = drawn(scans, gaussian_prior)
    assert (independent[0] - independent[1]).abs().max() > 0.01


def test_draws_are_in_raw_units(make_scan, gaussian_prior):
    scan = make_scan((16, 12))
    torch.testing.assert_close(
        4 * drawn([replace(scan, scale=4.0)], gaussian_prior), drawn([scan], gaussian_prior), rtol=1e-5, atol=1e-6
    )


@pytest.fixture
def small_gpu(monkeypatch):
    """Room for `most` draws at once; returns how many were tried each time."""
    real, tried = drawing.draws, []

    def install(most):
        def draws(*words, chunk, **options):
            tried.append(chunk)
            if chunk > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*words, chunk=chunk, **options)

        monkeypatch.setattr(drawing, "draws", draws)
        return tried

    return install


def test_out_of_memory_halves_the_batch_and_changes_nothing(make_scan, gaussian_prior, small_gpu):
    scans = [make_scan((16, 12), seed=seed) for seed in range(3)]
    whole = drawn(scans, gaussian_prior, batch=9)
    tried = small_gpu(2)
    torch.testing.assert_close(drawn(scans, gaussian_prior, batch=9), whole, rtol=1e-4, atol=1e-4)
    assert tried[:3] == [9, 3, 1] or tried[:2] == [9, 3]
    assert sum(count for count in tried if count <= 2) == 9, "no draw was computed twice"


def test_memory_too_small_for_one_draw_is_said(make_scan, gaussian_prior, small_gpu):
    small_gpu(0)
    with pytest.raises(InputError, match="found too little GPU memory for one draw of 4 coils of 16 x 12"):
        drawn([make_scan((16, 12))], gaussian_prior)
