"""The bytes of a budget of raw images, what codes fit into them, and the real images that codes start from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mmdistill.allocation import shares_of
from mmdistill.coresets import choose_start
from mmdistill.errors import ConfigError
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.parameterizations.base import index_bytes, stored_tensor_bytes
from mmdistill.parameterizations.starts import start_inputs
from mmdistill.parameterizations.tiles import composed, require_tiles
from mmdistill.parameterizations.upsample import image_shape, require_images
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Task

FLOAT_BYTES = 4
MOST_IMAGES = 1 << 16
"""Images per class up to which a larger budget is searched."""


@dataclass(frozen=True)
class ImageBudget:
    """The bytes that a set may take: a number of bytes, or those of raw float32 images with their labels.

    Args:
        per_class: raw images per class; at least 1, even where fewer bytes are given.
        shape: channels, height, width.
        num_classes: C.
        label: the kind of labels; the samples of one code share fixed ones.
        given: bytes; 0: those of the raw images.
        tiles: tiles per side of a decoded image, each a sample, see
            :class:`~mmdistill.parameterizations.tiles.ImageCodes`.
    """

    per_class: int
    shape: tuple[int, int, int]
    num_classes: int
    label: LabelKind
    given: int = 0
    tiles: int = 1

    @classmethod
    def of(cls, task: Task, budget: int, label: LabelKind, stored_bytes: int = 0, tiles: int = 1) -> "ImageBudget":
        """Return the budget of a task: ``budget`` images per class, or ``stored_bytes`` bytes if not 0.

        Raises:
            ConfigError: a task that is not of images with classes, a budget below 1, or tiles of one pixel.
        """
        counts, _, num_classes = shares_of(task, budget)
        shape = image_shape(task)
        if tiles != 1:  # images of one pixel's height are fine where they are not cut
            require_tiles(*shape[1:], tiles)
        room = cls(int(counts.min()), shape, num_classes, label, stored_bytes, tiles)
        if not stored_bytes:
            return room
        return replace(room, per_class=max(stored_bytes // (num_classes * room.image_bytes), 1))

    @property
    def shared_labels(self) -> bool:
        """Whether the samples of one code share a label, as fixed ones do."""
        return self.label == "hard"

    @property
    def samples_per_image(self) -> int:
        """The number of samples that one decoded image is cut into."""
        return self.tiles**2

    @property
    def label_bytes(self) -> int:
        """The bytes of one label."""
        if self.shared_labels:
            return index_bytes(self.num_classes)
        return FLOAT_BYTES * self.num_classes

    def labels_of_code(self, images: int = 1) -> int:
        """Return the number of labels of a code of ``images`` decoded images: one if shared, else one per sample."""
        return 1 if self.shared_labels else images * self.samples_per_image

    def code_label_bytes(self, images: int = 1) -> int:
        """Return the bytes of the labels of a code of ``images`` decoded images."""
        return self.label_bytes * self.labels_of_code(images)

    @property
    def image_bytes(self) -> int:
        """The bytes of one raw image with its label."""
        return FLOAT_BYTES * self.numel + self.label_bytes

    @property
    def numel(self) -> int:
        """Numbers in one raw image."""
        return math.prod(self.shape)

    def require_divisor(self, factor: int) -> None:
        """Refuse a factor by which the images' sides cannot be divided.

        Raises:
            ConfigError: a factor below 1, or one that does not divide both sides.
        """
        _, height, width = self.shape
        if factor < 1 or height % factor or width % factor:
            raise ConfigError(f"a factor of {factor} does not divide images of {height} x {width} pixels")

    @property
    def stored_bytes(self) -> int:
        """The whole budget in bytes."""
        return self.given or self.per_class * self.num_classes * self.image_bytes

    def enough(self, fits: Callable[["ImageBudget"], bool], multiple: int = 1) -> str:
        """Return advice on how to make room for a set: the smallest budget that is enough, if any, and other ways.

        Args:
            fits: tells whether a budget holds the set.
            multiple: samples per raw image, an argument of the storage; 1: it cannot be lowered.
        """

        def with_images(images: int) -> ImageBudget:
            return replace(self, per_class=images, given=0)

        high = max(self.per_class, 1)  # twice 0 would stay 0
        low = high - 1
        while not fits(with_images(high)) and high < MOST_IMAGES:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(with_images(middle)) else (middle, high)
        enough = with_images(high)
        option = f"--bytes {enough.stored_bytes}" if self.given else f"--ipc {high}"
        advice = [f"{option} is enough" if fits(enough) else "no larger budget is enough"]
        if not self.shared_labels:
            advice.append("hard labels, which samples share, take fewer")
        if multiple > 1:
            advice.append("in Python, the storage takes a smaller multiple")
        return "; ".join(advice)

    def codes_per_class(self, code_numel: int, shared: Sequence[nn.Module], images: int) -> int:
        """Return how many codes per class fit beside the modules that all codes share.

        Args:
            code_numel: numbers in one code.
            shared: the decoders.
            images: images decoded from one code.
        Raises:
            ConfigError: not one code per class fits.
        """
        shared_bytes = bytes_of(shared)
        bytes_per_code = self.num_classes * (FLOAT_BYTES * code_numel + self.code_label_bytes(images))
        codes = (self.stored_bytes - shared_bytes) // bytes_per_code
        if codes < 1:
            least = shared_bytes + bytes_per_code
            enough = f"--bytes {least}" if self.given else f"--ipc {-(-least // (self.num_classes * self.image_bytes))}"
            raise ConfigError(
                f"the budget is {self.stored_bytes:,} bytes, of which {shared_bytes:,} go to what codes share, and too "
                f"few are left for one code per class; it takes {least:,} ({enough})"
            )
        return codes

    def classes(self, per_class: int) -> Tensor:
        """Return the class of each code, ``(C per_class,)``."""
        return torch.arange(self.num_classes).repeat_interleave(per_class)

    def labels(self, codes: int, images: int) -> Labels:
        """Return the labels of ``codes`` codes per class, each of ``images`` images."""
        return make_labels(self.label, self.classes(codes * self.labels_of_code(images)), self.num_classes)

    def targets(self, task: Task, per_class: int, init: InitKind, draws: Draws) -> Tensor:
        """Return images to start from, ``(C per_class, channels, height, width)``: real ones, or N(0, 1) noise.

        A class with too few images adds noisy copies. Images that will be cut into tiles are composed of real ones.
        """
        if init == "noise":
            return draws.fold("noise").to(task.device).normal(self.num_classes * per_class, *self.shape)
        counts = torch.full((self.num_classes,), per_class * self.samples_per_image)
        choose = partial(choose_start, task, init, draws=draws)
        return composed(require_images(start_inputs(task, choose, counts, draws, parts=True)), self.tiles)


def bytes_of(modules: Sequence[nn.Module]) -> int:
    """Return the bytes that modules take in storage."""
    return sum(stored_tensor_bytes(tensor) for module in modules for tensor in module.state_dict().values())
