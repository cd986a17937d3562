"""One run on several processes, as torchrun starts them: each rank draws its own networks and real samples.

The synthetic data are the same on all ranks: they start from the first rank's and step on the averaged gradients.
Without torchrun every function here does what a single process needs, at no cost.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from mmdistill.errors import MmdistillError
from mmdistill.runtime import choose_device

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=2)
"""How long ranks wait for the first one, which may be training experts."""


def size() -> int:
    """Return the number of processes of the run."""
    return distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return this process's number in the run, from 0 on."""
    return distributed.get_rank() if _grouped() else 0


def is_first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Within this context the process belongs to the group that torchrun started, if there is one.

    Args:
        device: as on the command line; ``auto`` and ``cuda`` become the rank's own device.
    Yields:
        the name of this rank's device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _grouped():
        yield device
        return
    rank_device = choose_device(device)
    if rank_device.type == "cuda":
        rank_device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(rank_device)
    distributed.init_process_group("nccl" if rank_device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield str(rank_device)
    finally:
        distributed.destroy_process_group()
        # A reference cycle may keep the group and its threads alive. These abort the process if they release the last
        # collective's tensors while Python is shutting down.
        gc.collect()


class _Failure(NamedTuple):
    """The failure of one rank, as the others raise it."""

    kind: type[BaseException]
    reason: str


@contextmanager
def first_alone() -> Iterator[None]:
    """Run this context on the first rank before the others, which then find its results in the cache (data, experts).

    Collective operations are not allowed within.

    Raises:
        MmdistillError: see :func:`together`; if the first rank fails, the others do not begin.
    """
    if not is_first():
        _wait_for_all()
    with together():
        yield
    if is_first():
        _wait_for_all()


@contextmanager
def together() -> Iterator[None]:
    """Run this context on all ranks, and have it fail on all of them or on none.

    Collective operations are not allowed within. All ranks wait for each other at its end, so that none later waits for
    one that failed.

    Raises:
        MmdistillError: another rank failed; of its error's class if that is one of this package.
        KeyboardInterrupt: another rank was interrupted.
    """
    try:
        yield
    except BaseException as error:
        with suppress(RuntimeError):  # other ranks may have ended already
            gathered(_failure(error))
        raise
    _wait_for_all()


def _failure(error: BaseException) -> _Failure:
    """Return the failure that an error of this rank causes on the others."""
    if isinstance(error, KeyboardInterrupt):
        return _Failure(KeyboardInterrupt, "was interrupted")
    # Only this package's classes: a user's own may need more arguments than a message.
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == MmdistillError.__module__)
    kind = next(kinds, None)
    return _Failure(kind or MmdistillError, f"failed: {'' if kind else f'{type(error).__name__}: '}{error}")


def _wait_for_all() -> None:
    """Wait for all ranks; raise the failure of one that failed."""
    no_failure: _Failure | None = None  # this rank got here
    for number, failure in enumerate(gathered(no_failure)):
        if failure is not None:
            name = "the first process" if number == 0 else f"process {number} (the first is 0)"
            raise failure.kind(f"{name} {failure.reason}")


def averages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the averages of tensors over the ranks; contiguous tensors are overwritten by theirs."""
    if size() == 1:
        return list(tensors)
    averaged = [tensor.contiguous() for tensor in tensors]  # collectives ignore the strides of other tensors
    for tensor in averaged:
        distributed.all_reduce(tensor)
        tensor /= size()
    return averaged


def share(tensor: Tensor) -> None:
    """Broadcast the first rank's values of a tensor to all ranks, in place."""
    if size() > 1:
        contiguous = tensor.contiguous()
        distributed.broadcast(contiguous, 0)
        tensor.copy_(contiguous)


def all_true(flag: Tensor) -> bool:
    """Return whether a scalar is true on every rank; this waits for the device and for all ranks."""
    if size() == 1:
        return bool(flag)
    shared = flag.to(torch.float32)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MIN)
    return bool(shared)


def gathered(value: T) -> list[T]:
    """Return the values of all ranks in their order; values are pickled, so they should be small."""
    if size() == 1:
        return [value]
    values: list[T] = [value] * size()
    distributed.all_gather_object(values, value)
    return values


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
