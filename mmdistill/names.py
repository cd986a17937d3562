"""Names from users: their canonical spelling, errors for unknown ones, lists and NAME=VALUE assignments."""

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
"""Whether commands are typed into cmd.exe, whose quoting differs from Unix shells'."""
OWN_ENCODERS = ("minilm", "tfidf", "average")
"""This package's names of text encoders; any other name is a model's, or its folder."""


def canonical(name: str) -> str:
    """Return a name in its canonical spelling: lower case with hyphens.

    Raises:
        ConfigError: the name is not a text.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a name is expected, got {name!r}, which is {type(name).__name__}")
    return name.strip().lower().replace("_", "-")


def unknown_name(kind: str, name: str, known: Iterable[str], scripts: str = "") -> UnknownNameError:
    """Return the error for an unknown name, with the nearest known ones.

    Args:
        kind: what the name is for ("judge").
        name: the name.
        known: all valid names.
        scripts: what users' scripts may add under such names ("a method"); mentioned if no known name is near.
    """
    names = sorted(known)
    hint = did_you_mean(canonical(name), names)
    advice = (
        f"; {scripts} that a script of yours adds is known there alone: run it in place of mmdistill, or import it in "
        "Python"
    )
    suffix = advice if scripts and not hint else ""
    listed = f"there are: {', '.join(names)}" if names else "there are none"
    return UnknownNameError(f"unknown {kind} {name!r}{hint} ({listed}){suffix}")


def known_name(kind: str, name: str, known: Collection[str]) -> str:
    """Return a known name as it is listed.

    Raises:
        UnknownNameError: the name is not known.
    """
    listed = {canonical(entry): entry for entry in known}
    if canonical(name) not in listed:
        raise unknown_name(kind, name, known)
    return listed[canonical(name)]


def called(data: Data, name: str | None, source: object, known: Collection[str]) -> Data:
    """Return data under a user's name, which identifies them in runs; None leaves their name.

    Args:
        data: the loaded data.
        name: the user's.
        source: the object that they were loaded from.
        known: the names of known data sets.
    Raises:
        ConfigError: a name for a named data set or a path, an empty name, or that of a known data set.
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
    """Return the error for data that are neither a known name nor an existing path."""
    separators = [separator for separator in (os.sep, os.altsep) if separator is not None]
    if Path(data).suffix or any(separator in data for separator in separators):
        return ConfigError(
            f"{data!r} is neither a known data set nor an existing file or folder; where a run's data have moved, "
            "distill --resume FOLDER, evaluate, report and export take their place by --data, and the line 'data' of "
            f"its config.yaml may be corrected{_near_paths(data)}"
        )
    return UnknownNameError(
        f"{unknown_name(kind, data, known)}; nor is there a file or folder {data!r}{_near_paths(data)}"
    )


def _near_paths(data: str) -> str:
    """Return "; did you mean ...?" with the nearest names in a path's folder; empty if there are none."""
    path = Path(data)
    try:
        return did_you_mean(path.name, [name for name in os.listdir(path.parent) if not name.startswith(".")])
    except OSError:
        return ""


def encodable(text: str) -> str:
    """Return a text that UTF-8 can hold: undecodable bytes of file names, which Linux allows, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def in_words(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: "a, b and c"; empty for none."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + "".join(names[-1:])


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 epoch``, ``1,000 epochs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_few(names: Sequence[object], most: int = 5) -> str:
    """Return the first names, comma-separated, and the number of further ones: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def brief_repr(value: object) -> str:
    """Return a value's ``repr``, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def as_argument(value: object) -> str:
    """Return a value quoted as one argument of a shell command."""
    return subprocess.list2cmdline([str(value)]) if WINDOWS else shlex.quote(str(value))


def as_option(name: str) -> str:
    """Return the option for a setting: ``--real-batch`` for ``real_batch``."""
    return f"--{name.replace('_', '-')}"


def as_file_name(text: str) -> str:
    """Return a file name with a hyphen for each character that some file system refuses."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", text)


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in numerical order if all are whole numbers, else in alphabetical order."""
    distinct = set(labels)
    numeric = all(re.fullmatch(r"-?\d{1,18}", label) for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label), label)) if numeric else sorted(distinct))


def class_numbers(names: Sequence[str], labels: Set[str], *, given: bool) -> dict[str, int]:
    """Return the class index of each possible label: labels are class names or, for ``given`` names, all indices."""
    by_name = {name: index for index, name in enumerate(names)}
    by_index = {str(index): index for index in range(len(names))}
    named = not given or labels <= by_name.keys() or (labels & by_name.keys() and not labels <= by_index.keys())
    return by_name if named else by_index


def split_names(text: str | None) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def as_assignments(given: Any) -> list[Any]:
    """Return a file's settings as ``--set`` takes them, NAME=VALUE; names without a value are left out.

    Args:
        given: a mapping, one NAME=VALUE or a list of these; None for nothing.
    """
    if given is None:
        return []
    if not isinstance(given, Mapping):
        return given if isinstance(given, list) else [given]
    values = {name: value for name, value in given.items() if value is not None}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in values.items()
    }
    return [f"{name}={text}" for name, text in texts.items()]


def assignments(given: Iterable[str]) -> dict[str, str]:
    """Parse NAME=VALUE entries; return the values as texts by name, the last one of a repeated name.

    Raises:
        ConfigError: an entry of another form.
    """
    values = {}
    for entry in given:
        name, equals, text = str(entry).partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set takes NAME=VALUE, such as --set inner_parts=2, got {entry!r}")
        values[name.strip().replace("-", "_")] = text.strip()
    return values


def baseline_names(text: str) -> list[str]:
    """Return the baselines of a comma-separated list, each once; 'none' means no baselines."""
    return [] if canonical(text) == "none" else list(dict.fromkeys(map(canonical, split_names(text))))
