"""`mrigsure reconstruct`: prepared scans to images, by posterior draws under a prior or by a classical baseline.

A file that is already there, made from the same scan with the same parameters, is kept; files are whole or absent,
so that a killed run is resumed by repeating it.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import mrigsure
from mrigsure.denoiser import Prior, load_prior
from mrigsure.devices import pick_device
from mrigsure.errors import InputError
from mrigsure.files import sha256
from mrigsure.posterior import posterior_samples
from mrigsure.progress import Meter, say
from mrigsure.scan import Scan, ScanSet, collate, open_hdf5, prepared_files
from mrigsure.seeds import generator
from mrigsure.settings import ReconstructSettings
from recon.baselines import baseline, choose_lambda
from recon.domain import warn_if_unlike_training
from recon.figures import preview
from recon.reconstruction import Reconstruction, write_reconstruction


def reconstruct(settings: ReconstructSettings) -> list[Path]:
    """Reconstruct every prepared file of `settings`; returns the .h5 files, each with a .png beside it.

    Raises InputError for a file that is no usable prepared scan; the files before it are complete.
    """
    paths = prepared_files(settings.scans)
    outputs = _outputs(paths, Path(settings.out))
    volumes = [ScanSet([path]) for path in paths]
    posterior = settings.method == "posterior"
    prior = load_prior(settings.prior, pick_device(settings.device)) if posterior else None
    parameters = _parameters(settings, prior)
    records = [
        {"scan": path.name, "scan_sha256": sha256(path), "parameters": json.dumps(parameters, sort_keys=True)}
        for path in paths
    ]
    todo = [
        job for job in zip(volumes, outputs, records, strict=True) if settings.overwrite or not _is_done(job[1], job[2])
    ]
    work = settings.samples * settings.levels if posterior else 1  # of one slice
    with Meter(f"reconstructing ({settings.method})", work * sum(len(volume) for volume, _, _ in todo)) as meter:
        for volume, output, record in todo:
            result = reconstruct_scans(
                volume,
                settings.method,
                prior,
                samples=settings.samples,
                levels=settings.levels,
                batch=settings.batch,
                seed=settings.seed,
                name=output.stem,
                keep_samples=settings.keep_samples,
                progress=partial(_advance, meter, meter.done, work * len(volume)),
            )
            result.record.update(record)
            preview(output.with_suffix(".png"), result)
            write_reconstruction(output, result)  # last: its presence says that all is there
    kept = len(outputs) - len(todo)
    say(f"{len(todo)} reconstructed in {settings.out}" + (f", {kept} were already there" if kept else ""))
    return outputs


def reconstruct_scans(
    scans: Sequence[Scan],
    method: str = "posterior",
    prior: Prior | None = None,
    *,
    samples: int = 8,
    levels: int = 30,
    batch: int = 8,
    seed: int = 0,
    name: str = "",
    keep_samples: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Reconstruction:
    """Reconstruct scans of one matrix size, the slices of a volume, in raw units (the scale is undone).

    method    "posterior", which needs a prior, or one of `recon.baselines.BASELINES`
    batch     draws computed at once
    name      enters the random numbers beside the seed, so that files differ in theirs
    progress  called with the share that is done
    A baseline's lambda is chosen once, on the middle slice. The prior's device computes.
    """
    middle = scans[len(scans) // 2]
    record = {"method": method, "acceleration": middle.acceleration, "seed": seed}
    if method == "posterior":
        warn_if_unlike_training(middle, prior)
        rng = generator(seed, "posterior", name)
        image, std, draws, nfe = _draw(scans, prior, samples, levels, batch, rng, keep_samples, progress)
        record |= {"prior": prior.name, "prior_sha256": prior.sha256}
        record |= {"samples": samples, "levels": levels, "nfe": nfe}
        return Reconstruction(image, std, draws, record)
    choice = choose_lambda(method, middle, generator(seed, "lambda", name))
    record |= {"lambda": choice.value, "lambda_chosen_by": choice.chosen_by}
    if choice.grid:
        record["lambda_search"] = json.dumps({"grid": choice.grid, "scores": choice.scores})
    images = []
    for index in range(len(scans)):
        scan = scans[index]
        images.append((baseline(method, scan, choice.value) / scan.scale).numpy())
        progress((index + 1) / len(scans))
    return Reconstruction(np.stack(images), record=record)


def _draw(scans, prior, samples, levels, batch, rng, keep_samples, progress):
    """Mean, standard deviation, draws and network evaluations a draw, in groups of slices that fill a batch."""
    device = next(prior.denoiser.parameters()).device
    group = max(1, batch // samples)
    means, deviations, kept, nfe = [], [], [], 0
    for start in range(0, len(scans), group):
        part = [scans[index] for index in range(start, min(start + group, len(scans)))]
        size = len(part)

        def report(done, total, start=start, size=size):
            nonlocal nfe
            nfe = total // (size * samples)
            progress((start + size * done / total) / len(scans))

        draws = posterior_samples(
            prior,
            collate(part).to(device),
            samples=samples,
            levels=levels,
            generator=rng,
            chunk=batch,
            progress=report,
        ).cpu()
        draws = draws / torch.tensor([scan.scale for scan in part])[:, None, None, None]
        mean = draws.mean(1)
        means.append(mean.numpy())
        if samples > 1:
            energy = (draws - mean[:, None]).abs().square().sum(1)
            deviations.append((energy / (samples - 1)).sqrt().numpy())
        if keep_samples:
            kept.append(draws.numpy())
    return (
        np.concatenate(means),
        np.concatenate(deviations) if deviations else None,
        np.concatenate(kept) if kept else None,
        nfe,
    )


def _advance(meter, start, size, share):
    meter.update(start + round(share * size))


def _outputs(paths, folder):
    outputs = [folder / f"{path.stem}.h5" for path in paths]
    first = {}
    for path, output in zip(paths, outputs, strict=True):
        if output in first:
            raise InputError(path, f"the name of {first[output]} again", "scans of different names: one output each")
        if output.resolve() == path.resolve():
            raise InputError(folder, f"the scan {path.name} where its output would go", "another output folder")
        first[output] = path
    return outputs


def _parameters(settings, prior):
    """What shapes the result; the prior by its content, not its place."""
    parameters = {"method": settings.method, "seed": settings.seed}
    if prior is None:
        return parameters
    chosen = {key: getattr(settings, key) for key in ("samples", "levels", "keep_samples", "batch")}
    return parameters | chosen | {"prior_sha256": prior.sha256}


def _is_done(output, record):
    """The output was made by this version from the same scan with the same parameters."""
    if not output.is_file():
        return False
    with open_hdf5(output) as file:
        if "reconstruction_complex" not in file:
            raise InputError(output, "a file that is no reconstruction", "a folder of its own for reconstructions")
        expected = {**record, "version": mrigsure.__version__}
        return all(file.attrs.get(key) == value for key, value in expected.items())
