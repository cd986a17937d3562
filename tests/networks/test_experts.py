"""Experts on disk: copies after every epoch, resumable, refused by name where they do not fit."""

import json
import logging
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.image import image_task
from mmdistill.networks import clock, trajectories
from mmdistill.networks import experts as module
from mmdistill.networks.expert_group import open_groups
from mmdistill.networks.expert_loss import expert_loss
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import Experts, default_folder, open_experts, train_experts
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.schedules import EMPTY
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState, TaskInfo, Tensors
from tests.toys import BlobTask, RecordedTask

EPOCHS = 3
RECIPE = ExpertRecipe(replace(PUBLISHED, epochs=EPOCHS, lr=0.1, batch=32))
KEY = Draws(2)


def everything(task: BlobTask) -> Tensor:
    return torch.arange(len(task.images))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    train_experts(BlobTask(), folder, 3, RECIPE, together=2)
    return folder


def copied(trained: Path, folder: Path) -> Path:
    for path in trained.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_snapshots_are_copies_of_every_epoch(trained: Path) -> None:
    task = BlobTask()
    found = Experts(trained, task, 3)
    losses = [float(task.loss(found.snapshot(0, e), task.select(everything(task)))) for e in range(EPOCHS + 1)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    assert list(found.snapshot(0, 1).params) == list(task.init(KEY).params)
    starts = [found.snapshot(index, 0).params["0.weight"] for index in range(3)]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_an_expert_is_plain_sgd_on_the_real_data(tmp_path: Path) -> None:
    task = BlobTask(per_class=6, dtype=torch.float64)
    recipe = ExpertRecipe(replace(PUBLISHED, epochs=2, lr=0.1, batch=None), augment=False)
    found = train_experts(task, tmp_path, 1, recipe)
    params = found.snapshot(0, 0).params
    for _ in range(2):
        gradient = torch.func.grad(lambda p: task.loss(NetworkState(p, {}), task.select(everything(task))))(params)
        params = {name: p - 0.1 * gradient[name] for name, p in params.items()}
    for name, tensor in found.snapshot(0, 2).params.items():
        assert torch.allclose(tensor, params[name], atol=1e-12)


def test_experts_see_each_sample_augmented_by_itself(tmp_path: Path) -> None:
    task = RecordedTask()
    train_experts(task, tmp_path, 1, replace(RECIPE, augment=True))
    assert len(task.augmented) >= EPOCHS
    assert not any(shared for *_, shared in task.augmented)


def test_minibatches_are_augmented_expert_by_expert(tmp_path: Path) -> None:
    task = RecordedTask()
    train_experts(task, tmp_path, 2, RECIPE, mode="loop")
    _, batch, _ = task.augmented[0]
    assert isinstance(batch, ClassBatch)
    assert batch.batch.weight.shape == (2, 32)


def test_experts_of_every_group_start_from_weights_of_their_own(tmp_path: Path) -> None:
    found = train_experts(BlobTask(), tmp_path, 4, RECIPE.of_epochs(1), together=2)
    starts = [found.snapshot(index, 0).params["0.weight"] for index in range(4)]
    assert not any(torch.equal(one, other) for one, other in combinations(starts, 2))


def test_an_experts_dropout_draws_from_the_seed_of_its_step() -> None:
    task = RecordedTask()
    loss = expert_loss(task, random=True)
    for seed in (3, 4):
        loss(task.init(KEY), task.select(torch.arange(3)), {"seed": torch.tensor(seed)})
    assert [draws.seed for draws, _ in task.losses if draws is not None] == [3, 4]


def test_batched_experts_equal_looped_ones(trained: Path, tmp_path: Path) -> None:
    looped = train_experts(BlobTask(), tmp_path, 2, RECIPE, together=2, mode="loop")
    batched = Experts(trained, BlobTask(), 2)
    for name, tensor in batched.snapshot(1, EPOCHS).params.items():
        assert torch.allclose(tensor, looped.snapshot(1, EPOCHS).params[name], atol=1e-5)


def test_the_log_says_early_and_often_how_long_training_takes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    caplog.set_level(logging.INFO, "mmdistill")
    ticking = clock.TrainingClock(1001, clock.LoggedProgress("experts"))
    now[0] += 60.0
    ticking.tick()  # which compiled: that 1000 more take 60000 s would be wrong
    assert not caplog.records
    for _ in range(1000):
        now[0] += 4.0
        ticking.tick()
    said = [record.getMessage() for record in caplog.records]
    doubled = ["0 % trained, about 67 min left", "1 % trained, about 66 min left", "4 % trained, about 63 min left"]
    left = (*(f"{minutes} min" for minutes in (60, 53, 47, 40, 33, 27, 20, 13, 7)), "0 s")
    tenths = [f"{10 * tenth} % trained, about {time} left" for tenth, time in enumerate(left, 1)]
    assert said == [f"experts: {line}" for line in (*doubled, *tenths)]
    caplog.clear()
    short = clock.TrainingClock(100, clock.LoggedProgress("experts"))
    for _ in range(100):
        now[0] += 0.09
        short.tick()
    assert not caplog.records  # nobody waits for nine seconds


@pytest.mark.parametrize(("seconds", "words"), [(119, "119 s"), (121, "2 min"), (7199, "120 min"), (194849, "54 h")])
def test_times_in_words(seconds: float, words: str) -> None:
    assert clock.time_in_words(seconds) == words


def test_finished_experts_stay_and_missing_ones_are_made(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    (folder / "expert-0001.safetensors").unlink()
    (folder / ".expert-0002.safetensors.x.mmdistill-part").write_bytes(b"cut off")
    ticks: list[tuple[int, int]] = []
    train_experts(
        BlobTask(), folder, 3, RECIPE, together=2, progress=lambda done, total, left: ticks.append((done, total))
    )
    steps = EPOCHS * 3  # an epoch is 90 samples in minibatches of 32
    assert ticks == [(step + 1, steps) for step in range(steps)]  # one group of two
    assert {path.name: path.read_bytes() for path in folder.glob("expert*.safetensors")} == before
    ticks.clear()
    train_experts(
        BlobTask(), folder, 4, RECIPE, together=2, progress=lambda done, total, left: ticks.append((done, total))
    )
    assert len(ticks) == steps  # of the new one alone
    assert before.items() <= {path.name: path.read_bytes() for path in folder.glob("expert*.safetensors")}.items()
    assert open_groups(folder, 6, 2) == [[4, 5]]
    (folder / "expert-0001.safetensors").unlink()
    assert [open_groups(folder, 4, together) for together in (2, 1)] == [[[0, 1]], [[1]]]
    train_experts(BlobTask(), folder, 4, RECIPE, together=2)
    assert Experts(folder, BlobTask(), 4).snapshot(3, 0).params["0.weight"].shape == (8, 4)


def test_what_a_killed_training_left_half_written_goes(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    (folder / "expert-0002.safetensors").unlink()
    (folder / ".expert-0002.safetensors.x.mmdistill-part").write_bytes(b"cut off")
    train_experts(BlobTask(), folder, 3, RECIPE, together=2)
    assert {path.name for path in folder.iterdir()} == {path.name for path in trained.iterdir()}


def test_a_failed_write_leaves_no_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.safetensors.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        train_experts(BlobTask(), tmp_path, 1, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["experts.json"]


def test_experts_that_do_not_fit_are_refused_by_name(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no experts"):
        Experts(tmp_path, BlobTask())
    with pytest.raises(CheckpointError, match="experts 3, 4 are missing"):
        Experts(trained, BlobTask(), 5)
    with pytest.raises(CheckpointError, match="trained for 3 epochs, 9 are needed"):
        Experts(trained, BlobTask(), 3, RECIPE.of_epochs(9))
    with pytest.raises(CheckpointError, match=r"another network: parameter 0.weight has shape \[8, 4\] .* \[6, 4\]"):
        Experts(trained, BlobTask(width=6))
    with pytest.raises(CheckpointError, match=r"sam = 0\.0, not 0\.01; use another folder"):
        open_experts(BlobTask(), trained, 3, replace(RECIPE, protocol=replace(RECIPE.protocol, sam=0.01)))
    assert open_experts(BlobTask(), trained, 3, RECIPE.of_epochs(1)).epochs == EPOCHS
    other = BlobTask()
    info = other.describe()
    other.describe = lambda: replace(info, fingerprint="else")  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=r"fingerprint blobs-7.*has fingerprint else"):
        Experts(trained, other)
    other.describe = lambda: replace(info, preprocessing={"mean": [1.0]})  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="other preprocessing"):
        train_experts(other, trained, 3, RECIPE)
    other.describe = lambda: replace(info, preprocessing={"splits": ["worded anew"]})  # type: ignore[method-assign]
    assert open_experts(other, trained, 3, RECIPE.of_epochs(1)).epochs == EPOCHS
    with pytest.raises(CheckpointError, match=r"lr = 0\.1, not 0\.5; use another folder"):
        train_experts(BlobTask(), trained, 3, ExpertRecipe(replace(RECIPE.protocol, lr=0.5)))
    with pytest.raises(ConfigError, match="at least 1"):
        train_experts(BlobTask(), tmp_path, 0, RECIPE)


def test_experts_in_bfloat16_train_alike_and_stand_apart(trained: Path, tmp_path: Path) -> None:
    task, lowered = BlobTask(), replace(RECIPE, precision="bf16")
    found = train_experts(task, tmp_path, 3, lowered, together=2)
    plain = Experts(trained, task, 3)
    for name, tensor in found.snapshot(1, EPOCHS).params.items():
        assert tensor.dtype == torch.float32
        way = plain.snapshot(1, EPOCHS).params[name] - plain.snapshot(1, 0).params[name]
        apart = (tensor - plain.snapshot(1, EPOCHS).params[name]).norm() / way.norm()
        assert 0 < apart < 0.05  # bfloat16 has 8 bits: a step is off by 1e-3 to 1e-2
    assert torch.equal(found.snapshot(1, 0).params["0.weight"], plain.snapshot(1, 0).params["0.weight"])
    assert default_folder(task, lowered) != default_folder(task, RECIPE)
    with pytest.raises(CheckpointError, match="precision = bf16, not float32; use another folder"):
        open_experts(task, tmp_path, 3, RECIPE)
    with pytest.raises(CheckpointError, match="precision = float32, not bf16; use another folder"):
        open_experts(task, trained, 3, lowered)


def test_experts_of_other_layers_are_refused(tmp_path: Path) -> None:
    def make(layer: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), layer(), nn.Linear(3, 3))

    images, labels = torch.randn(9, 1, 4, 4), torch.arange(3).repeat(3)
    tasks = [
        image_task((images, labels), test=(images, labels), model=partial(make, kind)) for kind in (nn.ReLU, nn.Tanh)
    ]
    recipe = ExpertRecipe(replace(PUBLISHED, epochs=1))
    train_experts(tasks[0], tmp_path, 1, recipe)
    with pytest.raises(CheckpointError, match=r"\(2\): ReLU\(\) there and \(2\): Tanh\(\) in the task's network"):
        Experts(tmp_path, tasks[1])
    assert default_folder(tasks[0], recipe) != default_folder(tasks[1], recipe)


def test_an_epoch_may_visit_a_part_of_the_data() -> None:
    task = BlobTask()
    seen: list[int] = []

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        seen.append(batch.weight.shape[0])
        return task.loss(state, batch), {}

    protocol = replace(RECIPE.protocol, epochs=2, batch=4, visits=10)
    fit_networks(task.init, loss, task.select(everything(task)), protocol, 1, KEY, mode="loop")
    assert seen == [4, 4, 2] * 2


def test_snapshots_go_to_a_device_without_a_wait(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[bool, bool]] = []
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(id(tensor))
        return tensor

    def send(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        sent.append((id(tensor) in pinned, non_blocking))
        return tensor

    experts = Experts(trained, BlobTask(), 1)
    here = experts.snapshot(0, 1)
    experts.device = torch.device("cuda")
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", send)
    there = experts.snapshot(0, 1)
    assert sent == [(True, True)] * len(sent) != []
    assert all(torch.equal(there.params[name], tensor) for name, tensor in here.params.items())


def test_damaged_and_foreign_files_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    shard = folder / "expert-0002.safetensors"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"expert-0002.safetensors is damaged .* it is trained anew"):
        Experts(folder, BlobTask(), 3)
    manifest = json.loads((folder / "experts.json").read_text())
    manifest["training"]["lr"] = 7
    (folder / "experts.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="belongs to other experts"):
        Experts(folder, BlobTask(), 1)
    del manifest["training"], manifest["layers"]
    (folder / "experts.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"experts.json lacks layers, training; remove the folder"):
        Experts(folder, BlobTask(), 1)
    manifest["version"] = 3
    (folder / "experts.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="experts of version 3, this mmdistill reads 4; use another folder"):
        Experts(folder, BlobTask(), 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": None},
        {"training": []},
        {"training": {"epochs": "x"}},
        {"training": {"epochs": None}},
        {"training": {"epochs": 1.5}},
        {"architecture": None},
        {"architecture": []},
        {"layers": None},
    ],
    ids=str,
)
def test_a_manifest_of_wrong_types_is_damaged(wrong: dict[str, object], trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    manifest = json.loads((folder / "experts.json").read_text())
    (folder / "experts.json").write_text(json.dumps(manifest | wrong))
    with pytest.raises(CheckpointError, match=r"experts.json is damaged"):
        Experts(folder, BlobTask(), 1)
    with pytest.raises(CheckpointError, match=r"experts.json is damaged"):
        train_experts(BlobTask(), folder, 1, RECIPE)


def test_a_flipped_bit_is_found_when_its_epoch_is_read(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    shard = folder / "expert-0001.safetensors"
    with safe_open(shard, framework="pt") as handle:
        last = handle.get_tensor("params.0.weight")[-1].numpy().tobytes()
    content = bytearray(shard.read_bytes())
    assert content.count(last) == 1
    content[content.index(last)] ^= 1
    shard.write_bytes(bytes(content))
    experts = Experts(folder, BlobTask(), 3)
    experts.snapshot(1, experts.epochs - 1)
    with pytest.raises(CheckpointError, match=rf"0001.safetensors is damaged \(epoch {experts.epochs} has changed"):
        experts.snapshot(1, experts.epochs)


def test_the_schedule_gives_starts_and_their_targets(trained: Path) -> None:
    task = BlobTask()
    schedule = ExpertTrajectories(3, 2, 2, RECIPE, trained)
    found = Experts(trained, task, 3)
    seen = set()
    for step in range(20):
        state = schedule.fetch(task, EMPTY, KEY.fold(step))
        assert state.network is not None
        assert state.target is not None
        pairs = [(e, s) for e in range(3) for s in range(2)]
        (own,) = [
            p for p in pairs if torch.equal(found.snapshot(*p).params["0.weight"], state.network.params["0.weight"])
        ]
        assert torch.equal(found.snapshot(own[0], own[1] + 2).params["0.weight"], state.target["0.weight"])
        seen.add(own)
    assert len(seen) == 6
    assert schedule.advance(task, state, lambda: task.select(everything(task)), KEY) == EMPTY


def test_every_expert_is_met_at_every_start(trained: Path) -> None:
    task = BlobTask()
    schedule = ExpertTrajectories(2, 2, 1, RECIPE, trained)
    found = Experts(trained, task, 2)
    starts = {pair: found.snapshot(*pair).params["0.weight"] for pair in product(range(2), range(2))}
    networks = [schedule.fetch(task, EMPTY, KEY.fold(step)).network for step in range(40)]
    met = {
        pair
        for pair, weight in starts.items()
        if any(network is not None and torch.equal(network.params["0.weight"], weight) for network in networks)
    }
    assert met == set(starts)


def test_the_schedule_makes_missing_experts_and_says_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    task = BlobTask()
    schedule = ExpertTrajectories(2, 2, 2, RECIPE)
    monkeypatch.setattr(clock, "FIRST_REPORT", 0.0)
    with caplog.at_level(logging.INFO, "mmdistill"):
        schedule.fetch(task, EMPTY, KEY)
    assert "s left" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}  # which alarms no host
    folder = default_folder(task, RECIPE)
    assert folder.parent == tmp_path / "experts"
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert folder != default_folder(task, replace(RECIPE, augment=False))


def test_an_interruption_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trajectories, "open_experts", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        ExpertTrajectories(2, 1, 1, RECIPE, tmp_path).make_ready(BlobTask())
    assert "as they were a minute ago or less" in stop.value.__notes__[0]


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match="up to epoch 5, but experts train for only 3"):
        ExpertTrajectories(3, 4, 2, RECIPE)
    with pytest.raises(ConfigError, match="at least 1"):
        ExpertTrajectories(0, 4, 2, RECIPE)


def test_the_task_description_is_plain() -> None:
    assert isinstance(BlobTask().describe(), TaskInfo)
    json.dumps(module.identity(BlobTask(), RECIPE))


class OneByOne(RecordedTask):
    """Blobs whose loss cannot be batched over networks."""

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        state.params["0.weight"].sum().item()
        return super().loss(state, batch, train=train, draws=draws)


def test_experts_that_train_together_drop_out_apart(tmp_path: Path) -> None:
    task = OneByOne()
    recipe = ExpertRecipe(replace(PUBLISHED, epochs=2, batch=45), augment=False)
    train_experts(task, tmp_path, 2, recipe, together=2)
    seeds = [draws.seed for draws, _ in task.losses if draws is not None]
    assert len(set(seeds)) == len(seeds) == 2 * 2 * 2
