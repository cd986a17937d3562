"""Coreset selection: initialisers of synthetic sets and the baselines beside every result (Sec. 2.2, 3.2)."""

from typing import Literal

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.networks.schedules import sgd_step
from mmdistill.runtime import Draws
from mmdistill.task import Batch, BudgetKind, Embeds, NetworkState, Task, Tensors, num_samples

InitKind = Literal["real", "noise", "herding", "k-center"]

EMBED_CHUNK = 1024


def allocate(budget: int, kind: BudgetKind, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Return how many synthetic samples each class gets, ``(C,)`` int64 (one entry without classes).

    ``ipc`` gives every class the same; ``nodes`` and ``users`` share the total by class frequency, largest
    remainder first, with at least one for every class.

    Raises:
        ConfigError: a budget below one, or a total below the number of classes.
        DataError: a class without training samples.
    """
    if budget < 1:
        raise ConfigError(f"the budget must be at least 1, got {budget}")
    if labels is None or num_classes is None:
        return torch.tensor([budget])
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise DataError(f"class {int((counts == 0).nonzero()[0])} has no training sample")
    if kind == "ipc":
        return torch.full((num_classes,), budget)
    if budget < num_classes:
        raise ConfigError(
            f"a budget of {budget} {kind} cannot cover {num_classes} classes; give at least {num_classes}"
        )
    exact = counts.double() / counts.sum() * budget
    shares = exact.floor().long().clamp(min=1)
    while int(shares.sum()) > budget:
        over = torch.where(shares > 1, shares - exact, -torch.inf)
        shares[int(over.argmax())] -= 1
    while int(shares.sum()) < budget:
        shares[int((exact - shares).argmax())] += 1
    return shares


def _members(labels: Tensor | None, total: int, counts: Tensor) -> list[Tensor]:
    """Return the sample indices of each class (of the one group without classes), checked against the counts."""
    groups = (
        [torch.arange(total)]
        if labels is None
        else [(labels == index).nonzero().flatten() for index in range(len(counts))]
    )
    for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True)):
        if len(members) < wanted:
            raise DataError(
                f"class {index} has {len(members)} samples, fewer than the {wanted} asked for: lower the budget"
            )
    return groups


def random_subset(labels: Tensor | None, counts: Tensor, draws: Draws, total: int | None = None) -> Tensor:
    """Choose samples of each class uniformly without replacement.

    Args:
        labels: ``(N,)`` classes, or None.
        counts: how many of each class, as :func:`allocate` returns.
        draws: the key.
        total: N, needed where labels is None.
    Returns:
        Indices in class-major order.
    Raises:
        DataError: a class has fewer samples than asked for.
    """
    groups = _members(labels, total or 0, counts)
    chosen = [
        members[draws.fold(index).to("cpu").permutation(len(members))[:wanted]]
        for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True))
    ]
    return torch.cat(chosen)


def herding(embedding: Tensor, labels: Tensor | None, counts: Tensor) -> Tensor:
    """Choose greedily the samples whose running mean stays nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Welling, ICML 2009; survey Sec. 2.2.
    """
    chosen = []
    groups = _members(labels, len(embedding), counts)
    for members, wanted in zip(groups, counts.tolist(), strict=True):
        points = embedding[members.to(embedding.device)].double()
        target, total = points.mean(0), torch.zeros_like(points[0])
        free = torch.ones(len(points), dtype=torch.bool, device=points.device)
        order = []
        for step in range(1, wanted + 1):
            gap = ((total + points) / step - target).square().sum(1)
            best = int(torch.where(free, gap, torch.inf).argmin())
            free[best] = False
            total = total + points[best]
            order.append(best)
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
    return torch.cat(chosen)


def k_center(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Choose greedily the sample farthest from those chosen, starting at the one nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Sener and Savarese, ICLR 2018; survey Sec. 3.2.
    """
    chosen = []
    groups = _members(labels, len(embedding), counts)
    for members, wanted in zip(groups, counts.tolist(), strict=True):
        points = embedding[members.to(embedding.device)].double()
        order = [int((points - points.mean(0)).square().sum(1).argmin())]
        nearest = (points - points[order[0]]).square().sum(1)
        for _ in range(1, wanted):
            order.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, (points - points[order[-1]]).square().sum(1))
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
    return torch.cat(chosen)


def k_means(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Return the k-means centroids of each class, ``(sum(counts), d)``, in class-major order."""
    groups = _members(labels, len(embedding), counts)
    centroids = []
    for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True)):
        points = embedding[members.to(embedding.device)].cpu().numpy()
        seed = draws.fold(index).integer() % 2**32
        fitted = KMeans(wanted, n_init=4, random_state=seed).fit(points)
        centroids.append(torch.from_numpy(fitted.cluster_centers_))
    return torch.cat(centroids).to(embedding)


def briefly_trained(task: Task, draws: Draws, steps: int = 100, lr: float = 0.01) -> NetworkState:
    """Return one network trained on real minibatches for a few steps, whose features tell classes apart."""
    network = task.init(draws.fold("init"))
    momentum: Tensors = {}
    for step in range(steps):
        key = draws.fold("step", step)
        real = task.sample_real(key, None, 256)
        if isinstance(real, Batch):
            network, momentum = sgd_step(task, network, momentum, real, lr, 0.9, key)
    return network


def embed_real(task: Task, draws: Draws, steps: int = 100, lr: float = 0.01) -> Tensor:
    """Return the embedding of every real training sample, ``(N, d)``, for selection by distance.

    A task may give its own (``task.embedding()``); otherwise it is the last feature layer of one network trained on
    real minibatches for a few steps.
    """
    if isinstance(task, Embeds):
        return task.embedding()
    network = briefly_trained(task, draws, steps, lr)
    total = task.describe().num_train
    rows = []
    with torch.no_grad():
        for start in range(0, total, EMBED_CHUNK):
            indices = torch.arange(start, min(start + EMBED_CHUNK, total))
            inputs = task.select(indices).inputs
            layer = task.features(network, inputs)[-1]
            if layer.shape[0] != num_samples(inputs):
                raise DataError("features returned another number of rows than samples were given")
            rows.append(layer)
    return torch.cat(rows)


def choose_samples(task: Task, kind: InitKind, counts: Tensor, draws: Draws) -> Tensor:
    """Return real samples' indices by the named rule, in class-major order.

    Args:
        task: the task.
        kind: ``real`` (random), ``herding`` or ``k-center``.
        counts: as :func:`allocate` returns.
        draws: the key.
    """
    if kind in ("real", "noise"):
        return random_subset(task.labels, counts, draws.fold("subset"), task.describe().num_train)
    embedding = embed_real(task, draws.fold("embed"))
    if kind == "herding":
        return herding(embedding, task.labels, counts)
    return k_center(embedding, task.labels, counts, draws.fold("k-center"))
