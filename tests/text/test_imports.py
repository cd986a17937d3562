"""Points and token embeddings of a task's encoder become sets of texts; those of other encoders are refused."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from mmdistill import evaluate, import_set, text_task
from mmdistill.errors import DataError, ShapeError
from mmdistill.task import Batch
from tests.text.corpus import sentences, token_corpus_task


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
    path.write_bytes(b"cut")
    with pytest.raises(DataError, match="is damaged"):
        import_set(task, path)
    (tmp_path / "folder.safetensors" / "deep").mkdir(parents=True)
    with pytest.raises(DataError, match="is a folder"):
        import_set(task, tmp_path / "folder.safetensors")
    for bad in (points[:0], points.sum()):
        with pytest.raises(DataError, match=r"holds no sample|points are \(n, d\)"):
            import_set(task, {"embeds": bad, "labels": labels[:0]})
    safetensors.torch.save_file(tensors, path)
    assert import_set(task, path).budget == 2


def test_token_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    task = token_corpus_task(tmp_path)
    wide, mask = torch.randn(3, 4, len(task.vocabulary.mean)), torch.ones(3, 4)
    given = {"inputs_embeds_best": wide, "attention_mask": mask, "labels": torch.arange(3)}
    found = import_set(task, given)
    assert isinstance(found.batch.inputs, dict)
    torch.testing.assert_close(found.batch.inputs["vectors"], task.vocabulary.in_own_units(wide))
    for bad in (wide[..., 1:], wide[0], torch.tensor(1.0)):
        with pytest.raises(DataError, match=r"encoder have \d+ numbers, got \(3, 4, |vectors \(n, L, H\) have a mask"):
            import_set(task, given | {"inputs_embeds_best": bad, "attention_mask": mask.new_ones(bad.shape[:-1])})


def test_masks_are_zeros_and_ones_of_any_type(tmp_path: Path) -> None:
    task = token_corpus_task(tmp_path)
    vectors, mask = torch.randn(3, 4, task.vocabulary.dim), torch.tensor([1, 1, 1, 0]).expand(3, 4)
    given = {"vectors": vectors, "mask": mask, "labels": torch.arange(3)}
    found = import_set(task, given)
    expected = evaluate(task, found, n=1, baselines=()).results
    for same in (mask.bool(), mask.float(), mask.double()):
        other = import_set(task, given | {"mask": same})
        assert evaluate(task, other, n=1, baselines=()).results == expected
        batch = Batch({"vectors": vectors * mask[..., None], "mask": same}, torch.arange(3), torch.ones(3))
        assert evaluate(task, batch, n=1, baselines=(), judges=["textcnn", "read-alone"]).results[:1] == expected
    additive = torch.where(mask.bool(), 0.0, -1e4)  # as transformers adds it to attention scores: zeros are tokens
    for bad in (additive, mask * 0.5):
        with pytest.raises(DataError, match=r"a mask is 1 .or true. for tokens and 0 elsewhere, got numbers from"):
            import_set(task, given | {"mask": bad})
        with pytest.raises(DataError, match="a mask is 1"):
            evaluate(task, Batch({"vectors": vectors, "mask": bad}, torch.arange(3), torch.ones(3)), n=1, baselines=())
    with pytest.raises(ShapeError, match=r"vectors \(3, 4, \d+\) have a mask \(3, 4\), got \(4, 3\)"):
        evaluate(task, Batch({"vectors": vectors, "mask": mask.T}, torch.arange(3), torch.ones(3)), n=1, baselines=())
