"""A sheet of all slices as one PNG, pixels as large as the voxels are, with window, sizes and directions written on it.

Rows and columns are the array's: nothing is turned. Letters at the left and top edges say where in the patient these
lie (R, L, A, P, F, H), where the source states it.
"""

import math

import numpy as np

from mrigsure.page import ACCENT, MUTED, TEXT, Page
from recon.image_volume import NOTICE, WHITE, ImageVolume

_COLOURS = {"magnitude": "gray", "phase": "twilight", "std": "inferno"}  # the phase's colours close at pi
_PANEL = 300  # pixels, about the least width of a panel of a single slice
_SHEET = 1600  # pixels, about the greatest width, unless slices would have to shrink
_GAP, _MARGIN, _CAPTION, _LINE = 14, 28, 22, 20  # pixels
_LEAST = 460  # pixels, the width that the lines of text need
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # towards smaller and towards greater coordinates


def write_sheet(path, volume: ImageVolume, name: str) -> None:
    """Write the PNG; the same volume gives the same bytes. `name` is its heading."""
    slices = len(volume.values)
    panel = _panel(volume)
    columns = _columns(slices, panel)
    rows = math.ceil(slices / columns)
    lines = _lines(volume, name)
    top = _MARGIN + _LINE * len(lines) + _GAP
    width = max(2 * _MARGIN + columns * (panel[1] + _GAP) - _GAP, _LEAST)
    height = top + rows * (panel[0] + _CAPTION + _GAP) + _MARGIN
    page = Page(width, height)
    for number, (text, colour) in enumerate(lines):
        page.text(_MARGIN, _MARGIN + _LINE * number, text, 9, colour)
    for index in range(slices):
        row, column = divmod(index, columns)
        x, y = _MARGIN + column * (panel[1] + _GAP), top + row * (panel[0] + _CAPTION + _GAP)
        low, high = volume.window
        options = {"cmap": _COLOURS[volume.kind], "vmin": low, "vmax": high, "interpolation": "nearest"}
        axes = page.image(x, y, panel[1], panel[0], volume.values[index], **options)
        _letters(axes, volume, index)
        page.text(x + panel[1] / 2, y + panel[0] + 5, f"slice {index + 1}", 8, MUTED, ha="center")
    page.write(path, Description=volume.description)


def letter(direction: np.ndarray) -> str:
    """R, L, A, P, F or H: the side of the patient to which a direction, LPS, points most."""
    axis = int(np.abs(direction).argmax())
    return _LETTERS[axis][int(direction[axis] > 0)]


def _panel(volume):
    """Height and width of a panel in pixels, in the proportions of the voxels."""
    height, width = volume.values.shape[1:]
    tall, wide = (1.0, 1.0) if volume.geometry is None else volume.geometry.voxel_mm[:2]
    height, width = height * tall / min(tall, wide), width * wide / min(tall, wide)
    zoom = max(1, round(_PANEL / width)) if len(volume.values) * width < _SHEET else 1
    return round(zoom * height), round(zoom * width)


def _columns(slices, panel):
    """As many as make the sheet about square, no wider than it should be."""
    square = math.ceil(math.sqrt(slices * panel[0] / panel[1]))
    return max(1, min(slices, square, max(1, _SHEET // (panel[1] + _GAP))))


def _lines(volume, name):
    low, high = volume.window
    if volume.kind == "phase":
        window = "window -pi to pi"
    else:
        window = f"window {low:.3g} to {high:.3g} ({WHITE}th percentile), in the raw file's units"
    if volume.geometry is None:
        place = "the source states neither voxel sizes nor orientation"
    else:
        place = "voxels " + " x ".join(f"{size:.3g}" for size in volume.geometry.voxel_mm) + " mm"
        place += "" if volume.is_oriented else "; the source states no orientation"
    return [
        (f"{name}: {volume.kind}", TEXT),
        (NOTICE, ACCENT),
        (volume.title, MUTED),
        (window, MUTED),
        (place, MUTED),
    ]


def _letters(axes, volume, index):
    """Where the top and the left edge of a slice lie."""
    if not volume.is_oriented:
        return
    down, right, _ = volume.geometry.directions[index]
    for direction, (x, y) in ((-down, (0.5, 0.96)), (-right, (0.04, 0.5))):
        axes.text(x, y, letter(direction), transform=axes.transAxes, size=10, color=ACCENT, ha="center", va="center")
