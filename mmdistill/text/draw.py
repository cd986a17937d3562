"""What a distilled text set looks like: the real texts nearest to each point, and a map; and its exports."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from mmdistill.runtime import atomic_write
from mmdistill.task import Batch, Task
from mmdistill.text.judges import are_probabilities, distributions, one_tensor
from mmdistill.text.methods import as_text_task
from mmdistill.text.task import TextTask

NEAREST = 3
SHOWN_CHARACTERS = 160
REAL_POINTS_SHOWN = 2000
MAX_LEGEND = 20


def nearest_texts(task: TextTask, points: Tensor, k: int = NEAREST) -> tuple[Tensor, list[list[str]]]:
    """Return, per point, the cosine similarities ``(n, k)`` and the training texts nearest to it."""
    similarity = F.normalize(points, dim=1) @ F.normalize(task.train.inputs, dim=1).T
    top, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return top, [[task.data.train.texts[i] for i in row] for row in index.tolist()]


def label_words(targets: Tensor, names: Sequence[str]) -> list[str]:
    """Return each label in words: a class, the probabilities above 5 %, or the scores of all classes."""
    if not targets.is_floating_point():
        return [names[label] for label in targets.tolist()]
    probabilities = are_probabilities(targets)
    words = []
    for row in targets.tolist():
        ranked = sorted(zip(row, names, strict=True), reverse=True)
        kept = [(value, name) for value, name in ranked if not probabilities or value > 0.05] or ranked[:1]
        style = ".0%" if probabilities else "+.2f"
        words.append(", ".join(f"{name} {value:{style}}" for value, name in kept))
    return words


def write_nearest(task: TextTask, batch: Batch, folder: Path) -> Path:
    """Write a Markdown table: per synthetic sample its label and the real texts nearest to it."""
    points, targets = one_tensor(batch.inputs).to(task.device), one_tensor(batch.targets)
    similarity, texts = nearest_texts(task, points)
    lines = [
        f"Each synthetic sample of {task.data.name} with its label and the training texts nearest to it "
        f"(cosine, in the space of {task.encoder}).",
        "",
        "| # | label | cosine | text |",
        "|---:|---|---:|---|",
    ]
    words = label_words(targets.cpu(), task.data.class_names)
    for number, (label, row, near) in enumerate(zip(words, similarity.tolist(), texts, strict=True), start=1):
        for rank, (value, text) in enumerate(zip(row, near, strict=True)):
            first = (str(number), _cell(label)) if rank == 0 else ("", "")
            lines.append(f"| {first[0]} | {first[1]} | {value:.2f} | {_cell(text)} |")
    path = folder / "nearest.md"
    with atomic_write(path) as handle:
        handle.write(("\n".join(lines) + "\n").encode())
    return path


def _cell(text: str) -> str:
    line = " ".join(text.split())
    short = line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
    return short.replace("\\", "\\\\").replace("|", "\\|")


def draw_map(task: TextTask, batch: Batch, folder: Path) -> Path:
    """Draw real and synthetic points on the first two principal components of the real ones."""
    real, labels = task.train.inputs.cpu(), task.train.labels.cpu()
    mean = real.mean(0)
    directions = torch.linalg.svd(real - mean, full_matrices=False).Vh[:2].T
    flat = (real - mean) @ directions
    synthetic = (F.normalize(one_tensor(batch.inputs).cpu(), dim=1) - mean) @ directions
    classes = distributions(one_tensor(batch.targets).cpu(), task.class_count).argmax(1)
    step = max(1, -(-len(flat) // REAL_POINTS_SHOWN))
    figure = matplotlib.figure.Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for index, name in enumerate(task.data.class_names):
        colour = f"C{index % 10}"
        cloud = flat[labels == index][::step]
        axes.scatter(cloud[:, 0], cloud[:, 1], s=8, alpha=0.35, color=colour, linewidths=0)
        own = synthetic[classes == index]
        shown = name if index < MAX_LEGEND else None
        axes.scatter(
            own[:, 0], own[:, 1], s=70, marker="*", color=colour, edgecolors="black", linewidths=0.6, label=shown
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"{task.data.name}: training texts (dots), synthetic samples (stars, length 1)", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    path = folder / "map.png"
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=130)
    return path


def draw(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Draw the map and write the table of nearest texts."""
    text = as_text_task(task)
    return [draw_map(text, batch, folder), write_nearest(text, batch, folder)]


def export_tensors(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write points, targets as they are, and weights as ``tensors.safetensors``."""
    tensors = {"inputs": one_tensor(batch.inputs), "targets": one_tensor(batch.targets), "weight": batch.weight}
    return [_write(folder / "tensors.safetensors", tensors, as_text_task(task))]


def export_embeds(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write ``embeds.safetensors``: sentence embeddings with soft labels as probabilities, ready for a classifier."""
    text = as_text_task(task)
    labels = distributions(one_tensor(batch.targets), text.class_count)
    return [_write(folder / "embeds.safetensors", {"embeds": one_tensor(batch.inputs), "soft_labels": labels}, text)]


def _write(path: Path, tensors: dict[str, Tensor], task: TextTask) -> Path:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    names = "\n".join(task.data.class_names)
    metadata = {"encoder": task.encoder, "space": task.space, "data": task.data.name, "class_names": names}
    with atomic_write(path) as handle:
        handle.write(save(plain, metadata))
    return path
