"""One scan on its way: what is computed on few pixels is what all of them would give."""

import numpy as np
import pytest

from data_prep import pipeline


@pytest.mark.parametrize("shape", [(640, 12), (200, 230), (193, 97)])
def test_low_resolution_on_few_pixels_is_that_of_all_pixels_there(make_maps, monkeypatch, shape):
    rng = np.random.default_rng(0)
    kspace = rng.standard_normal((3, *shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
    maps = make_maps(shape, 3)
    few = pipeline._low_resolution_magnitude(kspace, maps, (24, 10))
    monkeypatch.setattr(pipeline, "_SAMPLED", 10_000)
    whole = pipeline._low_resolution_magnitude(kspace, maps, (24, 10))
    assert whole.shape == shape
    picks = []
    for size, count in zip(shape, few.shape, strict=True):
        picks.append(size // 2 + (np.arange(count) - count // 2) * (size // count))
    assert np.allclose(few, whole[np.ix_(*picks)], atol=1e-6)
    assert few.size < whole.size or shape == (193, 97)
