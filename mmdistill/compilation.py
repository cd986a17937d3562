"""When and how functions of tensors are compiled: fixed shapes, and only where it repays the compiler's time."""

import functools
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

P = ParamSpec("P")
R = TypeVar("R")
CompileMode = Literal["auto", "on", "off"]

WORTH_OPERATIONS = 2e12
"""Operations per CPU thread from which compiling pays: about three minutes eager, of which compiling saves half."""


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function compiled for fixed shapes; where compiling fails it stays as it is, with one warning."""
    program = torch.compile(function, dynamic=False)
    broken = False

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal broken
        if not broken:
            try:
                return program(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ImportError, OSError) as error:
                broken = True
                warnings.warn(f"compiling failed, this function stays eager: {error}", stacklevel=2)
        return function(*args, **kwargs)

    return call


def has_compiler() -> bool:
    """Return whether a C++ compiler, without which torch compiles nothing for the CPU, is there."""
    chosen = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([chosen] if chosen else ["c++", "g++", "clang++", "cl"]))


def worth_compiling(total: float) -> bool:
    """Return whether so many operations on the CPU repay compiling; the same each time for one number of threads."""
    return total >= WORTH_OPERATIONS * torch.get_num_threads() and has_compiler()


class _Counter(TorchDispatchMode):
    """Adds up the floating-point operations of matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def operations(call: Callable[[], R]) -> tuple[R, int]:
    """Return what a call returns, and the floating-point operations of its matrix products and convolutions.

    Torch's own counter follows modules by hooks that ``torch.autograd.grad`` cannot pass; this one follows none.
    """
    with _Counter() as counter:
        result = call()
    return result, counter.total
