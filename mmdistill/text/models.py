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


def model_name(name: str, *, tokens: bool) -> str:
    """Return the one spelling of a network's name.

    Args:
        name: as the user has it.
        tokens: whether it is to read token embeddings, or else sentence points.
    Raises:
        ConfigError: an unknown name, or a network that reads the others.
    """
    key = known_name("text model", name, (*MODELS, *TOKEN_MODELS))
    if tokens != (key in TOKEN_MODELS):
        what, builder = ("sentence points", "text_task") if tokens else ("token embeddings", "token_task")
        raise ConfigError(f"the network {key!r} reads {what}; {builder} has it")
    return key


def point_network(model: ModelLike, width: int | None, features: str | Sequence[str]) -> str:
    """Return the name of a network that reads sentence points; of a user's own one nothing.

    Raises:
        ConfigError: an unknown name, a width of anything but ``mlp``, or features of a named one.
    """
    if not isinstance(model, str):
        require_no_width(width, "a module of your own")
        return ""
    name = model_name(model, tokens=False)
    require_no_features(features, name)
    if name != "mlp":
        require_no_width(width, name)
    return name


def make_module(
    model: ModelLike,
    dim: int,
    num_classes: int,
    width: int | None,
    features: str | Sequence[str],
    device: torch.device | str,
) -> FunctionalModule:
    """Return the network that a name or a function means, for points of ``dim`` numbers; see :func:`point_network`."""
    name = point_network(model, width, features)
    if not isinstance(model, str):
        return FunctionalModule(model, features, device)
    if name == "linear":
        return FunctionalModule(partial(linear_head, dim, num_classes), device=device)
    return FunctionalModule(partial(mlp_head, dim, num_classes, width or 256), device=device)
