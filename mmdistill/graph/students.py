"""Train students on a few nodes without edges, in closed form, with the exact adjoint of their steps.

SGD changes the first weight only within the span of the nodes' features: it stays ``W + X^T C``, and its product with
the nodes is ``X W + (X X^T) C``. A step moves C by the gradient with respect to that product. For n nodes with d
features this takes n^2 multiplications per unit instead of 2 n d. For more than 2 d nodes it would take more, so then
steps move W itself.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.graph.models import GCN, SGC, named
from mmdistill.labels import as_probabilities, is_distribution
from mmdistill.task import Batch, Task, Tensors, one_tensor

ONE_LAYER = ("weight", "bias")
"""Names of an SGC's parameters."""
TWO_LAYERS = ("first.weight", "first.bias", "second.weight", "second.bias")
"""Names of a GCN's or a perceptron's parameters."""
SEGMENT = 100
"""Steps per stretch: the forward pass saves the start of each, and the backward pass recomputes all but the last."""


class StudentState(NamedTuple):
    """A student between two steps.

    Shapes:
        moved ``(n, h)``, the first weight's C, or ``(d, h)``, that weight's change; bias ``(h,)``; second ``(C, h)``
        and second_bias ``(C,)``, for one layer ``(0, 0)`` and ``(0,)``.
    """

    moved: Tensor
    bias: Tensor
    second: Tensor
    second_bias: Tensor


class Lesson(NamedTuple):
    """The data that all steps of a student train on.

    Rows of targets that are distributions (proper rows) are learned by cross entropy, others by squared errors. The sum
    of a proper row may differ from 1 by rounding, and has a gradient where labels are learned.

    Shapes:
        read ``(n, n)``, the products X X^T that multiply C, or ``(n, d)``, the features X, if the weight itself moves;
        before ``(n, h)``, the nodes times the initial first weight; targets ``(n, C)``; total ``(n, 1)``, the sums of
        proper rows, 1 for others; rated ``(n, 1)``, the rate times each node's share of the loss; proper ``(n, 1)``
        bool.
    """

    read: Tensor
    before: Tensor
    targets: Tensor
    total: Tensor
    rated: Tensor
    proper: Tensor


class Stretch(NamedTuple):
    """What successive steps save for their adjoint.

    Shapes:
        states of ``(m + 1, ...)`` tensors, before each of m steps and after the last; hidden ``(m, n, h)``, for one
        layer ``(m, n, 0)``; predicted ``(m, n, C)``, the softmax of proper rows and the logits of others.
    """

    states: StudentState
    hidden: Tensor
    predicted: Tensor


def trains_in_closed_form(task: Task, syn: Batch) -> bool:
    """Return whether a task's network is an SGC, or a GCN or MLP without dropout, and the nodes have no edges."""
    network = getattr(task, "network", None)
    plain = isinstance(network, SGC) or (isinstance(network, GCN) and not network.dropout)
    return plain and isinstance(syn.inputs, dict) and set(syn.inputs) == {"x"}


def train_in_closed_form(start: Tensors, syn: Batch, rate: Tensor, steps: int) -> Tensors:
    """Return a student's parameters after full-batch steps of SGD, differentiable once.

    Args:
        start: its initial parameters.
        syn: nodes without edges, with any targets of :func:`~mmdistill.labels.target_loss`.
        rate: the learning rate, one for all steps.
        steps: T.
    Shapes:
        syn.inputs["x"] ``(n, d)``; start and result as the network's parameters.
    """
    x, names = named(syn.inputs)["x"], TWO_LAYERS if TWO_LAYERS[0] in start else ONE_LAYER
    first, bias = (start[name] for name in names[:2])
    second, second_bias = (start[name] for name in names[2:]) if names[2:] else (first[:0, :0], bias[:0])
    targets = as_probabilities(one_tensor(syn.targets), len(start[names[-1]])).to(x.dtype)
    spanned = len(x) <= 2 * x.shape[1]
    read = x @ x.mT if spanned else x
    proper = is_distribution(targets)[:, None]
    total = torch.where(proper, targets.sum(1, keepdim=True), 1.0)
    rated = (rate * syn.weight / syn.weight.sum())[:, None].to(x.dtype)
    lesson = Lesson(read, x @ first.mT, targets, total, rated, proper)
    student = StudentState(x.new_zeros(read.shape[1], len(first)), bias, second, second_bias)
    student = StudentState(*_Training.apply(steps, spanned, *student, *lesson))  # type: ignore[no-untyped-call]
    moved = student.moved.mT @ x if spanned else student.moved.mT
    end = (first + moved, student.bias, student.second, student.second_bias)
    return dict(zip(names, end, strict=False))


class _Training(torch.autograd.Function):
    """All steps of a student, with the exact adjoint; the last stretch is saved, earlier ones are recomputed."""

    @staticmethod
    def forward(ctx: Any, steps: int, spanned: bool, *tensors: Tensor) -> StudentState:
        """Return the student's end, given the tensors of its start and of the lesson."""
        student, lesson = StudentState(*tensors[:4]), Lesson(*tensors[4:])
        ctx.spanned, ctx.lengths = spanned, [min(SEGMENT, steps - first) for first in range(0, steps, SEGMENT)]
        stretch, starts = _allocate(student, lesson, min(SEGMENT, steps)), []
        for length in ctx.lengths:
            starts.append(student)
            student = _run(length, student, lesson, spanned, stretch)
        ctx.save_for_backward(*lesson, *stretch.states, *stretch[1:], *(part for start in starts for part in start))
        return student

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to the start and the lesson."""
        saved = ctx.saved_tensors
        lesson, stored = Lesson(*saved[:6]), Stretch(StudentState(*saved[6:10]), *saved[10:12])
        start_tensors = saved[12:]
        starts = [StudentState(*start_tensors[first : first + 4]) for first in range(0, len(start_tensors), 4)]
        state = StudentState(*(cotangent.clone() for cotangent in cotangents))
        gradients = Lesson(*(torch.zeros_like(part) for part in lesson))
        last = len(starts) - 1
        # A stretch of its own, since a second backward pass reads the stored one again.
        recomputed = _allocate(starts[0], lesson, ctx.lengths[0]) if last > 0 else stored
        for index in reversed(range(len(starts))):
            stretch = stored if index == last else recomputed
            if index != last:
                _run(ctx.lengths[index], starts[index], lesson, ctx.spanned, stretch)
            state = _pull_back(ctx.lengths[index], state, lesson, ctx.spanned, stretch, gradients)
        return None, None, *state, *gradients[:-1], None


def _allocate(student: StudentState, lesson: Lesson, length: int) -> Stretch:
    """Return uninitialised room for a stretch of ``length`` steps."""
    states = StudentState(*(part.new_empty(length + 1, *part.shape) for part in student))
    hidden_shape = (*lesson.before.shape[:1], student.second.shape[1])
    hidden = student.moved.new_empty(length, *hidden_shape)
    return Stretch(states, hidden, student.moved.new_empty(length, *lesson.targets.shape))


def _run(length: int, student: StudentState, lesson: Lesson, spanned: bool, stretch: Stretch) -> StudentState:
    """Take ``length`` steps, fill ``stretch`` with what their adjoint needs, and return the student after them."""
    states = [StudentState(*parts) for parts in zip(*(part.unbind() for part in stretch.states), strict=True)]
    for part, room in zip(student, states[0], strict=True):
        room.copy_(part)
    two_layers = bool(student.second_bias.numel())
    for step in range(length):
        moved, bias, second, second_bias = states[step]
        after = states[step + 1]
        if two_layers:
            hidden = torch.addmm(lesson.before, lesson.read, moved, out=stretch.hidden[step]).add_(bias).relu_()
            logits = torch.addmm(second_bias, hidden, second.mT)
        else:
            logits = torch.addmm(lesson.before, lesson.read, moved).add_(bias)
        predicted = torch.where(lesson.proper, logits.softmax(1), logits, out=stretch.predicted[step])
        push = error = _errors(lesson, predicted) * lesson.rated
        if two_layers:
            push = _where_positive(error @ second, hidden)
            torch.addmm(second, error.mT, hidden, alpha=-1, out=after.second)
            torch.sub(second_bias, error.sum(0), out=after.second_bias)
        if spanned:
            torch.sub(moved, push, out=after.moved)
        else:
            torch.addmm(moved, lesson.read.mT, push, alpha=-1, out=after.moved)
        torch.sub(bias, push.sum(0), out=after.bias)
    return StudentState(*(part.clone() for part in states[length]))


def _pull_back(
    length: int, cotangent: StudentState, lesson: Lesson, spanned: bool, stretch: Stretch, gradients: Lesson
) -> StudentState:
    """Return the cotangent of a stretch's start from that of its end; add the lesson's to ``gradients``."""
    two_layers = bool(cotangent.second_bias.numel())
    predicted = stretch.predicted[:length]
    errors = _errors(lesson, predicted)
    rated_errors = errors * lesson.rated
    to_errors, factor = torch.empty_like(errors), lesson.rated * lesson.total  # both with the opposite sign
    to_moved, to_bias, to_second, to_second_bias = cotangent
    for step in reversed(range(length)):
        error, output = rated_errors[step], predicted[step]
        moved, second = stretch.states.moved[step], stretch.states.second[step]
        to_push = to_moved + to_bias if spanned else torch.addmm(to_bias, lesson.read, to_moved)
        to_error, push = to_push, error
        if two_layers:
            hidden = stretch.hidden[step]
            to_push = _where_positive(to_push, hidden)
            to_error = torch.addmm(to_second_bias, to_push, second.mT).addmm_(hidden, to_second.mT)
        if not spanned:
            push = _where_positive(error @ second, hidden) if two_layers else error
            gradients.read.addmm_(push, to_moved.mT, alpha=-1)
        to_errors[step] = to_error
        to_output = to_error * factor
        weighted = to_output * output
        to_logits = torch.where(
            lesson.proper, torch.addcmul(weighted, output, weighted.sum(1, keepdim=True), value=-1), to_output
        )
        to_units = to_logits.neg_()
        if two_layers:
            to_units = torch.mm(to_logits, second).addmm_(error, to_second, alpha=-1)
            to_units = _where_positive(to_units, hidden)
            to_second = to_second.addmm(error.mT, to_push, alpha=-1).addmm_(to_logits.mT, hidden)
            to_second_bias = to_second_bias + to_logits.sum(0)
        gradients.read.addmm_(to_units, moved.mT)
        gradients.before.add_(to_units)
        to_moved = torch.addmm(to_moved, lesson.read.mT, to_units)
        to_bias = to_bias + to_units.sum(0)
    gradients.rated.sub_((to_errors * errors).sum((0, 2))[:, None])
    gradients.targets.add_((to_errors * lesson.rated).sum(0))
    gradients.total.sub_((to_errors * predicted).sum((0, 2))[:, None] * lesson.rated)
    return StudentState(to_moved, to_bias, to_second, to_second_bias)


def _errors(lesson: Lesson, predicted: Tensor) -> Tensor:
    """Return predictions ``(..., n, C)``, scaled to the targets' sums, minus the targets."""
    return torch.addcmul(-lesson.targets, predicted, lesson.total)


def _where_positive(values: Tensor, hidden: Tensor) -> Tensor:
    """Return values where the hidden units are positive, else 0: the gradient of the rectifier."""
    result: Tensor = torch.ops.aten.threshold_backward(values, hidden, 0)
    return result
