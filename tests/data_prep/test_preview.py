"""The page says what is right and what is wrong, is drawn the same every time, and holds nothing about the patient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.pipeline import prepare_volume
from data_prep.prepare import prepare
from data_prep.preview import assess, preview
from data_prep.quality import measure_quality
from data_prep.readers import RawScan
from mrigsure.fastmri_files import write_fastmri
from mrigsure.scan import read_prepared, write_prepared
from mrigsure.settings import PrepareSettings


@pytest.fixture
def make_prepared(tmp_path, make_kspace):
    def make(slices=1, shape=(64, 56), change=lambda volume: volume, coils=4, **options):
        raw = RawScan(make_kspace(shape, coils=coils, slices=slices, noise_std=0.1), Path("scan.h5"))
        settings = PrepareSettings(raw=[], out="", **({"pattern": "random", "center_fraction": 0.25} | options))
        path = tmp_path / "scan.h5"
        write_prepared(path, change(prepare_volume(raw, settings)))
        return path

    return make


def states(prepared):
    return {finding.title: finding.state for finding in assess(measure_quality(prepared))}


def test_a_good_scan_is_all_well(make_prepared):
    found = states(make_prepared(slices=3, acceleration=2))
    assert {found[title] for title in ("Sampling", "Noise", "Coil maps", "Warnings")} == {"good"}


def test_each_fault_raises_its_own_doubt_alone(make_prepared):
    def scrambled(volume):
        return replace(volume, sens_maps=np.ascontiguousarray(volume.sens_maps[:, ::-1]))

    faults = {
        "Noise": lambda volume: replace(volume, noise_std=2 * volume.noise_std),
        "Coil maps": scrambled,
        "Warnings": lambda volume: replace(volume, warnings=("scan.h5: odd",)),
    }
    for title, fault in faults.items():
        found = states(make_prepared(acceleration=2, change=fault))
        assert found[title] == "doubt", title
        assert found["Sampling"] == "good"
    assert states(make_prepared(acceleration=4, center_fraction=0.07))["Sampling"] == "doubt"


def test_quality_figures_are_those_of_the_scan(make_prepared, make_kspace):
    quality = measure_quality(make_prepared(slices=4, acceleration=2))
    assert sorted(quality.images) == [1, 2, 3] and quality.slices == 4
    assert quality.noise_level == pytest.approx(1, abs=0.15) and quality.explained > 0.97
    y, x = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 56), indexing="ij")
    ellipse = (y / 0.7) ** 2 + (x / 0.6) ** 2 < 1
    assert (quality.body & ellipse).sum() > 0.9 * ellipse.sum() and quality.body.mean() < 1.8 * ellipse.mean()
    clean = np.abs(make_kspace(slices=4, noise_std=0)).max()
    assert np.isfinite(quality.g[quality.body]).all() and clean > 0
    assert quality.power[1, 0] > 10 and quality.power[1, -5:].mean() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "poisson", "acceleration": 3.0},
        {"pattern": None},
        {"coils": 1, "acceleration": 2.0},
        {"slices": 2, "shape": (40, 72), "acceleration": 2.0, "partial_fourier": 0.8},
    ],
)
def test_every_kind_of_scan_has_its_page(tmp_path, make_prepared, options):
    prepared = make_prepared(**options)
    findings = preview(tmp_path / "a.png", prepared)
    preview(tmp_path / "b.png", prepared)
    page = (tmp_path / "a.png").read_bytes()
    assert page == (tmp_path / "b.png").read_bytes() and page.startswith(b"\x89PNG") and len(page) > 50_000
    if options.get("partial_fourier"):
        assert "partial Fourier 0." in findings[0].text


def test_pages_are_drawn_on_request_beside_the_files_and_once(tmp_path, make_kspace):
    folder, out = tmp_path / "raw", tmp_path / "out"
    write_fastmri(folder / "a.h5", make_kspace(noise_std=0.1), attributes={"patient_id": "DOE^JANE"})
    settings = {"raw": [str(folder)], "out": str(out), "pattern": "random", "acceleration": 2.0}
    prepare(PrepareSettings(**settings, center_fraction=0.2))
    assert not (out / "previews").exists()
    prepare(PrepareSettings(**settings, center_fraction=0.2, previews=True))
    (page,) = (out / "previews").iterdir()
    first = page.stat().st_ino
    prepare(PrepareSettings(**settings, center_fraction=0.2, previews=True))
    assert page.name == "a.png" and page.stat().st_ino == first
    assert b"DOE" not in page.read_bytes() and read_prepared(out / "a.h5").source == "a.h5"
