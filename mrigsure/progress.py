"""What a user sees while mrigsure works: lines, progress bars, the training meter and tables, on one console.

On a terminal a bar is live; elsewhere (a log file, a batch job) it becomes a plain line now and then. rich is
imported when something is first shown, because almost every module imports this one.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")
_PLAIN_WIDTH = 120  # of tables where there is no terminal to ask
_SHOW_AFTER = 2.0  # seconds: what is over sooner leaves no line behind


def say(text: str) -> None:
    """Print one line, rich markup allowed. It is never folded, so that paths stay whole."""
    _console().print(text, soft_wrap=True)


def mute() -> None:
    """Show nothing from now on: in all processes but one of those that share a training."""
    _console().quiet = True


def status_table(rows: Iterable[Sequence], columns: Sequence[str] = (), title: str | None = None) -> None:
    """Print rows of cells, rich markup allowed; without `columns` the table has no header."""
    from rich import box
    from rich.table import Table

    rows = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.show_header = bool(columns)
    for name in columns or [""] * max(map(len, rows), default=0):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` under a progress bar with the time left, or a plain line every 10 s."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    with Meter(description, total, every=10.0, keep=False) as meter:
        for done, item in enumerate(iterable, 1):
            yield item
            meter.update(done)


class Meter:
    """A progress bar that also shows figures::

        with Meter("training", total=4000) as meter:
            meter.update(12, loss=0.31, residual=1.08, rate="9.1 scans/s")

    Figures are numbers or ready text; those not given anew keep their last value, and nan is not shown. `every` is
    the number of seconds between plain lines; `keep` leaves the finished bar on the terminal; `done` was done before,
    and does not count for the time left.
    """

    def __init__(
        self, description: str, total: int | None = None, *, done: int = 0, every: float = 15.0, keep: bool = True
    ):
        self.description, self.total, self.every, self.keep = description, total, every, keep
        self.done, self._before, self.figures = done, done, {}
        self._bar, self._last = None, None  # the live bar; what the last plain line counted

    def __enter__(self) -> "Meter":
        self._start = self._printed = time.monotonic()
        if _console().is_terminal:
            self._bar = _bar(_console(), transient=not self.keep)
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.done, figures="")
        return self

    def update(self, done: int, **figures: float | str) -> None:
        """Show that `done` of `total` are done."""
        self.done = done
        self.figures.update(figures)
        if self._bar:
            self._bar.update(self._task, completed=done, figures=self._figures())
        elif time.monotonic() - self._printed >= self.every:
            self._print()

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()
        elif self._last != self.done and (self.figures or time.monotonic() - self._start >= _SHOW_AFTER):
            self._print()

    def _figures(self) -> str:
        figures = {key: v if isinstance(v, str) else f"{v:.4g}" for key, v in self.figures.items()}
        return "  ".join(f"{key} {text}" for key, text in figures.items() if text != "nan")

    def _print(self) -> None:
        now = time.monotonic()
        self._printed, self._last, elapsed = now, self.done, now - self._start
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        parts = [f"{self.description}: {count}", self._figures(), f"{_clock(elapsed)} elapsed"]
        if self.total and self._before < self.done < self.total:
            parts.append(f"{_clock(elapsed * (self.total - self.done) / (self.done - self._before))} left")
        _console().print("  ".join(filter(None, parts)), soft_wrap=True, markup=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _bar(console, transient: bool):
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("[cyan]{task.fields[figures]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("[dim]left"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


@cache
def _console():
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
