"""Layer-wise feature matching with a classifier of synthetic class centres (Eq. 16-18)."""

import torch
from torch import Tensor

from mmdistill.abilities import EveryLayer, GivesMaps
from mmdistill.checks import require_at_least
from mmdistill.objectives.attention import tried_maps
from mmdistill.objectives.base import Network, Objective, class_means, class_sides, compact_summary, require_features
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task

EARLY_LAYERS = 2
"""Layers that are weighted less."""


class DiscriminativeMatching(Objective):
    r"""Match every layer's class means, and let the synthetic centres classify the real samples (Eq. 16-18).

    .. math:: \sum_{c,l} w_l \lVert \mu_{S,c,l} - \mu_{T,c,l} \rVert^2 - \lambda \sum_{c,j}
        \log \operatorname{softmax}_c(\mu_S^\top f(x_{T,c,j}))

    Layers are the blocks' maps before pooling, then the last block's pooled maps, then the embedding, in whose space
    the centres classify too; networks without maps give the task's features instead.

    Args:
        balance: lambda.
        early: the weight of the first two layers; all others, and the embedding always, weigh 1.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: a negative balance or weight.
    Source: Wang et al., CVPR 2022, Sec. 3, and its published code, whose embedding is the last block's pooled maps, so
        that these count twice; survey Sec. 3.3.4.
    """

    reads_labels = False
    lowers = True

    def __init__(self, balance: float = 0.01, early: float = 0.1) -> None:
        super().__init__()
        self.balance = balance
        self.early = early
        require_at_least(self, {"balance": 0.0, "early": 0.0})

    def check(self, task: Task) -> None:
        """Refuse tasks without classes, and networks whose features or maps cannot be read."""
        super().check(task)
        require_features(type(self).__name__, task)
        tried_maps(type(self).__name__, task, EveryLayer())

    def layer_weights(self, layers: int) -> tuple[float, ...]:
        """Return one weight per layer: ``early`` for the first two unless one is the embedding, and 1 for the rest."""
        early_layers = min(EARLY_LAYERS, layers - 1)
        return (self.early,) * early_layers + (1.0,) * (layers - early_layers)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the weighted sum; one forward pass per side."""
        syn, real = class_sides(syn, real, "discriminative matching")
        read = EveryLayer() if isinstance(network.task, GivesMaps) else None
        with torch.no_grad():
            real_means, embeddings = compact_summary(network, real, read=read)
        syn_means = class_means(network, syn, read=read)
        weights = self.layer_weights(len(syn_means))
        terms = [w * (s - r).square().sum() for w, s, r in zip(weights, syn_means, real_means, strict=True)]
        matching = torch.stack(terms).sum()
        return matching + self.balance * discrimination(syn_means[-1], embeddings, real.batch.weight)


def discrimination(centres: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    r"""Return the cross entropy of real samples under the linear classifier of synthetic centres (Eq. 17).

    It is summed over samples, as published, so that it grows with the number of real samples.

    Shapes:
        centres ``(C, d)``; features ``(C, n, d)``, or ``(n, d)`` where classes share their samples; weight ``(C, n)``,
        0 for padding; returns a scalar.
    """
    log_probs = (features @ centres.T).log_softmax(-1)
    of_class = log_probs.T if features.ndim == 2 else log_probs.diagonal(dim1=0, dim2=2).T
    return -(weight * of_class).sum()
