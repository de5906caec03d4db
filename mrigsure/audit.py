"""`mrigsure audit`: does a prior remember its training scans, and does it more than another prior? (memorisation.py)

Which scans training saw follows from the prior's training.json: the share of the files that was held apart, by a hash
of their names (archive.py). Scans from elsewhere that training cannot have seen may be given instead.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import mrigsure
from mrigsure.archive import split_by_file
from mrigsure.denoiser import Prior, load_prior
from mrigsure.devices import pick_device
from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.memorisation import (
    Comparison,
    compare_errors,
    compare_nearest,
    extraction_errors,
    measured_distances,
)
from mrigsure.progress import say, status_table
from mrigsure.sampling import sample_prior
from mrigsure.scan import Scan, ScanSet
from mrigsure.seeds import generator
from mrigsure.settings import AuditSettings

_MOST_NEIGHBOURS = 256  # files of either kind among which the nearest scan is sought
_LEGEND = (
    "[dim]ratio: training scans over unseen ones; 1 where nothing is remembered, smaller the more is.\n"
    "by chance: how often scans that are all alike would give as small a ratio.[/dim]"
)


@dataclass(frozen=True)
class Findings:
    """What one prior shows; the errors are each scan's, for a comparison with another prior."""

    name: str
    nearest: Comparison
    extraction: Comparison
    training_errors: Tensor
    unseen_errors: Tensor

    @property
    def remembers(self) -> bool:
        return self.nearest.remembers or self.extraction.remembers

    @property
    def sentence(self) -> str:
        """The verdict, for someone who has not read the table."""
        if self.extraction.remembers:
            return (
                f"{self.name} remembers its training scans: from a few lines it predicts their withheld lines with "
                f"{self.extraction.ratio:.2f} x the error that it makes on unseen scans."
            )
        if self.nearest.remembers:
            return (
                f"{self.name} repeats its training scans: its samples lie at {self.nearest.ratio:.2f} x the distance "
                "from the nearest of them that they have from the nearest unseen scan."
            )
        if self.nearest.undecided or self.extraction.undecided:
            return f"Too few scans to tell whether {self.name} remembers those that it was trained on."
        return f"{self.name} shows no sign of remembering its training scans."


def audit(settings: AuditSettings) -> Path:
    """Examine one prior, or two side by side, print a table and a verdict, write OUT.json; returns its path."""
    device = pick_device(settings.device)
    folders = [settings.prior, *([settings.against] if settings.against else [])]
    priors = [load_prior(folder, device) for folder in folders]
    training, unseen = sort_scans(priors, settings.scans, settings.unseen)
    say(f"{len(training)} training scans, {len(unseen)} unseen ones")
    found = [examine(prior, training, unseen, settings, device) for prior in priors]
    rows = [row for findings in found for row in _rows(findings)]
    columns = ("prior", "figure", "training scans", "unseen scans", "ratio (95% interval)", "by chance")
    status_table(rows, columns, "does the prior remember its training scans?")
    say(_LEGEND)
    sentences = [findings.sentence for findings in found]
    between = None
    if len(found) == 2:
        between = between_priors(*found, settings.seed)
        sentences.append(_difference(*found, between))
    for sentence in sentences:
        say(f"[bold]{sentence}[/bold]")
    path = Path(settings.out)
    with atomic(path) as partial:
        record = _record(settings, priors, found, between, sentences, (len(training), len(unseen)))
        partial.write_text(json.dumps(record, indent=1) + "\n")
    say(f"in {path}")
    return path


def sort_scans(priors: Sequence[Prior], paths: Sequence, unseen: str | None) -> tuple[list[Scan], list[Scan]]:
    """The scans that all priors were trained on, and those that none of them saw.

    Raises InputError where training.json does not fit the scans and `unseen` does not say more.
    """
    scans = ScanSet(paths)
    if unseen:
        return list(scans), list(ScanSet([unseen]))
    training, apart = set(range(len(scans))), set(range(len(scans)))
    for prior in priors:
        record = prior.record
        files = len(scans.volumes)
        if record.get("archive", {}).get("files") != files:
            known = record.get("archive", {}).get("files", "an unknown number of")
            raise InputError(
                paths[0],
                f"{files} files, where {prior.name} was trained with {known}",
                "all the files of its training, of which it held some apart, or --unseen with scans it never saw",
            )
        own, held = split_by_file(scans, record["settings"]["validation"], record["settings"]["seed"])
        training, apart = training & set(own), apart & set(held)
    if not training or not apart:
        raise InputError(
            paths[0], "no scan that both priors saw, or that neither did", "priors of one archive and seed, or --unseen"
        )
    return [scans[i] for i in sorted(training)], [scans[i] for i in sorted(apart)]


def examine(
    prior: Prior, training: Sequence[Scan], unseen: Sequence[Scan], settings: AuditSettings, device="cpu"
) -> Findings:
    """Both tests of one prior."""
    size = Counter(scan.shape for scan in unseen).most_common(1)[0][0]
    near = [_by_file(scan for scan in scans if scan.shape == size) for scans in (training, unseen)]
    if not near[0]:
        raise InputError("audit", f"no training scan of {size[0]} x {size[1]}, as the unseen ones are", "scans alike")
    rng = generator(settings.seed, "audit", device=device)
    images = sample_prior(prior, (settings.samples, *size), settings.levels, rng)
    distances = [
        torch.stack([measured_distances(images, scans).amin(1) for scans in _spread(files, _MOST_NEIGHBOURS)], 1)
        for files in near
    ]
    few = [[file[len(file) // 2] for file in _spread(_by_file(scans), settings.count)] for scans in (training, unseen)]
    options = {"draws": settings.draws, "levels": settings.levels, "seed": settings.seed, "device": device}
    kinds = ("training", "unseen")
    errors = [
        extraction_errors(prior, scans, **options, label=f"{prior.name}, {kind} scans")
        for scans, kind in zip(few, kinds, strict=True)
    ]
    return Findings(
        name=prior.name or "the prior",
        nearest=compare_nearest(*distances, settings.seed),
        extraction=compare_errors(*errors, settings.seed),
        training_errors=errors[0],
        unseen_errors=errors[1],
    )


def between_priors(first: Findings, second: Findings, seed: int = 0) -> Comparison:
    """Ratio of the two priors' ratios of extraction errors, paired by scan: below 1 the first remembers more."""
    return compare_errors(
        first.training_errors / second.training_errors, first.unseen_errors / second.unseen_errors, seed
    )


def _difference(first, second, between):
    figures = f"{between.ratio:.2f} (95% {between.low:.2f} to {between.high:.2f})"
    if between.low <= 1 <= between.high:
        return f"The two do not differ beyond chance: ratio of their extraction ratios {figures}."
    more = first if between.high < 1 else second
    return f"{more.name} remembers more than the other: ratio of their extraction ratios {figures}."


def _rows(findings):
    names = ("sample to nearest scan", "error on withheld lines")
    for name, figure in zip(names, (findings.nearest, findings.extraction), strict=True):
        ratio = f"{figure.ratio:.2f} ({figure.low:.2f} to {figure.high:.2f})"
        ratio = f"[red]{ratio}[/red]" if figure.remembers else ratio
        chance = "under 0.001" if figure.chance < 0.001 else f"{figure.chance:.3f}"
        yield findings.name, name, f"{figure.training:.3f}", f"{figure.unseen:.3f}", ratio, chance


def _record(settings, priors, found, between, sentences, counts):
    def figures(comparison):
        numbers = {**asdict(comparison), "ratio": comparison.ratio}
        return {key: float(f"{value:.4g}") for key, value in numbers.items()} | {"remembers": comparison.remembers}

    return {
        "version": mrigsure.__version__,
        "seed": settings.seed,
        "samples": settings.samples,
        "draws": settings.draws,
        "levels": settings.levels,
        "scans": dict(zip(("training", "unseen"), counts, strict=True)),
        "verdict": sentences,
        "priors": [
            {
                "name": prior.name,
                "sha256": prior.sha256,
                "remembers": findings.remembers,
                "nearest": figures(findings.nearest),
                "extraction": figures(findings.extraction),
            }
            for prior, findings in zip(priors, found, strict=True)
        ],
        "between": None if between is None else figures(between),
    }


def _by_file(scans):
    """Lists of the scans of one file: they are alike, and stay on one side."""
    files = {}
    for scan in scans:
        files.setdefault(scan.name.split("#")[0], []).append(scan)
    return list(files.values())


def _spread(items, count):
    """At most `count` of the items, evenly spread."""
    if len(items) <= count:
        return items
    places = torch.linspace(0, len(items) - 1, count).round().long().tolist()
    return [items[i] for i in places]
