"""Randomness as values, devices, memory and atomic files."""

import functools
import hashlib
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from mmdistill.checks import is_of
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.names import counted

GUMBEL_LOWEST = -5.0
"""Lower bound of Gumbel draws, where their distribution function is 1e-64: a uniform draw of 0 gives no infinity."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Linux's file with the memory limit of a container."""
UNFINISHED = ".mmdistill-part"
"""The ending of names of files that are being written."""
STALE = 86_400.0
"""Seconds without a write after which an unfinished file counts as abandoned."""
HELD = 1.0
"""Seconds to wait for a file that another program holds."""


@dataclass(frozen=True)
class Draws:
    """A key that every random number is derived from: a seed and a path of names.

    A key is a value, not a generator: the same key always gives the same numbers, so siamese
    augmentation is two calls with one key, and a resumed run needs no saved random
    state. Derive a new key with :meth:`fold` for everything that must differ.

    Args:
        seed: the run's seed.
        path: names and numbers that lead here, for example ``("step", 12, "real", "rank", 0)``.
        device: where the numbers are made. The CPU and CUDA give different numbers for one key.
    """

    seed: int
    path: tuple[str | int, ...] = ()
    device: torch.device = torch.device("cpu")

    def fold(self, *names: str | int) -> "Draws":
        """Return the key with these names appended to its path."""
        return Draws(self.seed, self.path + names, self.device)

    def to(self, device: torch.device | str) -> "Draws":
        """Return the same key, drawing on another device."""
        return Draws(self.seed, self.path, torch.device(device))

    def integer(self) -> int:
        """Return the key's own 63-bit integer; generators on a CPU read only its lower 32 bits."""
        # numpy's integers become Python's, so that both give the same draws.
        parts = (int(p) if isinstance(p, Integral) and not isinstance(p, int) else p for p in (self.seed, *self.path))
        text = repr((next(parts), tuple(parts))).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def generator(self) -> torch.Generator:
        """Return a new generator on the key's device that starts from this key."""
        for recorder in _recorders[::-1]:
            if (recorded := recorder(self)) is not None:
                return recorded
        generator = torch.Generator(device=self.device)
        generator.manual_seed(self.integer())
        return generator

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from N(0, 1)."""
        return torch.randn(shape, generator=self.generator(), device=self.device, dtype=dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw float32 from U[low, high)."""
        uniform = torch.rand(shape, generator=self.generator(), device=self.device, dtype=torch.float32)
        return low + (high - low) * uniform

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw int64 from {0, ..., high - 1}, with replacement."""
        return torch.randint(high, shape, generator=self.generator(), device=self.device)

    def index(self, n: int) -> int:
        """Draw one of 0, ..., n - 1 as a plain number, always on the CPU, to avoid a device synchronisation."""
        return int(self.to("cpu").integers(n, 1))

    def permutation(self, n: int) -> Tensor:
        """Draw a permutation of {0, ..., n - 1}."""
        return torch.randperm(n, generator=self.generator(), device=self.device)

    def gumbel(self, *shape: int) -> Tensor:
        """Draw float32 from the standard Gumbel distribution."""
        # Three times as fast as ``exponential_``.
        uniform = torch.rand(shape, generator=self.generator(), device=self.device, dtype=torch.float32)
        return uniform.log_().neg_().log_().neg_().clamp_(min=GUMBEL_LOWEST)


_recorders: list[Callable[[Draws], torch.Generator | None]] = []


@contextmanager
def recording(recorder: Callable[[Draws], torch.Generator | None]) -> Iterator[None]:
    """Within this context the recorder provides the keys' generators unless it returns None; threads share it."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.remove(recorder)


_constructing = threading.RLock()
"""Held by the thread that draws from the CPU's global generator: constructs something, or runs dropout on the CPU.

Dropout on CUDA takes no lock: its backward pass runs on another thread than its forward pass, which would be a
deadlock.
"""


def _forget_other_threads() -> None:
    """Make the lock new in a forked process, which has no thread to release the one that another held."""
    global _constructing
    _constructing = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_other_threads)


@contextmanager
def host_draws_from(seed: int) -> Iterator[None]:
    """Within this context torch's global CPU generator starts from a seed; its state is restored, no other is touched.

    Constructions in this context are reproducible in every thread, since threads take turns. ``torch.manual_seed``
    would seed all devices' generators, and ``fork_rng`` restores only those that it is given.
    """
    with _constructing, _host_seeded(seed):
        yield


@contextmanager
def _host_seeded(seed: int) -> Iterator[None]:
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def global_draws_from(seed: int, device: torch.device) -> Iterator[None]:
    """Within this context torch's global generators on the CPU and one device start from a seed; no others change.

    Threads take turns on the CPU. Those that share a CUDA device do not, so only one of them gets the draws of its key.
    """
    if device.type != "cuda":
        with host_draws_from(seed):
            yield
        return
    with _host_seeded(seed):
        torch.cuda.init()  # type: ignore[no-untyped-call]  # creates the generators
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            yield
        finally:
            generator.set_state(state)


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if available.

    A CUDA device has its index, like the device of a tensor on it, so that the two compare equal.

    Raises:
        ConfigError: an unknown or unsuitable device, or CUDA where it is absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} cannot run all that is needed (float64, for one): use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but this torch sees no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no device {name!r}: this torch sees {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def checked_seed(seed: int) -> int:
    """Return a seed as a plain integer, which JSON can hold.

    Raises:
        ConfigError: the seed is not a whole number.
    """
    if not is_of(seed, Integral):
        raise ConfigError(f"seed is a whole number, got {seed!r}")
    return int(seed)


def prepare_deterministic_kernels() -> None:
    """Enable deterministic cuBLAS kernels by their environment variable, which is read when CUDA first computes.

    A user's value stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Within this context, if ``wanted``, CUDA runs only deterministic kernels.

    If CUDA has computed before, :func:`prepare_deterministic_kernels` must have been called before that.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    prepare_deterministic_kernels()
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


@functools.cache
def spare_memory_bytes() -> int:
    """Return the memory that the CPU may spend to save time: an eighth of the machine's, at most 4 GiB.

    In a container, it is an eighth of the control group's limit. On systems that do not tell their memory, it is 1 GiB.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows, or a name that this system does not know
        return 1 << 30
    with suppress(OSError, ValueError):  # no control groups of version 2, or "max"
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return min(total // 8, 4 << 30)


def describe_device(device: torch.device) -> str:
    """Return a device in words, as results carry it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()} CPU, {counted(count, 'thread')}"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of this process: allocated device memory on CUDA, resident memory on the CPU, in bytes.

    It is 0 on systems that do not tell it, such as Windows.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)


def writes(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place; always 0 for inference tensors, which have no count."""
    return 0 if tensor.is_inference() else tensor._version


class Elsewhere:
    """A one-entry cache of a tensor's copy on another device.

    It saves a constant of a run from being copied, with a device synchronisation, in every step.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return the tensor's copy on a device, or the tensor itself if it is there."""
        if tensor.device == device:
            return tensor
        if tensor.is_inference():  # inference tensors have no version counter
            return tensor.to(device)
        last = self._last
        if last is None or last[0] is not tensor or last[1] != tensor._version or last[2].device != device:
            last = self._last = tensor, tensor._version, tensor.to(device)
        return last[2]


def tensor_digest(*tensors: Tensor) -> str:
    """Return a hash of the values, shapes and types of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the user's cache folder for mmdistill (``MMDISTILL_CACHE``, else ``XDG_CACHE_HOME``/mmdistill).

    Raises:
        ConfigError: neither is set, and the user has no home folder.
    """
    chosen = os.environ.get("MMDISTILL_CACHE")
    if chosen:
        return users_path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG standard has relative paths ignored
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise ConfigError("there is no home folder for a cache: set MMDISTILL_CACHE to another one") from error
    return base / "mmdistill"


def data_root() -> Path:
    """Return the root of all data sets (``MMDISTILL_DATA``, else the cache folder's ``data``)."""
    chosen = os.environ.get("MMDISTILL_DATA")
    return users_path(chosen) if chosen else cache_folder() / "data"


def remove_parts(folder: Path, alone: bool = True) -> None:
    """Remove unfinished files that killed processes left in a folder.

    Args:
        folder: the folder.
        alone: whether no other process writes there; if not, only files older than a day are removed.
    """
    if not alone:
        remove_stale_parts(folder)
        return
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def remove_stale_parts(folder: Path) -> None:
    """Remove unfinished files that no process has written to for a day; others may be in use.

    Files that cannot be removed stay, such as another user's in a shared cache folder.
    """
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def patiently(act: Callable[[], object]) -> None:
    """Replace or remove a file; on Windows, where a virus scanner may hold it for a moment, retry for a second.

    Raises:
        PermissionError: the file is still held, or may not be changed at all.
    """
    until = time.monotonic() + HELD
    while True:
        try:
            act()
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > until:
                raise
        time.sleep(HELD / 20)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name whole or not at all.

    The bytes go to a temporary file beside the target, are flushed to disk, and replace the target in
    one step; on any error, the temporary file is removed and the old content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with part.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        patiently(lambda: part.replace(path))
    except BaseException as error:
        with suppress(OSError):  # on Windows another program may hold it
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a full disk comes without a file's name
            error.filename = str(path)
        raise
