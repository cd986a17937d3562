"""Use from notebooks and a user's own scripts: cells that run twice, copies of tasks, bars, tables to look at."""

import copy
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse
from torch import Tensor, nn
from torch_geometric.data import Data

from mmdistill.distill import distill, identity, method_settings
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, UnsupportedError
from mmdistill.evaluate import evaluate
from mmdistill.evaluation import Evaluation
from mmdistill.graph import load_graph
from mmdistill.graph.sets import load_graph_set
from mmdistill.graph.sets.task import graph_set_task
from mmdistill.graph.task import graph_task
from mmdistill.image import ImageTask, image_task, load
from mmdistill.image.whitening import whitened
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS
from mmdistill.networks import clock
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.progress import StepProgress
from mmdistill.recsys import load_interactions, recsys_task
from mmdistill.registry import get_domain, get_method, located
from mmdistill.reporting.compare import compare
from mmdistill.runs.checkpoints import Checkpoints
from mmdistill.runs.saving import draw, pictures, save_evaluation
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Task, TaskInfo, one_tensor
from mmdistill.text.data import load_text
from mmdistill.text.task import text_task
from tests.toys import BlobTask

SHORT = {"steps": 12, "real_batch": 8, "augment": False}


def a_graph(nodes: int = 60, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % 3
    x = torch.randn(nodes, 8, generator=generator) + nn.functional.one_hot(y, 8)
    place = torch.arange(nodes)
    return Data(
        x=x,
        edge_index=torch.randint(nodes, (2, 3 * nodes), generator=generator),
        y=y,
        train_mask=place < 30,
        val_mask=(place >= 30) & (place < 45),
        test_mask=place >= 45,
    )


def an_image_task() -> ImageTask:
    return image_task("digits", model="convnet-w8", judge_epochs=2)


def a_graph_task() -> Task:
    return graph_task(a_graph(), model="sgc")


def some_graphs() -> list[Data]:
    def one(index: int) -> Data:
        found = a_graph(6, index)
        return Data(x=found.x, edge_index=found.edge_index, y=torch.tensor([index % 2]))

    return [one(index) for index in range(40)]


def a_graph_set_task() -> Task:
    return graph_set_task(some_graphs())


def a_text_task() -> Task:
    texts = [f"{'good fine' if index % 2 else 'bad poor'} film number {index}" for index in range(80)]
    return text_task((texts, [index % 2 for index in range(80)]), encoder="tfidf")


def a_matrix() -> sparse.csr_matrix:
    return sparse.csr_matrix((np.random.default_rng(0).random((80, 30)) < 0.3).astype(np.float32))


def a_recsys_task(model: str = "infinite") -> Task:
    return recsys_task(a_matrix(), model=model)


TASKS: list[tuple[Callable[[], Task], str, int]] = [
    (an_image_task, "dm", 1),
    (a_graph_task, "gcond-x", 6),
    (a_graph_set_task, "doscond", 1),
    (a_text_task, "dm", 1),
    (a_recsys_task, "distill-cf-meanfield", 5),
]


def parts(distilled: DistilledSet) -> list[Tensor]:
    inputs = distilled.batch.inputs
    return list(inputs.values()) if isinstance(inputs, dict) else [inputs]


@pytest.mark.parametrize(("make", "method", "budget"), TASKS)
def test_a_copied_task_is_distilled_as_the_original(make: Callable[[], Task], method: str, budget: int) -> None:
    original = make()
    unused = copy.deepcopy(original)
    expected = distill(original, method, budget, settings={"steps": 2})
    copies = [unused, copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    del original  # on which no copy may rest
    for other in copies:
        found = distill(other, method, budget, settings={"steps": 2})
        assert all(torch.equal(one, two) for one, two in zip(parts(found), parts(expected), strict=True))


def test_a_copied_task_judges_as_the_original_by_its_own_network() -> None:
    original = an_image_task()
    distilled = distill(original, "dm", ipc=1, settings={"steps": 2})
    expected = evaluate(original, distilled, n=1, baselines=()).results
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        original.network.module = nn.Identity()  # which a copy that ran it would stumble over
        assert evaluate(other, distilled, n=1, baselines=()).results == expected


def test_an_autoencoder_comes_through_a_pickle_too() -> None:
    task = a_recsys_task("autoencoder")
    (first, _), (second, _) = (one.init(Draws(0)) for one in (task, pickle.loads(pickle.dumps(task))))
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("make", "method", "budget"), TASKS)
def test_pictures_need_no_folder(
    make: Callable[[], Task], method: str, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    task = make()
    found = distill(task, method, budget, settings={"steps": 2})
    shown = pictures(task, found)
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]
    drawn = [path for path in draw(task, found, tmp_path) if path.suffix == ".png"]
    assert [image.tobytes() for image in shown] == [Image.open(path).tobytes() for path in drawn]
    assert shown


def test_what_cannot_be_drawn_is_refused() -> None:
    task = BlobTask()
    found = distill(task, "dm", ipc=1, settings=SHORT)
    with pytest.raises(UnsupportedError):
        pictures(task, found)
    with pytest.raises(ConfigError, match="pictures are drawn of a DistilledSet, got Batch"):
        pictures(task, found.batch)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError):
        pictures(OtherBlobs(), found)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (an_image_task, "ImageTask(digits, 1,297 training and 500 test samples, convnet-w8, cpu)"),
        (a_graph_task, "GraphTask(user graph, 30 training and 15 test nodes, sgc, cpu)"),
        (a_graph_set_task, "GraphSetTask(list, 32 training and 4 test graphs, gcn, cpu)"),
        (a_text_task, "TextTask(texts, 58 training and 16 test texts, mlp, cpu)"),
        (a_recsys_task, "RecsysTask(matrix, 80 users and 30 items, infinitely wide, depth 1, cpu)"),
    ],
)
def test_tasks_say_in_one_line_what_they_are(make: Callable[[], Task], line: str) -> None:
    assert repr(make()) == line


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (lambda: load("digits"), "ImageData(digits, 1,297 training and 500 test images of 1 x 8 x 8, 10 classes)"),
        (lambda: whitened(load("digits"), "frepo").whitening, "Whitening(frepo, of 64 numbers)"),
        (lambda: load_graph(a_graph()), "GraphData(user graph, nodes: 60 (30 train, 15 val, 15 test), "),
        (lambda: load_graph(a_graph(), inductive=True), "8 features, 3 classes, inductive)"),
        (lambda: load_graph(a_graph()).adjacency, "Adjacency(60 nodes, "),
        (
            lambda: load_graph_set(some_graphs()),
            "GraphSet(list, graphs: 40 (32 train, 4 val, 4 test), 240 nodes, 8 features",
        ),
        (lambda: load_interactions(a_matrix()), "Interactions(matrix, 80 users, 30 items, interactions: "),
        (
            lambda: CORE_METHODS["dm"],
            "Method(DM: mean feature matching over random networks [Zhao and Bilen, WACV 2023], ",
        ),
    ],
)
def test_data_are_shown_in_one_line(shown: Callable[[], object], line: str) -> None:
    found = repr(shown())
    assert line in found
    assert "\n" not in found
    assert len(found) < 120


def test_texts_and_batches_are_shown_in_one_line() -> None:
    texts = load_text(([f"film number {index}" for index in range(80)], [index % 2 for index in range(80)]))
    assert repr(texts) == "TextData(texts, texts: 58 train, 6 dev, 16 test, 2 classes)"
    assert repr(texts.train) == "TextSplit(58 texts)"
    batch = Batch(torch.zeros(4, 3), {"a": torch.zeros(4), "b": torch.zeros(4, 2)}, torch.ones(4))
    shown = "Batch(inputs (4, 3), targets {a (4,), b (4, 2)}, weight (4,))"
    assert repr(batch) == str(batch) == shown
    assert repr(ClassBatch(batch, Dims(0, 0))).startswith(f"ClassBatch(batch={shown}, dims=")
    assert repr(get_domain("graph-set")).startswith("Domain(graph-set, 6 data sets, ")


def interrupted(done: int, total: int, loss: float) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stopped", [False, True])
def test_one_call_begins_continues_and_returns_a_run(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = BlobTask()
    expected = distill(task, "dm", ipc=2, settings=SHORT)
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            distill(task, "dm", ipc=2, settings=SHORT, out=tmp_path, resume="auto", progress=interrupted)
    found = distill(task, "dm", ipc=2, settings=SHORT, out=tmp_path, resume="auto")
    assert torch.equal(parts(found)[0], parts(expected)[0])
    monkeypatch.delattr(Distiller, "step")  # a finished run takes none
    again = distill(task, "dm", ipc=2, settings=SHORT, out=tmp_path, resume="auto")
    assert torch.equal(parts(again)[0], parts(expected)[0])
    assert again.seconds == found.seconds


class OtherBlobs(BlobTask):
    def describe(self) -> TaskInfo:
        return replace(super().describe(), fingerprint="others")


def test_a_finished_run_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    distill(BlobTask(), "dm", ipc=2, settings=SHORT, out=tmp_path, resume="auto")
    before = (tmp_path / "distilled.safetensors").read_bytes()
    for change, message in (
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"ipc": 3}, "its budget is 2, not 3"),
        ({"settings": {**SHORT, "steps": 13}}, "its settings.steps is 12, not 13"),
        ({"label": "soft"}, "its label is hard, not soft|its settings.optimizers.labels is None"),
        ({"task": BlobTask(width=16)}, "its network"),
        (
            {"task": OtherBlobs()},
            r"its training data are others, or the .* split .* \(fingerprint blobs-7, not others\);",
        ),
    ):
        options = {"task": BlobTask(), "method": "dm", "ipc": 2, "settings": SHORT, **change}
        with pytest.raises(CheckpointError, match=message):
            distill(**options, out=tmp_path, resume="auto")  # type: ignore[arg-type]
    own = Method("DM", lambda: DistributionMatching("all"), CORE_METHODS["dm"].network, CORE_METHODS["dm"].settings)
    with pytest.raises(CheckpointError, match=r"its described\.objective"):
        distill(BlobTask(), own.with_settings(**SHORT), ipc=2, out=tmp_path, resume="auto")
    assert (tmp_path / "distilled.safetensors").read_bytes() == before


def test_a_finished_closed_form_is_loaded_and_told_apart_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_text_task()
    distill(task, "dm", ipc=1, settings={"steps": 1}, out=tmp_path)
    found = distill(task, "k-means", ipc=1, out=tmp_path, overwrite=True)
    assert not Checkpoints(tmp_path / "checkpoints", {}).paths()
    monkeypatch.delattr(Distiller, "start")  # nothing is solved again
    assert torch.equal(parts(distill(task, "k-means", ipc=1, out=tmp_path, resume="auto"))[0], parts(found)[0])
    with pytest.raises(CheckpointError, match="its budget is 1, not 2"):
        distill(task, "k-means", ipc=2, out=tmp_path, resume="auto")


def test_what_replaces_does_not_keep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        distill(BlobTask(), "dm", ipc=1, out=tmp_path, resume="auto", overwrite=True)


def test_a_finished_run_of_another_network_is_refused_without_checkpoints_too(tmp_path: Path) -> None:
    distill(BlobTask(), "dm", ipc=1, settings=SHORT, out=tmp_path, resume="auto", label="hard")
    shutil.rmtree(tmp_path / "checkpoints")
    distill(BlobTask(), "dm", ipc=1, settings=SHORT, out=tmp_path, resume="auto")  # whose labels are hard anyway
    with pytest.raises(CheckpointError, match=r"its network is .*; choose another folder, or leave resume out"):
        distill(BlobTask(width=9), "dm", ipc=1, settings=SHORT, out=tmp_path, resume="auto")
    with pytest.raises(CheckpointError, match="its label is hard, not teacher"):
        distill(BlobTask(), "dm", ipc=1, settings=SHORT, out=tmp_path, resume="auto", label="teacher")


def test_a_run_of_several_processes_is_loaded_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(import_module("mmdistill.distill"), "identity", lambda *own: {**identity(*own), "processes": 2})
        found = distill(BlobTask(), "dm", ipc=1, settings=SHORT, out=tmp_path)
    again = distill(BlobTask(), "dm", ipc=1, settings=SHORT, out=tmp_path, resume="auto")
    assert torch.equal(parts(again)[0], parts(found)[0])


def test_other_words_for_resuming_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume is True, False or 'auto', got 'always'"):
        distill(BlobTask(), "dm", ipc=1, out=tmp_path, resume="always")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs the folder"):
        distill(BlobTask(), "dm", ipc=1, resume="auto")


def test_an_interruption_says_where_the_run_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        distill(BlobTask(), "dm", ipc=2, settings=SHORT, out=tmp_path, progress=interrupted)
    (note,) = stopped.value.__notes__
    assert str(Checkpoints(tmp_path / "checkpoints", {}).paths()[-1]) in note
    assert "resume=True" in note
    with pytest.raises(KeyboardInterrupt) as unkept:
        distill(BlobTask(), "dm", ipc=2, settings=SHORT, progress=interrupted)
    (other,) = unkept.value.__notes__
    assert other == "nothing of this run is kept; with out=FOLDER the same call leaves checkpoints"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [note, other]


def test_what_is_judged_when_judging_ends_early_is_handed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = BlobTask()
    task.judges = ("mlp", "another")  # type: ignore[assignment]
    found = distill(task, "dm", ipc=1, settings=SHORT)

    def stop(at: int) -> Callable[..., None]:
        def told(done: int, *rest: object) -> None:
            if done == at:
                raise KeyboardInterrupt

        return told

    expected = evaluate(task, found, judges="all", n=1, baselines=["random"])
    for done, results, baselines in ((1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 2, 2)):
        caplog.clear()
        with pytest.raises(KeyboardInterrupt) as stopped:
            evaluate(task, found, judges="all", n=1, baselines=["random"], progress=stop(done))
        so_far: Evaluation = stopped.value.so_far  # type: ignore[attr-defined]
        assert so_far.results == expected.results[:results]
        assert so_far.baselines.get("random", []) == expected.baselines["random"][:baselines]
        assert stopped.value.__notes__ == caplog.messages
        assert "what is finished is the exception's so_far" in caplog.text
    save_evaluation(task, found, so_far, tmp_path)
    with pytest.raises(KeyboardInterrupt) as empty:
        evaluate(task, found, judges="all", n=1, progress=stop(0))
    assert not vars(empty.value)


def test_functions_that_show_progress_may_return_something() -> None:
    for kind in (StepProgress, import_module("mmdistill.evaluate").Progress, clock.TrainingProgress):
        assert get_args(kind)[1] is object


def test_progress_may_be_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    task = BlobTask()
    distilled = distill(task, "dm", ipc=1, settings=SHORT, progress=True)
    printed = capsys.readouterr().err
    assert "blobs dm" in printed
    assert "12/12" in printed
    shown = evaluate(task, distilled, n=1, baselines=("random",), progress=True)
    printed = capsys.readouterr().err
    assert "judging" in printed
    assert "2/2" in printed
    assert shown.results == evaluate(task, distilled, n=1, baselines=("random",), progress=False).results
    described = replace(task.describe(), preprocessing={"notes": ["read somehow"]})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(task, "describe", lambda: described)
        distill(task, "dm", ipc=1, settings=SHORT, progress=True)
    assert "note: read somehow\n" in capsys.readouterr().err
    distill(task, "dm", ipc=1, settings=SHORT, progress=False)
    assert not capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"progress is called with .* got int, which cannot be; True shows a bar"):
        evaluate(task, distilled, progress=3)  # type: ignore[arg-type]


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path: Path) -> None:
    task = BlobTask()
    numbers = {"steps": np.int64(12), "real_batch": np.int32(8), "augment": False, "lr": np.float32(0.5)}
    distill(task, "dm", ipc=np.int64(2), settings=numbers, out=tmp_path, checkpoint_every=np.int64(5))  # type: ignore[arg-type]
    plain = {**SHORT, "lr": 0.5}
    loaded = distill(task, "dm", ipc=2, settings=plain, out=tmp_path, resume="auto")  # which compares what was noted
    assert torch.equal(parts(loaded)[0], parts(distill(task, "dm", ipc=2, settings=plain))[0])
    assert [path.name for path in Checkpoints(tmp_path / "checkpoints", {}).paths()] == [
        "step-00000010.safetensors",
        "step-00000012.safetensors",
    ]
    for wrong in (True, 1.5, -1):
        with pytest.raises(ConfigError, match="checkpoint_every is a number of steps"):
            distill(task, "dm", ipc=1, checkpoint_every=wrong)  # type: ignore[arg-type]


def test_settings_of_a_set_are_settings_again(tmp_path: Path) -> None:
    task = BlobTask()
    made = distill(task, "dc", ipc=2, settings={**SHORT, "outer_steps": 2}, out=tmp_path / "run")
    again = distill(task, "dc", ipc=2, settings=made.settings)
    assert torch.equal(one_tensor(again.batch.inputs), one_tensor(made.batch.inputs))
    loaded = DistilledSet.load(tmp_path / "run").settings  # whose tuples JSON made lists
    further = distill(task, "dc", ipc=2, settings={**loaded, "steps": 3})
    assert further.settings == {**made.settings, "steps": 3}


def test_settings_of_a_closed_form_are_settings_again_unless_they_would_do_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = an_image_task()
    made = distill(task, "random-soft", ipc=1, settings={"teacher_epochs": 1})
    again = distill(task, "random-soft", ipc=1, settings=made.settings)
    assert again.settings == made.settings
    with pytest.raises(ConfigError, match="has a closed form and takes no steps, so --real-batch would do nothing"):
        distill(task, "random-soft", ipc=1, settings={**made.settings, "real_batch": 3})
    distill(task, "dm", ipc=1, settings={**distill(task, "dm", ipc=1, settings=SHORT).settings, "ridge": 0.5})
    assert [record.getMessage() for record in caplog.records if "does not read" in record.getMessage()] == [
        "DM does not read ridge, which changes nothing"
    ]


def test_the_settings_that_a_method_would_take() -> None:
    task = an_image_task()
    found = method_settings(task, "DM", ipc=10)
    assert found == get_method(get_domain("image"), "dm", "digits").settings(10)
    assert method_settings(task, CORE_METHODS["dm"], ipc=10) == CORE_METHODS["dm"].settings(10)
    with pytest.raises(ConfigError, match="ipc"):
        method_settings(task, "dm", nodes=10)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    task = BlobTask()
    made = distill(task, "dm", ipc=1, settings={**SHORT, "steps": 1}, out="~/runs/dm")
    made.save("~/copy")
    assert torch.equal(one_tensor(DistilledSet.load("~/runs/dm").batch.inputs), one_tensor(made.batch.inputs))
    assert (tmp_path / "copy" / "distilled.json").is_file()
    images = torch.randint(0, 255, (8, 1, 4, 4), dtype=torch.uint8)
    torch.save({"images": images, "labels": torch.arange(8) % 2}, tmp_path / "a.pt")
    data = load("~/a.pt")
    assert data.name == str(tmp_path / "a.pt")
    assert located("~/a.pt") == data.name
    assert not list(Path().iterdir())


def test_a_name_is_a_text() -> None:
    with pytest.raises(ConfigError, match="name is a str, got 3"):
        distill(BlobTask(), "dm", ipc=1, name=3)  # type: ignore[arg-type]


def test_data_of_one_name_are_not_taken_for_one_another(tmp_path: Path) -> None:
    for seed in range(2):
        pictures = (40 * (torch.arange(40) % 2)[:, None, None] + torch.randint(0, 99, (40, 4, 4))).to(torch.uint8)
        task = image_task((pictures, torch.arange(40) % 2), model="mlp", width=4, judge_epochs=1)
        made = distill(task, "dm", ipc=1, settings=SHORT, seed=seed, out=tmp_path / str(seed))
        save_evaluation(task, made, evaluate(task, made, n=1, baselines=[]), tmp_path / str(seed))
    found = compare(tmp_path)
    assert [len(row.folders) for row in found.results] == [1, 1]
    assert len({row.fingerprint for row in found.results}) == 2
