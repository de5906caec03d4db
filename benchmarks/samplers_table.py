"""Tables, picture and bars out of the rows of samplers.py."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrigsure.progress import status_table

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "samplers_quality.png"
OURS, BUDGET = "default", 30
RIVALS = ("dps", "diffpir", "ula")
GAINS = {  # section -> case -> dB over the rival: the best baseline, or L1-wavelet on real brains
    "phantoms": {"R = 4": 1.0, "R = 8": 2.0},
    "brain-16": {"R = 4": 0.0, "R = 8": 1.0},
    "brains-8": {"R = 4": 0.0, "R = 8": 1.0, "Poisson R = 8": 1.0},
}
FASTER = {"dps": 15.0, "the fastest other": 3.0}
OVERHEAD = 1.25

_CELLS = {
    "PSNR in dB of the mean of 4 / of one": lambda row: f"{row['mean']:.1f} / {row['one']:.1f}",
    "z^2": lambda row: f"{row['z2']:.2f}",
    "seconds a draw (time in bare evaluations)": lambda row: f"{row['seconds']:.2f} ({_time(row):.0f})",
}


@dataclass(frozen=True)
class Bar:
    """margin in dB, not below 0 where the bar is met; None where nothing was measured."""

    what: str
    found: str
    margin: float | None


def show(results: dict) -> tuple[float, bool]:
    """Print everything and draw the picture; the worst margin, and whether every bar is met."""
    sections = {}
    for key, row in results.items():
        section, *names = key.split("/")
        sections.setdefault(section, {})[tuple(names)] = row
    bars = []
    for section in ("phantoms", "real-slices", "brain-16", "brains-8"):
        bars += _compared(section, sections.get(section, {}))
    bars += _evaluations(sections.get("evaluations", {}))
    bars.append(_overhead(sections.get("overhead", {})))
    bars.append(_spread(sections.get("spread", {})))
    print("\nbars; margin in dB")
    cells = [
        (b.what, b.found, "", "not measured") if b.margin is None
        else (b.what, b.found, f"{b.margin:+.2f}", "met" if b.margin >= 0 else "missed")
        for b in bars
    ]  # fmt: skip
    status_table(cells, ("bar", "found", "margin", ""))
    print(f"rows made with prior {', '.join(sorted({row['prior'] for row in results.values()})) or '-'}")
    known = [bar.margin for bar in bars if bar.margin is not None]
    return min(known, default=float("nan")), len(known) == len(bars) and min(known) >= 0


def _compared(section, rows):
    """Table of a section that has baselines, means over slices; its bars."""
    bars, cells = [], []
    for case in sorted({case for case, _ in rows}):
        mine = [row for (name, _), row in rows.items() if name == case]
        methods = list(mine[0]["held-out"])
        digits = 3 if case == "held out" else 2

        def average(key, by=None, mine=mine):
            return float(np.mean([row[by][key] if by else row[key] for row in mine]))

        base = []
        for method in methods:
            told = [average(method, by) for by in ("held-out", "truth") if by in mine[0]]
            base.append(" / ".join(f"{value:.{digits}f}" for value in told))
        ours = [f"{average(key):.{digits}f}" for key in ("mean", "one")]
        others = [f"{average(key):.{places}f}" if key in mine[0] else "" for key, places in (("z2", 2), ("ceiling", 1))]
        cells.append([case, len(mine), *base, *ours, *others])
        bar = GAINS.get(section, {}).get(case)
        if bar is not None:
            rivals = methods if section == "phantoms" else ["l1-wavelet"]
            gain = average("mean") - max(average(method, "truth") for method in rivals)
            found = f"{gain:+.2f} dB"
            if "ceiling" in mine[0]:
                errors = [average("mean"), average("l1-wavelet", "truth")]
                clean = np.subtract(*(_without_noise(error, average("ceiling")) for error in errors))
                found += f" ({clean:+.2f} but for the target's noise)"
            bars.append(Bar(_gain_name(section, case, bar), found, gain - bar))
    if cells:
        print(f"\n{section}: PSNR in dB, lambda by held-out lines / by the truth; held out: energy missed")
        status_table(cells, ("case", "rows", *methods, "mean of 8", "one", "z^2", "ceiling"))
    else:
        print(f"\n{section}: no rows")
    seen = {bar.what for bar in bars}
    names = [_gain_name(section, case, bar) for case, bar in GAINS.get(section, {}).items()]
    return bars + [Bar(name, "", None) for name in names if name not in seen]


def _without_noise(decibel, ceiling):
    """PSNR of what is left of an error when that of a perfect image, the measured target's own noise, is taken off."""
    return -10 * np.log10(10 ** (-decibel / 10) - 10 ** (-ceiling / 10))


def _gain_name(section, case, bar):
    rival = "the best baseline" if section == "phantoms" else "L1-wavelet"
    return f"{section}, {case}: {bar:+.0f} dB over {rival}"


def _evaluations(rows):
    """Every sampler and budget, means over the slices that all samplers have; then ours against the others.

    A budget that lacks some of these, as a run that was stopped leaves it, is left out. Ours is compared slice by slice
    on all that the other has, so that those in doubt may have more of them.
    """
    names = ["ours at 30 as good as the best rival at any count"]
    names += [f"{factor:g} x faster than {rival} at equal quality" for rival, factor in FASTER.items()]
    groups: dict = {}
    for (sampler, nfe, number), row in rows.items():
        groups.setdefault(sampler, {}).setdefault(int(nfe), {})[number] = row
    if not groups:
        print("\nevaluations: no rows")
        return [Bar(name, "", None) for name in names]
    shared = set.intersection(*(set(max(counts.values(), key=len)) for counts in groups.values()))
    groups = {
        sampler: {nfe: mine for nfe, mine in counts.items() if shared <= set(mine)}
        for sampler, counts in groups.items()
    }
    table = {
        sampler: {nfe: _mean([mine[number] for number in sorted(shared)]) for nfe, mine in sorted(counts.items())}
        for sampler, counts in sorted(groups.items())
    }
    counts = sorted({nfe for mine in table.values() for nfe in mine})
    for title, cell in _CELLS.items():
        print(f"\nevaluations: {title}, {len(shared)} slices")
        cells = [[name, *(cell(mine[nfe]) if nfe in mine else "" for nfe in counts)] for name, mine in table.items()]
        status_table(cells, ("sampler", *map(str, counts)))
    _picture(table)
    ours = groups.get(OURS, {}).get(BUDGET)
    if ours is None or any(rival not in groups for rival in RIVALS):
        return [Bar(name, "", None) for name in names]
    against = {
        name: [_paired(ours, mine, nfe) for nfe, mine in counts.items()]
        for name, counts in groups.items()
        if name != OURS
    }
    best = {name: min(pairs, key=lambda pair: pair.gain) for name, pairs in against.items()}
    leader = min(RIVALS, key=lambda rival: best[rival].gain)
    speed = {name: _time_to_ours(pairs) / _time(_mean(list(ours.values()))) for name, pairs in against.items()}
    other = min((rival for rival in RIVALS if rival != "dps"), key=speed.get)
    found = {"dps": ("dps", speed["dps"]), "the fastest other": (other, speed[other])}
    least = best[leader]
    print(f"\nours at {BUDGET} against every other at its best count; time until it is as good, or of its best")
    cells = [
        (name, pair.nfe, pair.slices, f"{pair.gain:+.2f} +- {pair.error:.2f}", f"{speed[name]:.1f} x")
        for name, pair in sorted(best.items())
    ]
    status_table(cells, ("sampler", "evaluations", "slices", "ours ahead by, dB", "time over ours"))
    what = f"{least.gain:+.2f} dB, {leader} at {least.nfe}, {least.slices} slices"
    return [Bar(names[0], what, least.gain)] + [
        Bar(name, f"{found[rival][1]:.1f} x, {found[rival][0]}", 10 * np.log10(found[rival][1] / factor))
        for name, (rival, factor) in zip(names[1:], FASTER.items(), strict=True)
    ]


@dataclass(frozen=True)
class _Pair:
    """Ours and a rival at one count, on the slices of both: dB that ours is ahead, standard error, the rival's time."""

    nfe: int
    slices: int
    gain: float
    error: float
    time: float


def _paired(ours, rival, nfe):
    both = sorted(set(ours) & set(rival))
    gains = np.array([ours[number]["mean"] - rival[number]["mean"] for number in both])
    error = float(gains.std(ddof=1) / len(both) ** 0.5) if len(both) > 1 else float("nan")
    return _Pair(nfe, len(both), float(gains.mean()), error, _time(_mean([rival[number] for number in both])))


def _mean(rows):
    return {key: float(np.mean([row[key] for row in rows])) for key in ("mean", "one", "z2", "seconds", "bare", "made")}


def _time(row):
    """Of a draw, in bare evaluations timed in turn with it: rows that were measured on different days compare."""
    return row["seconds"] / row["bare"] * row["made"]


def _time_to_ours(pairs):
    """Least time in which a rival is as good as ours; where it never is, the time of its best."""
    enough = [pair.time for pair in pairs if pair.gain <= 0]
    return min(enough) if enough else min(pairs, key=lambda pair: pair.gain).time


def _overhead(rows):
    name = f"ours within {OVERHEAD:.2f} x the time of its bare evaluations"
    if not rows:
        return Bar(name, "", None)
    ratio = sum(row["seconds"] for row in rows.values()) / sum(row["bare"] for row in rows.values())
    return Bar(name, f"{ratio:.2f} x", 10 * np.log10(OVERHEAD / ratio))


def _spread(rows):
    """Least, mean and largest PSNR by noise and anatomical level; the worst slice against CG-SENSE."""
    name = "no slice of the volume below CG-SENSE"
    if not rows:
        print("\nspread: no rows")
        return Bar(name, "", None)
    cells = []
    for noise, level in dict.fromkeys(key[:2] for key in sorted(rows, key=lambda k: (float(k[0]), int(k[2])))):
        mine = [row for key, row in rows.items() if key[:2] == (noise, level)]
        ours, base = (np.array([row[key] for row in mine]) for key in ("mean", "cg-sense"))
        spans = [f"{v.min():.1f} {v.mean():.1f} {v.max():.1f}" for v in (ours, base, ours - base)]
        cells.append([noise, level, len(mine), *spans, f"{np.mean([row['z2'] for row in mine]):.2f}"])
    print("\nspread: PSNR in dB, least, mean and largest over slices; CG-SENSE with lambda by held-out lines")
    status_table(cells, ("noise", "level", "slices", "ours", "CG-SENSE", "gain", "z^2"))
    (key, worst) = min(rows.items(), key=lambda item: item[1]["mean"] - item[1]["cg-sense"])
    gap = worst["mean"] - worst["cg-sense"]
    return Bar(name, f"{gap:+.2f} dB, {' '.join(key)}", gap)


def _picture(table):
    """PSNR of the mean of 4 draws against evaluations and against time, down to 10 dB below the best."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (sampler, rows) in enumerate(table.items()):
        style = {"marker": "o", "markersize": 4, "color": f"C{number}"}
        style |= {"linewidth": 3, "color": "black", "zorder": 3} if sampler == OURS else {"linewidth": 1.2}
        quality = [row["mean"] for row in rows.values()]
        left.plot(list(rows), quality, label="mrigsure's default" if sampler == OURS else sampler, **style)
        right.plot([_time(row) for row in rows.values()], quality, **style)
    best = max(row["mean"] for rows in table.values() for row in rows.values())
    left.set_ylim(best - 10, best + 1)
    left.set(xscale="log", xlabel="network evaluations a draw", ylabel="PSNR of the mean of 4 draws, dB")
    right.set(xscale="log", xlabel="time of a draw, in bare network evaluations")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(PICTURE, dpi=110)
