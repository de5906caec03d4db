"""GSURE-Diffusion on faces with missing patches and noise: inpainting beside a network trained on clean faces.

    python examples/faces.py --out FOLDER [--quick]

scikit-image's `lfw_subset` holds 100 face crops of 25 x 25. 80 train, with their mirror images; 20 are held out. From
the training faces patches of 5 x 5 are missing with probability 0.2, and noise of 0.05 lies on the rest. Writes
inpainting.png (held-out faces, a third of their patches missing) and samples.png, and prints the errors on the missing
pixels. With so few faces this is a demonstration: parity is measured on digits, in benchmarks/digits_parity.py.

The faces are press photographs of the Labeled Faces in the Wild set (Huang et al. 2007), collected from the web for
research; neither the set nor scikit-image states a licence for them. So no picture of them ships with mrigsure: this
example writes them where you say.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from mrigsure.denoiser import Denoiser
from mrigsure.files import atomic
from mrigsure.image_denoiser import ImageTraining, train_clean, train_gsure
from mrigsure.kawar import VPSchedule, at_steps
from mrigsure.masked_images import corrupt, generate, inpaint
from mrigsure.progress import say, track
from mrigsure.seeds import generator

PATCH, MISSING, SIGMA0 = 5, 0.2, 0.05
TEST_MISSING, DRAWS, SHOWN = 1 / 3, 16, 8
SCHEDULE = VPSchedule()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="a tenth of the updates, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out, seed = Path(options.out), options.seed
    train, test = faces(seed)
    data = corrupt(train, PATCH, MISSING, SIGMA0, generator(seed, "corrupt"))
    training = ImageTraining(updates=120 if options.quick else 1200, batch_size=16, learning_rate=2e-3)
    networks = {}
    for name in track(("clean faces", "corrupted faces"), "training"):
        torch.manual_seed(seed)
        fit, images = (train_clean, train) if name == "clean faces" else (train_gsure, data)
        networks[name] = fit(FaceDenoiser(), images, SCHEDULE, training, seed)
    lowest = int(SCHEDULE.first_step(data.sigma0.max()))
    measured = corrupt(test, PATCH, TEST_MISSING, SIGMA0, generator(seed, "test"))
    rows = {"truth": test, "measured": torch.where(measured.mask > 0, measured.values, torch.nan)}
    for name, network in networks.items():
        rng = generator(seed, "inpaint")
        mean = sum(inpaint(network, measured, SCHEDULE, rng, last=lowest) for _ in range(DRAWS)) / DRAWS
        missing = 1 - measured.mask
        error = float(((mean - test).square() * missing).sum() / missing.sum()) ** 0.5
        say(f"trained on {name}: inpainting error {error:.3f} (images span -1 to 1)")
        rows[f"trained on\n{name}"] = mean
    picture(out / "inpainting.png", {label: images[:SHOWN] for label, images in rows.items()})
    shape = (SHOWN, *test.shape[1:])
    samples = {
        f"trained on\n{name}": generate(network, shape, SCHEDULE, generator(seed, "samples"), last=lowest)
        for name, network in networks.items()
    }
    picture(out / "samples.png", samples)
    say(f"pictures in {out / 'inpainting.png'} and {out / 'samples.png'}")


class FaceDenoiser(nn.Module):
    """mrigsure's own U-Net f(x, sigma) as a network of (x_t, t), its imaginary channel left empty."""

    def __init__(self):
        super().__init__()
        self.denoiser = Denoiser((16, 32, 48))

    def forward(self, x_t, step):
        return at_steps(self._real, SCHEDULE)(x_t, step)

    def _real(self, x, sigma):
        return self.denoiser(torch.complex(x, torch.zeros_like(x)), sigma).real


def faces(seed):
    """Training faces with their mirror images (160, 25, 25), and held-out ones (20, 25, 25), float32 in [-1, 1]."""
    from skimage.data import lfw_subset

    images = torch.tensor(lfw_subset()[:100], dtype=torch.float32) * 2 - 1
    order = torch.randperm(100, generator=generator(seed, "faces"))
    train = images[order[:80]]
    return torch.cat([train, train.flip(-1)]), images[order[80:]]


def picture(path, rows):
    """A row of images for every label; nan is shown in red."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    gray = colormaps["gray"].with_extremes(bad="#a03028")
    figure = Figure(figsize=(1.1 * SHOWN + 1.3, 1.15 * len(rows)), layout="constrained")
    for line, (label, images) in zip(figure.subplots(len(rows), SHOWN, squeeze=False), rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, cmap=gray, vmin=-1, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    with atomic(path) as partial:
        figure.savefig(partial, dpi=110)


if __name__ == "__main__":
    main()
