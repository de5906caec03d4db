"""The baselines do what their equations say, and lambda found without truth is nearly as good as with it."""

import numpy as np
import pytest
import torch

from recon.baselines import (
    GRIDS,
    baseline,
    best_lambda_with_truth,
    cg_sense,
    choose_lambda,
    l1_wavelet,
    total_variation,
    zero_filled,
)


def _psnr(image, target):
    image, target = image.abs(), target.abs()
    return float(10 * torch.log10(target.max() ** 2 / (image - target).square().mean()))


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_zero_filled_is_the_adjoint(make_scan):
    scan = make_scan()
    shifted = np.fft.ifftshift(scan.kspace.numpy(), axes=(1, 2))
    coils = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(1, 2))
    expected = (scan.sens_maps.numpy().conj() * coils).sum(0)
    np.testing.assert_allclose(zero_filled(scan).numpy(), expected, atol=2e-6)


def test_cg_sense_at_tiny_lambda_on_full_sampling_is_the_adjoint(make_scan):
    scan = make_scan(pattern="full")
    torch.testing.assert_close(cg_sense(scan, 1e-6), zero_filled(scan), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pattern", ["random", "points"])
def test_cg_sense_is_a_stationary_point_of_its_objective(make_scan, pattern):
    scan = make_scan(pattern=pattern)
    image, lam = cg_sense(scan, 0.02), 0.02
    operator, kspace = scan.batch().operator, scan.kspace[None]
    gradient = operator.adjoint(operator.forward(image[None]) - kspace)[0] + lam * image
    assert gradient.abs().max() < 1e-4 * zero_filled(scan).abs().max()


def test_l1_wavelet_is_sigpys(make_scan):
    from sigpy.mri.app import L1WaveletRecon

    scan, lam = make_scan(), 0.01
    kspace, sens_maps, mask = scan.kspace.numpy(), scan.sens_maps.numpy(), scan.mask.numpy()
    app = L1WaveletRecon(kspace, sens_maps, lam, weights=mask, max_iter=300, show_pbar=False)
    expected = app.run()  # its own step size, more iterations
    assert np.linalg.norm(l1_wavelet(scan, lam).numpy() - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("lam", [0.005, 0.05])
def test_total_variation_is_what_another_solver_finds(make_scan, lam):
    from sigpy.mri.app import TotalVariationRecon

    scan = make_scan()
    kspace, sens_maps, mask = scan.kspace.numpy(), scan.sens_maps.numpy(), scan.mask.numpy()
    options = {"solver": "ADMM", "rho": 0.1, "max_cg_iter": 5, "max_iter": 80}
    expected = TotalVariationRecon(kspace, sens_maps, lam, weights=mask, show_pbar=False, **options).run()
    assert np.linalg.norm(total_variation(scan, lam).numpy() - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("pattern", ["random", "points"])
def test_total_variation_takes_the_steps_of_sigpys_solver(make_scan, pattern):
    from sigpy.mri.app import TotalVariationRecon

    scan, start = make_scan(pattern=pattern), zero_filled(make_scan(seed=1))
    kspace, sens_maps, mask = scan.kspace.numpy(), scan.sens_maps.numpy(), scan.mask.numpy()
    options = {"sigma": 0.1, "tau": 1 / 0.9, "max_iter": 12, "show_pbar": False, "x": start.numpy().copy()}
    expected = TotalVariationRecon(kspace, sens_maps, 0.02, weights=mask, **options).run()
    found = total_variation(scan, 0.02, iterations=12, start=start).numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", [l1_wavelet, total_variation])
def test_iterative_baselines_draw_nothing(make_scan, method):
    scan = make_scan()
    assert torch.equal(method(scan, 0.01, iterations=3), method(scan, 0.01, iterations=3))


@pytest.mark.parametrize("method", ["cg-sense", "l1-wavelet", "tv"])
@pytest.mark.parametrize("noise_std", [0.02, 0.06])
def test_lambda_without_truth_is_within_half_a_decibel_of_the_best(make_scan, method, noise_std):
    scan = make_scan(noise_std=noise_std)
    found = choose_lambda(method, scan, _seeded())
    best = best_lambda_with_truth(method, scan, scan.target)
    assert found.chosen_by == "held-out lines"

    def quality(lam):
        return _psnr(baseline(method, scan, lam), scan.target)

    assert quality(found.value) > quality(best.value) - 0.5
    worst = min(quality(GRIDS[method][0]), quality(GRIDS[method][-1]))
    assert quality(best.value) > worst + 2  # otherwise any lambda would pass


def test_the_choice_repeats_with_its_seed_and_reports_the_noise_floor(make_scan):
    scan = make_scan()
    first, second = (choose_lambda("cg-sense", scan, _seeded(3)) for _ in range(2))
    assert first == second
    assert 0.8 < min(first.scores) < 5


def test_a_fully_sampled_scan_is_still_regularised_by_its_noise(make_scan):
    scan = make_scan(pattern="full", noise_std=0.15)
    found = choose_lambda("l1-wavelet", scan, _seeded())
    best = best_lambda_with_truth("l1-wavelet", scan, scan.target)
    assert found.chosen_by == "noised copy"
    assert 0.4 < found.value / best.value < 2.5
