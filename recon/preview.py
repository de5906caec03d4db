"""One page of a reconstruction, its middle slice: magnitude, phase, standard deviation and the width of the intervals.

Every map has a scale bar of its own. Those of standard deviation and width end at fixed shares of the magnitude's
white, so that pages of different scans can be laid side by side; numbers are in the raw file's units.
"""

import json
import math
from dataclasses import dataclass

import numpy as np

from mrigsure.page import MUTED, TEXT, Page
from recon.reconstruction import Reconstruction

_PANEL = 300  # pixels, about the width of a panel
_GAP, _MARGIN, _TITLE, _SCALE, _LINE = 24, 28, 30, 66, 18  # pixels; the scale is a bar with its numbers below
_LEAST = 700  # pixels, the width that the lines of text need
_WHITE = 99.5  # percentile of the magnitude that is shown white
_FAINT = 0.05  # of white: below it the phase is noise's, and is left out
_STD, _WIDTH = 0.2, 0.5  # of white, the ends of their scales; a 90% interval is about 2.4 standard deviations wide


@dataclass(frozen=True)
class Panel:
    """A map (H, W) with its scale. Pixels that are not finite are left dark.

    ticks  text below the left end, the middle and the right end of the scale bar
    """

    title: str
    values: np.ndarray
    colours: str
    low: float
    high: float
    ticks: tuple[str, str, str]


def preview(path, reconstruction: Reconstruction) -> None:
    """Write the page as PNG; the same reconstruction gives the same bytes. Without draws it has two panels."""
    panels = panels_of(reconstruction)
    height, width = (_zoom(panels[0]) * size for size in panels[0].values.shape)
    title = _title(reconstruction)
    legend = _legend(reconstruction)
    top = _MARGIN + _LINE * len(title) + _TITLE
    foot = top + height + _SCALE + _GAP // 2
    total = max(2 * _MARGIN + len(panels) * (width + _GAP) - _GAP, _LEAST), foot + _LINE * len(legend) + _MARGIN // 2
    page = Page(*total)
    for number, line in enumerate(title):
        page.text(_MARGIN, _MARGIN + _LINE * number, line, 10, TEXT if number == 0 else MUTED)
    for number, panel in enumerate(panels):
        x = _MARGIN + number * (width + _GAP)
        page.text(x + width / 2, top - _TITLE + 8, panel.title, 11, ha="center")
        _draw(page, panel, x, top, width, height)
    for number, line in enumerate(legend):
        page.text(_MARGIN, foot + _LINE * number, line, 9, MUTED)
    page.write(path)


def panels_of(reconstruction: Reconstruction) -> list[Panel]:
    """The maps of the middle slice: magnitude and phase, and of several draws their spread."""
    index = len(reconstruction.image) // 2
    image = reconstruction.image[index]
    magnitude = np.abs(image)
    white = float(np.percentile(magnitude, _WHITE)) or 1.0
    phase = np.where(magnitude < _FAINT * white, np.nan, np.angle(image))
    panels = [
        _of_white("magnitude", magnitude, "gray", white, 1.0),
        Panel("phase", phase, "twilight", -math.pi, math.pi, ("\N{MINUS SIGN}π", "0", "π\nradians")),
    ]
    if reconstruction.std is not None:
        panels.append(_of_white("standard deviation", reconstruction.std[index], "inferno", white, _STD))
    if reconstruction.lower is not None:
        width = reconstruction.upper[index] - reconstruction.lower[index]
        title = f"width of the {_level(reconstruction)} interval"
        panels.append(_of_white(title, width, "inferno", white, _WIDTH))
    return panels


def _of_white(title, values, colours, white, share):
    """A panel that goes from 0 to a share of the magnitude's white."""
    high = share * white
    end = f"{share:.0%} of white" if share < 1 else "white"
    return Panel(title, values, colours, 0.0, high, ("0", f"{high / 2:.3g}", f"{high:.3g}\n{end}"))


def _title(reconstruction):
    """What was reconstructed and how, and the scan's scorecard."""
    record, slices = reconstruction.record, len(reconstruction.image)
    second = [record.get("scan", ""), f"slice {slices // 2 + 1} of {slices}", _scorecard(record)]
    return [reconstruction.title, "   ".join(text for text in second if text)]


def _scorecard(record):
    """The scorecard in a few words, what does not hold marked by an exclamation mark."""
    figures = json.loads(record.get("scorecard", "{}"))
    return "  ".join(f"{name} {entry['value']:.2f}{'' if entry['holds'] else ' !'}" for name, entry in figures.items())


def _legend(reconstruction):
    """Units, and what the maps are."""
    lines = [
        f"Numbers are in the raw file's units; white is the {_WHITE}th percentile of the magnitude.",
        f"Phase: relative to the coil maps, left out where the magnitude is below {_FAINT:.0%} of white.",
    ]
    if reconstruction.std is not None:
        scale = reconstruction.record.get("spread_scale", 1.0)
        times = f", times the scan's own scale of {scale:.2f}" if scale != 1 else ""
        lines.append(f"Standard deviation: of the complex value, over the draws{times}.")
    if reconstruction.lower is not None:
        lines.append(
            f"Interval: the magnitude lies between lower and upper with a probability of {_level(reconstruction)}; the "
            "width is upper - lower."
        )
    return lines


def _level(reconstruction):
    return f"{100 * reconstruction.record['interval']:.3g}%"


def _draw(page, panel, x, top, width, height):
    """The map, below it its scale bar with the numbers."""
    zoom = _zoom(panel)
    enlarged = np.kron(panel.values, np.ones((zoom, zoom), panel.values.dtype))
    colours = {"cmap": panel.colours, "vmin": panel.low, "vmax": panel.high}
    page.image(x, top, width, height, enlarged, **colours)
    bar = np.linspace(panel.low, panel.high, 256)[None]
    page.image(x, top + height + 10, width, 12, bar, **colours)
    places = ((x, "left"), (x + width / 2, "center"), (x + width, "right"))
    for (position, align), text in zip(places, panel.ticks, strict=True):
        page.text(position, top + height + 27, text, 9, MUTED, ha=align, linespacing=1.4)


def _zoom(panel):
    return max(1, round(_PANEL / panel.values.shape[1]))
