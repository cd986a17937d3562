"""What ``--set NAME=VALUE`` gives to a method's settings: values are read and checked by the fields' types."""

from argparse import ArgumentError
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from mmdistill.commands.wording import in_one_line
from mmdistill.config import SETTINGS, WITHOUT_TEXT, DistillConfig
from mmdistill.errors import ConfigError, did_you_mean
from mmdistill.names import assignments
from mmdistill.settings import Settings, own_names


def assigned(given: Iterable[str], settings: Settings, title: str) -> dict[str, object]:
    """Return the values that are given to a method's settings, by their names.

    Args:
        given: NAME=VALUE of each, values spelled as in YAML.
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
                near = f"; there is the option --{name.replace('_', '-')}"
            raise ConfigError(f"{title} has no setting {name!r} for --set{near} (it takes: {', '.join(known)})")
        found[name] = _read(name, text, kinds[name])
    return found


def _read(name: str, text: str, kind: Any) -> object:
    """Return a value of a type, spelled as in YAML."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    unsaid = ConfigError(f"--set cannot say a value of {name}, which is of type {kind}; set it in Python")
    try:
        parser.add_argument(f"--{name}", type=kind)
        found: object = parser.parse_args([f"--{name}={text}"])[name]
    except ArgumentError as error:
        said = in_one_line(str(error), ()).removeprefix("--")
        raise ConfigError(f"--set {said.replace(name.replace('_', '-'), name, 1)}") from error  # as it was spelled
    except ValueError as error:  # a type of which the parser makes nothing
        raise unsaid from error
    if isinstance(found, Namespace):  # the fields of a dataclass
        raise unsaid
    return found
