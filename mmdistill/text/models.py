"""Networks that read sentence points."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mmdistill.checks import require_no_features, require_no_width
from mmdistill.errors import ConfigError
from mmdistill.names import known_name
from mmdistill.networks.module import FunctionalModule, ModuleFactory

MODELS = ("linear", "mlp")
"""Networks that read sentence points."""
TOKEN_MODELS = ("textcnn", "bilstm", "bigru", "transformer")
"""Networks that read token embeddings, see :mod:`mmdistill.text.token_models`."""
ModelLike = str | ModuleFactory
"""A network by name, or a function without arguments that returns a module from ``(n, d)`` points to logits."""


class Scale(nn.Module):
    """Multiply by a constant, to give unit vectors the unit variance that initialisations expect."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled input."""
        return self.factor * x


def linear_head(dim: int, num_classes: int) -> nn.Module:
    """Return a linear classifier of points, whose features are the points."""
    return nn.Sequential(nn.Linear(dim, num_classes))


def mlp_head(dim: int, num_classes: int, width: int = 256) -> nn.Module:
    """Return a classifier of points with one hidden layer, whose activations are its features."""
    return nn.Sequential(Scale(math.sqrt(dim)), nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, num_classes))


def network_name(
    model: str | ModuleFactory | FunctionalModule, width: int | None, features: str | Sequence[str], *, tokens: bool
) -> str:
    """Return a network's canonical name; empty for the user's own network.

    Args:
        model: the network as the user gave it.
        width: its width, if the user gives one.
        features: the submodules whose activations are its features, if the user names any.
        tokens: whether it must read token embeddings; otherwise it must read sentence points.
    Raises:
        ConfigError: an unknown name, a network for the other kind of input, or a width or features that it lacks.
    """
    if not isinstance(model, str):
        require_no_width(width, "a module of your own")
        if isinstance(model, FunctionalModule):
            require_no_features(features, f"a {type(model).__name__}")
        return ""
    name = known_name("text model", model, (*MODELS, *TOKEN_MODELS))
    if tokens != (name in TOKEN_MODELS):
        what, builder = ("sentence points", "text_task") if tokens else ("token embeddings", "token_task")
        raise ConfigError(f"the network {name!r} reads {what}; {builder} has it")
    require_no_features(features, name)
    if name in ("linear", "transformer"):
        require_no_width(width, name)
    return name


def point_module(
    name: str, dim: int, num_classes: int, width: int | None = None, device: torch.device | str = "cpu"
) -> FunctionalModule:
    """Build a network of :data:`MODELS` by name, for points of ``dim`` numbers; only ``mlp`` has a width."""
    head = (
        partial(linear_head, dim, num_classes)
        if name == "linear"
        else partial(mlp_head, dim, num_classes, width or 256)
    )
    return FunctionalModule(head, device=device)
