"""A point in the patient comes back where it was: signals of a point source, by the physics, through the readers."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import twixtools
from raw_formats import line, measurement, mrd_encoding, mrd_header, mrd_line, write_mrd
from scipy.spatial.transform import Rotation

from data_prep.pipeline import Pipeline, prepare_volume
from data_prep.readers import read_middle_slice, read_raw
from mrigsure.errors import ScanWarning
from mrigsure.fourier import ifft2c
from mrigsure.settings import PrepareSettings

TURN = Rotation.from_euler("xyz", [20, -35, 50], degrees=True)
PHASE, READ, SLICE = TURN.as_matrix().T  # LPS; right-handed in this order, as scanners have them
CENTER = np.array([12.0, -30.0, 7.5])  # mm, of the middle slice or of the slab
SHAPE, FOV = (16, 12, 6), np.array([128.0, 72.0, 30.0])
IN_PLANE = mrd_encoding((16, 12, 1), (128.0, 72.0, 5.0))


def signal(point, center, fov=FOV, shape=SHAPE, conjugate=False):
    """k-space (x, y, z) of a point source: exp(-2 pi i k (r - center)), k = (n - N // 2) / FOV along each direction."""
    phases = [
        np.exp(-2j * np.pi * (np.arange(size) - size // 2) / length * ((point - center) @ direction))
        for size, length, direction in zip(shape, fov, (READ, PHASE, SLICE), strict=True)
    ]
    kspace = np.einsum("x,y,z->xyz", *phases)
    return (kspace.conj() if conjugate else kspace).astype(np.complex64)


def found(raw):
    """Where the brightest pixel lies, mm: by the definition in mrigsure/geometry.py."""
    image = ifft2c(torch.from_numpy(raw.kspace[:, 0])).abs().numpy()
    number, row, column = np.unravel_index(image.argmax(), image.shape)
    geometry = raw.geometry
    rows, columns, _ = geometry.directions[number]
    steps = row - image.shape[1] // 2, column - image.shape[2] // 2
    lengths = steps[0] * geometry.voxel_mm[0] * rows, steps[1] * geometry.voxel_mm[1] * columns
    return geometry.positions[number] + sum(lengths)


def pixel(row, column, slice_=0):
    """The point that lies so many pixels from the centre."""
    steps = np.array([row, column, slice_]) * FOV / SHAPE
    return CENTER + steps[0] * READ + steps[1] * PHASE + steps[2] * SLICE


def directions(**fields):
    return {"read_dir": tuple(READ), "phase_dir": tuple(PHASE), "slice_dir": tuple(SLICE), **fields}


def mrd(tmp_path, lines, encoding, vendor=None, sequence=None):
    header = mrd_header(encoding)
    if vendor:
        header = header.replace("<institutionName>", f"<systemVendor>{vendor}</systemVendor><institutionName>")
    if sequence:
        end = "</measurementInformation>"
        header = header.replace(end, f"<sequenceName>{sequence}</sequenceName>{end}")
    return write_mrd(tmp_path / "scan.mrd", header, lines)


def slices_2d(point, conjugate=False):
    """Three slices 10 mm apart, excited out of order; a slice sees the points in it."""
    for number, along in enumerate((0, 10, -10)):
        center = CENTER + along * SLICE
        seen = abs((point - center) @ SLICE) < 1
        plane = seen * signal(point, center, conjugate=conjugate)[:, :, SHAPE[2] // 2]
        yield number, center, plane + np.complex64(1e-6)


@pytest.mark.parametrize("vendor", [None, "SIEMENS"])
def test_a_point_in_one_of_several_ismrmrd_slices(tmp_path, vendor):
    point = pixel(4, -3) + 10 * SLICE
    lines = [
        mrd_line(plane[None, :, y], y, slice=number, position=tuple(center), **directions())
        for number, center, plane in slices_2d(point, conjugate=vendor == "SIEMENS")
        for y in range(SHAPE[1])
    ]
    raw = read_raw(mrd(tmp_path, lines, IN_PLANE, vendor))
    assert np.allclose(found(raw), point, atol=1e-3)
    assert np.allclose((raw.geometry.positions - CENTER) @ SLICE, [-10, 0, 10], atol=1e-3)
    assert np.allclose(read_middle_slice(raw.source).geometry.positions, [CENTER], atol=1e-3)


@pytest.mark.parametrize("vendor", [None, "siemens healthcare"])
@pytest.mark.parametrize("whole", ["z", "y", "x"])
def test_a_point_in_a_3d_ismrmrd_scan_cut_along_any_axis(tmp_path, vendor, whole):
    point = pixel(3, -2, 1)
    kspace = signal(point, CENTER, conjugate=vendor is not None)
    sampled = np.ones(SHAPE[1:], bool)
    if whole != "z":
        sampled[:, 1] = False
    if whole == "x":
        sampled[1, 2] = False
    lines = [
        mrd_line(kspace[None, :, y, z], y, z, position=tuple(CENTER), **directions()) for y, z in np.argwhere(sampled)
    ]
    raw = read_raw(mrd(tmp_path, lines, mrd_encoding(SHAPE, FOV.tolist()), vendor))
    assert len(raw.kspace) == SHAPE["xyz".index(whole)]
    assert np.allclose(found(raw), point, atol=1e-3)


def test_preparing_keeps_where_the_slices_lie(tmp_path):
    lines = [
        mrd_line(plane[None, :, y], y, slice=number, position=tuple(center), **directions())
        for number, center, plane in slices_2d(pixel(1, 1))
        for y in range(SHAPE[1])
    ]
    raw = read_raw(mrd(tmp_path, lines, IN_PLANE))
    noise = 0.01 * np.random.default_rng(0).standard_normal(raw.kspace.shape).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        prepared = prepare_volume(replace(raw, kspace=raw.kspace + noise), PrepareSettings(raw=[], out=""))
    assert np.array_equal(prepared.geometry.positions, raw.geometry.positions)


def test_slices_cut_off_and_readout_oversampling_move_nothing(tmp_path):
    point = pixel(2, 3, -1)
    kspace = signal(point, CENTER)
    encoding = mrd_encoding(SHAPE, FOV.tolist(), asked=(8, 12, 3), asked_fov=(64.0, 72.0, 15.0))
    lines = [
        mrd_line(kspace[None, :, y, z], y, z, position=tuple(CENTER), **directions())
        for y in range(SHAPE[1])
        for z in range(SHAPE[2])
    ]
    raw = Pipeline(read_raw(mrd(tmp_path, lines, encoding)), PrepareSettings(raw=[], out=""), None).raw
    assert raw.kspace.shape == (3, 1, 8, 12)
    assert np.allclose(found(raw), point, atol=1e-3)


@pytest.mark.parametrize("missing", [{"read_dir": (0, 0, 0)}, {"phase_dir": tuple(READ)}, "one place", "pulseq"])
def test_what_is_not_stated_is_not_invented(tmp_path, missing):
    fields = directions(**missing) if isinstance(missing, dict) else directions()
    apart = missing != "one place"
    lines = [
        mrd_line(plane[None, :, y], y, slice=number, position=tuple(center if apart else CENTER), **fields)
        for number, center, plane in slices_2d(pixel(1, 1))
        for y in range(SHAPE[1])
    ]
    sequence = "%CustomerSeq%/Pulseq_v15" if missing == "pulseq" else None
    raw = read_raw(mrd(tmp_path, lines, IN_PLANE, sequence=sequence))
    assert raw.geometry.voxel_mm == (8.0, 6.0, 5.0) and not raw.geometry.is_oriented


def turned(block, center):
    """The line with a slice's centre and its quaternion: scalar first, columns phase, readout, slice."""
    data = block.mdh.SliceData
    data.SlicePos.Sag, data.SlicePos.Cor, data.SlicePos.Tra = center
    x, y, z, w = TURN.as_quat()
    data.Quaternion[:] = (w, x, y, z)
    return block


def twix(tmp_path, blocks, **options):
    more = (
        f"sSliceArray.asSlice[0].dThickness = {FOV[2]}\nsSliceArray.asSlice[0].dPhaseFOV = {FOV[1]}\n"
        f"sSliceArray.asSlice[0].dReadoutFOV = {FOV[0]}\n{options.pop('more', '')}"
    )
    path = tmp_path / "scan.dat"
    twixtools.write_twix([measurement(blocks, more=more, **options)], str(path))
    return path


def test_a_point_in_one_of_several_twix_slices(tmp_path):
    point = pixel(4, -3) - 10 * SLICE
    blocks = []
    for number, center, _ in slices_2d(point):
        seen = abs((point - center) @ SLICE) < 1
        plane = seen * signal(point, center, FOV * (2, 1, 1), (32, 12, 6), conjugate=True)[:, :, 3] + np.complex64(1e-6)
        blocks += [turned(line(plane[None, :, y], y, number), center) for y in range(SHAPE[1])]
    raw = read_raw(twix(tmp_path, blocks, oversampling=2))
    assert raw.kspace.shape == (3, 1, 16, 12)
    assert np.allclose(found(raw), point, atol=1e-3)


def test_a_point_in_a_3d_twix_scan_with_slice_oversampling(tmp_path):
    point = pixel(-2, 4, 1)
    kspace = signal(point, CENTER, FOV * (1, 1, 1.5), (16, 12, 9), conjugate=True)
    blocks = [
        turned(line(kspace[None, :, y, z], y, Par=z), CENTER) for y in range(SHAPE[1]) for z in range(kspace.shape[2])
    ]
    for block in blocks:
        block.mdh.CenterPar, block.mdh.CenterLin = 4, 6
    raw = read_raw(twix(tmp_path, blocks, more="sKSpace.dSliceOversamplingForDialog = 0.5\n"))
    assert len(raw.kspace) == 6
    assert np.allclose(found(raw), point, atol=1e-3)


@pytest.mark.parametrize("unknown", ["quaternion", "pulseq"])
def test_twix_files_that_tell_no_orientation(tmp_path, unknown):
    kspace = signal(pixel(1, 1), CENTER, conjugate=True)[:, :, 3]
    blocks = [line(kspace[None, :, y], y) for y in range(SHAPE[1])]
    if unknown == "pulseq":
        blocks = [turned(block, CENTER) for block in blocks]
    more = 'tSequenceFileName = "%CustomerSeq%\\\\pulseq"\n' if unknown == "pulseq" else ""
    raw = read_raw(twix(tmp_path, blocks, more=more))
    assert raw.geometry.voxel_mm == (8.0, 6.0, 30.0) and not raw.geometry.is_oriented
