"""Judges of a set of points with soft labels: ridge regression, logistic regression, nearest neighbours."""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.labels import are_probabilities, as_probabilities, regression_targets, soft_cross_entropy, weighted_mean
from mmdistill.networks.fit_protocol import FitProtocol, steps_of_epoch
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.stacked import Loss
from mmdistill.task import Batch, Inputs, NetworkState, Tensors, one_tensor

if TYPE_CHECKING:  # at run time, scikit-learn is imported inside functions, since it takes seconds to load
    from sklearn.linear_model import LogisticRegression

RIDGES = tuple(float(10.0**e) for e in np.arange(-3, 2.5, 0.5))
"""The grid of ridges, in units of the mean squared norm of the training points: 1 for unit vectors."""
INVERSE_PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""The grid of C for logistic regression."""
NEIGHBOURS = 15
TEMPERATURE = 0.1
CHUNK_NUMBERS = 16_000_000
"""Similarities between points and queries held at once: 64 MB."""


def centred_targets(targets: Tensor, num_classes: int) -> Tensor:
    """Return :func:`~mmdistill.labels.regression_targets` in float64, ``(n, C)``."""
    return regression_targets(targets, num_classes, torch.float64).double()


def distributions(targets: Tensor, num_classes: int) -> Tensor:
    """Return ``(n, C)`` probabilities; scores (centred at 0) are shifted by 1/C, clipped at 0 and normalised."""
    if are_probabilities(targets):
        return as_probabilities(targets, num_classes)
    shifted = (targets + 1 / num_classes).clamp(min=0)
    return shifted / shifted.sum(1, keepdim=True).clamp(min=1e-12)


def epochs_for(protocol: FitProtocol, count: int, updates: int, least: int = 1) -> int:
    """Return a protocol's epochs; if it has 0, derive them from a number of updates.

    Args:
        protocol: how a network trains.
        count: number of training samples.
        updates: approximate number of updates if the protocol has 0 epochs.
        least: the fewest epochs in that case, even if they take more updates.
    """
    return protocol.epochs or max(round(updates / steps_of_epoch(protocol, count)), least)


def judge_loss(network: FunctionalModule, read: Callable[[Inputs], Inputs], targets: Tensor) -> Loss:
    """Return a network's training loss: soft cross entropy, or squared error if labels are not probabilities.

    Args:
        network: maps the result of ``read`` to logits.
        read: converts a minibatch's inputs for the network.
        targets: the labels of the whole set, which decide between the two losses.
    """
    are_scores = not are_probabilities(targets)

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        logits, buffers = network(state, read(batch.inputs), train=True)
        goal = one_tensor(batch.targets)
        losses = (logits - goal).square().sum(1) if are_scores else soft_cross_entropy(logits, goal)
        return weighted_mean(losses, batch.weight), buffers

    return loss


def ridge_weights(points: Tensor, targets: Tensor, ridge: float, weight: Tensor | None = None) -> Tensor:
    r"""Return the ridge solution without a bias, in float64.

    .. math:: W = (X^\top D X + \lambda I)^{-1} X^\top D Y

    Args:
        points: X.
        targets: Y.
        ridge: lambda, absolute.
        weight: the diagonal of D; 1 by default.
    Shapes:
        points ``(n, d)``; targets ``(n, C)``; weight ``(n,)``; returns ``(d, C)``.
    """
    x, y = points.double(), targets.double()
    scaled = x if weight is None else x * weight.double()[:, None]
    gram = scaled.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.cholesky_solve(scaled.T @ y, torch.linalg.cholesky(gram))


def choose_ridge(points: Tensor, targets: Tensor, dev: Tensor, dev_labels: Tensor, grid: Sequence[float]) -> float:
    """Return the ridge of the grid with the best accuracy on development data; among equals, the largest.

    Shapes:
        points ``(n, d)``; targets ``(n, C)``; dev ``(m, d)``; dev_labels ``(m,)`` int64.
    """
    best = (-1.0, grid[0])
    for ridge in grid:
        predicted = (dev.double() @ ridge_weights(points, targets, ridge)).argmax(1)
        best = max(best, (float((predicted == dev_labels).double().mean()), ridge))
    return best[1]


def knn_scores(
    points: Tensor, probabilities: Tensor, queries: Tensor, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    r"""Return the soft vote of the k nearest points by cosine.

    .. math:: s_c(x) = \sum_{i \in N_k(x)} e^{\cos(x, x_i)/\tau} \, y_{ic}

    Shapes:
        points ``(n, d)``; probabilities ``(n, C)``; queries ``(m, d)``; returns ``(m, C)``.
    """
    directions, k = F.normalize(points, dim=1).T, min(k, len(points))
    scores = []
    for part in torch.split(F.normalize(queries, dim=1), max(1, CHUNK_NUMBERS // len(points))):
        top, index = (part @ directions).topk(k, dim=1)
        votes = (top / temperature).softmax(1)
        scores.append(torch.einsum("mk,mkc->mc", votes, probabilities[index]))
    return torch.cat(scores)


def fit_logistic(points: Tensor, probabilities: Tensor, weight: Tensor, inverse_penalty: float) -> "LogisticRegression":
    """Fit multinomial logistic regression to soft labels.

    A sample with label p enters once per class c with sample weight p_c, which is exactly the soft cross entropy.

    Shapes:
        points ``(n, d)``; probabilities ``(n, C)``; weight ``(n,)``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    share = probabilities * weight[:, None]
    rows, classes = (probabilities > 1e-6).nonzero(as_tuple=True)
    model = LogisticRegression(C=inverse_penalty, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points[rows].numpy(), classes.numpy(), sample_weight=share[rows, classes].numpy())
    return model


def logistic_predictions(
    batch: Batch, num_classes: int, dev: Tensor, dev_labels: Tensor, test: Tensor
) -> tuple[Tensor, float]:
    """Return the predicted classes of test points and the C with the best accuracy on development data.

    All tensors are on the CPU; among equals, the smallest C wins.

    Shapes:
        batch.inputs ``(n, d)``, its targets ``(n,)`` or ``(n, C)``; dev ``(m, d)``; dev_labels ``(m,)`` int64; test
        ``(k, d)``; returns ``(k,)`` int64 and a number.
    """
    points = one_tensor(batch.inputs)
    probabilities = distributions(one_tensor(batch.targets), num_classes)
    if len(((probabilities > 1e-6).any(0)).nonzero()) < 2:
        only = int(probabilities.sum(0).argmax())
        return torch.full((len(test),), only), INVERSE_PENALTIES[0]
    best: tuple[float, LogisticRegression | None, float] = (-1.0, None, 0.0)
    for inverse_penalty in INVERSE_PENALTIES:
        model = fit_logistic(points, probabilities, batch.weight, inverse_penalty)
        accuracy = float((torch.from_numpy(model.predict(dev.numpy())) == dev_labels).double().mean())
        if accuracy > best[0]:
            best = (accuracy, model, inverse_penalty)
    assert best[1] is not None
    return torch.from_numpy(best[1].predict(test.numpy())), best[2]
