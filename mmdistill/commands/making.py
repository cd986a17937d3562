"""What the commands do that make runs and experts: functions of their options, which print for a person."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from mmdistill.abilities import ask_teacher
from mmdistill.allocation import require_budget
from mmdistill.bars import progress_bar
from mmdistill.budget import method_within_budget
from mmdistill.checks import require_sizes
from mmdistill.choices import starts
from mmdistill.commands.assembly import (
    NO_JUDGE_ASKS,
    chosen_method,
    kept_config,
    make_task,
    placed,
    require_own_config,
    shorter_way,
    unmet_conditions,
)
from mmdistill.commands.planning import plan_rows
from mmdistill.composition import is_teacher_idle, without_effect
from mmdistill.config import DistillConfig
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.evaluate import find_baselines, find_judges, require_networks
from mmdistill.execution import ranks
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.importing import import_set
from mmdistill.method import Method
from mmdistill.names import as_argument, as_option, assignments, canonical, unknown_name
from mmdistill.networks.expert_recipe import ExpertRecipe
from mmdistill.networks.experts import Experts, is_complete, longer, train_experts
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.progress import step_bar
from mmdistill.registry import Domain, domain_methods, located
from mmdistill.reporting.report import summary
from mmdistill.reporting.tabular import aligned
from mmdistill.runs.advice import lowering_start
from mmdistill.runs.damaged import whole_set
from mmdistill.runs.folder import CONFIG, holds_work, is_finished, is_imported, require_free, ways_out
from mmdistill.runs.how_to_continue import how_to_begin_anew
from mmdistill.runs.judging import judge_missing
from mmdistill.runs.keeper import put_finished
from mmdistill.runs.kept_baselines import package_digest
from mmdistill.runs.saving import draw
from mmdistill.runtime import deterministic_kernels
from mmdistill.selections import known_bytes
from mmdistill.settings import AT_RESUME
from mmdistill.task import BudgetKind, Task


def distill_command(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
    """Distil, judge, draw; or continue a run, perhaps to more steps. Under torchrun all ranks distil, and one judges.

    A dry run reads the data and prints what the run would do.
    """
    package_digest()  # of the code that runs, which may be edited meanwhile
    given = {name: value for name in AT_RESUME if (value := getattr(config, name)) is not None}
    if resume is not None:
        own = users_path(resume)
        if is_imported(own):
            raise ConfigError(
                f"{resume} holds a set that was imported, and no run to resume: 'evaluate' judges it, and "
                f"{how_to_begin_anew(own)}"
            )
        config = dataclasses.replace(DistillConfig.load(own / CONFIG), out=resume, **given)
    config = dataclasses.replace(config, data=located(config.data)) if config.data else config
    folder = config.folder()
    if not dry_run:
        _require_free(config, folder, resume)
    config = placed(config) if resume is None else config  # its checkpoints are of the paths that it began with
    with deterministic_kernels(config.deterministic), ExitStack() as held:
        if dry_run:
            task, method, budget = _prepared(config, config.device)
            print(aligned(plan_rows(config, task, method, budget)))
            return
        with ranks.process_group(config.device) as device:
            with ranks.together():
                if ranks.is_first():
                    held.enter_context(sole_writer(folder))
                    _require_free(config, folder, resume)
            task, method, budget = _prepared(config, device)
            distilled = None if resume is None else _finished(config, task, folder, given)
            if distilled is None:
                distilled = _distilled(config, task, method, budget, folder, None if resume is None else given)
            first = ranks.is_first()
        if first:
            _judge_and_draw(config, task, distilled, folder, budget)


def _finished(config: DistillConfig, task: Task, folder: Path, given: Mapping[str, Any]) -> DistilledSet | None:
    """Return the set of the run that is to be resumed, if it is finished; None where it goes on, be it to more steps.

    Args:
        config: of the run.
        task: that it names.
        folder: of the run.
        given: options that were given anew, which are kept, though they change nothing of the set.
    """
    done = whole_set(folder) if is_finished(folder) else None
    if done is None or config.steps not in (None, done.settings.get("steps", config.steps)):
        return None
    require_own_config(config, done, folder)
    done.require(task.describe())
    if ranks.is_first():
        print(f"{folder} is already distilled")
        if given:  # also where more steps were asked for and never begun
            _with(given, folder).save(folder / CONFIG)
    return done


def _distilled(
    config: DistillConfig,
    task: Task,
    method: Method,
    budget: int,
    folder: Path,
    given: Mapping[str, Any] | None,
) -> DistilledSet:
    """Return the set of a run, whose steps a bar counts and whose options are kept in its folder.

    Args:
        config: of the run.
        task: that it names.
        method: that it names.
        budget: in the task's unit.
        folder: of the run; a former one's options stay there until its first step replaces that.
        given: the run is resumed, with these options given anew; None: it is another one.
    """
    first, resumes, name = ranks.is_first(), given is not None, canonical(str(config.method))
    there = holds_work(folder)
    replaces = first and there and not resumes
    if first and resumes and not there:
        print(f"{folder} has no checkpoint yet; beginning with the first step")
    with ExitStack() as keeping, step_bar(f"{Path(str(config.data)).stem} {name}", visible=True) as show:
        if first and given:
            keeping.enter_context(kept_config(_with(given, folder), folder))
        elif first and not resumes and not there:
            keeping.enter_context(kept_config(config, folder))

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
            resume=resumes and there,
            overwrite=True,  # what may be replaced was asked when the command began
            checkpoint_every=config.checkpoint_every,
            progress=progress,
            name=name,
            label=config.label,
            compile=config.compile,
            precision=config.precision,
        )
    if replaces:
        config.save(folder / CONFIG)  # of a closed form, which takes no step
    if first:
        print(f"distilled in {distilled.seconds:.1f} s")
    return distilled


def _with(given: Mapping[str, Any], folder: Path) -> DistillConfig:
    """Return the options of a run with those that are given anew, so that the next time needs none."""
    return dataclasses.replace(DistillConfig.load(folder / CONFIG), **given)


def _require_free(config: DistillConfig, folder: Path, resume: str | None) -> None:
    """Refuse a file, and a folder that holds a run which is neither resumed nor overwritten."""
    if resume is not None or config.overwrite:
        require_free(folder, other="another --out")
    else:
        require_free(folder, **ways_out(folder))


def _prepared(config: DistillConfig, device: str) -> tuple[Task, Method, int]:
    """Return the task and the method that a configuration names and its budget; print what is to be noted."""
    require_networks(config.networks, config.networks_at_once)  # before the data are read
    if config.init not in (None, *starts()):
        raise unknown_name("start (--init)", str(config.init), starts(), scripts="a rule")
    for unit in get_args(BudgetKind):
        if (asked := getattr(config, unit)) is not None:
            require_budget(unit, asked)
    with (
        ranks.first_alone(),
        out_of_memory_advice("reading the data and making the network", "less of them (--width, --size)"),
    ):
        domain, task = make_task(config, device)
    chosen = chosen_method(config, domain, task.num_classes)
    judges = find_judges(task, config.judge_names(), chosen.judge)  # a misspelt name is an error before the work
    find_baselines(task, config.baselines)
    method, budget = method_within_budget(task, chosen, **config.budgets(), seed=config.seed)
    method.settings(budget)  # which says what none of its values can be
    if ranks.is_first():
        for note in _notes(config, domain, task, method, budget, judges):
            print(f"note: {note}")
    return task, method, budget


def _notes(
    config: DistillConfig, domain: Domain, task: Task, method: Method, budget: int, judges: Sequence[str]
) -> Iterator[str]:
    """Yield what is to be known of a run before it begins: of its data, of options that change nothing, of its cost.

    Args:
        config: of the run.
        domain: of its data.
        task: that it names.
        method: that it names.
        budget: in the task's unit.
        judges: their names.
    """
    yield from task.describe().notes
    own = assignments(config.set or ())
    for name, why in without_effect(task, method, budget, {**config.overrides(), **own}).items():
        yield why.format(f"--set {name}" if name in own else as_option(name))
    with out_of_memory_advice("the start of the distillation", lowering_start(method.settings(budget))):
        idle = is_teacher_idle(task, method, budget, judges)
    if idle:
        yield f"neither {method.title} nor a judge here asks a teacher: --teacher changes nothing"
    if method.judge and not config.judges and method.reads_no_network(budget):
        for name in ("model", "width"):
            if getattr(config, name) is not None:
                yield f"{method.title} reads no network, nor does its judge: --{name} changes nothing"
    if unmet := unmet_conditions(config, domain, budget):
        options = " ".join(f"--{option} {value}" for option, value in unmet.items())
        yield f"{method.title}'s published numbers on {config.data} belong to {options}"
    if task.device.type == "cpu" and (shorter := shorter_way(config, domain, method, budget)):
        yield f"the {method.settings(budget).steps:,} steps may take hours or days on a CPU; {shorter}"


def _judge_and_draw(config: DistillConfig, task: Task, distilled: DistilledSet, folder: Path, budget: int) -> None:
    """Judge what is not judged yet of a distilled set, draw it, and print what came out."""
    evaluation = judge_missing(config, task, distilled, folder)
    print(summary(distilled, evaluation, known_bytes(task, budget)))
    pictures = draw(task, distilled, folder)
    print(
        f"set, metrics and {len(pictures)} picture(s) are in {folder}; "
        f"'mmdistill report {as_argument(folder)}' makes a page of them"
    )


def import_command(
    config: DistillConfig, files: Sequence[str], name: str, stored_bytes: str | int | None, **said: Any
) -> None:
    """Keep a set that another tool made as a run, judge it and draw it.

    Args:
        config: of the data, of judging and of the run's folder.
        files: the set's.
        name: what its method is called.
        stored_bytes: what it takes in storage; None: its tensors in float32.
        said: what else :func:`~mmdistill.importing.import_set` is told of it.
    """
    package_digest()  # of the code that runs, which may be edited meanwhile
    require_networks(config.networks, config.networks_at_once)
    config = placed(dataclasses.replace(config, method=name, data=located(config.data) if config.data else None))
    with deterministic_kernels(config.deterministic):
        _, task = make_task(config)
        judges = find_judges(task, config.judge_names())  # before anything is written, as the next one
        find_baselines(task, config.baselines)
        for note in task.describe().notes:
            print(f"note: {note}")
        if config.teacher is not None and not ask_teacher(task, judges):
            print(NO_JUDGE_ASKS)
        distilled = import_set(task, files, name=name, stored_bytes=stored_bytes, seed=config.seed, **said)
        budget: dict[str, Any] = {distilled.info.budget: distilled.budget}
        config = dataclasses.replace(config, **budget)
        folder = config.folder()
        _require_free(config, folder, None)

        def write(place: Path) -> None:
            config.save(place / CONFIG, imported=True)  # first: a set without it would pass for a run of a method
            distilled.save(place)

        with sole_writer(folder):
            _require_free(config, folder, None)
            put_finished(folder, write)
            print(f"imported {distilled}")
            _judge_and_draw(config, task, distilled, folder, distilled.budget)


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
    schedule = _expert_schedule(domain, method, config.count)
    wanted, folder = schedule.experts, schedule.folder_for(task)
    recipe = _recipe_of_epochs(schedule, task, method.title, epochs)
    if is_complete(folder, wanted):
        Experts(folder, task, wanted, recipe)  # which refuses others than are asked for
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
