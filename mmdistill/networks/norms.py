"""The inputs of batch norms, read while a network runs in eval mode."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmdistill.abilities import NormReader
from mmdistill.errors import UnsupportedError
from mmdistill.networks.module import NORMS, FunctionalModule
from mmdistill.task import NetworkState, Tensors


def norms_read(
    module: FunctionalModule, state: NetworkState, read: NormReader, *inputs: Any
) -> tuple[Any, dict[str, Tensors]]:
    """Return a network's output in eval mode, and a reader's results on the input of each batch norm, by its name.

    Norms come in the order in which they run; of a norm that runs several times the last run counts. They normalise by
    their running statistics, so samples do not depend on each other.

    Args:
        module: the network.
        state: its parameters and buffers.
        read: maps an input ``(n, channels, ...)`` and the norm's running mean and variance, ``(channels,)`` each, to
            tensors by name.
        inputs: the network's inputs.
    Raises:
        UnsupportedError: no batch norm with running statistics, naming the norms that there are.
    """
    norms = _batch_norms(module.module)
    results: dict[str, Tensors] = {}

    def keep(name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        mean, variance = (state.buffers[f"{name}.running_{kind}"] for kind in ("mean", "var"))
        results[name] = read(args[0], mean, variance)

    hooks = [norm.register_forward_pre_hook(partial(keep, name)) for name, norm in norms.items()]
    try:
        output, _ = module(state, *inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return output, results


def _batch_norms(module: nn.Module) -> Mapping[str, nn.Module]:
    """Return a module's batch norms with running statistics, by name.

    Raises:
        UnsupportedError: there are none.
    """
    norms = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None
    }
    if norms:
        return norms
    others = sorted({type(part).__name__ for part in module.modules() if isinstance(part, NORMS)})
    what = f"its norms are {' and '.join(others)}" if others else "it has no norms at all"
    raise UnsupportedError(
        f"{type(module).__name__} has no batch norms with running statistics ({what}); take a network with them, such "
        "as --model convnet-bn or resnet18-bn"
    )
