"""Sampling protocols, and small changes to one that may let it measure what it misses.

A protocol draws one of its components for a patient, and then every line (or point) k of that component on its own
with probability r_k: a fixed mask is one component of zeros and ones, equispaced lines with a random offset are one
such component an offset, lines at random are one component of fractions.
"""

from dataclasses import dataclass, replace

import numpy as np

from mrigsure.masks import acquired_support, calibration_region

_ALWAYS = 0.999  # density from which on training never holds a line out of its input
_FULL_SHARE = 0.02  # of the patients, fully sampled: the least that keeps every mode clear of being blind


@dataclass(frozen=True)
class Protocol:
    """weights (n,) sum to 1; components (n, W) or (n, H, W) hold the r_k, 0 outside the acquired support."""

    weights: np.ndarray
    components: np.ndarray

    @property
    def density(self) -> np.ndarray:
        """p(k) over the patients."""
        return np.tensordot(self.weights, self.components, 1)

    @property
    def fixed_choice(self) -> bool:
        """True if the components are masks, not densities."""
        return bool(np.isin(self.components, (0, 1)).all())

    def supervision(self, delta: float, rng: np.random.Generator) -> np.ndarray:
        """Weight of every sample in the loss, W^2 q with W^2 = 1/p, given the lines that one input keeps.

        A mask is drawn and a share `delta` of its lines held out of the input; q_k = P(M_k = 1 | kept lines), by Bayes'
        rule over the components (docs/method.md, section 5).
        """
        density = self.density
        drawn = rng.random(density.shape) < self.components[rng.choice(len(self.weights), p=self.weights)]
        may_go = density < _ALWAYS
        kept = drawn & ~(may_go & (rng.random(density.shape) < delta))
        held_out = self.components * np.where(may_go, delta, 0)
        stays = self.components - held_out
        with np.errstate(divide="ignore", invalid="ignore"):
            axes = tuple(range(1, self.components.ndim))
            likelihood = np.log(self.weights) + np.log(np.where(kept, stays, 1 - stays)).sum(axes)
            posterior = np.exp(likelihood - likelihood.max())
            missing = np.where(held_out > 0, held_out / (1 - stays), 0)
            q = np.where(kept, 1, np.tensordot(posterior / posterior.sum(), missing, 1))
            return np.where(density > 0, q / density, 0)


@dataclass(frozen=True)
class Change:
    """A protocol that differs a little from the archive's.

    name    as a table shows it; advice, as a sentence says it: "shift the mask by 1 line in every other patient"
    delta   share of lines that training holds out, where the change is one of training
    """

    name: str
    advice: str
    protocol: Protocol
    delta: float | None = None


def observed_protocol(masks: np.ndarray) -> Protocol:
    """The protocol behind the masks (files, ...) of an archive.

    Masks that recur, or are equispaced, are components of their own; others are taken for lines drawn at random.
    """
    distinct, counts = np.unique(masks, axis=0, return_counts=True)
    if len(distinct) <= max(1, len(masks) // 2) or all(_period(mask) for mask in distinct):
        return Protocol(counts / len(masks), distinct.astype(float))
    return Protocol(np.ones(1), masks.mean(axis=0, keepdims=True))


def changes(protocol: Protocol) -> list[Change]:
    """What could be done otherwise, the smallest change first; nothing outside the acquired support is sampled."""
    support = acquired_support(protocol.density > 0)
    center = _center(protocol.density >= _ALWAYS)
    found = []
    if protocol.fixed_choice and support.ndim == 1:
        found += _shifts(protocol, support, center)
    unit = "lines" if support.ndim == 1 else "points"
    if protocol.fixed_choice or protocol.density[support].min() == 0:
        advice = f"draw as many {unit} at random, anew for every patient"
        found.append(Change(f"{unit} at random, anew every time", advice, _at_random(protocol, support, center)))
    if protocol.fixed_choice and support.ndim == 1 and _period(protocol.components[0]):
        found += _mixtures(protocol, support, center)
    grown = np.maximum(protocol.components, _grown(center, support))
    more = "4 more central lines" if support.ndim == 1 else "a centre 4 wider both ways"
    found.append(Change(more, f"take {more}", replace(protocol, components=grown)))
    full = Protocol(
        np.append((1 - _FULL_SHARE) * protocol.weights, _FULL_SHARE),
        np.concatenate([protocol.components, support[None].astype(float)]),
    )
    patients = round(1 / _FULL_SHARE)
    found.append(Change(f"1 patient in {patients} fully sampled", f"sample 1 patient in {patients} fully", full))
    return found


def _shifts(protocol, support, center):
    period = round(_period(protocol.components[0]) or _mean_distance(protocol, support, center))
    found = []
    if len(protocol.weights) == 1:
        half = max(1, period // 2)
        words = f"by {half} line{'s' * (half > 1)} in every other patient"
        both = _shifted(protocol, (0, half), support, center)
        found.append(Change(f"shifted {words}", f"shift the mask {words}", both))
    if period > 2:
        words = f"by 0 to {period - 1} lines from patient to patient"
        every = _shifted(protocol, range(period), support, center)
        found.append(Change(f"shifted {words}", f"shift the mask {words}", every))
    return found


def _shifted(protocol, offsets, support, center):
    return _mixed(
        [
            replace(protocol, components=np.stack([_shift(m, offset, support, center) for m in protocol.components]))
            for offset in offsets
        ]
    )


def _mixtures(protocol, support, center):
    """Every other patient at another distance of the lines, where they are equispaced."""
    period = round(_period(protocol.components[0]))
    found = []
    for other in dict.fromkeys((period + 1, max(2, period // 2))):
        if other != period:
            masks = np.stack([_comb(mask, other, 0, support, center) for mask in protocol.components])
            words = f"every other patient with 1 line in {other}"
            mixed = _mixed([protocol, replace(protocol, components=masks)])
            found.append(Change(words, f"sample {words} instead of {period}", mixed))
    return found


def _mixed(protocols):
    weights = np.concatenate([protocol.weights for protocol in protocols]) / len(protocols)
    distinct, where = np.unique(np.concatenate([p.components for p in protocols]), axis=0, return_inverse=True)
    return Protocol(np.bincount(where.ravel(), weights), distinct)


def _at_random(protocol, support, center):
    free = support & ~center
    share = (protocol.density.sum() - center.sum()) / max(free.sum(), 1)
    return Protocol(np.ones(1), (center + free * share)[None])


def _shift(mask, offset, support, center):
    """The mask with the lines outside the centre moved: equispaced ones as a grid, others round in a ring."""
    period = _period(mask)
    if period:
        return _comb(mask, period, offset, support, center)
    ring = np.flatnonzero(support & ~center)
    out = mask.copy()
    out[ring] = np.roll(mask[ring], offset)
    return out


def _comb(mask, period, offset, support, center):
    """Centre and equispaced lines, on either side of it in step with the mask's first there."""
    out = center.astype(float)
    middle = len(mask) // 2
    for side in (np.arange(len(mask)) < middle, np.arange(len(mask)) >= middle):
        first = np.flatnonzero((mask > 0) & side & ~center)[:1]
        steps = np.arange(-len(mask), len(mask))
        grid = np.round(first[:, None] + offset + period * steps).astype(int).ravel()
        grid = grid[(grid >= 0) & (grid < len(mask))]
        out[grid[(side & support)[grid]]] = 1
    return out


def _period(mask):
    """Mean distance of equispaced lines outside the centre; 0 where they are not equispaced, or are points."""
    if mask.ndim > 1:
        return 0.0
    lines = np.flatnonzero((mask > 0) & ~_center(mask > 0))
    sides = np.split(lines, [np.searchsorted(lines, len(mask) // 2)])
    gaps = np.concatenate([np.diff(side) for side in sides])
    regular = len(gaps) >= 3 and gaps.max() - gaps.min() <= 1 and gaps.max() > 1
    return float(gaps.mean()) if regular else 0.0


def _mean_distance(protocol, support, center):
    free = support & ~center
    return max(2.0, free.sum() / max(protocol.density[free].sum(), 1))


def _center(sampled):
    """The fully sampled block round the centre of k-space, bool of the mask's shape."""
    plane = np.atleast_2d(sampled)
    block = np.zeros(plane.shape, bool)
    block[_block(plane.shape, calibration_region(plane, plane.shape))] = True
    return block.reshape(sampled.shape)


def _grown(center, support):
    plane = np.atleast_2d(center)
    extents = int(plane.any(1).sum()), int(plane.any(0).sum())
    size = [min(n, extent + 4) for n, extent in zip(plane.shape, extents, strict=True)]
    grown = np.zeros(plane.shape, bool)
    grown[_block(plane.shape, size)] = True
    return grown.reshape(center.shape) & support


def _block(shape, size):
    return tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(shape, size, strict=True))
