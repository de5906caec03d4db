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
    if not isinstance(generator, torch.Generator):
        return torch.stack([complex_noise(shape[1:], one, dtype) for one in generator])
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator, device=generator.device, dtype=real))


def some(generator: Randomness, start: int, stop: int) -> Randomness:
    """The randomness of the entries from `start` to `stop` of a batch."""
    return generator if isinstance(generator, torch.Generator) else generator[start:stop]
