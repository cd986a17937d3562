"""Checks of an objective: that it gets what it reads and leaves it alone, and that its loss can be differentiated."""

import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, MmdistillWarning
from mmdistill.names import in_words
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.objectives.base import Network, Objective
from mmdistill.runtime import writes
from mmdistill.task import Batch, ClassBatch, tensors_of


def require_given(objective: Objective, schedule: NetworkSchedule) -> None:
    """Refuse an objective that reads a target or an accuracy which its schedule does not give.

    Raises:
        ConfigError: naming both.
    """
    name = type(schedule).__name__
    if objective.needs_target and not schedule.gives_target:
        raise ConfigError(
            f"{type(objective).__name__} matches an expert's end point, which {name} does not give; use a schedule of "
            "cached experts"
        )
    if objective.needs_accuracy and not schedule.gives_accuracy:
        raise ConfigError(
            f"{type(objective).__name__} weighs by how accurate a network is, which {name} does not count; use a pool "
            "of networks that train on real samples (EnrichedPool)"
        )


def require_loss(objective: Objective, loss: object, learns: bool) -> None:
    """Refuse a loss that is not a differentiable scalar.

    Args:
        objective: the objective, for the message.
        loss: what it returned.
        learns: whether anything is learned from the loss.
    Raises:
        ConfigError: the loss is not a scalar tensor, or requires no gradient though something is learned.
    """
    name = type(objective).__name__
    if not isinstance(loss, Tensor) or loss.ndim:
        returned = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ConfigError(f"a loss is a tensor of one number and no axes, and {name} returned {returned}")
    if learns and not loss.requires_grad:
        raise _detached_error(objective)


@contextmanager
def watched(
    objective: Objective,
    network: Network,
    syn: Batch | ClassBatch,
    real: Batch | ClassBatch,
    *,
    contents: bool = False,
) -> Iterator[None]:
    """Within this context, in which an objective computes its loss, it leaves alone what it is given.

    A warning says if it draws from a global generator, whose numbers no key gives. Threads share these, so this is
    looked for only where no other thread, daemons aside, is alive.

    Args:
        objective: the objective, for messages.
        network: the step's network.
        syn: the step's synthetic samples.
        real: the step's real samples.
        contents: compare what the tensors hold, which copies them. Otherwise it is counted how often each was written
            to, which does not wait for a device, and misses writes to ``tensor.data``.
    Raises:
        ConfigError: the objective changes samples or the network in place, which other steps, methods and judges read.
    """
    state = network.state
    given = {
        "synthetic samples": _tensors(syn),
        "real samples": _tensors(real),
        "network": [*state.params.values(), *state.buffers.values(), *(network.target or {}).values()],
    }
    copies = {what: [tensor.detach().clone() for tensor in tensors] for what, tensors in given.items() if contents}
    before = {what: list(map(writes, tensors)) for what, tensors in given.items()}
    device = given["real samples"][-1].device
    generators = _generators(device) if _is_alone() else {}
    yield
    name = type(objective).__name__
    if changed := [
        what
        for what, tensors in given.items()
        if list(map(writes, tensors)) != before[what] or not all(map(_equal, tensors, copies.get(what, tensors)))
    ]:
        again = "; make the task anew, whose data may have changed" if "real samples" in changed else ""
        raise ConfigError(
            f"{name} changes the {in_words(changed)} in place, as x.clamp_(0, 1) and x -= 1 do, and others read them "
            f"too; let it make new tensors (x.clamp(0, 1), x = x - 1){again}"
        )
    now = _generators(device) if _is_alone() else generators
    if drawn := [source for source, state in generators.items() if now[source] != state]:
        warnings.warn(
            f"{name} draws random numbers from {in_words(drawn)}, which the run's seed does not set: the same call "
            "makes another set each time, and a resumed run ends elsewhere; draw from draws (draws.normal(...), "
            "draws.generator())",
            MmdistillWarning,
            stacklevel=3,
        )


def _tensors(batch: Batch | ClassBatch) -> list[Tensor]:
    """Return all tensors of a batch, the weight last."""
    flat = batch.batch if isinstance(batch, ClassBatch) else batch
    return [*tensors_of(flat.inputs), *tensors_of(flat.targets), flat.weight]


def _equal(tensor: Tensor, copy: Tensor) -> bool:
    """Return whether a tensor holds what its copy does, NaN included."""
    return tensor is copy or torch.allclose(tensor, copy, rtol=0, atol=0, equal_nan=True)


def _is_alone() -> bool:
    """Return whether this is the program's only thread, daemons aside, such as those of progress bars."""
    return all(thread.daemon or thread is threading.current_thread() for thread in threading.enumerate())


def _generators(device: torch.device) -> dict[str, object]:
    """Return the states of the global generators of torch, numpy and Python, by name.

    Those of torch are the CPU's and, unless a graph is being captured, that of a CUDA device.
    """
    states = [torch.get_rng_state().tolist()]
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        states.append(torch.cuda.get_rng_state(device).tolist())
    return {
        "torch's global generator": states,
        "numpy's global generator": repr(np.random.get_state(legacy=False)),  # noqa: NPY002  # what is looked for
        "Python's global generator": random.getstate(),
    }


def require_gradients(objective: Objective, gradients: Sequence[Tensor | None]) -> None:
    """Refuse a loss that depends on none of the learned tensors, even if on parameters of the network.

    Raises:
        ConfigError: there are tensors to learn, and none has a gradient.
    """
    if gradients and all(gradient is None for gradient in gradients):
        raise _detached_error(objective)


def _detached_error(objective: Objective) -> ConfigError:
    """Return the error for a loss that is detached from everything learned."""
    return ConfigError(
        f"no gradient leads from the loss of {type(objective).__name__} to what is learned; the network or the "
        "objective cuts it off (no_grad, detach, argmax)"
    )
