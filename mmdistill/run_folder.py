"""What a run's folder holds, by name; without torch, for which the command line's help does not wait."""

import shlex
from pathlib import Path

SAMPLES = "distilled.safetensors"
"""The set's tensors."""
SET = "distilled.json"
"""What the set is; written last, so that a folder with it holds a finished run."""
METRICS = "metrics.json"
"""The scores."""
CONFIG = "config.yaml"
"""The options of the command line."""
CHECKPOINTS = "checkpoints"
"""The folder of the run's states on the way."""


def is_finished(folder: Path) -> bool:
    """Return whether a run folder holds a distilled set."""
    return (folder / SET).exists()


def is_started(folder: Path) -> bool:
    """Return whether a run folder holds a checkpoint."""
    return any((folder / CHECKPOINTS).glob("step-*.safetensors"))


def how_to_finish(folder: Path) -> str:
    """Return how the unfinished run of a folder goes on, in words; nothing where it holds none."""
    if is_finished(folder):
        return ""
    if (folder / CONFIG).is_file():
        return f"it goes on with: mmdistill distill --resume {shlex.quote(str(folder))}"
    if is_started(folder):
        return "distill(task, ..., out=folder, resume=True) in Python continues it"
    return ""


def holds_work(folder: Path) -> bool:
    """Return whether a run folder holds a distilled set or a checkpoint."""
    return is_finished(folder) or is_started(folder)
