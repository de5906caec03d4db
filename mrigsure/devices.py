"""Where the numbers are crunched."""

import torch

from mrigsure.errors import InputError


def pick_device(name: str) -> torch.device:
    """auto is the GPU where there is one. InputError where cuda is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "no CUDA device", "auto or cpu on this machine")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
