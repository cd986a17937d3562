"""The history of a run, ``history.json``: its loss at the steps at which it was read."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmdistill.checks import is_of
from mmdistill.errors import CheckpointError
from mmdistill.runs.folder import HISTORY
from mmdistill.store import read_json, write_json


class Reading(NamedTuple):
    """The loss of a step.

    Args:
        step: counted from 1.
        loss: the objective's value before the step's update, the mean over processes. Its scale depends on the method.
    """

    step: int
    loss: float


def write_history(folder: Path, history: Sequence[Reading]) -> None:
    """Write ``history.json`` into a folder: two lists of equal length, ``step`` and ``loss``."""
    content = {"step": [step for step, _ in history], "loss": [loss for _, loss in history]}
    write_json(folder / HISTORY, content)


def read_history(folder: Path) -> tuple[Reading, ...]:
    """Return the history in a folder's ``history.json``; empty if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / HISTORY
    content = read_json(path) if path.exists() else {}
    steps, losses = content.get("step", []), content.get("loss", [])
    fits = isinstance(steps, list) and isinstance(losses, list) and len(steps) == len(losses)
    if not fits or not all(is_of(step, int) for step in steps) or not all(is_of(loss, int, float) for loss in losses):
        raise CheckpointError(f"{path} is damaged: no whole numbers as step, and as many numbers as loss")
    return tuple(Reading(step, float(loss)) for step, loss in zip(steps, losses, strict=True))
