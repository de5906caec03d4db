"""`mrigsure train-unrolled`: train an unrolled network on undersampled scans alone (SSDU).

Each scan's sampled lines are split anew in every update, into those that the network is given, Theta, and those that
its image is judged on, Lambda (Yaman et al., Magn Reson Med 2020, equations 5 and 6):

    L = ||u - v||_2 / ||u||_2 + ||u - v||_1 / ||u||_1,      u = y on Lambda,   v = (F S f(y on Theta)) on Lambda

Lines with p = 1 stay with Theta. The same loss on held-apart files, with splits that stay the same, chooses
the weights that are kept. A killed training goes on with --resume to the same bits.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mrigsure.archive import Archive, open_archive
from mrigsure.devices import pick_device
from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.progress import Meter, say
from mrigsure.scan import Scan, ScanBatch, collate
from mrigsure.seeds import generator
from mrigsure.settings import TrainUnrolledSettings
from recon.unrolled import Unrolled, UnrolledConfig, save_unrolled

CHECKPOINT = "checkpoint.safetensors"
_FINAL_RATE = 0.05  # of the learning rate, at the last update
_CLIP = 1.0  # norm of the gradient
_MOMENTS = ("exp_avg", "exp_avg_sq")


def train_unrolled(settings: TrainUnrolledSettings) -> Path:
    """Train and return the network's folder.

    Raises InputError for unusable scans, an archive that can teach nothing, or a checkpoint of other settings.
    """
    checkpoint = Path(settings.out) / CHECKPOINT
    if checkpoint.exists() and not settings.resume:
        raise InputError(checkpoint, "another run's checkpoint", "--resume to go on with it, or another --out")
    archive = open_archive(settings.prepared, settings.validation, settings.seed)
    trainer = Trainer(settings, archive)
    if checkpoint.exists():
        trainer.load(checkpoint)
    with Meter("training", settings.steps, done=trainer.step) as meter:
        while trainer.step < settings.steps:
            loss = trainer.update()
            if trainer.step % settings.every == 0 or trainer.step == settings.steps:
                trainer.judge()
                trainer.save(checkpoint)
            meter.update(trainer.step, loss=loss, held_apart=trainer.best)
    folder = save_unrolled(settings.out, trainer.chosen(), trainer.record())
    say(f"unrolled network in {folder}, of update {trainer.best_step}: loss {trainer.best:.4f} on held-apart scans")
    return folder


def split(scans: Sequence[Scan], delta: float, rng: torch.Generator) -> tuple[ScanBatch, ScanBatch, Tensor]:
    """The scans, the scans with Theta alone, and the mask of Lambda, (batch, 1, H, W): a share `delta` of each scan's
    lines with p < 1, at least one."""
    whole, given = collate(scans), collate([scan.held_out(delta, rng) for scan in scans])
    return whole, given, whole.mask - given.mask


def ssdu_loss(image: Tensor, batch: ScanBatch, judged: Tensor) -> Tensor:
    """L of each scan, (batch,): 0 at best, 2 for an empty image."""
    found, wanted = judged * batch.operator.coil_kspace(image), judged * batch.kspace
    tiny = torch.finfo(torch.float32).tiny

    def norm(array, order):
        return array.flatten(1).abs().pow(order).sum(1).clamp_min(tiny).pow(1 / order)

    return sum(norm(wanted - found, order) / norm(wanted, order) for order in (1, 2))


class Trainer:
    """The network, its optimiser, and the best weights so far; every random number is named by the update."""

    def __init__(self, settings: TrainUnrolledSettings, archive: Archive):
        self.settings, self.archive, self.device = settings, archive, pick_device(settings.device)
        torch.manual_seed(settings.seed)  # the network's initial weights
        self.model = Unrolled(UnrolledConfig(settings.channels, settings.unrolls)).to(self.device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate)
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.best_weights = self._weights()

    def update(self) -> float:
        """One step of Adam on a batch of scans of one matrix size; its mean loss."""
        settings, rng = self.settings, generator(self.settings.seed, "update", self.step)
        scans, pool = self.archive.scans, self.archive.training
        first = pool[int(torch.randint(len(pool), (1,), generator=rng))]
        alike = [index for index in pool if scans.shapes[index] == scans.shapes[first]]
        picks = torch.randint(len(alike), (settings.batch_size,), generator=rng).tolist()
        loss = self._losses([scans[alike[pick]] for pick in picks], rng).mean()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        fall = (1 + math.cos(math.pi * self.step / settings.steps)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * fall)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def judge(self) -> None:
        """Keep the weights where the loss on held-apart scans is the lowest yet."""
        scans, total = self.archive.scans, 0.0
        with torch.no_grad():
            for index in self.archive.validation:
                total += float(self._losses([scans[index]], generator(self.settings.seed, "judged", index)))
        mean = total / len(self.archive.validation)
        if mean < self.best:
            self.best, self.best_step, self.best_weights = mean, self.step, self._weights()

    def chosen(self) -> Unrolled:
        """The network with the best weights."""
        self.model.load_state_dict(self.best_weights)
        return self.model

    def record(self) -> dict:
        """What training.json says: the settings without paths, the archive, and the loss of the weights."""
        return {
            "settings": _portable(self.settings),
            "archive": self.archive.record,
            "loss": self.best,
            "update": self.best_step,
        }

    def save(self, path: Path) -> None:
        """Write all that the training needs to go on, whole or not at all."""
        tensors = {f"weights.{key}": value for key, value in self._weights().items()}
        tensors |= {f"best.{key}": value for key, value in self.best_weights.items()}
        for name, parameter in self.model.named_parameters():
            for moment in _MOMENTS:
                tensors[f"{moment}.{name}"] = self.optimiser.state[parameter][moment].cpu().contiguous()
        state = {"step": self.step, "best": self.best, "best_step": self.best_step, "belongs": self._belongs()}
        with atomic(path) as partial:
            save_file(tensors, partial, {"state": json.dumps(state)})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; InputError for a broken one, or one of other settings or scans."""
        try:
            with safe_open(path, "pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise InputError(path, "a broken checkpoint", "one written by `mrigsure train-unrolled`") from error
        if state["belongs"] != self._belongs():
            raise InputError(path, "a run with other settings or scans", "those that it was started with")
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        self.model.load_state_dict(_under("weights.", tensors))
        self.best_weights = _under("best.", tensors)
        for name, parameter in self.model.named_parameters():
            moments = {moment: tensors[f"{moment}.{name}"].to(self.device) for moment in _MOMENTS}
            self.optimiser.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}

    def _losses(self, scans, rng):
        whole, given, judged = split(scans, self.settings.delta, rng)
        return ssdu_loss(self.model(given.to(self.device)), whole.to(self.device), judged.to(self.device))

    def _weights(self):
        contiguous = {"memory_format": torch.contiguous_format}  # safetensors wants it
        return {key: value.detach().cpu().clone(**contiguous) for key, value in self.model.state_dict().items()}

    def _belongs(self):
        return json.loads(json.dumps({"settings": _portable(self.settings), "archive": self.archive.record}))


def _portable(settings):
    """The settings that shape the result."""
    return {key: value for key, value in asdict(settings).items() if key not in ("prepared", "out", "resume", "device")}


def _under(prefix, tensors):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
