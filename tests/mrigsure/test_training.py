"""Training lowers a risk that it never sees, undoes rounds that collapse, refuses what it cannot learn from."""

import itertools
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import NOISE, SIZE, checkpoint_of, figures_of, history_of, losses_of, settings, write_scans

from mrigsure import losses, training
from mrigsure.archive import open_archive
from mrigsure.calibrate import refinement_spread
from mrigsure.denoiser import load_prior
from mrigsure.diffusion import GAMMA, sigma_schedule
from mrigsure.draws import scans_to_draw, split_scan
from mrigsure.errors import InputError, ScanWarning
from mrigsure.network import UNet
from mrigsure.operators import SenseOperator
from mrigsure.phantoms import random_scan
from mrigsure.posterior import SWEEP_SIGMA, draw_levels
from mrigsure.processes import start_process
from mrigsure.refinement import SWEEPS, EStep
from mrigsure.scan import PreparedVolume, ScanSet, write_prepared
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import PixelSpectrumSpread, ScalarFactor, ScalarSpread
from mrigsure.training import Trainer, train


@pytest.fixture(scope="module")
def full_scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("full_scans"), 4, pattern="full")


def trainer_of(chosen):
    return Trainer(chosen, open_archive(chosen.prepared, chosen.validation, chosen.seed), start_process(chosen))


def true_risk(prior, sigma=0.3):
    """Mean squared error of denoising clean phantoms that no training drew."""
    targets = torch.stack([random_scan(np.random.default_rng(1000 + i), (SIZE, SIZE)).target for i in range(16)])
    noisy = targets + sigma * complex_noise(targets.shape, generator(0))
    return float((prior.denoise(noisy, torch.full((16,), sigma)) - targets).abs().square().mean() / 2)


@pytest.fixture(scope="module")
def learned(tiny_scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "prior"
    options = dict(steps=120, rounds=0, batch_size=4, channels=(16, 16), learning_rate=4e-3, ema=0.97, validation=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_NFE", 6)
        patch.setattr(training, "_EARLY_FIGURES", ())
        return train(settings(tiny_scans, out, precision="bf16", validation_scans=3, **options))


def test_training_lowers_the_true_risk_that_it_never_sees(learned):
    """Against the linear shrinkage that the untrained network is."""
    untrained = 0.5**2 * 0.3**2 / (0.5**2 + 0.3**2)  # the risk of shrinkage where the image has sigma_data
    assert true_risk(load_prior(learned)) < 0.6 * untrained
    figures = [entry["residual"] for entry in history_of(learned) if "bands" not in entry]
    assert len(figures) == 8 and figures[-1] < 0.9 * figures[0], "the truth-free figure falls with it"


# --- the first stage ---

FIRST_STAGES = {
    ("heldout", "solve"): math.sqrt(2),
    ("heldout", "adjoint"): math.sqrt(2),
    ("split", "solve"): math.sqrt(2),
    ("gsure", "adjoint"): 1.02,
    ("gsure", "solve"): math.sqrt(2),
    ("supervised", "solve"): 0.25,
}


def test_every_objective_and_input_learns_differently_down_to_its_lowest_level(tiny_scans, tmp_path, brief):
    digests = set()
    for (objective, kind), lowest in FIRST_STAGES.items():
        chosen = settings(
            tiny_scans, tmp_path / f"{objective}-{kind}", objective=objective, input=kind, steps=1, rounds=0
        )
        prior = load_prior(train(chosen))
        assert prior.config.sigma_min == pytest.approx(lowest * NOISE, rel=1e-4)
        digests.add(prior.sha256)
    assert len(digests) == len(FIRST_STAGES)


def test_supervised_training_without_targets_is_refused(tmp_path):
    folder = tmp_path / "scans"
    for index in range(2):
        scan = random_scan(np.random.default_rng(index), (SIZE, SIZE), coils=2)
        arrays = {"kspace": scan.kspace[None].numpy(), "sens_maps": scan.sens_maps[None].numpy()}
        plain = dict(
            mask=scan.mask[0].numpy() > 0, sampling_density=scan.density[0].numpy(), noise_std=NOISE, scale=1.0
        )
        write_prepared(folder / f"{index}.h5", PreparedVolume(**arrays, **plain))
    with pytest.raises(InputError, match="no target; expected files with the truth"):
        train(settings(folder, tmp_path / "prior", objective="supervised", rounds=0))


def test_denoised_learns_from_the_denoised_images_of_fully_sampled_scans_alone(full_scans, tiny_scans, tmp_path, brief):
    options = dict(objective="denoised", round_scans=0, keep_rounds=True)
    folder = train(settings(full_scans, tmp_path / "prior", **options))
    chosen = settings(full_scans, tmp_path / "prior")
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed)
    chains, denoiser = checkpoint_of(folder)["chains"], load_prior(folder / "round_0")
    assert sorted(chains) == archive.training
    for index, images in chains.items():
        batch = archive.scans[index].batch()
        expected = denoiser.denoise(batch.operator.adjoint(batch.kspace), 1.02 * batch.sigma0)
        assert torch.allclose(images, expected, atol=0.02 * float(expected.abs().max()))
    with pytest.raises(InputError, match=r"scan_000.h5: found \d+% of k-space sampled; expected fully sampled scans"):
        train(settings(tiny_scans, tmp_path / "other", **options))


def test_tweedie_learns_above_the_noise_first_and_then_down_to_a_quarter_of_it(
    full_scans, tiny_scans, tmp_path, brief, monkeypatch
):
    seen, plain = [], losses.ambient_tweedie

    def heard(denoise, batch, sigma, rng):
        seen.append(sigma / batch.sigma0)
        return plain(denoise, batch, sigma, rng)

    monkeypatch.setattr(losses, "ambient_tweedie", heard)
    options = dict(objective="tweedie", rounds=0, steps=24, batch_size=8)
    prior = load_prior(train(settings(full_scans, tmp_path / "prior", **options)))
    first, second = torch.cat(seen[:12]), torch.cat(seen[12:])
    assert len(seen) == 24 and first.min() >= 1.02 - 1e-6
    assert 0.25 - 1e-6 <= second.min() < 1
    assert prior.config.sigma_min == pytest.approx(open_archive([str(full_scans)], 0.1, 0).record["noise_std"][0] / 4)
    with pytest.raises(InputError, match="expected fully sampled scans for --objective tweedie"):
        train(settings(tiny_scans, tmp_path / "other", **options))
    with pytest.raises(InputError, match="--rounds"):
        settings(full_scans, tmp_path, objective="tweedie", rounds=1)


# --- rounds ---


def test_a_gaussian_start_draws_images_that_agree_with_every_scan(tiny_scans, tmp_path, brief):
    folder = train(settings(tiny_scans, tmp_path / "prior", start="gaussian", steps=0, round_scans=0))
    state = checkpoint_of(folder)
    archive = open_archive([str(tiny_scans)], 0.1, 0)
    assert sorted(state["chains"]) == sorted(state["pairs"]) == archive.training
    for index, images in state["chains"].items():
        scan, (first, second) = archive.scans[index], state["pairs"][index]
        assert images.shape == (4, SIZE, SIZE)
        apart = [torch.dist(one, other) for one, other in itertools.combinations((*images, first, second), 2)]
        assert min(apart) > 0.2 * max(apart), "every draw has its own noise"
        for image in (images[0], first, second):
            error = scan.mask * (scan.batch().operator.coil_kspace(image[None])[0] - scan.kspace)
            noise = 2 * scan.noise_std**2 * scan.mask.sum() * len(scan.kspace)
            assert 0.5 < float(error.abs().square().sum() / noise) < 4, "the second is of another scan alike"
    assert [entry["round"] for entry in history_of(folder)] == [1], "there is no first stage to judge"
    assert load_prior(folder).config.sigma_min == pytest.approx(NOISE / 4)


def test_rounds_learn_from_crops_and_from_every_draw_of_a_scan(tiny_scans, tmp_path, brief, monkeypatch):
    shapes, plain = [], losses.denoising
    monkeypatch.setattr(losses, "denoising", lambda f, x, *rest: shapes.append(tuple(x.shape)) or plain(f, x, *rest))
    options = dict(start="gaussian", steps=0, crop=10, targets="draws", measured=0.0, round_samples=3)
    options |= dict(round_steps=6)
    folder = train(settings(tiny_scans, tmp_path / "prior", **options))
    assert shapes == [(2, 10, 10)] * 6
    chosen = settings(tiny_scans, tmp_path / "prior", **options)
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed)
    chains = checkpoint_of(folder)["chains"]
    whole = replace(chosen, crop=0)
    picked = torch.cat([losses.pick_batch(whole, archive, chains, {}, {}, (1, step, 0)) for step in range(12)])
    energies = torch.stack([draws.abs().square().sum((1, 2)) for draws in chains.values()])  # what augmentation leaves
    nearest = [(energies / image.abs().square().sum() - 1).abs().flatten() for image in picked]
    assert {int(apart.argmin()) % 3 for apart in nearest} == {0, 1, 2} and max(map(torch.min, nearest)) < 1e-5


def test_draws_that_learn_from_what_was_measured_come_with_their_scans_augmented_alike(tiny_scans, tmp_path):
    chosen = settings(tiny_scans, tmp_path / "prior", measured=0.5, batch_size=8)
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed, targets=True)
    chains = {i: torch.stack([archive.scans[i].target] * 4) for i in archive.training}
    pairs = {i: torch.stack([archive.scans[i].target] * 2) for i in archive.training}
    images = chains, pairs, dict.fromkeys(chains, 1)
    whole = losses.pick_batch(chosen, archive, *images, (1, 0, 0))
    rows = losses.pick_batch(replace(chosen, crop=10), archive, *images, (1, 0, 0))
    assert rows.images.shape == (8, 10, SIZE) and rows.scans.kspace.shape[-2:] == (10, SIZE)
    for drawn in (whole, rows):
        for other in (drawn.others, *drawn.pairs.unbind(1)):
            assert torch.equal(drawn.images, other), "the other draws are turned and cut with them"
        for kspace, variance in ((drawn.scans.kspace, 1), (drawn.noisier, GAMMA)):
            error = drawn.scans.mask * (drawn.scans.operator.coil_kspace(drawn.images) - kspace)
            noise = 2 * variance * NOISE**2 * drawn.scans.mask.sum() * kspace.shape[1]
            found = float(error.abs().square().sum() / noise)
            assert found == pytest.approx(1, abs=0.1), "the truth is as far as the noise"
    # what is cut along the readout has the loss of an image that is right everywhere else
    image = torch.zeros_like(whole.images)
    start = next(k for k in range(SIZE) if torch.equal(whole.images[:, k : k + 10], rows.images))
    image[:, start : start + 10] = rows.images
    rest = {"sigma": torch.ones(8), "generator": generator(0), "measured": 1.0}
    cut = losses.denoising(nothing, rows.images, scans=rows.scans, **rest)
    full = losses.denoising(nothing, image, scans=whole.scans, **rest)
    torch.testing.assert_close(10 * cut, SIZE * full)


def test_a_round_learns_from_the_very_splits_that_its_draws_were_made_from(tiny_scans, tmp_path):
    """Of the scans drawn in it and in those that it remembers; the energy of k-space is what augmentation leaves."""
    chosen = settings(tiny_scans, tmp_path / "prior", batch_size=8)
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed)
    chains = {
        i: torch.stack([(4 * i + k) * torch.ones(SIZE, SIZE, dtype=torch.complex64) for k in (1, 2, 3, 4)])
        for i in archive.training
    }
    first, second = (scans_to_draw(chosen, archive, number) for number in (1, 2))
    assert 1 < len(first) < len(archive.training)
    for drawn_in in (dict.fromkeys(first, 1), dict.fromkeys(second, 2), dict.fromkeys(first, 1) | {second[0]: 2}):
        pairs = {i: chains[i][:2] for i in drawn_in}
        drawn_from = [split_scan(archive.scans[i], chosen.seed, number, i) for i, number in drawn_in.items()]
        energies = torch.tensor([float(scan.kspace.abs().square().sum()) for scan in drawn_from])
        drawn = losses.pick_batch(chosen, archive, chains, pairs, drawn_in, (2, 0, 0))
        for energy in drawn.noisier.abs().square().sum((1, 2, 3)):
            assert (energies / energy - 1).abs().min() < 1e-5
        images = torch.cat([torch.stack([drawn.images, drawn.others], 1), drawn.pairs], 1)
        picked = images.abs().mean((2, 3)).round().int() - 1
        assert (picked // 4 == picked[:, :1] // 4).all(), "two draws of one scan, and its pair"
        assert (picked[:, 2:] % 4 == torch.tensor([0, 1])).all()
        assert (picked[:, 0] // 2 != picked[:, 1] // 2).all(), "of different pairs"
        assert all(0 < (picked[:, place] % 2).sum() < len(picked) for place in (0, 1)), "either of a pair"


def test_rounds_draw_every_scan_before_any_again(tiny_scans, tmp_path):
    chosen = settings(tiny_scans, tmp_path / "prior", round_scans=5)
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed)
    rounds = [scans_to_draw(chosen, archive, number) for number in range(1, 9)]
    assert all(len(set(drawn)) == 5 and set(drawn) <= set(archive.training) for drawn in rounds)
    turn = -(-len(archive.training) // 5)
    assert turn in (2, 3, 4) and len(archive.training) % 5, "turns end inside a round"
    for start in (0, turn):
        assert set().union(*rounds[start : start + turn]) == set(archive.training)
    assert rounds[0] != rounds[turn], "each in an order of its own"


@pytest.mark.parametrize("memory", [1, 2])
def test_draws_teach_for_as_many_rounds_as_are_remembered(tiny_scans, tmp_path, brief, memory):
    """A scan's latest draws count, and what is remembered of a scan that is not drawn again stays as it was."""
    options = dict(start="gaussian", steps=0, round_steps=1, round_memory=memory, round_scans=6)
    before = checkpoint_of(train(settings(tiny_scans, tmp_path / "one", rounds=2, **options)))
    after = checkpoint_of(train(settings(tiny_scans, tmp_path / "two", rounds=3, **options)))
    chosen = settings(tiny_scans, tmp_path / "two", rounds=3, **options)
    archive = open_archive(chosen.prepared, chosen.validation, chosen.seed)
    second, third = (scans_to_draw(chosen, archive, number) for number in (2, 3))
    expected = dict.fromkeys(second, 2) if memory == 2 else {}
    assert set(second) - set(third)
    assert after["drawn_in"] == expected | dict.fromkeys(third, 3)
    assert set(after["pairs"]) == set(after["drawn_in"])
    for index, images in before["pairs"].items():
        if index in after["pairs"] and before["drawn_in"][index] == 2:
            assert torch.equal(images, after["pairs"][index]) == (index not in third)


def test_a_refused_round_gives_back_what_was_remembered(tiny_scans, tmp_path, brief, monkeypatch):
    """Its draws replace some of before and let the oldest go: after it all is as the round before left it."""
    plain = training.Trainer._judge

    def judge(trainer):
        if trainer.round < 3:
            return plain(trainer)
        assert {2, 3} == set(trainer.drawn_in.values()) and trainer.drawn_in != before["drawn_in"]
        return trainer._refuse(figures_of(0.5), (0,))

    options = dict(start="gaussian", steps=0, round_steps=1, round_memory=2, round_scans=6)
    before = checkpoint_of(train(settings(tiny_scans, tmp_path / "two", rounds=2, **options)))
    monkeypatch.setattr(training.Trainer, "_judge", judge)
    with pytest.warns(ScanWarning, match="round 3 is refused"):
        after = checkpoint_of(train(settings(tiny_scans, tmp_path / "three", rounds=3, **options)))
    assert after["drawn_in"] == before["drawn_in"]
    for images in ("chains", "pairs"):
        assert set(after[images]) == set(before[images])
        assert all(torch.equal(after[images][index], before[images][index]) for index in before[images])


def test_rounds_that_the_scans_teach_take_two_pairs_of_draws_or_say_so(tiny_scans, tmp_path):
    for count in (1, 2, 5):
        with pytest.raises(InputError, match=f"--round-samples: found {count}; expected an even number from 4 on"):
            settings(tiny_scans, tmp_path, rounds=2, round_samples=count)
    for options in ({"rounds": 2, "targets": "draws"}, {"rounds": 1, "estimate_rounds": 1}, {"rounds": 0}):
        settings(tiny_scans, tmp_path, round_samples=1, **options)


def nothing(x, _):
    return 0 * x


def test_a_round_that_weighs_the_measured_lines_teaches_something_else(tiny_scans, tmp_path, brief):
    options = dict(start="gaussian", steps=0, round_steps=6, targets="draws")
    folders = [train(settings(tiny_scans, tmp_path / f"{m}", measured=m, **options)) for m in (0.0, 0.75)]
    plain, weighted = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert plain != weighted


def test_rounds_that_the_scans_teach_learn_something_else_than_from_draws_alone(tiny_scans, tmp_path, brief):
    options = dict(start="gaussian", steps=0, round_steps=6)
    folders = [train(settings(tiny_scans, tmp_path / t, targets=t, **options)) for t in ("scans", "draws")]
    states = [checkpoint_of(folder) for folder in folders]
    assert not any(torch.equal(images, states[1]["chains"][i]) for i, images in states[0]["chains"].items())
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 2


def test_scans_held_apart_are_taken_from_all_over_the_archive(tiny_scans):
    archive = open_archive([str(tiny_scans)], 0.5, 0)
    everything = [archive.scans[index].name for index in archive.validation]
    assert [scan.name for scan in archive.held_apart(1000)] == everything
    assert [scan.name for scan in archive.held_apart(2)] == everything[:: len(everything) // 2][:2]
    assert not {*everything} & {archive.scans[index].name for index in archive.training}


def test_scans_stay_in_memory_if_a_quarter_of_what_a_process_has_of_it_holds_them(tiny_scans, monkeypatch):
    size = 16 * sum(math.prod(volume.kspace_shape) for volume in ScanSet([tiny_scans]).volumes)
    for free, processes, kept in ((4 * size, "1", True), (4 * size - 4, "1", False), (4 * size, "2", False)):
        monkeypatch.setattr("mrigsure.archive.psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        scans = open_archive([str(tiny_scans)], 0.1, 0).scans
        assert (scans[0] is scans[0]) == kept


def test_draws_that_complete_scans_end_in_sweeps(tiny_scans):
    """Half of SWEEP_SIGMA is the least level before, and the state that the sweeps denoise has the noise of theirs."""
    archive, heard = open_archive([str(tiny_scans)], 0.1, 0), []

    def denoise(x, sigma):
        heard.append(float(sigma[0]))
        return x / (1 + 4 * sigma[:, None, None] ** 2)

    def alike(denoise, x, x0, sigma, generator):
        return ScalarFactor(0.01)

    options = dict(denoise=denoise, spread=alike, estimates=False, levels=12, samples=1, sigma_max=20.0)
    options |= dict(sigma_min=0.01, seed=0, round_number=1, batch_size=2)
    for sweeps, steps in ((0, 3), (2, 3), (2, 8)):
        heard.clear()
        list(EStep(sweeps=sweeps, sweep_steps=steps, **options).update(archive.scans, archive.training[:1], {}))
        levels = draw_levels(12, 0.01, 20.0).tolist()
        swept = sigma_schedule(steps, SWEEP_SIGMA, SWEEP_SIGMA / 6, 20.0).tolist()
        before = [level for level in levels if level >= SWEEP_SIGMA / 2]
        assert len(before) < len(levels)
        assert heard == pytest.approx(before + 2 * swept if sweeps else levels)


@pytest.mark.parametrize(
    ("then", "scatter", "chosen"),
    [((0.4, 0.35), 0.0, 1), ((0.4, 0.35), 0.07, 3), ((0.34, 0.38), 0.04, 2)],
    ids=["the lowest", "as good", "not as good as the lowest"],
)
def test_the_last_prior_not_surely_worse_is_kept_and_patience_ends_the_rounds(
    tiny_scans, tmp_path, monkeypatch, then, scatter, chosen
):
    """Four scans differ by `scatter` in what rounds 2 and 3 change; two standard errors are 1.15 of it."""
    energies = [0.5, 0.3, *then, 0.1]
    signs = torch.tensor([[0.0] * 4, [0.0] * 4, [-1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, 1.0], [0.0] * 4])
    rounds = itertools.count()

    def calibrate(*_, start, match, **__):
        if match != "z2":
            return start, figures_of(0.0)
        number = next(rounds)
        figures = figures_of(energies[number])
        return start, replace(figures, scores=figures.scores + scatter * signs[number])

    monkeypatch.setattr(training, "calibrate_spread", calibrate)
    monkeypatch.setattr(training, "_VALIDATION_LEVELS", 2)
    folder = train(settings(tiny_scans, tmp_path / "prior", steps=1, rounds=5, patience=2, keep_rounds=True))
    assert [entry["energy"] for entry in history_of(folder) if "bands" in entry] == energies[:4]
    weights = [(folder / f"round_{number}" / "model.safetensors").read_bytes() for number in range(4)]
    assert (folder / "model.safetensors").read_bytes() == weights[chosen] and len(set(weights)) == 4
    assert load_prior(folder).record["rounds"] == chosen


def test_a_prior_is_kept_with_its_jacobian(learned):
    """That of the levels of the draws that its rounds learn from, to four digits."""
    config = load_prior(learned).config
    levels = [row[0] for row in config.jacobian]
    sigmas = draw_levels(4, config.sigma_min, config.sigma_max)
    assert levels == pytest.approx(sigmas.tolist(), rel=1e-3)
    assert all(len(row) == 9 and min(row) > 0 for row in config.jacobian)
    passed = [row[1] / (row[1] + row[0] ** 2) for row in config.jacobian]
    assert 0.01 < passed[0] < 0.7 * min(passed[1:]) and max(passed) < 1, (
        "of the lowest band; little where noise hides it"
    )


def test_the_spread_for_reconstruction_is_calibrated_with_the_jacobian_in_as_many_evaluations(
    tiny_scans, tmp_path, monkeypatch
):
    """Of a round's draws, whose spread knows of no jacobian, as many."""
    seen = []

    def calibrate(denoise, scans, sigmas, *, start, match, jacobian, **_):
        seen.append((match, jacobian, PixelSpectrumSpread(jacobian=jacobian).evaluations(len(sigmas))))
        return start, figures_of(0.5)

    monkeypatch.setattr(training, "calibrate_spread", calibrate)
    monkeypatch.setattr(training, "_VALIDATION_LEVELS", 2)
    folder = train(settings(tiny_scans, tmp_path / "prior", steps=1, rounds=1))
    assert [match for match, _, _ in seen] == ["z2", "power"] * 2
    assert all(nfe == 30 for _, _, nfe in seen)
    assert all(bool(jacobian) == (match == "z2") for match, jacobian, _ in seen)
    chosen = load_prior(folder)
    kept = next(jacobian for match, jacobian, _ in seen[2 * chosen.record["rounds"] :] if match == "z2")
    assert chosen.config.jacobian == tuple(tuple(pytest.approx(value, rel=1e-3) for value in row) for row in kept)


def test_a_collapsed_round_is_refused_and_undone_and_the_second_ends_refinement(
    learned, tiny_scans, tmp_path, monkeypatch
):
    """The draws are made to lose power, and the prior that learns from them loses it too; its energy is not to help."""
    spreads, plain, calibrate, energies = [], EStep.update, training.calibrate_spread, itertools.count()

    def worse_and_worse(*arguments, **options):
        bands, figures = calibrate(*arguments, **options)
        return bands, replace(figures, energy=float(next(energies)))

    def update(step, scans, indices, chains):
        spreads.append(type(step.spread))
        yield from plain(step, scans, indices, chains)
        chains |= {index: 0.05 * chains[index] for index in indices}  # what is lost twice a bootstrap gives back

    monkeypatch.setattr(EStep, "update", update)
    monkeypatch.setattr(training, "calibrate_spread", worse_and_worse)
    monkeypatch.setattr(training, "_NFE", 12)
    options = dict(init_from=str(learned), channels=(16, 16), steps=0, rounds=4, round_steps=25, round_scans=0)
    options |= dict(learning_rate=4e-3, ema=0.9, decay=0.0, batch_size=4, validation_scans=6, validation=0.5)
    with pytest.warns(ScanWarning, match="is refused: the draws lost power in radial bands") as caught:
        folder = train(settings(tiny_scans, tmp_path / "prior", **options))
    refusals = [str(warning.message) for warning in caught if "refused" in str(warning.message)]
    assert len(refusals) == 2
    assert "round 1 " in refusals[0] and "the next one draws with a wider spread" in refusals[0]
    assert "round 2 " in refusals[1] and "refinement ends here" in refusals[1]
    assert spreads == [PixelSpectrumSpread] * 3 + [ScalarSpread] * 3, "its pairs as well"
    assert [entry["refused"] for entry in history_of(folder)] == [False, True, True]
    state = checkpoint_of(folder)
    assert state["chains"] == state["pairs"] == {}, "the draws are undone too"
    start = load_prior(learned).denoiser.state_dict()
    assert all(torch.equal(state["model"][key], value) for key, value in start.items())
    assert (folder / "model.safetensors").read_bytes() == (learned / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kept", "refused"),
    [((1.0,) * 4, False), ((0.97,) * 4, False), ((0.9, 0.89, 0.91, 0.9), True), ((1.0, 1.0, 1.0, 0.6), False)],
)
def test_a_round_is_refused_for_what_all_scans_lost_with_the_bands_of_before(
    tiny_scans, tmp_path, monkeypatch, kept, refused
):
    """Each calibration widens the bands and finds less power; what counts is how much each scan kept without that."""
    asked = []

    def calibrate(*_, start, match, **__):
        rounds = round((start[0] - 1) / 0.25)
        return tuple(band + 0.25 for band in start), figures_of(float(rounds), power=0.89 * 0.5**rounds)

    def figures(*_, spread, **__):
        asked.append(spread)
        shares = torch.tensor(kept)
        found = figures_of(0.0, power=0.89 * float(shares.mean()))
        return replace(found, drawn=0.89 * shares[:, None].expand(4, 8))

    monkeypatch.setattr(training, "calibrate_spread", calibrate)
    monkeypatch.setattr(training, "held_out_figures", figures)
    monkeypatch.setattr(training.Trainer, "_validate_now", lambda *_: False)
    with warnings.catch_warnings(record=True):
        folder = train(settings(tiny_scans, tmp_path / "prior", rounds=1))
    assert [entry["refused"] for entry in history_of(folder)] == [False, refused]
    assert asked == [refinement_spread((1.25,) * 8)], "the bands that the round drew with, where it drew with them"


def test_the_first_round_learns_from_point_estimates_and_may_lose_power(learned, tiny_scans, tmp_path, monkeypatch):
    seen, plain = [], EStep.update

    def update(step, scans, indices, chains):
        seen.append((step.name, step.estimates, step.sweeps, isinstance(scans, ScanSet), bool(chains)))
        yield from plain(step, scans, indices, chains)
        for first, *others in (chains[i] for i in indices):
            assert len(others) == (3 if step.name == "chains" else 0)
            assert all(torch.equal(first, other) == step.estimates for other in others)
        if step.estimates:
            chains |= {index: 0.3 * chains[index] for index in indices}

    monkeypatch.setattr(EStep, "update", update)
    monkeypatch.setattr(training, "_NFE", 6)
    options = dict(init_from=str(learned), channels=(16, 16), steps=0, rounds=2, round_steps=25, round_scans=0)
    options |= dict(learning_rate=4e-3, ema=0.9, decay=0.0, batch_size=4, validation_scans=3, validation=0.3)
    folder = train(settings(tiny_scans, tmp_path / "prior", estimate_rounds=1, **options))
    drawn = [("chains", False, SWEEPS, False, False), ("pairs", False, SWEEPS, True, False)]
    drawn += [("bootstrap", False, SWEEPS, False, False)]
    assert seen == [("chains", True, 0, True, False), *drawn], "then new draws, given the noisier scans"
    assert [entry["refused"] for entry in history_of(folder)][:2] == [False, False]


@pytest.mark.parametrize("bootstrap", [0.0, 3.0])
def test_a_pair_is_a_draw_of_a_scan_and_one_of_the_scan_simulated_from_it(
    tiny_scans, tmp_path, brief, monkeypatch, bootstrap
):
    """With the same mask and maps, and noise of its own; without a bootstrap the first alone."""
    asked, plain = {}, EStep.update

    def update(step, scans, indices, chains):
        asked[step.name] = {index: scans[index] for index in indices}
        yield from plain(step, scans, indices, chains)

    monkeypatch.setattr(EStep, "update", update)
    monkeypatch.setattr(training.Trainer, "_lost_in_round", lambda *_: ())  # a refused round would give them back
    folder = train(settings(tiny_scans, tmp_path / "prior", bootstrap=bootstrap))
    pairs = checkpoint_of(folder)["pairs"]
    assert len(pairs) == 4 and {len(images) for images in pairs.values()} == {2 if bootstrap else 1}
    assert list(asked) == ["chains", "pairs", *(["bootstrap"] if bootstrap else [])]
    errors = []
    for index, scan in asked.get("bootstrap", {}).items():
        real, images = asked["pairs"][index], pairs[index]
        assert torch.equal(scan.mask, real.mask) and torch.equal(scan.sens_maps, real.sens_maps)
        assert scan.noise_std == real.noise_std
        noise, own = (scan.kspace - scan.batch().operator.forward(x[None])[0] for x in images)
        assert float(own.abs().square().mean()) > 1.05 * float(noise.abs().square().mean())
        errors.append(noise / NOISE)
        assert not noise[:, scan.mask == 0].any()
    if bootstrap:
        noise = torch.stack(errors)
        for part in (noise.real, noise.imag):
            assert float(part[noise != 0].std()) == pytest.approx(1, abs=0.05)
        both = (noise[0] * noise[1]) != 0
        assert both.sum() > 100
        assert abs((noise[0].conj() * noise[1])[both].mean()) < 0.3, "each scan has its own noise"


def test_a_round_records_the_gain_that_its_draws_were_given(tiny_scans, tmp_path, brief, monkeypatch):
    """Their own, unlike 1 with so few levels; nothing where draws are the targets."""
    given, plain = [], training.unshrunk
    monkeypatch.setattr(training, "unshrunk", lambda images, gain: given.append(gain) or plain(images, gain))
    for targets in ("scans", "draws"):
        given.clear()
        (start, round_1) = history_of(train(settings(tiny_scans, tmp_path / targets, targets=targets)))[-2:]
        assert start["draw_gain"] is None
        if targets == "scans":
            assert set(given) == {given[0]} and len(given) == 4 and max(given[0]) > 1
            assert round_1["draw_gain"] == pytest.approx(given[0], abs=1e-3)
        else:
            assert not given and round_1["draw_gain"] is None


# --- updates ---


def test_accumulated_batches_make_the_gradient_of_their_mean(tiny_scans, tmp_path):
    trainer = trainer_of(settings(tiny_scans, tmp_path / "prior", accumulate=2))
    with torch.no_grad():  # the last layers start at 0
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(0)))
    batches = trainer._batches(0)
    common = dict(sigma_data=trainer.sigma_data, lowest_refined=0.01, device="cpu")
    both = [losses.scan_losses(trainer.settings, trainer.model, batch, name, **common)[1] for name, batch in batches]
    expected = torch.autograd.grad(torch.cat(both).mean(), list(trainer.model.parameters()))
    trainer.accelerator.clip_grad_norm_ = lambda *_: None
    seen = trainer._update(batches)
    assert torch.allclose(seen[:, 1], torch.cat(both).detach())
    for parameter, gradient in zip(trainer.model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mean", [-3.0, 0.5])
def test_updates_take_the_levels_that_were_asked_for(tiny_scans, tmp_path, mean):
    trainer = trainer_of(settings(tiny_scans, tmp_path / "prior", batch_size=8, log_sigma=(mean, 0.2)))
    levels = trainer._update(trainer._batches(0))[:, 0].log()
    assert float((levels - mean).abs().max()) < 0.8 and float(levels.std()) > 0.1


def test_bfloat16_stays_inside_the_network_and_near_float32(tiny_scans, tmp_path, brief, monkeypatch):
    """The loss curve of 12 updates within 2% of float32's; no physics under autocast; the prior is float32."""
    under = {"network": set(), "physics": set()}

    def watch(owner, name, kind):
        plain = getattr(owner, name)

        def watched(*arguments, **options):
            under[kind].add(torch.is_autocast_enabled("cpu"))
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    options = dict(steps=12, rounds=0, learning_rate=4e-3)
    exact = losses_of(monkeypatch, settings(tiny_scans, tmp_path / "exact", **options))
    watch(UNet, "forward", "network")
    for name in ("coil_kspace", "adjoint", "normal", "solve"):
        watch(SenseOperator, name, "physics")
    rough = losses_of(monkeypatch, settings(tiny_scans, tmp_path / "rough", precision="bf16", **options))
    assert under == {"network": {True}, "physics": {False}}
    assert not np.array_equal(rough, exact)
    assert np.abs(rough - exact).max() < 0.02 * exact.mean()
    under["network"].clear()
    output = load_prior(tmp_path / "rough").denoise(complex_noise((1, SIZE, SIZE), generator(0)), 0.5)
    assert under["network"] == {False} and output.dtype == torch.complex64


def test_compile_runs_the_network_through_torch_compile_and_trains_alike(tiny_scans, tmp_path, monkeypatch):
    """The compiler's front end only: its back end needs a C++ compiler and a minute."""
    monkeypatch.setattr(training, "held_out_figures", lambda *_, **__: figures_of(0.5))
    monkeypatch.setattr(training, "calibrate_spread", lambda *_, start, **__: (start, figures_of(0.5)))
    compiled, plain = [], torch.nn.Module.compile

    def compile_without_backend(module):
        compiled.append(type(module))
        plain(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_backend)
    exact = losses_of(monkeypatch, settings(tiny_scans, tmp_path / "exact", rounds=0))
    same = losses_of(monkeypatch, settings(tiny_scans, tmp_path / "compiled", rounds=0, compile=True))
    assert compiled == [UNet, UNet], "the network that learns and its average"
    assert np.allclose(same, exact, rtol=1e-4)
    compiled.clear()
    twice = dict(objective="gsure", compile=True, round_steps=2)
    train(settings(tiny_scans, tmp_path / "gsure", rounds=1, **twice))
    assert compiled == [UNet, UNet], "in the rounds alone: what is compiled cannot be differentiated twice"
    for options, found in (({"rounds": 0}, ""), ({"rounds": 1, "anchor": 0.1}, " and --anchor 0.1")):
        with pytest.raises(InputError, match=f"--compile: found --objective gsure{found}; expected another"):
            settings(tiny_scans, tmp_path, **twice, **options)


# --- runs ---


def test_the_same_seed_gives_the_same_prior_and_another_a_different_one(tiny_scans, tmp_path, brief):
    def digest(name, seed):
        return load_prior(train(settings(tiny_scans, tmp_path / name, rounds=0, seed=seed))).sha256

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


def test_batches_come_in_turn_however_many_threads_make_them_ready(tiny_scans, tmp_path, brief, monkeypatch):
    names = []
    plain = training.scan_losses

    def noted(settings, model, batch, name, **options):
        names.append(name)
        return plain(settings, model, batch, name, **options)

    monkeypatch.setattr(training, "scan_losses", noted)
    made = []
    for threads in (1, 4):
        monkeypatch.setattr(training, "readers", lambda device, threads=threads: threads)
        made.append(train(settings(tiny_scans, tmp_path / f"{threads}", steps=7)))
    one, four = ((folder / "model.safetensors").read_bytes() for folder in made)
    assert one == four
    assert names == 2 * [*((0, step, 0) for step in range(7)), (1, 0, 0), (1, 1, 0)]


def test_init_from_starts_where_the_other_prior_ended(tiny_scans, tmp_path, brief):
    first = train(settings(tiny_scans, tmp_path / "first", steps=2, rounds=0))
    barely = dict(steps=1, rounds=0, learning_rate=1e-12, init_from=str(first))
    second = train(settings(tiny_scans, tmp_path / "second", **barely))
    x = complex_noise((1, SIZE, SIZE), generator(1))
    assert torch.allclose(load_prior(first).denoise(x, 0.5), load_prior(second).denoise(x, 0.5), atol=1e-3)
    with pytest.raises(InputError, match=r"channels \(8, 8\); expected channels \(8, 16\)"):
        train(settings(tiny_scans, tmp_path / "third", **barely, channels=(8, 16)))


def test_an_archive_that_cannot_teach_is_refused_before_any_update(tmp_path):
    folder = write_scans(tmp_path / "fixed", 3, coils=1, same_mask=True)
    with pytest.raises(InputError, match=r"k-space lines .* ever sampled"):
        train(settings(folder, tmp_path / "prior"))
    assert not (tmp_path / "prior").exists()


def test_a_training_that_the_clock_stopped_can_go_on(tiny_scans, tmp_path, brief, monkeypatch):
    """Compiled too, where that turns out to be worth its start."""
    compiled, out = [], tmp_path / "prior"
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module)))
    train(settings(tiny_scans, out, steps=10_000, rounds=0, seconds=1.0))
    before = checkpoint_of(out)["position"][2]
    assert before == load_prior(out).record["updates"] > 0
    assert not compiled
    train(settings(tiny_scans, out, steps=before + 1, rounds=0, resume=True, compile=True))
    assert load_prior(out).record["updates"] == before + 1 and compiled
