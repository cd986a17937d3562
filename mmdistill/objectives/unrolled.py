"""Performance matching through the unrolled inner loop (Eq. 2, 3), and the base of all unrolled objectives."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError, require_choice
from mmdistill.execution.portions import loss_by_portions
from mmdistill.execution.precision import autocast_for
from mmdistill.networks.minibatches import (
    drawn_sizes,
    fixed_order,
    gather_steps,
    part_sizes,
    repeat_steps,
    shuffled_order,
)
from mmdistill.networks.statistics import copied, has_statistics
from mmdistill.networks.unroll import StepLoss, Unrolling, unroll
from mmdistill.objectives.base import Network, Objective, flatten_classes, require_parameters
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, NetworkState, Task, Tensors, augmented, take

RateForm = Literal["raw", "softplus"]


class InnerRate(nn.Module):
    """The student's learning rate, learned or fixed.

    Args:
        initial: the first value.
        steps: learn one rate for each of ``steps`` steps; None: one for all.
        form: the parameter that is learned: the rate itself (``raw``, which may turn negative), or a number that
            ``softplus`` maps to it. The outer optimizer's learning rate differs in meaning between the two.
        learn: False keeps the initial value.
    Raises:
        ConfigError: an unknown form, or an initial rate that is not positive.
    """

    def __init__(self, initial: float, steps: int | None = None, form: RateForm = "raw", learn: bool = True) -> None:
        super().__init__()
        require_choice("the form of a learned rate", form, get_args(RateForm))
        if initial <= 0:
            raise ConfigError(f"the student's learning rate must start above 0, got {initial}")
        value = torch.full(() if steps is None else (steps,), float(initial))
        self.form = form
        if form == "softplus":
            value = value.expm1().log()
        self.value: Tensor
        if learn:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """Return the rate, ``()`` or ``(steps,)``."""
        return nn.functional.softplus(self.value) if self.form == "softplus" else self.value


class StudentOptions(TypedDict, total=False):
    """Options of a student's training, see :class:`UnrolledObjective`."""

    batch: int | None
    parts: int
    augment: bool
    unrolling: Unrolling | None


class UnrolledObjective(Objective):
    """Base of the objectives that train a student on the synthetic set and read its final parameters.

    Args:
        steps: T, the student's steps.
        rate: the student's learning rate.
        batch: the minibatch size, with samples shuffled anew in each epoch; None: the whole set in each step.
        parts: with ``batch`` None, cycle through a fixed partition into ``parts`` minibatches.
        augment: augment the samples, with one operation per step and a strength for each sample.
        unrolling: the student's optimizer, truncation, and how to differentiate.
    Shapes:
        flat batches; returns a scalar.
    Raises:
        ConfigError: values out of range, or a learned rate with an optimizer other than SGD.
    """

    view = "flat"
    siamese = False
    lowers = True
    compiling = 4
    _held_states = False
    """Whether the gradient holds later states fixed, see :func:`~mmdistill.networks.unroll.unroll`."""

    def check(self, task: Task) -> None:
        """Refuse a task whose network has no parameters to train, as an infinitely wide one.

        Raises:
            ConfigError: naming the data.
        """
        super().check(task)
        require_parameters(self, "trains students", task)

    def __init__(
        self,
        steps: int,
        rate: InnerRate,
        *,
        batch: int | None = None,
        parts: int = 1,
        augment: bool = False,
        unrolling: Unrolling | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or parts < 1 or (batch is not None and batch < 1):
            raise ConfigError(
                f"a student's steps (inner_steps), its minibatch (inner_batch, or 0 for all samples) and its parts "
                f"(inner_parts) are at least 1, got {steps}, {batch} and {parts}"
            )
        if rate.value.ndim and len(rate.value) != steps:
            raise ConfigError(f"the rates are of {len(rate.value)} steps, the student takes {steps}")
        if batch is not None and parts > 1:
            raise ConfigError(
                "minibatches are either drawn or the parts of a fixed partition, not both: leave one out "
                "(--inner-batch 0, or --set inner_parts=1)"
            )
        self.unrolling = unrolling or Unrolling()
        if self.unrolling.optimizer != "sgd" and isinstance(rate.value, nn.Parameter):
            raise ConfigError(
                f"a learned rate goes with the set, and judges use it in SGD; students that train by "
                f"{self.unrolling.optimizer} keep theirs: leave --set inner_optimizer={self.unrolling.optimizer} out, "
                "or give no optimizer for the group 'objective'"
            )
        self.steps = steps
        self.rate = rate
        self.batch = batch
        self.parts = parts
        self.augment = augment

    @property
    def samples_read(self) -> int | None:
        """How many samples all of the student's minibatches hold; None: it trains on all."""
        return None if self.batch is None else self.steps * self.batch

    def learned(self) -> Tensors:
        """Return the student's rate, with which judges train; nothing where students do not train by SGD."""
        return {"inner_lr": self.rate().detach()} if self.unrolling.optimizer == "sgd" else {}

    def student_steps(self, draws: Draws) -> int:
        """Return how many steps the student of this key takes."""
        return self.steps

    def step_batches(self, task: Task, syn: Batch, draws: Draws) -> Batch:
        """Return the minibatches of all steps, ``(T, b, ...)``, gathered and augmented in one go."""
        count, steps = syn.weight.shape[0], self.student_steps(draws)
        device = syn.weight.device
        if self.parts > 1:
            batches = gather_steps(syn, fixed_order(count, steps, self.parts, device))
        elif self.batch is None or self.batch >= count:
            batches = repeat_steps(syn, steps)
        else:
            batches = gather_steps(syn, shuffled_order(draws.fold("order").to(device), count, steps, self.batch))
        if not self.augment:
            return batches
        # Augmentation draws an operation for each class, so steps take the place of classes.
        return augmented(task, draws.fold("augment"), ClassBatch(batches, Dims(0, 0)), shared=False).batch

    def _batch_sizes(self, count: int, steps: int) -> list[int]:
        """Return the number of samples in each step's minibatch, without the copies of weight 0 that pad it."""
        if self.parts > 1:
            return part_sizes(count, steps, self.parts)
        return drawn_sizes(count, steps, self.batch or count)

    def train_student(self, network: Network, syn: Batch | ClassBatch, draws: Draws) -> Tensors:
        """Train a student from the network on; return its parameters, differentiable in the batch and the rate."""
        flat = flatten_classes(syn)
        batches = self.step_batches(network.task, flat, draws)
        sizes = self._batch_sizes(len(flat.weight), len(batches.weight)) if has_statistics(network.state) else None
        loss = student_loss(network, draws.fold("student"), sizes)
        programs = None if network.compiled is None or network.state.buffers else network.compiled.steps
        rate = self.student_rate(network.task)
        start = network.state.params
        return unroll(loss, start, batches, rate, self.unrolling, programs, held=self._held_states)

    def student_rate(self, task: Task) -> Tensor:
        """Return the learning rate of a task's students, one number or one for each step."""
        rate: Tensor = self.rate()
        return rate


class UnrolledPerformance(UnrolledObjective):
    r"""Match performance: the real loss of a student trained on the synthetic set (Eq. 2; Eq. 3 with momentum).

    .. math:: \ell(T; \theta^{(T)}), \quad \theta^{(t)} = \theta^{(t-1)} - \eta_t \nabla \ell(S; \theta^{(t-1)})

    With a window of W, the student takes a random number of steps from W to T, and gradients flow through the last W
    (random truncated back-propagation through time): students train long at the cost of short unrolls, and without the
    noise of gradients through many steps. Such a set fits no single number of steps, so judges train by their own
    protocol.

    Args:
        window: W; None: every student takes all T steps, and all are differentiated.

    All others are those of :class:`UnrolledObjective`.

    Shapes:
        flat batches; returns a scalar.
    Raises:
        ConfigError: a window outside of 1 to T, or one together with a truncation or a learned rate.
    Source: Wang et al., 2018; Deng and Russakovsky, NeurIPS 2022 (momentum); Feng et al., ICLR 2024 (window); survey
    Sec. 3.3.1.
    """

    def __init__(
        self, steps: int, rate: InnerRate, *, window: int | None = None, **student: Unpack[StudentOptions]
    ) -> None:
        super().__init__(steps, rate, **student)
        self.window = window
        if window is None:
            return
        if not 1 <= window <= steps:
            raise ConfigError(
                f"the window (inner_window) has from 1 to all {steps} of a student's steps (inner_steps), got {window}"
            )
        if isinstance(rate.value, nn.Parameter):
            raise ConfigError(
                "the rates of students that end at random steps cannot be learned; leave the window out, use rat-bptt, "
                "or give no optimizer for the group 'objective'"
            )
        if self.unrolling.truncate is not None:
            raise ConfigError("a window is a truncation already, so there is nothing else to truncate")
        self.unrolling = replace(self.unrolling, truncate=window)
        self.steady = False  # the number of steps varies, so no single CUDA graph fits

    def learned(self) -> Tensors:
        """Return the student's rate and, where its steps are not random, what judges need to repeat them."""
        if self.window is not None:
            return {}
        values = super().learned()
        if values and self.batch is None and not self.augment:
            values["inner_parts"] = torch.tensor(self.parts)
            values["inner_momentum"] = torch.tensor(self.unrolling.momentum)
        return values

    def student_steps(self, draws: Draws) -> int:
        """Return T, or with a window a random number from W to T."""
        if self.window is None:
            return self.steps
        return self.window + draws.fold("horizon").index(self.steps - self.window + 1)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the trained student's loss on the real batch; batch norms use the real batch's statistics."""
        end, key = self.train_student(network, syn, draws), draws.fold("real")

        def loss(params: Tensors, batch: Batch) -> Tensor:
            student = NetworkState(params, copied(network.state.buffers))
            with autocast_for(network.precision, batch.weight.device, graph=True):
                return network.task.loss(student, batch, train=has_statistics(student), draws=key)

        flat = flatten_classes(real)
        if has_statistics(NetworkState(end, network.state.buffers)):  # statistics of the whole batch, not of portions
            return loss(end, flat)
        return loss_by_portions(loss, end, flat)


def student_loss(network: Network, draws: Draws, sizes: Sequence[int] | None = None) -> StepLoss:
    """Return the training loss of a student as a function of parameters, minibatch and step.

    Args:
        network: the network from which students start; its buffers are used in every step.
        draws: the key from which, with the step's number, dropout derives.
        sizes: the number of samples of each step's minibatch, to drop the copies that pad it, which batch norms would
            count; None: keep all.
    """
    task, buffers = network.task, network.state.buffers

    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        student = NetworkState(params, copied(buffers))
        if sizes is not None:
            # Probes ask whether the next step's key changes the loss, also where that step is past the last one.
            batch = take(batch, slice(sizes[min(step, len(sizes) - 1)]))
        with autocast_for(network.precision, batch.weight.device, graph=True):
            return task.loss(student, batch, train=True, draws=draws.fold(step))

    return loss
