"""Matching whose samples a trained network also has to classify (DANCE, NCFM)."""

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.execution.portions import sum_by_classes
from mmdistill.networks.statistics import copied, has_statistics
from mmdistill.objectives.base import Network, Objective, class_sides, features_at_once, flatten_classes
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import Siamese
from mmdistill.objectives.trajectory import required_target
from mmdistill.objectives.wrapper import ObjectiveWrapper
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState


class CalibratedMatching(ObjectiveWrapper):
    r"""Match the features of each class, and have an expert classify the synthetic samples.

    .. math:: \sum_c \lVert \mu_{\theta,S,c} - \mu_{\theta,T,c} \rVert^2 + w \sum_c \frac{1}{n_c} \sum_j
        \ell(x_{S,c,j}; \theta_T)

    Features are those of the network, the loss is that of its ``target``: a schedule of experts gives both. The expert
    normalises in batch norms by the synthetic samples, as while it trained.

    Args:
        weight: w, of the expert's loss.
        matching: what is matched, class by class, in place of mean embeddings.
        augment: an augmentation of its own instead of the task's: one for both sides of a class, and another one for
            what the expert sees. Under the task's own the expert sees the same samples.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: a negative weight, matching that reads flat batches, or a network without a target.
        ShapeError: the class axes differ, or the target has other parameters than the network.
    Differs from: the published code steps the samples by the two terms in turn, class by class; here both are of the
        same samples.
    Source: Zhang et al., IJCAI 2024 (inner-class alignment and inter-class calibration).
    """

    reads_labels = True
    reads_scores = False
    needs_target = True

    def __init__(
        self, weight: float = 1.0, *, matching: Objective | None = None, augment: Siamese | None = None
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigError(f"the weight of the expert's loss (calibration) must not be negative, got {weight}")
        if matching is not None and matching.view != "classes":
            raise ConfigError(f"an expert calibrates what is matched class by class, not {type(matching).__name__}")
        self.weight = weight
        self.matching = DistributionMatching() if matching is None else matching
        self.augment = augment
        self.siamese = augment is None and self.matching.siamese

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return what is matched plus the weighted loss of the expert, each summed over classes."""
        syn, real = class_sides(syn, real, "calibrated matching")
        seen = syn
        if self.augment is not None:
            seen = self.augment(draws.fold("calibration"), syn)
            syn, real = self.augment(draws, syn), self.augment(draws, real)
        matched: Tensor = self.matching(network, syn, real, draws)
        return matched + self.weight * calibration_loss(network, seen, draws)


def calibration_loss(network: Network, batch: ClassBatch, draws: Draws) -> Tensor:
    """Return the loss of a network's target on a batch: each class's mean, summed over classes.

    Raises:
        ConfigError: the network has no target.
        ShapeError: the target has other parameters than the network.
    """
    expert, buffers = required_target(network), network.state.buffers
    together = has_statistics(network.state)  # whose norms read all classes, however many the memory is for
    at_once = batch.num_classes if together else features_at_once(network, batch)

    def term(part: ClassBatch, rows: slice) -> Tensor:
        weight = part.batch.weight / part.batch.weight.sum(1, keepdim=True)
        flat = flatten_classes(ClassBatch(part.batch._replace(weight=weight), part.dims))
        with network.lowered(part):
            state = NetworkState(expert, copied(buffers))
            mean = network.task.loss(state, flat, train=True, draws=draws.fold("expert", rows.start))
        return part.num_classes * mean

    return sum_by_classes(term, batch, at_once)
