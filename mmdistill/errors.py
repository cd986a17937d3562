"""The exceptions that mmdistill raises on purpose; the command line turns each into one line and exit code 2."""

import logging
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

NEAR, NEAR_SHORT = 0.6, 0.5
"""How alike a name must be to be suggested for another one; one of up to three letters, which share few, less so."""

KEPT = "mmdistill.kept"
"""The logger that says what is kept of work that ends early; commands say it themselves, in their last line."""


class MmdistillError(Exception):
    """Base of every error that mmdistill raises on purpose."""


class ConfigError(MmdistillError, ValueError):
    """An option, a name or a combination of methods that cannot work."""


class UnknownNameError(ConfigError, KeyError):
    """A name that a table lacks; a KeyError as well, which code that looks names up expects of a mapping."""

    __str__ = Exception.__str__  # KeyError's would put the message in quotes


class ShapeError(MmdistillError, ValueError):
    """A tensor whose shape is not the one expected."""


class DataError(MmdistillError):
    """Data that is missing, damaged, or unusable as it is."""


class CheckpointError(MmdistillError):
    """A saved set, run or checkpoint that is missing, damaged, or belongs to something else."""


class VersionError(CheckpointError):
    """A file that another version of this package wrote, for which it may be whole."""


class UnsupportedError(MmdistillError):
    """A composition that is well-formed but that this domain or network cannot offer."""


class NonFiniteError(MmdistillError):
    """A loss or gradient became NaN or infinite."""


class MemoryExhaustedError(MmdistillError):
    """The device or the machine has no more memory for what was asked."""


class MmdistillWarning(UserWarning):
    """What mmdistill warns of that goes on all the same; the command line prints it as a note."""


def first_line(error: Exception | str) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def note_kept(error: BaseException, text: str) -> None:
    """Say what is kept of work that an error ends: in a note of it, and in the log, since notebooks show no notes."""
    error.add_note(text)
    logging.getLogger(KEPT).warning(text)


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of some choices.

    Raises:
        ConfigError: naming the nearest.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {' or '.join(choices)}, got {value!r}{did_you_mean(str(value), choices)}")


def to_install(extra: str) -> str:
    """Return the command that installs an extra of this package, whose lower bounds it heeds."""
    return f'pip install "mmdistill[{extra}]"'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known names nearest to one, at most three, or nothing.

    Of names equally near those that begin alike come first, since short names have many neighbours; ones more than
    twice as long are none of theirs.
    """
    alike = sorted(other for other in known if len(name) > 3 or len(other) <= 2 * len(name))
    near = {other: (SequenceMatcher(None, name, other).ratio(), other[:1] == name[:1]) for other in alike}
    best = max(near.values(), default=(0.0, False))
    if best[0] < (NEAR if len(name) > 3 else NEAR_SHORT):
        return ""
    return f"; did you mean {' or '.join([repr(other) for other in near if near[other] == best][:3])}?"
