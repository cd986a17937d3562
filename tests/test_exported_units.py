"""Exports in other units than the task's, or with classes in another order, are not imported as if they were alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmdistill import DistilledSet, export, graph_task, image_task, import_set, selection
from mmdistill.errors import ConfigError, DataError, MmdistillWarning
from mmdistill.task import Batch
from tests.graph.toy import planted_graph


def chosen(whiten: str | None = None) -> DistilledSet:
    return selection(image_task("digits", whiten=whiten), "random", ipc=1)


@pytest.mark.parametrize("format", ["pt", "tensors"])
def test_images_of_another_whitening_are_refused(format: str, tmp_path: Path) -> None:
    tasks = {kind: image_task("digits", whiten=kind) for kind in (None, "mtt", "frepo")}
    for kind in (None, "mtt"):
        folder = tmp_path / str(kind)
        written = export(chosen(kind), format, folder)
        for own, task in tasks.items():
            for source in (folder, [path for path in written if path.suffix != ".json"]):
                if own == kind:
                    assert import_set(task, source).budget == 1
                    continue
                message = rf"other units than those of digits here: whitening is {kind or 'none'}, not {own or 'none'}"
                with pytest.raises(DataError, match=message.lower()):
                    import_set(task, source)


def test_images_of_other_moments_are_refused(tmp_path: Path) -> None:
    task, found = image_task("digits"), chosen()
    other = {**found.info.preprocessing, "mean": [0.5]}
    export(replace(found, info=replace(found.info, preprocessing=other)), "pt", tmp_path)
    with pytest.raises(DataError, match=r"mean is \(0.5\), not \(0.3057\); choose the preprocessing that they had"):
        import_set(task, tmp_path)
    near = {**found.info.preprocessing, "mean": [task.data.mean[0] * 1.02]}  # as other held-out samples leave it
    export(replace(found, info=replace(found.info, preprocessing=near)), "pt", tmp_path / "near")
    assert import_set(task, tmp_path / "near").budget == 1
    export(found, "folder", tmp_path / "pixels")
    assert import_set(image_task("digits", whiten="mtt"), tmp_path / "pixels").budget == 1  # pixels are of no units


def test_classes_in_another_order_are_refused_and_other_names_noted(tmp_path: Path) -> None:
    task, found = image_task("digits"), chosen()
    names = found.info.class_names
    for place, called in (("turned", names[::-1]), ("words", tuple(f"n{name}" for name in names))):
        export(replace(found, info=replace(found.info, class_names=called)), "pt", tmp_path / place)
    with pytest.raises(DataError, match=r"classes are 9, 8, .* in another order: 0, 1, .*; labels would be of other"):
        import_set(task, tmp_path / "turned")
    with pytest.warns(MmdistillWarning, match=r"classes are called n0, .* in this order for 0, 1"):
        assert import_set(task, tmp_path / "words").budget == 1


def test_graphs_of_other_scaling_are_refused(tmp_path: Path) -> None:
    graph = planted_graph()
    moments = {name: torch.ones(graph.x.shape[1]) for name in ("feature_mean", "feature_deviation")}
    plain, scaled = graph_task(graph), graph_task(replace(graph, scaling=moments))
    export(selection(scaled, "random", nodes=4), "pyg", tmp_path)
    assert import_set(scaled, tmp_path).budget == 4
    with pytest.raises(DataError, match=r"feature_mean is \(1, 1.*\), not none"):
        import_set(plain, tmp_path)


def test_other_files_beside_a_set_say_nothing(tmp_path: Path) -> None:
    task, found = image_task("digits"), chosen()
    batch = found.batch
    for name, tensor in {"images": batch.inputs, "labels": batch.targets}.items():
        torch.save(tensor, tmp_path / f"{name}.pt")
    for content in ("{", json.dumps({"mean": [0.5]}), json.dumps([1])):
        (tmp_path / "preprocessing.json").write_text(content)
        assert import_set(task, tmp_path).budget == 1


def test_logits_are_no_class_indices_and_no_probabilities() -> None:
    task = image_task("digits")
    batch = chosen().batch
    assert isinstance(batch, Batch)
    images, labels = batch.inputs, batch.targets
    with pytest.raises(ConfigError, match="class indices and no logits"):
        import_set(task, {"images": images, "labels": labels}, logits=True)
    with pytest.warns(MmdistillWarning, match="are probabilities, and their softmax is taken"):
        import_set(task, {"images": images, "labels": torch.rand(10, 10).softmax(1)}, logits=True)


def test_bytes_that_are_nearly_black_are_noted() -> None:
    task = image_task("digits")
    images, labels = torch.randint(0, 2, (10, 1, 8, 8)), torch.arange(10)
    with pytest.warns(MmdistillWarning, match="brightest byte is 1, and white is 255"):
        import_set(task, {"images": images, "labels": labels})
    import_set(task, {"images": 255 * images, "labels": labels})
