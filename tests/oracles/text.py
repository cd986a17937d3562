"""Loop-written float64 versions of the text domain's equations, from lists of floats."""

import math

import numpy as np

Vector = list[float]
Matrix = list[list[float]]


def soft_cross_entropy(logits: Matrix, targets: Matrix, weight: Vector) -> float:
    """Weighted mean of -sum_c y_c log softmax(z)_c."""
    total, mass = 0.0, 0.0
    for z, y, w in zip(logits, targets, weight, strict=True):
        normaliser = sum(math.exp(v) for v in z)
        total += w * -sum(t * math.log(math.exp(v) / normaliser) for v, t in zip(z, y, strict=True))
        mass += w
    return total / mass


def mlp_gradients(
    points: Matrix, targets: Matrix, weight: Vector, w1: Matrix, b1: Vector, w2: Matrix, b2: Vector, scale: float
) -> tuple[Matrix, Vector, Matrix, Vector]:
    """Gradients of the soft cross entropy of w2 relu(w1 scale x + b1) + b2, by the chain rule, sample by sample."""
    g1 = [[0.0] * len(row) for row in w1]
    gb1 = [0.0] * len(b1)
    g2 = [[0.0] * len(row) for row in w2]
    gb2 = [0.0] * len(b2)
    mass = sum(weight)
    for x, y, w in zip(points, targets, weight, strict=True):
        x = [scale * v for v in x]
        pre = [sum(a * v for a, v in zip(row, x, strict=True)) + b for row, b in zip(w1, b1, strict=True)]
        hidden = [max(v, 0.0) for v in pre]
        z = [sum(a * v for a, v in zip(row, hidden, strict=True)) + b for row, b in zip(w2, b2, strict=True)]
        normaliser = sum(math.exp(v) for v in z)
        mass_y = sum(y)
        dz = [w / mass * (mass_y * math.exp(v) / normaliser - t) for v, t in zip(z, y, strict=True)]
        for c, d in enumerate(dz):
            gb2[c] += d
            for h, v in enumerate(hidden):
                g2[c][h] += d * v
        for h, v in enumerate(pre):
            if v <= 0:
                continue
            dh = sum(dz[c] * w2[c][h] for c in range(len(w2)))
            gb1[h] += dh
            for i, value in enumerate(x):
                g1[h][i] += dh * value
    return g1, gb1, g2, gb2


def knn_vote(points: Matrix, labels: Matrix, query: Vector, k: int, temperature: float) -> Vector:
    """Votes of the k nearest points by cosine, weighted by a softmax of the cosine over a temperature."""

    def cosine(a: Vector, b: Vector) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    near = sorted(((cosine(query, point), label) for point, label in zip(points, labels, strict=True)), reverse=True)[
        :k
    ]
    normaliser = sum(math.exp(similarity / temperature) for similarity, _ in near)
    votes = [0.0] * len(labels[0])
    for similarity, label in near:
        for c, value in enumerate(label):
            votes[c] += math.exp(similarity / temperature) / normaliser * value
    return votes


def max_over_time(x: Matrix, filters: list[tuple[list[list[Vector]], Vector, int]]) -> Vector:
    """Filters slid over a zero-padded sequence, rectified, the largest value of each; x is (L, H)."""
    pooled = []
    for weight, bias, padding in filters:
        for kernel, offset in zip(weight, bias, strict=True):
            window = len(kernel[0])
            best = 0.0
            for start in range(-padding, len(x) + padding - window + 1):
                total = offset
                for k in range(window):
                    if 0 <= start + k < len(x):
                        total += sum(kernel[h][k] * x[start + k][h] for h in range(len(kernel)))
                best = max(best, total)
            pooled.append(best)
    return pooled


def attention_divergence(attention: list[list[Vector]], labels: list[list[Vector]]) -> float:
    """The mean over layers and heads of the divergence of a label from the attention."""
    found = []
    for layer, layer_label in zip(attention, labels, strict=True):
        for head, head_label in zip(layer, layer_label, strict=True):
            found.append(sum(b * math.log(b / a) for a, b in zip(head, head_label, strict=True)))
    return sum(found) / len(found)


def forward_selection(kernel: Matrix, targets: Matrix, labels: list[int], counts: list[int], ridge: float) -> list[int]:
    """Add, again and again, the sample with which kernel ridge regression has the least squared error on all."""

    def loss(chosen: list[int]) -> float:
        k = np.array(kernel)
        system = k[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
        prediction = k[:, chosen] @ np.linalg.solve(system, np.array(targets)[chosen])
        return float(((np.array(targets) - prediction) ** 2).sum())

    chosen: list[int] = []
    while len(chosen) < sum(counts):
        open_to = [
            j
            for j in range(len(labels))
            if j not in chosen and sum(labels[i] == labels[j] for i in chosen) < counts[labels[j]]
        ]
        chosen.append(min(open_to, key=lambda j: loss([*chosen, j])))
    return [i for c in range(len(counts)) for i in chosen if labels[i] == c]
