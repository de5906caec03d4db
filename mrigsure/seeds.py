"""Random generators that depend on names, not on history: a step, a scan or a round can be redone on its own."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Randomness = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one for each of its entries, whose numbers then depend on nothing beside it."""


def generator(seed: int, *names, device="cpu") -> torch.Generator:
    """A generator seeded by `seed` and any ints and strings, such as ("step", 120)."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


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
            entry.normal_(generator=one)
    return torch.view_as_complex(noise)


def some(generator: Randomness, start: int, stop: int) -> Randomness:
    """The randomness of the entries from `start` to `stop` of a batch."""
    return generator if isinstance(generator, torch.Generator) else generator[start:stop]
