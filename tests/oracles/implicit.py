"""A linearised network that trains to its minimum, by its explicit Jacobian and one linear solve (RCIG)."""

from collections.abc import Callable

import torch
from torch import Tensor

Params = dict[str, Tensor]
Forward = Callable[[Params, Tensor], tuple[Tensor, Tensor]]
"""From parameters and ``(n, ...)`` inputs to ``(n, C)`` outputs and ``(n, d)`` embeddings."""


def design(forward: Forward, params: Params, frozen: str, inputs: Tensor) -> Tensor:
    """Return the matrix ``(n C, p + d C)`` by which outputs are linear in all that trains.

    Its columns are the derivatives by each number of each parameter but the frozen one, and the embedding's share in
    each class.
    """
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    rows = []
    for sample in inputs:
        outputs, embeddings = forward(leaves, sample[None])
        for index in range(outputs.shape[1]):
            found = torch.autograd.grad(
                outputs[0, index],
                [leaf for name, leaf in leaves.items() if name != frozen],
                create_graph=True,
                materialize_grads=True,
            )
            picked = torch.nn.functional.one_hot(torch.tensor(index), outputs.shape[1]).to(outputs.dtype)
            head = embeddings[0][:, None] * picked
            rows.append(torch.cat([*(gradient.reshape(-1) for gradient in found), head.reshape(-1)]))
    return torch.stack(rows)


def implicit_loss(
    forward: Forward,
    params: Params,
    frozen: str,
    syn: tuple[Tensor, Tensor],
    real: tuple[Tensor, Tensor],
    ridge: float,
    log_scale: Tensor,
) -> Tensor:
    """Return the cross entropy on real samples less the margin of the labels, differentiable by the synthetic side.

    Args:
        forward: the network.
        params: where it is linearised.
        frozen: the name of the last weight.
        syn: inputs and ``(n, C)`` targets.
        real: inputs and classes.
        ridge: lambda.
        log_scale: k.
    """
    inputs, targets = syn
    x, z = design(forward, params, frozen, inputs), design(forward, params, frozen, real[0]).detach()
    solved = torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype), targets.reshape(-1))
    scores = log_scale.exp() * (z @ (x.T @ solved)).view(len(real[0]), -1)
    loss = torch.zeros((), dtype=x.dtype)
    for row, label in zip(scores, real[1].tolist(), strict=True):
        loss = loss + (row.exp().sum().log() - row[label]) / len(scores)
    for row in targets:
        first, second = row.sort(descending=True).values[:2]
        gap = first - second
        loss = loss - (gap if float(gap.detach()) < 0.5 / len(row) else gap * 0 + 0.5 / len(row)) / len(targets)
    return loss
