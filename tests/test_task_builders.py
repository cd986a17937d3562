"""What every builder of a task refuses alike: sizes and devices that cannot be."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from mmdistill import distill, evaluate, graph_set_task, graph_task, image_task, recsys_task, text_task
from mmdistill.abilities import DescribesJudges, KeepsJudging
from mmdistill.errors import ConfigError, MmdistillWarning
from mmdistill.graph import GraphTask, load_graph
from mmdistill.graph.judges import JudgeProtocol, protocol_for
from mmdistill.graph.models import SGC
from mmdistill.graph.sets.data import load_graph_set
from mmdistill.graph.sets.task import PROTOCOL, GraphSetTask
from mmdistill.image import load
from mmdistill.image.protocols import PROTOCOLS
from mmdistill.image.task import ImageTask
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.recsys import RecsysTask, load_interactions
from mmdistill.recsys.metrics import RankingProtocol
from mmdistill.recsys.vae import VaeProtocol
from mmdistill.runtime import Draws
from mmdistill.task import Task
from mmdistill.text import load_text
from mmdistill.text.reading import encode_splits
from mmdistill.text.task import JUDGE, TextTask
from mmdistill.text.token_judges import PROTOCOL as TOKENS
from mmdistill.text.token_task import TokenTask
from tests.graph.sets.toy import FAST, write_rings
from tests.graph.toy import planted_fields, planted_graph
from tests.text.corpus import corpus, token_corpus_task

MATRIX = np.triu(np.ones((6, 6)))
BUILDERS: dict[str, Callable[..., object]] = {
    "image": lambda **options: image_task("digits", **options),
    "graph": lambda **options: graph_task(planted_graph(), **options),
    "graph-set": lambda **options: graph_set_task("mutag", **options),
    "text": lambda **options: text_task(corpus(), encoder="tfidf", **options),
    "recsys": lambda **options: recsys_task(MATRIX, **options),
}

LOADERS: dict[str, Callable[..., object]] = {
    "image": lambda **options: load("digits", **options),
    "graph": lambda **options: load_graph(planted_fields(), **options),
    "graph-set": lambda **options: load_graph_set("mutag", **options),
    "text": lambda **options: load_text(corpus(), **options),
    "recsys": lambda **options: load_interactions(MATRIX, **options),
}

RINGS = [
    Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), y=torch.tensor([index % 2]))
    for index in range(20)
]
OF_ONES_OWN: dict[str, Callable[..., Task]] = {
    "image": lambda **options: image_task((torch.arange(320).view(20, 1, 4, 4) / 320, torch.arange(20) % 2), **options),
    "graph": lambda **options: graph_task(planted_graph(), **options),
    "graph-set": lambda **options: graph_set_task(RINGS, **options),
    "text": lambda **options: text_task(corpus(), encoder="tfidf", **options),
    "recsys": lambda **options: recsys_task(MATRIX, **options),
}

WHOLE = ("graph", "graph-set")
"""Whose judges see all samples in each step."""


@pytest.mark.parametrize("kind", BUILDERS)
def test_sizes_and_devices_that_cannot_be_are_refused(kind: str) -> None:
    for width in (0, "8", 1.5):
        with pytest.raises(ConfigError, match="width is a whole number of at least 1, got"):
            BUILDERS[kind](width=width)
    with pytest.raises(ConfigError, match="unknown device 'xpu9': use auto, cpu, cuda or cuda:N"):
        BUILDERS[kind](device="xpu9")


@pytest.mark.parametrize("kind", BUILDERS)
def test_seeds_are_whole_numbers(kind: str) -> None:
    for seed in (0.0, False, None, "0"):
        with pytest.raises(ConfigError, match="seed is a whole number, got"):
            BUILDERS[kind](seed=seed)
        with pytest.raises(ConfigError, match="seed is a whole number, got"):
            LOADERS[kind](seed=seed)


def test_a_seed_of_numpy_splits_as_one_of_python() -> None:
    images = np.random.default_rng(0).random((20, 8, 8), dtype=np.float32), np.arange(20) % 2
    one, other = (load(images, seed=seed) for seed in (3, np.int64(3)))  # type: ignore[arg-type]
    assert one.test_fingerprint == other.test_fingerprint
    assert one.notes == other.notes


@pytest.mark.parametrize("kind", BUILDERS)
def test_judges_train_for_an_epoch_at_least(kind: str) -> None:
    for name in ("judge_epochs",) if kind in WHOLE else ("judge_epochs", "judge_batch"):
        with pytest.raises(ConfigError, match=f"{name} is a whole number of at least 1, got 0"):
            BUILDERS[kind](**{name: 0})


@pytest.mark.parametrize("kind", ["image", "graph", "text", "recsys"])
def test_features_that_are_of_no_module_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"no submodule named 'nonsense'|features name submodules of a module of"):
        BUILDERS[kind](features="nonsense")
    with pytest.raises(ConfigError, match="no submodule named 'nonsense'"):
        BUILDERS[kind](model=lambda: nn.Sequential(nn.Linear(6, 6)), features="nonsense")


def test_features_are_those_of_the_modules_that_have_some() -> None:
    for model in ("gcn", "sgc", "mlp"):
        with pytest.raises(ConfigError, match=f"and {model} takes none; leave them out"):
            graph_task(planted_graph(), model=model, features="nonsense")
    for network in ("linear", "mlp"):
        with pytest.raises(ConfigError, match=f"and {network} takes none"):
            text_task(corpus(), encoder="tfidf", model=network, features="nonsense")
    with pytest.raises(ConfigError, match="no submodule named 'nonsense'"):
        recsys_task(MATRIX, model="autoencoder", features="nonsense")
    own = recsys_task(MATRIX, model=lambda: nn.Sequential(nn.Linear(6, 6)), features="0")
    assert own.features(own.init(Draws(0)), own.select(torch.arange(2)).inputs)[0].shape == (2, 6)


@pytest.mark.parametrize("kind", ["image", "graph", "text", "recsys"])
def test_networks_are_names_or_functions(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"got 3, which is int"):
        BUILDERS[kind](model=3)
    for features in (3, ["none"]):
        with pytest.raises(ConfigError, match=r"features is the name of a submodule, or a list of such, got 3|'none'"):
            BUILDERS[kind](model=lambda: nn.Sequential(nn.Linear(6, 6)), features=features)


def test_protocols_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protocol is a JudgeProtocol, got 'dm'"):
        graph_task(planted_graph(), protocol="dm")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="protocol is a FitProtocol, got JudgeProtocol"):
        graph_set_task("mutag", protocol=JudgeProtocol())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="protocol is a RankingProtocol, got 'dm'"):
        RecsysTask(recsys_task(MATRIX).data, protocol="dm")  # type: ignore[arg-type]
    assert graph_set_task(write_rings(tmp_path / "RINGS"), protocol=None).protocol == PROTOCOL


def test_switches_are_true_or_false() -> None:
    with pytest.raises(ConfigError, match="judge_augment is True or False, got 'no'"):
        image_task("digits", judge_augment="no")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="inductive is True or False, got 'no'"):
        graph_task(planted_graph(), inductive="no")  # type: ignore[arg-type]
    task = graph_task(planted_graph())
    with pytest.raises(ConfigError, match="overwrite is True or False, got 'no'"):
        distill(task, "gcond", nodes=6, overwrite="no")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="robust is True or False, got 'no'"):
        evaluate(task, task.select(torch.arange(2)), robust="no")  # type: ignore[arg-type]


def test_networks_of_interactions_are_tried_when_the_task_is_made() -> None:
    for network, message in (
        (lambda: nn.Linear(6, 4), r"the network returned \(2, 4\) for users with rows of 6 items; expected \(2, 6\)"),
        (lambda: nn.Linear(5, 6), "the network cannot run on users with rows of 6 items: .*mat1 and mat2"),
        (lambda: nn.Linear(6, 6).double(), "networks learn in float32, and weight of this one is float64"),
    ):
        with pytest.raises(ConfigError, match=message):
            recsys_task(MATRIX, model=network)
    assert recsys_task(MATRIX, model=lambda: nn.Linear(6, 6)).init(Draws(0)).params


class GraphShares(nn.Module):
    """A graph module with a softmax of its own."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.head, self.last = nn.Linear(12, 3), last

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        shares: torch.Tensor = self.last(self.head(x))
        return shares


def test_networks_that_return_probabilities_are_warned_of() -> None:
    points = text_task(corpus(), encoder="tfidf").dim
    ending: list[Callable[[nn.Module], object]] = [
        lambda last: image_task("digits", model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), last)),
        lambda last: text_task(corpus(), encoder="tfidf", model=lambda: nn.Sequential(nn.Linear(points, 3), last)),
        lambda last: graph_task(planted_graph(), model=lambda: GraphShares(last)),
        lambda last: recsys_task(MATRIX, model=lambda: nn.Sequential(nn.Linear(6, 6), last)),
    ]
    for made in ending:
        with pytest.warns(MmdistillWarning, match=r"returns probabilities, and logits are expected"):
            made(nn.Softmax(-1))
        made(nn.LogSoftmax(-1))
        made(nn.Sigmoid())


def test_judges_of_graphs_train_for_the_epochs_asked_for(tmp_path: Path) -> None:
    protocol = JudgeProtocol(epochs=7, lr=0.02)
    assert graph_task(planted_graph(), judge_epochs=5).protocol == replace(protocol_for(planted_graph()), epochs=5)
    assert graph_task(planted_graph(), protocol=protocol, judge_epochs=5).protocol == replace(protocol, epochs=5)
    assert graph_task(planted_graph(), protocol=protocol).protocol == protocol
    rings = write_rings(tmp_path / "RINGS")
    assert graph_set_task(rings, judge_epochs=5).protocol == replace(PROTOCOL, epochs=5)
    assert graph_set_task(rings, protocol=FAST, judge_epochs=5).protocol == replace(FAST, epochs=5)
    assert graph_set_task(rings).protocol == PROTOCOL


def test_two_arrays_in_a_list_are_images_and_labels() -> None:
    pair = [np.random.default_rng(0).random((20, 8, 8), dtype=np.float32), np.arange(20) % 2]
    assert image_task(pair, model="mlp").num_classes == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*BUILDERS, "token"])
def test_tasks_keep_what_was_set_of_judging(kind: str, tmp_path: Path) -> None:
    sizes = {} if kind in WHOLE else {"judge_batch": 8}
    rings = write_rings(tmp_path / "RINGS")
    builders = BUILDERS | {
        "graph-set": lambda **options: graph_set_task(rings, **options),
        "token": lambda **options: token_corpus_task(tmp_path / "bert", **options),
    }
    task = builders[kind](judge_epochs=4, **sizes)
    assert isinstance(task, KeepsJudging)
    assert task.judging_chosen == {"epochs": 4, **({"batch": 8} if sizes else {})}
    unset = builders[kind](judge_epochs=None)
    assert isinstance(unset, KeepsJudging)
    assert unset.judging_chosen == {}
    dsa = PROTOCOLS["dsa"]
    others = {
        "image": (
            {"protocol": replace(dsa, fit=replace(dsa.fit, lr=0.5, decay_at=(0.1, 0.2)), cutmix=0.5)},
            {"protocol": "fit lr 0.5, fit decay at (0.1, 0.2), cutmix 0.5"},
        ),
        "graph": ({"protocol": JudgeProtocol(lr=0.5)}, {"protocol": "lr 0.5"}),
        "recsys": (
            {"protocol": RankingProtocol(groups=3, chunk=5, max_users=4), "vae": VaeProtocol(kl=0.1)},
            {"protocol": "kl 0.1", "testing": "max users 4"},
        ),
    }
    own, said = (
        others[kind] if kind in others else ({"protocol": replace(usual_of(unset), lr=0.5)}, {"protocol": "lr 0.5"})
    )
    given = builders[kind](judge_epochs=None, **own)
    assert isinstance(given, KeepsJudging)
    assert given.judging_chosen == said


@pytest.mark.parametrize("kind", [*BUILDERS, "token"])
def test_tasks_that_are_constructed_without_a_builder_keep_what_was_set_of_judging(kind: str, tmp_path: Path) -> None:
    construct, protocol = constructors(kind, tmp_path)
    sizes = {} if kind in WHOLE else {"judge_batch": 8}
    task, unset = construct(judge_epochs=4, **sizes), construct()
    assert isinstance(task, KeepsJudging)
    assert isinstance(unset, KeepsJudging)
    assert task.judging_chosen == {"epochs": 4, **({"batch": 8} if sizes else {})}
    assert unset.judging_chosen == {}
    assert isinstance(task, DescribesJudges)
    told = [(judge.reads, judge.epochs(1)) for judge in map(task.describe_judge, task.judges)]
    assert all(epochs == (4 if "epochs" in reads else None) for reads, epochs in told)
    given = construct(protocol=protocol)
    assert isinstance(given, KeepsJudging)
    assert given.judging_chosen == {"testing" if kind == "recsys" else "protocol": SAID.get(kind, "lr 0.5")}
    for name in ("judge_epochs", *sizes):
        with pytest.raises(ConfigError, match=f"{name} is a whole number of at least 1, got 0"):
            construct(**{name: 0})
    with pytest.raises(ConfigError, match="protocol"):
        construct(protocol="nonsense")


SAID = {"image": "fit lr 0.5", "recsys": "max users 4"}
"""In what the protocols differ that constructors give, where not by a rate alone."""


def constructors(kind: str, folder: Path) -> tuple[Callable[..., Task], object]:
    """Return what constructs a task by its class, of parts that a builder has made, and a protocol of one's own."""
    if kind == "image":
        digits = image_task("digits", model="mlp", width=8)
        dsa = PROTOCOLS["dsa"]
        own = replace(dsa, fit=replace(dsa.fit, lr=0.5))
        return partial(ImageTask, digits.data, digits.network, "mlp", digits.device), own
    if kind == "graph":
        return partial(GraphTask, planted_graph(), SGC(12, 3)), JudgeProtocol(lr=0.5)
    if kind == "graph-set":
        rings = load_graph_set(write_rings(folder / "RINGS"))
        return partial(GraphSetTask, rings, 8), replace(PROTOCOL, lr=0.5)
    if kind == "recsys":
        data = recsys_task(MATRIX).data
        return partial(RecsysTask, data), RankingProtocol(groups=3, chunk=5, max_users=4)
    if kind == "token":
        token = token_corpus_task(folder / "bert")
        parts = (token.data, token.vocabulary, token.tokens, token.model)
        return partial(TokenTask, *parts, encoder=token.encoder, network_name="textcnn"), replace(TOKENS, lr=0.5)
    text = text_task(corpus(), encoder="tfidf")
    encoded = encode_splits(text.encoder, text.data)
    points = partial(TextTask, text.data, encoded, text.model, encoder=text.encoder, network_name="mlp")
    return points, replace(JUDGE, lr=0.5)


def usual_of(task: object) -> FitProtocol:
    """Return by which protocol a task's judges train on sets."""
    return getattr(task, "protocol", None) or TOKENS


def test_a_named_protocol_is_none_of_the_users_own() -> None:
    for protocol in ("dsa", PROTOCOLS["dsa"], replace(PROTOCOLS["default"], name="mine", summary="the same")):
        assert image_task("digits", model="mlp", protocol=protocol).judging_chosen == {}
    plain = image_task("digits", model="mlp", judge_augment=False)
    assert plain.judging_chosen == {"protocol": "augmentation off"}


@pytest.mark.parametrize("kind", OF_ONES_OWN)
def test_data_in_memory_may_have_a_name(kind: str) -> None:
    build = OF_ONES_OWN[kind]
    task = build(name="mine")
    assert task.describe().data == "mine"
    assert "mine" in repr(task)
    assert build().describe().fingerprint == task.describe().fingerprint
    with pytest.raises(ConfigError, match="the name of the data is empty"):
        build(name=" ")
    with pytest.raises(ConfigError, match="a name is expected, got 3"):
        build(name=3)


def test_a_name_is_not_that_of_a_known_data_set_or_beside_one() -> None:
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    with pytest.raises(ConfigError, match="'MNIST' is a known data set, which methods have settings for"):
        image_task((images, labels), name="MNIST")
    with pytest.raises(ConfigError, match="a name is for data in memory; 'digits' goes by its own"):
        image_task("digits", name="mine")
    assert image_task(image_task("digits").data, name="mine").data.name == "mine"
