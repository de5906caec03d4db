"""The denoiser f(x, sigma) ~ E[x | x + sigma w], a plain torch module, and the folder in which a prior is kept.

config.json        network, sigma range, sigma_data, what J passes, and the spread of R calibrated per radial band
model.safetensors  averaged weights, float16
training.json      what it was trained on, with which settings, and the truth-free figures on the way
card.md            the same in words
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.network import UNet
from mrigsure.scan import SIGMA_DATA
from mrigsure.spread import Jacobian, PixelSpectrumSpread, check_jacobian

FORMAT = 2  # 1 held another network
SHIPPED = "shipped"


@dataclass(frozen=True)
class DenoiserConfig:
    """What rebuilds a denoiser, and where it is defined.

    channels   network width at each resolution
    sigma_min  lowest level it was trained at, per real part
    sigma_max  highest level
    sigma_data standard deviation per real part of whole images, air included, as measured on the training scans
    spread     factor on the R of posterior sampling, one per radial band (docs/method.md, section 7)
    jacobian   how much noise the denoiser lets pass per level and radial band (`spread.Jacobian`); none is also right
    """

    channels: tuple[int, ...] = (24, 48, 64, 64)
    sigma_min: float = 0.01
    sigma_max: float = 20.0
    sigma_data: float = SIGMA_DATA
    spread: tuple[float, ...] = (1.0,)
    jacobian: Jacobian = ()

    def __post_init__(self):
        check_jacobian(self.jacobian)


class Denoiser(nn.Module):
    """A U-Net in EDM's preconditioning (Karras et al. 2022, table 1), for complex images of any size.

    forward(x, sigma): complex (batch, H, W), real (batch,) -> complex (batch, H, W)
    """

    def __init__(self, channels: tuple[int, ...], sigma_data: float = SIGMA_DATA):
        super().__init__()
        self.sigma_data = sigma_data
        self.stride = 2 ** (len(channels) - 1)
        self.network = UNet(channels)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma[:, None, None, None]
        variance = sigma**2 + self.sigma_data**2
        real = torch.view_as_real(x).movedim(-1, 1)  # (batch, 2, H, W)
        output = self._padded(real / variance.sqrt(), sigma.flatten().log()).to(real.dtype)
        image = self.sigma_data**2 / variance * real + sigma * self.sigma_data / variance.sqrt() * output
        return torch.view_as_complex(image.movedim(1, -1).contiguous())

    def _padded(self, real, level):
        height, width = real.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        padded = nn.functional.pad(real, (0, right, 0, bottom), mode="replicate")
        return self.network(padded, level)[..., :height, :width]


class Prior(nn.Module):
    """A trained denoiser with all that posterior sampling needs to know of it.

    forward(x, sigma): complex (batch, H, W) and real (batch,) or a number -> complex (batch, H, W), E[x | x + sigma w].
    Gradients flow to x; the weights are frozen. `denoise` is the same without gradients.

    precision "bf16" computes inside the network with numbers of 8 bits' precision, "no" with those of the weights
    record    what training.json holds
    sha256    of config.json and model.safetensors, one after the other
    """

    def __init__(
        self,
        denoiser: nn.Module,
        config: DenoiserConfig,
        record: dict | None = None,
        name: str = "",
        sha256: str = "",
        precision: str = "no",
    ):
        super().__init__()
        self.precision = precision
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.config, self.record, self.name, self.sha256 = config, record or {}, name, sha256

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.denoiser(x, levels)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """`forward` without gradients."""
        with torch.no_grad():
            return self(x, sigma)

    @property
    def spread(self) -> PixelSpectrumSpread:
        """R of posterior sampling, as calibrated."""
        return PixelSpectrumSpread(self.config.spread, jacobian=self.config.jacobian)

    def with_spread(self, bands: Sequence[float]) -> "Prior":
        """The same network, its draws' spread with other factors per radial band; name and hash stay."""
        config = replace(self.config, spread=tuple(bands))
        return Prior(self.denoiser, config, self.record, self.name, self.sha256, self.precision)


def save_prior(folder, denoiser_state: dict, config: DenoiserConfig, training: dict, card: str) -> Path:
    """Write a prior's folder. `denoiser_state` is a Denoiser's state_dict. The weights come last: without them the
    folder is no prior."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().half().contiguous() for key, value in denoiser_state.items()}
    contents = {
        "config.json": json.dumps({"format": FORMAT, **asdict(config)}, indent=1).encode(),
        "training.json": json.dumps(training, indent=1).encode(),
        "card.md": card.encode(),
        "model.safetensors": save(weights),
    }
    for name, content in contents.items():
        with atomic(folder / name) as partial:
            partial.write_bytes(content)
    return folder


def load_prior(folder=None, device="cpu", precision: str = "no") -> Prior:
    """Read a prior; None or "shipped" is the one that comes with the package. InputError where it is not one.

    precision  of the network: no, or bf16, about half the time where the hardware has it
    """
    shipped = folder is None or str(folder) == SHIPPED
    folder = Path(str(files("mrigsure") / "data" / "prior")) if shipped else Path(folder)
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise InputError(folder, f"no {' and no '.join(missing)}", "the folder of a prior made by `mrigsure train`")
    try:
        settings = (folder / "config.json").read_bytes()
        fields = json.loads(settings)
        if (version := fields.pop("format")) != FORMAT:
            raise ValueError(f"format {version}, where this version reads {FORMAT}; train it again")
        config = DenoiserConfig(**{key: _tuple(value) for key, value in fields.items()})
        content = (folder / "model.safetensors").read_bytes()
        denoiser = Denoiser(config.channels, config.sigma_data)
        denoiser.load_state_dict({key: value.float() for key, value in load(content).items()})
        record = folder / "training.json"
        training = json.loads(record.read_text()) if record.is_file() else {}
    except Exception as error:
        raise InputError(folder, str(error).splitlines()[0], "a complete prior of this version") from error
    digest = hashlib.sha256(settings + content).hexdigest()
    return Prior(denoiser.to(device), config, training, SHIPPED if shipped else folder.name, digest, precision)


def _tuple(value):
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
