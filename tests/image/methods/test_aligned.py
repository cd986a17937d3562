"""DATM: where students start, what experts choose and label, which steps are taken, its published settings."""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.described import described
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, NonFiniteError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.methods.aligned import aligned
from mmdistill.labels import SoftmaxLabels
from mmdistill.method import Method
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.schedules import EMPTY, ScheduleState
from mmdistill.networks.trajectories import ExpertTrajectories, StartWindow
from mmdistill.networks.unroll import Unrolling
from mmdistill.objectives.base import Network
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.parameterizations.from_experts import known_samples, labels_by, recognised
from mmdistill.registry import get_method
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, NetworkState
from tests.oracles import unroll as oracle
from tests.toys import BlobTask

KEY = Draws(5)


def small(folder: Path, **changes: object) -> Method:
    """DATM for blobs, with experts that soon know them."""
    sgd = OptimizerSpec("sgd", 1.0, 0.5)
    settings = Settings(
        steps=6,
        optimizers={"codes": sgd, "labels": OptimizerSpec("sgd", 2.0, 0.9), "objective": OptimizerSpec("sgd", 1e-3)},
        inner_steps=4,
        inner_lr=0.1,
        inner_batch=4,
        experts=3,
        expert_steps=1,
        expert_epochs=8,
        expert_folder=str(folder),
        start_epochs=6,
        start_first=1,
        start_bound=2,
        start_steps=4,
        skip_above=1.0,
    )
    return aligned(replace(PUBLISHED, lr=0.1, batch=16), lambda ipc: settings).with_settings(**changes)


def experts(method: Method) -> ExpertTrajectories:
    schedule = method.make_schedule(method.settings(1))
    assert isinstance(schedule, ExpertTrajectories)
    return schedule


def test_starts_are_drawn_from_ever_more_epochs(tmp_path: Path) -> None:
    task, schedule = BlobTask(), experts(small(tmp_path))
    first = [schedule._open(task).snapshot(index, epoch).params for index in range(3) for epoch in range(9)]
    known = {params["0.weight"].numpy().tobytes(): row % 9 for row, params in enumerate(first)}
    assert len(known) == 27
    seen: list[set[int]] = []
    state = EMPTY
    for step in range(7):
        draws = [schedule.fetch(task, state, KEY.fold(step, index)) for index in range(40)]
        starts = set()
        for found in draws:
            assert found.network is not None
            assert found.target is not None
            start = known[found.network.params["0.weight"].numpy().tobytes()]
            assert known[found.target["0.weight"].numpy().tobytes()] == start + 1
            starts.add(start)
        seen.append(starts)
        state = schedule.advance(task, draws[0], lambda: Batch(torch.empty(0), torch.empty(0), torch.empty(0)), KEY)
        assert state == ScheduleState(None, step + 1, {})
    # T grows from 2 to 6 in four steps: 2 + int(4 step / 4), at most 6; starts lie in [1, T).
    assert seen == [set(range(1, min(2 + int((6 - 2) * step / 4), 6))) for step in range(7)]


def test_a_window_that_does_not_grow_leaves_no_state_and_draws_as_before(tmp_path: Path) -> None:
    task = BlobTask()
    plain = small(tmp_path, start_first=0, start_bound=0, start_steps=0)
    recipe = experts(plain).recipe
    bare = ExpertTrajectories(3, 6, 1, recipe, tmp_path)
    for index in range(4):
        one, other = (schedule.fetch(task, EMPTY, KEY.fold(index)) for schedule in (experts(plain), bare))
        assert one.network is not None
        assert other.network is not None
        assert torch.equal(one.network.params["0.weight"], other.network.params["0.weight"])
    assert bare.advance(task, one, lambda: Batch(torch.empty(0), torch.empty(0), torch.empty(0)), KEY) is EMPTY


def test_schedules_of_other_windows_are_told_apart(tmp_path: Path) -> None:
    everywhere = small(tmp_path, start_first=0, start_bound=0, start_steps=0)
    assert described(experts(small(tmp_path))) != described(experts(everywhere))


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (
            {"start_first": 2},
            "before start_bound .*got start_first 2, start_bound 2 and start_epochs 6; with start_bound=0",
        ),
        ({"start_bound": 7}, "got start_first 1, start_bound 7 and start_epochs 6"),
        ({"start_bound": 0, "start_first": 6}, "got start_first 6, start_bound 0 and start_epochs 6"),
        ({"start_steps": 0}, "start_steps of at least 1, got 0"),
        ({"start_first": -1}, "start_first .*-1"),
        ({"skip_above": -1.0}, "skip_above .*-1"),
    ],
)
def test_windows_without_starts_are_refused(window: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Distiller(BlobTask(), small(tmp_path, **window), 1)


def test_samples_and_labels_are_what_experts_say(tmp_path: Path) -> None:
    task = BlobTask(dtype=torch.float64)
    method = small(tmp_path, init="real")
    schedule = experts(method)
    networks = [schedule._open(task).snapshot(index, 8) for index in range(3)]
    start = Distiller(task, method, 4).start().parameterization
    assert isinstance(start.labels, SoftmaxLabels)
    inputs = start(KEY).inputs
    assert isinstance(inputs, Tensor)
    with torch.no_grad():
        logits = [task.predict(network, inputs)[0].numpy() for network in networks]
    for row in range(12):
        label = row // 4
        assert logits[0][row].argmax() == label  # blobs are easy: the first expert knows enough of each
        right = [one[row] for one in logits if one[row].argmax() == label]
        expected = np.sum(right, 0) / len(right)
        np.testing.assert_allclose(start.labels.logits[row].detach().numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(start.labels()[row].detach().numpy(), softmax(expected), rtol=1e-6)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(
        np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)
    )


class Says(BlobTask):
    """Blobs whose networks say of each sample what they are told: a table of classes, by the sample's place."""

    def __init__(self) -> None:
        super().__init__(per_class=5)
        self.images = torch.arange(15.0)[:, None].expand(15, 4).clone()

    def predict(self, state: NetworkState, inputs: object, **others: object) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        assert isinstance(inputs, Tensor)
        said = state.params["said"][inputs[:, 0].long()]
        return torch.nn.functional.one_hot(said, 3) * state.params["sure"], {}


def says(*classes: int) -> NetworkState:
    return NetworkState({"said": torch.tensor(classes), "sure": torch.tensor(1.0)}, {})


@pytest.mark.parametrize("at_once", [128, 2])
def test_who_knows_too_few_of_a_class_is_followed_by_others(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.coresets.EMBED_CHUNK", {"cpu": at_once})
    task = Says()
    first = says(0, 0, 0, 0, 0, *(1, 0, 0, 0, 0), *(2, 2, 0, 0, 0))
    second = says(1, 1, 1, 1, 1, *(0, 1, 0, 0, 0), *(0, 0, 0, 2, 0))
    counts = torch.tensor([3, 2, 4])
    for index in range(5):
        found = recognised(task, lambda: iter([first, second]), counts, KEY.fold(index)).tolist()
        assert len(set(found)) == 9
        assert set(found[:3]) <= {0, 1, 2, 3, 4}
        assert found[3:5] == [5, 6]  # the one that the first knows, then the one of the second
        assert set(found[5:7]) == {10, 11}
        assert found[7] == 13
        assert found[8] in (12, 14)  # which none knows
    batch = task.select(torch.tensor([0, 5, 10, 12]))
    surer = NetworkState({**second.params, "sure": torch.tensor(5.0)}, {})
    logits = labels_by(task, lambda: iter([first, surer]), batch, torch.tensor([0, 1, 2, 2]))
    assert logits.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 3]]


def test_starts_that_are_chosen_otherwise_stay(tmp_path: Path) -> None:
    task = BlobTask()
    chosen = {
        init: Distiller(task, small(tmp_path, init=init), 2).start().parameterization for init in ("herding", "noise")
    }
    assert float(chosen["noise"](KEY).targets.detach().max()) == pytest.approx(0.95)  # type: ignore[union-attr]
    schedule = experts(small(tmp_path))
    expected = labels_by(
        task, lambda: schedule.finals(task), chosen["herding"](KEY), torch.arange(3).repeat_interleave(2)
    )
    assert torch.equal(chosen["herding"].labels.logits, expected)  # type: ignore[arg-type]
    hard = Distiller(task, small(tmp_path).labelled("hard"), 2).start().parameterization
    assert hard(KEY).targets.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="labelled by experts, which FreshNetworks has not"):
        known_samples(get_method(DOMAIN, "dm").network)(task, 1, small(tmp_path).settings(1), "soft", KEY)


def test_the_loss_and_its_gradient_by_labels_equal_an_oracle() -> None:
    task = BlobTask(dtype=torch.float64)
    start, target = task.init(KEY.fold("start")), task.init(KEY.fold("target")).params
    xs, z = KEY.fold("x").normal(6, 4).double(), KEY.fold("z").normal(6, 3).double()
    labels = SoftmaxLabels.of_logits(z)
    objective = TrajectoryMatching(3, InnerRate(0.25).double(), unrolling=Unrolling(0.0))
    batch = Batch(xs, labels(), torch.ones(6, dtype=torch.float64))
    loss = objective(Network(task, start, target), batch, batch, KEY)
    (found,) = torch.autograd.grad(loss, [labels.logits])

    def value(logits: np.ndarray) -> float:
        params = ({name: p.numpy() for name, p in tree.items()} for tree in (start.params, target))
        return oracle.trajectory(*params, [(xs.numpy(), softmax(logits))] * 3, [0.25] * 3)

    assert float(loss.detach()) == pytest.approx(value(z.numpy()), rel=1e-12)
    for place in np.ndindex(6, 3):
        shift = np.zeros((6, 3))
        shift[place] = 1e-5
        slope = (value(z.numpy() + shift) - value(z.numpy() - shift)) / 2e-5
        assert float(found[place]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_steps_of_a_higher_loss_change_nothing(tmp_path: Path) -> None:
    task = BlobTask()
    method = small(tmp_path, skip_above=0.0, steps=12)

    def walked(skip_above: float) -> Iterator[tuple[float, list[Tensor]]]:
        distiller = Distiller(task, method.with_settings(skip_above=skip_above), 1)
        run = distiller.start()
        for _ in range(12):
            run, loss = distiller.step(run)
            learned = [tensor for group in run.groups().values() for tensor in group]
            momenta = [own["momentum_buffer"] for one in run.optimizers.values() for own in one.state.values()]
            yield float(loss), [tensor.detach().clone() for tensor in (*learned, *momenta)]

    losses = [loss for loss, _ in walked(0.0)]
    most = sorted(losses)[6]
    before: list[Tensor] = []
    skipped = 0
    for loss, after in walked(most):
        same = bool(before) and all(map(torch.equal, before, after))
        if before:
            assert same == (loss > most)
            skipped += same
        before = after
    assert skipped


def test_skipped_steps_may_have_an_infinite_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, method = BlobTask(), small(tmp_path, skip_above=100.0, steps=6)
    gradients, update, taken = Distiller.gradients, Distiller._update, list[int]()

    def bursting(self: Distiller, run: RunState, *rest: Any) -> tuple[Tensor, list[Tensor | None]]:
        loss, found = gradients(self, run, *rest)
        return (torch.full_like(loss, burst) if run.step in bursts else loss), found

    def counted(self: Distiller, run: RunState, found: list[Tensor | None]) -> None:
        taken.append(run.step)
        update(self, run, found)

    monkeypatch.setattr(Distiller, "gradients", bursting)
    monkeypatch.setattr(Distiller, "_update", counted)
    bursts, burst = {0, 3, 5}, torch.inf
    found = distill(task, method, ipc=1, out=tmp_path / "run", checkpoint_every=2)
    assert taken == [1, 2, 4]
    assert [math.isinf(entry.loss) for entry in found.history] == [step in bursts for step in range(6)]
    assert DistilledSet.load(tmp_path / "run").history == found.history
    with pytest.raises(NonFiniteError, match="the loss became inf"):
        distill(task, method.with_settings(skip_above=0.0), ipc=1)
    burst = torch.nan
    with pytest.raises(NonFiniteError, match="the loss became nan"):
        distill(task, method, ipc=1)


def test_a_run_of_skipped_steps_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = BlobTask()
    some = distill(task, small(tmp_path, skip_above=0.0, steps=5), ipc=1)
    usual = sorted(entry.loss for entry in some.history)[3]
    distill(task, small(tmp_path, skip_above=usual, steps=5), ipc=1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    method = small(tmp_path, skip_above=0.01, steps=4)
    caplog.clear()
    distill(task, method, ipc=1)
    (whole,) = [record.getMessage() for record in caplog.records]
    assert "4 of 4 steps changed nothing, since their loss was above 0.01 (skip_above)" in whole
    assert all(option in whole for option in ("--inner-lr", "--lr", "--set skip_above=0"))

    def stop(done: int, total: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(task, method, ipc=1, out=tmp_path / "run", checkpoint_every=1, progress=stop)
    caplog.clear()
    distill(task, method, ipc=1, out=tmp_path / "run", resume=True)
    assert [record.getMessage() for record in caplog.records] == [whole]


def test_runs_resume_bit_identically(tmp_path: Path) -> None:
    task, method = BlobTask(), small(tmp_path / "experts")
    whole = distill(task, method, ipc=2, seed=2)

    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(task, method, ipc=2, seed=2, out=tmp_path / "run", checkpoint_every=1, progress=stop)
    with pytest.raises(CheckpointError, match="start_steps is 4, not 5"):
        distill(task, method.with_settings(start_steps=5), ipc=2, seed=2, out=tmp_path / "run", resume=True)
    resumed = distill(task, method, ipc=2, seed=2, out=tmp_path / "run", resume=True)
    for one, other in ((whole.batch.inputs, resumed.batch.inputs), (whole.batch.targets, resumed.batch.targets)):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    assert torch.equal(whole.learned["inner_lr"], resumed.learned["inner_lr"])
    assert resumed.label == "soft"


ROWS = {
    ("cifar10", 1): (80, 2, 0, 0, 4, 0, 100.0, 5.0, 1e-7, 0, 1.1),
    ("cifar10", 10): (80, 2, 0, 10, 20, 1000, 100.0, 2.0, 1e-5, 0, 1.0),
    ("cifar10", 50): (80, 2, 0, 20, 40, 2000, 1000.0, 2.0, 1e-5, 0, 1.0),
    ("cifar10", 500): (40, 2, 40, 0, 60, 0, 50.0, 10.0, 1e-5, 1000, 1.0),
    ("cifar10", 1000): (100, 2, 40, 0, 60, 0, 50.0, 10.0, 1e-5, 1000, 1.0),
    ("mnist", 20): (80, 2, 0, 10, 20, 1000, 100.0, 2.0, 1e-5, 0, 1.0),
    ("cifar100", 1): (40, 3, 0, 10, 20, 1000, 1000.0, 10.0, 1e-5, 1000, 1.0),
    ("cifar100", 10): (80, 2, 0, 30, 50, 2000, 1000.0, 10.0, 1e-5, 1000, 1.0),
    ("cifar100", 50): (80, 2, 20, 0, 70, 0, 1000.0, 10.0, 1e-5, 1000, 1.0),
    ("cifar100", 100): (80, 2, 30, 0, 70, 0, 50.0, 10.0, 1e-5, 1000, 1.0),
    ("tiny-imagenet", 1): (40, 2, 0, 15, 20, 2000, 10_000.0, 10.0, 1e-4, 1000, 1.0),
    ("tiny-imagenet", 10): (40, 2, 10, 0, 50, 0, 100.0, 10.0, 1e-4, 500, 1.0),
    ("tiny-imagenet", 50): (20, 2, 40, 0, 70, 0, 100.0, 10.0, 1e-4, 1000, 1.0),
}
"""By data and ipc: student's steps, expert's epochs, first start, starts at first and in the end, steps between these;
rates of images, labels and the rate; minibatch, highest loss."""


@pytest.mark.parametrize(("data", "ipc"), ROWS)
def test_every_published_configuration(data: str, ipc: int) -> None:
    method = get_method(DOMAIN, "datm", data)
    found = method.settings(ipc)
    rates = {name: (spec.name, spec.lr, spec.momentum) for name, spec in found.optimizers.items()}
    row = ROWS[data, ipc]
    assert rates == {"codes": ("sgd", row[6], 0.5), "labels": ("sgd", row[7], 0.9), "objective": ("sgd", row[8], 0.5)}
    lengths = (found.inner_steps, found.expert_steps)
    starts = (found.start_first, found.start_bound, found.start_epochs, found.start_steps)
    assert (*lengths, *starts, *row[6:9], found.inner_batch, found.skip_above) == row
    assert (found.steps, found.init, found.inner_lr, found.augment, found.ema) == (10_000, "real", 0.01, True, 0.0)
    assert method.label == "soft"
    schedule = experts(method.with_settings())
    flat = {"sam": 0.01, "sam_gap": 0.3, "sam_adaptive": True}
    plain = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "batch": 256, "decay_at": ()}
    assert schedule.recipe == ExpertRecipe(FitProtocol(100, **plain, **flat), augment=True)  # type: ignore[arg-type]
    assert schedule.experts == 100
    made = method.make_schedule(found)
    assert isinstance(made, ExpertTrajectories)
    assert made.window == StartWindow(*row[2:4], row[5])


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", model="mlp", width=4, judge_epochs=2)


@pytest.mark.parametrize("ipc", [1, 10])
def test_datm_runs_on_digits(digits: ImageTask, ipc: int, tmp_path: Path) -> None:
    few = {"steps": 2, "inner_steps": 3, "experts": 2, "expert_folder": str(tmp_path)}
    made = distill(digits, "datm", ipc=ipc, settings=few | {"expert_epochs": 2, "start_epochs": 2, "start_bound": 1})
    assert isinstance(made.batch.targets, Tensor)
    torch.testing.assert_close(made.batch.targets.sum(1), torch.ones(10 * ipc))
