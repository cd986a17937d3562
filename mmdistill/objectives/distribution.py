"""Distribution matching: class means of real and synthetic features."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from mmdistill.errors import require_choice
from mmdistill.execution.portions import sum_by_classes
from mmdistill.objectives.base import Network, Objective, class_means, class_sides, features_at_once, require_features
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task

Layers = Literal["last", "all"]


class DistributionMatching(Objective):
    r"""Match the mean feature of each class (Eq. 14, 15; every layer: Eq. 16).

    .. math:: \sum_c \sum_l \lVert \mu_{\theta,S,c,l} - \mu_{\theta,T,c,l} \rVert^2

    Args:
        layers: ``last`` compares the embedding before the linear head (DM), ``all`` the features of every layer (CAFE).
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: an unknown choice of layers.
        ShapeError: the class axes differ.
    Source: Zhao and Bilen, WACV 2023, Eq. 3-5; survey Sec. 3.3.4.
    """

    reads_labels = False
    lowers = True

    def __init__(self, layers: Layers = "last") -> None:
        super().__init__()
        require_choice("layers", layers, get_args(Layers))
        self.layers = layers

    def check(self, task: Task) -> None:
        """Refuse tasks without classes, and networks without features."""
        super().check(task)
        require_features(type(self).__name__, task)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the summed squared distance of class means; one forward pass per side."""
        syn, real = class_sides(syn, real, "distribution matching")
        first = -1 if self.layers == "last" else 0

        def means(batch: ClassBatch) -> tuple[Tensor, ...]:
            return class_means(network, batch, first)

        return gaps_of_means(means, syn, real, features_at_once(network, syn))


def gaps_of_means(
    means: Callable[[ClassBatch], tuple[Tensor, ...]],
    syn: ClassBatch,
    real: ClassBatch,
    size: int,
    last: float = 1.0,
) -> Tensor:
    """Return the squared distances of the class means of both sides, summed over layers and classes.

    Args:
        means: maps a class batch to the means ``(C, d_l)`` of each layer.
        syn: the synthetic side.
        real: the real side, taken without gradients.
        size: synthetic classes whose graph is kept at once.
        last: the weight of the last layer; all others weigh 1.
    """
    with torch.no_grad():
        real_means = means(real)
    weights = (1.0,) * (len(real_means) - 1) + (last,)

    def term(part: ClassBatch, rows: slice) -> Tensor:
        layers = zip(weights, means(part), real_means, strict=True)
        return torch.stack([w * (s - r[rows]).square().sum() for w, s, r in layers]).sum()

    return sum_by_classes(term, syn, size)
