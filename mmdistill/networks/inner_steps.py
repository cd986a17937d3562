"""One step of an unrolled training as a function of a parameter vector: its gradient, and what moves that.

A step is computed eagerly, and what that means may be changed by what is put around it: :class:`ForwardStep` takes
slopes in forward mode, :class:`ProgrammedStep` computes by compiled programs and :class:`PortionedStep` takes its
samples in portions. All give the same up to rounding; ``step_choice.py`` chooses.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from mmdistill.errors import UnsupportedError
from mmdistill.execution.portions import weighted_portions
from mmdistill.networks.convolutions import TwiceDifferentiable
from mmdistill.networks.forward_mode import ExactNorms
from mmdistill.networks.step_programs import StepPrograms
from mmdistill.task import Batch, Inputs, Targets, Tensors, tensors_of

StepLoss = Callable[[Tensors, Batch, int], Tensor]
"""``(params, batch, step) -> scalar``; a pure function, since steps are computed twice: dropout draws from a key."""


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


class SlopeGradients(NamedTuple):
    """A step's ``s = <g, direction>`` and its gradients with respect to the parameters and the chosen leaves."""

    slope: Tensor
    theta: Tensor
    chosen: list[Tensor]


class StepPoint(NamedTuple):
    """Where a step is taken: parameters, the tensors of its batch, the weights last, and which gradients are wanted.

    ``chosen`` are the places of the leaves with respect to which slopes are differentiated.
    """

    theta: Tensor
    leaves: Sequence[Tensor]
    step: int
    chosen: list[int]


class InnerStep(Protocol):
    """What an unrolled training asks of a step; nothing that it is given is differentiated further."""

    @property
    def compiled(self) -> bool:
        """Whether programs compute it, which gain nothing by activations that were kept."""

    def gradient(self, at: StepPoint) -> Tensor:
        """Return the loss's gradient, without a graph."""

    def record(self, at: StepPoint) -> list[Recorded]:
        """Return the parts of the gradient, which add up to it, with their graphs to theta and the chosen leaves."""

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Return ``s = <g, direction>`` and its gradients with respect to theta and the chosen leaves."""

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient, and those of ``s`` with respect to the chosen leaves, which alone are followed."""


@dataclass(frozen=True)
class EagerStep:
    """A step by plain autograd, all samples at once, and its slope in reverse mode.

    Args:
        loss: of one step.
        layout: of the parameter vector.
        rebuild: puts a list of tensors back into a batch.
        check: looks at a loss and the leaves that it may depend on, for others; None: none need be.
    """

    loss: StepLoss
    layout: Layout
    rebuild: Callable[[Sequence[Tensor]], Batch]
    check: Callable[[Tensor, Sequence[Tensor]], None] | None = None
    compiled: ClassVar[bool] = False

    def value(self, theta: Tensor, leaves: Sequence[Tensor], step: int) -> Tensor:
        """Return the loss."""
        return self.loss(self.layout.unflatten(theta), self.rebuild(leaves), step)

    def gradient(self, at: StepPoint) -> Tensor:
        """Differentiate once."""
        with torch.enable_grad():
            theta = at.theta.detach().requires_grad_()
            value = self.value(theta, [leaf.detach() for leaf in at.leaves], at.step)
            if self.check is not None:
                self.check(value, [theta])
            (gradient,) = torch.autograd.grad(value, theta)
        return gradient

    def record(self, at: StepPoint) -> list[Recorded]:
        """Differentiate once, and keep the graph of that."""
        with torch.enable_grad():
            theta = at.theta.detach().requires_grad_()
            leaves = [leaf.detach().requires_grad_(index in at.chosen) for index, leaf in enumerate(at.leaves)]
            with TwiceDifferentiable():
                value = self.value(theta, leaves, at.step)
            if self.check is not None:
                self.check(value, [theta, *leaves])
            (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        return [Recorded(gradient, theta, [leaves[index] for index in at.chosen])]

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Differentiate twice."""
        return vjp(self.record(at), direction)

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Differentiate twice, but for the parameters."""
        recorded = self.record(at)
        return total(recorded), vjp(recorded, direction, of_theta=False).chosen


@dataclass(frozen=True)
class ForwardStep(EagerStep):
    """A step whose slope is a directional derivative: reverse over forward mode, which differentiates no gradient.

    Args:
        strict: whether layers without forward-mode derivatives are refused; otherwise their slopes are in reverse mode.
    """

    strict: bool = False

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Differentiate the directional derivative."""

        def directional(theta: Tensor, moved: tuple[Tensor, ...]) -> Tensor:
            leaves = list(at.leaves)
            for index, tensor in zip(at.chosen, moved, strict=True):
                leaves[index] = tensor
            with ExactNorms():
                tangent: Tensor = torch.func.jvp(lambda p: self.value(p, leaves, at.step), (theta,), (direction,))[1]
            return tangent

        moved = tuple(_chosen(at))
        try:
            (along, others), slope = torch.func.grad_and_value(directional, argnums=(0, 1))(at.theta, moved)
        except NotImplementedError as error:
            if not self.strict:
                return super().slope(at, direction)
            reason = str(error).split(" because")[0]
            raise UnsupportedError(
                f"this network lacks forward-mode derivatives ({reason}): use mode='reverse'"
            ) from error
        return SlopeGradients(slope, along, list(others))


@dataclass(frozen=True)
class ProgrammedStep:
    """A step by compiled programs, of a loss that reads nothing but its arguments, whatever the step.

    Args:
        inner: what they are traced from.
        programs: of the run.
    """

    inner: InnerStep
    programs: StepPrograms
    compiled: ClassVar[bool] = True

    def gradient(self, at: StepPoint) -> Tensor:
        """Ask the program of the gradient."""

        def gradient(theta: Tensor, *leaves: Tensor) -> tuple[Tensor]:
            return (self.inner.gradient(at._replace(theta=theta, leaves=leaves)),)

        return self.programs("gradient", gradient, at.theta, *at.leaves)[0]

    def record(self, at: StepPoint) -> list[Recorded]:
        """Keep a graph, which a program has none of."""
        return self.inner.record(at)

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Ask the program of the second derivative."""

        def slope(theta: Tensor, direction: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
            value, along, others = self.inner.slope(at._replace(theta=theta, leaves=leaves), direction)
            return value, along, *others

        value, along, *others = self.programs(("slope", *at.chosen), slope, at.theta, direction, *at.leaves)
        return SlopeGradients(value, along, others)

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Ask the program of both derivatives."""

        def held(theta: Tensor, direction: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
            gradient, others = self.inner.held(at._replace(theta=theta, leaves=leaves), direction)
            return gradient, *others

        gradient, *others = self.programs(("held", *at.chosen), held, at.theta, direction, *at.leaves)
        return gradient, others


@dataclass(frozen=True)
class PortionedStep:
    """A step that takes its samples in portions, of a loss that is their weighted mean.

    Args:
        inner: takes one portion.
        size: samples in a portion.
    """

    inner: InnerStep
    size: int

    @property
    def compiled(self) -> bool:
        """Whether programs take the portions."""
        return self.inner.compiled

    def gradient(self, at: StepPoint) -> Tensor:
        """Add up the gradients of the portions."""
        return added(share * self.inner.gradient(part) for part, share in self._parts(at) if share > 0)

    def record(self, at: StepPoint) -> list[Recorded]:
        """Record each portion."""
        found: list[Recorded] = []
        for part, share in self._parts(at):
            if not share > 0:
                found.append(Recorded(torch.zeros_like(part.theta), part.theta, _chosen(part)))
                continue
            with torch.enable_grad():
                found += [own._replace(gradient=share * own.gradient) for own in self.inner.record(part)]
        return found

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Join the slopes of the portions."""
        return joined(self._slope(part, share, direction) for part, share in self._parts(at))

    def _slope(self, part: StepPoint, share: Tensor, direction: Tensor) -> SlopeGradients:
        if not share > 0:
            return SlopeGradients(torch.zeros_like(share), torch.zeros_like(part.theta), _zeros(part))
        value, along, others = self.inner.slope(part, direction)
        return SlopeGradients(share * value, share * along, [share * own for own in others])

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Join both derivatives of the portions."""
        gradient: Tensor | None = None
        others: list[list[Tensor]] = []
        for part, share in self._parts(at):
            if not share > 0:
                others.append(_zeros(part))
                continue
            own, moved = self.inner.held(part, direction)
            gradient = share * own if gradient is None else gradient + share * own
            others.append([share * found for found in moved])
        assert gradient is not None  # some share is positive
        return gradient, _below(others)

    def _parts(self, at: StepPoint) -> Iterator[tuple[StepPoint, Tensor]]:
        """Yield each portion with its share of the weights; one whose share is 0 must not be taken."""
        for rows, share in weighted_portions(at.leaves[-1], self.size):
            yield at._replace(leaves=[leaf[rows] for leaf in at.leaves]), share


def _chosen(at: StepPoint) -> list[Tensor]:
    return [at.leaves[index] for index in at.chosen]


def _zeros(at: StepPoint) -> list[Tensor]:
    """Return the gradients with respect to the chosen leaves of samples that do not count."""
    return [torch.zeros_like(leaf) for leaf in _chosen(at)]


def _below(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return what was found for each leaf, of all parts in the order of their samples."""
    return [own[0] if len(own) == 1 else torch.cat(own) for own in zip(*parts, strict=True)]


def added(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors, of which no two are held beside it."""
    rest = iter(tensors)
    found = next(rest)
    for tensor in rest:
        found = found + tensor
    return found


def total(recorded: Sequence[Recorded]) -> Tensor:
    """Return the gradient whose parts were recorded, without a graph."""
    return added(part.gradient.detach() for part in recorded)


def vjp(recorded: Iterable[Recorded], direction: Tensor, *, of_theta: bool = True) -> SlopeGradients:
    """Return ``<g, direction>`` of a recorded step and its gradients with respect to what it depends on.

    Args:
        recorded: the step's parts, in the order of its samples.
        direction: of the parameters' shape.
        of_theta: whether that with respect to the parameters is wanted; otherwise it is 0.
    """
    return joined(_vjp_of_part(part, direction, of_theta) for part in recorded)


def _vjp_of_part(part: Recorded, direction: Tensor, of_theta: bool) -> SlopeGradients:
    """Return what one part gives."""
    gradient, theta, chosen = part
    sources = [theta, *chosen] if of_theta else chosen
    found: Sequence[Tensor | None] = [None] * len(sources)
    if gradient.requires_grad and sources:  # it does not where the loss is linear in theta and nothing else moves
        found = torch.autograd.grad(gradient, sources, direction, allow_unused=True)
    pulled = [torch.zeros_like(s) if g is None else g for g, s in zip(found, sources, strict=True)]
    along = pulled.pop(0) if of_theta else torch.zeros_like(direction)
    return SlopeGradients(gradient.detach() @ direction, along, pulled)


def joined(parts: Iterable[SlopeGradients]) -> SlopeGradients:
    """Return what a step gives, from what its parts give, in the order of its samples."""
    rest = iter(parts)
    slope, along, chosen = next(rest)
    others = [chosen]
    for part in rest:
        slope, along = slope + part.slope, along + part.theta
        others.append(part.chosen)
    return SlopeGradients(slope, along, _below(others))


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
