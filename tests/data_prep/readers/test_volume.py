import numpy as np
import pytest

from data_prep.readers.volume import cut_reference, cut_volume, plan_cut
from mrigsure.errors import InputError
from mrigsure.fourier import center_crop


def random(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def forward(images, axis):
    shifted = np.fft.ifftshift(images, axes=axis)
    return np.fft.fftshift(np.fft.fft(shifted, axis=axis, norm="ortho"), axes=axis)


@pytest.mark.parametrize(
    ("axes", "axis", "ndim"),
    [("", 2, 1), ("y", 2, 1), ("z", 1, 1), ("yz", 0, 2), ("x", 2, 2), ("xz", 1, 2)],
)
def test_the_cut_axis_is_whole_and_the_last_that_is(axes, axis, ndim):
    """axes: those along which samples are missing, at random."""
    sampled = np.ones((8, 9, 10), bool)
    holes = np.random.default_rng(0).uniform(size=(8, 9, 10)) < 0.4
    for name in ("x", "y", "z"):
        if name not in axes:
            holes = holes[tuple(slice(0, 1) if name == other else slice(None) for other in "xyz")]
    cut = plan_cut(sampled & ~np.broadcast_to(holes, sampled.shape) if axes else sampled, "scan")
    assert cut.axis == axis and cut.mask.ndim == ndim and cut.span == slice(0, sampled.shape[axis])


@pytest.mark.parametrize(("start", "stop", "axis"), [(2, 8, 2), (1, 8, 1), (3, 10, 1), (1, 10, 2)])
def test_padding_about_the_centre_is_cut_off_and_one_sided_gaps_are_no_whole_axis(start, stop, axis):
    sampled = np.zeros((4, 6, 10), bool)
    sampled[..., start:stop] = True
    cut = plan_cut(sampled, "scan")
    assert cut.axis == axis
    if axis == 2:
        assert cut.span == slice(start, stop) and cut.span.start + cut.depth // 2 == 5


def test_nothing_whole_and_nothing_sampled_are_refused():
    for sampled in (np.random.default_rng(0).uniform(size=(6, 6, 6)) < 0.5, np.zeros((4, 4, 4), bool)):
        with pytest.raises(InputError, match="scan: found k-space of .* and no axis whole"):
            plan_cut(sampled, "scan")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_the_images_along_the_axis_and_noise_stays(axis):
    images = random((2, 3, 6, 8, 10))  # volumes, coils, x, y, z
    planes = np.moveaxis(images, 2 + axis, 1).reshape(-1, 3, *np.delete((6, 8, 10), axis))
    sampled = np.ones((6, 8, 10), bool)
    sampled[tuple(1 if other == (axis + 1) % 3 else slice(None) for other in range(3))] = False  # a plane is missing
    sampled[tuple(2 if other == (axis + 2) % 3 else slice(None) for other in range(3))] = False
    cut = plan_cut(sampled, "scan")
    assert cut.axis == axis
    kspace = forward(images, 2 + axis)
    assert np.allclose(cut_volume(kspace, cut), planes, atol=1e-5)
    assert np.linalg.norm(cut_volume(kspace, cut)) == pytest.approx(np.linalg.norm(kspace), rel=1e-5)
    first = cut.depth // 2 - 2
    kept = np.moveaxis(images, 2 + axis, 1)[:, first : first + 4].reshape(-1, *planes.shape[1:])
    assert np.allclose(cut_volume(kspace, cut, keep=4), kept, atol=1e-5)


def test_reference_is_cut_into_the_same_slices_from_more_and_from_fewer_samples():
    cut = plan_cut(np.ones((6, 8, 10), bool), "scan")  # along z, into 10 slices
    for depth in (4, 5, 10, 13):
        kspace = random((1, 2, 6, 8, depth))
        sampled = np.zeros((6, 8, depth), bool)
        sampled[:, 2:7] = True
        reference = cut_reference(kspace, sampled, cut)
        aligned = np.zeros((1, 2, 6, 8, 14), np.complex64)
        aligned[..., 7 - depth // 2 : 7 + depth - depth // 2] = kspace
        expected = cut_volume(aligned[..., 2:12], cut)
        assert np.allclose(reference, center_crop(expected, (6, 5)), atol=1e-6)


def test_reference_without_a_whole_centre_is_none():
    cut = plan_cut(np.ones((6, 8, 1), bool), "scan")
    sampled = np.ones((6, 8, 1), bool)
    sampled[:, 4] = False
    assert cut_reference(random((1, 2, 6, 8, 1)), sampled, cut) is None
