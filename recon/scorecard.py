"""Does one scan's reconstruction hold with its own data? Figures without truth, and the limits that they should keep.

    data_fit  |y - A x_k|^2 over 2 sigma0^2 per measured sample, mean over draws. 1 for draws of the right posterior, as
              (x_k, y) and (truth, y) are then distributed alike; wrong maps or a wrong noise level move it far
    inside    spread per measured mode over spread per mode not measured, from x^H T x and x^H (1 - T) x of the draws'
              deviations: what is measured should be decided by the data. T = A^H A has as large a trace as points are
              sampled
    z2        error of held-out lines over what draws and noise announce, before the scan's own scale is applied
    residual  their error over their power, noise taken off; None below a tenth of the noise's power

The limits of z2 and residual are multiples of what the prior's training found on its own held-apart scans
(training.json), or fixed where it left none. Those of the other two are fixed; docs/uncertainty.md has what was
measured.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mrigsure.scan import Scan
from recon.spread_scale import HeldOut

_DATA_FIT = (0.6, 1.5)
_INSIDE = 0.6
_Z2 = (0.4, 2.0)  # times the prior's own
_RESIDUAL = 4.0  # times the prior's own, within the next: 1 is the residual of an empty line, which few lines come near
_RESIDUAL_LIMITS = (1.0, 1.5)
_LEAST_SIGNAL = 0.1


@dataclass(frozen=True)
class DataSums:
    """Sums over one slice's draws: misfit |y - A x_k|^2 with its noise 2 sigma0^2; spread in both parts with the number
    of modes of each; in the scan's prepared units."""

    misfit: float
    noise: float
    inside: float
    outside: float
    inside_modes: float
    outside_modes: float


@dataclass(frozen=True)
class Figure:
    """A value and the limits that it should keep; least None where there is none."""

    name: str
    value: float
    least: float | None
    most: float

    @property
    def holds(self) -> bool:
        return (self.least is None or self.value >= self.least) and self.value <= self.most

    @property
    def text(self) -> str:
        low = "at most " if self.least is None else f"{self.least:.2g} to "
        return f"{self.name} {self.value:.2f} ({low}{self.most:.2g})"


def data_sums(scan: Scan, draws: Tensor) -> DataSums:
    """Of draws complex (K, H, W) of one slice, prepared units. With K = 1 the spread is 0.

    The mean of independent draws takes 1/K of the spread from both parts; that of pairs takes m (recon/uncertainty.py),
    less of it inside, where the data decide and pairs are opposite. Their ratio grows by less than 1 / (K - 1).
    """
    operator, sampled = scan.batch().operator, scan.mask > 0
    kspace = operator.coil_kspace(draws)[:, :, sampled]  # (K, coil, point)
    deviation = draws - draws.mean(0)
    inside = (kspace - kspace.mean(0)).abs().square().sum().item()
    points = float(sampled.sum())
    return DataSums(
        misfit=(scan.kspace[:, sampled] - kspace).abs().square().sum().item(),
        noise=2 * scan.noise_std**2 * kspace.numel(),
        inside=inside,
        outside=max(deviation.abs().square().sum().item() - inside, 0.0),
        inside_modes=points,
        outside_modes=sampled.numel() - points,
    )


def scorecard(measured: Sequence[DataSums], held_out: Sequence[HeldOut], record: dict) -> list[Figure]:
    """The figures of a scan, over all slices that were looked at.

    held_out  empty where no line was held out: z2 and residual are then missing
    record    of the prior (training.json)
    """

    def total(name):
        return sum(getattr(part, name) for part in measured)

    figures = [Figure("data_fit", total("misfit") / total("noise"), *_DATA_FIT)]
    if total("outside") > 0:
        inside = total("inside") / total("inside_modes") * total("outside_modes") / total("outside")
        figures.append(Figure("inside", inside, None, _INSIDE))
    if held_out:
        held = sum(held_out[1:], held_out[0])
        own = _own_figures(record)
        figures.append(Figure("z2", held.z2, _Z2[0] * own["z2"], _Z2[1] * own["z2"]))
        if held.signal > _LEAST_SIGNAL:
            most = min(max(_RESIDUAL * own["residual"], _RESIDUAL_LIMITS[0]), _RESIDUAL_LIMITS[1])
            figures.append(Figure("residual", held.residual, None, most))
    return figures


def as_json(figures: Sequence[Figure]) -> str:
    """{name: {value, least, most, holds}}, four significant digits."""
    return json.dumps(
        {
            figure.name: {
                "value": float(f"{figure.value:.4g}"),
                "least": figure.least,
                "most": figure.most,
                "holds": figure.holds,
            }
            for figure in figures
        }
    )


def _own_figures(record):
    """z2 and residual of the round that training chose."""
    chosen = [entry for entry in record.get("history", []) if entry["round"] == record["rounds"]]
    return chosen[-1] if chosen else {"z2": 1.0, "residual": _RESIDUAL_LIMITS[1]}
