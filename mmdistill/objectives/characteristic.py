"""Matching of characteristic functions: whole distributions of features at random frequencies, not their means."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.execution.portions import features_by_portions, sum_by_classes
from mmdistill.labels import in_full
from mmdistill.objectives.base import (
    Network,
    Objective,
    class_sides,
    compact_summary,
    features_at_once,
    require_features,
)
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task, map_inputs, real_samples

SCALE = 300.0
"""What the published code multiplies the objective by, so that it counts beside the expert's loss."""
LEAST = 1e-12
"""The least squared difference at a frequency, below which it has no gradient."""
ANGLES = 1 << 20
"""Angles that are held at once where nothing is differentiated (4 MiB)."""
Side = list[tuple[Tensor, Tensor]]
"""Embeddings of some classes after the other, with what each sample counts in its class."""


class CharacteristicMatching(Objective):
    r"""Match the characteristic functions of each class's embeddings at random frequencies (NCFM).

    .. math:: 300 \sum_c \frac{1}{F} \sum_f \sqrt{a\, (\lvert \phi_T \rvert - \lvert \phi_S \rvert)^2 + 2 (1 - a)
        (\lvert \phi_T \rvert \lvert \phi_S \rvert - \Re(\phi_T \bar \phi_S))}, \quad
        \phi_X(t) = \frac{1}{n} \sum_j e^{i\, t \cdot z_j}

    z is a sample's embedding at unit length, and both functions are taken at the same frequencies :math:`t_f`, which
    are drawn anew in each step: from N(0, I), or by a sampler that learns to tell the sides apart (the paper's minmax).
    The first part compares amplitudes, the second phases; at :math:`a = 1/2` the root is
    :math:`\lvert \phi_T - \phi_S \rvert / \sqrt 2`.

    Args:
        frequencies: F.
        amplitude: a.
        minmax: whether a sampler draws the frequencies, whose parameters are the group ``objective``. It is given the
            objective's own gradient, so its optimizer has to ascend (``maximize``); that gradient takes the angles of
            all classes at once.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: no frequency, only one of a sampler, or an amplitude that is no share.
        ShapeError: the class axes differ.
    Differs from: the published code draws frequencies for each class; here those of a step serve all. Its sampler,
        which all of its configurations leave out, draws four frequencies sixteen times; here all are drawn.
    Source: Wang et al., CVPR 2025, and its published code.
    """

    reads_labels = False
    lowers = True

    def __init__(self, frequencies: int = 4096, amplitude: float = 0.5, *, minmax: bool = False) -> None:
        super().__init__()
        if frequencies < 1 + minmax:
            least = "two frequencies or more by a sampler" if minmax else "one frequency or more"
            raise ConfigError(f"characteristic functions are read at {least}, got {frequencies}")
        if not 0 <= amplitude <= 1:
            raise ConfigError(f"the share of amplitudes (amplitude) is between 0 and 1, got {amplitude}")
        self.frequencies = frequencies
        self.amplitude = float(amplitude)
        self.minmax = minmax
        self.divided = not minmax

    def check(self, task: Task) -> None:
        """Refuse tasks without classes, and networks without features."""
        super().check(task)
        require_features(type(self).__name__, task)

    def begin(self, task: Task, draws: Draws) -> None:
        """Draw the sampler, if there is one."""
        if self.minmax:
            two = real_samples(task, draws.fold("real"), 2)
            width = task.features(task.init(draws), two.inputs)[-1].shape[1]
            self.sampler = FrequencySampler(width, draws.fold("sampler"))

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the differences of all classes' functions; one forward pass a side."""
        syn, real = class_sides(syn, real, "characteristic matching")
        with torch.no_grad():
            seen = _embeddings_by_parts(network, real)
        drawn = self._drawn(seen[0][0], draws.fold("frequencies"))
        frequencies = drawn.detach()
        with torch.no_grad():
            target = torch.cat([_function_by_portions(*part, frequencies) for part in seen], 1)

        def term(part: ClassBatch, rows: slice) -> Tensor:
            own = characteristic_function(_unit(compact_summary(network, part, -1)[1]), part.shares, frequencies)
            return self.difference(own, target[:, rows]).mean(1).sum()

        matched = SCALE * sum_by_classes(term, syn, features_at_once(network, syn))
        return matched + SCALE * self._told_apart(network, syn, seen, drawn) if self.minmax else matched

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

    def _drawn(self, embedding: Tensor, draws: Draws) -> Tensor:
        """Return this step's frequencies ``(F, d)``, for embeddings like one."""
        noise = draws.to(embedding.device).normal(self.frequencies, embedding.shape[-1])
        return (self.sampler(noise.to(self.sampler.weight)) if self.minmax else noise).to(embedding.dtype)

    def _told_apart(self, network: Network, syn: ClassBatch, seen: Side, drawn: Tensor) -> Tensor:
        """Return nothing, whose gradient with respect to the sampler is that of the objective without its scale."""
        with torch.no_grad():
            own = _unit(compact_summary(network, syn, -1)[1])
        target = torch.cat([characteristic_function(*part, drawn) for part in seen], 1)
        value = self.difference(characteristic_function(own, syn.shares, drawn), target).mean(1).sum()
        return value - value.detach()


class FrequencySampler(nn.Module):
    """A network that makes frequencies between -1 and 1 of noise, all of a step together.

    Three linear layers, each normalised over the frequencies, with leaky ReLUs between and tanh at the end.

    Args:
        width: d, of embeddings and frequencies.
        draws: the key of its weights.
    Shapes:
        noise ``(F, d)``, F at least 2; returns ``(F, d)``.
    Source: Wang et al., CVPR 2025, its published code.
    """

    def __init__(self, width: int, draws: Draws) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(draws.fold("weight").uniform(3, width, width, low=-bound, high=bound))
        self.scale = nn.Parameter(torch.ones(3, width, device=draws.device))
        self.shift = nn.Parameter(torch.zeros(3, width, device=draws.device))

    def forward(self, noise: Tensor) -> Tensor:
        """Return the frequencies."""
        hidden = noise
        for layer in range(3):
            hidden = F.batch_norm(hidden @ self.weight[layer].T, None, None, self.scale[layer], self.shift[layer], True)
            hidden = F.leaky_relu(hidden, 0.2) if layer < 2 else hidden.tanh()
        return hidden


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
    return torch.stack([characteristic_function(z, p, frequencies) for z, p in parts]).sum(0)


def _embeddings_by_parts(network: Network, batch: ClassBatch) -> Side:
    """Return the embeddings of all classes, at unit length."""
    if batch.dims.inputs is None:
        return [(_unit(compact_summary(network, batch, -1)[1]), batch.shares)]
    found, size = [], features_at_once(network, batch)
    for start in range(0, batch.num_classes, size):
        part = batch.part(start, start + size)
        flat = map_inputs(lambda inputs: inputs.flatten(0, 1), part.batch.inputs)
        with network.lowered(part):
            rows = in_full(features_by_portions(lambda inputs: network.features(inputs)[-1], flat))
        found.append((_unit(rows).view(*part.batch.weight.shape, -1), part.shares))
    return found


def _unit(embedding: Tensor) -> Tensor:
    """Return embeddings at unit length."""
    return F.normalize(embedding, dim=-1)
