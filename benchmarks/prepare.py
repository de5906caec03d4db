"""Preparation end to end against the pipeline of the research codes: h5py, `bart cc`, `bart ecalib`, file by file.

    python benchmarks/prepare.py [--quick]

One simulated volume of fastMRI's size (15 slices, 15 coils, 640 x 372; --quick: 4 slices, 10 coils, 320 x 186), stored
as fastMRI stores it. Both sides read it, give maps for every slice from 24 lines, and write an .h5 file; ours also
finds edges and noise, whitens, masks and scales. One thread each, in fresh processes, imports excluded. Also: two
workers against one (where there are two cores), in seconds a volume: the difference of six volumes and two, which
leaves the start of the workers out as the imports are (give a folder in memory as TMPDIR where the disk is slower than
two workers, which write 300 MB/s); and the peak of memory, the growth over the imports, in units of the volume. Needs
`bart` on the path (Debian: apt-get install bart). Exit status 1 where a bar is missed; the last line is the speed-up.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

FULL, QUICK = (15, 15, 640, 372), (4, 10, 320, 186)  # slices, coils, H, W
SPEEDUP, WORKERS, MEMORY = 3.0, 1.7, 2.0  # the bars
FEW, MANY = 2, 6  # volumes
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def make_raw(folder: Path, size, copies: int) -> list[Path]:
    """Simulated, fully sampled volumes without compression, as fastMRI's are."""
    from mrigsure.settings import SimulateSettings
    from mrigsure.simulate import simulate

    slices, coils, height, width = size
    options = {"matrix": (height, width), "coils": (coils, coils), "pattern": ("full",), "noise": (0.05, 0.05)}
    (made,) = simulate(SimulateSettings(out=str(folder / "simulated"), volumes=1, slices=slices, **options))
    paths = [folder / "raw" / f"volume_{number}.h5" for number in range(copies)]
    paths[0].parent.mkdir()
    with h5py.File(made) as source, h5py.File(paths[0], "w") as file:
        file["kspace"], file["ismrmrd_header"] = source["kspace"][()], source["ismrmrd_header"][()]
    for path in paths[1:]:
        os.link(paths[0], path)
    return paths


def run_bart(raw: str, out: str) -> None:
    """As the research codes do it: through BART's file format, slice by slice."""
    with h5py.File(raw) as file, tempfile.TemporaryDirectory() as scratch:
        kspace = file["kspace"][()]
        maps = np.zeros(kspace.shape, np.complex64)
        names = [os.path.join(scratch, name) for name in ("kspace", "virtual", "maps")]
        for number, one in enumerate(kspace):
            _write_cfl(names[0], one.transpose(1, 2, 0)[None])
            for command in (["cc", "-p", str(len(one)), *names[:2]], ["ecalib", "-m1", "-c0", "-r24", *names[1:]]):
                subprocess.run(["bart", *command], check=True, stdout=subprocess.DEVNULL)
            maps[number] = _read_cfl(names[2])[0].transpose(2, 0, 1)
            kspace[number] = _read_cfl(names[1])[0].transpose(2, 0, 1)
    with h5py.File(out, "w") as file:
        file["kspace"], file["s_maps"] = kspace, maps


def run_ours(raw: list[str], out: str, workers: int) -> None:
    from data_prep.prepare import prepare
    from mrigsure.settings import PrepareSettings

    with h5py.File(raw[0]) as file:
        width = file["kspace"].shape[-1]
    mask = {"pattern": "random", "acceleration": 4.0, "center_fraction": 26 / width, "calibration": (24, 24)}
    prepare(PrepareSettings(raw=raw, out=out, workers=workers, **mask))


def child(kind: str, raw: list[str], out: str, workers: int) -> dict:
    """Run one side here, after its imports: seconds, and by how many bytes the process grew at its peak."""
    if kind == "ours":
        import fastmri.data.subsample  # noqa: F401

        import data_prep.prepare  # noqa: F401
    _reset_peak()
    before, start, cpu = _memory("VmRSS"), time.perf_counter(), _cpu()
    if kind == "bart":
        run_bart(raw[0], out)
    else:
        run_ours(raw, out, workers)
    return {"seconds": time.perf_counter() - start, "cpu": _cpu() - cpu, "grown": _memory("VmHWM") - before}


def measure(kind: str, raw: list[Path], out: Path, workers: int = 1) -> dict:
    """`child` in a process of its own, on one thread a process."""
    words = [sys.executable, __file__, "--child", kind, str(workers), str(out), *map(str, raw)]
    home = str(Path(__file__).resolve().parents[1])
    environment = os.environ | dict.fromkeys(_THREADS, "1") | {"PYTHONPATH": home}
    run = subprocess.run(words, env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def seconds_a_volume(raw: list[Path], out: Path, workers: int) -> float:
    """Of an archive, the workers' start left out."""
    seconds = []
    for count in (FEW, MANY):
        seconds.append(measure("ours", raw[:count], out, workers)["seconds"])
        shutil.rmtree(out)
    return (seconds[1] - seconds[0]) / (MANY - FEW)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller volume")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, workers, out, *raw = options.child
        print(json.dumps(child(kind, raw, out, int(workers))))
        return 0
    if not shutil.which("bart"):
        sys.exit("bart is not on the path (Debian: apt-get install bart)")
    from mrigsure.progress import status_table

    size = QUICK if options.quick else FULL
    volume = 8 * np.prod(size)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        raw = make_raw(folder, size, MANY)
        bart = measure("bart", raw[:1], folder / "bart.h5")
        ours = measure("ours", raw[:1], folder / "ours")
        speedup, memory = bart["seconds"] / ours["seconds"], ours["grown"] / volume
        rows = [
            ["h5py + bart cc + bart ecalib", f"{bart['seconds']:.1f} s ({bart['cpu']:.1f} s of CPU)", ""],
            ["mrigsure prepare", f"{ours['seconds']:.1f} s ({ours['cpu']:.1f} s of CPU)", ""],
            ["ratio of CPU times", f"{bart['cpu'] / ours['cpu']:.2f}", "on an idle machine that of the times"],
            [
                "peak of memory",
                f"{memory:.2f} volumes",
                "" if options.quick else _verdict(memory <= MEMORY, f"at most {MEMORY:g}"),
            ],
        ]
        met = [options.quick or memory <= MEMORY, speedup >= SPEEDUP]  # of a small volume libraries take more
        if cores > 1:
            one, two = (seconds_a_volume(raw, folder / "archive", workers) for workers in (1, 2))
            met.append(one / two >= WORKERS)
            verdict = _verdict(met[-1], f"at least {WORKERS:g}")
            rows.append(["two workers over one, a volume", f"{one:.2f} / {two:.2f} s = {one / two:.2f}", verdict])
        else:
            rows.append(["two workers over one", "not measured: one core", ""])
    slices, coils, height, width = size
    status_table(rows, ("", "", ""), title=f"{slices} slices, {coils} coils, {height} x {width}; one thread")
    print(f"prepare_speedup {speedup:.2f} {SPEEDUP:.1f} {'met' if speedup >= SPEEDUP else 'missed'}")
    return 0 if all(met) else 1


def _verdict(met, bar):
    return f"{bar}: {'met' if met else 'missed'}"


def _cpu():
    """Seconds of CPU of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _memory(name):
    """VmRSS, resident memory, or VmHWM, its highest since `_reset_peak`, of this process, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def _write_cfl(name, array):
    Path(f"{name}.hdr").write_text(f"# Dimensions\n{' '.join(map(str, array.shape))}\n")
    array.astype(np.complex64).ravel(order="F").tofile(f"{name}.cfl")


def _read_cfl(name):
    shape = [int(word) for word in Path(f"{name}.hdr").read_text().splitlines()[1].split()]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    return np.fromfile(f"{name}.cfl", np.complex64).reshape(shape, order="F")


if __name__ == "__main__":
    sys.exit(main())
