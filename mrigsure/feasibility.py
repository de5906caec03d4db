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

import mrigsure
from mrigsure.files import atomic
from mrigsure.identifiability import (
    BLIND,
    LineEnsemble,
    PointEnsemble,
    Spectrum,
    archive_ensemble,
    unidentifiable,
)
from mrigsure.progress import say, status_table, track
from mrigsure.protocols import Change, Protocol, changes, observed_protocol
from mrigsure.scan import ScanSet
from mrigsure.settings import FeasibilitySettings

TOLERATED = 0.001  # share of blind modes that is none
CAN, PARTLY, CANNOT = "can teach", "can teach only partly", "cannot teach"
_UNSUPERVISED = 0.05  # share of modes without supervision that is worth a word
_INPUTS, _INPUT_ROWS = 3, 32  # single inputs looked at for that, and image rows of each
_MASKS = 256  # of an archive, evenly spread, that its protocol is read from
_LEGEND = (
    "[dim]blind modes: parts of an image that no scan measures (eigenvalues of E[A^H A] below 0.01).\n"
    "without supervision: parts that the first stage of training cannot check, given which lines one input keeps;\n"
    "refinement may still learn them from other scans.[/dim]"
)
_QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


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
        if best.unsupervised <= _UNSUPERVISED:
            return None
        return next((c for c in self.changes if c.cures and c.unsupervised <= best.unsupervised / 2), None)


def feasibility(settings: FeasibilitySettings) -> Path:
    """Examine prepared scans, print what was found, write OUT.json and OUT.png; returns the .json path."""
    from mrigsure.feasibility_picture import picture

    scans = ScanSet(settings.prepared)
    impossible = unidentifiable(scans.volumes)
    reports = [examine(scans, shape, settings.delta, settings.seed) for shape in sorted(set(scans.shapes))]
    conclusion = verdict(reports, impossible)
    for report in reports:
        _print(report)
    sentences = advice(reports, impossible)
    say(_LEGEND)
    headline = f"This archive {conclusion.replace('teach', 'teach a prior')}."
    say(f"[bold]{headline}[/bold] {sentences}")
    path = Path(settings.out).with_suffix(".json")
    with atomic(path) as partial:
        partial.write_text(json.dumps(_record(settings, reports, conclusion, sentences), indent=1) + "\n")
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


def advice(reports: Sequence[SizeReport], impossible: str | None) -> str:
    """What to do, in a sentence or two a matrix size."""
    found = [f"It has {impossible}."] if impossible else []
    for report in reports:
        where = f"{report.shape[0]} x {report.shape[1]}: " if len(reports) > 1 else ""
        found.append(where + _sentences(report))
    return " ".join(found)


def _sentences(report):
    now, cure, better = report.now, report.cure, report.better
    if cure:
        text = (
            f"Smallest cure: to {cure.advice}, at {cure.costs}; blind modes {now.blind_share:.0%} -> "
            f"{cure.blind_share:.0%}, smallest eigenvalue {now.smallest:.3f} -> {cure.smallest:.3f}."
        )
    elif not now.cures:
        text = f"{now.blind_share:.1%} of the modes are blind, and no change that was tried cures it."
    else:
        text = f"Every mode is measured: the smallest eigenvalue of E[A^H A] is {now.smallest:.3f}."
    start = (cure or now).unsupervised
    if start > _UNSUPERVISED:
        text += f" {'Even then' if cure else 'But'} the lines of one input tell which others are missing, so that the "
        text += f"first stage of training gives no supervision to {start:.0%} of the modes"
        text += (
            f". Better: to {better.advice}, at {better.costs}, which leaves {better.unsupervised:.0%}."
            if better
            else "."
        )
    return text


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


def _print(report):
    facts = report.facts
    coils, rates = _span(facts["coils"], "d"), _span(facts["acceleration"], ".2g")
    title = (
        f"{report.shape[0]} x {report.shape[1]}: {facts['scans']} scans of {facts['files']} files, "
        f"{coils} coil{'s' * (coils != '1')}, R {rates}, {facts['masks']} different mask{'s' * (facts['masks'] > 1)}"
    )
    rows = [_row(report.now, "[bold]as it is[/bold]", "")]
    for change in report.changes:
        name = f"[green]{change.name}[/green]" if change in (report.cure, report.better) else change.name
        rows.append(_row(change, name, change.time))
    columns = ("protocol", "scan time", "blind modes", "smallest eigenvalue", "without supervision")
    status_table(rows, columns, title)


def _row(outcome, name, time):
    blind = f"{outcome.blind_share:.1%}" if outcome.blind_share else "0"
    return name, time, blind, f"{outcome.smallest:.3f}", f"{outcome.unsupervised:.0%}"


def _span(pair, style):
    low, high = (format(value, style) for value in pair)
    return low if low == high else f"{low} to {high}"


def _record(settings, reports, conclusion, sentences):
    def figures(outcome):
        return {key: round(v, 5) if isinstance(v, float) else v for key, v in vars(outcome).items() if key != "advice"}

    return {
        "version": mrigsure.__version__,
        "seed": settings.seed,
        "delta": settings.delta,
        "blind_below": BLIND,
        "verdict": conclusion,
        "advice": sentences,
        "sizes": [
            {
                "matrix": list(report.shape),
                **report.facts,
                "now": figures(report.now),
                "eigenvalue_quantiles": {
                    str(q): round(value, 6)
                    for q, value in zip(_QUANTILES, report.spectrum.quantiles(_QUANTILES), strict=True)
                },
                "changes": [figures(change) for change in report.changes],
            }
            for report in reports
        ],
    }
