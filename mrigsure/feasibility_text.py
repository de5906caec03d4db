"""What `mrigsure feasibility` says: tables, advice in sentences, and the same as numbers for a file."""

from collections.abc import Sequence

import mrigsure
from mrigsure.identifiability import BLIND
from mrigsure.progress import say, status_table

UNSUPERVISED = 0.05  # share of modes without supervision that is worth a word
_LEGEND = (
    "[dim]blind modes: parts of an image that no scan measures (eigenvalues of E[A^H A] below 0.01).\n"
    "without supervision: parts that the first stage of training cannot check, given which lines one input keeps;\n"
    "refinement may still learn them from other scans.[/dim]"
)
_QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def advice(reports: Sequence, impossible: str | None) -> str:
    """What to do, in a sentence or two a matrix size."""
    found = [f"It has {impossible}."] if impossible else []
    for report in reports:
        where = f"{report.shape[0]} x {report.shape[1]}: " if len(reports) > 1 else ""
        found.append(where + _sentences(report))
    return " ".join(found)


def print_tables(reports: Sequence) -> None:
    """One table for each of feasibility.SizeReport's `reports`."""
    for report in reports:
        _table(report)
    say(_LEGEND)


def _table(report):
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


def record(settings, reports: Sequence, conclusion: str, sentences: str) -> dict:
    """Everything that was found, for JSON."""

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
    if start > UNSUPERVISED:
        text += f" {'Even then' if cure else 'But'} the lines of one input tell which others are missing, so that the "
        text += f"first stage of training gives no supervision to {start:.0%} of the modes"
        text += (
            f". Better: to {better.advice}, at {better.costs}, which leaves {better.unsupervised:.0%}."
            if better
            else "."
        )
    return text
