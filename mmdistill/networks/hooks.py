"""Hooks that keep the inputs, outputs and maps of submodules in a forward pass."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmdistill.abilities import MapReader
from mmdistill.task import Tensors


def keep_input(captured: Tensors, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Keep a submodule's input.

    This and :func:`keep_output` are top-level functions, used as partials, so that deep copies of a network copy
    ``captured`` too: each copy's hooks write into its own dict.
    """
    captured[name] = args[0]


def keep_output(captured: Tensors, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Keep a submodule's output."""
    captured[name] = output


def keep_map(
    maps: Tensors,
    readers: Mapping[str, MapReader],
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    output: Tensor | None = None,
) -> None:
    """Keep the result of a submodule's reader, if it has one, on its output or, as a pre-hook, on its input."""
    candidate = args[0] if output is None else output
    if name in readers and isinstance(candidate, Tensor) and candidate.ndim == 4:
        maps[name] = readers[name](candidate)


def last_pooling(module: nn.Module) -> nn.Module | None:
    """Return the pooling layer that a submodule ends with ("Pool" in its name, no parameters); None without one."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    is_pooling = "Pool" in type(module).__name__ and next(module.parameters(), None) is None
    return module if is_pooling else None


def last_block(module: nn.Module, features: Sequence[str]) -> str:
    """Return the submodule that a network declares to yield its embedding (``last_block``); empty if there is none.

    It counts only if the last of ``features`` is the network's own last feature, that is, the embedding.
    """
    block, own_features = getattr(module, "last_block", ""), tuple(getattr(module, "feature_names", ()))
    exists = isinstance(block, str) and block in dict(module.named_modules())
    return block if own_features and exists and tuple(features[-1:]) == own_features[-1:] else ""
