"""Training a prior on prepared scans: a first stage, then rounds of expectation-maximisation.

    round 0          `steps` updates of an objective of objectives.py; held-out split GSURE on perturb-and-solve inputs
                     unless asked otherwise
    round 1, 2, ...  E: new posterior draws of the training scans (refinement.py), their spread calibrated on held-out
                     lines at the end of the round before; M: `round_steps` updates of plain denoising on them

Weights and optimiser stay warm from round to round. Every round is judged without truth on held-out lines of held-apart
scans: one whose draws lose power is refused and undone; the prior that is saved is the last whose energy score is not
surely above the lowest.
Every update's random numbers come from (seed, round, step, part) alone, so that a run that was killed goes on from its
checkpoint to the very bits it would have reached, and several processes (processes.py) share the work of one.
"""

import json
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mrigsure
from mrigsure.archive import Archive, measured_sigma_data, open_archive
from mrigsure.calibrate import NEUTRAL, calibrate_spread, jacobian_of, refinement_spread
from mrigsure.card import model_card
from mrigsure.checkpoint import CHECKPOINT, cloned, portable, read_checkpoint, write_checkpoint
from mrigsure.denoiser import Denoiser, DenoiserConfig, Prior, load_prior, save_prior
from mrigsure.devices import readers
from mrigsure.draws import draw_pairs, draw_scans, gain_of_draws, how_to_draw, scans_to_draw
from mrigsure.errors import InputError, ScanWarning
from mrigsure.losses import lowest_first_stage, pick_batch, scan_losses
from mrigsure.optimizer import MuonAdam
from mrigsure.posterior import draw_levels
from mrigsure.processes import from_main, share_chains, start_process
from mrigsure.progress import Meter, say
from mrigsure.sampling import sample_prior
from mrigsure.seeds import generator
from mrigsure.settings import TrainSettings
from mrigsure.shrinkage import unshrunk
from mrigsure.spread import Jacobian, PixelSpectrumSpread, ScalarSpread
from mrigsure.tracking import Tracker
from mrigsure.validation import held_out_figures

_WARMUP = 100  # updates until the learning rate is reached
_FINAL_RATE = 0.05  # of the learning rate, at the last update
_VALIDATION_LEVELS = 8
_NFE = 30  # of a reconstruction's draws
_EARLY_FIGURES = (25, 50, 100, 200, 400)  # updates after which a newcomer wants to see something
_JUDGED = 3  # times validation_scans: the energy of 16 scans hardly follows the true error from round to round
_POWER_LOSS = 0.95
"""A collapsed band's power, over what it was before the round, below which the round is to blame, if that is below 1
by two standard errors, too. Through rounds that lowered the true error it went up and down by up to 8% (64 x 64 bench,
16 scans): a few strong samples make it."""
_PICTURES, _PICTURE_LEVELS = 4, 20


def train(settings: TrainSettings) -> Path:
    """Run the whole training and return the prior's folder.

    Raises InputError for unusable scans or settings, an archive that cannot teach a prior, or a checkpoint that was
    made with other settings.
    """
    checkpoint = Path(settings.out) / CHECKPOINT
    if checkpoint.exists() and not settings.resume:
        raise InputError(checkpoint, "another run's checkpoint", "--resume to go on with it, or another --out")
    accelerator = start_process(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    archive = open_archive(
        settings.prepared, settings.validation, settings.seed, targets=settings.objective == "supervised"
    )
    if settings.objective in ("denoised", "tweedie"):
        _refuse_undersampled(archive, settings.objective)
    trainer = Trainer(settings, archive, accelerator)
    if settings.resume and checkpoint.exists():
        trainer.load_checkpoint()
    folder = trainer.run()
    accelerator.end_training()
    return folder


class Trainer:
    """The state of a training: weights, their average, optimiser, chains, and where it stands (round, step).

    Every process holds the same state; the judgements come from the main one.
    """

    def __init__(self, settings: TrainSettings, archive: Archive, accelerator):
        self.accelerator, self.archive = accelerator, archive
        self.device, self.main = accelerator.device, accelerator.is_main_process
        self.parts = settings.accumulate * accelerator.num_processes
        self.settings = replace(settings, accumulate=self.parts)  # as recorded: of all processes together
        self.folder = Path(settings.out)
        torch.manual_seed(settings.seed)  # the network's initial weights
        start = load_prior(settings.init_from) if settings.init_from else None
        self.start = start.record if start else None
        self.sigma_data = start.config.sigma_data if start else measured_sigma_data(archive)
        model = Denoiser(settings.channels, self.sigma_data)
        least_noise = torch.tensor(archive.record["noise_std"][0])
        self.lowest, self.bands = lowest_first_stage(settings, least_noise).item(), NEUTRAL
        self.jacobian: Jacobian = ()  # of the last round judged, which belongs to `bands`
        self.draw_bands = NEUTRAL  # of the E-step's spread, where `bands` is that of reconstruction
        self.draw_gain: list[float] | None = None  # that this round's draws were given
        if start:
            if start.config.channels != tuple(settings.channels):
                raise InputError(
                    settings.init_from, f"channels {start.config.channels}", f"channels {tuple(settings.channels)}"
                )
            model.load_state_dict(start.denoiser.state_dict())
            self.lowest = min(self.lowest, start.config.sigma_min)  # its spread was that of other scans
        self.model = accelerator.prepare(model)
        self.optimizer = MuonAdam(model, settings.learning_rate)
        self.average = AveragedModel(self._plain_model(), multi_avg_fn=_warm_average(settings.ema))
        self.average.requires_grad_(False)
        self.compiled = False
        self.round, self.step, self.updates = 0, 0, 0
        self.loss = 0.0  # of this round, smoothed
        self.history: list[dict] = []
        self.chains: dict[int, Tensor] = {}
        self.pairs: dict[int, Tensor] = {}  # of the scans that teach
        self.drawn_in: dict[int, int] = {}  # the round that their draws are of
        self.before: dict = {}  # the state at the start of this round
        self.best: dict = {}  # the prior to be saved, and the lowest energy score so far
        self.stale, self.refused = 0, 0  # rounds in a row that did not better it; that were refused
        self.tracker: Tracker | None = None
        self.started = self.saved = time.monotonic()

    def run(self) -> Path:
        """Everything from the present state to the finished prior."""
        if self.settings.tensorboard and self.main:
            self.tracker = Tracker(self.folder, self.updates, self._lowest_refined(), self.settings.sigma_max)
        say(_summary(self.archive.record))
        while self.round <= self.settings.rounds and not self._out_of_time() and not self._is_done():
            self._compile()
            if self.round > 0 and self.step == 0:
                images = {"chains": self.chains, "pairs": self.pairs, "drawn_in": self.drawn_in}
                self.before = self._state() | {key: dict(values) for key, values in images.items()}
                self._draw_chains()
            self._updates()
            if self._out_of_time():
                self.save_checkpoint()
                break
            if self.updates or self.settings.init_from:
                self._judge()
            self.round, self.step = self.round + 1, 0
            self.save_checkpoint()
        self._finish()
        if self.tracker:
            self.tracker.close()
        return self.folder

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The averaged prior, without gradients."""
        with torch.no_grad(), self.accelerator.autocast():
            return self.average.module(x, sigma)

    def _plain_model(self):
        return self.accelerator.unwrap_model(self.model)

    def _compile(self):
        """Once, at the first round that may be: the network that learns, and its average."""
        if not self.compiled and self.settings.compiled(self.round):
            self.compiled = True
            for network in (self._plain_model().network, self.average.module.network):
                network.compile()

    def _is_done(self) -> bool:
        return self.refused > 1 or (0 < self.settings.patience <= self.stale)

    def _out_of_time(self) -> bool:
        """By the main process's clock."""
        if not self.settings.seconds:
            return False
        return from_main(self.accelerator, lambda: time.monotonic() - self.started > self.settings.seconds)

    def _lowest_refined(self) -> float:
        """Once refined, the prior is defined below the data's noise; a quarter of it is as far as draws need to go."""
        return self.archive.record["noise_std"][0] / 4

    # --- updates ---

    def _updates(self):
        total = self.settings.round_steps if self.round else self.settings.steps
        label = f"round {self.round}" if self.round else self.settings.objective
        ahead = readers(self.device)
        with ThreadPoolExecutor(ahead) as pool, Meter(label, total, done=self.step) as meter:
            mark, scans = time.monotonic(), 0
            coming = deque(pool.submit(self._batches, step) for step in range(self.step, total)[:ahead])
            while self.step < total and not self._out_of_time():
                batches = coming.popleft().result()
                if self.step + ahead < total:
                    coming.append(pool.submit(self._batches, self.step + ahead))
                seen = self._update(batches)
                loss = float(seen[:, 1].mean())
                self.step, self.updates, scans = self.step + 1, self.updates + 1, scans + len(seen)
                self.loss = loss if self.step == 1 else 0.98 * self.loss + 0.02 * loss
                if self.tracker:
                    self.tracker.update(self.updates, seen, self.optimizer.learning_rate)
                if self._validate_now(total):
                    self._validate()
                rate = scans / (time.monotonic() - mark)
                residual = self.history[-1]["residual"] if self.history else float("nan")
                meter.update(self.step, loss=self.loss, residual=residual, rate=f"{rate:.1f} scans/s")
                if time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes:
                    self.save_checkpoint()

    def _batches(self, step) -> list:
        """This process's parts of an update: (names, batch on the device)."""
        mine = range(self.accelerator.process_index, self.parts, self.accelerator.num_processes)
        names = [(self.round, step, part) for part in mine]
        images = self.chains, self.pairs, self.drawn_in
        return [(name, pick_batch(self.settings, self.archive, *images, name).to(self.device)) for name in names]

    def _update(self, batches) -> Tensor:
        """One step of the optimiser; noise level and loss of every scan of all processes, (scans, 2)."""
        share = min(1.0, self.updates / max(self._all_updates(), 1))
        decay = min(1.0, (1 - share) / self.settings.decay) if self.settings.decay else 1.0
        rate = min(1, (self.updates + 1) / _WARMUP) * max(decay, _FINAL_RATE)
        self.optimizer.learning_rate = self.settings.learning_rate * rate
        self.model.zero_grad()
        seen = []
        for number, (names, batch) in enumerate(batches, 1):
            # the processes' gradients are averaged once, with the last part's
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(self.model):
                sigma, losses = scan_losses(
                    self.settings,
                    self.model,
                    batch,
                    names,
                    sigma_data=self.sigma_data,
                    lowest_refined=self._lowest_refined(),
                    device=self.device,
                )
                self.accelerator.backward(losses.mean() / len(batches))
            seen.append(torch.stack([sigma, losses.detach()], dim=1))
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self._plain_model())
        return self.accelerator.gather(torch.cat(seen))

    def _all_updates(self) -> int:
        return self.settings.steps + self.settings.rounds * self.settings.round_steps

    # --- the E-step ---

    def _draw_chains(self):
        indices = scans_to_draw(self.settings, self.archive, self.round)
        taught, before = (self.settings.taught_by_scans(number) for number in (self.round, self.round - 1))
        chains = dict(self.chains) if taught == before else {}  # the others know the scans' own noise, or less
        processes = self.accelerator.num_processes
        draw = how_to_draw(
            self.settings,
            self.archive,
            self.round,
            denoise=self.denoise,
            spread=ScalarSpread() if self.refused else refinement_spread(self.draw_bands),
            lowest=self.lowest,
            device=self.device,
            share=(self.accelerator.process_index, processes),
        )

        def drawing(draws, label, images, total):
            before = dict(images)
            with Meter(f"round {self.round}, {label}", total) as meter:
                for done in draws(draw, self.settings, self.archive, indices, images, self.round):
                    meter.update(min(done * processes, total))
            drawn = [index for index in indices if images.get(index) is not before.get(index)]
            share_chains(self.accelerator, images, drawn)

        drawing(draw_scans, "drawing", chains, len(indices))
        oldest = self.round - self.settings.round_memory + 1
        self.drawn_in = {index: number for index, number in self.drawn_in.items() if taught and number >= oldest}
        self.draw_gain, self.pairs = None, {index: self.pairs[index] for index in self.drawn_in}
        if taught:
            self.drawn_in |= dict.fromkeys(indices, self.round)
            each = 2 if self.settings.bootstrap else 1
            drawing(draw_pairs, "drawing pairs", self.pairs, each * len(indices))
            arguments = (self.settings, self.archive, indices, chains, self.round, self.device)
            self.draw_gain = from_main(self.accelerator, lambda: gain_of_draws(*arguments))
            chains |= {index: unshrunk(chains[index], self.draw_gain) for index in indices}
        self.chains = chains
        self.lowest = min(self.lowest, self._lowest_refined())

    # --- judging without truth ---

    def _validate_now(self, total) -> bool:
        return not self.round and (self.step in _EARLY_FIGURES or self.step % max(total // 8, 1) == 0)

    @cached_property
    def _scans_for_figures(self):
        return self.archive.held_apart(self.settings.validation_scans)

    @cached_property
    def _scans_to_judge(self):
        """Nothing where no more are held apart than the spread is calibrated on: its figures are theirs then."""
        more = self.archive.held_apart(_JUDGED * self.settings.validation_scans)
        return more if len(more) > len(self._scans_for_figures) else ()

    def _validate(self):
        """The truth-free figures on the way, with few levels and the spread as it was last calibrated."""
        spread = PixelSpectrumSpread(self.bands, jacobian=self.jacobian)
        self._record(self._figures(spread, _VALIDATION_LEVELS), loss=float(f"{self.loss:.4g}"))

    def _figures(self, spread, levels):
        return from_main(
            self.accelerator,
            lambda: held_out_figures(
                self.denoise,
                self._scans_for_figures,
                draw_levels(levels, self.lowest, self.settings.sigma_max),
                spread=spread,
                seed=self.settings.seed,
                device=self.device,
            ),
        )

    def _judge(self):
        """At a round's end: calibrate the spread of the draws, which gives the figures too; keep, or refuse."""
        self.jacobian = self._measured_jacobian()
        self.bands, figures = self._calibrated("z2", self.bands, judged=self._scans_to_judge)
        drawn = figures
        if self.settings.rounds:
            self.draw_bands, drawn = self._calibrated("power", self.draw_bands)
        better = not self.best or figures.energy < self.best["energy"]
        checked = not (better or self.settings.estimates(self.round) or self.settings.objective == "denoised")
        lost = self._lost_in_round(drawn) if checked else ()
        self._record(
            figures,
            bands=[round(band, 3) for band in self.bands],
            draw_bands=[round(band, 3) for band in self.draw_bands],
            draw_power=[None if p is None else round(p, 3) for p in drawn.power],
            draw_gain=self.draw_gain and [round(gain, 3) for gain in self.draw_gain],
            refused=bool(lost),
        )
        candidate = self._candidate(figures)
        if self.tracker:
            self.tracker.samples(self.updates, self._samples(candidate))
        if lost:
            self._refuse(drawn, lost)
            return
        self.refused = 0
        if self.settings.keep_rounds:
            self._save(self.folder / f"round_{self.round}", candidate)
        self.stale = 0 if better else self.stale + 1
        self.before = {"drawn": drawn.drawn}
        if better or not self.settings.rounds:
            self.best = candidate
        elif not figures.surely_worse(self.best["scores"]):
            self.best = candidate | {key: self.best[key] for key in ("energy", "scores")}

    def _lost_in_round(self, drawn) -> tuple[int, ...]:
        """Bands that lost power in this round: with the factors calibrated now, and surely so with those of before.

        A calibration on few scans moves a band's power by some percent, the same network's too.
        """
        if (before := self.before.get("drawn")) is None:
            return ()
        before = before.cpu()  # a checkpoint's is on the device
        if not (lost := _lost_bands(drawn, before)):
            return ()
        again = self._figures(refinement_spread(self.before["draw_bands"]), _levels(()))
        return tuple(band for band in _lost_bands(again, before, errors=2) if band in lost)

    def _candidate(self, figures):
        return {
            "energy": figures.energy,
            "scores": figures.scores,
            "round": self.round,
            "updates": self.updates,
            "average": cloned(self.average.module.state_dict()),
            "lowest": self.lowest,
            "bands": list(self.bands),
            "jacobian": self.jacobian,
        }

    def _measured_jacobian(self):
        return from_main(
            self.accelerator,
            lambda: jacobian_of(
                self.denoise,
                self._scans_for_figures,
                draw_levels(_levels(()), self.lowest, self.settings.sigma_max),
                seed=self.settings.seed,
                bands=self.bands,
                device=self.device,
            ),
        )

    def _calibrated(self, match, start, judged=()):
        jacobian = self.jacobian if match == "z2" else ()
        return from_main(
            self.accelerator,
            lambda: calibrate_spread(
                self.denoise,
                self._scans_for_figures,
                draw_levels(_levels(jacobian), self.lowest, self.settings.sigma_max),
                seed=self.settings.seed,
                match=match,
                start=start,
                jacobian=jacobian,
                judged=judged,
                device=self.device,
            ),
        )

    def _samples(self, candidate):
        prior = Prior(self.average.module, self._config(candidate))
        shapes = self.archive.scans.shapes
        rng = generator(self.settings.seed, "pictures", device=self.device)
        return sample_prior(prior, (_PICTURES, *max(set(shapes), key=shapes.count)), _PICTURE_LEVELS, rng)

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
        self.chains, self.pairs, self.drawn_in = (dict(self.before[key]) for key in ("chains", "pairs", "drawn_in"))

    def _record(self, figures, **more):
        self.history.append({"round": self.round, "step": self.updates, **more, **figures.as_dict()})
        if self.tracker:
            self.tracker.figures(self.updates, figures)
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

    def _config(self, candidate):
        return DenoiserConfig(
            channels=tuple(self.settings.channels),
            sigma_min=candidate["lowest"],
            sigma_max=self.settings.sigma_max,
            sigma_data=self.sigma_data,
            spread=tuple(round(band, 4) for band in candidate["bands"]),
            jacobian=tuple(tuple(float(f"{value:.4g}") for value in row) for row in candidate["jacobian"]),
        )

    def _save(self, folder, candidate):
        if not self.main:
            return
        training = {
            "version": mrigsure.__version__,
            "settings": portable(self.settings),
            "archive": self.archive.record,
            "updates": candidate["updates"],
            "rounds": candidate["round"],
            "start": self.start,
            "history": self.history,
        }
        save_prior(folder, candidate["average"], self._config(candidate), training, model_card(folder.name, training))

    def _state(self) -> dict:
        """What a round changes, and a refused one gives back; the chains beside."""
        learned = {
            "model": self._plain_model().state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        found = {
            "lowest": self.lowest,
            "bands": list(self.bands),
            "jacobian": self.jacobian,
            "draw_bands": list(self.draw_bands),
            "draw_gain": self.draw_gain,
            "drawn": self.before.get("drawn"),
        }
        return cloned(learned) | found

    def _restore(self, state):
        self._plain_model().load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(cloned(state["optimizer"]))
        self.lowest, self.bands, self.draw_bands = state["lowest"], tuple(state["bands"]), tuple(state["draw_bands"])
        self.jacobian, self.draw_gain = state["jacobian"], state["draw_gain"]

    def save_checkpoint(self):
        """Everything that `load_checkpoint` needs."""
        self.saved = time.monotonic()
        if not self.main:
            return
        state = self._state() | {
            "position": [self.round, self.step, self.updates, self.stale, self.refused],
            "loss": self.loss,
            "history": json.dumps(self.history),
            "chains": self.chains,
            "pairs": self.pairs,
            "drawn_in": self.drawn_in,
            "before": self.before,
            "best": self.best,
        }
        write_checkpoint(self.folder, state, self.settings, self.archive.record)
        self.saved = time.monotonic()

    def load_checkpoint(self):
        """Go on where `save_checkpoint` was; InputError for a broken checkpoint, or other settings or scans."""
        state = read_checkpoint(self.folder, self.settings, self.archive.record, self.device)
        self._restore(state)
        self.round, self.step, self.updates, self.stale, self.refused = state["position"]
        self.loss, self.before, self.best = state["loss"], state["before"], state["best"]
        self.history = json.loads(state["history"])
        self.chains, self.pairs, self.drawn_in = _on_cpu(state["chains"]), _on_cpu(state["pairs"]), state["drawn_in"]
        self.before |= {key: _on_cpu(self.before[key]) for key in ("chains", "pairs") if key in self.before}
        self.accelerator.wait_for_everyone()  # the main process may soon write the next one
        say(f"resumed at round {self.round}, update {self.updates}")


def _refuse_undersampled(archive, objective):
    for volume in archive.scans.volumes:
        if not volume.mask.all():
            found = f"{volume.mask.mean():.0%} of k-space sampled"
            raise InputError(volume.path, found, f"fully sampled scans for --objective {objective}")


def _levels(jacobian: Jacobian) -> int:
    """Of a reconstruction's draws with a prior of this Jacobian, or of those that a round learns from."""
    return PixelSpectrumSpread(jacobian=jacobian).most_levels(_NFE)


def _lost_bands(figures, before, errors=0) -> tuple[int, ...]:
    """Bands above the noise whose power is below 0.9 of the data's and fell by more than so many standard errors."""
    change, error = figures.power_change(before)
    lost = (change < _POWER_LOSS) & (change + errors * error < 1)
    return tuple(band for band in figures.collapsed() if lost[band])


def _warm_average(decay):
    """torch's own EMA, with a decay that grows from 0 so that a short run is not an average with its start."""

    def update(averaged, current, count):
        get_ema_multi_avg_fn(min(decay, (1 + float(count)) / (10 + float(count))))(averaged, current, count)

    return update


def _on_cpu(chains):
    return {index: images.cpu() for index, images in chains.items()}


def _summary(record):
    low, high = record["noise_std"]
    least, most = record["acceleration"]
    few, many = record["coils"]
    return (
        f"{record['scans']} scans to learn from, {record['validation_scans']} held apart; "
        f"R {least:.2g} to {most:.2g}, {few} to {many} coils, noise {low:.2g} to {high:.2g}; "
        f"smallest eigenvalue of E[A^H A] {record['smallest_eigenvalue']:.3g}"
    )
