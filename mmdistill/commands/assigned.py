"""What ``--set NAME=VALUE`` gives to a method's settings: values are read and checked by the fields' types."""

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
from mmdistill.settings import Settings, own_names

SAMPLES = {bool: "true", int: "1", float: "0.5", str: "a"}
"""Values of plain types, for examples."""


def assigned(given: Iterable[str], settings: Settings, title: str) -> dict[str, object]:
    """Return the values that are given to a method's settings, by their names.

    Args:
        given: NAME=VALUE of each, values spelled as in YAML; lists as tuples of Python too.
        settings: the method's own, which say what fields there are.
        title: what the method is called.
    Raises:
        ConfigError: a setting that the method has not, or that has an option of its own; a value of another type.
    """
    kinds = get_type_hints(type(settings))
    free = {entry.name for entry in fields(settings) if entry.init} - {*WITHOUT_TEXT, "lr"}  # the samples' rate
    known = [name for name in sorted(free) if name in own_names(settings) or name not in SETTINGS]
    found = {}
    for name, text in assignments(given).items():
        if name not in known:
            near = did_you_mean(name, known)
            if name in DistillConfig.__dataclass_fields__:
                near = f"; there is the option {as_option(name)}"
            raise ConfigError(f"{title} has no setting {name!r} for --set{near} (it takes: {', '.join(known)})")
        found[name] = _read(name, text, kinds[name])
    return found


def _read(name: str, text: str, kind: Any) -> object:
    """Return a value of a type, spelled as in YAML."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    example = f"{name}={_sample(kind)}"
    listed = "[" in example
    unsaid = ConfigError(f"--set cannot say a value of {name}, which is of type {kind}; set it in Python")
    try:
        parser.add_argument(f"--{name}", type=kind)
        found: object = parser.parse_args([f"--{name}={_as_list(text) if listed else text}"])[name]
    except ArgumentError as error:
        said = in_one_line(str(error), ()).removeprefix("--")
        said = said.replace(name.replace("_", "-"), name, 1)  # as it was spelled
        raise ConfigError(f"--set {said}{f', such as {as_argument(example)}' if listed else ''}") from error
    except ValueError as error:  # a type of which the parser makes nothing
        raise unsaid from error
    if isinstance(found, Namespace):  # the fields of a dataclass
        raise unsaid
    return found


def spelled(value: object) -> str:
    """Return a value as an option or ``--set`` takes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(spelled, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_list(text: str) -> str:
    """Return a text that is a tuple in Python as a list in YAML; any other as it is."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return json.dumps(found, default=str) if isinstance(found, tuple) else text


def _sample(kind: Any) -> str:
    """Return what a value of a type may look like; nothing of types that are neither plain nor lists of these."""
    own = [one for one in get_args(kind) if not isinstance(one, EllipsisType)]
    if get_origin(kind) in (tuple, list):
        return f"[{', '.join(map(_sample, own))}]"
    return SAMPLES.get(kind, "") if not own else _sample(own[0])
