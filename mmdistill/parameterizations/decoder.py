"""Codes and small learned decoders, where every code passes through every decoder (Eq. 26, 30)."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.bars import UNSHOWN_SECONDS, is_showing, progress_bar
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
"""Most samples for which each step of the warm-up takes all; ten classes of up to fifty images have fewer."""
FITTED_TOGETHER = 2_048
"""Samples per minibatch of a larger warm-up."""


class Decoded(ImageCodes):
    """Base of decoders that all codes share: M codes and K decoders give M K images.

    Args:
        decoders: modules that map codes to images.
        labels: one target per code, which its samples share, or one per sample.
        classes: ``(M,)`` the class of each code.
        num_classes: C.
        tiles: tiles per side of a decoded image, see :class:`~mmdistill.parameterizations.tiles.ImageCodes`.
    Shapes:
        decodes ``(M K tiles^2, channels, height, width)`` in normalised units, ordered by code, tile and decoder.
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
        """Return the codes ``(m, ...)`` at ``rows``; None: all M."""

    def forward(self, draws: Draws) -> Batch:
        """Decode every code by every decoder."""
        return self.batch_of(self.images_of(self.codes_of()))

    def images_of(self, codes: Tensor) -> Tensor:
        """Return the images that the decoders make of m codes, ``(m K, channels, height, width)``."""
        return torch.stack([decoder(codes) for decoder in self.decoder], 1).flatten(0, 1)

    def plain_values(self) -> Mapping[str, object] | None:
        """Return the kind and sizes of the decoders, and the tiles; None where a decoder is not of one known kind."""
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
        decoders: modules that map codes to images.
        labels: one target per code, which its samples share, or one per sample.
        classes: ``(M,)`` the class of each code.
        num_classes: C.
        tiles: tiles per side of a decoded image.
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
        """Return the codes at ``rows``; None: all."""
        return self.codes if rows is None else self.codes[rows]

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "DecodedCodes":
        """Rebuild the stored codes and decoders."""
        decoders, tiles = stored_decoders(plain, tensors, tensors["codes"].dtype), plain["tiles"]
        return cls(tensors["codes"], decoders, labels, classes[:: len(decoders) * tiles**2], num_classes, tiles)


class Hallucinator(nn.Module):
    """Render an image in another style: convolution, ReLU, a scale and shift per element, transposed convolution.

    At 3 x 32 x 32 these are 5,568 parameters; both kernels are 3 x 3.

    Args:
        channels: the image's channels.
        height: the image's height, at least 3 since the convolution is not padded.
        width: the image's width, likewise.
    Shapes:
        ``(n, channels, height, width)`` to the same.
    Raises:
        ConfigError: a side of fewer than 3 pixels.
    Differs from: the published code has no ReLU, so its samples are linear in the code.
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
    """Up-sample a small code to an image: a 3 x 3 convolution, then one transposed convolution for each doubling.

    Args:
        channels: channels of the code and of the image.
        factor: the image's sides over the code's, a power of two from 2.
        width: hidden channels.
    Shapes:
        ``(n, channels, height / factor, width / factor)`` to ``(n, channels, height, width)``.
    Raises:
        ConfigError: a factor that is not such a power, or no hidden channel.
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


class Upsampling(nn.Module):
    """Up-sample small images bilinearly; nothing is learned.

    Args:
        factor: the image's sides over the code's.
    Shapes:
        ``(n, channels, height / factor, width / factor)`` to ``(n, channels, height, width)``.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.sizes = (factor,)

    def forward(self, images: Tensor) -> Tensor:
        """Return the enlarged images."""
        (factor,) = self.sizes
        if factor == 1:
            return images
        return F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)


DECODERS: Mapping[str, type[Hallucinator] | type[LatentDecoder] | type[Upsampling]] = {
    "hallucinator": Hallucinator,
    "latent": LatentDecoder,
    "upsampling": Upsampling,
}
"""The decoders that a file of codes can name; a decoder's ``sizes`` are its arguments."""


def stored_decoders(plain: Mapping[str, Any], tensors: Tensors, dtype: torch.dtype) -> list[nn.Module]:
    """Return the decoders of a file of codes.

    Args:
        plain: the values of :meth:`Decoded.plain_values`.
        tensors: the stored tensors by name.
        dtype: the codes' type.
    """
    decoders = nn.ModuleList(DECODERS[plain["decoder"]](*sizes) for sizes in plain["sizes"]).to(dtype)
    decoders.load_state_dict(under("decoder.", tensors))
    return list(decoders)


def make_decoders(make: Callable[[], nn.Module], count: int, draws: Draws) -> list[nn.Module]:
    """Return decoders with torch's default initialisation, drawn from a key; the global generator is left alone.

    Raises:
        ConfigError: a count below 1.
    """
    if count < 1:
        raise ConfigError(f"at least one decoder is needed, got {count}")
    with host_draws_from(draws.integer()):
        return [make() for _ in range(count)]


class Decoders(NamedTuple):
    """Decoders that all codes share, and how images are encoded as their initial codes.

    Args:
        modules: modules that map codes to images.
        encode: maps images ``(n, channels, height, width)`` to initial codes.
    """

    modules: list[nn.Module]
    encode: Callable[[Tensor], Tensor]

    def code_shape(self, room: ImageBudget) -> torch.Size:
        """Return the shape of a code."""
        return self.encode(torch.zeros(1, *room.shape)).shape[1:]


def hallucinators(room: ImageBudget, draws: Draws, count: int) -> Decoders:
    """Return hallucinators, whose codes are full-size images; alone they take about the bytes of one image per class.

    Args:
        room: the budget.
        draws: the key.
        count: the number of hallucinators.
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
        factor: an image's sides over a code's, a power of two.
        count: the number of decoders.
        width: hidden channels.
    Raises:
        ConfigError: a factor that does not divide the sides.
    Differs from: the sizes of codes and decoders, and the start near real images, are this library's.
    Source: Lee et al., 2022 (KFS); survey Sec. 3.4.3.
    """
    room.require_divisor(factor)
    modules = make_decoders(lambda: LatentDecoder(room.shape[0], factor, width), count, draws.fold("decoders"))
    return Decoders(modules, partial(F.avg_pool2d, kernel_size=factor))


def upsampling(room: ImageBudget, draws: Draws, factor: int) -> Decoders:
    """Return bilinear up-sampling, whose codes are small images and which takes no bytes.

    Args:
        room: the budget.
        draws: the key, from which nothing is drawn.
        factor: an image's sides over a code's.
    Raises:
        ConfigError: a factor that does not divide the sides.
    """
    room.require_divisor(factor)
    return Decoders([Upsampling(factor)], partial(F.avg_pool2d, kernel_size=factor))


DecoderKind = Callable[[ImageBudget, Draws], Decoders]
"""Makes decoders of one kind for the images of a budget."""


def decoded_codes(
    task: Task, room: ImageBudget, init: InitKind, draws: Draws, kind: DecoderKind, warm_up: int = 300
) -> DecodedCodes:
    """Build as many codes as fit into a budget beside their decoders.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how real images are chosen, which are encoded as initial codes and to which the decoded images are fitted;
            with ``noise``, noise is encoded and nothing is fitted.
        draws: the key.
        kind: makes the decoders, :func:`hallucinators` or :func:`latent_decoders`.
        warm_up: steps of fitting.
    Raises:
        ConfigError: a budget that the decoders alone exhaust.
    """
    decoders = kind(room, draws)
    per_class = room.codes_per_class(decoders.code_shape(room).numel(), decoders.modules, len(decoders.modules))

    def make(codes: Tensor, labels: Labels) -> DecodedCodes:
        classes = room.classes(per_class).to(codes.device)
        return DecodedCodes(codes, decoders.modules, labels, classes, room.num_classes, room.tiles)

    return start_from_images(task, room, per_class, decoders, make, init, draws, warm_up)


def start_from_images(
    task: Task,
    room: ImageBudget,
    per_class: int,
    decoders: Decoders,
    make: Callable[[Tensor, Labels], Made],
    init: InitKind,
    draws: Draws,
    warm_up: int,
) -> Made:
    """Build codes and decoders from real images, and fit each decoded image to one of them.

    Args:
        task: a task of images with classes.
        room: the budget.
        per_class: codes of each class.
        decoders: the decoders.
        make: builds the parameterization from encoded images and labels.
        init: how real images are chosen; with ``noise``, nothing is fitted.
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
    """Fit each decoded image to a given one, by Adam on the mean squared error.

    Random decoders give noise, from which matching methods start far worse than from real images. A step takes all
    images or, of more than :data:`FITTED_AT_ONCE`, a minibatch of codes, shuffled in each epoch. A long fit shows a
    progress bar where the run does.

    Args:
        made: the codes and decoders.
        images: the images to fit, in the order in which images are decoded.
        steps: steps of Adam.
        draws: the key.
    """
    if is_rehearsal():
        return
    learned = [p for name, group in made.groups().items() if name != "labels" for p in group]
    optimizer = torch.optim.Adam(learned, lr=WARM_UP_LR)
    by_code = images.view(-1, made.styles, *images.shape[1:])
    count = len(by_code)
    size = count if len(images) <= FITTED_AT_ONCE else max(FITTED_TOGETHER // made.styles, 1)
    epoch_steps, key, began = -(-count // size), draws.fold("fit").to(images.device), time.perf_counter()
    with progress_bar("fitting the start", "step", visible=is_showing()) as show:
        for step in range(steps):
            if size == count:
                decoded, targets = made.images_of(made.codes_of()), images
            else:
                first = step % epoch_steps * size
                rows = key.fold(step // epoch_steps).permutation(count)[first : first + size]
                decoded, targets = made.images_of(made.codes_of(rows)), by_code[rows].flatten(0, 1)
            loss = F.mse_loss(decoded, targets)
            for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                parameter.grad = gradient
            optimizer.step()
            if time.perf_counter() - began > UNSHOWN_SECONDS:
                show(step + 1, steps)
