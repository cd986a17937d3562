"""Distribution matching: moments of features of the real and the synthetic samples."""

from typing import Literal

import torch
from torch import Tensor

from mmdistill.errors import ShapeError
from mmdistill.objectives.base import Network, Objective, class_means, class_sides
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch


class DistributionMatching(Objective):
    r"""Match the mean feature of each class (Eq. 14, 15; every layer: Eq. 16).

    .. math:: \sum_c \sum_l w_l \lVert \mu_{\theta,S,c,l} - \mu_{\theta,T,c,l} \rVert^2

    Args:
        layers: ``last`` compares the embedding before the linear head (DM), ``all`` every layer the task gives (CAFE).
        weights: one weight per layer, with ``layers="all"``; all 1 by default.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ShapeError: the class axes differ, or the number of weights is not that of layers.
    Source: Zhao and Bilen, WACV 2023, Eq. 3-5; survey Sec. 3.3.4.
    """

    reads_labels = False
    lowers = True

    def __init__(self, layers: Literal["last", "all"] = "last", weights: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.layers = layers
        self.weights = weights

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the summed squared distance of class means; one forward pass a side."""
        syn, real = class_sides(syn, real, "distribution matching")
        first = -1 if self.layers == "last" else 0
        with torch.no_grad():
            real_means = class_means(network, real, first)
        syn_means = class_means(network, syn, first)
        if self.layers == "last":
            return (syn_means[-1] - real_means[-1]).square().sum()
        weights = self.weights or (1.0,) * len(syn_means)
        if len(weights) != len(syn_means):
            raise ShapeError(f"{len(weights)} layer weights for {len(syn_means)} layers")
        terms = [w * (s - r).square().sum() for w, s, r in zip(weights, syn_means, real_means, strict=True)]
        return torch.stack(terms).sum()
