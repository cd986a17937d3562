"""Ways of storing images, for any method: ``METHODS["dm"].stored_as(tiled(2))``, or ``--parameterization`` by name.

Each fits into the given bytes, or into those of the same ipc's raw images with their labels. One exception: up-sampled
pixels with soft labels store ``factor ** 2`` labels per image, which come on top. Storages of codes other than
pixels bring learning rates for their groups ``codes`` and ``decoder``.
"""

from collections.abc import Callable, Mapping
from functools import partial

from mmdistill.labels import LabelKind
from mmdistill.method import Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.parameterizations.canvas import class_canvases
from mmdistill.parameterizations.combination import learned_coefficients
from mmdistill.parameterizations.decoder import decoded_codes, hallucinators, latent_decoders, upsampling
from mmdistill.parameterizations.memory import addressed_codes
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.parameterizations.upsample import multi_formation
from mmdistill.registry import StorageFamily
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind, OptimizerSpec, Settings
from mmdistill.task import Task

PIXEL_RATES = {"codes": OptimizerSpec("adam", 0.01)}
STYLED_RATES = {"codes": OptimizerSpec("adam", 0.01), "decoder": OptimizerSpec("adam", 0.003)}
LATENT_RATES = {"codes": OptimizerSpec("adam", 0.03), "decoder": OptimizerSpec("adam", 0.003)}


def raw() -> Storage:
    """Store the images themselves, see :func:`~mmdistill.parameterizations.raw.raw_samples`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return raw_samples(task, budget, settings.init, label, draws)

    return Storage(build, "the images themselves")


def tiled(factor: int = 2) -> Storage:
    """Store images of ``factor x factor`` tiles, see :func:`~mmdistill.parameterizations.upsample.multi_formation`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return multi_formation(task, budget, settings.init, label, draws, factor)

    summary = f"images of {factor} x {factor} tiles, up-sampled to full size"
    return Storage(build, summary, PIXEL_RATES)


def latent(factor: int = 4, count: int = 2, width: int = 8, tiles: int = 1) -> Storage:
    """Store small codes and shared decoders, see :func:`~mmdistill.parameterizations.decoder.latent_decoders`."""
    summary = f"codes of 1/{factor} the side, each through {count} small decoders that all share"
    decoders = partial(latent_decoders, factor=factor, count=count, width=width)
    return _filling(partial(decoded_codes, kind=decoders), summary, LATENT_RATES, tiles)


def hallucinated(count: int = 5, tiles: int = 1) -> Storage:
    """Store bases and several hallucinators, see :func:`~mmdistill.parameterizations.decoder.hallucinators`."""
    summary = f"full-size bases, each rendered by {count} hallucinators that all share"
    build = partial(decoded_codes, kind=partial(hallucinators, count=count))
    return _filling(build, summary, STYLED_RATES, tiles)


def addressed(factor: int = 2, multiple: int = 4, bases: int = 0, tiles: int = 1) -> Storage:
    """Store combinations of shared bases, see :func:`~mmdistill.parameterizations.memory.addressed_codes`."""
    what = f"combinations of {bases} bases" if bases else f"{multiple} combinations per raw image of bases"
    kind = partial(upsampling, factor=factor)
    build = partial(addressed_codes, kind=kind, multiple=multiple, bases=bases, warm_up=0)
    return _filling(build, f"{what} of 1/{factor} the side", PIXEL_RATES, tiles)


def addressed_latent(factor: int = 4, count: int = 2, width: int = 8, multiple: int = 16, tiles: int = 1) -> Storage:
    """Store combinations of shared codes to decode, see :func:`~mmdistill.parameterizations.memory.addressed_codes`."""
    summary = f"as latent, but of {multiple} combinations per raw image of codes that all classes share"
    decoders = partial(latent_decoders, factor=factor, count=count, width=width)
    build = partial(addressed_codes, kind=decoders, multiple=multiple)
    return _filling(build, summary, LATENT_RATES, tiles)


def addressed_hallucinated(count: int = 5, multiple: int = 4, tiles: int = 1) -> Storage:
    """Store combinations of shared bases to render, see :func:`~mmdistill.parameterizations.memory.addressed_codes`."""
    summary = f"as hallucinated, but of {multiple} combinations per raw image of bases that all classes share"
    build = partial(addressed_codes, kind=partial(hallucinators, count=count), multiple=multiple)
    return _filling(build, summary, STYLED_RATES, tiles)


def coefficients(multiple: int = 4, contained: bool = True, tiles: int = 1) -> Storage:
    """Store weights of real images, see :func:`~mmdistill.parameterizations.combination.learned_coefficients`."""
    what = "the images are stored" if contained else "only their positions are stored: for those who have the data"
    build = partial(learned_coefficients, multiple=multiple, contained=contained)
    summary = f"learned combinations of real images; {what}"
    return _filling(build, summary, PIXEL_RATES, tiles)


def canvas(multiple: int = 4, tiles: int = 1) -> Storage:
    """Store one tileable canvas per class to crop, see :func:`~mmdistill.parameterizations.canvas.class_canvases`."""
    summary = f"{multiple} random crops per raw image of one canvas per class whose edges meet"
    build = partial(class_canvases, multiple=multiple)
    return _filling(build, summary, {}, tiles)


def _filling(
    make: Callable[[Task, ImageBudget, InitKind, Draws], Parameterization],
    summary: str,
    rates: Mapping[str, OptimizerSpec],
    tiles: int = 1,
) -> Storage:
    """Return a storage that fits as many codes as it can into a budget, and cuts images into ``tiles`` x ``tiles``."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return make(task, ImageBudget.of(task, budget, label, settings.stored_bytes, tiles), settings.init, draws)

    if tiles > 1:
        summary += f"; as images of {tiles} x {tiles} tiles"
    return Storage(build, summary, rates, fills=True)


_TILEABLE: dict[str, Callable[..., Storage]] = {
    "addressed": addressed,
    "hallucinated": hallucinated,
    "latent": latent,
    "addressed-hallucinated": addressed_hallucinated,
    "addressed-latent": addressed_latent,
    "coefficients": coefficients,
    "coefficients-by-index": partial(coefficients, contained=False),
    "canvas": canvas,
}
"""Storages of codes other than pixels; their images can be cut into tiles."""

PARAMETERIZATIONS: dict[str, Storage] = {
    "raw": raw(),
    "upsample-2": tiled(2),
    "upsample-3": tiled(3),
    **{name: make() for name, make in _TILEABLE.items()},
}
"""Storages by the name that ``--parameterization`` takes."""


def _with_tiles(make: Callable[..., Storage], tiles: int) -> Storage:
    return make(tiles=tiles)


NUMBERED: dict[str, StorageFamily] = {
    "upsample": StorageFamily(tiled, "images of N x N tiles, for any N"),
    **{
        f"{name}-upsample": StorageFamily(partial(_with_tiles, make), f"as {name}, of images of N x N tiles")
        for name, make in _TILEABLE.items()
    },
}
"""Storages of tiled images, by their name without the number of tiles per side."""
