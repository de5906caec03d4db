"""Can an archive teach a prior? The spectrum of the ensemble's normal operator (docs/method.md, section 5).

N = E[S^H F^H P F S], with P = p(k) the sampling density: a mode with eigenvalue near 0 is measured by no scan. Lines
alone do not decide: with 8 coils and one fixed R = 2 mask half of them are never sampled, and yet every mode is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mrigsure.errors import InputError
from mrigsure.masks import acquired_support
from mrigsure.operators import SenseOperator
from mrigsure.scan import Scan, VolumeFacts, collate
from mrigsure.seeds import complex_noise, generator

BLIND = 0.01  # an eigenvalue of E[A^H A] below this is a blind mode


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of E[A^H A] inside the acquired support: share of modes below BLIND, smallest Ritz value."""

    blind_share: float
    smallest: float


def ensemble_spectrum(scans: Sequence[Scan], seed: int = 0, steps: int = 40, probes: int = 4) -> Spectrum:
    """Estimate the spectrum by stochastic Lanczos quadrature over scans of ONE matrix size.

    Each scan's density stands for its mask. Modes outside the acquired support (zero-padding, cut corners) do not
    count as blind: they are taken as measured.
    """
    batch = collate(list(scans))
    operators = SenseOperator(_filled_density(batch), batch.sens_maps)

    def ensemble(x):
        return operators.normal(x.expand(len(scans), *x.shape[-2:])).mean(0, keepdim=True)

    rng = generator(seed, "lanczos")
    blind, smallest = 0.0, 1.0
    for _ in range(probes):
        values, weights = _lanczos(ensemble, complex_noise((1, *scans[0].shape), rng), steps)
        blind += float(weights[values < BLIND].sum()) / probes
        smallest = min(smallest, float(values.min()))
    return Spectrum(blind, max(smallest, 0.0))


def refuse_unidentifiable(volumes: Sequence[VolumeFacts], where) -> None:
    """InputError for a single-coil archive with lines, inside the acquired support, that no scan ever sampled.

    With several coils nothing is refused: `ensemble_spectrum` says what share of the modes is blind.
    """
    by_shape = {}
    for volume in volumes:
        if volume.kspace_shape[1] == 1:
            by_shape.setdefault((volume.kspace_shape[-2:], volume.mask.ndim), []).append(volume.mask)
    if sum(map(len, by_shape.values())) < len(volumes):
        return
    for (_, dimensions), masks in by_shape.items():
        union = np.any(masks, axis=0)
        support = acquired_support(union)
        missing = int((support & ~union).sum())
        if missing:
            unit = "lines" if dimensions == 1 else "points"
            raise InputError(
                where,
                f"{missing} of {support.sum()} k-space {unit} ({missing / support.sum():.0%} of the modes) that none "
                f"of its {len(masks)} single-coil masks ever sampled",
                "masks that together cover the acquired k-space (vary the mask from scan to scan)",
            )


def _filled_density(batch):
    density = []
    for mask, value in zip(batch.mask[:, 0], batch.density[:, 0], strict=True):
        sampled = mask.bool().numpy()
        line_mask = bool((sampled == sampled[:1]).all())
        support = torch.from_numpy(acquired_support(sampled[0] if line_mask else sampled)).expand_as(value)
        density.append(torch.where(support | (value > 0), value, 1.0))
    return torch.stack(density)[:, None]


def _lanczos(operator, start, steps):
    """Ritz values and quadrature weights of a Hermitian operator, with full reorthogonalisation."""
    vectors = [start / start.norm()]
    diagonal, off = [], []
    for _ in range(min(steps, start.numel())):
        image = operator(vectors[-1])
        diagonal.append((vectors[-1].conj() * image).real.sum())
        for vector in vectors:
            image = image - (vector.conj() * image).sum() * vector
        norm = image.norm()
        if norm < 1e-6:
            break
        off.append(norm)
        vectors.append(image / norm)
    size = len(diagonal)
    matrix = torch.diag(torch.stack(diagonal).double())
    for i in range(size - 1):
        matrix[i, i + 1] = matrix[i + 1, i] = off[i].double()
    values, basis = torch.linalg.eigh(matrix)
    return values, basis[0].square()
