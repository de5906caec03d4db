"""Reconstructions without a learned prior (zero-filled, CG-SENSE, L1-wavelet, total variation) and their lambda.

Lambda is chosen without truth, by the loss that trains the prior: each lambda reconstructs a scan from which some
lines are held out and whose other lines carry a little more noise; its image is compared with all sampled lines,
the kept ones in the form whose noise is independent of the input, each weighted by 1/p. That estimates the error of
the whole image. The held-out residual alone would not: it never sees the shrinking of the centre, where the
energy is, and picks a lambda tens of times too large for CG-SENSE. (docs/method.md, sections 3 and 5)
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mrigsure.errors import InputError
from mrigsure.scan import Scan
from mrigsure.soft_sense import first_set

BASELINES = ("zero-filled", "cg-sense", "l1-wavelet", "tv")
GRIDS = {
    "cg-sense": np.geomspace(1e-4, 1.0, 9),
    "l1-wavelet": np.geomspace(3e-4, 0.3, 8),
    "tv": np.geomspace(3e-4, 0.3, 8),
}
ITERATIONS = {"l1-wavelet": 100, "tv": 200}
_HELD_OUT = 0.15  # a larger share, and a larger alpha, would ask for a larger lambda than all lines do
_ALPHA = 0.5  # noise added to the kept lines, over sigma0
_DRAWS = 2
_ITERATIONS_IN_SEARCH = {"l1-wavelet": 25, "tv": 50}  # enough: each lambda starts from its larger neighbour's image
_DUAL_STEP = 0.1  # of the primal-dual iteration for total variation; 1 takes several times as many steps


@dataclass(frozen=True)
class LambdaChoice:
    """A regularisation weight and why this one.

    chosen_by  "held-out lines", "noised copy" where no line may be held out, "truth", or "no lambda"
    scores     one a grid point. Without truth: the weighted squared error over what noise alone would give, so
               that 1 is perfect; with truth: NMSE of the magnitude
    """

    value: float
    chosen_by: str
    grid: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()


def zero_filled(scan: Scan) -> Tensor:
    """A^H y, complex64 (H, W), in prepared units."""
    batch = scan.batch()
    return first_set(batch.operator.adjoint(batch.kspace)[0])


def cg_sense(scan: Scan, lam: float) -> Tensor:
    """argmin_x ||A x - y||^2 + lam ||x||^2, complex64 (H, W), in prepared units; of several sets' images the first.

    (Pruessmann et al., Magn Reson Med 2001)
    """
    return first_set(_cg_sense_images(scan, [lam])[0])


def l1_wavelet(
    scan: Scan, lam: float, iterations: int = ITERATIONS["l1-wavelet"], start: Tensor | None = None
) -> Tensor:
    """argmin_x ||A x - y||^2 / 2 + lam ||Psi x||_1, complex64 (H, W), in prepared units, by sigpy's FISTA.

    Psi is the Daubechies-4 wavelet transform. (Lustig, Donoho and Pauly, Magn Reson Med 2007)
    Raises InputError for a scan with several sets of maps, which sigpy's app does not know.
    """
    from sigpy.mri.app import L1WaveletRecon

    _one_set("l1-wavelet", scan)
    made = L1WaveletRecon(
        scan.kspace.numpy(),
        scan.sens_maps.numpy(),
        lam,
        weights=scan.mask.numpy(),
        x=None if start is None else start.numpy().copy(),
        max_iter=iterations,
        show_pbar=False,
        alpha=1,  # ||A|| <= 1; sigpy's own estimate of the step draws from NumPy's global generator
    ).run()
    return torch.from_numpy(made)


def total_variation(scan: Scan, lam: float, iterations: int = ITERATIONS["tv"], start: Tensor | None = None) -> Tensor:
    """argmin_x ||A x - y||^2 / 2 + lam ||G x||_1, complex64 (H, W), in prepared units, by the primal-dual method.

    G takes the differences of neighbours along both axes. (Block, Uecker and Frahm, Magn Reson Med 2007; Chambolle and
    Pock, J Math Imaging Vis 2011) The iterates are those of sigpy's TotalVariationRecon, whose dual variable in k-space
    is met through its image A^H u alone: with T = A^H A they take a tenth of the time.
    Raises InputError for a scan with several sets of maps.
    """
    _one_set("tv", scan)
    batch = scan.batch()
    seen = batch.operator.adjoint(batch.kspace)
    x = torch.zeros_like(seen) if start is None else start[None].clone()
    dual, edges, ahead = torch.zeros_like(seen), torch.zeros_like(_differences(x)), x
    step = 1 / ((1 + 8) * _DUAL_STEP)  # a bound of ||A||^2 + ||G||^2
    for _ in range(iterations):
        dual = (dual + _DUAL_STEP * (batch.operator.normal(ahead) - seen)) / (1 + _DUAL_STEP)
        edges = edges + _DUAL_STEP * _differences(ahead)
        edges *= (lam * _energy(edges).rsqrt()).clamp_max(1)
        before, x = x, x - step * (dual + _differences_adjoint(edges))
        ahead = 2 * x - before
    return x[0]


def baseline(method: str, scan: Scan, lam: float = 0.0) -> Tensor:
    """One of `BASELINES` by name; zero-filled uses no lambda."""
    if method == "zero-filled":
        return zero_filled(scan)
    return {"cg-sense": cg_sense, **_ITERATIVE}[method](scan, lam)


def choose_lambda(method: str, scan: Scan, generator: torch.Generator) -> LambdaChoice:
    """The lambda with the least truth-free estimate of the image's error, averaged over a few draws."""
    if method == "zero-filled":
        return LambdaChoice(0.0, "no lambda")
    grid = GRIDS[method]
    can_hold_out = bool((scan.mask.bool() & (scan.density < 0.999)).any())
    weight = scan.mask / scan.density.clamp_min(1e-3)
    operator = scan.batch().operator
    energy, floor = np.zeros(len(grid)), 0.0
    for _ in range(_DRAWS):
        kept = scan.held_out(_HELD_OUT, generator) if can_hold_out else scan
        noise = torch.view_as_complex(torch.randn(*scan.kspace.shape, 2, generator=generator)) * kept.mask
        noised = replace(kept, kspace=kept.kspace + _ALPHA * scan.noise_std * noise)
        compared = scan.kspace - scan.noise_std / _ALPHA * noise  # independent of `noised`
        for index, image in enumerate(_along_grid(method, noised, grid)):
            error = operator.coil_kspace(image[None])[0] - compared
            energy[index] += float((weight * error.abs().square()).sum())
        variance = 2 * scan.noise_std**2 * (1 + kept.mask / _ALPHA**2)
        floor += float((weight * variance).sum()) * len(scan.kspace)
    return _choice(grid, energy / floor, "held-out lines" if can_hold_out else "noised copy")


def best_lambda_with_truth(method: str, scan: Scan, target: Tensor) -> LambdaChoice:
    """The lambda with the least magnitude error: the best a baseline can do. For studies only.

    target  complex64 (H, W), in prepared units
    """
    if method == "zero-filled":
        return LambdaChoice(0.0, "no lambda")
    grid = GRIDS[method]
    truth = target.abs()
    images = (baseline(method, scan, lam) for lam in grid)  # as they are then used: a warm start's best is another
    energy = [float((image.abs() - truth).square().sum()) for image in images]
    return _choice(grid, np.array(energy) / float(truth.square().sum()), "truth")


_ITERATIVE = {"l1-wavelet": l1_wavelet, "tv": total_variation}


def _one_set(method, scan):
    if scan.sens_maps.ndim == 4:
        sets = len(scan.sens_maps)
        raise InputError(scan.name or "scan", f"{sets} sets of maps", f"one for {method}; cg-sense takes several")


def _differences(image):
    """G: (1, H, W) -> (2, H, W), of every pixel and its neighbour before, the last one's before the first."""
    return torch.cat([image - image.roll(1, -2), image - image.roll(1, -1)])


def _energy(image):
    """|image|^2, ten times as fast as by abs()."""
    parts = torch.view_as_real(image).square()
    return parts[..., 0] + parts[..., 1]


def _differences_adjoint(edges):
    down, right = edges[:1], edges[1:]
    return down - down.roll(-1, -2) + right - right.roll(-1, -1)


def _along_grid(method, scan, grid):
    """One image a lambda. Iterative methods go from the largest lambda down, each starting from the last image."""
    if method == "cg-sense":
        return _cg_sense_images(scan, grid)
    images, image = [], None
    for lam in grid[::-1]:
        image = _ITERATIVE[method](scan, float(lam), _ITERATIONS_IN_SEARCH[method], image)
        images.append(image)
    return images[::-1]


def _cg_sense_images(scan, lambdas):
    batch = scan.batch()
    operator = batch.operator
    if len(lambdas) > 1:
        operator.factorise()
    rhs = operator.adjoint(batch.kspace)
    return [operator.solve(rhs, torch.tensor([lam], dtype=torch.float32))[0] for lam in lambdas]


def _choice(grid, scores, chosen_by):
    return LambdaChoice(_refine(grid, scores), chosen_by, tuple(map(float, grid)), tuple(map(float, scores)))


def _refine(grid, scores):
    """The minimum of the parabola through the best grid point and its neighbours, in log lambda."""
    best = int(np.argmin(scores))
    if best in (0, len(grid) - 1):
        return float(grid[best])
    left, middle, right = scores[best - 1 : best + 2]
    curvature = left - 2 * middle + right
    step = 0.0 if curvature <= 0 else 0.5 * (left - right) / curvature
    return float(grid[best] * (grid[best + 1] / grid[best]) ** step)
