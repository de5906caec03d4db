"""The Cartesian multi-coil encoding A = M F S, and solves with its normal operator T = A^H A.

Maps are normalised, sum_c |S_c|^2 = 1 at every pixel, so 0 <= T <= I. (MATH: docs/method.md, section 0.) Where the
field of view folds over a pixel takes several sets of maps, orthonormal to each other, each with an image of its own; S
adds up what they see, S^H S = I as before, and images are (batch, set, H, W) (docs/soft_sense.md).
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mrigsure.fourier import blur, fft2c, ifft2c


class SenseOperator:
    """A = M F S.

    mask       real (batch, 1, H, W), 0 or 1
    sens_maps  complex (batch, [set,] coil, H, W); with sets every image below is (batch, set, H, W)
    """

    def __init__(self, mask: Tensor, sens_maps: Tensor):
        self.mask, self.sens_maps = mask, sens_maps
        self.has_sets = sens_maps.ndim == 5
        self._eigen = None

    def forward(self, image: Tensor) -> Tensor:
        """A: (batch, H, W) -> (batch, coil, H, W)."""
        return self.mask * self.coil_kspace(image)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """A^H: (batch, coil, H, W) -> (batch, H, W)."""
        return self._combine(ifft2c(self.mask * kspace).conj_physical())

    def normal(self, image: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """T = A^H A: (batch, H, W) -> (batch, H, W). With noise, an image distributed as T image + A^H n, n white.

        noise  of every image, of its scan's samples alone: white complex (coil, samples) in the maps' dtype

        Between a transform and its inverse the shifts to the centre cancel, but for the mask's; along the readout of a
        line mask the transforms themselves do, and what they make of white noise is white. The inverse is the transform
        between two conjugations, of which one comes with the mask and one is left to the end.
        """
        kspace = self._transform(self._coil_images(image), norm="ortho")
        if noise is not None:
            for seen, where, values in zip(kspace, self.samples(len(kspace)), noise, strict=True):
                seen.view(len(seen), -1).index_add_(1, where, values)
        torch.view_as_real(kspace).mul_(self._conjugating_mask)  # in place: most of the time goes to memory
        return self._combine(self._transform(kspace, norm="ortho"))

    def coil_kspace(self, image: Tensor) -> Tensor:
        """F S, the full k-space of every coil: (batch, H, W) -> (batch, coil, H, W)."""
        return fft2c(self._coil_images(image))

    def solve(self, rhs: Tensor, shift: Tensor, tolerance: float = 1e-5) -> Tensor:
        """(T + shift)^-1 rhs. rhs (batch, H, W), shift real (batch,) > 0.

        Masks made of whole lines are solved directly; all others by conjugate gradients to the relative `tolerance`.
        """
        if self._eigen is not None:
            values, vectors = self._eigen
            coefficients = (vectors.mH @ self._to_rows(rhs)) / (values + shift[:, None, None])[..., None]
            return self._from_rows(vectors @ coefficients)
        if self.is_line_mask:
            identity = torch.eye(self.row_matrices.shape[-1], dtype=rhs.dtype, device=rhs.device)
            factor = torch.linalg.cholesky(self.row_matrices + shift[:, None, None, None] * identity)
            return self._from_rows(torch.cholesky_solve(self._to_rows(rhs), factor))
        scale = shift.view(-1, *[1] * (rhs.ndim - 1))
        return conjugate_gradients(lambda x: self.normal(x) + scale * x, rhs, tolerance=tolerance)

    def factorise(self) -> None:
        """Make many solves with different shifts cheap: diagonalise the row matrices once. Line masks only."""
        if self.is_line_mask:
            self._eigen = torch.linalg.eigh(self.row_matrices)

    @cached_property
    @torch.inference_mode(False)  # what is kept may be met by autograd later
    def sampled(self) -> Tensor:
        """The diagonal of T in k-space, k = 0 first, as smooth coils blur the mask: (batch, H, W)."""
        return torch.fft.ifftshift(blur(self.mask[:, 0]).clamp_min(0), dim=(-2, -1))

    def samples(self, images: int) -> list[Tensor]:
        """Where each image's scan samples k-space, k = 0 first: flat indices, int64. One mask may be all's."""
        return self._samples * images if len(self._samples) == 1 else self._samples

    @cached_property
    @torch.inference_mode(False)
    def _samples(self):
        return [plane.flatten().nonzero()[:, 0] for plane in torch.fft.ifftshift(self.mask[:, 0], dim=(-2, -1))]

    @cached_property
    @torch.inference_mode(False)
    def _conjugating_mask(self) -> Tensor:
        """k = 0 first, factors on the real and the imaginary part: (batch, 1, H or 1, W, 2)."""
        mask = torch.fft.ifftshift(self.mask, dim=(-2, -1))
        mask = mask[..., :1, :] if self.is_line_mask else mask
        return torch.stack([mask, -mask], dim=-1)

    @property
    def _transform(self):
        return torch.fft.fft if self.is_line_mask else torch.fft.fft2

    @cached_property
    def is_line_mask(self) -> bool:
        """True if every column of k-space is wholly sampled or wholly missing."""
        return bool((self.mask == self.mask[..., :1, :]).all())

    @cached_property
    @torch.inference_mode(False)
    def row_matrices(self) -> Tensor:
        """T of a line mask, one W x W matrix per image row: complex (batch, H, W, W); all sets' pixels with sets.

        The transform along the readout cancels in S^H F^H M F S; what is left couples the pixels w, w' of one row by
        (sum_c conj S_c(w) S_c(w')) times the mask's point spread function at w - w'.
        """
        width = self.mask.shape[-1]
        if self.has_sets:
            by_row = self.sens_maps.permute(0, 3, 1, 4, 2).flatten(2, 3)  # (batch, H, set * W, coil)
        else:
            by_row = self.sens_maps.permute(0, 2, 3, 1)  # (batch, H, W, coil)
        gram = by_row.conj() @ by_row.transpose(-1, -2)
        line = torch.fft.ifftshift(self.mask[:, 0, 0, :], dim=-1)
        spread = torch.fft.ifft(line.to(gram.dtype), dim=-1)
        index = torch.arange(by_row.shape[2], device=line.device)
        return gram * spread[:, (index[:, None] - index[None, :]) % width][:, None]

    def _coil_images(self, image):
        """S: (batch, [set,] H, W) -> (batch, coil, H, W)."""
        images = self.sens_maps * image.unsqueeze(-3)
        return images.sum(1) if self.has_sets else images

    def _combine(self, conjugates):
        """S^H of coil images that are given complex conjugate; overwrites them."""
        if self.has_sets:
            return (self.sens_maps * conjugates[:, None]).sum(-3).conj_physical()
        conjugates *= self.sens_maps
        return conjugates.sum(-3).conj_physical()

    def _to_rows(self, image):
        """(batch, [set,] H, W) -> (batch, H, [set *] W, 1)."""
        return (image.transpose(1, 2).flatten(2) if self.has_sets else image)[..., None]

    def _from_rows(self, rows):
        rows = rows[..., 0]
        return rows.unflatten(2, (-1, self.mask.shape[-1])).transpose(1, 2) if self.has_sets else rows


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

    def real(a):
        return torch.view_as_real(a) if a.is_complex() else a

    def inner(a, b):
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))

    x = torch.zeros_like(rhs) if start is None else start.clone()
    residual = rhs - operator(x) if start is not None else rhs.clone()
    direction = torch.zeros_like(rhs)
    x_, residual_, direction_ = real(x), real(residual), real(direction)  # faster than complex, and the same numbers
    target = tolerance**2 * inner(real(rhs), real(rhs))
    tiny = torch.finfo(target.dtype).tiny
    energy = torch.ones_like(target)
    for _ in range(max_iterations):
        active = inner(residual_, residual_) > target
        if not active.any():
            return x
        preconditioned_ = real(precondition(residual))
        previous, energy = energy, inner(residual_, preconditioned_)
        direction_.mul_(energy / previous.clamp_min(tiny)).add_(preconditioned_)
        image_ = real(operator(direction))
        step = torch.where(active, energy / inner(direction_, image_).clamp_min(tiny), 0.0)
        x_.addcmul_(step, direction_)
        residual_.addcmul_(step, image_, value=-1)
    if not strict:
        return x
    worst = float((inner(residual_, residual_) / inner(real(rhs), real(rhs))).max().sqrt())
    raise ArithmeticError(f"conjugate gradients: relative residual {worst:.1e} after {max_iterations} steps")
