"""Training on masked images: from corrupted images alone it learns what clean ones teach, the same way every time."""

import torch

from mrigsure.image_denoiser import ImageDenoiser, ImageTraining, train_clean, train_gsure
from mrigsure.kawar import VPSchedule
from mrigsure.masked_images import corrupt
from mrigsure.seeds import generator

SCHEDULE = VPSchedule()
TRAINING = ImageTraining(updates=250, learning_rate=5e-3, ema=0.95, rounds=2, draws=1)


def fresh(seed=0):
    torch.manual_seed(seed)
    return ImageDenoiser(8, SCHEDULE, width=32, blocks=1)


def pairs(count):
    """Images of two rows that repeat each other, each pixel one of two grey values."""
    row = torch.randint(2, (count, 1, 4), generator=generator(0, "pairs")).float() * 1.4 - 0.7
    return row.expand(-1, 2, -1).contiguous()


def risk(network, step=350):
    """Mean square error of denoising fresh clean images at one step."""
    x = pairs(2000)
    keep = float(SCHEDULE.alpha_bar[step])
    x_t = keep**0.5 * x + (1 - keep) ** 0.5 * torch.randn(x.shape, generator=generator(1))
    return float((network(x_t, torch.full((len(x),), step)) - x).square().mean())


def test_training_without_clean_images_comes_close_to_training_on_them():
    clean = pairs(2000)
    data = corrupt(clean, 1, 0.3, 0.2, generator(2))
    risks = {
        "untrained": risk(fresh().requires_grad_(False)),
        "clean": risk(train_clean(fresh(), clean, SCHEDULE, TRAINING, 0)),
        "gsure": risk(train_gsure(fresh(), data, SCHEDULE, TRAINING, 0)),
        "refined": risk(train_gsure(fresh(), data, SCHEDULE, TRAINING, 0, refine=True)),
    }
    gain = risks["untrained"] - risks["clean"]
    assert gain > 0.3 * risks["untrained"]
    for arm in ("gsure", "refined"):
        assert risks[arm] - risks["clean"] < 0.3 * gain, risks


def test_the_same_seed_gives_the_same_network():
    data = corrupt(pairs(64), 1, 0.3, 0.2, generator(3))
    training = ImageTraining(updates=6, rounds=2, draws=1)
    first, second, other = (train_gsure(fresh(), data, SCHEDULE, training, seed, refine=True) for seed in (4, 4, 5))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.enter.weight, other.enter.weight)
