"""The number formats that a step computes in: float32, TF32, and bfloat16 where it was found to be safe."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from mmdistill.choices import Precision as Precision
from mmdistill.errors import ConfigError

PLAIN = "highest", True
"""What float32 means outside of steps, as torch has it: convolutions on CUDA use TF32, and matrix products do not."""


def resolved(precision: Precision, device: torch.device) -> Precision:
    """Return what ``auto`` means on a device: ``mixed`` on CUDA, ``float32`` on the CPU.

    Raises:
        ConfigError: TF32, which only CUDA has, on another device.
    """
    if precision == "auto":
        return "mixed" if device.type == "cuda" else "float32"
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"tf32 is a format of CUDA devices; on {device.type} use float32, mixed or bf16")
    return precision


def autocast_for(precision: Precision, device: torch.device, *, graph: bool) -> AbstractContextManager[object]:
    """Return the context in which a network runs in bfloat16 where its precision says so.

    ``mixed`` lowers only what keeps no graph: the real side of class-wise matching, which averages over many samples,
    and how networks train between steps.

    Args:
        precision: see :func:`resolved`.
        device: where the network runs.
        graph: whether the result is differentiated again.
    """
    if precision == "bf16" or (precision == "mixed" and not graph):
        # Casts that are kept between calls would outlive a captured graph's memory.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext()


def multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for products in bfloat16, as far as torch tells."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # which older torch lacks
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def matrix_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let CUDA's matrix products and convolutions in float32 use TF32, or with ``float32`` forbid it, meanwhile."""
    exact = precision == "float32"
    restore = _choose("highest" if exact else "high", not exact) if device.type == "cuda" else None
    try:
        yield
    finally:
        if restore is not None:
            restore()


def choose_plain() -> Callable[[], None] | None:
    """Set what :data:`PLAIN` says; return what puts back what was set before, None where nothing differs."""
    return _choose(*PLAIN)


def _choose(products: str, convolutions: bool) -> Callable[[], None] | None:
    """Set formats and return what puts back those before; None where these are the same, which most calls find."""
    before = _chosen()
    if before is not None:
        if before == (products, convolutions):
            return None
        _set_tf32(products, convolutions)
        return partial(_set_tf32, *before)
    named = [place.fp32_precision for place in _places()]
    # The format of convolutions is that of recurrent layers too.
    wanted = ["ieee" if products == "highest" else "tf32", *["tf32" if convolutions else "ieee"] * (len(named) - 1)]
    if named == wanted:
        return None
    _set_named(wanted)
    return partial(_set_named, named)


_unheard = {"read", "set"}


def _deaf(use: str) -> AbstractContextManager[object]:
    """Return a context in which it is not heard that torch prefers its newer names, which it says once in a process.

    A step that is deaf each time would make Python forget which other warnings it has shown.
    """
    if use not in _unheard:
        return nullcontext()
    _unheard.discard(use)
    return warnings.catch_warnings(action="ignore")


def _chosen() -> tuple[str, bool] | None:
    """Return what matrix products and convolutions use; None where the user chose by torch's newer names.

    The older ones, which torch's compiler asks by, do not mix with these: reading them raises, and setting them may
    change nothing.
    """
    if getattr(torch.backends, "fp32_precision", "none") != "none":
        return None
    try:
        with _deaf("read"):
            return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_tf32(products: str, convolutions: bool) -> None:
    with _deaf("set"):
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _places() -> tuple[Any, ...]:
    """Return what has a ``fp32_precision`` of its own: matrix products, convolutions and recurrent layers."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def _set_named(values: list[str]) -> None:
    for place, value in zip(_places(), values, strict=True):
        place.fp32_precision = value
