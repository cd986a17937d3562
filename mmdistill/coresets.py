"""Coreset selection: initialisers of synthetic sets and the baselines beside every result (Sec. 2.2, 3.2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmdistill.abilities import Embeds, Selects
from mmdistill.allocation import available, require_members
from mmdistill.choices import starts
from mmdistill.errors import ConfigError, DataError, UnsupportedError, require_choice
from mmdistill.execution.portions import filled, samples_at_once
from mmdistill.networks.schedules import sgd_step
from mmdistill.rehearsal import is_rehearsal
from mmdistill.rules import chosen_by, craig, members_of, random_subset
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs, NetworkState, Task, Tensors, num_samples, real_samples

EMBED_CHUNK = {"cuda": 1024, "cpu": 128}
"""Samples per forward pass, fewer of large images; on the CPU so few that the layers' outputs stay in its caches."""
START_MOST = 1000
"""Samples of a class among which the start of a synthetic set is chosen by what they look like."""
START_BATCH = 64
"""Minibatch of the network that looks at them."""
BRIEF_LR = 0.01
"""Learning rate of networks that train for a few steps to look at samples."""
EMBEDDED_MOST = 1 << 28
"""Numbers in the embedding of all samples (1 GiB) from which classes are looked at one after the other."""


def require_samples(task: Task, counts: Tensor) -> None:
    """Refuse to choose more samples of a class than the task has, by the class's name."""
    if task.labels is not None:
        have = torch.bincount(task.labels, minlength=len(counts))
        require_members(have, counts, task.describe().class_names)


def briefly_trained(task: Task, draws: Draws, steps: int = 100, batch: int = 256) -> NetworkState:
    """Return a network after a few steps on real minibatches."""
    network, momentum = task.init(draws.fold("init")), Tensors()
    for step in range(0 if is_rehearsal() else steps):
        key = draws.fold("step", step)
        real = real_samples(task, key, batch)
        network, momentum = sgd_step(task, network, momentum, real, BRIEF_LR, 0.9, key.fold("loss"))
    return network


def chunks(task: Task, indices: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of real samples, a forward pass's worth at a time."""
    if len(indices) < 2:
        return (indices,)
    return torch.split(indices, forward_size(task, task.select(indices[:1]).inputs))


def forward_size(task: Task, inputs: Inputs) -> int:
    """Return how many samples like some go through a task's network at once."""
    return samples_at_once(EMBED_CHUNK.get(task.device.type, 1024), inputs)


def _embedded(task: Task, network: NetworkState, indices: Tensor) -> Tensor:
    """Return the last feature layer of real samples, ``(len(indices), d)``."""

    def layers() -> Iterator[Tensor]:
        for part in chunks(task, indices):
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
            inputs = (task.select(part).inputs for part in chunks(task, everything))
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
        kind: ``real`` (random), ``herding``, ``k-center``, ``k-means`` (nearest to the centroids), ``craig`` or a rule
            of a user's own; for ``noise``, samples that show what it is like, repeatedly where a class has fewer.
        counts: as :func:`allocate` returns.
        draws: the key.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64.
    Raises:
        ConfigError: an unknown rule, or one that looks at features which the network does not give.
        DataError: a class with fewer samples than asked for.
        UnsupportedError: a rule that this task cannot offer.
    """
    require_choice("the start (init)", kind, starts())
    if kind == "noise":
        return choose_repeatedly(task, "real", counts, draws)
    require_samples(task, counts)
    kind = _rehearsed(task, kind, draws) if is_rehearsal() else kind
    if kind == "real":
        return random_subset(task.labels, counts, draws.fold("subset"), task.describe().num_train)
    if kind == "craig":
        return _craig_of(task, counts, draws)[0]
    if isinstance(task, Embeds):
        return chosen_by(kind, task.embedding(), task.labels, counts, draws)
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
    require_choice("the start (init)", kind, starts())  # before a network trains to look at samples
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


def _looked_at(
    task: Task, network: NetworkState, rows: Tensor, labels: Tensor | None, kind: str, counts: Tensor, draws: Draws
) -> Tensor:
    """Return those of some real samples that a rule chooses by a network's features; class by class where it can."""
    large = len(rows) * _embedded(task, network, rows[:1]).shape[1] > EMBEDDED_MOST
    if not large or labels is None or kind not in ("herding", "k-center"):  # others draw by the class's number
        return rows[chosen_by(kind, _embedded(task, network, rows), labels, counts, draws)]
    chosen = []
    for members, wanted in zip(members_of(labels, len(labels), counts), counts[:, None], strict=True):
        own = rows[members]
        chosen.append(own[chosen_by(kind, _embedded(task, network, own), None, wanted, draws)])
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
