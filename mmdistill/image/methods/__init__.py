"""Methods of the image domain, family by family, with presets and reduced schedules by data set."""

from collections.abc import Iterable, Mapping
from itertools import chain

from mmdistill.image.methods.aligned import ALIGNED
from mmdistill.image.methods.attention import ATTENTION
from mmdistill.image.methods.calibrated import CALIBRATED
from mmdistill.image.methods.enriched import ENRICHED
from mmdistill.image.methods.family import Conditions, MethodFamily
from mmdistill.image.methods.generative import GENERATIVE
from mmdistill.image.methods.implicit import IMPLICIT
from mmdistill.image.methods.inversion import INVERSION
from mmdistill.image.methods.matching import MATCHING
from mmdistill.image.methods.realistic import REALISTIC
from mmdistill.image.methods.ridge import KERNEL_RIDGE
from mmdistill.image.methods.trajectory import TRAJECTORY
from mmdistill.image.methods.unrolled import UNROLLED
from mmdistill.method import Method, MethodTable
from mmdistill.methods import CORE_METHODS

METHOD_FAMILIES: tuple[MethodFamily, ...] = (
    MATCHING,
    ATTENTION,
    GENERATIVE,
    KERNEL_RIDGE,
    TRAJECTORY,
    UNROLLED,
    REALISTIC,
    CALIBRATED,
    ENRICHED,
    ALIGNED,
    IMPLICIT,
    INVERSION,
)
"""In the order in which methods are listed."""


def _merge(tables: Iterable[Mapping[str, Method]]) -> dict[str, Method]:
    return {name: method for table in tables for name, method in table.items()}


METHODS = MethodTable(CORE_METHODS | _merge(family.methods for family in METHOD_FAMILIES))
"""All methods of the image domain."""

PRESETS = {
    data: _merge(family.presets.get(data, {}) for family in METHOD_FAMILIES)
    for data in chain.from_iterable(family.presets for family in METHOD_FAMILIES)
}
"""By data set name, the methods whose settings differ there."""

_GREYSCALE = _merge(family.reduced for family in METHOD_FAMILIES)
_COLOUR = {**_GREYSCALE, **_merge(family.reduced_colour for family in METHOD_FAMILIES)}
REDUCED = {"mnist": _GREYSCALE, "fashion-mnist": _GREYSCALE, "cifar10": _COLOUR, "svhn": _COLOUR}
"""Reduced schedules by data set name.

They never replace the published settings, and every number measured with them says so. Rates were compared on held-out
training images only; each family says which. Colour data take MNIST's steps and rates unless a family has its own.
"""

CONDITIONS: dict[str, Conditions] = {
    name: own_conditions for family in METHOD_FAMILIES for name, own_conditions in family.conditions.items()
}
"""By method name, the conditions of published numbers beside the settings."""


def conditions(method: str, data: str, ipc: int) -> dict[str, str]:
    """Return the options, by name, under which published numbers of a method were made, without default ones.

    Args:
        method: its name.
        data: the data set's name; for digits nothing is published.
        ipc: images per class.
    """
    return {} if data == "digits" else CONDITIONS.get(method, Conditions()).options(data, ipc)
