"""Where the numbers are crunched, and how finely."""

import pytest
import torch

from mrigsure.denoiser import Denoiser, DenoiserConfig, Prior
from mrigsure.devices import at_once, pick_device, pick_precision
from mrigsure.errors import InputError
from mrigsure.seeds import complex_noise, generator

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_bad_input_and_auto_does_without():
    assert pick_device("auto") == CPU
    with pytest.raises(InputError, match="no CUDA device"):
        pick_device("cuda")


@pytest.mark.parametrize("there", [True, False])
def test_auto_precision_is_bf16_where_the_processor_has_it(monkeypatch, there):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_precision("auto", CPU) == ("bf16" if there else "no")
    assert [pick_precision(name, CPU) for name in ("no", "bf16")] == ["no", "bf16"]


def test_a_gpu_works_on_more_small_scans_at_once_and_on_as_many_large_ones():
    assert at_once("cpu", 8 * 64 * 64, 4) == 4
    assert at_once("cuda", 8 * 64 * 64, 4) == 256
    assert at_once("cuda", 32 * 640 * 640, 4) == 4


def test_bf16_stays_inside_the_network_and_near_to_full_precision():
    torch.manual_seed(0)
    denoiser = Denoiser((8, 8))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain, rough = (Prior(denoiser, DenoiserConfig((8, 8)), precision=precision) for precision in ("no", "bf16"))
    x = complex_noise((2, 16, 16), generator(0))
    expected, found = plain.denoise(x, 0.5), rough.denoise(x, 0.5)
    assert found.dtype == torch.complex64
    error = float((found - expected).abs().mean() / expected.abs().mean())
    assert 1e-5 < error < 0.05
    silent = rough.denoise(x, 1e-6) - x  # what passes by the network is not rounded
    assert float(silent.abs().max()) < 1e-4
