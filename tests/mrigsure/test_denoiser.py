"""The denoiser works at any size, and a prior's folder keeps it."""

import json

import pytest
import torch

from mrigsure.denoiser import Denoiser, DenoiserConfig, load_prior, save_prior
from mrigsure.errors import InputError
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import PixelSpectrumSpread

CHANNELS = (8, 16)


def randomised():
    torch.manual_seed(0)
    model = Denoiser(CHANNELS)
    with torch.no_grad():  # the last layer starts at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("shape", [(16, 16), (15, 18), (9, 11)])
def test_any_size_comes_back_in_its_size(shape):
    x = complex_noise((2, *shape), generator(0))
    with torch.no_grad():
        output = randomised()(x, torch.tensor([0.1, 2.0]))
    assert output.shape == x.shape and output.dtype == torch.complex64


def test_preconditioning_returns_the_input_at_no_noise_and_forgets_it_at_much():
    model = randomised()
    x = complex_noise((1, 16, 16), generator(1))
    with torch.no_grad():
        assert (model(x, torch.tensor([1e-4])) - x).abs().max() < 1e-2
        assert model(1e4 * x, torch.tensor([1e4])).abs().max() < 20
        assert (model(x, torch.tensor([0.1])) - model(x, torch.tensor([0.5]))).abs().max() > 1e-2


def test_every_scan_has_its_own_level():
    model = randomised()
    x = complex_noise((1, 16, 16), generator(2)).expand(2, -1, -1)
    with torch.no_grad():
        both = model(x, torch.tensor([0.1, 1.0]))
        alone = model(x[:1], torch.tensor([1.0]))
    assert torch.allclose(both[1], alone[0], atol=1e-5)


def test_round_trip_through_the_prior_folder(tmp_path):
    model = randomised()
    known = {"spread": (1.0, 2.0), "jacobian": ((2.0, 0.1), (1.0, 0.2))}
    config = DenoiserConfig(channels=CHANNELS, sigma_min=0.02, sigma_max=10.0, **known)
    save_prior(tmp_path / "p", model.state_dict(), config, {"note": 1}, "# card")
    prior = load_prior(tmp_path / "p")
    assert prior.spread == PixelSpectrumSpread((1.0, 2.0), jacobian=known["jacobian"])
    assert prior.config == config and prior.record == {"note": 1} and prior.name == "p"
    x, sigma = complex_noise((1, 16, 16), generator(3)), torch.tensor([0.3])
    with torch.no_grad():
        assert torch.allclose(prior.denoise(x, sigma), model(x, sigma), atol=5e-3)
    save_prior(tmp_path / "q", prior.denoiser.state_dict(), config, {"note": 1}, "# card")
    assert load_prior(tmp_path / "q").sha256 == prior.sha256


BROKEN = {
    "network": {"channels": [8, 24]},
    "format": {"format": 99},
    "jacobian uneven": {"jacobian": [[2.0, 0.5, 0.5], [1.0, 0.5]]},
    "jacobian without variances": {"jacobian": [[2.0], [1.0]]},
    "jacobian no table": {"jacobian": [2.0, 1.0]},
    "jacobian negative": {"jacobian": [[2.0, 0.5], [1.0, -0.5]]},
    "jacobian of what is no number": {"jacobian": [[2.0, None], [1.0, 0.5]]},
    "jacobian rising": {"jacobian": [[1.0, 0.5], [2.0, 0.5]]},
}


@pytest.mark.parametrize("damage", ["missing", "truncated", *BROKEN])
def test_a_broken_prior_is_refused_with_its_folder_named(tmp_path, damage):
    folder = save_prior(tmp_path / "p", randomised().state_dict(), DenoiserConfig(channels=CHANNELS), {}, "")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | BROKEN[damage]))
    with pytest.raises(InputError, match=r"p: found .*; expected "):
        load_prior(folder)


def test_another_spread_leaves_the_network_and_the_first_prior_as_they_are():
    prior = load_prior(precision="bf16")
    before = prior.config.spread
    wider = prior.with_spread([2 * band for band in before])
    assert wider.config.spread == tuple(2 * band for band in before)
    assert prior.config.spread == before and wider.config.sigma_min == prior.config.sigma_min
    assert wider.denoiser is prior.denoiser
    assert (wider.name, wider.sha256, wider.precision) == (prior.name, prior.sha256, prior.precision)
