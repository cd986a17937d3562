"""What reads sets that other tools made, and what every kind of data reads of them alike."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdistill.choices import Units
from mmdistill.errors import DataError, MmdistillWarning
from mmdistill.files.saved import from_array, read_saved
from mmdistill.labels import are_probabilities, from_one, one_hot
from mmdistill.names import first_few
from mmdistill.parameterizations.base import index_bytes
from mmdistill.store import read_json
from mmdistill.task import Batch, Targets, Tensors, tensors_of

LABELS = ("labels", "label", "targets", "y", "soft_labels")
"""Words by which the names of labels are known."""
LEARNED = "learned.json"
"""The file of what was learned beside the samples, as exports write it."""


@dataclass(frozen=True)
class ImportSource:
    """A set as it came, and what its user says of it.

    Args:
        files: that it is in, folders among them.
        given: values by name in their place.
        units: what images count in; None: what can be told of them.
        which: of several sets in one file, the number of the one that is meant.
        logits: whether soft labels are logits, whose softmax is taken.
        inner_lr: the rate that was learned with the set, or that it is to be trained at.
    """

    files: Sequence[Path] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    units: Units | None = None
    which: int | None = None
    logits: bool = False
    inner_lr: float | None = None

    @property
    def samples(self) -> list[Path]:
        """The files without that of what was learned beside the samples."""
        return [path for path in self.files if path.name != LEARNED]

    def values(self, read: Callable[[Path], Any] = read_saved) -> dict[str, Any]:
        """Return what was given, or what the files hold, by name; what stands alone in a file has the file's name.

        Raises:
            DataError: a file that cannot be read, or a name that comes twice.
        """
        found = {str(name): value for name, value in self.given.items()}
        for path in self.samples:
            held = read(path)
            own = {str(name): value for name, value in held.items()} if isinstance(held, Mapping) else {path.stem: held}
            if twice := sorted(found.keys() & own.keys()):
                raise DataError(f"{path} holds {twice[0]!r}, as another of the files does; give the files of one set")
            found |= own
        return found

    def learned(self) -> Tensors:
        """Return what was learned beside the samples, as ``learned.json`` has it."""
        found: Tensors = {}
        for path in set(self.files) - set(self.samples):
            found |= {name: as_tensor(value, f"{path}: {name}") for name, value in read_json(path).items()}
        return found if self.inner_lr is None else found | {"inner_lr": torch.tensor(float(self.inner_lr))}


class Imported(NamedTuple):
    """A set in the units of its task.

    Args:
        batch: the samples.
        stored_bytes: what they take in storage, as far as that can be told; None: in float32.
        learned: what was learned beside them.
    """

    batch: Batch
    stored_bytes: int | None = None
    learned: Mapping[str, Tensor] = {}


class Importer(NamedTuple):
    """How a kind of data reads sets of other tools.

    Args:
        read: returns the set of a source in the units of a task, which is the first argument.
        task: the class of tasks that it knows.
        accepted: one line on the files that are read.
        options: which of ``units``, ``which``, ``logits`` and ``inner_lr`` mean something to it.
        named: returns by name what a value holds that is a set without names; None: the value is none.
    """

    read: Callable[[Any, ImportSource], Imported]
    task: type
    accepted: str
    options: tuple[str, ...] = ()
    named: Callable[[Any], Mapping[str, Any] | None] = lambda value: None


def noted(text: str) -> None:
    """Warn of what a set's user should know; the command line prints it as a note."""
    warnings.warn(text, MmdistillWarning, stacklevel=3)


def as_tensor(value: object, what: str) -> Tensor:
    """Return a tensor, an array or numbers as a dense tensor on the CPU that nothing is recorded of.

    Raises:
        DataError: something else.
    """
    if isinstance(value, np.ndarray):
        value = from_array(value, what)
    if isinstance(value, int | float | list | tuple | np.number):
        with suppress(TypeError, ValueError, RuntimeError):  # what is none is refused below
            value = torch.as_tensor(value)
    if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized or value.is_meta:
        raise DataError(f"{what} is a {type(value).__name__}, and a tensor of numbers is expected")
    value = value.detach().cpu()
    return value if value.layout == torch.strided else value.to_dense()


def by_role(
    found: Mapping[str, Any], roles: Mapping[str, Sequence[str]], needed: Sequence[str], others: Sequence[str] = ()
) -> Tensors:
    """Return tensors by what they are, as :func:`names_by_role` has it. Values that no role has are noted.

    Args:
        found: values by name.
        roles: for each role the words that it is known by, the surest first.
        needed: the roles that must be there.
        others: words of names that have no role, though some of it has.
    Raises:
        DataError: a role that two names fit, or that none fits; a value that is no tensor.
    """
    names = names_by_role(found, roles, others)
    if missing := [role for role in needed if role not in names]:
        words = " or ".join(roles[missing[0]][:3])
        raise DataError(
            f"the set has no {missing[0]}: nothing in it, or no file, is called {words} (found: "
            f"{first_few(list(found)) or 'nothing'})"
        )
    if unread := [name for name in found if name not in names.values()]:
        noted(f"not read: {first_few(unread)}")
    return {role: as_tensor(found[name], name) for role, name in names.items()}


def names_by_role(
    found: Iterable[str], roles: Mapping[str, Sequence[str]], others: Sequence[str] = ()
) -> dict[str, str]:
    """Return by role the name that is one of its words, else has one in it, else has a letter at one of its ends.

    ``images_best``, ``edge_index_cora``, ``x_cora`` and ``Cora_0.25_y_s`` (s: synthetic) are known by the words images,
    edge_index, x and y. Of words within others, as labels in soft_labels, the longer counts, and no name has two roles.

    Raises:
        DataError: a role that two names fit.
    """
    known = {word for words in (*roles.values(), others) for word in words}
    own = {name: _longest(name, known) for name in found}
    names: dict[str, str] = {}
    ways: tuple[Callable[[str, str], bool], ...] = (
        lambda name, word: name == word,
        lambda name, word: word in own[name],
        lambda name, word: word in _ends(name),
    )
    for fits in ways:
        for role in [role for role in roles if role not in names]:
            left = [name for name in own if name not in names.values()]
            fitting = next(filter(None, ([name for name in left if fits(name, word)] for word in roles[role])), [])
            if len(fitting) > 1:
                raise DataError(f"{role} are in {' and in '.join(fitting[:2])}; give the files of one set")
            if fitting:
                names[role] = fitting[0]
    return names


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case."""
    return re.findall(r"[a-z]+", name.lower())


def _longest(name: str, known: Iterable[str]) -> set[str]:
    """Return which of some words of more than a letter a name has, those of most words where these have several."""
    own = _words(name)
    runs = [(word, _words(word)) for word in known if len(word) > 1]
    sizes = {word: len(run) for word, run in runs if run in (own[at : at + len(run)] for at in range(len(own)))}
    return {word for word, size in sizes.items() if size == max(sizes.values())}


def _ends(name: str) -> set[str]:
    """Return the letters that stand at the beginning or the end of a name, or before an s at its end."""
    own = _words(name)
    own = own[:-1] if own[-1:] == ["s"] else own
    return {word for word in (*own[:1], *own[-1:]) if len(word) == 1}


def class_targets(labels: Tensor, samples: int, class_names: Sequence[str], logits: bool = False) -> Tensor:
    """Return labels of so many samples as class indices, or as soft labels of the classes.

    Whole numbers in floats and one-hot rows become class indices; a column is read as such. Of classes that are called
    by other numbers than their indices, as labels with gaps are, these numbers are read too where no index fits.

    Shapes:
        labels ``(n,)``, ``(n, 1)`` or ``(n, C)``; returns ``(n,)`` int64 or ``(n, C)`` float32.
    Raises:
        DataError: no sample, other lengths, indices of classes that there are not, or numbers that are none.
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
        soft = labels.float().softmax(1) if logits else labels.float()
        largest = soft.argmax(1)
        if torch.equal(soft, one_hot(largest, count)):
            return largest
        if not are_probabilities(soft):
            noted("soft labels are no probabilities, and judges regress them; of logits say so (--logits, logits=True)")
        return soft
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
    """Return class indices of labels that are the numbers by which classes are called; others as they are."""
    if not all(name.isdecimal() and len(name) < 18 for name in class_names):
        return labels
    numbers = torch.tensor([int(name) for name in class_names])
    found = labels[:, None] == numbers
    if torch.equal(numbers, torch.arange(len(numbers))) or not bool(found.any(1).all()):
        return labels
    if bool((labels < len(numbers)).all()):
        noted(f"labels are read as class indices from 0; those called 0 and 1 are {first_few(class_names[:2])}")
        return labels
    return found.int().argmax(1)


def weighed(inputs: Tensor | Tensors, targets: Targets, weight: Tensor | None = None) -> Batch:
    """Return samples that weigh alike, unless weights are given."""
    count = len(tensors_of(targets)[0])
    return Batch(inputs, targets, torch.ones(count) if weight is None else weight.float())


def float_bytes(batch: Batch, classes: int) -> int:
    """Return the bytes of samples in float32, with those of class indices, and a byte for each of other numbers."""
    parts = tensors_of(batch.inputs) + ([] if batch.targets is batch.inputs else tensors_of(batch.targets))
    floats = sum(4 * part.numel() for part in parts if part.is_floating_point())
    return floats + sum(_whole_bytes(part, classes) for part in parts if not part.is_floating_point())


def _whole_bytes(part: Tensor, classes: int) -> int:
    return part.numel() * (1 if part.dtype == torch.bool else index_bytes(max(classes, 1)))
