"""Parse ``--set NAME=VALUE`` into values of a method's settings, checked against the fields' types."""

import ast
import json
from argparse import ArgumentError
from collections.abc import Iterable
from dataclasses import fields
from types import EllipsisType
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from mmdistill.commands.wording import in_one_line
from mmdistill.config import SETTINGS, WITHOUT_TEXT, DistillConfig
from mmdistill.errors import ConfigError, did_you_mean
from mmdistill.names import as_argument, as_option, assignments
from mmdistill.settings import Settings

SAMPLES = {bool: "true", int: "1", float: "0.5", str: "a"}
"""Values of plain types, for examples."""


def parse_assignments(texts: Iterable[str], settings: Settings, title: str) -> dict[str, object]:
    """Return the values of ``--set`` by the names of the settings.

    Args:
        texts: NAME=VALUE of each, values spelled as in YAML; lists may be spelled as Python tuples too.
        settings: the method's own, whose fields may be set.
        title: what the method is called.
    Raises:
        ConfigError: the method lacks the setting, the setting has an option of its own, or the value has a wrong type.
    """
    kinds = get_type_hints(type(settings))
    settable = {entry.name for entry in fields(settings) if entry.init}
    known = sorted(settable - {*SETTINGS, *WITHOUT_TEXT, "lr"})  # an option sets the samples' rate too
    values = {}
    for name, text in assignments(texts).items():
        if name not in known:
            near = did_you_mean(name, known)
            if name in DistillConfig.__dataclass_fields__:
                near = f"; there is the option {as_option(name)}"
            raise ConfigError(f"{title} has no setting {name!r} for --set{near} (it takes: {', '.join(known)})")
        values[name] = _parse(name, text, kinds[name])
    return values


def _parse(name: str, text: str, kind: Any) -> object:
    """Return the value of type ``kind`` that a text spells in YAML."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    example = f"{name}={_sample(kind)}"
    is_list = "[" in example
    unspellable = ConfigError(f"--set cannot say a value of {name}, which is of type {kind}; set it in Python")
    try:
        parser.add_argument(f"--{name}", type=kind)
        value: object = parser.parse_args([f"--{name}={_as_list(text) if is_list else text}"])[name]
    except ArgumentError as error:
        reason = in_one_line(str(error), ()).removeprefix("--")
        reason = reason.replace(name.replace("_", "-"), name, 1)  # as the user spelled it
        raise ConfigError(f"--set {reason}{f', such as {as_argument(example)}' if is_list else ''}") from error
    except ValueError as error:  # a type that the parser does not know
        raise unspellable from error
    if isinstance(value, Namespace):  # the fields of a dataclass
        raise unspellable
    return value


def spelled(value: object) -> str:
    """Return a value as an option or ``--set`` takes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(spelled, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_list(text: str) -> str:
    """Return a text that spells Python tuples or a list of them as a YAML list; any other unchanged."""
    try:
        value = ast.literal_eval(text)
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, tuple | list) else text
    except (ValueError, SyntaxError, TypeError):
        return text


def _sample(kind: Any) -> str:
    """Return an example value of a type; empty for types that are neither plain nor lists or tuples of plain ones."""
    inner = [argument for argument in get_args(kind) if not isinstance(argument, EllipsisType)]
    if get_origin(kind) in (tuple, list):
        return f"[{', '.join(map(_sample, inner))}]"
    return SAMPLES.get(kind, "") if not inner else _sample(inner[0])
