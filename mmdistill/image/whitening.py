"""ZCA whitening in the three forms of the field, which differ and are not interchangeable.

======= ================================ ======================== ======================================
kind    before it                        centred by               added to the covariance's eigenvalues
======= ================================ ======================== ======================================
mtt     pixels in [0, 1]                 the mean image           0.1
frepo   channels standardised            the mean image           0.1 times their mean
kip     channels standardised            each image's own mean,   0.1 times their mean
                                         then divided by its norm
======= ================================ ======================== ======================================

The matrix is fitted to the training images once and kept in the user's cache folder. It travels with a distilled set.
"""

import hashlib
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
from mmdistill.store import read_tensors, write_tensors

logger = logging.getLogger(__name__)

Kind = Literal["mtt", "frepo", "kip"]
KINDS: tuple[Kind, ...] = ("mtt", "frepo", "kip")
RIDGE = 0.1
LARGEST = 12_288
"""Values of an image up to which its covariance is worth holding: 3 x 64 x 64, as of Tiny-ImageNet."""
CHUNK = 2000
"""Images per step of the covariance."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """An affine map of flattened images that makes their covariance nearly the identity.

    Args:
        kind: see the module's description.
        mean: subtracted first, ``(d,)``.
        matrix: applied then, ``(d, d)``, symmetric.
        inverse: its inverse.
        offset: mean over images of each one's own mean, for ``kip``, to which pictures go back.
        norm: mean over images of each one's own norm, likewise.
    """

    kind: Kind
    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    offset: float = 0.0
    norm: float = 1.0
    _placed: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        """Return in one line which whitening this is, and of how many numbers."""
        return f"Whitening({self.kind}, of {len(self.mean):,} numbers)"

    @property
    def standardises(self) -> bool:
        """Whether channels are standardised before."""
        return self.kind != "mtt"

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images ``(..., channels, height, width)`` in the units that the kind starts from."""
        flat = images.flatten(-3)
        if self.kind == "kip":
            flat, _, _ = unit_images(flat)
        mean, matrix = self._on(flat.device)
        with matrix_products("float32", flat.device):  # whether in a step or before it, which free memory decides
            return ((flat - mean) @ matrix).view_as(images)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and matrix on a device; kept, since a copy waits for it."""
        if device not in self._placed:
            self._placed[device] = self.mean.to(device), self.matrix.to(device)
        return self._placed[device]

    def invert(self, images: Tensor) -> Tensor:
        """Return whitened images in those units; of ``kip``, with the training images' mean brightness and contrast."""
        flat = images.flatten(-3) @ self.inverse.to(images) + self.mean.to(images)
        return (flat * self.norm + self.offset).view_as(images)

    def tensors(self) -> dict[str, Tensor]:
        """Return what must travel with a whitened set."""
        return {"whitening.mean": self.mean, "whitening.matrix": self.matrix}


def unit_images(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return flattened images centred and divided by their norm, and both numbers of each, ``(..., 1)``."""
    offset = flat.mean(-1, keepdim=True)
    centred = flat - offset
    norm = centred.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return centred / norm, offset, norm


def whitening_matrix(covariance: Tensor, ridge: float, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """Return ``U (S + ridge)^(-1/2) U^T`` of a covariance ``U S U^T``, and its inverse.

    Args:
        covariance: ``(d, d)``.
        ridge: added to the eigenvalues.
        samples: where fewer than d, only the directions in which these vary are scaled, and the rest stay as they are.
    """
    values, vectors = torch.linalg.eigh(covariance)
    roots = (values.clamp_min(0) + ridge).sqrt()
    if samples is not None and samples < len(roots):
        # Fewer than there are samples, where a mean was taken off or pixels are constant; which vectors eigh gives of
        # directions without variance is rounding's choice, so these are treated alike.
        roots[values <= len(roots) * torch.finfo(values.dtype).eps * values[-1]] = 1.0
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def fit_whitening(data: ImageData, kind: Kind) -> Whitening:
    """Fit a whitening to the training images, in float64.

    Raises:
        DataError: images that are all alike.
    """
    count, size = len(data.train_images), data.train_images[0].numel()
    total = torch.zeros(size, dtype=torch.float64)
    second = torch.zeros(size, size, dtype=torch.float64)
    offsets, norms = 0.0, 0.0
    for part in torch.split(data.train_images, CHUNK):
        flat = (data.scaled(part) if kind == "mtt" else data.standardised(part)).cpu().flatten(1).double()
        if kind == "kip":
            flat, offset, norm = unit_images(flat)
            offsets, norms = offsets + float(offset.sum()), norms + float(norm.sum())
        total += flat.sum(0)
        second += flat.T @ flat
    if kind == "kip":
        mean, covariance = torch.zeros_like(total), second.div_(count)
    else:
        mean = total / count
        covariance = second.addr_(mean, mean, alpha=-count).div_(count - 1 if kind == "mtt" else count)
    if not covariance.trace() > 0:
        raise DataError(f"the training images of {data.name} are all alike, so nothing can be whitened; leave it out")
    ridge = RIDGE if kind == "mtt" else RIDGE * float(covariance.trace()) / size
    matrix, inverse = whitening_matrix(covariance, ridge, None if kind == "mtt" else count)
    offset_mean, norm_mean = (offsets / count, norms / count) if kind == "kip" else (0.0, 1.0)
    return Whitening(kind, mean.float(), matrix.float(), inverse.float(), offset_mean, norm_mean)


def whitened(data: ImageData, kind: str) -> ImageData:
    """Return the data with a whitening, fitted to their training images or taken from the cache folder.

    Args:
        data: not yet whitened.
        kind: ``mtt``, ``frepo`` or ``kip``.

    Raises:
        ConfigError: an unknown kind, or data that are whitened already.
        DataError: images that are all alike.
        UnsupportedError: images too large for a matrix over all their values.
    """
    found = cast(Kind, known_name("whitening", kind, KINDS))
    if data.whitening is not None:
        raise ConfigError(f"{data.name} is whitened already ({data.whitening.kind})")
    size = data.train_images[0].numel()
    if size > LARGEST:
        raise UnsupportedError(
            f"whitening images of {size:,} values needs a matrix of {4 * size**2 / 2**30:.0f} GiB; resize them to at "
            f"most {LARGEST:,} values, or leave --whiten out"
        )
    units = hashlib.blake2b(repr((data.scale, data.mean, data.std)).encode(), digest_size=4).hexdigest()
    path = cache_folder() / "whitening" / f"{data.fingerprint}-{units}-{found}.safetensors"
    kept = _kept(path, found)
    if kept is None:
        kept = fit_whitening(data, found)
        _keep(path, kept)
    return replace(data, whitening=kept)


def _kept(path: Path, kind: Kind) -> Whitening | None:
    """Return the whitening that a file of the cache folder keeps; None of one that is missing or damaged."""
    try:
        tensors, _ = read_tensors(path)
        return Whitening(kind, tensors["mean"], tensors["matrix"], tensors["inverse"], *tensors["scalars"].tolist())
    except (CheckpointError, KeyError, TypeError, OSError):
        return None


def _keep(path: Path, made: Whitening) -> None:
    """Keep a whitening in a file of the cache folder; where that cannot be written, a warning says so."""
    scalars = torch.tensor([made.offset, made.norm], dtype=torch.float64)
    remove_stale_parts(path.parent)
    try:
        write_tensors(path, {"mean": made.mean, "matrix": made.matrix, "inverse": made.inverse, "scalars": scalars})
    except OSError as error:
        logger.warning("the whitening could not be cached at %s (%s); it will be fitted again", path, error)
