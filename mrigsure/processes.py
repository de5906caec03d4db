"""The processes of one training: torchrun, or `accelerate launch` with several GPUs, starts one for each device.

Process r of n takes the parts r, r + n, ... of every update and every n-th batch of draws; the main one alone judges,
prints and writes. n processes with `accumulate` a thus take the updates of one process with `accumulate` a n.
"""

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from mrigsure.devices import pick_device
from mrigsure.errors import ScanWarning
from mrigsure.progress import mute
from mrigsure.settings import TrainSettings

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)  # of a process whose share of the draws is done, for the others


def start_process(settings: TrainSettings):
    """The Accelerator of this process; every process but the main one falls silent."""
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier training here may have had another precision
    accelerator = Accelerator(
        cpu=pick_device(settings.device).type == "cpu",
        mixed_precision=settings.precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    if not accelerator.is_main_process:
        mute()
        warnings.filterwarnings("ignore", category=ScanWarning)
    return accelerator


def processes_here() -> int:
    """Of this training, on this machine, as torchrun and `accelerate launch` say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def from_main(accelerator, compute: Callable[[], T]) -> T:
    """What `compute` gives in the main process, in every process."""
    if accelerator.num_processes == 1:
        return compute()
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([compute() if accelerator.is_main_process else None])[0]


def share_chains(accelerator, chains: dict[int, Tensor], drawn: list[int]) -> None:
    """Give every process the chains that the others have `drawn`: scan index -> complex64 (samples, H, W), CPU."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast, gather_object

    here = accelerator.process_index
    for owner, made in enumerate(gather_object([[(i, tuple(chains[i].shape)) for i in drawn]])):
        for index, shape in made:
            images = chains[index] if owner == here else torch.empty(shape, dtype=torch.complex64)
            sent = broadcast(torch.view_as_real(images).contiguous().to(accelerator.device), from_process=owner)
            chains[index] = torch.view_as_complex(sent.cpu())
