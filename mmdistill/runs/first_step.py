"""What only steps can tell of a run's parts, said in words before any time is spent on more."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from numbers import Number

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.names import in_words
from mmdistill.objectives.base import Objective
from mmdistill.objectives.unrolled import UnrolledObjective
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws

ADVICE = {
    "labels": "say reads_labels = False in its class, or use hard labels (--label hard)",
    "decoder": "the samples are decoded without it; have the decoder's forward read its parameters",
    "objective": "read its parameters in forward, or register what is not learned as buffers",
}
"""What to do about a group that no gradient reaches."""


def require_start(
    run: RunState, active: Sequence[str], loss: Tensor, found: Sequence[Tensor | None], draws: Draws
) -> None:
    """Refuse what a first step shows: groups that no gradient reaches, samples that weigh nothing.

    Args:
        run: the state before the step's update.
        active: the groups that it learns.
        loss: its loss.
        found: the gradients of all tensors of these groups, in their order.
        draws: the key of its samples.
    Raises:
        ConfigError: saying what to do.
    """
    groups, rest = run.groups(), iter(found)
    require_all_reached(run.objective, {name: [next(rest) for _ in groups[name]] for name in active})
    if not bool(torch.isfinite(loss)):
        require_weights(run.parameterization, draws)


def require_all_reached(objective: Objective, found: Mapping[str, Sequence[Tensor | None]]) -> None:
    """Refuse a first step in which what shall be learned stays as it is.

    Args:
        objective: whose gradients they are.
        found: the gradients of all active groups, by group.
    Raises:
        ConfigError: a group that no gradient reaches; of an unrolled training, samples whose gradients are all zero.
    """
    name = type(objective).__name__
    for group, gradients in found.items():
        if gradients and all(gradient is None for gradient in gradients):
            advice = ADVICE.get(group, "leave out what is not learned: its parameters require no gradient")
            raise ConfigError(f"{name} gives no gradient to the {group}, which would never move; {advice}")
    codes = found.get("codes", ())
    if not isinstance(objective, UnrolledObjective) or not codes:
        return
    if not any(bool(gradient.any()) for gradient in codes if gradient is not None):
        raise ConfigError(
            f"the gradients of {name} to all samples are exactly zero in the first step; the network cuts them off "
            "(no_grad, detach, argmax), or the student does not move (--inner-lr)"
        )


def require_weights(made: Parameterization, draws: Draws) -> None:
    """Refuse samples that weigh nothing, over whose weights a first loss has been divided in vain.

    Args:
        made: what decodes them.
        draws: the key of the step's samples.
    Raises:
        ConfigError: all weights are zero, or those of a class.
    """
    with torch.no_grad():
        decoded = made(draws)
    parts = [decoded.weight] if made.classes is None else list(made.class_batches(decoded).batch.weight)
    empty = [str(index) for index, weight in enumerate(parts) if not bool((weight > 0).any())]
    if empty:
        which = "all samples" if len(empty) == len(parts) else f"all samples of class {empty[0]}"
        raise ConfigError(f"{type(made).__name__} decodes {which} with weight 0; a sample that counts has weight 1")


PLAIN = (Number, np.generic, str, bytes, Enum, torch.dtype, type(None))
"""What is compared by how it is written."""


class Unsaved:
    """What an objective keeps where no checkpoint does, as it is now: public attributes, but parameters and buffers.

    Numbers, texts, tensors and arrays are looked at, in lists, mappings, sets, dataclasses and parts of the objective
    too.

    Args:
        objective: the objective, before a step.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._before = _kept(objective)

    def require_unchanged(self) -> None:
        """Refuse an objective that has changed any of it since, which a run that resumes would begin with anew.

        Nothing waits for a device: of tensors it counts whether they are the same ones, never written to.

        Raises:
            ConfigError: naming what has changed, and where to keep it.
        """
        now, before = _kept(self.objective), self._before
        if changed := sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name)):
            raise ConfigError(
                f"a step of {type(self.objective).__name__} has changed its {in_words(changed)}, which checkpoints do "
                "not hold, so a resumed run would be another one; keep tensors in buffers (register_buffer), read "
                "network.step in place of a counter, or begin the name with _ where it changes no result (a cache, a "
                "log)"
            )


class _Seen:
    """A tensor and, unless checkpoints hold it, how often it was written to; equal to itself while that is so."""

    def __init__(self, tensor: Tensor, saved: bool) -> None:
        self.tensor, self.version = tensor, 0 if saved or tensor.is_inference() else tensor._version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seen) and self.tensor is other.tensor and self.version == other.version

    __hash__ = None  # type: ignore[assignment]


def _kept(objective: Objective) -> dict[str, object]:
    """Return the public attributes of an objective and its parts as values that tell whether they change, by name."""
    saved = {id(tensor) for tensor in objective.state_dict(keep_vars=True).values()}
    return {
        f"{path}.{name}" if path else name: _trace(value, saved)
        for path, module in objective.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }


def _trace(value: object, saved: set[int]) -> object:
    """Return what tells whether a value changes; of functions and other objects than :class:`Unsaved` names, a name.

    Args:
        value: an attribute.
        saved: the ids of tensors that checkpoints hold.
    """
    if isinstance(value, Tensor):
        return _Seen(value, id(value) in saved)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return _trace(value.tolist(), saved)
    if isinstance(value, np.ndarray):
        content = hashlib.blake2b(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data, digest_size=16)
        return str(value.dtype), value.shape, content.hexdigest()
    if isinstance(value, PLAIN):
        return repr(value)  # of which a NaN equals itself
    if isinstance(value, Mapping):
        return [(repr(name), _trace(one, saved)) for name, one in value.items()]
    if isinstance(value, list | tuple | deque):
        return [_trace(one, saved) for one in value]
    if isinstance(value, set | frozenset):
        return {repr(one) if isinstance(one, PLAIN) else id(one) for one in value}
    if isinstance(value, partial):
        return [_trace(one, saved) for one in (value.func, value.args, value.keywords)]
    if is_dataclass(value) and not isinstance(value, type):
        return [_trace(getattr(value, entry.name, None), saved) for entry in fields(value)]
    return getattr(value, "__qualname__", type(value).__qualname__)
