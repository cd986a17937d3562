"""Distribution matching with the matching network's loss on the samples, weighted by its accuracy (IDM)."""

from typing import cast

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.execution.portions import sum_by_classes
from mmdistill.labels import soft_cross_entropy
from mmdistill.networks.linearized import readout_of, require_readout
from mmdistill.objectives.base import (
    Network,
    Objective,
    class_means,
    class_sides,
    compact_summary,
    features_at_once,
    require_features,
)
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task, one_tensor


class RegularisedMatching(Objective):
    r"""Match the mean embedding of each class, and add the same network's loss on the synthetic samples.

    .. math:: \sum_c \lVert \mu_{\theta,S,c} - \mu_{\theta,T,c} \rVert^2 + w\, a_\theta \sum_c \frac{1}{n_c} \sum_j
        \ell(x_{S,c,j}; \theta)

    :math:`a_\theta` is the network's accuracy on the real samples that it was trained on, which the schedule counts, so
    that untrained networks add little. Both terms come from one forward pass, in eval mode.

    Args:
        weight: w, the weight of the loss at an accuracy of 1.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: a negative weight, a network whose last layer is not linear, or one without a counted accuracy.
        ShapeError: the class axes differ.
    Source: Zhao et al., CVPR 2023 (class-aware regularisation), and published code, whose accuracies are percentages.
    """

    reads_scores = False
    lowers = True
    needs_accuracy = True

    def __init__(self, weight: float = 50.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigError(f"the weight of the networks' loss (regularisation) must not be negative, got {weight}")
        self.weight = weight

    def check(self, task: Task) -> None:
        """Refuse tasks without classes, and networks without a linear layer on an embedding."""
        super().check(task)
        require_features(type(self).__name__, task)
        require_readout(type(self).__name__, task)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the distance of class means plus the weighted loss, each summed over classes."""
        syn, real = class_sides(syn, real, "regularised matching")
        if network.accuracy is None:
            raise ConfigError("regularised matching reads the accuracy of a network, and nobody counted it")
        loss_weight = self.weight * network.accuracy
        with torch.no_grad():
            real_means = class_means(network, real, -1)[-1]

        def term(part: ClassBatch, rows: slice) -> Tensor:
            means, embeddings = compact_summary(network, part, -1)
            distance = (means[-1] - real_means[rows]).square().sum()
            return distance + loss_weight * class_losses(network, part, embeddings).sum()

        return sum_by_classes(term, syn, features_at_once(network, syn))


def class_losses(network: Network, batch: ClassBatch, embeddings: Tensor) -> Tensor:
    """Return the mean cross entropy of each class's samples, from their embeddings through the last layer.

    Shapes:
        embeddings ``(C, n, d)``, or ``(n, d)`` where classes share their samples; returns ``(C,)``.
    Raises:
        ConfigError: the last layer is not linear.
    """
    readout = readout_of(network.state, cast(int, network.task.num_classes), embeddings.shape[-1])
    logits = readout.outputs(network.state.params, embeddings)
    weight = batch.batch.weight
    losses = soft_cross_entropy(logits, one_tensor(batch.batch.targets, "regularised matching"))
    return (weight * losses).sum(1) / weight.sum(1)
