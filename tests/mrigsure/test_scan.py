"""The prepared file: what is written is what is read, and what is broken is said."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from mrigsure.errors import InputError
from mrigsure.geometry import Geometry
from mrigsure.phantoms import random_scan
from mrigsure.scan import PreparedVolume, ScanSet, collate, kept_lines, read_prepared, write_prepared
from mrigsure.seeds import generator


@pytest.fixture
def volume():
    scan = random_scan(np.random.default_rng(0), (16, 12), coils=3)
    return PreparedVolume(
        kspace=np.stack([scan.kspace.numpy()] * 2),
        mask=scan.mask[0].numpy() > 0,
        sens_maps=np.stack([scan.sens_maps.numpy()] * 2),
        sampling_density=scan.density[0].numpy(),
        noise_std=0.04,
        scale=3.0,
        source="scan.dat",
        seed=4,
        parameters={"acceleration": 4.0},
        ismrmrd_header="<ismrmrdHeader/>",
        target=np.stack([scan.target.numpy()] * 2),
    )


def test_round_trip(volume, tmp_path):
    write_prepared(tmp_path / "a.h5", volume)
    again = read_prepared(tmp_path / "a.h5", target=True)
    for key in volume.__dataclass_fields__:
        assert np.array_equal(getattr(again, key), getattr(volume, key)), key
    assert read_prepared(tmp_path / "a.h5").target is None, "training must not see the truth"
    write_prepared(tmp_path / "b.h5", volume)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_where_the_slices_lie_is_kept_and_may_be_missing(volume, tmp_path):
    positions = np.array([[0.0, 0, 5], [0, 0, 10]])
    geometry = Geometry((1.0, 2.0, 4.0), positions, np.repeat(np.eye(3)[None], 2, 0))
    write_prepared(tmp_path / "a.h5", replace(volume, geometry=geometry))
    assert np.array_equal(ScanSet([tmp_path / "a.h5"]).volumes[0].geometry.positions, positions)
    part = read_prepared(tmp_path / "a.h5", slice(1, 2)).geometry
    assert part.voxel_mm == (1, 2, 4) and np.array_equal(part.positions, positions[1:])
    write_prepared(tmp_path / "b.h5", volume)
    assert read_prepared(tmp_path / "b.h5").geometry is None
    with pytest.raises(ValueError, match="positions of 1 slices"):
        replace(volume, geometry=geometry.part(slice(1)))


def test_fastmri_opens_a_prepared_file_as_its_own(volume, tmp_path):
    write_prepared(tmp_path / "a.h5", volume)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["kspace"].dtype == np.complex64 and file["kspace"].shape == (2, 3, 16, 12)
        assert file["mask"].shape == (12,) and file["reconstruction_rss"].shape == (2, 16, 12)


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-500])


def damage_foreign(path):
    path.write_text("not HDF5")


def damage_nan(path):
    with h5py.File(path, "a") as file:
        file["kspace"][1, 0, 0, 0] = np.nan


def damage_shape(path):
    with h5py.File(path, "a") as file:
        del file["mask"]
        file["mask"] = np.ones(5)


def damage_schema(path):
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 0


def damage_missing(path):
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (damage_truncated, "truncated"),
        (damage_foreign, "non-HDF5"),
        (damage_nan, "NaN or infinity in kspace"),
        (damage_shape, r"mask \(5,\)"),
        (damage_schema, "schema version 0"),
        (damage_missing, "no such file"),
    ],
)
def test_a_broken_file_is_named_with_what_was_found_and_expected(volume, tmp_path, damage, found):
    path = tmp_path / "scan.h5"
    write_prepared(path, volume)
    damage(path)
    with pytest.raises(InputError, match=rf"scan\.h5: found .*{found}.*; expected "):
        read_prepared(path)


def test_scan_set_reads_every_slice(volume, tmp_path):
    write_prepared(tmp_path / "b.h5", volume)
    write_prepared(tmp_path / "a.h5", replace(volume, scale=2.0))
    scans = ScanSet([tmp_path])
    assert len(scans) == 4
    assert [scans.name(i) for i in range(4)] == ["a#0", "a#1", "b#0", "b#1"]
    assert scans[0].scale == 2.0 and scans[3].scale == 3.0
    assert scans[2].target is None


def test_an_archive_of_up_to_so_many_bytes_is_read_once(volume, tmp_path):
    write_prepared(tmp_path / "a.h5", volume)
    size = 2 * volume.kspace.nbytes
    kept, read_anew = ScanSet([tmp_path], kept=size), ScanSet([tmp_path], kept=size - 1)
    assert kept[0] is kept[0]
    assert read_anew[0] is not read_anew[0]


def test_collate_fills_up_coils_without_changing_the_operator(volume):
    one = volume.scan(0)
    more = random_scan(np.random.default_rng(1), (16, 12), coils=5)
    batch, alone = collate([one, more]), one.batch()
    image = one.target[None]
    assert torch.allclose(batch.operator.normal(image.expand(2, -1, -1))[0], alone.operator.normal(image)[0])
    assert torch.equal(batch.operator.adjoint(batch.kspace)[0], alone.operator.adjoint(alone.kspace)[0])


def test_held_out_lines_are_whole_and_never_of_the_calibration_region(volume):
    batch = volume.scan(0).batch()
    kept = kept_lines(batch.mask, batch.density, torch.tensor([0.5]), generator(0))
    assert (kept == kept[:, :, :1]).all() and (kept <= batch.mask).all()
    assert kept.sum() < batch.mask.sum()
    assert (kept[batch.density == 1] == batch.mask[batch.density == 1]).all()
    assert torch.equal(kept_lines(batch.mask, batch.density, torch.tensor([0.0]), generator(0)), batch.mask)


def test_a_scan_holds_out_the_share_asked_for_and_at_least_one_line(volume):
    scan = volume.scan(0)
    free = int(((scan.mask[0] > 0) & (scan.density[0] < 1)).sum())
    for fraction, expected in ((0.0, 1), (1.0, free)):
        kept = scan.held_out(fraction, generator(1))
        assert int(scan.mask[0].sum() - kept.mask[0].sum()) == expected
        assert torch.equal(kept.kspace, scan.kspace * kept.mask)
    full = replace(scan, mask=torch.ones_like(scan.mask), density=torch.ones_like(scan.mask))
    assert full.held_out(0.5, generator(2)).mask[0, 6] == 1, "the centre of a full scan stays"
