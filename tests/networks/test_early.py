import numpy as np
import pytest
import torch

from mmdistill.errors import ConfigError
from mmdistill.networks.early import EarlyStagePool, perturbed
from mmdistill.networks.schedules import EMPTY
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState
from tests.oracles import storage as oracle
from tests.toys import BlobTask

KEY = Draws(6)


def pool(**changes: float) -> EarlyStagePool:
    options = {"outer_steps": 3, "inner_steps": 1, "lr": 0.1, "momentum": 0.5, "batch": 30, "size": 2, **changes}
    return EarlyStagePool(**options)  # type: ignore[arg-type]


def loss(task: BlobTask, state: NetworkState) -> float:
    return float(task.loss(state, task.select(torch.arange(90))))


def test_directions_have_the_norms_of_the_filters() -> None:
    params = {"conv": KEY.fold("w").normal(5, 3, 3, 3).double(), "bias": KEY.fold("b").normal(5).double()}
    params["conv"][2] = 0
    moved = perturbed(params, [0.3], KEY)
    assert torch.equal(moved["bias"], params["bias"])
    for old, new in zip(params["conv"], moved["conv"], strict=True):
        assert float((new - old).norm()) == pytest.approx(0.3 * float(old.norm()), rel=1e-6)
    assert not torch.equal(perturbed(params, [0.3], KEY.fold("other"))["conv"], moved["conv"])
    assert torch.equal(perturbed(params, [], KEY)["conv"], params["conv"])


def test_filters_move_as_the_oracle_says() -> None:
    weight, strengths = KEY.fold("w").normal(4, 3, 2).double(), [0.05, 0.02]
    moved, expected = perturbed({"weight": weight}, strengths, KEY)["weight"], weight.numpy().copy()
    for index, strength in enumerate(strengths):
        direction = KEY.fold("weight", index).normal(4, 3, 2).double().numpy()
        expected += oracle.perturbed(weight.numpy(), direction, strength) - weight.numpy()
    assert np.allclose(moved.numpy(), expected, atol=1e-12)


def test_a_direction_of_zeros_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "normal", lambda draws, *shape: torch.zeros(shape))
    params = {"scale": torch.ones(4, 1, 1)}
    assert torch.equal(perturbed(params, [0.5], KEY)["scale"], params["scale"])


def test_directions_add_up() -> None:
    params = {"weight": KEY.fold("w").normal(5, 7).double()}
    first, second, both = (perturbed(params, strengths, KEY)["weight"] for strengths in ([0.3], [0.0, 0.2], [0.3, 0.2]))
    assert torch.allclose(both - params["weight"], first + second - 2 * params["weight"], atol=1e-12)


def test_the_pool_is_trained_once_and_taken_from_at_random() -> None:
    task, schedule = BlobTask(), pool(epochs=4, weakest=0.0, strongest=0.0)
    members = schedule.pool(task, KEY)
    assert schedule.pool(task, KEY.fold("step", 7)) is members
    assert len(members) == 2
    assert all(loss(task, member) < 0.7 * loss(task, task.init(KEY)) for member in members)
    taken = [schedule.fetch(task, EMPTY, KEY.fold(step)).network for step in range(8)]
    found = {next(i for i, m in enumerate(members) if torch.equal(m.params["0.weight"], t.params["0.weight"]))
             for t in taken if t is not None}  # fmt: skip
    assert found == {0, 1}
    assert schedule.pool(BlobTask(), KEY) is not members


def test_part_of_an_epoch_takes_its_share_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[None] = []
    update = EarlyStagePool.update

    def counted(self: EarlyStagePool, *args: object) -> object:
        updates.append(None)
        return update(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(EarlyStagePool, "update", counted)
    pool(epochs=1.5, batch=20).pool(BlobTask(), KEY)
    assert len(updates) == 2 * 8  # 90 samples are 5 minibatches; one and a half passes are 8


def test_a_resumed_run_makes_the_same_pool() -> None:
    task = BlobTask()
    one, other = (pool().fetch(task, EMPTY, KEY.fold("step", 3)).network for _ in range(2))
    assert one is not None
    assert other is not None
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)


def test_a_taken_network_trains_on_real_data_until_it_is_given_back() -> None:
    task, schedule = BlobTask(), pool()
    first = schedule.fetch(task, EMPTY, KEY)

    def refuse() -> Batch:
        return task.select(torch.arange(2))

    second = schedule.advance(task, first, refuse, KEY)
    assert second.age == 1
    assert schedule.fetch(task, second, KEY.fold("other")).network is second.network
    third = schedule.advance(task, second, refuse, KEY)
    assert schedule.advance(task, third, refuse, KEY) is EMPTY


def test_bad_pools_are_refused() -> None:
    for changes in ({"size": 0}, {"epochs": -1}, {"weakest": 0.2, "strongest": 0.1}, {"directions": -1}):
        with pytest.raises(ConfigError, match="a pool needs"):
            pool(**changes)
