"""The same function over many jobs: here, in local worker processes, or on a Dask cluster.

A job is a tuple of paths and plain settings, never of data: workers read and write files themselves. Every job
computes on one thread, wherever it runs, so that the number of workers does not change a bit of what is written.
"""

import ctypes
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from mrigsure import __version__
from mrigsure.errors import InputError, ScanWarning
from mrigsure.progress import say

_PACKAGE = "mrigsure"
_TIMEOUT = 30  # seconds in which a scheduler must answer
_REPORT_EVERY = 1.0  # seconds between a job's reports
_KEPT_FREE = 2**30  # bytes of freed memory that a process keeps for its next arrays
_MALLOPT = {-1: _KEPT_FREE, -3: _KEPT_FREE, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD; M_ARENA_MAX: threads share
_ONE_JOB = threading.Lock()  # at a time in a process: warnings and numbers of threads are a process's


class WorkerSettings(Protocol):
    """What a subcommand's settings say about where it runs: `scheduler` wins over `workers`."""

    workers: int
    scheduler: str | None
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its value, or why there is none (an InputError, or a RuntimeError that names the bug); and
    what it warned of."""

    value: object = None
    error: Exception | None = None
    warnings: tuple[str, ...] = ()


@contextmanager
def crew(settings: WorkerSettings) -> Iterator[Callable]:
    """Workers for several rounds of jobs::

        with crew(settings) as run:
            for number, outcome in run(function, jobs):

    `run` yields the number and the Outcome of every job as it finishes, in any order; a job that fails stops no
    other. With `run(function, jobs, progress)` the function is given report=, to be called with the share of its job
    that is done, and `progress(number, share)` hears of it here. One worker is this process. The function must be
    importable by the workers, and so must mrigsure of this version. Raises InputError where no scheduler answers.
    """
    if settings.scheduler is None and settings.workers == 1:
        yield _run_here
        return
    with _client(settings) as client:
        yield lambda function, jobs, progress=None: _run_on(client, function, jobs, progress)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: torch and the libraries under NumPy. Sums come out alike whatever the machine's cores."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_freed_memory() -> bool:
    """Let malloc reuse the memory of large arrays; False where the C library is not glibc.

    By default every array of some megabytes is given back and asked for anew, and the kernel clears its pages each
    time: a third of the time of two workers, and Dask's own default gives back even more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all([mallopt(option, value) for option, value in _MALLOPT.items()])


def attempt(function: Callable, job: tuple, version: str = __version__, report: Callable | None = None) -> Outcome:
    """Do one job on one thread; everything but an interrupt becomes an Outcome."""
    if version != __version__:
        return Outcome(
            error=InputError("worker", f"mrigsure {__version__}", f"version {version}, as in the main process")
        )
    keep_freed_memory()
    with _ONE_JOB, one_thread(), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ScanWarning)
        value = error = None
        try:
            value = function(*job) if report is None else function(*job, report=report)
        except InputError as reason:
            error = reason
        except Exception as reason:  # one file must not stop an archive
            error = RuntimeError(f"{type(reason).__name__}: {reason}")
            error.__cause__ = reason
    return Outcome(value, error, tuple(dict.fromkeys(str(one.message) for one in heard)))


class _Report:
    """Tells the main process, through Dask's log of events, what share of a job is done; now and then is enough."""

    def __init__(self, topic: str, number: int):
        self.topic, self.number, self._last = topic, number, 0.0

    def __call__(self, share: float) -> None:
        from distributed import get_worker

        if time.monotonic() - self._last >= _REPORT_EVERY:
            self._last = time.monotonic()
            get_worker().log_event(self.topic, (self.number, share))


def _run_here(function, jobs: Sequence[tuple], progress=None):
    for number, job in enumerate(jobs):
        yield number, attempt(function, job, report=progress and partial(progress, number))


def _run_on(client, function, jobs: Sequence[tuple], progress=None):
    from distributed import as_completed

    topic = f"mrigsure-{uuid.uuid4()}"  # of this run alone: a scheduler may serve several
    if progress:
        client.subscribe_topic(topic, lambda event: progress(*event[1]))
    numbers = {}
    for number, job in enumerate(jobs):
        report = _Report(topic, number) if progress else None
        numbers[client.submit(attempt, function, job, __version__, report, pure=False)] = number
    for future in as_completed(list(numbers)):
        number = numbers.pop(future)
        if future.status == "finished":
            yield number, future.result()
        else:
            reason = future.exception()
            yield number, Outcome(error=RuntimeError(f"the worker was lost ({type(reason).__name__})"))
    if progress:
        client.unsubscribe_topic(topic)


@contextmanager
def _client(settings):
    import logging

    from distributed import Client, LocalCluster

    if settings.scheduler is None:
        with (
            LocalCluster(
                n_workers=settings.workers,
                threads_per_worker=1,
                memory_limit=0,  # a job's memory is bounded by its file; Dask would pause workers near a guessed share
                dashboard_address="127.0.0.1:0",
                security=True,  # keys for this run only: other users of the machine cannot send it code
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(settings.scheduler, timeout=_TIMEOUT, security=_security(settings))
    except (OSError, ValueError, TypeError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        expected = "the address of a Dask scheduler, such as tcp://host:8786, and its TLS files if it wants them"
        raise InputError(settings.scheduler, f"no connection ({found})", expected) from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            say(f"{settings.scheduler} has no workers yet; waiting for them")
        _check_workers(client, settings.scheduler)
        yield client


def _check_workers(client, scheduler):
    """InputError for workers that cannot import mrigsure: Dask would wait for ever, as they cannot read a task."""

    def there(name):  # sent by value, since it is no module's
        import importlib.util

        return importlib.util.find_spec(name) is not None

    lacking = [address for address, found in client.run(there, _PACKAGE).items() if not found]
    if lacking:
        raise InputError(
            scheduler, f"workers without {_PACKAGE} ({', '.join(sorted(lacking))})", "this version on every worker"
        )


def _security(settings):
    """TLS from the options; None leaves it to Dask's own configuration."""
    if not (settings.tls_ca or settings.tls_cert or settings.tls_key):
        return None
    from distributed.security import Security

    return Security(
        tls_ca_file=settings.tls_ca,
        tls_client_cert=settings.tls_cert,
        tls_client_key=settings.tls_key,
        require_encryption=True,
    )
