"""Random generators that depend on names, not on history: a step, a scan or a round can be redone on its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mirrored:
    """A generator whose noise `complex_noise` negates: that of the second draw of an antithetic pair."""

    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        return self.generator.device


Randomness = torch.Generator | Sequence[torch.Generator | Mirrored]
"""One generator for a whole batch, or one for each of its entries, whose numbers then depend on nothing beside it."""


def generator(seed: int, *names, device="cpu") -> torch.Generator:
    """A generator seeded by `seed` and any ints and strings, such as ("step", 120)."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def in_pairs(count: int, seed: int, *names, device="cpu") -> list[torch.Generator | Mirrored]:
    """For `count` draws, of which draw 2i + 1 has the noise of draw 2i negated; an odd number has independent draws.

    Every entry is a generator of its own, so that the draws of a pair need not be computed at once.
    """
    if count % 2:
        return [generator(seed, *names, number, device=device) for number in range(count)]
    twice = [generator(seed, *names, number - number % 2, device=device) for number in range(count)]
    return [Mirrored(one) if number % 2 else one for number, one in enumerate(twice)]


def complex_noise(shape, generator: Randomness, dtype=torch.complex64) -> Tensor:
    """Complex white Gaussian noise on the generator's device, unit variance in EACH of the real and imaginary part.

    generator  one for all; or one for every entry of the first axis
    """
    each = None if isinstance(generator, torch.Generator) else generator
    device = (generator if each is None else each[0]).device
    noise = torch.empty(*shape, 2, device=device, dtype=torch.float64 if dtype == torch.complex128 else torch.float32)
    if each is None:
        noise.normal_(generator=generator)
    else:
        for entry, one in zip(noise, each, strict=True):
            if isinstance(one, Mirrored):
                entry.normal_(generator=one.generator).neg_()
            else:
                entry.normal_(generator=one)
    return torch.view_as_complex(noise)


def some(generator: Randomness, start: int, stop: int) -> Randomness:
    """The randomness of the entries from `start` to `stop` of a batch."""
    return generator if isinstance(generator, torch.Generator) else generator[start:stop]
