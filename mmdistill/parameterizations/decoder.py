"""Codes and small learned decoders: every code passes through every decoder (Eq. 26, 30)."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.bars import is_showing, progress_bar
from mmdistill.errors import ConfigError
from mmdistill.labels import Labels
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.parameterizations.tiles import ImageCodes
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws, host_draws_from
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Task, Tensors, under

WARM_UP_LR = 0.01
FITTED_AT_ONCE = 16_384
"""Samples of a start that are fitted all in every step, as those of ten classes with up to fifty images are."""
FITTED_TOGETHER = 2_048
"""Samples in a minibatch of a larger start."""
UNSHOWN_SECONDS = 2.0
"""After so long a bar shows how far the fitting of a start has come."""


class Decoded(ImageCodes):
    """Decoders that all codes share, whatever these are: M codes and K decoders give M K images.

    Args:
        decoders: modules from codes to images.
        labels: one target per code, which its samples share, or one per sample.
        classes: ``(M,)`` the class each code stands for.
        num_classes: C.
        tiles: per side of a decoded image, see :class:`~mmdistill.parameterizations.tiles.ImageCodes`.
    Shapes:
        decodes ``(M K tiles^2, channels, height, width)`` in normalised units: a code's samples, tile by tile, each
        decoder by decoder, then the next code's.
    Raises:
        ConfigError: no decoders.
    Source: Liu et al., NeurIPS 2022 (HaBa); Lee et al., 2022 (KFS); survey Sec. 3.4.3, Eq. 30.
    """

    def __init__(
        self, decoders: Sequence[nn.Module], labels: Labels, classes: Tensor, num_classes: int, tiles: int = 1
    ) -> None:
        if not decoders:
            raise ConfigError("codes need at least one decoder")
        super().__init__(labels, classes.repeat_interleave(len(decoders)), num_classes, tiles, len(decoders))
        self.decoder = nn.ModuleList(decoders)

    @abstractmethod
    def codes_of(self, rows: Tensor | None = None) -> Tensor:
        """Return the codes ``(m, ...)`` of some rows; None: all M."""

    def forward(self, draws: Draws) -> Batch:
        """Decode every code by every decoder."""
        return self.batch_of(self.images_of(self.codes_of()))

    def images_of(self, codes: Tensor) -> Tensor:
        """Return ``(m K, channels, height, width)``, what the decoders make of m codes."""
        return torch.stack([decoder(codes) for decoder in self.decoder], 1).flatten(0, 1)

    def plain_values(self) -> Mapping[str, object] | None:
        """Return what decoders these are, and the tiles; None where one is of a kind of the user's."""
        for kind, known in DECODERS.items():
            sizes = [list(decoder.sizes) for decoder in self.decoder if type(decoder) is known]
            if len(sizes) == len(self.decoder):
                return {"decoder": kind, "sizes": sizes, "tiles": self.tiles}
        return None


Made = TypeVar("Made", bound=Decoded)


class DecodedCodes(Decoded):
    """Learn codes, and decoders that all codes share.

    Args:
        codes: initial codes ``(M, ...)``.
        decoders: modules from codes to images.
        labels: one target per code, which its samples share, or one per sample.
        classes: ``(M,)`` the class each code stands for.
        num_classes: C.
        tiles: per side of a decoded image.
    Shapes:
        decodes ``(M K tiles^2, channels, height, width)``, see :class:`Decoded`.
    Raises:
        ConfigError: no decoders.
    """

    def __init__(
        self,
        codes: Tensor,
        decoders: Sequence[nn.Module],
        labels: Labels,
        classes: Tensor,
        num_classes: int,
        tiles: int = 1,
    ) -> None:
        super().__init__(decoders, labels, classes, num_classes, tiles)
        self.codes = nn.Parameter(codes.clone())

    def codes_of(self, rows: Tensor | None = None) -> Tensor:
        """Return the codes of some rows, or all."""
        return self.codes if rows is None else self.codes[rows]

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "DecodedCodes":
        """Return what decodes the stored codes by the stored decoders."""
        decoders, tiles = stored_decoders(plain, tensors, tensors["codes"].dtype), plain["tiles"]
        return cls(tensors["codes"], decoders, labels, classes[:: len(decoders) * tiles**2], num_classes, tiles)


class Hallucinator(nn.Module):
    """Render an image in another style: 3 x 3 convolution, ReLU, a scale and shift per element, and back.

    At 3 x 32 x 32 these are 5,568 parameters.

    Args:
        channels: of the image.
        height: at least 3 pixels, since the convolution is not padded.
        width: likewise.
    Shapes:
        ``(n, channels, height, width)`` to the same.
    Raises:
        ConfigError: a side of fewer than 3 pixels.
    Differs from: the published code has no rectifier, so its samples are linear in the code.
    Source: Liu et al., NeurIPS 2022, Sec. 3.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        if min(height, width) < 3:
            raise ConfigError(f"a hallucinator needs images of at least 3 x 3 pixels, got {height} x {width}")
        self.sizes = (channels, height, width)
        self.inward = nn.Conv2d(channels, channels, 3)
        self.scale = nn.Parameter(torch.ones(channels, height - 2, width - 2))
        self.shift = nn.Parameter(torch.zeros(channels, height - 2, width - 2))
        self.outward = nn.ConvTranspose2d(channels, channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images in this hallucinator's style."""
        rendered: Tensor = self.outward(self.scale * F.relu(self.inward(images)) + self.shift)
        return rendered


class LatentDecoder(nn.Module):
    """Grow a small code to an image: a 3 x 3 convolution, then one transposed convolution for each doubling.

    Args:
        channels: of the code and of the image.
        factor: a power of two from 2: how many times the image's sides are the code's.
        width: hidden channels.
    Shapes:
        ``(n, channels, height / factor, width / factor)`` to ``(n, channels, height, width)``.
    Raises:
        ConfigError: a factor that is no such power, or no hidden channel.
    """

    def __init__(self, channels: int, factor: int, width: int) -> None:
        super().__init__()
        if factor < 2 or factor & (factor - 1) or width < 1:
            raise ConfigError(f"a decoder needs a power of two from 2 and a width from 1, got {factor} and {width}")
        self.sizes = (channels, factor, width)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for doubling in range(factor.bit_length() - 1):
            last = 2 << doubling == factor
            layers += [nn.ReLU(), nn.ConvTranspose2d(width, channels if last else width, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the images."""
        images: Tensor = self.layers(codes)
        return images


DECODERS: Mapping[str, type[Hallucinator] | type[LatentDecoder]] = {
    "hallucinator": Hallucinator,
    "latent": LatentDecoder,
}
"""The decoders that a file of codes can name; ``sizes`` are the arguments that one was made with."""


def stored_decoders(plain: Mapping[str, Any], tensors: Tensors, dtype: torch.dtype) -> list[nn.Module]:
    """Return the decoders of a file of codes.

    Args:
        plain: what :meth:`Decoded.plain_values` said.
        tensors: what was stored, by name.
        dtype: of the codes.
    """
    decoders = nn.ModuleList(DECODERS[plain["decoder"]](*sizes) for sizes in plain["sizes"]).to(dtype)
    decoders.load_state_dict(under("decoder.", tensors))
    return list(decoders)


def make_decoders(make: Callable[[], nn.Module], count: int, draws: Draws) -> list[nn.Module]:
    """Return decoders with torch's own initialisation, drawn from a key; the global generator is left alone.

    Raises:
        ConfigError: a count below 1.
    """
    if count < 1:
        raise ConfigError(f"at least one decoder is needed, got {count}")
    with host_draws_from(draws.integer()):
        return [make() for _ in range(count)]


class Decoders(NamedTuple):
    """Decoders that all codes share, and what their codes are at first.

    Args:
        modules: from codes to images.
        encode: from images ``(n, channels, height, width)`` to codes that stand for them.
    """

    modules: list[nn.Module]
    encode: Callable[[Tensor], Tensor]

    def code_numel(self, room: ImageBudget) -> int:
        """Return how many numbers a code has."""
        return self.encode(torch.zeros(1, *room.shape)).numel()


def hallucinators(room: ImageBudget, draws: Draws, count: int) -> Decoders:
    """Return hallucinators, whose codes are full-size bases; alone they take about the bytes of one image per class.

    Args:
        room: the budget.
        draws: the key.
        count: how many.
    Source: Liu et al., NeurIPS 2022; survey Sec. 3.4.3.
    """
    return Decoders(
        make_decoders(lambda: Hallucinator(*room.shape), count, draws.fold("hallucinators")), lambda images: images
    )


def latent_decoders(room: ImageBudget, draws: Draws, factor: int, count: int, width: int) -> Decoders:
    """Return decoders of small codes.

    Args:
        room: the budget.
        draws: the key.
        factor: how many times an image's sides are a code's, a power of two.
        count: how many.
        width: their hidden channels.
    Raises:
        ConfigError: a factor that does not divide the sides.
    Differs from: sizes of codes and decoders, and the start near real images, are this library's own.
    Source: Lee et al., 2022 (KFS); survey Sec. 3.4.3.
    """
    room.require_divisor(factor)
    made = make_decoders(lambda: LatentDecoder(room.shape[0], factor, width), count, draws.fold("decoders"))
    return Decoders(made, partial(F.avg_pool2d, kernel_size=factor))


DecoderKind = Callable[[ImageBudget, Draws], Decoders]
"""Makes decoders of one kind for the images of a budget."""


def decoded_codes(
    task: Task, room: ImageBudget, init: InitKind, draws: Draws, kind: DecoderKind, warm_up: int = 300
) -> DecodedCodes:
    """Build as many codes as fit into a budget beside their decoders.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how real images are chosen, which codes stand for at first, and to which ``warm_up`` steps bring the
            decoded ones; with ``noise``, codes are of noise and none are fitted.
        draws: the key.
        kind: of decoders, :func:`hallucinators` or :func:`latent_decoders`.
        warm_up: steps of the start.
    Raises:
        ConfigError: a budget that the decoders alone exhaust.
    """
    decoders = kind(room, draws)
    per_class = room.codes_per_class(decoders.code_numel(room), decoders.modules, len(decoders.modules))

    def make(codes: Tensor, labels: Labels) -> DecodedCodes:
        classes = room.classes(per_class).to(codes.device)
        return DecodedCodes(codes, decoders.modules, labels, classes, room.num_classes, room.tiles)

    return started(task, room, per_class, decoders, make, init, draws, warm_up)


def started(
    task: Task,
    room: ImageBudget,
    per_class: int,
    decoders: Decoders,
    make: Callable[[Tensor, Labels], Made],
    init: InitKind,
    draws: Draws,
    warm_up: int,
) -> Made:
    """Return codes and decoders that start from real images, each decoded image fitted to one of its own.

    Args:
        task: a task of images with classes.
        room: the budget.
        per_class: codes of each class.
        decoders: each of which decodes every code.
        make: of codes, each of an image to start from, and their labels.
        init: how real images are chosen; with ``noise``, none are fitted.
        draws: the key.
        warm_up: steps of fitting.
    """
    styles = len(decoders.modules)
    targets = room.targets(task, per_class * styles, init, draws)
    made = make(decoders.encode(targets[::styles]), room.labels(per_class, styles)).to(task.device)
    if init != "noise":
        fit_to_images(made, targets, warm_up, draws)
    return made


def fit_to_images(made: Decoded, images: Tensor, steps: int, draws: Draws) -> None:
    """Bring decoded images near given ones, one each, by Adam on the mean squared error.

    Random decoders give noise, from which matching methods start far worse than from real images. A step takes all
    images, or of more than :data:`FITTED_AT_ONCE` those of some codes, in epochs of permutations. Where the run shows
    a bar, so does a fit that takes long.

    Args:
        made: the codes and decoders.
        images: given ones, in the order of those that are decoded.
        steps: of Adam.
        draws: the key.
    """
    if is_rehearsal():
        return
    learned = [p for name, group in made.groups().items() if name != "labels" for p in group]
    optimizer = torch.optim.Adam(learned, lr=WARM_UP_LR)
    by_code = images.view(-1, made.styles, *images.shape[1:])
    count = len(by_code)
    size = count if len(images) <= FITTED_AT_ONCE else max(FITTED_TOGETHER // made.styles, 1)
    epoch, key, began = -(-count // size), draws.fold("fit").to(images.device), time.perf_counter()
    with progress_bar("fitting the start", "step", visible=is_showing()) as show:
        for step in range(steps):
            if size == count:
                inputs, wanted = made.images_of(made.codes_of()), images
            else:
                first = step % epoch * size
                rows = key.fold(step // epoch).permutation(count)[first : first + size]
                inputs, wanted = made.images_of(made.codes_of(rows)), by_code[rows].flatten(0, 1)
            loss = F.mse_loss(inputs, wanted)
            for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                parameter.grad = gradient
            optimizer.step()
            if time.perf_counter() - began > UNSHOWN_SECONDS:
                show(step + 1, steps)
    for parameter in learned:
        parameter.grad = None
