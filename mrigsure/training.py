"""Training a prior on prepared scans: a first stage, then rounds of expectation-maximisation.

    round 0          `steps` updates of an objective of objectives.py; held-out split GSURE on perturb-and-solve inputs
                     unless asked otherwise
    round 1, 2, ...  E: new posterior draws of the training scans (refinement.py), their spread calibrated on held-out
                     lines at the end of the round before; M: `round_steps` updates of plain denoising on them

Weights and optimiser stay warm from round to round. Every round is judged without truth on held-out lines of held-apart
scans: one whose draws lose power is refused and undone, and the prior that is saved is the one of the best energy score.
Every update's random numbers come from (seed, round, step) alone, so that a run that was killed goes on from its
checkpoint to the very bits it would have reached.
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
from mrigsure.archive import Archive, measured_sigma_data, open_archive
from mrigsure.calibrate import NEUTRAL, calibrate_spread
from mrigsure.card import model_card
from mrigsure.denoiser import Denoiser, DenoiserConfig, load_prior, save_prior
from mrigsure.devices import pick_device
from mrigsure.diffusion import diffuse_adjoint, draw_sigma, lowest_solve_sigma, perturb_and_solve, sigma_schedule
from mrigsure.errors import InputError, ScanWarning
from mrigsure.files import atomic
from mrigsure.gaussian import fit_gaussian
from mrigsure.objectives import denoising, gsure, split_gsure
from mrigsure.posterior import PixelSpectrumSpread, ScalarSpread
from mrigsure.progress import Meter, say
from mrigsure.refinement import EStep, gaussian_chains
from mrigsure.scan import SIGMA_DATA, collate
from mrigsure.seeds import generator
from mrigsure.settings import TrainSettings
from mrigsure.validation import held_out_figures

CHECKPOINT = "checkpoint.pt"
_WARMUP = 100  # updates until the learning rate is reached
_FINAL_RATE = 0.05  # of the learning rate, at the last update
_VALIDATION_LEVELS = 8
_CALIBRATION_LEVELS = 12
_EARLY_FIGURES = (25, 50, 100, 200, 400)  # updates after which a newcomer wants to see something
_GAUSSIAN_SCANS = 96
_POWER_LOSS = 0.98  # a collapsed band's power, over what it was before the round, below which the round is to blame
_MAY_CHANGE = (
    "prepared", "out", "steps", "rounds", "seconds", "checkpoint_minutes", "resume", "device", "threads", "patience",
)  # fmt: skip


def train(settings: TrainSettings) -> Path:
    """Run the whole training and return the prior's folder.

    Raises InputError for unusable scans or settings, an archive that cannot teach a prior, or a checkpoint that was
    made with other settings.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = Path(settings.out) / CHECKPOINT
    if checkpoint.exists() and not settings.resume:
        raise InputError(checkpoint, "another run's checkpoint", "--resume to go on with it, or another --out")
    archive = open_archive(
        settings.prepared, settings.validation, settings.seed, targets=settings.objective == "supervised"
    )
    trainer = Trainer(settings, archive)
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
        start = load_prior(settings.init_from) if settings.init_from else None
        self.sigma_data = start.config.sigma_data if start else measured_sigma_data(archive)
        model = Denoiser(settings.channels, self.sigma_data)
        self.lowest, self.bands = self._lowest_first_stage(torch.tensor(archive.record["noise_std"][0])).item(), NEUTRAL
        if start:
            if start.config.channels != tuple(settings.channels):
                raise InputError(
                    settings.init_from, f"channels {start.config.channels}", f"channels {tuple(settings.channels)}"
                )
            model.load_state_dict(start.denoiser.state_dict())
            self.lowest, self.bands = min(self.lowest, start.config.sigma_min), start.config.spread
        if settings.compile:
            model.network.compile()
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
        self.before: dict = {}  # the state at the start of this round
        self.best: dict = {}  # the prior of the best energy score so far
        self.stale, self.refused = 0, 0  # rounds in a row that did not better it; that were refused
        self.started = self.saved = time.monotonic()

    def run(self) -> Path:
        """Everything from the present state to the finished prior."""
        say(_summary(self.archive.record))
        while self.round <= self.settings.rounds and not self._out_of_time() and not self._is_done():
            if self.round > 0 and self.step == 0:
                self.before = self._state()
                self._draw_chains()
            self._updates()
            if self._out_of_time():
                self.save_checkpoint()
                break
            if self.updates:
                self._judge()
            self.round, self.step = self.round + 1, 0
            self.save_checkpoint()
        self._finish()
        return self.folder

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The averaged prior, without gradients."""
        with torch.no_grad(), self.accelerator.autocast():
            return self.average.module(x, sigma)

    def _is_done(self) -> bool:
        return self.refused > 1 or (0 < self.settings.patience <= self.stale)

    # --- updates ---

    def _updates(self):
        total = self.settings.round_steps if self.round else self.settings.steps
        label = f"round {self.round}" if self.round else self.settings.objective
        with ThreadPoolExecutor(1) as reader, Meter(label, total, done=self.step) as meter:
            mark, seen = time.monotonic(), 0
            following = reader.submit(self._batches, self.step)
            while self.step < total and not self._out_of_time():
                batches, following = following.result(), reader.submit(self._batches, self.step + 1)
                loss = self._update(batches)
                self.step, self.updates = self.step + 1, self.updates + 1
                seen += self.settings.batch_size * self.settings.accumulate
                self.loss = loss if self.step == 1 else 0.98 * self.loss + 0.02 * loss
                if self._validate_now(total):
                    self._validate()
                rate = seen / (time.monotonic() - mark)
                residual = self.history[-1]["residual"] if self.history else float("nan")
                meter.update(self.step, loss=self.loss, residual=residual, rate=f"{rate:.1f} scans/s")
                if time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes:
                    self.save_checkpoint()

    def _batches(self, step):
        return [self._batch(step, part) for part in range(self.settings.accumulate)]

    def _batch(self, step, part):
        """Scans of one matrix size: (sigma0 (batch,), ScanBatch or clean images (batch, H, W))."""
        rng = generator(self.settings.seed, "batch", self.round, step, part)
        pool = sorted(self.chains) if self.round else self.archive.training
        scans, size = self.archive.scans, self.settings.batch_size
        first = pool[int(torch.randint(len(pool), (1,), generator=rng))]
        alike = [i for i in pool if scans.shapes[i] == scans.shapes[first]]
        picks = [alike[pick] for pick in torch.randint(len(alike), (size,), generator=rng).tolist()]
        if self.round:
            which = torch.randint(self.settings.round_samples, (size,), generator=rng).tolist()
            return torch.stack([self.chains[i][k] for i, k in zip(picks, which, strict=True)])
        chosen = [scans[i] for i in picks]
        if self.settings.objective == "supervised":
            return torch.stack([scan.target for scan in chosen])
        return collate(chosen)

    def _update(self, batches) -> float:
        share = min(1.0, self.updates / max(self._all_updates(), 1))
        decay = min(1.0, (1 - share) / self.settings.decay) if self.settings.decay else 1.0
        rate = min(1, (self.updates + 1) / _WARMUP) * max(decay, _FINAL_RATE)
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * rate
        self.optimizer.zero_grad()
        total = 0.0
        for part, batch in enumerate(batches):
            loss = self._loss(batch, part) / len(batches)
            self.accelerator.backward(loss)
            total += float(loss.detach())
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return total

    def _loss(self, batch, part) -> Tensor:
        names = (self.round, self.step, part)
        rng = generator(self.settings.seed, "update", *names)
        noise = generator(self.settings.seed, "noise", *names, device=self.device)
        images = isinstance(batch, Tensor)
        batch = (_crop(_augment(batch, rng), self.settings.crop, rng) if images else batch).to(self.device)
        count = len(batch) if images else len(batch.sigma0)
        lowest = torch.full((count,), self._lowest_trained()) if images else self._lowest_first_stage(batch.sigma0.cpu())
        sigma = draw_sigma(lowest, self.settings.sigma_max, rng).to(self.device)
        if images:
            loss = denoising(self.model, batch, sigma, noise)
        else:
            loss = self._first_stage_loss(batch, sigma, noise)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return (weight * loss).mean()

    def _first_stage_loss(self, batch, sigma, noise) -> Tensor:
        diffuse = {"solve": perturb_and_solve, "adjoint": diffuse_adjoint}[self.settings.input]
        if self.settings.objective in ("gsure", "denoised"):
            return gsure(self.model, batch, sigma, noise, diffuse=diffuse)
        most = self.settings.delta if self.settings.objective == "heldout" else (0.0, 0.0)
        delta = _held_out_share(sigma, most, noise)
        return split_gsure(self.model, batch, sigma, delta, noise, weights=self.settings.weights, diffuse=diffuse)

    def _lowest_first_stage(self, sigma0: Tensor) -> Tensor:
        """The least level that the first stage can be trained at, for scans of noise `sigma0`."""
        if self.settings.objective == "supervised":
            return sigma0 / 4
        if self.settings.input == "solve":
            return lowest_solve_sigma(sigma0)
        # the target of split GSURE has twice the data's variance there; Hutchinson's form needs only sigma > sigma0
        return sigma0 * (2**0.5 if self.settings.objective in ("split", "heldout") else 1.02)

    def _lowest_trained(self) -> float:
        """Once refined, the prior is defined below the data's noise; a quarter of it is as far as a draw needs to go."""
        return self.archive.record["noise_std"][0] / 4

    def _all_updates(self) -> int:
        return self.settings.steps + self.settings.rounds * self.settings.round_steps

    # --- the E-step ---

    def _draw_chains(self):
        pool, settings = self.archive.training, self.settings
        count = settings.round_scans or len(pool)
        order = torch.randperm(len(pool), generator=generator(settings.seed, "scans", self.round)).tolist()
        indices = sorted(pool[k] for k in order[:count])
        if settings.objective == "denoised":
            progress = self._denoise_scans(indices) if self.round == 1 else ()
        elif self.round == 1 and settings.start == "gaussian":
            stride = max(1, len(pool) // _GAUSSIAN_SCANS)
            prior = fit_gaussian([self.archive.scans[i] for i in pool[::stride][:_GAUSSIAN_SCANS]], settings.seed)
            progress = gaussian_chains(
                prior,
                self.archive.scans,
                indices,
                self.chains,
                samples=settings.round_samples,
                seed=settings.seed,
                batch_size=settings.batch_size,
                device=self.device,
            )
        else:
            step = EStep(
                denoise=self.denoise,
                spread=ScalarSpread() if self.refused else PixelSpectrumSpread(self.bands),
                levels=settings.round_levels,
                samples=settings.round_samples,
                sigma_max=settings.sigma_max,
                sigma_min=self.lowest,
                seed=settings.seed,
                round_number=self.round,
                batch_size=settings.batch_size,
                device=self.device,
            )
            progress = step.update(self.archive.scans, indices, self.chains)
        with Meter(f"round {self.round}, drawing", len(indices)) as meter:
            for done in progress:
                meter.update(done)
        self.lowest = min(self.lowest, self._lowest_trained())

    def _denoise_scans(self, indices):
        """Fully sampled noisy scans to their GSURE-denoised images, which stand for clean ones from then on."""
        for done, index in enumerate(indices, 1):
            batch = self.archive.scans[index].batch().to(self.device)
            level = batch.sigma0.clamp_min(self.lowest)
            image = self.denoise(batch.operator.adjoint(batch.kspace), level).cpu()
            self.chains[index] = image.expand(self.settings.round_samples, *image.shape[1:]).clone()
            yield done

    # --- judging without truth ---

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
            self.denoise,
            self._scans_for_figures,
            sigma_schedule(_VALIDATION_LEVELS, self.settings.sigma_max, self.lowest),
            spread=ScalarSpread(),
            seed=self.settings.seed,
            device=self.device,
        )
        self._record(figures, loss=float(f"{self.loss:.4g}"))

    def _judge(self):
        """At a round's end: calibrate the spread of the draws, which gives the figures too; keep, or refuse."""
        self.bands, figures = calibrate_spread(
            self.denoise,
            self._scans_for_figures,
            sigma_schedule(_CALIBRATION_LEVELS, self.settings.sigma_max, self.lowest),
            seed=self.settings.seed,
            start=self.bands,
            device=self.device,
        )
        lost = () if self.settings.objective == "denoised" else _lost_bands(figures, self.before.get("power"))
        self._record(figures, bands=[round(band, 3) for band in self.bands], refused=bool(lost))
        if lost:
            self._refuse(figures, lost)
            return
        self.refused = 0
        if self.settings.keep_rounds:
            self._save(self.folder / f"round_{self.round}", self._candidate(figures))
        better = not self.best or figures.energy < self.best["energy"]
        self.stale = 0 if better else self.stale + 1
        self.before = {"power": list(figures.power)}
        if better or not self.settings.rounds:
            self.best = self._candidate(figures)

    def _candidate(self, figures):
        return {
            "energy": figures.energy,
            "round": self.round,
            "updates": self.updates,
            "average": _cloned(self.average.module.state_dict()),
            "lowest": self.lowest,
            "bands": list(self.bands),
        }

    def _refuse(self, figures, lost):
        """Undo the round; the next one draws with the scalar spread, which is a little too wide."""
        what = ", ".join(f"{band + 1} ({figures.power[band]:.2f})" for band in lost)
        ending = "refinement ends here" if self.refused else "the next one draws with a wider spread"
        warnings.warn(
            f"round {self.round} is refused: the draws lost power in radial bands {what} of {len(figures.power)}, "
            f"where the data's is 1; expected at least 0.9. {ending}",
            ScanWarning,
            stacklevel=2,
        )
        self.refused += 1
        self._restore(self.before)

    def _record(self, figures, **more):
        self.history.append({"round": self.round, "step": self.updates, **more, **figures.as_dict()})
        power = " ".join("-" if p is None else f"{p:.2f}" for p in figures.power)
        say(
            f"  update {self.updates}: residual [bold]{figures.residual:.4f}[/bold] on held-out lines, "
            f"energy {figures.energy:.4f}, z\u00b2 {figures.z2:.2f}, power by band {power}"
        )

    # --- keeping ---

    def _finish(self):
        if not self.best:
            self._judge()
        self._save(self.folder, self.best)
        chosen = next(h for h in reversed(self.history) if h["round"] == self.best["round"] and "bands" in h)
        say(
            f"prior in {self.folder}, of round {self.best['round']}: residual {chosen['residual']:.4f}, "
            f"z\u00b2 {chosen['z2']:.2f} on held-out lines"
        )

    def _save(self, folder, candidate):
        config = DenoiserConfig(
            channels=tuple(self.settings.channels),
            sigma_min=candidate["lowest"],
            sigma_max=self.settings.sigma_max,
            sigma_data=self.sigma_data,
            spread=tuple(round(band, 4) for band in candidate["bands"]),
        )
        training = {
            "version": mrigsure.__version__,
            "settings": _portable(self.settings),
            "archive": self.archive.record,
            "updates": candidate["updates"],
            "rounds": candidate["round"],
            "history": self.history,
        }
        save_prior(folder, candidate["average"], config, training, model_card(folder.name, training))

    def _state(self) -> dict:
        """What a round changes, and a refused one gives back."""
        copy = {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return _cloned(copy) | {"lowest": self.lowest, "bands": list(self.bands), "power": self.before.get("power")}

    def _restore(self, state):
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(_cloned(state["optimizer"]))
        self.lowest, self.bands = state["lowest"], tuple(state["bands"])

    def save_checkpoint(self):
        """Everything that `load_checkpoint` needs; tensors and plain numbers only, so that weights_only can load it."""
        state = self._state() | {
            "settings": json.dumps(_portable(self.settings)),
            "archive": json.dumps(self.archive.record),
            "position": [self.round, self.step, self.updates, self.stale, self.refused],
            "loss": self.loss,
            "history": json.dumps(self.history),
            "chains": self.chains,
            "before": self.before,
            "best": self.best,
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
        self._restore(state)
        self.round, self.step, self.updates, self.stale, self.refused = state["position"]
        self.loss, self.before, self.best = state["loss"], state["before"], state["best"]
        self.history = json.loads(state["history"])
        self.chains = {int(index): image.cpu() for index, image in state["chains"].items()}
        say(f"resumed at round {self.round}, update {self.updates}")

    def _out_of_time(self) -> bool:
        return bool(self.settings.seconds) and time.monotonic() - self.started > self.settings.seconds


def _lost_bands(figures, before) -> tuple[int, ...]:
    """Bands above the noise whose power is below 0.9 of the data's, and below what it was before the round."""
    if before is None:
        return ()
    return tuple(b for b in figures.collapsed() if before[b] is not None and figures.power[b] < _POWER_LOSS * before[b])


def _held_out_share(sigma, most, rng):
    """delta per scan: uniform up to a limit that goes from most[0] at low sigma to most[1] at high sigma (section 5)."""
    limit = most[0] + (most[1] - most[0]) * sigma / (sigma + SIGMA_DATA)
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


def _crop(image, side, rng):
    """A random window of (batch, H, W), `side` or the whole of each axis."""
    for axis in (1, 2) if side else ():
        room = max(image.shape[axis] - side, 0)
        start = int(torch.randint(room + 1, (1,), generator=rng))
        image = image.narrow(axis, start, image.shape[axis] - room)
    return image


def _cloned(state):
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _cloned(value) for key, value in state.items()}
    return [_cloned(value) for value in state] if isinstance(state, list) else state


def _warm_average(decay):
    """torch's own EMA, with a decay that grows from 0 so that a short run is not an average with its start."""

    def update(averaged, current, count):
        get_ema_multi_avg_fn(min(decay, (1 + float(count)) / (10 + float(count))))(averaged, current, count)

    return update


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
