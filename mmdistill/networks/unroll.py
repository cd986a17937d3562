"""The unrolled inner loop as one differentiable function, at the activation memory of one step (Eq. 2, 3, 12).

Students train for T steps on batches that depend on the synthetic data, and an objective reads their final parameters.
Automatic differentiation would keep the activations of all T steps. Here the forward pass keeps only the parameter
vectors, and the backward pass is the adjoint recursion, which recomputes each step: for the step
``theta' = theta - lr g(theta, x)`` and the adjoint ``lam`` of ``theta'``, the slope ``s = <g(theta, x), lam>`` is a
directional derivative of the loss, and ``lam - lr ds/dtheta``, ``-lr ds/dx`` and ``-s`` are the cotangents of theta, x
and lr. Forward mode never differentiates a gradient: it is reverse over forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.choices import InnerOptimizer
from mmdistill.errors import ConfigError, ShapeError, require_choice
from mmdistill.networks.inner_steps import (
    EagerStep,
    ForwardStep,
    InnerStep,
    Layout,
    StepPoint,
    flat_leaves,
    total_gradient,
    vjp,
)
from mmdistill.networks.inner_steps import StepLoss as StepLoss
from mmdistill.networks.step_choice import DiffMode, StepCache, choose_cpu_step, recorded_bytes, step_signature
from mmdistill.networks.step_programs import StepPrograms
from mmdistill.networks.update_rules import Adam, Memory, Sgd, UpdateRule
from mmdistill.runtime import spare_memory_bytes
from mmdistill.task import Batch, Tensors


@dataclass(frozen=True)
class Unrolling:
    """How the loop is unrolled and differentiated.

    Args:
        momentum: SGD's, beta of Eq. 3.
        truncate: gradients flow through the last k steps only, as if these started from a constant; None: all.
        mode: ``forward`` takes the slope as a directional derivative; ``reverse`` differentiates the gradient instead,
            also at the memory of one step. ``auto`` is forward on CUDA, where double backward of convolutions is slow.
            It is reverse on the CPU, where that is faster, and for layers without forward-mode derivatives.
        keep: number of last steps that keep their activations, to be differentiated in reverse without recomputing.
            None keeps none, except on the CPU in mode ``auto``, where recomputing costs 15 to 32 % of the time: there
            as many as fit into :func:`~mmdistill.runtime.spare_memory_bytes`.
        optimizer: the student's, ``sgd`` or ``adam``.
    Raises:
        ConfigError: values out of range.
    """

    momentum: float = 0.0
    truncate: int | None = None
    mode: DiffMode = field(default="auto", compare=False)  # how gradients are computed, not their values
    keep: int | None = field(default=None, compare=False)  # it bounds memory and changes no result
    optimizer: InnerOptimizer = "sgd"
    step_cache: StepCache = field(default_factory=StepCache, init=False, repr=False, compare=False)
    """Measurements of the unrolled steps, all of one loss."""

    def __post_init__(self) -> None:
        require_choice("the student's optimizer", self.optimizer, get_args(InnerOptimizer))
        require_choice("mode", self.mode, get_args(DiffMode))
        if self.optimizer != "sgd" and self.momentum:
            raise ConfigError(
                f"momentum (--inner-momentum) belongs to sgd, not to {self.optimizer}, got {self.momentum}"
            )
        self.rule()
        if self.truncate is not None and self.truncate < 1:
            raise ConfigError(f"truncate keeps the last k >= 1 steps, got {self.truncate}; None keeps all")
        if self.keep is not None and self.keep < 0:
            raise ConfigError(f"keep counts steps, got {self.keep}")

    def rule(self) -> UpdateRule:
        """Return the student's update rule."""
        return Adam() if self.optimizer == "adam" else Sgd(self.momentum)


def unroll(
    loss: StepLoss,
    params: Tensors,
    steps: Batch,
    lr: Tensor | float,
    unrolling: Unrolling | None = None,
    programs: StepPrograms | None = None,
    *,
    held: bool = False,
) -> Tensors:
    r"""Train for T steps of SGD (with or without momentum) or Adam; the result is differentiable.

    .. math:: m_t = \beta m_{t-1} + \nabla \ell(x_t; \theta_{t-1}), \quad \theta_t = \theta_{t-1} - \eta_t m_t

    Gradients are exact with respect to the initial parameters, all floating-point tensors of the step batches, and the
    rates. They cannot be differentiated again. Everything else that the loss closes over counts as constant, so a
    tensor there that requires a gradient is refused if the first step's loss depends on it.

    Args:
        loss: the training loss of one step.
        params: the initial parameters, of one dtype.
        steps: the batches of all steps.
        lr: one rate, or one for each step.
        unrolling: momentum, truncation and how to differentiate.
        programs: compiles the gradients of steps on a CPU, for losses that depend on nothing but parameters and batch;
            other losses stay eager. Compiled steps keep no activations, unless ``keep`` is set.
        held: take TESLA's approximate gradient, with later states held fixed: each step's batch moves the end point
            through its own gradient, but not through those of later steps. Only the initial parameters are kept, since
            the backward pass repeats the steps, forwards. Nothing is truncated, and the student trains by SGD.

    Shapes:
        steps.inputs ``(T, b, ...)``, steps.targets ``(T, b[, C])``, steps.weight ``(T, b)``; lr ``()`` or ``(T,)``.
    Raises:
        ShapeError: the step axes differ, or the parameters are of several dtypes.
        UnsupportedError: the loss closes over a tensor that requires a gradient; in the backward pass, a layer without
            forward-mode derivatives in mode ``forward``.
    Source: survey Eq. 2, 3 and 12; Cui et al., ICML 2023, Sec. 3 (``held``).
    """
    unrolling = unrolling or Unrolling()
    dtypes = {tensor.dtype for tensor in params.values()}
    if len(dtypes) != 1:
        raise ShapeError(f"unrolling needs parameters of one dtype, got {sorted(map(str, dtypes)) or 'none'}")
    count = steps.weight.shape[0] if steps.weight.ndim == 2 else 0
    leaves, rebuild = flat_leaves(steps)
    if count < 1 or any(leaf.shape[:1] != (count,) for leaf in leaves):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise ShapeError(f"step batches have axes (steps, samples, ...) with at least one step, got {shapes}")
    layout = Layout.of(params)
    theta = layout.flatten(params)
    rates = torch.as_tensor(lr, device=theta.device).to(theta.dtype)
    if rates.shape not in ((), (count,)):
        raise ShapeError(f"learning rates are one number or one for each of {count} steps, got {tuple(rates.shape)}")
    check = unrolling.step_cache.require_reached if torch.is_grad_enabled() else None
    step: InnerStep
    if unrolling.mode == "forward" or (unrolling.mode == "auto" and theta.is_cuda):
        step = ForwardStep(loss, layout, rebuild, check, strict=unrolling.mode == "forward")
    else:
        step = EagerStep(loss, layout, rebuild, check)
        if theta.device.type == "cpu":
            chosen = [index for index, leaf in enumerate(leaves) if leaf.requires_grad]
            step = choose_cpu_step(step, _at(theta, leaves, 0, chosen), unrolling.step_cache, programs)
    loop = _HeldUnroll if held else _Unroll
    result: Tensor = loop.apply(step, unrolling, theta, rates.expand(count), *leaves)  # type: ignore[no-untyped-call]
    return layout.unflatten(result)


def _at(theta: Tensor, leaves: Sequence[Tensor], step: int, chosen: list[int]) -> StepPoint:
    """Return the point of one step, detached."""
    return StepPoint(theta.detach(), [leaf[step].detach() for leaf in leaves], step, chosen)


def _count_kept_steps(inner: InnerStep, unrolling: Unrolling, first: StepPoint) -> int:
    """Return the number of last steps that keep their activations."""
    if unrolling.keep is not None:
        return unrolling.keep
    if unrolling.mode != "auto" or first.theta.is_cuda or inner.compiled:
        return 0
    step_bytes = unrolling.step_cache.get_or_compute(
        ("bytes", step_signature(first)), lambda: recorded_bytes(inner, first)
    )
    return spare_memory_bytes() // max(step_bytes, 1)


class _Cotangents:
    """The cotangents of the rates and of the leaves that need gradients."""

    def __init__(self, rates: Tensor, leaves: Sequence[Tensor], needed: Sequence[bool]) -> None:
        self.rates = torch.zeros_like(rates, memory_format=torch.contiguous_format)
        self.chosen = [index for index, need in enumerate(needed) if need]
        self.leaves = {
            index: torch.zeros_like(leaves[index], memory_format=torch.contiguous_format) for index in self.chosen
        }

    def set(self, step: int, scale: Tensor | float, gradients: Sequence[Tensor]) -> None:
        """Write one step's rows: ``scale`` times its gradients with respect to the chosen leaves."""
        for index, gradient in zip(self.chosen, gradients, strict=True):
            self.leaves[index][step] = scale * gradient


class _Unroll(torch.autograd.Function):
    """The loop of :func:`unroll` on a parameter vector, with the exact adjoint."""

    @staticmethod
    def forward(
        ctx: Any, inner: InnerStep, unrolling: Unrolling, theta: Tensor, rates: Tensor, *leaves: Tensor
    ) -> Tensor:
        count, rule = len(rates), unrolling.rule()
        first = max(count - (unrolling.truncate or count), 0)
        differentiated = any(ctx.needs_input_grad)
        chosen = [index for index, need in enumerate(ctx.needs_input_grad[4:]) if need]
        thetas: list[Tensor] = []  # the parameters before each differentiated step
        kept: list[Tensor] = []  # the memory that each step's adjoint reads
        ctx.recorded = {}
        memory = rule.start(theta)
        keep = _count_kept_steps(inner, unrolling, _at(theta, leaves, 0, chosen)) if differentiated else 0
        for step in range(count):
            at = _at(theta, leaves, step, chosen)
            if step >= max(first, count - keep):
                ctx.recorded[step] = inner.record(at)
                gradient = total_gradient(ctx.recorded[step])
            else:
                gradient = inner.gradient(at)
            before = theta
            theta, memory = rule.step(theta, memory, gradient, rates[step], step)
            if differentiated and step >= first:
                thetas.append(before)
                kept += rule.kept(memory, gradient)
        ctx.inner, ctx.rule, ctx.first = inner, rule, first
        ctx.save_for_backward(rates, *leaves, *thetas, *kept)
        return theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        inner, rule, first, needed = ctx.inner, ctx.rule, ctx.first, ctx.needs_input_grad
        leaf_count = len(needed) - 4
        rates, *saved = ctx.saved_tensors
        step_count = len(rates) - first  # of the steps that are differentiated
        leaves, saved = saved[:leaf_count], saved[leaf_count:]
        thetas, kept = saved[:step_count], saved[step_count:]
        kept_per_step = len(kept) // step_count
        result = _Cotangents(rates, leaves, needed[4:])
        carried: Memory = rule.start(adjoint)
        for step in reversed(range(first, len(rates))):
            kept_here = tuple(kept[(step - first) * kept_per_step :][:kept_per_step])
            direction, scale, carried, rate_cotangent = rule.adjoint(adjoint, carried, kept_here, rates[step], step)
            if step in ctx.recorded:
                slope = vjp(ctx.recorded.pop(step), direction)
            else:
                theta = thetas[step - first]
                slope = inner.slope(_at(theta, leaves, step, result.chosen), direction)
            result.rates[step] = -slope.slope if rate_cotangent is None else rate_cotangent
            result.set(step, scale, slope.chosen)
            adjoint = adjoint + scale * slope.theta
        return (
            None,
            None,
            adjoint if needed[2] and first == 0 else None,
            result.rates if needed[3] else None,
            *(result.leaves.get(index) for index in range(leaf_count)),
        )


class _HeldUnroll(torch.autograd.Function):
    """The loop of :func:`unroll` on a parameter vector, with later states held fixed."""

    @staticmethod
    def forward(
        ctx: Any, inner: InnerStep, unrolling: Unrolling, theta: Tensor, rates: Tensor, *leaves: Tensor
    ) -> Tensor:
        ctx.inner, ctx.unrolling = inner, unrolling
        ctx.save_for_backward(theta, rates, *leaves)
        rule = unrolling.rule()
        memory = rule.start(theta)
        for step in range(len(rates)):
            gradient = inner.gradient(_at(theta, leaves, step, []))
            theta, memory = rule.step(theta, memory, gradient, rates[step], step)
        return theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        inner, beta, needed = ctx.inner, ctx.unrolling.momentum, ctx.needs_input_grad
        theta, rates, *leaves = ctx.saved_tensors
        result = _Cotangents(rates, leaves, needed[4:])
        # With states held, g_t enters the end point with -share_t = -sum over u >= t of lr_u beta^(u - t).
        shares = list(rates.unbind())
        for step in reversed(range(len(shares) - 1)):
            shares[step] = shares[step] + beta * shares[step + 1]
        rule = ctx.unrolling.rule()
        memory = rule.start(theta)
        for step, share in enumerate(shares):
            gradient, leaf_gradients = inner.held(_at(theta, leaves, step, result.chosen), adjoint)
            result.set(step, -share, leaf_gradients)
            theta, memory = rule.step(theta, memory, gradient, rates[step], step)
            result.rates[step] = -(adjoint @ (memory[0] if memory else gradient))
        leaf_cotangents = (result.leaves.get(index) for index in range(len(leaves)))
        return None, None, adjoint if needed[2] else None, result.rates if needed[3] else None, *leaf_cotangents
