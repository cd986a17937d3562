"""Trial runs of networks when their task is made, so that unusable networks fail early."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, MmdistillWarning, ShapeError, first_line
from mmdistill.runtime import Draws, writes
from mmdistill.task import Inputs, NetworkState, Task, num_samples, real_samples, tensors_of


def try_network(task: Task, inputs: Inputs, what: str, classes: int) -> None:
    """Run a task's network once on a few samples; warn if it returns probabilities.

    Args:
        task: the task.
        inputs: the samples, as the task's networks read them.
        what: describes the samples in words, with their shape.
        classes: expected number of logits per sample.
    Raises:
        ConfigError: the network is not in float32, fails on the inputs, changes them in place, or returns outputs of
            another shape.
    """
    tensors = tensors_of(inputs)
    before = list(map(writes, tensors))
    with _explain_failure(what):
        state = task.init(Draws(0, ("try",), task.device))
    for name, parameter in state.params.items():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"networks learn in float32, and {name} of this one is {str(parameter.dtype).removeprefix('torch.')}; "
                "leave out what converts it (--precision lowers what may be lowered)"
            )
    with _explain_failure(what), torch.no_grad():
        outputs = task.predict(state, inputs)[0]
    expected = (num_samples(inputs), classes)
    if tuple(outputs.shape) != expected:
        raise ConfigError(f"the network returned {tuple(outputs.shape)} for {what}; expected {expected}")
    if list(map(writes, tensors)) != before:  # several networks read the same inputs
        raise ConfigError("the network changes its input in place, as x -= 1 does; let it make a new tensor")
    if _are_probabilities(outputs):
        warnings.warn(
            "the network returns probabilities, and logits are expected, of which losses take the softmax: leave out "
            "its own, or networks hardly learn",
            MmdistillWarning,
            stacklevel=3,
        )


def fresh_network(task: Task) -> tuple[NetworkState, Inputs]:
    """Return a fresh network of a task and two real samples, for checks that run it."""
    key = Draws(0, ("check",), task.device)
    return task.init(key), real_samples(task, key.fold("real"), 2).inputs


def _are_probabilities(output: Tensor) -> bool:
    """Return whether all rows of a network's output are probabilities, as after a softmax."""
    return bool((output >= 0).all()) and bool(((output.sum(-1) - 1).abs() < 1e-5).all())


@contextmanager
def _explain_failure(what: str) -> Iterator[None]:
    """Within this context turn any error of a user's network into a ConfigError."""
    try:
        yield
    except Exception as error:
        reason = f"{error}" if isinstance(error, RuntimeError | TypeError | ShapeError) else f"{error!r}"
        raise ConfigError(f"the network cannot run on {what}: {first_line(reason)}") from error
