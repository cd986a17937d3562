"""The number formats that a step computes in: float32, TF32, and bfloat16 where it was found to be safe."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from mmdistill.errors import ConfigError

Precision = Literal["auto", "float32", "tf32", "mixed", "bf16"]


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
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_tf32("highest" if precision == "float32" else "high", precision != "float32")
    try:
        yield
    finally:
        _set_tf32(*before)


def _set_tf32(products: str, convolutions: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch has a second way to say this, which its compiler does not know
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
