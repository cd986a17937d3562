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
    """Multiply by a constant; it gives unit vectors of d numbers the unit variance that initialisations expect."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled input."""
        return self.factor * x


def linear_head(dim: int, num_classes: int) -> nn.Module:
    """Return a linear classifier of points; its features are the points."""
    return nn.Sequential(nn.Linear(dim, num_classes))


def mlp_head(dim: int, num_classes: int, width: int = 256) -> nn.Module:
    """Return a classifier of points with one hidden layer, whose activations are its features."""
    return nn.Sequential(Scale(math.sqrt(dim)), nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, num_classes))


def network_name(
    model: str | ModuleFactory | FunctionalModule, width: int | None, features: str | Sequence[str], *, tokens: bool
) -> str:
    """Return the one spelling of a network's name; of a user's own one nothing.

    Args:
        model: as the user has it.
        width: of it, if the user says one.
        features: the submodules whose activations are its features, if the user names any.
        tokens: whether it is to read token embeddings, or else sentence points.
    Raises:
        ConfigError: an unknown name, a network that reads the others, or a width or features of one that takes none.
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
    """Return the network of :data:`MODELS` that a name means, for points of ``dim`` numbers; ``mlp`` has a width."""
    head = (
        partial(linear_head, dim, num_classes)
        if name == "linear"
        else partial(mlp_head, dim, num_classes, width or 256)
    )
    return FunctionalModule(head, device=device)
