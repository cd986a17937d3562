"""Attention matching: each class's mean spatial attention maps and mean embedding."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.abilities import GivesMaps, MapReader
from mmdistill.errors import ConfigError, UnsupportedError
from mmdistill.labels import in_full
from mmdistill.networks.trial import fresh_network
from mmdistill.objectives.base import Network, Objective, class_means, class_sides, features_at_once
from mmdistill.objectives.distribution import gaps_of_means
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task

SCALE = 100.0
"""Factor of the objective in the published code, so that its learning rates apply."""


class AttentionMatching(Objective):
    r"""Match the mean spatial attention of each class in every layer but the last, and the mean embedding.

    .. math:: 100 \sum_c \Big( \sum_l \lVert \bar z_{S,c,l} - \bar z_{T,c,l} \rVert^2
        + \lambda \lVert \mu_{S,c} - \mu_{T,c} \rVert^2 \Big), \quad
        z_l = \frac{a_l}{\lVert a_l \rVert}, \quad a_l = \sum_k \lvert A_{l,k} \rvert^p

    :math:`A_{l,k}` is a sample's map of channel k in layer l before pooling, and bars are means over the samples of a
    class. Of the last layer only the pooled maps count: they are the embedding, whose mean is :math:`\mu`.

    Args:
        power: p; the larger it is, the more the strongest activations count.
        balance: lambda.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: a power that is not positive, a negative balance, or a network without maps.
        ShapeError: the class axes differ.
    Source: Sajedi et al., ICCV 2023, and its published code.
    """

    reads_labels = False
    lowers = True

    def __init__(self, power: float = 4.0, balance: float = 0.01) -> None:
        super().__init__()
        if not power > 0:
            raise ConfigError(f"the power of attention (attention_power) must be positive, got {power}")
        if not balance >= 0:
            raise ConfigError(f"the weight of the mean (attention_balance) must not be negative, got {balance}")
        self.power = float(power)
        self.balance = float(balance)

    def check(self, task: Task) -> None:
        """Refuse tasks without classes, and networks without maps before their last layer."""
        super().check(task)
        if len(tried_maps(type(self).__name__, task, self.attention)) < 2:
            raise ConfigError(
                "attention matching reads the maps of convolutions before the last one, but the network of "
                f"{task.describe().data!r} has none; take a ConvNet of two blocks or more, or name submodules with "
                "maps by features=[...], the embedding's last"
            )

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the weighted sum; one forward pass per side."""
        syn, real = class_sides(syn, real, "attention matching")

        def means(batch: ClassBatch) -> tuple[Tensor, ...]:
            return class_means(network, batch, read=self.attention)

        return SCALE * gaps_of_means(means, syn, real, features_at_once(network, syn), last=self.balance)

    def attention(self, maps: Tensor) -> Tensor:
        """Return each sample's attention, normalised to unit length.

        Shapes:
            maps ``(n, channels, height, width)``; returns ``(n, height * width)``.
        """
        return F.normalize(_powers(in_full(maps), self.power).sum(1).flatten(1), dim=1)


def _powers(maps: Tensor, power: float) -> Tensor:
    """Return the magnitudes to a power; powers 2 and 4 by squaring, which takes a tenth of the time of ``pow``."""
    if power in (2, 4):
        squares = maps.square()
        return squares if power == 2 else squares.square()
    return maps.abs() if power == 1 else maps.abs().pow(power)


def tried_maps(name: str, task: Task, read: MapReader) -> tuple[Tensor, ...]:
    """Run a fresh network on two real samples; return what ``read`` makes of its maps, and the embedding last.

    The result is empty where the task gives no maps.

    Args:
        name: the class that reads maps, for the message.
        task: the task.
        read: a function of each layer's maps.

    Raises:
        ConfigError: the network cannot give its maps.
    """
    if not isinstance(task, GivesMaps):
        return ()
    try:
        with torch.no_grad():
            return task.maps(*fresh_network(task), read)
    except (UnsupportedError, NotImplementedError) as error:
        data = task.describe().data
        raise ConfigError(f"{name} reads a network's maps, which that of {data!r} does not give: {error}") from error
