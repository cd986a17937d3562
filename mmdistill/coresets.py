"""Coreset selection: initialisers of synthetic sets and the baselines beside every result (Sec. 2.2, 3.2)."""

from collections.abc import Callable, Iterator
from typing import get_args

import torch
from torch import Tensor

from mmdistill.abilities import Embeds, Selects
from mmdistill.allocation import available, require_members
from mmdistill.errors import ConfigError, DataError, UnsupportedError, require_choice
from mmdistill.execution.portions import filled
from mmdistill.networks.schedules import sgd_step
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, NetworkState, Task, Tensors, num_samples, real_samples

CORESETS = ("herding", "k-center", "k-means", "craig")
"""Selections of real samples that look at the samples."""

EMBED_CHUNK = {"cuda": 1024, "cpu": 128}
"""Samples per forward pass; on the CPU so few that the layers' outputs stay in its caches."""
START_MOST = 1000
"""Samples of a class among which the start of a synthetic set is chosen by what they look like."""
START_BATCH = 64
"""Minibatch of the network that looks at them."""
BRIEF_LR = 0.01
"""Learning rate of networks that train for a few steps to look at samples."""
EMBEDDED_MOST = 1 << 28
"""Numbers in the embedding of all samples (1 GiB) from which classes are looked at one after the other."""
CRAIG_MOST = 8192
"""Samples of a class whose pairs CRAIG compares: 256 MiB of distances."""


def _members(labels: Tensor | None, total: int, counts: Tensor) -> list[Tensor]:
    """Return the sample indices of each class (of the one group without classes), checked against the counts."""
    groups = [torch.arange(total)]
    if labels is not None:
        sizes = torch.bincount(labels, minlength=len(counts)).tolist()
        groups = list(torch.split(torch.argsort(labels, stable=True), sizes))[: len(counts)]
    require_members(torch.tensor([len(members) for members in groups]), counts)
    return groups


def require_samples(task: Task, counts: Tensor) -> None:
    """Refuse to choose more samples of a class than the task has, by the class's name."""
    if task.labels is not None:
        have = torch.bincount(task.labels, minlength=len(counts))
        require_members(have, counts, task.describe().class_names)


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


def _by_class(
    embedding: Tensor, labels: Tensor | None, counts: Tensor, rule: Callable[[Tensor, int], list[int]]
) -> Tensor:
    """Return the indices that a rule chooses of each class, in class-major order.

    Args:
        embedding: ``(N, d)``.
        labels: ``(N,)`` classes, or None.
        counts: how many of each class.
        rule: called with a class's rows in float64 and how many of them are wanted, class by class; returns which.
    """
    chosen = []
    for members, wanted in zip(_members(labels, len(embedding), counts), counts.tolist(), strict=True):
        order = rule(embedding[members.to(embedding.device)].double(), wanted)
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
    return torch.cat(chosen)


def herding(embedding: Tensor, labels: Tensor | None, counts: Tensor) -> Tensor:
    """Choose greedily the samples whose running mean stays nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Welling, ICML 2009; survey Sec. 2.2.
    """

    def nearest_mean(points: Tensor, wanted: int) -> list[int]:
        centred = points - points.mean(0)
        norms, total, order = centred.square().sum(1), torch.zeros_like(points[0]), []
        for _ in range(wanted):
            # The mean with one more sample is (total + x) / step; of its norm this is what depends on the sample.
            order.append(int((norms + 2 * (centred @ total)).argmin()))
            norms[order[-1]] = torch.inf  # chosen once
            total += centred[order[-1]]
        return order

    return _by_class(embedding, labels, counts, nearest_mean)


def k_center(embedding: Tensor, labels: Tensor | None, counts: Tensor) -> Tensor:
    """Choose greedily the sample farthest from those chosen, starting at the one nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Sener and Savarese, ICLR 2018; survey Sec. 3.2.
    """

    def farthest(points: Tensor, wanted: int) -> list[int]:
        centred = points - points.mean(0)
        norms = centred.square().sum(1)
        nearest, order = torch.full_like(norms, torch.inf), [int(norms.argmin())]
        for _ in range(1, wanted):
            last = centred[order[-1]]
            nearest = torch.minimum(nearest, norms + last @ last - 2 * (centred @ last))
            nearest[order[-1]] = -torch.inf  # never again, even where all others coincide with chosen ones
            order.append(int(nearest.argmax()))
        return order

    return _by_class(embedding, labels, counts, farthest)


def k_means(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Return the k-means centroids of each class, ``(sum(counts), d)``, in class-major order."""
    if is_rehearsal():
        return embedding[random_subset(labels, counts, draws, len(embedding)).to(embedding.device)]
    from sklearn.cluster import KMeans  # here, since importing it takes seconds

    groups = _members(labels, len(embedding), counts)
    centroids = []
    for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True)):
        points = embedding[members.to(embedding.device)].cpu().numpy()
        seed = draws.fold(index).integer() % 2**32
        fitted = KMeans(wanted, n_init=4, random_state=seed).fit(points)
        centroids.append(torch.from_numpy(fitted.cluster_centers_))
    return torch.cat(centroids).to(embedding)


def k_means_nearest(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Choose the samples nearest to the k-means centroids of each class, no sample twice.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    """
    centroids = iter(torch.split(k_means(embedding, labels, counts, draws).double(), counts.tolist()))

    def nearest_centroids(points: Tensor, wanted: int) -> list[int]:
        distances = torch.cdist(next(centroids), points)
        order = []
        for row in distances:
            order.append(int(row.argmin()))
            distances[:, order[-1]] = torch.inf
        return order

    return _by_class(embedding, labels, counts, nearest_centroids)


def craig(
    residuals: Tensor, embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws, most: int = CRAIG_MOST
) -> tuple[Tensor, Tensor]:
    """Choose samples whose last-layer gradients stand for those of their class, by greedy facility location.

    Each choice lowers ``sum_i min_(j in S) ||g_i - g_j||`` the most, with ``g_i = r_i (x) [h_i, 1]`` the gradient of
    the last linear layer and its bias, whose inner products are ``<r_i, r_j> (<h_i, h_j> + 1)``.

    Args:
        residuals: ``(N, C)``, derivatives of the loss with respect to the logits.
        embedding: ``(N, d)``, the last layer's inputs.
        labels: ``(N,)`` classes, or None.
        counts: how many of each class.
        draws: the key of the subsets of large classes.
        most: a class with more samples is represented by so many drawn ones, since memory grows with their square.

    Returns:
        Indices in class-major order, and how many samples each of them stands for, which add up to its class; of a
        class of which some were drawn, in proportion.

    Source: Mirzasoleiman, Bilmes and Leskovec, ICML 2020, Eq. 8 and Sec. 3.4.
    """
    chosen, weights, groups = [], [], _members(labels, len(embedding), counts)
    for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True)):
        whole = len(members)
        if whole > most:
            members = members[draws.fold(index).to("cpu").permutation(len(members))[: max(most, wanted)]]
        own = members.to(embedding.device)
        r, h = residuals[own].float(), embedding[own].float()
        inner = (r @ r.T) * (h @ h.T + 1)
        norms = inner.diagonal()
        distances = (norms[:, None] + norms[None] - 2 * inner).clamp_min(0).sqrt()
        nearest = distances.max().expand(len(members))
        order: list[int] = []
        for _ in range(wanted):
            gains = (nearest[:, None] - distances).clamp_min(0).sum(0)
            gains[order] = -1.0
            order.append(int(gains.argmax()))
            nearest = torch.minimum(nearest, distances[:, order[-1]])
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
        stands_for = distances[:, order].argmin(1).bincount(minlength=wanted).cpu()
        weights.append(stands_for if len(members) == whole else stands_for * (whole / len(members)))
    return torch.cat(chosen), torch.cat(weights)


def briefly_trained(task: Task, draws: Draws, steps: int = 100, batch: int = 256) -> NetworkState:
    """Return a network after a few steps on real minibatches."""
    network, momentum = task.init(draws.fold("init")), Tensors()
    for step in range(0 if is_rehearsal() else steps):
        key = draws.fold("step", step)
        real = real_samples(task, key, batch)
        network, momentum = sgd_step(task, network, momentum, real, BRIEF_LR, 0.9, key.fold("loss"))
    return network


def _chunks(task: Task, indices: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of real samples, a forward pass's worth at a time."""
    return torch.split(indices, EMBED_CHUNK.get(task.device.type, 1024))


def _embedded(task: Task, network: NetworkState, indices: Tensor) -> Tensor:
    """Return the last feature layer of real samples, ``(len(indices), d)``."""

    def layers() -> Iterator[Tensor]:
        for part in _chunks(task, indices):
            inputs = task.select(part).inputs
            try:
                layer = task.features(network, inputs)[-1]
            except UnsupportedError as error:
                raise ConfigError(
                    f"samples are chosen by a network's features (start from others: --init real), and {error}"
                ) from error
            if layer.shape[0] != num_samples(inputs):
                raise DataError("features returned another number of rows than samples were given")
            yield layer

    with torch.no_grad():
        return filled(layers(), len(indices))


def last_layer_gradients(task: Task, draws: Draws, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Return the factors of every real sample's last-layer gradient: residuals ``(N, C)`` and embedding ``(N, d)``.

    They are those of a network trained for a few steps, or, where a task has its own embedding, of a logistic
    regression on it.

    Raises:
        UnsupportedError: a task without classes.
    """
    labels = _classifier_labels(task)
    if isinstance(task, Embeds):
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        embedding = task.embedding()
        points = StandardScaler().fit_transform(embedding.cpu().double().numpy())
        fitted = LogisticRegression(max_iter=1000).fit(points, labels.numpy())
        probabilities = torch.from_numpy(fitted.predict_proba(points)).to(embedding)
    else:
        network, everything = briefly_trained(task, draws, steps), torch.arange(task.describe().num_train)
        embedding = _embedded(task, network, everything)
        with torch.no_grad():
            inputs = (task.select(part).inputs for part in _chunks(task, everything))
            probabilities = filled((task.predict(network, own)[0].softmax(1) for own in inputs), len(everything))
    place = probabilities.device  # in place below, since these may be as large as the data
    probabilities[torch.arange(len(probabilities), device=place), labels.to(place)] -= 1
    return probabilities, embedding


def _classifier_labels(task: Task) -> Tensor:
    if task.labels is None or task.num_classes is None:
        raise UnsupportedError("CRAIG compares gradients of a classifier, and this task has no classes")
    return task.labels


def choose_samples(task: Task, kind: str, counts: Tensor, draws: Draws) -> Tensor:
    """Return real samples' indices by the named rule, in class-major order.

    Args:
        task: the task.
        kind: ``real`` (random), ``herding``, ``k-center``, ``k-means`` (nearest to the centroids) or ``craig``; for
            ``noise``, samples that show what it is like, repeatedly where a class has fewer.
        counts: as :func:`allocate` returns.
        draws: the key.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64.
    Raises:
        ConfigError: an unknown rule, or one that looks at features which the network does not give.
        DataError: a class with fewer samples than asked for.
        UnsupportedError: a rule that this task cannot offer.
    """
    require_choice("the start (init)", kind, get_args(InitKind))
    if kind == "noise":
        return choose_repeatedly(task, "real", counts, draws)
    require_samples(task, counts)
    kind = _rehearsed(task, kind, draws) if is_rehearsal() else kind
    if kind == "real":
        return random_subset(task.labels, counts, draws.fold("subset"), task.describe().num_train)
    if kind == "craig":
        return _craig_of(task, counts, draws)[0]
    if isinstance(task, Embeds):
        return _chosen(kind, task.embedding(), task.labels, counts, draws)
    network, everything = briefly_trained(task, draws.fold("embed")), torch.arange(task.describe().num_train)
    return _looked_at(task, network, everything, task.labels, kind, counts, draws)


def _rehearsed(task: Task, kind: str, draws: Draws) -> str:
    """Return a rule that takes no time for one that could choose a task's samples, or refuse it as choosing does."""
    if kind == "craig":
        _classifier_labels(task)
    if kind != "real" and not isinstance(task, Embeds):
        _embedded(task, task.init(draws), torch.tensor([0]))
    return "real"


def choose_start(task: Task, kind: str, counts: Tensor, draws: Draws, most: int = START_MOST) -> Tensor:
    """Return the real samples that a synthetic set starts from, as :func:`choose_samples` does.

    Where a network has to look at the samples of large classes, the choice is among ``most`` drawn ones of each: a
    start need not be exact, and looking at all of them takes longer than many a distillation.

    Args: as for :func:`choose_samples`.
        most: candidates of each class.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64.
    Raises:
        ConfigError, DataError, UnsupportedError: as for :func:`choose_samples`.
    """
    looks = kind not in ("real", "noise", "craig") and not isinstance(task, Embeds)
    if not looks or is_rehearsal() or task.labels is None or not (torch.bincount(task.labels) > most).any():
        return choose_samples(task, kind, counts, draws)
    require_choice("the start (init)", kind, get_args(InitKind))  # before a network trains to look at samples
    require_samples(task, counts)
    sizes = torch.bincount(task.labels, minlength=len(counts))
    candidates = random_subset(task.labels, sizes.clamp(max=most).maximum(counts), draws.fold("candidates"))
    network = briefly_trained(task, draws.fold("embed"), batch=START_BATCH)
    return _looked_at(task, network, candidates, task.labels[candidates], kind, counts, draws)


def choose_repeatedly(task: Task, kind: str, counts: Tensor, draws: Draws) -> Tensor:
    """Return what :func:`choose_start` does; a class with fewer samples gives them repeatedly.

    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64.
    """
    once = available(task, counts)
    return choose_start(task, kind, once, draws)[repeated_rows(once, counts)]


def repeated_rows(once: Tensor, counts: Tensor) -> Tensor:
    """Return the rows of samples, class after class, that give each class so many: its own ones over and over.

    Shapes:
        once and counts ``(C,)``, how many there are and shall be; returns ``(counts.sum(),)``.
    """
    own = once.repeat_interleave(counts)
    return (once.cumsum(0) - once).repeat_interleave(counts) + ranks_within(counts) % own


def ranks_within(counts: Tensor) -> Tensor:
    """Return the number of each sample in its class, of samples class after class, ``(counts.sum(),)``."""
    return torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def _chosen(kind: str, embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Return the rows of an embedding that a rule chooses."""
    if kind == "herding":
        return herding(embedding, labels, counts)
    if kind == "k-center":
        return k_center(embedding, labels, counts)
    return k_means_nearest(embedding, labels, counts, draws.fold("k-means"))


def _looked_at(
    task: Task, network: NetworkState, rows: Tensor, labels: Tensor | None, kind: str, counts: Tensor, draws: Draws
) -> Tensor:
    """Return those of some real samples that a rule chooses by a network's features; class by class where it can."""
    large = len(rows) * _embedded(task, network, rows[:1]).shape[1] > EMBEDDED_MOST
    if not large or labels is None or kind not in ("herding", "k-center"):  # others draw by the class's number
        return rows[_chosen(kind, _embedded(task, network, rows), labels, counts, draws)]
    chosen = []
    for members, wanted in zip(_members(labels, len(labels), counts), counts[:, None], strict=True):
        own = rows[members]
        chosen.append(own[_chosen(kind, _embedded(task, network, own), None, wanted, draws)])
    return torch.cat(chosen)


def _craig_of(task: Task, counts: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    residuals, embedding = last_layer_gradients(task, draws.fold("embed"))
    return craig(residuals, embedding, task.labels, counts, draws.fold("craig"))


def coreset(task: Task, kind: str, counts: Tensor, draws: Draws) -> Batch:
    """Return the chosen real samples to train on; CRAIG's weigh as much as the samples that they stand for.

    Args and errors as for :func:`choose_samples`; a task may have selections of its own.

    Shapes:
        counts ``(C,)``; returns n = ``counts.sum()`` samples with targets ``(n,)`` or ``(n, ...)`` and weight ``(n,)``;
        a selection of the task's own may return fewer.
    """
    if isinstance(task, Selects) and kind in task.selections:
        return task.selection(kind, counts, draws)
    if kind != "craig":
        return task.select(choose_samples(task, kind, counts, draws))
    indices, weights = _craig_of(task, counts, draws)
    batch = task.select(indices)
    return batch._replace(weight=batch.weight * (weights / weights.double().mean()).to(batch.weight))
