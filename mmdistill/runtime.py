"""Randomness as values, devices and atomic files: what a run needs from its machine."""

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

GUMBEL_LOWEST = -5.0
"""Where Gumbel draws end, whose distribution function is 1e-64 there: a uniform draw of exactly 0 gives no infinity."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says what a container may take."""
UNFINISHED = ".mmdistill-part"
"""How the names of files end that are being written."""
STALE = 86_400.0
"""Seconds after which nobody goes on writing what was last written to before them."""
HELD = 1.0
"""Seconds for which another program may hold a file before it counts as its own."""


@dataclass(frozen=True)
class Draws:
    """A key that every random number is derived from: a seed and a path of names.

    A key is a value, not a generator: the same key gives the same numbers however often it is
    asked, so siamese augmentation is two calls with one key, and a resumed run needs no saved random
    state. Derive a fresh key with :meth:`fold` for everything that must differ.

    Args:
        seed: the run's seed.
        path: names and numbers that lead here, for example ``("step", 12, "real", "rank", 0)``.
        device: where the numbers are made. The CPU and CUDA give different numbers for one key.
    """

    seed: int
    path: tuple[str | int, ...] = ()
    device: torch.device = torch.device("cpu")

    def fold(self, *names: str | int) -> "Draws":
        """Return the key that these names lead to."""
        return Draws(self.seed, self.path + names, self.device)

    def to(self, device: torch.device | str) -> "Draws":
        """Return the same key, drawing on another device."""
        return Draws(self.seed, self.path, torch.device(device))

    def integer(self) -> int:
        """Return the key's own 63-bit integer, of which generators on a CPU read the lower 32 bits."""
        parts = (int(p) if isinstance(p, Integral) and not isinstance(p, int) else p for p in (self.seed, *self.path))
        text = repr((next(parts), tuple(parts))).encode()  # numpy's integers draw what Python's do
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def generator(self) -> torch.Generator:
        """Return a new generator on the key's device that starts from this key."""
        for recorder in _recorders[::-1]:
            if (found := recorder(self)) is not None:
                return found
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
        """Draw one of 0, ..., n - 1 as a plain number: on the CPU, whatever the key's device, so that nobody waits."""
        return int(self.to("cpu").integers(n, 1))

    def permutation(self, n: int) -> Tensor:
        """Draw a permutation of {0, ..., n - 1}."""
        return torch.randperm(n, generator=self.generator(), device=self.device)

    def gumbel(self, *shape: int) -> Tensor:
        """Draw float32 from the standard Gumbel distribution."""
        # thrice as fast as exponential_
        uniform = torch.rand(shape, generator=self.generator(), device=self.device, dtype=torch.float32)
        return uniform.log_().neg_().log_().neg_().clamp_(min=GUMBEL_LOWEST)


_recorders: list[Callable[[Draws], torch.Generator | None]] = []


@contextmanager
def recording(recorder: Callable[[Draws], torch.Generator | None]) -> Iterator[None]:
    """Let a recorder give the generators of all keys meanwhile but those for which it gives None; threads share it."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.remove(recorder)


_constructing = threading.RLock()
"""Held by the thread that constructs something by the CPU's global generator.

Dropout draws by it too, without the lock: a backward pass may run on another thread than its forward pass, which would
wait for itself.
"""


@contextmanager
def host_draws_from(seed: int) -> Iterator[None]:
    """Let torch's global generator on the CPU start from a seed meanwhile, and put its state back; no other is touched.

    What is constructed so, by whatever thread, is the same for the same seed: threads take turns.
    ``torch.manual_seed`` seeds all devices' generators, and ``fork_rng`` puts back those alone that it is told.
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
    """Let torch's global generators on the CPU and on one device start from a seed meanwhile; no other is touched."""
    with _host_seeded(seed):
        if device.type != "cuda":
            yield
            return
        torch.cuda.init()  # type: ignore[no-untyped-call]  # before which there are no generators
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            yield
        finally:
            generator.set_state(state)


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device that a name means; ``auto`` is CUDA where there is one.

    A CUDA device comes with its index, as the tensors that lie on it have it, so that the two compare equal.

    Raises:
        ConfigError: CUDA is asked for and absent, or the name is no device.
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
    """Return a seed as a plain integer, which is what a set can say of it.

    Raises:
        ConfigError: it is no whole number.
    """
    if not is_of(seed, Integral):
        raise ConfigError(f"seed is a whole number, got {seed!r}")
    return int(seed)


def prepare_deterministic_kernels() -> None:
    """Let cuBLAS be able to compute the same bits each time: it reads its setting once, when CUDA first computes.

    What the user has set stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Let CUDA run only kernels that give the same bits each time, where they are wanted; afterwards as before.

    Where CUDA computed before, :func:`prepare_deterministic_kernels` must have been called before that.
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

    A container's is what its control group may take. Where the system does not tell its memory, it is 1 GiB.
    """
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows; a name that this system does not know
        return 1 << 30
    with suppress(OSError, ValueError):  # no control groups of version 2, or "max"
        whole = min(whole, int(CGROUP_LIMIT.read_text()))
    return min(whole // 8, 4 << 30)


def describe_device(device: torch.device) -> str:
    """Return a device in words, as results carry it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()} CPU, {count} thread{'' if count == 1 else 's'}"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of this process: allocated device memory on CUDA, resident memory on the CPU, in bytes.

    It is 0 where the system does not tell it, as on Windows.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # on Windows, say
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)


class Elsewhere:
    """A tensor on another device, copied when another one is asked for than the last time.

    So a constant of a run makes nobody wait for its device in every step.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return a copy on a device, or the tensor itself if it lies there."""
        if tensor.device == device:
            return tensor
        if tensor.is_inference():  # whose changes nothing counts
            return tensor.to(device)
        last = self._last
        if last is None or last[0] is not tensor or last[1] != tensor._version or last[2].device != device:
            last = self._last = tensor, tensor._version, tensor.to(device)
        return last[2]


def tensor_digest(*tensors: Tensor) -> str:
    """Return a hash of what tensors hold, their shapes and types included."""
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
    place = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not place.is_absolute():  # which its standard has ignored
        try:
            place = Path.home() / ".cache"
        except RuntimeError as error:
            raise ConfigError("there is no home folder for a cache: set MMDISTILL_CACHE to another one") from error
    return place / "mmdistill"


def data_root() -> Path:
    """Return the root of all data sets (``MMDISTILL_DATA``, else the cache folder's ``data``)."""
    chosen = os.environ.get("MMDISTILL_DATA")
    return users_path(chosen) if chosen else cache_folder() / "data"


def remove_parts(folder: Path, alone: bool = True) -> None:
    """Remove what killed processes left of the files that they were writing in a folder.

    Args:
        folder: which.
        alone: whether no other process writes there; else only what none has written to for a day goes.
    """
    if not alone:
        remove_stale_parts(folder)
        return
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def remove_stale_parts(folder: Path) -> None:
    """Remove such files where other processes may be writing: those that none has written to for a day.

    What cannot be removed stays, as another user's in a cache folder that several share.
    """
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def patiently(act: Callable[[], object]) -> None:
    """Replace or remove a file; on Windows, where a virus scanner may hold one for a moment, try for a second.

    Raises:
        PermissionError: it is still held then, or may not be touched at all.
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
    one step; on any error, the temporary file goes and the old content stays.
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
        with suppress(OSError):  # on Windows, where another program holds it
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a full disk is not told by name
            error.filename = str(path)
        raise
