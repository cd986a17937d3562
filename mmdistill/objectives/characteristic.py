"""Matching of characteristic functions: whole distributions of features at random frequencies, not their means."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.execution.portions import features_by_portions, sum_by_classes
from mmdistill.objectives.base import Network, Objective, class_sides, class_summary, features_at_once, require_features
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task, map_inputs

SCALE = 300.0
"""What the published code multiplies the objective by, so that it counts beside the expert's loss."""
LEAST = 1e-12
"""The least squared difference of a frequency, below which it has no gradient."""
ANGLES = 1 << 20
"""Angles that are held at once where nothing is differentiated (4 MiB)."""


class CharacteristicMatching(Objective):
    r"""Match the characteristic functions of each class's embeddings at random frequencies (NCFM).

    .. math:: 300 \sum_c \frac{1}{F} \sum_f \sqrt{a\, (\lvert \phi_T \rvert - \lvert \phi_S \rvert)^2 + 2 (1 - a)
        (\lvert \phi_T \rvert \lvert \phi_S \rvert - \Re(\phi_T \bar \phi_S))}, \quad
        \phi_X(t) = \frac{1}{n} \sum_j e^{i\, t \cdot z_j}

    z is a sample's embedding at unit length, and both functions are taken at the same frequencies :math:`t_f` from
    N(0, I), drawn anew in each step. The first part compares amplitudes, the second phases; at :math:`a = 1/2` the root
    is :math:`\lvert \phi_T - \phi_S \rvert / \sqrt 2`.

    Args:
        frequencies: F.
        amplitude: a.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: no frequency, or an amplitude that is no share.
        ShapeError: the class axes differ.
    Differs from: the published code draws frequencies for each class; here those of a step serve all. That they are
        learned to tell the sides apart (the paper's minmax) is an option there, which all of its configurations switch
        off, and is left out here.
    Source: Wang et al., CVPR 2025, Eq. 5-8, and its published code.
    """

    reads_labels = False
    lowers = True

    def __init__(self, frequencies: int = 4096, amplitude: float = 0.5) -> None:
        super().__init__()
        if frequencies < 1:
            raise ConfigError(f"characteristic functions are read at one frequency or more, got {frequencies}")
        if not 0 <= amplitude <= 1:
            raise ConfigError(f"the share of amplitudes (amplitude) is between 0 and 1, got {amplitude}")
        self.frequencies = frequencies
        self.amplitude = float(amplitude)

    def check(self, task: Task) -> None:
        """Refuse tasks without classes, and networks without features."""
        super().check(task)
        require_features(type(self).__name__, task)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the differences of all classes' functions; one forward pass a side."""
        syn, real = class_sides(syn, real, "characteristic matching")
        with torch.no_grad():
            frequencies, target = self._target(network, real, draws.fold("frequencies"))

        def term(part: ClassBatch, rows: slice) -> Tensor:
            embedding = F.normalize(class_summary(network, part, -1)[1], dim=-1)
            own = characteristic_function(embedding, _shares(part), frequencies)
            return self.difference(own, target[:, rows]).mean(1).sum()

        return SCALE * sum_by_classes(term, syn, features_at_once(network, syn))

    def _target(self, network: Network, real: ClassBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return frequencies ``(F, d)``, and the real side's functions at these, of some classes after the other."""
        frequencies, found = None, []
        for embedding, share in _embeddings_by_parts(network, real):
            if frequencies is None:
                drawn = draws.to(embedding.device).normal(self.frequencies, embedding.shape[-1])
                frequencies = drawn.to(embedding.dtype)
            found.append(_function_by_portions(embedding, share, frequencies))
        assert frequencies is not None  # there are classes
        return frequencies, torch.cat(found, 1)

    def difference(self, own: Tensor, target: Tensor) -> Tensor:
        r"""Return the root of the weighted squared difference at every frequency.

        Of amplitude and phase it is :math:`(1 - a) \lvert \phi_T - \phi_S \rvert^2 + (2 a - 1)
        (\lvert \phi_T \rvert - \lvert \phi_S \rvert)^2`, which loses fewer digits than their own products.

        Shapes:
            real and imaginary parts ``(2, C, F)`` of both; returns ``(C, F)``.
        """
        squared = (1 - self.amplitude) * (own - target).square().sum(0)
        if self.amplitude != 0.5:
            squared = squared + (2 * self.amplitude - 1) * (own.norm(dim=0) - target.norm(dim=0)).square()
        return squared.clamp_min(LEAST).sqrt()


def characteristic_function(embedding: Tensor, share: Tensor, frequencies: Tensor) -> Tensor:
    r"""Return the real and imaginary parts of each class's empirical characteristic function.

    .. math:: \phi_c(t_f) = \sum_j p_{cj} e^{i\, t_f \cdot z_{cj}}

    Shapes:
        embedding ``(C, n, d)``, or ``(n, d)`` of samples that all classes share; share ``(C, n)``, what each sample
        counts in its class, which sums to 1; frequencies ``(F, d)``; returns ``(2, C, F)``.
    """
    angles = embedding @ frequencies.T
    parts = torch.stack([angles.cos(), angles.sin()])
    return share @ parts if embedding.ndim == 2 else (share[:, None] @ parts)[..., 0, :]


def _function_by_portions(embedding: Tensor, share: Tensor, frequencies: Tensor) -> Tensor:
    """Return the same without a graph, of so many samples at once that few angles are held."""
    size = max(ANGLES // (len(frequencies) * (1 if embedding.ndim == 2 else len(embedding))), 1)
    parts = zip(torch.split(embedding, size, -2), torch.split(share, size, 1), strict=True)
    first, *others = (characteristic_function(z, p, frequencies) for z, p in parts)
    for other in others:
        first += other
    return first


def _embeddings_by_parts(network: Network, batch: ClassBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the embeddings of some classes after the other at unit length, with what each sample counts."""
    if batch.dims.inputs is None:
        yield F.normalize(class_summary(network, batch, -1)[1], dim=-1), _shares(batch)
        return
    size = features_at_once(network, batch)
    for start in range(0, batch.num_classes, size):
        part = batch.part(start, start + size)
        flat = map_inputs(lambda inputs: inputs.flatten(0, 1), part.batch.inputs)
        with network.lowered(part):
            rows = features_by_portions(lambda inputs: network.features(inputs)[-1], flat)
        full = rows.float() if rows.dtype == torch.bfloat16 else rows
        yield F.normalize(full, dim=1).view(*part.batch.weight.shape, -1), _shares(part)


def _shares(batch: ClassBatch) -> Tensor:
    """Return what each sample counts in its class."""
    return batch.batch.weight / batch.batch.weight.sum(1, keepdim=True)
