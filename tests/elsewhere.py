"""Another device whose tensors have values: what lies on it refuses to meet what lies on the CPU, as on CUDA.

Its tensors wrap tensors of the CPU, so that whole runs work and can be compared with runs on the CPU. Refused are
operators that read both devices, generators of the other device, and NumPy's view of a tensor; allowed is what CUDA
allows: copies, numbers that are read or written one by one, and indices that lie on the CPU.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from mmdistill import coresets, runtime
from mmdistill.image import judge_training

NAME = "elsewhere"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
INDEXED = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
MARKED = 1 << 63
"""Seeds of generators of the device, which keys never give."""


class MixedError(RuntimeError):
    """An operator was given what lies on two devices."""


class _Backend:
    """What torch asks a device's module for."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Do nothing: there is no global generator."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


# Before the first backward pass, which makes a queue for each device that there is.
_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend)

DEVICE = torch.device(NAME, 0)


class There(Tensor):
    """A tensor of the device, around one of the CPU."""

    raw: Tensor
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    layout = property(lambda self: self.raw.layout)  # type: ignore[assignment]

    def coalesce(self) -> Tensor:
        return There(self.raw.coalesce())

    @staticmethod
    def __new__(cls, raw: Tensor) -> "There":
        places = (
            {"strides": raw.stride(), "storage_offset": raw.storage_offset()} if raw.layout == torch.strided else {}
        )
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), dtype=raw.dtype, device=DEVICE, **places
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.raw.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def numpy(self, **options: Any) -> Any:
        raise TypeError("a tensor of another device has no NumPy view: use Tensor.cpu() first")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def pin_memory(self, device: Any = None) -> Tensor:
        raise RuntimeError("only dense CPU tensors can be pinned")


class _Generator(torch.Generator):
    """A generator that may belong to the device: its seed is then a mark, by which its numbers are found."""

    def __new__(cls, device: torch.device | str = "cpu") -> "_Generator":
        return super().__new__(cls, device="cpu")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._there = torch.device(device).type == NAME

    def manual_seed(self, seed: int) -> torch.Generator:
        if self._there:
            _numbers.append(_CpuGenerator().manual_seed(seed))
            seed = MARKED + len(_numbers) - 1
        return super().manual_seed(seed)


_CpuGenerator = torch.Generator
_numbers: list[torch.Generator] = []


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on what the tensors wrap, and wrap what it returns."""
    leaves = tree_leaves((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, There)]
    target = kwargs.get("device")
    _require_one_device(func, args, leaves, bool(there) if target is None else _is_there(target))
    known = {id(tensor.raw): tensor for tensor in there}
    plain, options = tree_map_only(There, lambda tensor: tensor.raw, (args, kwargs))
    plain, options = tree_map_only(_CpuGenerator, _found, (plain, options))
    if _is_there(target):
        options["device"] = torch.device("cpu")
    out = (aten.zeros.default if func is aten._efficientzerotensor.default else func)(*plain, **options)
    if func is aten.copy_.default:
        return args[0]
    if func is aten._local_scalar_dense.default or not (there if target is None else _is_there(target)):
        return out
    out = tree_map_only(Tensor, lambda tensor: known.get(id(tensor)) if id(tensor) in known else There(tensor), out)
    return out if target is not None else return_and_correct_aliasing(func, args, kwargs, out)


def _require_one_device(func: Any, args: Any, leaves: list[Any], there: bool) -> None:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.ndim]
    if func in INDEXED:  # whose indices may lie on the CPU
        here = [tensor for tensor in here if tensor is args[0] or (len(args) > 2 and tensor is args[2])]
    if func not in COPIES and here and any(isinstance(tensor, There) for tensor in tensors):
        raise MixedError(f"{func} reads {[(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]}")
    for leaf in leaves:
        if isinstance(leaf, _CpuGenerator) and (leaf.initial_seed() >= MARKED) != there:
            raise MixedError(f"{func} draws by a generator of another device")


def _found(generator: torch.Generator) -> torch.Generator:
    mark = generator.initial_seed() - MARKED
    return generator if mark < 0 else _numbers[mark]


class _Elsewhere(TorchDispatchMode):
    """Sends operators that make tensors, or that none of the device's tensors meets, where they belong."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``torch.tensor`` or ``torch.as_tensor`` for the device, which reach no dispatch mode."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if isinstance(data, There) and make is _as_tensor:
            return data.to(**({"device": device} if device is not None else {}), **options)
        if not _is_there(device):
            return make(data, device=device, **options)
        return make(data, **options).to(device)

    return made


_as_tensor = torch.as_tensor


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Let the device be there meanwhile, also for :func:`~mmdistill.runtime.choose_device`."""
    choose = runtime.choose_device

    def choose_device(name: str | torch.device = "auto") -> torch.device:
        return DEVICE if str(name).startswith(NAME) else choose(name)

    users = [
        module
        for name, module in sys.modules.items()
        if name.startswith("mmdistill") and vars(module).get("choose_device") is choose
    ]
    chunks = patch.dict(coresets.EMBED_CHUNK, {NAME: 128}), patch.dict(judge_training.TEST_CHUNK, {NAME: 100})
    makers = (
        patch.object(torch, "Generator", _Generator),
        patch.object(torch, "tensor", _made(torch.tensor)),
        patch.object(torch, "as_tensor", _made(torch.as_tensor)),
    )
    for module in users:
        setattr(module, "choose_device", choose_device)  # noqa: B010 - mypy knows it as a function of the module
    try:
        with chunks[0], chunks[1], makers[0], makers[1], makers[2], _Elsewhere():
            yield DEVICE
    finally:
        for module in users:
            setattr(module, "choose_device", choose)  # noqa: B010
        _numbers.clear()
