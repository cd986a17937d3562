"""The set that a run's folder holds: whether it is the one that is asked for, and whether its run goes on."""

from dataclasses import asdict
from pathlib import Path
from typing import get_args

from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError
from mmdistill.execution import ranks
from mmdistill.labels import LabelKind
from mmdistill.networks.architecture import described_layers, network_title
from mmdistill.runs.checkpoints import AUGMENTATION, DESCRIBED, Checkpoints, require_same, steps_of
from mmdistill.runs.damaged import whole_set
from mmdistill.runs.folder import CHECKPOINTS, SET, is_finished, is_started
from mmdistill.runtime import Draws
from mmdistill.store import as_json, read_json
from mmdistill.task import TaskInfo


def finished_set_or_resume(
    distiller: Distiller, name: str, folder: Path, any_precision: bool
) -> tuple[DistilledSet | None, bool]:
    """Return what a folder holds of a run.

    Returns:
        The finished set, or None; and, where it is None, whether the run resumes from checkpoints that are there.
    """
    finished, started = ranks.gathered((is_finished(folder), is_started(folder)))[0]
    if finished and not ranks.gathered(_goes_further(folder, distiller.settings.steps))[0]:
        if (found := whole_set(folder)) is not None:
            _require_own(found, distiller, name, folder, any_precision)
        return found, started
    return None, started


def _goes_further(folder: Path, steps: int) -> bool:
    """Return whether the finished run of a folder is on its way to so many steps, by its newest checkpoint."""
    try:
        if steps_of(read_json(folder / SET)) in (None, steps):
            return False
    except CheckpointError:  # a damaged one, whose run goes on anyway
        return False
    newest = Checkpoints(folder / CHECKPOINTS, {}).newest()
    return newest is not None and steps_of(newest[1]) == steps


def _require_own(found: DistilledSet, distiller: Distiller, name: str, folder: Path, any_precision: bool) -> None:
    """Refuse the set that a folder holds unless it is the one that is asked for.

    Args:
        found: the set.
        distiller: of the run that is asked for.
        name: what its set calls the method.
        folder: of the run.
        any_precision: whether none was asked for; another device may have had another one.
    Raises:
        CheckpointError: it is another one's.
    """
    own = identity(distiller, name)
    saved = {
        **_of_data(found.info),
        **({"network": found.network} if found.network else {}),
        "method": found.method,
        "parameterization": found.parameterization,
        **({"label": found.label} if found.label in get_args(LabelKind) else {}),  # others say what labels are
        "budget": found.budget,
        "seed": found.seed,
        "settings": found.settings,
        DESCRIBED: found.described,
        **({} if any_precision else {"precision": found.precision}),
    }
    compared = {key: own[key] for key in saved}
    if found.network:
        compared["network"] = network_title(distiller.task)
    try:
        require_same(folder / SET, saved, compared)
        # Checkpoints know the network's layers too. How many processes there were, in which formats they computed, and
        # how many steps there shall be, matters to a run that goes on.
        going_on = ("processes", "precision", "settings")
        Checkpoints(folder / CHECKPOINTS, {key: own[key] for key in own if key not in going_on}).require_own()
    except CheckpointError as error:
        fewer = (steps_of(saved) or 0) < distiller.settings.steps
        further = "take the run further with resume=True, " if fewer and steps_of(saved) else ""
        ways = f"{further}choose another folder, or leave resume out with overwrite=True"
        raise CheckpointError(f"{error}; {ways}") from None


def _of_data(info: TaskInfo) -> dict[str, object]:
    """Return what tells the data of one run from those of another, as a task or a set describes them."""
    return {
        "fingerprint": info.fingerprint,
        "units": info.units,
        AUGMENTATION: info.preprocessing.get("augmentation"),
    }


def identity(distiller: Distiller, name: str) -> dict[str, object]:
    """Return what a checkpoint must share with the run that resumes it, as plain values."""
    found = {
        **_of_data(distiller.task.describe()),
        "method": name,
        "parameterization": distiller.method.storage,
        "label": distiller.method.label,
        "network": distiller.task.init(Draws(0, device=distiller.task.device)).shapes(),
        "layers": described_layers(distiller.task),
        "budget": distiller.budget,
        "seed": distiller.draws.seed,
        "settings": asdict(distiller.settings),
        "precision": distiller.precision,
        "processes": ranks.size(),
        DESCRIBED: distiller.described,
    }
    return as_json(found)
