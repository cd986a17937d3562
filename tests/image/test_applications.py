"""What distilled sets are used for: parts of classes that are joined, selections beside them, and the two scripts."""

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mmdistill import DistilledSet, distill, evaluate, image_task, selection
from mmdistill.errors import CheckpointError, ConfigError, DataError, ShapeError, UnsupportedError
from mmdistill.image import ImageData, ImageTask, joined, load
from mmdistill.store import read_json
from mmdistill.task import Batch
from tests.toys import BlobTask

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load("digits")


def tiny(data: ImageData, *classes: str | int) -> ImageTask:
    return image_task(data.of_classes(classes), model="mlp", width=4, device="cpu", judge_epochs=2)


def test_parts_of_classes_keep_the_units_and_number_classes_anew(data: ImageData) -> None:
    part = data.of_classes(["7", 3])
    assert part.class_names == ("7", "3")
    assert (part.mean, part.std, part.name) == (data.mean, data.std, "digits")
    for images, labels, whole, truth in (
        (part.train_images, part.train_labels, data.train_images, data.train_labels),
        (part.test_images, part.test_labels, data.test_images, data.test_labels),
    ):
        assert torch.equal(images[labels == 0], whole[truth == 7])
        assert torch.equal(images[labels == 1], whole[truth == 3])
        assert len(images) == int(((truth == 7) | (truth == 3)).sum())
    assert part.fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["3"], "two or more"),
        ("37", "two or more"),
        (["3", 3], "once"),
        (["3", "x"], "no class 'x'"),
        ([0, 10], "no class 10"),
        ([0, True], "no class True"),
        ([0, 1.0], r"no class 1\.0"),
    ],
)
def test_parts_that_are_none_are_refused(data: ImageData, classes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        data.of_classes(classes)


def test_a_selection_is_a_set_like_others(data: ImageData, tmp_path: Path) -> None:
    task = tiny(data, 0, 1, 2)
    for rule in ("random", "Herding"):
        found = selection(task, rule, 2, seed=5)
        assert (found.method, found.budget, found.steps) == (rule.lower(), 2, 0)
        assert found.batch.targets.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
        assert found.stored_bytes == 6 * (64 + 1)
        real = task.select(torch.arange(len(data.of_classes([0, 1, 2]).train_labels))).inputs
        assert isinstance(inputs := found.batch.inputs, torch.Tensor)
        assert isinstance(real, torch.Tensor)
        assert all((real == image).flatten(1).all(1).any() for image in inputs)
        assert torch.equal(inputs, selection(task, rule, 2, seed=5).batch.inputs)  # type: ignore[arg-type]
        found.save(tmp_path / rule)
        again = DistilledSet.load(tmp_path / rule)
        assert evaluate(task, again, n=1, baselines=()).headline().n == 1
    one, other = (selection(task, "random", 2, seed=seed).batch.inputs for seed in (5, 6))
    assert not torch.equal(one, other)  # type: ignore[arg-type]


def test_sets_whitened_by_matrices_of_their_own_are_not_joined(data: ImageData) -> None:
    own = [
        distill(image_task(data.of_classes(part), whiten="mtt", width=4), "dm", ipc=1, settings={"steps": 1})
        for part in ([0, 1], [2, 3])
    ]
    with pytest.raises(CheckpointError, match="whitened by another matrix"):
        joined(image_task(data.of_classes([0, 1, 2, 3]), whiten="mtt", width=4), own)
    whole = image_task(data, whiten="mtt", width=4).data
    sets = [
        distill(image_task(whole.of_classes(part), width=4), "dm", ipc=1, settings={"steps": 1})
        for part in ([0, 1], [2, 3])
    ]
    assert joined(image_task(whole.of_classes([0, 1, 2, 3]), width=4), sets).targets.tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]


def test_selections_take_the_budgets_that_distilled_sets_take(data: ImageData) -> None:
    task = tiny(data, 0, 1)
    for found in (selection(task, "random", 2), selection(task, "random", bytes=389), selection(task, "random", ipc=2)):
        assert (found.budget, found.stored_bytes, len(found.batch.weight)) == (2, 260, 4)
    most = int(torch.bincount(task.labels).min())  # type: ignore[arg-type]
    assert [selection(task, "random", bytes=size).budget for size in (130, "1MB")] == [1, most]


def test_selections_that_cannot_be_are_refused(data: ImageData) -> None:
    task = tiny(data, 0, 1)
    with pytest.raises(ConfigError, match="unknown selection 'herd'; did you mean 'herding'"):
        selection(task, "herd", 1)
    with pytest.raises(ConfigError, match="budget"):
        selection(task, "random", ipc=0)
    with pytest.raises(ConfigError, match=r"take their budget as ipc=N or bytes=SIZE .*, got nodes=3"):
        selection(task, "random", nodes=3)
    with pytest.raises(ConfigError, match=r"129 bytes are too few: the smallest such set \(ipc 1\) takes 130"):
        selection(task, "random", bytes=129)
    with pytest.raises(DataError, match="fewer than the 1000"):
        selection(task, "random", 1000)
    with pytest.raises(ConfigError, match="a task is expected"):
        selection("digits", "random", 1)  # type: ignore[arg-type]


def test_sets_of_other_classes_join_by_name(data: ImageData) -> None:
    first, second, everything = tiny(data, 4, 2), tiny(data, 0, 9), tiny(data, 0, 2, 4, 9)
    sets = [selection(first, "random", 2), distill(second, "dm", ipc=1, settings={"steps": 1})]
    found = joined(everything, sets)
    assert found.targets.tolist() == [2, 2, 1, 1, 0, 3]  # type: ignore[union-attr]
    assert isinstance(inputs := sets[1].batch.inputs, torch.Tensor)
    assert isinstance(found.inputs, torch.Tensor)
    assert torch.equal(found.inputs[4:], inputs)
    assert evaluate(everything, found, n=1, baselines=()).headline().n == 1
    with pytest.raises(CheckpointError, match=r"of the classes 4, 2 of 'digits', the task has 0, 2, 4, 9; .*joined"):
        evaluate(everything, sets[0])
    probabilities = replace(sets[0], batch=sets[0].batch._replace(targets=torch.tensor([[0.25, 0.75]] * 4)))
    rows = joined(everything, [probabilities, sets[1]]).targets
    assert rows.tolist() == [[0, 0.75, 0.25, 0]] * 4 + [[1, 0, 0, 0], [0, 0, 0, 1]]  # type: ignore[union-attr]


def test_sets_that_do_not_join_are_refused(data: ImageData) -> None:
    part, everything = selection(tiny(data, 4, 2), "random", 1), tiny(data, 0, 2, 4)
    for sets in ([], part, [part, part.batch]):
        with pytest.raises(ConfigError, match="one or more distilled sets"):
            joined(everything, sets)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="class '4', which the task lacks"):
        joined(tiny(data, 0, 2), [part])
    with pytest.raises(ConfigError, match="for a task of images"):
        joined(BlobTask(), [part])  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="of text data"):
        joined(everything, [replace(part, info=replace(part.info, domain="text"))])
    own = data.of_classes([2, 4])
    other = image_task((own.train_images, own.train_labels), model="mlp", width=4, class_names=["2", "4"])
    with pytest.raises(CheckpointError, match=r"in the units of .*of_classes"):
        joined(everything, [selection(other, "random", 1)])
    images, targets, weight = part.batch
    assert isinstance(images, torch.Tensor)
    with pytest.raises(ShapeError, match="a set has"):
        joined(everything, [replace(part, batch=Batch(images[..., 1:], targets, weight))])
    with pytest.raises(UnsupportedError, match="scores"):
        joined(everything, [replace(part, batch=Batch(images, torch.tensor([[2.0, -1.0]] * 2), weight))])
    steps = {"inner_lr": torch.tensor([0.1]), "inner_parts": torch.tensor(1), "inner_momentum": torch.tensor(0.0)}
    with pytest.raises(UnsupportedError, match="fixed order"):
        joined(everything, [replace(part, learned=steps)])


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import continual  # type: ignore[import-not-found]
    import search  # type: ignore[import-not-found]

    return continual, search


ROW = "digits-dm-1:model=mlp,width=4,steps=2,judge_epochs=2"


def run(script: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--networks", "1", "--device", "cpu", "--out", str(out), *options])
    script.main()


def test_memories_grow_with_the_classes_that_arrive(
    scripts: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script, options = scripts[0], ("--row", ROW, "--steps", "2", "--seeds", "0,1")
    run(script, tmp_path, monkeypatch, *options)
    first = capsys.readouterr().out
    assert "| memory, classes seen | 5 | 10 |" in first
    (place,) = (tmp_path / "continual-2").iterdir()
    assert {path.name for path in place.iterdir()} >= {"continual.json", "continual.md", "continual.png"}
    found = read_json(place / "continual.json")["steps"]
    assert list(found) == ["dm", "random", "herding"]
    orders = [[run[-1]["classes"] for run in runs] for runs in found.values()]
    assert orders[0] == orders[1] == orders[2]
    assert [sorted(order) for order in orders[0]] == [list(range(10))] * 2
    assert orders[0][0] != orders[0][1]
    monkeypatch.setattr(script, "evaluate", None)  # nothing is judged again
    run(script, tmp_path, monkeypatch, *options)
    assert first.endswith(capsys.readouterr().out)


def test_classes_arrive_in_parts_of_two_or_more(scripts: tuple[ModuleType, ModuleType]) -> None:
    parts = scripts[0].arrivals(10, 4, seed=3)
    assert [len(part) for part in parts] == [3, 3, 2, 2]
    assert sorted(index for part in parts for index in part) == list(range(10))
    for steps in (0, 6):
        with pytest.raises(SystemExit, match="1 to 5 steps"):
            scripts[0].arrivals(10, steps, seed=3)


def test_candidates_are_scored_on_held_out_training_images(
    scripts: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = scripts[1]
    task, *_ = script.searched(ROW, 1, "cpu")
    data = load("digits")
    held = int(0.1 * len(data.train_images))
    assert (len(task.data.test_images), len(task.data.train_images)) == (held, len(data.train_images) - held)
    known = {image.numpy().tobytes() for image in data.train_images}
    assert all(image.numpy().tobytes() in known for image in task.data.test_images)
    grid = ("--depths", "1", "--widths", "2,3", "--norms", "in", "--activations", "relu", "--poolings", "avgpool")
    options = ("--row", ROW, "--whole-epochs", "1", *grid)
    run(script, tmp_path, monkeypatch, *options)
    first = capsys.readouterr().out
    for kind in ("dm", "random", "herding", "whole training set", "none, a blind choice"):
        assert f"| {kind} |" in first
    (place,) = (tmp_path / "search").iterdir()
    judged = read_json(place / "search.json")["judged"]
    assert list(judged) == ["whole 1", "dm 0", "random 0", "herding 0"]
    assert all(list(own) == ["convnet-d1-w2", "convnet-d1-w3"] for own in judged.values())
    monkeypatch.setattr(script, "evaluate", None)  # nothing is judged again
    run(script, tmp_path, monkeypatch, *options)
    assert first.endswith(capsys.readouterr().out)


def test_ranks_and_choices_are_those_of_the_scores(scripts: tuple[ModuleType, ModuleType]) -> None:
    script = scripts[1]
    names = ["a", "b", "c", "d"]

    def judged(*means: float) -> dict[str, Any]:
        return {name: {"mean": mean, "seconds": 1.0, "networks": 2} for name, mean in zip(names, means, strict=True)}

    found = {
        "made": {"dm 0": 3.0, "dm 1": 5.0, "random 0": 0.0, "random 1": 0.0},
        "judged": {
            "whole 5": judged(0.1, 0.2, 0.3, 0.4),
            "dm 0": judged(0.1, 0.2, 0.3, 0.4),
            "dm 1": judged(0.1, 0.2, 0.4, 0.3),
            "random 0": judged(0.4, 0.3, 0.2, 0.1),
            "random 1": judged(0.5, 0.5, 0.5, 0.5),
        },
    }
    lines = script.table(found, "whole 5", ("dm", "random"), names, [0, 1])
    assert "| dm | 0.90 +/- 0.14 | 0.00 +/- 1.41 | 35.0 +/- 7.1 | 4 | 4 |" in lines
    assert "| random | -0.50 +/- 0.71 | -0.50 +/- 0.71 | 10.0 +/- 0.0 | 0 | 4 |" in lines
    assert "| whole training set | | | 40.0 | | 4 |" in lines
    assert "| none, a blind choice | | | 25.0 | | |" in lines


def test_candidates_that_do_not_take_the_images_are_left_out(scripts: tuple[ModuleType, ModuleType]) -> None:
    task, *_ = scripts[1].searched(ROW, 1, "cpu")
    found = scripts[1].grid(task, "1,5", "2", "nn", "relu", "avgpool,nopool")
    assert found == ["convnet-d1-w2-nn", "convnet-d1-w2-nn-nopool", "convnet-d5-w2-nn-nopool"]


def test_the_shown_code_runs(data: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "applications.md").read_text()
    quick = {'"steps": 1000, "real_batch": 64': '"steps": 1, "real_batch": 4', "judge_epochs=300": "judge_epochs=1"}
    quick |= {"ipc=10": "ipc=1", "n=3": "n=1", "n=2": "n=1", "width=32": "width=2", "width=16": "width=2"}
    quick |= {"(8, 16)": "(2,)", "(1, 2)": "(1,)"}
    few = torch.cat([(data.train_labels == index).nonzero().flatten()[:20] for index in range(6)])
    images, labels = data.train_images[few], data.train_labels[few]
    names = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
    names |= {"held_images": images, "held_labels": labels}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        for long, short in quick.items():
            block = block.replace(long, short)
        exec(block, names)
    shown = capsys.readouterr().out
    assert re.search(r"^\[0, 1, 2, 3, 4, 5\] \d+\.\d$", shown, re.MULTILINE)
    assert "whole" in shown
    assert len(names["ranked"]) == 2
