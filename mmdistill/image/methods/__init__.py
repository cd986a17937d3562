"""Methods of the image domain, family by family, and what of them there is for a data set."""

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
from mmdistill.image.methods.ridge import RIDGE
from mmdistill.image.methods.unrolled_reduced import UNROLLED
from mmdistill.method import Method, MethodTable

FAMILIES: tuple[MethodFamily, ...] = (
    MATCHING,
    ATTENTION,
    GENERATIVE,
    RIDGE,
    UNROLLED,
    REALISTIC,
    CALIBRATED,
    ENRICHED,
    ALIGNED,
    IMPLICIT,
    INVERSION,
)
"""In the order in which methods are listed."""


def _joined(tables: Iterable[Mapping[str, Method]]) -> dict[str, Method]:
    return {name: method for table in tables for name, method in table.items()}


METHODS = MethodTable(_joined(family.methods for family in FAMILIES))
"""What the image domain adds to the shared methods."""

PRESETS = {
    data: _joined(family.presets.get(data, {}) for family in FAMILIES)
    for data in chain.from_iterable(family.presets for family in FAMILIES)
}
"""Methods by data set name, where its settings differ."""

_GREYSCALE = _joined(family.reduced for family in FAMILIES)
_COLOUR = {**_GREYSCALE, **_joined(family.reduced_colour for family in FAMILIES)}
REDUCED = {"mnist": _GREYSCALE, "fashion-mnist": _GREYSCALE, "cifar10": _COLOUR, "svhn": _COLOUR}
"""Reduced schedules by data set name.

They stand beside the published settings, never in their place, and every number measured with them says so. Where a
rate was compared with others, that was on held-out training images; each family says where. Colour takes MNIST's steps
and rates, as they are, but for those that families have for it.
"""

CONDITIONS: dict[str, Conditions] = {name: found for family in FAMILIES for name, found in family.conditions.items()}
"""What published numbers belong to beside a method's settings, by its name."""


def conditions(method: str, data: str, ipc: int) -> dict[str, str]:
    """Return the options, by name, that published numbers of a method belong to, where they are not the default ones.

    Args:
        method: its name.
        data: the data set's name; for digits nothing is published.
        ipc: images per class.
    """
    return {} if data == "digits" else CONDITIONS.get(method, Conditions()).options(data, ipc)
