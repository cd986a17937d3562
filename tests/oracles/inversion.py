"""The loss that SRe2L's images are recovered by, channel by channel, written from the paper's equations."""

import torch
from torch import Tensor
from torch.nn import functional as F

Norm = tuple[Tensor, Tensor]
"""Running mean and variance of a batch norm."""


def convnet(
    params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, eps: float = 1e-5
) -> tuple[Tensor, list[Tensor]]:
    """Logits of conv, norm, tanh, conv, norm, tanh, linear, and what its two norms are given."""
    given = []
    for conv, norm in (("0", "1"), ("3", "4")):
        x = F.conv2d(x, params[f"{conv}.weight"], params[f"{conv}.bias"], padding=1)
        given.append(x)
        mean, variance = (buffers[f"{norm}.running_{kind}"].view(1, -1, 1, 1) for kind in ("mean", "var"))
        weight, bias = (params[f"{norm}.{kind}"].view(1, -1, 1, 1) for kind in ("weight", "bias"))
        x = torch.tanh((x - mean) / torch.sqrt(variance + eps) * weight + bias)
    return x.flatten(1) @ params["7.weight"].T + params["7.bias"], given


def recovery(
    logits: Tensor, classes: list[int], given: list[Tensor], norms: list[Norm], weight: float, first: float
) -> Tensor:
    """Cross entropy of some images and the distances of their channels' statistics from the running ones."""
    total = sum(
        (torch.logsumexp(row, 0) - row[c] for row, c in zip(logits, classes, strict=True)), torch.zeros(())
    ) / len(classes)
    for index, (x, (running_mean, running_var)) in enumerate(zip(given, norms, strict=True)):
        means, variances = [], []
        for channel in range(x.shape[1]):
            values = x[:, channel].flatten()
            mean = values.sum() / len(values)
            means.append(mean)
            variances.append(((values - mean) ** 2).sum() / len(values))
        distance = torch.zeros((), dtype=x.dtype)
        for own, wanted in ((means, running_mean), (variances, running_var)):
            squares = [(m - r) ** 2 for m, r in zip(own, wanted, strict=True)]
            distance = distance + torch.stack(squares).sum().sqrt()
        total = total + weight * (first if index == 0 else 1.0) * distance
    return total
