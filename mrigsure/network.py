"""The network inside the denoiser: a small U-Net, fast on a CPU in bfloat16 and channels-last memory.

Residual blocks of two convolutions, the noise level entering as scale and shift (as in ADM: Dhariwal and Nichol,
arXiv 2105.05233), one block a resolution on the way down and one on the way up, which are added; no attention, no batch
statistics. In equal time it trains much further than MONAI's DiffusionModelUNet (docs/design.md has the figures).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8
_FREQUENCIES = 16
_EMBEDDING = 128


class UNet(nn.Module):
    """forward(image, level): real (batch, 2, H, W), (batch,) ln sigma -> real (batch, 2, H, W).

    H and W are multiples of 2^(len(channels) - 1); channels are multiples of GROUPS. The output starts at 0.
    """

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        span = torch.linspace(math.log(0.25), math.log(8), _FREQUENCIES)
        self.register_buffer("frequencies", span.exp(), persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, _EMBEDDING), nn.SiLU(), nn.Linear(_EMBEDDING, _EMBEDDING), nn.SiLU()
        )
        above = [channels[0], *channels[:-1]]
        below = [*channels[1:], channels[-1]]
        self.first = _convolution(2, channels[0])
        self.down = nn.ModuleList(_Block(a, c) for a, c in zip(above, channels, strict=True))
        self.middle = _Block(channels[-1], channels[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(b, c, 1) for c, b in zip(channels, below, strict=True))
        self.up = nn.ModuleList(_Block(c, c) for c in channels)
        self.last = nn.Sequential(GroupNorm(GROUPS, channels[0]), nn.SiLU(), _zero(_convolution(channels[0], 2)))
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, level: Tensor) -> Tensor:
        angle = level[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1))
        h = self.first(image.contiguous(memory_format=torch.channels_last))
        kept = []
        for depth, block in enumerate(self.down):
            h = block(functional.avg_pool2d(h, 2) if depth else h, embedding)
            kept.append(h)
        h = self.middle(h, embedding)
        for depth in reversed(range(len(self.up))):
            h = self.narrow[depth](h)
            if depth + 1 < len(self.up):
                # not functional.interpolate: compiled for bfloat16 on CPUs (torch 2.13) its gradient is lost, or fails
                h = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
            h = self.up[depth](kept[depth] + h, embedding)
        return self.last(h)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, which on a CPU the compiler computes group by group, in vectors mostly empty, and differentiates in
    scalars, each divided by the size of its group. Sums over the pixels of each channel, which a small matrix then adds
    up by group, leave it loops over whole rows of channels: a fifth off a compiled evaluation, and 5% off an update.
    """

    def forward(self, image: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(image)
        each = self.num_channels // self.num_groups
        with torch.autocast(image.device.type, enabled=False):
            values = image.float()
            alike = torch.eye(self.num_groups, device=image.device).repeat_interleave(each, 0)
            average = alike @ alike.mT / (each * image[0, 0].numel())
            mean, square = (sums @ average for sums in (values.sum((2, 3)), values.square().sum((2, 3))))
            scale = self.weight * ((square - mean.square()).clamp_min(0) + self.eps).rsqrt()
            shift = self.bias - mean * scale
            return (values * scale[:, :, None, None] + shift[:, :, None, None]).to(image.dtype)


class _Block(nn.Module):
    def __init__(self, incoming: int, outgoing: int):
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(GROUPS, incoming), GroupNorm(GROUPS, outgoing)
        self.conv1, self.conv2 = _convolution(incoming, outgoing), _zero(_convolution(outgoing, outgoing))
        self.modulation = _zero(nn.Linear(_EMBEDDING, 2 * outgoing))
        self.bypass = nn.Conv2d(incoming, outgoing, 1) if incoming != outgoing else nn.Identity()

    def forward(self, image, embedding):
        h = self.conv1(functional.silu(self.norm1(image)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(functional.silu(self.norm2(h) * (1 + scale) + shift))
        return self.bypass(image) + h


def _convolution(incoming, outgoing):
    return nn.Conv2d(incoming, outgoing, 3, padding=1)


def _zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
