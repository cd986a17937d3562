"""One step of an unrolled training as a function of a parameter vector: its gradient and the derivatives of that.

:class:`EagerStep` is plain autograd, :class:`ForwardStep` takes slopes in forward mode, and two wrappers change how
another step is computed: :class:`ProgrammedStep` by compiled programs, :class:`PortionedStep` in portions of its
samples. All give the same result up to rounding; ``step_choice.py`` chooses between them.
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
    """The gradient of a step (or the part from some of its samples) with its graph, and the leaves of that graph."""

    gradient: Tensor
    theta: Tensor
    chosen: list[Tensor]


class SlopeGradients(NamedTuple):
    """A step's ``s = <g, direction>`` and its gradients with respect to the parameters and the chosen leaves."""

    slope: Tensor
    theta: Tensor
    chosen: list[Tensor]


class StepPoint(NamedTuple):
    """Where a step is taken.

    Args:
        theta: the parameter vector.
        leaves: the tensors of the step's batch, the sample weights last.
        step: the step's number.
        chosen: indices of the leaves with respect to which slopes are differentiated.
    """

    theta: Tensor
    leaves: Sequence[Tensor]
    step: int
    chosen: list[int]


class InnerStep(Protocol):
    """One step of an unrolled training; its results are constants to the autograd outside, except those recorded."""

    @property
    def compiled(self) -> bool:
        """Whether compiled programs compute the step; these gain nothing from kept activations."""

    def gradient(self, at: StepPoint) -> Tensor:
        """Return the loss's gradient, without a graph."""

    def record(self, at: StepPoint) -> list[Recorded]:
        """Return parts that add up to the gradient, with their graphs to theta and the chosen leaves."""

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Return ``s = <g, direction>`` and its gradients with respect to theta and the chosen leaves."""

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient g, and the gradients of ``s`` with respect to the chosen leaves only."""


@dataclass(frozen=True)
class EagerStep:
    """A step by plain autograd, all samples at once, and its slope in reverse mode.

    Args:
        loss: the loss of one step.
        layout: the layout of the parameter vector.
        rebuild: turns a list of leaves back into a batch.
        check: refuses a loss that depends on other leaves than the given ones; None checks nothing.
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
        """Differentiate the loss once."""
        with torch.enable_grad():
            theta = at.theta.detach().requires_grad_()
            value = self.value(theta, at.leaves, at.step)
            if self.check is not None:
                self.check(value, [theta])
            (gradient,) = torch.autograd.grad(value, theta)
        return gradient

    def record(self, at: StepPoint) -> list[Recorded]:
        """Differentiate the loss once and keep the gradient's graph."""
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
        """Differentiate the loss twice."""
        return vjp(self.record(at), direction)

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Differentiate the loss twice, the second time with respect to the chosen leaves only."""
        recorded = self.record(at)
        return total_gradient(recorded), vjp(recorded, direction, of_theta=False).chosen


@dataclass(frozen=True)
class ForwardStep(EagerStep):
    """A step whose slope is a directional derivative: reverse over forward mode, which differentiates no gradient.

    Args:
        strict: whether to refuse layers without forward-mode derivatives; otherwise slopes fall back to reverse mode.
    """

    strict: bool = False

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Differentiate the directional derivative."""

        def directional(theta: Tensor, chosen: tuple[Tensor, ...]) -> Tensor:
            leaves = list(at.leaves)
            for index, leaf in zip(at.chosen, chosen, strict=True):
                leaves[index] = leaf
            with ExactNorms():
                tangent: Tensor = torch.func.jvp(lambda p: self.value(p, leaves, at.step), (theta,), (direction,))[1]
            return tangent

        chosen = tuple(_chosen_leaves(at))
        try:
            (by_theta, by_chosen), slope = torch.func.grad_and_value(directional, argnums=(0, 1))(at.theta, chosen)
        except NotImplementedError as error:
            if not self.strict:
                return super().slope(at, direction)
            reason = str(error).split(" because")[0]
            raise UnsupportedError(
                f"this network lacks forward-mode derivatives ({reason}): use mode='reverse'"
            ) from error
        return SlopeGradients(slope, by_theta, list(by_chosen))


@dataclass(frozen=True)
class ProgrammedStep:
    """A step computed by compiled programs, for a loss that is the same function of its tensors in every step.

    Args:
        inner: the step that the programs are traced from.
        programs: the run's programs.
    """

    inner: InnerStep
    programs: StepPrograms
    compiled: ClassVar[bool] = True

    def gradient(self, at: StepPoint) -> Tensor:
        """Run the program of the gradient."""

        def gradient(theta: Tensor, *leaves: Tensor) -> tuple[Tensor]:
            return (self.inner.gradient(at._replace(theta=theta, leaves=leaves)),)

        return self.programs("gradient", gradient, at.theta, *at.leaves)[0]

    def record(self, at: StepPoint) -> list[Recorded]:
        """Record the step uncompiled, since a program has no graph."""
        return self.inner.record(at)

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Run the program of the second derivatives."""

        def slope(theta: Tensor, direction: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
            value, by_theta, by_chosen = self.inner.slope(at._replace(theta=theta, leaves=leaves), direction)
            return value, by_theta, *by_chosen

        value, by_theta, *by_chosen = self.programs(("slope", *at.chosen), slope, at.theta, direction, *at.leaves)
        return SlopeGradients(value, by_theta, by_chosen)

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the program of both derivatives."""

        def held(theta: Tensor, direction: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
            gradient, by_chosen = self.inner.held(at._replace(theta=theta, leaves=leaves), direction)
            return gradient, *by_chosen

        gradient, *by_chosen = self.programs(("held", *at.chosen), held, at.theta, direction, *at.leaves)
        return gradient, by_chosen


@dataclass(frozen=True)
class PortionedStep:
    """A step that takes its samples in portions, for a loss that is the weighted mean over samples.

    Args:
        inner: computes one portion.
        size: samples in a portion.
    """

    inner: InnerStep
    size: int

    @property
    def compiled(self) -> bool:
        """Whether programs compute the portions."""
        return self.inner.compiled

    def gradient(self, at: StepPoint) -> Tensor:
        """Add up the gradients of the portions."""
        return sum_tensors(share * self.inner.gradient(portion) for portion, share in self._portions(at) if share > 0)

    def record(self, at: StepPoint) -> list[Recorded]:
        """Record each portion."""
        parts: list[Recorded] = []
        for portion, share in self._portions(at):
            if not share > 0:
                parts.append(Recorded(torch.zeros_like(portion.theta), portion.theta, _chosen_leaves(portion)))
                continue
            with torch.enable_grad():
                parts += [part._replace(gradient=share * part.gradient) for part in self.inner.record(portion)]
        return parts

    def slope(self, at: StepPoint, direction: Tensor) -> SlopeGradients:
        """Combine the slopes of the portions."""
        return combine_slopes(self._slope(portion, share, direction) for portion, share in self._portions(at))

    def _slope(self, portion: StepPoint, share: Tensor, direction: Tensor) -> SlopeGradients:
        if not share > 0:
            return SlopeGradients(torch.zeros_like(share), torch.zeros_like(portion.theta), _zero_gradients(portion))
        value, by_theta, by_chosen = self.inner.slope(portion, direction)
        return SlopeGradients(share * value, share * by_theta, [share * gradient for gradient in by_chosen])

    def held(self, at: StepPoint, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Combine both derivatives of the portions."""
        total: Tensor | None = None
        by_chosen: list[list[Tensor]] = []
        for portion, share in self._portions(at):
            if not share > 0:
                by_chosen.append(_zero_gradients(portion))
                continue
            gradient, leaf_gradients = self.inner.held(portion, direction)
            total = share * gradient if total is None else total + share * gradient
            by_chosen.append([share * leaf_gradient for leaf_gradient in leaf_gradients])
        assert total is not None  # some share is positive
        return total, _concatenate_leaves(by_chosen)

    def _portions(self, at: StepPoint) -> Iterator[tuple[StepPoint, Tensor]]:
        """Yield each portion with its share of the weights; a portion with share 0 must not be computed (0 / 0)."""
        for rows, share in weighted_portions(at.leaves[-1], self.size):
            yield at._replace(leaves=[leaf[rows] for leaf in at.leaves]), share


def _chosen_leaves(at: StepPoint) -> list[Tensor]:
    return [at.leaves[index] for index in at.chosen]


def _zero_gradients(at: StepPoint) -> list[Tensor]:
    """Return the gradients with respect to the chosen leaves of samples of weight 0."""
    return [torch.zeros_like(leaf) for leaf in _chosen_leaves(at)]


def _concatenate_leaves(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Concatenate each leaf's gradients over all parts, in the order of the samples."""
    return [rows[0] if len(rows) == 1 else torch.cat(rows) for rows in zip(*parts, strict=True)]


def sum_tensors(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of an iterator's tensors, holding one of them at a time beside it."""
    remaining = iter(tensors)
    total = next(remaining)
    for tensor in remaining:
        total = total + tensor
    return total


def total_gradient(recorded: Sequence[Recorded]) -> Tensor:
    """Return the sum of recorded parts of a gradient, without a graph."""
    return sum_tensors(part.gradient.detach() for part in recorded)


def vjp(recorded: Iterable[Recorded], direction: Tensor, *, of_theta: bool = True) -> SlopeGradients:
    """Return ``<g, direction>`` of a recorded step and its gradients with respect to theta and the chosen leaves.

    Args:
        recorded: the step's parts, in the order of its samples.
        direction: of the parameters' shape.
        of_theta: whether to compute the gradient with respect to theta; otherwise it is returned as 0.
    """
    return combine_slopes(_vjp_of_part(part, direction, of_theta) for part in recorded)


def _vjp_of_part(part: Recorded, direction: Tensor, of_theta: bool) -> SlopeGradients:
    gradient, theta, chosen = part
    sources = [theta, *chosen] if of_theta else chosen
    found: Sequence[Tensor | None] = [None] * len(sources)
    if gradient.requires_grad and sources:  # a loss that is linear in theta may have a constant gradient
        found = torch.autograd.grad(gradient, sources, direction, allow_unused=True)
    products = [torch.zeros_like(s) if g is None else g for g, s in zip(found, sources, strict=True)]
    by_theta = products.pop(0) if of_theta else torch.zeros_like(direction)
    return SlopeGradients(gradient.detach() @ direction, by_theta, products)


def combine_slopes(parts: Iterable[SlopeGradients]) -> SlopeGradients:
    """Return the slope of a whole step from those of its parts, which come in the order of its samples."""
    remaining = iter(parts)
    slope, by_theta, by_chosen = next(remaining)
    all_chosen = [by_chosen]
    for part in remaining:
        slope, by_theta = slope + part.slope, by_theta + part.theta
        all_chosen.append(part.chosen)
    return SlopeGradients(slope, by_theta, _concatenate_leaves(all_chosen))


def flat_leaves(batch: Batch) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Batch]]:
    """Return a batch's tensors in one list, the weights last, and a function that rebuilds a batch from such a list."""
    parts: list[Inputs | Targets] = [batch.inputs, batch.targets]
    part_names = [tuple(part) if isinstance(part, dict) else None for part in parts]
    leaves = [tensor for part in parts for tensor in tensors_of(part)]

    def rebuild(leaves: Sequence[Tensor]) -> Batch:
        remaining = iter(leaves)
        inputs, targets = (
            next(remaining) if names is None else {name: next(remaining) for name in names} for names in part_names
        )
        return Batch(inputs, targets, next(remaining))

    return [*leaves, batch.weight], rebuild
