"""An overfitted prior is found out by what it knows of its training scans; one that only learnt statistics is not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrigsure import cli
from mrigsure.archive import split_by_file
from mrigsure.audit import between_priors, examine, sort_scans
from mrigsure.denoiser import Denoiser, DenoiserConfig, Prior, load_prior, save_prior
from mrigsure.diffusion import draw_sigma
from mrigsure.errors import InputError
from mrigsure.memorisation import compare_errors, compare_nearest, extraction_errors, measured_distances
from mrigsure.objectives import denoising
from mrigsure.phantoms import random_scan
from mrigsure.scan import PreparedVolume, ScanSet, write_prepared
from mrigsure.seeds import generator
from mrigsure.settings import AuditSettings

SIZE = 16
CHANNELS = (16, 32)
QUICK = AuditSettings("prior", ["scans"], samples=8, draws=2, levels=12)


def phantoms(first, count):
    options = {"coils": 4, "acceleration": 2.0, "center_fraction": 0.13}
    return [
        replace(random_scan(np.random.default_rng(number), (SIZE, SIZE), **options), name=f"{number}#0")
        for number in range(first, first + count)
    ]


def trained_on(scans, steps):
    """A small network after so many updates of plain denoising on the scans' clean images: it can only memorise."""
    torch.manual_seed(0)
    model = Denoiser(CHANNELS)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    images = torch.stack([scan.target for scan in scans])
    for step in range(steps):
        rng = generator(0, "overfit", step)
        sigma = draw_sigma(torch.full((16,), 0.02), 20.0, (-1.5, 1.5), rng)
        loss = denoising(model, images[torch.randint(len(images), (16,), generator=rng)], sigma, rng)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        optimizer.zero_grad()
        (weight * loss).mean().backward()
        optimizer.step()
    return Prior(model, DenoiserConfig(channels=CHANNELS, sigma_min=0.02), name="tiny")


class Gaussian(torch.nn.Module):
    """The exact denoiser of a white Gaussian prior: it knows nothing of any scan."""

    def forward(self, x, sigma):
        return x * (0.25 / (0.25 + sigma**2))[:, None, None]


@pytest.fixture(scope="module")
def scans():
    """(training, unseen)"""
    return phantoms(0, 4), phantoms(100, 8)


@pytest.fixture(scope="module")
def overfitted(scans):
    return examine(trained_on(scans[0], 150), *scans, QUICK)


@pytest.fixture(scope="module")
def gaussian(scans):
    return examine(Prior(Gaussian(), DenoiserConfig(sigma_min=0.02), name="Gaussian"), *scans, QUICK)


def test_an_overfitted_network_is_flagged_by_both_tests(overfitted):
    assert overfitted.extraction.remembers and overfitted.extraction.ratio < 0.7
    assert overfitted.nearest.remembers and overfitted.nearest.ratio < 0.8
    assert overfitted.sentence.startswith("tiny remembers its training scans")


def test_a_gaussian_prior_is_not_flagged(gaussian):
    assert not gaussian.remembers
    assert gaussian.sentence == "Gaussian shows no sign of remembering its training scans."


def test_a_barely_trained_network_is_not_flagged(scans):
    found = examine(trained_on(scans[0], 10), *scans, QUICK)
    assert not found.remembers, (found.nearest, found.extraction)


def test_two_priors_are_compared_scan_by_scan(overfitted, gaussian):
    between = between_priors(overfitted, gaussian)
    assert between.high < 1 and between.ratio == pytest.approx(overfitted.extraction.ratio / gaussian.extraction.ratio)
    same = between_priors(gaussian, gaussian)
    assert same.low == same.ratio == same.high == 1


def test_a_copy_is_at_distance_0_whatever_its_flip_phase_and_scale_and_the_mask():
    scan = random_scan(np.random.default_rng(3), (SIZE, SIZE), coils=4, acceleration=2.0, center_fraction=0.13, noise=0)
    copy = 3 * torch.polar(torch.tensor(1.0), torch.tensor(2.0)) * scan.target.flip(0).conj().resolve_conj()
    other = random_scan(np.random.default_rng(4), (SIZE, SIZE)).target
    near, far = measured_distances(torch.stack([copy, other]), [scan])[:, 0]
    assert near < 2e-3 and 0.2 < far <= 1


class Oracle(torch.nn.Module):
    """Knows one image by heart."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, x, sigma):
        return self.image.expand_as(x)


def test_who_knows_the_scan_by_heart_errs_on_withheld_lines_by_their_noise_alone():
    scan = phantoms(5, 1)[0]
    withheld = (scan.mask > 0) & (scan.density < 0.999)
    kept = replace(scan, mask=scan.mask * ~withheld, kspace=scan.kspace * ~withheld).batch()
    plain = kept.operator.solve(kept.operator.adjoint(kept.kspace), (kept.sigma0 / 0.5).square())
    wrong, noise = (
        float((scan.batch().operator.coil_kspace(image)[0] - scan.kspace)[:, withheld].abs().square().sum())
        for image in (plain, scan.target[None])
    )
    prior = Prior(Oracle(scan.target), DenoiserConfig(sigma_min=0.02))
    found = extraction_errors(prior, [scan], draws=2, levels=8, seed=0)
    assert float(found) == pytest.approx(noise / wrong, rel=0.1) and noise / wrong < 0.3


def test_the_nearest_is_sought_among_equally_many_of_either_kind():
    """Ten times as many training scans have nearer ones among them by chance alone; that is no memory."""
    distances = torch.rand(6, 110, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5
    found = compare_nearest(distances[:, :100], distances[:, 100:])
    assert distances[:, :100].amin() < distances[:, 100:].amin()
    assert not found.remembers and found.ratio == pytest.approx(1, abs=0.05)


def test_scans_that_are_all_alike_are_rarely_flagged_and_the_interval_holds_1():
    rng = torch.Generator().manual_seed(1)
    found = [compare_errors(*torch.randn(2, 8, generator=rng).mul(0.3).exp(), seed) for seed in range(16)]
    assert sum(one.remembers for one in found) <= 1
    assert sum(one.low <= 1 <= one.high for one in found) >= 13


def test_a_halved_error_is_memory_and_a_doubled_one_is_not():
    errors = torch.linspace(0.8, 1.2, 8)
    assert compare_errors(errors / 2, errors).remembers and compare_errors(errors / 2, errors).chance < 0.002
    assert not compare_errors(errors * 2, errors).remembers and compare_errors(errors * 2, errors).chance > 0.99


def test_few_scans_decide_nothing():
    found = compare_errors(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]))
    assert found.ratio == 0.5 and not found.remembers and found.undecided


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """(folder of 5 prepared files, folder of a prior that says that it was trained on them)"""
    folder = tmp_path_factory.mktemp("archive")
    for number, scan in enumerate(phantoms(0, 5)):
        arrays = (scan.kspace[None], scan.mask[0] > 0, scan.sens_maps[None], scan.density[0])
        volume = PreparedVolume(*(array.numpy() for array in arrays), scan.noise_std, 1.0)
        write_prepared(folder / "scans" / f"{number}.h5", volume)
    record = {"settings": {"validation": 0.4, "seed": 7}, "archive": {"files": 5}}
    torch.manual_seed(0)
    config = DenoiserConfig(channels=(8, 8), sigma_min=0.02)
    save_prior(folder / "prior", Denoiser((8, 8)).state_dict(), config, record, "card")
    return folder


def test_training_scans_are_those_that_training_did_not_hold_apart(archive):
    prior = load_prior(archive / "prior")
    training, unseen = sort_scans([prior], [archive / "scans"], None)
    split = split_by_file(ScanSet([archive / "scans"]), 0.4, 7)
    assert [scan.name for scan in training] == [f"{index}#0" for index in split[0]]
    assert [scan.name for scan in unseen] == [f"{index}#0" for index in split[1]] and len(unseen) == 2
    training, unseen = sort_scans([prior], [archive / "scans" / "0.h5"], str(archive / "scans" / "1.h5"))
    assert [scan.name for scan in training + unseen] == ["0#0", "1#0"]


def test_scans_that_do_not_fit_the_training_are_refused(archive):
    with pytest.raises(InputError, match=r"1 files, where prior was trained with 5; expected .* --unseen"):
        sort_scans([load_prior(archive / "prior")], [archive / "scans" / "0.h5"], None)


def test_the_command_prints_a_verdict_and_writes_the_figures(archive, capsys):
    words = ["--samples", "2", "--draws", "1", "--levels", "4", "--out", str(archive / "audit.json")]
    prior, scans = str(archive / "prior"), [str(archive / "scans" / f"{number}.h5") for number in range(5)]
    assert cli.main(["audit", prior, *scans, "--against", prior, *words]) == 0
    shown = capsys.readouterr().out
    assert "Too few scans to tell whether prior remembers" in shown
    assert "do not differ beyond chance" in shown
    report = json.loads((archive / "audit.json").read_text())
    assert report["scans"] == {"training": 3, "unseen": 2} and report["between"]["ratio"] == 1
    first, second = report["priors"]
    assert first == second and not first["remembers"] and first["extraction"]["chance"] > 0.05
