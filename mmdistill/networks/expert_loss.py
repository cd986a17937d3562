"""The training data and the loss of experts, and whether these can train in one batched call."""

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
    """Return the training loss, which leaves the network's buffers as they are.

    Args:
        task: the task.
        random: whether networks draw random numbers (dropout), from a seed in each step's noise; such networks cannot
            be batched.
        precision: the number format of the networks.
    """

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        copy = NetworkState(state.params, copied(state.buffers))
        draws = Draws(int(noise["seed"]), device=task.device) if random else None
        with autocast_for(precision, task.device, graph=True):
            return task.loss(copy, batch, train=True, draws=draws), copy.buffers

    return loss


def training_batch(task: Task) -> Batch:
    """Return all real training samples as networks train on them."""
    return (
        task.training_batch() if isinstance(task, TrainsWhole) else task.select(torch.arange(task.describe().num_train))
    )


def batches_networks(task: Task, data: Batch) -> bool:
    """Return whether the task's networks can train in one batched call; running statistics and dropout prevent it.

    Raises:
        RuntimeError: memory runs out, which leaves the question open.
    """
    if shares_inputs(data):  # such data cannot be cut down for the trial
        return False
    states = stack_states([task.init(Draws(0, ("try", index), task.device)) for index in range(2)])
    few = take(data, slice(2))
    loss = expert_loss(task, random=False)
    try:
        torch.func.vmap(lambda params, buffers: loss(NetworkState(params, buffers), few, {}))(*states)
    except RuntimeError as error:
        # ``surely``: a batched convolution may lack an engine that the unbatched one has.
        if exhausted(error, surely=True):
            raise
        return False  # an error with another cause recurs, and is reported, when networks train one by one
    return True
