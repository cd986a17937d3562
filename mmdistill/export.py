"""Export of distilled sets for other tools, from Python."""

from collections.abc import Callable
from pathlib import Path

from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.execution.isolation import isolated
from mmdistill.exporters import LISTING
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.importers import LEARNED
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
    """Write a set for other tools, with the values learned beside the samples (``learned.json``).

    Several formats of one set may share a folder.

    Args:
        distilled: the set.
        format: one of those of its kind of data, such as ``tensors``; an error lists them.
        folder: where the files go; the command ``mmdistill export`` puts them into ``export`` in the run's folder.
        task: that the set was distilled from, or a function that makes it; a format that needs it says so in an error.

    Returns:
        The files' paths.

    Raises:
        ConfigError: not a set, data without exports, an unknown format, a missing task, or a folder that holds exports
            of another set.
        ShapeError: samples of other axes than the task's, or whole numbers instead of floats.
        UnsupportedError: a set that the format cannot hold.
    """
    if not isinstance(distilled, DistilledSet):
        raise ConfigError(
            f"a DistilledSet is exported, got {type(distilled).__name__}; DistilledSet.load(folder) reads that of a run"
        )
    require_forms(distilled.batch, distilled.info.forms)
    domain, folder = get_domain(distilled.info.domain), users_path(folder)
    if not domain.exports:
        raise ConfigError(
            f"{domain.name} data have no exports: a saved set's tensors are in its distilled.safetensors, and formats "
            "for other tools are the exports of its Domain, by name, each made by mmdistill.exporters.exporter"
        )
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
    """Refuse a folder with exports of another set.

    Raises:
        ConfigError: naming the first file of the other set.
    """
    files = written_files(folder / LISTING)
    if files and read_json(folder / LISTING).get("set") != identity:
        raise ConfigError(
            f"{folder} holds the export of another set ({files[0]}{' and more' if len(files) > 1 else ''}); choose "
            "another folder (--to), or remove it"
        )
