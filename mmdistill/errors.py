"""The exceptions that mmdistill raises on purpose; the command line turns each into a line and exit code 2."""

import logging
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

NEAR, NEAR_SHORT = 0.6, 0.5
"""The least similarity of a suggested name, and that for names of up to three letters, which share few."""

KEPT = "mmdistill.kept"
"""The logger for what is kept of interrupted work; commands print that themselves, in their last line."""


class MmdistillError(Exception):
    """Base of every error that mmdistill raises on purpose."""


class ConfigError(MmdistillError, ValueError):
    """An option, a name or a combination of methods that cannot work."""


class UnknownNameError(ConfigError, KeyError):
    """A name that a table lacks; also a KeyError, which code expects from a mapping."""

    __str__ = Exception.__str__  # KeyError's quotes the message


class ShapeError(MmdistillError, ValueError):
    """A tensor whose shape is not the one expected."""


class DataError(MmdistillError):
    """Data that is missing, damaged, or unusable as it is."""


class CheckpointError(MmdistillError):
    """A saved set, run or checkpoint that is missing, damaged, or belongs to something else."""


class VersionError(CheckpointError):
    """A file from another version of this package, which may be able to read it."""


class UnsupportedError(MmdistillError):
    """A valid composition that this domain or network does not support."""


class NonFiniteError(MmdistillError):
    """A loss or gradient became NaN or infinite."""


class MemoryExhaustedError(MmdistillError):
    """The device or the machine is out of memory."""


class MmdistillWarning(UserWarning):
    """A warning of mmdistill; the command line prints it as a note."""


def first_line(error: Exception | str) -> str:
    """Return the first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def note_kept(error: BaseException, text: str) -> None:
    """Tell what is kept of interrupted work, in a note of the error and in the log, since notebooks show no notes."""
    error.add_note(text)
    logging.getLogger(KEPT).warning(text)


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that a value is one of some choices.

    Raises:
        ConfigError: suggesting the nearest.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {' or '.join(choices)}, got {value!r}{did_you_mean(str(value), choices)}")


def to_install(extra: str) -> str:
    """Return the command that installs an extra of this package, with its lower bounds of versions."""
    return f'pip install "mmdistill[{extra}]"'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with up to three nearest known names; empty if none is near.

    Among equally near names, those with the same first letter are preferred, since short names have many neighbours.
    For short names, names more than twice as long are not considered.
    """
    candidates = sorted(other for other in known if len(name) > 3 or len(other) <= 2 * len(name))
    scores = {other: (SequenceMatcher(None, name, other).ratio(), other[:1] == name[:1]) for other in candidates}
    best = max(scores.values(), default=(0.0, False))
    if best[0] < (NEAR if len(name) > 3 else NEAR_SHORT):
        return ""
    return f"; did you mean {' or '.join([repr(other) for other in scores if scores[other] == best][:3])}?"
