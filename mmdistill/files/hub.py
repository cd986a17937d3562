"""Data sets of Hugging Face: of the hub by name, or in a folder."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdistill.errors import ConfigError, DataError, to_install
from mmdistill.files.paths import users_path

HUB_PREFIX = "hf:"
"""Prefix of such names: ``hf:NAME`` or ``hf:NAME:CONFIGURATION``."""
SAVED_TO_DISK = ("dataset_dict.json", "state.json")
"""Files that ``save_to_disk`` writes: beside the folders of splits, or into that of a single one."""


def on_hub(name: str) -> bool:
    """Return whether a name is one of a data set on the hub."""
    return name.lower().startswith(HUB_PREFIX)


def located_on_hub(name: str) -> str:
    """Return a hub name unchanged, or that of a local folder with the absolute path, valid in any working directory.

    Args:
        name: ``hf:NAME`` or ``hf:NAME:CONFIGURATION``; an existing folder takes precedence over a data set of the same
            name, as in the package datasets.
    """
    path, config = _parse_name(name)
    folder = users_path(path)
    if not path or not folder.is_dir():
        return name
    return ":".join([HUB_PREFIX[:-1], str(folder.absolute()), *filter(None, [config])])


def is_place(data: str | None) -> bool:
    """Return whether data, as located, are a file or folder, also one of the package datasets (``hf:FOLDER``)."""
    return data is not None and Path(data.removeprefix(HUB_PREFIX)).is_absolute()


def _parse_name(name: str) -> tuple[str, str]:
    """Return the path and the configuration in a name; a folder whose own name has a colon has no configuration."""
    without_prefix = name[len(HUB_PREFIX) :]
    path, _, config = without_prefix.rpartition(":")
    return (without_prefix, "") if not path or users_path(without_prefix).is_dir() else (path, config)


def load_from_hub(name: str) -> Mapping[str, Any]:
    """Return the splits of a data set, each with columns; the package datasets downloads it where not cached.

    A single split in a folder, as its ``save_to_disk`` writes it, is the training split.

    Args:
        name: as :func:`located_on_hub` takes it.
    Raises:
        ConfigError: the package datasets is not installed.
        DataError: there is no such data set, or it cannot be downloaded or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"the data set {name} needs the package datasets: {to_install('hub')}") from error
    path, config = _parse_name(located_on_hub(name))
    try:
        if not config and any(users_path(path).joinpath(file).is_file() for file in SAVED_TO_DISK):
            saved = datasets.load_from_disk(path)
            return saved if isinstance(saved, Mapping) else {"train": saved}
        loaded: Mapping[str, Any] = datasets.load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"Hugging Face datasets cannot load {name[len(HUB_PREFIX) :]!r}: {error}") from error
    return loaded


@functools.lru_cache
def has_images(name: str) -> bool:
    """Return whether a data set of the hub has a column of images; cached, since the data are loaded for it."""
    features = (getattr(part, "features", None) or {} for part in load_from_hub(name).values())
    return any(type(feature).__name__ == "Image" for columns in features for feature in columns.values())
