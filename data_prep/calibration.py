"""Coil sensitivity maps from a fully sampled centre of k-space, of the scan itself or of a separate reference scan.

ESPIRiT, after Uecker et al., Magn Reson Med 71:990 (2014). Every patch of w x w samples x coils lies in the row space
of the calibration matrix. Seen from one pixel r, the projection onto that space is a positive operator on the coils,

    G(r) = 1 / w^2 sum over kernels k of k(r) k(r)^H = sum over lags of R(lag) exp(2 pi i lag r),   |lag| < w,

whose eigenvectors of eigenvalue 1 are the pixel's sensitivities: one, or several where the field of view folds over.
G is band-limited to w - 1 cycles per field of view, whatever the matrix, so that its eigenvectors are computed on a
grid of 12 w points and interpolated: the result is that of BART and sigpy at crop 0 within a tenth of a degree in the
body, in a few hundredths of the time and in little more memory than the maps themselves.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from mrigsure.errors import InputError, ScanWarning
from mrigsure.fourier import center_crop, center_pad, ifft2c

KERNEL_WIDTH = 6
CALIBRATION_WIDTH = 24
_LEAST_REGION = 6  # samples along either side, below which kernels of 3 have too few positions
_THRESHOLD = 0.01  # of the largest singular value: what is below tells apart nothing but errors of the model
_FLAT = 2.5  # median of noise's singular values over their lower quartile, at most
_ITERATIONS = 30
_GRID = 12  # points of the coarse grid per sample of the kernel: at least 12 on the shortest cycle of G
_CHUNK = {"cpu": 2**21, "cuda": 2**28}  # bytes of operators at once: few enough for the cache, enough for a GPU
_GAUGE = 8  # power of the eigenvalue with which a set takes part in the choice of the first
_NEARBY = 7  # points of the coarse grid, about twice the resolution of the calibration block
_TINY = 1e-20


def sensitivity_maps(
    kspace: np.ndarray,
    calibration: tuple[int, int],
    name="scan",
    *,
    shape: tuple[int, int] | None = None,
    sets: int = 1,
    device="cpu",
) -> np.ndarray:
    """Maps, orthonormal at every pixel: kspace (slices, coils, h, w) -> complex64 (slices, [sets,] coils, H, W).

    calibration  height and width of the centred, fully sampled block; at most 24 of each are used
    shape        the matrix (H, W) over the same field of view, where it is not that of kspace
    sets         maps per pixel; one set comes without the axis, and has sum over coils |S|^2 = 1, background included
    device       where torch computes

    ESPIRiT's kernel is 6 x 6, or half the block where that is less; its rank is `kernel_rank`'s. The phase is that of a
    virtual coil, the combination of most energy, which is smooth where any coil is. Where the block is too small for
    ESPIRiT the maps come from its low-resolution images, and a ScanWarning says so; several sets are then refused.
    """
    slices, coils, *own_shape = kspace.shape
    shape = tuple(shape or own_shape)
    if sets > coils:
        raise InputError(name, f"{coils} coil{'s' * (coils > 1)}", f"at least as many coils as sets of maps ({sets})")
    if coils == 1:
        return np.ones((slices, 1, *shape), np.complex64)
    region = tuple(min(size, CALIBRATION_WIDTH) for size in calibration)
    enough = min(region) >= _LEAST_REGION
    if not enough and sets > 1:
        raise InputError(
            name,
            f"a calibration region of {region[0]} x {region[1]}",
            f"at least {_LEAST_REGION} x {_LEAST_REGION} for {sets} sets of maps",
        )
    if not enough:
        warnings.warn(
            f"{name}: calibration region {region[0]} x {region[1]}, smaller than ESPIRiT needs "
            f"({_LEAST_REGION} x {_LEAST_REGION}): maps from low-resolution images instead",
            ScanWarning,
            stacklevel=2,
        )
        region = tuple(min(max(size, 2 * KERNEL_WIDTH), own) for size, own in zip(region, own_shape, strict=True))
    block = torch.from_numpy(np.ascontiguousarray(center_crop(kspace, region))).to(device, torch.complex64)
    if not enough:
        return _low_resolution_maps(block, shape).cpu().numpy()
    maps = espirit(block, shape, kernel=min(KERNEL_WIDTH, min(region) // 2), sets=sets).cpu().numpy()
    return maps if sets > 1 else maps[:, 0]


def espirit(
    block: Tensor, shape: tuple[int, int], *, kernel: int = KERNEL_WIDTH, threshold: float | None = None, sets: int = 1
) -> Tensor:
    """ESPIRiT without a crop: block (slices, coils, h, w), complex64 -> (slices, sets, coils, H, W), on its device.

    block      the centre of k-space, k = 0 at n // 2
    threshold  singular values kept, relative to the largest; `kernel_rank` chooses if not given

    The sets are orthonormal at every pixel, S^H S = 1. Among sets of eigenvalue near 1 the first is the combination of
    most energy near the pixel in the low-resolution image, which varies smoothly.
    """
    slices, coils = block.shape[:2]
    reference = _virtual_coils(block, sets)
    correlations = torch.stack([_correlations(one, kernel, threshold) for one in block])
    grid = tuple(min(size, _GRID * kernel) for size in shape)
    coarse = _coarse_maps(block, correlations, grid, reference)  # (slices, sets, 2, coils, *grid), real
    maps = torch.empty(slices, sets, coils, *shape, dtype=torch.complex64, device=block.device)
    along_y, along_x = (_interpolation(*sizes, block.device) for sizes in zip(grid, shape, strict=True))
    rows = max(1, _CHUNK[block.device.type] // (16 * sets * coils * shape[1]))
    for index in range(slices):
        for top in range(0, shape[0], rows):
            part = along_y[top : top + rows] @ coarse[index] @ along_x.T  # (sets, 2, coils, rows, W)
            _write_orthonormal(maps[index, :, :, top : top + rows], part)
    return maps


def kernel_rank(singular_values: Tensor, shape: tuple[int, int]) -> int:
    """How many singular values of a calibration matrix of this shape are signal: those above 1% of the largest, and
    above the noise's.

    The latter by the median rule of Gavish and Donoho, IEEE Trans Inf Theory 60:5040 (2014), for an unknown level,
    where the lower half is as flat as noise is: with few coils the median is signal, and says nothing about noise.
    """
    ratio = min(shape) / max(shape)
    factor = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    lower, median = singular_values.quantile(singular_values.new_tensor([0.25, 0.5])).tolist()
    least = _THRESHOLD * float(singular_values.max())
    if median < _FLAT * lower:
        least = max(least, factor * median)
    return max(1, int((singular_values > least).sum()))


def low_resolution(kspace: np.ndarray, block: tuple[int, int], window=np.hanning) -> np.ndarray:
    """Images of the centred `block` of k-space under a window: (..., H, W) -> complex64 (..., H, W)."""
    centre = torch.from_numpy(np.ascontiguousarray(center_crop(kspace, block), np.complex64))
    return _windowed_images(centre, kspace.shape[-2:], window).numpy()


def _windowed_images(block, shape, window=np.hanning):
    height, width = (torch.from_numpy(window(size + 2)[1:-1]).to(block.real) for size in block.shape[-2:])
    return ifft2c(center_pad(block * height[:, None] * width, shape))


def _low_resolution_maps(block, shape):
    """(slices, coils, h, w) -> (slices, coils, H, W), of unit norm, phase 0 in the virtual coil."""
    maps = _windowed_images(block, shape)
    phase = torch.einsum("sc,scyx->syx", _virtual_coils(block, 1)[..., 0].conj(), maps)
    maps = maps * torch.polar(torch.ones_like(phase.real), -phase.angle())[:, None]
    norm = _norm(maps, 1)
    return torch.where(norm > 0, maps / norm.clamp_min(_TINY), maps.shape[1] ** -0.5)


def _correlations(block, kernel, threshold):
    """R(lag) = 1 / w^2 sum over kernels and positions of k(u) k(u - lag)^H: (2 w - 1, 2 w - 1, coils, coils).

    Real-space counterpart of the sum over kernels of k(r) k(r)^H; the kernels are the leading right singular vectors.
    """
    coils, lags = len(block), 2 * kernel - 1
    patches = block.unfold(1, kernel, 1).unfold(2, kernel, 1)  # (coils, positions, positions, kernel, kernel)
    matrix = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel**2)
    if matrix.shape[0] < matrix.shape[1]:
        energy, left = torch.linalg.eigh(matrix @ matrix.mH)
    else:
        energy, right = torch.linalg.eigh(matrix.mT @ matrix.conj())
    values = energy.clamp_min(0).sqrt()
    if threshold is None:
        kept = kernel_rank(values, matrix.shape)
    else:
        kept = max(1, int((values > threshold * values[-1]).sum()))
    if matrix.shape[0] < matrix.shape[1]:
        kernels = (left[:, -kept:].mH @ matrix) / values[-kept:, None].clamp_min(_TINY)
    else:
        kernels = right[:, -kept:].mT
    spectra = torch.fft.fft2(kernels.reshape(kept, coils, kernel, kernel), s=(lags, lags)).permute(2, 3, 1, 0)
    power = spectra @ spectra.mH / kernel**2
    return torch.fft.fftshift(torch.fft.ifft2(power, dim=(0, 1)), dim=(0, 1))


def _coarse_maps(block, correlations, grid, reference):
    """The sets at the points of a coarse grid, phase 0 in their virtual coils: real (slices, sets, 2, coils, *grid)."""
    (slices, coils), (height, width), sets = block.shape[:2], grid, reference.shape[-1]
    lags_y, lags_x = (_fourier_basis(size, correlations.shape[1], block.device) for size in grid)
    block_y, block_x = (_fourier_basis(n, k, block.device) for n, k in zip(grid, block.shape[-2:], strict=True))
    low = (block_y @ block @ block_x.T).permute(0, 2, 3, 1)  # (slices, *grid, coils)
    vectors = torch.empty(slices, height, width, coils, sets, dtype=block.dtype, device=block.device)
    values = torch.empty(slices, height, width, sets, device=block.device)
    rows = max(1, _CHUNK[block.device.type] // (16 * coils**2 * width))
    for index in range(slices):
        by_lag = correlations[index].flatten(1)  # (lags, lags * coils^2)
        for top in range(0, height, rows):
            part = slice(top, top + rows)
            operator = lags_x @ (lags_y[part] @ by_lag).unflatten(1, (len(correlations[index]), -1))
            operator = operator.unflatten(-1, (coils, coils))  # (rows, width, coils, coils)
            values[index, part], vectors[index, part] = _leading(operator, low[index, part], sets)
        if sets > 1:
            vectors[index] = _ordered_by_energy(vectors[index], values[index], low[index])
    phase = torch.einsum("scj,syxcj->syxj", reference.conj(), vectors)
    vectors *= torch.polar(torch.ones_like(phase.real), -phase.angle())[..., None, :]
    return torch.view_as_real(vectors).permute(0, 4, 5, 3, 1, 2).contiguous()


def _leading(operator, start, sets):
    """Eigenvalues (..., sets), falling, and eigenvectors (..., coils, sets) of Hermitian (..., coils, coils).

    Power iteration, one set after the other, each orthogonal to those before. `start` (..., coils) for the first.
    """
    values, vectors = [], []
    seeds = _coil_waves(start.shape[-1], sets, start.device)
    for number in range(sets):
        vector = start + 1e-3 * start.abs().amax() if number == 0 else seeds[:, number].expand_as(start)
        for _ in range(_ITERATIONS):
            vector = (operator * vector[..., None, :]).sum(-1)
            for other in vectors:
                vector = vector - other * (other.conj() * vector).sum(-1, keepdim=True)
            value = _norm(vector, -1)
            vector = vector / value.clamp_min(_TINY)
        values.append(value)
        vectors.append(vector)
    return torch.cat(values, -1), torch.stack(vectors, -1)


def _ordered_by_energy(vectors, values, low):
    """Turn the sets of every pixel of one slice among themselves, those of eigenvalue near 1, so that energy falls.

    The energy is that of the low-resolution image nearby. Eigenvalues near 1 are too close together to tell the sets
    apart by: alone they would turn the sets from pixel to pixel.
    """
    outer = torch.view_as_real(low[..., :, None] * low.conj()[..., None, :]).flatten(2).permute(2, 0, 1)
    nearby = torch.nn.functional.avg_pool2d(outer[None], _NEARBY, 1, _NEARBY // 2)[0].permute(1, 2, 0)
    nearby = torch.view_as_complex(nearby.reshape(*low.shape, low.shape[-1], 2).contiguous())
    weight = (values / values[..., :1].clamp_min(_TINY)) ** _GAUGE
    energy = weight[..., :, None] * (vectors.mH @ nearby @ vectors) * weight[..., None, :]
    return vectors @ torch.linalg.eigh(energy)[1].flip(-1)


def _write_orthonormal(out, part):
    """Gram-Schmidt over the sets: part real (sets, 2, coils, ...) -> out complex (sets, coils, ...).

    Where a vector vanishes (a slice without signal) a wave over the coils takes its place.
    """
    waves = _coil_waves(out.shape[1], len(out), out.device)
    for number in range(len(out)):
        vector = torch.complex(part[number, 0], part[number, 1])
        norm = _norm(vector, 0)
        vector = torch.where(norm > _TINY, vector / norm.clamp_min(_TINY), waves[:, number, None, None])
        for _ in range(2):  # twice, because the first may cancel nearly all
            for other in out[:number]:
                vector = vector - other * (other.conj() * vector).sum(0, keepdim=True)
            vector = vector / _norm(vector, 0).clamp_min(_TINY)
        out[number] = vector


def _norm(vectors, dim):
    """Along one axis, which stays; several times faster than torch's norm of complex numbers."""
    return (vectors.real.square() + vectors.imag.square()).sum(dim, keepdim=True).sqrt()


def _virtual_coils(block, count):
    """The combinations of coils with most energy, real for their main coil: (slices, coils, count)."""
    samples = block.flatten(2)
    weights = torch.linalg.eigh(samples @ samples.mH)[1].flip(-1)[..., :count]
    main = weights.gather(1, weights.abs().argmax(1, keepdim=True))
    return weights * torch.polar(torch.ones_like(main.real), -main.angle())


def _coil_waves(coils, count, device):
    """Orthonormal vectors exp(2 pi i c j / coils) / sqrt(coils): (coils, count)."""
    angle = 2 * torch.pi * torch.outer(torch.arange(coils), torch.arange(count)) / coils
    return torch.polar(torch.full_like(angle, coils**-0.5), angle).to(device)


def _fourier_basis(points, samples, device):
    """exp(2 pi i k r), k the centred frequencies, r the centred positions of `points` pixels: (points, samples)."""
    position, frequency = (torch.arange(n, dtype=torch.float64) - n // 2 for n in (points, samples))
    angle = 2 * torch.pi * torch.outer(position / points, frequency)
    return torch.polar(torch.ones_like(angle), angle).to(device, torch.complex64)


def _interpolation(points, size, device):
    """Cubic convolution from `points` to `size` pixels of the same periodic field of view: float32 (size, points).

    Keys, IEEE Trans Acoust 29:1153 (1981).
    """
    position = (torch.arange(size, dtype=torch.float64) - size // 2) * points / size + points // 2
    left = position.floor()
    d = position - left
    weights = torch.stack(
        [
            ((2 - d) * d - 1) * d / 2,
            (3 * d - 5) * d * d / 2 + 1,
            ((4 - 3 * d) * d + 1) * d / 2,
            (d - 1) * d * d / 2,
        ],
        dim=1,
    )
    index = (left.long()[:, None] + torch.arange(-1, 3)) % points
    return torch.zeros(size, points, dtype=torch.float64).scatter_add(1, index, weights).to(device, torch.float32)
