import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.calibration import espirit, kernel_rank, sensitivity_maps
from data_prep.pipeline import prepare_volume
from data_prep.readers import RawScan
from mrigsure.errors import InputError, ScanWarning
from mrigsure.fourier import center_crop, fft2c, ifft2c
from mrigsure.settings import PrepareSettings


def _angle(a, b):
    """Degrees between two coil vectors at every pixel: (coils, H, W) -> (H, W)."""
    cosine = np.abs((a.conj() * b).sum(0)) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    return np.degrees(np.arccos(np.clip(cosine, 0, 1)))


def _body(shape):
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return (y / 0.65) ** 2 + (x / 0.55) ** 2 < 1


def _exact(block, shape, kernel, threshold):
    """ESPIRiT as its paper states it, in float64: the kernels padded to the matrix, one eigenproblem a pixel."""
    coils = len(block)
    windows = np.lib.stride_tricks.sliding_window_view(block.astype(complex), (kernel, kernel), axis=(1, 2))
    matrix = windows.transpose(1, 2, 0, 3, 4).reshape(-1, coils * kernel**2)
    _, values, right = np.linalg.svd(matrix, full_matrices=False)
    kernels = right[values > threshold * values[0]].reshape(-1, coils, kernel, kernel)
    padded = np.zeros((len(kernels), coils, *shape), complex)
    center_crop(padded, (kernel, kernel))[...] = kernels
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(padded, axes=(2, 3))), axes=(2, 3)) * np.prod(shape)
    operator = np.einsum("ncyx,ndyx->yxcd", images, images.conj()) / kernel**2
    return np.linalg.eigh(operator)[1][..., ::-1].transpose(3, 2, 0, 1)  # (sets, coils, H, W)


def _folded(make_maps, shape=(64, 48), coils=8, noise_std=0.02):
    """A body wider than the field of view: k-space (coils, H, W), and the two parts' maps (2, coils, H, W)."""
    height, width = shape
    wide = (height, 2 * width)
    maps = make_maps(wide, coils)
    y, x = np.meshgrid(np.linspace(-1, 1, wide[0]), np.linspace(-2, 2, wide[1]), indexing="ij")
    image = ((y / 0.8) ** 2 + ((x + 0.2) / 1.3) ** 2 < 1) * np.exp(0.5j * x + 0.3j * y)
    seen = np.fft.ifftshift(maps * image, axes=-1)
    seen = np.fft.fftshift(seen[..., :width] + seen[..., width:], axes=-1)  # the outer parts come in from the far side
    parts = np.fft.ifftshift(maps, axes=-1)
    parts = np.fft.fftshift(np.stack([parts[..., :width], parts[..., width:]]), axes=-1)
    there = np.fft.ifftshift(image, axes=-1)
    there = np.fft.fftshift(np.stack([there[..., :width], there[..., width:]]), axes=-1)
    rng = np.random.default_rng(0)
    noise = noise_std * (rng.standard_normal(seen.shape) + 1j * rng.standard_normal(seen.shape))
    kspace = fft2c(torch.from_numpy(seen)).numpy() + noise
    return kspace.astype(np.complex64), parts, np.abs(there) > 0


@pytest.mark.parametrize("shape, region, kernel", [((64, 56), (24, 24), 6), ((100, 131), (24, 16), 5)])
def test_interpolated_maps_are_the_eigenvectors_at_every_pixel_of_the_body(make_kspace, shape, region, kernel):
    block = center_crop(make_kspace(shape, noise_std=0.02)[0], region)
    ours = espirit(torch.from_numpy(block.copy())[None], shape, kernel=kernel, threshold=0.02)[0, 0].numpy()
    assert _angle(ours, _exact(block, shape, kernel, 0.02)[0])[_body(shape)].max() < 0.2


def test_maps_agree_with_sigpys_espirit_in_the_body(make_kspace):
    app = pytest.importorskip("sigpy.mri.app")
    kspace = make_kspace(noise_std=0.02)[:1]
    theirs = app.EspiritCalib(kspace[0], calib_width=24, crop=0, thresh=0.01, show_pbar=False).run()
    assert _angle(sensitivity_maps(kspace, (64, 56))[0], theirs)[_body((64, 56))].max() < 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sets", [1, 2])
def test_maps_of_a_gpu_agree_with_those_of_the_cpu(make_kspace, sets):
    kspace = make_kspace(noise_std=0.02)
    here, there = (sensitivity_maps(kspace, (24, 24), sets=sets, device=device) for device in ("cpu", "cuda"))
    assert np.abs(there - here).max() < 1e-4


@pytest.mark.parametrize("calibration", [(24, 24), (64, 12), (20, 56), (8, 24)])
def test_maps_agree_with_the_truth_from_square_and_other_regions(make_kspace, make_maps, calibration):
    maps = sensitivity_maps(make_kspace(noise_std=0.02), calibration)[0]
    assert _angle(maps, make_maps((64, 56), 4))[_body((64, 56))].mean() < 2.5


def test_slices_are_computed_as_if_alone(make_kspace):
    kspace = make_kspace(slices=3)
    together = sensitivity_maps(kspace, (24, 24))
    alone = np.concatenate([sensitivity_maps(one[None], (24, 24)) for one in kspace])
    assert np.array_equal(together, alone)


def test_rank_leaves_out_noise_and_keeps_signal(make_kspace, make_maps):
    errors = []
    for noise_std in (0.02, 0.5):
        block = center_crop(make_kspace((96, 96), coils=8, noise_std=noise_std), (24, 24))
        maps = espirit(torch.from_numpy(block.copy()), (96, 96))[0, 0].numpy()
        errors.append(_angle(maps, make_maps((96, 96), 8))[_body((96, 96))].mean())
    assert errors[0] < 0.7 and errors[1] < 7
    values = torch.linalg.svdvals(torch.randn(361, 288, generator=torch.Generator().manual_seed(0)))
    values[:20] += torch.linspace(1000, 50, 20)
    assert kernel_rank(values, (361, 288)) == 20
    assert kernel_rank(torch.logspace(0, -4, 17), (17, 17)) == 8  # no noise: 1% of the largest
    assert kernel_rank(torch.zeros(9), (9, 12)) == 1


def test_maps_use_nothing_outside_the_calibration_region(make_kspace):
    kspace = make_kspace()
    inner = np.zeros_like(kspace)
    inner[..., 20:44, 22:34] = kspace[..., 20:44, 22:34]
    assert np.array_equal(sensitivity_maps(kspace, (24, 12)), sensitivity_maps(inner, (24, 12)))


def test_maps_have_unit_norm_at_every_pixel_and_smooth_phase(make_kspace):
    kspace = make_kspace(noise_std=0.02)
    kspace[:, 2] = 0  # a dead coil
    maps = sensitivity_maps(kspace, (24, 24))[0]
    assert maps.dtype == np.complex64
    assert np.abs((np.abs(maps) ** 2).sum(0) - 1).max() < 1e-5
    steps = np.abs(np.diff(maps, axis=1)).max(0)
    assert steps[_body((64, 56))[1:]].max() < 0.15


def test_a_slice_without_signal_has_maps_of_unit_norm_too(make_kspace):
    kspace = make_kspace(slices=2)
    kspace[1] = 0
    for sets in (1, 2):
        maps = sensitivity_maps(kspace, (24, 24), sets=sets)
        assert np.abs((np.abs(maps[1]) ** 2).sum(-3) - 1).max() < 1e-5


def test_phase_of_the_image_stays_out_of_the_maps(make_kspace):
    kspace = make_kspace(noise_std=0.02)
    phase = torch.exp(2j * torch.linspace(-1, 1, 64)[:, None])
    turned = fft2c(phase * ifft2c(torch.from_numpy(kspace))).numpy()
    maps, same = (sensitivity_maps(one, (24, 24))[0] for one in (kspace, turned))
    global_phase = np.vdot(maps, same) / np.abs(np.vdot(maps, same))
    assert np.abs(same - global_phase * maps)[:, _body((64, 56))].mean() < 0.05


def test_maps_of_another_matrix_sample_the_same_field_of_view(make_kspace):
    kspace = make_kspace((64, 56), noise_std=0.02)
    fine = sensitivity_maps(kspace, (24, 24), shape=(128, 112))
    assert fine.shape == (1, 4, 128, 112)
    coarse = sensitivity_maps(kspace, (24, 24))[0]
    assert _angle(fine[0][:, ::2, ::2], coarse)[_body((64, 56))].max() < 0.1


def test_two_sets_are_orthonormal_everywhere_and_span_both_parts_of_a_folded_body(make_maps):
    kspace, parts, there = _folded(make_maps)
    maps = sensitivity_maps(kspace[None], (24, 24), sets=2)[0]
    assert maps.shape == (2, 8, 64, 48) and maps.dtype == np.complex64
    gram = np.einsum("icyx,jcyx->ijyx", maps.conj(), maps)
    assert np.abs(gram - np.eye(2)[:, :, None, None]).max() < 1e-5
    both = there.all(0)
    assert both.sum() > 200
    for part in parts:  # distance of each part's map from the plane of the two sets
        inside = np.linalg.norm(np.einsum("icyx,cyx->iyx", maps.conj(), part), axis=0)[both]
        assert np.degrees(np.arccos(np.clip(inside, 0, 1))).mean() < 5
    turned = 1 - np.abs((maps[0][:, 1:].conj() * maps[0][:, :-1]).sum(0))[both[1:] & both[:-1]]
    assert turned.max() < 0.003  # eigenvalues alone would turn the first set from pixel to pixel
    one = sensitivity_maps(kspace[None], (24, 24))[0]
    missed = [np.degrees(np.arccos(np.abs((one.conj() * part).sum(0))[both].clip(0, 1))).mean() for part in parts]
    assert max(missed) > 20


def test_the_first_of_two_sets_is_the_only_one_where_nothing_folds(make_kspace):
    kspace = make_kspace(noise_std=0.02, coils=6)
    one = sensitivity_maps(kspace, (24, 24))[0]
    two = sensitivity_maps(kspace, (24, 24), sets=2)[0]
    assert _angle(two[0], one)[_body((64, 56))].max() < 1
    images = (two.conj() * ifft2c(torch.from_numpy(kspace[0])).numpy()).sum(1)
    energy = (np.abs(images[:, _body((64, 56))]) ** 2).sum(1)
    assert energy[1] < 0.01 * energy[0]


def test_several_sets_need_coils_and_a_calibration_region(make_kspace):
    with pytest.raises(InputError, match="scan.h5: found 1 coil; expected at least as many coils as sets of maps"):
        sensitivity_maps(make_kspace(coils=1), (24, 24), "scan.h5", sets=2)
    with pytest.raises(InputError, match="found a calibration region of 24 x 4; expected at least 6 x 6 for 2 sets"):
        sensitivity_maps(make_kspace(), (64, 4), sets=2)


def test_one_coil_has_maps_of_one(make_kspace):
    assert np.array_equal(sensitivity_maps(make_kspace(coils=1), (24, 24)), np.ones((1, 1, 64, 56)))


@pytest.mark.parametrize("calibration", [(64, 5), (0, 0)])
def test_small_region_falls_back_with_a_warning(make_kspace, make_maps, calibration):
    with pytest.warns(ScanWarning, match="scan.h5: calibration region .* low-resolution"):
        maps = sensitivity_maps(make_kspace(noise_std=0.02), calibration, "scan.h5")[0]
    assert np.abs((np.abs(maps) ** 2).sum(0) - 1).max() < 1e-5
    assert _angle(maps, make_maps((64, 56), 4))[_body((64, 56))].mean() < 10


def test_large_region_does_not_warn(make_kspace):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sensitivity_maps(make_kspace(), (64, 7))


@pytest.mark.parametrize("compress", [None, 6])
def test_maps_come_from_a_separate_reference_scan_where_there_is_one(make_kspace, compress):
    full = make_kspace((64, 56), coils=8, noise_std=0.02)
    every_third = np.arange(56) % 3 == 0  # no calibration region of its own
    small = center_crop(make_kspace((64, 56), coils=8, noise_std=0.02, seed=1), (32, 24)).copy()
    raw = RawScan(
        kspace=full * every_third,
        source=Path("scan.npy"),
        mask=every_third,
        noise=0.02
        * np.random.default_rng(0).standard_normal((8, 2**14, 2)).astype(np.float32).view(np.complex64)[..., 0],
        reference=2.5j * small,  # of another gain
    )
    settings = PrepareSettings(raw=[], out="", compress=compress, compression="gcc")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*calibration region")
        volume = prepare_volume(raw, settings)
    complete = RawScan(kspace=full, source=raw.source, noise=raw.noise)
    if compress is None:
        expected = prepare_volume(complete, settings).sens_maps[0]
        assert _angle(volume.sens_maps[0], expected)[_body((64, 56))].max() < 2
    seen = (volume.sens_maps.conj() * ifft2c(torch.from_numpy(volume.kspace)).numpy()).sum(1, keepdims=True)
    assert volume.kspace.shape[1] == (compress or 8)
    again = fft2c(torch.from_numpy(volume.sens_maps * seen)).numpy()[..., every_third]
    sampled = volume.kspace[..., every_third]
    correlation = np.abs(np.vdot(again, sampled)) / np.linalg.norm(again) / np.linalg.norm(sampled)
    assert correlation > 0.9


def test_reference_scan_of_other_coils_is_refused(make_kspace):
    raw = RawScan(kspace=make_kspace(), source=Path("scan.npy"), reference=make_kspace(coils=3))
    with pytest.raises(InputError, match="scan.npy: found a reference scan of 1 slices and 3 coils; expected 1 slices"):
        prepare_volume(raw, PrepareSettings(raw=[], out=""))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sets", [1, 2])
def test_gpu_and_cpu_agree(make_kspace, sets):
    kspace = make_kspace(noise_std=0.02, slices=2)
    cpu, gpu = (sensitivity_maps(kspace, (24, 24), sets=sets, device=device) for device in ("cpu", "cuda"))
    assert np.abs(cpu - gpu)[..., _body((64, 56))].max() < 1e-4


_GROWTH = """
import numpy as np
from data_prep.calibration import sensitivity_maps
rng = np.random.default_rng(0)
kspace = rng.standard_normal((1, 12, 400, 320, 2), np.float32).view(np.complex64)[..., 0]
sensitivity_maps(kspace[:, :, 184:216, 144:176], (24, 24))  # libraries load and start their threads
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak becomes the present size
status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
before = status("VmRSS")
maps = sensitivity_maps(kspace, (24, 24))
print((status("VmHWM") - before) * 1024 / maps.nbytes)
"""


def test_memory_grows_by_at_most_three_times_the_maps(python):
    result = python("-c", _GROWTH)
    assert result.returncode == 0, result.stderr
    assert 0.9 < float(result.stdout) < 3
