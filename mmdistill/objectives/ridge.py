"""Kernel ridge objectives with a margin of the labels (FRePo), or with random networks and Platt scaling (RFAD)."""

import math

import torch
from torch import Tensor, nn

from mmdistill.checks import require_at_least, require_positive
from mmdistill.errors import ConfigError
from mmdistill.execution.portions import features_by_portions
from mmdistill.labels import soft_cross_entropy, weighted_mean
from mmdistill.networks.module import redrawn
from mmdistill.objectives.base import Network, Objective, flatten_classes, require_features
from mmdistill.objectives.kernel_ridge import (
    FeatureKernel,
    KernelRidgeMatching,
    ridge_solution,
    synthetic_targets,
)
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Task, Tensors, one_tensor


def label_margin(labels: Tensor, most: float = 1.0) -> Tensor:
    """Return minus the gap between each label's two largest values, clamped to ``most``/C and averaged.

    Args:
        labels: the samples' labels.
        most: C times the largest gap that counts.
    Shapes:
        ``(n, C)`` labels with C of at least 2; returns a scalar.
    """
    largest = labels.topk(2, dim=1).values
    return -(largest[:, 0] - largest[:, 1]).clamp(max=most / labels.shape[1]).mean()


class MarginKernelRidge(KernelRidgeMatching):
    r"""Kernel ridge matching on a network's features, with a margin that keeps a label's values apart (FRePo).

    .. math:: \tfrac{1}{2} \lVert K_{ts} (K_{ss} + \lambda \mathrm{tr}(K_{ss})/n\, I)^{-1} Y_s - Y_t \rVert^2
        - \mathrm{mean}_i \min(y_{i(1)} - y_{i(2)}, 1/C)

    The first term is averaged over real samples; ``y_(1)`` and ``y_(2)`` are a label's largest two values. Real
    targets are one-hot minus 1/C.

    Args:
        ridge: lambda, in the ``trace`` convention.
    Shapes:
        flat batches; class indices count as one-hot minus 1/C; returns a scalar.
    Raises:
        ConfigError: a task with fewer than two classes.
    Source: Zhou et al., NeurIPS 2022; survey Eq. 6.
    """

    def __init__(self, ridge: float = 1e-6) -> None:
        super().__init__(FeatureKernel(), ridge, "trace")

    def check(self, task: Task) -> None:
        """Refuse tasks without at least two classes, and networks without features."""
        super().check(task)
        require_classes(self, task)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the squared error of the ridge prediction and the margin term."""
        margin = label_margin(synthetic_targets(flatten_classes(syn), network))
        return super().forward(network, syn, real, draws) + margin


class RandomFeatureRidge(Objective):
    r"""Kernel ridge matching under the empirical NNGP kernel of fresh random networks, with Platt scaling (RFAD).

    .. math:: K(a, b) = \frac{2}{n d} \sum_{i=1}^n \langle \phi_i(a), \phi_i(b) \rangle + b_0, \quad
        \mathrm{CE}\big(e^k K_{ts} (K_{ss} + \lambda \mathrm{tr}(K_{ss})/m\, I)^{-1} Y_s,\; y_t\big)

    The n networks have the task's architecture, with every weight matrix or filter drawn from N(0, 2 / fan-in) and
    every bias from N(0, bias_std^2); the schedule's network is not read. k is learned (optimizer group ``objective``).

    Args:
        networks: n, the networks drawn in each step.
        ridge: lambda, in the ``trace`` convention.
        bias_std: standard deviation of the biases.
        offset: b_0, the bias of the readout.
    Shapes:
        flat batches; class indices count as one-hot minus 1/C on the synthetic side; returns a scalar.
    Raises:
        ConfigError: values out of range, or a task with fewer than two classes.
    Source: Loo et al., NeurIPS 2022; survey Sec. 3.3.2.
    """

    view = "flat"

    def __init__(self, networks: int = 8, ridge: float = 5e-3, bias_std: float = 0.1, offset: float = 0.01) -> None:
        super().__init__()
        self.networks = networks
        self.ridge = ridge
        self.bias_std = bias_std
        self.offset = offset
        require_at_least(self, {"networks": 1, "bias_std": 0.0, "offset": 0.0})
        require_positive(self, "ridge")
        self.log_scale = nn.Parameter(torch.zeros(()))

    def check(self, task: Task) -> None:
        """Refuse tasks without at least two classes, and networks without features."""
        require_classes(self, task)
        require_features(type(self).__name__, task)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the cross entropy of the scaled ridge prediction on the real batch.

        Raises:
            ShapeError: real or synthetic targets are a named dict.
        """
        syn, real = flatten_classes(syn), flatten_classes(real)
        real_targets = one_tensor(real.targets, "the cross entropy")
        k_ts, k_ss = self.kernels(network, real.inputs, syn.inputs, draws)
        targets = synthetic_targets(syn, network)
        prediction = k_ts @ ridge_solution(k_ss, targets, self.ridge, "trace").to(k_ts.dtype)
        scores = self.log_scale.exp() * prediction
        return weighted_mean(soft_cross_entropy(scores, real_targets), real.weight.to(scores))

    def kernels(self, network: Network, real: Inputs, syn: Inputs, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return K_ts ``(n_t, n_s)`` and K_ss ``(n_s, n_s)``; the real side keeps no graph."""
        states = self.random_networks(network.task, draws)
        phi_real = features_by_portions(lambda inputs: self._features(network.task, states, inputs), real)
        phi_syn = self._features(network.task, states, syn)
        return self._gram(phi_real, phi_syn), self._gram(phi_syn, phi_syn)

    def _gram(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the kernel of features, one network at a time, in float64: CUDA rounds float32 to TF32."""
        size = a.shape[1] // self.networks
        parts = zip(torch.split(a, size, 1), torch.split(b, size, 1), strict=True)
        return 2 * torch.stack([x.double() @ y.double().T for x, y in parts]).sum(0) + self.offset

    def random_networks(self, task: Task, draws: Draws) -> list[NetworkState]:
        """Draw this step's networks: copies of one, each with weights and biases of its own."""
        network = task.init(draws)
        return [redrawn(network, draws.fold(index, "weights"), self.bias_std) for index in range(self.networks)]

    def _features(self, task: Task, states: list[NetworkState], inputs: Inputs) -> Tensor:
        """Return all networks' last features side by side, ``(n, networks * d)``, scaled so that products are means."""
        layers = [task.features(state, inputs)[-1] for state in states]
        return torch.cat(layers, 1) / math.sqrt(len(states) * layers[0].shape[1])

    def learned(self) -> Tensors:
        """Return Platt's k."""
        return {"platt_log_scale": self.log_scale.detach()}


def require_classes(objective: Objective, task: Task) -> None:
    """Refuse a task without at least two classes.

    Raises:
        ConfigError: naming the objective and the data.
    """
    if (task.num_classes or 0) < 2:
        raise ConfigError(
            f"{type(objective).__name__} reads labels of at least 2 classes, {task.describe().data!r} has "
            f"{task.num_classes or 'none'}; use kernel ridge matching"
        )
