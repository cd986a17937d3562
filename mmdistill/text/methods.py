"""Methods for sentence points: refinements of the shared ones, and closed forms that only points allow."""

import math
from functools import partial

import torch
from torch import Tensor

from mmdistill.allocation import shares_of
from mmdistill.checks import require_centroids
from mmdistill.errors import ConfigError
from mmdistill.labels import FixedLabels, LabelKind, SoftmaxLabels, make_labels
from mmdistill.method import Method, MethodTable
from mmdistill.methods import fresh, ridge_matching, trained_on_s, unread
from mmdistill.objectives.base import Network
from mmdistill.objectives.distances import flat_cosine
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.objectives.infinite_width import FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import Kernel, KernelRidgeMatching
from mmdistill.parameterizations.raw import Raw, raw_samples
from mmdistill.parameterizations.starts import filled_up
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Inputs, Task, one_tensor
from mmdistill.text.judges import centred_targets, ridge_weights
from mmdistill.text.selection import class_centroids, random_texts, selected_texts
from mmdistill.text.task import TextTask

CONFIDENCE = 0.9
"""Initial probability of a sample's class where labels are learned: high enough to keep it, low enough to move."""


def as_text_task(task: Task) -> TextTask:
    """Return the task after checking that it is one of sentence points.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(task, TextTask):
        raise ConfigError(
            f"this method distils sentence points, and the samples of {task.describe().data!r} are of another kind "
            "(networks such as textcnn and transformer read token embeddings); leave --model out (in Python, make "
            "the task by text_task), or take a method of token embeddings, such as krr-tokens or sldd (mmdistill "
            "methods --domain text)"
        )
    return task


def k_means_set(task: Task, budget: int, settings: Settings, draws: Draws) -> Raw:
    """Return the k-means centroids of each class with hard labels: a strong baseline without any learning."""
    text = as_text_task(task)
    counts, classes, num_classes = shares_of(text, budget)
    return Raw(class_centroids(text, counts, draws), FixedLabels(classes), classes, num_classes)


def real_texts(task: Task, budget: int, settings: Settings, draws: Draws) -> Raw:
    """Return random real texts with hard labels, which take as many bytes as centroids."""
    return raw_samples(task, budget, "real", "hard", draws, learned=False)


def from_centroids(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Raw:
    """Build learned points that start from the k-means centroids of their class; small classes repeat theirs.

    Raises:
        ConfigError: the settings name another start.
    """
    require_centroids(settings.init)
    text = as_text_task(task)
    counts, classes, _ = shares_of(text, budget)
    points = filled_up(text, lambda once: class_centroids(text, once, draws), counts, draws)
    num_classes = text.class_count
    if label == "soft":
        return Raw(points, SoftmaxLabels(classes, num_classes, CONFIDENCE), classes, num_classes)
    return Raw(points, make_labels(label, classes, num_classes), classes, num_classes)


def distil_ridge(weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    r"""Return the smallest set of samples on which ridge regression gives exactly ``weights``.

    With :math:`W = U S V^\top`, the samples :math:`X = U^\top` with targets :math:`Y = (1 + \lambda) S V^\top` have
    :math:`(X^\top X + \lambda I)^{-1} X^\top Y = U (1 + \lambda)^{-1} (1 + \lambda) S V^\top = W`. Their number is
    the rank of W, C - 1 for centred targets.

    Args:
        weights: W, the ridge solution on the whole training set.
        ridge: lambda, absolute, the same in both regressions.
    Shapes:
        weights ``(d, C)``; returns ``(r, d)`` unit vectors and ``(r, C)`` targets, float64.
    """
    u, s, vt = torch.linalg.svd(weights.double(), full_matrices=False)
    rank = int((s > s[0] * 1e-10).sum())
    return u[:, :rank].T.contiguous(), (1 + ridge) * s[:rank, None] * vt[:rank]


def ridge_set(task: Task, budget: int, settings: Settings, draws: Draws) -> Raw:
    """Return the exact distillation of the ridge judge: at most C - 1 samples, even if the budget allows more.

    The labels are scores (centred at 0). The sign of each sample and its scores is arbitrary; it is chosen so that the
    largest score in magnitude is positive, and that score's class becomes the sample's class.
    """
    text = as_text_task(task)
    targets = centred_targets(text.train.labels, text.class_count)
    points, scores = distil_ridge(ridge_weights(text.train.inputs, targets, text.ridge), text.ridge)
    largest = scores.gather(1, scores.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    points, scores = sign * points, sign * scores
    return Raw(points.float(), FixedLabels(scores.float()), scores.argmax(1), text.class_count)


class PointKernel(Kernel):
    """The tangent kernel of the infinitely wide ``mlp``, which scales points of d numbers by the root of d."""

    def __init__(self) -> None:
        self.wide = FullyConnectedKernel("ntk", depth=1)

    def __call__(self, network: Network, a: Inputs, b: Inputs) -> Tensor:
        """Return the ``(n_a, n_b)`` kernel of points."""
        scale = math.sqrt(one_tensor(a).shape[1])
        return self.wide.matrix(scale * one_tensor(a), scale * one_tensor(b))

    def check(self, task: Task) -> None:
        """Refuse tasks whose samples are not sentence points."""
        as_text_task(task)
        super().check(task)


def _optimizers(codes: float, labels: float | None = None) -> dict[str, OptimizerSpec]:
    rates = {"codes": codes} if labels is None else {"codes": codes, "labels": labels}
    return {group: OptimizerSpec("adam", lr, cosine=True) for group, lr in rates.items()}


def _no_settings(ipc: int) -> Settings:
    return Settings(steps=0)


METHODS = MethodTable(
    {
        "dc": Method(
            "DC",
            lambda: GradientMatching(flat_cosine),
            trained_on_s,
            lambda ipc: Settings(200, 1024, _optimizers(0.0005, 0.005), init="k-means", outer_steps=10, inner_steps=10),
            from_centroids,
            "soft",
            "gradient matching (flat cosine) with learned soft labels, network trained on S",
            "Zhao et al., ICLR 2021",
            requires=as_text_task,
        ),
        "dm": Method(
            "DM",
            lambda: DistributionMatching("last"),
            fresh,
            lambda ipc: Settings(300, 1024, _optimizers(0.001), init="k-means"),
            from_centroids,
            "hard",
            "mean feature matching over random networks, from k-means centroids",
            "Zhao and Bilen, WACV 2023",
            requires=as_text_task,
        ),
        "krr": Method(
            "KRR",
            ridge_matching(partial(KernelRidgeMatching, PointKernel()), 1e-2),
            unread,
            lambda ipc: Settings(500, 1024, _optimizers(0.003, 0.02), init="k-means"),
            from_centroids,
            "soft",
            "kernel ridge matching with learned soft labels, tangent kernel of an infinitely wide MLP",
            "Nguyen et al., ICLR 2021",
            requires=as_text_task,
        ),
        "ridge-exact": Method(
            "Exact ridge distillation",
            None,
            fresh,
            _no_settings,
            summary="closed form: C - 1 samples on which ridge regression equals the one on all texts",
            source="singular value decomposition of the ridge solution",
            solve=ridge_set,
            judge="ridge",
            requires=as_text_task,
        ),
        "select": Method(
            "Greedy ridge selection",
            None,
            fresh,
            _no_settings,
            summary="real texts, each the one from which ridge regression learns most; points or tokens, can be read",
            source="forward selection, as orthogonal least squares (Chen et al., 1989), with a ridge and a kernel",
            solve=selected_texts,
            sized=random_texts,
        ),
        "k-means": Method(
            "k-means centroids",
            None,
            fresh,
            _no_settings,
            summary="the k-means centroids of each class with hard labels, a baseline without learning",
            source="Lloyd, IEEE Trans. Inf. Theory 1982",
            solve=k_means_set,
            sized=real_texts,
            requires=as_text_task,
        ),
    }
)
"""Methods of sentence points. Methods with the core's names are refined here: they start from k-means centroids, and
their rates, steps and distance were chosen on development data (TREC and SST-2 with MiniLM)."""
