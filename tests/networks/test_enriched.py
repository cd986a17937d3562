"""A queue of networks: what joins and leaves, training against torch's SGD, what is counted, and its checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.image import image_task
from mmdistill.networks.enriched import MOMENTUM, RIGHT, SEEN, EnrichedPool
from mmdistill.networks.schedules import EMPTY, ScheduleState
from mmdistill.networks.stacked import state_of
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState, Tensors, real_samples
from tests.toys import BlobTask, RecordedTask

KEY = Draws(6)


def no_set() -> Batch:
    raise AssertionError("the synthetic set is not read")


def walked(pool: EnrichedPool, task: BlobTask, steps: int) -> list[ScheduleState]:
    """The fetched state of every step."""
    state, fetched = EMPTY, []
    for step in range(steps):
        fetched.append(pool.fetch(task, state, KEY.fold(step, "network")))
        state = pool.advance(task, fetched[-1], no_set, KEY.fold(step, "inner"))
    return fetched


def weights(memory: Tensors) -> list[Tensor]:
    return list(memory["params.0.weight"])


def test_a_fresh_network_joins_and_the_oldest_leaves_once_it_is_full() -> None:
    found = walked(EnrichedPool(size=4, first=2, every=3, steps=0), BlobTask(), 16)
    assert [len(state.memory[SEEN]) for state in found] == [2, 2, 2, 3, 3, 3, *[4] * 10]
    arrived: list[Tensor] = []
    for state in found:  # without training a network is known by its weights
        for weight in weights(state.memory):
            if not any(torch.equal(weight, known) for known in arrived):
                arrived.append(weight)
    assert len(arrived) == 7
    for step, state in enumerate(found):
        newest = 2 + step // 3
        held = sorted(
            next(i for i, known in enumerate(arrived) if torch.equal(known, w)) for w in weights(state.memory)
        )
        assert held == list(range(max(0, newest - 4), newest))


def test_any_network_serves_and_any_two_others_train() -> None:
    task = BlobTask()
    pool = EnrichedPool(size=5, first=5, steps=1, batch=8)
    state, served, trained = EMPTY, set(), set()
    for step in range(40):
        state = pool.fetch(task, state, KEY.fold(step, "network"))
        assert state.network is not None
        before, seen = weights(state.memory), state.memory[SEEN]
        own = state.network.params["0.weight"]
        served |= {index for index, weight in enumerate(before) if torch.equal(weight, own)}
        after = pool.advance(task, state, no_set, KEY.fold(step, "inner"))
        assert all(torch.equal(a, b) for a, b in zip(before, weights(state.memory), strict=True))  # it stays as it was
        moved = [i for i, (a, b) in enumerate(zip(before, weights(after.memory), strict=True)) if not torch.equal(a, b)]
        assert len(moved) == 2
        expected = torch.zeros(5)
        expected[moved] = 8.0
        torch.testing.assert_close(after.memory[SEEN] - seen, expected)
        assert after.network is None
        trained.add(tuple(moved))
        state = after
    assert served == set(range(5))
    assert len(trained) == 10


def test_networks_train_by_sgd_on_batches_of_their_own() -> None:
    task = RecordedTask()
    task.images, task.dtype = task.images.double(), torch.float64
    pool = EnrichedPool(
        size=2, first=2, trained=2, steps=3, lr=0.1, momentum=0.9, weight_decay=0.01, batch=7, recount=0
    )
    found = walked(pool, task, 4)
    keys = [key for key in task.drawn if "real" in key.path]
    assert len(keys) == len(set(keys)) == 4 * 3 * 2
    start = found[0].memory
    right, seen = [0, 0], [0, 0]
    made = []
    for member in range(2):
        params = {name: tensor[member].clone().requires_grad_() for name, tensor in state_of(start).params.items()}
        made.append((params, torch.optim.SGD(params.values(), lr=0.1, momentum=0.9, weight_decay=0.01)))
    for outer in range(3):
        inner = KEY.fold(outer, "inner")
        order = inner.fold("trained").permutation(2).tolist()
        for step in range(3):
            for place, member in enumerate(order):
                batch = real_samples(task, inner.fold("step", step).fold("real", place), 7)
                params, optimizer = made[member]
                assert isinstance(batch.targets, Tensor)
                outputs, _ = task.predict(NetworkState(params, {}), batch.inputs)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(outputs, batch.targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                for logits, target in zip(outputs, batch.targets, strict=True):
                    right[member] += int(logits.argmax() == target)
                    seen[member] += 1
        memory = found[outer + 1].memory
        for member, (params, optimizer) in enumerate(made):
            for name, parameter in params.items():
                torch.testing.assert_close(memory[f"params.{name}"][member], parameter.detach())
                torch.testing.assert_close(
                    memory[MOMENTUM + name][member], optimizer.state[parameter]["momentum_buffer"]
                )
        assert memory[RIGHT].tolist() == right
        assert memory[SEEN].tolist() == seen


def test_a_network_s_accuracy_comes_with_it() -> None:
    task = BlobTask()
    found = walked(EnrichedPool(size=3, first=3, every=50, trained=1, steps=20, lr=0.1, recount=8), task, 16)
    first = found[0]
    assert first.accuracy is not None
    assert float(first.accuracy) == 0  # none has trained
    for step, state in enumerate(found):
        assert state.network is not None
        assert state.accuracy is not None
        member = next(
            i for i, w in enumerate(weights(state.memory)) if torch.equal(w, state.network.params["0.weight"])
        )
        right, seen = (float(state.memory[name][member]) for name in (RIGHT, SEEN))
        assert float(state.accuracy) == pytest.approx(right / max(seen, 1))
        if step == 8:
            assert not state.memory[SEEN].any()  # counted anew
            assert not state.memory[RIGHT].any()
    late = [float(state.accuracy) for state in found[12:] if state.accuracy is not None]
    assert max(late) > 0.9


def test_samples_of_weight_0_are_not_counted() -> None:
    class HalfWeighed(BlobTask):
        def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
            batch = super().sample_real(draws, classes, n)
            assert isinstance(batch, Batch)
            return batch._replace(weight=(torch.arange(n) % 2).float())

    pool = EnrichedPool(size=3, first=3, every=50, trained=1, steps=20, lr=0.1, momentum=0.0, batch=8, recount=0)
    kept = walked(pool, HalfWeighed(), 16)[-1].memory
    assert float(kept[SEEN].sum()) == 15 * 20 * 4
    assert (kept[SEEN] / 2 < kept[RIGHT]).all()
    assert (kept[RIGHT] <= kept[SEEN]).all()


def test_one_call_trains_both_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    task, pool = BlobTask(dtype=torch.float64), EnrichedPool(size=3, first=3, steps=3, batch=8)
    apart = walked(pool, task, 3)[-1].memory
    monkeypatch.setattr(EnrichedPool, "_mode", lambda self, task: "vmap")
    together = walked(pool, task, 3)[-1].memory
    for name, tensor in apart.items():
        torch.testing.assert_close(together[name], tensor)


def test_a_run_lowers_its_loss_and_resumes_to_the_bit(tmp_path: Path) -> None:
    task, losses = image_task("digits", width=8, judge_epochs=1), []
    settings = {"steps": 16, "real_batch": 16, "init": "noise", "regularisation": 1.0, "outer_steps": 3, "pool_size": 5}

    def note(done: int, total: int, loss: float) -> None:
        losses.append(loss)

    whole = distill(task, "idm", ipc=1, settings=settings, progress=note)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert whole.stored_bytes == 10 * 64 * 4 + 10
    folder = tmp_path / "run"
    distill(task, "idm", ipc=1, settings=settings, out=folder, checkpoint_every=8)
    sorted((folder / "checkpoints").glob("*.safetensors"))[-1].unlink()
    again = distill(task, "idm", ipc=1, settings=settings, out=folder, checkpoint_every=8, resume=True)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]


def test_pools_out_of_range_are_refused() -> None:
    for changes in ({"first": 0}, {"size": 3}, {"every": 0}, {"steps": -1}, {"trained": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match="at least 1 network in the first step"):
            EnrichedPool(**changes)
