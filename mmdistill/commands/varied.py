"""The settings in which the runs of a sweep differ, beside their methods, budgets and seeds."""

from argparse import ArgumentError
from collections.abc import Collection, Sequence
from dataclasses import fields
from itertools import product
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from mmdistill.commands.assigned import spelled
from mmdistill.commands.wording import in_one_line
from mmdistill.composition import without_effect
from mmdistill.config import CHOICES, VARIED, DistillConfig
from mmdistill.errors import ConfigError
from mmdistill.method import Method
from mmdistill.names import as_option, assignments, canonical, split_names
from mmdistill.task import Task

TUPLES = str.maketrans("()", "[]")
"""The brackets of Python tuples, which values may be spelled as, as those of YAML."""


def combinations(common: DistillConfig) -> list[tuple[dict[str, Any], str]]:
    """Return the settings of each combination of varied values, and what the folders of its runs are called by.

    Args:
        common: the options of all runs. Those in :data:`VARIED` and the values of ``set`` may be texts of several
            values, comma-separated; a value in brackets or quotes is one.
    Returns:
        The settings by option, and a text such as ``-lr3-init-noise``, which is empty if nothing is varied.
    Raises:
        ConfigError: an option has no value or one of another type.
    """
    kinds = {entry.name: entry.type for entry in fields(DistillConfig) if entry.name in VARIED}
    given = {name: str(text) for name in VARIED if (text := getattr(common, name)) is not None}
    values = {name: _parse(name, text, kinds[name]) for name, text in given.items()}
    values |= {f"set {name}": _listed(name, text) for name, text in assignments(common.set or ()).items()}
    results = []
    for chosen in product(*values.values()):
        options: dict[str, Any] = dict(zip(values, chosen, strict=True))
        marks = [_mark(name, value) for name, value in options.items() if len(values[name]) > 1]
        assigned = tuple(f"{name[4:]}={options.pop(name)}" for name in values if name.startswith("set "))
        results.append((options | {"set": assigned or None}, "".join(marks)))
    return results


def _parse(name: str, text: str, kind: Any) -> list[Any]:
    """Return the values of an option's comma-separated list, each once."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument(f"--{name}", type=kind)
    pieces = [canonical(piece) if name in CHOICES else piece for piece in split_names(text)]
    try:
        values = [parser.parse_args([f"--{name}={piece}"])[name] for piece in pieces]
    except ArgumentError as error:
        raise ConfigError(in_one_line(str(error), ())) from error
    if not values:
        raise ConfigError(f"{as_option(name)} takes a value or several, comma-separated, got {text!r}")
    return list(dict.fromkeys(values))


def _listed(name: str, text: str) -> list[str]:
    """Return the values of a comma-separated list, each once; a text in brackets or quotes is one value.

    Raises:
        ConfigError: a text that begins with a bracket or quote and is not one value in these, such as ``[1],[2]``.
    """
    if text[:1] not in ("[", "(", "{", "'", '"'):
        return list(dict.fromkeys(split_names(text))) or [text]
    try:
        yaml.safe_load(text.translate(TUPLES))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {name} takes one value in brackets or quotes, or several without, comma-separated, got {text!r}; "
            "sweep values in brackets apart"
        ) from error
    return [text]


def _mark(name: str, value: object) -> str:
    """Return what a varied value adds to a folder's name; a way of storing is in the name already."""
    if name == "parameterization":
        return ""
    text = spelled(value).removesuffix(".0") if isinstance(value, float) else spelled(value)
    return f"-{name.removeprefix('set ').replace('_', '-')}{'' if text[:1].isdigit() else '-'}{text}"


def varied_settings(configs: Sequence[DistillConfig]) -> set[str]:
    """Return the names of the settings in which runs differ."""
    given = [_given(config) for config in configs]
    return {name for settings in given for name, value in settings.items() if given[0].get(name) != value}


def _given(config: DistillConfig) -> dict[str, object]:
    """Return the settings that a run's options and ``set`` name."""
    return {**config.overrides(), **assignments(config.set or ())}


def require_effect(method: Method, task: Task, config: DistillConfig, varied: Collection[str]) -> None:
    """Refuse varied settings that a method does not read.

    Args:
        method: of a run, with its settings.
        task: of the run.
        config: of the run.
        varied: the names of the settings in which the runs of the sweep differ.
    Raises:
        ConfigError: names the setting and the reason.
    """
    if not varied:  # the method's parts, which need not fit, are left to its run
        return
    given = {name: value for name, value in _given(config).items() if name in varied}
    for name, why in without_effect(task, method, config.count, given).items():
        option = as_option(name) if name in VARIED else f"--set {name}"
        raise ConfigError(f"{why.format(option)}; what a sweep varies concerns all of its methods")
