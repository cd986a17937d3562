"""Graph equations written with loops in float64, from the papers; nothing here is shared with the package.

But for networks whose training is written out (:func:`trained_one_by_one`), in their own float32.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

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
    synthetic: Array,
    syn_y: list[int],
    real: Array,
    real_y: list[int],
    weight: Array,
    bias: Array,
    by_share: bool = False,
) -> float:
    """Jin et al., ICLR 2022: per class, 1 - cos summed over the rows (output neurons) of the weight gradient.

    By share, each class counts with its synthetic nodes over those of the largest class.
    """
    total, largest = 0.0, max(syn_y.count(label) for label in range(len(bias)))
    for label in range(len(bias)):
        mine = [i for i, y in enumerate(syn_y) if y == label]
        theirs = [i for i, y in enumerate(real_y) if y == label]
        a, _ = softmax_regression_gradient(synthetic[mine], [label] * len(mine), weight, bias)
        b, _ = softmax_regression_gradient(real[theirs], [label] * len(theirs), weight, bias)
        for k in range(len(bias)):
            dot = sum(float(a[k, f] * b[k, f]) for f in range(a.shape[1]))
            norms = math.sqrt(sum(float(v) ** 2 for v in a[k])) * math.sqrt(sum(float(v) ** 2 for v in b[k]))
            total += (1 - dot / (norms + 1e-6)) * (len(mine) / largest if by_share else 1.0)
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


def pairwise_edges(
    x: Array, first: Array, hidden: list[Array], last: Array, bias: float, scales: list[Array], shifts: list[Array]
) -> Array:
    """Jin et al., ICLR 2022, Eq. 7: a perceptron on every concatenated pair, batch norms over all pairs."""
    n = len(x)
    rows = [[float(v) for v in [*x[i], *x[j]]] for i in range(n) for j in range(n)]
    for weight, scale, shift in zip([first, *hidden], scales, shifts, strict=True):
        out = [[sum(float(w) * v for w, v in zip(unit, row, strict=True)) for unit in weight] for row in rows]
        for k in range(len(weight)):
            mean = sum(row[k] for row in out) / len(out)
            variance = sum((row[k] - mean) ** 2 for row in out) / len(out)
            for row in out:
                row[k] = max(0.0, (row[k] - mean) / math.sqrt(variance + 1e-5) * float(scale[k]) + float(shift[k]))
        rows = out
    scores = [sum(float(w) * v for w, v in zip(last[0], row, strict=True)) + bias for row in rows]
    edges = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                edges[i, j] = 1 / (1 + math.exp(-(scores[i * n + j] + scores[j * n + i]) / 2))
    return edges


def concrete_edge(logit: float, noise: float, temperature: float) -> float:
    """Jin et al., KDD 2022, Eq. 9: a relaxed sample of a Bernoulli edge."""
    return 1 / (1 + math.exp(-(math.log(noise) - math.log(1 - noise) + logit) / temperature))


def adam_training(z: Array, y: list[int], weight: Array, bias: Array, steps: int, lr: float) -> tuple[Array, Array]:
    """Train softmax regression on all rows with Adam (Kingma and Ba, Algorithm 1), element by element."""
    params = [weight.copy(), bias.copy()]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    for t in range(1, steps + 1):
        gradients = softmax_regression_gradient(z, y, params[0], params[1])
        for p, g, m, v in zip(params, gradients, first, second, strict=True):
            for at in np.ndindex(p.shape):
                m[at] = 0.9 * m[at] + 0.1 * g[at]
                v[at] = 0.999 * v[at] + 0.001 * g[at] ** 2
                p[at] -= lr * (m[at] / (1 - 0.9**t)) / (math.sqrt(v[at] / (1 - 0.999**t)) + 1e-8)
    return params[0], params[1]


def averaged_hops(weights: Array, x: Array, hops: int) -> Array:
    """Return the mean of A^k x over k from 0 to the number of hops, A the normalised adjacency (GRAND, Eq. 1)."""
    adjacency, total, current = normalised_adjacency(weights), np.array(x, float), np.array(x, float)
    for _ in range(hops):
        current = adjacency @ current
        total = total + current
    return total / (hops + 1)


def consistent_predictions(
    predictions: list[Array], nodes: list[int], classes: list[int], weight: float, temperature: float
) -> float:
    """Return GRAND's loss of several predictions (S matrices of probabilities): its Eq. 3 and 5, both over S."""
    count, width = predictions[0].shape
    agreed = np.zeros((count, width))
    for i in range(count):
        for c in range(width):
            mean = sum(p[i, c] for p in predictions) / len(predictions)
            agreed[i, c] = mean ** (1 / temperature)
        agreed[i] /= sum(agreed[i])
    total = 0.0
    for p in predictions:
        total -= sum(np.log(p[i, c]) for i, c in zip(nodes, classes, strict=True)) / len(nodes) / len(predictions)
        distance = sum((p[i, c] - agreed[i, c]) ** 2 for i in range(count) for c in range(width))
        total += weight * distance / count / len(predictions)
    return float(total)


def ridge_cross_entropy(
    real: Array, targets: Array, synthetic: Array, labels: Array, weights: Array, ridge: float, scale: float
) -> float:
    """Return the mean cross entropy of a ridge prediction under one layer of rectified random features.

    Args:
        real: ``(n, d)`` rows with ``targets`` ``(n, C)``.
        targets: probabilities.
        synthetic: ``(m, d)`` rows with ``labels`` ``(m, C)``.
        labels: what is regressed.
        weights: ``(h, d)``.
        ridge: in units of the kernel's mean diagonal.
        scale: factor of the predictions.
    """

    def similarity(a: Array, b: Array) -> float:
        return sum(max(float(w @ a), 0.0) * max(float(w @ b), 0.0) for w in weights)

    kernel = np.array([[similarity(a, b) for b in synthetic] for a in synthetic])
    kernel = kernel + ridge * float(np.mean(np.diag(kernel))) * np.eye(len(synthetic))
    coefficients = np.linalg.inv(kernel) @ labels
    total = 0.0
    for row, target in zip(real, targets, strict=True):
        cross = np.array([similarity(row, b) for b in synthetic])
        chances = softmax([scale * float(value) for value in cross @ coefficients])
        total -= sum(float(t) * float(np.log(p)) for t, p in zip(target, chances, strict=True))
    return total / len(real)


def trained_one_by_one(
    network: Any, keys: Sequence[Any], sample: Any, val: Any, test: Any, protocol: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the test logits ``(S, m, C)`` of node classifiers at their best validation epochs, and these accuracies.

    Args:
        network: with ``init(key)``, ``logits(state, inputs, train, draws)``, ``precomputed(inputs)`` and
            ``normalised``.
        keys: of each network's parameters, and by epoch of its dropout.
        sample: inputs, class indices and weights.
        val: a scene, nodes and classes.
        test: the same.
        protocol: epochs, lr, weight_decay and validate_every.
    """
    logits, scores = [], []
    inputs = network.precomputed(sample.inputs)
    val_inputs, test_inputs = (part.scene.inputs(network.normalised) for part in (val, test))
    for key in keys:
        state = network.init(key)
        params = {name: parameter.requires_grad_(True) for name, parameter in state.params.items()}
        buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
        chosen, best = None, -1.0
        for epoch in range(protocol.epochs):
            if epoch in (0, protocol.epochs // 2):  # a fresh Adam, ten times slower from half-way
                lr = protocol.lr if epoch == 0 else protocol.lr / 10
                optimizer = torch.optim.Adam(params.values(), lr=lr, weight_decay=protocol.weight_decay)
            optimizer.zero_grad()
            state = state._replace(params=params, buffers=buffers)
            predicted, updated = network.logits(state, inputs, train=True, draws=key.fold("epoch", epoch))
            losses = F.cross_entropy(predicted, sample.targets, reduction="none")
            ((losses * sample.weight).sum() / sample.weight.sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            buffers = {**buffers, **{name: buffer.detach() for name, buffer in updated.items()}}
            if (epoch + 1) % protocol.validate_every and epoch + 1 != protocol.epochs:
                continue
            with torch.no_grad():
                now = state._replace(params=params, buffers=buffers)
                hits = network.logits(now, val_inputs)[0][val.nodes].argmax(1) == val.classes
                if float(hits.float().mean()) > best:
                    best, chosen = float(hits.float().mean()), network.logits(now, test_inputs)[0][test.nodes]
        logits.append(chosen)
        scores.append(best)
    return torch.stack([one for one in logits if one is not None]), torch.tensor(scores)


def ward_groups(x: Array, weights: Array, count: int) -> list[list[int]]:
    """Merge the linked groups whose merging adds least to the squared distances from means, until few are left."""
    groups = [[node] for node in range(len(x))]
    while len(groups) > count:
        costs = {}
        for i, a in enumerate(groups):
            for j, b in enumerate(groups[:i]):
                if any(weights[v, w] > 0 for v in a for w in b):
                    gap = x[a].mean(0) - x[b].mean(0)
                    costs[i, j] = len(a) * len(b) / (len(a) + len(b)) * float(gap @ gap)
        i, j = min(costs, key=lambda pair: costs[pair])
        groups[j] += groups.pop(i)
    return groups


def neighbour_entropy(weights: Array, classes: list[int]) -> list[float]:
    """Zhang et al., ICML 2024: entropy of the classes of each node and its neighbours."""
    found = []
    for v in range(len(weights)):
        around = [classes[v]] + [classes[u] for u in range(len(weights)) if weights[v, u] and u != v]
        shares = [around.count(c) / len(around) for c in set(around)]
        found.append(-sum(p * math.log(p) for p in shares))
    return found


def pacing(easy: float, epoch: int, joining: int, kind: str) -> float:
    """The published code of Zhang et al. (``training_scheduler``)."""
    if kind == "linear":
        return min(1.0, easy + (1 - easy) * epoch / joining)
    if kind == "root":
        return min(1.0, math.sqrt(easy**2 + (1 - easy**2) * epoch / joining))
    return min(1.0, 2 ** (math.log2(easy) - math.log2(easy) * epoch / joining))


def expanding_bound(first: int, last: int, step: int) -> int:
    """The published code of Zhang et al.: starts lie below a bound that grows by one in each step."""
    return min(first + step, last)


def gcn_alone(params: dict[str, Array], x: Array) -> tuple[Array, Array]:
    """Units and class probabilities of a two-layer GCN on nodes without edges, which see themselves alone."""
    units = x @ params["first.weight"].T + params["first.bias"]
    logits = np.maximum(units, 0) @ params["second.weight"].T + params["second.bias"]
    return units, np.array([softmax([float(v) for v in row]) for row in logits])


def geom_objective(
    start: dict[str, Array], target: dict[str, Array], x: Array, y: Array, steps: int, rate: float, weight: float
) -> float:
    """Zhang et al., ICML 2024: the end of a student that trains on soft labels, and what the expert says of them.

    The student steps along written-out gradients of the mean divergence KL(y || p) of all nodes; distances are squared.
    """
    now = {name: tensor.copy() for name, tensor in start.items()}
    for _ in range(steps):
        units, p = gcn_alone(now, x)
        error = (p - y) / len(x)
        push = (error @ now["second.weight"]) * (units > 0)
        slopes = {
            "first.weight": push.T @ x,
            "first.bias": push.sum(0),
            "second.weight": error.T @ np.maximum(units, 0),
            "second.bias": error.sum(0),
        }
        now = {name: now[name] - rate * slopes[name] for name in now}
    reached = sum(float(((now[name] - target[name]) ** 2).sum()) for name in now)
    moved = sum(float(((start[name] - target[name]) ** 2).sum()) for name in now)
    _, said = gcn_alone(target, x)
    divergence = 0.0
    for i in range(len(x)):
        for c in range(y.shape[1]):
            divergence += float(y[i, c]) * (math.log(y[i, c]) - math.log(said[i, c])) / len(x)
    return reached / moved + weight * divergence
