"""What the commands do with finished runs: evaluate, report, compare and export them."""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mmdistill.abilities import ask_teacher
from mmdistill.commands.assembly import NO_JUDGE_ASKS, as_it_was, make_task, note_of_more_steps, require_own_config
from mmdistill.config import DistillConfig, EvaluateConfig
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError, MmdistillError, first_line
from mmdistill.evaluate import find_baselines, find_judges
from mmdistill.export import export
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.metrics import dropped_baselines, former_metrics, of_same_test, read_metrics
from mmdistill.names import canonical, first_few, unknown_name
from mmdistill.networks.minibatches import carries_steps
from mmdistill.reporting.compare import compare
from mmdistill.reporting.comparison import runs_in
from mmdistill.reporting.report import summary, write_report
from mmdistill.runs.damaged import load_whole
from mmdistill.runs.folder import CONFIG, EXPORT, METRICS, require_free
from mmdistill.runs.how_to_continue import how_to_finish, require_finished
from mmdistill.runs.judging import JudgingRequest, judge_and_keep
from mmdistill.runs.kept_baselines import KeptBaselines, package_digest
from mmdistill.runs.saving import draw, require_held
from mmdistill.runtime import deterministic_kernels, prepare_deterministic_kernels
from mmdistill.selections import known_bytes
from mmdistill.task import Task


def _finished_set(folder: Path) -> DistilledSet:
    """Return the set of a finished run.

    Raises:
        CheckpointError: no run, an unfinished one, or a damaged set.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    require_finished(folder)
    return load_whole(folder)


def _read_run(folder: Path) -> tuple[DistillConfig, DistilledSet]:
    """Return a finished run's configuration and set.

    Raises:
        CheckpointError: no run, an unfinished one, or a damaged set.
    """
    distilled = _finished_set(folder)
    config = DistillConfig.load(folder / CONFIG)
    require_own_config(config, distilled, folder)
    if note := note_of_more_steps(config, distilled, folder):
        print(f"note: {note}")
    return config, distilled


def _task_of(config: DistillConfig, distilled: DistilledSet, device: str = "cpu") -> Task:
    """Return the task that a finished run's configuration names.

    Raises:
        CheckpointError: the set is of other data than are there.
    """
    _, task = make_task(config, device)
    distilled.require(task.describe())
    return task


def _task_without_lost_teacher(
    config: DistillConfig, distilled: DistilledSet, asked: EvaluateConfig
) -> tuple[Task, DataError | None]:
    """Return the task of a finished run; where the teacher's file is not as it was, without it, and what is wrong.

    Raises:
        CheckpointError: the set is of other data than are there.
        DataError: a file that was asked for itself.
    """
    lost = None
    if config.teacher is not None and asked.teacher is None:
        try:
            config = replace(config, teacher=str(as_it_was(config.teacher)))  # no digest, so that it is read once
        except DataError as error:  # which matters only where a judge asks it
            lost, config = error, replace(config, teacher=None)
    return _task_of(config, distilled, asked.device), lost


def for_each_run(folders: Sequence[str], command: Callable[[Path], None]) -> None:
    """Do something with finished runs, one after the other; where it fails with one, the others have their turn.

    Of several, those that are not finished are skipped.

    Args:
        folders: run folders, or folders of them.
        command: what is done with a run's folder.
    Raises:
        MmdistillError: the error of the only run.
        ConfigError: naming those of several with which it failed.
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
        except BrokenPipeError:
            raise
        except (MmdistillError, OSError, UnicodeDecodeError) as error:
            print(f"failed: {error}")
            failed.append(run)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            traceback.print_exc()  # of files that nobody foresaw, or a fault of the package
            print(f"failed: {type(error).__name__}: {first_line(error)}")
            failed.append(run)
    if failed:
        raise ConfigError(f"{len(failed)} of {len(runs)} runs failed: {first_few(failed, 3)} (see above)")


def evaluate_command(folders: Sequence[str], asked: EvaluateConfig) -> None:
    """Judge finished runs again and add to their metrics.

    Args:
        folders: run folders, or folders of them.
        asked: by whom and how.
    Raises:
        ConfigError: unknown scores, or a folder that takes no results.
    """
    package_digest()  # of the code that runs, which may be edited meanwhile
    if asked.scores not in ("accuracy", "robust"):
        raise unknown_name("kind of scores", asked.scores, ("accuracy", "robust"))
    prepare_deterministic_kernels()  # some of these runs may ask for them, and not the first
    for_each_run(folders, lambda folder: _evaluate(folder, asked))


def _evaluate(folder: Path, asked: EvaluateConfig) -> None:
    """Judge a finished run again and add to its metrics.

    Raises:
        ConfigError: a folder that takes no results.
    """
    path = folder / METRICS
    if path.exists():
        read_metrics(path)  # before the work, should they be damaged
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{folder} cannot be written to, where the results belong; copy the folder and judge the copy"
        )
    config, distilled = _read_run(folder)
    config = asked.replaced(config)
    with deterministic_kernels(config.deterministic):
        _judge(folder, asked, config, distilled)


def _judge(folder: Path, asked: EvaluateConfig, config: DistillConfig, distilled: DistilledSet) -> None:
    """Judge a finished run's set as its configuration, changed for judging, says, and add to its metrics."""
    task, lost = _task_without_lost_teacher(config, distilled, asked)
    path = folder / METRICS
    own_steps = carries_steps(distilled.learned) and not ask_teacher(task, [task.judges[0]])
    if own_steps and (asked.judge_epochs or asked.judge_batch or asked.protocol):
        print("note: judges take this set's own learned steps; how they train concerns its baselines alone")
    judges = find_judges(task, config.judge_names(), distilled.judge, unfit={})
    asks = asked.scores == "robust" or ask_teacher(task, judges)
    if lost is not None and asks:
        raise lost
    if asked.teacher and not asks:
        print(NO_JUDGE_ASKS)
    with sole_writer(folder):
        require_held(distilled, folder)  # which another process may have replaced
        judged = former_metrics(path)  # again, since another process may have judged
        previous = of_same_test(judged, task)
        if judged and not previous:
            print("note: the test data are others than before, so earlier results are dropped")
        kept = KeptBaselines(config, task, config.seed if asked.seed is None else asked.seed)
        wanted = JudgingRequest(
            config.judge_names(), find_baselines(task, config.baselines), robust=asked.scores == "robust"
        )
        evaluation = judge_and_keep(kept, distilled, folder, previous, wanted)
    dropped = dropped_baselines(previous, read_metrics(path))
    if dropped:
        print(f"dropped, since judged otherwise than the set now is: {', '.join(dropped)}")
    print(summary(distilled, evaluation, known_bytes(task, distilled.budget)))


def report_command(folders: Sequence[str]) -> None:
    """Draw finished runs and write their reports.

    Args:
        folders: run folders, or folders of them.
    """
    for_each_run(folders, _report)


def _report(folder: Path) -> None:
    """Draw a finished run and write its report."""
    config, distilled = _read_run(folder)
    task = _task_of(replace(config, teacher=None), distilled)  # the set says which one it was
    pictures = draw(task, distilled, folder)
    metrics = former_metrics(folder / METRICS)
    for path in write_report(folder, distilled, metrics, pictures):
        print(path)


def compare_command(runs: Sequence[str], judge: str | None, metric: str | None, to: str | None) -> None:
    """Print judged runs side by side and name the folders without; with ``to``, draw and write them there.

    Args:
        runs: run folders, or folders of them.
        judge: whose scores: names, comma-separated, or ``all``; None is each run's first.
        metric: which score; None is the judge's first.
        to: a folder for the page, its pictures and tables for other programs and for LaTeX; None for none.
    """
    found = compare(*runs, judges=judge, metric=metric)
    print(found)
    if to is not None:
        print(*found.write(to), sep="\n")


def export_command(run: str, format: str, to: str | None) -> None:
    """Write a finished run's set for other tools, and what was learned beside the samples, with which it is used.

    The real data are read only where the format says something of them that the set does not hold.

    Raises:
        ConfigError: a format that data of this domain are not exported in, or the run's own folder as its place.
    """
    if to is not None and (not to.strip() or os.path.realpath(to) == os.path.realpath(run)):
        raise ConfigError(f"--to names a folder of the export's own, got {to!r}; without it that is {run}/export")
    own = users_path(run)
    distilled = _finished_set(own)
    if (own / CONFIG).exists():  # of a run that was made in Python there is none
        require_own_config(DistillConfig.load(own / CONFIG), distilled, own)
    folder = own / EXPORT if to is None else users_path(to)
    if to is None:
        require_free(own, other="another folder (--to)")
    written = export(distilled, format, folder, lambda: _task_of(replace(_read_run(own)[0], teacher=None), distilled))
    if canonical(format) == "folder":
        soft = isinstance(distilled.batch.targets, Tensor) and distilled.batch.targets.is_floating_point()
        lost = "; pictures have no soft labels, but the class that each stands for" if soft else ""
        print(f"{len(written)} files are in {folder}{lost}")
    else:
        print(*written, sep="\n")
