"""The values of options that take one of a few words, apart from torch so that ``--help`` is quick."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from mmdistill.open_table import OpenTable

if TYPE_CHECKING:
    from torch import Tensor

    from mmdistill.runtime import Draws

Rule = Callable[["Tensor", "Tensor | None", "Tensor", "Draws"], "Tensor"]
"""Chooses samples: ``(embedding, labels, counts, draws) -> indices``, see :data:`mmdistill.rules.RULES`."""
InitKind = str
"""What synthetic samples start from: one of :func:`starts`."""
CORESETS = ("herding", "k-center", "k-means", "craig")
"""This package's selections of real samples that read the samples."""
RULES: OpenTable[Rule] = OpenTable(reserved=("random", "whole", "real", "noise", "craig"))
"""Filled by :mod:`mmdistill.rules`; import it from there."""
LabelKind = Literal["hard", "soft", "unrestricted", "teacher"]
"""The targets of synthetic samples; see :func:`mmdistill.labels.make_labels`."""
Schedule = Literal["published", "reduced"]
"""A method's settings: its paper's, or short ones for a CPU."""
CompileMode = Literal["auto", "on", "off"]
"""Whether steps are compiled (see :mod:`mmdistill.execution.compilation`)."""
Precision = Literal["auto", "float32", "tf32", "mixed", "bf16"]
"""The number formats that a step computes in (see :mod:`mmdistill.execution.precision`)."""
InnerOptimizer = Literal["sgd", "adam"]
"""The optimizer of unrolled students."""
MaskedBy = Literal["depth", "distance"]
"""Which parameters a comparison of trajectories leaves out: the shallowest, or those that end nearest to the target."""
Pacing = Literal["linear", "root", "geometric"]
"""What grows linearly over epochs: the share that experts train on, its square or its logarithm."""
TrainingPrecision = Literal["float32", "bf16"]
"""Number formats in training experts and judges: float32 (on CUDA, with convolutions in TF32) or bfloat16."""
SplitBy = Literal["random", "time", "leave-one-out"]
"""How interactions are split into training and test data."""
Units = Literal["normalised", "pixels"]
"""Units of imported images: as networks read them, or between black and white."""


def known_coresets() -> tuple[str, ...]:
    """Return the names of all selections of real samples that read the samples, those of a user's code last."""
    return tuple(dict.fromkeys((*CORESETS, *RULES)))


def known_selections() -> tuple[str, ...]:
    """Return the names of all selections of real samples: random ones, and those that read the samples."""
    return ("random", *known_coresets())


def starts() -> tuple[str, ...]:
    """Return the names of starts of synthetic samples: random real samples, noise, or a selection of real samples."""
    return ("real", "noise", *known_coresets())
