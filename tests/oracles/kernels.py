"""Loop-written float64 kernels of infinitely wide ReLU networks, one pair of samples at a time."""

import math


def wide_relu(x, y, depth, w_std, b_std):
    """Return (NNGP, NTK) of two vectors by the recursion over layers, tracking all three covariances."""
    d = len(x)

    def dot(u, v):
        return sum(float(p) * float(q) for p, q in zip(u, v, strict=True))

    kxy = w_std**2 * dot(x, y) / d + b_std**2
    kxx = w_std**2 * dot(x, x) / d + b_std**2
    kyy = w_std**2 * dot(y, y) / d + b_std**2
    theta = kxy
    for _ in range(depth):
        c = max(-1.0, min(1.0, kxy / math.sqrt(kxx * kyy)))
        t = math.acos(c)
        moment = math.sqrt(kxx * kyy) * (math.sin(t) + (math.pi - t) * math.cos(t)) / (2 * math.pi)
        slope = (math.pi - t) / (2 * math.pi)
        kxy = w_std**2 * moment + b_std**2
        theta = w_std**2 * slope * theta + kxy
        kxx = w_std**2 * kxx / 2 + b_std**2
        kyy = w_std**2 * kyy / 2 + b_std**2
    return kxy, theta


def wide_relu_conv(x, y, depth, w_std, b_std):
    """Return (NNGP, NTK) of two images (lists of channels of rows) under 3 x 3 convolutions without pooling."""
    channels, height, width = len(x), len(x[0]), len(x[0][0])
    pixels = [(i, j) for i in range(height) for j in range(width)]

    def neighbours(values, p):
        """Sum a map over a pixel's 3 x 3 neighbours inside the image."""
        around = [(p[0] + di, p[1] + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]
        return sum(values[q] for q in around if q in values)

    def moments(kxy, kxx, kyy):
        c = max(-1.0, min(1.0, kxy / math.sqrt(kxx * kyy)))
        t = math.acos(c)
        moment = math.sqrt(kxx * kyy) * (math.sin(t) + (math.pi - t) * math.cos(t)) / (2 * math.pi)
        return moment, (math.pi - t) / (2 * math.pi)

    def first(u, v):
        products = {(i, j): sum(float(u[c][i][j]) * float(v[c][i][j]) for c in range(channels)) for i, j in pixels}
        return {p: w_std**2 * neighbours(products, p) / (9 * channels) + b_std**2 for p in pixels}

    kxy, kxx, kyy = first(x, y), first(x, x), first(y, y)
    theta = dict(kxy)
    for layer in range(depth):
        both = {p: moments(kxy[p], kxx[p], kyy[p]) for p in pixels}
        moment, passed = {p: both[p][0] for p in pixels}, {p: both[p][1] * theta[p] for p in pixels}
        if layer == depth - 1:
            nngp = w_std**2 * sum(moment.values()) / len(pixels) + b_std**2
            return nngp, w_std**2 * sum(passed.values()) / len(pixels) + nngp
        kxy = {p: w_std**2 * neighbours(moment, p) / 9 + b_std**2 for p in pixels}
        theta = {p: w_std**2 * neighbours(passed, p) / 9 + kxy[p] for p in pixels}
        kxx = {p: w_std**2 * neighbours({q: v / 2 for q, v in kxx.items()}, p) / 9 + b_std**2 for p in pixels}
        kyy = {p: w_std**2 * neighbours({q: v / 2 for q, v in kyy.items()}, p) / 9 + b_std**2 for p in pixels}
    raise ValueError("at least one convolution")
