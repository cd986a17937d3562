"""Load sets that may be damaged or have lost a file; their runs are resumed as if they were unfinished."""

import logging
from pathlib import Path

from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, VersionError
from mmdistill.execution import ranks
from mmdistill.runs.checkpoints import Checkpoints
from mmdistill.runs.folder import CHECKPOINTS, is_finished, is_imported
from mmdistill.runs.how_to_continue import how_to_begin_anew, how_to_go_on

logger = logging.getLogger(__name__)


def whole_set(folder: Path) -> DistilledSet | None:
    """Return the set of a finished run; None, with a warning, if it is damaged and its run can be resumed.

    With several processes all must call this, since each has its own checkpoints.

    Raises:
        CheckpointError: the set is of another version, or damaged and the run has no readable checkpoint.
    """
    try:
        with ranks.together():
            return DistilledSet.load(folder)
    except VersionError:
        raise
    except CheckpointError as error:
        if not set.intersection(*map(set, ranks.gathered(_readable_checkpoints(folder)))):
            raise CheckpointError(f"{error}; {how_to_begin_anew(folder)}") from error
        if ranks.is_first():
            logger.warning("%s; its run goes on from the newest whole checkpoint", error)
        return None


def load_whole(folder: Path) -> DistilledSet:
    """Return the set of a finished run.

    Raises:
        CheckpointError: it is missing, of another version, or damaged; then it says what to do.
    """
    try:
        return DistilledSet.load(folder)
    except CheckpointError as error:
        if isinstance(error, VersionError) or not is_finished(folder):
            raise
        raise CheckpointError(f"{error}; {advice(folder)}") from error


def advice(folder: Path) -> str:
    """Return how to make the damaged set of a folder again, in words."""
    if _readable_checkpoints(folder):
        return f"its run makes it again; {how_to_go_on(folder)}"
    return how_to_begin_anew(folder)


def _readable_checkpoints(folder: Path) -> list[str]:
    """Return the names of the readable checkpoints from which a folder's run can be resumed."""
    return [] if is_imported(folder) else Checkpoints(folder / CHECKPOINTS, {}).whole()
