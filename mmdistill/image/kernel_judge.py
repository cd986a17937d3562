"""Judges in closed form: kernel ridge regression on a set, under the kernel of an infinitely wide network.

KIP's sets are meant to be used this way. ``ntk`` is a fully connected network with one hidden layer, ``ntk-conv`` three
convolutions without pooling; ``nngp`` in place of ``ntk`` trains the last layer alone, and ``d2``, ``d3``, ... sets the
number of hidden layers or convolutions: ``nngp-d2``, ``ntk-conv-d5``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdistill.classification import scored
from mmdistill.errors import UnsupportedError
from mmdistill.execution.portions import samples_at_once
from mmdistill.image.augment import image_inputs
from mmdistill.labels import regression_targets
from mmdistill.names import canonical
from mmdistill.objectives.infinite_width import ConvolutionalKernel, FullyConnectedKernel, KernelKind, WideKernel
from mmdistill.objectives.kernel_ridge import ridge_solution
from mmdistill.task import Batch, Scores, one_tensor

RIDGE = 1e-6
"""The ridge, times the kernel's mean diagonal, as in KIP's distillation."""
MOST, MOST_CONVOLUTIONAL = 10_000, 1000
"""The most samples of one system: its matrix takes 0.8 GB; a convolutional kernel compares their pixels in minutes."""
TEST_CHUNK = 1000
"""Test images whose kernel is computed at once; fewer if they are large."""
NOTE = "ridge regression in closed form, without randomness of its own"
KERNELS = ("ntk", "ntk-conv", "nngp", "nngp-conv")
"""Names without options, for messages."""
_NAME = re.compile(r"(ntk|nngp)(-conv)?(?:-d([1-9]\d*))?")


def kernel_judge(name: str) -> "KernelJudge | None":
    """Return the judge named ``ntk`` or ``nngp`` with options; None if the name is not a kernel's."""
    match = _NAME.fullmatch(canonical(name))
    if match is None:
        return None
    kind: KernelKind = "ntk" if match[1] == "ntk" else "nngp"
    convolutional = match[2] is not None
    default_depth = 3 if convolutional else 1
    depth = int(match[3] or default_depth)
    spelled = f"{kind}{match[2] or ''}" + (f"-d{depth}" if depth != default_depth else "")
    kernel = ConvolutionalKernel(kind, depth) if convolutional else FullyConnectedKernel(kind, depth)
    return KernelJudge(spelled, kernel)


@dataclass(frozen=True)
class KernelJudge:
    r"""Predicts test images by :math:`K_{ts} (K_{ss} + \lambda \mathrm{tr}(K_{ss})/n\, I)^{-1} Y_s` in float64.

    From class indices (as one-hot rows) and probabilities, 1/C is subtracted; other soft labels stay as they are. Each
    squared error has its sample's weight.

    Args:
        name: for the scores.
        kernel: of images in the set's units.

    Source: Nguyen et al., ICLR 2021.
    """

    name: str
    kernel: WideKernel

    def require(self, samples: int) -> None:
        """Check that one system can be solved for ``samples`` samples.

        Raises:
            UnsupportedError: there are too many.
        """
        most = MOST_CONVOLUTIONAL if isinstance(self.kernel, ConvolutionalKernel) else MOST
        if samples > most:
            raise UnsupportedError(f"{self.name} solves for at most {most:,} samples at once, got {samples:,}")

    @torch.no_grad()
    def score(
        self, data: Batch, classes: int, normalise: Callable[[Tensor], Tensor], test: tuple[Tensor, Tensor]
    ) -> Scores:
        """Return the scores on raw test images and labels, one value each.

        Raises:
            UnsupportedError: more samples than one system is solved for.
        """
        images, labels = test
        predict = self.predictor(data, classes)
        parts = torch.split(images, samples_at_once(TEST_CHUNK, images))
        predicted = torch.cat([predict(normalise(part)).argmax(1) for part in parts])
        return scored(self.name, (predicted == labels)[None], labels, (NOTE,))

    def predictor(self, data: Batch, classes: int) -> Callable[[Tensor], Tensor]:
        """Fit a flat batch; the result maps ``(m, *shape)`` images to ``(m, C)`` float64 scores.

        Raises:
            UnsupportedError: more samples than one system is solved for.
            ShapeError: targets that are a named dict.
        """
        images, targets = image_inputs(data.inputs), one_tensor(data.targets, "ridge regression")
        self.require(len(images))
        images = images.double()
        root = data.weight.double().sqrt()[:, None]  # the ridge follows the kernel, so the unit of weights is free
        weighted = root * regression_targets(targets, classes)
        solution = root * ridge_solution(root * self.kernel.matrix(images, images) * root.T, weighted, RIDGE, "trace")
        return lambda inputs: self.kernel.matrix(inputs.double(), images) @ solution
