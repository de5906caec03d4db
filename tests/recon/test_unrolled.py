"""The unrolled network solves what its equations say, learns from undersampled scans alone, and repeats itself."""

import json
from dataclasses import replace

import pytest
import torch

from mrigsure.cli import main
from mrigsure.errors import InputError
from mrigsure.scan import collate
from mrigsure.seeds import generator
from mrigsure.settings import ReconstructSettings, TrainUnrolledSettings
from recon import train_unrolled as training
from recon.reconstruct import reconstruct
from recon.reconstruction import read_reconstruction
from recon.train_unrolled import split, ssdu_loss, train_unrolled
from recon.unrolled import Unrolled, UnrolledConfig, _Solve, load_unrolled, save_unrolled, unrolled_image

SHAPE = (16, 24)
SMALL = UnrolledConfig(channels=(8, 8), unrolls=2)


@pytest.fixture
def scans(tmp_path, make_scan, write_scan):
    """A folder of four prepared scans, without their truth."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    for index in range(4):
        write_scan(folder / f"scan{index}.h5", make_scan(SHAPE, seed=index))
    return folder


def _settings(scans, out, **changes):
    options = {"steps": 4, "batch_size": 2, "channels": (8, 8), "unrolls": 2, "every": 2, "device": "cpu"}
    return TrainUnrolledSettings([str(scans)], str(out), **options | changes)


@pytest.mark.parametrize("pattern", ["random", "points"])
def test_the_solves_derivatives_are_those_of_finite_differences(make_scan, pattern):
    batch = make_scan((6, 4), coils=2, pattern=pattern).batch()
    batch = replace(batch, mask=batch.mask.double(), sens_maps=batch.sens_maps.to(torch.complex128))
    rng = generator(0)
    rhs = torch.randn(1, 6, 4, dtype=torch.complex128, generator=rng).requires_grad_()
    mu = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    solve = lambda a, b: _Solve.apply(a, b, batch.operator)  # noqa: E731
    assert torch.autograd.gradcheck(solve, (rhs, mu), atol=1e-4)


def test_untrained_it_is_a_chain_of_regularised_solves(make_scan):
    """The U-Net's output starts at 0, so D(x; s) = s_d^2 / (s_d^2 + s^2) x."""
    scan, model = make_scan(SHAPE), Unrolled(SMALL)
    batch = scan.batch()
    seen, mu, shrink = batch.operator.adjoint(batch.kspace), torch.tensor([0.05]), 0.25 / (0.25 + 0.01)
    x = seen
    for _ in range(2):
        x = batch.operator.solve(seen + 0.05 * shrink * x, mu)
    torch.testing.assert_close(unrolled_image(model, scan), x[0], rtol=1e-3, atol=1e-4)


def test_the_split_divides_a_scans_lines_and_leaves_the_calibration_lines_to_the_network(make_scan):
    scans = [make_scan((16, 40), seed=seed) for seed in range(4)]
    batch, given, judged = split(scans, 0.4, generator(0))
    assert torch.equal(batch.kspace, collate(scans).kspace) and torch.equal(given.mask + judged, batch.mask)
    assert not (judged * (batch.density > 0.999)).any()
    free = batch.mask * (batch.density < 0.999)
    assert float(judged.sum() / free.sum()) == pytest.approx(0.4, abs=0.05)
    assert torch.equal(given.kspace, batch.kspace * given.mask)


def test_the_loss_is_0_for_the_image_that_was_measured_and_2_for_none(make_scan):
    batch = make_scan(SHAPE, noise_std=0.0).batch()
    judged = batch.mask * (batch.density < 0.999)
    target = make_scan(SHAPE).target[None]
    assert float(ssdu_loss(target, batch, judged)) == pytest.approx(0, abs=1e-4)
    assert float(ssdu_loss(torch.zeros_like(target), batch, judged)) == pytest.approx(2, abs=1e-4)
    elsewhere = replace(batch, kspace=batch.kspace + 5 * (1 - judged))
    assert float(ssdu_loss(target, elsewhere, judged)) == pytest.approx(0, abs=1e-4), "judged on Lambda alone"


def test_training_lowers_the_loss_on_held_apart_scans(scans, tmp_path):
    train_unrolled(_settings(scans, tmp_path / "out", steps=40, every=20, learning_rate=1e-2))
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    trainer = training.Trainer(_settings(scans, tmp_path), training.open_archive([str(scans)], 0.1, 0))
    trainer.judge()
    assert record["loss"] < 0.95 * trainer.best
    assert str(tmp_path) not in json.dumps(record)


def test_a_killed_training_goes_on_to_the_same_bits(scans, tmp_path, monkeypatch):
    whole = train_unrolled(_settings(scans, tmp_path / "whole"))
    update = training.Trainer.update

    def killed(trainer):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return update(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Trainer, "update", killed)
        train_unrolled(_settings(scans, tmp_path / "killed"))
    with pytest.raises(InputError, match="--resume"):
        train_unrolled(_settings(scans, tmp_path / "killed"))
    with pytest.raises(InputError, match="other settings"):
        train_unrolled(_settings(scans, tmp_path / "killed", resume=True, seed=1))
    resumed = train_unrolled(_settings(scans, tmp_path / "killed", resume=True))
    for name in ("model.safetensors", "training.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_reconstruct_writes_the_networks_images_in_raw_units(make_scan, write_scan, tmp_path):
    scan = make_scan(SHAPE)
    folder = save_unrolled(tmp_path / "model", Unrolled(SMALL), {})
    path = write_scan(tmp_path / "scan.h5", scan, scale=4.0)
    settings = ReconstructSettings([str(path)], str(tmp_path / "out"), method="unrolled", unrolled=str(folder))
    (output,) = reconstruct(settings)
    made, model = read_reconstruction(output), load_unrolled(folder)
    torch.testing.assert_close(torch.from_numpy(made.image[0]), unrolled_image(model, scan) / 4)
    assert made.std is None and made.record["unrolled_sha256"] == model.sha256


@pytest.mark.parametrize(
    "words",
    ["--method unrolled", "--unrolled folder", "--method unrolled --unrolled folder"],
)
def test_a_missing_network_is_one_line_and_status_2(scans, tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert main(["reconstruct", str(scans), "--out", "out", *words.split()]) == 2
    assert "expected a folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_trains(scans, tmp_path):
    words = ["--steps", "1", "--channels", "8", "8", "--unrolls", "1", "--device", "cpu"]
    assert main(["train-unrolled", str(scans), "--out", str(tmp_path / "out"), *words]) == 0
    assert load_unrolled(tmp_path / "out").config == UnrolledConfig((8, 8), 1)
