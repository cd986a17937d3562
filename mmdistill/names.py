"""Names that users give: their canonical spelling, what is said of one that nobody knows, and values of names."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import Field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from mmdistill.errors import ConfigError, UnknownNameError, did_you_mean


class Fields(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Data = TypeVar("Data", bound=Fields)

WINDOWS = os.name == "nt"
"""Whether commands are typed into cmd.exe, whose quotes are others than those of Unix shells."""
OWN_ENCODERS = ("minilm", "tfidf", "average")
"""The text encoders that go by a name of this package; any other name is that of a model, or its folder."""


def canonical(name: str) -> str:
    """Return a name in its canonical spelling: lower case with hyphens.

    Raises:
        ConfigError: it is no text.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a name is expected, got {name!r}, which is {type(name).__name__}")
    return name.strip().lower().replace("_", "-")


def unknown_name(kind: str, name: str, known: Iterable[str], scripts: str = "") -> UnknownNameError:
    """Return the error for an unknown name, with the nearest known ones.

    Args:
        kind: what it is the name of.
        name: the name.
        known: those that there are.
        scripts: what scripts of users add under such names ("a method"), which is said where no known one is near.
    """
    names = sorted(known)
    hint = did_you_mean(canonical(name), names)
    there = (
        f"; {scripts} that a script of yours adds is known there alone: run it in place of mmdistill, or import it in "
        "Python"
    )
    said = there if scripts and not hint else ""
    return UnknownNameError(f"unknown {kind} {name!r}{hint} (there are: {', '.join(names)}){said}")


def known_name(kind: str, name: str, known: Collection[str]) -> str:
    """Return the canonical spelling of a name that is one of the known ones.

    Raises:
        UnknownNameError: it is none of them.
    """
    found = canonical(name)
    if found not in known:
        raise unknown_name(kind, name, known)
    return found


def called(data: Data, name: str | None, source: object, known: Collection[str]) -> Data:
    """Return data under a name of the user's, by which their runs are listed; None leaves the one that they have.

    Args:
        data: what was loaded.
        name: the user's.
        source: what it was loaded from.
        known: the data sets that go by name.
    Raises:
        ConfigError: a name beside a name or path, an empty one, or that of a known data set, which has settings.
    """
    if name is None:
        return data
    if isinstance(source, str | Path):
        raise ConfigError(f"a name is for data in memory; {str(source)!r} goes by its own: leave the name out")
    if not canonical(name):
        raise ConfigError("the name of the data is empty; leave it out, or give one")
    if canonical(name) in known:
        raise ConfigError(f"{name!r} is a known data set, which methods have settings for; choose another name")
    return replace(data, name=name)


def unknown_data(kind: str, data: str, known: Iterable[str]) -> ConfigError:
    """Return the error for data that are neither known by name nor there; what looks like a path is taken for one."""
    separators = [separator for separator in (os.sep, os.altsep) if separator is not None]
    if Path(data).suffix or any(separator in data for separator in separators):
        return ConfigError(
            f"{data!r} is neither a known data set nor an existing file or folder; where a run's data have moved, "
            f"correct the line 'data' of its config.yaml{_near_paths(data)}"
        )
    return UnknownNameError(
        f"{unknown_name(kind, data, known)}; nor is there a file or folder {data!r}{_near_paths(data)}"
    )


def _near_paths(data: str) -> str:
    """Return "; did you mean ...?" with the names nearest to a path's where it would lie, or nothing."""
    path = Path(data)
    try:
        return did_you_mean(path.name, [name for name in os.listdir(path.parent) if not name.startswith(".")])
    except OSError:
        return ""


def encodable(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes of a file's name that are none, as Linux allows, stand as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def in_words(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: "a, b and c"; nothing where there are none."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + "".join(names[-1:])


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: ``1 epoch``, ``1,000 epochs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_few(names: Sequence[object], most: int = 5) -> str:
    """Return the first of some names as a sentence lists them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def as_argument(value: object) -> str:
    """Return a value as one argument of a command that a user may copy into the shell."""
    return subprocess.list2cmdline([str(value)]) if WINDOWS else shlex.quote(str(value))


def as_option(name: str) -> str:
    """Return the option that is for a setting: ``--real-batch`` for ``real_batch``."""
    return f"--{name.replace('_', '-')}"


def as_file_name(text: str) -> str:
    """Return a name for a file or folder with a hyphen for each character that some file system does not take."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", text)


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels, whole numbers in numerical order and anything else in alphabetical order."""
    distinct = set(labels)
    numeric = all(re.fullmatch(r"-?\d{1,18}", label) for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label), label)) if numeric else sorted(distinct))


def class_numbers(names: Sequence[str], labels: Set[str], *, given: bool) -> dict[str, int]:
    """Return the class index of each label: labels are names, or, of names that were given, all of them indices."""
    by_name = {name: index for index, name in enumerate(names)}
    by_index = {str(index): index for index in range(len(names))}
    named = not given or labels <= by_name.keys() or (labels & by_name.keys() and not labels <= by_index.keys())
    return by_name if named else by_index


def split_names(text: str | None) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def as_assignments(given: Any) -> list[Any]:
    """Return what a file gives to names as ``--set`` takes it, NAME=VALUE; nothing for a name that is left empty.

    Args:
        given: a mapping, one NAME=VALUE or a list of these; None for nothing.
    """
    if not isinstance(given, Mapping):
        return given if isinstance(given, list) else [] if given is None else [given]
    said = {name: value for name, value in given.items() if value is not None}
    return [f"{name}={one if isinstance(one, str) else json.dumps(one, default=str)}" for name, one in said.items()]


def assignments(given: Iterable[str]) -> dict[str, str]:
    """Return the values, as texts, of NAME=VALUE by name; of a name that comes twice the last.

    Raises:
        ConfigError: something else.
    """
    found = {}
    for one in given:
        name, equals, text = str(one).partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set takes NAME=VALUE, such as --set inner_parts=2, got {one!r}")
        found[name.strip().replace("-", "_")] = text.strip()
    return found


def baseline_names(text: str) -> list[str]:
    """Return the baselines asked for, each once; 'none' means nothing."""
    return [] if canonical(text) == "none" else list(dict.fromkeys(map(canonical, split_names(text))))
