"""From a configuration to the task and the method that it names, and to its place in a run folder."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from mmdistill.checks import require_sizes
from mmdistill.commands.assigned import assigned
from mmdistill.config import DistillConfig, require_data_and_method
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError
from mmdistill.files.paths import users_path
from mmdistill.labels import LabelKind
from mmdistill.method import Method
from mmdistill.names import OWN_ENCODERS, as_option, canonical, in_words
from mmdistill.registry import (
    OF_SOME_DOMAINS,
    TASK_OPTIONS,
    Domain,
    domain_of,
    get_method,
    get_parameterization,
    takers,
)
from mmdistill.runs.folder import CONFIG, traces
from mmdistill.runs.how_to_continue import how_to_go_on
from mmdistill.runtime import atomic_write, choose_device
from mmdistill.settings import MEMORY_ONLY
from mmdistill.task import BudgetKind, Task

MANY = 1000
"""Steps that may take a CPU hours."""
SIZES = ("width", "length", "judge_epochs", "judge_batch", "size")
"""Options of tasks that are whole numbers of at least 1, which is told by their names on the command line."""

NO_JUDGE_ASKS = "note: no judge here asks a teacher: --teacher changes nothing"


def placed(config: DistillConfig) -> DistillConfig:
    """Return a configuration whose folders of experts and of an encoder are absolute, so that a run always finds them.

    The folder of experts may not be there yet. An encoder that is no folder is a model's name. A teacher's file is told
    from what may lie in its place later, see :func:`pinned`.
    """
    experts, encoder = config.expert_folder, config.encoder
    if experts:
        experts = str(users_path(experts).absolute())
    if encoder and encoder.strip().lower() not in OWN_ENCODERS and users_path(encoder).is_dir():
        encoder = str(users_path(encoder).absolute())
    teacher = None if config.teacher is None else pinned(config.teacher)
    return replace(config, expert_folder=experts, encoder=encoder, teacher=teacher)


def pinned(file: str) -> str:
    """Return a file's absolute path and, after ``#``, a digest of its content, where the file is there.

    Raises:
        ConfigError: no file is named.
    """
    path, digest = _unpinned(file)
    if not digest and path.is_file():
        digest = _digest(path)
    return "#".join(filter(None, (str(path.absolute()), digest)))


def as_it_was(file: str) -> Path:
    """Return a file's path, without the digest that may follow it.

    Raises:
        ConfigError: no file is named.
        DataError: the file is another one than the digest is of, or has gone since that was taken.
    """
    path, digest = _unpinned(file)
    if digest and not path.exists():
        raise DataError(
            f"there is no file {path} any more, the teacher that these options name: put it back there; new runs and "
            "evaluate take it from elsewhere, or another one, by --teacher FILE"
        )
    if digest and path.is_file() and (found := _digest(path)) != digest:
        raise DataError(
            f"{path} has changed since these options were kept (its digest was {digest} and is {found}): bring it back "
            "as it was; new runs and evaluate take another teacher by --teacher"
        )
    return path


def is_same_file(one: str | None, other: str | None) -> bool:
    """Return whether two files are the same: by their digests where both have one, else by their paths."""
    digests = [_unpinned(file)[1] for file in (one, other) if file is not None]
    return digests[0] == digests[1] if len(digests) == 2 and all(digests) else one == other


def _unpinned(file: str) -> tuple[Path, str]:
    """Return a file's path and the digest that follows it; empty where none does.

    Raises:
        ConfigError: no file is named.
    """
    if not file.strip():
        raise ConfigError("--teacher names the file of a trained network, got an empty name; without it one is trained")
    path, _, digest = file.rpartition("#")
    known = bool(path) and re.fullmatch("[0-9a-f]{16}", digest) is not None
    return (users_path(path), digest) if known else (users_path(file), "")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=8)).hexdigest()


def make_task(config: DistillConfig, device: str | None = None) -> tuple[Domain, Task]:
    """Build the task that a configuration names.

    Raises:
        ConfigError: an option that means nothing to the data's domain, a size below 1, or an empty teacher.
        DataError: a teacher's file that is gone, or another one than the configuration was kept with.
    """
    data, method = require_data_and_method(config)
    options = [option for option in OF_SOME_DOMAINS if getattr(config, option) is not None]
    budget = next((kind for kind in get_args(BudgetKind) if getattr(config, kind) is not None), None)
    domain = domain_of(data, [option for option in options if option.endswith("_column")], budget, method)
    for option in options:
        if option not in domain.options:
            raise ConfigError(
                f"{as_option(option)} is for {in_words(takers(option)) or 'no'} data, and {data!r} is "
                f"{domain.name} data; {domain.instead.get(option, 'leave it out')}"
            )
    chosen = {option: getattr(config, option) for option in TASK_OPTIONS}
    chosen |= {"device": str(choose_device(device or config.device))}
    chosen |= {} if config.split_seed is None else {"seed": config.split_seed}
    chosen |= {} if config.teacher is None else {"teacher": as_it_was(config.teacher)}
    chosen["model"] = chosen["model"] or domain.networks.get(canonical(method))
    require_sizes(**{as_option(option): chosen[option] for option in SIZES})
    return domain, domain.make_task(data, **{option: value for option, value in chosen.items() if value is not None})


def chosen_method(config: DistillConfig, domain: Domain, classes: int | None) -> Method:
    """Return the configured method, for so many classes (None: a task without), with its overrides."""
    data, name = require_data_and_method(config)
    method = get_method(domain, name, data, config.schedule).for_classes(classes)
    storage = None if config.parameterization is None else get_parameterization(domain, config.parameterization, data)
    settings = config.overrides() | ({} if config.lr is None else {"lr": config.lr})
    if config.set is not None:
        settings |= assigned(config.set, method.settings(config.count), method.title)
    return method.customised(storage, config.label, settings)


def unmet_conditions(config: DistillConfig, domain: Domain, budget: int) -> dict[str, str]:
    """Return the options that published numbers belong to and that a run with published settings does not have."""
    data, name = require_data_and_method(config)
    if config.schedule != "published" or canonical(data) not in domain.datasets:
        return {}
    wanted = domain.conditions(canonical(name), canonical(data), budget)
    return {option: value for option, value in wanted.items() if _parts(config, option) != set(value.split("-"))}


def shorter_way(config: DistillConfig, domain: Domain, method: Method, budget: int) -> str:
    """Return what takes less than a method's published steps, in words; nothing where these were not taken, or are few.

    It is for domains that have short schedules, since methods of the others take minutes.
    """
    data, name = require_data_and_method(config)
    steps = 0 if method.solve is not None else method.settings(budget).steps
    if config.schedule != "published" or config.steps is not None or steps < MANY or not domain.reduced:
        return ""
    try:
        fewer = get_method(domain, name, data, "reduced").settings(budget).steps
    except ConfigError:
        return "--steps N takes fewer"
    return f"--schedule reduced takes {fewer:,}, and --width 32 a smaller network" if fewer < steps else ""


def _parts(config: DistillConfig, option: str) -> set[str]:
    """Return the parts of a name that a user has chosen; a width may stand in a model's or beside it."""
    chosen = getattr(config, option)
    width = {f"w{config.width}"} if option == "model" and config.width is not None else set()
    return width | (set() if chosen is None else set(canonical(chosen).split("-")))


def require_own_config(config: DistillConfig, distilled: DistilledSet, folder: Path) -> None:
    """Refuse options of another run than the set beside them, as one leaves that is cut off while it replaces another.

    The method, the seed, the budget, the kind of labels and the settings are compared; but options may say more steps,
    as those of a run do that is being taken further, and leaves its former set until it is finished.

    Raises:
        CheckpointError: naming what differs.
    """
    said = {"method": canonical(str(config.method)), "seed": config.seed, "ipc": config.ipc}
    said |= {"nodes": config.nodes, "users": config.users, "label": config.label, **config.overrides()}
    found = {"method": canonical(distilled.method), "seed": distilled.seed, distilled.info.budget: distilled.budget}
    found |= {"label": distilled.label} if distilled.label in get_args(LabelKind) else {}
    found |= {name: value for name, value in distilled.settings.items() if name not in MEMORY_ONLY}
    if _is_longer(config, distilled):
        del found["steps"]
    for name, value in found.items():
        if said.get(name) not in (None, value) and value is not None:
            raise CheckpointError(
                f"{folder / CONFIG} is of another run than the set beside it: its {name} is {said[name]}, the set's "
                f"{value}; begin anew with --overwrite"
            )


def note_of_more_steps(config: DistillConfig, distilled: DistilledSet, folder: Path) -> str:
    """Return in words that a run is being taken further than the set beside its options; empty where it is not."""
    if not _is_longer(config, distilled):
        return ""
    made = distilled.settings["steps"]
    return f"this set is of {made:,} steps, and its run to {config.steps:,} is unfinished; {how_to_go_on(folder)}"


def _is_longer(config: DistillConfig, distilled: DistilledSet) -> bool:
    """Return whether options say more steps than the run of a set had."""
    made = distilled.settings.get("steps")
    return config.steps is not None and isinstance(made, int) and config.steps > made


@contextmanager
def kept_config(config: DistillConfig, folder: Path) -> Iterator[None]:
    """Keep a run's configuration in its folder; if an error comes before any new work, the former one is put back."""
    path = folder / CONFIG
    former, before = path.read_bytes() if path.exists() else None, traces(folder)
    try:
        config.save(path)
        yield
    except Exception:  # what was interrupted can be resumed
        if traces(folder) == before:
            if former is None:
                path.unlink(missing_ok=True)
            else:
                with atomic_write(path) as handle:
                    handle.write(former)
        raise
