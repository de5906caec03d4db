"""Rows of measured figures under results/, one a line of JSON, so that a commit shows which changed."""

import json
from pathlib import Path

from mrigsure.files import atomic

_FOLDER = Path(__file__).parent / "results"


def rows(bench: str) -> dict:
    """Name of the row -> row, of results/BENCH.json; {} where it is not there yet."""
    path = _FOLDER / f"{bench}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record(bench: str, key: str, row: dict) -> None:
    """Add a row to the file as it is now, or replace it."""
    known = rows(bench) | {key: row}
    lines = [f"{json.dumps(k)}: {json.dumps(known[k], sort_keys=True)}" for k in sorted(known)]
    _FOLDER.mkdir(exist_ok=True)
    with atomic(_FOLDER / f"{bench}.json") as partial_file:
        partial_file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
