"""Random generators that depend on names, not on history: a step, a scan or a round can be redone on its own."""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, *names, device="cpu") -> torch.Generator:
    """A generator seeded by `seed` and any ints and strings, such as ("step", 120)."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def complex_noise(shape, generator: torch.Generator, dtype=torch.complex64) -> Tensor:
    """Complex white Gaussian noise on the generator's device, unit variance in EACH of the real and imaginary part."""
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator, device=generator.device, dtype=real))
