"""The Cartesian multi-coil encoding A = M F S, and solves with its normal operator T = A^H A.

Maps are normalised, sum_c |S_c|^2 = 1 at every pixel, so 0 <= T <= I. (MATH: docs/method.md, section 0.)
"""

from functools import cached_property

import torch
from torch import Tensor

from mrigsure.fourier import fft2c, ifft2c


class SenseOperator:
    """A = M F S.

    mask       real (batch, 1, H, W), 0 or 1
    sens_maps  complex (batch, coil, H, W)
    """

    def __init__(self, mask: Tensor, sens_maps: Tensor):
        self.mask, self.sens_maps = mask, sens_maps
        self._eigen = None

    def forward(self, image: Tensor) -> Tensor:
        """A: (batch, H, W) -> (batch, coil, H, W)."""
        return self.mask * self.coil_kspace(image)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """A^H: (batch, coil, H, W) -> (batch, H, W)."""
        return (self.sens_maps.conj() * ifft2c(self.mask * kspace)).sum(1)

    def normal(self, image: Tensor) -> Tensor:
        """T = A^H A: (batch, H, W) -> (batch, H, W)."""
        return self.adjoint(self.coil_kspace(image))

    def coil_kspace(self, image: Tensor) -> Tensor:
        """F S, the full k-space of every coil: (batch, H, W) -> (batch, coil, H, W)."""
        return fft2c(self.sens_maps * image[:, None])

    def solve(self, rhs: Tensor, shift: Tensor, tolerance: float = 1e-5) -> Tensor:
        """(T + shift)^-1 rhs. rhs (batch, H, W), shift real (batch,) > 0.

        Masks made of whole lines are solved directly; all others by conjugate gradients to the relative `tolerance`.
        """
        if self._eigen is not None:
            values, vectors = self._eigen
            coefficients = (vectors.mH @ rhs[..., None])[..., 0] / (values + shift[:, None, None])
            return (vectors @ coefficients[..., None])[..., 0]
        if self.is_line_mask:
            identity = torch.eye(rhs.shape[-1], dtype=rhs.dtype, device=rhs.device)
            factor = torch.linalg.cholesky(self.row_matrices + shift[:, None, None, None] * identity)
            return torch.cholesky_solve(rhs[..., None], factor)[..., 0]
        scale = shift[:, None, None]
        return conjugate_gradients(lambda x: self.normal(x) + scale * x, rhs, tolerance=tolerance)

    def factorise(self) -> None:
        """Make many solves with different shifts cheap: diagonalise the row matrices once. Line masks only."""
        if self.is_line_mask:
            self._eigen = torch.linalg.eigh(self.row_matrices)

    @cached_property
    def is_line_mask(self) -> bool:
        """True if every column of k-space is wholly sampled or wholly missing."""
        return bool((self.mask == self.mask[..., :1, :]).all())

    @cached_property
    def row_matrices(self) -> Tensor:
        """T of a line mask, one W x W matrix per image row: complex (batch, H, W, W).

        The transform along the readout cancels in S^H F^H M F S; what is left couples the pixels w, w' of one row by
        (sum_c conj S_c(w) S_c(w')) times the mask's point spread function at w - w'.
        """
        width = self.mask.shape[-1]
        by_row = self.sens_maps.permute(0, 2, 3, 1)  # (batch, H, W, coil)
        gram = by_row.conj() @ by_row.transpose(-1, -2)
        line = torch.fft.ifftshift(self.mask[:, 0, 0, :], dim=-1)
        spread = torch.fft.ifft(line.to(gram.dtype), dim=-1)
        index = torch.arange(width, device=line.device)
        return gram * spread[:, (index[:, None] - index[None, :]) % width][:, None]


def conjugate_gradients(
    operator,
    rhs: Tensor,
    *,
    start: Tensor | None = None,
    precondition=lambda residual: residual,
    tolerance: float = 1e-5,
    max_iterations: int = 500,
    strict: bool = True,
) -> Tensor:
    """Solve `operator(x) = rhs` for a batch of Hermitian positive-definite systems, each to its own relative residual.

    rhs (batch, ...), complex or real. A system that has converged stands still while the others go on.
    `precondition` approximates the operator's inverse. Where `max_iterations` do not reach the tolerance, raises
    ArithmeticError, or, if not `strict`, returns how far they came.
    """
    dims = tuple(range(1, rhs.ndim))

    def inner(a, b):
        return (a.conj() * b).real.sum(dims, keepdim=True)

    x = torch.zeros_like(rhs) if start is None else start.clone()
    residual = rhs - operator(x) if start is not None else rhs.clone()
    target = tolerance**2 * inner(rhs, rhs)
    direction = precondition(residual).clone()
    energy = inner(residual, direction)
    tiny = torch.finfo(energy.dtype).tiny
    for _ in range(max_iterations):
        active = inner(residual, residual) > target
        if not active.any():
            return x
        image = operator(direction)
        step = torch.where(active, energy / inner(direction, image).clamp_min(tiny), 0.0)
        x += step * direction
        residual -= step * image
        preconditioned = precondition(residual)
        previous, energy = energy, inner(residual, preconditioned)
        direction = preconditioned + torch.where(active, energy / previous.clamp_min(tiny), 0.0) * direction
    if not strict:
        return x
    worst = float((inner(residual, residual) / inner(rhs, rhs)).max().sqrt())
    raise ArithmeticError(f"conjugate gradients: relative residual {worst:.1e} after {max_iterations} steps")
