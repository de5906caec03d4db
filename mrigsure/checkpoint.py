"""The checkpoint of a training: plain tensors, numbers and JSON, whole or absent, loaded with weights_only.

What is pickled could run code when it is read; nothing here is, so a checkpoint from a stranger does no harm.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.settings import TrainSettings

CHECKPOINT = "checkpoint.pt"
_FORMAT = 5  # raise it when a training needs what its checkpoints did not hold
_MAY_CHANGE = (
    "prepared", "out", "steps", "rounds", "seconds", "checkpoint_minutes", "resume", "device", "threads", "compile",
    "patience", "tensorboard", "keep_rounds",
)  # fmt: skip


def write_checkpoint(folder, state: dict, settings: TrainSettings, archive: dict) -> None:
    """Write `state` beside the settings and the archive's record that it belongs to."""
    belongs = {"format": _FORMAT, "settings": json.dumps(portable(settings)), "archive": json.dumps(archive)}
    with atomic(Path(folder) / CHECKPOINT) as partial:
        torch.save(state | belongs, partial)


def read_checkpoint(folder, settings: TrainSettings, archive: dict, device) -> dict:
    """The state that was written; InputError for a broken checkpoint, or one of another version, settings or scans."""
    path = Path(folder) / CHECKPOINT
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        recorded = json.loads(state.pop("settings"))
        of_archive = json.loads(state.pop("archive"))
    except Exception as error:
        raise InputError(path, "a broken checkpoint", "one written by `mrigsure train`") from error
    if (written := state.pop("format", 1)) != _FORMAT:
        expected = f"format {_FORMAT}; go on with the version that wrote it, or from its prior by --init-from"
        raise InputError(path, f"a checkpoint of format {written}", expected)
    for key, value in portable(settings).items():
        if key not in _MAY_CHANGE and recorded.get(key) != value:
            raise InputError(path, f"a run with {key} = {recorded.get(key)}", f"{key} = {value} as asked for now")
    if of_archive != archive:
        raise InputError(path, "a run on other scans", "the scans that it was started with")
    return state


def cloned(state):
    """A copy of tensors in dicts and lists that later updates leave alone."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: cloned(value) for key, value in state.items()}
    return [cloned(value) for value in state] if isinstance(state, list) else state


def portable(settings: TrainSettings) -> dict:
    """The settings without paths, which say nothing on another machine."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(settings).items()
        if key not in ("prepared", "out", "init_from")
    } | {"init_from": Path(settings.init_from).name if settings.init_from else None}
