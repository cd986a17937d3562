"""Distribution matching whose samples a trained network also has to classify (DANCE)."""

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.execution.portions import sum_by_classes
from mmdistill.networks.statistics import copied
from mmdistill.objectives.base import Network, class_sides, features_at_once, flatten_classes
from mmdistill.objectives.distribution import DistributionMatching, Layers
from mmdistill.objectives.gradient import Siamese
from mmdistill.objectives.trajectory import required_target
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState


class CalibratedMatching(DistributionMatching):
    r"""Match the mean feature of each class, and have an expert classify the synthetic samples.

    .. math:: \sum_c \lVert \mu_{\theta,S,c} - \mu_{\theta,T,c} \rVert^2 + w \sum_c \frac{1}{n_c} \sum_j
        \ell(x_{S,c,j}; \theta_T)

    Features are those of the network, the loss is that of its ``target``: a schedule of experts gives both. The expert
    normalises in batch norms by the synthetic samples, as while it trained.

    Args:
        weight: w, of the expert's loss.
        augment: an augmentation of its own instead of the task's: one for both sides of a class, and another one for
            what the expert sees. Under the task's own the expert sees the same samples.
        layers: as of :class:`~mmdistill.objectives.distribution.DistributionMatching`.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: a negative weight, other layers, or a network without a target.
        ShapeError: the class axes differ, or the target has other parameters than the network.
    Differs from: the published code steps the samples by the two terms in turn, class by class; here both are of the
        same samples.
    Source: Zhang et al., IJCAI 2024 (inner-class alignment and inter-class calibration).
    """

    needs_target = True
    reads_labels = True
    reads_scores = False

    def __init__(self, weight: float = 1.0, *, augment: Siamese | None = None, layers: Layers = "last") -> None:
        super().__init__(layers)
        if not weight >= 0:
            raise ConfigError(f"the weight of the expert's loss (calibration) must not be negative, got {weight}")
        self.weight = weight
        self.augment = augment
        self.siamese = augment is None

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the distance of class means plus the weighted loss of the expert, each summed over classes."""
        syn, real = class_sides(syn, real, "calibrated matching")
        seen = syn
        if self.augment is not None:
            seen = self.augment(draws.fold("calibration"), syn)
            syn, real = self.augment(draws, syn), self.augment(draws, real)
        return super().forward(network, syn, real, draws) + self.weight * calibration_loss(network, seen, draws)


def calibration_loss(network: Network, batch: ClassBatch, draws: Draws) -> Tensor:
    """Return the loss of a network's target on a batch: each class's mean, summed over classes.

    Raises:
        ConfigError: the network has no target.
        ShapeError: the target has other parameters than the network.
    """
    expert, buffers = required_target(network), network.state.buffers

    def term(part: ClassBatch, rows: slice) -> Tensor:
        weight = part.batch.weight / part.batch.weight.sum(1, keepdim=True)
        flat = flatten_classes(ClassBatch(part.batch._replace(weight=weight), part.dims))
        with network.lowered(part):
            state = NetworkState(expert, copied(buffers))
            mean = network.task.loss(state, flat, train=True, draws=draws.fold("expert"))
        return part.num_classes * mean

    return sum_by_classes(term, batch, features_at_once(network, batch))
