"""Draw a distilled text set: its words, the real texts nearest to each sample, and a map."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import UnsupportedError
from mmdistill.labels import are_probabilities
from mmdistill.reporting.figures import MOST_COLOURS, class_colours, literal, one_plot, save_figure
from mmdistill.reporting.tabular import markdown_cell
from mmdistill.store import write_text
from mmdistill.task import Batch, Task
from mmdistill.text.attention import class_labels
from mmdistill.text.base import TextClassification
from mmdistill.text.encoder import PAIR
from mmdistill.text.judges import distributions
from mmdistill.text.token_task import TokenTask

NEAREST = 3
SHOWN_CHARACTERS = 160
REAL_POINTS_SHOWN = 2000
NAME_CHARACTERS = 30


def as_texts(task: Task) -> TextClassification:
    """Return the task after checking that it is a text task.

    Raises:
        UnsupportedError: it is of another kind.
    """
    if not isinstance(task, TextClassification):
        raise UnsupportedError(f"a text task is needed, got {type(task).__name__}")
    return task


def nearest_texts(task: TextClassification, batch: Batch) -> tuple[Tensor, list[list[str]]]:
    """Return each sample's nearest training texts and their cosine similarities ``(n, 3)``."""
    similarity = F.normalize(task.points(batch.inputs), dim=1) @ F.normalize(task.training_points(), dim=1).T
    top, index = similarity.topk(min(NEAREST, similarity.shape[1]), dim=1)
    return top, [[task.data.train.texts[i] for i in row] for row in index.tolist()]


def label_words(targets: Tensor, names: Sequence[str]) -> list[str]:
    """Return each label in words: a class, the probabilities above 5 %, or the scores of all classes.

    Shapes:
        targets ``(n,)`` int64 or ``(n, C)``; returns n texts.
    """
    if not targets.is_floating_point():
        return [names[label] for label in targets.tolist()]
    probabilities = are_probabilities(targets)
    words = []
    for row in targets.tolist():
        ranked = sorted(zip(row, names, strict=True), reverse=True)
        shown = [(value, name) for value, name in ranked if not probabilities or value > 0.05] or ranked[:1]
        style = ".0%" if probabilities else "+.2f"
        words.append(", ".join(f"{name} {value:{style}}" for value, name in shown))
    return words


def write_nearest(task: TextClassification, batch: Batch, folder: Path) -> Path:
    """Write a Markdown table with each synthetic sample's label, its own words, and the real texts nearest to it."""
    targets = class_labels(batch.targets)
    similarity, texts = nearest_texts(task, batch)
    own_words = task.readable(batch.inputs) if isinstance(task, TokenTask) else None
    truncated = task.describe().preprocessing["truncated_texts"]
    lines = [
        f"Each synthetic sample of {markdown_cell(task.data.name)} with its label and the training texts nearest to it "
        f"(cosine, {markdown_cell(task.space_in_words)}).",
        *(["Its own words, in bold, are the nearest tokens of its vectors."] if own_words is not None else []),
        *([f"{truncated:,} texts are longer than what is read of each; their ends were cut off."] if truncated else []),
        "",
        "| # | label | cosine | text |",
        "|---:|---|---:|---|",
    ]
    words = label_words(targets.cpu(), task.data.class_names)
    for number, (label, row, near) in enumerate(zip(words, similarity.tolist(), texts, strict=True)):
        cells = [(f"{value:.2f}", _cell(text)) for value, text in zip(row, near, strict=True)]
        if own_words is not None:
            cells = [("", f"**{_cell(own_words[number])}**"), *cells]
        for rank, (value, text) in enumerate(cells):
            first = (str(number + 1), _cell(label)) if rank == 0 else ("", "")
            lines.append(f"| {first[0]} | {first[1]} | {value} | {text} |")
    path = folder / "nearest.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _cell(text: str) -> str:
    line = " ".join(text.replace(PAIR, " | ").split())
    return markdown_cell(shortened(line, SHOWN_CHARACTERS))


def shortened(text: str, most: int) -> str:
    """Return a text cut to at most ``most`` characters, with an ellipsis as the last one if it was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"


def draw_map(task: TextClassification, batch: Batch, folder: Path) -> Path:
    """Draw real and synthetic samples on the first two principal components of the real ones, at unit length.

    A legend names the classes; with more classes than distinct colours, each star is labelled with its class instead.
    """
    points = task.training_points(), task.points(batch.inputs)
    padding = (0, max(2 - points[0].shape[1], 0))  # the map needs at least two dimensions
    real, synthetic = (F.pad(F.normalize(x, dim=1).cpu(), padding) for x in points)
    mean, labels = real.mean(0), task.data.train.labels
    directions = torch.linalg.svd(real - mean, full_matrices=False).Vh[:2].T
    dots = (real - mean) @ directions
    stars = (synthetic - mean) @ directions
    classes = distributions(class_labels(batch.targets).cpu(), task.class_count).argmax(1)
    step = max(1, -(-len(dots) // REAL_POINTS_SHOWN))
    has_legend = task.class_count <= MOST_COLOURS
    figure, axes = one_plot(8.5, 5.5)
    for index, (name, colour) in enumerate(zip(task.data.class_names, class_colours(task.class_count), strict=True)):
        cloud, members = dots[labels == index][::step], stars[classes == index]
        axes.scatter(cloud[:, 0], cloud[:, 1], s=8, alpha=0.35, color=colour, linewidths=0)
        title = literal(shortened(name, NAME_CHARACTERS))
        label = title if has_legend else None
        x, y = members[:, 0], members[:, 1]
        axes.scatter(x, y, s=70, marker="*", color=colour, edgecolors="black", linewidths=0.6, label=label)
        for place in [] if has_legend else members.tolist():
            axes.annotate(title, tuple(place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    heading = f"{task.data.name}: training texts (dots), synthetic samples (stars); {task.space_in_words}"
    figure.suptitle(literal(heading), fontsize=9)
    if has_legend:
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return save_figure(figure, folder / "map.png", dpi=130)


def draw(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Draw the map and write the table of nearest texts."""
    text = as_texts(task)
    return [draw_map(text, batch, folder), write_nearest(text, batch, folder)]
