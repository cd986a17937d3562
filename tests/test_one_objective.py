"""The same GradientMatching instance on images, graphs and text, each against a loop-written float64 oracle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.graph.sets.task import graph_set_task
from mmdistill.graph.synthetic import label_nodes
from mmdistill.graph.task import graph_task
from mmdistill.image.task import image_task
from mmdistill.methods import CORE_METHODS
from mmdistill.objectives.base import Network
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState, Task, map_inputs
from mmdistill.testing import as_float64, check_objective
from mmdistill.text.task import text_task
from tests.graph.sets.toy import rings
from tests.graph.toy import FAST, planted_graph
from tests.oracles import graph as graph_oracle
from tests.oracles import objectives as oracle
from tests.text.corpus import token_corpus_task
from tests.toys import smooth_mlp


class Wrong(DistributionMatching):
    """Returns what a test gives it in place of a loss."""

    def __init__(self, found: object) -> None:
        super().__init__()
        self.found = found

    def forward(self, *_: object) -> Tensor:
        """Return something else than a loss."""
        return self.found  # type: ignore[return-value]


OBJECTIVE = GradientMatching(row_cosine)
KEY = Draws(11)


def wide(batch: Batch | ClassBatch) -> ClassBatch:
    assert isinstance(batch, ClassBatch)
    inputs, targets, weight = batch.batch
    return ClassBatch(Batch(map_inputs(lambda t: t.double(), inputs), targets, weight.double()), batch.dims)


def images() -> Task:
    labels = torch.arange(60) % 3
    pixels = KEY.fold("pixels").uniform(60, 1, 2, 2) * (1 + labels.view(-1, 1, 1, 1)) / 4
    return image_task((pixels, labels), model=lambda: nn.Sequential(nn.Flatten(), *smooth_mlp()))


def texts() -> Task:
    words = ["red", "green", "blue"]
    written = [f"{words[i % 3]} {i}" for i in range(60)]

    def encoder(batch: list[str]) -> Tensor:
        return torch.stack([Draws(0, (text,)).normal(4) + 2 * words.index(text.split()[0]) for text in batch])

    return text_task((written, [text.split()[0] for text in written]), encoder=encoder, model=smooth_mlp)


@pytest.mark.parametrize("build", [images, texts], ids=["image", "text"])
def test_images_and_texts_equal_the_oracle(build: object) -> None:
    task: Task = build()  # type: ignore[operator]
    state = as_float64(task.init(KEY.fold("net")))
    sides = [wide(task.sample_real(KEY.fold(name), torch.arange(3), n)) for name, n in (("syn", 2), ("real", 7))]
    first = next(iter(state.params)).split(".")[0]  # a leading Flatten moves the layers' numbers by one
    shift = int(first)
    params = {f"{int(name.split('.')[0]) - shift}.{name.split('.')[1]}": p.numpy() for name, p in state.params.items()}
    written = []
    for side in sides:
        assert isinstance(side.batch.inputs, Tensor)
        assert isinstance(side.batch.targets, Tensor)
        rows = side.batch.inputs.flatten(2).numpy()
        written.append([(x, np.eye(3)[y.numpy()]) for x, y in zip(rows, side.batch.targets, strict=True)])
    check_objective(
        OBJECTIVE, Network(task, state), *sides, oracle=lambda: oracle.gradient_matching(params, *written)
    )  # fmt: skip


def test_graphs_equal_the_oracle() -> None:
    graph = planted_graph()
    task = graph_task(graph, model="sgc", protocol=FAST)
    nodes = label_nodes(KEY.fold("nodes").normal(6, 12), torch.full((3,), 2), 3)
    syn = wide(nodes.class_batches(nodes(KEY)))
    real = wide(task.sample_real(KEY.fold("real"), torch.arange(3), 5))
    state: NetworkState = as_float64(task.init(KEY.fold("net")))
    assert syn.dims.inputs is None
    rows, labels = real.batch.inputs, real.batch.targets
    assert isinstance(rows, dict)
    assert isinstance(labels, Tensor)
    propagated = next(iter(rows.values())).flatten(0, 1).numpy()

    def expected() -> float:
        return graph_oracle.gradient_matching(
            nodes.codes.detach().double().numpy(),
            [0, 0, 1, 1, 2, 2],
            propagated,
            labels.flatten().tolist(),
            state.params["weight"].numpy(),
            state.params["bias"].numpy(),
        )

    check_objective(OBJECTIVE, Network(task, state), syn, real, oracle=expected)


def test_tasks_without_classes_are_refused_when_built() -> None:
    from mmdistill.recsys import recsys_task

    draws = Draws(0).uniform(12, 9)
    matrix = (draws < 0.5).numpy().astype("float32")
    import scipy.sparse

    task = recsys_task(scipy.sparse.csr_array(matrix))
    for objective in (OBJECTIVE, DistributionMatching()):
        with pytest.raises(ConfigError, match="has no classes"):
            objective.check(task)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            torch.ones(2, requires_grad=True),
            r"a loss is a tensor of one number and no axes, and Wrong returned .*\(2,\)",
        ),
        (1.0, "Wrong returned a float"),
        (torch.tensor(1.0), "no gradient leads from the loss of Wrong to what is learned"),
    ],
)
def test_what_is_no_loss_is_refused_in_words(found: object, message: str) -> None:
    method = replace(CORE_METHODS["dm"], objective=lambda: Wrong(found))
    with pytest.raises(ConfigError, match=message):
        distill(images(), method, ipc=1, settings={"steps": 1})


class Deaf(nn.Module):
    """A network whose outputs no gradient leads back from to its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.detach().flatten(1))


@pytest.mark.parametrize(("name", "at_once"), [("dm", 0), ("dc", 0), ("dc", 1), ("dsa", 2), ("krr", 0)])
def test_a_network_that_cuts_gradients_off_is_refused(name: str, at_once: int) -> None:
    labels = torch.arange(30) % 3
    task = image_task((torch.rand(30, 1, 8, 8), labels), test=(torch.rand(6, 1, 8, 8), labels[:6]), model=Deaf)
    with pytest.raises(ConfigError, match="no gradient leads from the loss"):
        distill(task, name, ipc=2, settings={"steps": 1, "real_batch": 8, "classes_at_once": at_once})


def graphs() -> Task:
    return graph_task(planted_graph(), model="sgc", protocol=FAST)


@pytest.mark.parametrize("domain", ["image", "text", "token", "graph", "graph-set"])
@pytest.mark.parametrize("wrong", ["index", "negative", "wide", "few"])
def test_labels_of_other_classes_are_refused_before_a_judge_trains(domain: str, wrong: str, tmp_path: Path) -> None:
    builders = {
        "image": images,
        "text": texts,
        "token": lambda: token_corpus_task(tmp_path),
        "graph": graphs,
        "graph-set": lambda: graph_set_task(rings(tmp_path)),
    }
    task: Task = builders[domain]()
    batch = task.select(torch.arange(4))
    assert isinstance(batch.targets, Tensor)
    classes = task.num_classes or 0
    targets = {
        "index": torch.tensor([0, 1, 0, classes]),
        "negative": torch.tensor([0, 1, 0, -1]),
        "wide": torch.eye(classes + 2)[:4],
        "few": torch.eye(classes)[[0, 1]],
    }[wrong]
    with pytest.raises(ShapeError, match=f"has {classes} classes, and the labels are of others"):
        task.evaluate(Batch(batch.inputs, targets, batch.weight), task.judges[0], Draws(0), 1, {})


def test_a_task_that_augments_into_another_view_is_named_and_not_the_objective() -> None:
    task = images()
    task.augment = lambda draws, batch, *, shared: batch.batch  # type: ignore[method-assign]
    with pytest.raises(ShapeError, match="augment of ImageTask must return a ClassBatch"):
        distill(task, "dsa", ipc=1, settings={"steps": 1})
