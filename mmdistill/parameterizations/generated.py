"""Latents of a fixed generator: samples are what it makes of them (survey, Sec. 3.4.3, Eq. 27, 28)."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdistill.coresets import briefly_trained
from mmdistill.errors import ConfigError, MmdistillError, first_line
from mmdistill.execution.memory import exhausted
from mmdistill.execution.portions import samples_at_once, with_gradients
from mmdistill.labels import Labels
from mmdistill.parameterizations.base import Chosen, FeatureMap, Parameterization
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Inputs, Task

Decode = Callable[[Tensor, Tensor], Tensor]
"""From latents and classes to images."""
MADE_TOGETHER = 512
"""Latents that are inverted, or decoded once all is learned, at a time, fewer of large images."""
PAIRED_TOGETHER = 65_536
"""Numbers of samples whose paired features a CPU takes at once (about 20 images of 3 x 32 x 32)."""


class GeneratedSamples(Parameterization):
    r"""Learn the latents of a generator that is stored but never stepped.

    The penalty keeps each sample near the real image that its latent was inverted from (second part of Eq. 28):

    .. math:: \gamma \sum_c \frac{1}{N_c} \sum_{j \in c} \lVert f(g(z_j)) - f(x_j) \rVert^2

    With :math:`\gamma = \lambda / (1 - \lambda)` the whole is Eq. 28 divided by :math:`1 - \lambda`.

    Args:
        latents: initial ones ``(M, ...)``.
        generator: from latents, and classes where ``conditional``, to normalised images; copied, in evaluation mode.
        conditional: whether it is called with latents and classes.
        labels: one target per sample.
        classes: ``(M,)`` the class each latent stands for.
        num_classes: C.
        partners: the real images ``(M, channels, height, width)`` that samples stay near; they are not stored.
        weight: gamma; 0 leaves the penalty out.
    Shapes:
        decodes ``(M, channels, height, width)`` in normalised units.
    Raises:
        ConfigError: a negative weight, or a positive one without partners.
    Differs from: the printed Eq. 28 sums over pairs; the mean per class, which is what the published code has, makes
        gamma independent of their number. That code compares pairs augmented alike, here as they are.
    Source: Zhao and Bilen, 2022 (IT-GAN); survey Eq. 28.
    """

    _classes: Tensor
    _share: Tensor
    partners: Tensor | None

    def __init__(
        self,
        latents: Tensor,
        generator: nn.Module,
        conditional: bool,
        labels: Labels,
        classes: Tensor,
        num_classes: int,
        partners: Tensor | None = None,
        weight: float = 0.0,
    ) -> None:
        super().__init__(labels, classes, num_classes)
        if weight < 0 or (weight and partners is None):
            raise ConfigError(f"a weight from 0 on, and partners where it is not 0, are needed; got {weight}")
        self.latents = nn.Parameter(latents.clone())
        self.generator = deepcopy(generator).eval().requires_grad_(False)
        self.conditional = conditional
        self.weight = weight
        self.register_buffer("_classes", classes.clone(), persistent=False)
        self.register_buffer("_share", 1 / torch.bincount(classes).double()[classes], persistent=False)
        self.register_buffer("partners", partners, persistent=False)

    def decode(self, latents: Tensor, classes: Tensor) -> Tensor:
        """Return what the generator makes of latents."""
        images: Tensor = self.generator(latents, classes) if self.conditional else self.generator(latents)
        return images

    def forward(self, draws: Draws) -> Batch:
        """Generate every sample."""
        return self._batch(self.decode(self.latents, self._classes), self.labels())

    def part(self, rows: Tensor, draws: Draws) -> Batch:
        """Generate some samples."""
        return self._batch(self.decode(self.latents[rows], self._classes[rows]), self.labels()[rows])

    def finished(self, draws: Draws) -> Batch:
        """Generate every sample, some at a time."""
        with torch.no_grad():
            size = samples_at_once(MADE_TOGETHER, self.decode(self.latents[:1], self._classes[:1]))
        parts = zip(*(torch.split(t, size) for t in (self.latents, self._classes)), strict=True)
        return self._batch(torch.cat([self.decode(latents, classes) for latents, classes in parts]), self.labels())

    def _batch(self, images: Tensor, targets: Tensor) -> Batch:
        return Batch(images, targets, images.new_ones(len(images)))

    def penalty(self, features: FeatureMap, decoded: Inputs, chosen: Chosen | None = None) -> Tensor | None:
        """Return the weighted squared distance of paired features, differentiable once with respect to the samples.

        A CPU takes some samples at a time, their gradient along with the value, and keeps no more than their graph.
        """
        if self.partners is None or not self.weight:
            return None
        assert isinstance(decoded, Tensor)
        partners, shares = self.partners, self._share
        if chosen is not None:
            partners = partners[chosen.rows.flatten()]
            shares = (chosen.present / chosen.present.sum(1, keepdim=True)).flatten()
        portions = -(-decoded.numel() // PAIRED_TOGETHER) if decoded.device.type == "cpu" else 1
        if portions < 2 or not (decoded.requires_grad and torch.is_grad_enabled()):
            return self.weight * self._distance(features, decoded, partners, shares)
        values, gradients, rows = [], [], -(-len(decoded) // portions)
        parts = (torch.split(tensor, rows) for tensor in (decoded.detach(), partners, shares))
        for made, own, share in zip(*parts, strict=True):
            leaf = made.requires_grad_()
            value = self._distance(features, leaf, own, share)
            gradients += torch.autograd.grad(value, leaf)
            values.append(value.detach())
        return self.weight * with_gradients(torch.stack(values).sum(), [decoded], [torch.cat(gradients)])

    def _distance(self, features: FeatureMap, made: Tensor, partners: Tensor, share: Tensor) -> Tensor:
        """Return the sum of samples' squared distances of features, each times its share."""
        with torch.no_grad():
            wanted = features(partners)[-1]
        distances = (features(made)[-1] - wanted).square().sum(1)
        return (distances * share.to(distances.dtype)).sum()


@dataclass(frozen=True)
class Inversion:
    """How latents are brought near real images (Eq. 27).

    Args:
        steps: of Adam.
        lr: its rate.
        pixel_weight: lambda, of the squared distance of pixels beside that of features. The published code averages
            each over its numbers: it has 2/3 for 2048 features of 3072 pixels.
        feature_steps: minibatches of real samples on which the feature extractor is trained before.
    """

    steps: int = 5000
    lr: float = 0.1
    pixel_weight: float = 1.0
    feature_steps: int = 1000


def invert(
    decode: Decode,
    latents: Tensor,
    classes: Tensor,
    images: Tensor,
    features: FeatureMap,
    inversion: Inversion,
) -> Tensor:
    r"""Return latents whose images are near given ones, each by itself (Eq. 27).

    .. math:: \arg\min_z \lVert h(g(z)) - h(x) \rVert^2 + \lambda \lVert g(z) - x \rVert^2

    The published code averages each distance over its numbers, so its lambda is the number of features over that of
    pixels.

    Args:
        decode: the generator.
        latents: to start from, ``(n, ...)``.
        classes: ``(n,)``.
        images: ``(n, channels, height, width)``.
        features: of a network trained on real data; its embedding is h.
        inversion: steps, rate and lambda.
    Source: survey Eq. 27.
    """
    if is_rehearsal():
        return latents
    found = []
    every = torch.arange(len(latents), device=latents.device)
    for rows in torch.split(every, samples_at_once(MADE_TOGETHER, images)):
        z = latents[rows].clone().requires_grad_()
        with torch.no_grad():
            wanted = features(images[rows])[-1]
        optimizer = torch.optim.Adam([z], lr=inversion.lr)
        for _ in range(inversion.steps):
            made = decode(z, classes[rows])
            loss = (features(made)[-1] - wanted).square().sum()
            loss = loss + inversion.pixel_weight * (made - images[rows]).square().sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            optimizer.step()
        found.append(z.detach())
    return torch.cat(found)


def generated_samples(
    task: Task,
    room: ImageBudget,
    init: InitKind,
    draws: Draws,
    generator: nn.Module,
    latent_size: int,
    per_class: int,
    conditional: bool = True,
    inversion: Inversion | None = None,
    weight: float = 0.0,
) -> GeneratedSamples:
    """Build latents of a generator, inverted from real images.

    Args:
        task: a task of images with classes.
        room: what the images are like.
        init: how the real images are chosen; with ``noise``, latents are N(0, 1) and stay unpaired.
        draws: the key.
        generator: see :class:`GeneratedSamples`.
        latent_size: numbers in one latent.
        per_class: latents of each class.
        conditional: whether the generator is called with classes.
        inversion: how latents start; by default with the published steps and rate, but pixels weighed by 1.
        weight: gamma of Eq. 28.
    Raises:
        ConfigError: a generator that makes no images of the task's shape of such latents.
    """
    classes = room.classes(per_class).to(task.device)
    latents = draws.fold("latents").to(task.device).normal(len(classes), latent_size)
    made = GeneratedSamples(latents, generator, conditional, room.labels(per_class, 1), classes, room.num_classes).to(
        task.device
    )
    try:
        with torch.no_grad():
            shape = made.decode(made.latents[:1], classes[:1]).shape
    except MmdistillError:
        raise
    except Exception as error:  # whatever a generator of the user's raises
        if exhausted(error):
            raise
        given = f"latents (1, {latent_size})" + " and classes (1,)" * conditional
        raise ConfigError(f"the generator cannot take {given}: {first_line(error)}") from error
    if shape != (1, *room.shape):
        raise ConfigError(f"the generator makes {tuple(shape[1:])} of a latent; the data are {room.shape}")
    if init == "noise":
        return made
    made.partners = room.targets(task, per_class, init, draws)
    made.weight = weight
    inversion = inversion or Inversion()
    network = briefly_trained(task, draws.fold("features"), inversion.feature_steps)

    def features(images: Inputs) -> tuple[Tensor, ...]:
        return task.features(network, images)

    found = invert(made.decode, latents, classes, made.partners, features, inversion)
    made.latents.data.copy_(found)
    return made
