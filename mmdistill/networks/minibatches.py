"""Minibatch order as data: index tables drawn from a key, and step batches gathered differentiably."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.runtime import Draws
from mmdistill.task import Batch, map_inputs, num_samples


class Order(NamedTuple):
    """The samples of each step.

    Shapes:
        table ``(T, b)`` indices; present ``(T, b)``, 1 for samples and 0 for the padding of a short minibatch.
    """

    table: Tensor
    present: Tensor


def shuffled_order(draws: Draws, count: int, steps: int, batch: int) -> Order:
    """Draw minibatches as epochs of permutations; the last one of an epoch is shorter if b does not divide n."""
    epochs = -(-steps // -(-count // batch))
    return _cut(draws.uniform(epochs, count).argsort(1), steps, batch)


def fixed_order(count: int, steps: int, parts: int, device: torch.device) -> Order:
    """Cycle through a fixed partition of the samples.

    Part i holds samples i, i + parts, ..., which spreads the classes of a set sorted by class.

    Raises:
        ConfigError: more parts than samples.
    """
    if not 1 <= parts <= count:
        raise ConfigError(f"{count} synthetic samples cannot be split into {parts} minibatches")
    size = -(-count // parts)
    position = torch.arange(parts * size, device=device).view(size, parts).T
    present = (position < count).float()
    cycle = torch.arange(steps, device=device) % parts
    return Order((position % count)[cycle], present[cycle])


def drawn_sizes(count: int, steps: int, batch: int) -> list[int]:
    """Return the number of samples in each minibatch of :func:`shuffled_order`, without padding."""
    epoch = [batch] * (count // batch) + ([count % batch] if count % batch else [])
    return [epoch[step % len(epoch)] for step in range(steps)]


def part_sizes(count: int, steps: int, parts: int) -> list[int]:
    """Return the number of samples in each minibatch of :func:`fixed_order`, without padding."""
    return [-(-(count - step % parts) // parts) for step in range(steps)]


def _cut(order: Tensor, steps: int, batch: int) -> Order:
    """Cut ``(epochs, n)`` permutations into minibatches, padding the last of each epoch."""
    epochs, count = order.shape
    width = -(-count // batch) * batch
    column = torch.arange(width, device=order.device)
    table = order[:, column % count].reshape(-1, batch)
    present = (column < count).float().expand(epochs, width).reshape(table.shape)
    return Order(table[:steps], present[:steps])


def gather_steps(syn: Batch, order: Order) -> Batch:
    """Gather the step batches differentiably.

    Shapes:
        Every tensor of the batch ``(n, ...)`` becomes ``(T, b, ...)``.
    Raises:
        ConfigError: samples that share their inputs (the nodes and edges of a graph), which cannot be split.
    """
    if num_samples(syn.inputs) != syn.weight.shape[0]:
        raise ConfigError("these synthetic samples share their inputs, so every step must take the whole set")
    table, present = order

    def pick(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, table.flatten()).view(*table.shape, *tensor.shape[1:])

    weight = pick(syn.weight)
    return Batch(map_inputs(pick, syn.inputs), map_inputs(pick, syn.targets), weight * present.to(weight.dtype))


def repeat_steps(syn: Batch, steps: int) -> Batch:
    """Return the whole set as every step's batch, ``(T, n, ...)``, without copying it."""

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.expand(steps, *tensor.shape)

    return Batch(map_inputs(repeat, syn.inputs), map_inputs(repeat, syn.targets), repeat(syn.weight))


class LearnedSteps(NamedTuple):
    """The training that a set was distilled for, step by step.

    Shapes:
        batches: every tensor ``(T, b, ...)``; rates: T numbers; sizes: T numbers of samples in each step's batch, which
        copies of weight 0 fill up to b.
    """

    batches: Batch
    rates: tuple[float, ...]
    momentum: float
    sizes: tuple[int, ...]


def useless_rates(learned: Mapping[str, Tensor]) -> list[float]:
    """Return those of the rates learned with a set that cannot train: all that are no finite numbers above 0."""
    rates = learned["inner_lr"].double().reshape(-1) if "inner_lr" in learned else torch.empty(0)
    useless: list[float] = rates[~((rates > 0) & rates.isfinite())].tolist()
    return useless


def carries_steps(learned: Mapping[str, Tensor]) -> bool:
    """Return whether steps were learned with a set: a rate for each, their order and momentum."""
    return {"inner_lr", "inner_parts", "inner_momentum"} <= learned.keys() and learned["inner_lr"].ndim == 1


def learned_steps(data: Batch, learned: Mapping[str, Tensor]) -> LearnedSteps | None:
    """Return the steps that were learned with a set, or None if there are none."""
    if not carries_steps(learned):
        return None
    count, rates, parts = len(data.weight), learned["inner_lr"], int(learned["inner_parts"])
    batches = gather_steps(data, fixed_order(count, len(rates), parts, data.weight.device))
    sizes = part_sizes(count, len(rates), parts)
    return LearnedSteps(batches, tuple(rates.tolist()), float(learned["inner_momentum"]), tuple(sizes))
