"""A pool of networks against Adam by torch, its ages, its resets, and its place in a checkpoint."""

from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.labels import centred_one_hot
from mmdistill.method import Method
from mmdistill.networks.schedules import EMPTY, ScheduleState
from mmdistill.networks.staggered import BusyPool, NetworkPool
from mmdistill.objectives.ridge import MarginKernelRidge
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, Inputs, NetworkState, Task, Tensors
from tests.toys import BlobTask, RecordedTask

KEY = Draws(6)


def synthetic(task: BlobTask) -> Batch:
    batch = task.select(torch.tensor([0, 31, 62]))
    assert isinstance(batch.targets, Tensor)
    return Batch(batch.inputs, centred_one_hot(batch.targets, 3).to(task.dtype), batch.weight)


def walked(pool: NetworkPool, task: BlobTask, steps: int) -> list[ScheduleState]:
    """The fetched state of every step."""
    state, fetched = EMPTY, []
    for step in range(steps):
        fetched.append(pool.fetch(task, state, KEY.fold(step, "network")))
        state = pool.advance(task, fetched[-1], lambda: synthetic(task), KEY.fold(step, "inner"))
    return fetched


def test_a_member_takes_adam_steps_on_the_squared_error() -> None:
    task = BlobTask(dtype=torch.float64)
    states = walked(NetworkPool(size=1, max_age=10, lr=0.01), task, 5)
    start = states[0].network
    assert start is not None
    params = {name: p.clone().requires_grad_() for name, p in start.params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    batch = synthetic(task)
    for state in states:
        assert state.network is not None
        for name, parameter in params.items():
            torch.testing.assert_close(state.network.params[name], parameter.detach(), rtol=1e-9, atol=1e-11)
        optimizer.zero_grad()
        output, _ = task.predict(NetworkState(params, {}), batch.inputs)
        loss = sum((0.5 * (row - goal) ** 2).sum() for row, goal in zip(output, batch.targets, strict=True)) / 3  # type: ignore[arg-type]
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


def test_class_indices_are_regressed_as_centred_one_hot() -> None:
    task, states = BlobTask(), []
    soft = synthetic(task)
    hard = soft._replace(targets=torch.arange(3))
    for batch in (soft, hard):
        pool = NetworkPool(size=1, max_age=9)
        states.append(pool.advance(task, pool.fetch(task, EMPTY, KEY), lambda batch=batch: batch, KEY))
    for name, tensor in states[0].memory.items():
        assert torch.equal(tensor, states[1].memory[name])


def test_members_are_staggered_and_redrawn_at_their_age() -> None:
    task = BlobTask()
    fetched = walked(NetworkPool(size=4, max_age=8), task, 60)
    assert fetched[0].memory["ages"].tolist() == [0, 2, 4, 6]
    members = [int(state.memory["member"]) for state in fetched]
    assert set(members) == {0, 1, 2, 3}
    for before, after in pairwise(fetched):
        member = int(before.memory["member"])
        ages, later = before.memory["ages"].tolist(), after.memory["ages"].tolist()
        expected = 0 if ages[member] == 9 else ages[member] + 1
        assert later == [expected if index == member else age for index, age in enumerate(ages)]
        moved = after.memory[f"{member}.params.0.weight"] - before.memory[f"{member}.params.0.weight"]
        assert (float(moved.abs().max()) > 0.01) == (expected == 0)  # a step moves by the rate, a redraw by more
        age = float(after.memory[f"{member}.steps"])
        assert age == (0 if expected == 0 else float(before.memory[f"{member}.steps"]) + 1)
        if expected == 0:  # Adam begins anew with the network
            assert not after.memory[f"{member}.first.0.weight"].any()
            assert not after.memory[f"{member}.second.0.weight"].any()
        other = (member + 1) % 4
        assert torch.equal(after.memory[f"{other}.params.0.weight"], before.memory[f"{other}.params.0.weight"])
    again = walked(NetworkPool(size=4, max_age=8), task, 60)
    assert [int(state.memory["member"]) for state in again] == members


def test_minibatches_and_augmentation_are_drawn_from_the_key() -> None:
    task = BlobTask()
    pool = NetworkPool(size=1, max_age=9, batch=2, augment=True)
    first, second = (walked(pool, task, 3)[-1].network for _ in range(2))
    assert first is not None
    assert second is not None
    assert torch.equal(first.params["0.weight"], second.params["0.weight"])


class SeenTask(RecordedTask):
    """Blobs that also note what their networks predict for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        assert isinstance(inputs, Tensor)
        self.seen.append(inputs)
        return super().predict(state, inputs, train=train, draws=draws)


def test_a_member_steps_on_a_few_samples_of_the_whole_set() -> None:
    task = SeenTask()
    rows = synthetic(task).inputs
    assert isinstance(rows, Tensor)
    walked(NetworkPool(size=1, max_age=99, batch=2), task, 20)
    assert {len(inputs) for inputs in task.seen} == {2}
    met = [(inputs[:, None] == rows).all(2).nonzero()[:, 1].tolist() for inputs in task.seen]
    assert all(len(set(pair)) == 2 for pair in met)
    assert {row for pair in met for row in pair} == {0, 1, 2}


def test_a_member_steps_on_samples_that_are_augmented_one_by_one() -> None:
    task = SeenTask()
    walked(NetworkPool(size=1, max_age=9, augment=True), task, 3)
    assert [shared for *_, shared in task.augmented] == [False] * 3
    assert not any(torch.equal(inputs, synthetic(task).inputs) for inputs in task.seen)  # type: ignore[arg-type]
    keys = {draws.path for draws, *_ in task.augmented}
    assert len(keys) == 3
    walked(NetworkPool(size=1, max_age=9), task, 3)
    assert len(task.augmented) == 3


def test_members_start_from_weights_of_their_own() -> None:
    pool = NetworkPool(size=3).fetch(BlobTask(), EMPTY, KEY).memory
    starts = [pool[f"{member}.params.0.weight"] for member in range(3)]
    assert not any(torch.equal(one, other) for one, other in combinations(starts, 2))


def test_a_run_resumes_bit_identically(tmp_path: Path) -> None:
    rate = OptimizerSpec("lamb", 0.01)
    method = Method(
        "pool",
        MarginKernelRidge,
        lambda settings: NetworkPool(size=3, max_age=5),
        lambda ipc: Settings(steps=12, real_batch=20, optimizers={"codes": rate, "labels": rate}),
        label="unrestricted",
    )
    task = BlobTask()
    whole = distill(task, method, ipc=2)

    def stop(done: int, total: int, loss: float) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(task, method, ipc=2, out=tmp_path, checkpoint_every=1, progress=stop)
    resumed = distill(task, method, ipc=2, out=tmp_path, resume=True)
    assert torch.equal(whole.batch.inputs, resumed.batch.inputs)  # type: ignore[arg-type]
    assert torch.equal(whole.batch.targets, resumed.batch.targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"size": 0}, {"max_age": 0}, {"batch": 0}, {"lr": 0.0}])
def test_impossible_pools_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        NetworkPool(**wrong)  # type: ignore[arg-type]


def test_a_busy_pool_takes_several_steps_on_what_joins_the_set() -> None:
    task = BlobTask(dtype=torch.float64)
    states = walked(BusyPool(size=1, max_age=99, lr=0.01, steps=4, join=with_its_negative), task, 12)
    counts = [int(after.memory["0.steps"] - before.memory["0.steps"]) for before, after in pairwise(states)]
    assert set(counts) == {1, 2, 3, 4}
    assert [int(state.memory["ages"]) for state in states] == [sum(counts[:step]) for step in range(12)]
    first, last = states[0].network, states[-1].network
    assert first is not None
    assert last is not None
    params = {name: p.clone().requires_grad_() for name, p in first.params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    batch = with_its_negative(task, synthetic(task))
    for _ in range(sum(counts)):
        optimizer.zero_grad()
        output, _ = task.predict(NetworkState(params, {}), batch.inputs)
        ((0.5 * (output - batch.targets) ** 2).sum() / 6).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, parameter in params.items():
        torch.testing.assert_close(last.params[name], parameter.detach(), rtol=1e-9, atol=1e-11)
    with pytest.raises(ConfigError, match="at least 1 step at a time"):
        BusyPool(steps=0)


def with_its_negative(task: Task, batch: Batch) -> Batch:
    """A set with its samples' negatives, of the same labels."""
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(batch.targets, Tensor)
    both = torch.cat([batch.inputs, -batch.inputs])
    return Batch(both, torch.cat([batch.targets, batch.targets]), torch.cat([batch.weight, batch.weight]))
