"""Distances between two gradient trees, as pure functions.

Each maps two parameter trees with a leading class axis to one ``(C,)`` tensor. All raise a ShapeError where the shapes
of two gradients differ, and a ConfigError where the trees have no parameter of the kind that is compared.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.task import Tensors

Distance = Callable[[Tensors, Tensors], Tensor]

EPSILON = 1e-6
"""Added to the product of norms, as in the published DC code."""


def _pairs(a: Tensors, b: Tensors, min_dims: int) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of gradients that have more than ``min_dims`` axes, the class axis included."""
    pairs = []
    for name, left in a.items():
        right = b[name]
        if left.shape != right.shape:
            raise ShapeError(f"gradients of {name!r} have shapes {tuple(left.shape)} and {tuple(right.shape)}")
        if left.ndim > min_dims:
            pairs.append((left, right))
    if not pairs:
        raise ConfigError(
            "no parameter has a convolution to compare: use a convolutional network, or a distance of all weights"
            if min_dims > 2
            else "no parameter has a weight matrix to compare: the network has only biases and scales"
        )
    return pairs


def row_cosine(a: Tensors, b: Tensors) -> Tensor:
    """Sum 1 - cos over every output row of every weight (Eq. 8).

    Each row of a weight ``(C, out, ...)`` is flattened; one-dimensional parameters (biases, norm scales) are skipped,
    as published.

    Shapes:
        trees of ``(C, *parameter)``; returns ``(C,)``.

    Source: Zhao et al., ICLR 2021, Sec. 3.3; survey Eq. 8.
    """
    terms = []
    for left, right in _pairs(a, b, 2):
        x, y = left.flatten(2), right.flatten(2)
        cosine = (x * y).sum(2) / (x.norm(dim=2) * y.norm(dim=2) + EPSILON)
        terms.append((1 - cosine).sum(1))
    return torch.stack(terms).sum(0)


def flat_cosine(a: Tensors, b: Tensors) -> Tensor:
    """Return 1 - cos of the two whole gradients, all parameters flattened into one vector per class.

    Shapes:
        trees of ``(C, *parameter)``; returns ``(C,)``.
    """
    pairs = _pairs(a, b, 0)
    x = torch.cat([left.flatten(1) for left, _ in pairs], 1)
    y = torch.cat([right.flatten(1) for _, right in pairs], 1)
    cosine: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + EPSILON)
    return 1 - cosine


def squared_error(a: Tensors, b: Tensors) -> Tensor:
    """Return the squared Euclidean distance of the two whole gradients, per class.

    Shapes:
        trees of ``(C, *parameter)``; returns ``(C,)``.
    """
    return torch.stack([(x - y).square().flatten(1).sum(1) for x, y in _pairs(a, b, 0)]).sum(0)


def relative_squared_error(a: Tensors, b: Tensors) -> Tensor:
    """Return the squared Euclidean distance of the two whole gradients over the squared norm of the second, per class.

    Shapes:
        trees of ``(C, *parameter)``; returns ``(C,)``.
    Source: Jin et al., KDD 2022 (graph classification).
    """
    size = torch.stack([y.square().flatten(1).sum(1) for _, y in _pairs(a, b, 0)]).sum(0)
    return squared_error(a, b) / size.clamp_min(torch.finfo(size.dtype).tiny)


def row_cosine_euclidean(a: Tensors, b: Tensors) -> Tensor:
    """Sum 1 - cos plus the Euclidean distance over every output row of every weight (Eq. 11).

    One-dimensional parameters are skipped. The cosine's norms are clamped to at least 1e-8, as in the published code.

    Shapes:
        trees of ``(C, *parameter)``; returns ``(C,)``.
    Source: Jiang et al., 2022, and its published code.
    """
    terms = []
    for left, right in _pairs(a, b, 2):
        x, y = left.flatten(2), right.flatten(2)
        terms.append((1 - F.cosine_similarity(x, y, dim=2, eps=1e-8) + (x - y).norm(dim=2)).sum(1))
    return torch.stack(terms).sum(0)


def conv_squared_error(a: Tensors, b: Tensors) -> Tensor:
    """Return the squared Euclidean distance of the gradients of convolutions, per class.

    Biases, norm scales and linear layers are skipped, as published.

    Shapes:
        trees of ``(C, *parameter)``; returns ``(C,)``.
    Source: Kim et al., ICML 2022 (32 x 32 photographs).
    """
    return torch.stack([(x - y).square().flatten(1).sum(1) for x, y in _pairs(a, b, 3)]).sum(0)


def conv_absolute_error(a: Tensors, b: Tensors) -> Tensor:
    """Return the sum of absolute differences of the gradients of convolutions, per class.

    Shapes:
        trees of ``(C, *parameter)``; returns ``(C,)``.
    Source: Kim et al., ICML 2022 (MNIST, Fashion-MNIST, ImageNet).
    """
    return torch.stack([(x - y).abs().flatten(1).sum(1) for x, y in _pairs(a, b, 3)]).sum(0)
