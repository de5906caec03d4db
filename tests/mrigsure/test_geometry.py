"""Slices lie where a geometry says, stack whatever their order, and come back from a file."""

import h5py
import numpy as np
import pytest

from mrigsure.errors import InputError
from mrigsure.geometry import Geometry, read_geometry, write_geometry

TURNED = np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0], [0.8, -0.6, 0.0]])  # rows, columns, across


def stacked(along, directions=TURNED, voxel=(2.0, 3.0, 4.0)):
    positions = np.array([10.0, -20.0, 30.0]) + np.asarray(along, float)[:, None] * directions[2]
    return Geometry(voxel, positions, np.repeat(directions[None], len(positions), 0))


def test_the_corner_is_half_a_matrix_from_the_centre():
    corner = stacked([0]).corners((5, 4))[0]  # the centre is pixel (2, 2)
    assert np.allclose(corner + 2 * 2.0 * TURNED[0] + 2 * 3.0 * TURNED[1], [10, -20, 30])


@pytest.mark.parametrize("along", [[0, 5, 10], [10, 5, 0], [0, 10, 5], [5, 0, 10]])
def test_a_stack_is_found_in_any_order_and_its_gaps_are_kept(along):
    geometry = stacked(along)
    order, step = geometry.stack()
    assert order.shape == (1, 3) and np.isclose(np.linalg.norm(step), 5)  # not the thickness, 4
    assert np.allclose(geometry.positions[order[0]], geometry.positions[order[0, 0]] + np.arange(3)[:, None] * step)


@pytest.mark.parametrize("along", [[0, 5, 10], [10, 5, 0]])
def test_slices_in_the_order_of_their_stack_keep_it(along):
    assert stacked(along).stack()[0].tolist() == [[0, 1, 2]]


def test_repetitions_are_stacks_of_their_own():
    geometry = stacked([0, 5, 5, 0])
    assert geometry.repetitions().tolist() == [0, 0, 1, 1]
    assert geometry.stack()[0].tolist() == [[0, 1], [3, 2]]


def test_a_single_slice_steps_by_its_thickness():
    order, step = stacked([0]).stack()
    assert order.tolist() == [[0]] and np.allclose(step, 4 * TURNED[2])


@pytest.mark.parametrize("along", [[0, 5, 11], [0, 5, 5]])
def test_what_is_no_regular_stack_is_refused(along):
    with pytest.raises(ValueError, match="slices that are not"):
        stacked(along).stack()


def test_slices_that_are_not_parallel_make_no_stack():
    one, other = stacked([0]), stacked([5], TURNED[[1, 2, 0]])
    both = Geometry(
        one.voxel_mm,
        np.concatenate([one.positions, other.positions]),
        np.concatenate([one.directions, other.directions]),
    )
    with pytest.raises(ValueError, match="not parallel"):
        both.stack()


@pytest.mark.parametrize(
    "fields",
    [
        {"voxel_mm": (1.0, 0.0, 1.0)},
        {"voxel_mm": (1.0, 1.0)},
        {"voxel_mm": (1.0, 1.0, 1.0), "positions": np.zeros((1, 3))},
        {"voxel_mm": (1.0, 1.0, 1.0), "positions": np.zeros((2, 3)), "directions": np.eye(3)[None]},
        {"voxel_mm": (1.0, 1.0, 1.0), "positions": np.zeros((1, 3)), "directions": np.ones((1, 3, 3))},
        {"voxel_mm": (1.0, 1.0, 1.0), "positions": np.full((1, 3), np.nan), "directions": np.eye(3)[None]},
    ],
)
def test_what_cannot_be_a_geometry_is_refused(fields):
    with pytest.raises(ValueError, match=r"voxel|positions"):
        Geometry(**fields)


@pytest.mark.parametrize("geometry", [None, Geometry((1.0, 2.0, 3.0)), stacked([0, 5])])
def test_a_file_gives_back_what_was_known(tmp_path, geometry):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_geometry(file, geometry)
    with h5py.File(tmp_path / "a.h5") as file:
        found = read_geometry(file)
    if geometry is None:
        assert found is None
        return
    assert found.voxel_mm == geometry.voxel_mm and found.is_oriented == geometry.is_oriented
    if geometry.is_oriented:
        assert np.array_equal(found.positions, geometry.positions)
        assert np.array_equal(found.directions, geometry.directions)


def test_a_malformed_file_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["voxel_mm"] = [1.0, 1.0, -1.0]
        with pytest.raises(InputError, match=r"a\.h5.*voxel_mm"):
            read_geometry(file)
