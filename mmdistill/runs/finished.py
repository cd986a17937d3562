"""Decide whether a folder's finished set is that of a requested run, and whether the run must be resumed."""

from dataclasses import asdict
from pathlib import Path
from typing import get_args

from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError
from mmdistill.execution import ranks
from mmdistill.labels import LabelKind
from mmdistill.networks.architecture import described_layers, network_title
from mmdistill.runs.checkpoints import AUGMENTATION, BEGIN_ANEW, DESCRIBED, LAYERS, Checkpoints, require_same, steps_of
from mmdistill.runs.damaged import load_whole, whole_set
from mmdistill.runs.folder import CHECKPOINTS, SET, is_finished, is_started
from mmdistill.runtime import Draws
from mmdistill.store import as_json, read_json
from mmdistill.task import Task, TaskInfo


def finished_set_or_resume(
    distiller: Distiller, name: str, folder: Path, any_precision: bool
) -> tuple[DistilledSet | None, bool]:
    """Return the finished set of a run's folder, or whether to resume the run from its checkpoints.

    Args:
        distiller: of the run.
        name: of the method, as in the set.
        folder: of the run.
        any_precision: whether the set may have another precision, since the user requested none.
    Returns:
        The finished set or None; if None, whether there are checkpoints to resume from.
    Raises:
        CheckpointError: the set is of another run.
    """
    finished, started = ranks.gathered((is_finished(folder), is_started(folder)))[0]
    if finished and not ranks.gathered(_is_extended(folder, distiller.settings.steps))[0]:
        if (distilled := whole_set(folder)) is not None:
            with ranks.together():  # each has checkpoints of its own, which may be another run's
                _require_own(distilled, distiller, name, folder, any_precision)
        return distilled, started
    return None, started


def checkpoint_fingerprint(folder: Path) -> str | None:
    """Return the hash of the training data of a run's newest checkpoint; None if it has no readable one."""
    newest = Checkpoints(folder / CHECKPOINTS, {}).newest()
    return None if newest is None else str(newest[1]["fingerprint"])


def require_same_data(task: Task, folder: Path) -> None:
    """Refuse a task of other training data than the run in a folder, before the run trains experts and the like.

    Raises:
        CheckpointError: the run's newest checkpoint, or its set if it has none, is of other data.
    """
    with ranks.together():  # each has checkpoints of its own
        saved = Checkpoints(folder / CHECKPOINTS, {}).newest()
        if saved is None and is_finished(folder):
            saved = folder / SET, {"fingerprint": load_whole(folder).info.fingerprint}
        if saved is not None:
            advice = "bring the data back as they were, or name their place by --data"
            require_same(*saved, {"fingerprint": task.describe().fingerprint}, advice)


def _is_extended(folder: Path, steps: int) -> bool:
    """Return whether the finished run of a folder is being extended to ``steps``, by its newest checkpoint."""
    try:
        if steps_of(read_json(folder / SET)) in (None, steps):
            return False
    except CheckpointError:  # a damaged set; whole_set decides then
        return False
    newest = Checkpoints(folder / CHECKPOINTS, {}).newest()
    return newest is not None and steps_of(newest[1]) == steps


def _require_own(distilled: DistilledSet, distiller: Distiller, name: str, folder: Path, any_precision: bool) -> None:
    """Refuse a set of another run than the requested one.

    Args:
        distilled: the set.
        distiller: of the requested run.
        name: of its method, as in the set.
        folder: of the run.
        any_precision: whether the user requested none; another device may have had another default.
    Raises:
        CheckpointError: it is; names what differs and what to do.
    """
    current = identity(distiller, name)
    saved = {
        **_data_identity(distilled.info),
        **({"network": distilled.network} if distilled.network else {}),
        "method": distilled.method,
        "parameterization": distilled.parameterization,
        **({"label": distilled.label} if distilled.label in get_args(LabelKind) else {}),  # else it is only described
        "budget": distilled.budget,
        "seed": distilled.seed,
        "settings": distilled.settings,
        DESCRIBED: distilled.described,
        **({} if any_precision else {"precision": distilled.precision}),
    }
    compared = {key: current[key] for key in saved}
    if distilled.network:
        compared["network"] = network_title(distiller.task)
    saved_steps = steps_of(saved)
    advice = BEGIN_ANEW
    if saved_steps and saved_steps < distiller.settings.steps:
        advice = f"take the run further with resume=True (--resume FOLDER --steps N), {advice}"
    if saved_steps and saved_steps != distiller.settings.steps:
        advice = f"name its own steps (--steps {saved_steps}), {advice}"
    require_same(folder / SET, saved, compared, advice)
    # Checkpoints record the network's layers too. The excluded entries matter only to a run that is resumed.
    only_resumed = ("processes", "precision", "settings")
    comparable = {key: value for key, value in current.items() if key not in only_resumed}
    Checkpoints(folder / CHECKPOINTS, comparable).require_own(advice)


def _data_identity(info: TaskInfo) -> dict[str, object]:
    """Return the entries of a run's identity that tell its data from others."""
    return {
        "fingerprint": info.fingerprint,
        "units": info.units,
        AUGMENTATION: info.preprocessing.get("augmentation"),
    }


def identity(distiller: Distiller, name: str) -> dict[str, object]:
    """Return what a checkpoint must share with the run that resumes it, as JSON values."""
    values = {
        **_data_identity(distiller.task.describe()),
        "method": name,
        "parameterization": distiller.method.storage,
        "label": distiller.method.label,
        "network": distiller.task.init(Draws(0, device=distiller.task.device)).shapes(),
        LAYERS: described_layers(distiller.task),
        "budget": distiller.budget,
        "seed": distiller.draws.seed,
        "settings": asdict(distiller.settings),
        "precision": distiller.precision,
        "processes": ranks.size(),
        DESCRIBED: distiller.described,
    }
    return as_json(values)
