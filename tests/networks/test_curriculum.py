"""Experts that begin with easy samples and end without them: what is drawn, how it is scored, what is kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.described import described
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.methods import CORE_METHODS, experts_by
from mmdistill.networks import expert_group, experts
from mmdistill.networks.curriculum import Curriculum, CurriculumRows, ranks_in_class
from mmdistill.networks.difficulty import SCORERS_SEED, Scoring, cached_scores, el2n, scored_classes
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe, identity
from mmdistill.networks.experts import (
    default_folder,
    describe_experts,
    is_complete,
    open_experts,
    serving_folder,
    train_experts,
)
from mmdistill.networks.fit import LiveTraining, fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, NetworkState, Tensors
from tests.networks.test_expert_group import contents
from tests.toys import BlobTask

KEY = Draws(4)
PAPER = Curriculum(0.75, 20, ((41, 0.1), (61, 0.2)))
SCORING = Scoring(2, replace(PUBLISHED, epochs=2, lr=0.1, batch=32))
SHORT = Curriculum(0.5, 2, ((3, 0.2), (4, 0.4)), SCORING)
RECIPE = ExpertRecipe(replace(PUBLISHED, epochs=5, lr=0.1, batch=16), curriculum=SHORT)
STEPS = [2, 4, 5, 4, 3]
"""Of an epoch: whole minibatches of 16 among 3 x 15, 22, 30, 24 and 18 samples."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "experts"


def test_the_stages_are_those_of_the_paper() -> None:
    size = 5000
    for epoch in range(100):
        if epoch <= 20:
            expected = (0, int(min(1, 0.75 + 0.25 * epoch / 20) * size))
        elif epoch <= 40:
            expected = (0, size)
        else:
            expected = (int((0.1 if epoch <= 60 else 0.2) * size), size)
        first, until = PAPER.bounds(torch.tensor([size, size]), epoch)
        assert (int(first[0]), int(until[1])) == expected, epoch


def test_an_epoch_draws_a_part_of_each_class_by_its_difficulty() -> None:
    labels = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1, 1])  # three of class 0, six of class 1
    scores = torch.tensor([0.6, 0.3, 0.1, 0.5, 0.2, 0.2, 0.9, 0.4, 0.3])
    assert ranks_in_class(labels, scores).tolist() == [5, 1, 0, 4, 0, 1, 2, 3, 2]
    lessons = CurriculumRows(SHORT, labels, lambda: scores)
    # Half of each class, easiest first, is one of three and three of six; then three quarters, all, and less again.
    assert [lessons.rows(epoch).tolist() for epoch in range(5)] == [
        [2, 4, 5, 8],
        [1, 2, 4, 5, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [0, 1, 3, 4, 5, 6, 7, 8],
        [0, 1, 3, 6, 7, 8],
    ]
    assert [lessons.count(epoch) for epoch in range(5)] == [4, 6, 9, 8, 6]
    assert lessons.rows(70).tolist() == lessons.rows(4).tolist()


def test_equal_scores_keep_their_order() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0])
    assert ranks_in_class(labels, torch.zeros(5)).tolist() == [0, 0, 1, 1, 2]


def test_counting_needs_no_scores() -> None:
    def unscored() -> Tensor:
        raise AssertionError("scored")

    assert CurriculumRows(SHORT, torch.zeros(10, dtype=torch.int64), unscored).count(0) == 5
    with pytest.raises(ConfigError, match="too small for the part of them that epoch 0"):
        CurriculumRows(SHORT, torch.arange(3), unscored).count(0)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"easy": 0.0}, "above 0 and of at most 1"),
        ({"easy": 1.5}, "above 0 and of at most 1"),
        ({"easy": 0.5}, "join in some epochs .*got 0.5 and 0"),
        ({"joining": -1}, "joining is a whole number of at least 0"),
        ({"leaving": ((3, 1.0),)}, "share of at least 0 and below 1"),
        ({"leaving": ((2.5, 0.1),)}, "pairs of an epoch"),
        ({"leaving": (3, 0.1)}, "pairs of an epoch"),
        ({"leaving": ((5, 0.1), (3, 0.2))}, r"ascend from 0 on, got \[5, 3\]"),
        ({"easy": 0.5, "joining": 10, "leaving": ((2, 0.7),)}, "in epoch 2 the easiest 0.7 of each class have left"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Curriculum(**stages)  # type: ignore[arg-type]


def test_networks_train_on_whole_minibatches_of_what_an_epoch_draws() -> None:
    task = BlobTask()
    data = task.select(torch.arange(90))
    tagged = data._replace(inputs={"x": data.inputs, "row": torch.arange(90.0)})  # type: ignore[dict-item]
    assert task.labels is not None
    lessons = CurriculumRows(SHORT, task.labels, lambda: KEY.fold("scores").uniform(90))
    seen: list[list[int]] = []
    at: list[tuple[int, int]] = []

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        assert isinstance(batch.inputs, dict)
        seen.append(batch.inputs["row"].int().tolist())
        return task.loss(state, batch._replace(inputs=batch.inputs["x"])), {}

    def observe(standing: LiveTraining) -> None:
        at.append((standing.epoch, standing.step))

    fit_networks(
        task.init, loss, tagged, RECIPE.protocol, 2, KEY, lessons=lessons, mode="loop", observe=observe
    )  # fmt: skip
    assert [len(rows) for rows in seen] == [16] * 2 * sum(STEPS)
    assert at == [(epoch, step) for epoch, steps in enumerate(STEPS) for step in range(steps)] + [(5, 0)]
    begin = 0
    for epoch, steps in enumerate(STEPS):
        own = seen[begin : begin + 2 * steps]
        begin += 2 * steps
        allowed = set(lessons.rows(epoch).tolist())
        for network in (own[0::2], own[1::2]):
            drawn = [row for rows in network for row in rows]
            assert set(drawn) <= allowed
            assert len(set(drawn)) == len(drawn)
        assert own[0::2] != own[1::2]


def test_el2n_is_the_mean_length_of_the_error() -> None:
    task = BlobTask(dtype=torch.float64)
    data = task.select(torch.arange(0, 90, 7))
    networks = [task.init(KEY.fold(index)) for index in range(3)]
    found = el2n(task, data, networks)
    for row in range(len(found)):
        total = 0.0
        for network in networks:
            logits = task.predict(network, data.inputs)[0][row].numpy()
            said = np.exp(logits) / np.exp(logits).sum()
            assert isinstance(data.targets, Tensor)
            said[int(data.targets[row])] -= 1
            total += float(np.sqrt((said**2).sum()))
        assert float(found[row]) == pytest.approx(total / 3, rel=1e-12)
    soft = data._replace(targets=torch.nn.functional.one_hot(scored_classes(data), 3).double())
    assert torch.equal(el2n(task, soft, networks), found)


def test_samples_are_scored_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Tensor:
        made.append(1)
        return torch.arange(4.0)

    path = tmp_path / "scores.safetensors"
    assert torch.equal(cached_scores(path, 4, make), cached_scores(path, 4, make))
    assert len(made) == 1
    path.write_bytes(b"damaged")
    assert torch.equal(cached_scores(path, 4, make), torch.arange(4.0))
    assert torch.equal(cached_scores(path, 4, make), torch.arange(4.0))
    assert len(made) == 2
    cached_scores(path, 5, lambda: torch.zeros(5))
    assert torch.equal(cached_scores(path, 5, make), torch.zeros(5))


def test_easy_samples_are_those_that_networks_learn_first(cache: Path) -> None:
    task = BlobTask()
    found = open_experts(task, default_folder(task, RECIPE), 2, RECIPE)
    scorers = RECIPE.of_scorers(SCORING)
    folder = default_folder(task, scorers)
    scores = experts.difficulty_scores(task, scorers, SCORING.networks, task.select(torch.arange(90)))
    assert (folder / "difficulty-2-2.safetensors").exists()
    assert is_complete(folder, 2)
    loss = torch.nn.functional.cross_entropy(
        task.predict(found.snapshot(0, 5), task.images)[0], task.labels, reduction="none"
    )
    order = scores.argsort()
    easy, hard = (float(loss[rows].mean()) for rows in (order[:20], order[-20:]))
    assert easy < float(loss.mean()) < hard


def test_scheduled_experts_are_others_and_say_what_they_wait_for(cache: Path) -> None:
    task = BlobTask()
    plain = ExpertRecipe(RECIPE.protocol)
    training = identity(task, plain)["training"]
    assert (training["curriculum"], training["passes"], training["precision"]) == (None, 1, "float32")
    scorers = replace(RECIPE, augment=False, seed=0, precision="bf16").of_scorers(SCORING)
    assert scorers == ExpertRecipe(SCORING.protocol, False, SCORERS_SEED, "bf16")
    assert scorers.seed != plain.seed
    assert identity(task, RECIPE)["training"]["curriculum"]["leaving"] == [[3, 0.2], [4, 0.4]]
    folder = default_folder(task, RECIPE)
    others = [
        default_folder(task, replace(RECIPE, curriculum=replace(SHORT, joining=3))),
        default_folder(task, replace(RECIPE, curriculum=replace(SHORT, scoring=replace(SCORING, networks=3)))),
        default_folder(task, plain),
    ]
    assert len({folder, *others}) == 4
    said = describe_experts(task, folder, 2, RECIPE)
    assert said.endswith(f"to be trained first in {folder}, after 2 networks of 2 epochs that score difficulty")
    assert not cache.exists()  # saying so trains nothing
    train_experts(task, folder, 2, RECIPE)
    assert describe_experts(task, folder, 3, RECIPE).endswith(f"1 of them to be trained first in {folder}")
    for other in (plain, replace(RECIPE, curriculum=replace(SHORT, easy=0.6))):
        with pytest.raises(CheckpointError, match=r"trained with curriculum = .*change the setting expert_easy"):
            open_experts(task, folder, 2, other)
    train_experts(task, default_folder(task, plain), 2, plain)
    with pytest.raises(CheckpointError, match=r"trained with curriculum = None, not .*'easy': 0.5"):
        open_experts(task, default_folder(task, plain), 2, RECIPE)


def stopped_after(steps: int) -> Callable[[int, int, float], None]:
    def stop(done: int, total: int, seconds: float) -> None:
        assert total == 2 * sum(STEPS)
        if done == steps:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("after", [1, 2, 5, 11, 12, 18, 20])
def test_interrupted_scheduled_experts_end_alike(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_group, "KEPT_EVERY", 0.0)
    task = BlobTask()
    train_experts(task, tmp_path / "whole", 3, RECIPE, together=2)
    with pytest.raises(KeyboardInterrupt):
        train_experts(task, tmp_path / "own", 3, RECIPE, together=2, progress=stopped_after(after))
    ticks: list[tuple[int, int]] = []
    train_experts(task, tmp_path / "own", 3, RECIPE, together=2, progress=lambda *seen: ticks.append(seen[:2]))
    assert len(ticks) == 2 * sum(STEPS) - after
    assert ticks[-1] == (len(ticks), len(ticks))
    assert contents(tmp_path / "own") == contents(tmp_path / "whole")


def test_longer_scheduled_experts_go_on_from_shorter_ones_and_serve_these(tmp_path: Path) -> None:
    task, shorter = BlobTask(), RECIPE.of_epochs(3)
    train_experts(task, tmp_path / "whole", 3, RECIPE)
    train_experts(task, default_folder(task, shorter), 3, shorter)
    ticks: list[int] = []
    folder = default_folder(task, RECIPE)
    train_experts(task, folder, 3, RECIPE, progress=lambda *seen: ticks.append(seen[0]))
    assert len(ticks) == sum(STEPS[3:])
    assert contents(folder) == contents(tmp_path / "whole")
    assert serving_folder(task, RECIPE.of_epochs(4), 3) == folder


def test_settings_choose_the_stages(cache: Path) -> None:
    settings = Settings(1, experts=2, start_epochs=2, expert_steps=1)
    make = experts_by(FitProtocol(2, lr=0.1, batch=16), scoring=SCORING)
    plain = make(settings)
    assert isinstance(plain, ExpertTrajectories)
    assert plain.recipe.curriculum is None
    own = make(replace(settings, expert_easy=0.5, expert_joining=2, expert_leaving=((3, 0.2), (4, 0.4))))
    assert isinstance(own, ExpertTrajectories)
    assert own.recipe.curriculum == SHORT
    assert "leaving" in str(described(own))
    with pytest.raises(ConfigError, match="expert_easy"):
        make(replace(settings, expert_easy=0.5))
    assert CORE_METHODS["dm"].ignored_settings(1, ["expert_easy", "expert_joining", "expert_leaving"])


def test_samples_that_train_at_once_have_no_curriculum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(experts, "shares_inputs", lambda batch: True)
    for refused in (train_experts, describe_experts):
        with pytest.raises(ConfigError, match="their task does not grade them"):
            refused(BlobTask(), tmp_path, 1, RECIPE)
    monkeypatch.undo()
    scores, parts = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), {"a": torch.ones(2)}  # an interaction of a user's, say
    for targets in (scores, parts):
        with pytest.raises(ConfigError, match="these samples have none"):
            scored_classes(Batch(torch.ones(2, 2), targets, torch.ones(2)))


def test_classes_too_small_for_an_epoch_are_refused_before_anything_trains(cache: Path) -> None:
    task = BlobTask()
    few = replace(RECIPE, curriculum=Curriculum(0.01, 3))  # of thirty samples of each class
    for refused in (train_experts, describe_experts):
        with pytest.raises(ConfigError, match="too small for the part of them that epoch 0"):
            refused(task, default_folder(task, few), 1, few)
    assert not list(cache.rglob("*.safetensors"))
