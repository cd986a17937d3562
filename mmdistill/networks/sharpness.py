"""Sharpness-aware minimisation of stacked networks, with a surrogate gap and adaptively.

Sources: Foret et al., ICLR 2021; Zhuang et al., ICLR 2022 (gap); Kwon et al., ICML 2021 (adaptive).
"""

import torch
from torch import Tensor

from mmdistill.task import NetworkState, Tensors


def _norm(tensors: Tensors) -> Tensor:
    """Return each stacked network's norm over all its tensors, whose square is never 0."""
    squares = torch.stack([tensor.flatten(1).square().sum(1) for tensor in tensors.values()]).sum(0)
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _along(scale: Tensor, tensor: Tensor) -> Tensor:
    """Return a stacked tensor with each network's part scaled by its own number."""
    return scale.view(-1, *(1,) * (tensor.ndim - 1)) * tensor


def uphill(state: NetworkState, gradients: Tensors, rho: float, adaptive: bool) -> NetworkState:
    """Return stacked networks, each moved by rho up its own loss, measured in units of the parameters if adaptive."""
    params = {name: p.detach() for name, p in state.params.items()}
    unit = {name: p.abs() if adaptive else torch.ones_like(p) for name, p in params.items()}
    scale = rho / _norm({name: unit[name] * gradient for name, gradient in gradients.items()})
    moved = {name: p + _along(scale, unit[name].square() * gradients[name]) for name, p in params.items()}
    return NetworkState(moved, state.buffers)


def without_gap(moved: Tensors, here: Tensors, weight: float) -> Tensors:
    """Return the moved networks' gradients minus that part of the original ones that is orthogonal to them."""
    dot = torch.stack([(moved[name] * here[name]).flatten(1).sum(1) for name in moved]).sum(0)
    shared = dot / _norm(moved).square()
    return {name: g - weight * (here[name] - _along(shared, g)) for name, g in moved.items()}
