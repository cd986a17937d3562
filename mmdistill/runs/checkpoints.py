"""The checkpoints of a run, and which run each belongs to."""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

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
"""Under which an identity says what the objective and the schedule are."""
AUGMENTATION = "augmentation"
"""Under which an identity says how the task changes samples at random; None where it does not."""
ABSENT = "absent"
"""Said of what one of two mappings lacks."""


class Checkpoints:
    """The checkpoints of one run: the newest two are kept, so that a damaged one loses at most an interval.

    On several processes each rank keeps its own, whose networks differ; later ranks in a folder of theirs.

    Args:
        folder: where they lie.
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
        """Write a checkpoint and drop all but the newest up to it: a run that went back has left later ones behind."""
        own, paths = self.write(run.tree(), seconds), self.paths()
        kept = paths[: paths.index(own) + 1][-KEPT_CHECKPOINTS:]
        for path in paths:
            if path not in kept:
                with suppress(PermissionError):  # on Windows, while another program holds it; the next save removes it
                    path.unlink(missing_ok=True)

    def begin(self, run: RunState, seconds: float, remove: Callable[[], None]) -> None:
        """Write the first checkpoint of a run that takes the place of an earlier one, which stays if that fails.

        Args:
            run: the state.
            seconds: that it has taken.
            remove: removes what else the earlier run left.
        """
        own = self.write(run.tree(), seconds)  # first, so that one of the two runs is there at any time
        remove()
        for path in self.paths():
            if path != own:
                patiently(path.unlink)

    def write(self, tree: Mapping[str, Any], seconds: float) -> Path:
        """Write a run's state (:meth:`RunState.tree`) as a checkpoint; returns its path."""
        path = self.folder / f"step-{tree['step']:08d}.safetensors"
        save_tree(path, {"identity": json.dumps(self.identity), "seconds": seconds, "run": tree})
        return path

    def restore(self, run: RunState, device: torch.device) -> float:
        """Load the newest readable checkpoint that the run comes by into it; returns the seconds spent before it.

        Raises:
            CheckpointError: there is none, all are damaged, or they belong to another run.
        """
        remove_parts(self.folder)
        damage: list[str] = []
        trees: dict[str, dict[str, Any]] = {}
        for path in reversed(self.paths()):
            try:
                trees[path.name] = _read(path)
            except CheckpointError as error:
                damage.append(str(error))
                continue
            if ranks.size() == 1 and self._comes_by(path, trees[path.name]):
                break
        everywhere = set.intersection(*(set(names) for names in ranks.gathered(list(trees))))
        damage = [said for own in ranks.gathered(damage) for said in own]
        for name in sorted(everywhere, reverse=True):
            if self._comes_by(self.folder / name, trees[name]):
                run.load(trees[name]["run"], device)
                seconds = float(trees[name]["seconds"])
                if self._ends_at(trees[name]):  # and has no step left after which its own would be saved
                    self.save(run, seconds)
                return seconds
        if everywhere:
            oldest = min(everywhere)
            raise CheckpointError(f"{self.folder / oldest} {self._why_not(trees[oldest])}")
        if damage:
            raise CheckpointError("no readable checkpoint: " + "; ".join(damage) + "; begin anew with --overwrite")
        raise CheckpointError(f"{self.folder} holds no checkpoint to resume from")

    def _comes_by(self, path: Path, tree: Mapping[str, Any]) -> bool:
        """Refuse a checkpoint of another run; return whether this run, of more or fewer steps, comes by its state.

        The last step is validated wherever it falls. Where it was the best, a longer run has another best step by then.
        """
        run, settings = tree["run"], self._settings
        require_begun_alike(path, tree["identity"], self.identity, run["optimizers"], _has_ended(tree))
        best, every = run["best"], settings["validate_every"]
        validated = best is None or best["step"] % every == 0 or best["step"] == settings["steps"]
        lacks = bool(every) and self._ends_at(tree) and run["step"] % every > 0
        return validated and not lacks and bool(run["step"] <= settings["steps"])

    @property
    def _settings(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.identity["settings"])

    def _ends_at(self, tree: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint is of this run's last step and of a run that had more."""
        asked: int = self._settings["steps"]
        return bool(tree["run"]["step"] == asked != steps_of(tree["identity"]))

    def _why_not(self, tree: Mapping[str, Any]) -> str:
        """Return in words why this run does not come by a checkpoint's state, where it began like its run."""
        taken, asked = tree["run"]["step"], self._settings["steps"]
        whole = steps_of(tree["identity"])
        if taken > asked:
            return f"is of a run of {whole:,} steps and has taken {taken:,}, so it ends at {taken:,} or later"
        if self._ends_at(tree):
            return (
                f"is of a run of {whole:,} steps, which did not validate step {taken:,}, as one that ends there does, "
                f"and no earlier checkpoint is left; let it end at {taken + 1:,} or later"
            )
        return (
            "has its run's last step as the best one, which more steps would not have validated there, and no earlier "
            "checkpoint is left; begin the longer run in another folder"
        )

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest readable checkpoint and what it says of its run; None where there is none."""
        for path in reversed(self.paths()):
            try:
                return path, _read(path)["identity"]
            except CheckpointError:
                continue
        return None

    def whole(self) -> list[str]:
        """Return the names of the checkpoints that can be read, the oldest first."""
        found = []
        for path in self.paths():
            with suppress(CheckpointError):
                _read(path)
                found.append(path.name)
        return found

    def require_own(self) -> None:
        """Refuse a folder whose newest readable checkpoint is of another run; there may be none.

        Raises:
            CheckpointError: naming what differs.
        """
        if found := self.newest():
            require_same(*found, self.identity)


def _read(path: Path) -> dict[str, Any]:
    """Return what :meth:`Checkpoints.write` wrote.

    Raises:
        CheckpointError: it cannot be read.
    """
    tree = load_tree(path)
    return {**tree, "identity": json.loads(tree["identity"])}


def _has_ended(tree: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of its run's end, be it the last step or the one that patience ended."""
    run, settings = tree["run"], tree["identity"]["settings"]
    patience = int(settings["patience"]) * int(settings["validate_every"])
    return bool(run["step"] == settings["steps"]) or out_of_patience(run["step"], run["best"], patience)


def steps_of(said: Mapping[str, Any]) -> int | None:
    """Return of how many steps a run is by what a checkpoint or a set says of it; None where it does not."""
    settings = said.get("settings")
    steps: int | None = settings.get("steps") if isinstance(settings, Mapping) else None
    return steps


def require_begun_alike(
    path: Path, saved: Mapping[str, Any], own: Mapping[str, Any], learned: Collection[str], ended: bool
) -> None:
    """Refuse what a checkpoint says of its run, unless this one begins so: the same, one of more steps, or of fewer.

    A finished run is not of fewer.

    Args:
        path: of the checkpoint.
        saved: what it says.
        own: what it would say, were it this run's.
        learned: the groups that its steps learn.
        ended: whether it is of the end of its run, by patience or by the last step.
    Raises:
        CheckpointError: naming what differs, or what depends on how many steps the run will have taken in the end.
    """
    steps, asked = saved["settings"]["steps"], own["settings"]["steps"]
    if steps == asked:
        require_same(path, saved, own)
        return
    alike = {**saved, "settings": {**saved["settings"], "steps": asked}, DESCRIBED: own[DESCRIBED]}
    require_same(path, alike, own)
    if asked < steps and ended:
        raise CheckpointError(
            f"{path} is of a finished run of {steps:,} steps, which can only be taken further; {asked:,} are fewer: "
            "begin the shorter run in another folder"
        )
    rates = [group for group in annealed(saved["settings"]) if group in learned]
    if rates:
        reason = f"the rate of its {in_words(rates)} is annealed over its steps"
    elif saved[DESCRIBED] != own[DESCRIBED]:
        reason = f"its {_difference(DESCRIBED, saved[DESCRIBED], own[DESCRIBED])}"
    else:
        return
    raise CheckpointError(
        f"{path} is of a run of {steps:,} steps, which cannot be taken to {asked:,}: {reason}, so such a run is "
        "another one from the first step; begin it in another folder"
    )


def require_same(path: Path, saved: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Refuse what a file says of its run, unless that is this one; settings that bound memory alone may differ.

    Raises:
        CheckpointError: naming what differs.
    """
    saved = _comparable(saved)
    for key, value in _comparable(own).items():
        if (there := saved.get(key, ABSENT)) != value:
            raise CheckpointError(f"{path} belongs to another run: its {_difference(key, there, value)}")


def _comparable(identity: Mapping[str, object]) -> Mapping[str, object]:
    """Return an identity without the settings that bound memory."""
    settings = identity.get("settings")
    if not isinstance(settings, Mapping):
        return identity
    compared = {name: value for name, value in settings.items() if name not in MEMORY_ONLY}
    return {**identity, "settings": compared}


def _difference(name: str, saved: object, own: object) -> str:
    """Return in words how two values differ: of mappings, their first entries that do, of texts their first lines."""
    if name == AUGMENTATION:  # of which a task that sets nothing says nothing
        saved, own = saved or {}, own or {}
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        key = next(key for key in (*own, *saved) if saved.get(key, ABSENT) != own.get(key, ABSENT))
        return _difference(f"{name}.{key}", saved.get(key, ABSENT), own.get(key, ABSENT))
    if isinstance(own, str):
        saved, own = differing_lines(str(saved), own)
    if name == "layers":
        return f"network has {saved}, not {own}"
    return f"{name} is {saved}, not {own}"
