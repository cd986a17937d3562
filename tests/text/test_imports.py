"""Points and token embeddings of a task's encoder become sets of texts; those of other encoders are refused."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from mmdistill import evaluate, import_set, text_task
from mmdistill.errors import DataError, ShapeError
from tests.text.corpus import sentences


def test_points_with_labels(tmp_path: Path) -> None:
    task = text_task(sentences(20, 0), test=sentences(10, 1), encoder="tfidf", device="cpu")
    points, labels = task.embedding()[:6].clone(), torch.arange(6) % 3
    torch.save(points, tmp_path / "vectors.pt")
    torch.save(labels, tmp_path / "labels.pt")
    found = import_set(task, [tmp_path / "vectors.pt", tmp_path / "labels.pt"], name="mine")
    assert torch.equal(torch.as_tensor(found.batch.inputs), points)
    assert (found.budget, found.stored_bytes) == (2, 4 * points.numel() + 6)
    assert evaluate(task, found, judges=["ridge"], n=1, baselines=()).results
    with pytest.raises(ShapeError, match="inputs are floats"):
        import_set(task, {"embeds": points[:, 1:], "labels": labels})
    path = tmp_path / "embeds.safetensors"
    tensors = {"embeds": points, "labels": labels}
    safetensors.torch.save_file(tensors, path, {"space": "another", "encoder": "theirs"})
    with pytest.raises(DataError, match=r"is of the space of 'theirs' .another., and the task's"):
        import_set(task, path)
    safetensors.torch.save_file(tensors, path)
    assert import_set(task, path).budget == 2
