"""Networks are run once when their task is made, so that one that cannot work fails then."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, MmdistillWarning, ShapeError, first_line
from mmdistill.runtime import Draws
from mmdistill.task import Inputs, NetworkState, Task, num_samples, real_samples, tensors_of


def try_network(task: Task, inputs: Inputs, what: str, classes: int) -> None:
    """Run a task's network once on a few samples; one that returns probabilities is warned of.

    Args:
        task: the task.
        inputs: of these samples, as its networks read them.
        what: they are, in words, with their shape.
        classes: how many logits each has.
    Raises:
        ConfigError: the network is not in float32, refuses the inputs, changes them in place, or returns something else
            than logits.
    """
    tensors = tensors_of(inputs)
    writes = [tensor._version for tensor in tensors]
    with _refusing(what):
        state = task.init(Draws(0, ("try",), task.device))
    for name, parameter in state.params.items():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"networks learn in float32, and {name} of this one is {str(parameter.dtype).removeprefix('torch.')}; "
                "leave out what converts it (--precision lowers what may be lowered)"
            )
    with _refusing(what), torch.no_grad():
        found = task.predict(state, inputs)[0]
    expected = (num_samples(inputs), classes)
    if tuple(found.shape) != expected:
        raise ConfigError(f"the network returned {tuple(found.shape)} for {what}; expected {expected}")
    if [tensor._version for tensor in tensors] != writes:  # several networks read the same inputs
        raise ConfigError("the network changes its input in place, as x -= 1 does; let it make a new tensor")
    if _are_shares(found):
        warnings.warn(
            "the network returns probabilities, and logits are expected, of which losses take the softmax: leave out "
            "its own, or networks hardly learn",
            MmdistillWarning,
            stacklevel=3,
        )


def fresh_network(task: Task) -> tuple[NetworkState, Inputs]:
    """Return a fresh network of a task and two real samples, on which checks of what it can do try it."""
    key = Draws(0, ("check",), task.device)
    return task.init(key), real_samples(task, key.fold("real"), 2).inputs


def _are_shares(output: Tensor) -> bool:
    """Return whether all rows of a network's output are probabilities, as a softmax makes them."""
    return bool((output >= 0).all()) and bool(((output.sum(-1) - 1).abs() < 1e-5).all())


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Have whatever a network of the user's raises said in words."""
    try:
        yield
    except Exception as error:
        reason = f"{error}" if isinstance(error, RuntimeError | TypeError | ShapeError) else f"{error!r}"
        raise ConfigError(f"the network cannot run on {what}: {first_line(reason)}") from error
