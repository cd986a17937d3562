"""The commands that make runs and experts: distill, import and experts; they print for a person."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from mmdistill.abilities import ask_teacher
from mmdistill.allocation import require_budget
from mmdistill.bars import progress_bar
from mmdistill.budget import GivenBudget, method_within_budget
from mmdistill.checks import require_sizes
from mmdistill.choices import starts
from mmdistill.commands.assembly import (
    NO_JUDGE_ASKS,
    chosen_method,
    kept_config,
    make_task,
    require_own_config,
    require_own_folder,
    shorter_way,
    unmet_conditions,
    with_absolute_paths,
)
from mmdistill.commands.planning import plan_rows
from mmdistill.composition import is_teacher_idle, without_effect
from mmdistill.config import AUTO, HOW_IT_RUNS, DistillConfig
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.evaluate import find_baselines, find_judges, require_networks
from mmdistill.execution import ranks
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.files.locks import sole_writer
from mmdistill.importing import import_set
from mmdistill.method import Method
from mmdistill.names import as_argument, as_option, assignments, canonical, unknown_name
from mmdistill.networks.expert_recipe import ExpertRecipe
from mmdistill.networks.experts import Experts, is_complete, longer, train_experts
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.progress import step_bar
from mmdistill.registry import Domain, located
from mmdistill.reporting.report import summary
from mmdistill.reporting.tabular import aligned
from mmdistill.runs.advice import lowering_start
from mmdistill.runs.damaged import whole_set
from mmdistill.runs.finished import require_same_data
from mmdistill.runs.folder import (
    COMMON_NAMES,
    CONFIG,
    holds_work,
    is_finished,
    is_imported,
    require_free,
    ways_out,
    work_times,
)
from mmdistill.runs.how_to_continue import how_to_begin_anew, how_to_judge
from mmdistill.runs.judging import judge_missing
from mmdistill.runs.keeper import put_finished
from mmdistill.runs.kept_baselines import package_digest
from mmdistill.runs.saving import draw
from mmdistill.runtime import deterministic_kernels
from mmdistill.selections import known_bytes
from mmdistill.settings import AT_RESUME
from mmdistill.task import BudgetKind, Task


def distill_command(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
    """Distil, judge and draw a set, or resume a run; under torchrun all ranks distil and the first one judges.

    Args:
        config: of the run; with ``resume`` a folder, only the options in :data:`AT_RESUME` and the data count.
        resume: the folder of the run to resume, perhaps to more steps; :data:`AUTO`: whatever the run of these options
            still needs, if anything; None: a new run.
        dry_run: only read the data and print what the run would do.
    """
    package_digest()  # cached now: the source may be edited while the command runs
    config = dataclasses.replace(config, data=located(config.data)) if config.data else config
    changes = {name: value for name in (*AT_RESUME, "data") if (value := getattr(config, name)) is not None}
    own_options = resume in (None, AUTO)
    config = config if own_options else dataclasses.replace(config, out=resume)
    folder = config.folder()
    if resume is not None and is_imported(folder):
        raise ConfigError(
            f"{folder} holds a set that was imported, and no run to resume: 'evaluate' judges it, and "
            f"{how_to_begin_anew(folder)}"
        )
    if own_options:
        config = with_absolute_paths(config)
    else:  # a resumed run keeps the paths that its checkpoints name
        config = dataclasses.replace(DistillConfig.load(folder / CONFIG), out=resume, **changes)
        config = dataclasses.replace(config, data=located(config.data)) if config.data else config
    if not dry_run or resume == AUTO:
        _require_free(config, folder, resume)
    with deterministic_kernels(config.deterministic), ExitStack() as locks:
        if dry_run:
            task, method, budget = _prepare(config, config.device, resume)
            print(aligned(plan_rows(config, task, method, budget, resumes=resume == AUTO)))
            return
        with ranks.process_group(config.device) as device:
            with ranks.together():
                if ranks.is_first():
                    locks.enter_context(sole_writer(folder))
                    _require_free(config, folder, resume)
            if resume == AUTO and ranks.is_first() and Path(AUTO).is_dir():
                print("note: the folder auto is given as --resume ./auto")
            task, method, budget = _prepare(config, device, resume)
            distilled = None if own_options else _reuse_finished(config, task, folder, changes)
            if distilled is None:
                distilled = _distil(config, task, method, budget, folder, resume, changes)
            first = ranks.is_first()
        if first:
            _judge_and_draw(config, task, distilled, folder, budget)


def _reuse_finished(config: DistillConfig, task: Task, folder: Path, changes: Mapping[str, Any]) -> DistilledSet | None:
    """Return the set of the run to resume if it is finished, and save its changed options; None: distil further.

    Args:
        config: of the run.
        task: of the configuration.
        folder: of the run.
        changes: options given with ``--resume``; saved although they change nothing of the set.
    """
    finished = whole_set(folder) if is_finished(folder) else None
    if finished is None or config.steps not in (None, finished.settings.get("steps", config.steps)):
        return None
    require_own_config(config, finished, folder)
    finished.require(task.describe())
    if ranks.is_first():
        print(f"{folder} is already distilled")
        if changes:  # which withdraws an extension that was requested and never begun
            _changed_config(folder, changes).save(folder / CONFIG)
    return finished


def _distil(
    config: DistillConfig,
    task: Task,
    method: Method,
    budget: int,
    folder: Path,
    resume: str | None,
    changes: Mapping[str, Any],
) -> DistilledSet:
    """Distil a set, show a bar of its steps and save the run's options in its folder.

    Args:
        config: of the run.
        task: of the configuration.
        method: of the configuration.
        budget: in the task's unit.
        folder: of the run; the options of a former run stay there until the first step of this one.
        resume: see :func:`distill_command`.
        changes: the options given with ``--resume FOLDER``.
    Raises:
        CheckpointError: the run in the folder is another one.
    """
    first, resumes, name = ranks.is_first(), resume is not None, canonical(str(config.method))
    has_work, former = holds_work(folder), work_times(folder)
    replaces = first and has_work and not resumes
    if first and resumes and not has_work and (folder / CONFIG).exists():
        print(f"{folder} has no checkpoint yet; beginning with the first step")
    options = config if resume in (None, AUTO) else _changed_config(folder, changes) if changes else None
    with ExitStack() as keeping, step_bar(f"{Path(str(config.data)).stem} {name}", visible=True) as show:
        if first and options is not None and not replaces:
            keeping.enter_context(kept_config(options, folder))

        def progress(done: int, total: int, loss: float) -> None:
            if replaces and done == 1:
                config.save(folder / CONFIG)
            show(done, total, loss)

        distilled = distill(
            task,
            method,
            budget,
            seed=config.seed,
            out=folder,
            resume="auto" if resume == AUTO else resumes and has_work,
            overwrite=resume != AUTO,  # distill_command has checked what may be replaced
            checkpoint_every=config.checkpoint_every,
            progress=progress,
            name=name,
            label=config.label,
            compile=config.compile,
            precision=config.precision,
        )
    if replaces:
        config.save(folder / CONFIG)  # again, for a closed form, which takes no step
    if first:
        is_former = resume == AUTO and has_work and work_times(folder) == former
        print(f"{folder} is already distilled" if is_former else f"distilled in {distilled.seconds:.1f} s")
    return distilled


def _changed_config(folder: Path, changes: Mapping[str, Any]) -> DistillConfig:
    """Return the saved options of a run with some changed; saved again, they need not be repeated."""
    return dataclasses.replace(DistillConfig.load(folder / CONFIG), **changes)


def _require_free(config: DistillConfig, folder: Path, resume: str | None) -> None:
    """Refuse a file, and a folder with a foreign file or a run that is neither resumed nor overwritten."""
    if resume == AUTO and (folder / CONFIG).exists():  # else it has no run, or one made in Python
        require_own_folder(config, may_differ=(*HOW_IT_RUNS, "steps"))
    writes = COMMON_NAMES if resume in (None, AUTO) else ()
    if resume is not None or config.overwrite:
        require_free(folder, other="another --out", writes=writes)
        require_free(folder, other="another --out")
    else:
        require_free(folder, **ways_out(folder), writes=writes)


def _prepare(config: DistillConfig, device: str, resume: str | None) -> tuple[Task, Method, int]:
    """Read the data, check the options and print notes; return the task, the method and the budget in its unit.

    Raises:
        CheckpointError: the run to resume, if any, is of other training data.
    """
    require_networks(config.networks, config.networks_at_once)  # before the data are read
    if config.init not in (None, *starts()):
        raise unknown_name("start (--init)", str(config.init), starts(), scripts="a rule")
    for unit in get_args(BudgetKind):
        if (size := getattr(config, unit)) is not None:
            require_budget(unit, size)
    with (
        ranks.first_alone(),
        out_of_memory_advice("reading the data and making the network", "less of them (--width, --size)"),
    ):
        domain, task = make_task(config, device)
    chosen = chosen_method(config, task)
    judges = find_judges(task, config.judge_names(), chosen.judge)  # refuses a misspelt name before the work
    find_baselines(task, config.baselines)
    method, budget = method_within_budget(task, chosen, GivenBudget(**config.budgets()), config.seed)
    method.settings(budget)  # refuses values that no setting can have
    if ranks.is_first():
        for note in _notes(config, domain, task, method, budget, judges):
            print(f"note: {note}")
    if resume is not None:
        require_same_data(task, config.folder())
    return task, method, budget


def _notes(
    config: DistillConfig, domain: Domain, task: Task, method: Method, budget: int, judges: Sequence[str]
) -> Iterator[str]:
    """Yield notes on a run before it begins: on its data, on options without effect and on its cost.

    Args:
        config: of the run.
        domain: of its data.
        task: of the configuration.
        method: of the configuration.
        budget: in the task's unit.
        judges: their names.
    """
    yield from task.describe().notes
    assigned = assignments(config.set or ())
    for name, why in without_effect(task, method, budget, {**config.overrides(), **assigned}).items():
        yield why.format(f"--set {name}" if name in assigned else as_option(name))
    with out_of_memory_advice("the start of the distillation", lowering_start(method.settings(budget))):
        idle = is_teacher_idle(task, method, budget, judges)
    if idle and judges:  # those that judge later may ask it
        yield f"neither {method.title} nor a judge here asks a teacher: --teacher changes nothing"
    if method.judge and not config.judges and method.reads_no_network(method.settings(budget)):
        for name in ("model", "width"):
            if getattr(config, name) is not None:
                yield f"{method.title} reads no network, nor does its judge: --{name} changes nothing"
    if config.unjudged and (config.networks, config.baselines) != (DistillConfig.networks, DistillConfig.baselines):
        yield "nothing is judged here: --networks and --baselines are for the later mmdistill evaluate"
    if unmet := unmet_conditions(config, domain, budget):
        options = " ".join(f"--{option} {value}" for option, value in unmet.items())
        yield f"{method.title}'s published numbers on {config.data} belong to {options}"
    if task.device.type == "cpu" and (shorter := shorter_way(config, domain, method, budget)):
        yield f"the {method.settings(budget).steps:,} steps may take hours or days on a CPU; {shorter}"


def _judge_and_draw(config: DistillConfig, task: Task, distilled: DistilledSet, folder: Path, budget: int) -> None:
    """Judge a set by the judges that have not judged it yet, draw it, and print the scores and where all lies.

    A set without scores, of a run whose options name no judges, gets a line on how to judge it.
    """
    evaluation = judge_missing(config, task, distilled, folder)
    is_judged = bool(evaluation.results)
    print(summary(distilled, evaluation, known_bytes(task, budget)) if is_judged else how_to_judge(folder))
    pictures = draw(task, distilled, folder)
    print(
        f"set{', metrics' if is_judged else ''} and {len(pictures)} picture(s) are in {folder}; "
        f"'mmdistill report {as_argument(folder)}' makes a page of them"
    )


def import_command(
    config: DistillConfig, files: Sequence[str], name: str, stored_bytes: str | int | None, **details: Any
) -> None:
    """Import a set that another tool made as a run, judge it and draw it.

    Args:
        config: of the data, of judging and of the run's folder.
        files: of the set.
        name: what its method is called.
        stored_bytes: what it takes in storage; None: its tensors in float32.
        details: other arguments of :func:`~mmdistill.importing.import_set`.
    """
    package_digest()  # cached now: the source may be edited while the command runs
    require_networks(config.networks, config.networks_at_once)
    config = dataclasses.replace(config, method=name, data=located(config.data) if config.data else None)
    config = with_absolute_paths(config)
    with deterministic_kernels(config.deterministic):
        _, task = make_task(config)
        judges = find_judges(task, config.judge_names())  # here, to refuse unknown names before any file is written
        find_baselines(task, config.baselines)
        for note in task.describe().notes:
            print(f"note: {note}")
        if config.teacher is not None and judges and not ask_teacher(task, judges):
            print(NO_JUDGE_ASKS)
        distilled = import_set(task, files, name=name, stored_bytes=stored_bytes, seed=config.seed, **details)
        budget: dict[str, Any] = {distilled.info.budget: distilled.budget}
        config = dataclasses.replace(config, **budget)
        folder = config.folder()
        _require_free(config, folder, None)

        def write(place: Path) -> None:
            config.save(place / CONFIG, imported=True)  # first: a set without it would pass for a distilled run
            distilled.save(place)

        with sole_writer(folder):
            _require_free(config, folder, None)
            put_finished(folder, write)
            print(f"imported {distilled}")
            _judge_and_draw(config, task, distilled, folder, distilled.budget)


def experts_command(config: DistillConfig, epochs: int | None, together: int) -> None:
    """Train the experts that a method lacks; called again after an interruption, it continues.

    Args:
        config: of the data and the method.
        epochs: of each expert; None: as many as the method needs, or as those that exist have.
        together: experts that train at once.
    Raises:
        ConfigError: the method has no experts, ``epochs`` is too small, or it is larger than needed without
            ``--expert-folder``.
    """
    counts = {"--ipc": config.ipc, "--nodes": config.nodes, "--experts": config.experts, "--epochs": epochs}
    require_sizes(**counts, **{"--together": together})
    config = with_absolute_paths(config)
    domain, task = make_task(config)
    method = chosen_method(config, task)
    schedule = _expert_schedule(domain, method, config.count)
    count, folder = schedule.experts, schedule.folder_for(task)
    recipe = _recipe_of_epochs(schedule, task, method.title, epochs)
    if is_complete(folder, count):
        Experts(folder, task, count, recipe)  # refuses experts of another recipe
        print(f"{count} expert(s) are already in {folder}")
        return
    print(f"training what is missing of {count} expert(s) of {recipe.protocol.epochs} epochs in {folder} ...")
    began = time.perf_counter()
    with progress_bar(f"{Path(str(config.data)).stem} experts", "step") as show:
        experts = train_experts(
            task,
            folder,
            count,
            recipe,
            together=together,
            progress=lambda done, total, seconds: show(done, total),  # the bar estimates the time itself
        )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    seconds = time.perf_counter() - began
    print(f"{count} expert(s) of {experts.epochs} epochs in {seconds:.1f} s; {size:.1f} MiB in {folder}")


def _expert_schedule(domain: Domain, method: Method, budget: int) -> ExpertTrajectories:
    """Return a method's network schedule, which must replay experts.

    Raises:
        ConfigError: it does not; names the methods that do.
    """
    schedule = method.make_schedule(method.settings(budget))
    if isinstance(schedule, ExpertTrajectories):
        return schedule
    fitting = [
        name
        for name, other in domain.methods.items()
        if isinstance(other.make_schedule(other.settings(budget)), ExpertTrajectories)
    ]
    raise ConfigError(f"{method.title} matches no experts; methods that do: {', '.join(fitting) or 'none here'}")


def _recipe_of_epochs(schedule: ExpertTrajectories, task: Task, title: str, epochs: int | None) -> ExpertRecipe:
    """Return how experts train: for ``epochs``; None: as long as needed, or as long as the existing ones did.

    Raises:
        ConfigError: fewer epochs than needed, or more than needed without ``--expert-folder``.
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
