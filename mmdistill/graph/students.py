"""Students that train on a few nodes without edges, in closed form: no gradient is differentiated.

Steps move the first weight within the span of the nodes' features: it is ``W + X^T C``, and what it makes of the nodes
``X W + (X X^T) C``. A step moves C by the gradient with respect to that. So of n nodes with d features a step takes n^2
multiplications for each unit in place of 2 n d. Of more than 2 d nodes that would be more, so steps move W itself.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdistill.graph.models import GCN, SGC, named
from mmdistill.labels import as_probabilities, is_distribution
from mmdistill.task import Batch, Task, Tensors, one_tensor

ONE_LAYER = ("weight", "bias")
"""What an SGC calls its parameters."""
TWO_LAYERS = ("first.weight", "first.bias", "second.weight", "second.bias")
"""What a GCN or a perceptron calls its own."""
SEGMENT = 50
"""Steps between two points that the forward pass keeps; the backward pass repeats one stretch of them at a time."""


class StudentState(NamedTuple):
    """A student between two steps.

    Shapes:
        moved ``(n, h)``, C of the first weight, or ``(d, h)``, how far this has moved itself; bias ``(h,)``; of two
        layers second ``(C, h)`` and second_bias ``(C,)``, of one ``(0, h)`` and ``(0,)``.
    """

    moved: Tensor
    bias: Tensor
    second: Tensor
    second_bias: Tensor


class Lesson(NamedTuple):
    """What all steps of a student are taken on.

    Shapes:
        read ``(n, n)``, the features' products, by which C is read, or ``(n, d)``, the features; moving None, or where
        steps move the weight itself ``(d, n)``, the features again; before ``(n, h)``, what the first weight made of
        the nodes at the start; targets ``(n, C)``; share ``(n, 1)``, of each node in the loss; rate ``()``.
    """

    read: Tensor
    moving: Tensor | None
    before: Tensor
    targets: Tensor
    share: Tensor
    rate: Tensor


def trains_in_closed_form(task: Task, syn: Batch) -> bool:
    """Return whether a task's students are GCNs or perceptrons of two layers or SGCs, and the nodes have no edges."""
    network = getattr(task, "network", None)
    plain = isinstance(network, SGC) or (isinstance(network, GCN) and not network.dropout)
    return plain and isinstance(syn.inputs, dict) and set(syn.inputs) == {"x"}


def trained_in_closed_form(start: Tensors, syn: Batch, rate: Tensor, steps: int) -> Tensors:
    """Return the parameters of such a student after steps of SGD on all nodes, differentiably.

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
    read, moving = (x @ x.mT, None) if len(x) <= 2 * x.shape[1] else (x, x.mT)
    share = (syn.weight / syn.weight.sum())[:, None].to(x.dtype)
    lesson = Lesson(read, moving, x @ first.mT, targets, share, rate)
    now = StudentState(x.new_zeros(read.shape[1], len(first)), bias, second, second_bias)
    for begun in range(0, steps, SEGMENT):
        number = min(SEGMENT, steps - begun)
        now = checkpoint(_after, number, *now, *lesson, use_reentrant=False, preserve_rng_state=False)
    moved = now.moved.mT @ x if moving is None else now.moved.mT
    ends = (first + moved, now.bias, now.second, now.second_bias)
    return dict(zip(names, ends, strict=False))


def _after(steps: int, *given: Any) -> StudentState:
    """Return where a student stands after some more steps, given one's and a lesson's parts."""
    now, lesson = StudentState(*given[:4]), Lesson(*given[4:])
    proper = is_distribution(lesson.targets)[:, None]
    for _ in range(steps):
        now = _step(now, lesson, proper)
    return now


def _step(now: StudentState, lesson: Lesson, proper: Tensor) -> StudentState:
    """Return where a student stands after one more step.

    Rows of targets that are proper distributions are learned by cross entropy, others by squared errors. Such rows may
    miss a sum of 1 by rounding, and where labels are learned, their sum has a gradient too.
    """
    units = lesson.before + lesson.read @ now.moved + now.bias
    two = bool(now.second_bias.numel())
    hidden = units.relu() if two else units
    logits = hidden @ now.second.mT + now.second_bias if two else units
    predicted = torch.where(proper, logits.softmax(1) * lesson.targets.sum(1, keepdim=True), logits)
    error = lesson.share * (predicted - lesson.targets)
    push = error @ now.second * (units > 0) if two else error
    return StudentState(
        now.moved - lesson.rate * (push if lesson.moving is None else lesson.moving @ push),
        now.bias - lesson.rate * push.sum(0),
        now.second - lesson.rate * (error.mT @ hidden) if two else now.second,
        now.second_bias - lesson.rate * error.sum(0) if two else now.second_bias,
    )
