"""Properties of simulated raw files."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import mrigsure.simulate
from mrigsure.errors import InputError
from mrigsure.fastmri_files import make_header, write_fastmri
from mrigsure.files import sha256
from mrigsure.fourier import ifft2c
from mrigsure.phantoms import TEST_HEADS, TRAIN_HEADS
from mrigsure.settings import SimulateSettings
from mrigsure.simulate import simulate


def settings(out, **changes):
    small = SimulateSettings(out=str(out), volumes=3, slices=2, matrix=(32, 40), coils=(2, 5), center_fraction=0.15)
    return replace(small, **{key: str(value) if key == "truth" else value for key, value in changes.items()})


def rss(kspace):
    return np.sqrt((np.abs(ifft2c(torch.from_numpy(kspace)).numpy()) ** 2).sum(1))


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path):
    first = simulate(settings(tmp_path / "a", pattern=("random", "poisson"), truth=tmp_path / "ta"))
    second = simulate(settings(tmp_path / "b", pattern=("random", "poisson"), truth=tmp_path / "tb"))
    other = simulate(settings(tmp_path / "c", pattern=("random", "poisson"), seed=1))
    hashes = [sha256(path) for path in first]
    assert hashes == [sha256(path) for path in second]
    assert not set(hashes) & {sha256(path) for path in other}
    assert [sha256(path) for path in sorted((tmp_path / "ta").iterdir())] == [
        sha256(path) for path in sorted((tmp_path / "tb").iterdir())
    ]
    assert len(set(hashes)) == 3


def test_a_resumed_run_keeps_complete_files_and_writes_the_same_bytes(tmp_path):
    paths = simulate(settings(tmp_path))
    before = [sha256(path) for path in paths]
    times = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    simulate(settings(tmp_path))
    assert [sha256(path) for path in paths] == before
    assert [path.stat().st_mtime_ns for path in paths][::2] == times[::2]


def test_truth_can_be_asked_for_later(tmp_path):
    paths = simulate(settings(tmp_path / "raw"))
    before = [sha256(path) for path in paths]
    simulate(settings(tmp_path / "raw", truth=tmp_path / "truth"))
    assert [sha256(path) for path in paths] == before
    assert len(list((tmp_path / "truth").iterdir())) == 3


def test_files_of_other_settings_are_refused(tmp_path):
    simulate(settings(tmp_path, volumes=1))
    with pytest.raises(InputError, match="other settings"):
        simulate(settings(tmp_path, volumes=1, seed=1))


def test_no_clean_image_exists_without_truth(tmp_path):
    paths = simulate(settings(tmp_path / "raw", noise=(0.1, 0.1)))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == paths
    simulate(settings(tmp_path / "again", noise=(0.1, 0.1), truth=tmp_path / "truth"))
    for path in paths:
        assert sha256(path) == sha256(tmp_path / "again" / path.name)
        with h5py.File(path) as file, h5py.File(tmp_path / "truth" / path.name) as truth:
            assert set(file) == {"kspace", "mask", "ismrmrd_header", "reconstruction_rss"}
            assert all(np.asarray(value).size <= 1 for value in file.attrs.values())
            clean, recorded = np.abs(truth["target"][()]), file["reconstruction_rss"][()]
            assert np.allclose(recorded, rss(file["kspace"][()]), rtol=1e-4, atol=1e-6 * recorded.max())
            assert "recorded" in file.attrs["reconstruction_rss_source"]
            noise = file.attrs["noise_std"]
            assert np.sqrt(((recorded - clean) ** 2).mean()) > noise  # of one coil; nearer than that is no measurement
            assert (file["kspace"][()][..., file["mask"][()] == 0] == 0).all()


def test_kspace_is_the_coil_images_transform_plus_the_stated_noise(tmp_path, monkeypatch):
    noisy = simulate(settings(tmp_path / "noisy", pattern=("full",), matrix=64, coils=(4, 8)))
    monkeypatch.setattr(mrigsure.simulate, "complex_normal", lambda rng, shape: np.zeros(shape, np.complex64))
    exact = simulate(settings(tmp_path / "exact", pattern=("full",), matrix=64, coils=(4, 8), truth=tmp_path / "truth"))
    levels = []
    for first, second in zip(noisy, exact, strict=True):
        with h5py.File(first) as file, h5py.File(second) as clean, h5py.File(tmp_path / "truth" / first.name) as truth:
            target = truth["target"][()]
            assert "mask" not in file
            assert np.abs(rss(clean["kspace"][()]) - np.abs(target)).max() < 1e-5 * np.abs(target).max()
            noise = file["kspace"][()] - clean["kspace"][()]
            for part in (noise.real, noise.imag):
                assert part.std() == pytest.approx(file.attrs["noise_std"], rel=0.02)
            levels.append(file.attrs["noise_std"] / np.abs(target).mean())
    assert len(set(levels)) == 3


def test_units_coils_and_noise_differ_from_file_to_file(tmp_path):
    scales, coils = [], []
    for path in simulate(settings(tmp_path, volumes=8, slices=1, acceleration=(2.0, 3.0))):
        with h5py.File(path) as file:
            scales.append(file.attrs["noise_std"])
            coils.append(file["kspace"].shape[1])
            assert file["kspace"].shape[2:] == (32, 40) and file["kspace"].dtype == np.complex64
    assert max(scales) > 100 * min(scales)
    assert len(set(coils)) > 1 and min(coils) >= 2 and max(coils) <= 5


@pytest.mark.parametrize("split, heads", [("train", TRAIN_HEADS), ("test", TEST_HEADS)])
def test_heads_come_from_the_split(tmp_path, split, heads):
    for path in simulate(settings(tmp_path, volumes=6, slices=1, split=split)):
        with h5py.File(path) as file:
            assert file.attrs["head"] in heads


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": (0.0, 0.1)},
        {"matrix": 8},
        {"center_fraction": 0.5},
        {"acceleration": ()},
        {"pattern": ("spiral",)},
        {"truth": "raw"},
    ],
)
def test_impossible_settings_are_one_line_and_leave_nothing_behind(tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        simulate(settings(Path("raw"), **changes))
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.h5"))


def test_fastmri_reads_simulated_files(tmp_path):
    from fastmri.data.mri_data import SliceDataset

    simulate(settings(tmp_path))
    slices = SliceDataset(tmp_path, challenge="multicoil", use_dataset_cache=False)
    assert len(slices) == 6
    kspace, mask, target, attributes, name, number = slices[3]
    assert kspace.shape[1:] == target.shape == (32, 40) and mask.shape == (40,)
    assert attributes["recon_size"] == attributes["encoding_size"] == (32, 40, 1)
    assert (attributes["padding_left"], attributes["padding_right"]) == (0, 40)
    assert attributes["max"] >= target.max() and (name, number) == ("sim_00001.h5", 1)


def test_fastmri_reads_single_coil_files(tmp_path):
    from fastmri.data.mri_data import SliceDataset

    kspace = np.random.default_rng(0).normal(size=(2, 8, 6)).astype(np.complex64)
    header = make_header((4, 6), (1, 1, 3), encoded_matrix=(8, 6), slices=2)
    write_fastmri(tmp_path / "one.h5", kspace, header=header, reconstruction_rss=np.abs(kspace[:, 2:6]))
    sample = SliceDataset(tmp_path, challenge="singlecoil", use_dataset_cache=False)[1]
    assert np.array_equal(sample[0], kspace[1]) and sample[1] is None and sample[2].shape == (4, 6)
    assert sample[3]["encoding_size"] == (8, 6, 1) and sample[3]["recon_size"] == (4, 6, 1)


@pytest.mark.parametrize("kspace, mask", [((2, 3), None), ((2, 3, 8, 6), (8,)), ((2, 8, 6), (2, 8, 6))])
def test_shapes_that_do_not_fit_are_refused_before_writing(tmp_path, kspace, mask):
    with pytest.raises(ValueError, match="shape|axes"):
        write_fastmri(tmp_path / "x.h5", np.zeros(kspace), mask=None if mask is None else np.ones(mask))
    assert not list(tmp_path.iterdir())
