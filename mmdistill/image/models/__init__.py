"""The field's small image networks by name, for all image sizes that they can take.

A name is a network, then options after hyphens, in any order: ``convnet-d4-w64-bn`` has four blocks of 64 channels with
batch norm.

=========================== ====================================================================
``d4``, ``w64``             depth, width
``nn in bn ln gn``          no norm, or instance, batch, layer or group norm
``relu leakyrelu sigmoid swish softplus`` the activation
``avgpool maxpool nopool``  the pooling
``x2``                      each block has twice the channels of the one before
=========================== ====================================================================

ConvNets take all of these, FRePoNets depth, width, norm and activation, MLP and ViT depth and width, LeNet width, the
others width and norm (not ``ln``).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Literal

from torch import nn

from mmdistill.checks import require_sizes
from mmdistill.errors import ConfigError, UnsupportedError
from mmdistill.image.models.classic import MLP, VGG11, AlexNet, LeNet
from mmdistill.image.models.convnet import ConvNet, convnet_depth, vanishing
from mmdistill.image.models.layers import ImageShape, norm_layer
from mmdistill.image.models.prenorm import PreNormConvNet
from mmdistill.image.models.resnet import STAGES, ResNet
from mmdistill.image.models.vit import ViT, patch_size
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.module import ModuleFactory
from mmdistill.open_table import OpenTable

Builder = Callable[..., nn.Module]
Option = str | int | bool

TINY_WIDTH = 32
"""A ConvNet's default width on images under 16 pixels."""
NORMS = {"nn": "none", "in": "instance", "bn": "batch", "ln": "layer", "gn": "group"}
POOLINGS = {"avgpool": "avg", "maxpool": "max", "nopool": "none"}
WORDS: dict[str, tuple[str, Option]] = {
    **{word: ("norm", norm) for word, norm in NORMS.items()},
    **{word: ("activation", word) for word in ("relu", "leakyrelu", "sigmoid", "swish", "softplus")},
    **{word: ("pooling", pooling) for word, pooling in POOLINGS.items()},
    "x2": ("doubling", True),
}
"""Options by word: the builder's argument and its value."""
NUMBERS = {"d": "depth", "w": "width"}
"""Options with a number, by letter."""

NetworkKind = Literal["shallow", "deep", "transformer"]
"""Kinds of networks that need learning rates of their own."""


@dataclass(frozen=True)
class Family:
    """Networks that share a name.

    Args:
        build: builds a network from the image shape, the number of classes and the options.
        smallest: the smallest image side that it takes; one-channel images of 28 x 28 count as 32 x 32.
        options: the builder's arguments that a name may set.
        kind: selects the learning rate of judges, see :func:`mmdistill.image.protocols.plan_for`.
        by_size: whether default depth and width depend on the images' size.
    """

    build: Builder
    smallest: int
    options: tuple[str, ...]
    kind: NetworkKind = "shallow"
    by_size: bool = False

    def defaults(self, shape: ImageShape | None = None) -> dict[str, Option]:
        """Return default options for images of a shape; None: only those that do not depend on it."""
        arguments = signature(self.build).parameters
        defaults: dict[str, Option] = {key: arguments[key].default for key in self.options}
        if not self.by_size:
            return defaults
        if shape is None:
            return {key: value for key, value in defaults.items() if key not in ("depth", "width")}
        tiny: dict[str, Option] = {"width": TINY_WIDTH} if min(shape[1:]) < 16 else {}
        return {**defaults, "depth": convnet_depth(*shape[1:]), **tiny}


CONVNET_OPTIONS = ("depth", "width", "norm", "activation", "pooling", "doubling")
FAMILIES: OpenTable[Family] = OpenTable(
    {
        "convnet": Family(ConvNet, 1, CONVNET_OPTIONS, by_size=True),
        "freponet": Family(PreNormConvNet, 1, ("depth", "width", "norm", "activation"), by_size=True),
        "mlp": Family(MLP, 1, ("depth", "width")),
        "lenet": Family(LeNet, 16, ("width",)),
        "alexnet": Family(AlexNet, 16, ("width", "norm")),
        "vgg11": Family(VGG11, 32, ("width", "norm"), "deep"),
        **{
            f"resnet{layers}": Family(partial(ResNet, layers=layers), 16, ("width", "norm"), "deep")
            for layers in STAGES
        },
        "vit": Family(ViT, 8, ("depth", "width"), kind="transformer"),
    }
)
"""Networks by name."""
JUDGING_NETWORKS = (
    "convnet",
    "convnet-nn",
    "mlp",
    "lenet",
    "alexnet",
    "alexnet-in",
    "vgg11",
    "vgg11-bn",
    "resnet18",
    "resnet18-bn",
    "vit",
)
"""Networks that judge across architectures: those of the survey's Table 3 and others usual in the field."""


def is_added(name: str) -> bool:
    """Return whether a network's or judge's name is of a family that a user's code added, which may change."""
    return FAMILIES.added(re.split("[- ]", canonical(name), maxsplit=1)[0])


def parse_model(name: str, what: str = "model") -> tuple[str, dict[str, Option]]:
    """Return the family of a name and the options in it as the builder's arguments.

    Args:
        name: see the module's description.
        what: what the name is of, for error messages.
    Raises:
        ConfigError: an unknown network, or an option that it does not take or that is given twice.
    """
    family, *words = canonical(name).split("-")
    if family not in FAMILIES:
        raise unknown_name(what, name, FAMILIES, scripts="a network")
    network, options = FAMILIES[family], dict[str, Option]()
    for word in words:
        number = re.fullmatch(r"([dw])(\d+)", word)
        if number is None and word not in WORDS:
            raise ConfigError(
                f"unknown option {word!r} of the model {name!r}: options are dN (depth), wN (width), {', '.join(WORDS)}"
            )
        key, value = (NUMBERS[number[1]], int(number[2])) if number is not None else WORDS[word]
        if number is not None:
            require_sizes(**{f"the {key} of {name!r}": int(number[2])})
        if key not in network.options:
            raise ConfigError(f"{family} takes no {key}, so {word!r} in {name!r} means nothing to it")
        if key in options:
            raise ConfigError(f"the model {name!r} sets its {key} twice")
        options[key] = value
    return family, options


def model_name(name: str, what: str = "model", shape: ImageShape | None = None) -> str:
    """Return a name in its one spelling: options in a fixed order, without defaults.

    Args:
        name: see the module's description.
        what: what the name is of, for error messages.
        shape: channels, height, width of an image, on which a ConvNet's default depth and width depend; None: keep
            depth and width.
    Raises:
        ConfigError: see :func:`parse_model`.
    """
    family, options = parse_model(name, what)
    defaults = FAMILIES[family].defaults(shape)
    return spelling(family, {key: value for key, value in options.items() if value != defaults.get(key)})


def spelling(family: str, options: Mapping[str, Option]) -> str:
    """Return the name of a family with all given options, in a fixed order."""
    words = [f"{letter}{options[key]}" for letter, key in NUMBERS.items() if key in options]
    words += [word for word, (key, value) in WORDS.items() if key in options and options[key] == value]
    return "-".join([family, *words])


def model_factory(name: str, shape: ImageShape, num_classes: int, width: int | None = None) -> ModuleFactory:
    """Return a factory of a named network for images of one shape.

    Args:
        name: see the module's description.
        shape: channels, height, width of an image.
        num_classes: C.
        width: None is the name's or the network's own; a ConvNet's default is 128, or 32 on images under 16 pixels,
            so that the 8 x 8 digits distil in seconds.

    Raises:
        ConfigError: an unknown name, or a width given twice.
        UnsupportedError: images too small for the network.
    """
    family, options = parse_model(name)
    reason = refusal(name, shape)
    if reason:
        raise UnsupportedError(reason)
    if width is not None and "width" in options:
        raise ConfigError(f"the width is given twice, as {width} and in {name!r}")
    if width is not None:
        options["width"] = width
    network = FAMILIES[family]
    return partial(network.build, shape, num_classes, **{**network.defaults(shape), **options})


def refusal(name: str, shape: ImageShape) -> str:
    """Return why a network does not take images of this shape; empty if it does."""
    family, options = parse_model(name)
    network = FAMILIES[family]
    smallest = network.smallest
    side = min(shape[1:]) + (4 if shape[0] == 1 else 0)
    if side < smallest:
        return f"{family} needs images of at least {smallest} x {smallest} pixels, got {shape[1]} x {shape[2]}"
    patch = patch_size(min(shape[1:]))
    if family == "vit" and any(length % patch for length in shape[1:]):
        return f"vit cuts {shape[1]} x {shape[2]} images into patches of {patch} pixels, which must divide both sides"
    options = {**network.defaults(shape), **options}
    if network.build in (ConvNet, PreNormConvNet) and options.get("pooling") != "none":
        return vanishing(shape, int(options["depth"]))
    return ""


def fitting_models(shape: ImageShape) -> tuple[str, ...]:
    """Return the networks of :data:`JUDGING_NETWORKS` that take images of this shape, the ConvNet first."""
    return tuple(name for name in JUDGING_NETWORKS if not refusal(name, shape))


__all__ = [
    "FAMILIES",
    "JUDGING_NETWORKS",
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "Family",
    "ImageShape",
    "LeNet",
    "ResNet",
    "ViT",
    "convnet_depth",
    "fitting_models",
    "model_factory",
    "model_name",
    "norm_layer",
    "parse_model",
    "refusal",
    "spelling",
]
