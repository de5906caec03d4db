"""`reconstruct` on several workers writes the same bytes as on one."""

from mrigsure.settings import ReconstructSettings
from recon.reconstruct import reconstruct


def test_two_workers_write_the_same_bytes_as_one(tmp_path, make_scan, write_scan):
    folder = tmp_path / "prepared"
    folder.mkdir()
    for index in range(3):
        write_scan(folder / f"scan{index}.h5", make_scan((24, 20), seed=index), slices=1 + index % 2)
    made = {}
    for workers, batch in ((1, "auto"), (2, "auto")):
        out = tmp_path / f"out{workers}"
        options = {"samples": 2, "nfe": 6, "batch": batch, "workers": workers}
        reconstruct(ReconstructSettings([str(folder)], str(out), **options))
        made[workers] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(made[1]) == 7, "an .h5 and a .png each, and the manifest"
    assert made[1] == made[2]
