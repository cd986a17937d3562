"""What a run refuses is told before it trains anything, by building its samples without what takes long."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmdistill import coresets
from mmdistill.cli import main
from mmdistill.distiller import Distiller
from mmdistill.errors import MmdistillError
from mmdistill.graph import graph_task
from mmdistill.image import generator, image_task
from mmdistill.labels import LabelKind
from mmdistill.method import Method
from mmdistill.networks import teacher, trajectories
from mmdistill.parameterizations import decoder, generated
from mmdistill.recsys import recsys_task
from mmdistill.registry import get_domain, get_method, get_parameterization, method_names
from mmdistill.task import Task
from tests.graph.toy import FAST, planted_graph
from tests.recsys.conftest import taste_matrix
from tests.text.corpus import small_task, token_corpus_task

TASKS: dict[str, Callable[[Path], Task]] = {
    "image": lambda folder: image_task("digits", model="mlp", width=4),
    "graph": lambda folder: graph_task(planted_graph(), protocol=FAST),
    "text": lambda folder: small_task(),
    "tokens": token_corpus_task,
    "recsys": lambda folder: recsys_task(taste_matrix()),
}
TRAINING = [
    (coresets, "sgd_step"),
    ("sklearn.cluster", "KMeans"),
    ("sklearn.linear_model", "LogisticRegression"),
    (generator, "_train"),
    (decoder.F, "mse_loss"),
    (generated.torch.autograd, "grad"),
    (teacher, "open_experts"),
    (trajectories, "open_experts"),
]


@pytest.fixture
def nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def trains(*args: object, **kwargs: object) -> None:
        raise AssertionError("something trains")

    for place, name in TRAINING:
        monkeypatch.setattr(*((f"{place}.{name}",) if isinstance(place, str) else (place, name)), trains)


def found(task: Task, name: str, label: LabelKind | None = None, stored: str = "", **settings: object) -> Method:
    info = task.describe()
    domain = get_domain(info.domain)
    storage = get_parameterization(domain, stored, info.data) if stored else None
    return get_method(domain, name, info.data).customised(storage, label, settings)


@pytest.mark.filterwarnings("ignore:.*start as copies")
@pytest.mark.parametrize("kind", TASKS)
def test_rehearsals_train_nothing(kind: str, tmp_path: Path, nothing_trains: None) -> None:
    task = TASKS[kind](tmp_path)
    budget = {"graph": 6, "recsys": 3}.get(kind, 2)
    rehearsed = 0
    for name in method_names(task):
        method = get_method(get_domain(task.describe().domain), name, task.describe().data)
        try:
            made = Distiller(task, method, budget).rehearse()
        except MmdistillError:  # of another kind of samples, or of a budget that its decoders exhaust
            continue
        rehearsed += 1
        assert made.stored_bytes() > 0
    assert rehearsed >= 4
    for stored in get_domain(task.describe().domain).parameterizations:
        for init in ("real", "herding", "k-means", "craig"):
            if kind == "image":
                made = Distiller(task, found(task, "dm", stored=stored, init=init), 30).rehearse()
                assert made.num_classes == 10


@pytest.mark.parametrize(
    ("kind", "budget", "name", "label", "settings"),
    [
        ("image", 2, "dm", "soft", {}),
        ("image", 2, "dm", "teacher", {"syn_batch": 1}),
        ("image", 2, "frepo", None, {"syn_batch": 1}),
        ("image", 2, "frepo", "soft", {}),
        ("image", 1000, "dm", None, {"init": "herding"}),
        ("graph", 6, "gcond", "unrestricted", {}),
        ("graph", 6, "gcdm-x", "soft", {}),
        ("graph", 6, "krr", None, {"init": "craig"}),
        ("graph", 6, "krr", None, {"init": "k-center"}),
        ("graph", 50, "gcdm-x", None, {}),
        ("graph", 50, "krr", None, {}),
        ("graph", 50, "propagated-means", None, {}),
        ("text", 2, "dm", "soft", {}),
        ("text", 2, "krr", None, {"init": "noise"}),
        ("text", 1000, "dc", None, {}),
        ("tokens", 2, "dm-tokens", "unrestricted", {}),
        ("tokens", 2, "attention-labels", None, {}),
        ("tokens", 2, "dm", None, {}),
        ("recsys", 3, "distill-cf", "soft", {}),
        ("recsys", 1000, "distill-cf", None, {}),
        ("recsys", 3, "distill-cf", None, {"interactions_per_user": 1000}),
        ("recsys", 3, "distill-cf", None, {"init": "craig"}),
    ],
)
def test_a_rehearsal_refuses_as_the_start_does(
    kind: str, budget: int, name: str, label: LabelKind | None, settings: dict[str, object], tmp_path: Path
) -> None:
    task = TASKS[kind](tmp_path)
    distiller = Distiller(task, found(task, name, label, **settings), budget)
    with pytest.raises(MmdistillError) as told:
        distiller.rehearse()
    with pytest.raises(MmdistillError) as refused:
        distiller.start()
    assert str(told.value) == str(refused.value)


def test_a_rehearsal_leaves_the_start_as_it_is(tmp_path: Path) -> None:
    task = TASKS["image"](tmp_path)
    method = found(task, "dm", init="herding", steps=1)
    plain, other = Distiller(task, method, 2), Distiller(task, method, 2)
    other.rehearse()
    one, same = plain.start().parameterization.state_dict(), other.start().parameterization.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())


def test_no_generator_trains_for_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nothing_trains: None
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    given = ["distill", "--data", "digits", "--method", "dm", "--ipc", "2", "--width", "8", "--steps", "1"]
    given += ["--parameterization", "gan-latents", "--out", str(tmp_path / "run")]
    assert main([*given, "--label", "soft"]) == 2
    assert "never reads labels" in capsys.readouterr().err
    assert main([*given, "--dry-run"]) == 0
    assert re.search(r"^generator +1,200 steps, to be trained first in ", capsys.readouterr().out, re.MULTILINE)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("command", ["distill", "sweep"])
def test_a_dry_run_refuses_a_negative_number_of_steps_between_checkpoints(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"distill": ["--method", "dm"], "sweep": ["--methods", "dm", "--out", str(tmp_path / "runs")]}[command]
    assert main([command, "--data", "digits", "--ipc", "1", *own, "--checkpoint-every=-1", "--dry-run"]) == 2
    assert "checkpoint_every is a number of steps, or 0" in capsys.readouterr().err


def test_a_dry_run_says_which_labels_a_set_will_have(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["distill", "--data", "digits", "--ipc", "1", "--method", "frepo", "--dry-run"]
    assert main([*given, "--label", "hard"]) == 0
    assert re.search(r"^labels +fixed scores$", capsys.readouterr().out, re.MULTILINE)
