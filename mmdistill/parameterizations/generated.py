"""Samples that a fixed generator makes of learned latents (survey, Sec. 3.4.3, Eq. 27, 28)."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdistill.coresets import train_briefly
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
"""Maps latents and classes to images."""
MADE_TOGETHER = 512
"""Most latents that are inverted at a time, or decoded at a time when finished; fewer of large images."""
PAIRED_TOGETHER = 65_536
"""Most numbers in the samples whose features a CPU pairs at once (about 20 images of 3 x 32 x 32)."""


class GeneratedSamples(Parameterization):
    r"""Learn the latents of a fixed generator, which is stored with them.

    The penalty keeps each sample near the real image from which its latent was inverted (second part of Eq. 28):

    .. math:: \gamma \sum_c \frac{1}{N_c} \sum_{j \in c} \lVert f(g(z_j)) - f(x_j) \rVert^2

    With :math:`\gamma = \lambda / (1 - \lambda)`, objective and penalty are Eq. 28 divided by :math:`1 - \lambda`.

    Args:
        latents: initial latents ``(M, ...)``.
        generator: maps latents, and classes if ``conditional``, to normalised images; it is copied, in eval mode.
        conditional: whether the generator takes latents and classes.
        labels: one target per sample.
        classes: ``(M,)`` the class of each latent.
        num_classes: C.
        partners: the real images ``(M, channels, height, width)`` that samples stay near; they are not stored.
        weight: gamma; 0 leaves the penalty out.
    Shapes:
        decodes ``(M, channels, height, width)`` in normalised units.
    Raises:
        ConfigError: a negative weight, or a positive one without partners.
    Differs from: Eq. 28 as printed sums over pairs; the mean per class, as in the published code, makes gamma
        independent of their number. That code augments both images of a pair alike; here pairs are not augmented.
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
        """Return the generator's images of some latents."""
        images: Tensor = self.generator(latents, classes) if self.conditional else self.generator(latents)
        return images

    def forward(self, draws: Draws) -> Batch:
        """Generate all samples."""
        return self._batch(self.decode(self.latents, self._classes), self.labels())

    def part(self, rows: Tensor, draws: Draws) -> Batch:
        """Generate the samples at ``rows``."""
        return self._batch(self.decode(self.latents[rows], self._classes[rows]), self.labels()[rows])

    def finished(self, draws: Draws) -> Batch:
        """Generate all samples, a portion at a time."""
        with torch.no_grad():
            size = samples_at_once(MADE_TOGETHER, self.decode(self.latents[:1], self._classes[:1]))
        parts = zip(*(torch.split(t, size) for t in (self.latents, self._classes)), strict=True)
        return self._batch(torch.cat([self.decode(latents, classes) for latents, classes in parts]), self.labels())

    def _batch(self, images: Tensor, targets: Tensor) -> Batch:
        """Return a batch of equal weights."""
        return Batch(images, targets, images.new_ones(len(images)))

    def penalty(self, features: FeatureMap, decoded: Inputs, chosen: Chosen | None = None) -> Tensor | None:
        """Return the weighted squared distance of paired features; it can be differentiated once, in the samples.

        A CPU computes the value and its gradient a portion of samples at a time, so that only one portion's graph is
        held.
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
        values, gradients, size = [], [], -(-len(decoded) // portions)
        parts = (torch.split(tensor, size) for tensor in (decoded.detach(), partners, shares))
        for samples, part_partners, part_shares in zip(*parts, strict=True):
            leaf = samples.requires_grad_()
            value = self._distance(features, leaf, part_partners, part_shares)
            gradients += torch.autograd.grad(value, leaf)
            values.append(value.detach())
        return self.weight * with_gradients(torch.stack(values).sum(), [decoded], [torch.cat(gradients)])

    def _distance(self, features: FeatureMap, samples: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
        """Return the squared distances of the samples' features to their partners', summed with weights ``shares``."""
        with torch.no_grad():
            targets = features(partners)[-1]
        distances = (features(samples)[-1] - targets).square().sum(1)
        return (distances * shares.to(distances.dtype)).sum()


@dataclass(frozen=True)
class Inversion:
    """How latents are inverted from real images (Eq. 27).

    Args:
        steps: steps of Adam.
        lr: Adam's learning rate.
        pixel_weight: lambda, the weight of the pixels' squared distance relative to the features'. The published code
            averages each over its numbers, which is a lambda of 2/3 for 2048 features and 3072 pixels.
        feature_steps: minibatches of real samples on which the feature extractor is trained first.
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
    r"""Return latents whose images are near given ones, each optimised on its own (Eq. 27).

    .. math:: \arg\min_z \lVert h(g(z)) - h(x) \rVert^2 + \lambda \lVert g(z) - x \rVert^2

    The published code averages each distance over its numbers, so its lambda is the number of features over that of
    pixels.

    Args:
        decode: the generator.
        latents: initial latents, ``(n, ...)``.
        classes: the latents' classes, ``(n,)``.
        images: the images to invert, ``(n, channels, height, width)``.
        features: the feature map of a network trained on real data, whose embedding is h.
        inversion: steps, learning rate and lambda.
    Source: survey Eq. 27.
    """
    if is_rehearsal():
        return latents
    inverted = []
    all_rows = torch.arange(len(latents), device=latents.device)
    for rows in torch.split(all_rows, samples_at_once(MADE_TOGETHER, images)):
        z = latents[rows].clone().requires_grad_()
        with torch.no_grad():
            targets = features(images[rows])[-1]
        optimizer = torch.optim.Adam([z], lr=inversion.lr)
        for _ in range(inversion.steps):
            decoded = decode(z, classes[rows])
            loss = (features(decoded)[-1] - targets).square().sum()
            loss = loss + inversion.pixel_weight * (decoded - images[rows]).square().sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            optimizer.step()
        inverted.append(z.detach())
    return torch.cat(inverted)


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
        room: the budget, which gives the images' shape and the labels.
        init: how the real images are chosen; with ``noise``, latents are N(0, 1) without partners.
        draws: the key.
        generator: see :class:`GeneratedSamples`.
        latent_size: numbers in one latent.
        per_class: latents per class.
        conditional: whether the generator takes classes too.
        inversion: how latents are inverted; by default by the published steps and rate, with a pixel weight of 1.
        weight: gamma of Eq. 28.
    Raises:
        ConfigError: the generator makes no images of the task's shape from such latents.
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
    except Exception as error:  # a user's generator may raise anything
        if exhausted(error):
            raise
        arguments = f"latents (1, {latent_size})" + " and classes (1,)" * conditional
        raise ConfigError(f"the generator cannot take {arguments}: {first_line(error)}") from error
    if shape != (1, *room.shape):
        raise ConfigError(f"the generator makes {tuple(shape[1:])} of a latent; the data are {room.shape}")
    if init == "noise":
        return made
    made.partners = room.targets(task, per_class, init, draws)
    made.weight = weight
    inversion = inversion or Inversion()
    network = train_briefly(task, draws.fold("features"), inversion.feature_steps)

    def features(images: Inputs) -> tuple[Tensor, ...]:
        return task.features(network, images)

    made.latents.data.copy_(invert(made.decode, latents, classes, made.partners, features, inversion))
    return made
