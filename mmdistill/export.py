"""A distilled set for other tools, from Python."""

from collections.abc import Callable
from pathlib import Path

from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.execution.isolation import isolated
from mmdistill.exports import LISTING
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.imports import LEARNED
from mmdistill.names import known_name
from mmdistill.registry import get_domain
from mmdistill.runs.listings import note_written, written_files
from mmdistill.runtime import remove_parts
from mmdistill.samples import require_forms
from mmdistill.store import digest_of, read_json, write_json
from mmdistill.task import Task


@isolated
def export(
    distilled: DistilledSet, format: str, folder: Path | str, task: Task | Callable[[], Task] | None = None
) -> list[Path]:
    """Write a set for other tools, and what was learned beside the samples, with which it is used (``learned.json``).

    Several formats of one set may share a folder.

    Args:
        distilled: the set.
        format: one of those of its kind of data, such as ``tensors``; an error lists them.
        folder: where the files go; the command ``mmdistill export`` puts them into ``export`` in the run's folder.
        task: that the set was distilled from, or what makes it: few formats need it, and say so.

    Returns:
        The files' paths.

    Raises:
        ConfigError: no set, an unknown format, a missing task, or a folder that holds exports of another set.
        ShapeError: samples of other axes than the task's, or whole numbers in the place of floats.
        UnsupportedError: a set that the format cannot hold.
    """
    if not isinstance(distilled, DistilledSet):
        raise ConfigError(
            f"a DistilledSet is exported, got {type(distilled).__name__}; DistilledSet.load(folder) reads that of a run"
        )
    require_forms(distilled.batch, distilled.info.forms)
    domain, folder = get_domain(distilled.info.domain), users_path(folder)
    key = known_name(f"export format for {domain.name} data", format, domain.exports)
    identity = digest_of(distilled.tensors())
    with sole_writer(folder) as alone:
        remove_parts(folder, alone)
        require_own(folder, identity)
        written = domain.exports[key](distilled, folder, task)
        if distilled.learned:
            learned = {name: tensor.tolist() for name, tensor in distilled.learned.items()}
            write_json(folder / LEARNED, learned)
            written = [*written, folder / LEARNED]
        note_written(folder / LISTING, written, {"set": identity})
    return written


def require_own(folder: Path, identity: str) -> None:
    """Refuse a folder that holds exports of another set, so that two never mix there.

    Raises:
        ConfigError: it does; names the first of its files.
    """
    there = written_files(folder / LISTING)
    if there and read_json(folder / LISTING).get("set") != identity:
        raise ConfigError(
            f"{folder} holds the export of another set ({there[0]}{' and more' if len(there) > 1 else ''}); choose "
            "another folder (--to), or remove it"
        )
