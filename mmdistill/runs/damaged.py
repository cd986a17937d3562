"""The set of a finished run that is damaged or has lost a file: its run goes on as if it were unfinished."""

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
    """Return the set of a finished run; None where that is damaged and the run goes on, which is warned of.

    Of several processes all ask; each has its own checkpoints.

    Raises:
        CheckpointError: a damaged set of a run without a whole checkpoint, or one of another version.
    """
    try:
        return DistilledSet.load(folder)
    except VersionError:
        raise
    except CheckpointError as error:
        if not set.intersection(*map(set, ranks.gathered(_whole(folder)))):
            raise CheckpointError(f"{error}; {how_to_begin_anew(folder)}") from error
        if ranks.is_first():
            logger.warning("%s; its run goes on from the newest whole checkpoint", error)
        return None


def load_whole(folder: Path) -> DistilledSet:
    """Return the set of a finished run.

    Raises:
        CheckpointError: it is damaged, which says what to do, of another version, or not there.
    """
    try:
        return DistilledSet.load(folder)
    except CheckpointError as error:
        if isinstance(error, VersionError) or not is_finished(folder):
            raise
        raise CheckpointError(f"{error}; {advice(folder)}") from error


def advice(folder: Path) -> str:
    """Return how the damaged set of a folder is made again, in words."""
    return f"its run makes it again; {how_to_go_on(folder)}" if _whole(folder) else how_to_begin_anew(folder)


def _whole(folder: Path) -> list[str]:
    """Return the names of a folder's whole checkpoints, from which its run goes on."""
    return [] if is_imported(folder) else Checkpoints(folder / CHECKPOINTS, {}).whole()
