"""Several processes train as one."""

import json

import numpy as np
import torch
from tiny_training import checkpoint_of, losses_of, settings

from mrigsure.training import Trainer

COUNT_LOSSES = """
import json, os, sys
from mrigsure import cli, training
plain, curve = training.Trainer._update, []
def update(self, batches):
    seen = plain(self, batches)
    curve.append(float(seen[:, 1].mean()))
    return seen
training.Trainer._update = update
training.Trainer._lost_in_round = lambda *_: ()
training._NFE, training._VALIDATION_LEVELS = 3, 2
status = cli.main(sys.argv[2:])
if os.environ["RANK"] == "0":
    json.dump(curve, open(sys.argv[1], "w"))
sys.exit(status)
"""


def test_two_processes_learn_as_one_with_twice_the_batches(tiny_scans, tmp_path, python, brief, monkeypatch):
    """Two CPU processes over gloo, draws shared out and gathered: the same losses, weights and draws.

    Hutchinson's divergence, whose derivative goes through the network twice, is the hardest for distributed gradients.
    """
    monkeypatch.setattr(Trainer, "_lost_in_round", lambda *_: ())  # a refused round would leave nothing to compare
    options = dict(objective="gsure", steps=3, round_steps=3, round_scans=3, validation_scans=1, batch_size=1)
    one = losses_of(monkeypatch, settings(tiny_scans, tmp_path / "one", accumulate=4, **options))
    script = tmp_path / "count.py"
    script.write_text(COUNT_LOSSES)
    words = (
        f"train {tiny_scans} --objective gsure --steps 3 --rounds 1 --round-steps 3 --round-scans 3 --round-levels 2"
    )
    words += " --estimate-rounds 0 --channels 8 8 --batch-size 1 --accumulate 2 --validation-scans 1"
    words += " --precision no --device cpu --threads 1 --tensorboard"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = python(*launch, script, tmp_path / "two.json", *words.split(), "--out", tmp_path / "two")
    assert run.returncode == 0, run.stderr
    two = np.array(json.loads((tmp_path / "two.json").read_text()))
    assert len(one) == 6 and np.allclose(two, one, rtol=1e-5, atol=0)
    states = [checkpoint_of(tmp_path / name) for name in ("one", "two")]
    for key, value in states[0]["model"].items():
        assert torch.allclose(states[1]["model"][key], value, atol=1e-5)
    for kind in ("chains", "pairs"):
        assert len(states[0][kind]) == 3
        for index, images in states[0][kind].items():
            assert torch.allclose(states[1][kind][index], images, atol=1e-3)
    assert run.stdout.count("scans to learn from") == 1 and run.stdout.count("prior in ") == 1
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
