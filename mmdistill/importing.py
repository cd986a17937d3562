"""Sets that other tools made, as sets that are judged, reported, compared and exported like one's own."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from mmdistill.budget import parse_bytes
from mmdistill.checks import is_of, require_kind
from mmdistill.choices import Units
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError, DataError, UnsupportedError, require_choice
from mmdistill.execution.isolation import isolated
from mmdistill.exports import LISTING, PREPROCESSING
from mmdistill.imports import Imported, ImportSource, class_targets, float_bytes, noted
from mmdistill.labels import FixedLabels
from mmdistill.names import first_few
from mmdistill.registry import get_domain
from mmdistill.runtime import checked_seed
from mmdistill.samples import checked_samples, require_forms
from mmdistill.store import detached
from mmdistill.task import Batch, Task, require_task

IMPORTED = "imported"
"""What the method of a set is called whose user does not say it."""
IN_PYTHON = "values in Python"
"""Where a set comes from that is in no file."""
DESCRIBING = (LISTING, PREPROCESSING)
"""What exports write that says how a set was made and used, and is no part of it."""


@isolated
def import_set(
    task: Task,
    source: str | Path | Sequence[str | Path] | Mapping[str, Any] | Batch | Any,
    *,
    name: str = IMPORTED,
    units: Units | None = None,
    which: int | None = None,
    logits: bool = False,
    inner_lr: float | None = None,
    stored_bytes: str | int | None = None,
    seed: int = 0,
) -> DistilledSet:
    """Return a set that another tool made as one that is judged, reported, compared and exported like one's own.

    What is not known of it stays empty: its steps, its settings and its cost.

    Args:
        task: whose data the set was distilled from.
        source: the set's file, files or folder; or its values by name, such as ``{"images": images, "labels":
            labels}``; a torch-geometric ``Data``, of sets of graphs a list of them; a matrix or a table of users; or
            samples in the task's units as a batch.
        name: what the set's method is called in reports and tables.
        units: of images: ``normalised``, as the task's networks read them (whitened where it whitens), or ``pixels``.
            Bytes are pixels; floats are normalised where some lie outside the range of pixels, and must be told apart
            where none does.
        which: of a file with several sets, such as DC's, the number of the one that is meant, from 0.
        logits: soft labels are logits, whose softmax is taken (DATM's are).
        inner_lr: the rate that was learned with the images, at which judges train on them.
        stored_bytes: what the set takes in storage, such as ``"100KB"``; by default what its tensors take in float32,
            pixels that are bytes in bytes.
        seed: by which runs of one name and budget are told apart as repetitions.

    Returns:
        The set. Its budget is the number of samples of each class, on average and rounded up where classes differ (of
        graphs, all nodes; of interactions, all users), by which baselines are chosen at equal count.

    Raises:
        ConfigError: an option that cannot be, or that such data do not have.
        UnsupportedError: a task of one's own, into whose units samples are brought as a batch.
        DataError: files that are missing, damaged, would run code or hold no such set; labels of other classes, NaN,
            a learned rate that is no number above 0.
        ShapeError: samples of another shape than the task's.
        CheckpointError: a damaged ``learned.json``.
    """
    require_task(task)
    require_kind(str, name=name)
    require_kind(bool, logits=logits)
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"a set's name is a text of some letters, got {name!r}")
    if units is not None:
        require_choice("units", units, get_args(Units))
    if which is not None and not (is_of(which, Integral) and which >= 0):
        raise ConfigError(f"which is a whole number from 0 on, got {which!r}")
    if inner_lr is not None and not (is_of(inner_lr, Real) and 0 < inner_lr < math.inf):
        raise ConfigError(f"inner_lr is a number above 0, got {inner_lr!r}")
    size = None if stored_bytes is None else parse_bytes(stored_bytes)
    options = {"units": units, "which": which, "logits": logits or None, "inner_lr": inner_lr}
    given = {option: value for option, value in options.items() if value is not None}
    found, origin = _read(task, source, given)
    _require_learned(found.learned)
    batch = checked_samples(found.batch)
    info = task.describe()
    require_forms(batch, info.forms)
    classes = len(info.class_names)
    return DistilledSet(
        detached(batch),
        info,
        name.strip(),
        _budget(batch, info.budget, classes),
        size or found.stored_bytes or float_bytes(batch, classes),
        learned=dict(found.learned),
        seed=checked_seed(seed),
        label=FixedLabels(batch.targets).kind if classes and isinstance(batch.targets, Tensor) else "",
        origin=origin,
    )


def _read(task: Task, source: Any, given: Mapping[str, Any]) -> tuple[Imported, str]:
    """Return a set in the task's units, and where it comes from in words."""
    info = task.describe()
    if isinstance(source, Batch):
        if given:
            raise ConfigError(f"a batch is in the task's units already; leave {next(iter(given))} out")
        source = checked_samples(source)
        if info.class_names and isinstance(source.targets, Tensor):
            source = source._replace(targets=class_targets(source.targets, len(source.weight), info.class_names))
        return Imported(source), IN_PYTHON
    domain = get_domain(info.domain)
    importer = domain.imports
    if importer is None or not isinstance(task, importer.task):
        raise UnsupportedError(
            f"a {type(task).__name__} reads no sets of other tools; give a Batch in the task's units"
        )
    if others := [option for option in given if option not in importer.options]:
        raise ConfigError(f"{others[0]} is not for {domain.name} data; leave it out")
    if isinstance(source, str | Path):
        source = [source]
    values = source if isinstance(source, Mapping) else importer.named(source)
    if values is not None:
        return importer.read(task, ImportSource(given=values, **given)), IN_PYTHON
    if isinstance(source, list | tuple) and any(isinstance(one, str) and not one for one in source):
        raise ConfigError("the name of a file is empty; the current folder is '.'")
    if not isinstance(source, Sequence) or not source or not all(isinstance(one, str | Path) for one in source):
        raise ConfigError(
            f"a set is read from files, values by name or a Batch, got {type(source).__name__}; such data are: "
            f"{importer.accepted}"
        )
    files = _files([Path(one) for one in source])
    return importer.read(task, ImportSource(files, **given)), first_few([path.name for path in files])


def _files(given: Sequence[Path]) -> list[Path]:
    """Return files and folders of folders, in place of folders of files and of exports what lies in them.

    What exports say of a set, and hidden files, are left out.

    Raises:
        DataError: one that is not there.
    """
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise DataError(f"there is no file or folder {path}")
        within = sorted(one for one in path.iterdir() if not one.name.startswith(".")) if path.is_dir() else []
        if within and (path / LISTING in within or not any(one.is_dir() for one in within)):
            found += _files(within)
        elif path.name not in DESCRIBING:
            found.append(path)
    return found


def _require_learned(learned: Mapping[str, Tensor]) -> None:
    """Refuse what cannot have been learned with a set.

    Raises:
        DataError: no number, NaN or infinite ones, or a rate that is not above 0.
    """
    for name, tensor in learned.items():
        rate = name == "inner_lr"
        values = tensor.double().flatten()
        if not len(values) or not bool(values.isfinite().all()) or (rate and not bool((values > 0).all())):
            raise DataError(
                f"{name}, which was learned with the set, should be finite{' and above 0' if rate else ''}, got "
                f"{first_few(values.tolist()) or 'nothing'}"
            )


def _budget(batch: Batch, unit: str, classes: int) -> int:
    """Return a set's size in the task's unit; of uneven classes what as many real samples at least have."""
    count = len(batch.weight)
    if unit == "users" or not classes:
        return count
    if unit == "nodes":
        if count < classes:
            raise DataError(f"the set has {count} nodes for {classes} classes; at least one of each is compared")
        return count
    each, targets = -(-count // classes), batch.targets
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        uneven = bool((targets.bincount(minlength=classes) != each).any())
    else:  # whose classes nothing tells
        uneven = bool(count % classes)
    if uneven:
        noted(f"classes differ in size, {count} samples in all: baselines at equal count have {each} of each class")
    return each
