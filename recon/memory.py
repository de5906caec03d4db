"""How many draws are computed at once: as many as memory allows and as bring anything."""

import psutil
import torch

from mrigsure.scan import Scan

MOST_CPU = 8  # at 64 x 64 a draw's time no longer falls beyond 2, at 128 x 128 it grows again beyond 8
MOST_CUDA = 64
_SHARE = 0.6  # of the free memory: what is estimated here is not all
_PLANES = 40  # feature maps of the first width that a network keeps for a backward pass, as some samplers take
_IMAGES, _COIL_IMAGES = 30, 6  # complex arrays of an image's, of a k-space's size that a level holds


def draws_at_once(scan: Scan, channels: tuple[int, ...], device: torch.device, workers: int = 1) -> int:
    """The number of draws that `--batch auto` stands for, at least 1.

    channels  the network's width at each resolution
    workers   processes that share this machine's memory
    """
    if device.type == "cuda":
        free, most = torch.cuda.mem_get_info(device)[0], MOST_CUDA
    else:
        free, most = psutil.virtual_memory().available, MOST_CPU
    return int(min(max(_SHARE * free / workers // bytes_per_draw(scan, channels), 1), most))


def bytes_per_draw(scan: Scan, channels: tuple[int, ...]) -> int:
    """An upper estimate of the memory that one more draw takes at once.

    Measured at 128 x 128 with the shipped prior's 24 channels: 1,240 bytes a pixel for the default sampler with 8 coils
    and 1,680 with 32, 4,050 for DPS with 8; here 4,464 with 8 and 5,616 with 32.
    """
    height, width = scan.shape
    coils, sets = scan.kspace.shape[0], 1 if scan.sens_maps.ndim == 3 else len(scan.sens_maps)
    return height * width * (4 * _PLANES * channels[0] + 8 * sets * (_IMAGES + _COIL_IMAGES * coils))
