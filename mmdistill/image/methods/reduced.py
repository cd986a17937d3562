"""Reduced schedules: what a method does on images of 28 x 28 or 32 x 32 in minutes of one CPU core, with width 32.

They stand beside the published settings, never in their place, and every number measured with them says so. Where a
rate was compared with others, that was on held-out training images; each family says where.
"""

from dataclasses import replace

from mmdistill.image.methods.aligned import ALIGNED_REDUCED
from mmdistill.image.methods.attention import ATTENTION_REDUCED
from mmdistill.image.methods.calibrated import CALIBRATED_REDUCED, CALIBRATED_REDUCED_COLOUR
from mmdistill.image.methods.enriched import ENRICHED_REDUCED, ENRICHED_REDUCED_COLOUR
from mmdistill.image.methods.generative import STORAGE_REDUCED
from mmdistill.image.methods.implicit import IMPLICIT_REDUCED
from mmdistill.image.methods.inversion import INVERSION_REDUCED, INVERSION_REDUCED_COLOUR
from mmdistill.image.methods.matching import MATCHING_REDUCED, MATCHING_REDUCED_COLOUR
from mmdistill.image.methods.realistic import REALISTIC_REDUCED, REALISTIC_REDUCED_COLOUR
from mmdistill.image.methods.ridge import RIDGE_REDUCED
from mmdistill.image.methods.unrolled_reduced import UNROLLED_REDUCED
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS
from mmdistill.settings import OptimizerSpec, Settings


def _dm(ipc: int) -> Settings:
    rate = OptimizerSpec("sgd", 10.0, 0.5)
    return Settings(steps=600 if ipc < 10 else 1000, real_batch=32, optimizers={"codes": rate}, augment=True)


def _dm_in_colour(ipc: int) -> Settings:
    """Take the published rate at few images per class, where ten times as much turns them into noise.

    Of ten and more each has so small a share of its class's mean that the fast rate serves, annealed, since gradients
    of wide networks are large.
    """
    fast = ipc >= 10
    return replace(_dm(ipc), optimizers={"codes": OptimizerSpec("sgd", 10.0 if fast else 1.0, 0.5, cosine=fast)})


GREYSCALE: dict[str, Method] = {
    **MATCHING_REDUCED,
    **ATTENTION_REDUCED,
    **STORAGE_REDUCED,
    **RIDGE_REDUCED,
    **UNROLLED_REDUCED,
    **REALISTIC_REDUCED,
    **CALIBRATED_REDUCED,
    **ENRICHED_REDUCED,
    **ALIGNED_REDUCED,
    **IMPLICIT_REDUCED,
    **INVERSION_REDUCED,
    "dm": replace(CORE_METHODS["dm"], settings=_dm),
}
"""Reduced schedules for MNIST and its relatives."""

COLOUR: dict[str, Method] = {
    **GREYSCALE,
    **MATCHING_REDUCED_COLOUR,
    **REALISTIC_REDUCED_COLOUR,
    **CALIBRATED_REDUCED_COLOUR,
    **ENRICHED_REDUCED_COLOUR,
    **INVERSION_REDUCED_COLOUR,
    "dm": replace(CORE_METHODS["dm"], settings=_dm_in_colour),
}
"""MNIST's steps and rates, as they are, for ten classes in colour, but for DM's and DANCE's, which were compared on
held-out images, and NCFM's, which are DANCE's."""

REDUCED = {"mnist": GREYSCALE, "fashion-mnist": GREYSCALE, "cifar10": COLOUR, "svhn": COLOUR}
"""By data set name."""
