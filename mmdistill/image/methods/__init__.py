"""Methods of the image domain, and the settings that fit the embedded digits."""

from collections.abc import Mapping
from itertools import chain

from mmdistill.image.methods.aligned import ALIGNED_DIGITS, ALIGNED_METHODS, ALIGNED_PRESETS
from mmdistill.image.methods.attention import ATTENTION_DIGITS, ATTENTION_METHODS
from mmdistill.image.methods.calibrated import CALIBRATED_DIGITS, CALIBRATED_METHODS
from mmdistill.image.methods.enriched import ENRICHED_DIGITS, ENRICHED_METHODS, ENRICHED_PRESETS
from mmdistill.image.methods.generative import GENERATIVE_DIGITS, GENERATIVE_METHODS
from mmdistill.image.methods.implicit import IMPLICIT_DIGITS, IMPLICIT_METHODS
from mmdistill.image.methods.inversion import INVERSION_DIGITS, INVERSION_METHODS, INVERSION_PRESETS
from mmdistill.image.methods.matching import MATCHING_DIGITS, MATCHING_METHODS, MATCHING_PRESETS
from mmdistill.image.methods.realistic import REALISTIC_DIGITS, REALISTIC_METHODS
from mmdistill.image.methods.ridge import RIDGE_DIGITS, RIDGE_METHODS, RIDGE_PRESETS
from mmdistill.image.methods.unrolled import UNROLLED_METHODS, UNROLLED_PRESETS
from mmdistill.image.methods.unrolled_digits import UNROLLED_DIGITS
from mmdistill.method import Method, MethodTable

METHODS = MethodTable(
    {
        **MATCHING_METHODS,
        **ATTENTION_METHODS,
        **GENERATIVE_METHODS,
        **RIDGE_METHODS,
        **UNROLLED_METHODS,
        **REALISTIC_METHODS,
        **CALIBRATED_METHODS,
        **ENRICHED_METHODS,
        **ALIGNED_METHODS,
        **IMPLICIT_METHODS,
        **INVERSION_METHODS,
    }
)
"""What the image domain adds to the shared methods."""


DIGITS: dict[str, Method] = {
    **MATCHING_DIGITS,
    **ATTENTION_DIGITS,
    **GENERATIVE_DIGITS,
    **RIDGE_DIGITS,
    **UNROLLED_DIGITS,
    **REALISTIC_DIGITS,
    **CALIBRATED_DIGITS,
    **ENRICHED_DIGITS,
    **ALIGNED_DIGITS,
    **IMPLICIT_DIGITS,
    **INVERSION_DIGITS,
}
"""Short runs for the 8 x 8 digits, whose published settings do not exist.

DM's, DC's, DSA's and KRR-Feature's were chosen on a validation split, and those of kernel ridge and unrolled methods as
their modules say; DCC, EGM and CAFE take DC's. IDC's and EDD's were chosen so for one image per class at width 32,
and scale with their number. KFS's are not told from others near them on held-out images.
"""


def _by_data(*families: Mapping[str, Mapping[str, Method]]) -> dict[str, dict[str, Method]]:
    """Return the methods of several families by data set name."""
    return {
        data: {name: method for family in families for name, method in family.get(data, {}).items()}
        for data in chain(*families)
    }


PRESETS = _by_data(
    {"digits": DIGITS},
    MATCHING_PRESETS,
    UNROLLED_PRESETS,
    ENRICHED_PRESETS,
    ALIGNED_PRESETS,
    RIDGE_PRESETS,
    INVERSION_PRESETS,
)
"""Methods by data set name, where its settings differ."""
