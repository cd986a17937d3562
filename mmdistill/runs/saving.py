"""Save metrics, pictures and the report of a judged set in a run's folder."""

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
from mmdistill.execution.isolation import in_turn, isolated
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


@in_turn
@isolated
def save_evaluation(
    task: Task, distilled: DistilledSet, evaluation: Evaluation, folder: Path | str, *, judging: Judging | None = None
) -> list[Path]:
    """Save an evaluation in its run's folder: add it to ``metrics.json``, draw the set and write the report.

    This does for runs made in Python what ``mmdistill evaluate`` and ``mmdistill report`` do for those of the command
    line, so that ``mmdistill compare`` takes them. Entries replace earlier ones of the same judge and metric.

    Args:
        task: the task that judged.
        distilled: the set.
        evaluation: the result of :func:`~mmdistill.evaluate.evaluate`.
        folder: of the run; if it holds no set yet, the set is saved too.
        judging: for a task of your own, the settings of judging under which results are told apart: ``{"epochs": 5,
            "batch": 32}``. Tasks of this package, and :class:`~mmdistill.abilities.KeepsJudging`, record their own.

    Returns:
        The report's pages, ``report.md`` and ``report.html``.

    Raises:
        ConfigError: an argument has a wrong type, ``folder`` cannot take a run, or ``judging`` has unknown settings.
        CheckpointError: the set is of another task, or the folder holds another set, an unfinished run or damaged
            metrics.
    """
    require_task(task)
    for argument, kind in ((distilled, DistilledSet), (evaluation, Evaluation)):
        if not isinstance(argument, kind):
            raise ConfigError(f"a task, its DistilledSet and an Evaluation are saved, got {type(argument).__name__}")
    distilled.require(task.describe())
    judging = _check_judging(judging)
    folder = users_path(folder)
    require_free(folder, other="another folder", writes=[METRICS])
    with sole_writer(folder):
        path, has_set = folder / METRICS, is_finished(folder)
        _save_set(distilled, folder)
        previous = former_metrics(path) if has_set else {}  # metrics without a set are left from one that is gone
        write_json(path, metrics_document(task, distilled, evaluation, previous, judging))
        drawn: list[Path] = []
        with suppress(UnsupportedError):  # a task of the user's, whose report has no pictures
            drawn = draw(task, distilled, folder)
        return write_report(folder, distilled, read_metrics(path), drawn)


@in_turn
@isolated
def pictures(task: Task, distilled: DistilledSet) -> "list[Image]":
    """Return the pictures of a set that a run's report has, without a folder; a notebook shows each as a cell's value.

    - Images: the samples, a row for each class; the first ones of large sets, see ``info["Description"]`` of a picture.
    - A graph: its nodes among the real ones and, if it has edges, its structure and adjacency.
    - Sets of graphs: the first graphs.
    - Texts: a map of real and synthetic samples.
    - Interactions: the popularity of items and the activity of users, beside the real ones.

    Args:
        task: of the set.
        distilled: the set.

    Returns:
        PIL images, loaded; none if the task's domain is not registered.

    Raises:
        ConfigError: an argument is not a task, or not a set.
        CheckpointError: the set is of another task.
        UnsupportedError: the task is the user's own, and its domain cannot draw it.
    """
    from PIL import Image

    require_task(task)
    if not isinstance(distilled, DistilledSet):
        raise ConfigError(f"pictures are drawn of a DistilledSet, got {type(distilled).__name__}")
    distilled.require(task.describe())
    images = []
    with TemporaryDirectory() as folder:
        for path in draw(task, distilled, users_path(folder)):
            if path.suffix == ".png":  # others are tables
                with Image.open(path) as picture:
                    images.append(picture.copy())
    return images


def _check_judging(judging: Judging | None) -> Judging:
    """Return the settings of judging that a user passed, checked.

    Raises:
        ConfigError: a setting is unknown, or has a wrong type or value.
    """
    require_kind(Mapping, judging=judging)
    settings: dict[str, Any] = dict(judging or {})
    if unknown := [name for name in settings if name not in JUDGING]:
        raise unknown_name("setting of judging", unknown[0], JUDGING)
    texts = {name: settings.get(name) for name in ("protocol", "testing", "augmentation")}
    require_kind(str, **texts)
    require_sizes(**{name: value for name, value in settings.items() if name not in ("precision", *texts)})
    if (precision := settings.get("precision")) is not None:
        require_choice("precision", precision, get_args(TrainingPrecision))
    return judging_overrides(**{name: value for name, value in settings.items() if value is not None})


def draw(task: Task, distilled: DistilledSet, folder: Path) -> list[Path]:
    """Draw a set into its folder's ``pictures``; draws nothing if the task's domain is not registered.

    Raises:
        ConfigError: ``pictures`` is a link that leads out of the folder.
        UnsupportedError: the task is the user's own, and the domain cannot draw it.
    """
    require_free(folder, other="another folder")
    name = task.describe().domain
    if name not in DOMAIN_PACKAGES:
        return []
    remove_parts(folder / PICTURES)
    drawn = get_domain(name).draw(task, distilled.to(task.device), folder / PICTURES)
    if drawn:
        note_written(folder / DRAWN, drawn)
    return drawn


def _save_set(distilled: DistilledSet, folder: Path) -> None:
    """Save a set into a folder unless it is there.

    Raises:
        CheckpointError: the folder holds another set, or an unfinished run.
    """
    require_finished(folder)
    if is_finished(folder):
        require_held(distilled, folder)
    else:
        distilled.save(folder)


def require_held(distilled: DistilledSet, folder: Path) -> None:
    """Refuse a folder that holds another set than the one that was judged, such as after its run was extended.

    Raises:
        CheckpointError: it does.
    """
    if read_json(folder / SET).get(DIGEST) != digest_of(distilled.tensors()):
        raise CheckpointError(f"{folder} holds another set than was judged; judge that one, or name this one's folder")
