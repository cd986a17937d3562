"""Names that users give: their canonical spelling, and what is said of one that nobody knows."""

from collections.abc import Iterable

from mmdistill.errors import ConfigError, UnknownNameError, did_you_mean


def canonical(name: str) -> str:
    """Return a name in its canonical spelling: lower case with hyphens.

    Raises:
        ConfigError: it is no text.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a name is expected, got {name!r}, which is {type(name).__name__}")
    return name.strip().lower().replace("_", "-")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown name, with the nearest known ones."""
    names = sorted(known)
    hint = did_you_mean(canonical(name), names)
    return UnknownNameError(f"unknown {kind} {name!r}{hint} (there are: {', '.join(names)})")
