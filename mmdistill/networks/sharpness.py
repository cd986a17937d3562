"""Sharpness-aware minimisation of stacked networks, optionally adaptive and with a surrogate gap.

Sources: Foret et al., ICLR 2021; Zhuang et al., ICLR 2022 (gap); Kwon et al., ICML 2021 (adaptive).
"""

import torch
from torch import Tensor

from mmdistill.task import NetworkState, Tensors


def _norm(tensors: Tensors) -> Tensor:
    """Return each stacked network's norm over all its tensors, clamped so that its square is never 0."""
    squares = torch.stack([tensor.flatten(1).square().sum(1) for tensor in tensors.values()]).sum(0)
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _scale_each(scale: Tensor, tensor: Tensor) -> Tensor:
    """Scale each network's part of a stacked tensor by its own factor."""
    return scale.view(-1, *(1,) * (tensor.ndim - 1)) * tensor


def uphill(state: NetworkState, gradients: Tensors, rho: float, adaptive: bool) -> NetworkState:
    """Return stacked networks, each moved by rho up its own loss; adaptive distances are relative to parameters."""
    params = {name: p.detach() for name, p in state.params.items()}
    unit = {name: p.abs() if adaptive else torch.ones_like(p) for name, p in params.items()}
    scale = rho / _norm({name: unit[name] * gradient for name, gradient in gradients.items()})
    perturbed = {name: p + _scale_each(scale, unit[name].square() * gradients[name]) for name, p in params.items()}
    return NetworkState(perturbed, state.buffers)


def without_gap(perturbed: Tensors, plain: Tensors, weight: float) -> Tensors:
    """Return the perturbed networks' gradients minus ``weight`` times the part of the plain ones orthogonal to them."""
    dot = torch.stack([(perturbed[name] * plain[name]).flatten(1).sum(1) for name in perturbed]).sum(0)
    coefficient = dot / _norm(perturbed).square()
    return {name: g - weight * (plain[name] - _scale_each(coefficient, g)) for name, g in perturbed.items()}
