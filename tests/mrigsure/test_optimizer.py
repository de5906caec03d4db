"""Muon on the matrices of a network, Adam on what is left: what a step is, in any memory, and that a state goes on."""

import copy

import pytest
import torch

from mrigsure.network import UNet
from mrigsure.optimizer import MuonAdam

RATE = 1e-3


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = UNet((8, 16))
    with torch.no_grad():
        for weight in network.parameters():  # some begin at 0, and would have gradients of 0 behind them
            weight.add_(0.05 * torch.randn_like(weight))
    return network


def learn(network, optimizer, steps=1, seed=1, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        image, level = torch.randn(4, 2, 16, 16, generator=rng), torch.randn(4, generator=rng)
        network.zero_grad()
        (scale * (network(image, level) - image).square().mean()).backward()
        optimizer.step()
    return network


def moves(network, **options):
    """What one step adds to each weight."""
    after = learn(copied := copy.deepcopy(network), MuonAdam(copied, RATE), **options)
    before = network.state_dict()
    return {name: (value - before[name]).detach() for name, value in after.named_parameters()}


def cosine(one, two):
    return torch.cosine_similarity(one.flatten(), two.flatten(), dim=0).item()


def matrices(values):
    found = {name: move.flatten(1) for name, move in values.items() if move.ndim > 1}
    return {name: move for name, move in found.items() if min(move.shape) >= 8}


def test_a_matrix_moves_by_the_orthogonal_one_nearest_to_its_gradient(network):
    learned = learn(copied := copy.deepcopy(network), MuonAdam(copied, RATE))
    gradients = {name: weight.grad.flatten(1) for name, weight in learned.named_parameters() if weight.ndim > 1}
    found = matrices(moves(network))
    assert len(found) > 12
    alike = {}
    for name, move in found.items():
        left, _, right = torch.linalg.svd(gradients[name], full_matrices=False)
        if "conv" in name:  # what the level enters has no more directions than there are levels in a batch
            alike[name] = cosine(move, -left @ right)
        assert torch.linalg.matrix_norm(move, 2) < 1.5 * RATE * 0.2 * max(move.shape) ** 0.5, name
        assert move.square().mean().sqrt() < 0.25 * RATE, name  # of Adam's steps
    # in bfloat16 the weakest directions are chance
    assert min(alike.values()) > 0.6
    assert sum(alike.values()) > 0.9 * len(alike)


def test_the_gradients_scale_does_not_count(network):
    small, large = (matrices(moves(network, scale=scale)) for scale in (0.1, 1000.0))
    alike = [cosine(move, large[name]) for name, move in small.items() if "conv" in name]
    assert min(alike) > 0.8
    assert sum(alike) > 0.95 * len(alike)


def test_vectors_and_the_narrow_last_convolution_are_adams(network):
    found = moves(network)
    others = {name for name in found if name not in matrices(found)}
    assert {"last.2.weight", "last.2.bias", "first.bias", "down.0.norm1.weight"} <= others
    reference = copy.deepcopy(network)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    learn(reference, torch.optim.Adam(reference.parameters(), RATE))
    for name, value in reference.named_parameters():
        same = torch.allclose(value - before[name], found[name], atol=1e-7)
        assert same == (name in others), name


def test_memory_makes_no_difference(network):
    other = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    assert network.first.weight.stride() != other.first.weight.stride()
    others = moves(other)
    alike = [cosine(move, others[name]) for name, move in moves(network).items() if "conv" in name]
    assert min(alike) > 0.8
    assert sum(alike) > 0.95 * len(alike)


def test_it_goes_on_from_its_state_bit_for_bit(network):
    optimizer = MuonAdam(network, RATE)
    learn(network, optimizer, steps=3)
    resumed, forgetful = copy.deepcopy(network), copy.deepcopy(network)
    again = MuonAdam(resumed, RATE)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    one, two = learn(network, optimizer, steps=3, seed=5), learn(resumed, again, steps=3, seed=5)
    other = learn(forgetful, MuonAdam(forgetful, RATE), steps=3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_rate_is_both(network):
    optimizer = MuonAdam(network, RATE)
    optimizer.learning_rate = 0.0
    before = [value.clone() for value in network.parameters()]
    learn(network, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert optimizer.learning_rate == 0


def test_weights_without_a_gradient_stay(network):
    before = [value.clone() for value in network.parameters()]
    MuonAdam(network, RATE).step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
