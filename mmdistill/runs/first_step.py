"""Checks of a run's parts that only its first step can make: gradients that vanish, state that checkpoints lack."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from inspect import ismethod
from numbers import Number

import numpy as np
import torch
from torch import Tensor, nn

from mmdistill.described import DEEPEST, has_content, is_table, own_attributes, set_attributes
from mmdistill.errors import ConfigError
from mmdistill.names import in_words
from mmdistill.objectives.base import Objective
from mmdistill.objectives.unrolled import UnrolledObjective
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws, writes
from mmdistill.task import Batch, ClassBatch, Task

ADVICE = {
    "labels": "say reads_labels = False in its class, or use hard labels (--label hard)",
    "decoder": "the samples are decoded without it; have the decoder's forward read its parameters",
    "objective": "read its parameters in forward, or register what is not learned as buffers",
}
"""What to do if no gradient reaches a group, by group."""


def require_start(
    run: RunState, active: Sequence[str], loss: Tensor, gradients: Sequence[Tensor | None], draws: Draws
) -> None:
    """Refuse a first step in which no gradient reaches a group, or in which samples weigh nothing.

    Args:
        run: the state before the step's update.
        active: the groups that the step learns.
        loss: of the step.
        gradients: of all tensors of these groups, in order.
        draws: the key of the step's samples.
    Raises:
        ConfigError: there are such; says what to do.
    """
    groups, remaining = run.groups(), iter(gradients)
    require_all_reached(run.objective, {name: [next(remaining) for _ in groups[name]] for name in active})
    if not bool(torch.isfinite(loss)):
        require_weights(run.parameterization, draws)


def require_all_reached(objective: Objective, gradients_of: Mapping[str, Sequence[Tensor | None]]) -> None:
    """Refuse a first step that leaves learned tensors as they are.

    Args:
        objective: of the step.
        gradients_of: the gradients of each active group.
    Raises:
        ConfigError: no gradient reaches a group, or an unrolled training gives only zeros to the samples.
    """
    name = type(objective).__name__
    for group, gradients in gradients_of.items():
        if gradients and all(gradient is None for gradient in gradients):
            advice = ADVICE.get(group, "leave out what is not learned: its parameters require no gradient")
            raise ConfigError(f"{name} gives no gradient to the {group}, which would never move; {advice}")
    codes = gradients_of.get("codes", ())
    if not isinstance(objective, UnrolledObjective) or not codes:
        return
    if not any(bool(gradient.any()) for gradient in codes if gradient is not None):
        raise ConfigError(
            f"the gradients of {name} to all samples are exactly zero in the first step; the network cuts them off "
            "(no_grad, detach, argmax), or the student does not move (--inner-lr)"
        )


def require_weights(parameterization: Parameterization, draws: Draws) -> None:
    """Refuse samples whose weights are all zero, which makes a loss that divides by their sum not finite.

    Args:
        parameterization: decodes the samples.
        draws: the key of the step's samples.
    Raises:
        ConfigError: all weights are zero, or all of a class.
    """
    with torch.no_grad():
        decoded = parameterization(draws)
    if parameterization.classes is None:
        weights = decoded.weight[None]
    else:
        weights = parameterization.class_batches(decoded).batch.weight
    _require_some(f"{type(parameterization).__name__} decodes", weights)


def require_real_weights(task: Task, objective: Objective, real: Batch | ClassBatch) -> None:
    """Refuse real samples whose weights are all zero, which many objectives would match as zeros without a word.

    Args:
        task: drew the samples.
        objective: of the step.
        real: the samples.
    Raises:
        ConfigError: the objective reads them, and all weights are zero, or all of a class.
    """
    if objective.reads_real:
        weights = real.batch.weight if isinstance(real, ClassBatch) else real.weight[None]
        _require_some(f"{type(task).__name__}.sample_real gives", weights)


def _require_some(source: str, weights: Tensor) -> None:
    """Refuse weights ``(C, n)`` that are all zero, or all of a class."""
    empty = (~(weights > 0).any(1)).nonzero().flatten().tolist()
    if empty:
        which = "all samples" if len(empty) == len(weights) else f"all samples of class {empty[0]}"
        raise ConfigError(f"{source} {which} with weight 0; a sample that counts has weight 1")


PLAIN = (Number, np.generic, str, bytes, Enum, torch.dtype, type(None))
"""Types whose values are compared by their ``repr``."""


class Unsaved:
    """A snapshot of the state of an objective that checkpoints do not hold: its public attributes.

    It covers numbers, texts, tensors and arrays, also within lists, mappings, sets, dataclasses, submodules and objects
    of users' classes, as far as these describe a run. What arrays and such objects hold is looked at after the first
    step, and later only if something else differs or another stands in their place: it may take long.

    Args:
        objective: the objective, before a step.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._before, self._checked = _snapshot(objective), dict[str, object]()
        self._learned = _learned(objective)

    def require_unchanged(self) -> None:
        """Refuse an objective that has changed any of it since, since a resumed run would begin with the old values.

        Does not wait for a device: a tensor is unchanged if it is the same object and was not written to.

        Raises:
            ConfigError: it has; names what changed, and where to keep it.
        """
        if self._checked and self._checked == _snapshot(self.objective, whole=False):
            return
        now, before = _snapshot(self.objective), self._before
        if changed := sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name)):
            raise ConfigError(
                f"a step of {type(self.objective).__name__} has changed its {in_words(changed)}, which checkpoints do "
                "not hold, so a resumed run would be another one; keep tensors in buffers (register_buffer), read "
                "network.step in place of a counter, or begin the name with _ where it changes no result (a cache, a "
                "log)"
            )
        self._checked = _snapshot(self.objective, whole=False)

    def require_same_learned(self) -> None:
        """Refuse an objective of which other parameters require a gradient than those that the optimizers learn.

        Raises:
            ConfigError: there are such; names them.
        """
        if changed := sorted(self._learned ^ _learned(self.objective)):
            raise ConfigError(
                f"a step of {type(self.objective).__name__} has changed whether its {in_words(changed)} is learned, "
                "but a run learns what requires a gradient before its first step; let it require one from then on, and "
                "multiply by 0 what shall not learn yet"
            )


def _learned(objective: Objective) -> set[str]:
    """Return the names of an objective's parameters that require a gradient."""
    return {name for name, parameter in objective.named_parameters() if parameter.requires_grad}


class _Identity:
    """A tensor or an object, compared by identity and by a count of in-place writes."""

    def __init__(self, value: object, writes: int = 0) -> None:
        self.value, self.writes = value, writes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value and self.writes == other.writes

    __hash__ = None  # type: ignore[assignment]


def _snapshot(objective: Objective, whole: bool = True) -> dict[str, object]:
    """Return a trace of each public attribute of an objective and its submodules, by name; see :class:`_Trace`."""
    saved = {id(tensor) for tensor in objective.state_dict(keep_vars=True).values()}
    trace = _Trace(saved, {id(module) for module in objective.modules()}, whole)
    return {
        f"{path}.{name}" if path else name: trace.of(value)
        for path, module in objective.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }


class _Trace:
    """Makes values that differ after others have changed.

    Args:
        saved: the ids of tensors that checkpoints hold.
        met: the ids of objects that need no further look.
        whole: whether to look into arrays and users' objects.
    """

    def __init__(self, saved: set[int], met: set[int], whole: bool) -> None:
        self._saved, self._met, self._whole, self._depth = saved, met, whole, 0

    def of(self, value: object) -> object:
        """Return a value that differs after ``value`` has changed; for functions, tables and foreign objects a name."""
        if isinstance(value, Tensor):
            return _Identity(value, 0 if id(value) in self._saved else writes(value))
        if not self._whole and (isinstance(value, np.ndarray) or has_content(value)):
            return _Identity(value)
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return self.of(value.tolist())
        if isinstance(value, np.ndarray):
            content = hashlib.blake2b(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data, digest_size=16)
            return str(value.dtype), value.shape, content.hexdigest()
        if isinstance(value, PLAIN):
            return repr(value)  # not the value, since a NaN does not equal itself
        if isinstance(value, Mapping):
            return [(repr(key), self.of(item)) for key, item in value.items()]
        if isinstance(value, list | tuple | deque):
            return [self.of(item) for item in value]
        if isinstance(value, set | frozenset):
            return {repr(item) if isinstance(item, PLAIN) else id(item) for item in value}
        if isinstance(value, partial):
            return [self.of(item) for item in (value.func, value.args, value.keywords)]
        if ismethod(value):
            return [value.__name__, self.of(value.__self__)]
        name = getattr(value, "__qualname__", type(value).__qualname__)
        watched = has_content(value) and not is_table(value) and id(value) not in self._met
        return [name, *self._held(value)] if watched else name

    def _held(self, value: object) -> list[object]:
        """Return traces of what an object, met for the first time, holds."""
        if self._depth >= DEEPEST:
            return []
        self._met.add(id(value))
        self._depth += 1
        attributes = set_attributes(value) if is_dataclass(value) else own_attributes(value)
        held = {name: attribute for name, attribute in attributes.items() if not name.startswith("_")}
        tensors = [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else []
        traces = [*((name, self.of(attribute)) for name, attribute in held.items()), *map(self.of, tensors)]
        self._depth -= 1
        return traces
