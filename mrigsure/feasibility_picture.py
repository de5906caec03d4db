"""The picture of `mrigsure feasibility`: what is measured and what is blind, in k-space and in the image, and the cure.

One row a matrix size. Teal is how often a k-space sample is measured; orange is the share of a sample, or of a pixel,
that lies in blind modes or, where none is blind, in the weakest 5%.
"""

import textwrap
from collections.abc import Sequence

import numpy as np

from mrigsure.files import atomic
from mrigsure.identifiability import BLIND

_BACKGROUND, _PANEL, _TEXT, _MUTED = "#0d0f12", "#15191e", "#eef1f4", "#8f99a3"
_ORANGE, _TEAL, _GREEN = "#ff9429", "#33a8ad", "#7bd88f"
_WIDTH, _TOP, _ROW = 17.6, 1.3, 4.5  # inches
_FLOOR = 1e-4  # smallest eigenvalue that the logarithmic axis shows
_DPI = 110
_NAME, _TIME, _BAR, _END = 2.95, 3.1, 4.0, 5.1  # inches from the table's left: where names end, and columns begin
_SMALLEST, _UNSUPERVISED = 5.75, 6.65  # where these columns end


def picture(path, reports: Sequence, headline: str, sentences: str) -> None:
    """Write the figure for feasibility.SizeReport's `reports`."""
    from matplotlib.figure import Figure

    height = _TOP + _ROW * len(reports)
    figure = Figure(figsize=(_WIDTH, height), facecolor=_BACKGROUND)
    figure.text(0.4 / _WIDTH, 1 - 0.42 / height, headline, size=17, weight="bold", color=_TEXT, va="center")
    wrapped = textwrap.fill(sentences, 200)
    figure.text(0.4 / _WIDTH, 1 - 0.7 / height, wrapped, size=10.5, color=_MUTED, va="top", linespacing=1.4)
    for number, report in enumerate(reports):
        top = height - _TOP - number * _ROW - 0.55  # inches from the bottom

        def panel(left, width, top=top):
            return figure.add_axes((left / _WIDTH, (top - 2.9) / height, width / _WIDTH, 2.9 / height))

        _kspace(panel(0.4, 2.9), report)
        _image(panel(3.6, 2.9), report)
        _eigenvalues(panel(7.3, 2.9), report)
        _changes(panel(10.6, 6.75), report)
    with atomic(path) as partial:
        figure.savefig(partial, dpi=_DPI, facecolor=_BACKGROUND)


def _kspace(axes, report):
    density = np.sqrt(np.broadcast_to(report.density, report.shape))[..., None]
    share = report.spectrum.kspace.numpy()
    blind = (share / _full(report, share))[..., None].clip(0, 1)
    measured = density * _rgb(_TEAL) * (1 - 0.5 * blind)
    axes.imshow(measured + blind * (_rgb(_ORANGE) - measured), interpolation="nearest")
    axes.set_axis_off()
    _title(axes, f"k-space, {report.shape[0]} x {report.shape[1]}")
    _caption(axes, [("how often measured", _TEAL), (f"{_meaning(report)}, up to {share.max():.0%}", _ORANGE)])


def _image(axes, report):
    """The share of every pixel in orange, over the outline of the anatomy."""
    share = report.spectrum.image.numpy()
    blind = (share / _full(report, share))[..., None].clip(0, 1)
    axes.imshow(blind * _rgb(_ORANGE), interpolation="nearest")
    white = np.quantile(report.example, 0.99)
    axes.contour(report.example, levels=[0.2 * white, 0.5 * white], colors=[_TEXT], linewidths=[1.1, 0.5], alpha=0.6)
    axes.set_axis_off()
    _title(axes, "image")
    _caption(
        axes, [("outline of one scan", _TEXT), (f"{_meaning(report)}, up to {share.max():.0%} of a pixel", _ORANGE)]
    )


def _eigenvalues(axes, report):
    spectrum = report.spectrum
    share = np.concatenate([[0], spectrum.weights.cumsum(0).numpy()])
    values = spectrum.values.clamp_min(_FLOOR).numpy()
    axes.step(share, np.append(values, values[-1]), where="post", color=_TEAL, lw=2)
    axes.axhspan(_FLOOR / 2, BLIND, color=_ORANGE, alpha=0.2, lw=0)
    axes.text(0.98, BLIND * 0.8, "blind", color=_ORANGE, size=10, ha="right", va="top")
    axes.set(yscale="log", xlim=(0, 1), ylim=(_FLOOR / 2, 1.6), xticks=[0, 0.25, 0.5, 0.75, 1], facecolor=_PANEL)
    axes.set_xticklabels(["0", "25%", "50%", "75%", "100%"])
    axes.set_yticks([1, 0.1, 0.01, 0.001, _FLOOR], ["1", "0.1", "0.01", "0.001", "0"])
    axes.minorticks_off()
    axes.tick_params(colors=_MUTED, labelsize=9, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_MUTED)
    _title(axes, "how well the modes are measured")
    axes.set_xlabel("share of the modes, the weakest first", size=9, color=_MUTED)
    axes.set_ylabel("eigenvalue of E[A$^H$A]", size=9, color=_MUTED)


def _changes(axes, report):
    """A table: the protocol, its scan time, a bar for the blind modes, smallest eigenvalue, lack of supervision."""
    outcomes = [report.now, *report.changes]
    most = max(max(outcome.blind_share for outcome in outcomes), 0.05)
    axes.set(xlim=(0, 6.75), ylim=(len(outcomes) - 0.4, -0.6))
    axes.set_axis_off()
    _title(axes, "now, and with a change", 0.13)
    heads = [(_TIME, "scan time", "left"), (_BAR, "blind modes", "left")]
    heads += [(_SMALLEST, "smallest\neigenvalue", "right"), (_UNSUPERVISED, "without\nsupervision", "right")]
    for x, text, side in heads:
        axes.text(x, -0.65, text, size=8, color=_MUTED, ha=side, va="bottom")
    for place, outcome in enumerate(outcomes):
        now, advised = outcome is report.now, outcome in (report.cure, report.better)
        color = _TEXT if now else _GREEN if advised else _MUTED
        style = {"size": 9, "color": color, "va": "center", "weight": "bold" if now else "normal"}
        axes.text(_NAME, place, textwrap.fill(outcome.name, 42), ha="right", **style)
        axes.text(_TIME, place, "" if now else outcome.time, **style)
        bar = (_END - _BAR - 0.35) * outcome.blind_share / most
        axes.barh(place, max(bar, 0.02), 0.45, left=_BAR, color=_GREEN if outcome.cures else _ORANGE)
        axes.text(_BAR + bar + 0.07, place, f"{outcome.blind_share:.0%}" if outcome.blind_share else "0", **style)
        axes.text(_SMALLEST, place, f"{outcome.smallest:.3f}", ha="right", **style)
        axes.text(_UNSUPERVISED, place, f"{outcome.unsupervised:.0%}", ha="right", **style)


def _full(report, share):
    """What is drawn in full orange: the largest share, but never a small one where modes are blind."""
    return max(float(share.max()), 0.25 if _is_blind(report) else 1e-9)


def _is_blind(report):
    return report.spectrum.below == BLIND


def _meaning(report):
    return "blind" if _is_blind(report) else "weakest 5% of the modes"


def _rgb(color):
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(color))


def _title(axes, text, left=0.0):
    axes.text(left, 1.02, text, transform=axes.transAxes, size=11.5, weight="bold", color=_TEXT, va="bottom")


def _caption(axes, parts):
    for line, (text, color) in enumerate(parts):
        axes.text(0, -0.04 - 0.075 * line, "\u25a0 " + text, transform=axes.transAxes, size=9, color=color, va="top")
