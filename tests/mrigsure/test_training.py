"""Training lowers a risk that it never sees, resumes to the bit, and refuses what it cannot learn from."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mrigsure
from mrigsure import losses, training
from mrigsure.archive import open_archive
from mrigsure.checkpoint import CHECKPOINT
from mrigsure.denoiser import load_prior
from mrigsure.errors import InputError, ScanWarning
from mrigsure.network import UNet
from mrigsure.operators import SenseOperator
from mrigsure.phantoms import random_scan
from mrigsure.posterior import PixelSpectrumSpread, ScalarSpread
from mrigsure.processes import start_process
from mrigsure.scan import PreparedVolume, write_prepared
from mrigsure.seeds import complex_noise, generator
from mrigsure.settings import TrainSettings
from mrigsure.training import Trainer, train
from mrigsure.validation import HeldOutFigures

SIZE = 24
NOISE = 0.04  # noise_std of the scans below


def write_scans(folder, count, coils=4, same_mask=False, pattern="random"):
    for index in range(count):
        rng = np.random.default_rng(index)
        scan = random_scan(rng, (SIZE, SIZE), coils=coils, center_fraction=0.15, pattern=pattern)
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
            target=scan.target[None].numpy(),
        )
        write_prepared(folder / f"scan_{index:03}.h5", volume)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"), 12)


@pytest.fixture(scope="module")
def full_scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("full_scans"), 4, pattern="full")


@pytest.fixture
def brief(monkeypatch):
    """Few levels for the truth-free figures, where a test is not about them."""
    monkeypatch.setattr(training, "_CALIBRATION_LEVELS", 2)
    monkeypatch.setattr(training, "_VALIDATION_LEVELS", 2)


def settings(scans, out, **changes):
    small = TrainSettings(
        prepared=[str(scans)],
        out=str(out),
        steps=2,
        rounds=1,
        round_steps=2,
        round_scans=4,
        round_levels=2,
        batch_size=2,
        channels=(8, 8),
        validation_scans=2,
        checkpoint_minutes=9.0,
        precision="no",
        device="cpu",
        threads=1,
    )
    return replace(small, **changes)


def trainer_of(chosen):
    return Trainer(chosen, open_archive(chosen.prepared, chosen.validation, chosen.seed), start_process(chosen))


def checkpoint_of(folder):
    return torch.load(Path(folder) / CHECKPOINT, weights_only=True)


def history_of(folder):
    return json.loads((Path(folder) / "training.json").read_text())["history"]


def losses_of(monkeypatch, chosen):
    """The mean loss of every update of a training."""
    curve, plain = [], Trainer._update

    def update(self, batches):
        seen = plain(self, batches)
        curve.append(float(seen[:, 1].mean()))
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update)
        train(chosen)
    return np.array(curve)


def true_risk(prior, sigma=0.3):
    """Mean squared error of denoising clean phantoms that no training drew."""
    targets = torch.stack([random_scan(np.random.default_rng(1000 + i), (SIZE, SIZE)).target for i in range(16)])
    noisy = targets + sigma * complex_noise(targets.shape, generator(0))
    return float((prior.denoise(noisy, torch.full((16,), sigma)) - targets).abs().square().mean() / 2)


@pytest.fixture(scope="module")
def learned(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "prior"
    options = dict(steps=120, rounds=0, batch_size=4, channels=(16, 16), learning_rate=4e-3, ema=0.97)
    return train(settings(scans, out, precision="bf16", **options))


def test_training_lowers_the_true_risk_that_it_never_sees(learned):
    """Against the linear shrinkage that the untrained network is."""
    untrained = 0.5**2 * 0.3**2 / (0.5**2 + 0.3**2)  # the risk of shrinkage where the image has sigma_data
    assert true_risk(load_prior(learned)) < 0.6 * untrained
    history = history_of(learned)
    assert history[-1]["residual"] < 0.7 * history[0]["residual"], "the truth-free figure falls with it"


# --- the first stage ---

FIRST_STAGES = {
    ("heldout", "solve"): math.sqrt(3),
    ("heldout", "adjoint"): math.sqrt(2),
    ("split", "solve"): math.sqrt(3),
    ("gsure", "adjoint"): 1.02,
    ("gsure", "solve"): math.sqrt(3),
    ("supervised", "solve"): 0.25,
}


def test_every_objective_and_input_learns_differently_down_to_its_lowest_level(scans, tmp_path, brief):
    digests = set()
    for (objective, kind), lowest in FIRST_STAGES.items():
        chosen = settings(scans, tmp_path / f"{objective}-{kind}", objective=objective, input=kind, steps=1, rounds=0)
        prior = load_prior(train(chosen))
        assert prior.config.sigma_min == pytest.approx(lowest * NOISE, rel=1e-4)
        digests.add(prior.sha256)
    assert len(digests) == len(FIRST_STAGES)


def test_supervised_training_without_targets_is_refused(tmp_path):
    folder = tmp_path / "scans"
    for index in range(2):
        scan = random_scan(np.random.default_rng(index), (SIZE, SIZE), coils=2)
        arrays = {"kspace": scan.kspace[None].numpy(), "sens_maps": scan.sens_maps[None].numpy()}
        plain = dict(
            mask=scan.mask[0].numpy() > 0, sampling_density=scan.density[0].numpy(), noise_std=NOISE, scale=1.0
        )
        write_prepared(folder / f"{index}.h5", PreparedVolume(**arrays, **plain))
    with pytest.raises(InputError, match="no target; expected files with the truth"):
        train(settings(folder, tmp_path / "prior", objective="supervised", rounds=0))


def test_denoised_learns_from_the_denoised_images_of_fully_sampled_scans_alone(full_scans, scans, tmp_path, brief):
    options = dict(objective="denoised", round_scans=0, keep_rounds=True)
    folder = train(settings(full_scans, tmp_path / "prior", **options))
    chosen = settings(full_scans, tmp_path / "prior")
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed)
    chains, denoiser = checkpoint_of(folder)["chains"], load_prior(folder / "round_0")
    assert sorted(chains) == archive.training
    for index, images in chains.items():
        batch = archive.scans[index].batch()
        expected = denoiser.denoise(batch.operator.adjoint(batch.kspace), 1.02 * batch.sigma0)
        assert torch.allclose(images, expected, atol=0.02 * float(expected.abs().max()))
    with pytest.raises(InputError, match=r"scan_000.h5: found \d+% of k-space sampled; expected fully sampled scans"):
        train(settings(scans, tmp_path / "other", **options))


# --- rounds ---


def test_a_gaussian_start_draws_images_that_agree_with_every_scan(scans, tmp_path, brief):
    folder = train(settings(scans, tmp_path / "prior", start="gaussian", steps=0, round_scans=0, round_samples=2))
    state = checkpoint_of(folder)
    archive = open_archive([str(scans)], 0.1, 0)
    assert sorted(state["chains"]) == archive.training
    for index, images in state["chains"].items():
        scan = archive.scans[index]
        assert images.shape == (2, SIZE, SIZE) and not torch.allclose(images[0], images[1], atol=1e-3)
        error = scan.mask * (scan.batch().operator.coil_kspace(images[:1])[0] - scan.kspace)
        noise = 2 * scan.noise_std**2 * scan.mask.sum() * len(scan.kspace)
        assert 0.5 < float(error.abs().square().sum() / noise) < 3
    assert [entry["round"] for entry in history_of(folder)] == [1], "there is no first stage to judge"
    assert load_prior(folder).config.sigma_min == pytest.approx(NOISE / 4)


def test_rounds_learn_from_crops_and_from_every_draw_of_a_scan(scans, tmp_path, brief, monkeypatch):
    shapes, plain = [], losses.denoising
    monkeypatch.setattr(losses, "denoising", lambda f, x, *rest: shapes.append(tuple(x.shape)) or plain(f, x, *rest))
    options = dict(start="gaussian", steps=0, crop=10, round_samples=3, round_steps=6)
    folder = train(settings(scans, tmp_path / "prior", **options))
    assert shapes == [(2, 10, 10)] * 6
    chosen = settings(scans, tmp_path / "prior", **options)
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed)
    chains = checkpoint_of(folder)["chains"]
    picked = torch.cat([losses.pick_batch(chosen, archive, chains, (1, step, 0)) for step in range(12)])
    numbers = {k for image in picked for draws in chains.values() for k in range(3) if torch.equal(image, draws[k])}
    assert numbers == {0, 1, 2}


def figures_of(energy, power=1.0):
    eight = (1.0,) * 8
    return HeldOutFigures(0.5, 1.0, energy, (power,) * 8, eight, eight, (9.0,) * 8, (99.0,) * 8)


def test_the_prior_of_the_best_energy_is_kept_and_patience_ends_the_rounds(scans, tmp_path, monkeypatch):
    energies = iter([0.5, 0.3, 0.4, 0.35, 0.1])
    monkeypatch.setattr(training, "calibrate_spread", lambda *_, start, **__: (start, figures_of(next(energies))))
    monkeypatch.setattr(training, "_VALIDATION_LEVELS", 2)
    folder = train(settings(scans, tmp_path / "prior", steps=1, rounds=5, patience=2, keep_rounds=True))
    assert [entry["energy"] for entry in history_of(folder) if "bands" in entry] == [0.5, 0.3, 0.4, 0.35]
    weights = [(folder / f"round_{number}" / "model.safetensors").read_bytes() for number in range(4)]
    assert (folder / "model.safetensors").read_bytes() == weights[1] and len(set(weights)) == 4
    assert load_prior(folder).record["rounds"] == 1


def test_a_collapsed_round_is_refused_and_undone_and_the_second_ends_refinement(learned, scans, tmp_path, monkeypatch):
    """The spread of the draws is made tiny, so that they lose power, and so does the prior that learns from them."""
    spreads, plain = [], training.EStep

    def step(**options):
        spreads.append(type(options["spread"]))
        return plain(**options | {"spread": ScalarSpread(1e-3)})

    monkeypatch.setattr(training, "EStep", step)
    monkeypatch.setattr(training, "_CALIBRATION_LEVELS", 6)
    options = dict(init_from=str(learned), channels=(16, 16), steps=0, rounds=4, round_steps=30, round_scans=0)
    options |= dict(learning_rate=4e-3, ema=0.9, decay=0.0, batch_size=4, validation_scans=4, validation=0.4)
    with pytest.warns(ScanWarning, match="is refused: the draws lost power in radial bands") as caught:
        folder = train(settings(scans, tmp_path / "prior", **options))
    refusals = [str(warning.message) for warning in caught if "refused" in str(warning.message)]
    assert len(refusals) == 2
    assert "round 1 " in refusals[0] and "the next one draws with a wider spread" in refusals[0]
    assert "round 2 " in refusals[1] and "refinement ends here" in refusals[1]
    assert spreads == [PixelSpectrumSpread, ScalarSpread]
    assert [entry["refused"] for entry in history_of(folder)] == [False, True, True]
    state = checkpoint_of(folder)
    assert state["chains"] == {}, "the draws are undone too"
    start = load_prior(learned).denoiser.state_dict()
    assert all(torch.equal(state["model"][key], value) for key, value in start.items())
    assert (folder / "model.safetensors").read_bytes() == (learned / "model.safetensors").read_bytes()


# --- updates ---


def test_accumulated_batches_make_the_gradient_of_their_mean(scans, tmp_path):
    trainer = trainer_of(settings(scans, tmp_path / "prior", accumulate=2))
    with torch.no_grad():  # the last layers start at 0
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(0)))
    batches = trainer._batches(0)
    common = dict(sigma_data=trainer.sigma_data, lowest_refined=0.01, device="cpu")
    both = [losses.scan_losses(trainer.settings, trainer.model, batch, name, **common)[1] for name, batch in batches]
    expected = torch.autograd.grad(torch.cat(both).mean(), list(trainer.model.parameters()))
    norm = torch.stack([g.norm() for g in expected]).norm()
    seen = trainer._update(batches)
    assert torch.allclose(seen[:, 1], torch.cat(both).detach())
    for parameter, gradient in zip(trainer.model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient / norm.clamp_min(1), atol=1e-5)


def test_bfloat16_stays_inside_the_network_and_near_float32(scans, tmp_path, brief, monkeypatch):
    """The loss curve of 12 updates within 2% of float32's; no physics under autocast; the prior is float32."""
    under = {"network": set(), "physics": set()}

    def watch(owner, name, kind):
        plain = getattr(owner, name)

        def watched(*arguments, **options):
            under[kind].add(torch.is_autocast_enabled("cpu"))
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    options = dict(steps=12, rounds=0, learning_rate=4e-3)
    exact = losses_of(monkeypatch, settings(scans, tmp_path / "exact", **options))
    watch(UNet, "forward", "network")
    for name in ("coil_kspace", "adjoint", "normal", "solve"):
        watch(SenseOperator, name, "physics")
    rough = losses_of(monkeypatch, settings(scans, tmp_path / "rough", precision="bf16", **options))
    assert under == {"network": {True}, "physics": {False}}
    assert not np.array_equal(rough, exact)
    assert np.abs(rough - exact).max() < 0.02 * exact.mean()
    under["network"].clear()
    output = load_prior(tmp_path / "rough").denoise(complex_noise((1, SIZE, SIZE), generator(0)), 0.5)
    assert under["network"] == {False} and output.dtype == torch.complex64


def test_compile_runs_the_network_through_torch_compile_and_trains_alike(scans, tmp_path, brief, monkeypatch):
    """The compiler's front end only: its back end needs a C++ compiler and a minute."""
    compiled, plain = [], torch.nn.Module.compile

    def compile_without_backend(module):
        compiled.append(type(module))
        plain(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_backend)
    exact = losses_of(monkeypatch, settings(scans, tmp_path / "exact", rounds=0))
    same = losses_of(monkeypatch, settings(scans, tmp_path / "compiled", rounds=0, compile=True))
    assert compiled == [UNet, UNet], "the network that learns and its average"
    assert np.allclose(same, exact, rtol=1e-4)
    with pytest.raises(InputError, match="--compile: found --objective gsure"):
        settings(scans, tmp_path, compile=True, objective="gsure")


# --- processes, checkpoints, TensorBoard ---

COUNT_LOSSES = """
import json, os, sys
from mrigsure import cli, training
plain, curve = training.Trainer._update, []
def update(self, batches):
    seen = plain(self, batches)
    curve.append(float(seen[:, 1].mean()))
    return seen
training.Trainer._update = update
training._CALIBRATION_LEVELS = training._VALIDATION_LEVELS = 2
status = cli.main(sys.argv[2:])
if os.environ["RANK"] == "0":
    json.dump(curve, open(sys.argv[1], "w"))
sys.exit(status)
"""


def test_two_processes_learn_as_one_with_the_doubled_batch(scans, tmp_path, python, brief, monkeypatch):
    """Two CPU processes over gloo, draws shared out and gathered: the same losses, weights and draws.

    Hutchinson's divergence, whose derivative goes through the network twice, is the hardest for distributed gradients.
    """
    options = dict(objective="gsure", steps=3, round_steps=3, round_scans=3, validation_scans=1)
    one = losses_of(monkeypatch, settings(scans, tmp_path / "one", accumulate=2, **options))
    script = tmp_path / "count.py"
    script.write_text(COUNT_LOSSES)
    words = f"train {scans} --objective gsure --steps 3 --rounds 1 --round-steps 3 --round-scans 3 --round-levels 2"
    words += " --channels 8 8 --batch-size 2 --validation-scans 1 --precision no --device cpu --threads 1 --tensorboard"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = python(*launch, script, tmp_path / "two.json", *words.split(), "--out", tmp_path / "two")
    assert run.returncode == 0, run.stderr
    two = np.array(json.loads((tmp_path / "two.json").read_text()))
    assert len(one) == 6 and np.allclose(two, one, rtol=1e-5, atol=0)
    states = [checkpoint_of(tmp_path / name) for name in ("one", "two")]
    for key, value in states[0]["model"].items():
        assert torch.allclose(states[1]["model"][key], value, atol=1e-5)
    for index, images in states[0]["chains"].items():
        assert torch.allclose(states[1]["chains"][index], images, atol=1e-3)
    assert run.stdout.count("scans to learn from") == 1 and run.stdout.count("prior in ") == 1
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


KILLED = """
import os, signal, sys
from dataclasses import replace
import test_training
from mrigsure import training

options = eval(sys.argv[1])
test_training.script_judgements(training)
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


def script_judgements(module):
    """Every kept round adds 0.1 to the first band; from 1.2 on the round has collapsed. Energy falls once."""

    def calibrate(*_, start, **__):
        bands = (start[0] + 0.1, *start[1:])
        return bands, figures_of(energy=abs(bands[0] - 1.2), power=0.5 if start[0] > 1.15 else 1.0)

    module.calibrate_spread = calibrate
    module._VALIDATION_LEVELS = 2


def test_a_killed_training_resumes_to_the_same_bits(scans, tmp_path, monkeypatch):
    """Killed without warning in the first stage, in a round that will be refused and in the one after it."""
    monkeypatch.setattr(training, "calibrate_spread", None)
    monkeypatch.setattr(training, "_VALIDATION_LEVELS", None)
    script_judgements(training)
    options = dict(rounds=5, precision="bf16", checkpoint_minutes=0.0, resume=True)
    with pytest.warns(ScanWarning, match="refused"):
        whole = train(settings(scans, tmp_path / "whole", **options))
    assert [entry.get("refused") for entry in history_of(whole) if "bands" in entry] == [False, False, True, True]
    places = [Path(mrigsure.__file__).parents[1], Path(__file__).parent]
    environment = {"PYTHONPATH": ":".join(map(str, places)), "OMP_NUM_THREADS": "1"}
    killed = settings(scans, tmp_path / "killed", **options)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, repr(vars(killed))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes()
    assert history_of(tmp_path / "killed") == history_of(whole)
    ends = [checkpoint_of(folder) for folder in (whole, tmp_path / "killed")]
    assert all(torch.equal(ends[1]["model"][key], value) for key, value in ends[0]["model"].items())
    assert all(torch.equal(ends[1]["chains"][index], images) for index, images in ends[0]["chains"].items())


def test_tensorboard_shows_losses_by_level_figures_and_samples(scans, tmp_path, brief):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    chosen = settings(scans, tmp_path / "prior", steps=40, round_steps=20, tensorboard=True)
    folder = train(chosen)
    board = events.EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = board.Tags()
    assert [point.step for point in board.Scalars("loss/all")] == [20, 40, 60]
    bands = sorted(tag for tag in tags["scalars"] if tag.startswith("loss/sigma"))
    assert 4 <= len(bands) <= 6 and any("0.01 to" in tag for tag in bands), bands
    assert [point.step for point in board.Scalars("learning rate")] == [20, 40, 60]
    judged = [entry for entry in history_of(folder) if "bands" in entry]
    residuals = {point.step: point.value for point in board.Scalars("held out/residual")}
    assert residuals[60] == pytest.approx(judged[-1]["residual"], rel=1e-3)
    assert {"held out/z2", "held out/energy", "held out power/band 4"} <= set(tags["scalars"])
    pictures = board.Images("samples")
    assert [picture.step for picture in pictures] == [40, 60]
    assert (pictures[0].height, pictures[0].width) == (SIZE, 4 * SIZE)


def test_tensorboard_that_is_not_installed_is_an_input_error(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"--tensorboard: found no tensorboard; expected pip install"):
        train(settings(scans, tmp_path / "prior", tensorboard=True))


def test_the_same_seed_gives_the_same_prior_and_another_a_different_one(scans, tmp_path, brief):
    def digest(name, seed):
        return load_prior(train(settings(scans, tmp_path / name, rounds=0, seed=seed))).sha256

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


def test_init_from_starts_where_the_other_prior_ended(scans, tmp_path, brief):
    first = train(settings(scans, tmp_path / "first", steps=2, rounds=0))
    barely = dict(steps=1, rounds=0, learning_rate=1e-12, init_from=str(first))
    second = train(settings(scans, tmp_path / "second", **barely))
    x = complex_noise((1, SIZE, SIZE), generator(1))
    assert torch.allclose(load_prior(first).denoise(x, 0.5), load_prior(second).denoise(x, 0.5), atol=1e-3)
    with pytest.raises(InputError, match=r"channels \(8, 8\); expected channels \(8, 16\)"):
        train(settings(scans, tmp_path / "third", **barely, channels=(8, 16)))


def test_what_cannot_go_on_is_refused(scans, tmp_path, brief):
    out = tmp_path / "prior"
    train(settings(scans, out, rounds=0))
    with pytest.raises(InputError, match=r"--resume to go on"):
        train(settings(scans, out, rounds=0))
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


def test_a_training_that_the_clock_stopped_can_go_on(scans, tmp_path, brief):
    out = tmp_path / "prior"
    train(settings(scans, out, steps=10_000, rounds=0, seconds=1.0))
    before = checkpoint_of(out)["position"][2]
    assert before == load_prior(out).record["updates"] > 0
    train(settings(scans, out, steps=before + 1, rounds=0, resume=True))
    assert load_prior(out).record["updates"] == before + 1
