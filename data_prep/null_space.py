"""The coils' noise from what no signal can explain: the part of k-space outside the signal's local space.

Small windows of k-space, all coils together, lie in a space V of low dimension where they hold signal alone: coils are
smooth and the body does not fill the field of view (ESPIRiT; Uecker et al., Magn Reson Med 71:990 (2014)). V is learned
where the signal is strong, in the fully sampled centre, and noise is measured where it is weak, in windows disjoint
from the centre, of which only the rows of V at sampled points count, so that any mask will do. With y the window's
samples, white but for an error of the start, and P the projection orthogonal to those rows,

    T = sum over windows, points u of (P y)_u (P y)_u^H,    N = D^-1/2 T D^-1/2,    D = sum of the blocks (P Phi P)_uu

is the coils' covariance: the fixed point of restricted maximum likelihood (Patterson and Thompson, Biometrika 58:545
(1971)), for noise of the autocorrelation Phi along the readout, which a receiver's filter makes. P favours places
without signal, where such a filter may have lowered the noise: Phi tells by how much.
"""

from collections.abc import Iterator

import numpy as np

from mrigsure.fourier import center_crop
from mrigsure.masks import calibration_region

_LEAST_REGION = 6  # samples along either side of the centre
_CENTRE = (64, 24)  # readout samples and lines of it that are used; half the matrix at most along the readout
_SIZE = 180  # samples of a window, all coils
_WIDTH, _LENGTH = (3, 7), (3, 24)  # least and most lines and readout samples of a window
_SPARE = 1.6, 2.0  # samples of a window over the dimension of the space, at least: lines, points
_LAGS = 2  # readout samples over which a receiver's filter makes noise correlate
_SLICES = 3
_PLACES, _ROWS = 48, 64  # columns of a slice, and windows in each
_SCATTERED = 240  # windows where points are sampled, at random of the outermost six times as many
_ROUNDS = 2
_FEW = 4  # samples for every coil
_FLOOR = 1e-6  # of the mean: a dead coil has no noise at all


def null_space_noise(kspace: np.ndarray, mask: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Covariance (coils, coils) per real part, and the number of samples that it is worth.

    kspace  complex64 (slices, coils, H, W), readout along H
    mask    bool (H, W)
    start   covariance of the noise, roughly; signal in it does no harm

    None where the sampled centre is smaller than 6 x 6, or windows have too few samples to spare.
    """
    kspace = kspace[:: -(-len(kspace) // _SLICES)]
    coils, *shape = kspace.shape[1:]
    lines = bool((mask == mask.any(axis=0)).all())
    centre = _centre(mask, lines)
    if min(centre) < _LEAST_REGION:
        return None
    size = _window_size(coils, centre, lines)
    layout = (size[0], -1) if lines else (1, -1)  # of a window's samples: readout, where they are whole lines; and rest
    lags = min(_LAGS, size[0] - 1) if lines else 0
    covariance, correlation = start, np.eye(1, 2 * lags + 1, lags)[0]
    for _ in range(_ROUNDS):
        white = np.linalg.inv(np.linalg.cholesky(2 * covariance))
        sums, used = _Sums(coils, correlation), np.zeros((len(kspace), *shape), bool)
        for one, touched in zip(kspace, used, strict=True):
            space = _signal_space(np.tensordot(white, center_crop(one, centre), axes=1), size)
            views = _windows(np.tensordot(white.astype(np.complex64), one, axes=1), size)
            choose = _line_windows if lines else _point_windows
            for sampled, tops, left in choose(mask, centre, size, space.shape[-1] / coils, len(kspace)):
                samples = views[:, tops, left][..., sampled].swapaxes(0, 1)
                sums.add(samples.reshape(*samples.shape[:2], *layout), _part(space, sampled, layout))
                for top in tops:
                    touched[top : top + size[0], left : left + size[1]] |= sampled
        worth = int(sums.spare * used.sum())
        if worth < _FEW * coils:
            return None
        mixing, correlation = sums.solve()
        back = np.linalg.inv(white) @ mixing
        covariance = back @ back.conj().T / 2
    return covariance, worth


class _Sums:
    """T, D and the equations of the autocorrelation, summed over windows whose noise is nearly white.

    correlation  complex (2 L + 1,): Phi's, from lag -L to L, 1 at lag 0
    """

    def __init__(self, coils: int, correlation: np.ndarray):
        self.correlation, self.lags = correlation, range(-(len(correlation) // 2), len(correlation) // 2 + 1)
        self.power, self.expected = np.zeros((2, coils, coils), complex)  # T, D
        self.lagged, self.mixed = np.zeros(len(correlation), complex), np.zeros((len(correlation),) * 2, complex)
        self.kept = self.count = 0

    def add(self, samples: np.ndarray, space: np.ndarray) -> None:
        """samples (windows, coils, a, b), space (coils, a, b, dimension), lags along a."""
        count, coils, a, b = samples.shape
        basis = np.linalg.qr(space.reshape(coils * a * b, space.shape[-1]))[0]
        flat = samples.reshape(count, -1)
        left = (flat - (flat @ basis.conj()) @ basis.T).reshape(samples.shape)
        self.power += np.tensordot(left, left.conj(), axes=((0, 2, 3), (0, 2, 3)))
        by_readout = basis.reshape(coils, a, b * basis.shape[1])
        moved = np.stack([_moved(by_readout, lag, 1).reshape(basis.shape) for lag in self.lags])  # J_l V
        within = basis.conj().T @ moved  # V^H J_l V
        blurred = np.tensordot(self.correlation, moved, axes=1)  # Phi V
        half = blurred - basis @ (basis.conj().T @ blurred) / 2  # P Phi P = Phi - V half^H - half V^H
        cross = by_readout.reshape(coils, by_readout[0].size) @ half.conj().reshape(coils, by_readout[0].size).T
        self.expected += count * (a * b * np.eye(coils) - cross - cross.conj().T)
        self.kept, self.count = self.kept + coils * a * b - basis.shape[1], self.count + coils * a * b
        if len(self.lags) > 1:  # t_l = tr(J_l^H P y y^H P), of which the mean is tr(J_l^H P J_m P) phi_m
            for place, lag in enumerate(self.lags):
                self.lagged[place] += np.vdot(_moved(left, lag, 2), left)
            gram = _traces(moved)
            whole = np.diag([coils * b * max(a - abs(lag), 0) for lag in self.lags])
            self.mixed += count * (whole - gram - gram[::-1, ::-1].T + _traces(within))

    @property
    def spare(self) -> float:
        """Share of the samples that is outside the signal's space."""
        return self.kept / max(1, self.count)

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """D^-1/2 T^1/2, up to a unitary matrix, and the autocorrelation."""
        correlation = self.correlation
        if len(self.lags) > 1:
            correlation = np.linalg.solve(self.mixed, self.lagged)
            correlation = correlation / correlation[len(correlation) // 2].real
            correlation = (correlation + correlation[::-1].conj()) / 2
        values, vectors = np.linalg.eigh(self.expected)
        root = (vectors / np.sqrt(np.maximum(values, 1e-3 * values.max()))) @ vectors.conj().T
        floor = _FLOOR * np.trace(self.power).real / len(self.power) * np.eye(len(self.power))
        return root @ np.linalg.cholesky(self.power + floor), correlation


def _centre(mask, lines):
    region = calibration_region(mask, mask.shape)
    most = (min(_CENTRE[0], len(mask) // 2), _CENTRE[1]) if lines else (_CENTRE[1],) * 2
    return tuple(min(sizes) for sizes in zip(region, most, strict=True))


def _window_size(coils, centre, lines):
    """Readout samples and lines."""
    width = int(np.clip(round((_SIZE / coils) ** 0.5), *_WIDTH))
    if not lines:
        return tuple(min(width, length // 2) for length in centre)
    width = min(width, centre[1] // 2)
    return int(np.clip(round(_SIZE / coils / width), _LENGTH[0], min(_LENGTH[1], centre[0] // 3))), width


def _signal_space(block, size):
    """Leading directions of the windows of block (coils, h, w), white: complex (coils, *size, dimension).

    Those of more power than noise alone can have, by the edge of Marchenko and Pastur's law.
    """
    windows = _windows(block, size)
    matrix = windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1)
    count, length = matrix.shape
    edge = (1 + np.sqrt(length / count)) ** 2
    if count < length:
        values, vectors = np.linalg.eigh(matrix @ matrix.conj().T / count)
        vectors = matrix.T @ vectors[:, values > edge].conj() / np.sqrt(count * values[values > edge])
    else:
        values, vectors = np.linalg.eigh(matrix.T @ matrix.conj() / count)
        vectors = vectors[:, values > edge]
    return vectors.reshape(len(block), *size, vectors.shape[1])


def _line_windows(mask, centre, size, dimension, slices) -> Iterator:
    """Windows of whole lines, of columns spread over k-space: (sampled bool (size), tops, left)."""
    sampled = _windows(mask, size)[0]
    outside = _outside(mask.shape, centre, size)
    useful = (sampled.sum(axis=(1, 2)) > _SPARE[0] * dimension) & outside.any(axis=0)
    for left in _spread(np.flatnonzero(useful), -(-_PLACES // slices)):
        yield sampled[left], _spread(np.flatnonzero(outside[:, left]), _ROWS), left


def _point_windows(mask, centre, size, dimension, slices) -> Iterator:
    """Single windows, at random among the outermost: (sampled bool (size), tops, left)."""
    sampled = _windows(mask, size)
    useful = (sampled.sum(axis=(2, 3)) > _SPARE[1] * dimension) & _outside(mask.shape, centre, size)
    places = np.argwhere(useful)
    middle = (np.array(mask.shape) // 2 - np.array(size) / 2) / mask.shape
    outermost = np.argsort(-np.hypot(*(places / mask.shape - middle).T), kind="stable")
    count = -(-_SCATTERED // slices)
    for top, left in places[np.random.default_rng(0).permutation(outermost[: 6 * count])[:count]]:
        yield sampled[top, left], np.array([top]), left


def _outside(shape, centre, size):
    """Windows, by their first sample, that are disjoint from the centre: bool."""
    apart = []
    for length, inner, window in zip(shape, centre, size, strict=True):
        first, start = np.arange(length - window + 1), length // 2 - inner // 2
        apart.append((first + window <= start) | (first >= start + inner))
    return apart[0][:, None] | apart[1]


def _spread(places, count):
    return places[np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))] if len(places) else places


def _part(space, sampled, layout):
    """The rows of the space at the sampled points: (coils, *layout, dimension)."""
    chosen = space[:, sampled]
    chosen = chosen.reshape(len(chosen), layout[0], chosen.shape[1] // layout[0], chosen.shape[2])
    return chosen.astype(np.complex64)


def _windows(array, size):
    return np.lib.stride_tricks.sliding_window_view(array, size, axis=(-2, -1))


def _moved(array, lag, axis):
    """J_lag: moved along an axis, zeros where nothing comes from."""
    array, out = np.moveaxis(array, axis, 0), np.zeros_like(np.moveaxis(array, axis, 0))
    size = len(array)
    out[max(lag, 0) : size + min(lag, 0)] = array[max(-lag, 0) : size - max(lag, 0)]
    return np.moveaxis(out, 0, axis)


def _traces(matrices):
    """tr(X_l^H X_m) of (n, ...)."""
    flat = matrices.reshape(len(matrices), -1)
    return flat.conj() @ flat.T
