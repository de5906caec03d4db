"""A training that is killed goes on to the same bits; a checkpoint that does not belong is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
import torch
from tiny_training import checkpoint_of, history_of, script_judgements, settings

import mrigsure
from mrigsure import training
from mrigsure.checkpoint import CHECKPOINT
from mrigsure.errors import InputError, ScanWarning
from mrigsure.training import train

KILLED = """
import os, signal, sys
import tiny_training, torch._dynamo  # Adam imports the latter, here once for all children
from mrigsure import training

options = eval(sys.argv[1])
tiny_training.script_judgements(training)
plain = training.write_checkpoint
for stop in ((0, 1), (2, 1), (3, 1)):
    child = os.fork()
    if not child:
        def write(folder, state, *rest):
            plain(folder, state, *rest)
            if tuple(state["position"][:2]) == stop:
                os.kill(os.getpid(), signal.SIGKILL)
        training.write_checkpoint = write
        training.train(training.TrainSettings(**options))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, (stop, status)
    assert not os.path.exists(os.path.join(options["out"], "model.safetensors"))
training.train(training.TrainSettings(**options))
"""


def test_a_killed_training_resumes_to_the_same_bits(tiny_scans, tmp_path, monkeypatch):
    """Killed without warning in the first stage, in a round that will be refused and in the one after it."""
    monkeypatch.setattr(training, "calibrate_spread", None)
    monkeypatch.setattr(training, "held_out_figures", None)
    script_judgements(training)
    options = dict(rounds=5, precision="bf16", checkpoint_minutes=0.0, resume=True)
    with pytest.warns(ScanWarning, match="refused"):
        whole = train(settings(tiny_scans, tmp_path / "whole", **options))
    assert [entry.get("refused") for entry in history_of(whole) if "bands" in entry] == [False, False, True, True]
    places = [Path(mrigsure.__file__).parents[1], Path(tiny_training.__file__).parent]
    environment = {"PYTHONPATH": ":".join(map(str, places)), "OMP_NUM_THREADS": "1"}
    killed = settings(tiny_scans, tmp_path / "killed", **options)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, repr(vars(killed))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes()
    assert history_of(tmp_path / "killed") == history_of(whole)
    ends = [checkpoint_of(folder) for folder in (whole, tmp_path / "killed")]
    assert all(torch.equal(ends[1]["model"][key], value) for key, value in ends[0]["model"].items())
    assert all(torch.equal(ends[1]["chains"][index], images) for index, images in ends[0]["chains"].items())


def test_what_cannot_go_on_is_refused(tiny_scans, tmp_path, brief):
    out = tmp_path / "prior"
    train(settings(tiny_scans, out, rounds=0))
    with pytest.raises(InputError, match=r"--resume to go on"):
        train(settings(tiny_scans, out, rounds=0))
    with pytest.raises(InputError, match=r"batch_size = 2; expected batch_size = 3"):
        train(settings(tiny_scans, out, resume=True, batch_size=3))
    earlier = checkpoint_of(out)
    del earlier["format"]
    torch.save(earlier, out / CHECKPOINT)
    with pytest.raises(InputError, match=r"checkpoint of format 1; expected format 5"):
        train(settings(tiny_scans, out, resume=True))
    (out / CHECKPOINT).write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"broken checkpoint"):
        train(settings(tiny_scans, out, resume=True))
    with pytest.raises(InputError, match=r"--batch-size: found 0; expected at least 1"):
        train(settings(tiny_scans, out, batch_size=0))
