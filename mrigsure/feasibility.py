"""Before anyone trains for a day: can these scans teach a prior, what is blind to them, and what would cure it?

For every matrix size: the spectrum of E[A^H A] over all scans (identifiability.py), and the same spectrum with changes
of the sampling protocol on the same coil maps (protocols.py). Beside it stands what the first stage of training sees:
the modes of E[x | input] that the loss weighs, given which lines one input keeps (docs/method.md, section 5).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mrigsure.feasibility_text import UNSUPERVISED, advice, print_tables, record
from mrigsure.files import atomic
from mrigsure.identifiability import (
    LineEnsemble,
    PointEnsemble,
    Spectrum,
    archive_ensemble,
    unidentifiable,
)
from mrigsure.progress import say, track
from mrigsure.protocols import Change, Protocol, changes, observed_protocol
from mrigsure.scan import ScanSet
from mrigsure.settings import FeasibilitySettings

TOLERATED = 0.001  # share of blind modes that is none
CAN, PARTLY, CANNOT = "can teach", "can teach only partly", "cannot teach"
_INPUTS, _INPUT_ROWS = 3, 32  # single inputs looked at for that, and image rows of each
_MASKS = 256  # of an archive, evenly spread, that its protocol is read from


@dataclass(frozen=True)
class Outcome:
    """A protocol's figures. extra_time is relative to the archive's; unsupervised the share of modes that training's
    first stage does not weigh, given one input."""

    name: str
    advice: str
    extra_time: float
    blind_share: float
    smallest: float
    unsupervised: float

    @property
    def cures(self) -> bool:
        return self.blind_share <= TOLERATED

    @property
    def time(self) -> str:
        """The extra scan time, for a table."""
        return "same" if abs(self.extra_time) < 0.005 else f"{self.extra_time:+.0%}"

    @property
    def costs(self) -> str:
        """The extra scan time, in a sentence."""
        return "no extra scan time" if self.extra_time < 0.005 else f"{self.extra_time:.0%} more scan time"


@dataclass(frozen=True)
class SizeReport:
    """The scans of one matrix size: figures now, and with every change, the best first.

    density  p(k) over the archive, of the masks' shape; example  magnitude (H, W) of one scan, by regularised SENSE
    """

    shape: tuple[int, int]
    facts: dict
    spectrum: Spectrum
    now: Outcome
    changes: list[Outcome]
    density: np.ndarray
    example: np.ndarray

    @property
    def cure(self) -> Outcome | None:
        """The smallest change that leaves no blind mode, where there are some."""
        return next((change for change in self.changes if change.cures), None) if not self.now.cures else None

    @property
    def better(self) -> Outcome | None:
        """A change that also supervises what the archive, or its cure, leaves to chance in the first stage."""
        best = self.cure or self.now
        if best.unsupervised <= UNSUPERVISED:
            return None
        return next((c for c in self.changes if c.cures and c.unsupervised <= best.unsupervised / 2), None)


def feasibility(settings: FeasibilitySettings) -> Path:
    """Examine prepared scans, print what was found, write OUT.json and OUT.png; returns the .json path."""
    from mrigsure.feasibility_picture import picture

    scans = ScanSet(settings.prepared)
    impossible = unidentifiable(scans.volumes)
    reports = [examine(scans, shape, settings.delta, settings.seed) for shape in sorted(set(scans.shapes))]
    conclusion = verdict(reports, impossible)
    print_tables(reports)
    sentences = advice(reports, impossible)
    headline = f"This archive {conclusion.replace('teach', 'teach a prior')}."
    say(f"[bold]{headline}[/bold] {sentences}")
    path = Path(settings.out).with_suffix(".json")
    with atomic(path) as partial:
        partial.write_text(json.dumps(record(settings, reports, conclusion, sentences), indent=1) + "\n")
    picture(path.with_suffix(".png"), reports, headline, sentences)
    say(f"in {path} and {path.with_suffix('.png')}")
    return path


def examine(scans: ScanSet, shape: tuple[int, int], delta: float = 0.5, seed: int = 0) -> SizeReport:
    """The report on the scans of one matrix size."""
    indices = [index for index, size in enumerate(scans.shapes) if size == shape]
    ensemble = archive_ensemble(scans, indices, seed)
    volumes = [volume for volume in scans.volumes if volume.kspace_shape[-2:] == shape]
    picks = np.linspace(0, len(volumes) - 1, min(_MASKS, len(volumes))).round().astype(int)
    masks = np.stack([_mask_like(volumes[pick].mask, ensemble.support) for pick in picks])
    protocol = observed_protocol(masks)
    spectrum = ensemble.spectrum()
    inputs = [scans[index] for index in _spread(indices, _INPUTS)]

    def outcome(change: Change, found: Spectrum) -> Outcome:
        used = delta if change.delta is None else change.delta
        return Outcome(
            name=change.name,
            advice=change.advice,
            extra_time=float(change.protocol.density.sum() / protocol.density.sum() - 1),
            blind_share=found.blind_share,
            smallest=found.smallest,
            unsupervised=_unsupervised(inputs, change.protocol, ensemble.support, used, seed),
        )

    tried = changes(protocol)
    if not protocol.fixed_choice:
        density = torch.stack([scan.density for scan in inputs]).mean(0).numpy()
        more = Protocol(np.ones(1), _mask_like(density, ensemble.support)[None].astype(float))
        tried.insert(0, Change("many more scans like these", "add scans with masks of this kind", more))
    if delta == 0:
        tried.append(Change("hold out half of the lines in training", "train with --delta 0.5", protocol, 0.5))
    outcomes = []
    for change in track(tried, f"changes of the protocol, {shape[0]} x {shape[1]}"):
        same = change.protocol is protocol
        outcomes.append(outcome(change, spectrum if same else ensemble.spectrum(change.protocol.density)))
    order = sorted(range(len(outcomes)), key=lambda i: (not outcomes[i].cures, _cost(outcomes[i]), i))
    coils = [volume.kspace_shape[1] for volume in volumes]
    facts = {
        "scans": len(indices),
        "files": len(volumes),
        "coils": [min(coils), max(coils)],
        "acceleration": [min(v.acceleration for v in volumes), max(v.acceleration for v in volumes)],
        "masks": len(np.unique(masks, axis=0)),
        "support": float(ensemble.support.mean()),
    }
    first = inputs[0].batch()
    example = first.operator.solve(first.operator.adjoint(first.kspace), torch.tensor([0.02]))[0]
    return SizeReport(
        shape=shape,
        facts=facts,
        spectrum=spectrum,
        now=outcome(Change("as it is", "", protocol), spectrum),
        changes=[outcomes[i] for i in order],
        density=np.mean(masks, axis=0),
        example=example.abs().numpy(),
    )


def verdict(reports: Sequence[SizeReport], impossible: str | None) -> str:
    """CAN, PARTLY where modes are blind, CANNOT where no prior is identifiable."""
    if impossible:
        return CANNOT
    return CAN if all(report.now.cures for report in reports) else PARTLY


def _cost(outcome):
    return max(0.0, round(outcome.extra_time, 2))


def _unsupervised(inputs, protocol: Protocol, support, delta, seed):
    """Mean share of the modes that the loss does not weigh, over single inputs: one scan's coils, one draw of lines."""
    rng = np.random.default_rng(seed)
    shares = []
    for scan in inputs:
        weight = protocol.supervision(delta, rng)
        one = [scan.sens_maps], [np.ones_like(weight)], [1.0], support
        ensemble = LineEnsemble(*one, rows=_INPUT_ROWS) if support.ndim == 1 else PointEnsemble(*one, seed)
        shares.append(ensemble.spectrum(weight).blind_share)
    return float(np.mean(shares))


def _mask_like(mask, support):
    """The mask as lines where the whole ensemble is lines, as a plane otherwise."""
    if support.ndim == 1:
        return mask if mask.ndim == 1 else mask[0]
    return np.broadcast_to(mask, support.shape)


def _spread(items, count):
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]
