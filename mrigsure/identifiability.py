"""Can an archive teach a prior? The spectrum of the ensemble's normal operator (docs/method.md, section 5).

N = E[A^H A] over the scans of one matrix size, on the images whose k-space lies inside the acquired support: a mode
with an eigenvalue near 0 is measured by no scan. Lines alone do not decide: with 8 coils and one fixed R = 2 mask half
of them are never sampled, and yet every mode is seen.

Whole lines leave N one matrix per image row, so that their spectrum is exact. Points are left to Lanczos quadrature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mrigsure.errors import InputError
from mrigsure.fourier import blur, fft2c, ifft2c
from mrigsure.masks import acquired_support
from mrigsure.scan import ScanSet, VolumeFacts
from mrigsure.seeds import complex_noise, generator

BLIND = 0.01  # an eigenvalue of E[A^H A] below this is a blind mode
_WEAKEST = 0.05  # share of modes that the maps show where none is blind
SCANS, ROWS = 128, 128
_POINT_SCANS, _STEPS, _PROBES = 8, 48, 4
_SPURIOUS = 1e-9  # quadrature weight of Ritz values that rounding makes, outside the support


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of E[A^H A] and where its blind modes lie.

    values, weights  float64 (n,), ascending; the weights sum to 1
    below            the maps show the modes with eigenvalues up to here: BLIND, or the weakest 5% if none is blind
    image, kspace    float32 (H, W), the share of every pixel, and of every k-space sample, that lies in those modes:
                     the diagonal of the projector onto them
    """

    values: Tensor
    weights: Tensor
    below: float
    image: Tensor
    kspace: Tensor

    @property
    def blind_share(self) -> float:
        """Share of the modes with eigenvalues below BLIND."""
        return float(self.weights[self.values < BLIND].sum())

    @property
    def smallest(self) -> float:
        return max(float(self.values[0]), 0.0)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The eigenvalues that a given share of the modes does not exceed."""
        place = torch.searchsorted(self.weights.cumsum(0), torch.tensor(shares, dtype=torch.float64) - 1e-9)
        return self.values.clamp_min(0)[place.clamp_max(len(self.values) - 1)].tolist()


class Ensemble(Protocol):
    """Scans of one matrix size. `density` is p(k), of the shape of `support`, and stands for every scan's mask;
    without it each scan has its own."""

    support: np.ndarray

    def spectrum(self, density: np.ndarray | None = None) -> Spectrum: ...


def archive_ensemble(
    scans: ScanSet, indices: Sequence[int], seed: int = 0, most: int = SCANS, rows: int = ROWS
) -> Ensemble:
    """The ensemble of the scans `indices`, which share a matrix size; rows as LineEnsemble's.

    Of an archive of more than `most` scans with line masks, evenly spread ones lend their coil maps; each stands for
    its neighbours, with the mean of their masks.
    """
    masks = {volume.path: _as_lines(volume.mask) for volume in scans.volumes}
    masks = {index: masks[scans.file_of(index)] for index in indices}
    points = any(mask.ndim == 2 for mask in masks.values())
    if points:
        masks = {index: np.broadcast_to(mask, scans.shapes[index]) for index, mask in masks.items()}
    strata = np.array_split(np.asarray(indices), min(_POINT_SCANS if points else most, len(indices)))
    maps = (_first_set(scans.sens_maps(int(stratum[len(stratum) // 2]))) for stratum in strata)
    means = [np.mean([masks[int(index)] for index in stratum], axis=0) for stratum in strata]
    weights = [len(stratum) / len(indices) for stratum in strata]
    support = acquired_support(np.any(list(masks.values()), axis=0))
    if points:
        return PointEnsemble(list(maps), means, weights, support, seed)
    return LineEnsemble(maps, means, weights, support, rows)


class LineEnsemble:
    """Scans with masks of whole lines: N falls apart into one W x W matrix per image row (operators.row_matrices).

    sens_maps  complex64 (coil, H, W) of each scan, read one at a time
    densities  (W,) of each scan: its mask, or a mean of masks
    weights    of each scan, summing to 1
    support    bool (W,)
    rows       at most so many rows, evenly spread: coils are smooth, so that the rows between are alike
    """

    def __init__(self, sens_maps, densities, weights, support: np.ndarray, rows: int = ROWS):
        self.support = support
        self.gram = self.normal = None
        for maps, density, weight in zip(sens_maps, densities, weights, strict=True):
            self.shape = tuple(maps.shape[-2:])
            picks = np.linspace(0, self.shape[0] - 1, min(rows, self.shape[0])).round().astype(int)
            by_row = maps[:, picks].permute(1, 2, 0)  # (rows, W, coil)
            gram = by_row.conj() @ (weight * by_row).mT
            if self.normal is None:
                self.gram, self.normal = torch.zeros_like(gram), torch.zeros_like(gram)
            self.gram += gram
            self.normal += gram.mul_(_point_spread(density))
        self.rows = picks

    def spectrum(self, density: np.ndarray | None = None) -> Spectrum:
        """Exact on the rows that were taken."""
        normal = self.normal if density is None else self.gram * _point_spread(density)
        basis = _line_images(self.support)  # (W, lines)
        values, modes = torch.linalg.eigh(basis.mH @ normal @ basis)
        flat = values.double().flatten().sort().values
        weights = torch.full_like(flat, 1 / len(flat))
        below = _shown_below(flat, weights)
        shown = (values <= below).float()[:, None]  # (rows, 1, modes)
        nearest = np.abs(np.arange(self.shape[0])[:, None] - self.rows).argmin(1)
        image = ((basis @ modes).abs().square() * shown).sum(-1)[nearest]
        kspace = torch.zeros(self.shape)
        kspace[:, torch.from_numpy(self.support)] = (modes.abs().square() * shown).sum(-1).mean(0)
        return Spectrum(flat, weights, below, image, kspace)


class PointEnsemble:
    """Scans with masks of single points, which couple all pixels; arguments as LineEnsemble's, masks (H, W)."""

    def __init__(self, sens_maps: Sequence[Tensor], densities, weights, support: np.ndarray, seed: int = 0):
        self.sens_maps, self.weights, self.support, self.seed = sens_maps, weights, support, seed
        self.densities = [torch.from_numpy(np.asarray(density, np.float32)) for density in densities]
        self.inside = torch.from_numpy(support).float()

    def spectrum(self, density: np.ndarray | None = None) -> Spectrum:
        """By stochastic Lanczos quadrature; the maps are f(N) applied to the probes, f the indicator of those modes.

        The archive itself gets several probes, which a picture needs, a `density` one. The image is blurred a little.
        """
        common = None if density is None else torch.from_numpy(np.asarray(density, np.float32))

        def normal(x):
            total = torch.zeros_like(x)
            for maps, own, weight in zip(self.sens_maps, self.densities, self.weights, strict=True):
                kspace = fft2c(maps * x) * (own if common is None else common)
                total += weight * (maps.conj() * ifft2c(kspace)).sum(0)
            return self._project(total)

        rng, count = generator(self.seed, "lanczos"), _PROBES if density is None else 1
        probes = [self._project(complex_noise(self.inside.shape, rng)) for _ in range(count)]
        runs = [(probe, *_lanczos(normal, probe, _STEPS)) for probe in probes]
        values, order = torch.cat([run[1] for run in runs]).sort()
        weights = torch.cat([run[2][0].square() for run in runs])[order] / len(runs)
        real = weights > _SPURIOUS
        values, weights = values[real], weights[real]
        below = _shown_below(values, weights)
        image, kspace = torch.zeros_like(self.inside), torch.zeros_like(self.inside)
        for probe, ritz, basis, vectors in runs:
            coefficients = basis @ ((ritz <= below) * basis[0])
            part = probe.norm() * torch.tensordot(coefficients.to(vectors), vectors, 1)
            image += part.abs().square() / (2 * len(runs))
            kspace += fft2c(part).abs().square() / (2 * len(runs))
        return Spectrum(values, weights, below, blur(image[None])[0].clamp_min(0), kspace)

    def _project(self, image):
        return ifft2c(self.inside * fft2c(image))


def unidentifiable(volumes: Sequence[VolumeFacts]) -> str | None:
    """What no prior can be learned about: lines, inside the acquired support, that no scan of a single-coil archive
    ever sampled, in words; None where there are none. With several coils nothing is unidentifiable in this sense:
    the spectrum says what share of the modes is blind.
    """
    by_shape = {}
    for volume in volumes:
        if volume.kspace_shape[1] == 1:
            by_shape.setdefault((volume.kspace_shape[-2:], volume.mask.ndim), []).append(volume.mask)
    if sum(map(len, by_shape.values())) < len(volumes):
        return None
    for (_, dimensions), masks in by_shape.items():
        union = np.any(masks, axis=0)
        support = acquired_support(union)
        missing = int((support & ~union).sum())
        if missing:
            unit = "lines" if dimensions == 1 else "points"
            return (
                f"{missing} of {support.sum()} k-space {unit} ({missing / support.sum():.0%} of the modes) that none "
                f"of its {len(masks)} single-coil masks ever sampled"
            )
    return None


def refuse_unidentifiable(volumes: Sequence[VolumeFacts], where) -> None:
    """InputError for an archive that is `unidentifiable`."""
    found = unidentifiable(volumes)
    if found:
        expected = "masks that together cover the acquired k-space (vary the mask from scan to scan)"
        raise InputError(where, found, expected)


def _first_set(maps):
    """The set that the prior's image has, of several."""
    return maps[0] if maps.ndim == 4 else maps


def _as_lines(mask):
    """(W,) where every column of a mask is wholly sampled or wholly missing."""
    return mask[0] if mask.ndim == 2 and (mask == mask[:1]).all() else mask


def _point_spread(density):
    """Complex64 (W, W): F^H diag(density) F along one axis."""
    line = torch.from_numpy(np.fft.ifftshift(np.asarray(density, np.float64)))
    spread = torch.fft.ifft(line).to(torch.complex64)
    index = torch.arange(len(line))
    return spread[(index[:, None] - index[None, :]) % len(line)]


def _line_images(support):
    """Complex64 (W, lines): the image of each line of the support alone, an orthonormal basis."""
    lines = torch.eye(len(support), dtype=torch.complex128)[torch.from_numpy(support)]
    columns = torch.fft.ifft(torch.fft.ifftshift(lines, dim=-1), norm="ortho")
    return torch.fft.fftshift(columns, dim=-1).mT.to(torch.complex64)


def _shown_below(values, weights):
    if values[0] < BLIND:
        return BLIND
    place = torch.searchsorted(weights.cumsum(0), torch.tensor(_WEAKEST, dtype=torch.float64))
    return float(values[place.clamp_max(len(values) - 1)])


def _lanczos(operator, start, steps):
    """Ritz values, float64 (n,); their vectors in the Lanczos basis (n, n); that basis (n, H, W), reorthogonalised."""
    vectors = (start / start.norm())[None]
    diagonal, off = [], []
    for _ in range(min(steps, start.numel())):
        image = operator(vectors[-1])
        diagonal.append(float((vectors[-1].conj() * image).real.sum()))
        for _ in range(2):
            image = image - torch.tensordot((vectors.conj() * image).sum((1, 2)), vectors, 1)
        norm = float(image.norm())
        if norm < 1e-5:
            break
        off.append(norm)
        vectors = torch.cat([vectors, image[None] / norm])
    size = len(diagonal)
    links = torch.tensor(off[: size - 1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(links, 1) + torch.diag(links, -1)
    values, basis = torch.linalg.eigh(matrix)
    return values, basis, vectors[:size]
