"""What exports say about the units and classes of their samples, compared with a task that imports them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import CheckpointError, DataError
from mmdistill.exporters import PREPROCESSING
from mmdistill.files.saved import metadata
from mmdistill.importers import noted
from mmdistill.names import first_few
from mmdistill.store import read_json
from mmdistill.task import TaskInfo

UNITS = {
    "image": ("whitening", "mean", "std"),
    "graph": ("feature_mean", "feature_deviation"),
}
"""By domain, what an export says of the units of its samples; text exports name their space themselves."""
TOLERANCE = 0.05
"""Relative difference up to which numbers of units count as equal, such as moments of data that other samples left."""


def require_same_units(files: Sequence[Path], info: TaskInfo) -> None:
    """Refuse files of exports whose samples are in other units than the task's, or whose classes have another order.

    Exports say so in ``preprocessing.json`` beside the files, or in the metadata of safetensors. Classes of other names
    are noted.

    Raises:
        DataError: they are, or they have.
    """
    for path, said in _statements(files):
        units = {**info.preprocessing, **info.tensors}
        for name in UNITS.get(info.domain, ()) if said.keys() - {"class_names"} else ():
            if not _equal(said.get(name), units.get(name)):
                instead = "their whitening (--whiten)" if name == "whitening" else "the preprocessing that they had"
                raise DataError(
                    f"{path} says that the samples are in other units than those of {info.data} here: {name} is "
                    f"{_in_words(said.get(name))}, not {_in_words(units.get(name))}; choose {instead}"
                )
        names = said.get("class_names")
        if isinstance(names, list) and names and tuple(names) != info.class_names:
            if sorted(map(str, names)) == sorted(info.class_names):
                raise DataError(
                    f"{path} says that the set's classes are {first_few(names)}, and those of {info.data} here are in "
                    f"another order: {first_few(info.class_names)}; labels would be of other classes"
                )
            noted(
                f"the set's classes are called {first_few(names)} in {path.name}, and are taken in this order for "
                f"{first_few(info.class_names)}"
            )
            return


def _statements(files: Sequence[Path]) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return what is said of files, by the file that says it; files of other kinds and contents say nothing."""
    said: dict[Path, Mapping[str, Any]] = {}
    for path in files:
        if path.is_dir():  # pictures, in pixels, under the names of their classes
            continue
        with suppress(CheckpointError):  # another tool's file of that name, or none
            said.setdefault(path.parent / PREPROCESSING, read_json(path.parent / PREPROCESSING))
        with suppress(DataError, ValueError, RecursionError):  # damaged files are refused when their tensors are read
            words = metadata(path)
            own = json.loads(words.get("preprocessing", "{}"))
            names = json.loads(words.get("class_names", "[]"))
            said[path] = {**(own if isinstance(own, dict) else {}), "class_names": names}
    return [(path, content) for path, content in said.items() if "class_names" in content]


def _equal(left: Any, right: Any) -> bool:
    """Return whether two units are the same: numbers to the tolerance, other values exactly."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_equal(left[name], right[name]) for name in left)
    first, second = _numbers(left), _numbers(right)
    if first is None or second is None:
        return bool(left == right)
    return first.shape == second.shape and bool((first - second).norm() <= TOLERANCE * second.norm())


def _numbers(value: Any) -> Tensor | None:
    """Return a number or nested lists of them as a tensor; None for anything else."""
    with suppress(TypeError, ValueError, RuntimeError):
        return torch.as_tensor(value, dtype=torch.float64)
    return None


def _in_words(unit: Any) -> str:
    unit = unit.tolist() if isinstance(unit, Tensor) else unit
    if isinstance(unit, list | tuple):
        return f"({first_few([f'{number:.4g}' if isinstance(number, float) else str(number) for number in unit])})"
    if isinstance(unit, Mapping):
        return str(unit.get("kind", dict(unit)))
    return "none" if unit is None else str(unit)
