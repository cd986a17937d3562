"""Matching of characteristic functions: whole distributions of features, at random frequencies, instead of means."""

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
"""Factor of the objective in the published code, which balances it against the expert's loss."""
LEAST = 1e-12
"""Squared differences at a frequency are clamped to at least this, where the root has no gradient."""
ANGLES = 1 << 20
"""Most angles held at once where nothing is differentiated (4 MiB)."""
Side = list[tuple[Tensor, Tensor]]
"""One side in parts of some classes each: the embeddings, and the share of each sample in its class."""


class CharacteristicMatching(Objective):
    r"""Match the characteristic functions of each class's embeddings at random frequencies (NCFM).

    .. math:: 300 \sum_c \frac{1}{F} \sum_f \sqrt{a\, (\lvert \phi_T \rvert - \lvert \phi_S \rvert)^2 + 2 (1 - a)
        (\lvert \phi_T \rvert \lvert \phi_S \rvert - \Re(\phi_T \bar \phi_S))}, \quad
        \phi_X(t) = \frac{1}{n} \sum_j e^{i\, t \cdot z_j}

    z is a sample's embedding at unit length. Both functions are evaluated at the same frequencies :math:`t_f`, drawn in
    each step from N(0, I), or by a sampler that learns to tell the sides apart (the paper's minmax). The first part
    compares amplitudes, the second phases; at :math:`a = 1/2` the root is
    :math:`\lvert \phi_T - \phi_S \rvert / \sqrt 2`.

    Args:
        frequencies: F.
        amplitude: a.
        minmax: whether a sampler draws the frequencies; its parameters are the group ``objective``. They get the
            objective's own gradient, so their optimizer has to ascend (``maximize``); that gradient needs the angles of
            all classes at once.
    Shapes:
        class batches on both sides; returns a scalar.
    Raises:
        ConfigError: no frequency, fewer than two with a sampler, or an amplitude outside of 0 to 1.
        ShapeError: the class axes differ.
    Differs from: the published code draws frequencies for each class; here all classes of a step share them. Its
        sampler, which none of its configurations uses, draws four frequencies sixteen times; here all at once.
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
        """Draw the sampler's weights, if there is one."""
        if self.minmax:
            samples = real_samples(task, draws.fold("real"), 2)
            width = task.features(task.init(draws), samples.inputs)[-1].shape[1]
            self.sampler = FrequencySampler(width, draws.fold("sampler"))

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the differences of all classes' functions; one forward pass per side."""
        syn, real = class_sides(syn, real, "characteristic matching")
        with torch.no_grad():
            real_side = _embeddings_by_parts(network, real)
        learned_frequencies = self._draw_frequencies(real_side[0][0], draws.fold("frequencies"))
        frequencies = learned_frequencies.detach()
        with torch.no_grad():
            target = torch.cat([_function_by_portions(*part, frequencies) for part in real_side], 1)

        def term(part: ClassBatch, rows: slice) -> Tensor:
            own = characteristic_function(_unit(compact_summary(network, part, -1)[1]), part.shares, frequencies)
            return self.difference(own, target[:, rows]).mean(1).sum()

        matched = SCALE * sum_by_classes(term, syn, features_at_once(network, syn))
        if not self.minmax:
            return matched
        return matched + SCALE * self._sampler_term(network, syn, real_side, learned_frequencies)

    def difference(self, own: Tensor, target: Tensor) -> Tensor:
        r"""Return the root of the weighted squared difference at every frequency.

        The square is computed as :math:`(1 - a) \lvert \phi_T - \phi_S \rvert^2 + (2 a - 1)
        (\lvert \phi_T \rvert - \lvert \phi_S \rvert)^2`, which loses fewer digits than the products of amplitudes.

        Shapes:
            real and imaginary parts ``(2, C, F)`` of both functions; returns ``(C, F)``.
        """
        squared = (1 - self.amplitude) * (own - target).square().sum(0)
        if self.amplitude != 0.5:
            squared = squared + (2 * self.amplitude - 1) * (own.norm(dim=0) - target.norm(dim=0)).square()
        return squared.clamp_min(LEAST).sqrt()

    def _draw_frequencies(self, embedding: Tensor, draws: Draws) -> Tensor:
        """Draw this step's frequencies ``(F, d)``, with the embedding's width, device and dtype."""
        noise = draws.to(embedding.device).normal(self.frequencies, embedding.shape[-1])
        return (self.sampler(noise.to(self.sampler.weight)) if self.minmax else noise).to(embedding.dtype)

    def _sampler_term(self, network: Network, syn: ClassBatch, real: Side, frequencies: Tensor) -> Tensor:
        """Return a term of value 0 that carries the unscaled objective's gradient with respect to the sampler."""
        with torch.no_grad():
            embedding = _unit(compact_summary(network, syn, -1)[1])
        target = torch.cat([characteristic_function(*part, frequencies) for part in real], 1)
        own = characteristic_function(embedding, syn.shares, frequencies)
        value = self.difference(own, target).mean(1).sum()
        return value - value.detach()


class FrequencySampler(nn.Module):
    """A network that maps noise to frequencies between -1 and 1, all frequencies of a step as one batch.

    Three linear layers, each normalised over the frequencies, with leaky ReLUs between and tanh at the end.

    Args:
        width: d, the width of embeddings and frequencies.
        draws: the key of the weights.
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
        embedding ``(C, n, d)``, or ``(n, d)`` of samples that all classes share; share ``(C, n)``, p, each sample's
        weight in its class, which sums to 1; frequencies ``(F, d)``; returns ``(2, C, F)``.
    """
    angles = embedding @ frequencies.T
    parts = torch.stack([angles.cos(), angles.sin()])
    return share @ parts if embedding.ndim == 2 else (share[:, None] @ parts)[..., 0, :]


def _function_by_portions(embedding: Tensor, share: Tensor, frequencies: Tensor) -> Tensor:
    """Return :func:`characteristic_function`, summed over portions of samples with at most :data:`ANGLES` angles."""
    size = max(ANGLES // (len(frequencies) * (1 if embedding.ndim == 2 else len(embedding))), 1)
    parts = zip(torch.split(embedding, size, -2), torch.split(share, size, 1), strict=True)
    return torch.stack([characteristic_function(z, p, frequencies) for z, p in parts]).sum(0)


def _embeddings_by_parts(network: Network, batch: ClassBatch) -> Side:
    """Return the embeddings of all classes, at unit length, with the samples' shares."""
    if batch.dims.inputs is None:
        return [(_unit(compact_summary(network, batch, -1)[1]), batch.shares)]
    side, size = [], features_at_once(network, batch)
    for start in range(0, batch.num_classes, size):
        part = batch.part(start, start + size)
        flat = map_inputs(lambda inputs: inputs.flatten(0, 1), part.batch.inputs)
        with network.lowered(part):
            rows = in_full(features_by_portions(lambda inputs: network.features(inputs)[-1], flat))
        side.append((_unit(rows).view(*part.batch.weight.shape, -1), part.shares))
    return side


def _unit(embedding: Tensor) -> Tensor:
    """Return embeddings at unit length."""
    return F.normalize(embedding, dim=-1)
