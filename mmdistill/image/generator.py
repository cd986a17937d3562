"""A small conditional GAN (like DCGAN) for methods that learn its latents; training is cached and resumable."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.errors import CheckpointError, ConfigError, note_kept
from mmdistill.files.locks import sole_writer
from mmdistill.labels import one_hot
from mmdistill.networks.clock import LoggedProgress, TrainingClock, describe_training
from mmdistill.networks.experts import cache_name
from mmdistill.parameterizations.upsample import image_shape, pixel_space, require_images
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws, cache_folder, host_draws_from, remove_stale_parts
from mmdistill.store import as_json, load_tree, save_tree
from mmdistill.task import Task, one_tensor, real_samples

GENERATOR_VERSION = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorRecipe:
    """The size of a generator and its training.

    Args:
        latent_size: values in a latent.
        width: channels before the last transposed convolution; each earlier layer has twice as many.
        doublings: transposed convolutions, each of which doubles the sides.
        critic_width: the discriminator's channels after its first halving.
        steps: of both players.
        batch: real and generated images per step.
        lr: of Adam with betas 0.5 and 0.999, for both players.
        seed: of all random draws; a generator does not depend on the distillation's seed.
    Raises:
        ConfigError: a size, the steps or the batch below 1.
    """

    latent_size: int = 64
    width: int = 64
    doublings: int = 2
    critic_width: int = 64
    steps: int = 20_000
    batch: int = 64
    lr: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.latent_size, self.width, self.doublings, self.critic_width, self.steps, self.batch)
        if min(sizes) < 1:
            raise ConfigError(f"the sizes of a generator and its steps are at least 1, got {self}")


class ConditionalGenerator(nn.Module):
    """Map a latent and a class to an image by a linear layer, then transposed convolutions with batch norm.

    Args:
        shape: channels, height and width of an image.
        num_classes: C.
        recipe: sizes.
        low: the darkest value of each channel in normalised units, ``(channels, 1, 1)``; infinite: unbounded.
        high: the brightest value, likewise.
    Shapes:
        latents ``(n, latent_size)`` and classes ``(n,)`` to ``(n, channels, height, width)``, normalised.
    Source: Radford et al., ICLR 2016; Mirza and Osindero, 2014.
    """

    _low: Tensor
    _high: Tensor

    def __init__(
        self, shape: tuple[int, int, int], num_classes: int, recipe: GeneratorRecipe, low: Tensor, high: Tensor
    ) -> None:
        super().__init__()
        self.shape, self.num_classes = shape, num_classes
        scale = 2**recipe.doublings
        self.bottom = (recipe.width * scale // 2, -(-shape[1] // scale), -(-shape[2] // scale))
        self.inward = nn.Linear(recipe.latent_size + num_classes, self.bottom[0] * self.bottom[1] * self.bottom[2])
        layers: list[nn.Module] = []
        for step in range(recipe.doublings):
            channels = self.bottom[0] >> step
            last = step == recipe.doublings - 1
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.ConvTranspose2d(channels, shape[0] if last else channels // 2, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)
        self.bounded = bool(torch.isfinite(low).all() and torch.isfinite(high).all())
        self.register_buffer("_low", low.clone(), persistent=False)
        self.register_buffer("_high", high.clone(), persistent=False)

    def forward(self, latents: Tensor, classes: Tensor) -> Tensor:
        """Return the images."""
        joined = torch.cat([latents, one_hot(classes, self.num_classes, latents.dtype)], 1)
        images: Tensor = self.layers(self.inward(joined).unflatten(1, self.bottom))
        images = images[:, :, : self.shape[1], : self.shape[2]]
        return self._low + (self._high - self._low) * images.sigmoid() if self.bounded else images


class ProjectionCritic(nn.Module):
    """Tell real from generated images of a class by two strided convolutions and an inner product with the class.

    Args:
        shape: channels, height and width of an image.
        num_classes: C.
        width: channels after the first halving.
    Source: Miyato and Koyama, ICLR 2018.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(shape[0], width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.BatchNorm2d(2 * width),  # without it, small generators collapse to one image
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        embedding = 2 * width * (shape[1] // 4) * (shape[2] // 4)
        self.plain = nn.Linear(embedding, 1)
        self.by_class = nn.Embedding(num_classes, embedding)
        nn.init.zeros_(self.by_class.weight)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return one logit per image, ``(n,)``."""
        features = self.layers(images)
        logits: Tensor = self.plain(features)[:, 0] + (features * self.by_class(classes)).sum(1)
        return logits


def identity(task: Task, recipe: GeneratorRecipe) -> dict[str, Any]:
    """Return a generator's identity as plain values: the data, their preprocessing, its size and training."""
    info = task.describe()
    return as_json(
        {
            "version": GENERATOR_VERSION,
            "data": Path(info.data).name,
            "fingerprint": info.fingerprint,
            "preprocessing": info.prepared,
            "recipe": asdict(recipe),
        }
    )


def describe_generator(task: Task, recipe: GeneratorRecipe, file: Path | None = None) -> str:
    """Return in words where a task's generator is cached, or for how many steps it must train first.

    Raises:
        CheckpointError, ConfigError: as for :func:`trained_generator`.
    """
    file = file or default_file(task, recipe)
    steps_left = recipe.steps - _resume(task, recipe, file).step
    return describe_training(f"{recipe.steps:,} steps", steps_left, recipe.steps, file)


def default_file(task: Task, recipe: GeneratorRecipe) -> Path:
    """Return where a task's generator is cached."""
    return cache_folder() / "generators" / f"{cache_name(task, identity(task, recipe))}.safetensors"


def trained_generator(
    task: Task, recipe: GeneratorRecipe, file: Path | None = None, save_every: int = 500
) -> ConditionalGenerator:
    """Return a generator trained on a task's real images, or load it from its file.

    An interrupted training resumes at the last multiple of ``save_every`` steps, as if it had not stopped. Of several
    processes one trains, and the others wait for it.

    Args:
        task: a task of images with classes.
        recipe: sizes and training.
        file: the generator's file; by default in the cache folder.
        save_every: steps between checkpoints.
    Raises:
        CheckpointError: the file is damaged, or of other data or another recipe.
        ConfigError: a task without classes, or not of images of at least 4 x 4 pixels.
    """
    file = file or default_file(task, recipe)
    players = _resume(task, recipe, file)
    if players.step < recipe.steps and not is_rehearsal():
        with sole_writer(file.with_suffix(".training"), wait="train a generator"):
            if file.exists():  # another process may have trained it further meanwhile
                players.load(file)
            _train(players, file, save_every)
    return players.generator.eval()


def _resume(task: Task, recipe: GeneratorRecipe, file: Path) -> "_Players":
    """Return the players in the state of their file; untrained if there is none."""
    players = _Players(task, recipe)
    if file.exists():
        players.load(file)
    return players


def _train(players: "_Players", file: Path, save_every: int) -> None:
    """Take the players' remaining steps; save every ``save_every`` steps and at the end."""
    steps = players.recipe.steps
    if players.step < steps:
        remove_stale_parts(file.parent)
        logger.info("training a generator for %d steps (%s)", steps - players.step, file)
    clock = TrainingClock(steps - players.step, LoggedProgress("generator"))
    try:
        while players.step < steps:
            players.advance()
            clock.tick()
            if players.step % save_every == 0 or players.step == steps:
                players.save(file)
    except KeyboardInterrupt as stop:
        note_kept(stop, f"the generator is kept every {save_every} steps, and the same command goes on from there")
        raise


def untrained_generator(task: Task, recipe: GeneratorRecipe) -> ConditionalGenerator:
    """Return an untrained generator; its batch norms count the training's steps, so its stored bytes are final.

    Raises:
        ConfigError: as for :func:`trained_generator`.
    """
    generator = _Players(task, recipe).generator
    for name, buffer in generator.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(recipe.steps)
    return generator


class _Players:
    """The generator, its critic and their optimizers, trained by the non-saturating logistic loss."""

    def __init__(self, task: Task, recipe: GeneratorRecipe) -> None:
        if task.num_classes is None:
            raise ConfigError(f"{task.describe().data!r} has no classes; a conditional generator needs them")
        shape = image_shape(task)
        if min(shape[1:]) < 4:
            raise ConfigError(f"a generator is trained on images of at least 4 x 4 pixels, got {shape[1]} x {shape[2]}")
        self.task, self.recipe, self.step = task, recipe, 0
        self.draws = Draws(recipe.seed, ("generator",), task.device)
        low, high = pixel_space(task, shape[0]).bounds()
        with host_draws_from(self.draws.fold("init").integer()):
            self.generator = ConditionalGenerator(shape, task.num_classes, recipe, low.cpu(), high.cpu())
            self.critic = ProjectionCritic(shape, task.num_classes, recipe.critic_width)
        self.generator.to(task.device)
        self.critic.to(task.device)
        self.optimizers = [
            torch.optim.Adam(module.parameters(), lr=recipe.lr, betas=(0.5, 0.999))
            for module in (self.generator, self.critic)
        ]

    def advance(self) -> None:
        """Step the critic, then the generator."""
        key, batch = self.draws.fold("step", self.step), self.recipe.batch
        real = real_samples(self.task, key.fold("real"), batch)
        assert self.task.num_classes is not None
        classes = key.fold("classes").integers(self.task.num_classes, batch)
        latents = key.fold("latents").normal(batch, self.recipe.latent_size)
        fake = self.generator(latents, classes)
        real_logits = self.critic(require_images(real.inputs), one_tensor(real.targets))
        fake_logits = self.critic(fake.detach(), classes)
        self._descend(self.critic, F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean(), 1)
        self._descend(self.generator, F.softplus(-self.critic(fake, classes)).mean(), 0)
        self.step += 1

    def _descend(self, module: nn.Module, loss: Tensor, optimizer: int) -> None:
        """Step a module by optimizer number ``optimizer``."""
        parameters = list(module.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizers[optimizer].step()

    def save(self, file: Path) -> None:
        """Write a checkpoint; once training has ended it holds the generator alone."""
        tree: dict[str, object] = {
            "identity": json.dumps(identity(self.task, self.recipe)),
            "step": self.step,
            "generator": self.generator.state_dict(),
        }
        if self.step < self.recipe.steps:
            tree["critic"] = self.critic.state_dict()
            tree["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        save_tree(file, tree)

    def load(self, file: Path) -> None:
        """Load a checkpoint from :meth:`save`.

        Raises:
            CheckpointError: it is damaged or of another generator.
        """
        tree = load_tree(file)
        try:
            saved, expected = json.loads(tree["identity"]), identity(self.task, self.recipe)
            for name, value in expected.items():
                if saved.get(name) != value:
                    raise CheckpointError(
                        f"the generator in {file} is another one: its {name} is {saved.get(name)}, not {value}"
                    )
            self.generator.load_state_dict(tree["generator"])
            if tree["step"] < self.recipe.steps:
                self.critic.load_state_dict(tree["critic"])
                for optimizer, state in zip(self.optimizers, tree["optimizers"], strict=True):
                    optimizer.load_state_dict(state)
            self.step = int(tree["step"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); remove it to train a generator anew") from error
