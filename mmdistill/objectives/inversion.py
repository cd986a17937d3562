"""Invert a trained network: samples that it recognises, with its batch norms' running statistics (SRe2L)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.abilities import GivesNorms
from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.networks.trial import fresh_network
from mmdistill.objectives.base import Network, Objective
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task, Tensors, one_tensor

Seen = Callable[[Draws, Tensor], Tensor]
"""Maps a key and the samples ``(n, ...)`` to the views of them that the network sees in a step."""


class BatchNormInversion(Objective):
    r"""Minimise a trained network's loss on the samples, and match its batch norms' running statistics.

    .. math:: \sum_g \frac{1}{C} \sum_c \ell(x_{c,g}, c) + w \sum_g \sum_l f_l \left( \lVert \mu_l(x_g) -
        \hat\mu_l \rVert + \lVert \sigma^2_l(x_g) - \hat\sigma^2_l \rVert \right)

    where each group g is one sample of each class, as published, or one group holds all samples; mu and sigma^2 are the
    means and variances, per channel, of a group's inputs to batch norm l, hats are its running statistics, and f is
    ``first`` for the first batch norm and 1 for the others. The network is in eval mode.

    Args:
        weight: w, the weight of the statistics.
        first: factor of the first batch norm's statistics.
        seen: shifts or crops the samples before the network sees them; None: it sees them as they are.
        together: compare the statistics of all samples together instead of one sample of each class at a time.
    Shapes:
        a class batch; returns a scalar.
    Raises:
        ConfigError: negative weights, or a network without batch norms.
        ShapeError: the classes share their samples.
    Source: Yin et al., NeurIPS 2023, Eqs. 7 to 10, and the published code for CIFAR-100; Yin et al., CVPR 2020
        (DeepInversion).
    """

    reads_labels = False  # the loss reads the classes that group the samples
    reads_real = False
    divided = False
    siamese = False

    def __init__(
        self, weight: float = 0.01, first: float = 10.0, *, seen: Seen | None = None, together: bool = False
    ) -> None:
        super().__init__()
        if not (weight >= 0 and first >= 0):
            raise ConfigError(f"weights of batch norms' statistics must not be negative, got {weight} and {first}")
        self.weight, self.first, self.seen, self.together = weight, first, seen, together

    def check(self, task: Task) -> None:
        """Refuse a task without classes, and a network without batch norms.

        Raises:
            ConfigError: naming the norms that the network has.
        """
        super().check(task)
        data = task.describe().data
        if not isinstance(task, GivesNorms):
            raise ConfigError(f"{type(self).__name__} reads batch norms, which networks of {data!r} do not give")
        try:
            with torch.no_grad():
                task.norms(*fresh_network(task), lambda *_: {})
        except UnsupportedError as error:
            raise ConfigError(f"{type(self).__name__} matches the statistics of batch norms, and {error}") from error

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the cross entropy and the weighted distances of statistics, summed over groups."""
        if not isinstance(syn, ClassBatch) or syn.batch.weight.ndim != 2 or syn.dims.inputs is None:
            raise ShapeError(f"{type(self).__name__} reads samples of each class by themselves, (C, n, ...)")
        assert isinstance(network.task, GivesNorms)  # `check` made sure of it
        samples, weight = one_tensor(syn.batch.inputs, type(self).__name__), syn.batch.weight
        classes = torch.arange(len(weight), device=weight.device)[:, None].expand(weight.shape)
        if not self.together:  # the first sample of each class, then the second of each
            samples, weight, classes = (tensor.transpose(0, 1) for tensor in (samples, weight, classes))
        flat, groups = samples.flatten(0, 1), weight.reshape(1, -1) if self.together else weight
        flat = flat if self.seen is None else self.seen(draws.fold("seen"), flat)
        logits, norms = network.task.norms(network.state, flat, partial(distances, groups))
        losses = F.cross_entropy(logits, classes.flatten(), reduction="none").view_as(groups)
        total = ((losses * groups).sum(1) / groups.sum(1)).sum()
        for index, norm in enumerate(norms.values()):
            total = total + self.weight * (self.first if index == 0 else 1.0) * norm["distance"]
        return total


def distances(groups: Tensor, given: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensors:
    """Return the distance of each group's statistics from a batch norm's running ones, summed over groups.

    Args:
        groups: the samples' weights, group by group.
        given: the batch norm's inputs for all samples, group by group.
        running_mean: the batch norm's running mean.
        running_var: its running variance; groups' variances are biased (population) ones.
    Shapes:
        groups ``(G, m)``; given ``(G m, channels, ...)``; the others ``(channels,)``; returns a scalar ``distance``.
    """
    x = given.reshape(*groups.shape, given.shape[1], -1)
    shares = (groups / groups.sum(1, keepdim=True))[:, :, None]
    mean = (shares * x.mean(3)).sum(1)
    variance = (shares * (x - mean[:, None, :, None]).square().mean(3)).sum(1)
    norm = torch.linalg.vector_norm
    return {"distance": (norm(variance - running_var, dim=1) + norm(mean - running_mean, dim=1)).sum()}
