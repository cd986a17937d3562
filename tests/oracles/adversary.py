"""The terms of HaBa's adversary, written with loops in float64."""

import numpy as np

from tests.oracles.objectives import Array


def contrast(features: Array, classes: list[int], temperature: float = 0.07) -> float:
    """The supervised contrast: minus the mean log likelihood of the others of a sample's class."""
    unit = [row / np.sqrt((row**2).sum()) for row in features]
    total = 0.0
    for i, own in enumerate(classes):
        others = [a for a in range(len(classes)) if a != i]
        below = sum(np.exp(unit[i] @ unit[a] / temperature) for a in others)
        partners = [a for a in others if classes[a] == own]
        total -= sum(float(np.log(np.exp(unit[i] @ unit[p] / temperature) / below)) for p in partners) / len(partners)
    return total / len(classes)


def likeness(features: Array) -> float:
    """The mean over pairs of consecutive rows of (1 + cos) / 2."""
    values = []
    for a, b in zip(features[0::2], features[1::2], strict=True):
        values.append((1 + float(a @ b) / np.sqrt(float(a @ a) * float(b @ b))) / 2)
    return float(np.mean(values))
