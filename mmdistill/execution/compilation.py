"""When and how functions of tensors are compiled: for fixed shapes, and only if it saves more time than it takes."""

import functools
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from mmdistill.contexts import holding
from mmdistill.errors import ConfigError, MmdistillWarning, first_line
from mmdistill.execution.isolation import at_last, at_last_here
from mmdistill.execution.memory import exhausted
from mmdistill.runtime import cache_folder

P = ParamSpec("P")
R = TypeVar("R")

WORTH_OPERATIONS = 2e12
"""Operations per CPU thread from which compiling pays: about three minutes eager, of which compiling saves half."""


SHAPES = 8
"""Input shapes that one function is compiled for; further ones run eagerly, to bound the time of compiling."""
DYNAMO_LIMIT = 256
"""torch's own limit of programs per function, which the functions of several tasks share."""

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class Program(Generic[P, R]):
    """A function that is compiled for each input shape at the first call with that shape.

    If compiling fails, or after too many shapes, it stays eager, with one warning that says why.

    Args:
        function: a function of tensors.

    Attributes:
        seconds: the time of first calls, nearly all of it compiling; 0 if compiling failed.
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
        """Call the compiled function, or the plain one if that is not possible."""
        if self.broken:
            return self.function(*args, **kwargs)
        _prepare_compiler()
        signature = _signature(args, kwargs)
        if signature in self._seen:
            return self._program(*args, **kwargs)
        if len(self._seen) >= SHAPES:
            if not self._full:
                self._full = True
                warnings.warn(f"inputs came in more than {SHAPES} shapes; further ones stay eager", MmdistillWarning, 2)
            return self.function(*args, **kwargs)
        return self._call_first(signature, *args, **kwargs)

    def _call_first(self, signature: object, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compile for a new signature of inputs, and add the time taken to ``seconds``."""
        began = time.perf_counter()
        try:
            with _compile_backward_at_once(), _without_cuda_remark():
                result = self._program(*args, **kwargs)
        except (RuntimeError, ImportError, OSError) as error:
            if exhausted(error):
                raise
            self.broken, self.seconds = True, 0.0
            warnings.warn(f"compiling failed, this function stays eager: {first_line(error)}", MmdistillWarning, 3)
            return self.function(*args, **kwargs)
        self._seen.add(signature)
        self.seconds += time.perf_counter() - began
        return result


def compiled_once(function: Callable[P, R]) -> Program[P, R]:
    """Return the program of a function, which is made once and kept as an attribute of the function.

    Methods and other callables have no such attributes, so each call makes a new program for them.
    """
    if not isinstance(function, FunctionType):
        return Program(function)
    attributes = vars(function)
    if "program" not in attributes:
        attributes["program"] = Program(function)
    program: Program[P, R] = attributes["program"]
    return program


def _signature(args: object, kwargs: object) -> object:
    """Return what a program is compiled for: modes, and the shapes, types and differentiability of tensors."""
    modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")
    entries: list[object] = [modes]
    _append_leaves((args, kwargs), entries)
    return tuple(entries)


def _append_leaves(tree: object, entries: list[object]) -> None:
    """Append an entry for each leaf of nested dicts, tuples and lists; five times as fast as torch's pytree."""
    if isinstance(tree, Tensor):
        entries.append((tree.shape, tree.dtype, tree.requires_grad))
    elif isinstance(tree, dict | tuple | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            _append_leaves(part, entries)
    else:
        entries.append(None)


@contextmanager
def _compile_backward_at_once() -> Iterator[None]:
    """Within this context compile the backward pass with the forward pass, so that its failure is caught there too."""
    from torch._functorch import config

    name = "force_non_lazy_backward_lowering"
    with config.patch({name: True}) if hasattr(config, name) else nullcontext():
        yield


@contextmanager
def _without_cuda_remark() -> Iterator[None]:
    """Within this context a torch that was built for CUDA does not remark, without a GPU, that CUDA is missing."""
    logger = logging.getLogger("torch.utils.cpp_extension")  # which the compiler imports

    def passes(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("No CUDA runtime is found")

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _prepare_compiler() -> None:
    """Raise torch's limit of programs and set the cache folder, until the public call ends."""
    import torch._dynamo.config as limits  # takes a second

    if (before := limits.recompile_limit) < DYNAMO_LIMIT:  # newer torch keeps the limit per thread, older per process
        limits.recompile_limit = DYNAMO_LIMIT
        at_last_here(lambda: setattr(limits, "recompile_limit", before))
    _Folder.prepare()


class _Folder:
    """The folder of compiled code while public calls run, and the host's own setting before."""

    ready = False
    _before: str | None

    @classmethod
    def prepare(cls) -> None:
        """Keep compiled code in the cache folder, unless the user has set another one."""
        if cls.ready:
            return
        cls._before = os.environ.get(CACHE_VARIABLE)
        if cls._before is None or cls._before == _torch_default_folder():  # torch itself sets the variable to that
            try:
                os.environ[CACHE_VARIABLE] = str(_make_writable(cache_folder() / "compiled"))
            except (ConfigError, OSError) as error:
                warnings.warn(f"compiled code is kept in torch's temporary folder: {error}", MmdistillWarning, 4)
        cls.ready = True
        at_last(cls._restore)

    @classmethod
    def _restore(cls) -> None:
        """Restore the host's setting; compiled code stays valid, since it does not depend on the variable."""
        if cls._before is None:
            os.environ.pop(CACHE_VARIABLE, None)
        else:
            os.environ[CACHE_VARIABLE] = cls._before
        cls.ready = False


def _torch_default_folder() -> str | None:
    """Return the temporary folder where torch keeps compiled code by default; None if it cannot tell."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    try:
        return default_cache_dir()
    except (KeyError, OSError):  # older versions, for a user without a name, as in containers
        return None


def _make_writable(folder: Path) -> Path:
    """Make a folder if it is missing, check that it can be written into, and return it.

    Raises:
        OSError: the folder cannot be made or written into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        return folder


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which torch needs to compile for the CPU."""
    chosen = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([chosen] if chosen else ["c++", "g++", "clang++", "cl"]))


def worth_compiling(total: float) -> bool:
    """Return whether compiling pays for ``total`` operations on the CPU; the same answer for one number of threads."""
    return total >= WORTH_OPERATIONS * torch.get_num_threads() and has_compiler()


_not_counting = ContextVar("not_counting", default=False)
"""Whether this thread's operations are left out of counts: see :func:`uncounted`."""
_tracing = ContextVar("tracing", default=False)
"""Whether this thread's operations are traced to be compiled: see :func:`tracing`."""


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
        if count is not None and not _not_counting.get():
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def tracing() -> AbstractContextManager[None]:
    """Within this context operations are traced to be compiled, so layers take the forms that compile well."""
    return holding(_tracing, True)


def is_compiling() -> bool:
    """Return whether the running code is being compiled by torch, or traced to be compiled (:func:`tracing`)."""
    return torch.compiler.is_compiling() or _tracing.get()


def uncounted() -> AbstractContextManager[None]:
    """Within this context :func:`operations` counts nothing, for work that a run does once and not in every step."""
    return holding(_not_counting, True)


def operations(call: Callable[[], R]) -> tuple[R, int]:
    """Return a call's result and the floating-point operations of its matrix products and convolutions.

    torch's own counter follows modules by hooks, which ``torch.autograd.grad`` cannot pass; this one uses no hooks.
    """
    with _Counter() as counter:
        result = call()
    return result, counter.total
