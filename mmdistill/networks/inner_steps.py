"""One step of an unrolled training as a function of a parameter vector: its gradient, and what moves that.

On a CPU a step takes large batches in portions, so that the outputs of layers stay in its caches: 100 images of 28 x 28
in a ConvNet of width 128 take two thirds of the time, and where nothing is kept the memory of one portion. That is done
where the loss is found to be the weighted mean over samples that know nothing of each other, which batch norms and
dropout exclude.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import UnsupportedError
from mmdistill.execution.compilation import operations, uncounted
from mmdistill.execution.portions import weighted_portions
from mmdistill.networks.convolutions import TwiceDifferentiable
from mmdistill.networks.forward_mode import ExactNorms
from mmdistill.networks.gradients import require_reached_from
from mmdistill.networks.step_programs import OfTensors, StepPrograms
from mmdistill.task import Batch, Inputs, Targets, Tensors, tensors_of

StepLoss = Callable[[Tensors, Batch, int], Tensor]
"""``(params, batch, step) -> scalar``; a pure function, since steps are computed twice: dropout draws from a key."""
DiffMode = Literal["auto", "forward", "reverse"]

PORTION_BYTES = 48 << 20
"""What a CPU's graph of one portion keeps: in ConvNets of 32 to 128 channels more takes longer, as does a quarter."""
TRIED = 4
"""Samples by which it is found whether a loss is that of single samples."""
AGREES = 0.01
"""Relative difference between the loss of a batch and the mean of its samples' below which it is that mean.

Both are computed of as many samples, so that bfloat16, which rounds small losses by much, rounds them alike.
"""


class Layout(NamedTuple):
    """How a parameter vector is cut into named tensors."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @staticmethod
    def of(params: Tensors) -> "Layout":
        """Return the layout of some parameters."""
        return Layout(tuple(params), tuple(tensor.shape for tensor in params.values()))

    def flatten(self, params: Tensors) -> Tensor:
        """Return the parameters as one vector."""
        return torch.cat([params[name].reshape(-1) for name in self.names])

    def unflatten(self, vector: Tensor) -> Tensors:
        """Return views of a vector."""
        parts = torch.split(vector, [shape.numel() for shape in self.shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


class Recorded(NamedTuple):
    """A step's gradient, or the part of it that comes from some of its samples, and what it depends on by its graph."""

    gradient: Tensor
    theta: Tensor
    chosen: list[Tensor]


class Pulled(NamedTuple):
    """A step's ``s = <g, direction>`` and its gradients with respect to the parameters and the chosen leaves."""

    slope: Tensor
    theta: Tensor
    chosen: list[Tensor]


@dataclass(frozen=True)
class InnerStep:
    """The inner loss as a function of a parameter vector and a flat list of batch tensors, the weights last.

    Args:
        loss: of one step.
        layout: of the parameter vector.
        rebuild: puts a list of tensors back into a batch.
        closed: where it is noted that a step's graph has been looked through; None: it need not be.
        portion: samples that are taken at once; 0: all.
        programs: by which steps are computed whose loss reads nothing but its arguments, whatever the step; None: by
            the eager functions.
    """

    loss: StepLoss
    layout: Layout
    rebuild: Callable[[Sequence[Tensor]], Batch]
    closed: list[bool] | None
    portion: int = 0
    programs: StepPrograms | None = None

    def value(self, theta: Tensor, leaves: Sequence[Tensor], step: int) -> Tensor:
        """Return the loss."""
        return self.loss(self.layout.unflatten(theta), self.rebuild(leaves), step)

    def gradient(self, theta: Tensor, leaves: Sequence[Tensor], step: int) -> Tensor:
        """Return the loss's gradient, without a graph."""
        found: Tensor | None = None
        for part, share in self._parts([leaf.detach() for leaf in leaves]):
            if share is not None and not share > 0:
                continue
            (gradient,) = self._computed("gradient", partial(self._gradient, step), theta.detach(), *part)
            gradient = gradient if share is None else gradient * share
            found = gradient if found is None else found + gradient
        assert found is not None  # since some sample counts
        return found

    def _gradient(self, step: int, theta: Tensor, *leaves: Tensor) -> tuple[Tensor]:
        """Return the gradient of samples that are taken at once."""
        with torch.enable_grad():
            own = theta.detach().requires_grad_()
            value = self.value(own, leaves, step)
            self._check(value, [own])
            (gradient,) = torch.autograd.grad(value, own)
        return (gradient,)

    def _computed(self, name: Hashable, function: OfTensors, *tensors: Tensor) -> Sequence[Tensor]:
        """Return a function's results, by its program where there are programs."""
        return function(*tensors) if self.programs is None else self.programs(name, function, *tensors)

    def record(self, theta: Tensor, leaves: Sequence[Tensor], step: int, chosen: list[int]) -> list[Recorded]:
        """Return the parts of the gradient, which add up to it, with their graphs to theta and the chosen leaves."""
        return list(self._recorded(theta, leaves, step, chosen))

    def slope(
        self, theta: Tensor, leaves: Sequence[Tensor], step: int, direction: Tensor, chosen: list[int], mode: DiffMode
    ) -> Pulled:
        """Return ``s = <g, direction>`` and its gradients with respect to theta and the chosen leaves."""
        if mode == "forward" or (mode == "auto" and theta.is_cuda):
            try:
                return self._forward_slope(theta, leaves, step, direction, chosen)
            except NotImplementedError as error:
                if mode == "forward":
                    reason = str(error).split(" because")[0]
                    raise UnsupportedError(
                        f"this network lacks forward-mode derivatives ({reason}): use mode='reverse'"
                    ) from error
        if self.programs is None:
            return pull(self._recorded(theta, leaves, step, chosen), direction)
        return joined(self._pulled(theta, leaves, step, direction, chosen))

    def held(
        self, theta: Tensor, leaves: Sequence[Tensor], step: int, direction: Tensor, chosen: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient, and those of ``s`` with respect to the chosen leaves, which alone are followed."""

        def whole(theta: Tensor, direction: Tensor, *part: Tensor) -> tuple[Tensor, ...]:
            recorded = self.record(theta, part, step, chosen)
            slope, _, others = pull(recorded, direction, of_theta=False)
            return total(recorded), *others, slope

        if self.programs is None:
            gradient, *others, _ = whole(theta, direction, *leaves)
            return gradient, others
        gradients, moved = list[Tensor](), list[list[Tensor]]()
        for gradient, *others, _ in self._by_programs(("held", *chosen), whole, theta, leaves, direction, chosen):
            gradients.append(gradient)
            moved.append(others)
        return sum(gradients[1:], gradients[0]), [torch.cat(own) for own in zip(*moved, strict=True)]

    def _pulled(
        self, theta: Tensor, leaves: Sequence[Tensor], step: int, direction: Tensor, chosen: list[int]
    ) -> Iterator[Pulled]:
        """Yield what each portion gives to the slope, by a program."""

        def whole(theta: Tensor, direction: Tensor, *part: Tensor) -> tuple[Tensor, ...]:
            slope, along, others = pull(self._recorded(theta, part, step, chosen), direction)
            return along, *others, slope

        for along, *others, slope in self._by_programs(("slope", *chosen), whole, theta, leaves, direction, chosen):
            yield Pulled(slope, along, others)

    def _by_programs(
        self,
        name: Hashable,
        whole: OfTensors,
        theta: Tensor,
        leaves: Sequence[Tensor],
        direction: Tensor,
        chosen: list[int],
    ) -> Iterator[Sequence[Tensor]]:
        """Yield what a function of parameters, direction and leaves gives for each portion, times its share.

        The function gives a tensor of the parameters' shape, one of each chosen leaf's and the slope; a portion without
        weight gives zeros.
        """
        for part, share in self._parts([leaf.detach() for leaf in leaves]):
            if share is not None and not share > 0:
                yield [torch.zeros_like(own) for own in (theta, *(part[index] for index in chosen), direction[0])]
                continue
            found = self._computed(name, whole, theta.detach(), direction, *part)
            yield found if share is None else torch._foreach_mul(list(found), share)

    def _check(self, value: Tensor, known: Sequence[Tensor]) -> None:
        """Refuse, in the first step of all, a loss that closes over tensors to which gradients should go."""
        if self.closed is not None and not self.closed:
            require_reached_from(value, known)
            self.closed.append(True)

    def _parts(self, leaves: Sequence[Tensor]) -> Iterator[tuple[Sequence[Tensor], Tensor | None]]:
        """Yield the leaves of each portion with its share of the weights; of all samples None."""
        for rows, share in weighted_portions(leaves[-1], self.portion):
            yield leaves if share is None else [leaf[rows] for leaf in leaves], share

    def _recorded(self, theta: Tensor, leaves: Sequence[Tensor], step: int, chosen: list[int]) -> Iterator[Recorded]:
        """Yield what :meth:`record` returns, part by part."""
        for part, share in self._parts([leaf.detach() for leaf in leaves]):
            with torch.enable_grad():
                own = theta.detach().requires_grad_()
                fresh = [leaf.detach().requires_grad_(index in chosen) for index, leaf in enumerate(part)]
                sources = [fresh[index] for index in chosen]
                if share is not None and not share > 0:
                    yield Recorded(torch.zeros_like(theta), own, sources)
                    continue
                with TwiceDifferentiable():
                    value = self.value(own, fresh, step)
                self._check(value, [own, *fresh])
                (gradient,) = torch.autograd.grad(value if share is None else value * share, own, create_graph=True)
            yield Recorded(gradient, own, sources)

    def _forward_slope(
        self, theta: Tensor, leaves: Sequence[Tensor], step: int, direction: Tensor, chosen: list[int]
    ) -> Pulled:
        """Return the same by reverse over forward mode."""

        def directional(theta: Tensor, moved: tuple[Tensor, ...]) -> Tensor:
            full = list(leaves)
            for index, tensor in zip(chosen, moved, strict=True):
                full[index] = tensor
            with ExactNorms():
                tangent: Tensor = torch.func.jvp(lambda p: self.value(p, full, step), (theta,), (direction,))[1]
            return tangent

        moved = tuple(leaves[index] for index in chosen)
        (along, others), s = torch.func.grad_and_value(directional, argnums=(0, 1))(theta, moved)
        return Pulled(s, along, list(others))


def total(recorded: Sequence[Recorded]) -> Tensor:
    """Return the gradient whose parts were recorded, without a graph."""
    first, *rest = (part.gradient.detach() for part in recorded)
    return sum(rest, first)


def pull(recorded: Iterable[Recorded], direction: Tensor, *, of_theta: bool = True) -> Pulled:
    """Return ``<g, direction>`` of a recorded step and its gradients with respect to what it depends on.

    Args:
        recorded: the step's parts, in the order of its samples.
        direction: of the parameters' shape.
        of_theta: whether that with respect to the parameters is wanted; otherwise it is 0.
    """
    return joined(_pulled_part(part, direction, of_theta) for part in recorded)


def _pulled_part(part: Recorded, direction: Tensor, of_theta: bool) -> Pulled:
    """Return what one part gives."""
    gradient, theta, chosen = part
    sources = [theta, *chosen] if of_theta else chosen
    found: Sequence[Tensor | None] = [None] * len(sources)
    if gradient.requires_grad and sources:  # it does not where the loss is linear in theta and nothing else moves
        found = torch.autograd.grad(gradient, sources, direction, allow_unused=True)
    pulled = [torch.zeros_like(s) if g is None else g for g, s in zip(found, sources, strict=True)]
    along = pulled.pop(0) if of_theta else torch.zeros_like(direction)
    return Pulled(gradient.detach() @ direction, along, pulled)


def joined(parts: Iterable[Pulled]) -> Pulled:
    """Return what a step gives, from what its parts give, in the order of its samples."""
    slopes, along, others = list[Tensor](), None, []
    for slope, own, chosen in parts:
        slopes.append(slope)
        along = own if along is None else along + own
        others.append(chosen)
    assert along is not None  # since a step has parts
    whole = [own[0] if len(own) == 1 else torch.cat(own) for own in zip(*others, strict=True)]
    return Pulled(sum(slopes[1:], slopes[0]), along, whole)


def flat_leaves(batch: Batch) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Batch]]:
    """Return a batch's tensors in one list, the weights last, and how to put such a list back together."""
    parts: list[Inputs | Targets] = [batch.inputs, batch.targets]
    names = [tuple(part) if isinstance(part, dict) else None for part in parts]
    leaves = [tensor for part in parts for tensor in tensors_of(part)]

    def rebuild(found: Sequence[Tensor]) -> Batch:
        rest = iter(found)
        inputs, targets = (next(rest) if own is None else {name: next(rest) for name in own} for own in names)
        return Batch(inputs, targets, next(rest))

    return [*leaves, batch.weight], rebuild


def recorded_bytes(problem: InnerStep, theta: Tensor, leaves: Sequence[Tensor], chosen: list[int]) -> int:
    """Return the bytes that a recorded step keeps, by recording the first for nothing else."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage takes the place of another one, which would make the number vary

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor.detach())  # a node that keeps its own output would keep itself, and all it saved, for good
        return held[-1]

    with uncounted(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        problem.record(theta, leaves, 0, chosen)
    return sum(storages.values())


def portion_of(problem: InnerStep, theta: Tensor, leaves: Sequence[Tensor], chosen: list[int]) -> int:
    """Return how many of a step's samples a CPU should take at once, in portions of about one size; 0: all of them.

    It depends on shapes and on what the loss does, not on values, so that a run that goes on takes the same.

    Args:
        problem: the step, which takes all.
        theta: a parameter vector.
        leaves: a step's batch.
        chosen: the leaves that gradients are taken of, after which shares of the weights would depend on the weights.
    """
    samples, few = len(leaves[-1]), [[leaf[:count] for leaf in leaves] for count in (TRIED, 2 * TRIED)]
    if (
        theta.device.type != "cpu"
        or samples <= 2 * TRIED
        or len(leaves) - 1 in chosen
        or not _is_mean(problem, theta, few[0])
    ):
        return 0
    less, more = (recorded_bytes(problem, theta, some, chosen) for some in few)  # both with what parameters take
    largest = max(PORTION_BYTES * TRIED // max(more - less, 1), 1)
    if samples <= largest:
        return 0
    even = -(-samples // -(-samples // largest))
    # A size that leaves no rest, if there is one near: programs are compiled for each size.
    return next((size for size in range(largest, largest // 2, -1) if samples % size == 0), even)


def gains_by_program(problem: InnerStep, theta: Tensor, leaves: Sequence[Tensor], chosen: list[int]) -> bool:
    """Return whether a step's programs may and should be used.

    They may where another step's key changes nothing of the loss, as dropout's would. They compute a gradient twice
    which eager steps keep, and fuse what is between products, so they should where products are little of the work.
    """
    assert problem.programs is not None
    with uncounted(), torch.no_grad():
        first, second = (problem.value(theta, leaves, step) for step in range(2))
    if not torch.equal(first, second):
        return False
    products = operations(lambda: problem.record(theta, leaves, 0, chosen))[1]
    return products <= problem.programs.most * recorded_bytes(problem, theta, leaves, chosen)


def _is_mean(problem: InnerStep, theta: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Return whether the loss of a few samples is their weighted mean, of each of which it reads nothing else.

    It is not where another step's key changes it (dropout), where a sample's loss has a gradient with respect to
    another one (batch norms, nodes of a graph), or where it is a sum, say.
    """
    *rows, _ = leaves
    weight = torch.arange(1, TRIED + 1).to(leaves[-1])
    first, last = (torch.eye(TRIED).to(leaves[-1])[index] for index in (0, -1))
    places = [index for index, leaf in enumerate(rows) if leaf.is_floating_point()]
    if any(len(leaf) != TRIED for leaf in rows) or 0 not in places:
        return False

    def alone(row: int) -> Tensor:
        return problem.value(theta, [*(torch.stack([leaf[row]] * TRIED) for leaf in rows), first], 0)

    try:
        with uncounted(), torch.no_grad():
            whole, again = (problem.value(theta, [*rows, weight], step) for step in range(2))
            single = torch.stack([alone(row) for row in range(TRIED)])
        if not torch.equal(whole, again) or not torch.isclose(whole, weight @ single / weight.sum(), rtol=AGREES):
            return False
        with uncounted(), torch.enable_grad():
            rows = [leaf.detach().requires_grad_(index in places) for index, leaf in enumerate(rows)]
            moved = [rows[index] for index in places]
            found = torch.autograd.grad(problem.value(theta, [*rows, last], 0), moved, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # whatever is wrong shows when it is taken as it is
        return False
    return all(gradient is None or not gradient[:-1].any() for gradient in found)
