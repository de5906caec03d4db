"""The E-step of refinement: posterior draws of every training scan, as persistent chains (docs/method.md, section 6).

A chain is a scan's current draw. The first round draws from sigma_max; every later round adds noise of 2 sigma_data to
the chain and draws from there with few levels. A spread below the truth's is compounded by every round, so each round
draws with an R that was calibrated on held-out lines just before (calibrate.py).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mrigsure.diffusion import sigma_schedule
from mrigsure.posterior import Denoise, Spread, draw
from mrigsure.scan import SIGMA_DATA, ScanSet, collate
from mrigsure.seeds import complex_noise, generator

RESTART_SIGMA = 2 * SIGMA_DATA
FIRST_LEVELS = 16


def update_chains(
    denoise: Denoise,
    scans: ScanSet,
    indices: Sequence[int],
    chains: dict[int, Tensor],
    *,
    spread: Spread,
    levels: int,
    sigma_max: float,
    sigma_min: float,
    seed: int,
    round_number: int,
    batch_size: int,
    device="cpu",
) -> Iterable[int]:
    """Replace the chains of the scans `indices` by new draws; yields the number of scans done after each batch.

    chains  scan index -> complex64 (H, W) on the CPU, changed in place. A scan without one starts from sigma_max.
    The draws depend on the seed, the round and the scans' order alone.
    """
    groups = {}
    for index in indices:
        groups.setdefault((scans.shapes[index], index in chains), []).append(index)
    done = 0
    for (_, has_chain), members in groups.items():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            rng = generator(seed, "chains", round_number, part[0], device=device)
            batch = collate([scans[i] for i in part]).to(device)
            state = None
            if has_chain:
                current = torch.stack([chains[i] for i in part]).to(device)
                state = current + RESTART_SIGMA * complex_noise(current.shape, rng)
            sigmas = sigma_schedule(
                levels if has_chain else max(levels, FIRST_LEVELS),
                RESTART_SIGMA if has_chain else sigma_max,
                sigma_min,
            )
            drawn = draw(denoise, batch, sigmas, spread=spread, generator=rng, start=state)
            for index, image in zip(part, drawn.cpu(), strict=True):
                chains[index] = image.clone()
            done += len(part)
            yield done
