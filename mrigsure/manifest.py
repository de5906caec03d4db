"""What a command that works on many files says of each: manifest.json, and messages that name files as the user did.

The same bytes come out however often a run was stopped and repeated, and on however many workers: no times, and every
entry of a finished file is read from that file itself. No folder stands in it, for folders may be named after patients.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import mrigsure
from mrigsure.errors import InputError, ScanWarning
from mrigsure.files import atomic

NAME = "manifest.json"
SCHEMA_VERSION = 1


def write_manifest(folder: Path, entries: Sequence[dict], parameters: dict, **more) -> Path:
    """Write manifest.json into the folder, whole or not at all; `more` stands beside the entries."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "version": mrigsure.__version__,
        "parameters": parameters,
        "done": sum(entry["status"] == "done" for entry in entries),
        "failed": sum(entry["status"] == "failed" for entry in entries),
        "files": list(entries),
        **more,
    }
    path = Path(folder) / NAME
    with atomic(path) as partial:
        partial.write_text(json.dumps(manifest, indent=1, sort_keys=True, default=_number) + "\n")
    return path


def without_folders(text: str, *paths: Path) -> str:
    """A message with file names instead of paths."""
    for path in paths:
        for whole in (str(path.resolve()), str(path)):
            text = text.replace(whole, path.name)
    return text


def whole_path(value) -> str | None:
    """A path as a worker gets it, which may stand in another folder."""
    return None if value is None else str(Path(value).resolve())


def as_given(text: str, path) -> str:
    """A worker's message with the path as the user gave it."""
    return text.replace(whole_path(path), str(path))


def output_files(paths: Sequence[Path], folder: Path, kind: str) -> list[Path]:
    """One .h5 in `folder` for each of `paths`, files that `kind` names. InputError where two would share one, or where
    one would take the place of its own source."""
    outputs = [folder / f"{path.stem}.h5" for path in paths]
    first = {}
    for path, output in zip(paths, outputs, strict=True):
        if output in first:
            raise InputError(path, f"the name of {first[output]} again", f"{kind}s of different names: one output each")
        if output.resolve() == path.resolve():
            raise InputError(folder, f"the {kind} {path.name} where its output would go", "another output folder")
        first[output] = path
    return outputs


def report_failures(
    paths: Sequence[Path], outputs: Sequence[Path], entries: list, errors: dict[int, Exception]
) -> None:
    """Warn of every file that could not be done and put its entry among the `entries`; of a single file raise its own
    error, with the path as the user gave it."""
    if errors and len(paths) == 1:
        error = errors[0]
        if isinstance(error, InputError):
            raise InputError(as_given(error.where, paths[0]), error.found, error.expected) from error
        raise error
    for number, error in sorted(errors.items()):
        text = _one_line(error, paths[number])
        entries[number] = _failed_entry(paths[number], outputs[number], text)
        warnings.warn(f"{text}; skipped", ScanWarning, stacklevel=3)


@contextmanager
def heard() -> Iterator[Callable[[], list[str]]]:
    """Yields a function that gives the ScanWarnings so far, once each; they go on to whoever listens outside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScanWarning)

        def so_far():
            return list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, ScanWarning)))

        yield so_far
    for text in so_far():
        warnings.warn(text, ScanWarning, stacklevel=3)


def _failed_entry(path, output, error):
    error = without_folders(error, path, output)
    return {"source": path.name, "output": output.name, "status": "failed", "error": error}


def _one_line(error, path):
    """What went wrong with a file; an InputError names its file itself."""
    return as_given(str(error), path) if isinstance(error, InputError) else f"{path}: internal error: {error}"


def _number(value):
    return value.item() if isinstance(value, np.generic) else str(value)
