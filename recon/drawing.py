"""Posterior draws of a volume's slices, several at once; no draw depends on which others are computed beside it.

Every draw has a random generator of its own, named by the seed, the file, the slice and its number. An even number of
the default sampler's draws is made in antithetic pairs (docs/uncertainty.md). Where a GPU has not enough memory for as
many at once, half as many are tried.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mrigsure.denoiser import Prior
from mrigsure.errors import InputError
from mrigsure.progress import say
from mrigsure.scan import Scan, collate
from mrigsure.seeds import generator, in_pairs
from recon.memory import draws_at_once
from recon.samplers import DEFAULT, draws


@dataclass(frozen=True)
class Drawing:
    """How a volume's slices are drawn.

    samples      draws of every slice
    nfe          network evaluations a draw
    sampler      one of `recon.samplers.SAMPLERS`
    stack_noise  "shared" gives draw k the same noise in all slices, so that neighbours differ by their data alone
    batch        draws computed at once, or "auto"
    seed, name   of the random numbers; the name is the file's, so that files differ in theirs
    workers      processes that share this machine's memory
    independent  no pairs, for whoever takes the draws' variance as that of independent ones
    """

    samples: int = 8
    nfe: int = 30
    sampler: str = DEFAULT
    stack_noise: Literal["independent", "shared"] = "independent"
    batch: int | Literal["auto"] = "auto"
    seed: int = 0
    name: str = ""
    workers: int = 1
    independent: bool = False

    @property
    def pairs(self) -> bool:
        """Whether draw 2i + 1 has the noise of draw 2i negated."""
        return self.sampler == DEFAULT and self.samples % 2 == 0 and not self.independent

    def of(
        self, scans: Sequence[Scan], prior: Prior, progress: Callable[[float], None] = lambda share: None
    ) -> Iterator[Tensor]:
        """The draws of slice after slice: complex64 (samples, H, W), in raw units, on the CPU.

        scans     of one matrix size, number of coils and noise, as the slices of a volume are
        progress  called with the share that is done
        Raises InputError where a single draw does not fit into the GPU's memory.
        """
        device = next(prior.denoiser.parameters()).device
        room = self.batch
        if room == "auto":
            room = draws_at_once(scans[0], prior.config.channels, device, self.workers)
        row, column, parts = 0, 0, []  # the slice, the first of its draws that is to be done, and those before
        while row < len(scans):
            whole = 1 if column else min(max(room // self.samples, 1), len(scans) - row)
            rows, columns = range(row, row + whole), range(column, min(column + room, self.samples))
            try:
                images = self._draw(scans, prior, device, rows, columns, progress)
            except torch.OutOfMemoryError:
                images = None  # leave the handler first: the exception holds on to the memory
            if images is None:
                room = self._halved(len(rows) * len(columns), scans[row])
                torch.cuda.empty_cache()
            elif columns.stop < self.samples:
                parts.append(images[0])
                column = columns.stop
            else:
                yield from ((torch.cat([*parts, one]) for one in images) if parts else images)
                row, column, parts = rows.stop, 0, []

    def _draw(self, scans, prior, device, rows, columns, progress):
        """(slices, draws, H, W) of a rectangle of slices and draws, in raw units."""
        part = [scans[row] for row in rows]
        done, every = rows.start * self.samples + columns.start, len(scans) * self.samples
        count = len(rows) * len(columns)
        images = draws(
            self.sampler,
            prior,
            collate(part).to(device),
            samples=len(columns),
            nfe=self.nfe,
            generator=[one for row in rows for one in self._generators(row)[columns.start : columns.stop]],
            chunk=count,
            progress=lambda now, total: progress((done + count * now / total) / every),
        ).cpu()
        progress((done + count) / every)
        return images / torch.tensor([scan.scale for scan in part])[:, None, None, None]

    def _generators(self, row):
        """Of all draws of a slice, unused."""
        names = (self.seed, "posterior", self.name, *([] if self.stack_noise == "shared" else [row]))
        if self.pairs:
            return in_pairs(self.samples, *names)
        return [generator(*names, column) for column in range(self.samples)]

    def _halved(self, tried, scan):
        if tried == 1:
            size = f"{len(scan.kspace)} coils of {scan.shape[0]} x {scan.shape[1]}"
            expected = "fewer coils (`mrigsure prepare --compress`), or --device cpu"
            raise InputError(scan.name, f"too little GPU memory for one draw of {size}", expected)
        say(f"too little GPU memory for {tried} draws at once; going on with {tried // 2}")
        return tried // 2
