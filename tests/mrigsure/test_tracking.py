"""TensorBoard shows what training does; its files are read back."""

import sys

import pytest
import torch
from tiny_training import SIZE, figures_of, history_of, settings

from mrigsure.errors import InputError
from mrigsure.tracking import Tracker
from mrigsure.training import train


@pytest.fixture
def events():
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_losses_are_means_by_noise_level_since_the_last_point(tmp_path, events):
    tracker = Tracker(tmp_path, 0, lowest=0.01, highest=10.0)
    for updates in range(1, 41):
        tracker.update(updates, torch.tensor([[0.02, updates], [5.0, 100.0], [20.0, 50.0]]), rate=0.1 / updates)
    tracker.figures(40, figures_of(0.3, power=0.8))
    tracker.close()
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    low, high = sorted(tag for tag in board.Tags()["scalars"] if tag.startswith("loss/sigma"))
    assert low == "loss/sigma 0.01 to 0.032" and high == "loss/sigma 3.2 to 10"
    assert [(p.step, p.value) for p in board.Scalars(low)] == [(20, 10.5), (40, 30.5)]
    assert [(p.step, p.value) for p in board.Scalars(high)] == [(20, 75.0), (40, 75.0)], "what is beyond is not lost"
    assert [p.value for p in board.Scalars("loss/all")] == pytest.approx([160.5 / 3, 180.5 / 3])
    assert [p.value for p in board.Scalars("learning rate")] == pytest.approx([0.005, 0.0025])
    assert board.Scalars("held out/energy")[0].value == pytest.approx(0.3)
    assert board.Scalars("held out power/band 8")[0].value == pytest.approx(0.8)


def test_tensorboard_shows_losses_by_level_figures_and_samples(tiny_scans, tmp_path, brief, events):
    chosen = settings(tiny_scans, tmp_path / "prior", steps=40, round_steps=20, tensorboard=True)
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


def test_tensorboard_that_is_not_installed_is_an_input_error(tiny_scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"--tensorboard: found no tensorboard; expected pip install"):
        train(settings(tiny_scans, tmp_path / "prior", tensorboard=True))
