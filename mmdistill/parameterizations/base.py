"""The Parameterization contract: stored codes, decoded into samples (Eq. 26)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmdistill.errors import ShapeError, UnsupportedError
from mmdistill.labels import Labels, TeacherLabels
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, Tensors, map_inputs, num_samples, stack_classes, take

FeatureMap = Callable[[Inputs], tuple[Tensor, ...]]


class Chosen(NamedTuple):
    """Some samples of each class.

    Shapes:
        rows ``(C, n)``, their positions among all decoded samples; present ``(C, n)``, 0 where a class has fewer.
    """

    rows: Tensor
    present: Tensor

    def by_class(self, batch: Batch) -> ClassBatch:
        """Return a batch of the chosen samples class by class."""
        inputs, targets, weight = (map_inputs(lambda t: t.unflatten(0, self.rows.shape), part) for part in batch)
        assert isinstance(weight, Tensor)
        return ClassBatch(Batch(inputs, targets, weight * self.present.to(weight)), Dims(0, 0))


class Parameterization(nn.Module, ABC):
    """Codes and a decoder: S = {g_phi(z)} (Eq. 26).

    What is stored are all parameters and persistent buffers of the module, labels included. Optimizer groups are the
    parameters of ``labels`` (group ``labels``), of an attribute ``decoder`` (group ``decoder``), and all others
    (group ``codes``); parameters that require no gradient are stored, but not learned.

    Args:
        labels: the targets of the decoded samples; parameterizations whose samples are their own targets give
            :class:`~mmdistill.labels.NoLabels`.
        classes: ``(M,)`` the class that each decoded sample stands for, or None in tasks without classes.
        num_classes: C, or None.
    """

    divisible = True
    """Whether a step may take some samples without the others."""
    separable = False
    """Whether :meth:`part` decodes the samples that are asked for alone, so that it takes less than all do."""
    redraws = False
    """Whether each decoding draws other samples (random crops, say)."""
    styles = 1
    """Samples that as many decoders make of each code, one after the other."""
    even = True
    """Whether a sample takes as many bytes whichever real one it starts from."""
    _table: Tensor
    _present: Tensor

    def __init__(self, labels: Labels, classes: Tensor | None, num_classes: int | None) -> None:
        super().__init__()
        self.labels = labels
        self.num_classes = num_classes
        self.classes = classes
        if classes is not None and num_classes is not None:
            table, present = class_table(classes, num_classes)
            self.register_buffer("_table", table, persistent=False)
            self.register_buffer("_present", present, persistent=False)

    @abstractmethod
    def forward(self, draws: Draws) -> Batch:
        """Decode all samples; draws serve stochastic decoders."""

    def finished(self, draws: Draws) -> Batch:
        """Decode all samples for use, when nothing is learned any more; as in learning, unless a decoder says more."""
        decoded: Batch = self(draws)
        return decoded

    @property
    def largest_class(self) -> int:
        """How many samples the largest class has; 0 in tasks without classes."""
        return 0 if self.classes is None else self._table.shape[1]

    def choose(self, draws: Draws, most: int) -> Chosen:
        """Draw at most so many samples of each class, without replacement."""
        order = draws.to(self._table.device).uniform(*self._table.shape) - self._present  # those present come first
        columns = order.argsort(1)[:, :most]
        return Chosen(self._table.gather(1, columns), self._present.gather(1, columns))

    def drawn(self, draws: Draws, most: int | None) -> Tensor | None:
        """Draw the rows of so many samples, without replacement; None where all of them are to be decoded.

        Args:
            draws: the key.
            most: samples that a step reads at most; None: all.
        """
        count = 0 if self.classes is None else len(self.classes)
        if not self.separable or most is None or most >= count or isinstance(self.labels, TeacherLabels):
            return None
        return draws.to(self._table.device).permutation(count)[:most]

    def part(self, rows: Tensor, draws: Draws) -> Batch:
        """Decode some samples; here all are decoded, and some taken."""
        return take(self(draws), rows)

    def class_batches(self, batch: Batch) -> ClassBatch:
        """Return a decoded batch class by class; graphs override this to share their inputs."""
        return stack_classes(batch, self._table, self._present.to(batch.weight))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the learned parameters by optimizer group; empty groups are left out."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            head = name.split(".")[0]
            found.setdefault(head if head in ("labels", "decoder") else "codes", []).append(parameter)
        return found

    def penalty(self, features: FeatureMap, decoded: Inputs, chosen: Chosen | None = None) -> Tensor | None:
        """Return a scalar added to the objective, or None.

        Args:
            features: the step's network: from inputs to one ``(n, d_l)`` tensor per layer, the embedding last.
            decoded: the step's samples, before they are augmented.
            chosen: which these are; None: all.
        """
        return None

    def project(self) -> None:
        """Bring the codes back into their allowed set after a step (clamping, say)."""

    def plain_values(self) -> Mapping[str, object] | None:
        """Return the plain values that, beside what is stored, :meth:`rebuilt` needs; None where nothing can."""
        return None

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "Parameterization":
        """Return what decodes as the one that was stored, for use.

        Args:
            plain: its :meth:`plain_values`.
            tensors: what it stored, labels aside, by name.
            labels: its labels.
            classes: ``(M,)`` the class that each decoded sample stands for.
            num_classes: C.
        Raises:
            UnsupportedError: the class cannot be rebuilt, which is the default.
        """
        raise UnsupportedError(f"{cls.__name__} gives no plain values to be rebuilt from")

    def stored_bytes(self) -> int:
        """Return the bytes that regenerate all samples, decoder and labels included.

        Class indices count one byte each up to 256 classes, as images do.
        """
        return sum(stored_tensor_bytes(tensor) for tensor in self.state_dict().values())


def require_batch(made: Parameterization, decoded: object) -> None:
    """Refuse what decodes to something else than a batch.

    Raises:
        ShapeError: it does.
    """
    if not isinstance(decoded, Batch):
        raise ShapeError(
            f"forward of {type(made).__name__} returns a Batch (inputs, targets, weight), "
            f"not a {type(decoded).__name__}"
        )


def require_alike(made: Parameterization, decoded: Batch, real: Batch | ClassBatch, count: int | None = None) -> None:
    """Refuse decoded samples that are not as real ones, or not as many as there should be.

    Args:
        made: what decoded them.
        decoded: the samples.
        real: real ones; only the shapes of a tensor are compared, since those of a named dict may differ (graphs).
        count: how many there should be; None: one for each of the parameterization's classes.
    Raises:
        ShapeError: they differ, or are no batch.
    """
    require_batch(made, decoded)
    expected = len(made.classes) if count is None and made.classes is not None else count
    found = num_samples(decoded.inputs)
    if expected not in (None, found):
        raise ShapeError(f"{type(made).__name__} decoded {found} samples, and says the classes of {expected}")
    inputs, stacked = (
        (real.batch.inputs, real.dims.inputs == 0) if isinstance(real, ClassBatch) else (real.inputs, False)
    )
    if not isinstance(decoded.inputs, Tensor) or not isinstance(inputs, Tensor):
        return
    shape = inputs.shape[2:] if stacked else inputs.shape[1:]
    if decoded.inputs.shape[1:] != shape:
        raise ShapeError(
            f"{type(made).__name__} decoded samples of {tuple(decoded.inputs.shape[1:])}, and real ones are "
            f"{tuple(shape)}"
        )


def stored_tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor needs in storage; integers count the smallest type that holds them."""
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor.numel() * tensor.element_size()
    return tensor.numel() * smallest_type(tensor).itemsize


def smallest_type(tensor: Tensor) -> torch.dtype:
    """Return the smallest type that holds a tensor's whole numbers, of which none is negative."""
    return _type_up_to(int(tensor.max()) if tensor.numel() else 0)


def index_bytes(count: int) -> int:
    """Return the bytes of the smallest type that tells so many things (items, tokens) apart by their numbers."""
    return _type_up_to(count - 1).itemsize


def _type_up_to(largest: int) -> torch.dtype:
    return torch.uint8 if largest < 2**8 else torch.uint16 if largest < 2**16 else torch.uint32


def class_table(classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return, per class, the padded positions of its samples.

    Shapes:
        classes ``(M,)``; returns ``(C, m)`` int64 positions and ``(C, m)`` float presence, m the largest class.
    """
    classes = classes.cpu()
    counts = torch.bincount(classes, minlength=num_classes)
    order = torch.argsort(classes, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    column = torch.arange(int(counts.max()) if len(classes) else 0)
    present = column[None] < counts[:, None]
    position = (starts[:, None] + column[None]).clamp(max=max(len(classes) - 1, 0))
    return torch.where(present, order[position], order[:1]), present.float()
