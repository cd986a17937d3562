"""The survey's equations, written with loops in float64 and numpy only, for a two-hidden-layer tanh network.

Nothing here is shared with the implementation: gradients are written by hand.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Params = dict[str, Array]


def forward(params: Params, x: Array) -> tuple[Array, Array, Array]:
    """Hidden layers and logits of one sample."""
    h1 = np.tanh(params["0.weight"] @ x + params["0.bias"])
    h2 = np.tanh(params["2.weight"] @ h1 + params["2.bias"])
    return h1, h2, params["4.weight"] @ h2 + params["4.bias"]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return e / e.sum()


def sample_gradient(params: Params, x: Array, target: Array) -> Params:
    """Back-propagation by hand of the cross entropy of one sample with a soft target."""
    h1, h2, logits = forward(params, x)
    d3 = softmax(logits) * target.sum() - target
    d2 = (params["4.weight"].T @ d3) * (1 - h2**2)
    d1 = (params["2.weight"].T @ d2) * (1 - h1**2)
    return {
        "0.weight": np.outer(d1, x),
        "0.bias": d1,
        "2.weight": np.outer(d2, h1),
        "2.bias": d2,
        "4.weight": np.outer(d3, h2),
        "4.bias": d3,
    }


def class_gradient(params: Params, xs: Array, targets: Array) -> Params:
    """The gradient of the mean loss over one class's samples."""
    total = {name: np.zeros_like(value) for name, value in params.items()}
    for x, target in zip(xs, targets, strict=True):
        for name, value in sample_gradient(params, x, target).items():
            total[name] += value / len(xs)
    return total


def row_cosine(a: Params, b: Params) -> float:
    """Eq. 8's d: over weights, over output rows, 1 - cos; one-dimensional parameters skipped."""
    total = 0.0
    for name in a:
        if a[name].ndim < 2:
            continue
        for row_a, row_b in zip(a[name], b[name], strict=True):
            x, y = row_a.ravel(), row_b.ravel()
            total += 1 - (x @ y) / (np.sqrt(x @ x) * np.sqrt(y @ y) + 1e-6)
    return total


def gradient_matching(params: Params, syn: list[tuple[Array, Array]], real: list[tuple[Array, Array]]) -> float:
    """Eq. 8: sum over classes of d between the classes' gradients."""
    return sum(
        row_cosine(class_gradient(params, *s), class_gradient(params, *r)) for s, r in zip(syn, real, strict=True)
    )


def class_summed_gradient_matching(
    params: Params, syn: list[tuple[Array, Array]], real: list[tuple[Array, Array]]
) -> float:
    """Eq. 9: d between the gradients averaged over classes."""

    def mean(side: list[tuple[Array, Array]]) -> Params:
        trees = [class_gradient(params, *one) for one in side]
        return {name: sum(tree[name] for tree in trees) / len(trees) for name in params}  # type: ignore[misc]

    return row_cosine(mean(syn), mean(real))


def distribution_matching(params: Params, syn: list[Array], real: list[Array]) -> float:
    """Eq. 15: squared distance of the classes' mean last hidden layers."""
    total = 0.0
    for s, r in zip(syn, real, strict=True):
        mean_s = sum(forward(params, x)[1] for x in s) / len(s)
        mean_r = sum(forward(params, x)[1] for x in r) / len(r)
        total += float(((mean_s - mean_r) ** 2).sum())
    return total


def layerwise_distribution_matching(params: Params, syn: list[Array], real: list[Array]) -> float:
    """Eq. 16: the same over both hidden layers."""
    total = 0.0
    for s, r in zip(syn, real, strict=True):
        for layer in (0, 1):
            mean_s = sum(forward(params, x)[layer] for x in s) / len(s)
            mean_r = sum(forward(params, x)[layer] for x in r) / len(r)
            total += float(((mean_s - mean_r) ** 2).sum())
    return total


def kernel_ridge(phi_t: Array, y_t: Array, phi_s: Array, y_s: Array, ridge: float) -> float:
    """Eq. 5 by the normal equations of Eq. 4: half the summed squared error per real sample, averaged.

    The trace-scaled ridge is ridge * tr(K_ss) / n.
    """
    n = len(phi_s)
    scaled = ridge * sum(float(row @ row) for row in phi_s) / n
    d = phi_s.shape[1]
    w = np.linalg.solve(phi_s.T @ phi_s + scaled * np.eye(d), phi_s.T @ y_s)
    return sum(0.5 * float(((phi @ w - y) ** 2).sum()) for phi, y in zip(phi_t, y_t, strict=True)) / len(phi_t)


def row_cosine_euclidean(a: Params, b: Params) -> float:
    """Eq. 11: over weights and rows, 1 - cos plus the Euclidean distance; in the cosine norms are at least 1e-8."""
    total = 0.0
    for name in a:
        if a[name].ndim < 2:
            continue
        for row_a, row_b in zip(a[name], b[name], strict=True):
            x, y = row_a.ravel(), row_b.ravel()
            total += 1 - (x @ y) / (max(np.sqrt(x @ x), 1e-8) * max(np.sqrt(y @ y), 1e-8))
            total += float(np.sqrt((x - y) @ (x - y)))
    return total


def whole_distances(a: Params, b: Params) -> tuple[float, float]:
    """1 - cos of two whole gradients (1e-6 added to the product of norms), and their squared distance."""
    inner = left = right = squared = 0.0
    for name in a:
        for x, y in zip(a[name].ravel(), b[name].ravel(), strict=True):
            inner, left, right, squared = inner + x * y, left + x * x, right + y * y, squared + (x - y) ** 2
    return 1 - inner / (np.sqrt(left * right) + 1e-6), squared


def multi_level_gradient_matching(
    params: Params, syn: list[tuple[Array, Array]], real: list[tuple[Array, Array]], balance: float
) -> float:
    """Eq. 10 with Eq. 11's d: within each class, plus the balance times between the means over classes."""
    sides = [[class_gradient(params, *one) for one in side] for side in (syn, real)]
    within = sum(row_cosine_euclidean(s, r) for s, r in zip(*sides, strict=True))
    means = [{name: sum(tree[name] for tree in side) / len(side) for name in params} for side in sides]
    return within + balance * row_cosine_euclidean(means[0], means[1])  # type: ignore[arg-type]


def convolution_errors(a: Params, b: Params) -> tuple[float, float]:
    """IDC's squared and absolute differences, over the four-dimensional weights alone."""
    squared = absolute = 0.0
    for name in a:
        if a[name].ndim != 4:
            continue
        for x, y in zip(a[name].ravel(), b[name].ravel(), strict=True):
            squared += (x - y) ** 2
            absolute += abs(x - y)
    return squared, absolute


def discrimination(params: Params, syn: list[Array], real: list[Array]) -> float:
    """Eq. 17: synthetic class centres classify real samples, summed over classes and samples."""
    centres = [sum(forward(params, x)[1] for x in xs) / len(xs) for xs in syn]
    total = 0.0
    for own, xs in enumerate(real):
        for x in xs:
            feature = forward(params, x)[1]
            scores = np.array([float(centre @ feature) for centre in centres])
            total -= float(np.log(softmax(scores)[own]))
    return total


def calibration_loss(expert: Params, syn: list[tuple[Array, Array]]) -> float:
    """DANCE's second term, and IDM's: each class's mean cross entropy in a network, summed over classes."""
    total = 0.0
    for xs, targets in syn:
        for x, target in zip(xs, targets, strict=True):
            total -= float(target @ np.log(softmax(forward(expert, x)[2]))) / len(xs)
    return total


def characteristic_function(params: Params, xs: Array, frequency: Array) -> complex:
    """The mean of exp(i t.z) over samples, z the last hidden layer at unit length."""
    total = 0j
    for x in xs:
        feature = forward(params, x)[1]
        angle = float(frequency @ feature) / float(np.sqrt(feature @ feature))
        total += complex(np.cos(angle), np.sin(angle)) / len(xs)
    return total


def characteristic_matching(
    params: Params, syn: list[Array], real: list[Array], frequencies: Array, amplitude: float
) -> float:
    """NCFM's first term: 300 times the mean root of weighted differences of amplitude and phase, over classes."""
    total = 0.0
    for s, r in zip(syn, real, strict=True):
        for frequency in frequencies:
            own, target = (characteristic_function(params, xs, frequency) for xs in (s, r))
            apart = (abs(target) - abs(own)) ** 2
            turned = 2 * (abs(target) * abs(own) - (target * own.conjugate()).real)
            total += np.sqrt(amplitude * apart + (1 - amplitude) * turned) / len(frequencies)
    return float(300 * total)


def label_margin(labels: Array) -> float:
    """FRePo's term: minus the gap between a row's largest two values, at most 1/C, averaged over rows."""
    total = 0.0
    for row in labels:
        largest = sorted(float(value) for value in row)
        total -= min(largest[-1] - largest[-2], 1 / len(row))
    return total / len(labels)


def platt_cross_entropy(prediction: Array, classes: list[int], log_scale: float) -> float:
    """Sec. 3.3.2: the mean cross entropy of softmax(exp(k) * prediction)."""
    total = 0.0
    for row, label in zip(prediction, classes, strict=True):
        total -= float(np.log(softmax(np.exp(log_scale) * row)[label]))
    return total / len(prediction)


def ridge_prediction(k_ts: Array, k_ss: Array, y_s: Array, amount: float) -> Array:
    """K_ts (K_ss + amount I)^-1 y_s."""
    return np.asarray(k_ts @ np.linalg.solve(k_ss + amount * np.eye(len(k_ss)), y_s))


def random_feature_kernel(features_a: list[Array], features_b: list[Array], bias: float) -> Array:
    """RFAD's empirical NNGP: twice the mean over networks and features of phi(a) phi(b), plus the readout's bias."""
    total = np.full((len(features_a[0]), len(features_b[0])), bias)
    for a, b in zip(features_a, features_b, strict=True):
        for i in range(len(a)):
            for j in range(len(b)):
                total[i, j] += 2 * float(a[i] @ b[j]) / (a.shape[1] * len(features_a))
    return total
