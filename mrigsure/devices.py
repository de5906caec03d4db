"""Where the numbers are crunched."""

import torch
from torch import Tensor

from mrigsure.errors import InputError

_FILLED = 2**23  # complex numbers of k-space that keep every unit of a large GPU busy
_BF16_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def pick_device(name: str) -> torch.device:
    """auto is the GPU where there is one. InputError where cuda is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "no CUDA device", "auto or cpu on this machine")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def readers(device) -> int:
    """How many threads make batches ready; more than one would be in a CPU's way."""
    return 1 if torch.device(device).type == "cpu" else 4


def send(tensor: Tensor, device) -> Tensor:
    """The tensor on `device`; to a GPU from locked memory, which copies at its own pace while others work."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def at_once(device, samples: int, few: int) -> int:
    """How many scans of so many `samples` (coils x H x W) to work on together: `few` on a CPU, whose caches would not
    hold more; on a GPU more, where they are small, as it waits for the next operation else."""
    return few if torch.device(device).type == "cpu" else max(few, _FILLED // samples)


def pick_precision(name: str, device: torch.device) -> str:
    """auto is bf16 where the hardware multiplies such numbers faster than others, else "no"."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = any(getattr(torch.cpu, check, bool)() for check in _BF16_CHECKS)
    return "bf16" if fast else "no"
