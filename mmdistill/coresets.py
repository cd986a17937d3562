"""Coreset selection: initialisers of synthetic sets and the baselines beside every result (Sec. 2.2, 3.2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmdistill.abilities import Embeds, Selects
from mmdistill.allocation import available, require_members
from mmdistill.choices import starts
from mmdistill.errors import ConfigError, DataError, UnsupportedError, require_choice
from mmdistill.execution.portions import concatenated, samples_at_once
from mmdistill.networks.schedules import sgd_step
from mmdistill.rehearsal import is_rehearsal
from mmdistill.rules import chosen_by, craig, members_of, random_subset
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs, NetworkState, Task, Tensors, num_samples, real_samples

EMBED_CHUNK = {"cuda": 1024, "cpu": 128}
"""Samples per forward pass, fewer for large images; on the CPU few enough for layer outputs to stay in its caches."""
START_MOST = 1000
"""Candidates of each class when the start of a synthetic set is chosen by features."""
START_BATCH = 64
"""Minibatch size of the network that gives these features."""
BRIEF_LR = 0.01
"""Learning rate of networks that train briefly for their features."""
EMBEDDED_MOST = 1 << 28
"""Numbers in the embedding of all samples (1 GiB) above which classes are embedded one after the other."""


def require_samples(task: Task, counts: Tensor) -> None:
    """Refuse to choose more samples of a class than the task has, by the class's name."""
    if task.labels is not None:
        have = torch.bincount(task.labels, minlength=len(counts))
        require_members(have, counts, task.describe().class_names)


def train_briefly(task: Task, draws: Draws, steps: int = 100, batch: int = 256) -> NetworkState:
    """Train a fresh network for a few steps on real minibatches."""
    network, momentum = task.init(draws.fold("init")), Tensors()
    for step in range(0 if is_rehearsal() else steps):
        key = draws.fold("step", step)
        real = real_samples(task, key, batch)
        network, momentum = sgd_step(task, network, momentum, real, BRIEF_LR, 0.9, key.fold("loss"))
    return network


def chunks(task: Task, indices: Tensor) -> tuple[Tensor, ...]:
    """Split indices of real samples into forward passes."""
    if len(indices) < 2:
        return (indices,)
    return torch.split(indices, forward_size(task, task.select(indices[:1]).inputs))


def forward_size(task: Task, inputs: Inputs) -> int:
    """Return the number of samples like ``inputs`` for one forward pass of a task's network."""
    return samples_at_once(EMBED_CHUNK.get(task.device.type, 1024), inputs)


def _embed(task: Task, network: NetworkState, indices: Tensor) -> Tensor:
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
        return concatenated(layers(), len(indices))


def last_layer_gradients(task: Task, draws: Draws, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Return the factors of every real sample's last-layer gradient: residuals ``(N, C)`` and embedding ``(N, d)``.

    The network is one trained for a few steps or, for a task with its own embedding, a logistic regression on that.

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
        network, rows = train_briefly(task, draws, steps), torch.arange(task.describe().num_train)
        embedding = _embed(task, network, rows)
        with torch.no_grad():
            batches = (task.select(part).inputs for part in chunks(task, rows))
            probabilities = concatenated((task.predict(network, inputs)[0].softmax(1) for inputs in batches), len(rows))
    device = probabilities.device
    probabilities[torch.arange(len(probabilities), device=device), labels.to(device)] -= 1  # in place: may be large
    return probabilities, embedding


def _classifier_labels(task: Task) -> Tensor:
    if task.labels is None or task.num_classes is None:
        raise UnsupportedError("CRAIG compares gradients of a classifier, and this task has no classes")
    return task.labels


def choose_samples(task: Task, kind: str, counts: Tensor, draws: Draws) -> Tensor:
    """Choose real samples by the named rule; return their indices in class-major order.

    Args:
        task: the task.
        kind: ``real`` (random), ``herding``, ``k-center``, ``k-means`` (nearest to the centroids), ``craig`` or a rule
            of a user's own; for ``noise``, random samples to take its scale from, repeated if a class has too few.
        counts: as :func:`~mmdistill.allocation.allocate` returns.
        draws: the key.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64.
    Raises:
        ConfigError: an unknown rule, or one that needs features which the network lacks.
        DataError: a class with too few samples.
        UnsupportedError: a rule that this task does not support.
    """
    require_choice("the start (init)", kind, starts())
    if kind == "noise":
        return choose_repeatedly(task, "real", counts, draws)
    require_samples(task, counts)
    kind = _rehearse(task, kind, draws) if is_rehearsal() else kind
    if kind == "real":
        return random_subset(task.labels, counts, draws.fold("subset"), task.describe().num_train)
    if kind == "craig":
        return _craig_of(task, counts, draws)[0]
    if isinstance(task, Embeds):
        return chosen_by(kind, task.embedding(), task.labels, counts, draws)
    network, rows = train_briefly(task, draws.fold("embed")), torch.arange(task.describe().num_train)
    return _choose_by_features(task, network, rows, task.labels, kind, counts, draws)


def _rehearse(task: Task, kind: str, draws: Draws) -> str:
    """Return the quick rule ``real`` in place of one that the task supports; refuse others as choosing would."""
    if kind == "craig":
        _classifier_labels(task)
    if kind != "real" and not isinstance(task, Embeds):
        _embed(task, task.init(draws), torch.tensor([0]))
    return "real"


def choose_start(task: Task, kind: str, counts: Tensor, draws: Draws, most: int = START_MOST) -> Tensor:
    """Choose the real samples that a synthetic set starts from, like :func:`choose_samples`.

    If a network has to embed the samples of large classes, the choice is among ``most`` drawn ones of each: a start
    need not be exact, and embedding all samples takes longer than many a distillation.

    Args: as for :func:`choose_samples`.
        most: candidates of each class.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64.
    Raises:
        ConfigError, DataError, UnsupportedError: as for :func:`choose_samples`.
    """
    by_features = kind not in ("real", "noise", "craig") and not isinstance(task, Embeds)
    if not by_features or is_rehearsal() or task.labels is None or not (torch.bincount(task.labels) > most).any():
        return choose_samples(task, kind, counts, draws)
    require_choice("the start (init)", kind, starts())  # before the network trains
    require_samples(task, counts)
    sizes = torch.bincount(task.labels, minlength=len(counts))
    candidates = random_subset(task.labels, sizes.clamp(max=most).maximum(counts), draws.fold("candidates"))
    network = train_briefly(task, draws.fold("embed"), batch=START_BATCH)
    return _choose_by_features(task, network, candidates, task.labels[candidates], kind, counts, draws)


def choose_repeatedly(task: Task, kind: str, counts: Tensor, draws: Draws) -> Tensor:
    """Choose like :func:`choose_start`, repeating the samples of a class with too few.

    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64.
    """
    once = available(task, counts)
    return choose_start(task, kind, once, draws)[repeated_rows(once, counts)]


def repeated_rows(once: Tensor, counts: Tensor) -> Tensor:
    """Return row indices, class after class, that repeat the rows of each class cyclically up to its count.

    Shapes:
        once ``(C,)`` rows of each class; counts ``(C,)`` rows to return of each; returns ``(counts.sum(),)``.
    """
    sizes = once.repeat_interleave(counts)
    return (once.cumsum(0) - once).repeat_interleave(counts) + ranks_within(counts) % sizes


def ranks_within(counts: Tensor) -> Tensor:
    """Return each sample's index within its class, for samples class after class, ``(counts.sum(),)``."""
    return torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def _choose_by_features(
    task: Task, network: NetworkState, rows: Tensor, labels: Tensor | None, kind: str, counts: Tensor, draws: Draws
) -> Tensor:
    """Choose among some real samples by a network's features; large embeddings are made class by class if possible."""
    large = len(rows) * _embed(task, network, rows[:1]).shape[1] > EMBEDDED_MOST
    if not large or labels is None or kind not in ("herding", "k-center"):  # other rules draw by the class's index
        return rows[chosen_by(kind, _embed(task, network, rows), labels, counts, draws)]
    chosen = []
    for members, count in zip(members_of(labels, len(labels), counts), counts[:, None], strict=True):
        class_rows = rows[members]
        chosen.append(class_rows[chosen_by(kind, _embed(task, network, class_rows), None, count, draws)])
    return torch.cat(chosen)


def _craig_of(task: Task, counts: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    residuals, embedding = last_layer_gradients(task, draws.fold("embed"))
    return craig(residuals, embedding, task.labels, counts, draws.fold("craig"))


def coreset(task: Task, kind: str, counts: Tensor, draws: Draws) -> Batch:
    """Return the chosen real samples to train on; CRAIG's are weighted by the number that each represents.

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
