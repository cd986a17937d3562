"""The unrolled inner loop as one differentiable function, at the activation memory of one step (Eq. 2, 3, 12).

Students train for T steps on batches that depend on the synthetic data, and an objective reads the parameters they end
with. Automatic differentiation would keep the activations of all T steps. Here the forward pass keeps only the
parameter vectors, and the backward pass is the adjoint recursion, each step of which is recomputed: for the step
``theta' = theta - lr g(theta, x)`` and the adjoint ``lam`` of ``theta'``, the slope ``s = <g(theta, x), lam>`` is a
directional derivative of the loss, and ``lam - lr ds/dtheta``, ``-lr ds/dx`` and ``-s`` are the cotangents of theta, x
and lr. In forward mode no gradient is ever differentiated: that is reverse over forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.choices import InnerOptimizer
from mmdistill.errors import ConfigError, ShapeError, require_choice
from mmdistill.networks.inner_steps import EagerStep, ForwardStep, InnerStep, Layout, StepPoint, flat_leaves, total, vjp
from mmdistill.networks.inner_steps import StepLoss as StepLoss
from mmdistill.networks.step_choice import DiffMode, StepCache, kind_of, on_cpu, recorded_bytes
from mmdistill.networks.step_programs import StepPrograms
from mmdistill.networks.update_rules import Adam, Memory, Sgd, UpdateRule
from mmdistill.runtime import spare_memory_bytes
from mmdistill.task import Batch, Tensors


@dataclass(frozen=True)
class Unrolling:
    """How the loop is unrolled and differentiated.

    Args:
        momentum: beta of Eq. 3, of SGD.
        truncate: gradients flow through the last k steps only, as if these started from a constant; None: all.
        mode: ``forward`` takes the slope as a directional derivative; ``reverse`` differentiates the gradient instead,
            at the memory of one step too. ``auto`` is forward on CUDA, where double backward of convolutions is slow,
            and reverse on the CPU, where it is the faster one, and for layers without forward-mode derivatives.
        keep: the last steps whose activations are kept instead of recomputed; they are differentiated in reverse. None
            keeps none, but on the CPU in mode ``auto``, where recomputing costs 15 to 32 % of the time, as many as fit
            into :func:`~mmdistill.runtime.spare_memory_bytes`.
        optimizer: by which the student trains, ``sgd`` or ``adam``.
    Raises:
        ConfigError: values out of range.
    """

    momentum: float = 0.0
    truncate: int | None = None
    mode: DiffMode = field(default="auto", compare=False)  # how gradients are found, and not which
    keep: int | None = field(default=None, compare=False)  # it bounds memory, and changes no result
    optimizer: InnerOptimizer = "sgd"
    step_cache: StepCache = field(default_factory=StepCache, init=False, repr=False, compare=False)
    """About the steps that are unrolled, which are those of one loss."""

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
        """Return how the student takes a step."""
        return Adam() if self.optimizer == "adam" else Sgd(self.momentum)


def unroll(
    loss: StepLoss,
    params: Tensors,
    steps: Batch,
    lr: Tensor | float,
    unrolling: Unrolling | None = None,
    programs: StepPrograms | None = None,
) -> Tensors:
    r"""Train for T steps of SGD, with momentum or without, or Adam; the result is differentiable.

    .. math:: m_t = \beta m_{t-1} + \nabla \ell(x_t; \theta_{t-1}), \quad \theta_t = \theta_{t-1} - \eta_t m_t

    Gradients are exact with respect to the initial parameters, all floating-point tensors of the step batches, and the
    rates. They cannot be differentiated again. Whatever else the loss closes over is a constant to them, so that
    tensors which require gradients are refused there, as far as the first step's loss depends on them.

    Args:
        loss: the training loss of one step.
        params: the initial parameters, of one dtype.
        steps: the batches of all steps.
        lr: one rate, or one for each step.
        unrolling: momentum, truncation and how to differentiate.
        programs: where the gradients of steps are compiled on a CPU, of losses that read nothing that changes but their
            parameters and batch; no activations are kept then, unless ``keep`` says so. Other losses stay eager.

    Shapes:
        steps.inputs ``(T, b, ...)``, steps.targets ``(T, b[, C])``, steps.weight ``(T, b)``; lr ``()`` or ``(T,)``.
    Raises:
        ShapeError: the step axes differ, or the parameters are of several dtypes.
        UnsupportedError: the loss closes over a tensor that requires a gradient; in the backward pass, a layer without
            forward-mode derivatives in mode ``forward``.
    Source: survey Eq. 2, 3 and 12.
    """
    return _trained(_Unroll, loss, params, steps, lr, unrolling or Unrolling(), programs)


def unroll_held(
    loss: StepLoss,
    params: Tensors,
    steps: Batch,
    lr: Tensor | float,
    unrolling: Unrolling | None = None,
    programs: StepPrograms | None = None,
) -> Tensors:
    """Train like :func:`unroll`, with TESLA's approximate gradient: later states are held fixed.

    Each step's batch is taken to move the end point directly, through its own gradient, but not through the
    gradients of later steps. Nothing but the initial parameters is kept: the backward pass walks the steps again,
    forwards.

    Args: those of :func:`unroll`.
    Shapes: those of :func:`unroll`.
    Source: Cui et al., ICML 2023, Sec. 3.
    """
    return _trained(_HeldUnroll, loss, params, steps, lr, unrolling or Unrolling(), programs)


def _trained(
    loop: type[torch.autograd.Function],
    loss: StepLoss,
    params: Tensors,
    steps: Batch,
    lr: Tensor | float,
    unrolling: Unrolling,
    programs: StepPrograms | None,
) -> Tensors:
    """Check the arguments, bring them into flat form, choose how a step is computed, and run a loop on these."""
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
            step = on_cpu(step, _at(theta, leaves, 0, chosen), unrolling.step_cache, programs)
    result: Tensor = loop.apply(step, unrolling, theta, rates.expand(count), *leaves)  # type: ignore[no-untyped-call]
    return layout.unflatten(result)


def _at(theta: Tensor, leaves: Sequence[Tensor], step: int, chosen: list[int]) -> StepPoint:
    """Return where a step is taken, of which nothing requires a gradient."""
    return StepPoint(theta.detach(), [leaf[step].detach() for leaf in leaves], step, chosen)


def _kept_steps(inner: InnerStep, unrolling: Unrolling, first: StepPoint) -> int:
    """Return how many of the last steps keep their activations."""
    if unrolling.keep is not None:
        return unrolling.keep
    if unrolling.mode != "auto" or first.theta.is_cuda or inner.compiled:
        return 0
    own = unrolling.step_cache.once(("bytes", kind_of(first)), lambda: recorded_bytes(inner, first))
    return spare_memory_bytes() // max(own, 1)


class _Cotangents:
    """The cotangents of the rates and of those leaves that need one."""

    def __init__(self, rates: Tensor, leaves: Sequence[Tensor], needed: Sequence[bool]) -> None:
        self.rates = torch.zeros_like(rates, memory_format=torch.contiguous_format)
        self.chosen = [index for index, need in enumerate(needed) if need]
        self.leaves = {
            index: torch.zeros_like(leaves[index], memory_format=torch.contiguous_format) for index in self.chosen
        }

    def set(self, step: int, scale: Tensor | float, gradients: Sequence[Tensor]) -> None:
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
        trail: list[Tensor] = []
        kept: list[Tensor] = []
        ctx.recorded = {}
        memory = rule.start(theta)
        keep = _kept_steps(inner, unrolling, _at(theta, leaves, 0, chosen)) if differentiated else 0
        for step in range(count):
            at = _at(theta, leaves, step, chosen)
            if step >= max(first, count - keep):
                ctx.recorded[step] = inner.record(at)
                gradient = total(ctx.recorded[step])
            else:
                gradient = inner.gradient(at)
            before = theta
            theta, memory = rule.step(theta, memory, gradient, rates[step], step)
            if differentiated and step >= first:
                trail.append(before)
                kept += rule.kept(memory, gradient)
        ctx.inner, ctx.rule, ctx.first, ctx.trail_length = inner, rule, first, len(trail)
        ctx.save_for_backward(rates, *leaves, *trail, *kept)
        return theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        inner, rule, first, needed = ctx.inner, ctx.rule, ctx.first, ctx.needs_input_grad
        number = len(needed) - 4
        rates, *rest = ctx.saved_tensors
        leaves, trail, kept = rest[:number], rest[number:][: ctx.trail_length], rest[number + ctx.trail_length :]
        each = len(kept) // len(trail)
        result = _Cotangents(rates, leaves, needed[4:])
        carried: Memory = rule.start(adjoint)
        for step in reversed(range(first, len(rates))):
            own = tuple(kept[(step - first) * each :][:each])
            direction, scale, carried, by_rate = rule.adjoint(adjoint, carried, own, rates[step], step)
            if step in ctx.recorded:
                pulled = vjp(ctx.recorded.pop(step), direction)
            else:
                theta = trail[step - first]
                pulled = inner.slope(_at(theta, leaves, step, result.chosen), direction)
            result.rates[step] = -pulled.slope if by_rate is None else by_rate
            result.set(step, scale, pulled.chosen)
            adjoint = adjoint + scale * pulled.theta
        return (
            None,
            None,
            adjoint if needed[2] and first == 0 else None,
            result.rates if needed[3] else None,
            *(result.leaves.get(index) for index in range(number)),
        )


class _HeldUnroll(torch.autograd.Function):
    """The loop of :func:`unroll_held` on a parameter vector."""

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
            gradient, moved = inner.held(_at(theta, leaves, step, result.chosen), adjoint)
            result.set(step, -share, moved)
            theta, memory = rule.step(theta, memory, gradient, rates[step], step)
            result.rates[step] = -(adjoint @ (memory[0] if memory else gradient))
        leaf_cotangents = (result.leaves.get(index) for index in range(len(leaves)))
        return None, None, adjoint if needed[2] else None, result.rates if needed[3] else None, *leaf_cotangents
