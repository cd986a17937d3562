"""What all pictures that matplotlib draws share: labels that are shown as they are, and files that appear whole."""

from pathlib import Path
from typing import TYPE_CHECKING

from mmdistill.names import encodable
from mmdistill.runtime import atomic_write

if TYPE_CHECKING:  # importing it takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = "Description"
"""The name under which a PNG file carries what is said of its picture."""


MOST_COLOURS = 20
"""Classes that colours tell apart, as the keys of pictures need."""


def literal(text: str) -> str:
    """Return a user's text so that matplotlib shows it as it is: dollars are no mathematics, all of it is UTF-8."""
    return encodable(text).replace("$", r"\$")


def one_plot(width: float, height: float) -> tuple["Figure", "Axes"]:
    """Return a figure of so many inches and the one plot in it, which is open above and at the right."""
    from matplotlib.figure import Figure  # here, since importing it takes half a second

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def class_colours(classes: int) -> list[tuple[float, ...]]:
    """Return a colour for each class: those that the eye tells apart for up to :data:`MOST_COLOURS`, else a wheel's."""
    from matplotlib import colormaps

    wheel = colormaps["tab10" if classes <= 10 else "tab20" if classes <= MOST_COLOURS else "hsv"]
    return [tuple(wheel(index if classes <= MOST_COLOURS else index / classes)) for index in range(classes)]


def save_figure(figure: "Figure", target: Path, dpi: int = 120) -> Path:
    """Write a figure as PNG, atomically; returns the path."""
    with atomic_write(target) as handle:
        figure.savefig(handle, format="png", dpi=dpi)
    return target


def caption_of(path: Path) -> str:
    """Return what a PNG file says of its picture; empty where it says nothing."""
    from PIL import Image  # here, since few of those who import this look at pictures

    with Image.open(path) as picture:
        return str(picture.info.get(CAPTION, ""))
