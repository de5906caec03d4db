"""Parity with the clean-trained model on scikit-learn's digits, from images with missing patches and noise.

    python benchmarks/digits_parity.py [--quick] [--seeds N]

Half of the 1,797 digits (8 x 8, scaled to [-1, 1]) trains, half is held out; every seed draws its own halves, masks,
noise and weights. Patches of 2 x 2 are missing with probability 0.2 (the paper's), the rest has noise 0.1: ten times
the paper's. Arms, each with the same network and number of updates: clean; the published GSURE; GSURE, then refined.

frechet   Frechet distance between as many generated images as there are held out and these, in the 32 features of a
          classifier's hidden layer, fitted on the training half's clean digits; of the two real halves: the floor
pixels    the same in the first 20 principal components of the training half
inpaint   root mean square error on the missing pixels of held-out digits, patches missing with probability 0.4, noise
          0.05 on the rest, mean of 8 posterior draws; neither masks nor noise are those of the training

Ratios to the clean arm are paired by seed: mean and 95% interval (Student's t). The last line is the published
objective's Frechet ratio against its bar; the inpainting ratio's bar, 1.05, stands in the table's last column.
"""

import argparse
import sys
import warnings

import numpy as np
import torch

from mrigsure.image_denoiser import ImageDenoiser, ImageTraining, train_clean, train_gsure
from mrigsure.kawar import VPSchedule
from mrigsure.masked_images import corrupt, generate, inpaint
from mrigsure.progress import say, status_table, track
from mrigsure.seeds import generator

PATCH, MISSING, SIGMA0 = 2, 0.2, 0.1
TEST_MISSING, TEST_SIGMA0, DRAWS = 0.4, 0.05, 8
FRECHET_BAR, INPAINT_BAR = 1.25, 1.05
FIGURES = ("frechet", "pixels", "inpaint")
SCHEDULE = VPSchedule()


def measure(seed: int, training: ImageTraining, draws: int) -> dict[str, tuple[float, ...]]:
    """Arm -> FIGURES, and the floor of the first two."""
    images, labels = digits()
    order = torch.randperm(len(images), generator=generator(seed, "halves"))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    embeddings = classifier_features(images[train], labels[train]), principal_components(images[train])
    data = corrupt(images[train], PATCH, MISSING, SIGMA0, generator(seed, "corrupt"))
    lowest = int(SCHEDULE.first_step(data.sigma0.max()))

    def fresh():
        torch.manual_seed(seed)
        return ImageDenoiser(64, SCHEDULE)

    arms = {
        "clean": (lambda: train_clean(fresh(), images[train], SCHEDULE, training, seed), 0),
        "gsure": (lambda: train_gsure(fresh(), data, SCHEDULE, training, seed), lowest),
        "refined": (lambda: train_gsure(fresh(), data, SCHEDULE, training, seed, refine=True), 0),
    }
    result = {"two real halves": (*distances(embeddings, images[train], images[test]), np.nan)}
    for arm, (make, last) in arms.items():
        network = make()
        made = generate(network, images[test].shape, SCHEDULE, generator(seed, "generate"), last=last)
        error = inpainting_error(network, images[test], last, seed, draws)
        result[arm] = (*distances(embeddings, made, images[test]), error)
    return result


def inpainting_error(network, images, last, seed, draws):
    rng = generator(seed, "inpaint")
    data = corrupt(images, PATCH, TEST_MISSING, TEST_SIGMA0, rng)
    mean = sum(inpaint(network, data, SCHEDULE, rng, last=last) for _ in range(draws)) / draws
    missing = 1 - data.mask
    return float(((mean - images).square() * missing).sum() / missing.sum()) ** 0.5


def digits():
    """Images float32 (1797, 8, 8) in [-1, 1], and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32) / 8 - 1, data.target


def classifier_features(images, labels):
    """The hidden layer of a classifier with fixed seed: (count, H, W) -> (count, 32)."""
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 300 iterations are enough for 97% of the held-out digits
        network = MLPClassifier((32,), random_state=0, max_iter=300).fit(images.flatten(1).numpy(), labels)
    weight, bias = network.coefs_[0], network.intercepts_[0]
    return lambda x: np.maximum(x.flatten(1).numpy() @ weight + bias, 0)


def principal_components(images):
    """The first 20 principal components of pixels: (count, H, W) -> (count, 20)."""
    flat = images.flatten(1).numpy().astype(np.float64)
    mean = flat.mean(0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:20]
    return lambda x: (x.flatten(1).numpy() - mean) @ axes.T


def distances(embeddings, a, b):
    return tuple(frechet(embed(a), embed(b)) for embed in embeddings)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features (count, d) (Dowson and Landau 1982)."""
    first, second = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * roots)


def with_interval(values) -> str:
    """Mean and half width of the 95% interval of Student's t."""
    from scipy.stats import t

    values = np.asarray(values)
    if len(values) < 2:
        return f"{values.mean():.3f}"
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ± {half:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the updates, 2 draws")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    training = ImageTraining(updates=600, rounds=3) if options.quick else ImageTraining()
    seeds, draws = (1, 2) if options.quick else (options.seeds, DRAWS)
    results = [measure(seed, training, draws) for seed in track(range(seeds), "seeds")]
    say(
        f"digits: patches missing {MISSING}, noise {SIGMA0}, {training.updates} updates of {training.batch_size}, "
        f"{seeds} seed{'s' * (seeds > 1)}"
    )
    rows, ratios = [], {}
    for arm in results[0]:
        figures = np.array([result[arm] for result in results])
        cells = [with_interval(column) if np.isfinite(column).all() else "" for column in figures.T]
        if arm in ("gsure", "refined"):
            ratios[arm] = figures / np.array([result["clean"] for result in results])
            cells += [with_interval(ratios[arm][:, 0]), with_interval(ratios[arm][:, 2])]
            cells.append("met" if ratios[arm][:, 2].mean() <= INPAINT_BAR else "missed")
        rows.append([arm, *cells])
    status_table(rows, ("arm", *FIGURES, "frechet / clean", "inpaint / clean", f"inpaint <= {INPAINT_BAR}"))
    ratio = float(ratios["gsure"][:, 0].mean())
    met = ratio <= FRECHET_BAR
    print(f"digits_frechet_ratio {ratio:.3f} {FRECHET_BAR} {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
