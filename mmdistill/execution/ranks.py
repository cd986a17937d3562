"""One run on several processes, as torchrun starts them: each rank draws networks and real samples of its own.

The synthetic data are the same on all ranks, since they start from the first one's and step on one averaged gradient.
Without torchrun every function here is what it is for a single process, at no cost.
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
"""How long ranks wait for the first one, which may train experts meanwhile."""


def size() -> int:
    """Return the number of processes of the run."""
    return distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return this process's number among them."""
    return distributed.get_rank() if _grouped() else 0


def is_first() -> bool:
    """Return whether this process writes and prints for all."""
    return rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the group that torchrun started, if it did, and leave it at the end.

    Args:
        device: as on the command line; ``auto`` and ``cuda`` become the rank's own device.
    Yields:
        the name of this rank's device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _grouped():
        yield device
        return
    own = choose_device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield str(own)
    finally:
        distributed.destroy_process_group()
        # Whatever keeps a group in a cycle keeps its threads, which end a process by an abort where they let go of the
        # last collective's tensors while Python is shutting down.
        gc.collect()


class _Failure(NamedTuple):
    """How one rank failed, as the others raise it."""

    kind: type[BaseException]
    reason: str


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first rank do something before the others, who then find it done in the cache (data, experts).

    No rank waits for the others within.

    Raises:
        MmdistillError: see :func:`together`; where the first rank fails, the others do not begin.
    """
    if not is_first():
        _meet()
    with together():
        yield
    if is_first():
        _meet()


@contextmanager
def together() -> Iterator[None]:
    """Do something on all ranks, none of which waits for the others within, and have it fail on all or on none.

    All wait for each other at its end, so that none goes on to wait for one that failed.

    Raises:
        MmdistillError: another rank failed; of the kind of its error where that is one of this package.
        KeyboardInterrupt: another rank was interrupted.
    """
    try:
        yield
    except BaseException as error:
        with suppress(RuntimeError):  # of ranks that have ended, who need not be told
            gathered(_failure(error))
        raise
    _meet()


def _failure(error: BaseException) -> _Failure:
    """Return as what an error of this rank ends the others."""
    if isinstance(error, KeyboardInterrupt):
        return _Failure(KeyboardInterrupt, "was interrupted")
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == MmdistillError.__module__)
    kind = next(kinds, None)  # not one of the user's own, which may need more than a message
    return _Failure(kind or MmdistillError, f"failed: {'' if kind else f'{type(error).__name__}: '}{error}")


def _meet() -> None:
    """Wait for all ranks; raise what one of them failed with."""
    own: _Failure | None = None  # this one got here
    for number, failure in enumerate(gathered(own)):
        if failure is not None:
            name = "the first process" if number == 0 else f"process {number} (the first is 0)"
            raise failure.kind(f"{name} {failure.reason}")


def averages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the averages of tensors over the ranks; contiguous tensors are overwritten with theirs."""
    if size() == 1:
        return list(tensors)
    found = [tensor.contiguous() for tensor in tensors]  # a transposed or expanded one is not reduced as it reads
    for tensor in found:
        distributed.all_reduce(tensor)
        tensor /= size()
    return found


def share(tensor: Tensor) -> None:
    """Give all ranks the first one's values of a tensor, in place."""
    if size() > 1:
        whole = tensor.contiguous()
        distributed.broadcast(whole, 0)
        tensor.copy_(whole)


def all_true(flag: Tensor) -> bool:
    """Return whether a scalar is true on every rank; waits for the device, and for all ranks."""
    if size() == 1:
        return bool(flag)
    shared = flag.to(torch.float32)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MIN)
    return bool(shared)


def gathered(value: T) -> list[T]:
    """Return the small values of all ranks, in their order."""
    if size() == 1:
        return [value]
    values: list[T] = [value] * size()
    distributed.all_gather_object(values, value)
    return values


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
