"""What experts train on and by which loss, and whether they can in one batched call."""

import torch
from torch import Tensor

from mmdistill.abilities import TrainsWhole
from mmdistill.choices import TrainingPrecision
from mmdistill.execution.memory import exhausted
from mmdistill.execution.precision import autocast_for
from mmdistill.networks.stacked import Loss, stack_states
from mmdistill.networks.statistics import copied
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Task, Tensors, shares_inputs, take


def expert_loss(task: Task, random: bool, precision: TrainingPrecision = "float32") -> Loss:
    """Return the training loss; dropout, which cannot be batched over networks, draws from each step's own seed."""

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        own = NetworkState(state.params, copied(state.buffers))
        draws = Draws(int(noise["seed"]), device=task.device) if random else None
        with autocast_for(precision, task.device, graph=True):
            return task.loss(own, batch, train=True, draws=draws), own.buffers

    return loss


def training_batch(task: Task) -> Batch:
    """Return all real training samples as networks train on them."""
    return (
        task.training_batch() if isinstance(task, TrainsWhole) else task.select(torch.arange(task.describe().num_train))
    )


def batches_networks(task: Task, data: Batch) -> bool:
    """Return whether the task's networks can train in one batched call (running statistics and dropout cannot).

    Raises:
        RuntimeError: memory runs out, which says nothing of that.
    """
    if shares_inputs(data):  # which cannot be cut to a few
        return False
    states = stack_states([task.init(Draws(0, ("try", index), task.device)) for index in range(2)])
    few = take(data, slice(2))
    loss = expert_loss(task, random=False)
    try:
        torch.func.vmap(lambda params, buffers: loss(NetworkState(params, buffers), few, {}))(*states)
    except RuntimeError as error:
        if exhausted(error, surely=True):  # a batched convolution may lack an engine that each network's own has
            raise
        return False  # whatever else is wrong shows when they train one by one
    return True
