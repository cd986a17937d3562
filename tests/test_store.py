import copy
import dataclasses
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, NonFiniteError, ShapeError, UnsupportedError
from mmdistill.store import digest_of, load_tree, read_tensors, save_tree, write_tensors, write_text
from mmdistill.task import Batch, Inputs, TaskInfo

INFO = TaskInfo("graph", "toy", "nodes", 10, 400, "abc", ("x", "y"), {"mean": [0.5]})


def make_set() -> DistilledSet:
    batch = Batch({"x": torch.rand(4, 3), "edge": torch.eye(4)}, torch.tensor([0, 0, 1, 1]), torch.ones(4))
    return DistilledSet(batch, INFO, "gcond", 4, 123, learned={"ridge": torch.tensor(0.5)}, settings={"steps": 3})


def test_sets_survive_the_disk(tmp_path: Path) -> None:
    saved = dataclasses.replace(make_set(), classes=torch.tensor([0, 1, 1, 1]))
    saved.save(tmp_path)
    loaded = DistilledSet.load(tmp_path)
    assert isinstance(loaded.batch.inputs, dict)
    assert torch.equal(loaded.batch.inputs["x"], saved.batch.inputs["x"])  # type: ignore[index]
    assert torch.equal(loaded.batch.targets, saved.batch.targets)  # type: ignore[arg-type]
    assert loaded.classes is not None
    assert loaded.classes.tolist() == [0, 1, 1, 1]
    assert loaded.learned["ridge"].item() == 0.5
    assert loaded.info == INFO
    assert (loaded.method, loaded.budget, loaded.stored_bytes) == ("gcond", 4, 123)
    document = json.loads((tmp_path / "distilled.json").read_text())
    assert document["version"] == 2
    assert "torch" in document["packages"]


def test_the_seconds_of_a_step_are_those_of_all_that_were_taken_without_set_up_and_compiling() -> None:
    spent = {"seconds": 20.0, "setup_seconds": 5.0, "compile_seconds": 3.0, "inner_seconds": 4.0}
    found = dataclasses.replace(make_set(), steps=2, taken=4, **spent)  # type: ignore[arg-type]
    assert (found.seconds_per_step, found.seconds_per_update) == (3.0, 2.0)


def test_a_folder_may_be_a_string(tmp_path: Path) -> None:
    make_set().save(str(tmp_path / "set"))
    assert DistilledSet.load(str(tmp_path / "set")).budget == make_set().budget


def test_samples_that_are_their_own_targets_are_stored_once(tmp_path: Path) -> None:
    rows = torch.rand(4, 100)
    info = replace(INFO, class_names=())
    saved = dataclasses.replace(make_set(), batch=Batch(rows, rows.clone(), torch.ones(4)), info=info)
    saved.save(tmp_path)
    path = tmp_path / "distilled.safetensors"
    assert path.stat().st_size < 1.5 * rows.nbytes
    assert torch.equal(DistilledSet.load(tmp_path).batch.targets, rows)  # type: ignore[arg-type]
    dataclasses.replace(saved, batch=Batch(rows, rows + 1, torch.ones(4))).save(tmp_path)
    assert torch.equal(DistilledSet.load(tmp_path).batch.targets, rows + 1)  # type: ignore[arg-type]
    dataclasses.replace(saved, batch=Batch(rows, rows.double(), torch.ones(4))).save(tmp_path)
    assert DistilledSet.load(tmp_path).batch.targets.dtype == torch.float64  # type: ignore[union-attr]


def test_equal_sets_are_equal_files(tmp_path: Path) -> None:
    saved = make_set()
    for index in range(8):
        saved.save(tmp_path / str(index))
    assert len({(tmp_path / str(index) / "distilled.safetensors").read_bytes() for index in range(8)}) == 1


def test_a_set_that_is_half_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object, **options: object) -> bytes:
        raise RuntimeError("killed")

    monkeypatch.setattr("safetensors.torch.save", killed)
    with pytest.raises(RuntimeError, match="killed"):
        make_set().save(tmp_path)
    with pytest.raises(CheckpointError, match="holds no distilled set"):
        DistilledSet.load(tmp_path)


def test_damaged_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no distilled set"):
        DistilledSet.load(tmp_path)
    make_set().save(tmp_path)
    tensors = tmp_path / "distilled.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        DistilledSet.load(tmp_path)
    changed = bytearray(whole)
    changed[-1] ^= 1
    tensors.write_bytes(changed)
    with pytest.raises(CheckpointError, match="is damaged, or of another set"):
        DistilledSet.load(tmp_path)
    tensors.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        DistilledSet.load(tmp_path)
    tensors.write_bytes(whole)
    document = tmp_path / "distilled.json"
    text = document.read_text()
    document.write_text(text.replace('"version": 2', '"version": 1'))
    with pytest.raises(
        CheckpointError, match=r"distilled\.json has version 1, this mmdistill reads 2; use another folder"
    ):
        DistilledSet.load(tmp_path)
    for damage in ('{"version": ' + "9" * 5000 + "}", "[" * 200_000):
        document.write_text(damage)
        with pytest.raises(CheckpointError, match="damaged"):
            DistilledSet.load(tmp_path)
    document.write_text(text[:50])
    with pytest.raises(CheckpointError, match="damaged"):
        DistilledSet.load(tmp_path)
    content = json.loads(text)
    del content["method"]
    document.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="incomplete"):
        DistilledSet.load(tmp_path)


def test_sets_of_another_task_are_refused() -> None:
    saved = make_set()
    saved.require(INFO)
    with pytest.raises(CheckpointError, match="distilled from graph data, the task is text"):
        saved.require(TaskInfo("text", "toy", "ipc", 10, 400, "abc"))
    with pytest.raises(CheckpointError, match="from 'toy' as it was with fingerprint abc; it has other now; bring"):
        saved.require(TaskInfo("graph", "toy", "nodes", 10, 400, "other"))
    with pytest.raises(CheckpointError, match="the task's data 'else' has fingerprint other"):
        saved.require(TaskInfo("graph", "else", "nodes", 10, 400, "other"))
    with pytest.raises(CheckpointError, match=r"budget in nodes \(distilled.json, info.budget\), the task in"):
        saved.require(replace(INFO, budget="users"))
    with pytest.raises(
        CheckpointError, match=r"in the units of .*, the task's data 'toy' in those of \{'scale': 16\.0, 'mean'"
    ):
        saved.require(replace(INFO, preprocessing={**INFO.preprocessing, "scale": 16.0}))
    saved.require(replace(INFO, preprocessing={**INFO.preprocessing, "splits": ["worded anew"]}))


def test_a_set_is_shown_in_one_line() -> None:
    shown = repr(make_set())
    assert shown.startswith("DistilledSet(toy by ")
    assert "inputs {x (" in shown
    assert "tensor(" not in shown


def test_trees_keep_their_shape(tmp_path: Path) -> None:
    shared = torch.rand(3)
    tree = {"a": [1, None, {"b": shared}], "same": shared, "state": {0: {"step": torch.tensor(2.0)}}, "pair": (1, 2.5)}
    save_tree(tmp_path / "tree", tree)
    loaded = load_tree(tmp_path / "tree")
    assert torch.equal(loaded["a"][2]["b"], shared)
    assert loaded["state"][0]["step"] == 2
    assert loaded["a"][:2] == [1, None]
    assert loaded["pair"] == [1, 2.5]
    with pytest.raises(CheckpointError, match="cannot hold a set"):
        save_tree(tmp_path / "bad", {"a": {1, 2}})


def test_what_is_read_leaves_its_file_alone(tmp_path: Path) -> None:
    """Tensors that map their file keep it from being replaced on Windows, and change with it elsewhere."""
    saved, tree = make_set(), {"state": torch.rand(5000)}
    saved.save(tmp_path)
    save_tree(tmp_path / "tree", tree)
    loaded, state = DistilledSet.load(tmp_path), load_tree(tmp_path / "tree")["state"]
    for path in (tmp_path / "distilled.safetensors", tmp_path / "tree"):
        size = path.stat().st_size
        with path.open("r+b") as handle:
            handle.write(bytes(size))
    assert torch.equal(loaded.batch.inputs["x"], saved.batch.inputs["x"])  # type: ignore[index]
    assert torch.equal(state, tree["state"])


def test_a_changed_byte_of_a_tree_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    save_tree(path, {"step": 5, "codes": torch.rand(3)})
    whole = path.read_bytes()
    for place in (len(whole) - 1, whole.index(b"step") + len(b'step\\", ')):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="content has changed since it was written"):
            load_tree(path)
    path.write_bytes(whole)
    assert load_tree(path)["step"] == 5


def test_digests_of_tensors_of_any_form() -> None:
    odd = {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3), "half": torch.ones(2, dtype=torch.bfloat16)}
    assert digest_of(odd) == digest_of({name: tensor.clone() for name, tensor in reversed(odd.items())})
    assert digest_of(odd) != digest_of({**odd, "empty": torch.zeros(3, 0)})
    assert digest_of(odd) != digest_of(odd, "text")


def test_a_set_without_a_digest_is_refused(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    content = json.loads((tmp_path / "distilled.json").read_text())
    del content["digest"]
    (tmp_path / "distilled.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"is damaged, or of another set than distilled\.json"):
        DistilledSet.load(tmp_path)


def test_foreign_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="no checkpoint of mmdistill"):
        load_tree(path)
    path.write_bytes(safetensors.torch.save({}, metadata={"tree": json.dumps({"version": 1, "root": None})}))
    with pytest.raises(CheckpointError, match="version 1, this mmdistill reads 2"):
        load_tree(path)
    with pytest.raises(CheckpointError, match="missing"):
        load_tree(tmp_path / "nowhere")


def test_sets_of_nan_are_refused(tmp_path: Path) -> None:
    saved = make_set()
    saved.batch.inputs["x"][1, 2] = torch.nan  # type: ignore[call-overload,index]
    saved.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values \(inputs\.x\)"):
        DistilledSet.load(tmp_path)
    with pytest.raises(NonFiniteError, match=r"set of dm holds NaN or infinite values \(targets\)"):
        make_samples(torch.tensor([[0.5, torch.nan]])).require_finite()
    with pytest.raises(NonFiniteError, match=r"^ridge of gcond became NaN or infinite: lower the rates"):
        dataclasses.replace(make_set(), learned={"ridge": torch.tensor(torch.inf)}).require_finite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(3)}, "as many inputs, targets and weights"),
        ({"weight": torch.tensor(1.0)}, "as many inputs, targets and weights"),
        ({"weight": torch.zeros(4)}, "weights are finite numbers of at least 0, some of them above"),
        ({"weight": torch.ones(0), "inputs": torch.ones(0, 3), "targets": torch.arange(0)}, "some of them above"),
        ({"inputs": torch.ones(3, 3)}, "as many inputs, targets and weights"),
        ({"inputs": torch.ones(4, 3).to(torch.complex64)}, r"no set has such numbers \(inputs, torch.complex64\)"),
        ({"inputs": torch.ones(4, 3).to(torch.float8_e4m3fn)}, "no set has such numbers"),
        ({"targets": torch.tensor([0, 1, 2, 0])}, "targets are indices of 2 classes, got 0 to 2"),
        ({"targets": torch.tensor([0, 1, -1, 0])}, "targets are indices of 2 classes, got -1 to 1"),
        ({"targets": torch.zeros(4, 2).long()}, "targets are a class index for each sample"),
        ({"targets": torch.zeros(4)}, "targets are rows of 2 numbers"),
        ({"targets": torch.zeros(4, 3)}, "targets are rows of 2 numbers"),
        ({"targets": torch.zeros(4, 2), "classes": torch.tensor([5])}, "classes are a class index for each sample"),
        ({"targets": torch.zeros(4, 2), "classes": torch.full((4,), 5)}, "classes are indices of 2 classes"),
    ],
)
def test_samples_of_forms_that_no_set_has_are_damage(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    saved = replace(make_set(), batch=Batch(torch.rand(4, 3), torch.tensor([0, 0, 1, 1]), torch.ones(4)))
    saved.save(tmp_path)
    tensors = read_tensors(tmp_path / "distilled.safetensors")[0] | change
    write_tensors(tmp_path / "distilled.safetensors", tensors)
    document = json.loads((tmp_path / "distilled.json").read_text())
    (tmp_path / "distilled.json").write_text(json.dumps({**document, "digest": digest_of(tensors)}))
    with pytest.raises(CheckpointError, match=f"distilled.safetensors is damaged: .*{message}"):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.zeros(4, 1, 8).long(), r"int64 \(4, 1, 8\)"),
        (torch.zeros(4, 1, 9), r"float32 \(4, 1, 9\)"),
        (torch.zeros(4, 8), r"float32 \(4, 8\)"),
        ({"x": torch.zeros(4, 1, 8)}, r"inputs.x \(4, 1, 8\)"),
    ],
    ids=["whole numbers", "size", "axes", "names"],
)
def test_samples_of_other_forms_than_their_tasks_are_named(tmp_path: Path, inputs: Inputs, found: str) -> None:
    info = replace(INFO, forms={"inputs": (1, 8)})
    good = replace(make_set(), batch=Batch(torch.rand(4, 1, 8).half(), torch.arange(4) % 2, torch.ones(4)), info=info)
    good.save(tmp_path)
    assert DistilledSet.load(tmp_path).info == info
    bad = replace(good, batch=good.batch._replace(inputs=inputs))
    message = rf"distilled.safetensors.*: inputs are floats \(n, 1, 8\), got {found}"
    with pytest.raises(CheckpointError, match=message):
        bad.require(info)
    bad.save(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        DistilledSet.load(tmp_path)


def test_a_task_of_ones_own_may_read_whole_numbers(tmp_path: Path) -> None:
    batch = Batch(torch.arange(12).view(4, 3), torch.tensor([0, 0, 1, 1]), torch.ones(4))
    replace(make_set(), batch=batch, info=replace(INFO, domain="series")).save(tmp_path)
    assert DistilledSet.load(tmp_path).batch.inputs.dtype == torch.int64  # type: ignore[union-attr]


@pytest.mark.parametrize("targets", [torch.rand(4), torch.ones(4, 3).long()], ids=["regression", "tags"])
def test_targets_without_classes_have_forms_of_their_own(tmp_path: Path, targets: Tensor) -> None:
    batch = Batch(torch.rand(4, 3), targets, torch.ones(4))
    replace(make_set(), batch=batch, classes=None, info=replace(INFO, class_names=())).save(tmp_path)
    assert torch.equal(DistilledSet.load(tmp_path).batch.targets, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("budget", "many", "budget is 'many', and no int"),
        ("budget", 0, "budget is 0, and no number of nodes"),
        ("budget", True, "budget is True, and no int"),
        ("info", {**INFO.__dict__, "tensors": {}, "budget": "rows"}, "info.budget is 'rows', and none of ipc, nodes,"),
        ("info", {**INFO.__dict__, "tensors": {}, "budget": None}, "info.budget is None, and none of ipc, nodes,"),
        ("steps", True, "steps is True, and no int"),
        ("seconds", None, "seconds is None, and no float"),
        ("inner_seconds", "few", "inner_seconds is 'few', and no float"),
        ("settings", None, "settings is None, and no Mapping"),
        ("stored_bytes", [3], "stored_bytes is"),
        ("info", {**INFO.__dict__, "tensors": {}, "stored_bytes": "some"}, "stored_bytes is 'some'"),
        ("info", {**INFO.__dict__, "tensors": {}, "forms": {"inputs": 3}}, "info.forms is .*, and no lists of whole"),
        ("info", None, "incomplete"),
        ("settings", {"optimizers": 3}, "distilled.json is .*settings.optimizers is 3, and no Mapping"),
        ("settings", {"optimizers": {"codes": 3}}, "settings.optimizers.codes is 3, and no optimizer"),
        (
            "info",
            {**INFO.__dict__, "tensors": {}, "class_names": [1, 2]},
            "info.class_names is .*, and no list of texts",
        ),
        (
            "info",
            {**INFO.__dict__, "tensors": {}, "class_names": "ab"},
            "info.class_names is 'ab', and no list of texts",
        ),
    ],
)
def test_what_a_person_edited_is_named(tmp_path: Path, name: str, value: object, message: str) -> None:
    make_set().save(tmp_path)
    document = tmp_path / "distilled.json"
    content = json.loads(document.read_text())
    document.write_text(json.dumps({**content, name: value}))
    with pytest.raises(CheckpointError, match=message):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize("budget", [1, 5])
def test_a_set_may_hold_fewer_or_more_samples_than_its_budget(tmp_path: Path, budget: int) -> None:
    replace(make_set(), budget=budget).save(tmp_path)  # of four samples
    assert DistilledSet.load(tmp_path).budget == budget


@pytest.mark.parametrize("budget", [0, -1, True, "1", 1 << 60])
def test_a_budget_that_is_no_count_is_refused(tmp_path: Path, budget: object) -> None:
    replace(make_set(), budget=budget).save(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"distilled.json is damaged.*budget is {budget!r}, and no"):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize(
    "tree", ["{", "{}", "[]", '{"version": 2}', '{"version": 2, "root": {"$dict": [["a", {"$tensor": "t9"}]]}}']
)
def test_damaged_trees_are_named(tmp_path: Path, tree: str) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(safetensors.torch.save({"t0": torch.ones(1)}, metadata={"tree": tree}))
    with pytest.raises(CheckpointError, match="damaged"):
        load_tree(path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tree.safetensors")
    with pytest.raises(CheckpointError, match="is no file"):
        load_tree(tmp_path / "tree.safetensors")


def make_samples(targets: Tensor, class_names: tuple[str, ...] = ("x", "y")) -> DistilledSet:
    info = dataclasses.replace(INFO, domain="image", budget="ipc", class_names=class_names)
    return DistilledSet(Batch(torch.rand(len(targets), 5), targets, torch.ones(len(targets))), info, "dm", 2, 1)


def test_a_set_is_equal_to_itself_alone() -> None:
    found = make_set()
    assert found == found
    assert found != copy.deepcopy(found)
    assert {found: "kept"}[found] == "kept"


def test_samples_come_from_a_loader() -> None:
    found = make_samples(torch.tensor([0, 1, 1]))
    inputs, targets = next(iter(DataLoader(found.dataset(), batch_size=3)))
    assert torch.equal(inputs, found.batch.inputs)  # type: ignore[arg-type]
    assert torch.equal(targets, found.batch.targets)  # type: ignore[arg-type]
    named = {"vectors": torch.rand(3, 4, 2), "mask": torch.ones(3, 4)}
    labels = {"labels": torch.tensor([0, 1, 1]), "attention": torch.rand(3, 6)}
    several = dataclasses.replace(found, batch=Batch(named, labels, torch.ones(3)))
    first, second = DataLoader(several.dataset(), batch_size=2)
    assert torch.equal(torch.cat([first[0]["vectors"], second[0]["vectors"]]), named["vectors"])
    assert torch.equal(torch.cat([first[1]["attention"], second[1]["attention"]]), labels["attention"])
    for linked in (make_set(), dataclasses.replace(found, batch=Batch({"x": torch.rand(5, 2)}, *found.batch[1:]))):
        with pytest.raises(UnsupportedError, match="nodes of one graph come together"):
            linked.dataset()


def test_the_loss_is_what_labels_ask_for() -> None:
    outputs = torch.randn(3, 2)
    classes, shares, scores = torch.tensor([0, 1, 1]), torch.tensor([[0.2, 0.8]]).expand(3, 2), torch.randn(3, 2)
    found = make_samples(classes)
    torch.testing.assert_close(found.loss(outputs, classes), F.cross_entropy(outputs, classes))
    torch.testing.assert_close(make_samples(shares).loss(outputs, shares), F.cross_entropy(outputs, shares))
    scored = make_samples(torch.cat([shares[:1], scores[1:]]))  # one of whose rows could be a distribution
    torch.testing.assert_close(scored.loss(outputs, scored.batch.targets), F.mse_loss(outputs, scored.batch.targets))  # type: ignore[arg-type]
    torch.testing.assert_close(scored.loss(outputs[:1], shares[:1]), F.mse_loss(outputs[:1], shares[:1]))
    with pytest.raises(ShapeError, match=r"expected outputs \(3, 2\)"):
        found.loss(torch.randn(3, 4), classes)
    with pytest.raises(ShapeError, match=r"got \(3, 2\) and \(3, 1\)"):
        found.loss(outputs, classes[:, None])
    with pytest.raises(UnsupportedError, match="have no classes"):
        make_samples(torch.rand(3, 5), class_names=()).loss(outputs, outputs)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_what_is_no_utf8_is_escaped_in_texts_and_read_by_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "\udcff"
    write_text(folder / "page", "grün \udcff")
    assert (folder / "page").read_bytes() == "grün \\udcff".encode()
    write_tensors(folder / "held", {"x": torch.ones(2)}, {"data": str(folder)})
    tensors, metadata = read_tensors(folder / "held")
    assert (tensors["x"].tolist(), metadata) == ([1.0, 1.0], {"data": rf"{tmp_path}/\udcff"})
    with pytest.raises(CheckpointError, match="is missing"):
        read_tensors(folder / "other")


def test_names_are_opened_as_the_system_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system in Latin-1 writes é as a byte that is no UTF-8, which safetensors does not take."""
    path, opened = tmp_path / "été.safetensors", []
    write_tensors(path, {"x": torch.ones(2)})
    plain = safetensors.safe_open

    def seen(name: object, framework: str) -> object:
        opened.append(str(name))
        return plain(name, framework=framework)

    monkeypatch.setattr(safetensors, "safe_open", seen)
    for encoding in ("utf-8", "latin-1"):
        monkeypatch.setattr(os, "fsencode", lambda name, encoding=encoding: str(name).encode(encoding))
        assert torch.equal(read_tensors(path)[0]["x"], torch.ones(2))
    assert opened[0] == str(path)
    assert opened[1].startswith("/dev/fd/")
