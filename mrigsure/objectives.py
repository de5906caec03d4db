"""Training objectives. Each returns one loss per scan, (batch,), the squared error per real number of the image.

    split_gsure   || W M (F S f(x_sigma) - y~) ||^2, no divergence; with held-out lines (docs/method.md, 3 and 5)
    gsure         || W M (F S f(x_sigma) - y) ||^2 + 2 sigma0^2 div (Kawar et al., arXiv 2305.13128; section 2)
    completed     || W M (F S (f(x_sigma) - x' + x'') - y~) ||^2, a draw x' filling in what x_sigma's solve lacks (6)
    denoising     || f(x + sigma w) - x ||^2, for draws below the data's noise, and for the clean images of an oracle

`denoise(x, sigma)` maps complex (batch, H, W) and (batch,) to complex (batch, H, W).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mrigsure.diffusion import (
    complete_and_solve,
    diffuse_adjoint,
    independent_kspace,
    lowest_solve_sigma,
    perturb_and_solve,
)
from mrigsure.operators import SenseOperator
from mrigsure.scan import ScanBatch, kept_lines
from mrigsure.seeds import complex_noise

Denoise = Callable[[Tensor, Tensor], Tensor]
_LEAST_Q = 0.05  # 1/q is clipped there
DRAWS_ALONE = 2.0  # times the lowest level of a solve: below it draws are the targets (docs/refinement.md)


def split_gsure(
    denoise: Denoise,
    batch: ScanBatch,
    sigma: Tensor,
    delta: Tensor,
    generator: torch.Generator,
    *,
    weights: str = "1/p",
    diffuse=perturb_and_solve,
) -> Tensor:
    """Split GSURE with a share `delta` (batch,) of the lines held out of the input.

    Equal to E || f - x ||^2 up to a constant over the sampled modes; `diffuse` is perturb_and_solve or diffuse_adjoint.
    """
    kept = kept_lines(batch.mask, batch.density, delta, generator)
    operator = SenseOperator(kept, batch.sens_maps)
    x_sigma, target = diffuse(operator, batch.kspace, sigma, batch.sigma0, generator)
    error = batch.operator.coil_kspace(denoise(x_sigma, sigma)) - target
    weight = line_weights(batch.mask, kept, batch.density, delta, weights)
    return _mean_square(weight.sqrt() * error)


def gsure(
    denoise: Denoise, batch: ScanBatch, sigma: Tensor, generator: torch.Generator, *, diffuse=diffuse_adjoint
) -> Tensor:
    """GSURE with Hutchinson's divergence: one extra backward pass through the network, and noise-free only on average.

    The probe is one-sided: <W^2 M b, F S J b>, J the derivative of f(x_sigma(y)) by y, a vector-Jacobian product.
    """
    kspace = batch.kspace.clone().requires_grad_(True)
    x_sigma, _ = diffuse(batch.operator, kspace, sigma, batch.sigma0, generator)
    output = batch.operator.coil_kspace(denoise(x_sigma, sigma))
    weight = line_weights(batch.mask, batch.mask, batch.density, torch.zeros_like(sigma), "1/p")
    probe = batch.mask * complex_noise(output.shape, generator, output.dtype)
    projected = ((weight * probe).conj() * output).real.sum()
    (gradient,) = torch.autograd.grad(projected, kspace, create_graph=True)
    divergence = (gradient.conj() * probe).real.sum((1, 2, 3)) / (2 * probe[0, 0].numel())
    return _mean_square(weight.sqrt() * (output - batch.kspace)) + 2 * batch.sigma0**2 * divergence


def denoising(
    denoise: Denoise,
    image: Tensor,
    sigma: Tensor,
    generator: torch.Generator,
    *,
    scans: ScanBatch | None = None,
    measured: float = 0.0,
) -> Tensor:
    """Plain denoising of complex images (batch, H, W).

    Of draws the share `measured` of the loss falls on what their `scans` sampled, || W M F S (f - x) ||^2 with
    W^2 = 1/p: equal in expectation if the draws are right, and sooner right if they are not, as what was imputed
    teaches less (docs/method.md, section 6).
    """
    noise = complex_noise(image.shape, generator, image.dtype)
    error = denoise(image + sigma[:, None, None] * noise, sigma) - image
    return _of_draws(error, scans, measured)


def completed(
    denoise: Denoise,
    image: Tensor,
    sigma: Tensor,
    generator: torch.Generator,
    *,
    other: Tensor,
    scans: ScanBatch,
    noisier: Tensor,
    pair: Tensor,
    measured: float,
    bootstrap: float,
) -> Tensor:
    """Split GSURE on inputs that draws complete; at low sigma `denoising` of draws, corrected by their bootstrap.

    The input knows of the draw what the scan cannot teach, as it is not in x. So the target is A image + y~ - A other:
    x - other is as likely as other - x given the input, if the draws are right, and the image is what the input is of.

    Below `lowest_solve_sigma` there is no such input, and just above it mu is so near to 1 that all but the best known
    modes are mostly the draws', whose smoothness the network then takes for that of images. There (1 + bootstrap) times
    the loss of the pair's first, less `bootstrap` times that of its second: the denoiser of (1 + b) q - b p, q and p
    the distributions of the two, which is as much nearer to the truth than q as p is farther (docs/method.md, 6).

    image    complex (batch, H, W), draws given `noisier` alone
    other    complex (batch, H, W), as many more, independent of `image` given `noisier`
    noisier  complex (batch, coil, H, W), of the `scans` with more noise (diffusion.noisier_scan)
    pair     complex (batch, 2, H, W): draws given the `scans`, and draws made alike given scans simulated from those
    """
    by_scans = sigma >= DRAWS_ALONE * lowest_solve_sigma(scans.sigma0)
    above, below = by_scans.nonzero()[:, 0], (~by_scans).nonzero()[:, 0]
    parts = []
    if len(above):
        chosen = [part[above] for part in (image, image - other, noisier, sigma)]
        parts.append(_by_scans(scans.of(above), *chosen, generator))
    if len(below):
        parts.append(_by_draws(scans.of(below), pair[below], sigma[below], measured, bootstrap, generator))
    inputs, levels, losses = zip(*parts, strict=True)
    outputs = denoise(torch.cat(inputs), torch.cat(levels)).split([len(level) for level in levels])  # at once
    each = torch.cat([loss(output) for loss, output in zip(losses, outputs, strict=True)])
    return each[torch.cat([above, below]).argsort()]


def _by_scans(scans, image, target, noisier, sigma, generator):
    """Inputs of `completed`, their levels, and the loss of what the denoiser makes of them."""
    inputs = complete_and_solve(scans.operator, noisier, image, sigma, scans.sigma0, generator)
    independent = independent_kspace(scans.kspace, noisier)
    return inputs, sigma, lambda output: _on_sampled(scans, scans.operator.coil_kspace(output - target) - independent)


def _by_draws(scans, pair, sigma, measured, bootstrap, generator):
    """The same where draws alone teach; both of a pair have one noise."""
    weights = (1 + bootstrap, -bootstrap) if bootstrap else (1.0,)
    images = pair[:, : len(weights)].transpose(0, 1)
    noisy = images + sigma[:, None, None] * complex_noise(images.shape[1:], generator, images.dtype)

    def loss(output):
        errors = output.unflatten(0, images.shape[:2]) - images
        return sum(w * _of_draws(error, scans, measured) for w, error in zip(weights, errors, strict=True))

    return noisy.flatten(0, 1), sigma.repeat(len(weights)), loss


def _of_draws(error, scans, measured):
    """The loss of `denoising` from the error of the draws (batch, H, W)."""
    everywhere = error.abs().square().mean((1, 2)) / 2
    if not measured:
        return everywhere
    return (1 - measured) * everywhere + measured * _on_sampled(scans, scans.operator.coil_kspace(error))


def _on_sampled(scans, error):
    """|| W M error ||^2 of k-space errors (batch, coil, H, W), W^2 = 1/p."""
    weight = line_weights(scans.mask, scans.mask, scans.density, torch.zeros_like(scans.sigma0), "1/p")
    return _mean_square(weight.sqrt() * error)


def line_weights(mask: Tensor, kept: Tensor, density: Tensor, delta: Tensor, weights: str) -> Tensor:
    """W^2 M: 1/p on every sampled line, or 1/q with q = P(M = 1 | M~) (section 5); 0 where not sampled."""
    probability = density
    if weights == "1/q":
        d = delta.to(density)[:, None, None, None]
        q = density * d / (1 - density * (1 - d)).clamp_min(1e-6)
        probability = torch.where(kept > 0, 1.0, q.clamp_min(_LEAST_Q))
    return torch.where(mask > 0, 1 / probability.clamp_min(1e-6), 0.0)


def _mean_square(kspace: Tensor) -> Tensor:
    return kspace.abs().square().sum((1, 2, 3)) / (2 * kspace[0, 0].numel())
