"""ESPIRiT against BART's ecalib and sigpy: time, agreement, memory.

    python benchmarks/espirit.py [--quick] [--threads N] [--raw FOLDER]

Time and memory are of one slice of 640 x 372 x 15 coils (--quick: 320 x 192 x 15, without sigpy) and 24 x 24
calibration samples, each method in a process of its own, all with the same threads; ours as `prepare` runs it, BART as
`ecalib -m1 -c0 -r24`: in-process where bartorch is installed, else the `bart` command with the time of `bart copy` of
the same data taken off. The least of three runs counts; memory is the growth of the process during a call.
Agreement is the angle between two maps, arccos |<a, b>|, within which 99% of the body's pixels stay, at equal
calibration, kernel and threshold; on the phantom and on the fully sampled scans of --raw, ../shared/data/raw where that
is present. Prints a table; the last line holds our time over BART's. The bar is 0.5.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from data_prep.calibration import espirit, sensitivity_maps
from data_prep.readers import raw_files, read_raw
from mrigsure.fourier import center_crop, ifft2c
from mrigsure.phantoms import random_scan
from mrigsure.progress import status_table

BAR = 0.5
ANGLE_BAR = 1.0  # degrees
CALIBRATION = 24
THRESHOLD = 0.02  # of the singular values; BART's option is its square
_RUNS = 3


def ours(kspace, threads):
    torch.set_num_threads(threads)
    return sensitivity_maps(kspace[None], (CALIBRATION, CALIBRATION))[0]


def ours_at_equal_threshold(kspace, threads):
    torch.set_num_threads(threads)
    block = torch.from_numpy(np.ascontiguousarray(center_crop(kspace, (CALIBRATION, CALIBRATION))))
    return espirit(block[None], kspace.shape[1:], threshold=THRESHOLD)[0, 0].numpy()


def bart_in_process(kspace, threads, **options):
    import bartorch
    from bartorch.tools import ecalib

    bartorch.set_num_threads(threads)
    return ecalib(torch.from_numpy(kspace), maps=1, crop=0.0, calib_size=CALIBRATION, **options).numpy()


def bart_command(kspace, threads, threshold=None):
    """Maps, and the seconds they took without reading and writing, which `bart copy` of as much data tells."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "kspace", Path(folder) / "maps"
        coils, height, width = kspace.shape
        source.with_suffix(".hdr").write_text(f"# Dimensions\n1 {width} {height} {coils}\n")
        kspace.tofile(source.with_suffix(".cfl"))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        options = ["-m1", "-c0", f"-r{CALIBRATION}"] + ([] if threshold is None else [f"-t{threshold}"])

        def run(*words):
            start = time.perf_counter()
            subprocess.run(["bart", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        files = run("copy", source, Path(folder) / "copy")
        seconds = run("ecalib", *options, source, result) - files
        return np.fromfile(result.with_suffix(".cfl"), np.complex64).reshape(kspace.shape), seconds


def sigpy(kspace, threads, thresh=THRESHOLD):
    from sigpy.mri.app import EspiritCalib

    return EspiritCalib(kspace, calib_width=CALIBRATION, thresh=thresh, crop=0, show_pbar=False).run()


def measured(method, kspace, threads, runs):
    """Least seconds of a call, growth of the process in bytes during the first, maps. Runs in a process of its own."""
    method(_small(kspace), threads)  # libraries load and start their threads
    times = []
    for run in range(runs):
        if run == 0:
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present size
            before = _memory("VmRSS")
        start = time.perf_counter()
        result = method(kspace, threads)
        times.append(time.perf_counter() - start)
        if isinstance(result, tuple):
            result, times[-1] = result
        if run == 0:
            growth = _memory("VmHWM") - before
    return min(times), growth, result


def angle(ours, theirs, kspace):
    """Degrees that 99% of the body's pixels stay within."""
    images = ifft2c(torch.from_numpy(kspace)).numpy()
    magnitude = np.abs((ours.conj() * images).sum(0))  # of the coils together; noise alone stays below
    body = magnitude > 0.15 * np.percentile(magnitude, 99)
    a, b = (maps[:, body].astype(np.complex128) for maps in (ours, theirs))
    cosine = np.abs((a.conj() * b).sum(0)) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    return float(np.degrees(np.percentile(np.arccos(np.clip(cosine, 0, 1)), 99)))


def scans(options, shape):
    """Name and k-space (coils, H, W) of the phantom and of the fully sampled real scans."""
    scan = random_scan(np.random.default_rng(0), shape, coils=15, pattern="full", noise=0.05)
    yield "phantom", scan.kspace.numpy()
    if Path(options.raw).is_dir():
        for path in raw_files([options.raw]):
            kspace = read_raw(path).kspace[0]
            if kspace.shape[0] > 2 and np.any(kspace, axis=0).mean() > 0.95:
                yield path.stem, kspace / np.abs(kspace).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="320 x 192, without sigpy, under a minute")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--raw", default=Path(__file__).resolve().parents[2] / "shared" / "data" / "raw")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # of the processes to come
    shape = (320, 192) if options.quick else (640, 372)
    bart, version = _bart()
    every = list(scans(options, shape))
    kspace = every[0][1]
    methods = {"ours": ours, version: bart} | ({} if options.quick else {"sigpy": sigpy})
    seconds, rows = {}, []
    for name, method in methods.items():
        seconds[name], growth, maps = _apart(method, kspace, options.threads, 1 if method is sigpy else _RUNS)
        grown = "not measured" if method is bart_command else f"{growth / maps.nbytes:.1f} x maps"
        rows.append([name, f"{seconds[name]:.2f} s", grown])
    print(f"{kspace.shape[1]} x {kspace.shape[2]} x {kspace.shape[0]} coils, threads: {options.threads}")
    status_table(rows, ("method", "time", "memory"))
    angles = _angles(every, bart, version, options)
    rows = [[*names, f"{value:.2f}"] for *names, value in angles]
    status_table(rows, ("scan", "against", "degrees, 99% of the body"))
    worst = max(value for *_, value in angles)
    print(f"espirit_angle_deg {worst:.2f} {ANGLE_BAR} {'met' if worst < ANGLE_BAR else 'missed'}")
    ratio = seconds["ours"] / seconds[version]
    met = ratio <= BAR
    print(f"espirit_time_ratio {ratio:.3f} {BAR} {'met' if met else 'missed'}")
    return 0 if met and worst < ANGLE_BAR else 1


def _angles(every, bart, version, options):
    """(scan, other method, degrees) at equal threshold."""
    rows = []
    for name, kspace in every:
        maps = ours_at_equal_threshold(kspace, options.threads)
        theirs = bart(kspace, options.threads, threshold=THRESHOLD**2)
        rows.append((name, version, angle(maps, theirs[0] if isinstance(theirs, tuple) else theirs, kspace)))
        if not options.quick:
            rows.append((name, "sigpy", angle(maps, sigpy(kspace, options.threads), kspace)))
    return rows


def _bart():
    try:
        import bartorch as library
    except ImportError:
        found = subprocess.run(["bart", "version"], capture_output=True, text=True, check=True)
        return bart_command, f"bart {found.stdout.strip()}"
    return bart_in_process, f"bartorch {library.__version__}, BART {library.bart_version()}"


def _apart(method, *arguments):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, method, *arguments).result()


def _small(kspace):
    return np.ascontiguousarray(center_crop(kspace, (32, 32)))


def _memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    sys.exit(main())
