"""Coresets as sets of their own: real samples chosen at equal count, to save and use like a distilled set."""

import time

from mmdistill.abilities import Selects, SizesSelections
from mmdistill.allocation import allocate, subset_bytes
from mmdistill.budget import GivenBudget, given_count, largest_within, parse_bytes
from mmdistill.choices import known_selections
from mmdistill.coresets import choose_samples, coreset
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.execution.isolation import in_turn, isolated
from mmdistill.names import known_name
from mmdistill.runtime import Draws, checked_seed, describe_device
from mmdistill.store import detached
from mmdistill.task import Task, require_task


@in_turn
@isolated
def selection(
    task: Task,
    rule: str,
    budget: int | None = None,
    *,
    ipc: int | None = None,
    nodes: int | None = None,
    users: int | None = None,
    bytes: str | int | None = None,
    seed: int = 0,
) -> DistilledSet:
    """Choose real training samples by a rule; return a set that is saved, exported and judged like a distilled one.

    :func:`~mmdistill.evaluate` has the same rules as baselines, with draws from its own seed.

    Args:
        task: whose samples they are.
        rule: ``random``, ``herding``, ``k-center``, ``k-means``, ``craig``, a rule of your own
            (:data:`mmdistill.rules.RULES`), or a selection of the task's own.
        budget: the size in the task's unit; or give it by name as one of the next four, as for a distilled set.
        ipc: samples per class.
        nodes: nodes in all.
        users: users in all.
        bytes: the size in bytes, such as ``"100KB"``: the most samples within them.
        seed: of the choice, and of the network whose features it reads.

    Returns:
        The set, without steps: inputs in the task's units, and as its size the bytes of real samples at equal count (or
        those that the task gives for a selection of its own, such as centroids of sentence points).

    Raises:
        ConfigError: an unknown rule, a budget below one, in another unit or given twice, bytes too few for one sample
            per class, or a rule that needs features which the network lacks.
        DataError: a class with too few samples.
        UnsupportedError: a rule that this task does not support.
    """
    require_task(task)
    size = given_count(task, GivenBudget(budget, ipc, nodes, users, bytes))
    seed, began = checked_seed(seed), time.perf_counter()
    known = (*known_selections(), *(task.selections if isinstance(task, Selects) else ()))
    rule = known_name("selection", rule, known)
    if bytes is not None:
        size = most_within(task, rule, parse_bytes(bytes))
    info = task.describe()
    counts = allocate(size, info.budget, task.labels, task.num_classes)
    chosen = coreset(task, "real" if rule == "random" else rule, counts, Draws(seed, ("selection", rule), task.device))
    return DistilledSet(
        detached(chosen),
        info,
        rule,
        size,
        bytes_of(task, rule, size),
        seed=seed,
        seconds=time.perf_counter() - began,
        device=describe_device(task.device),
    )


def most_within(task: Task, rule: str, limit: int) -> int:
    """Return the largest count, in the task's unit, for which a rule's choice fits into ``limit`` bytes.

    Raises:
        ConfigError: even the smallest count does not fit.
        DataError: a class without samples.
    """
    unit, key = task.describe().budget, Draws(0, ("bytes",), task.device)
    smallest = 1 if unit == "ipc" else task.num_classes or 1

    def size(count: int) -> int:
        # Raises an error if a class has too few samples for this count.
        choose_samples(task, "real", allocate(count, unit, task.labels, task.num_classes), key)
        return bytes_of(task, rule, count)

    if (least := size(smallest)) > limit:
        raise ConfigError(f"{limit:,} bytes are too few: the smallest such set ({unit} {smallest}) takes {least:,}")
    return largest_within(size, smallest, limit)


def bytes_of(task: Task, rule: str, budget: int) -> int:
    """Return the bytes of a rule's choice: those of real samples at equal count, unless the task gives others."""
    if isinstance(task, SizesSelections) and rule in task.selections:
        counts = allocate(budget, task.describe().budget, task.labels, task.num_classes)
        return task.selection_bytes(rule, int(counts.sum()))
    return subset_bytes(task, budget)


def known_bytes(task: Task, budget: int) -> dict[str, int]:
    """Return the bytes of baselines at equal count by name; a task's own selections only if it gives their bytes."""
    selections = task.selections if isinstance(task, SizesSelections) else ()
    return {rule: bytes_of(task, rule, budget) for rule in (*known_selections(), *selections)}
