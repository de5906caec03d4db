"""An unrolled network, MoDL: the learned reconstruction without a prior that ours is to be compared with.

    x <- A^H y;    K times    z = D(x; s_k),   x <- argmin_x ||A x - y||^2 + mu ||x - z||^2 = (T + mu)^-1 (A^H y + mu z)

(Aggarwal, Mani and Jacob, IEEE TMI 2019, equations 10 and 11). D is the network of our priors with the same weights in
all K steps, told a level s_k that it learns for each; mu is learned. Trained on undersampled scans alone, by SSDU
(train_unrolled.py). It gives one image and no uncertainty, and knows the sampling that it was trained on.

Folder: config.json, model.safetensors, training.json.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from mrigsure.denoiser import Denoiser
from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.operators import SenseOperator
from mrigsure.scan import Scan, ScanBatch

FORMAT = 1
CONFIG, WEIGHTS, RECORD = "config.json", "model.safetensors", "training.json"
_FIRST_LEVEL, _FIRST_MU = 0.1, 0.05  # where the learned numbers start


@dataclass(frozen=True)
class UnrolledConfig:
    """What rebuilds the network: widths of its U-Net at each resolution, and the number of steps K."""

    channels: tuple[int, ...] = (16, 32, 32)
    unrolls: int = 6


class Unrolled(nn.Module):
    """forward(batch): ScanBatch -> complex64 (batch, H, W), in prepared units; one set of maps.

    name, sha256  of the folder it was read from, and of its config.json and model.safetensors together
    """

    def __init__(self, config: UnrolledConfig, name: str = "", sha256: str = ""):
        super().__init__()
        self.config, self.name, self.sha256 = config, name, sha256
        self.denoiser = Denoiser(config.channels)
        self.log_levels = nn.Parameter(torch.full((config.unrolls,), _FIRST_LEVEL).log())
        self.log_mu = nn.Parameter(torch.tensor(_FIRST_MU).log())

    def forward(self, batch: ScanBatch) -> Tensor:
        seen = batch.operator.adjoint(batch.kspace)
        mu = self.log_mu.exp().expand(len(seen))
        batch.operator.factorise()
        x = seen
        for level in self.log_levels.exp():
            x = _Solve.apply(seen + mu[:, None, None] * self.denoiser(x, level.expand(len(x))), mu, batch.operator)
        return x


class _Solve(torch.autograd.Function):
    """(T + mu)^-1 rhs with the derivatives of the exact solution, however it was found."""

    @staticmethod
    def forward(context, rhs: Tensor, mu: Tensor, operator: SenseOperator) -> Tensor:
        image = operator.solve(rhs, mu)
        context.operator = operator
        context.save_for_backward(image, mu)
        return image

    @staticmethod
    def backward(context, gradient: Tensor):
        image, mu = context.saved_tensors
        pulled = context.operator.solve(gradient, mu)  # T + mu is Hermitian
        return pulled, -(pulled.conj() * image).real.sum((1, 2)), None


def unrolled_image(model: Unrolled, scan: Scan) -> Tensor:
    """The image of one scan, complex64 (H, W), in prepared units, on the CPU.

    Raises InputError for a scan with several sets of maps.
    """
    if scan.sens_maps.ndim == 4:
        raise InputError(scan.name or "scan", f"{len(scan.sens_maps)} sets of maps", "one for unrolled")
    with torch.no_grad():
        return model(scan.batch().to(model.log_mu.device))[0].cpu()


def save_unrolled(folder, model: Unrolled, record: dict) -> Path:
    """Write the folder; the weights come last, without them it is none."""
    folder = Path(folder)
    contents = {
        CONFIG: json.dumps({"format": FORMAT, **asdict(model.config)}, indent=1).encode(),
        RECORD: json.dumps(record, indent=1).encode(),
        WEIGHTS: save({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}),
    }
    for name, content in contents.items():
        with atomic(folder / name) as partial:
            partial.write_bytes(content)
    return folder


def load_unrolled(folder, device="cpu") -> Unrolled:
    """Read a folder of `save_unrolled`; InputError where it is none."""
    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise InputError(folder, f"no {' and no '.join(missing)}", "a folder made by `mrigsure train-unrolled`")
    try:
        settings, content = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
        fields = json.loads(settings)
        if (version := fields.pop("format")) != FORMAT:
            raise ValueError(f"format {version}, where this version reads {FORMAT}; train it again")
        config = UnrolledConfig(tuple(fields["channels"]), fields["unrolls"])
        model = Unrolled(config, folder.name, hashlib.sha256(settings + content).hexdigest())
        model.load_state_dict(load(content))
    except Exception as error:
        raise InputError(folder, str(error).splitlines()[0], "a complete unrolled network of this version") from error
    return model.to(device).eval().requires_grad_(False)
