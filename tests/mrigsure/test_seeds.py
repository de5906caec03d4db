"""Noise of one generator, of one for every entry, and of antithetic pairs."""

import pytest
import torch

from mrigsure.seeds import Mirrored, complex_noise, generator, in_pairs, some


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_mirrored_noise_is_the_negative_time_after_time(dtype):
    rng = [generator(1), Mirrored(generator(1))]
    for size in ((3, 5), (4, 4, 2)):
        first, second = complex_noise((2, *size), rng, dtype)
        assert torch.equal(second, -first) and first.abs().max() > 0
    assert complex_noise((1, 3), rng[1:]).dtype == torch.complex64  # a mirrored one alone


def test_draws_in_pairs_are_opposite_within_and_independent_between():
    noise = complex_noise((6, 2000), in_pairs(6, 0, "scan"))
    assert torch.equal(noise[1::2], -noise[::2])
    correlation = (noise[::2] @ noise[::2].mH / 4000).abs()
    torch.testing.assert_close(correlation, torch.eye(3), rtol=0.1, atol=0.1)


def test_a_part_of_the_pairs_has_the_numbers_that_it_has_beside_all():
    whole = complex_noise((4, 7), in_pairs(4, 0))
    torch.testing.assert_close(complex_noise((2, 7), some(in_pairs(4, 0), 1, 3)), whole[1:3])
    torch.testing.assert_close(complex_noise((6, 7), in_pairs(6, 0))[:4], whole)


@pytest.mark.parametrize("count", [1, 3])
def test_an_odd_number_of_draws_is_independent(count):
    rng = in_pairs(count, 0, "scan")
    assert not any(isinstance(one, Mirrored) for one in rng)
    assert len({one.initial_seed() for one in rng}) == count
