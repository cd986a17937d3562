"""The checkpoints of a run, and which run each belongs to."""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from mmdistill.described import OWN_CODE, OWN_LAYERS, OWN_TENSORS, OWN_VALUES
from mmdistill.errors import CheckpointError
from mmdistill.execution import ranks
from mmdistill.names import in_words
from mmdistill.networks.architecture import differing_lines
from mmdistill.runs.state import RunState, out_of_patience
from mmdistill.runtime import patiently, remove_parts
from mmdistill.settings import MEMORY_ONLY, annealed
from mmdistill.store import load_tree, save_tree

KEPT_CHECKPOINTS = 2
DESCRIBED = "described"
"""The key of an identity under which the objective and the schedule are described."""
AUGMENTATION = "augmentation"
"""The key of an identity under which the task's random augmentation is described; None there: no augmentation."""
LAYERS = "layers"
"""The key of an identity under which the network is described."""
DIGESTS = {
    OWN_CODE: "ran other code",
    OWN_LAYERS: "had other layers",
    OWN_VALUES: "held other values",
    OWN_TENSORS: "began with other tensors, which must be the same each time they are made",
}
"""Digests in descriptions of what users made, with what a difference says of the saved run."""
ABSENT = "absent"
"""Stands in messages for an entry that one of two mappings lacks."""
BEGIN_ANEW = "choose another folder, or leave resume out with overwrite=True (--overwrite)"
"""What to do about a folder that holds another run."""


class Checkpoints:
    """The checkpoints of one run: the newest two are kept, so that a damaged one costs at most an interval.

    With several processes each rank has checkpoints of its own networks; ranks after the first in a subfolder.

    Args:
        folder: of the checkpoints.
        identity: what a checkpoint must share with the run, see :func:`mmdistill.runs.finished.identity`.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self.folder = folder if ranks.is_first() else folder / f"rank-{ranks.rank()}"
        self.identity = dict(identity)

    def paths(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def clear(self) -> None:
        """Remove the checkpoints of an earlier run in this folder."""
        remove_parts(self.folder)
        for path in self.paths():
            patiently(partial(path.unlink, missing_ok=True))

    def save(self, run: RunState, seconds: float) -> None:
        """Write a checkpoint; remove later ones, which a run that went back left, and all but the newest up to it."""
        written, paths = self.write(run.tree(), seconds), self.paths()
        kept = paths[: paths.index(written) + 1][-KEPT_CHECKPOINTS:]
        for path in paths:
            if path not in kept:
                with suppress(PermissionError):  # on Windows, if another program reads it; the next save removes it
                    path.unlink(missing_ok=True)

    def begin(self, run: RunState, seconds: float, remove: Callable[[], None]) -> None:
        """Write the first checkpoint of a run that replaces a former one, which stays if writing fails.

        Args:
            run: the state.
            seconds: that the run has taken.
            remove: removes the former run's other files.
        """
        written = self.write(run.tree(), seconds)  # first, so that the folder holds one of the two runs at any time
        remove()
        for path in self.paths():
            if path != written:
                patiently(path.unlink)

    def write(self, tree: Mapping[str, Any], seconds: float) -> Path:
        """Write a run's state (:meth:`RunState.tree`) as a checkpoint; returns its path."""
        path = self.folder / f"step-{tree['step']:08d}.safetensors"
        save_tree(path, {"identity": json.dumps(self.identity), "seconds": seconds, "run": tree})
        return path

    def restore(self, run: RunState, device: torch.device) -> float:
        """Load the newest readable checkpoint that the run passes through; returns the seconds spent before it.

        All ranks load the same step.

        Raises:
            CheckpointError: there is none, all are damaged, or they belong to another run.
        """
        remove_parts(self.folder)
        damages: list[str] = []
        trees: dict[str, dict[str, Any]] = {}
        for path in reversed(self.paths()):
            try:
                trees[path.name] = _read(path)
            except CheckpointError as error:
                damages.append(str(error))
                continue
            if ranks.size() == 1 and self._passes_through(path, trees[path.name]):
                break  # no need to read older ones
        on_all_ranks = set.intersection(*(set(names) for names in ranks.gathered(list(trees))))
        damages = [damage for of_rank in ranks.gathered(damages) for damage in of_rank]
        with ranks.together():  # one rank's may be of another run, or its disk may be full
            for name in sorted(on_all_ranks, reverse=True):
                if self._passes_through(self.folder / name, trees[name]):
                    run.load(trees[name]["run"], device)
                    seconds = float(trees[name]["seconds"])
                    if self._ends_at(trees[name]):  # no step is left after which this run would save a checkpoint
                        self.save(run, seconds)
                    return seconds
        if on_all_ranks:
            oldest = min(on_all_ranks)
            raise CheckpointError(f"{self.folder / oldest} {self._why_not(trees[oldest])}")
        if damages:
            raise CheckpointError("no readable checkpoint: " + "; ".join(damages) + "; begin anew with --overwrite")
        raise CheckpointError(f"{self.folder} holds no checkpoint to resume from")

    def _passes_through(self, path: Path, tree: Mapping[str, Any]) -> bool:
        """Return whether this run passes through a checkpoint's state on its way to its own number of steps.

        If the saved run has another number of steps, validation may differ, since each run validates its own last step:
        the saved best step may be one that this run does not validate, or this run's last step was not validated.

        Raises:
            CheckpointError: the checkpoint is of another run.
        """
        run, settings = tree["run"], self._settings
        require_begun_alike(path, tree["identity"], self.identity, run["optimizers"], _has_ended(tree))
        best, every = run["best"], settings["validate_every"]
        validates_best = best is None or best["step"] % every == 0 or best["step"] == settings["steps"]
        lacks_validation = bool(every) and self._ends_at(tree) and run["step"] % every > 0
        return validates_best and not lacks_validation and bool(run["step"] <= settings["steps"])

    @property
    def _settings(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.identity["settings"])

    def _ends_at(self, tree: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint is of this run's last step, but of a longer run."""
        steps: int = self._settings["steps"]
        return bool(tree["run"]["step"] == steps != steps_of(tree["identity"]))

    def _why_not(self, tree: Mapping[str, Any]) -> str:
        """Return in words why this run does not pass through a checkpoint's state, although the two began alike."""
        step, steps = tree["run"]["step"], self._settings["steps"]
        total = steps_of(tree["identity"])
        if step > steps:
            return f"is of a run of {total:,} steps and has taken {step:,}, so it ends at {step:,} or later"
        if self._ends_at(tree):
            return (
                f"is of a run of {total:,} steps, which did not validate step {step:,}, as one that ends there does, "
                f"and no earlier checkpoint is left; let it end at {step + 1:,} or later"
            )
        return (
            "has its run's last step as the best one, which more steps would not have validated there, and no earlier "
            "checkpoint is left; begin the longer run in another folder"
        )

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the path and the identity of the newest readable checkpoint; None without one."""
        for path in reversed(self.paths()):
            try:
                return path, _read(path)["identity"]
            except CheckpointError:
                continue
        return None

    def whole(self) -> list[str]:
        """Return the names of the checkpoints that can be read, the oldest first."""
        names = []
        for path in self.paths():
            with suppress(CheckpointError):
                _read(path)
                names.append(path.name)
        return names

    def require_own(self, advice: str) -> None:
        """Refuse a folder whose newest readable checkpoint, if there is one, is of another run.

        Args:
            advice: what to do then, for the message.

        Raises:
            CheckpointError: it is; names what differs.
        """
        if newest := self.newest():
            require_same(*newest, self.identity, advice)


def _read(path: Path) -> dict[str, Any]:
    """Read what :meth:`Checkpoints.write` wrote.

    Raises:
        CheckpointError: it cannot be read.
    """
    tree = load_tree(path)
    return {**tree, "identity": json.loads(tree["identity"])}


def _has_ended(tree: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of its run's end: the last step, or the one at which patience ended it."""
    run, settings = tree["run"], tree["identity"]["settings"]
    patience = int(settings["patience"]) * int(settings["validate_every"])
    return bool(run["step"] == settings["steps"]) or out_of_patience(run["step"], run["best"], patience)


def steps_of(identity: Mapping[str, Any]) -> int | None:
    """Return the steps of a run by its identity in a checkpoint or by ``distilled.json``; None if they are missing."""
    settings = identity.get("settings")
    steps: int | None = settings.get("steps") if isinstance(settings, Mapping) else None
    return steps


def require_begun_alike(
    path: Path, saved: Mapping[str, Any], current: Mapping[str, Any], learned: Collection[str], ended: bool
) -> None:
    """Refuse a checkpoint unless this run begins like the saved one; they may differ in the number of steps.

    A finished run cannot be continued as one of fewer steps.

    Args:
        path: of the checkpoint.
        saved: the identity in the checkpoint.
        current: the identity of this run.
        learned: the groups that the saved run's steps learn.
        ended: whether the checkpoint is of the end of its run, by patience or by the last step.
    Raises:
        CheckpointError: the runs differ; names what differs, or what depends on the total number of steps.
    """
    steps, wanted = saved["settings"]["steps"], current["settings"]["steps"]
    if steps == wanted:
        require_same(path, saved, current)
        return
    saved_as_current = {**saved, "settings": {**saved["settings"], "steps": wanted}, DESCRIBED: current[DESCRIBED]}
    require_same(path, saved_as_current, current)
    if wanted < steps and ended:
        raise CheckpointError(
            f"{path} is of a finished run of {steps:,} steps, which can only be taken further; {wanted:,} are fewer: "
            "begin the shorter run in another folder"
        )
    annealed_groups = [group for group in annealed(saved["settings"]) if group in learned]
    if annealed_groups:
        reason = f"the rate of its {in_words(annealed_groups)} is annealed over its steps"
    elif saved[DESCRIBED] != current[DESCRIBED]:
        reason = f"its {_difference(DESCRIBED, saved[DESCRIBED], current[DESCRIBED])}"
    else:
        return
    raise CheckpointError(
        f"{path} is of a run of {steps:,} steps, which cannot be taken to {wanted:,}: {reason}, so such a run is "
        "another one from the first step; begin it in another folder"
    )


def require_same(
    path: Path, saved: Mapping[str, object], current: Mapping[str, object], advice: str = BEGIN_ANEW
) -> None:
    """Refuse a file of another run; settings that only bound memory may differ.

    Args:
        path: of the file.
        saved: the identity in the file, which may have further keys.
        current: the identity of this run.
        advice: what to do if they differ, for the message.
    Raises:
        CheckpointError: it is; names what differs.
    """
    saved = _without_memory_settings(saved)
    for key, value in _without_memory_settings(current).items():
        saved_value = saved.get(key, ABSENT)
        if saved_value != value:
            difference = _difference(key, saved_value, value)
            raise CheckpointError(f"{path} belongs to another run: its {difference}; {advice}")


def _without_memory_settings(identity: Mapping[str, object]) -> Mapping[str, object]:
    """Return an identity without the settings that only bound memory."""
    settings = identity.get("settings")
    if not isinstance(settings, Mapping):
        return identity
    compared = {name: value for name, value in settings.items() if name not in MEMORY_ONLY}
    return {**identity, "settings": compared}


def _difference(name: str, saved: object, current: object) -> str:
    """Return in words how two values differ: mappings in their first entry that does, texts in their first line."""
    if name == AUGMENTATION:  # None for a task without any
        saved, current = saved or {}, current or {}
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        key = next(key for key in (*current, *saved) if saved.get(key, ABSENT) != current.get(key, ABSENT))
        return _difference(f"{name}.{key}", saved.get(key, ABSENT), current.get(key, ABSENT))
    if isinstance(current, str):
        saved, current = differing_lines(str(saved), current)
    if name == "fingerprint":
        made = "the encoder, the size or the split that made them"
        return f"training data are others, or {made} (fingerprint {saved}, not {current})"
    if name == LAYERS:
        return f"network has {saved}, not {current}"
    part, _, last = name.rpartition(".")
    if last in DIGESTS:
        return f"{part} {DIGESTS[last]} ({saved}, not {current})"
    return f"{name} is {saved}, not {current}"
