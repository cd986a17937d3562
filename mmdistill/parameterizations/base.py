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
        rows ``(C, n)``, their positions among all decoded samples; present ``(C, n)``, 1, or 0 for padding.
    """

    rows: Tensor
    present: Tensor

    def by_class(self, batch: Batch) -> ClassBatch:
        """Return the flat batch of the chosen samples as a class batch."""
        inputs, targets, weight = (map_inputs(lambda t: t.unflatten(0, self.rows.shape), part) for part in batch)
        assert isinstance(weight, Tensor)
        return ClassBatch(Batch(inputs, targets, weight * self.present.to(weight)), Dims(0, 0))


class Parameterization(nn.Module, ABC):
    """Codes and a decoder: S = {g_phi(z)} (Eq. 26).

    All parameters and persistent buffers of the module are stored, labels included. Optimizer groups are the parameters
    of ``labels`` (group ``labels``), of an attribute ``decoder`` (group ``decoder``), and all others (group ``codes``);
    parameters that require no gradient are stored, but not learned.

    Args:
        labels: the targets of the decoded samples; :class:`~mmdistill.labels.NoLabels` where samples are their own
            targets.
        classes: ``(M,)`` the class of each decoded sample, or None in tasks without classes.
        num_classes: C, or None.
    """

    divisible = True
    """Whether a step may take some samples without the others."""
    separable = False
    """Whether :meth:`part` decodes only the rows it is given, and so costs less than decoding all."""
    redraws = False
    """Whether each decoding draws new samples (random crops, say)."""
    styles = 1
    """Decoders that each code passes through; the samples of a code are consecutive."""
    even = True
    """Whether every sample takes the same number of bytes, whichever real one it starts from."""
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
        """Decode all samples; ``draws`` is the key of stochastic decoders."""

    def finished(self, draws: Draws) -> Batch:
        """Decode all samples of the finished set; by default as in learning."""
        decoded: Batch = self(draws)
        return decoded

    @property
    def largest_class(self) -> int:
        """The number of samples of the largest class; 0 in tasks without classes."""
        return 0 if self.classes is None else self._table.shape[1]

    def choose(self, draws: Draws, most: int) -> Chosen:
        """Draw at most ``most`` samples of each class, without replacement."""
        order = draws.to(self._table.device).uniform(*self._table.shape) - self._present  # padding comes last
        columns = order.argsort(1)[:, :most]
        return Chosen(self._table.gather(1, columns), self._present.gather(1, columns))

    def drawn(self, draws: Draws, most: int | None) -> Tensor | None:
        """Draw the rows of ``most`` samples, without replacement; return None where all must be decoded.

        Args:
            draws: the key.
            most: the most samples that a step reads; None: all.
        """
        count = 0 if self.classes is None else len(self.classes)
        if not self.separable or most is None or most >= count or isinstance(self.labels, TeacherLabels):
            return None
        return draws.to(self._table.device).permutation(count)[:most]

    def part(self, rows: Tensor, draws: Draws) -> Batch:
        """Decode the samples of some rows; by default, decode all and take those."""
        return take(self(draws), rows)

    def class_batches(self, batch: Batch) -> ClassBatch:
        """Return a decoded batch as a class batch; graphs override this to share their inputs."""
        return stack_classes(batch, self._table, self._present.to(batch.weight))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the learned parameters by optimizer group; empty groups are left out."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            attribute = name.split(".")[0]
            groups.setdefault(attribute if attribute in ("labels", "decoder") else "codes", []).append(parameter)
        return groups

    def penalty(self, features: FeatureMap, decoded: Inputs, chosen: Chosen | None = None) -> Tensor | None:
        """Return a scalar added to the objective, or None.

        Args:
            features: the step's network, which maps inputs to one ``(n, d_l)`` tensor per layer, the embedding last.
            decoded: the step's samples, before augmentation.
            chosen: which of the samples these are; None: all.
        """
        return None

    def project(self) -> None:
        """Project the codes onto their allowed set after a step (by clamping, say)."""

    def plain_values(self) -> Mapping[str, object] | None:
        """Return the plain values that :meth:`rebuilt` needs besides the stored tensors; None if it cannot rebuild."""
        return None

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "Parameterization":
        """Rebuild a stored parameterization, which decodes to the same samples.

        Args:
            plain: its :meth:`plain_values`.
            tensors: its stored tensors but the labels', by name.
            labels: its labels.
            classes: ``(M,)`` the class of each decoded sample.
            num_classes: C.
        Raises:
            UnsupportedError: the class cannot be rebuilt, which is the default.
        """
        raise UnsupportedError(f"{cls.__name__} gives no plain values to be rebuilt from")

    def stored_bytes(self) -> int:
        """Return the bytes needed to regenerate all samples, decoder and labels included.

        Whole numbers count as the smallest type that holds them: class indices one byte each up to 256 classes.
        """
        return sum(stored_tensor_bytes(tensor) for tensor in self.state_dict().values())


def require_batch(made: Parameterization, decoded: object) -> None:
    """Refuse a parameterization that does not decode to a :class:`~mmdistill.task.Batch`.

    Raises:
        ShapeError: ``decoded`` is not one.
    """
    if not isinstance(decoded, Batch):
        raise ShapeError(
            f"forward of {type(made).__name__} returns a Batch (inputs, targets, weight), "
            f"not a {type(decoded).__name__}"
        )


def require_alike(made: Parameterization, decoded: Batch, real: Batch | ClassBatch, count: int | None = None) -> None:
    """Refuse decoded samples that differ from real ones in shape, or from the expected number.

    Args:
        made: the parameterization that decoded them.
        decoded: the samples.
        real: real samples; shapes are compared where both are one tensor, since those of dicts may differ (graphs).
        count: the expected number; None: the length of the parameterization's ``classes``.
    Raises:
        ShapeError: shapes or numbers differ, or ``decoded`` is not a batch.
    """
    require_batch(made, decoded)
    expected = len(made.classes) if count is None and made.classes is not None else count
    samples = num_samples(decoded.inputs)
    if expected not in (None, samples):
        raise ShapeError(f"{type(made).__name__} decoded {samples} samples, and says the classes of {expected}")
    inputs = real.batch.inputs if isinstance(real, ClassBatch) else real.inputs
    if not isinstance(decoded.inputs, Tensor) or not isinstance(inputs, Tensor):
        return
    stacked = isinstance(real, ClassBatch) and real.dims.inputs == 0
    shape = inputs.shape[2:] if stacked else inputs.shape[1:]
    if decoded.inputs.shape[1:] != shape:
        raise ShapeError(
            f"{type(made).__name__} decoded samples of {tuple(decoded.inputs.shape[1:])}, and real ones are "
            f"{tuple(shape)}"
        )


def takes_some(samples: Parameterization, syn_batch: int) -> bool:
    """Return whether steps take only some samples of each class: ``syn_batch``, which is 0 if they take all."""
    return 0 < syn_batch < samples.largest_class


def decode_for_step(
    samples: Parameterization, syn_batch: int, most: int | None, real: Batch | ClassBatch, key: Draws
) -> tuple[Batch, Chosen | None]:
    """Decode the synthetic samples that one step reads.

    Args:
        samples: all of them.
        syn_batch: how many of each class; 0: all.
        most: the most samples that a flat objective reads, if all classes come whole; None: all.
        real: real samples, which have the same shape.
        key: of the step.
    Returns:
        The samples, and which of each class they are; None where they were not drawn by class.
    Raises:
        ShapeError: their shapes differ from the real samples'.
    """
    draws, chosen = key.fold("synthetic"), None
    if takes_some(samples, syn_batch):
        chosen = samples.choose(key.fold("chosen"), syn_batch)
        rows: Tensor | None = chosen.rows.flatten()
    else:
        rows = samples.drawn(key.fold("drawn"), most)
    decoded: Batch = samples(draws) if rows is None else samples.part(rows, draws)
    require_alike(samples, decoded, real, None if rows is None else len(rows))
    return decoded, chosen


def stored_tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes in storage; whole numbers count as the smallest type that holds them."""
    if tensor.is_floating_point():
        return tensor.numel() * tensor.element_size()
    return tensor.numel() * smallest_type(tensor).itemsize


def smallest_type(tensor: Tensor) -> torch.dtype:
    """Return the smallest unsigned type that holds a tensor's whole numbers, none of which may be negative."""
    return _smallest_unsigned(int(tensor.max()) if tensor.numel() else 0)


def index_bytes(count: int) -> int:
    """Return the bytes of one index into ``count`` things (items, tokens), in the smallest unsigned type."""
    return _smallest_unsigned(count - 1).itemsize


def _smallest_unsigned(largest: int) -> torch.dtype:
    """Return the smallest unsigned type that holds a number."""
    return torch.uint8 if largest < 2**8 else torch.uint16 if largest < 2**16 else torch.uint32


def class_table(classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the positions of each class's samples, padded to the largest class.

    Shapes:
        classes ``(M,)``; returns ``(C, m)`` int64 positions and ``(C, m)`` float presence, with m the largest class's
        size.
    """
    classes = classes.cpu()
    counts = torch.bincount(classes, minlength=num_classes)
    order = torch.argsort(classes, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    column = torch.arange(int(counts.max()) if len(classes) else 0)
    present = column[None] < counts[:, None]
    position = (starts[:, None] + column[None]).clamp(max=max(len(classes) - 1, 0))
    return torch.where(present, order[position], order[:1]), present.float()
