"""What the commands do: each a function of its options, printing for a person and writing into the run folder."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import get_args

from torch import Tensor

from mmdistill import ranks
from mmdistill.abilities import chosen_judging
from mmdistill.allocation import require_budget, subset_bytes
from mmdistill.assembly import (
    chosen_method,
    kept_config,
    kept_options,
    make_task,
    note_of_more_steps,
    placed,
    require_own_config,
    unmet_conditions,
)
from mmdistill.bars import progress_bar
from mmdistill.budget import find_budget
from mmdistill.checks import require_sizes
from mmdistill.comparison import judged_runs, judges_of, read_runs, repeated, without_scores
from mmdistill.composition import without_effect
from mmdistill.config import DistillConfig, EvaluateConfig
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.evaluate import find_judges, require_baselines, require_networks
from mmdistill.export import export
from mmdistill.judging import judge_and_keep, judge_missing
from mmdistill.kept_baselines import KeptBaselines, package_digest
from mmdistill.locks import sole_writer
from mmdistill.memory import explained
from mmdistill.method import Method
from mmdistill.metrics import dropped_baselines, of_same_test, read_metrics
from mmdistill.names import as_argument, assignments, baseline_names, canonical, first_few, split_names, unknown_name
from mmdistill.networks.experts import ExpertRecipe, Experts, is_complete, longer, train_experts
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.pivot import pivot, write_latex
from mmdistill.planning import plan_rows
from mmdistill.progress import step_bar
from mmdistill.registry import Domain, domain_methods, located
from mmdistill.report import summary, write_comparison, write_report
from mmdistill.run_folder import CONFIG, METRICS, how_to_finish, is_finished, is_started, require_free, ways_out
from mmdistill.runtime import use_deterministic_kernels
from mmdistill.saving import draw, require_held
from mmdistill.settings import AT_RESUME
from mmdistill.side_by_side import LEGEND, TIMES, draw_budgets, notes, table, write_csv
from mmdistill.tabular import aligned
from mmdistill.task import BudgetKind, Task


def distill_command(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
    """Distil, judge, draw; or continue a run, perhaps to more steps. Under torchrun all ranks distil, and one judges.

    A dry run reads the data and prints what the run would do.
    """
    package_digest()  # of the code that runs, which may be edited meanwhile
    given = {name: value for name in AT_RESUME if (value := getattr(config, name)) is not None}
    if resume is not None:
        config = dataclasses.replace(DistillConfig.load(Path(resume) / CONFIG), out=resume, **given)
    folder = config.folder()
    if not dry_run:
        _require_free(config, folder, resume)
    if config.deterministic:
        use_deterministic_kernels()
    config = dataclasses.replace(config, data=located(config.data)) if config.data else config
    config = placed(config) if resume is None else config  # its checkpoints are of the paths that it began with
    if dry_run:
        task, method, budget = _prepared(config, config.device)
        print(aligned(plan_rows(config, task, method, budget)))
        return
    with ExitStack() as held:
        with ranks.process_group(config.device) as device:
            if ranks.is_first():  # before the others go on
                held.enter_context(sole_writer(folder))
                _require_free(config, folder, resume)
            task, method, budget = _prepared(config, device)
            done = DistilledSet.load(folder) if resume is not None and is_finished(folder) else None
            if done is not None and config.steps in (None, done.settings.get("steps", config.steps)):
                distilled = done
                require_own_config(config, distilled, folder)
                distilled.require(task.describe())
                if ranks.is_first():
                    print(f"{folder} is already distilled")
                    with kept_options(given, folder):  # also where more steps were asked for and never begun
                        pass
            else:
                started = is_started(folder) or done is not None
                if resume is not None and not started and ranks.is_first():
                    print(f"{folder} has no checkpoint yet; beginning with the first step")
                saving = kept_config(config, folder) if resume is None else kept_options(given, folder)
                with saving if ranks.is_first() else nullcontext(lambda: None) as begun:
                    distilled = _distill_with_bar(
                        config, task, method, budget, folder, resume is not None and started, begun
                    )
                if ranks.is_first():
                    print(f"distilled in {distilled.seconds:.1f} s")
            first = ranks.is_first()
        if first:
            _judge_and_draw(config, task, distilled, folder, budget)


def _require_free(config: DistillConfig, folder: Path, resume: str | None) -> None:
    """Refuse a file, and a folder that holds a run which is neither resumed nor overwritten."""
    if resume is not None or config.overwrite:
        require_free(folder, other="another --out")
    else:
        require_free(folder, **ways_out(folder))


def _prepared(config: DistillConfig, device: str) -> tuple[Task, Method, int]:
    """Return the task and the method that a configuration names and its budget; print what is to be noted."""
    require_networks(config.networks, config.networks_at_once)  # before the data are read
    for unit in get_args(BudgetKind):
        if (asked := getattr(config, unit)) is not None:
            require_budget(unit, asked)
    with ranks.first_alone(), explained("reading the data and making the network", "less of them (--width, --size)"):
        domain, task = make_task(config, device)
    chosen = chosen_method(config, domain, task.num_classes)
    find_judges(task, config.judge_names(), chosen.judge)  # a misspelt name is an error now, not after the distillation
    require_baselines(task, baseline_names(config.baselines))
    method, budget = find_budget(
        task,
        chosen,
        ipc=config.ipc,
        nodes=config.nodes,
        users=config.users,
        bytes=config.bytes,
        seed=config.seed,
    )
    method.settings(budget)  # which says what none of its values can be
    if ranks.is_first():
        for note in task.describe().notes:
            print(f"note: {note}")
        own = assignments(config.set or ())
        for name in without_effect(task, method, budget, {**config.overrides(), **own}):
            option = f"set {name}" if name in own else name.replace("_", "-")
            print(f"note: {method.title} does not read --{option}, which changes nothing")
        if method.judge and not config.judges and method.reads_no_network(budget):
            for name in ("model", "width"):
                if getattr(config, name) is not None:
                    print(f"note: {method.title} reads no network, nor does its judge: --{name} changes nothing")
        if unmet := unmet_conditions(config, domain, budget):
            options = " ".join(f"--{option} {value}" for option, value in unmet.items())
            print(f"note: {method.title}'s published numbers on {config.data} belong to {options}")
    return task, method, budget


def _judge_and_draw(config: DistillConfig, task: Task, distilled: DistilledSet, folder: Path, budget: int) -> None:
    """Judge what is not judged yet of a distilled set, draw it, and print what came out."""
    evaluation = judge_missing(config, task, distilled, folder)
    print(summary(distilled, evaluation, subset_bytes(task, budget)))
    pictures = draw(task, distilled, folder)
    print(
        f"set, metrics and {len(pictures)} picture(s) are in {folder}; "
        f"'mmdistill report {as_argument(folder)}' makes a page of them"
    )


def _distill_with_bar(
    config: DistillConfig,
    task: Task,
    method: Method,
    budget: int,
    folder: Path,
    resume: bool,
    begun: Callable[[], None],
) -> DistilledSet:
    """Return the set of a run whose steps a bar counts; ``begun`` is called after the first one."""
    name = canonical(str(config.method))
    with step_bar(f"{Path(str(config.data)).stem} {name}", visible=True) as show:

        def progress(done: int, total: int, loss: float) -> None:
            if done == 1:
                begun()
            show(done, total, loss)

        return distill(
            task,
            method,
            budget,
            seed=config.seed,
            out=folder,
            resume=resume,
            overwrite=True,  # what may be replaced was asked when the command began
            checkpoint_every=config.checkpoint_every,
            progress=progress,
            name=name,
            label=config.label,
            compile=config.compile,
            precision=config.precision,
        )


def experts_command(config: DistillConfig, epochs: int | None, together: int) -> None:
    """Train the experts of a method where they are missing; an interrupted call continues when it is called again.

    Raises:
        ConfigError: a method without experts, or epochs that are too few or belong to no folder of the user's.
    """
    counts = {"--ipc": config.ipc, "--nodes": config.nodes, "--experts": config.experts, "--epochs": epochs}
    require_sizes(**counts, **{"--together": together})
    config = placed(config)
    domain, task = make_task(config)
    method = chosen_method(config, domain, task.num_classes)
    schedule = _expert_schedule(domain, method, config.ipc or config.nodes or 1)
    wanted, folder = schedule.experts, schedule.folder_for(task)
    recipe = _recipe_of_epochs(schedule, task, method.title, epochs)
    if is_complete(folder, wanted):
        Experts(folder, task, wanted, recipe.protocol.epochs, recipe)  # which refuses others than are asked for
        print(f"{wanted} expert(s) are already in {folder}")
        return
    print(f"training what is missing of {wanted} expert(s) of {recipe.protocol.epochs} epochs in {folder} ...")
    began = time.perf_counter()
    with progress_bar(f"{Path(str(config.data)).stem} experts", "step") as show:
        experts = train_experts(
            task,
            folder,
            wanted,
            recipe,
            together=together,
            progress=lambda done, total, seconds: show(done, total),  # the bar tells itself how long it will take
        )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    seconds = time.perf_counter() - began
    print(f"{wanted} expert(s) of {experts.epochs} epochs in {seconds:.1f} s; {size:.1f} MiB in {folder}")


def _expert_schedule(domain: Domain, method: Method, budget: int) -> ExpertTrajectories:
    """Return a method's schedule of experts.

    Raises:
        ConfigError: it has none.
    """
    schedule = method.make_schedule(method.settings(budget))
    if isinstance(schedule, ExpertTrajectories):
        return schedule
    fitting = [
        name
        for name, found in domain_methods(domain).items()
        if isinstance(found.make_schedule(found.settings(budget)), ExpertTrajectories)
    ]
    raise ConfigError(f"{method.title} matches no experts; methods that do: {', '.join(fitting) or 'none here'}")


def _recipe_of_epochs(schedule: ExpertTrajectories, task: Task, title: str, epochs: int | None) -> ExpertRecipe:
    """Return how experts train: for so many epochs, or by default as long as needed or as those that are there.

    Raises:
        ConfigError: too few epochs, or more than are needed and no folder of the user's for them.
    """
    recipe = schedule.recipe_for(task)
    needed = recipe.protocol.epochs
    if epochs is None:
        return longer(recipe, schedule.folder_for(task))
    if epochs < needed:
        raise ConfigError(f"{title} needs {needed} epochs with these settings, got {epochs}")
    if epochs > needed and schedule.folder is None:
        raise ConfigError(
            f"{title} needs {needed} epochs with these settings; more of them, which other settings may need, go with "
            "an --expert-folder"
        )
    return longer(recipe.of_epochs(epochs), schedule.folder_for(task))


def _finished_set(folder: Path) -> DistilledSet:
    """Return the set of a finished run.

    Raises:
        CheckpointError: no run, or an unfinished one.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    if ending := how_to_finish(folder):
        raise CheckpointError(f"the run in {folder} is unfinished; {ending}")
    return DistilledSet.load(folder)


def _open_run(
    run: str, device: str = "cpu", changed: Callable[[DistillConfig], DistillConfig] = lambda config: config
) -> tuple[DistillConfig, Domain, Task, DistilledSet]:
    """Return a finished run's configuration, changed for judging, and the domain, the task and the set that it names.

    Raises:
        CheckpointError: no run, an unfinished one, or a set of other data than are there.
    """
    folder = Path(run)
    distilled = _finished_set(folder)
    config = DistillConfig.load(folder / CONFIG)
    require_own_config(config, distilled, folder)
    if note := note_of_more_steps(config, distilled, folder):
        print(f"note: {note}")
    config = changed(config)
    if config.deterministic:
        use_deterministic_kernels()
    domain, task = make_task(config, device)
    distilled.require(task.describe())
    return config, domain, task, distilled


def evaluate_command(asked: EvaluateConfig) -> None:
    """Judge a finished run again and add to its metrics.

    Raises:
        ConfigError: unknown scores, or a folder that takes no results.
    """
    package_digest()  # of the code that runs, which may be edited meanwhile
    if asked.scores not in ("accuracy", "robust"):
        raise unknown_name("kind of scores", asked.scores, ("accuracy", "robust"))
    folder = Path(asked.run)
    path = folder / METRICS
    if path.exists():
        read_metrics(path)  # before the work, should they be damaged
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{folder} cannot be written to, where the results belong; copy the folder and judge the copy"
        )
    config, _, task, distilled = _open_run(asked.run, asked.device, asked.replaced)
    if "inner_parts" in distilled.learned and (asked.judge_epochs or asked.judge_batch or asked.protocol):
        print("note: judges take this set's own learned steps; how they train concerns its baselines alone")
    with sole_writer(folder):
        require_held(distilled, folder)  # which another process may have replaced
        judged = read_metrics(path) if path.exists() else {}  # again, since another process may have judged
        previous = of_same_test(judged, task)
        if judged and not previous:
            print("note: the test data are others than before, so earlier results are dropped")
        judging = chosen_judging(task)
        kept = KeptBaselines(config, task, judging, asked.networks, asked.networks_at_once, asked.seed)
        evaluation = judge_and_keep(
            kept,
            distilled,
            folder,
            previous,
            judges=split_names(asked.judges),
            baselines=baseline_names(asked.baselines),
            robust=asked.scores == "robust",
        )
    dropped = dropped_baselines(previous, read_metrics(path))
    if dropped:
        print(f"dropped, since judged otherwise than the set now is: {', '.join(dropped)}")
    print(summary(distilled, evaluation, subset_bytes(task, distilled.budget)))


def report_command(run: str) -> None:
    """Draw a finished run and write its report."""
    _, _, task, distilled = _open_run(run)
    folder = Path(run)
    pictures = draw(task, distilled, folder)
    metrics = read_metrics(folder / METRICS) if (folder / METRICS).exists() else {}
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
    found, skipped = judged_runs([Path(run) for run in runs])
    judges = judges_of(found, judge)
    rows = [row for name in judges for row in read_runs(found, name, metric)]
    lines = table(rows)
    print(aligned(lines))
    print(f"{LEGEND}; {TIMES}")
    lacking = [set(without_scores(found, name, metric)) for name in judges]
    if missing := [run.folder for run in found if all(run.folder in without for without in lacking)]:
        print(f"left out, since they have no such scores: {first_few(missing, 3)}")
    twice = {folder: kept for name in judges for folder, kept in repeated(found, name, metric).items()}
    for folder, kept in twice.items():
        print(f"left out: {folder}, which has the seed of {kept} and no other option that counts")
    said = notes(rows)
    for note in said:
        print(f"note: {note}")
    for folder, reason in skipped.items():
        print(f"skipped: {folder} ({reason})")
    if to is not None:
        scores = pivot(rows)
        print(write_comparison(Path(to), scores.lines(), lines, said, draw_budgets(rows, Path(to))))
        print(write_csv(rows, Path(to) / "comparison.csv"))
        print(write_latex(scores, Path(to) / "comparison.tex"))


def export_command(run: str, format: str, to: str | None) -> None:
    """Write a finished run's set for other tools, and what was learned beside the samples, with which it is used.

    The real data are read only where the format says something of them that the set does not hold.

    Raises:
        ConfigError: a format that data of this domain are not exported in, or the run's own folder as its place.
    """
    if to is not None and (not to.strip() or os.path.realpath(to) == os.path.realpath(run)):
        raise ConfigError(f"--to names a folder of the export's own, got {to!r}; without it that is {run}/export")
    distilled = _finished_set(Path(run))
    if (Path(run) / CONFIG).exists():  # of a run that was made in Python there is none
        require_own_config(DistillConfig.load(Path(run) / CONFIG), distilled, Path(run))
    folder = Path(run) / "export" if to is None else Path(to)
    written = export(distilled, format, folder, lambda: _open_run(run)[2])
    if canonical(format) == "folder":
        soft = isinstance(distilled.batch.targets, Tensor) and distilled.batch.targets.is_floating_point()
        lost = "; pictures have no soft labels, but the class that each stands for" if soft else ""
        print(f"{len(written)} files are in {folder}{lost}")
    else:
        print(*written, sep="\n")
