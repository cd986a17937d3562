"""Import of sets of other tools, which are then judged, reported, compared and exported like one's own."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from mmdistill.budget import parse_bytes
from mmdistill.checks import is_of, require_kind
from mmdistill.choices import Units
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError, UnsupportedError, require_choice
from mmdistill.execution.isolation import in_turn, isolated
from mmdistill.exported_units import require_same_units
from mmdistill.exporters import LISTING, PREPROCESSING
from mmdistill.importers import LEARNED, Imported, ImportSource, class_targets, float_bytes, noted
from mmdistill.labels import FixedLabels
from mmdistill.names import first_few
from mmdistill.networks.minibatches import useless_rates
from mmdistill.registry import DOMAIN_PACKAGES, get_domain
from mmdistill.runs.listings import written_files
from mmdistill.runtime import checked_seed
from mmdistill.samples import checked_samples, require_forms
from mmdistill.store import detached
from mmdistill.task import Batch, Task, require_task

DEFAULT_NAME = "imported"
"""The default name of an imported set's method."""
IN_PYTHON = "values in Python"
"""The origin of a set that comes from no file."""
DESCRIBING = (LISTING, PREPROCESSING)
"""Files of exports that describe a set and are not part of it."""


@in_turn
@isolated
def import_set(
    task: Task,
    source: str | Path | Sequence[str | Path] | Mapping[str, Any] | Batch | Any,
    *,
    name: str = DEFAULT_NAME,
    units: Units | None = None,
    which: int | None = None,
    logits: bool = False,
    inner_lr: float | None = None,
    stored_bytes: str | int | None = None,
    seed: int = 0,
) -> DistilledSet:
    """Import a set of another tool, to judge, report, compare and export it like one's own.

    Unknown facts stay empty: its steps, its settings and its cost.

    Args:
        task: the task whose data the set was distilled from.
        source: the set's file, files or folder; or its values by name, such as ``{"images": images, "labels":
            labels}``; of images also a pair ``(images, labels)`` or a data set of such (a ``Subset``, say), read as
            :func:`~mmdistill.image_task` reads them; a torch-geometric ``Data``, of sets of graphs a list of them; a
            matrix or a table of users; or samples in the task's units as a batch, such as chosen training samples of
            any task, ``task.select(torch.tensor(indices))``.
        name: the name of the set's method in reports and tables.
        units: of images: ``normalised``, as the task's networks read them (whitened, if the task whitens), or
            ``pixels``. Bytes are pixels. Floats are normalised if some lie outside the range of pixels; if none does,
            the units are needed.
        which: the index of the set to read, from 0, in a file with several, such as DC's.
        logits: whether soft labels are logits (like DATM's), whose softmax is taken.
        inner_lr: the rate that was learned with the images, at which judges train on them.
        stored_bytes: the set's bytes in storage, such as ``"100KB"``; by default those of its tensors in float32, with
            pixels of bytes in bytes, symmetric weights of edges once, edges of sets of graphs as bits without padding,
            and users of zeros and ones as the places of their items.
        seed: tells runs of one name and budget apart as repetitions.

    Returns:
        The set. Its budget, which sets the count of baselines, is the number of samples of each class, on average and
        rounded up if classes differ (for graphs, all nodes; for interactions, all users).

    Raises:
        ConfigError: an invalid option, or one that such data do not have.
        UnsupportedError: a task of one's own, which imports only batches in its units.
        DataError: files that are missing, damaged, would run code or hold no such set; labels of other classes, NaN; an
            export in other units than the task's, or with its classes in another order.
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
    imported, origin = _read(task, source, given)
    learned = _usable_learned(imported.learned)
    batch = checked_samples(imported.batch)
    info = task.describe()
    require_forms(batch, info.forms)
    classes = len(info.class_names)
    return DistilledSet(
        detached(batch),
        info,
        name.strip(),
        _budget(batch, info.budget, classes),
        size or imported.stored_bytes or _size_of(task, info.domain)(batch, classes),
        learned=learned,
        seed=checked_seed(seed),
        label=FixedLabels(batch.targets).kind if classes and isinstance(batch.targets, Tensor) else "",
        origin=origin,
    )


def _read(task: Task, source: Any, given: Mapping[str, Any]) -> tuple[Imported, str]:
    """Read a set in the task's units; return it with its origin in words."""
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
    if unread := [option for option in given if option not in importer.options]:
        raise ConfigError(f"{unread[0]} is not for {domain.name} data; leave it out")
    if isinstance(source, str | Path):
        source = [source]
    values = source if isinstance(source, Mapping) else importer.named(source)
    if values is not None:
        return importer.read(task, ImportSource(given=values, **given)), IN_PYTHON
    if isinstance(source, list | tuple) and any(isinstance(entry, str) and not entry for entry in source):
        raise ConfigError("the name of a file is empty; the current folder is '.'")
    if not isinstance(source, Sequence) or not source or not all(isinstance(entry, str | Path) for entry in source):
        raise ConfigError(
            f"a set is read from files, values by name or a Batch, got {type(source).__name__}; such data are: "
            f"{importer.accepted}; chosen training samples are task.select(torch.tensor(indices))"
        )
    paths = [Path(entry) for entry in source]
    files = _files(paths)
    files += [learned for learned in map(_learned_beside, paths) if learned is not None and learned not in files]
    require_same_units(files, info)
    return importer.read(task, ImportSource(files, **given)), first_few([path.name for path in files])


def _size_of(task: Task, domain: str) -> Callable[[Batch, int], int]:
    """Return the function that counts the bytes of a batch of a task's data, given the number of classes."""
    importer = get_domain(domain).imports if domain in DOMAIN_PACKAGES else None
    return importer.size if importer is not None and isinstance(task, importer.task) else float_bytes


def _files(given: Sequence[Path]) -> list[Path]:
    """Replace folders of exports, and folders without subfolders, by their files; keep other paths.

    Files that describe an export, and hidden files, are left out.

    Raises:
        DataError: a path that does not exist.
    """
    paths: list[Path] = []
    for path in given:
        if not path.exists():
            raise DataError(f"there is no file or folder {path}")
        content = sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []
        if content and (path / LISTING in content or not any(entry.is_dir() for entry in content)):
            paths += _files(content)
        elif path.name not in DESCRIBING:
            paths.append(path)
    return paths


def _learned_beside(folder: Path) -> Path | None:
    """Return the ``learned.json`` beside a folder of an export that lists both; None elsewhere."""
    folder = folder.absolute()
    beside, exported = folder.parent / LEARNED, list[str]()
    with suppress(CheckpointError):  # another tool's file of that name
        exported = written_files(folder.parent / LISTING)
    within = folder.is_dir() and any(name.startswith(f"{folder.name}/") for name in exported)
    return beside if within and beside.name in exported else None


def _usable_learned(learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the learned values without rates that cannot train, which judges leave out too.

    Raises:
        DataError: an empty tensor, NaN or infinite values.
    """
    for name, tensor in learned.items():
        values = tensor.double().flatten()
        if not len(values) or not bool(values.isfinite().all()):
            raise DataError(
                f"{name}, which was learned with the set, should be finite, got "
                f"{first_few(values.tolist()) or 'nothing'}"
            )
    useless = useless_rates(learned)
    if useless:
        noted(f"the learned rate {useless[0]:.3g} cannot train and is left out: judges take their protocol's")
    return {name: tensor for name, tensor in learned.items() if not (useless and name == "inner_lr")}


def _budget(batch: Batch, unit: str, classes: int) -> int:
    """Return a set's size in the task's unit; for uneven classes, the mean size rounded up, with a note."""
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
    else:  # the classes of soft labels are not known
        uneven = bool(count % classes)
    if uneven:
        noted(f"classes differ in size, {count} samples in all: baselines at equal count have {each} of each class")
    return each
