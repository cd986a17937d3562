"""Samples times one learned linear map, which preconditions their optimisation and is multiplied out at the end."""

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError
from mmdistill.labels import Labels
from mmdistill.parameterizations.base import stored_tensor_bytes
from mmdistill.parameterizations.raw import Raw
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs, one_tensor

LARGEST = 16_384
"""Most values per sample: the map has as many numbers squared, at most 2^28, and its optimizer twice as many."""


class LinearMap(nn.Module):
    """One matrix for all samples, initially the identity.

    Args:
        size: values per sample.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(size))

    def forward(self, samples: Tensor) -> Tensor:
        """Return ``(M, ...)`` samples, each flattened to a row and multiplied by the matrix."""
        return (samples.flatten(1) @ self.matrix).view_as(samples)


class Transformed(Raw):
    """Learn samples and one linear map of their values, S = X A, with A initially the identity.

    A moves all samples together along directions in which single pixels would move slowly. S has as many numbers as X
    and is stored in its place, so the budget counts samples and labels but not A.

    Args:
        inputs: initial samples ``(M, ...)``.
        labels: the samples' targets.
        classes: ``(M,)`` the class of each sample.
        num_classes: C.

    Raises:
        ConfigError: samples of more values than :data:`LARGEST`.
        ShapeError: samples are a named dict.

    Source: Loo et al., NeurIPS 2022, published implementation.
    """

    def __init__(self, inputs: Inputs, labels: Labels, classes: Tensor | None, num_classes: int | None) -> None:
        inputs = one_tensor(inputs, "a linear map of samples")
        size = inputs[0].numel()
        if size > LARGEST:
            raise ConfigError(
                f"a linear map of samples of {size} values has {size} x {size} numbers; at most {LARGEST} values are "
                "taken, so use smaller images or raw samples"
            )
        super().__init__(inputs, labels, classes, num_classes)
        self.decoder = LinearMap(size).to(inputs)

    def forward(self, draws: Draws) -> Batch:
        """Return the mapped samples."""
        batch = super().forward(draws)
        return batch._replace(inputs=self.decoder(batch.inputs))

    def stored_bytes(self) -> int:
        """Return the bytes of the mapped samples and their labels."""
        tensors = (tensor for name, tensor in self.state_dict().items() if not name.startswith("decoder."))
        return sum(map(stored_tensor_bytes, tensors))
