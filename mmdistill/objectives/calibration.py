"""Matching with an additional loss of an expert on the synthetic samples (DANCE, NCFM, GEOM)."""

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.execution.portions import sum_by_classes
from mmdistill.labels import as_probabilities, in_full, weighted_mean
from mmdistill.networks.statistics import copied, has_statistics
from mmdistill.objectives.base import Network, Objective, class_sides, features_at_once, flatten_classes
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import Siamese
from mmdistill.objectives.trajectory import required_target
from mmdistill.objectives.wrapper import ObjectiveWrapper
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState, one_tensor


class CalibratedMatching(ObjectiveWrapper):
    r"""Match the features of each class, and add an expert's loss on the synthetic samples.

    .. math:: \sum_c \lVert \mu_{\theta,S,c} - \mu_{\theta,T,c} \rVert^2 + w \sum_c \frac{1}{n_c} \sum_j
        \ell(x_{S,c,j}; \theta_T)

    The network gives the features, and its ``target`` is the expert; a schedule of experts gives both. The expert's
    batch norms normalise by the synthetic batch's statistics, as in training.

    Args:
        weight: w, the weight of the expert's loss.
        matching: a class-wise objective; None: matching of mean embeddings.
        augment: an augmentation that replaces the task's. It is drawn once for both sides of a class, and once more for
            the expert's inputs; under the task's augmentation the expert sees the samples that are matched.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: a negative weight, matching that reads flat batches, or a network without a target.
        ShapeError: the class axes differ, or the target's parameters differ from the network's.
    Differs from: the published code steps the samples by the two terms in turn, class by class; here one step takes the
        sum of both.
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
        """Return the matching objective plus the expert's weighted loss, each summed over classes."""
        syn, real = class_sides(syn, real, "calibrated matching")
        for_expert = syn
        if self.augment is not None:
            for_expert = self.augment(draws.fold("calibration"), syn)
            syn, real = self.augment(draws, syn), self.augment(draws, real)
        matched: Tensor = self.matching(network, syn, real, draws)
        return matched + self.weight * calibration_loss(network, for_expert, draws)


def calibration_loss(network: Network, batch: ClassBatch, draws: Draws) -> Tensor:
    """Return the loss of the network's target on a batch: each class's mean, summed over classes.

    Raises:
        ConfigError: the network has no target.
        ShapeError: the target's parameters differ from the network's.
    """
    expert, buffers = required_target(network), network.state.buffers
    together = has_statistics(network.state)  # batch norms need all classes in one pass, whatever memory allows
    at_once = batch.num_classes if together else features_at_once(network, batch)

    def term(part: ClassBatch, rows: slice) -> Tensor:
        flat = flatten_classes(ClassBatch(part.batch._replace(weight=part.shares), part.dims))
        with network.lowered(part):
            state = NetworkState(expert, copied(buffers))
            mean = network.task.loss(state, flat, train=True, draws=draws.fold("expert", rows.start))
        return part.num_classes * mean

    return sum_by_classes(term, batch, at_once)


class KnowledgeExtraction(ObjectiveWrapper):
    r"""Add to an objective the divergence of an expert's predictions from the synthetic labels (GEOM).

    .. math:: \ell + \frac{\beta}{\sum_j w_j} \sum_j w_j\, \mathrm{KL}\big(y_j \,\|\, p(x_j; \theta_T)\big)

    The expert is the network's ``target``.

    Args:
        matching: the objective that is added to.
        weight: beta.
    Shapes:
        batches as ``matching`` reads them; returns a scalar.
    Raises:
        ConfigError: a negative weight, or a network without a target.
        ShapeError: the target's parameters differ from the network's.
    Differs from: the published code takes the expert at the end of its training, which may be later than the target.
    Source: Zhang et al., ICML 2024 (GEOM; knowledge embedding extraction), with the divergence of its published code.
    """

    reads_labels = True
    reads_scores = False
    needs_target = True

    def __init__(self, matching: Objective, weight: float) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigError(f"the weight of what an expert says (knowledge) must not be negative, got {weight}")
        self.matching, self.weight = matching, weight

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the matching objective plus the weighted divergence."""
        matched: Tensor = self.matching(network, syn, real, draws)
        return matched + self.weight * expert_divergence(network, flatten_classes(syn)) if self.weight else matched


def expert_divergence(network: Network, batch: Batch) -> Tensor:
    """Return the mean KL divergence of the target's predictions from the samples' labels.

    Raises: as for :func:`calibration_loss`.
    """
    state = NetworkState(required_target(network), copied(network.state.buffers))
    log_probs = in_full(network.task.predict(state, batch.inputs)[0]).log_softmax(-1)
    labels = as_probabilities(one_tensor(batch.targets, "what an expert says"), log_probs.shape[-1], log_probs.dtype)
    return weighted_mean((torch.special.xlogy(labels, labels) - labels * log_probs).sum(-1), batch.weight)
