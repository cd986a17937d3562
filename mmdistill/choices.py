"""The words that options take where they take a few: written once, where ``--help`` reads them without torch."""

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
"""Selections of real samples that look at the samples, those that this package has."""
RULES: OpenTable[Rule] = OpenTable(reserved=("random", "whole", "real", "noise", "craig"))
"""Filled by :mod:`mmdistill.rules`, where it is to be imported from."""
LabelKind = Literal["hard", "soft", "unrestricted", "teacher"]
"""The targets of synthetic samples; see :func:`mmdistill.labels.make_labels`."""
Schedule = Literal["published", "reduced"]
"""Whose settings a method has: its paper's, or short ones for a CPU."""
CompileMode = Literal["auto", "on", "off"]
"""Whether steps are compiled (see :mod:`mmdistill.execution.compilation`)."""
Precision = Literal["auto", "float32", "tf32", "mixed", "bf16"]
"""The number formats that a step computes in (see :mod:`mmdistill.execution.precision`)."""
InnerOptimizer = Literal["sgd", "adam"]
"""By which unrolled students train."""
MaskedBy = Literal["depth", "distance"]
"""Which parameters a comparison of trajectories leaves out: the shallowest, or those that end nearest to the target."""
Pacing = Literal["linear", "root", "geometric"]
"""How the share grows that experts train on: its value, its square or its logarithm evenly."""
TrainingPrecision = Literal["float32", "bf16"]
"""What experts and judges train in: float32, of which CUDA computes convolutions in TF32, or bfloat16."""
SplitBy = Literal["random", "time"]
"""What divides interactions into those that train and those that test."""
Units = Literal["normalised", "pixels"]
"""What imported images count in: as networks read them, or between black and white."""


def known_coresets() -> tuple[str, ...]:
    """Return the names of all selections of real samples that look at the samples; last what a user's code added."""
    return tuple(dict.fromkeys((*CORESETS, *RULES)))


def starts() -> tuple[str, ...]:
    """Return what synthetic samples may start from: random real samples, noise, or real samples of a selection."""
    return ("real", "noise", *known_coresets())
