import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure
from torch_geometric.data import Data

from mmdistill.allocation import subset_bytes
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError, UnsupportedError
from mmdistill.evaluate import evaluate
from mmdistill.files.saved import metadata
from mmdistill.graph import DOMAIN, load_graph
from mmdistill.graph.draw import graph_tensors
from mmdistill.graph.synthetic import SyntheticGraph
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.methods import CORE_METHODS
from mmdistill.registry import domain_of, get_method
from mmdistill.runtime import Draws, data_root
from mmdistill.settings import OptimizerSpec
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.toys import BlobTask, held

METHODS = ("gcond-x", "gcdm-x", "propagated-means")
needs_cora = pytest.mark.skipif(
    not (data_root() / "Cora" / "raw" / "ind.cora.x").is_file(), reason="needs Cora/raw under MMDISTILL_DATA"
)


def task() -> GraphTask:
    return graph_task(planted_graph(), protocol=replace(FAST, epochs=40))


@pytest.mark.parametrize("name", METHODS)
def test_a_distilled_graph_beats_random_nodes(name: str) -> None:
    own = task()
    gains = []
    for seed in range(5):
        steps: dict[str, object] = {} if name == "propagated-means" else {"steps": 100, "inner_steps": 3}
        if name == "gcond-x":  # a sixth of the steps, four times the rate: the preset is for Cora's 600
            steps["optimizers"] = {"codes": OptimizerSpec("adam", 0.02)}
        result = evaluate(own, distill(own, name, nodes=6, seed=seed, settings=steps), n=2, seed=seed)
        assert set(result.baselines) == {"random", "herding", "whole"}
        gains.append(result.headline().mean - result.baselines["random"][0].mean)
    assert statistics.fmean(gains) > 2 * statistics.stdev(gains) / 5**0.5


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_repeated_by_its_seed_and_labelled_by_class_share(name: str) -> None:
    mask = planted_fields()["train_mask"].clone()
    mask[[0, 3, 6]] = False  # class 0 keeps three labels, the others six
    own = graph_task(planted_graph(train_mask=mask), protocol=FAST)
    settings = {} if name == "propagated-means" else {"steps": 3}
    one, same, other = (distill(own, name, nodes=5, seed=seed, settings=settings) for seed in (1, 1, 2))
    assert torch.equal(one.batch.inputs["x"], same.batch.inputs["x"])  # type: ignore[call-overload]
    assert name == "propagated-means" or not torch.equal(one.batch.inputs["x"], other.batch.inputs["x"])  # type: ignore[call-overload]
    assert one.batch.targets.tolist() == [0, 1, 1, 2, 2]  # type: ignore[union-attr]
    assert one.stored_bytes == subset_bytes(own, 5) == 5 * 12 * 4 + 5


def test_initial_features_carry_the_labels_of_their_nodes() -> None:
    own = task()
    for init in ("real", "herding", "k-center"):
        x = distill(own, "gcond-x", nodes=9, settings={"steps": 0, "init": init}).batch.inputs["x"]  # type: ignore[call-overload]
        for row, label in zip(x, [0] * 3 + [1] * 3 + [2] * 3, strict=True):
            node = int((own.graph.x - row).abs().sum(1).argmin())
            assert torch.allclose(own.graph.x[node], row)
            assert node in own.graph.train
            assert int(own.graph.y[node]) == label


@pytest.mark.parametrize("init", ["real", "noise"])
@pytest.mark.parametrize("name", ["gcond", "gcond-x", "gcdm", "gcdm-x"])
def test_features_of_any_size_are_learned_in_their_own_unit(name: str, init: str) -> None:
    larger = graph_task(planted_graph(x=100 * planted_fields()["x"]))
    method = get_method(DOMAIN, name).with_settings(init="k-means" if (name, init) == ("gcdm", "real") else init)
    for own, unit in ((task(), 1.0), (larger, 100.0)):
        made = Distiller(own, method, 18).rehearse()
        assert isinstance(made, SyntheticGraph)
        assert float(made.codes.detach().square().mean().sqrt()) == pytest.approx(1, abs=0.1)
        x = made(Draws(0)).inputs["x"].detach()  # type: ignore[call-overload]
        assert unit / 4 < float(x.square().mean().sqrt()) < 4 * unit


def test_budgets_that_cannot_be_are_refused() -> None:
    own = task()
    with pytest.raises(ConfigError, match="cannot cover 3 classes"):
        distill(own, "gcond-x", nodes=2)
    with pytest.raises(ConfigError, match=r"nodes=N.*got ipc=2"):
        distill(own, "gcond-x", ipc=2)
    with pytest.raises(DataError, match="lower the budget"):
        distill(own, "gcond-x", nodes=30)


def test_exports_are_read_by_torch_geometric_and_by_this_package(tmp_path: Path) -> None:
    own = task()
    plain = distill(own, "propagated-means", nodes=6).batch
    structured = own.select(torch.arange(6))
    for batch in (plain, structured):
        path, preprocessing = DOMAIN.exports["pyg"](held(own, batch), tmp_path)
        data = Data.from_dict(torch.load(path, weights_only=True))
        assert data.validate()
        assert data.num_nodes == 6
        assert torch.equal(data.y, batch.targets)
        told = json.loads(preprocessing.read_text())
        assert told["notes"] == list(own.graph.notes)
        assert "labels" not in told
        path, _ = DOMAIN.exports["tensors"](held(own, batch), tmp_path)
        found = safetensors.torch.load_file(path)
        assert all(torch.equal(found[name], tensor) for name, tensor in graph_tensors(batch).items())
    assert graph_tensors(structured)["edge_index"].shape[1] == int((structured.inputs["adjacency"] > 0).sum())  # type: ignore[call-overload]


def test_exports_say_which_labels_their_class_indices_stand_for(tmp_path: Path) -> None:
    own = graph_task(planted_graph(y=planted_fields()["y"] * 5 + 1))
    batch = own.select(torch.arange(6))
    for format in ("pyg", "tensors"):
        path, preprocessing = DOMAIN.exports[format](held(own, batch), tmp_path)
        told = json.loads(preprocessing.read_text())
        assert told["labels"] == "y holds class indices, not the data's labels: 0 is 1, 1 is 6; see class_names"
    assert json.loads(metadata(path)["class_names"]) == told["class_names"] == ["1", "6", "11"]


def test_what_features_were_standardised_by_is_written_alike_from_a_set_that_was_read(tmp_path: Path) -> None:
    own = task()
    scaling = {"feature_mean": torch.rand(12), "feature_deviation": torch.rand(12)}
    found = held(own, own.select(torch.arange(6)))
    found = replace(found, info=replace(found.info, tensors=scaling))
    found.save(tmp_path)
    _, written = DOMAIN.exports["pyg"](found, tmp_path / "made")
    _, read = DOMAIN.exports["pyg"](DistilledSet.load(tmp_path), tmp_path / "read")
    assert written.read_bytes() == read.read_bytes()
    assert list(json.loads(read.read_text()))[-2:] == list(scaling)


def test_pictures_are_drawn_and_other_tasks_refused(tmp_path: Path) -> None:
    own = task()
    plain, structured = distill(own, "propagated-means", nodes=6).batch, own.select(torch.arange(6))
    assert [path.name for path in DOMAIN.draw(own, plain, tmp_path)] == ["nodes.png"]
    paths = DOMAIN.draw(own, structured, tmp_path)
    assert [path.name for path in paths] == ["nodes.png", "structure.png", "adjacency.png", "properties.md"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths[:3])
    assert len(paths[3].read_text().splitlines()) == 6
    empty = structured._replace(inputs={k: v * (k == "x") for k, v in structured.inputs.items()})  # type: ignore[union-attr]
    assert len(DOMAIN.draw(own, empty, tmp_path)) == 4
    with pytest.raises(UnsupportedError, match="a graph task is needed"):
        DOMAIN.draw(BlobTask(), plain, tmp_path)


def test_the_picture_of_edges_has_its_classes_in_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = task(), dict[str, Figure]()
    module = sys.modules[DOMAIN.draw.__module__]
    monkeypatch.setattr(module, "save_figure", lambda figure, path, dpi: seen.update({path.name: figure}) or path)
    DOMAIN.draw(own, own.select(torch.arange(6)), tmp_path)
    (legend,) = seen["structure.png"].legends
    assert [text.get_text() for text in legend.get_texts()] == list(own.graph.class_names)


def test_nodes_of_one_feature_are_drawn_on_a_line(tmp_path: Path) -> None:
    own = graph_task(planted_graph(x=planted_fields()["x"][:, :1]), protocol=FAST)
    assert [path.name for path in DOMAIN.draw(own, own.select(torch.arange(6)), tmp_path)][:1] == ["nodes.png"]


def test_a_saved_graph_is_a_data_set_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(Data.from_dict(planted_fields()), path)
    assert domain_of(str(path)).name == "graph"
    own = DOMAIN.make_task(str(path), model="gcn", judge_epochs=5)
    assert (own.protocol.epochs, own.validation_protocol.epochs) == (5, 1)
    assert own.describe().data == str(path)
    assert own.describe().fingerprint == load_graph(path).fingerprint
    assert get_method(DOMAIN, "GCond_X").title == "GCond-X"
    for model in ({}, {"model": "SGC"}):
        with pytest.raises(ConfigError, match=r"(?i)sgc takes no width"):
            DOMAIN.make_task(str(path), **model, width=5)


@pytest.mark.data
@pytest.mark.slow
@needs_cora
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("krr", 0.82),
        ("gcond", 0.79),
        ("gcond-x", 0.757),
        ("gcdm", 0.8),
        ("gcdm-x", 0.757),
        ("propagated-means", 0.78),
    ],
)
def test_cora_70_reaches_the_published_accuracy(name: str, least: float) -> None:
    own = graph_task("cora")
    distilled = distill(own, name, nodes=70, seed=0)
    scores = own.evaluate(distilled.batch, "gcn", Draws(1), 5, {})
    assert statistics.fmean(scores.values["accuracy"]) >= least


@pytest.mark.parametrize("name", ["dm", "dc"])
def test_a_method_without_a_storage_learns_nodes_and_no_edges(name: str) -> None:
    own = CORE_METHODS[name].with_settings(steps=2, augment=False)
    assert own.parameterization is None
    for model in ("sgc", "gcn"):
        found = distill(graph_task(planted_graph(), model=model), own, nodes=9).batch.inputs
        assert isinstance(found, dict)
        assert set(found) == {"x"}


@pytest.mark.parametrize("model", ["sgc", "gcn"])
@pytest.mark.parametrize("name", ["doscond", "gcdm"])
def test_bfloat16_lowers_both_sides_and_moves_the_loss_little(
    monkeypatch: pytest.MonkeyPatch, name: str, model: str
) -> None:
    losses, lowered = {}, set()
    for precision in ("float32", "bf16"):
        own = graph_task(planted_graph(), model=model, protocol=FAST)
        kind = type(own.network)
        method = get_method(DOMAIN, name).with_settings(validate_every=0)
        distiller = Distiller(own, method, 6, precision=precision)  # type: ignore[arg-type]
        run = distiller.start()
        with monkeypatch.context() as patch:
            for read in ("layers", "logits"):
                plain = getattr(kind, read)

                def watched(*given: object, plain: Callable[..., object] = plain, **more: object) -> object:
                    lowered.add((precision, torch.is_autocast_enabled("cpu")))  # noqa: B023
                    return plain(*given, **more)

                patch.setattr(kind, read, watched)
            loss = distiller.step(run)[1]
        assert loss.dtype == torch.float32
        losses[precision] = float(loss)
    assert {entry for entry in lowered if entry[0] == "bf16"} == {("bf16", True)}
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bf16"] != losses["float32"]
