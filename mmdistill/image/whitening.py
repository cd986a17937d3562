"""ZCA whitening in the field's three forms, which are not interchangeable.

======= ================================ ======================== ======================================
kind    input                            centred by               added to the covariance's eigenvalues
======= ================================ ======================== ======================================
mtt     pixels in [0, 1]                 the mean image           0.1
frepo   channels standardised            the mean image           0.1 times their mean
kip     channels standardised            each image's own mean,   0.1 times their mean
                                         then divided by its norm
======= ================================ ======================== ======================================

The matrix is fitted to the training images once and cached. It travels with a distilled set.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from mmdistill.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from mmdistill.execution.precision import matrix_products
from mmdistill.image.data import ImageData
from mmdistill.names import known_name
from mmdistill.runtime import cache_folder, remove_stale_parts
from mmdistill.store import read_tensors, short_digest, write_tensors

logger = logging.getLogger(__name__)

Kind = Literal["mtt", "frepo", "kip"]
KINDS: tuple[Kind, ...] = ("mtt", "frepo", "kip")
RIDGE = 0.1
LARGEST = 12_288
"""The most values of an image that is whitened: 3 x 64 x 64, as in Tiny-ImageNet; larger covariances take too much."""
FAINT = (
    "the variances of all pixels sum to less than the 0.1 that mtt's whitening adds to that of each direction, so it "
    "hardly whitens, and leaves values near 0, from which networks learn little; it is meant for pixels from 0 to 1: "
    "scale the images so, or take frepo's, which is the same at every scale"
)
"""The note on images that are too faint for mtt's whitening."""
CHUNK = 2000
"""Images per chunk when the covariance is summed."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """An affine map of flattened images that makes their covariance nearly the identity.

    Args:
        kind: see the module's description.
        mean: subtracted first, ``(d,)``.
        matrix: multiplied then, ``(d, d)``, symmetric.
        inverse: the matrix's inverse.
        offset: for ``kip``, the training images' average mean, which :meth:`invert` gives to every picture.
        norm: for ``kip``, the training images' average norm, likewise.
    """

    kind: Kind
    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    offset: float = 0.0
    norm: float = 1.0
    _by_device: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        """Return the kind and the number of values in one line."""
        return f"Whitening({self.kind}, of {len(self.mean):,} numbers)"

    @property
    def standardises(self) -> bool:
        """Whether the input is images with standardised channels."""
        return self.kind != "mtt"

    @property
    def notes(self) -> tuple[str, ...]:
        """A note where ``mtt``'s ridge, which is meant for pixels in [0, 1], exceeds all variances together."""
        if self.kind != "mtt":
            return ()
        # The inverse is U (S + ridge)^(1/2) U^T, whose squares sum to the trace of S + ridge.
        variance = float(self.inverse.double().square().sum()) - RIDGE * len(self.inverse)
        return (FAINT,) if variance < RIDGE else ()

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images ``(..., channels, height, width)`` in the kind's input units."""
        flat = images.flatten(-3)
        if self.kind == "kip":
            flat, _, _ = unit_images(flat)
        mean, matrix = self._on(flat.device)
        # Free memory decides whether images are whitened ahead or in a step, so both use the same precision.
        with matrix_products("float32", flat.device):
            return ((flat - mean) @ matrix).view_as(images)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and matrix on a device; cached, since a copy waits for the device."""
        if device not in self._by_device:
            self._by_device[device] = self.mean.to(device), self.matrix.to(device)
        return self._by_device[device]

    def invert(self, images: Tensor) -> Tensor:
        """Return whitened images in the input units; for ``kip``, with the training images' average mean and norm."""
        flat = images.flatten(-3) @ self.inverse.to(images) + self.mean.to(images)
        return (flat * self.norm + self.offset).view_as(images)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a whitened set carries."""
        return {"whitening.mean": self.mean, "whitening.matrix": self.matrix}


def unit_images(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return flattened images centred and divided by their norm, then their means and norms, ``(..., 1)``.

    An image without contrast becomes 0. Float64 decides that: in float32 the mean of equal values may differ from them.
    """
    wide = flat.double()
    offset = wide.mean(-1, keepdim=True)
    centred = wide - offset
    norm = centred.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
    return (centred / norm).to(flat), offset.to(flat), norm.to(flat)


def whitening_matrix(covariance: Tensor, ridge: float, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """Return ``U (S + ridge)^(-1/2) U^T`` of a covariance ``U S U^T``, and its inverse.

    Args:
        covariance: ``(d, d)``.
        ridge: added to the eigenvalues.
        samples: the number of images; if below d, directions without variance are left unscaled.
    """
    values, vectors = torch.linalg.eigh(covariance)
    roots = (values.clamp_min(0) + ridge).sqrt()
    if samples is not None and samples < len(roots):
        # Rounding decides which eigenvectors eigh returns in the null space, so all its directions are treated alike.
        # The rank may be below the number of samples: a mean was subtracted, or pixels are constant.
        roots[values <= len(roots) * torch.finfo(values.dtype).eps * values[-1]] = 1.0
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def fit_whitening(data: ImageData, kind: Kind) -> Whitening:
    """Fit a whitening to the training images, in float64.

    Raises:
        DataError: all images are alike.
    """
    count, size = len(data.train_images), data.train_images[0].numel()
    total = torch.zeros(size, dtype=torch.float64)
    second_moment = torch.zeros(size, size, dtype=torch.float64)
    offsets, norms = 0.0, 0.0
    for chunk in torch.split(data.train_images, CHUNK):
        flat = (data.scaled(chunk) if kind == "mtt" else data.standardised(chunk)).cpu().flatten(1).double()
        if kind == "kip":
            flat, offset, norm = unit_images(flat)
            offsets, norms = offsets + float(offset.sum()), norms + float(norm.sum())
        total += flat.sum(0)
        second_moment += flat.T @ flat
    if kind == "kip":
        mean, covariance = torch.zeros_like(total), second_moment.div_(count)
    else:
        mean = total / count
        covariance = second_moment.addr_(mean, mean, alpha=-count).div_(count - 1 if kind == "mtt" else count)
    if not covariance.trace() > 0:
        raise DataError(f"the training images of {data.name} are all alike, so nothing can be whitened; leave it out")
    ridge = RIDGE if kind == "mtt" else RIDGE * float(covariance.trace()) / size
    matrix, inverse = whitening_matrix(covariance, ridge, None if kind == "mtt" else count)
    offset_mean, norm_mean = (offsets / count, norms / count) if kind == "kip" else (0.0, 1.0)
    return Whitening(kind, mean.float(), matrix.float(), inverse.float(), offset_mean, norm_mean)


def whitened(data: ImageData, kind: str) -> ImageData:
    """Return the data with a whitening, loaded from the cache or fitted to the training images.

    Images that are too faint for ``mtt``'s get a note (:data:`FAINT`).

    Args:
        data: not yet whitened.
        kind: ``mtt``, ``frepo`` or ``kip``.

    Raises:
        ConfigError: an unknown kind, or data that are whitened already.
        DataError: all images are alike.
        UnsupportedError: images with too many values for a matrix over all of them.
    """
    known_kind = cast(Kind, known_name("whitening", kind, KINDS))
    if data.whitening is not None:
        raise ConfigError(f"{data.name} is whitened already ({data.whitening.kind})")
    size = data.train_images[0].numel()
    if size > LARGEST:
        raise UnsupportedError(
            f"whitening images of {size:,} values needs a matrix of {4 * size**2 / 2**30:.0f} GiB; resize them to at "
            f"most {LARGEST:,} values, or leave --whiten out"
        )
    units = short_digest(repr((data.scale, data.mean, data.std)))
    path = cache_folder() / "whitening" / f"{data.fingerprint}-{units}-{known_kind}.safetensors"
    whitening = _load(path, known_kind)
    if whitening is None:
        whitening = fit_whitening(data, known_kind)
        _save(path, whitening)
    return replace(data, whitening=whitening, notes=(*data.notes, *whitening.notes))


def _load(path: Path, kind: Kind) -> Whitening | None:
    """Return a cached whitening; None if its file is missing or damaged."""
    try:
        tensors, _ = read_tensors(path)
        return Whitening(kind, tensors["mean"], tensors["matrix"], tensors["inverse"], *tensors["scalars"].tolist())
    except (CheckpointError, KeyError, TypeError, OSError):
        return None


def _save(path: Path, whitening: Whitening) -> None:
    """Cache a whitening; warn if its file cannot be written."""
    scalars = torch.tensor([whitening.offset, whitening.norm], dtype=torch.float64)
    tensors = {"mean": whitening.mean, "matrix": whitening.matrix, "inverse": whitening.inverse, "scalars": scalars}
    remove_stale_parts(path.parent)
    try:
        write_tensors(path, tensors)
    except OSError as error:
        logger.warning("the whitening could not be cached at %s (%s); it will be fitted again", path, error)
