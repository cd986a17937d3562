"""Build the task and the method that a configuration names, and keep the configuration in the run's folder."""

import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import get_args

from mmdistill.checks import require_sizes
from mmdistill.commands.assigned import parse_assignments
from mmdistill.config import HOW_IT_RUNS, JUDGE_TRAINING, JUDGING_OPTIONS, DistillConfig
from mmdistill.distill import find_method, find_parameterization
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError
from mmdistill.files.hub import is_place
from mmdistill.files.paths import users_path
from mmdistill.labels import LabelKind
from mmdistill.method import Method
from mmdistill.names import OWN_ENCODERS, as_argument, as_option, canonical, in_words
from mmdistill.registry import OF_SOME_DOMAINS, TASK_OPTIONS, Domain, domain_of, get_method, takers
from mmdistill.runs.folder import COMMON_NAMES, CONFIG, holds_work, is_finished, require_free, work_times
from mmdistill.runs.how_to_continue import how_to_go_on
from mmdistill.runtime import atomic_write, choose_device
from mmdistill.settings import MEMORY_ONLY
from mmdistill.task import BudgetKind, Task

MANY = 1000
"""Steps that may take a CPU hours."""
SIZES = ("width", "length", "judge_epochs", "judge_batch", "size")
"""Options of tasks that must be whole numbers of at least 1; errors call them by their command-line names."""

ONLY_JUDGES = tuple(name for name in JUDGING_OPTIONS if name not in ("judges", *JUDGE_TRAINING))
"""Options that change nothing in a run without judges; how judges train also decides how steps are validated."""
NO_JUDGE_ASKS = "note: no judge here asks a teacher: --teacher changes nothing"


def with_absolute_paths(config: DistillConfig) -> DistillConfig:
    """Return a configuration with absolute paths to experts, encoder and teacher, so that a run always finds them.

    The folder of experts need not exist yet. An encoder that is not a folder is the name of a model. The teacher's file
    gets a digest, so that a later change of it is noticed, see :func:`with_digest`.
    """
    experts, encoder = config.expert_folder, config.encoder
    if experts:
        experts = str(users_path(experts).absolute())
    if encoder and encoder.strip().lower() not in OWN_ENCODERS and users_path(encoder).is_dir():
        encoder = str(users_path(encoder).absolute())
    teacher = None if config.teacher is None else with_digest(config.teacher)
    return replace(config, expert_folder=experts, encoder=encoder, teacher=teacher)


def with_digest(file: str) -> str:
    """Return a file's absolute path, followed by ``#`` and a digest of its content if the file exists.

    Raises:
        ConfigError: the name is empty.
    """
    path, digest = _split_digest(file)
    if not digest and path.is_file():
        digest = _digest(path)
    return "#".join(filter(None, (str(path.absolute()), digest)))


def require_unchanged_file(file: str) -> Path:
    """Return a file's path without its digest; refuse a file that no longer has this digest.

    Raises:
        ConfigError: the name is empty.
        DataError: the file has changed or vanished since the digest was taken.
    """
    path, digest = _split_digest(file)
    if digest and not path.exists():
        raise DataError(
            f"there is no file {path} any more, the teacher that these options name: put it back there; new runs and "
            "evaluate take it from elsewhere, or another one, by --teacher FILE"
        )
    if digest and path.is_file() and (now := _digest(path)) != digest:
        raise DataError(
            f"{path} has changed since these options were kept (its digest was {digest} and is {now}): bring it back "
            "as it was; new runs and evaluate take another teacher by --teacher"
        )
    return path


def is_same_file(first: str | None, second: str | None) -> bool:
    """Return whether two files are the same, by their digests if both have one, otherwise by their paths."""
    digests = [_split_digest(file)[1] for file in (first, second) if file is not None]
    return digests[0] == digests[1] if len(digests) == 2 and all(digests) else first == second


def _split_digest(file: str) -> tuple[Path, str]:
    """Return a file's path and the digest behind it, empty without one.

    Raises:
        ConfigError: the name is empty.
    """
    if not file.strip():
        raise ConfigError("--teacher names the file of a trained network, got an empty name; without it one is trained")
    path, _, digest = file.rpartition("#")
    if path and re.fullmatch("[0-9a-f]{16}", digest):
        return users_path(path), digest
    return users_path(file), ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=8)).hexdigest()


def require_data_and_method(config: DistillConfig) -> tuple[str, str]:
    """Return the data and method names.

    Raises:
        ConfigError: one is missing.
    """
    if config.data is None or config.method is None:
        missing = "--data" if config.data is None else "--method"
        raise ConfigError(f"{missing} is needed; see 'mmdistill data' and 'mmdistill methods' for what there is")
    return config.data, config.method


def make_task(config: DistillConfig, device: str | None = None) -> tuple[Domain, Task]:
    """Build the task that a configuration names.

    Raises:
        ConfigError: an option does not apply to the data's domain, a size is below 1, or the teacher's name is empty.
        DataError: the teacher's file has vanished or changed since the configuration was saved.
    """
    data, method = require_data_and_method(config)
    options = [option for option in OF_SOME_DOMAINS if getattr(config, option) is not None]
    budget = next((kind for kind in get_args(BudgetKind) if getattr(config, kind) is not None), None)
    domain = domain_of(data, options, budget, method)
    for option in options:
        if option not in domain.options:
            raise ConfigError(
                f"{as_option(option)} is for {in_words(takers(option)) or 'no'} data, and {data!r} is "
                f"{domain.name} data; {domain.instead.get(option, 'leave it out')}"
            )
    chosen = {option: getattr(config, option) for option in TASK_OPTIONS}
    chosen |= {"device": str(choose_device(device or config.device))}
    chosen |= {} if config.split_seed is None else {"seed": config.split_seed}
    chosen |= {} if config.teacher is None else {"teacher": require_unchanged_file(config.teacher)}
    chosen["model"] = chosen["model"] or domain.networks.get(canonical(method))
    require_sizes(**{as_option(option): chosen[option] for option in SIZES})
    return domain, domain.make_task(data, **{option: value for option, value in chosen.items() if value is not None})


def chosen_method(config: DistillConfig, task: Task) -> Method:
    """Return the configured method with its overrides, for a task."""
    method, _ = find_method(task, require_data_and_method(config)[1], config.schedule)
    storage = None if config.parameterization is None else find_parameterization(task, config.parameterization)
    settings = config.overrides() | ({} if config.lr is None else {"lr": config.lr})
    if config.set is not None:
        settings |= parse_assignments(config.set, method.settings(config.count), method.title)
    return method.customised(storage, config.label, settings)


def unmet_conditions(config: DistillConfig, domain: Domain, budget: int) -> dict[str, str]:
    """Return the options under which the published numbers were measured and which this run lacks.

    Empty unless the run has published settings on a data set of the domain.
    """
    data, name = require_data_and_method(config)
    if config.schedule != "published" or canonical(data) not in domain.datasets:
        return {}
    conditions = domain.conditions(canonical(name), canonical(data), budget)
    return {option: value for option, value in conditions.items() if _parts(config, option) != set(value.split("-"))}


def shorter_way(config: DistillConfig, domain: Domain, method: Method, budget: int) -> str:
    """Return options that shorten a run of published steps, in words; empty if it has few steps or the user's number.

    Also empty for domains without short schedules: their methods take minutes.
    """
    data, name = require_data_and_method(config)
    steps = 0 if method.solve is not None else method.settings(budget).steps
    if config.schedule != "published" or config.steps is not None or steps < MANY or not domain.reduced:
        return ""
    try:
        reduced = get_method(domain, name, data, "reduced").settings(budget).steps
    except ConfigError:
        return "--steps N takes fewer"
    return f"--schedule reduced takes {reduced:,}, and --width 32 a smaller network" if reduced < steps else ""


def _parts(config: DistillConfig, option: str) -> set[str]:
    """Return the hyphen-separated parts of an option's value; those of a model include ``--width`` as ``wN``."""
    value = getattr(config, option)
    width = {f"w{config.width}"} if option == "model" and config.width is not None else set()
    return width | (set() if value is None else set(canonical(value).split("-")))


def require_own_config(config: DistillConfig, distilled: DistilledSet, folder: Path) -> None:
    """Refuse a folder whose options and set are of two runs, as an interrupted replacement leaves behind.

    Compares method, seed, budget, kind of labels and settings. The options may have more steps: a run that is being
    extended keeps its former set until it finishes.

    Raises:
        CheckpointError: they are; names what differs.
    """
    options = {"method": canonical(str(config.method)), "seed": config.seed, "ipc": config.ipc}
    options |= {"nodes": config.nodes, "users": config.users, "label": config.label, **config.overrides()}
    recorded = {"method": canonical(distilled.method), "seed": distilled.seed, distilled.info.budget: distilled.budget}
    recorded |= {"label": distilled.label} if distilled.label in get_args(LabelKind) else {}
    recorded |= {name: value for name, value in distilled.settings.items() if name not in MEMORY_ONLY}
    if _is_longer(config, distilled):
        del recorded["steps"]
    for name, value in recorded.items():
        if options.get(name) not in (None, value) and value is not None:
            raise CheckpointError(
                f"{folder / CONFIG} is of another run than the set beside it: its {name} is {options[name]}, the set's "
                f"{value}; begin anew with --overwrite"
            )


def note_of_more_steps(config: DistillConfig, distilled: DistilledSet, folder: Path) -> str:
    """Return in words that a run is being extended beyond the steps of its set; empty if it is not."""
    if not _is_longer(config, distilled):
        return ""
    steps = distilled.settings["steps"]
    return f"this set is of {steps:,} steps, and its run to {config.steps:,} is unfinished; {how_to_go_on(folder)}"


def _is_longer(config: DistillConfig, distilled: DistilledSet) -> bool:
    """Return whether a configuration has more steps than the run that made a set."""
    steps = distilled.settings.get("steps")
    return config.steps is not None and isinstance(steps, int) and config.steps > steps


def _in_words(value: object) -> object:
    """Return the value of an option for a message."""
    return "by default" if value is None else value


def require_own_folder(config: DistillConfig, at_work: bool = False, may_differ: Collection[str] = HOW_IT_RUNS) -> None:
    """Refuse a run whose folder holds work of another run.

    The place of the data does not count, since data may have moved; what they are does once the run has read them. Nor
    do options of judging in runs that leave it for later (``--judges none``), but for how judges train.

    Args:
        config: of the run.
        at_work: whether another process is at work there, so that options without work count too.
        may_differ: options that do not count either, by default those of how it runs, such as the device.
    Raises:
        ConfigError: it does; names the options that differ and the ways out.
        CheckpointError: the options of the work there are missing or damaged.
    """
    folder = config.folder()
    require_free(folder, other="another --out", writes=COMMON_NAMES)
    if not holds_work(folder) and not (at_work and (folder / CONFIG).is_file()):
        return
    saved_config = DistillConfig.load(folder / CONFIG)
    wanted, saved = asdict(config), asdict(saved_config)
    if is_same_file(saved["teacher"], wanted["teacher"]):
        saved["teacher"] = wanted["teacher"]
    if is_place(saved["data"]) and is_place(wanted["data"]):
        saved["data"] = wanted["data"]
    idle = ONLY_JUDGES if config.unjudged and saved_config.unjudged else ()
    differing = [name for name in wanted if name not in (*may_differ, *idle) and saved[name] != wanted[name]]
    if not differing:
        return
    wanted, saved = ({**options, "set": " ".join(options["set"] or ())} for options in (wanted, saved))
    difference = ", ".join(
        f"{name.replace('_', '-')} {_in_words(saved[name])} in place of {_in_words(wanted[name])}" for name in differing
    )
    ways = "choose another --out or remove it"
    if differing == ["steps"] and (config.steps or 0) > (saved_config.steps or 0) > 0:
        ways = f"mmdistill distill --resume {as_argument(folder)} --steps N takes a run further; else {ways}"
    elif set(differing) <= {*JUDGING_OPTIONS, "protocol"} and is_finished(folder) and not config.unjudged:
        flags = "".join(f" {as_option(name)} {wanted[name]}" for name in differing if wanted[name] is not None)
        ways = f"mmdistill evaluate {as_argument(folder)}{flags} judges its set so; else {ways}"
    raise ConfigError(f"{folder} holds another run, of {difference}; {ways}")


@contextmanager
def kept_config(config: DistillConfig, folder: Path) -> Iterator[None]:
    """Save a run's configuration; an error within this context before any new work restores the former one."""
    path = folder / CONFIG
    former = path.read_bytes() if path.exists() else None
    times = work_times(folder)
    try:
        config.save(path)
        yield
    except Exception:  # not KeyboardInterrupt: an interrupted run can be resumed
        if work_times(folder) == times:
            if former is None:
                path.unlink(missing_ok=True)
            else:
                with atomic_write(path) as handle:
                    handle.write(former)
        raise
