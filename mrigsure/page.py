"""Pages drawn in pixels: a dark figure whose places count from the top left, without pyplot's global state."""

from mrigsure.files import atomic

BACKGROUND, TEXT, MUTED, ACCENT = "#0d0f12", "#eef1f4", "#8f99a3", "#ffd166"
_DPI = 100


class Page:
    """A matplotlib figure on the Agg canvas, `width` x `height` pixels."""

    def __init__(self, width: float, height: float):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, text: str, size: float = 10, colour: str = TEXT, **options) -> None:
        """Text with its upper left corner at (x, y), unless `ha` or `va` says otherwise; further options of Text."""
        options = {"ha": "left", "va": "top", "size": size, "color": colour} | options
        self.figure.text(x / self.width, 1 - y / self.height, text, **options)

    def axes(self, x: float, y: float, width: float, height: float, colour: str = BACKGROUND):
        """Axes whose upper left corner is at (x, y), without ticks and frame."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, facecolor=colour)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def image(self, x: float, y: float, width: float, height: float, values, **options):
        """An array (H, W) that fills the box, never interpolated; options of imshow. Returns its axes."""
        axes = self.axes(x, y, width, height)
        axes.imshow(values, aspect="auto", **({"interpolation": "none"} | options))
        return axes

    def write(self, path, **metadata) -> None:
        """Write the PNG, whole or not at all; the same page gives the same bytes."""
        with atomic(path) as partial:
            self.figure.savefig(partial, dpi=_DPI, facecolor=BACKGROUND, metadata={"Software": None} | metadata)
