"""When and how functions of tensors are compiled: fixed shapes, and only where it repays the compiler's time."""

import functools
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryFile
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmdistill.choices import CompileMode as CompileMode
from mmdistill.errors import ConfigError, MmdistillWarning
from mmdistill.execution.isolation import at_last, at_last_here
from mmdistill.execution.memory import exhausted
from mmdistill.runtime import cache_folder

P = ParamSpec("P")
R = TypeVar("R")

WORTH_OPERATIONS = 2e12
"""Operations per CPU thread from which compiling pays: about three minutes eager, of which compiling saves half."""


SHAPES = 8
"""Input shapes that one function is compiled for; further ones run eager, so that no run compiles for ever."""
DYNAMO_LIMIT = 256
"""Programs that torch itself allows of one function; the functions of several tasks count together there."""

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class Program(Generic[P, R]):
    """A function that is compiled for each input shape when it is first called with it.

    Where compiling fails, or after too many shapes, it stays as it is, with one warning that says why.

    Args:
        function: a function of tensors.

    Attributes:
        seconds: that first calls took, which is nearly all compiling; 0 where that failed.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        _prepare_compiler()
        functools.update_wrapper(self, function)
        self.function = function
        self.seconds = 0.0
        self.broken = False
        self._program = torch.compile(function, dynamic=False)
        self._seen: set[object] = set()
        self._full = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the compiled function, or the plain one where that is not possible."""
        if self.broken:
            return self.function(*args, **kwargs)
        _prepare_compiler()
        kind = _kind(args, kwargs)
        if kind in self._seen:
            return self._program(*args, **kwargs)
        if len(self._seen) >= SHAPES:
            if not self._full:
                self._full = True
                warnings.warn(f"inputs came in more than {SHAPES} shapes; further ones stay eager", MmdistillWarning, 2)
            return self.function(*args, **kwargs)
        return self._first(kind, *args, **kwargs)

    def _first(self, kind: object, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compile for a new kind of input, with the time taken."""
        began = time.perf_counter()
        try:
            with _backward_at_once():
                result = self._program(*args, **kwargs)
        except (RuntimeError, ImportError, OSError) as error:
            if exhausted(error):
                raise
            self.broken, self.seconds = True, 0.0
            reason = str(error).strip().split("\n", 1)[0]
            warnings.warn(f"compiling failed, this function stays eager: {reason}", MmdistillWarning, 3)
            return self.function(*args, **kwargs)
        self._seen.add(kind)
        self.seconds += time.perf_counter() - began
        return result


def compiled_once(function: Callable[P, R]) -> Program[P, R]:
    """Return a function compiled, the same program each time, which the function keeps and takes with it.

    Of a method or another callable, which have no place of their own for it, each call makes a new one.
    """
    if not isinstance(function, FunctionType):
        return Program(function)
    kept = vars(function)
    if "program" not in kept:
        kept["program"] = Program(function)
    program: Program[P, R] = kept["program"]
    return program


def _kind(args: object, kwargs: object) -> object:
    """Return what a program is compiled for: shapes, types, and what is differentiated."""
    modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")
    found: list[object] = [modes]
    _note_leaves((args, kwargs), found)
    return tuple(found)


def _note_leaves(tree: object, found: list[object]) -> None:
    """Append what each leaf of nested dicts and tuples is compiled for, in a fifth of the time of torch's own walk."""
    if isinstance(tree, Tensor):
        found.append((tree.shape, tree.dtype, tree.requires_grad))
    elif isinstance(tree, dict | tuple | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            _note_leaves(part, found)
    else:
        found.append(None)


@contextmanager
def _backward_at_once() -> Iterator[None]:
    """Compile the backward with its forward, where a failure leaves the function eager, not in the first backward."""
    from torch._functorch import config

    name = "force_non_lazy_backward_lowering"
    with config.patch({name: True}) if hasattr(config, name) else nullcontext():
        yield


def _prepare_compiler() -> None:
    """Let programs of many shapes compile, and keep what is compiled; the host's settings come back with the call."""
    import torch._dynamo.config as limits  # takes a second

    if (before := limits.recompile_limit) < DYNAMO_LIMIT:  # newer torch keeps it for each thread, older ones for all
        limits.recompile_limit = DYNAMO_LIMIT
        at_last_here(lambda: setattr(limits, "recompile_limit", before))
    _Folder.prepare()


class _Folder:
    """Where this process keeps compiled code while public calls run, and where its host did."""

    ready = False
    _before: str | None

    @classmethod
    def prepare(cls) -> None:
        """Keep compiled code in the user's cache folder, unless the user says where."""
        if cls.ready:
            return
        cls._before = os.environ.get(CACHE_VARIABLE)
        if cls._before is None or cls._before == _torchs_folder():  # which torch writes into the variable
            try:
                os.environ[CACHE_VARIABLE] = str(_writable(cache_folder() / "compiled"))
            except (ConfigError, OSError) as error:
                warnings.warn(f"compiled code is kept in torch's temporary folder: {error}", MmdistillWarning, 4)
        cls.ready = True
        at_last(cls._give_back)

    @classmethod
    def _give_back(cls) -> None:
        """Let the host compile as before; what has been compiled here is found again, for it does not depend on it."""
        if cls._before is None:
            os.environ.pop(CACHE_VARIABLE, None)
        else:
            os.environ[CACHE_VARIABLE] = cls._before
        cls.ready = False


def _torchs_folder() -> str | None:
    """Return the temporary folder where torch keeps compiled code by itself; None where it cannot tell."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    try:
        return default_cache_dir()
    except (KeyError, OSError):  # older versions, of a user without a name, as in containers
        return None


def _writable(folder: Path) -> Path:
    """Return a folder that can be written into, made where it is missing.

    Raises:
        OSError: it cannot be made or written into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        return folder


def has_compiler() -> bool:
    """Return whether a C++ compiler, without which torch compiles nothing for the CPU, is there."""
    chosen = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([chosen] if chosen else ["c++", "g++", "clang++", "cl"]))


def worth_compiling(total: float) -> bool:
    """Return whether so many operations on the CPU repay compiling; the same each time for one number of threads."""
    return total >= WORTH_OPERATIONS * torch.get_num_threads() and has_compiler()


_resting = ContextVar("resting", default=False)
"""Whether this thread's operations count for nothing: see :func:`uncounted`."""
_tracing = ContextVar("tracing", default=False)
"""Whether what this thread computes is recorded to be compiled: see :func:`tracing`."""


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
        if count is not None and not _resting.get():
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def tracing() -> Iterator[None]:
    """Have layers take the forms that compile well: what runs meanwhile is recorded, to be compiled."""
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def is_compiling() -> bool:
    """Return whether what runs is being compiled, by torch itself or from what is :func:`recorded <tracing>` of it."""
    return torch.compiler.is_compiling() or _tracing.get()


@contextmanager
def uncounted() -> Iterator[None]:
    """Let :func:`operations` leave out what is done meanwhile, which a run does once and not in every step."""
    token = _resting.set(True)
    try:
        yield
    finally:
        _resting.reset(token)


def operations(call: Callable[[], R]) -> tuple[R, int]:
    """Return what a call returns, and the floating-point operations of its matrix products and convolutions.

    Torch's own counter follows modules by hooks that ``torch.autograd.grad`` cannot pass; this one follows none.
    """
    with _Counter() as counter:
        result = call()
    return result, counter.total
