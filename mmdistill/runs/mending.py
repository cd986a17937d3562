"""The set of a finished run that is damaged or has lost a file: whether the run's last checkpoint makes it again."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmdistill.distilled import SET_VERSION, DistilledSet
from mmdistill.errors import CheckpointError
from mmdistill.execution import ranks
from mmdistill.runs.checkpoints import Checkpoints, steps_of
from mmdistill.runs.folder import CHECKPOINTS, SET, is_imported
from mmdistill.runs.ways_on import how_to_begin_anew, how_to_write_again
from mmdistill.store import read_json


def whole_set(folder: Path, note: Callable[[str], None]) -> DistilledSet | None:
    """Return the set of a finished run; None where that is damaged, and resuming writes it or the one after it.

    Of several processes all ask; each has its own checkpoints, and the first notes.

    Args:
        folder: of the run.
        note: called with what is wrong, and that the set is written again.
    Raises:
        CheckpointError: a damaged set that the run's checkpoints do not make, or one of another version.
    """
    try:
        return DistilledSet.load(folder)
    except CheckpointError as error:
        if _of_another_version(folder):
            raise
        reason = next(filter(None, ranks.gathered(_why_lost(folder))), "")
        if reason:
            raise CheckpointError(f"{error}, and {reason}; {_how_else(folder)}") from error
        if ranks.is_first():
            note(f"{error}; the set is written again from the run's last checkpoint")
        return None


def load_whole(folder: Path) -> DistilledSet:
    """Return the set of a finished run.

    Raises:
        CheckpointError: it is damaged; says how it is written again where that works.
    """
    try:
        return DistilledSet.load(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{advice(folder)}") from error


def advice(folder: Path) -> str:
    """Return how the damaged set of a folder is written again, in words; nothing where its checkpoints do not do it."""
    if is_imported(folder):
        return f"; {how_to_begin_anew(folder)}"
    return "" if _of_another_version(folder) or _why_lost(folder) else f"; {how_to_write_again(folder)}"


def _of_another_version(folder: Path) -> bool:
    """Return whether a set says that another version of this package wrote it, to which it may be whole."""
    with suppress(CheckpointError):
        return bool(read_json(folder / SET).get("version", SET_VERSION) != SET_VERSION)
    return False


def _why_lost(folder: Path) -> str:
    """Return why resuming a folder's run would not write its set again, in words; nothing where it does.

    What takes the run of a set further has another one in its place in the end.
    """
    checkpoints = Checkpoints(folder / CHECKPOINTS, {})
    with suppress(CheckpointError):
        made, newest = steps_of(read_json(folder / SET)), checkpoints.newest()
        if newest is not None and made not in (None, steps_of(newest[1])):
            return ""
    return checkpoints.why_not_last()


def _how_else(folder: Path) -> str:
    """Return what to do about a damaged set that the last checkpoint does not make, in words."""
    if Checkpoints(folder / CHECKPOINTS, {}).newest() is not None:
        return f"without {SET} beside it the run goes on from its newest whole checkpoint"
    return how_to_begin_anew(folder)
