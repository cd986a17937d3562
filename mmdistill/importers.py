"""The interface of importers, which read sets of other tools, and the functions that they have in common."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.choices import Units
from mmdistill.errors import ConfigError, DataError, MmdistillWarning
from mmdistill.files.saved import from_array, read_saved
from mmdistill.labels import are_probabilities, classes_of_one_hot, from_one
from mmdistill.names import first_few
from mmdistill.parameterizations.base import index_bytes
from mmdistill.store import read_json
from mmdistill.task import Batch, Targets, Tensors, tensors_of

LABELS = ("labels", "label", "targets", "y", "soft_labels")
"""Words that identify labels among names."""
LEARNED = "learned.json"
"""The file with the values learned beside the samples, as exports write it."""


@dataclass(frozen=True)
class ImportSource:
    """A set as another tool left it, with its user's statements about it.

    Args:
        files: its files and folders.
        given: its values by name, instead of files.
        units: of images; None: inferred from their values.
        which: the index of the set to read, if a file holds several.
        logits: whether soft labels are logits, whose softmax is taken.
        inner_lr: the rate that was learned with the set, or to train on it.
    """

    files: Sequence[Path] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    units: Units | None = None
    which: int | None = None
    logits: bool = False
    inner_lr: float | None = None

    @property
    def samples(self) -> list[Path]:
        """The files without :data:`LEARNED`."""
        return [path for path in self.files if path.name != LEARNED]

    def values(self, read: Callable[[Path], Any] = read_saved) -> dict[str, Any]:
        """Return the given values, or those in the files, by name; a file's only value gets the file's name.

        Raises:
            DataError: a file that cannot be read, or two values of one name.
        """
        values = {str(name): value for name, value in self.given.items()}
        for path in self.samples:
            content = read(path)
            named = content if isinstance(content, Mapping) else {path.stem: content}
            file_values = {str(name): value for name, value in named.items()}
            if twice := sorted(values.keys() & file_values.keys()):
                raise DataError(f"{path} holds {twice[0]!r}, as another of the files does; give the files of one set")
            values |= file_values
        return values

    def learned(self) -> Tensors:
        """Return the values learned beside the samples, from ``learned.json`` and ``inner_lr``."""
        learned: Tensors = {}
        for path in set(self.files) - set(self.samples):
            learned |= {name: as_tensor(value, f"{path}: {name}") for name, value in read_json(path).items()}
        return learned if self.inner_lr is None else learned | {"inner_lr": torch.tensor(float(self.inner_lr))}


def float_bytes(batch: Batch, classes: int) -> int:
    """Return the bytes of a batch with floats in float32, integers as class indices, and booleans in a byte each."""
    parts = tensors_of(batch.inputs) + ([] if batch.targets is batch.inputs else tensors_of(batch.targets))
    floats = sum(4 * part.numel() for part in parts if part.is_floating_point())
    return floats + sum(_whole_bytes(part, classes) for part in parts if not part.is_floating_point())


def _whole_bytes(part: Tensor, classes: int) -> int:
    return part.numel() * (1 if part.dtype == torch.bool else index_bytes(max(classes, 1)))


class Imported(NamedTuple):
    """A set in the units of its task.

    Args:
        batch: the samples.
        stored_bytes: their bytes in storage, if known; None: those by the importer's ``size``.
        learned: the values learned beside them.
    """

    batch: Batch
    stored_bytes: int | None = None
    learned: Mapping[str, Tensor] = {}


class Importer(NamedTuple):
    """The import of sets of other tools for one kind of data.

    Args:
        read: maps a task and a source to the set in the task's units.
        task: the class of tasks that it supports.
        accepted: one line on the files that it reads.
        options: those of ``units``, ``which``, ``logits`` and ``inner_lr`` that it reads.
        named: returns the values by name of an object that is a whole set (a table, say); None for other objects.
        size: returns the bytes in storage of a batch in the task's units, given the number of classes.
    """

    read: Callable[[Any, ImportSource], Imported]
    task: type
    accepted: str
    options: tuple[str, ...] = ()
    named: Callable[[Any], Mapping[str, Any] | None] = lambda value: None
    size: Callable[[Batch, int], int] = float_bytes


def noted(text: str) -> None:
    """Warn the user of a set; the command line prints the warning as a note."""
    warnings.warn(text, MmdistillWarning, stacklevel=3)


def as_tensor(value: object, what: str) -> Tensor:
    """Convert a tensor, an array, a matrix of scipy's or numbers to a dense, detached tensor on the CPU.

    Raises:
        DataError: something else.
    """
    if sparse.issparse(value):
        matrix: Any = value
        value = matrix.toarray()
    if isinstance(value, np.ndarray):
        value = from_array(value, what)
    if isinstance(value, int | float | list | tuple | np.number):
        with suppress(TypeError, ValueError, RuntimeError):  # values that stay unconverted are refused below
            value = torch.as_tensor(value)
    if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized or value.is_meta:
        raise DataError(f"{what} is a {type(value).__name__}, and a tensor of numbers is expected")
    value = value.detach().cpu()
    return value if value.layout == torch.strided else value.to_dense()


def by_role(
    values: Mapping[str, Any], roles: Mapping[str, Sequence[str]], needed: Sequence[str], others: Sequence[str] = ()
) -> Tensors:
    """Return tensors by their role, see :func:`names_by_role`; a note lists values without one.

    Args:
        values: by name.
        roles: for each role the words that identify it, the surest first.
        needed: the required roles.
        others: words of names without a role that contain words of one.
    Raises:
        DataError: a role that two names fit, or a required one that none fits; a value that is not a tensor.
    """
    names = names_by_role(values, roles, others)
    if missing := [role for role in needed if role not in names]:
        words = " or ".join(roles[missing[0]][:3])
        raise DataError(
            f"the set has no {missing[0]}: nothing in it, or no file, is called {words} (found: "
            f"{first_few(list(values)) or 'nothing'})"
        )
    if unread := [name for name in values if name not in names.values()]:
        noted(f"not read: {first_few(unread)}")
    return {role: as_tensor(values[name], name) for role, name in names.items()}


def names_by_role(
    candidates: Iterable[str], roles: Mapping[str, Sequence[str]], others: Sequence[str] = ()
) -> dict[str, str]:
    """Match names to roles: by a word that is the whole name, else is part of it, else is a letter at one of its ends.

    ``images_best``, ``edge_index_cora``, ``x_cora`` and ``Cora_0.25_y_s`` (s: synthetic) match the words images,
    edge_index, x and y. A longer word takes precedence over one within it (soft_labels over labels), and no name gets
    two roles.

    Raises:
        DataError: a role that two names fit.
    """
    known = {word for words in (*roles.values(), others) for word in words}
    words_in = {name: _longest(name, known) for name in candidates}
    names: dict[str, str] = {}
    ways: tuple[Callable[[str, str], bool], ...] = (
        lambda name, word: name == word,
        lambda name, word: word in words_in[name],
        lambda name, word: word in _ends(name),
    )
    for fits in ways:
        for role in [role for role in roles if role not in names]:
            unmatched = [name for name in words_in if name not in names.values()]
            matches = ([name for name in unmatched if fits(name, word)] for word in roles[role])
            fitting = next(filter(None, matches), [])
            if len(fitting) > 1:
                raise DataError(f"{role} are in {' and in '.join(fitting[:2])}; give the files of one set")
            if fitting:
                names[role] = fitting[0]
    return names


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case."""
    return re.findall(r"[a-z]+", name.lower())


def _longest(name: str, known: Iterable[str]) -> set[str]:
    """Return the known terms in a name, of more than a letter: those of the most words (``soft_labels`` has two)."""
    words = _words(name)
    terms = [(term, _words(term)) for term in known if len(term) > 1]
    sizes = {term: len(own) for term, own in terms if own in (words[at : at + len(own)] for at in range(len(words)))}
    return {term for term, size in sizes.items() if size == max(sizes.values())}


def _ends(name: str) -> set[str]:
    """Return the single letters at the beginning or the end of a name, or before an s at its end."""
    words = _words(name)
    words = words[:-1] if words[-1:] == ["s"] else words
    return {word for word in (*words[:1], *words[-1:]) if len(word) == 1}


def class_targets(labels: Tensor, samples: int, class_names: Sequence[str], logits: bool = False) -> Tensor:
    """Return labels as class indices, or as soft labels of the classes.

    Whole numbers in floats and one-hot rows become class indices; a column counts as a vector. If the names of classes
    are other numbers than their indices (labels with gaps), labels may be these numbers, unless all are valid indices.

    Shapes:
        labels ``(n,)``, ``(n, 1)`` or ``(n, C)``; returns ``(n,)`` int64 or ``(n, C)`` float32.
    Raises:
        DataError: no sample, another length, indices out of range, or NaN, infinite or fractional labels.
        ConfigError: class indices as logits.
    """
    if not samples:
        raise DataError("the set holds no sample")
    count = len(class_names)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape not in ((samples,), (samples, count)):
        raise DataError(
            f"labels are a class index for each of {samples} samples, or a row of {count} numbers, one for each class; "
            f"got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() and not bool(labels.isfinite().all()):
        raise DataError("labels hold NaN or infinite values")
    if labels.ndim == 2:
        if logits and are_probabilities(labels.float()):
            noted("labels are probabilities, and their softmax is taken as if they were logits; if not, leave that out")
        soft = labels.float().softmax(1) if logits else labels.float()
        if (one_hot := classes_of_one_hot(soft)) is not None:
            return one_hot
        if not are_probabilities(soft):
            noted("soft labels are no probabilities, and judges regress them; of logits say so (--logits, logits=True)")
        return soft
    if logits:
        raise ConfigError("labels are class indices and no logits; leave out that they are (--logits, logits=True)")
    classes = labels.long()
    if not torch.equal(classes.to(labels), labels):
        raise DataError("labels are class indices as whole numbers, and some of these are none")
    classes = _by_number(classes, class_names)
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= count:
        hint = f": {from_one(high)}" if (low, high) == (1, count) else ""
        raise DataError(f"labels are class indices from 0 to {count - 1}, got {low} to {high}{hint}")
    if absent := [name for index, name in enumerate(class_names) if not bool((classes == index).any())]:
        noted(f"the set has no sample of {len(absent)} of {count} classes: {first_few(absent)}")
    return classes


def _by_number(labels: Tensor, class_names: Sequence[str]) -> Tensor:
    """Return class indices for labels that are the numbers in classes' names; other labels unchanged."""
    if not all(name.isdecimal() and len(name) < 18 for name in class_names):
        return labels
    numbers = torch.tensor([int(name) for name in class_names])
    matches = labels[:, None] == numbers
    if torch.equal(numbers, torch.arange(len(numbers))) or not bool(matches.any(1).all()):
        return labels
    if bool((labels < len(numbers)).all()):
        noted(f"labels are read as class indices from 0; those called 0 and 1 are {first_few(class_names[:2])}")
        return labels
    return matches.int().argmax(1)


def weighed(inputs: Tensor | Tensors, targets: Targets, weight: Tensor | None = None) -> Batch:
    """Return a batch with the given weights, or with weight 1 for each sample."""
    count = len(tensors_of(targets)[0])
    return Batch(inputs, targets, torch.ones(count) if weight is None else weight.float())
