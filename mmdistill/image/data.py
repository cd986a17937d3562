"""Image data sets as tensors: their contents, normalisation and validation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError, did_you_mean
from mmdistill.files.classes import missing_like, untested
from mmdistill.files.columns import repeated_note
from mmdistill.files.held_out import held_out
from mmdistill.image.moments import channel_moments, destandardised, standardised
from mmdistill.image.repeated import alike_images
from mmdistill.labels import from_one
from mmdistill.parameterizations.base import index_bytes
from mmdistill.runtime import Draws, tensor_digest

if TYPE_CHECKING:
    from mmdistill.image.whitening import Whitening

SCALES_APART = 100
"""Ratio of the largest training and test values above which the two sets are taken to have different scales."""
WHOLE_EPOCHS, WHOLE_UPDATES, WHOLE_BATCH = 30, 1000, 256
"""Least epochs, least updates and minibatch size of judges on a whole training set, if the data state no epochs."""
BYTE = 255
"""The largest byte."""
TEST_SHARE = 0.2
"""Share of each class held out for testing, if the data have no test split."""


def to_unit_range(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Map scaled pixels from ``value_range`` to [0, 1] and clamp them, for pictures."""
    low, high = value_range
    return ((images - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class ImageData:
    """Training and test images with labels.

    Args:
        name: as the user gave it.
        train_images: ``(N, channels, height, width)``, uint8 or float.
        train_labels: ``(N,)`` int64.
        test_images: the test split's images, of the same form.
        test_labels: the test split's labels.
        class_names: by class index.
        scale: what raw values are divided by before normalisation: 255 for bytes, 1 for floats.
        mean: per channel, of scaled training pixels.
        std: per channel, of scaled training pixels.
        mirror: whether a mirror image keeps its class, so that augmentation may flip.
        whole_epochs: epochs for which a judge of the whole training set trains.
        judge_epochs: epochs for which a judge of a small set trains; None is the protocol's own number.
        whitening: replaces the normalisation of channels, or follows it.
        notes: in words, how a missing test split was made and what was not read.
        mirror_known: whether the data set or the user states ``mirror``; if not, it is a guess.
        numbers: by class index, the labels that were renumbered; None: labels are class indices as given.
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
    numbers: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        """Return the name, counts, image shape and number of classes in one line."""
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
    def planar(self) -> bool:
        """Whether both sides of an image have several pixels; others are not augmented, like vectors."""
        return min(self.shape[1:]) > 1

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored training set: its pixels, and one byte (two above 256 classes) per label."""
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
        """Smallest and largest scaled pixel to show: 0 and 1, or beyond if the training images are floats beyond."""
        if not self.train_images.is_floating_point():
            return 0.0, 1.0
        low, high = torch.aminmax(self.train_images)
        return min(float(low) / self.scale, 0.0), max(float(high) / self.scale, 1.0)

    def of_classes(self, classes: Sequence[str | int]) -> "ImageData":
        """Return the images of some classes, numbered in the given order, in the units of the whole data.

        Since the moments (or the whitening) stay those of all classes, sets distilled from parts can be joined. Judges
        on the whole part train for as many epochs as on the whole data.

        Args:
            classes: two or more, by name or by index.
        Raises:
            ConfigError: an unknown or repeated class, or fewer than two.
        """
        names = list(self.class_names)
        classes = classes.tolist() if isinstance(classes, Tensor) else classes
        if isinstance(classes, str) or not isinstance(classes, Sequence) or len(classes) < 2:
            raise ConfigError(f"a list of two or more classes is taken, got {classes!r}")
        chosen: list[int] = []
        for entry in classes:
            index = names.index(entry) if entry in names else entry
            if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= index < len(names):
                raise ConfigError(f"{self.name} has no class {entry!r}{did_you_mean(str(entry), names)}")
            chosen.append(int(index))
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"each class is taken once, got {list(classes)}")
        new_index = torch.full((len(names),), -1)
        new_index[torch.tensor(chosen)] = torch.arange(len(chosen))
        in_train, in_test = (new_index[labels] >= 0 for labels in (self.train_labels, self.test_labels))
        return replace(
            self,
            train_images=self.train_images[in_train],
            train_labels=new_index[self.train_labels[in_train]],
            test_images=self.test_images[in_test],
            test_labels=new_index[self.test_labels[in_test]],
            class_names=tuple(names[index] for index in chosen),
            numbers=self.numbers and tuple(self.numbers[index] for index in chosen),
        )

    def scaled(self, images: Tensor) -> Tensor:
        """Return raw images as float32 divided by ``scale``: bytes in [0, 1]."""
        return images.to(torch.float32) / self.scale

    def standardised(self, images: Tensor) -> Tensor:
        """Return raw images with each channel standardised by the training set's moments."""
        return standardised(self.scaled(images), self.mean, self.std)

    def normalise(self, images: Tensor) -> Tensor:
        """Return raw images ``(..., channels, height, width)`` in normalised (or whitened) units, float32."""
        if self.whitening is None:
            return self.standardised(images)
        return self.whitening.apply(self.standardised(images) if self.whitening.standardises else self.scaled(images))

    def denormalise(self, images: Tensor) -> Tensor:
        """Return normalised images as pixels in [0, 1], clamped, for pictures."""
        if self.whitening is not None:
            images = self.whitening.invert(images)
        if self.whitening is None or self.whitening.standardises:
            images = destandardised(images, self.mean, self.std)
        return to_unit_range(images, self.value_range)


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
        train: images ``(N, channels, height, width)``, ``(N, height, width)`` or, where :func:`channels_last` holds,
            ``(N, height, width, channels)``, and labels ``(N,)``.
        test: the same for testing; None holds out a fifth of each class, drawn from the seed; copies stay together.
        class_names: by class index; None numbers the classes.
        scale: divides raw values; None is 255 for bytes and 1 for floats.
        moments: mean and deviation per channel; None computes them from the training images.
        mirror: whether augmentation may flip.
        whole_epochs: epochs of a judge of the whole training set; None is :func:`enough_epochs`.
        judge_epochs: epochs of a judge of a small set; None is the protocol's own number.
        seed: of the split.
        notes: what was not read, in words.

    Raises:
        DataError: shapes that do not fit, NaN or infinite pixels, labels out of range, an empty class, a single class,
            training and test images of two types or scales.
    """
    num_classes = None if class_names is None else len(class_names)
    images, labels = check(f"training images of {name}", *train, num_classes=num_classes)
    notes += reading_notes("training images", train[0], images)
    names = _checked_names(name, labels, class_names)
    if test is None:
        first_alike = alike_images(images)
        repeats = int((first_alike != torch.arange(len(first_alike))).sum())
        notes += (f"test: {TEST_SHARE:.0%} of the images of each class, held out of training, seed {seed}",)
        notes += tuple(repeated_note(repeats, len(first_alike), "images"))
        images, labels, test_images, test_labels = split(name, images, labels, first_alike, seed, class_names)
    else:
        test_images, test_labels = check(f"test images of {name}", *test, num_classes=len(names))
        notes += reading_notes("test images", test[0], test_images)
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


def _checked_names(name: str, labels: Tensor, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the class names; numbers if none are given.

    Raises:
        DataError: a single class, or one without a training image.
    """
    count = len(given) if given is not None else int(labels.max()) + 1
    if given is None and count > len(labels):  # refuse before a huge label allocates a name for each number
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
    """Refuse training and test images of different shapes, types or scales, and constant training images."""
    if test_images.shape[1:] != images.shape[1:]:
        raise DataError(
            f"test images of {name} are {tuple(test_images.shape[1:])} and training images {tuple(images.shape[1:])} "
            "(channels, height, width); they must agree"
        )
    ranges = [extremes(part) for part in (images, test_images)]
    largest = [max(map(abs, ends)) for ends in ranges]
    scales_differ = min(largest) > 0 and max(largest) > SCALES_APART * min(largest)  # e.g. [0, 1] and [0, 255]
    if images.dtype != test_images.dtype or scales_differ:
        train_range, test_range = (
            f"{str(part.dtype).removeprefix('torch.')} from {low:g} to {high:g}"
            for part, (low, high) in zip((images, test_images), ranges, strict=True)
        )
        raise DataError(
            f"training images of {name} are {train_range}, test images {test_range}; give both in one type and scale"
        )
    low, high = ranges[0]
    if low == high:
        raise DataError(f"the training images of {name} are all alike: every pixel is {low:g}")


def enough_epochs(images: int) -> int:
    """Return a judge's epochs on a whole training set of ``images`` images: 30, or 1,000 updates if that is more."""
    return max(WHOLE_EPOCHS, -(-WHOLE_UPDATES // -(-images // WHOLE_BATCH)))


def channels_last(images: Tensor) -> bool:
    """Return whether images are ``(N, height, width, channels)``, as NumPy's mostly are, and can hardly be otherwise.

    So are 3 or 4 values per pixel of sides above 4, and one value per pixel of a square.
    """
    if images.ndim != 4 or min(images.shape[1:3]) <= 4:
        return False
    height, width, channels = images.shape[1:]
    return channels in (3, 4) or (channels == 1 and height == width)


def reading_notes(what: str, given: Tensor, images: Tensor) -> tuple[str, ...]:
    """Return notes that :func:`check` read channels from the last axis, and whole numbers as bytes, if it did.

    Args:
        what: whose images they are.
        given: as they were given.
        images: as they were read.
    """
    axes = (f"{what}: {tuple(given.shape)} is read as (N, height, width, channels)",) * channels_last(given)
    is_converted = images.dtype != given.dtype and not given.is_floating_point()
    return axes + (f"{what}: whole numbers from 0 to 255 are read as bytes",) * is_converted


def as_pixels(images: Tensor, what: str) -> Tensor:
    """Return bytes and floats as they are, and whole numbers from 0 to 255, of any integer type, as bytes.

    Raises:
        DataError: other images.
    """
    if images.is_floating_point() or images.dtype == torch.uint8:
        return images
    low, high = extremes(images)
    if low >= 0 and high <= BYTE and not images.is_complex() and images.dtype != torch.bool:
        return images.to(torch.uint8)
    got = f"got {images.dtype} from {low:g} to {high:g}; images.astype('float32') makes floats of an array"
    raise DataError(f"{what}: pixels must be bytes (0 to 255) or floats, {got}")


def extremes(images: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of images; 0 and 0 if there are none."""
    if not images.numel():
        return 0.0, 0.0
    if images.is_complex() or images.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch reduces none of these
        values = images.real.cpu().numpy()
        return float(values.min()), float(values.max())
    return float(images.amin()), float(images.amax())  # unlike torch.aminmax these copy no strided images


def check(what: str, images: Tensor, labels: Tensor, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return images with a channel axis and int64 labels once both are valid.

    Shapes:
        images ``(N, channels, height, width)``, ``(N, height, width)`` or, where :func:`channels_last` holds, ``(N,
        height, width, channels)``, floats, bytes or other integers from 0 to 255; labels ``(N,)``; returns ``(N,
        channels, height, width)``, uint8 or float32, and ``(N,)``.
    Raises:
        DataError: see :func:`build`.
    """
    images, labels = as_pixels(images.detach(), what), labels.detach()
    if images.ndim == 3:
        images = images[:, None]
    elif channels_last(images):
        images = images.movedim(-1, 1).contiguous()
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
        hint = "; vectors belong to a task of your own (PointTask in CONTRIBUTING.md)" if images.ndim == 2 else ""
        raise DataError(
            f"{what}: expected images (N, channels, height, width) and labels (N,) with N > 0, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}{hint}"
        )
    channels, height, width = images.shape[1:]
    if not channels * height * width:
        raise DataError(f"{what}: images of shape {tuple(images.shape[1:])} have no pixels")
    if channels > 4 and width in (3, 4):
        raise DataError(
            f"{what}: {tuple(images.shape)} looks like (N, height, width, channels) of small sides, and (N, channels, "
            "height, width) is expected: give images.permute(0, 3, 1, 2) of a tensor, images.transpose(0, 3, 1, 2) of "
            "an array"
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
    """Hold out a fifth of each class (at least one image), drawn from the seed; copies of an image stay together.

    Shapes:
        images ``(N, channels, height, width)``; labels ``(N,)`` int64; alike ``(N,)`` from
        :func:`~mmdistill.image.repeated.alike_images`; returns training images and labels, then test ones.
    Raises:
        DataError: a class has fewer than two images, or no class has two different ones.
    """
    counts = torch.bincount(labels)
    if int(counts.min()) < 2:
        called = f"class {counts.argmin()}" if class_names is None else f"class {class_names[int(counts.argmin())]!r}"
        raise DataError(f"{name} has no test split, and {called} has too few images to hold one out; give test images")
    test = held_out(alike, labels, Draws(seed, ("split",)).permutation(len(labels)), TEST_SHARE)
    if not test.any():
        raise DataError(f"{name} has no test split, and too few different images to hold one out; give test images")
    return images[~test], labels[~test], images[test], labels[test]
