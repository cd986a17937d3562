"""What judging gave, kept in a run's folder: metrics, pictures and the report."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from mmdistill.abilities import JUDGING, Judging, judging_overrides
from mmdistill.checks import require_kind, require_sizes
from mmdistill.choices import TrainingPrecision
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, UnsupportedError, require_choice
from mmdistill.evaluation import Evaluation
from mmdistill.execution.isolation import isolated
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.metrics import former_metrics, metrics_document, read_metrics
from mmdistill.names import unknown_name
from mmdistill.registry import DOMAIN_PACKAGES, get_domain
from mmdistill.reporting.report import write_report
from mmdistill.runs.folder import DRAWN, METRICS, PICTURES, SET, is_finished, require_free
from mmdistill.runs.how_to_continue import require_finished
from mmdistill.runs.listings import note_written
from mmdistill.runtime import remove_parts
from mmdistill.store import DIGEST, digest_of, read_json, write_json
from mmdistill.task import Task, require_task

if TYPE_CHECKING:
    from PIL.Image import Image


@isolated
def save_evaluation(
    task: Task, distilled: DistilledSet, evaluation: Evaluation, folder: Path | str, *, judging: Judging | None = None
) -> list[Path]:
    """Keep what judging a set gave in its run's folder: add it to ``metrics.json``, draw, and write the report.

    It does for runs made in Python what ``mmdistill evaluate`` and ``mmdistill report`` do for those of the command
    line, so that ``mmdistill compare`` takes them. Entries of the same judge and metric replace earlier ones.

    Args:
        task: that judged.
        distilled: the set.
        evaluation: what :func:`~mmdistill.evaluate.evaluate` returned.
        folder: of the run; where it holds no set yet, the set is saved too.
        judging: of a task of one's own, what its user set of judging, by which results differ: ``{"epochs": 5, "batch":
            32}``. Tasks of this package, and those of :class:`~mmdistill.abilities.KeepsJudging`, say it themselves.

    Returns:
        The report's pages, ``report.md`` and ``report.html``.

    Raises:
        ConfigError: a set, results or a folder that are none, or what cannot be set of judging.
        CheckpointError: a set of another task; a folder that holds another set, an unfinished run or damaged metrics.
    """
    require_task(task)
    for given, kind in ((distilled, DistilledSet), (evaluation, Evaluation)):
        if not isinstance(given, kind):
            raise ConfigError(f"a task, its DistilledSet and an Evaluation are saved, got {type(given).__name__}")
    distilled.require(task.describe())
    judging = _checked(judging)
    folder = users_path(folder)
    require_free(folder, other="another folder")
    with sole_writer(folder):
        path, held = folder / METRICS, is_finished(folder)
        _keep_set(distilled, folder)
        previous = former_metrics(path) if held else {}  # not what is left of a set that is gone
        write_json(path, metrics_document(task, distilled, evaluation, previous, judging))
        drawn: list[Path] = []
        with suppress(UnsupportedError):  # a task of one's own, whose report has no pictures
            drawn = draw(task, distilled, folder)
        return write_report(folder, distilled, read_metrics(path), drawn)


@isolated
def pictures(task: Task, distilled: DistilledSet) -> "list[Image]":
    """Return the pictures that a run's report has of a set, without a folder: a notebook shows each as a cell's value.

    Of images they are the samples, a row for each class; of large sets the first ones, as the picture's
    ``info["Description"]`` says. Of a graph they are its nodes among the real ones and, where it has edges, its
    structure and adjacency; of sets of graphs the first ones; of texts a map of real and synthetic samples; of
    interactions how popular items and how active users are, beside the real ones.

    Args:
        task: whose set it is.
        distilled: the set.

    Returns:
        PIL images, loaded; none of a task of no registered domain.

    Raises:
        ConfigError: no task, or no set.
        CheckpointError: a set of another task.
        UnsupportedError: a task of one's own that its domain cannot draw.
    """
    from PIL import Image

    require_task(task)
    if not isinstance(distilled, DistilledSet):
        raise ConfigError(f"pictures are drawn of a DistilledSet, got {type(distilled).__name__}")
    distilled.require(task.describe())
    found = []
    with TemporaryDirectory() as folder:
        for path in draw(task, distilled, users_path(folder)):
            if path.suffix == ".png":  # others are tables
                with Image.open(path) as picture:
                    found.append(picture.copy())
    return found


def _checked(judging: Judging | None) -> Judging:
    """Return what a user says to have set of judging.

    Raises:
        ConfigError: it is nothing that can be set.
    """
    require_kind(Mapping, judging=judging)
    given: dict[str, Any] = dict(judging or {})
    if unknown := [name for name in given if name not in JUDGING]:
        raise unknown_name("setting of judging", unknown[0], JUDGING)
    texts = {name: given.get(name) for name in ("protocol", "testing")}
    require_kind(str, **texts)
    require_sizes(**{name: value for name, value in given.items() if name not in ("precision", *texts)})
    if (precision := given.get("precision")) is not None:
        require_choice("precision", precision, get_args(TrainingPrecision))
    return judging_overrides(**{name: value for name, value in given.items() if value is not None})


def draw(task: Task, distilled: DistilledSet, folder: Path) -> list[Path]:
    """Draw a set into its folder's ``pictures``; nothing of a task of no registered domain.

    Raises:
        ConfigError: the folder's pictures would lie elsewhere, by a link.
        UnsupportedError: a task of one's own that the domain cannot draw.
    """
    require_free(folder, other="another folder")
    name = task.describe().domain
    if name not in DOMAIN_PACKAGES:
        return []
    remove_parts(folder / PICTURES)
    found = get_domain(name).draw(task, distilled.to(task.device), folder / PICTURES)
    if found:
        note_written(folder / DRAWN, found)
    return found


def _keep_set(distilled: DistilledSet, folder: Path) -> None:
    """Save a set into a folder that holds none.

    Raises:
        CheckpointError: it holds another one, or an unfinished run.
    """
    require_finished(folder)
    if is_finished(folder):
        require_held(distilled, folder)
    else:
        distilled.save(folder)


def require_held(distilled: DistilledSet, folder: Path) -> None:
    """Refuse to keep what is found of a set in a folder that holds another one, such as that of a run taken further.

    Raises:
        CheckpointError: it does.
    """
    if read_json(folder / SET).get(DIGEST) != digest_of(distilled.tensors()):
        raise CheckpointError(f"{folder} holds another set than was judged; judge that one, or name this one's folder")
