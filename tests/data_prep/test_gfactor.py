"""The g-factor against dense algebra, and where it is known."""

import numpy as np
import pytest
import torch

from data_prep.gfactor import g_factor
from mrigsure.masks import make_mask
from mrigsure.operators import SenseOperator

SHAPE = (10, 12)
SHIFT = 1e-3


def maps(make_maps, coils=4):
    return torch.from_numpy(make_maps(SHAPE, coils))


def dense(sens_maps, mask, body):
    """sqrt of the diagonal of (T + shift)^-1 over R, T on the body's pixels alone."""
    operator = SenseOperator(mask[None, None].double(), sens_maps[None].to(torch.complex128))
    units = torch.eye(body.numel(), dtype=torch.complex128).reshape(-1, *SHAPE)
    normal = torch.cat([operator.normal(unit[None]) for unit in units]).flatten(1).T
    inside = body.flatten()
    normal = normal[inside][:, inside]
    variance = torch.linalg.inv(normal + SHIFT * torch.eye(len(normal))).diagonal().real
    found = torch.full((body.numel(),), torch.nan, dtype=torch.float64)
    found[inside] = (variance * float(mask.mean())).sqrt()
    return found.reshape(SHAPE).float()


@pytest.fixture
def body():
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[1:9, 2:11] = True
    inside[4, 5] = False
    return inside


def test_line_masks_are_exact(make_maps, body):
    mask = torch.from_numpy(np.arange(12) % 2 == 0).float().expand(SHAPE)
    g, how = g_factor(maps(make_maps), mask, body, SHIFT)
    assert torch.allclose(g, dense(maps(make_maps), mask, body), rtol=1e-3, equal_nan=True)
    assert how.startswith("exact") and g[~body].isnan().all() and (g[body] >= 0.99).all()


def test_replicas_agree_with_dense_algebra_on_point_masks(make_maps, body, monkeypatch):
    monkeypatch.setattr("data_prep.gfactor._MOST", 200)
    monkeypatch.setattr("data_prep.gfactor._WINDOW", 1)
    mask = torch.from_numpy(make_mask("poisson", SHAPE, 2, 0.2, 0)).float()
    g, how = g_factor(maps(make_maps), mask, body, SHIFT)
    ratio = (g / dense(maps(make_maps), mask, body))[body]
    assert how == "200 pseudo-replicas"
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05) and float(ratio.std()) < 0.08


def test_rows_between_those_computed_are_filled(make_maps, body, monkeypatch):
    mask = torch.from_numpy(np.arange(12) % 2 == 0).float().expand(SHAPE)
    exact = g_factor(maps(make_maps), mask, body, SHIFT)[0]
    monkeypatch.setattr("data_prep.gfactor._ROWS", 4)
    few = g_factor(maps(make_maps), mask, body, SHIFT)[0]
    assert torch.equal(few.isnan(), exact.isnan()) and (few / exact - 1)[body].abs().max() < 0.25


def test_full_sampling_amplifies_nothing(make_maps, body):
    g, how = g_factor(maps(make_maps), torch.ones(SHAPE), body, SHIFT)
    assert (g[body] == 1).all() and how == "fully sampled"
