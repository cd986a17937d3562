"""Graph equations written with loops in float64, from the papers; nothing here is shared with the package."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def normalised_adjacency(weights: Array) -> Array:
    """Kipf and Welling, Eq. 2: entries (a_ij + [i = j]) / sqrt(d_i d_j), d with the self-loop."""
    n = len(weights)
    degree = [1.0 + sum(float(weights[i, j]) for j in range(n)) for i in range(n)]
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            out[i, j] = (weights[i, j] + (1.0 if i == j else 0.0)) / math.sqrt(degree[i] * degree[j])
    return out


def propagated(weights: Array, x: Array, hops: int) -> Array:
    """Return A^hops X, one node, neighbour and feature at a time."""
    a = normalised_adjacency(weights)
    for _ in range(hops):
        out = np.zeros_like(x)
        for i in range(len(x)):
            for j in range(len(x)):
                for f in range(x.shape[1]):
                    out[i, f] += a[i, j] * x[j, f]
        x = out
    return x


def softmax(z: list[float]) -> list[float]:
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def softmax_regression_gradient(z: Array, y: list[int], weight: Array, bias: Array) -> tuple[Array, Array]:
    """Return the gradient of the mean cross entropy of rows z with classes y, for logits W z + b."""
    classes = len(bias)
    grad_w, grad_b = np.zeros_like(weight), np.zeros_like(bias)
    for row, label in zip(z, y, strict=True):
        logits = [float(sum(weight[k, f] * row[f] for f in range(len(row))) + bias[k]) for k in range(classes)]
        p = softmax(logits)
        for k in range(classes):
            error = (p[k] - (1.0 if k == label else 0.0)) / len(y)
            grad_b[k] += error
            for f in range(len(row)):
                grad_w[k, f] += error * row[f]
    return grad_w, grad_b


def gradient_matching(
    synthetic: Array, syn_y: list[int], real: Array, real_y: list[int], weight: Array, bias: Array
) -> float:
    """Jin et al., ICLR 2022: per class, 1 - cos summed over the rows (output neurons) of the weight gradient."""
    total = 0.0
    for label in range(len(bias)):
        mine = [i for i, y in enumerate(syn_y) if y == label]
        theirs = [i for i, y in enumerate(real_y) if y == label]
        a, _ = softmax_regression_gradient(synthetic[mine], [label] * len(mine), weight, bias)
        b, _ = softmax_regression_gradient(real[theirs], [label] * len(theirs), weight, bias)
        for k in range(len(bias)):
            dot = sum(float(a[k, f] * b[k, f]) for f in range(a.shape[1]))
            norms = math.sqrt(sum(float(v) ** 2 for v in a[k])) * math.sqrt(sum(float(v) ** 2 for v in b[k]))
            total += 1 - dot / (norms + 1e-6)
    return total


def mean_matching(synthetic: Array, syn_y: list[int], real: Array, real_y: list[int], classes: int) -> float:
    """Sum over classes of the squared distance of class means of propagated features."""
    total = 0.0
    for label in range(classes):
        mine = [synthetic[i] for i, y in enumerate(syn_y) if y == label]
        theirs = [real[i] for i, y in enumerate(real_y) if y == label]
        for f in range(synthetic.shape[1]):
            gap = sum(float(v[f]) for v in mine) / len(mine) - sum(float(v[f]) for v in theirs) / len(theirs)
            total += gap**2
    return total
