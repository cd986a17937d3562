"""Export distilled text sets to other tools: plain tensors, embeddings with soft labels, readable texts."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mmdistill.distilled import DistilledSet, is_number, stored_value
from mmdistill.errors import UnsupportedError
from mmdistill.exporters import exporter, task_exporter
from mmdistill.labels import are_probabilities
from mmdistill.store import write_tensors, write_text
from mmdistill.task import Task, TaskInfo, named_tensors
from mmdistill.text.attention import class_labels
from mmdistill.text.draw import as_texts
from mmdistill.text.encoder import PAIR
from mmdistill.text.judges import distributions
from mmdistill.text.vocabulary import in_model_units, token_inputs

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Escapes for characters that end a line for some readers, though not in JSON."""
UNFITTED = ("transformer:", "tokens:", "callable:")
"""Prefixes of the spaces of encoders that learn nothing from the training texts."""


@exporter
def export_tensors(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write inputs and targets unchanged, and weights, as ``tensors.safetensors``."""
    batch = distilled.batch
    parts = named_tensors("inputs", batch.inputs) | named_tensors("targets", batch.targets)
    return [_write(folder / "tensors.safetensors", {"weight": batch.weight, **parts}, _text_info(distilled))]


@task_exporter
def export_embeds(distilled: DistilledSet, folder: Path, task: Callable[[], Task]) -> list[Path]:
    """Write ``embeds.safetensors`` with soft labels as probabilities.

    Sentence points are ``embeds`` ``(n, d)``, ready for a classifier. Token embeddings are ``inputs_embeds``
    ``(n, L, H)`` in their model's units with ``attention_mask``, ready for that model, and attention labels, if any,
    are ``attention_labels`` ``(n, layers, heads, L)``. Labels that are no probabilities are also written as ``labels``
    ``(n, C)``, which the set's own steps regress. If the encoder was fitted to the training texts, its state goes to
    ``encoder.safetensors``.
    """
    batch, info = distilled.batch, _text_info(distilled)
    targets = class_labels(batch.targets)
    labels = {"soft_labels": distributions(targets, len(info.class_names))}
    if not are_probabilities(targets):
        labels["labels"] = targets
    learned: dict[str, Tensor | str] = {}
    if isinstance(batch.inputs, dict):
        inputs, scale = token_inputs(batch.inputs), stored_value(info, "scale", is_number, "number")
        tensors = {
            "inputs_embeds": in_model_units(inputs["vectors"], scale, info.tensors["mean"]),
            "attention_mask": inputs["mask"].long(),
        }
        if isinstance(batch.targets, dict):
            tensors["attention_labels"] = batch.targets["attention"]
    else:
        tensors = {"embeds": batch.inputs}
        if not str(info.preprocessing.get("space")).startswith(UNFITTED):
            learned = as_texts(task()).encoder.learned()
    written = [_write(folder / "embeds.safetensors", {**tensors, **labels}, info)]
    if learned:
        arrays = {name: value for name, value in learned.items() if isinstance(value, Tensor)}
        words = {name: value for name, value in learned.items() if isinstance(value, str)}
        written.append(_write(folder / "encoder.safetensors", arrays, info, words))
    return written


@task_exporter
def export_texts(distilled: DistilledSet, folder: Path, task: Callable[[], Task]) -> list[Path]:
    """Write ``texts.jsonl``: a line per sample with its text, its class and the probability of each class.

    The text of a sentence point is the nearest training text (for pairs, ``text`` and ``text_pair``); the text of token
    embeddings consists of their nearest tokens.
    """
    text, batch, names = as_texts(task()), distilled.batch, distilled.info.class_names
    lines = []
    probabilities = distributions(class_labels(batch.targets), len(names))
    for words, row in zip(text.readable(batch.inputs), probabilities.tolist(), strict=True):
        label = names[max(range(len(row)), key=row.__getitem__)]
        soft = {name: round(value, 6) for name, value in zip(names, row, strict=True)}
        first, mark, second = words.partition(PAIR)
        fields = {"text": first, "text_pair": second} if mark else {"text": first}
        line = json.dumps({**fields, "label": label, "soft_label": soft}, ensure_ascii=False)
        lines.append(line.translate(LINE_ENDS))
    path = folder / "texts.jsonl"
    write_text(path, "\n".join(lines) + "\n")
    return [path]


def _text_info(distilled: DistilledSet) -> TaskInfo:
    """Return the task information of a set after checking that it is of texts.

    Raises:
        UnsupportedError: it is of other data.
    """
    if not {"encoder", "space"} <= distilled.info.preprocessing.keys():
        raise UnsupportedError(f"this writes sets of texts, not of {distilled.info.domain} data")
    return distilled.info


def _write(path: Path, tensors: dict[str, Tensor], info: TaskInfo, words: dict[str, str] | None = None) -> Path:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "encoder": str(info.preprocessing["encoder"]),
        "space": str(info.preprocessing["space"]),
        "data": info.data,
        "class_names": json.dumps(list(info.class_names)),
        **(words or {}),
    }
    write_tensors(path, on_cpu, metadata)
    return path
