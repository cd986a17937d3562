"""Running statistics of batch norms for networks whose gradients or features are matched."""

import torch
from torch import Tensor

from mmdistill.abilities import Settles
from mmdistill.networks.module import FunctionalModule
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Task, Tensors, map_inputs, real_classes

BY_CLASS = 16
"""Real samples of each class that statistics are taken from, as in DC."""


def copied(tensors: Tensors) -> Tensors:
    """Return copies of tensors, such as buffers, which a network in training updates in place."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def has_statistics(network: NetworkState) -> bool:
    """Return whether a network has norms with running statistics, by torch's names for these."""
    return any(name.endswith("running_mean") for name in network.buffers)


def settled_by_class(task: Task, module: FunctionalModule, network: NetworkState, draws: Draws) -> NetworkState:
    """Return a network whose batch norms have the statistics of ``BY_CLASS`` random real samples of each class."""
    if not has_statistics(network):
        return network
    real = real_classes(task, draws, torch.arange(task.num_classes or 1, device=task.device), BY_CLASS)
    rows = _repeat_over_padding(real.batch.weight)
    inputs = map_inputs(lambda tensor: tensor.flatten(0, 1)[rows], real.batch.inputs)
    return module.settled(network, inputs)


def _repeat_over_padding(weight: Tensor) -> Tensor:
    """Return the rows of all classes' samples, with a small class's samples repeated in place of its padding.

    Leaving the padding out would make the host wait for its size.

    Shapes:
        weight ``(C, n)``, positive for samples and 0 for padding; returns ``(C n,)``.
    """
    classes, n = weight.shape
    present = weight > 0
    order = present.to(torch.uint8).sort(stable=True, dim=1, descending=True).indices
    columns = torch.arange(n, device=weight.device) % present.sum(1, keepdim=True).clamp_min(1)
    rows: Tensor = order.gather(1, columns) + n * torch.arange(classes, device=weight.device)[:, None]
    return rows.flatten()


def with_real_statistics(task: Task, network: NetworkState, draws: Draws) -> NetworkState:
    """Return a network that normalises by statistics of real samples, if its task can compute these.

    Synthetic samples are too few to normalise by, and an untrained network's running statistics are arbitrary.

    Differs from: DM's published code normalises the real and the synthetic side separately, all classes together; IDC's
    normalises each class separately.
    Source: Zhao et al., ICLR 2021, published code.
    """
    if not has_statistics(network) or not isinstance(task, Settles):
        return network
    return task.settle(network, draws.fold("statistics"))
