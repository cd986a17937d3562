"""The commands on finished runs: evaluate, report, compare and export."""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mmdistill.abilities import ask_teacher
from mmdistill.commands.assembly import (
    NO_JUDGE_ASKS,
    make_task,
    note_of_more_steps,
    require_own_config,
    require_unchanged_file,
)
from mmdistill.config import DistillConfig, EvaluateConfig
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError, MmdistillError, first_line
from mmdistill.evaluate import JudgingRequest, find_baselines, readable_judges
from mmdistill.export import export
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.metrics import dropped_baselines, former_metrics, of_same_test, read_metrics
from mmdistill.names import canonical, first_few, unknown_name
from mmdistill.networks.minibatches import carries_steps
from mmdistill.registry import located
from mmdistill.reporting.compare import compare
from mmdistill.reporting.comparison import runs_in
from mmdistill.reporting.report import summary, write_report
from mmdistill.runs.damaged import load_whole
from mmdistill.runs.folder import CONFIG, EXPORT, METRICS, require_free
from mmdistill.runs.how_to_continue import how_to_finish, require_finished
from mmdistill.runs.judging import judge_and_keep
from mmdistill.runs.kept_baselines import KeptBaselines, package_digest
from mmdistill.runs.saving import draw, require_held
from mmdistill.runtime import deterministic_kernels, prepare_deterministic_kernels
from mmdistill.selections import known_bytes
from mmdistill.task import Task


def _finished_set(folder: Path) -> DistilledSet:
    """Return the set of a finished run.

    Raises:
        CheckpointError: the folder holds no finished run, or its set is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    require_finished(folder)
    return load_whole(folder)


def _read_run(folder: Path, data: str | None) -> tuple[DistillConfig, DistilledSet]:
    """Return a finished run's configuration and set; print a note if the run is being extended.

    Args:
        folder: of the run.
        data: where its data are now; None: where its configuration says.
    Raises:
        CheckpointError: the folder holds no finished run, or its set is damaged or of another run than its options.
    """
    distilled = _finished_set(folder)
    config = DistillConfig.load(folder / CONFIG)
    require_own_config(config, distilled, folder)
    if note := note_of_more_steps(config, distilled, folder):
        print(f"note: {note}")
    return (replace(config, data=located(data)) if data else config), distilled


def _make_task_of(config: DistillConfig, distilled: DistilledSet, device: str = "cpu") -> Task:
    """Build the task of a finished run.

    Raises:
        CheckpointError: the data have changed since the set was distilled.
    """
    _, task = make_task(config, device)
    distilled.require(task.describe())
    return task


def _make_task_without_lost_teacher(
    config: DistillConfig, distilled: DistilledSet, request: EvaluateConfig
) -> tuple[Task, DataError | None]:
    """Build the task of a finished run, without its teacher if that file has changed or vanished.

    Returns:
        The task, and what is wrong with the teacher's file; None if nothing is.
    Raises:
        CheckpointError: the data have changed since the set was distilled.
        DataError: the request names a teacher whose file is not there.
    """
    lost = None
    if config.teacher is not None and request.teacher is None:
        try:  # dropping the digest saves reading the file a second time
            config = replace(config, teacher=str(require_unchanged_file(config.teacher)))
        except DataError as error:  # matters only if a judge needs the teacher
            lost, config = error, replace(config, teacher=None)
    return _make_task_of(config, distilled, request.device), lost


def for_each_run(folders: Sequence[str], command: Callable[[Path], None]) -> None:
    """Call a function with the folder of each finished run; go on after runs that fail, and skip unfinished ones.

    A single run is not skipped, and its error is raised at once.

    Args:
        folders: run folders, or folders of them.
        command: takes a run's folder.
    Raises:
        MmdistillError: the error of the only run.
        ConfigError: some of several runs failed; names them.
    """
    runs = {run.resolve(): run for folder in folders for run in runs_in(users_path(folder))}
    if len(runs) == 1:
        command(*runs.values())
        return
    failed = []
    for run in runs.values():
        if unfinished := how_to_finish(run):
            print(f"{run}: skipped, unfinished; {unfinished}")
            continue
        print(f"{run}:")
        try:
            command(run)
        except (MmdistillError, OSError, UnicodeDecodeError) as error:
            print(f"failed: {error}")
            failed.append(run)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            traceback.print_exc()  # an unforeseen file, or a fault of the package
            print(f"failed: {type(error).__name__}: {first_line(error)}")
            failed.append(run)
    if failed:
        raise ConfigError(f"{len(failed)} of {len(runs)} runs failed: {first_few(failed, 3)} (see above)")


def evaluate_command(folders: Sequence[str], request: EvaluateConfig) -> None:
    """Judge finished runs again and add to their metrics.

    Args:
        folders: run folders, or folders of them.
        request: who judges, and how.
    Raises:
        ConfigError: the kind of scores is unknown, or a run's folder is not writable.
    """
    package_digest()  # cached now: the source may be edited while the command runs
    if request.scores not in ("accuracy", "robust"):
        raise unknown_name("kind of scores", request.scores, ("accuracy", "robust"))
    prepare_deterministic_kernels()  # before any run: a later one may need them
    for_each_run(folders, lambda folder: _evaluate(folder, request))


def _evaluate(folder: Path, request: EvaluateConfig) -> None:
    """Judge a finished run again and add to its metrics.

    Raises:
        ConfigError: the folder is not writable.
    """
    path = folder / METRICS
    if path.exists():
        read_metrics(path)  # refuses damaged ones before the work
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{folder} cannot be written to, where the results belong; copy the folder and judge the copy"
        )
    config, distilled = _read_run(folder, request.data)
    config = request.replaced(config)
    with deterministic_kernels(config.deterministic):
        _judge(folder, request, config, distilled)


def _judge(folder: Path, request: EvaluateConfig, config: DistillConfig, distilled: DistilledSet) -> None:
    """Judge a finished run's set as ``config`` says, which includes the request's changes, and add to its metrics."""
    task, lost = _make_task_without_lost_teacher(config, distilled, request)
    path = folder / METRICS
    own_steps = carries_steps(distilled.learned) and not ask_teacher(task, [task.judges[0]])
    if own_steps and (request.judge_epochs or request.judge_batch or request.protocol):
        print("note: judges take this set's own learned steps; how they train concerns its baselines alone")
    judges, _ = readable_judges(task, config.judge_names(), distilled.judge)
    needs_teacher = request.scores == "robust" or ask_teacher(task, judges)
    if lost is not None and needs_teacher:
        raise lost
    if request.teacher and not needs_teacher:
        print(NO_JUDGE_ASKS)
    with sole_writer(folder):
        require_held(distilled, folder)  # another process may have replaced the set
        recorded = former_metrics(path)  # read again: another process may have judged meanwhile
        previous = of_same_test(recorded, task)
        if recorded and not previous:
            print("note: the test data are others than before, so earlier results are dropped")
        judging = JudgingRequest(
            config.judge_names() or judges,
            find_baselines(task, config.baselines),
            n=config.networks,
            at_once=config.networks_at_once,
            seed=config.seed if request.seed is None else request.seed,
            robust=request.scores == "robust",
        )
        cache = KeptBaselines(config, task, judging)
        evaluation = judge_and_keep(task, distilled, judging, cache, folder, previous)
    dropped = dropped_baselines(previous, read_metrics(path))
    if dropped:
        print(f"dropped, since judged otherwise than the set now is: {', '.join(dropped)}")
    print(summary(distilled, evaluation, known_bytes(task, distilled.budget)))


def report_command(folders: Sequence[str], data: str | None) -> None:
    """Draw finished runs and write their reports.

    Args:
        folders: run folders, or folders of them.
        data: where their data are now; None: where their configurations say.
    """
    for_each_run(folders, lambda folder: _report(folder, data))


def _report(folder: Path, data: str | None) -> None:
    """Draw a finished run, whose data may have moved, and write its report."""
    config, distilled = _read_run(folder, data)
    task = _make_task_of(replace(config, teacher=None), distilled)  # only the set's record of it is reported
    pictures = draw(task, distilled, folder)
    metrics = former_metrics(folder / METRICS)
    for path in write_report(folder, distilled, metrics, pictures):
        print(path)


def compare_command(runs: Sequence[str], judge: str | None, metric: str | None, to: str | None) -> None:
    """Print judged runs side by side and name the folders left out; with ``to``, also draw and write them there.

    Args:
        runs: run folders, or folders of them.
        judge: whose scores: names, comma-separated, or ``all``; None is each run's first.
        metric: which score; None is the judge's first.
        to: a folder for an HTML page with pictures, a CSV and a LaTeX table; None for none.
    """
    comparison = compare(*runs, judges=judge, metric=metric)
    print(comparison)
    if to is not None:
        print(*comparison.write(to), sep="\n")


def export_command(run: str, format: str, to: str | None, data: str | None) -> None:
    """Write a finished run's set for other tools, with what was learned beside the samples, such as learning rates.

    Reads the real data only for formats that hold more of them than the set does.

    Args:
        run: the run's folder.
        format: one of the domain's exports.
        to: the folder to write into; None is the run's own for exports.
        data: where the run's data are now; None: where its configuration says.
    Raises:
        ConfigError: the domain has no such format, or ``to`` is the run's own folder.
    """
    if to is not None and (not to.strip() or os.path.realpath(to) == os.path.realpath(run)):
        raise ConfigError(f"--to names a folder of the export's own, got {to!r}; without it that is {run}/export")
    run_folder = users_path(run)
    distilled = _finished_set(run_folder)
    if (run_folder / CONFIG).exists():  # runs made in Python have none
        require_own_config(DistillConfig.load(run_folder / CONFIG), distilled, run_folder)
    folder = run_folder / EXPORT if to is None else users_path(to)
    if to is None:
        require_free(run_folder, other="another folder (--to)")

    tasks: list[Task] = []

    def make_task_once_needed() -> Task:
        tasks.append(_make_task_of(replace(_read_run(run_folder, data)[0], teacher=None), distilled))
        return tasks[0]

    written = export(distilled, format, folder, make_task_once_needed)
    if data and not tasks:
        print("note: this export reads no real data: --data changes nothing")
    if canonical(format) == "folder":
        soft = isinstance(distilled.batch.targets, Tensor) and distilled.batch.targets.is_floating_point()
        note = "; pictures have no soft labels, but the class that each stands for" if soft else ""
        print(f"{len(written)} files are in {folder}{note}")
    else:
        print(*written, sep="\n")
