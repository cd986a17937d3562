"""What hooks keep of a forward pass: what submodules are given and return, and what readers make of their maps."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmdistill.abilities import MapReader
from mmdistill.task import Tensors


def keep_input(captured: Tensors, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Keep what a submodule is given.

    As :func:`keep_output` a function of the module's top level, whose partial follows copies: a copied network's hooks
    write into its own dict.
    """
    captured[name] = args[0]


def keep_output(captured: Tensors, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Keep what a submodule returns."""
    captured[name] = output


def keep_map(
    maps: Tensors,
    readers: Mapping[str, MapReader],
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    output: Tensor | None = None,
) -> None:
    """Keep what a submodule's reader, if it has one now, makes of its output or, called before it runs, its input."""
    found = args[0] if output is None else output
    if name in readers and isinstance(found, Tensor) and found.ndim == 4:
        maps[name] = readers[name](found)


def last_pooling(module: nn.Module) -> nn.Module | None:
    """Return the pooling that a submodule ends with, a layer so named without parameters; None where it has none."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    pools = "Pool" in type(module).__name__ and next(module.parameters(), None) is None
    return module if pools else None


def last_block(module: nn.Module, features: Sequence[str]) -> str:
    """Return the submodule that a network of named layers says its embedding is made of, where that is the feature."""
    last, own = getattr(module, "last_block", ""), tuple(getattr(module, "feature_names", ()))
    named = isinstance(last, str) and last in dict(module.named_modules())
    return last if own and named and tuple(features[-1:]) == own[-1:] else ""
