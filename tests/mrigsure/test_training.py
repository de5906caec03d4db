"""Training lowers a risk that it never sees, resumes to the bit, and refuses what it cannot learn from."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mrigsure
from mrigsure.denoiser import load_prior
from mrigsure.errors import InputError
from mrigsure.phantoms import random_scan
from mrigsure.scan import PreparedVolume, write_prepared
from mrigsure.seeds import complex_noise, generator
from mrigsure.settings import TrainSettings
from mrigsure.training import CHECKPOINT, train

SIZE = 24


def write_scans(folder, count, coils=4, same_mask=False):
    for index in range(count):
        scan = random_scan(np.random.default_rng(index), (SIZE, SIZE), coils=coils, center_fraction=0.15)
        mask, kspace = scan.mask.numpy(), scan.kspace.numpy()
        if same_mask:
            mask = np.broadcast_to((np.arange(SIZE) % 2 == 0) | (np.abs(np.arange(SIZE) - SIZE // 2) < 3), (SIZE, SIZE))
            kspace = kspace * mask
        volume = PreparedVolume(
            kspace=kspace[None],
            mask=mask[0] > 0,
            sens_maps=scan.sens_maps[None].numpy(),
            sampling_density=scan.density[0].numpy(),
            noise_std=scan.noise_std,
            scale=1.0,
        )
        write_prepared(folder / f"scan_{index:03}.h5", volume)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"), 24)


def settings(scans, out, **changes):
    small = TrainSettings(
        prepared=[str(scans)],
        out=str(out),
        steps=8,
        rounds=1,
        round_steps=4,
        round_scans=4,
        round_levels=2,
        batch_size=2,
        channels=(8, 8),
        validation_scans=2,
        checkpoint_minutes=0.0,
        device="cpu",
        threads=1,
    )
    return replace(small, **changes)


def true_risk(prior, sigma=0.3):
    """Mean squared error of denoising clean phantoms that no training drew."""
    targets = torch.stack([random_scan(np.random.default_rng(1000 + i), (SIZE, SIZE)).target for i in range(16)])
    noisy = targets + sigma * complex_noise(targets.shape, generator(0))
    return float((prior.denoise(noisy, torch.full((16,), sigma)) - targets).abs().square().mean() / 2)


def test_training_lowers_the_true_risk_that_it_never_sees(scans, tmp_path):
    """Against the linear shrinkage that the untrained network is; the margin holds at every seed tried."""
    options = dict(steps=120, rounds=0, batch_size=4, channels=(16, 16), learning_rate=4e-3, ema=0.97)
    prior = load_prior(train(settings(scans, tmp_path / "prior", **options)))
    untrained = 0.5**2 * 0.3**2 / (0.5**2 + 0.3**2)  # the risk of shrinkage where the image has sigma_data
    start = load_prior(train(settings(scans, tmp_path / "start", **options | {"steps": 1})))
    assert true_risk(prior) < 0.6 * true_risk(start)
    assert true_risk(prior) < 0.6 * untrained
    history = prior.record["history"]
    assert history[-1]["residual"] < 0.7 * history[0]["residual"], "the truth-free figure falls with it"


def test_a_killed_training_resumes_to_the_same_bits(scans, tmp_path):
    """Killed without warning, once in each round; the prior has the same bytes as an undisturbed one's."""
    whole = train(settings(scans, tmp_path / "whole"))
    program = (
        "import sys; from mrigsure.settings import TrainSettings; from mrigsure.training import train;"
        f"train(TrainSettings(**{vars(settings(scans, tmp_path / 'killed', resume=True))!r}))"
    )
    environment = {"PYTHONPATH": str(Path(mrigsure.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "killed" / CHECKPOINT
    for stop_at in (3, 10):
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], env=environment)
        deadline = time.monotonic() + 100
        while updates_in(checkpoint) < stop_at and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "model.safetensors").exists(), "no prior before the end"
    resumed = train(settings(scans, tmp_path / "killed", resume=True))
    for name in ("model.safetensors", "config.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    histories = [json.loads((folder / "training.json").read_text())["history"] for folder in (resumed, whole)]
    assert histories[0] == histories[1]


def updates_in(checkpoint):
    try:
        return torch.load(checkpoint, weights_only=True)["position"][2]
    except (FileNotFoundError, RuntimeError, EOFError):
        return -1


def test_the_same_seed_gives_the_same_prior_and_another_a_different_one(scans, tmp_path):
    def digest(name, seed):
        options = dict(steps=2, rounds=0, checkpoint_minutes=9.0, seed=seed)
        return load_prior(train(settings(scans, tmp_path / name, **options))).sha256

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


def test_init_from_starts_where_the_other_prior_ended(scans, tmp_path):
    first = train(settings(scans, tmp_path / "first", steps=2, rounds=0))
    barely = dict(steps=1, rounds=0, learning_rate=1e-12, init_from=str(first))
    second = train(settings(scans, tmp_path / "second", **barely))
    x = complex_noise((1, SIZE, SIZE), generator(1))
    sigma = torch.tensor([0.5])
    assert torch.allclose(load_prior(first).denoise(x, sigma), load_prior(second).denoise(x, sigma), atol=1e-3)
    with pytest.raises(InputError, match=r"channels \(8, 8\); expected channels \(8, 16\)"):
        train(settings(scans, tmp_path / "third", **barely, channels=(8, 16)))


def test_what_cannot_go_on_is_refused(scans, tmp_path):
    out = tmp_path / "prior"
    train(settings(scans, out, steps=2, rounds=0))
    with pytest.raises(InputError, match=r"--resume to go on"):
        train(settings(scans, out, steps=2, rounds=0))
    with pytest.raises(InputError, match=r"batch_size = 2; expected batch_size = 3"):
        train(settings(scans, out, resume=True, batch_size=3))
    (out / CHECKPOINT).write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"broken checkpoint"):
        train(settings(scans, out, resume=True))
    with pytest.raises(InputError, match=r"--batch-size: found 0; expected at least 1"):
        train(settings(scans, out, batch_size=0))


def test_an_archive_that_cannot_teach_is_refused_before_any_update(tmp_path):
    folder = write_scans(tmp_path / "fixed", 3, coils=1, same_mask=True)
    with pytest.raises(InputError, match=r"k-space lines .* ever sampled"):
        train(settings(folder, tmp_path / "prior"))
    assert not (tmp_path / "prior").exists()


def test_a_training_that_the_clock_stopped_can_go_on(scans, tmp_path):
    out = tmp_path / "prior"
    train(settings(scans, out, steps=10_000, rounds=0, seconds=1.0, checkpoint_minutes=9.0))
    before = updates_in(out / CHECKPOINT)
    assert before == load_prior(out).record["updates"] > 0
    train(settings(scans, out, steps=before + 1, rounds=0, resume=True))
    assert load_prior(out).record["updates"] == before + 1
