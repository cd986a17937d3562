import json
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.data import Batch as Collated
from torch_geometric.data import Data

from mmdistill.allocation import subset_bytes
from mmdistill.budget import budget_in_bytes
from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError, ShapeError, UnsupportedError
from mmdistill.evaluate import evaluate
from mmdistill.files.saved import metadata
from mmdistill.graph.sets import DOMAIN, GraphSet, GraphSetTask, graph_set_task, load_graph_set
from mmdistill.graph.sets.draw import graph_list
from mmdistill.graph.sets.synthetic import SyntheticGraphs
from mmdistill.graph.structure import BernoulliEdges
from mmdistill.labels import FixedLabels
from mmdistill.networks.fit import fit_networks
from mmdistill.objectives.base import Network
from mmdistill.objectives.distances import relative_squared_error
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.registry import domain_of, get_method
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, NetworkState, take
from mmdistill.testing import as_float64, check_class_gradients, check_objective, check_task
from tests.graph.sets.toy import FAST, rings, write_rings
from tests.oracles import graph as oracle
from tests.toys import held


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> GraphSet:
    return rings(tmp_path_factory.mktemp("sets"))


def task(graphs: GraphSet) -> GraphSetTask:
    return graph_set_task(graphs, width=16, protocol=FAST)


def test_conformance(graphs: GraphSet) -> None:
    check_task(task(graphs), judge="gcn")


@pytest.mark.parametrize(
    ("scale", "shift", "said"),
    [(1.0, 0.0, ""), (1e-4, 0.0, "close to 0"), (1.0, 1e4, "far from 0"), (0.0, 1.0, "same")],
)
def test_features_that_networks_hardly_learn_from_are_stated(
    graphs: GraphSet, scale: float, shift: float, said: str
) -> None:
    ends = graphs.start.tolist()
    edges = [
        graphs.edge_index[:, graphs.edge_index[0].ge(a) & graphs.edge_index[0].lt(b)] - a for a, b in pairwise(ends)
    ]
    listed = [
        Data(x=scale * graphs.x[a:b] + shift, edge_index=own, y=label)
        for (a, b), own, label in zip(pairwise(ends), edges, graphs.y, strict=True)
    ]
    notes = [note for note in graph_set_task(listed).describe().notes if "networks learn" in note]
    assert [said in note for note in notes] == ([True] if said else [])


def test_the_files_are_read_as_they_stand(graphs: GraphSet) -> None:
    assert (len(graphs.y), graphs.num_classes, graphs.x.shape[1]) == (40, 2, 8)
    assert graphs.y.tolist() == [0, 1] * 20
    padded = graphs.padded(torch.tensor([1, 0]))
    for row, (graph, chords) in enumerate(((1, 2), (0, 0))):
        nodes = int(graphs.sizes[graph])
        own = padded["adjacency"][row]
        assert torch.equal(own, own.T)
        assert int(own.sum()) == 2 * (nodes + chords)
        assert padded["present"][row].tolist() == [1.0] * nodes + [0.0] * (own.shape[0] - nodes)
        assert torch.equal(padded["x"][row, :nodes], graphs.x[graphs.start[graph] : graphs.start[graph + 1]])
        assert (padded["x"][row, nodes:] == 0).all()
    counts = [torch.bincount(graphs.y[ids]).tolist() for ids in (graphs.train, graphs.val, graphs.test)]
    assert counts == [[16, 16], [2, 2], [2, 2]]


def test_padding_changes_nothing(graphs: GraphSet) -> None:
    own = task(graphs)
    state = own.init(Draws(0))
    near, far = graphs.padded(torch.arange(4)), graphs.padded(torch.arange(4), nodes=15)
    assert torch.allclose(own.predict(state, near)[0], own.predict(state, far)[0], atol=1e-6)


def test_graphs_side_by_side_are_the_padded_ones(graphs: GraphSet) -> None:
    own = task(graphs)
    state = own.init(Draws(0))
    chosen = torch.tensor([7, 3, 3, 0, 39])
    padded, joined = graphs.padded(chosen), graphs.joined(chosen)
    assert len(joined["x"]) == int(graphs.sizes[chosen].sum())
    assert torch.allclose(own.predict(state, padded)[0], own.predict(state, joined)[0], atol=1e-6)
    for name, gradient in torch.func.grad(lambda p: own.predict(NetworkState(p, {}), joined)[0].square().sum())(
        state.params
    ).items():
        expected = torch.func.grad(lambda p: own.predict(NetworkState(p, {}), padded)[0].square().sum())(state.params)
        assert torch.allclose(gradient, expected[name], atol=1e-4)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_samples_are_of_their_class_without_repeats(
    graphs: GraphSet, side_by_side: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if side_by_side:
        monkeypatch.setattr("mmdistill.graph.sets.task.PADDED_BYTES", 0)
    own = task(replace(graphs, y=(torch.arange(40) < 3).long(), train=torch.arange(32)))  # three of class 1
    batch = own.sample_real(Draws(0), torch.tensor([1, 0]), 6)
    assert isinstance(batch, ClassBatch)
    assert (batch.dims.inputs is None) == side_by_side
    assert batch.batch.weight.sum(1).tolist() == [3, 6]
    state, expected = own.init(Draws(1)), []
    for index, label in enumerate((1, 0)):
        one = batch.one_class(index)
        kept = one.weight > 0
        assert (one.targets[kept] == label).all()  # type: ignore[index]
        logits = own.predict(state, one.inputs)[0][kept]
        assert len(logits.unique(dim=0)) == int(kept.sum())
        expected.append(logits)
    assert torch.allclose(
        expected[0], own.predict(state, graphs.padded(torch.arange(3)))[0], atol=1e-6
    )  # the small class comes whole
    check_class_gradients(own, state, batch)


def test_one_large_graph_costs_its_own_nodes_alone(graphs: GraphSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded to it, a step's graphs would take 6 GB."""
    nodes, last = 10_000, int(graphs.start[-1])
    ring = last + torch.arange(nodes)
    edges = torch.stack([torch.cat([ring, ring]), torch.cat([ring.roll(1), ring.roll(-1)])])
    edges = torch.cat([graphs.edge_index, edges[:, edges[0].argsort()]], 1)
    x = torch.cat([graphs.x, Draws(2).normal(nodes, graphs.x.shape[1])])
    start = torch.cat([graphs.start, torch.tensor([last + nodes])])
    uneven = replace(
        graphs, x=x, edge_index=edges, start=start, y=torch.cat([graphs.y, graphs.y[:1]]), train=torch.arange(16, 41)
    )
    own = task(uneven)
    monkeypatch.setattr(own, "select", lambda indices: GraphSetTask.select(own, indices.clamp(max=20)))  # small starts
    found = distill(own, "doscond", ipc=1, settings={"steps": 2, "real_batch": 25})
    assert own.evaluate(found.batch, "gcn", Draws(0), 1, {}).values["accuracy"]
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"25 graphs of .* padded to the 10,000 nodes of the largest, take 9\.3 GiB"):
        own.select(torch.arange(25))


def test_logits_equal_the_oracle(graphs: GraphSet) -> None:
    own = task(graphs)
    start = as_float64(own.init(Draws(3)))
    assert not torch.equal(start.params["layer1.weight"], start.params["layer2.weight"])
    state = start.map(lambda t: t + 0.1 * Draws(4).normal(*t.shape))  # of which no bias is 0
    padded = graphs.padded(torch.tensor([5]), nodes=15)
    nodes = int(graphs.sizes[5])
    hidden = padded["x"][0, :nodes].double().numpy()
    adjacency = padded["adjacency"][0, :nodes, :nodes].double().numpy()
    for layer in range(3):
        weight, bias = (state.params[f"layer{layer}.{part}"].numpy() for part in ("weight", "bias"))
        hidden = np.maximum(oracle.propagated(adjacency, hidden @ weight.T, 1) + bias, 0)
    expected = state.params["head.weight"].numpy() @ hidden.mean(0) + state.params["head.bias"].numpy()
    inputs = {name: tensor.double() for name, tensor in padded.items()}
    assert np.allclose(own.predict(state, inputs)[0][0].numpy(), expected, atol=1e-10)


def test_relative_squared_error_by_hand_and_as_an_objective(graphs: GraphSet) -> None:
    a, b = (
        {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[0.0]])},
        {
            "w": torch.tensor([[3.0, 2.0]]),
            "b": torch.tensor([[1.0]]),
        },
    )
    assert relative_squared_error(a, b).tolist() == pytest.approx([5 / 14])
    assert relative_squared_error(b, b).tolist() == [0.0]
    own = graph_set_task(graphs, width=3)
    real = own.sample_real(Draws(0), torch.arange(2), 1)
    assert isinstance(real, ClassBatch)
    assert isinstance(real.batch.inputs, dict)
    inputs = {name: t.double() if t.is_floating_point() else t for name, t in real.batch.inputs.items()}
    wide = ClassBatch(Batch(inputs, real.batch.targets, real.batch.weight.double()), real.dims)
    network = Network(own, as_float64(own.init(Draws(1))))
    moved = wide._replace(batch=wide.batch._replace(inputs={**inputs, "x": inputs["x"] + 0.1}))
    check_objective(GradientMatching(relative_squared_error), network, moved, wide)


def test_structures_of_several_graphs_are_those_of_each() -> None:
    logits = Draws(1).normal(3, 5, 5)
    together, apart = BernoulliEdges(logits), [BernoulliEdges(one) for one in logits]
    x = torch.zeros(3, 5, 2)
    for index, one in enumerate(apart):
        assert torch.equal(together.finished(x)[index], one.finished(x[0]))
        assert torch.equal(together.matrix(together.logits)[index], one.matrix(one.logits))
    sample = together(x, Draws(0))
    assert sample.shape == (3, 5, 5)
    assert torch.equal(sample, sample.mT)


def test_absent_nodes_have_neither_features_nor_edges(graphs: GraphSet) -> None:
    own = task(graphs)
    result = distill(own, "doscond", ipc=2, settings={"steps": 4, "real_batch": 8})
    inputs = result.batch.inputs
    assert isinstance(inputs, dict)
    absent = inputs["present"] == 0
    assert (inputs["x"][absent] == 0).all()
    assert (inputs["adjacency"][absent] == 0).all()
    assert set(inputs["adjacency"].unique().tolist()) <= {0.0, 1.0}
    assert result.batch.targets.tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]
    sizes = inputs["present"].sum(1)
    bits = int((sizes * (sizes - 1) / 2).sum())
    assert result.stored_bytes == int(sizes.sum()) * 8 * 4 + (bits + 7) // 8 + 4


def test_features_are_learned_in_their_own_unit_and_edges_at_their_price(graphs: GraphSet) -> None:
    for size in (1.0, 100.0):
        own = task(replace(graphs, x=size * graphs.x))
        made = own.stored(4, Settings(steps=1), "hard", Draws(0))
        assert isinstance(made, SyntheticGraphs)
        assert float(made.codes.detach()[made.present > 0].square().mean()) == pytest.approx(1)
    assert isinstance(made.decoder, BernoulliEdges)
    pairs = (made.present[:, :, None] * made.present[:, None]).triu(1) > 0
    start = made.finished(Draws(0)).inputs["adjacency"][pairs]  # type: ignore[call-overload]
    means = [torch.where(start > 0, 4.0 + step, step - 4.0).sigmoid().mean() for step in (0.0, 1.0)]
    made.decoder.logits.data += 1.0
    made.codes.data += 1.0
    price = made.penalty(lambda inputs: (), {})
    assert price is not None
    assert float(price.detach()) == pytest.approx(0.1 * float(means[1] - means[0]), rel=1e-4)  # of existing nodes
    made.project()
    assert int(made.decoder.steps) == 1
    sample, finished = (batch.inputs for batch in (made(Draws(1)), made.finished(Draws(1))))
    assert isinstance(sample, dict)
    assert isinstance(finished, dict)
    assert torch.equal(finished["adjacency"], finished["adjacency"].round())
    assert not torch.equal(sample["adjacency"], sample["adjacency"].round())
    absent = made.present == 0
    assert bool(absent.any())
    assert not sample["adjacency"][absent].any()  # while edges are relaxed, too
    assert not sample["x"][absent].any()


def test_the_bytes_of_the_whole_are_those_of_the_training_graphs(graphs: GraphSet) -> None:
    own = task(graphs)
    joined = own.training_batch().inputs
    assert isinstance(joined, dict)
    expected = joined["x"].nbytes + 2 * 8 * len(joined["column"]) + 8 * len(graphs.train)
    assert own.describe().stored_bytes == expected
    assert subset_bytes(own, 1) == -(-2 * expected // len(graphs.train))


def test_budgets_in_bytes_count_the_graphs_that_a_rule_starts_from(graphs: GraphSet) -> None:
    own, method = task(graphs), get_method(DOMAIN, "doscond").with_settings(init="herding")

    def start(seed: int, rule: str = "herding") -> int:
        return Distiller(own, method.with_settings(init=rule), 2, seed=seed).initial().stored_bytes()

    seed = next(seed for seed in range(50) if start(seed) > start(seed, "real"))
    assert budget_in_bytes(own, method, start(seed) - 1, seed)[1] == 1
    assert budget_in_bytes(own, method, start(seed), seed)[1] == 2


def test_condensed_graphs_beat_random_ones(tmp_path: Path) -> None:
    many = load_graph_set(write_rings(tmp_path / "RINGS", per_class=100))
    train, rest = many.train[:40], many.train[40:]
    own = task(replace(many, train=train, test=torch.cat([rest, many.test])))  # 140 unseen graphs
    gains = []
    for seed in range(3):
        settings = {"steps": 50, "real_batch": 16}
        found = distill(own, "doscond", ipc=1, seed=seed, settings=settings)
        result = evaluate(own, found, n=2, seed=seed, baselines=["random"])
        gains.append(result.headline().mean - result.baselines["random"][0].mean)
    assert statistics.fmean(gains) > 0.05, gains


def test_validation_graphs_are_part_of_the_fingerprint_and_test_labels_are_not(graphs: GraphSet) -> None:
    moved = replace(graphs, train=torch.cat([graphs.train, graphs.val[:1]]), val=graphs.val[1:])
    assert len({graphs.fingerprint, moved.fingerprint, replace(graphs, val=graphs.val[1:]).fingerprint}) == 3
    y = graphs.y.clone()
    y[graphs.test] = 1 - y[graphs.test]
    one, other = (task(own).describe() for own in (graphs, replace(graphs, y=y)))
    assert one.fingerprint == other.fingerprint
    assert one.test_fingerprint != other.test_fingerprint
    assert replace(graphs, test=graphs.test[1:]).test_fingerprint != one.test_fingerprint
    y[graphs.val] = 1 - y[graphs.val]
    assert replace(graphs, y=y).fingerprint != one.fingerprint


def test_validation_labels_choose_judges_and_test_labels_do_not(graphs: GraphSet) -> None:
    fitted, validated = [], []
    for flipped in ([], graphs.test, graphs.val):
        y = graphs.y.clone()
        y[flipped] = 1 - y[flipped]
        made = task(replace(graphs, y=y))
        batch = made.select(torch.arange(6))
        fitted.append(made._fit(made.network, batch, Draws(0), 2, FAST).params)
        validated.append(made.validate(batch, Draws(0), {}))
    same, other = (all(torch.equal(fitted[0][name], one[name]) for name in one) for one in fitted[1:])
    assert (same, other) == (True, False)
    assert validated[0] == validated[1] != validated[2]


@pytest.mark.parametrize("padded", [True, False])
def test_judges_of_many_nodes_train_one_after_the_other_on_the_same_streams(
    graphs: GraphSet, monkeypatch: pytest.MonkeyPatch, padded: bool
) -> None:
    own, modes, fit = task(graphs), list[str](), fit_networks

    def watched(*given: Any, mode: str, **more: Any) -> NetworkState:
        modes.append(mode)
        return fit(*given, mode=mode, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("mmdistill.graph.sets.task.fit_networks", watched)
    batch = own.select(torch.arange(6)) if padded else own.training_batch()
    nodes = batch.inputs["x"].shape[:-1].numel()  # type: ignore[index, union-attr]
    found = []
    for bound in (nodes * 2 * 16, nodes * 2 * 16 - 1):
        monkeypatch.setattr("mmdistill.graph.sets.task.TOGETHER", bound)
        found.append(own._fit(own.network, batch, Draws(0), 2, replace(FAST, epochs=10)))
    assert modes == ["vmap", "loop"]
    torch.testing.assert_close(found[0].params, found[1].params, rtol=1e-4, atol=1e-5)
    if padded:
        few, half = take(batch, torch.arange(3)), batch._replace(weight=(torch.arange(6) < 3).float())
        one, other = (own._fit(own.network, own_set, Draws(0), 2, FAST).params for own_set in (few, half))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # graphs without weight do not count
    hits = [own._hits(own.network, states, graphs.test) for states in found]
    assert torch.equal(*hits)
    whole = own._hits(own.network, found[0], torch.arange(len(graphs.y)))
    monkeypatch.setattr("mmdistill.graph.sets.task.READ_NODES", 100)  # a few graphs at a time
    assert torch.equal(own._hits(own.network, found[0], torch.arange(len(graphs.y))), whole)


def test_nodes_without_features_get_their_degree(tmp_path: Path) -> None:
    found = load_graph_set(write_rings(tmp_path / "BARE", labels=False))
    assert found.x.shape[1] == 33
    degree = torch.bincount(found.edge_index[0])
    assert torch.equal(found.x.argmax(1), degree)
    assert "degree" in found.notes[0]


def test_a_folder_and_a_name_find_their_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_rings(tmp_path / "MINE")
    assert domain_of(str(folder)).name == "graph-set"
    made = DOMAIN.make_task(str(folder), judge_epochs=3, width=8)
    assert made.describe().budget == "ipc"
    again = DOMAIN.make_task(str(folder), seed=1)
    assert again.describe().fingerprint != made.describe().fingerprint
    assert again.describe().fingerprint == graph_set_task(folder, seed=1).describe().fingerprint
    write_rings(tmp_path / "MUTAG" / "raw")
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    assert load_graph_set("MUTAG").y.tolist() == [0, 1] * 20


def test_last_graphs_may_have_no_edges(tmp_path: Path) -> None:
    whole = load_graph_set(write_rings(tmp_path / "RINGS"))
    file = tmp_path / "RINGS" / "RINGS_A.txt"
    last = int(whole.start[38])  # the nodes of the last two graphs
    rows = [line for line in file.read_text().splitlines() if int(line.split(",")[0]) <= last]
    file.write_text("\n".join(rows) + "\n")
    cut = load_graph_set(tmp_path / "RINGS")
    assert torch.equal(cut.edge_index, whole.edge_index[:, whole.edge_index[0] < last])
    assert torch.equal(cut.start, whole.start)


def test_bad_sets_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mutag'"):
        load_graph_set("mutak")
    with pytest.raises(DataError, match="or a list of torch-geometric's Data, got dict"):
        load_graph_set({})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got one Data; .*to_data_list\(\), and graph_task takes one graph"):
        load_graph_set(Data(edge_index=torch.tensor([[0], [1]]), y=torch.tensor([0, 1])))  # type: ignore[arg-type]
    (tmp_path / "EMPTY").mkdir()
    with pytest.raises(DataError, match=r"NAME_A\.txt and NAME_graph_indicator\.txt are expected"):
        load_graph_set(tmp_path / "EMPTY")
    folder = write_rings(tmp_path / "CUT")
    (folder / "CUT_A.txt").write_text("1, x\n")
    with pytest.raises(DataError, match="damaged"):
        load_graph_set(folder)
    folder = write_rings(tmp_path / "BARE")
    (folder / "BARE_graph_labels.txt").unlink()
    with pytest.raises(DataError, match="one class for each graph"):
        load_graph_set(folder)
    with pytest.raises(DataError, match="class -1 has a single graph, and one to train on"):
        load_graph_set(write_rings(tmp_path / "FEW", per_class=1))
    for name, file, lines, message in (
        ("ACROSS", "A", "1, 2\n1, 50\n", "an edge of graph 1 to a node that is not its own"),
        ("ZERO", "A", "\n".join(f"{i - 1}, {i}" for i in range(1, 250)), "nodes count from 1"),
        ("NONE", "A", "0, 1\n1, 2\n", "names nodes 0 to 2; nodes count from 1"),
        ("FEWER", "node_labels", "0\n1\n", "need a line for each"),
        ("SOME", "graph_labels", "0\n1\n", "has 40 graphs and classes for 2"),
        ("ONE", "graph_labels", "1\n" * 40, "single class"),
    ):
        folder = write_rings(tmp_path / name)
        for attributes in folder.glob("*_node_attributes.txt"):
            attributes.unlink()
        (folder / f"{name}_{file}.txt").write_text(lines)
        with pytest.raises(DataError, match=message):
            load_graph_set(folder)
    folder = write_rings(tmp_path / "MIXED")
    indicator = folder / "MIXED_graph_indicator.txt"
    owners = indicator.read_text().split()
    first = owners.index("2")
    owners[first - 1 : first + 1] = ["2", "1"]
    indicator.write_text("\n".join(owners))
    with pytest.raises(DataError, match=f"a node of graph 1 in line {first + 1}, after one of graph 2"):
        load_graph_set(folder)

    def unreachable(root: str, name: str) -> None:
        raise OSError("no network")

    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch_geometric.datasets.TUDataset", unreachable)
    with pytest.raises(DataError, match=r"NCI1/raw lacks NCI1_A\.txt .*download failed"):
        load_graph_set("nci1")


def test_bad_calls_are_refused_in_words(graphs: GraphSet) -> None:
    own = task(graphs)
    with pytest.raises(ConfigError, match="ipc=N"):
        distill(own, "doscond", nodes=3)
    with pytest.raises(ShapeError, match="dict of x"):
        own.predict(own.init(Draws(0)), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="unknown judge"):
        own.evaluate(own.select(torch.arange(4)), "gat", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="2 graphs need features"):
        SyntheticGraphs(
            torch.zeros(3, 4, 2),
            torch.ones(3, 4),
            BernoulliEdges(torch.zeros(3, 4, 4)),
            FixedLabels(torch.tensor([0, 1])),
            torch.tensor([0, 1]),
            2,
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(3, 8, 9)}, r"node features \(n, m, 8\), got \(3, 8, 9\)"),
        ({"x": torch.ones(3, 8)}, r"node features \(n, m, 8\), got \(3, 8\)"),
        ({"adjacency": torch.ones(3, 5, 5)}, r"3 graphs of 8 nodes have an adjacency \(3, 8, 8\) .* got \(3, 5, 5\)"),
        ({"present": torch.ones(3, 5)}, r"present \(3, 8\), got \(3, 8, 8\) and \(3, 5\)"),
    ],
)
def test_graphs_of_other_shapes_are_refused(graphs: GraphSet, changed: dict[str, torch.Tensor], message: str) -> None:
    own = task(graphs)
    chosen = own.graphs.train[[0, 1, 2]]
    batch = Batch(own.graphs.padded(chosen, 8), own.graphs.y[chosen], torch.ones(3))
    assert isinstance(batch.inputs, dict)
    changed_batch = batch._replace(inputs={**batch.inputs, **changed})
    with pytest.raises(ShapeError, match=message):
        own.evaluate(changed_batch, "gcn", Draws(0), 1, {})
    with pytest.raises(ShapeError, match=message):
        own.validate(changed_batch, Draws(0), {})


def test_pictures_and_exports(graphs: GraphSet, tmp_path: Path) -> None:
    own = task(graphs)
    batch = own.select(torch.arange(5))
    [picture] = DOMAIN.draw(own, batch, tmp_path)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    path, preprocessing = DOMAIN.exports["pyg"](held(own, batch), tmp_path)
    told = json.loads(preprocessing.read_text())
    assert told["class_names"] == list(own.describe().class_names)
    assert told["labels"] == "y holds class indices, not the data's labels: 0 is -1, 1 is 1; see class_names"
    assert told["notes"] == list(graphs.notes) == list(own.describe().notes)
    loaded = [Data.from_dict(fields) for fields in torch.load(path, weights_only=True)]
    assert [int(data.y) for data in loaded] == batch.targets.tolist()  # type: ignore[union-attr]
    for data, fields in zip(loaded, graph_list(batch), strict=True):
        assert data.validate()
        assert torch.equal(data.x, fields["x"])
        assert data.is_undirected()
    path, _ = DOMAIN.exports["tensors"](held(own, batch), tmp_path)
    assert json.loads(metadata(path)["class_names"]) == ["-1", "1"]
    stored = load_file(path)
    together = Collated.from_data_list(loaded)
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {
        name: tensor.tolist() for name, tensor in together.to_dict().items() if name != "ptr"
    }
    with pytest.raises(UnsupportedError, match="one target each"):
        graph_list(Batch(torch.zeros(2, 3), torch.zeros(2), torch.ones(2)))


def test_classes_keep_their_names_and_what_is_not_read_is_said(tmp_path: Path) -> None:
    folder = write_rings(tmp_path / "OWN")
    labels = [int(line) for line in (folder / "OWN_graph_labels.txt").read_text().split()]
    (folder / "OWN_graph_labels.txt").write_text("\n".join("-1" if label == min(labels) else "7" for label in labels))
    edges = (folder / "OWN_A.txt").read_text().splitlines()
    (folder / "OWN_edge_labels.txt").write_text("0\n" * len(edges))
    graphs = load_graph_set(folder)
    assert graph_set_task(graphs).describe().class_names == ("-1", "7")
    assert "OWN_edge_labels.txt is not read" in graphs.notes


def test_a_protocol_of_minibatches_is_refused_and_no_width_is_the_default(graphs: GraphSet) -> None:
    for few in ({"batch": 8}, {"visits": 8}):
        with pytest.raises(ConfigError, match="train on all of them in each step"):
            graph_set_task(graphs, protocol=replace(FAST, **few))  # type: ignore[arg-type]
    assert graph_set_task(graphs, width=None).init(Draws(0)).params["layer0.weight"].shape == (128, 8)


def test_a_folder_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rings(tmp_path / "OWN")
    torch.save(
        [Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0, 1]]).T, y=i % 2) for i in range(20)], tmp_path / "own.pt"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("OWN", "own.pt"):
        assert graph_set_task(name).describe().data == str(tmp_path / name)


def test_the_network_is_described(graphs: GraphSet) -> None:
    own = task(graphs)
    assert (own.network_name, own.architecture()) == ("gcn", "GraphClassifier(depth=3, relu, mean pooling)")


def test_notes_and_pictures_call_classes_by_their_names(
    graphs: GraphSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = task(graphs)
    batch = own.select((own.labels == 1).nonzero().flatten()[:3])
    scores = own.evaluate(batch, "GCN", Draws(0), 1, {})
    assert own.describe().class_names == ("-1", "1")
    assert (scores.judge, [note.split(" is")[0] for note in scores.notes]) == ("gcn", ["class -1"])
    titles: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, title, **_: titles.append(title))
    DOMAIN.draw(own, batch, tmp_path)
    assert [title.partition(":")[0] for title in titles] == ["class 1"] * 3
