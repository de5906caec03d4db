"""The U-Net starts at nothing, knows no other image of its batch, hears the noise level, and compiles to itself."""

import copy
import shutil

import pytest
import torch

from mrigsure.denoiser import Denoiser
from mrigsure.network import GroupNorm, UNet
from mrigsure.seeds import complex_noise, generator

CHANNELS = (8, 16, 16)


def trained_like(channels=CHANNELS):
    """Every weight moved, so that no layer is zero."""
    torch.manual_seed(0)
    network = UNet(channels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_the_output_is_zero_at_the_start_and_the_gradient_is_not():
    torch.manual_seed(0)
    network = UNet(CHANNELS)
    output = network(torch.randn(2, 2, 16, 24), torch.tensor([-3.0, 2.0]))
    assert output.shape == (2, 2, 16, 24) and not output.any()
    (output - 1).square().mean().backward()
    assert network.last[2].weight.grad.abs().max() > 0


def test_the_denoiser_starts_as_linear_shrinkage():
    x = complex_noise((1, 12, 10), generator(0))
    with torch.no_grad():
        output = Denoiser(CHANNELS, sigma_data=0.5)(x, torch.tensor([0.5]))
    assert torch.allclose(output, x / 2, atol=1e-6)


def test_an_image_is_denoised_alike_alone_and_beside_others():
    network = trained_like()
    images, levels = torch.randn(3, 2, 16, 16, generator=generator(1)), torch.tensor([-3.0, 0.0, 2.0])
    with torch.no_grad():
        together = network(images, levels)
        alone = torch.cat([network(image[None], level[None]) for image, level in zip(images, levels, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not [name for name, _ in network.named_buffers() if "running" in name]


def test_the_level_changes_the_output_smoothly():
    network = trained_like()
    image = torch.randn(1, 2, 16, 16, generator=generator(2)).expand(3, -1, -1, -1)
    with torch.no_grad():
        low, near, high = network(image, torch.tensor([-3.0, -3.0 + 1e-3, 2.0]))
    assert (low - near).abs().max() < 0.05 * (low - high).abs().max()


@pytest.mark.parametrize("shape", [(8, 8), (9, 15), (20, 13)])
def test_any_size_goes_through_the_denoiser_and_every_pixel_matters(shape):
    torch.manual_seed(0)
    denoiser = Denoiser(CHANNELS)
    denoiser.network.load_state_dict(trained_like().state_dict())
    x = complex_noise((1, *shape), generator(3)).requires_grad_()
    output = denoiser(x, torch.tensor([0.4]))
    assert output.shape == x.shape
    output.abs().square().sum().backward()
    assert (x.grad.abs() > 0).all()


def test_weights_and_images_are_channels_last_which_is_what_makes_it_fast():
    network = UNet((8,))
    assert network.first.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    network.first.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    network(torch.randn(1, 2, 8, 8), torch.zeros(1))
    assert seen == [True]


def test_the_norm_that_is_compiled_is_group_norm(monkeypatch):
    torch.manual_seed(0)
    plain, norm = torch.nn.GroupNorm(4, 12), GroupNorm(4, 12)
    for parameter, same in zip(plain.parameters(), norm.parameters(), strict=True):
        same.data.copy_(torch.nn.init.normal_(parameter, mean=1))
    results = []
    for module, compiling in ((plain, False), (norm, True)):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        image = (3 + torch.randn(5, 12, 6, 7, generator=generator(3))).requires_grad_(True)
        output = module(image)
        gradients = torch.autograd.grad(output.pow(3).sum(), [image, *module.parameters()])
        results.append([output, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.detach().abs().max()))


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_every_layer_learns_the_same_when_compiled_for_bfloat16():
    """With functional.interpolate all gradients but the full resolution's were 0, and trainings only looked right."""
    network, image, level = trained_like((8, 16, 16)), torch.randn(2, 2, 32, 32), torch.tensor([-2.0, 1.0])
    gradients = []
    for compiled in (False, True):
        learning = copy.deepcopy(network)
        if compiled:
            learning.compile()
        with torch.autocast("cpu", torch.bfloat16):
            output = learning(image, level)
        output.float().square().mean().backward()
        weights = {name: p for name, p in learning.named_parameters() if p.ndim > 1}  # some biases a norm takes away
        gradients.append({name: weight.grad for name, weight in weights.items()})
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() < 0.1 * gradient.norm(), name
