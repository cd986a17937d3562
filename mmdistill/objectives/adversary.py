"""An adversary that keeps the styles of hallucinators apart (HaBa)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.labels import hard_labels
from mmdistill.networks.gradients import gradients_by_name
from mmdistill.objectives.base import Network, Objective, flatten_classes, require_features
from mmdistill.objectives.wrapper import ObjectiveWrapper
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Targets, Task, Tensors, one_tensor, take

TEMPERATURE = 0.07
"""Temperature of the supervised contrastive loss."""


class StyleAdversary(ObjectiveWrapper):
    r"""Add to an objective the similarity that an adversary finds between two samples of the same code (HaBa).

    .. math:: \ell + \frac{w}{M} \sum_j \frac{1 + \cos(f(x_{jk}), f(x_{jl}))}{2}

    Each step draws two styles, k and l. The adversary f is a network of the task's architecture. It learns to classify
    the samples, to pull the two samples of a code together, and to separate the classes,

    .. math:: \text{CE} + w \frac{1 - \cos}{2} + w\, \text{SupCon},

    so styles must differ in features that do not tell classes apart. It is part of the run's state.

    Args:
        objective: the objective that is added to.
        styles: samples per code, consecutive in the batch.
        weight: w.
        lr: the adversary's learning rate.
        momentum: the adversary's momentum.
    Shapes:
        flat batches of ``M styles`` samples, code by code; returns a scalar.
    Raises:
        ConfigError: fewer than two styles, or an objective that reads class batches.
    Differs from: the published code augments the adversary's inputs, and draws codes and styles for its step apart from
        those for the similarity; here nothing is augmented, and one pair of styles serves both. There the adversary's
        batch norms and dropout are in training mode; here in eval mode.
    Source: Liu et al., NeurIPS 2022, Sec. 3.2; Khosla et al., NeurIPS 2020 (the contrast).
    """

    view = "flat"
    reads_labels = True
    steady = False

    def __init__(
        self, objective: Objective, styles: int, weight: float = 0.1, lr: float = 0.001, momentum: float = 0.9
    ) -> None:
        super().__init__()
        if styles < 2 or objective.view != "flat":
            raise ConfigError(
                f"an adversary tells at least 2 styles (--set inner_parts) of a flat batch apart, got {styles}"
            )
        self.objective = objective
        self.styles = styles
        self.weight = weight
        self.lr = lr
        self.momentum = momentum
        self._names: dict[str, tuple[str, ...]] = {}

    def check(self, task: Task) -> None:
        """Refuse what the objective refuses, and networks without features."""
        super().check(task)
        require_features(type(self).__name__, task)

    def begin(self, task: Task, draws: Draws) -> None:
        """Draw the adversary."""
        super().begin(task, draws)
        state = task.init(draws.fold("adversary"))
        velocity = {name: torch.zeros_like(tensor) for name, tensor in state.params.items()}
        for part, tensors in (("params", state.params), ("buffers", state.buffers), ("velocity", velocity)):
            self._names[part] = tuple(tensors)
            for name, tensor in tensors.items():
                self.register_buffer(_key(part, name), tensor)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the objective plus the similarity, and take a step of the adversary."""
        pairs = self._draw_pairs(flatten_classes(syn), draws.fold("adversary", "styles"))
        # A copy: the step below updates the adversary in place, before the backward pass to the samples has run.
        adversary = NetworkState({name: p.clone() for name, p in self._part("params").items()}, self._part("buffers"))
        similarity = (1 + _cosine(_embedding(network.task, adversary, pairs.inputs))).mean() / 2
        matched: Tensor = self.objective(network, syn, real, draws)
        self._learn(network.task, adversary, pairs)
        return matched + self.weight * similarity

    def _draw_pairs(self, batch: Batch, draws: Draws) -> Batch:
        """Draw two styles; return each code's samples of both, consecutively."""
        count = batch.weight.shape[0]
        if count % self.styles:
            raise ConfigError(f"{count} samples are not {self.styles} styles of each code")
        styles = draws.permutation(self.styles)[:2].to(batch.weight.device)
        rows = torch.arange(0, count, self.styles, device=batch.weight.device)[:, None] + styles
        return take(batch, rows.flatten())

    def _part(self, part: str) -> Tensors:
        """Return the adversary's ``params``, ``buffers`` or ``velocity`` by name."""
        return {name: getattr(self, _key(part, name)) for name in self._names[part]}

    def _learn(self, task: Task, adversary: NetworkState, pairs: Batch) -> None:
        """Take one step of SGD with momentum on the adversary's loss."""

        def loss(params: Tensors) -> Tensor:
            state = NetworkState(params, adversary.buffers)
            features = _embedding(task, state, pairs.inputs)
            distance = (1 - _cosine(features)).mean() / 2
            return task.loss(state, pairs) + self.weight * (distance + contrast(features, pairs.targets))

        gradients = gradients_by_name(loss, adversary.params)
        with torch.no_grad():
            params, velocities = self._part("params").values(), self._part("velocity").values()
            for parameter, velocity, gradient in zip(params, velocities, gradients.values(), strict=True):
                velocity.mul_(self.momentum).add_(gradient)
                parameter.sub_(self.lr * velocity)


def contrast(features: Tensor, targets: Targets) -> Tensor:
    r"""Return the supervised contrastive loss.

    .. math:: -\frac{1}{n} \sum_i \frac{1}{|P_i|} \sum_{p \in P_i}
        \log \frac{e^{z_i \cdot z_p / \tau}}{\sum_{a \ne i} e^{z_i \cdot z_a / \tau}}

    with z the features at unit length and :math:`P_i` the other samples of sample i's class; 0 where there is none.

    Shapes:
        features ``(n, d)``; targets ``(n,)`` classes or ``(n, C)`` probabilities, of which the largest gives the class.
    Source: Khosla et al., NeurIPS 2020, Eq. 2.
    """
    classes = hard_labels(one_tensor(targets, "the supervised contrast"))
    unit = F.normalize(features, dim=1)
    diagonal = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    scores = (unit @ unit.T / TEMPERATURE).masked_fill(diagonal, -torch.inf)
    partners = (classes[:, None] == classes) & ~diagonal
    likelihood = torch.where(partners, scores.log_softmax(1), 0.0).sum(1)
    return -(likelihood / partners.sum(1).clamp_min(1)).mean()


def _embedding(task: Task, adversary: NetworkState, inputs: Inputs) -> Tensor:
    """Return the adversary's last features."""
    return task.features(adversary, inputs)[-1]


def _cosine(features: Tensor) -> Tensor:
    """Return the cosine of each pair of consecutive rows."""
    return F.cosine_similarity(features[0::2], features[1::2])


def _key(part: str, name: str) -> str:
    """Return the name of a buffer that holds one of the adversary's tensors; torch allows no dots in it."""
    return f"{part}__{name.replace('.', '__')}"
