"""The unrolled equations, written with loops in float64 and numpy for the two-hidden-layer network of its sibling.

Gradients of the inner loss are written by hand; those of the outer objective by central differences.
"""

import numpy as np

from tests.oracles.objectives import Array, Params, class_gradient, forward, sample_gradient, softmax

Steps = list[tuple[Array, Array]]
"""Per step: the samples and their soft targets."""


def student(params: Params, steps: Steps, rates: list[float], beta: float = 0.0) -> Params:
    """Eq. 2 and 3: SGD with momentum, one batch after the other."""
    theta = {name: value.copy() for name, value in params.items()}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    for (xs, targets), rate in zip(steps, rates, strict=True):
        gradient = class_gradient(theta, xs, targets)
        for name in theta:
            velocity[name] = beta * velocity[name] + gradient[name]
            theta[name] = theta[name] - rate * velocity[name]
    return theta


def performance(params: Params, steps: Steps, rates: list[float], beta: float, xs: Array, targets: Array) -> float:
    """Eq. 2: the mean cross entropy of the trained student on real samples."""
    theta = student(params, steps, rates, beta)
    total = 0.0
    for x, target in zip(xs, targets, strict=True):
        total -= float(target @ np.log(softmax(forward(theta, x)[2])))
    return total / len(xs)


def trajectory(params: Params, target: Params, steps: Steps, rates: list[float], beta: float = 0.0) -> float:
    """Eq. 12 and 13: the student's squared distance to the expert's end over that of the start."""
    end = student(params, steps, rates, beta)
    reached = sum(float(((end[name] - target[name]) ** 2).sum()) for name in params)
    moved = sum(float(((params[name] - target[name]) ** 2).sum()) for name in params)
    return reached / moved


def pruned_trajectory(params: Params, target: Params, steps: Steps, rates: list[float], threshold: float) -> float:
    """DDPP: Eq. 13 over the parameters for which the smaller of end/target and target/end reaches a threshold."""
    end = student(params, steps, rates)
    reached = moved = 0.0
    for name in params:
        for s, t, first in zip(end[name].ravel(), target[name].ravel(), params[name].ravel(), strict=True):
            if min(s / t, t / s) >= threshold:
                reached += float((s - t) ** 2)
                moved += float((first - t) ** 2)
    return reached / moved


def masked_trajectory(
    params: Params, target: Params, steps: Steps, rates: list[float], share: float, by: str, threshold: float = -np.inf
) -> float:
    """PAD: Eq. 13 without a share of all parameters, the first or the nearest ones; then without DDPP's."""
    end = student(params, steps, rates)
    rows = []
    for name in params:
        for s, t, first in zip(end[name].ravel(), target[name].ravel(), params[name].ravel(), strict=True):
            rows.append((float((s - t) ** 2), float((first - t) ** 2), float(min(s / t, t / s))))
    if by == "distance":
        rows.sort()
    reached = moved = 0.0
    for place, (to_end, to_start, similar) in enumerate(rows):
        if place >= int(share * len(rows)) and similar >= threshold:
            reached += to_end
            moved += to_start
    return reached / moved


def sharpness_aware_step(
    params: Params, xs: Array, targets: Array, rate: float, rho: float, gap: float, adaptive: bool
) -> Params:
    """One step of (adaptive) SAM; with a gap, also up what is orthogonal to it of the gradient here."""
    here = class_gradient(params, xs, targets)
    length, moved = 0.0, {}
    for name in params:
        for p, g in zip(params[name].ravel(), here[name].ravel(), strict=True):
            length += float(((abs(p) if adaptive else 1.0) * g) ** 2)
    for name in params:
        unit = params[name] ** 2 if adaptive else 1.0
        moved[name] = params[name] + rho * unit * here[name] / np.sqrt(length)
    there = class_gradient(moved, xs, targets)
    dot = sum(float((here[name] * there[name]).sum()) for name in params)
    square = sum(float((there[name] ** 2).sum()) for name in params)
    result = {}
    for name in params:
        orthogonal = here[name] - dot / square * there[name]
        result[name] = params[name] - rate * (there[name] - gap * orthogonal)
    return result


def held_gradient(params: Params, target: Params, steps: Steps, rate: float, eps: float = 1e-5) -> list[Array]:
    """TESLA: per step, 2 [lr (target - start) + lr^2 G]^T d g_i / d x_i / ||start - target||^2, G the sum of g_i."""
    theta = {name: value.copy() for name, value in params.items()}
    states, total = [], {name: np.zeros_like(value) for name, value in params.items()}
    for xs, targets in steps:
        states.append(theta)
        gradient = class_gradient(theta, xs, targets)
        total = {name: total[name] + gradient[name] for name in total}
        theta = {name: theta[name] - rate * gradient[name] for name in theta}
    moved = sum(float(((params[name] - target[name]) ** 2).sum()) for name in params)
    factor = {name: 2 * (rate * (target[name] - params[name]) + rate**2 * total[name]) / moved for name in params}

    def pulled(state: Params, x: Array, label: Array) -> float:
        gradient = sample_gradient(state, x, label)
        return sum(float((factor[name] * gradient[name]).sum()) for name in factor)

    result = []
    for state, (xs, targets) in zip(states, steps, strict=True):
        found = np.zeros_like(xs)
        for row, (x, label) in enumerate(zip(xs, targets, strict=True)):
            for column in range(len(x)):
                shift = np.zeros_like(x)
                shift[column] = eps
                found[row, column] = (pulled(state, x + shift, label) - pulled(state, x - shift, label)) / (2 * eps)
        result.append(found / len(xs))
    return result
