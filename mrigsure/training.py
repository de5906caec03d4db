"""Training a prior on prepared scans: held-out split GSURE, then rounds of expectation-maximisation.

    round 0          `steps` updates of objectives.split_gsure on perturb-and-solve inputs
    round 1, 2, ...  E: new posterior draws of the training scans (refinement.py), their spread calibrated on held-out
                     lines at the end of the round before; M: `round_steps` updates of plain denoising on them

Weights and optimiser stay warm from round to round. Every update's random numbers come from (seed, round, step) alone,
so that a run that was killed goes on from its checkpoint to the very bits it would have reached.
"""

import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mrigsure
from mrigsure.archive import Archive, open_archive
from mrigsure.calibrate import NEUTRAL, calibrate_spread
from mrigsure.card import model_card
from mrigsure.denoiser import Denoiser, DenoiserConfig, load_prior, save_prior
from mrigsure.devices import pick_device
from mrigsure.diffusion import draw_sigma, lowest_solve_sigma, sigma_schedule
from mrigsure.errors import InputError, ScanWarning
from mrigsure.files import atomic
from mrigsure.objectives import denoising, split_gsure
from mrigsure.posterior import PixelSpectrumSpread, ScalarSpread
from mrigsure.progress import Meter, say
from mrigsure.refinement import update_chains
from mrigsure.scan import SIGMA_DATA, collate
from mrigsure.seeds import generator
from mrigsure.settings import TrainSettings
from mrigsure.validation import held_out_figures

CHECKPOINT = "checkpoint.pt"
_WARMUP = 100  # updates until the learning rate is reached
_VALIDATION_LEVELS = 8
_CALIBRATION_LEVELS = 12
_EARLY_FIGURES = (25, 50, 100, 200, 400)  # updates after which a newcomer wants to see something
_MAY_CHANGE = ("prepared", "out", "steps", "rounds", "seconds", "checkpoint_minutes", "resume", "device", "threads")


def train(settings: TrainSettings) -> Path:
    """Run the whole training and return the prior's folder.

    Raises InputError for unusable scans or settings, an archive that cannot teach a prior, or a checkpoint that was
    made with other settings.
    """
    _check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = Path(settings.out) / CHECKPOINT
    if checkpoint.exists() and not settings.resume:
        raise InputError(checkpoint, "another run's checkpoint", "--resume to go on with it, or another --out")
    trainer = Trainer(settings, open_archive(settings.prepared, settings.validation, settings.seed))
    if settings.resume and checkpoint.exists():
        trainer.load_checkpoint()
    return trainer.run()


class Trainer:
    """The state of a training: weights, their average, optimiser, chains, and where it stands (round, step)."""

    def __init__(self, settings: TrainSettings, archive: Archive):
        from accelerate import Accelerator

        self.settings, self.archive = settings, archive
        self.folder = Path(settings.out)
        device = pick_device(settings.device)
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=settings.precision)
        self.device = self.accelerator.device
        torch.manual_seed(settings.seed)  # the network's initial weights
        model = Denoiser(settings.channels)
        self.lowest, self.bands = lowest_solve_sigma(archive.record["noise_std"][0]), NEUTRAL
        if settings.init_from:
            start = load_prior(settings.init_from)
            if start.config.channels != tuple(settings.channels):
                raise InputError(
                    settings.init_from, f"channels {start.config.channels}", f"channels {tuple(settings.channels)}"
                )
            model.load_state_dict(start.denoiser.state_dict())
            self.lowest, self.bands = min(self.lowest, start.config.sigma_min), start.config.spread
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = AveragedModel(
            self.accelerator.unwrap_model(self.model), multi_avg_fn=_warm_average(settings.ema)
        )
        self.average.requires_grad_(False)
        self.round, self.step, self.updates = 0, 0, 0
        self.loss = 0.0  # of this round, smoothed
        self.history: list[dict] = []
        self.chains: dict[int, Tensor] = {}
        self.started = self.saved = time.monotonic()

    def run(self) -> Path:
        """Everything from the present state to the finished prior."""
        say(_summary(self.archive.record))
        while self.round <= self.settings.rounds and not self._out_of_time():
            if self.round > 0 and self.step == 0:
                self._draw_chains()
            self._updates()
            if self._out_of_time():
                self.save_checkpoint()
                break
            if self.updates:
                self._calibrate()
            self.round, self.step = self.round + 1, 0
            self.save_checkpoint()
        self._finish()
        return self.folder

    def _updates(self):
        total = self.settings.round_steps if self.round else self.settings.steps
        label = f"round {self.round}" if self.round else "split GSURE"
        with ThreadPoolExecutor(1) as reader, Meter(label, total, done=self.step) as meter:
            mark, seen = time.monotonic(), 0
            following = reader.submit(self._batch, self.step)
            while self.step < total and not self._out_of_time():
                batch, following = following.result(), reader.submit(self._batch, self.step + 1)
                loss = self._update(*batch)
                self.step, self.updates, seen = self.step + 1, self.updates + 1, seen + self.settings.batch_size
                self.loss = loss if self.step == 1 else 0.98 * self.loss + 0.02 * loss
                if self._validate_now(total):
                    self._validate()
                rate = seen / (time.monotonic() - mark)
                residual = self.history[-1]["residual"] if self.history else float("nan")
                meter.update(self.step, loss=self.loss, residual=residual, rate=f"{rate:.1f} scans/s")
                if time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes:
                    self.save_checkpoint()

    def _batch(self, step):
        """Scans of one matrix size for update `step` of this round: (indices, ScanBatch or None in an M-step)."""
        rng = generator(self.settings.seed, "batch", self.round, step)
        pool = sorted(self.chains) if self.round else self.archive.training
        first = pool[int(torch.randint(len(pool), (1,), generator=rng))]
        alike = [i for i in pool if self.archive.scans.shapes[i] == self.archive.scans.shapes[first]]
        picks = torch.randint(len(alike), (self.settings.batch_size,), generator=rng).tolist()
        indices = [alike[pick] for pick in picks]
        return indices, None if self.round else collate([self.archive.scans[i] for i in indices])

    def _update(self, indices, batch) -> float:
        rng = generator(self.settings.seed, "update", self.round, self.step)
        if self.round:
            image = _augment(torch.stack([self.chains[i] for i in indices]), rng).to(self.device)
            lowest = torch.full((len(indices),), self.lowest)
        else:
            batch = batch.to(self.device)
            lowest = lowest_solve_sigma(batch.sigma0.cpu())
        sigma = draw_sigma(lowest, self.settings.sigma_max, rng).to(self.device)
        noise = generator(self.settings.seed, "noise", self.round, self.step, device=self.device)
        if self.round:
            loss = denoising(self.model, image, sigma, noise)
        else:
            delta = _held_out_share(sigma, self.settings.delta, noise)
            loss = split_gsure(self.model, batch, sigma, delta, noise, weights=self.settings.weights)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (weight * loss).mean()
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * min(1, (self.updates + 1) / _WARMUP)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return float(loss.detach())

    def _draw_chains(self):
        pool = self.archive.training
        count = self.settings.round_scans or len(pool)
        order = torch.randperm(len(pool), generator=generator(self.settings.seed, "scans", self.round)).tolist()
        indices = sorted(pool[k] for k in order[:count])
        progress = update_chains(
            self.average.module,
            self.archive.scans,
            indices,
            self.chains,
            spread=PixelSpectrumSpread(self.bands),
            levels=self.settings.round_levels,
            sigma_max=self.settings.sigma_max,
            sigma_min=self.lowest,
            seed=self.settings.seed,
            round_number=self.round,
            batch_size=self.settings.batch_size,
            device=self.device,
        )
        with Meter(f"round {self.round}, drawing", len(indices)) as meter:
            for done in progress:
                meter.update(done)
        # once refined, the prior is defined below the data's noise; a quarter of it is as far as a draw needs to go
        self.lowest = min(self.lowest, self.archive.record["noise_std"][0] / 4)

    def _validate_now(self, total) -> bool:
        return not self.round and (self.step in _EARLY_FIGURES or self.step % max(total // 8, 1) == 0)

    @cached_property
    def _scans_for_figures(self):
        pool = self.archive.validation
        stride = max(1, len(pool) // self.settings.validation_scans)
        return [self.archive.scans[i] for i in pool[::stride][: self.settings.validation_scans]]

    def _validate(self):
        """The truth-free figures on the way, with the cheap scalar spread."""
        figures = held_out_figures(
            self.average.module,
            self._scans_for_figures,
            sigma_schedule(_VALIDATION_LEVELS, self.settings.sigma_max, self.lowest),
            spread=ScalarSpread(),
            seed=self.settings.seed,
            device=self.device,
        )
        self._record(figures, loss=float(f"{self.loss:.4g}"))

    def _calibrate(self):
        """At a round's end: calibrate the spread of the draws, which gives the figures too, and check their power."""
        self.bands, figures = calibrate_spread(
            self.average.module,
            self._scans_for_figures,
            sigma_schedule(_CALIBRATION_LEVELS, self.settings.sigma_max, self.lowest),
            seed=self.settings.seed,
            start=self.bands,
            device=self.device,
        )
        self._record(figures, bands=[round(band, 3) for band in self.bands])
        if self.round and figures.collapsed():
            warnings.warn(
                f"round {self.round}: the draws' power fell below 0.9 of the data's in radial bands "
                f"{', '.join(str(b + 1) for b in figures.collapsed())} of {len(figures.power)}; expected at least 0.9",
                ScanWarning,
                stacklevel=2,
            )

    def _record(self, figures, **more):
        self.history.append({"round": self.round, "step": self.updates, **more, **figures.as_dict()})
        power = " ".join("-" if p is None else f"{p:.2f}" for p in figures.power)
        say(
            f"  update {self.updates}: residual [bold]{figures.residual:.4f}[/bold] on held-out lines, "
            f"z\u00b2 {figures.z2:.2f}, power by band {power}"
        )

    def _finish(self):
        if not self.history or "bands" not in self.history[-1]:
            self._calibrate()
        config = DenoiserConfig(
            channels=tuple(self.settings.channels),
            sigma_min=self.lowest,
            sigma_max=self.settings.sigma_max,
            spread=tuple(round(band, 4) for band in self.bands),
        )
        training = {
            "version": mrigsure.__version__,
            "settings": _portable(self.settings),
            "archive": self.archive.record,
            "updates": self.updates,
            "rounds": min(self.round, self.settings.rounds),
            "history": self.history,
        }
        card = model_card(self.folder.name, training)
        save_prior(self.folder, self.average.module.state_dict(), config, training, card)
        last = self.history[-1]
        say(f"prior in {self.folder}: residual {last['residual']:.4f}, z\u00b2 {last['z2']:.2f} on held-out lines")

    def save_checkpoint(self):
        """Everything that `load_checkpoint` needs; tensors and plain numbers only, so that weights_only can load it."""
        state = {
            "settings": json.dumps(_portable(self.settings)),
            "archive": json.dumps(self.archive.record),
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": [self.round, self.step, self.updates],
            "figures": [self.lowest, self.loss],
            "bands": list(self.bands),
            "history": json.dumps(self.history),
            "chains": self.chains,
        }
        with atomic(self.folder / CHECKPOINT) as partial:
            torch.save(state, partial)
        self.saved = time.monotonic()

    def load_checkpoint(self):
        """Go on where `save_checkpoint` was; InputError for a broken checkpoint, or other settings or scans."""
        path = self.folder / CHECKPOINT
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            recorded = json.loads(state["settings"])
        except Exception as error:
            raise InputError(path, "a broken checkpoint", "one written by `mrigsure train`") from error
        for key, value in _portable(self.settings).items():
            if key not in _MAY_CHANGE and recorded.get(key) != value:
                raise InputError(path, f"a run with {key} = {recorded.get(key)}", f"{key} = {value} as asked for now")
        if json.loads(state["archive"]) != self.archive.record:
            raise InputError(path, "a run on other scans", "the scans that it was started with")
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.round, self.step, self.updates = state["position"]
        self.lowest, self.loss = state["figures"]
        self.bands = tuple(state["bands"])
        self.history = json.loads(state["history"])
        self.chains = {int(index): image.cpu() for index, image in state["chains"].items()}
        say(f"resumed at round {self.round}, update {self.updates}")

    def _out_of_time(self) -> bool:
        return bool(self.settings.seconds) and time.monotonic() - self.started > self.settings.seconds


def _held_out_share(sigma, most, rng):
    """delta per scan: uniform up to `most`, shrinking to 0.4 of it at low sigma (section 5)."""
    limit = most * (0.4 + 0.6 * sigma / (sigma + SIGMA_DATA))
    return limit * torch.rand(sigma.shape, generator=rng, device=sigma.device)


def _augment(image, rng):
    """A global phase, conjugation and flips for each image of the batch: none changes what is plausible."""
    phase = 2 * torch.pi * torch.rand(len(image), 1, 1, generator=rng)
    image = image * torch.polar(torch.ones_like(phase), phase)
    choice = torch.rand(len(image), 3, generator=rng) < 0.5
    out = []
    for one, (flip_rows, flip_columns, conjugate) in zip(image, choice.tolist(), strict=True):
        one = one.flip(0) if flip_rows else one
        one = one.flip(1) if flip_columns else one
        out.append(one.conj().resolve_conj() if conjugate else one)
    return torch.stack(out)


def _warm_average(decay):
    """torch's own EMA, with a decay that grows from 0 so that a short run is not an average with its start."""

    def update(averaged, current, count):
        get_ema_multi_avg_fn(min(decay, (1 + float(count)) / (10 + float(count))))(averaged, current, count)

    return update


def _check(settings):
    limits = {
        "steps": (0 if settings.init_from else 1, None), "batch_size": (1, None), "rounds": (0, None),
        "round_steps": (1, None), "round_scans": (0, None), "round_levels": (2, None), "delta": (0, 0.95),
        "ema": (0, 1), "sigma_max": (1, None), "validation": (0, 0.9), "validation_scans": (1, None),
    }  # fmt: skip
    for key, (least, most) in limits.items():
        value = getattr(settings, key)
        if value < least or (most is not None and value > most):
            upper = "" if most is None else f" and at most {most}"
            raise InputError(f"--{key.replace('_', '-')}", str(value), f"at least {least}{upper}")


def _portable(settings) -> dict:
    """The settings without paths, which say nothing on another machine."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(settings).items()
        if key not in ("prepared", "out", "init_from")
    } | {"init_from": Path(settings.init_from).name if settings.init_from else None}


def _summary(record):
    low, high = record["noise_std"]
    least, most = record["acceleration"]
    few, many = record["coils"]
    return (
        f"{record['scans']} scans to learn from, {record['validation_scans']} held apart; "
        f"R {least:.2g} to {most:.2g}, {few} to {many} coils, noise {low:.2g} to {high:.2g}; "
        f"smallest eigenvalue of E[A^H A] {record['smallest_eigenvalue']:.3g}"
    )
