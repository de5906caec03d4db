"""Pictures of reconstructions: comparisons in one grey window a case, with error and uncertainty maps in one scale.

Pixels stay square and are enlarged by whole factors, never interpolated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mrigsure.page import ACCENT, MUTED, Page
from recon.metrics import body_mask, psnr, ssim

_PANEL = 300  # pixels, about the width of a panel
_GAP, _MARGIN, _CAPTION, _HEADER = 8, 28, 26, 58  # pixels
_WHITE = 99.5  # percentile of the reference that is shown white
_COLOURS = "inferno"
_TRUTH, _UNCERTAINTY = "truth", "uncertainty"  # columns that are no method


@dataclass(frozen=True)
class Case:
    """One scan with its reconstructions, all (H, W), complex or magnitude.

    title     what was scanned and how
    images    method -> image, in the order of the columns
    truth     the reference; without it no errors are shown
    std       uncertainty of one of the methods
    captions  method -> small text; PSNR and SSIM are added where there is a truth
    """

    title: str
    images: Mapping[str, np.ndarray]
    truth: np.ndarray | None = None
    std: np.ndarray | None = None
    captions: Mapping[str, str] = field(default_factory=dict)


def comparison(path, cases: Sequence[Case], *, error_gain: float = 5.0, crop: bool = True) -> None:
    """Write a dark figure: a row of images a case, under it the magnified |error| of each.

    Columns: truth where any case has one, the methods, uncertainty where any case has one. Error and uncertainty
    share one colour scale, which ends at 1 / error_gain of the image's white. `crop` cuts the air around the body.
    """
    layout = _Layout(cases, crop)
    page = Page(layout.total, layout.height)
    for column, title in enumerate(layout.columns):
        x = layout.left(column) + layout.width / 2
        page.text(x, _MARGIN, title, 12, weight="bold", ha="center", va="baseline")
    for case, box, top in zip(cases, layout.boxes, layout.tops, strict=True):
        _draw_case(page, layout, case, box, top, error_gain)
    page.write(path)


def _draw_case(page, layout, case, box, top, gain):
    top += _HEADER
    page.text(_MARGIN, top - 8, case.title, va="bottom", linespacing=1.3)
    white = float(np.percentile(_reference(case), _WHITE))
    truth = None if case.truth is None else np.abs(case.truth)
    quality = {}
    if truth is not None:
        quality = {m: psnr(np.abs(image).astype(truth.dtype), truth) for m, image in case.images.items()}
    height = layout.image_height(box)
    below = top + height + _CAPTION  # of the error row
    for column, name in enumerate(layout.columns):
        if name == _TRUTH:
            if truth is None:
                _note(page, layout, column, top, height, "acquired undersampled:\nno truth to compare with")
            else:
                layout.panel(page, column, top, box, truth, white, "gray")
                _colour_bar(page, layout, column, below, height, gain)
        elif name == _UNCERTAINTY:
            if case.std is not None:
                layout.panel(page, column, top, box, case.std, white / gain, _COLOURS)
                text = f"standard deviation, 0 to {100 / gain:.3g}% of white"
                layout.caption(page, column, top + height, text, MUTED)
        elif name in case.images:
            image = np.abs(case.images[name])
            layout.panel(page, column, top, box, image, white, "gray")
            text = case.captions.get(name, "")
            if truth is not None:
                figures = f"{quality[name]:.1f} dB   SSIM {ssim(image.astype(truth.dtype), truth):.3f}"
                text = f"{figures}   {text}" if text else figures
                layout.panel(page, column, below, box, np.abs(image - truth), white / gain, _COLOURS)
            best = bool(quality) and quality[name] == max(quality.values()) and len(quality) > 1
            layout.caption(page, column, top + height, text, ACCENT if best else MUTED)


class _Layout:
    """Where everything goes, in pixels from the top left."""

    def __init__(self, cases, crop):
        names = list(dict.fromkeys(name for case in cases for name in case.images))
        has_truth = any(case.truth is not None for case in cases)
        has_std = any(case.std is not None for case in cases)
        self.columns = [_TRUTH] * has_truth + names + [_UNCERTAINTY] * has_std
        self.boxes = [_box(case, crop) for case in cases]
        self.width = max(_zoom(box) * (box[1].stop - box[1].start) for box in self.boxes)
        self.tops, top = [], _MARGIN
        for case, box in zip(cases, self.boxes, strict=True):
            self.tops.append(top)
            rows = 1 if case.truth is None else 2
            top += _HEADER + rows * self.image_height(box) + _CAPTION
        self.height = top + _MARGIN
        self.total = 2 * _MARGIN + len(self.columns) * (self.width + _GAP) - _GAP

    def image_height(self, box):
        return _zoom(box) * (box[0].stop - box[0].start)

    def left(self, column):
        return _MARGIN + column * (self.width + _GAP)

    def panel(self, page, column, top, box, image, white, colours):
        zoom = _zoom(box)
        part = image[box]
        enlarged = np.kron(part, np.ones((zoom, zoom), part.dtype))
        height, width = enlarged.shape
        x = self.left(column) + (self.width - width) // 2
        page.image(x, top, width, height, enlarged, cmap=colours, vmin=0, vmax=white)

    def caption(self, page, column, top, text, colour):
        page.text(self.left(column) + self.width / 2, top + 7, text, 9, colour, ha="center")


def _reference(case):
    """The magnitude that sets window and crop: the truth, or the last method's image."""
    return np.abs(case.truth if case.truth is not None else next(reversed(case.images.values())))


def _box(case, crop):
    """Rows and columns of the body with a margin, or all of them."""
    reference = _reference(case)
    if not crop:
        return slice(0, reference.shape[0]), slice(0, reference.shape[1])
    from scipy.ndimage import uniform_filter

    body = body_mask(uniform_filter(reference.astype(np.float32), 5))
    box = []
    for axis, size in enumerate(reference.shape):
        inside = np.flatnonzero(body.any(axis=1 - axis))
        margin = max(3, size // 32)
        box.append(slice(max(0, inside[0] - margin), min(size, inside[-1] + 1 + margin)))
    return tuple(box)


def _zoom(box):
    return max(1, round(_PANEL / (box[1].stop - box[1].start)))


def _note(page, layout, column, top, height, text):
    x, y = layout.left(column) + layout.width / 2, top + height / 2
    page.text(x, y, text, 9, MUTED, ha="center", va="center", linespacing=1.5)


def _colour_bar(page, layout, column, top, height, gain):
    """The scale of the error and uncertainty maps, under the truth."""
    width = int(layout.width * 0.6)
    x, y = layout.left(column) + (layout.width - width) // 2, top + height // 2
    page.image(x, y, width, 12, np.linspace(0, 1, 256)[None], cmap=_COLOURS)
    page.text(x + width / 2, y - 10, f"|error| and uncertainty, x {gain:g}", 9, ha="center", va="bottom")
    for position, share in ((x, 0.0), (x + width / 2, 0.5), (x + width, 1.0)):
        label = f"{100 * share / gain:.3g}%" + (" of white" if share == 1 else "")
        page.text(position, y + 18, label, 8, MUTED, ha="center")
