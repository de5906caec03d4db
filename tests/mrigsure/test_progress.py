"""Progress without a terminal: items unchanged, quiet when quick, a line with the figures when it matters."""

import pytest

from mrigsure import progress
from mrigsure.progress import Meter, say, status_table, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_track_yields_every_item_and_says_nothing_when_quick(capsys):
    assert list(track(range(4), "quick")) == [0, 1, 2, 3]
    assert list(track(iter("ab"), "no length")) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_track_says_a_line_every_ten_seconds_with_the_time_left(clock, capsys):
    for _ in track(range(4), "slow"):
        clock[0] += 6
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["slow: 2/4  0:12 elapsed  0:12 left", "slow: 4/4  0:24 elapsed"]


def test_track_reports_where_it_stopped(clock, capsys):
    with pytest.raises(RuntimeError):
        for number in track(range(4), "broken"):
            clock[0] += 3
            if number == 2:
                raise RuntimeError
    assert capsys.readouterr().out.startswith("broken: 2/4")


def test_the_meter_shows_the_latest_figures(clock, capsys):
    with Meter("training", total=100) as meter:
        meter.update(1, loss=0.51234, residual=1.1)
        clock[0] += 3700
        meter.update(50, loss=0.25, rate="9.1 scans/s")
        meter.update(74)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "training: 50/100  loss 0.25  residual 1.1  rate 9.1 scans/s  1:01:40 elapsed  1:01:40 left"
    assert last == "training: 74/100  loss 0.25  residual 1.1  rate 9.1 scans/s  1:01:40 elapsed  21:40 left"


def test_say_does_not_fold_and_reads_markup(capsys):
    path = "/".join(["folder"] * 40)
    say(f"[bold]wrote[/] {path}")
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_a_table_shows_every_cell(capsys):
    status_table([("cg-sense", 28.5), ("ours", 30)], columns=("method", "PSNR"))
    out = capsys.readouterr().out
    assert all(word in out for word in ("method", "PSNR", "cg-sense", "28.5", "ours", "30"))
