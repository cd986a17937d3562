"""The number formats that a step computes in: float32, TF32, and bfloat16 where it was found to be safe."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from mmdistill.choices import Precision as Precision
from mmdistill.errors import ConfigError


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


def lowered(precision: Precision, device: torch.device, *, graph: bool) -> AbstractContextManager[object]:
    """Return the context in which a network runs in bfloat16 where its precision says so.

    ``mixed`` lowers only what keeps no graph: the real side of class-wise matching, which averages over many samples.

    Args:
        precision: see :func:`resolved`.
        device: where the network runs.
        graph: whether the result is differentiated again.
    """
    if precision == "bf16" or (precision == "mixed" and not graph):
        # Casts that are kept between calls would outlive a captured graph's memory.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext()


@contextmanager
def matrix_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let CUDA's matrix products and convolutions in float32 use TF32, or with ``float32`` forbid it, meanwhile."""
    if device.type != "cuda":
        yield
        return
    exact = precision == "float32"
    before = _chosen()
    if before is None:
        named = [place.fp32_precision for place in _places()]
        restore = partial(_set_named, named)
        _set_named(["ieee" if exact else "tf32"] * len(named))
    else:
        restore = partial(_set_tf32, *before)
        _set_tf32("highest" if exact else "high", not exact)
    try:
        yield
    finally:
        restore()


def _chosen() -> tuple[str, bool] | None:
    """Return what matrix products and convolutions use; None where the user chose by torch's newer names.

    The older ones, which torch's compiler asks by, do not mix with these: reading them raises, and setting them may
    change nothing.
    """
    if getattr(torch.backends, "fp32_precision", "none") != "none":
        return None
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_tf32(products: str, convolutions: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch prefers its newer names
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _places() -> tuple[Any, ...]:
    """Return what has a ``fp32_precision`` of its own: matrix products, convolutions and recurrent layers."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def _set_named(values: list[str]) -> None:
    for place, value in zip(_places(), values, strict=True):
        place.fp32_precision = value
