"""Running statistics of batch norms, as networks need them whose gradients or features are matched."""

from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Settles, Task, Tensors


def copied(buffers: Tensors) -> Tensors:
    """Return copies: a network in training moves the buffers that it is given, and a pure function may not."""
    return {name: tensor.clone() for name, tensor in buffers.items()}


def has_statistics(network: NetworkState) -> bool:
    """Return whether a network has norms with running statistics, by torch's name for them."""
    return any(name.endswith("running_mean") for name in network.buffers)


def with_real_statistics(task: Task, network: NetworkState, draws: Draws) -> NetworkState:
    """Return a network that normalises by statistics of real samples, where its task has a way to take them.

    Synthetic samples are too few to normalise by, and an untrained network's running statistics are those of nothing.

    Differs from: DM's published code normalises either side by itself, all classes together, and IDC's each class.
    Source: Zhao et al., ICLR 2021, published code.
    """
    if not has_statistics(network) or not isinstance(task, Settles):
        return network
    return task.settle(network, draws.fold("statistics"))
