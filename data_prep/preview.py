"""One page a volume, from the prepared file alone: a person sees at once whether preparation went well.

Top: five findings, each green, blue (good to know) or amber (look into it). Below, what they rest on: images, k-space
with its mask, coil maps and what they leave unexplained, the g-factor, density, noise. Nothing about the patient.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.quality import Quality, measure_quality
from data_prep.readers.raw import header_space
from mrigsure.masks import calibration_region, partial_fourier_share
from mrigsure.page import BACKGROUND, MUTED, TEXT, Page

_PANEL, _GOOD, _DOUBT, _LINE, _NEVER = "#15191e", "#5dd39e", "#ffb454", "#6cb6ff", "#3a2733"
_WIDTH, _MARGIN, _GAP = 1640, 40, 24  # pixels
_HEADER, _CAPTION, _PLOT = 232, 52, 300
_COLUMN = (_WIDTH - 2 * _MARGIN - 3 * _GAP) // 4
_TALLEST = 1.5  # of an image panel, height over width
_TILES = (4, 2)
_WORST_MAPS, _MOST_G = 0.05, 3.0  # unexplained energy, and 95th percentile of g, up to which all is well
_LEVELS = (0.85, 1.25)  # of the stated variance
_LEAST_SNR = 4.0
_LEAST_CENTRE = 6  # fully sampled lines, below which there is no ESPIRiT
_SIGNS = {
    "good": ("\N{BLACK CIRCLE}", "#5dd39e"),
    "note": ("\N{BLACK CIRCLE}", "#6cb6ff"),
    "doubt": ("\N{BLACK UP-POINTING TRIANGLE}", "#ffb454"),
}
_DARK = "#0b1a2b"  # k-space that was not sampled


@dataclass(frozen=True)
class Finding:
    """One statement about the preparation: as it should be, to be known, or to be looked into."""

    title: str
    text: str
    state: Literal["good", "note", "doubt"]


def preview(page, prepared) -> list[Finding]:
    """Draw the page of a prepared file as PNG, whole or not at all; returns what it says at the top."""
    quality = measure_quality(prepared)
    findings = assess(quality)
    draw_page(page, quality, findings)
    return findings


def assess(quality: Quality) -> list[Finding]:
    """The five findings: sampling, noise, coil maps, noise amplification, warnings."""
    volume = quality.volume
    rows, columns = calibration_region(volume.mask, quality.shape)
    center = f"centre {columns} lines" if rows == quality.shape[0] else f"centre {rows} x {columns}"
    reached = partial_fourier_share(volume.mask)
    half = f", partial Fourier {min(reached):.2f}" if min(reached) < 1 else ""
    full = bool(volume.mask.all())
    sampling = "fully sampled" if full else f"R {quality.acceleration:.2f}, {center}{half}"
    coils = volume.kspace.shape[1]
    maps = "one coil: no maps" if coils == 1 else f"explain {quality.explained:.1%} of the signal"
    g = quality.g[np.isfinite(quality.g)]
    middle, most = (np.nan, np.nan) if not g.size else (np.median(g), np.percentile(g, 95))
    count = len(volume.warnings)
    return [
        Finding("Sampling", sampling, "good" if full or min(rows, columns) >= _LEAST_CENTRE else "doubt"),
        _noise_finding(quality),
        Finding("Coil maps", maps, "good" if coils == 1 or quality.explained > 1 - _WORST_MAPS else "doubt"),
        Finding(
            "Noise amplification",
            f"g-factor {middle:.2f}, 95% below {most:.2f}"
            + ("" if most <= _MOST_G else "; coils alone do not unfold this mask"),
            "good" if most <= _MOST_G else "note",
        ),
        Finding("Warnings", f"{count}, at the foot of the page" if count else "none", "doubt" if count else "good"),
    ]


def _noise_finding(quality):
    """Samples without signal must have the stated level; at the rim of k-space there may be signal."""
    low, high = _LEVELS
    text = f"SNR {quality.snr:.3g}; {quality.quiet} at {quality.noise_level:.2f} of the stated variance"
    fits = low < quality.noise_level < high and quality.snr >= _LEAST_SNR
    return Finding("Noise", text, "good" if fits else "doubt")


def draw_page(page, quality: Quality, findings: list[Finding]) -> None:
    """Write the PNG."""
    height = round(_COLUMN * min(_aspect(quality), _TALLEST))
    tops = [_HEADER, _HEADER + height + _CAPTION + 44, _HEADER + 2 * (height + _CAPTION + 44)]
    foot = tops[2] + _PLOT + _CAPTION + 20
    sheet = _Sheet(foot + 18 * len(quality.volume.warnings) + _MARGIN // 2)
    _header(sheet, quality, findings)
    _images(sheet, quality, tops[0], height)
    _kspace(sheet, quality, tops[0], height)
    _coils(sheet, quality, tops[1], height)
    _unexplained(sheet, quality, tops[1], height)
    _g_factor(sheet, quality, tops[1], height)
    _density(sheet, quality, tops[2])
    _power(sheet, quality, tops[2])
    _correlation(sheet, quality, tops[2])
    _facts(sheet, quality, tops[2])
    for number, text in enumerate(quality.volume.warnings):
        sheet.text(_MARGIN, foot + 18 * number, f"\N{WARNING SIGN}  {text}", 10, _DOUBT)
    sheet.write(page)


class _Sheet(Page):
    """A page of panels in four columns."""

    def __init__(self, height):
        super().__init__(_WIDTH, height)

    def panel(self, column, top, height, title, caption="", columns=1):
        """An empty panel with its title above and its caption below."""
        x, width = _MARGIN + column * (_COLUMN + _GAP), columns * _COLUMN + (columns - 1) * _GAP
        self.text(x, top - 24, title, 12, weight="bold")
        self.text(x, top + height + 8, caption, 9.5, MUTED, linespacing=1.45)
        return self.axes(x, top, width, height, _PANEL)

    def plot(self, column, top, title, caption):
        """A panel for a curve, with room for its axes."""
        axes = self.panel(column, top, _PLOT, title, caption)
        x, width = _MARGIN + column * (_COLUMN + _GAP), _COLUMN
        inner = self.axes(x + 52, top + 16, width - 72, _PLOT - 62, _PANEL)
        inner.tick_params(colors=MUTED, labelsize=9, length=3)
        inner.grid(True, color="#ffffff", alpha=0.07, linewidth=0.8)
        axes.set_zorder(-1)
        return inner

    def scale(self, axes, image, labels):
        """A small colour scale in the lower right of a panel, with the words at its ends."""
        inner = axes.inset_axes((0.62, 0.035, 0.34, 0.018))
        inner.imshow(np.linspace(0, 1, 128)[None], cmap=image.cmap, aspect="auto")
        inner.set_axis_off()
        for place, text, side in ((0.62, labels[0], "left"), (0.96, labels[1], "right")):
            axes.text(place, 0.065, text, transform=axes.transAxes, size=8.5, color=TEXT, ha=side, va="bottom")


def _header(sheet, quality, findings):
    volume = quality.volume
    coils, height, width = volume.kspace.shape[1:]
    sheet.text(_MARGIN, 30, volume.source or "prepared scan", 19, weight="bold")
    several = f"{quality.slices} slices" if quality.slices > 1 else "1 slice"
    facts = [several, f"{coils} coil{'s' * (coils > 1)}", f"{height} x {width}", volume.acquisition]
    sheet.text(_MARGIN, 66, "   ".join(filter(None, facts)), 11.5, MUTED)
    cell = (_WIDTH - 2 * _MARGIN) / len(findings)
    for number, finding in enumerate(findings):
        x = _MARGIN + number * cell
        sign, colour = _SIGNS[finding.state]
        sheet.text(x, 106, sign, 13, colour)
        sheet.text(x + 22, 106, finding.title, 12.5, weight="bold")
        sheet.text(x + 22, 130, _folded(finding.text, 35), 10.5, TEXT, linespacing=1.4)


def _images(sheet, quality, top, height):
    """Up to three slices; where there are fewer, the middle one's phase and what it looks like before unfolding."""
    magnitudes = [(f"Slice {n + 1} of {quality.slices}", np.abs(image)) for n, image in quality.images.items()]
    white = max(float(np.percentile(magnitude, 99.7)) for _, magnitude in magnitudes)
    for column, (title, magnitude) in enumerate(magnitudes):
        caption = "SENSE, regularised by the noise; one grey window" if column == 0 else ""
        axes = sheet.panel(column, top, height, title, caption)
        _show(axes, magnitude, quality, "gray", 0, white)
    if len(magnitudes) < 3:
        axes = sheet.panel(2, top, height, "Zero-filled", "the same before unfolding, missing samples as zeros")
        _show(axes, np.abs(quality.zero_filled), quality, "gray", 0, None)
    if len(magnitudes) < 2:
        axes = sheet.panel(1, top, height, "Phase", "colour: phase; brightness: magnitude")
        image = next(iter(quality.images.values()))
        _show(axes, _phase_colours(image, white, np.ones(image.shape, bool)), quality)


def _kspace(sheet, quality, top, height):
    volume = quality.volume
    mask, density = (np.broadcast_to(part, quality.shape) for part in (volume.mask > 0, volume.sampling_density))
    energy = np.sqrt((np.abs(volume.kspace[0]) ** 2).sum(axis=0))
    floor = volume.noise_std * np.sqrt(2 * volume.kspace.shape[1])
    shade = np.log(np.maximum(energy, 0.3 * floor) / (0.3 * floor)) / np.log(max(energy.max() / (0.3 * floor), 2))
    colours = _colour_map("gray")(0.12 + 0.88 * shade)[..., :3]
    colours[~mask] = _rgb(_DARK)
    colours[density == 0] = _rgb(_NEVER)
    never = "; red-brown: never a candidate" if (density == 0).any() else ""
    caption = f"all coils, logarithmic; dark blue: not sampled{never}"
    axes = sheet.panel(3, top, height, "K-space and mask", _folded(caption, 54))
    _show(axes, colours, quality)


def _coils(sheet, quality, top, height):
    volume = quality.volume
    maps = volume.sens_maps[0, 0] if volume.sens_maps.ndim == 5 else volume.sens_maps[0]
    count = min(len(maps), _TILES[0] * _TILES[1])
    chosen = np.linspace(0, len(maps) - 1, count).round().astype(int)
    which = f"{count} of {len(maps)} coils" if count < len(maps) else f"all {count} coils" if count > 1 else "one coil"
    caption = f"{which}, middle slice. Brightness: magnitude; colour: phase; darker outside the body. Smooth is right"
    frame = sheet.panel(0, top, height, "Coil sensitivity maps", caption, columns=2)
    frame.set_facecolor(BACKGROUND)
    largest = float(np.abs(maps[chosen]).max())
    columns, gap = _TILES[0], 6
    width, tile = (2 * _COLUMN + _GAP - gap * (columns - 1)) / columns, (height - gap) / _TILES[1]
    for number, coil in enumerate(chosen):
        x, y = _MARGIN + (number % columns) * (width + gap), top + (number // columns) * (tile + gap)
        axes = sheet.axes(x, y, width, tile)
        _show(axes, _phase_colours(maps[coil], largest, quality.body), quality)
        axes.text(0.04, 0.96, str(coil + 1), transform=axes.transAxes, size=9, color=TEXT, va="top", alpha=0.8)


def _unexplained(sheet, quality, top, height):
    caption = (
        "share of the calibration signal left by a SENSE fit; bright:\nfailed maps, or a field of view that folds over"
    )
    axes = sheet.panel(2, top, height, "What the maps leave unexplained", caption)
    picture = _show(axes, np.where(quality.body, quality.unexplained, np.nan), quality, "inferno", 0, 0.2)
    sheet.scale(axes, picture, ("0", "20%"))


def _g_factor(sheet, quality, top, height):
    finite = quality.g[np.isfinite(quality.g)]
    most = float(np.clip(np.percentile(finite, 99), 2, 20)) if finite.size else 2.0
    text = f"{quality.g_how}; inside the body; logarithmic"
    axes = sheet.panel(3, top, height, "g-factor", _folded(text, 54))
    picture = _show(axes, np.log(quality.g), quality, "viridis", 0, np.log(most))
    sheet.scale(axes, picture, ("1", f"{most:.3g}"))


def _density(sheet, quality, top):
    density = quality.volume.sampling_density
    expected = f"mean {density.mean():.3f} of the matrix; this scan sampled {quality.volume.mask.mean():.3f}"
    if density.ndim == 2:
        axes = sheet.panel(0, top, _PLOT, "Sampling density p(k)", expected)
        picture = axes.imshow(density, cmap=_colour_map("viridis"), vmin=0, vmax=1, aspect="auto")
        sheet.scale(axes, picture, ("0", "1"))
        return
    axes = sheet.plot(0, top, "Sampling density p(k)", expected)
    lines = np.arange(len(density)) - len(density) // 2
    axes.fill_between(lines, density, step="mid", color=_LINE, alpha=0.25, linewidth=0)
    axes.step(lines, density, where="mid", color=_LINE, linewidth=1.4)
    sampled = lines[quality.volume.mask > 0]
    axes.vlines(sampled, -0.09, -0.03, color=TEXT, linewidth=0.5, alpha=0.7)
    _ticks(axes, (lines[0], lines[-1]), (-0.12, 1.08), "phase-encoding line", [0, 0.5, 1])


def _power(sheet, quality, top):
    caption = "mean power of k-space over the stated noise's;\nit never falls below the dashed line"
    axes = sheet.plot(1, top, "Signal and noise", caption)
    distance, power = quality.power
    axes.set_yscale("log")
    axes.plot(distance, power, color=_LINE, linewidth=1.8)
    axes.axhline(1, color=_GOOD, linestyle="--", linewidth=1.2)
    axes.text(0.03, 1.15, "noise level", transform=axes.get_yaxis_transform(), size=9, color=MUTED, va="bottom")
    _ticks(axes, (0, distance.max()), (0.5, max(power.max() * 1.6, 4)), "distance from the centre (1: the edge)")


def _correlation(sheet, quality, top):
    correlation = quality.correlation
    apart = correlation[~np.eye(len(correlation), dtype=bool)]
    strongest = f", elsewhere up to {apart.max():.2f}" if apart.size else ""
    caption = f"{quality.quiet}: covariance over the stated variance;\ndiagonal {quality.noise_level:.2f}{strongest}"
    axes = sheet.panel(2, top, _PLOT, "Noise between coils, after whitening", caption)
    axes.set_facecolor(BACKGROUND)
    side = _PLOT
    x = _MARGIN + 2 * (_COLUMN + _GAP)
    inner = sheet.axes(x, top, side, side)
    picture = inner.imshow(correlation, cmap=_colour_map("magma"), vmin=0, vmax=1, interpolation="none")
    bar = sheet.axes(x + side + 14, top, 10, side)
    bar.imshow(np.linspace(1, 0, 128)[:, None], cmap=picture.cmap, aspect="auto")
    sheet.text(x + side + 30, top, "1", 8.5)
    sheet.text(x + side + 30, top + side, "0", 8.5, va="bottom")


def _facts(sheet, quality, top):
    volume = quality.volume
    error = volume.noise.get("relative_error")
    origin = volume.noise.get("origin", "not recorded")
    rows = [
        ("source SHA-256", volume.source_sha256[:16] or "not recorded"),
        ("matrix", " x ".join(map(str, quality.shape))),
        ("pixel", _pixel_text(volume)),
        ("acceleration", f"{quality.acceleration:.3f}"),
        ("noise per real part", f"{volume.noise_std:.4g}" + (f"  (\N{PLUS-MINUS SIGN} {error:.1%})" if error else "")),
        ("noise from", origin),
        ("scale", f"{volume.scale:.5g}  (file = scale x raw)"),
        ("pattern applied", volume.parameters.get("pattern") or "none"),
        ("seed", volume.seed),
        ("patient hash", "set" if volume.patient_hash else "not set"),
    ]
    x = _MARGIN + 3 * (_COLUMN + _GAP)
    sheet.panel(3, top, _PLOT, "Facts")
    for number, (name, value) in enumerate(rows):
        y = top + 14 + number * 28
        sheet.text(x + 16, y, name, 10, MUTED)
        sheet.text(x + 164, y, _shortened(value, 30), 10)


def _show(axes, picture, quality, colours=None, low=None, high=None):
    """A picture at its true proportions, centred in the panel."""
    axes.set_facecolor(BACKGROUND)
    options = {} if colours is None else {"cmap": _colour_map(colours), "vmin": low, "vmax": high}
    smooth = "none" if picture.shape[0] * picture.shape[1] < 160**2 else "auto"
    return axes.imshow(
        picture, aspect=_aspect(quality) * picture.shape[1] / picture.shape[0], interpolation=smooth, **options
    )


def _aspect(quality):
    """Height over width of the field of view."""
    pixel = _pixel(quality.volume)
    height, width = quality.shape
    return height / width if pixel is None else height * pixel[0] / (width * pixel[1])


def _pixel(volume):
    """Height and width of a pixel in mm, from the header; None where it does not state the stored matrix."""
    space = None if volume.ismrmrd_header is None else header_space(volume.ismrmrd_header, "encodedSpace")
    if space is None or space[0][1] <= 0:
        return None
    (_, lines, _), (length, width, _) = space
    height = volume.kspace.shape[-2]
    if height != space[0][0]:  # the readout was cropped, the pixel's size kept
        length *= height / space[0][0]
    return length / height, width / lines


def _pixel_text(volume):
    pixel = _pixel(volume)
    return "not stated" if pixel is None else f"{pixel[0]:.3g} x {pixel[1]:.3g} mm"


def _phase_colours(image, largest, body):
    from matplotlib.colors import hsv_to_rgb

    value = np.clip(np.abs(image) / largest, 0, 1) ** 0.8
    value = np.where(body, value, 0.45 * value)
    hue = (np.angle(image) / (2 * np.pi)) % 1
    return hsv_to_rgb(np.stack([hue, np.full_like(value, 0.55), value], axis=-1))


def _colour_map(name):
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=BACKGROUND)


def _rgb(colour):
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def _ticks(axes, across, up, label, marks=None):
    axes.set_xlim(*across)
    axes.set_ylim(*up)
    axes.xaxis.set_major_locator(_locator())
    axes.set_xlabel(label, size=9, color=MUTED)
    if marks is not None:
        axes.set_yticks(marks)
    else:
        from matplotlib.ticker import LogLocator

        axes.yaxis.set_major_locator(LogLocator(numticks=6))


def _locator():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def _folded(text, width):
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _shortened(value, most):
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
