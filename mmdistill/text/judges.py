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

if TYPE_CHECKING:  # scikit-learn is imported where it is used, since importing it takes seconds
    from sklearn.linear_model import LogisticRegression

RIDGES = tuple(float(10.0**e) for e in np.arange(-3, 2.5, 0.5))
"""The grid that the ridge is chosen from, absolute, for unit vectors."""
INVERSE_PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""The grid that logistic regression's C is chosen from."""
NEIGHBOURS = 15
TEMPERATURE = 0.1
CHUNK_NUMBERS = 16_000_000
"""Similarities of points with queries that are held at once: 64 MB."""


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
    """Return a protocol's epochs; 0 stands for as many as make about so many updates on so many samples.

    Args:
        protocol: how a network trains.
        count: the samples that it trains on.
        updates: where the protocol says no epochs.
        least: the fewest epochs then, of a set so large that these are more updates.
    """
    return protocol.epochs or max(round(updates / steps_of_epoch(protocol, count)), least)


def judge_loss(network: FunctionalModule, read: Callable[[Inputs], Inputs], targets: Tensor) -> Loss:
    """Return what a network trains by: the soft cross entropy, or the squared error where labels are no probabilities.

    Args:
        network: from what ``read`` gives to logits.
        read: brings a minibatch's inputs into the network's form.
        targets: the labels of the whole set, which tell the two apart.
    """
    scores = not are_probabilities(targets)

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        logits, buffers = network(state, read(batch.inputs), train=True)
        goal = one_tensor(batch.targets)
        each = (logits - goal).square().sum(1) if scores else soft_cross_entropy(logits, goal)
        return weighted_mean(each, batch.weight), buffers

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


def choose_ridge(
    points: Tensor, targets: Tensor, dev: Tensor, dev_labels: Tensor, grid: Sequence[float] = RIDGES
) -> float:
    """Return the ridge of the grid with the best accuracy on development data, the largest of equals.

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
    directions, kept = F.normalize(points, dim=1).T, min(k, len(points))
    found = []
    for part in torch.split(F.normalize(queries, dim=1), max(1, CHUNK_NUMBERS // len(points))):
        top, index = (part @ directions).topk(kept, dim=1)
        votes = (top / temperature).softmax(1)
        found.append(torch.einsum("mk,mkc->mc", votes, probabilities[index]))
    return torch.cat(found)


def fit_logistic(points: Tensor, probabilities: Tensor, weight: Tensor, inverse_penalty: float) -> "LogisticRegression":
    """Fit multinomial logistic regression to soft labels.

    A sample with label p enters once per class c with sample weight p_c, which gives exactly the soft cross entropy.

    Shapes:
        points ``(n, d)``; probabilities ``(n, C)``; weight ``(n,)``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    share = probabilities * weight[:, None]
    rows, classes = (share > 1e-6).nonzero(as_tuple=True)
    model = LogisticRegression(C=inverse_penalty, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points[rows].numpy(), classes.numpy(), sample_weight=share[rows, classes].numpy())
    return model


def logistic_predictions(
    batch: Batch, num_classes: int, dev: Tensor, dev_labels: Tensor, test: Tensor
) -> tuple[Tensor, float]:
    """Return the predicted classes of test points and the C that did best on development data.

    All tensors lie on the CPU; the smallest C of equals is taken.

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
