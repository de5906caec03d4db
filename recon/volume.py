"""One volume's reconstruction: posterior draws, a classical baseline, or an unrolled network."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mrigsure.denoiser import Prior
from mrigsure.scan import Scan
from mrigsure.seeds import generator
from recon.baselines import baseline, choose_lambda
from recon.domain import warn_if_unlike_training
from recon.drawing import Drawing
from recon.posterior_volume import reconstruct_posterior
from recon.reconstruction import Reconstruction
from recon.uncertainty import LEVEL
from recon.unrolled import Unrolled, unrolled_image


def reconstruct_scans(
    scans: Sequence[Scan],
    method: str = "posterior",
    model: Prior | Unrolled | None = None,
    *,
    interval: float = LEVEL,
    calibrate_scan: bool = True,
    keep_samples: bool = False,
    seed: int = 0,
    name: str = "",
    progress: Callable[[float], None] = lambda share: None,
    **drawing,
) -> Reconstruction:
    """Reconstruct scans of one matrix size, the slices of a volume, in raw units (the scale is undone).

    method    "posterior", whose model is a prior, "unrolled", whose model is such a network, or one of
              `recon.baselines.BASELINES`
    interval  stated level of the magnitude's intervals, of posterior draws
    calibrate_scan  hold out lines of the scan for its spread's scale and its scorecard (recon/posterior_volume.py)
    name      enters the random numbers beside the seed, so that files differ in theirs
    progress  called with the share that is done
    drawing   samples, nfe, sampler, stack_noise, batch: fields of `recon.drawing.Drawing`
    A baseline's lambda is chosen once, on the middle slice. The model's device computes.
    """
    drawing = Drawing(seed=seed, name=name, **drawing)
    middle = scans[len(scans) // 2]
    record = {"method": method, "acceleration": middle.acceleration, "seed": drawing.seed}
    if method == "posterior":
        warn_if_unlike_training(middle, model)
        made = reconstruct_posterior(
            scans,
            model,
            drawing,
            level=interval,
            calibrate=calibrate_scan,
            keep_samples=keep_samples,
            progress=progress,
        )
        return replace(made, record=record | made.record)
    if method == "unrolled":
        record |= {"unrolled": model.name, "unrolled_sha256": model.sha256}
        make = partial(unrolled_image, model)
    else:
        choice = choose_lambda(method, middle, generator(drawing.seed, "lambda", drawing.name))
        record |= {"lambda": choice.value, "lambda_chosen_by": choice.chosen_by}
        if choice.grid:
            record["lambda_search"] = json.dumps({"grid": choice.grid, "scores": choice.scores})
        make = partial(baseline, method, lam=choice.value)
    images = []
    for index in range(len(scans)):
        scan = scans[index]
        images.append((make(scan=scan) / scan.scale).numpy())
        progress((index + 1) / len(scans))
    return Reconstruction(np.stack(images), record=record)
