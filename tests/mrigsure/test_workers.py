"""The same jobs, whoever does them: values, errors and warnings come back as data."""

import os
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
import torch
from worker_jobs import job, reporting_job

from mrigsure import workers
from mrigsure.errors import InputError
from mrigsure.settings import PrepareSettings
from mrigsure.workers import attempt, crew


def settings(**options):
    return PrepareSettings(raw=[], out="", **options)


def outcomes(**options):
    with crew(settings(**options)) as run:
        found = dict(run(job, [("a.h5", number) for number in range(5)]))
    return [found[number] for number in range(5)]


def check(found):
    assert [outcome.value and outcome.value[0] for outcome in found] == [0, None, None, 3, 4]
    assert isinstance(found[1].error, InputError) and str(found[1].error) == "a.h5: found nothing; expected something"
    assert str(found[2].error) == "ZeroDivisionError: by zero" and not isinstance(found[2].error, InputError)
    assert [outcome.warnings for outcome in found] == [(), (), (), ("a.h5: odd",), ()]
    assert all(outcome.value[2] == 1 for outcome in found if outcome.value), "one thread, wherever it runs"


def test_one_worker_is_this_process_and_its_threads_come_back():
    before = torch.get_num_threads()
    found = outcomes()
    check(found)
    assert {outcome.value[1] for outcome in found if outcome.value} == {os.getpid()}
    assert torch.get_num_threads() == before


def test_local_workers_are_processes_of_their_own():
    found = outcomes(workers=2)
    check(found)
    assert os.getpid() not in {outcome.value[1] for outcome in found if outcome.value}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_jobs_report_is_heard_here(workers):
    heard = []
    with crew(settings(workers=workers)) as run:
        jobs = [("a.h5", number) for number in range(3)]
        found = dict(run(reporting_job, jobs, lambda number, share: heard.append((number, share))))
        for _ in range(100):  # Dask's events are on their way
            if len(heard) == 3:
                break
            time.sleep(0.05)
    assert [found[number].value for number in range(3)] == [0, 1, 2]
    assert sorted(heard) == [(0, 0.5), (1, 0.5), (2, 0.5)]


def test_a_worker_of_another_version_does_nothing():
    outcome = attempt(job, ("a.h5", 0), version="0.0.0")
    assert outcome.value is None and "expected version 0.0.0" in str(outcome.error)


def test_tls_files_open_a_scheduler_that_refuses_without_them(tmp_path):
    from distributed import LocalCluster
    from distributed.security import Security

    keys = Security.temporary()
    files = {}
    for name, text in (("ca", keys.tls_ca_file), ("cert", keys.tls_client_cert), ("key", keys.tls_client_key)):
        files[f"tls_{name}"] = str(tmp_path / name)
        Path(files[f"tls_{name}"]).write_text(text)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", security=keys
    ) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        check(outcomes(scheduler=cluster.scheduler_address, **files))
        with pytest.raises(InputError, match="no connection"), crew(settings(scheduler=cluster.scheduler_address)):
            pass


def test_an_address_where_nobody_answers_is_bad_input(monkeypatch):
    monkeypatch.setattr("mrigsure.workers._TIMEOUT", 1)
    with (
        pytest.raises(InputError, match="tcp://127.0.0.1:9: found no connection"),
        crew(settings(scheduler="tcp://127.0.0.1:9")),
    ):
        pass


def test_workers_without_mrigsure_are_bad_input(monkeypatch):
    """Dask itself would wait for ever for a worker that cannot read its task."""

    class Client:
        """Runs what it is given as Dask's does, on one worker: here."""

        def run(self, function, *arguments):
            return {"tcp://worker:1": cloudpickle.loads(cloudpickle.dumps(function))(*arguments)}

    workers._check_workers(Client(), "tcp://host:1")
    monkeypatch.setattr(workers, "_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="tcp://host:1: found workers without no_such_package .tcp://worker:1"):
        workers._check_workers(Client(), "tcp://host:1")


_TOUCH = """
import resource, sys, threading, torch
from mrigsure.workers import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def touch():
    for _ in range(20):
        torch.ones(4_000_000)

touch_in_thread = threading.Thread(target=touch)
touch_in_thread.start()
touch_in_thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again_by_threads_too():
    faults = [
        int(subprocess.run([sys.executable, "-c", _TOUCH, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    ]
    pages = 20 * 4 * 4_000_000 / 4096
    assert faults[1] - faults[0] > 0.5 * pages
