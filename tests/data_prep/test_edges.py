import numpy as np
import pytest

from data_prep.edges import filtered_edges, nonzero_samples


def _position(size):
    return (np.arange(size) - size // 2) / (size / 2)


def _tukey(size, start=0.7):
    ramp = np.clip((np.abs(_position(size)) - start) / (1 - start), 0, 1)
    return 0.5 * (1 + np.cos(np.pi * ramp))


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("noise_std", [0.02, 0.3])
def test_plain_scans_have_no_filtered_edges(make_kspace, coils, noise_std):
    for seed in range(4):
        kspace = make_kspace(coils=coils, noise_std=noise_std, seed=seed)
        assert not filtered_edges(kspace, nonzero_samples(kspace)).any()


def test_tukey_window_along_the_lines_is_recognised(make_kspace):
    kspace = (make_kspace(noise_std=0.3) * _tukey(56)).astype(np.complex64)
    filtered = filtered_edges(kspace, nonzero_samples(kspace))
    assert (filtered == filtered[:1]).all()
    assert filtered[0, _tukey(56) < 0.5].all()
    assert not filtered[0, _tukey(56) > 0.99].any()


def test_elliptic_window_is_recognised_and_the_inside_kept(make_kspace):
    y, x = _position(64)[:, None], _position(56)[None]
    window = 1 / (1 + np.exp((np.hypot(y, x) - 0.85) / 0.03))  # Fermi
    kspace = (make_kspace(noise_std=0.3) * window).astype(np.complex64)
    filtered = filtered_edges(kspace, nonzero_samples(kspace))
    sampled = nonzero_samples(kspace)
    assert filtered[sampled & (window < 0.25)].mean() > 0.95
    assert not filtered[window > 0.99].any()


def test_padded_and_numerically_empty_samples_are_zero(make_kspace):
    kspace = make_kspace()
    kspace[..., :6] = 0
    kspace[..., 50:] = 1e-9 * np.abs(kspace).max()
    assert np.flatnonzero(~nonzero_samples(kspace)[0]).tolist() == [*range(6), *range(50, 56)]
