"""Students that train on a few nodes without edges, in closed form, with the exact adjoint of their steps.

Steps move the first weight within the span of the nodes' features: it is ``W + X^T C``, and what it makes of the nodes
``X W + (X X^T) C``. A step moves C by the gradient with respect to that. So of n nodes with d features a step takes n^2
multiplications for each unit in place of 2 n d. Of more than 2 d nodes that would be more, so steps move W itself.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.graph.models import GCN, SGC, named
from mmdistill.labels import as_probabilities, is_distribution
from mmdistill.task import Batch, Task, Tensors, one_tensor

ONE_LAYER = ("weight", "bias")
"""What an SGC calls its parameters."""
TWO_LAYERS = ("first.weight", "first.bias", "second.weight", "second.bias")
"""What a GCN or a perceptron calls its own."""
SEGMENT = 100
"""Steps of a stretch: the forward pass keeps where each starts, and the backward pass repeats all but the last."""


class StudentState(NamedTuple):
    """A student between two steps.

    Shapes:
        moved ``(n, h)``, C of the first weight, or ``(d, h)``, how far this has moved itself; bias ``(h,)``; of two
        layers second ``(C, h)`` and second_bias ``(C,)``, of one ``(0, 0)`` and ``(0,)``.
    """

    moved: Tensor
    bias: Tensor
    second: Tensor
    second_bias: Tensor


class Lesson(NamedTuple):
    """What all steps of a student are taken on.

    Rows of targets that are proper distributions are learned by cross entropy, others by squared errors. Such rows may
    miss a sum of 1 by rounding, and where labels are learned, their sum has a gradient too.

    Shapes:
        read ``(n, n)``, the features' products, by which C is read, or ``(n, d)``, the features, by whose transpose the
        weight moves; before ``(n, h)``, what the first weight made of the nodes at the start; targets ``(n, C)``; total
        ``(n, 1)``, their sums, or 1 of improper rows; rated ``(n, 1)``, the rate times each node's share of the loss;
        proper ``(n, 1)`` bool.
    """

    read: Tensor
    before: Tensor
    targets: Tensor
    total: Tensor
    rated: Tensor
    proper: Tensor


class Stretch(NamedTuple):
    """What successive steps leave for their adjoint.

    Shapes:
        states of ``(m + 1, ...)`` tensors, before each of m steps and after the last; hidden ``(m, n, h)``, or of one
        layer ``(m, n, 0)``; predicted ``(m, n, C)``, the softmax of proper rows and the logits of others.
    """

    states: StudentState
    hidden: Tensor
    predicted: Tensor


def trains_in_closed_form(task: Task, syn: Batch) -> bool:
    """Return whether a task's students are GCNs or perceptrons of two layers or SGCs, and the nodes have no edges."""
    network = getattr(task, "network", None)
    plain = isinstance(network, SGC) or (isinstance(network, GCN) and not network.dropout)
    return plain and isinstance(syn.inputs, dict) and set(syn.inputs) == {"x"}


def trained_in_closed_form(start: Tensors, syn: Batch, rate: Tensor, steps: int) -> Tensors:
    """Return the parameters of such a student after steps of SGD on all nodes, differentiably once.

    Args:
        start: its parameters at first.
        syn: nodes without edges, by any targets of :func:`~mmdistill.labels.target_loss`.
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
    now = StudentState(x.new_zeros(read.shape[1], len(first)), bias, second, second_bias)
    now = StudentState(*_Training.apply(steps, spanned, *now, *lesson))  # type: ignore[no-untyped-call]
    moved = now.moved.mT @ x if spanned else now.moved.mT
    ends = (first + moved, now.bias, now.second, now.second_bias)
    return dict(zip(names, ends, strict=False))


class _Training(torch.autograd.Function):
    """All steps of a student, with the exact adjoint; the last stretch of them is kept, others are repeated."""

    @staticmethod
    def forward(ctx: Any, steps: int, spanned: bool, *given: Tensor) -> StudentState:
        """Return where a student ends, given the parts of where it starts and of the lesson."""
        now, lesson = StudentState(*given[:4]), Lesson(*given[4:])
        ctx.spanned, ctx.lengths = spanned, [min(SEGMENT, steps - begun) for begun in range(0, steps, SEGMENT)]
        stretch, starts = _empty(now, lesson, min(SEGMENT, steps)), []
        for length in ctx.lengths:
            starts.append(now)
            now = _take(length, now, lesson, spanned, stretch)
        ctx.save_for_backward(*lesson, *stretch.states, *stretch[1:], *(part for start in starts for part in start))
        return now

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients to the start and to the lesson."""
        saved = ctx.saved_tensors
        lesson, kept, parts = Lesson(*saved[:6]), Stretch(StudentState(*saved[6:10]), *saved[10:12]), saved[12:]
        starts = [StudentState(*parts[begun : begun + 4]) for begun in range(0, len(parts), 4)]
        state = StudentState(*(slope.clone() for slope in slopes))
        found = Lesson(*(torch.zeros_like(part) for part in lesson))
        last = len(starts) - 1
        again = _empty(starts[0], lesson, ctx.lengths[0]) if last > 0 else kept  # kept is for a second pass too
        for index in reversed(range(len(starts))):
            stretch = kept if index == last else again
            if index != last:
                _take(ctx.lengths[index], starts[index], lesson, ctx.spanned, stretch)
            state = _pull(ctx.lengths[index], state, lesson, ctx.spanned, stretch, found)
        return None, None, *state, *found[:-1], None


def _empty(now: StudentState, lesson: Lesson, length: int) -> Stretch:
    """Return room for what so many steps leave."""
    states = StudentState(*(part.new_empty(length + 1, *part.shape) for part in now))
    hidden = (*lesson.before.shape[:1], now.second.shape[1])
    return Stretch(states, now.moved.new_empty(length, *hidden), now.moved.new_empty(length, *lesson.targets.shape))


def _take(length: int, now: StudentState, lesson: Lesson, spanned: bool, stretch: Stretch) -> StudentState:
    """Return where a student stands after so many more steps, and write what they leave into a stretch."""
    states = [StudentState(*parts) for parts in zip(*(part.unbind() for part in stretch.states), strict=True)]
    for part, place in zip(now, states[0], strict=True):
        place.copy_(part)
    two = bool(now.second_bias.numel())
    for step in range(length):
        moved, bias, second, second_bias = states[step]
        after = states[step + 1]
        if two:
            hidden = torch.addmm(lesson.before, lesson.read, moved, out=stretch.hidden[step]).add_(bias).relu_()
            logits = torch.addmm(second_bias, hidden, second.mT)
        else:
            logits = torch.addmm(lesson.before, lesson.read, moved).add_(bias)
        predicted = torch.where(lesson.proper, logits.softmax(1), logits, out=stretch.predicted[step])
        push = error = _errors(lesson, predicted) * lesson.rated
        if two:
            push = _where_positive(error @ second, hidden)
            torch.addmm(second, error.mT, hidden, alpha=-1, out=after.second)
            torch.sub(second_bias, error.sum(0), out=after.second_bias)
        if spanned:
            torch.sub(moved, push, out=after.moved)
        else:
            torch.addmm(moved, lesson.read.mT, push, alpha=-1, out=after.moved)
        torch.sub(bias, push.sum(0), out=after.bias)
    return StudentState(*(part.clone() for part in states[length]))


def _pull(
    length: int, slope: StudentState, lesson: Lesson, spanned: bool, stretch: Stretch, found: Lesson
) -> StudentState:
    """Return the gradient to where a stretch started from that to its end, and add those to the lesson to ``found``."""
    two = bool(slope.second_bias.numel())
    predicted = stretch.predicted[:length]
    errors = _errors(lesson, predicted)
    rated_errors = errors * lesson.rated
    to_errors, factor = torch.empty_like(errors), lesson.rated * lesson.total  # both with the sign turned
    to_moved, to_bias, to_second, to_second_bias = slope
    for step in reversed(range(length)):
        error, said = rated_errors[step], predicted[step]
        moved, second = stretch.states.moved[step], stretch.states.second[step]
        to_push = to_moved + to_bias if spanned else torch.addmm(to_bias, lesson.read, to_moved)
        to_error, push = to_push, error
        if two:
            hidden = stretch.hidden[step]
            to_push = _where_positive(to_push, hidden)
            to_error = torch.addmm(to_second_bias, to_push, second.mT).addmm_(hidden, to_second.mT)
        if not spanned:
            push = _where_positive(error @ second, hidden) if two else error
            found.read.addmm_(push, to_moved.mT, alpha=-1)
        to_errors[step] = to_error
        to_said = to_error * factor
        both = to_said * said
        to_logits = torch.where(lesson.proper, torch.addcmul(both, said, both.sum(1, keepdim=True), value=-1), to_said)
        to_units = to_logits.neg_()
        if two:
            to_units = torch.mm(to_logits, second).addmm_(error, to_second, alpha=-1)
            to_units = _where_positive(to_units, hidden)
            to_second = to_second.addmm(error.mT, to_push, alpha=-1).addmm_(to_logits.mT, hidden)
            to_second_bias = to_second_bias + to_logits.sum(0)
        found.read.addmm_(to_units, moved.mT)
        found.before.add_(to_units)
        to_moved = torch.addmm(to_moved, lesson.read.mT, to_units)
        to_bias = to_bias + to_units.sum(0)
    found.rated.sub_((to_errors * errors).sum((0, 2))[:, None])
    found.targets.add_((to_errors * lesson.rated).sum(0))
    found.total.sub_((to_errors * predicted).sum((0, 2))[:, None] * lesson.rated)
    return StudentState(to_moved, to_bias, to_second, to_second_bias)


def _errors(lesson: Lesson, predicted: Tensor) -> Tensor:
    """Return by how much predictions ``(..., n, C)`` miss the targets, where these have their sums."""
    return torch.addcmul(-lesson.targets, predicted, lesson.total)


def _where_positive(values: Tensor, hidden: Tensor) -> Tensor:
    """Return values, and 0 where the units behind them are not positive."""
    result: Tensor = torch.ops.aten.threshold_backward(values, hidden, 0)
    return result
