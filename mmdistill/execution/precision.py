"""The number formats of a step: float32, TF32, and bfloat16 where experiments have shown it to be safe."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from mmdistill.choices import Precision as Precision
from mmdistill.errors import ConfigError

PLAIN = "highest", True
"""The meaning of float32 outside of steps, torch's default: on CUDA convolutions use TF32, matrix products do not."""


def resolved(precision: Precision, device: torch.device) -> Precision:
    """Resolve ``auto`` on a device: ``mixed`` on CUDA, ``float32`` on the CPU; other precisions stay.

    Raises:
        ConfigError: TF32, which only CUDA has, on another device.
    """
    if precision == "auto":
        return "mixed" if device.type == "cuda" else "float32"
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"tf32 is a format of CUDA devices; on {device.type} use float32, mixed or bf16")
    return precision


def autocast_for(precision: Precision, device: torch.device, *, graph: bool) -> AbstractContextManager[object]:
    """Return the context in which a network runs in bfloat16 if its precision says so.

    ``mixed`` lowers only computations whose gradients are not differentiated again: the real side of class-wise
    matching, which averages over many samples, and the training of networks between steps.

    Args:
        precision: see :func:`resolved`.
        device: where the network runs.
        graph: whether the result is differentiated again.
    """
    if precision == "bf16" or (precision == "mixed" and not graph):
        # No cache: casts kept between calls would outlive a captured graph's memory.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext()


def multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for products in bfloat16, as far as torch tells."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # which older torch lacks
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def matrix_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within this context let CUDA's float32 matrix products and convolutions use TF32, or forbid it (``float32``)."""
    exact = precision == "float32"
    restore = _choose("highest" if exact else "high", not exact) if device.type == "cuda" else None
    try:
        yield
    finally:
        if restore is not None:
            restore()


def choose_plain() -> Callable[[], None] | None:
    """Set the formats of :data:`PLAIN`; return a function that restores those before, None if they are the same."""
    return _choose(*PLAIN)


def _choose(products: str, convolutions: bool) -> Callable[[], None] | None:
    """Set formats; return a function that restores those before, None if they are the same, as in most calls."""
    before = _current_formats()
    if before is not None:
        if before == (products, convolutions):
            return None
        _set_formats(products, convolutions)
        return partial(_set_formats, *before)
    named_before = [backend.fp32_precision for backend in _backends()]
    # Recurrent layers get the format of convolutions.
    convolution_formats = ["tf32" if convolutions else "ieee"] * (len(named_before) - 1)
    named = ["ieee" if products == "highest" else "tf32", *convolution_formats]
    if named_before == named:
        return None
    _set_named_formats(named)
    return partial(_set_named_formats, named_before)


_not_yet_warned = {"read", "set"}


def _without_deprecation_warning(use: str) -> AbstractContextManager[object]:
    """Return a context that hides torch's advice to use its newer settings, which it gives once per process and use.

    The context is empty after the first time: ``catch_warnings`` in each step would make Python forget which other
    warnings it has shown.
    """
    if use not in _not_yet_warned:
        return nullcontext()
    _not_yet_warned.discard(use)
    return warnings.catch_warnings(action="ignore")


def _current_formats() -> tuple[str, bool] | None:
    """Return the formats of matrix products and convolutions; None if the user chose by torch's newer settings.

    The older settings, which torch's compiler reads, do not mix with the newer ones: reading them raises, and setting
    them may change nothing.
    """
    if getattr(torch.backends, "fp32_precision", "none") != "none":
        return None
    try:
        with _without_deprecation_warning("read"):
            return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_formats(products: str, convolutions: bool) -> None:
    with _without_deprecation_warning("set"):
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _backends() -> tuple[Any, ...]:
    """Return the backends with an ``fp32_precision``: matrix products, convolutions and recurrent layers."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def _set_named_formats(formats: list[str]) -> None:
    for backend, name in zip(_backends(), formats, strict=True):
        backend.fp32_precision = name
