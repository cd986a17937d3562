"""Helpers for matplotlib's figures: literal labels, colours of classes, and PNG files that are written atomically."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def matplotlib_in_a_folder() -> Iterator[None]:
    """Within this context matplotlib keeps its list of fonts in the cache folder if its own folders cannot be written.

    It would otherwise warn, and look for all fonts in each process. A folder that the user chose stays.
    """
    former, folder = os.environ.get("MPLCONFIGDIR"), _cache_for_matplotlib()
    if former or folder is None:
        yield
        return
    os.environ["MPLCONFIGDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["MPLCONFIGDIR"]
        if former is not None:
            os.environ["MPLCONFIGDIR"] = former


def _cache_for_matplotlib() -> Path | None:
    """Return matplotlib's folder in the cache; None if its own folders can be written, or the cache cannot."""
    try:
        own = [os.environ.get(f"XDG_{kind}_HOME") or Path.home() / f".{kind.lower()}" for kind in ("CONFIG", "CACHE")]
    except RuntimeError:  # the user has no home folder
        own = []
    try:
        folder = cache_folder().absolute() / "matplotlib"
    except ConfigError:
        return None
    own_is_writable = own and all(_can_be_written(Path(base) / "matplotlib") for base in own)
    return folder if not own_is_writable and _can_be_written(folder) else None


def _can_be_written(folder: Path) -> bool:
    """Return whether a folder, or the nearest one above it that can be seen, can be written into."""
    # Path.exists would raise in a folder that may not be entered.
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
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
