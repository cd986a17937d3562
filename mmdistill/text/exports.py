"""A distilled text set for other tools: plain tensors, embeddings with soft labels, readable texts."""

import json
from pathlib import Path

from torch import Tensor

from mmdistill.exports import into_folder
from mmdistill.labels import are_probabilities
from mmdistill.runtime import atomic_write
from mmdistill.store import write_tensors
from mmdistill.task import Batch, Task, one_tensor
from mmdistill.text.attention import class_labels
from mmdistill.text.draw import TextLike, as_text_like, read
from mmdistill.text.encoder import PAIR
from mmdistill.text.judges import distributions
from mmdistill.text.token_task import TokenTask

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""What ends a line to some readers, and not in JSON, is written as escapes."""


@into_folder
def export_tensors(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write inputs and targets as they are, and weights, as ``tensors.safetensors``."""
    tensors = {"weight": batch.weight}
    for name, value in (("inputs", batch.inputs), ("targets", batch.targets)):
        named = value if isinstance(value, dict) else {"": value}
        tensors |= {f"{name}.{part}" if part else name: tensor for part, tensor in named.items()}
    return [_write(folder / "tensors.safetensors", tensors, as_text_like(task))]


@into_folder
def export_embeds(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write ``embeds.safetensors`` with soft labels as probabilities.

    Sentence points are ``embeds`` ``(n, d)``, ready for a classifier; token embeddings are ``inputs_embeds``
    ``(n, L, H)`` in the units of the model that they belong to, with ``attention_mask``, ready for that model, and
    labels of its attention, ``attention_labels`` ``(n, layers, heads, L)``, where there are any. Labels that are no
    probabilities are ``labels`` ``(n, C)`` besides, as the set's own steps regress them. What an encoder learned from
    the training texts is written beside them as ``encoder.safetensors``.
    """
    text = as_text_like(task)
    own = class_labels(batch.targets)
    labels = {"soft_labels": distributions(own, text.class_count)}
    if not are_probabilities(own):
        labels["labels"] = own
    if isinstance(text, TokenTask):
        inputs = text.named(batch.inputs)
        tensors = {
            "inputs_embeds": text.vocabulary.embeds(inputs["vectors"]),
            "attention_mask": inputs["mask"].long(),
        }
        if isinstance(batch.targets, dict):
            tensors["attention_labels"] = batch.targets["attention"]
        learned = {}
    else:
        tensors = {"embeds": one_tensor(batch.inputs)}
        learned = text.sentence_encoder.learned()
    written = [_write(folder / "embeds.safetensors", {**tensors, **labels}, text)]
    if learned:
        arrays = {name: value for name, value in learned.items() if isinstance(value, Tensor)}
        words = {name: value for name, value in learned.items() if isinstance(value, str)}
        written.append(_write(folder / "encoder.safetensors", arrays, text, words))
    return written


@into_folder
def export_texts(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write ``texts.jsonl``: a line per sample with its text, its class and the probability of each class.

    The text of a sentence point is the nearest training text (of pairs, ``text`` and ``text_pair``), that of token
    embeddings their nearest tokens.
    """
    text = as_text_like(task)
    names = text.data.class_names
    lines = []
    probabilities = distributions(class_labels(batch.targets), text.class_count)
    for words, row in zip(read(text, batch), probabilities.tolist(), strict=True):
        label = names[max(range(len(row)), key=row.__getitem__)]
        soft = {name: round(value, 6) for name, value in zip(names, row, strict=True)}
        first, mark, second = words.partition(PAIR)
        text_of = {"text": first, "text_pair": second} if mark else {"text": first}
        line = json.dumps({**text_of, "label": label, "soft_label": soft}, ensure_ascii=False)
        lines.append(line.translate(LINE_ENDS))
    path = folder / "texts.jsonl"
    with atomic_write(path) as handle:
        handle.write(("\n".join(lines) + "\n").encode())
    return [path]


def _write(path: Path, tensors: dict[str, Tensor], task: TextLike, words: dict[str, str] | None = None) -> Path:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    info = task.describe()
    metadata = {
        "encoder": str(info.preprocessing["encoder"]),
        "space": str(info.preprocessing["space"]),
        "data": info.data,
        "class_names": json.dumps(list(info.class_names)),
        **(words or {}),
    }
    write_tensors(path, plain, metadata)
    return path
