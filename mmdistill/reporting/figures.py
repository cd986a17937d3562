"""Helpers for matplotlib's figures: literal labels, colours of classes, and PNG files that are written atomically."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmdistill.errors import ConfigError
from mmdistill.names import encodable
from mmdistill.runtime import atomic_write, cache_folder

if TYPE_CHECKING:  # importing it takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = "Description"
"""The key of a PNG file's metadata for the picture's caption."""
MOST_COLOURS = 20
"""The most classes that colours can tell apart."""


def give_matplotlib_a_folder() -> None:
    """Let matplotlib keep its list of fonts in the cache folder if it can write there but not into its own folders.

    It would otherwise warn, and look for all fonts in each process. A folder that the user chose stays.
    """
    if os.environ.get("MPLCONFIGDIR"):
        return
    try:
        own = [os.environ.get(f"XDG_{kind}_HOME") or Path.home() / f".{kind.lower()}" for kind in ("CONFIG", "CACHE")]
    except RuntimeError:  # the user has no home folder
        own = []
    try:
        folder = cache_folder().absolute() / "matplotlib"
    except ConfigError:
        return
    if not (own and all(_can_be_written(Path(base) / "matplotlib") for base in own)) and _can_be_written(folder):
        os.environ["MPLCONFIGDIR"] = str(folder)


def _can_be_written(folder: Path) -> bool:
    """Return whether a folder, or the nearest one above it that exists, can be written into."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def literal(text: str) -> str:
    """Escape a user's text so that matplotlib shows it as it is: no mathematics between dollars, only valid UTF-8."""
    return encodable(text).replace("$", r"\$")


def one_plot(width: float, height: float) -> tuple["Figure", "Axes"]:
    """Return a figure of a width and height in inches and its only plot, without spines at the top and right."""
    from matplotlib.figure import Figure  # here, since importing it takes half a second

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def class_colours(classes: int) -> list[tuple[float, ...]]:
    """Return a colour for each class: distinct ones for up to :data:`MOST_COLOURS`, else from a colour wheel."""
    from matplotlib import colormaps

    colour_map = colormaps["tab10" if classes <= 10 else "tab20" if classes <= MOST_COLOURS else "hsv"]
    return [tuple(colour_map(index if classes <= MOST_COLOURS else index / classes)) for index in range(classes)]


def save_figure(figure: "Figure", target: Path, dpi: int = 120) -> Path:
    """Write a figure as PNG, atomically; returns the path."""
    with atomic_write(target) as handle:
        figure.savefig(handle, format="png", dpi=dpi)
    return target


def caption_of(path: Path) -> str:
    """Return the caption in a PNG file; empty without one."""
    from PIL import Image  # here, since few importers of this module read pictures

    with Image.open(path) as picture:
        return str(picture.info.get(CAPTION, ""))
