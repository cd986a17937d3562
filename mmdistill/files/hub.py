"""Data sets that are asked for by their name on the Hugging Face hub."""

import functools
from collections.abc import Mapping
from typing import Any

from mmdistill.errors import ConfigError, DataError, to_install
from mmdistill.files.paths import users_path

HUB_PREFIX = "hf:"
"""What such a name starts with: ``hf:NAME`` or ``hf:NAME:CONFIGURATION``."""


def on_hub(name: str) -> bool:
    """Return whether data are asked for by their name on the hub."""
    return name.lower().startswith(HUB_PREFIX)


def located_on_hub(name: str) -> str:
    """Return a name on the hub as it is, and one of a folder with the folder's absolute path, which is found anywhere.

    Args:
        name: ``hf:NAME`` or ``hf:NAME:CONFIGURATION``; a folder that is there goes before a data set of its name, as in
            the package datasets.
    """
    path, config = _path_and_configuration(name)
    folder = users_path(path)
    there = bool(path) and folder.is_dir()
    return ":".join([HUB_PREFIX[:-1], str(folder.absolute()), *filter(None, [config])]) if there else name


def _path_and_configuration(name: str) -> tuple[str, str]:
    """Return both parts of a name; a folder whose own name has a colon is one without a configuration."""
    own = name[len(HUB_PREFIX) :]
    path, _, config = own.rpartition(":")
    return (own, "") if not path or users_path(own).is_dir() else (path, config)


def load_from_hub(name: str) -> Mapping[str, Any]:
    """Return the splits of a data set of the hub, each of which has columns; fetched where it was not before.

    Args:
        name: as :func:`located_on_hub` takes it.
    Raises:
        ConfigError: the package datasets is not there.
        DataError: there is no such data set, or it cannot be fetched or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"the data set {name} needs the package datasets: {to_install('hub')}") from error
    path, config = _path_and_configuration(located_on_hub(name))
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"Hugging Face datasets cannot load {name[len(HUB_PREFIX) :]!r}: {error}") from error
    return loaded


@functools.lru_cache
def has_images(name: str) -> bool:
    """Return whether a data set of the hub has a column of images; asked once, since data are read for it."""
    features = (getattr(part, "features", None) or {} for part in load_from_hub(name).values())
    return any(type(feature).__name__ == "Image" for columns in features for feature in columns.values())
