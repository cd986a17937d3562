"""Attention labels: targets for a transformer's attention, learned together with class labels."""

import torch
from torch import Tensor, nn

from mmdistill.errors import ShapeError
from mmdistill.labels import Labels
from mmdistill.parameterizations.raw import Raw
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Targets

NEGLIGIBLE = 1e-12
"""Added to attention before taking its logarithm, since masked keys have attention 0.

Attention on real texts goes down to 5e-10, so a larger value would change the gradient (1e-9 by half).
"""


def class_labels(targets: Targets) -> Tensor:
    """Return the class labels of targets, which may be a dict with attention labels.

    Raises:
        ShapeError: a dict without ``labels``.
    """
    if isinstance(targets, dict):
        if "labels" not in targets:
            raise ShapeError(f"targets with attention are a dict of 'labels' and 'attention', got {', '.join(targets)}")
        return targets["labels"]
    return targets


def attention_loss(attention: Tensor, labels: Tensor) -> Tensor:
    r"""Return the divergence of a transformer's attention from its labels, per sample.

    .. math:: \frac{1}{L_h} \sum_{l,h} \mathrm{KL}(\tilde a^{(l,h)} \| a^{(l,h)})

    The divergence sums over keys; the mean is over the L_h pairs of layer and head.

    Shapes:
        both ``(n, layers, heads, L)``, distributions over keys; returns ``(n,)``.
    Raises:
        ShapeError: the two differ in shape.
    Source: Maekawa et al., ACL 2023, Sec. 3.2.
    """
    if attention.shape != labels.shape:
        raise ShapeError(f"attention {tuple(attention.shape)} against labels {tuple(labels.shape)}")
    ratio = (labels + NEGLIGIBLE).log() - (attention + NEGLIGIBLE).log()
    return (labels * ratio).sum(3).mean((1, 2))


class AttentionLabels(Labels):
    """Class labels, and learned labels for the first token's attention in each layer and head.

    Args:
        labels: the class labels, learned or not.
        initial: initial logits of the attention labels, ``(M, layers, heads, L)``.
    """

    def __init__(self, labels: Labels, initial: Tensor) -> None:
        super().__init__()
        self.labels, self.title = labels, labels.title
        self.logits = nn.Parameter(initial.clone())

    def forward(self) -> Tensor:
        """Return the class labels."""
        labels: Tensor = self.labels()
        return labels

    def attention(self) -> Tensor:
        """Return the attention labels, distributions over the L keys."""
        return self.logits.softmax(-1)


class AttendedSamples(Raw):
    """Learned sequences of vectors whose targets are class labels and attention labels.

    Args: as for :class:`~mmdistill.parameterizations.raw.Raw`; the labels are :class:`AttentionLabels`.
    """

    def forward(self, draws: Draws) -> Batch:
        """Return the stored samples with a dict of ``labels`` ``(M, C)`` or ``(M,)`` and ``attention``."""
        batch = super().forward(draws)
        assert isinstance(self.labels, AttentionLabels)
        assert isinstance(batch.targets, torch.Tensor)
        return batch._replace(targets={"labels": batch.targets, "attention": self.labels.attention()})
