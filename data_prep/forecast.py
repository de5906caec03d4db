"""`mrigsure prepare --dry-run`: what would be done, and how long it takes, measured on one slice of the first file."""

import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.ensemble import reading_options
from data_prep.pipeline import prepare_volume
from data_prep.readers import read_middle_slice
from mrigsure.progress import say
from mrigsure.settings import PrepareSettings
from mrigsure.workers import one_thread


def forecast(raw: Sequence[Path], done: Sequence[bool], settings: PrepareSettings) -> float:
    """Say which files would be prepared, with what, and in what time; writes nothing. Returns the seconds.

    done  the files whose output is there, made with the same parameters (their bytes are not compared)
    Time goes with the bytes of the files; one thread measures, as every worker has one.
    """
    todo = [path for path, there in zip(raw, done, strict=True) if not there]
    size = sum(path.stat().st_size for path in todo)
    say(
        f"would prepare {len(todo)} of {len(raw)} files ({_bytes(size)}) in {settings.out}"
        + (f"; {len(raw) - len(todo)} are there" if len(todo) < len(raw) else "")
    )
    say(f"sampling: {_sampling(settings)}; seed {settings.seed}")
    if not todo:
        return 0.0
    first = todo[0]
    start = time.perf_counter()
    with one_thread():
        one = read_middle_slice(first, **reading_options(settings))
        volume = prepare_volume(one, settings)
    seconds_a_slice = time.perf_counter() - start
    slices = max(1, round(first.stat().st_size / one.kspace.nbytes))
    seconds = seconds_a_slice * slices * size / first.stat().st_size / settings.workers
    coils, height, width = volume.kspace.shape[1:]
    say(
        f"first file: {first.name}, {coils} coils, {height} x {width}, R {volume.mask.size / volume.mask.sum():.2f}, "
        f"noise {volume.noise_std:.3g} of a signal of 0.5; one slice takes {seconds_a_slice:.2f} s"
    )
    where = f"{settings.workers} worker{'s' * (settings.workers > 1)}"
    note = "; with --scheduler divide by its workers" if settings.scheduler else ""
    say(f"about {_duration(seconds)} with {where}{note}")
    return seconds


def _sampling(settings):
    if settings.apply_mask:
        return f"masks of {Path(settings.apply_mask).name}, on fully sampled scans"
    if settings.pattern is None:
        return "as acquired; the density is that of all files together"
    half = "" if settings.partial_fourier == 1 else f", partial Fourier {settings.partial_fourier:g}"
    return f"{settings.pattern} at R = {settings.acceleration:g}, centre {settings.center_fraction:g}{half}"


def _duration(seconds):
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(size):
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
