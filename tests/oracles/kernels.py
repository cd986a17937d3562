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
