"""Image data sets as tensors: what they hold, how they are normalised, and the checks that they pass."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError, did_you_mean
from mmdistill.execution.portions import samples_at_once
from mmdistill.files.classes import missing_like, untested
from mmdistill.files.columns import repeated_note
from mmdistill.image.repeated import alike_images, held_out
from mmdistill.labels import from_one
from mmdistill.parameterizations.base import index_bytes
from mmdistill.runtime import Draws, tensor_digest

if TYPE_CHECKING:
    from mmdistill.image.whitening import Whitening

MOMENTS_CHUNK = 1000
"""Images that are read at once for the moments of channels, fewer of large ones."""
SCALES_APART = 100
"""Factor between the largest values of training and test images above which they cannot be of one scale."""
WHOLE_EPOCHS, WHOLE_UPDATES, WHOLE_BATCH = 30, 1000, 256
"""Epochs for which judges of a whole training set train at least, and the updates, of minibatches of so many images,
for which they train at least, where the data state no epochs of their own."""
TEST_SHARE = 0.2
"""Of each class, held out for testing where the data come without a test split."""


@functools.lru_cache
def moments_on(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, ``(channels, 1, 1)``; kept, since a copy waits for the device."""
    return torch.tensor(mean, device=device).view(-1, 1, 1), torch.tensor(std, device=device).view(-1, 1, 1)


def standardised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return images ``(..., channels, height, width)`` with channels of mean 0 and deviation 1, by those given."""
    shift, spread = moments_on(mean, std, images.device)
    return (images - shift) / spread


def destandardised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return standardised images ``(..., channels, height, width)`` with channels of this mean and deviation."""
    shift, spread = moments_on(mean, std, images.device)
    return images * spread + shift


def shown(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Return scaled pixels of a range as ones in [0, 1], clamped, for pictures."""
    low, high = value_range
    return ((images - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class ImageData:
    """Training and test images with labels.

    Args:
        name: as the user gave it.
        train_images: ``(N, channels, height, width)``, uint8 or float.
        train_labels: ``(N,)`` int64.
        test_images: the same of the test split.
        test_labels: the same of the test split.
        class_names: by class index.
        scale: what raw values are divided by before normalisation: 255 for bytes, 1 for floats.
        mean: per channel, of scaled training pixels.
        std: per channel, of scaled training pixels.
        mirror: whether a mirror image keeps its class, so that augmentation may flip.
        whole_epochs: epochs for which a judge of the whole training set trains.
        judge_epochs: epochs for which a judge of a small set trains; None is the protocol's own number.
        whitening: what takes the place of the normalisation of channels, or follows it.
        notes: how the test split came about where the source did not give one, and what was not read, in words.
        mirror_known: whether ``mirror`` is what suits the data, or what the user says, and no guess.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool = True
    whole_epochs: int = WHOLE_EPOCHS
    judge_epochs: int | None = None
    whitening: "Whitening | None" = None
    notes: tuple[str, ...] = ()
    mirror_known: bool = True

    def __repr__(self) -> str:
        """Return in one line what the data are, and how many images of what shape and classes they hold."""
        counts = f"{len(self.train_labels):,} training and {len(self.test_labels):,} test images"
        return (
            f"ImageData({self.name}, {counts} of {' x '.join(map(str, self.shape))}, {len(self.class_names)} classes)"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def stored_bytes(self) -> int:
        """Bytes of the training set as stored: its pixels, and one byte (two above 256 classes) per label."""
        label = index_bytes(len(self.class_names))
        return self.train_images.numel() * self.train_images.element_size() + label * len(self.train_labels)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the training images and labels, and the kind of whitening."""
        digest = tensor_digest(self.train_images, self.train_labels)
        return digest + ("" if self.whitening is None else f"-{self.whitening.kind}")

    @cached_property
    def test_fingerprint(self) -> str:
        """A hash of the test images and labels."""
        return tensor_digest(self.test_images, self.test_labels)

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest scaled pixel that the pictures may show: 0 to 1, or wider where floats exceed it."""
        if not self.train_images.is_floating_point():
            return 0.0, 1.0
        low, high = torch.aminmax(self.train_images)
        return min(float(low) / self.scale, 0.0), max(float(high) / self.scale, 1.0)

    def of_classes(self, classes: Sequence[str | int]) -> "ImageData":
        """Return the images of some classes alone, which are numbered in this order, in the units of all of them.

        So sets that are distilled from parts of the data can be put together, which parts with moments of their own, or
        a whitening, would not allow. Networks of the whole part train for as many epochs as before.

        Args:
            classes: two or more, by name or by index.
        Raises:
            ConfigError: an unknown class, one that comes twice, or fewer than two.
        """
        names = list(self.class_names)
        classes = classes.tolist() if isinstance(classes, Tensor) else classes
        if isinstance(classes, str) or not isinstance(classes, Sequence) or len(classes) < 2:
            raise ConfigError(f"a list of two or more classes is taken, got {classes!r}")
        chosen: list[int] = []
        for one in classes:
            index = names.index(one) if one in names else one
            if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= index < len(names):
                raise ConfigError(f"{self.name} has no class {one!r}{did_you_mean(str(one), names)}")
            chosen.append(int(index))
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"each class is taken once, got {list(classes)}")
        numbers = torch.full((len(names),), -1)
        numbers[torch.tensor(chosen)] = torch.arange(len(chosen))
        mine, mine_to_test = (numbers[labels] >= 0 for labels in (self.train_labels, self.test_labels))
        return replace(
            self,
            train_images=self.train_images[mine],
            train_labels=numbers[self.train_labels[mine]],
            test_images=self.test_images[mine_to_test],
            test_labels=numbers[self.test_labels[mine_to_test]],
            class_names=tuple(names[index] for index in chosen),
        )

    def scaled(self, images: Tensor) -> Tensor:
        """Return raw images as float32 of the data's scale: bytes in [0, 1]."""
        return images.to(torch.float32) / self.scale

    def standardised(self, images: Tensor) -> Tensor:
        """Return raw images with channels of mean 0 and deviation 1, as over the training set."""
        return standardised(self.scaled(images), self.mean, self.std)

    def normalise(self, images: Tensor) -> Tensor:
        """Return raw images ``(..., channels, height, width)`` in normalised units, float32; whitened where asked."""
        if self.whitening is None:
            return self.standardised(images)
        return self.whitening.apply(self.standardised(images) if self.whitening.standardises else self.scaled(images))

    def denormalise(self, images: Tensor) -> Tensor:
        """Return normalised images as pixels in [0, 1], clamped, for pictures."""
        if self.whitening is not None:
            images = self.whitening.invert(images)
        if self.whitening is None or self.whitening.standardises:
            images = destandardised(images, self.mean, self.std)
        return shown(images, self.value_range)


def build(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None,
    *,
    class_names: Sequence[str] | None = None,
    scale: float | None = None,
    moments: tuple[Sequence[float], Sequence[float]] | None = None,
    mirror: bool = True,
    whole_epochs: int | None = None,
    judge_epochs: int | None = None,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> ImageData:
    """Check images and labels and complete them: test split, class names, normalisation.

    Args:
        name: the data set's name or path.
        train: images ``(N, channels, height, width)`` or ``(N, height, width)``, and labels ``(N,)``.
        test: the same for testing; None holds out a fifth of each class, drawn from the seed, repeats together.
        class_names: by class index; None counts the labels.
        scale: divides raw values; None is 255 for bytes and 1 for floats.
        moments: mean and deviation per channel; None computes them from the training images.
        mirror: whether augmentation may flip.
        whole_epochs: epochs of a judge of the whole training set; None is what :func:`enough_epochs` says.
        judge_epochs: epochs of a judge of a small set; None is the protocol's own number.
        seed: of the split.
        notes: what was not read, in words.

    Raises:
        DataError: shapes that do not fit, NaN or infinite pixels, labels out of range, an empty class, a single class,
            training and test images of two types or scales.
    """
    most = None if class_names is None else len(class_names)
    images, labels = check(f"training images of {name}", *train, num_classes=most)
    names = _names_of(name, labels, class_names)
    if test is None:
        alike = alike_images(images)
        repeats = int((alike != torch.arange(len(alike))).sum())
        notes += (f"test: {TEST_SHARE:.0%} of the images of each class, held out of training, seed {seed}",)
        notes += tuple(repeated_note(repeats, len(alike), "images"))
        images, labels, test_images, test_labels = split(name, images, labels, alike, seed, class_names)
    else:
        test_images, test_labels = check(f"test images of {name}", *test, num_classes=len(names))
    _require_comparable(name, images, test_images)
    scale = scale or (1.0 if images.is_floating_point() else 255.0)
    mean, std = moments or channel_moments(images, scale)
    return ImageData(
        name,
        images,
        labels,
        test_images,
        test_labels,
        names,
        scale,
        tuple(mean),
        tuple(std),
        mirror,
        enough_epochs(len(labels)) if whole_epochs is None else whole_epochs,
        judge_epochs,
        notes=(*notes, *untested(test_labels, names, "image"), *missing_like(names)),
    )


def _names_of(name: str, labels: Tensor, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of classes, numbers where none are given.

    Raises:
        DataError: a single class, or one without a training image.
    """
    count = len(given) if given is not None else int(labels.max()) + 1
    if given is None and count > len(labels):  # before so many numbers take memory
        raise DataError(
            f"{name} has {len(labels)} training images, and labels up to {count - 1}; number the classes without gaps"
        )
    names = tuple(given) if given is not None else tuple(map(str, range(count)))
    if count == 1:
        only = f"class {names[0]!r}" if given is not None else "class 0"
        raise DataError(f"{name} has the single {only}; a classification set needs at least two")
    empty = (torch.bincount(labels, minlength=count) == 0).nonzero().flatten().tolist()
    if empty == [0] and given is None:
        raise DataError(f"{name} has no training image of class 0: {from_one(count - 1)}")
    if empty:
        raise DataError(
            f"{name} has no training image of class {', '.join(names[index] for index in empty[:5])} (of {count} "
            "classes); add some, or number the labels without gaps"
        )
    return names


def _require_comparable(name: str, images: Tensor, test_images: Tensor) -> None:
    """Refuse training and test images of two shapes, types or scales, and training images that are all alike."""
    if test_images.shape[1:] != images.shape[1:]:
        raise DataError(
            f"test images of {name} are {tuple(test_images.shape[1:])} and training images {tuple(images.shape[1:])} "
            "(channels, height, width); they must agree"
        )
    extremes = [tuple(float(value) for value in torch.aminmax(part)) for part in (images, test_images)]
    largest = [max(map(abs, values)) for values in extremes]
    scales_differ = min(largest) > 0 and max(largest) > SCALES_APART * min(largest)  # as of [0, 1] and [0, 255]
    if images.dtype != test_images.dtype or scales_differ:
        train_range, test_range = (
            f"{str(part.dtype).removeprefix('torch.')} from {low:g} to {high:g}"
            for part, (low, high) in zip((images, test_images), extremes, strict=True)
        )
        raise DataError(
            f"training images of {name} are {train_range}, test images {test_range}; give both in one type and scale"
        )
    low, high = extremes[0]
    if low == high:
        raise DataError(f"the training images of {name} are all alike: every pixel is {low:g}")


def enough_epochs(images: int) -> int:
    """Return for how many epochs a judge trains on a whole set of so many images: 30, or 1,000 updates if more."""
    return max(WHOLE_EPOCHS, -(-WHOLE_UPDATES // -(-images // WHOLE_BATCH)))


def check(what: str, images: Tensor, labels: Tensor, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return images with a channel axis and int64 labels, or say what is wrong with them.

    Shapes:
        images ``(N, channels, height, width)`` or ``(N, height, width)``, bytes or floats; labels ``(N,)``; returns
        ``(N, channels, height, width)``, uint8 or float32, and ``(N,)``.
    Raises:
        DataError: see :func:`build`.
    """
    images, labels = images.detach(), labels.detach()
    if images.ndim == 3:
        images = images[:, None]
    if labels.ndim == 2 and len(labels) == len(images):
        raise DataError(
            f"{what}: labels are class indices (N,), got {tuple(labels.shape)}; of one-hot rows give labels.argmax(1)"
        )
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
        raise DataError(
            f"{what}: expected images (N, channels, height, width) and labels (N,) with N > 0, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    channels, height, width = images.shape[1:]
    if not channels * height * width:
        raise DataError(f"{what}: images of shape {tuple(images.shape[1:])} have no pixels")
    if channels > 4 and (width in (3, 4) or (width == 1 and channels == height)):
        raise DataError(
            f"{what}: {tuple(images.shape)} looks like (N, height, width, channels), and (N, channels, height, width) "
            "is expected: give images.permute(0, 3, 1, 2) of a tensor, images.transpose(0, 3, 1, 2) of an array"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{what}: labels must be integer class indices, got {labels.dtype}; whole numbers become such by "
            "labels.long() of a tensor, labels.astype(int) of an array"
        )
    if images.is_floating_point():
        images = images.float()
        broken = (~images.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(broken):
            raise DataError(f"{what}: {len(broken)} hold NaN or infinite pixels, the first at index {int(broken[0])}")
    elif images.dtype != torch.uint8:
        raise DataError(f"{what}: pixels must be bytes (uint8) or floats, got {images.dtype}")
    labels = labels.long()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        limit = "" if num_classes is None else f" up to {num_classes - 1}"
        hint = f": {from_one(high)}" if (low, high) == (1, num_classes) else ""
        raise DataError(f"{what}: labels must be class indices from 0{limit}, got {low} to {high}{hint}")
    return images, labels


def split(
    name: str, images: Tensor, labels: Tensor, alike: Tensor, seed: int, class_names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hold out a fifth of each class (at least one image), drawn from the seed; repeats of an image stay together.

    Shapes:
        images ``(N, channels, height, width)``; labels ``(N,)`` int64; alike ``(N,)`` as of
        :func:`~mmdistill.image.repeated.alike_images`; returns training images and labels, then those for testing.
    Raises:
        DataError: a class has fewer than two images, or no class has two that differ.
    """
    counts = torch.bincount(labels)
    if int(counts.min()) < 2:
        least = int(counts.argmin())
        called = f"class {least}" if class_names is None else f"class {class_names[least]!r}"
        raise DataError(f"{name} has no test split, and {called} has too few images to hold one out; give test images")
    test = held_out(alike, labels, Draws(seed, ("split",)).permutation(len(labels)), TEST_SHARE)
    if not test.any():
        raise DataError(f"{name} has no test split, and too few different images to hold one out; give test images")
    return images[~test], labels[~test], images[test], labels[test]


def channel_moments(images: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of scaled images; a constant channel gets deviation 1.

    Shapes:
        images ``(N, channels, height, width)`` on the CPU, to be divided by ``scale``; returns two tuples of one number
        per channel.
    """
    parts = torch.split(images, samples_at_once(MOMENTS_CHUNK, images))
    means, spreads = _moments_of_bytes(parts) if images.dtype == torch.uint8 else _moments_of_floats(parts, scale)
    unit = scale if images.dtype == torch.uint8 else 1.0
    deviations = [round(value / unit, 6) or 1.0 for value in spreads]
    return tuple(round(value / unit, 6) for value in means), tuple(deviations)


def _moments_of_bytes(parts: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of images in bytes, by how often each byte occurs."""
    counts = sum(torch.stack([one.flatten().bincount(minlength=256) for one in part.unbind(1)]) for part in parts)
    assert isinstance(counts, Tensor)
    values = torch.arange(256)
    n = int(counts[0].sum())
    sums = [(int(first), int(second)) for first, second in zip(counts @ values, counts @ values.square(), strict=True)]
    return [first / n for first, _ in sums], [math.sqrt((n * second - first**2) / n**2) for first, second in sums]


def _moments_of_floats(parts: Sequence[Tensor], scale: float) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of scaled images."""
    shift = (parts[0].double() / scale).mean((0, 2, 3), keepdim=True)  # near the mean, so that little cancels
    sums = torch.zeros(2, parts[0].shape[1], dtype=torch.float64)
    for part in parts:
        gaps = part.double() / scale - shift
        sums += torch.stack([gaps.sum((0, 2, 3)), gaps.square().sum((0, 2, 3))])
    mean, square = sums / sum(part[:, 0].numel() for part in parts)
    spreads: list[float] = (square - mean.square()).clamp_min(0).sqrt().tolist()
    return (mean + shift.flatten()).tolist(), spreads
