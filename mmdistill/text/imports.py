"""Import text sets that other tools distilled: points or token embeddings of a task's encoder, with labels."""

from pathlib import Path

from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.saved import metadata
from mmdistill.importers import (
    LABELS,
    Imported,
    Importer,
    ImportSource,
    by_role,
    class_targets,
    names_by_role,
    weighed,
)
from mmdistill.task import Targets, Tensors, num_samples
from mmdistill.text.base import TextClassification
from mmdistill.text.token_task import TokenTask
from mmdistill.text.vocabulary import as_mask

SHARED = {"labels": ("targets.labels", *LABELS), "other labels": ("soft_labels",), "weight": ("weight",)}
POINTS = {"points": ("embeds", "inputs", "points", "embeddings", "vectors", "features", "x"), **SHARED}
"""Accepted tensor names for each part of a set of points."""
TOKENS = {
    "vectors": ("inputs.vectors", "vectors"),
    "inputs_embeds": ("inputs_embeds",),
    "mask": ("inputs.mask", "attention_mask", "mask"),
    "attention": ("targets.attention", "attention_labels"),
    **SHARED,
}
"""Accepted tensor names for each part of a set of token embeddings; ``inputs_embeds`` are in the model's units."""


def read_texts(task: TextClassification, source: ImportSource) -> Imported:
    """Read points ``(n, d)``, or token vectors ``(n, L, H)`` with their mask, in the task's units.

    Raises:
        DataError: other files, a set of another encoder, a mask of other numbers than 0 and 1, or labels of other
            classes.
    """
    for path in source.samples:
        _require_space(path, task)
    values, names = source.values(), task.data.class_names
    inputs: Tensor | Tensors
    if isinstance(task, TokenTask):
        vectors_name = "inputs_embeds" if "inputs_embeds" in names_by_role(values, TOKENS) else "vectors"
        parts = by_role(values, TOKENS, [vectors_name, "mask", "labels"])
        vectors, mask = parts[vectors_name].float(), as_mask(parts["mask"])
        if vectors.ndim != 3 or vectors.shape[:-1] != mask.shape:
            shapes = f"{tuple(vectors.shape)} and {tuple(mask.shape)}"
            raise DataError(f"vectors (n, L, H) have a mask (n, L), got {shapes}")
        width = len(task.vocabulary.mean)
        if vectors.shape[2] != width:
            raise DataError(f"token embeddings of the task's encoder have {width} numbers, got {tuple(vectors.shape)}")
        vectors = task.vocabulary.in_own_units(vectors) if vectors_name == "inputs_embeds" else vectors
        inputs = {"vectors": vectors * mask[..., None], "mask": mask}
    else:
        parts = by_role(values, POINTS, ["points", "labels"])
        inputs = parts["points"].float()
        if inputs.ndim != 2:
            raise DataError(f"points are (n, d), got {tuple(inputs.shape)}")
    targets: Targets = class_targets(parts["labels"], num_samples(inputs), names, source.logits)
    if "attention" in parts:
        targets = {"labels": targets, "attention": parts["attention"].float()}  # type: ignore[dict-item]
    batch = weighed(inputs, targets, parts.get("weight"))
    return Imported(batch, learned=source.learned())


def _require_space(path: Path, task: TextClassification) -> None:
    """Refuse a file whose metadata name another encoder's space.

    Raises:
        DataError: they do.
    """
    stored = metadata(path)
    expected = task.describe().preprocessing
    if stored.get("space", expected["space"]) != expected["space"]:
        raise DataError(
            f"{path} is of the space of {stored.get('encoder', 'another encoder')!r} ({stored['space']}), and the "
            f"task's texts are in that of {expected['encoder']!r} ({expected['space']}); choose its encoder, and the "
            "network of its kind"
        )


IMPORTS = Importer(
    read_texts,
    TextClassification,
    ".pt, .npz or .safetensors with embeds (n, d), or inputs_embeds (n, L, H) and attention_mask, of the same encoder, "
    "and labels, in one file or one each",
    ("logits",),
)
"""The importer of text sets."""
