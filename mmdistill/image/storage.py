"""Ways of storing images, for any method: ``METHODS["dm"].stored_as(tiled(2))``, or ``--parameterization`` by name.

Each takes no more bytes than the bytes given, or than the raw images of the same ipc with their labels; but up-sampling
beside soft labels stores one for each of its ``factor ** 2`` samples per image, which come on top. Where codes are no
pixels, the storage brings the rates of its groups ``codes`` and ``decoder`` along.
"""

from collections.abc import Callable, Mapping
from functools import partial

from mmdistill.allocation import shares_of
from mmdistill.labels import LabelKind
from mmdistill.method import Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.parameterizations.canvas import class_canvases
from mmdistill.parameterizations.combination import learned_coefficients
from mmdistill.parameterizations.decoder import (
    decoders_and_codes,
    hallucinated_bases,
    hallucinators_and_bases,
    latent_codes,
)
from mmdistill.parameterizations.memory import addressed_memory, memory_sizes
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.parameterizations.upsample import multi_formation
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind, OptimizerSpec, Settings
from mmdistill.task import Task


def raw() -> Storage:
    """The images themselves, see :func:`~mmdistill.parameterizations.raw.raw_samples`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return raw_samples(task, budget, settings.init, label, draws)

    return Storage(build, "the images themselves", styles=1)


def tiled(factor: int = 2) -> Storage:
    """Images of ``factor x factor`` tiles, see :func:`~mmdistill.parameterizations.upsample.multi_formation`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return multi_formation(task, budget, settings.init, label, draws, factor)

    summary = f"images of {factor} x {factor} tiles, up-sampled to full size"

    def samples(task: Task, budget: int, settings: Settings, label: LabelKind) -> int:
        return int(shares_of(task, budget).counts.sum()) * factor**2

    return Storage(build, summary, {"codes": OptimizerSpec("adam", 0.01)}, samples=samples, styles=1)


def latent(factor: int = 4, count: int = 2, width: int = 8) -> Storage:
    """Small codes that decoders share, see :func:`~mmdistill.parameterizations.decoder.latent_codes`."""
    rates = {"codes": OptimizerSpec("adam", 0.03), "decoder": OptimizerSpec("adam", 0.003)}
    summary = f"codes of 1/{factor} the side, each through {count} small decoders that all share"

    def samples(room: ImageBudget) -> int:
        return count * decoders_and_codes(room, Draws(0), factor, count, width)[1]

    return _filling(partial(latent_codes, factor=factor, count=count, width=width), summary, rates, samples, count)


def hallucinated(count: int = 5) -> Storage:
    """Bases in several styles, see :func:`~mmdistill.parameterizations.decoder.hallucinated_bases`."""
    rates = {"codes": OptimizerSpec("adam", 0.01), "decoder": OptimizerSpec("adam", 0.003)}
    summary = f"full-size bases, each rendered by {count} hallucinators that all share"

    def samples(room: ImageBudget) -> int:
        return count * hallucinators_and_bases(room, Draws(0), count)[1]

    return _filling(partial(hallucinated_bases, count=count), summary, rates, samples, count)


def addressed(factor: int = 2, multiple: int = 4, bases: int = 0) -> Storage:
    """Combinations of shared bases, see :func:`~mmdistill.parameterizations.memory.addressed_memory`."""
    what = f"combinations of {bases} bases" if bases else f"{multiple} combinations per raw image of bases"
    build = partial(addressed_memory, factor=factor, multiple=multiple, bases=bases)
    rates = {"codes": OptimizerSpec("adam", 0.01)}

    def samples(room: ImageBudget) -> int:
        return memory_sizes(room, factor, multiple, bases)[0]

    return _filling(build, f"{what} of 1/{factor} the side", rates, samples)


def coefficients(multiple: int = 4, contained: bool = True) -> Storage:
    """Combinations of real images, see :func:`~mmdistill.parameterizations.combination.learned_coefficients`."""
    what = "the images are stored" if contained else "only their positions are stored: for those who have the data"
    build = partial(learned_coefficients, multiple=multiple, contained=contained)
    rates = {"codes": OptimizerSpec("adam", 0.01)}
    summary = f"learned combinations of real images; {what}"
    return _filling(build, summary, rates, lambda room: multiple * room.per_class)


def canvas(multiple: int = 4) -> Storage:
    """Crops of one tileable canvas per class, see :func:`~mmdistill.parameterizations.canvas.class_canvases`."""
    summary = f"{multiple} random crops per raw image of one canvas per class whose edges meet"
    return _filling(partial(class_canvases, multiple=multiple), summary, {}, lambda room: multiple * room.per_class)


def _filling(
    make: Callable[[Task, ImageBudget, InitKind, Draws], Parameterization],
    summary: str,
    rates: Mapping[str, OptimizerSpec],
    per_class: Callable[[ImageBudget], int],
    styles: int = 1,
) -> Storage:
    """Return a storage that fits as many codes as it can into a budget, and so many samples of each class.

    Each code is decoded in so many styles.
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return make(task, ImageBudget.of(task, budget, label, settings.stored_bytes), settings.init, draws)

    def samples(task: Task, budget: int, settings: Settings, label: LabelKind) -> int:
        room = ImageBudget.of(task, budget, label, settings.stored_bytes)
        return room.num_classes * per_class(room)

    return Storage(build, summary, rates, fills=True, samples=samples, styles=styles)


PARAMETERIZATIONS: dict[str, Storage] = {
    "raw": raw(),
    "upsample-2": tiled(2),
    "upsample-3": tiled(3),
    "addressed": addressed(),
    "hallucinated": hallucinated(),
    "latent": latent(),
    "coefficients": coefficients(),
    "coefficients-by-index": coefficients(contained=False),
    "canvas": canvas(),
}
"""By the name that ``--parameterization`` takes."""
