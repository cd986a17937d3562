"""Loop-written ranking metrics and closed-form recommenders, one user at a time in float64."""

import math

import numpy as np


def propensities(counts):
    total = sum(counts)
    c = (math.log(total) - 1) * (1.5 + 1) ** 0.55
    return [1 + c * (f + 1.5) ** -0.55 for f in counts]


def user_metrics(scores, known, held, w, k):
    """Return (NDCG@k, HR@k, recall@k, PSP@k) of one user; known and held are sets of items."""
    ranked = sorted((i for i in range(len(scores)) if i not in known), key=lambda i: -scores[i])[:k]
    m = min(len(held), k)
    dcg, hits, weight = 0.0, 0, 0.0
    for rank, item in enumerate(ranked, start=1):
        if item in held:
            dcg += 1 / math.log2(rank + 1)
            hits += 1
            weight += w[item]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, m + 1))
    largest = sum(sorted((w[i] for i in held), reverse=True)[:m])
    return dcg / ideal, hits / m, hits / len(held), weight / m / largest


def auc(positives, negatives):
    wins = 0.0
    for p in positives:
        for n in negatives:
            wins += 1.0 if p > n else 0.5 if p == n else 0.0
    return wins / (len(positives) * len(negatives))


def ease(x, ridge):
    """Return the item-item matrix by solving, for each item, ridge regression on all other items."""
    items = x.shape[1]
    b = np.zeros((items, items))
    for j in range(items):
        others = [i for i in range(items) if i != j]
        a = x[:, others]
        b[others, j] = np.linalg.solve(a.T @ a + ridge * np.eye(items - 1), a.T @ x[:, j])
    return b


def wide_autoencoder(x, context, ridge, kernel):
    """Return kernel ridge predictions, the matrix filled pair by pair and lambda scaled by the mean of its diagonal."""
    n = len(x)
    k = np.array([[kernel(x[i], x[j]) for j in range(n)] for i in range(n)])
    k_t = np.array([[kernel(row, x[j]) for j in range(n)] for row in context])
    return k_t @ np.linalg.solve(k + ridge * np.trace(k) / n * np.eye(n), x)
