"""Trajectory and performance matching on images: compositions, presets and what each learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, NonFiniteError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.methods.trajectory import FTD_CIFAR10, MTT_CIFAR100
from mmdistill.methods import TESLA_CIFAR10
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.parameterizations.memory import AddressedCodes
from mmdistill.registry import get_method, get_parameterization
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings

KEY = Draws(2)
MATCHING = ("mtt", "tesla", "ftd", "ddpp", "haba")


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", model="mlp", width=4, judge_epochs=2)


def run(task: ImageTask, name: str, folder: Path, ipc: int = 1, **changes: object) -> Distiller:
    settings: dict[str, object] = {"steps": 2, "inner_steps": 3, "experts": 1, "expert_folder": str(folder), **changes}
    return Distiller(task, get_method(DOMAIN, name, "digits").with_settings(**settings), ipc)


@pytest.mark.parametrize("name", ["tesla", "haba"])
def test_longer_ways_of_a_reduced_schedule_take_the_late_experts_of_mtt(name: str) -> None:
    mtt, other = (get_method(DOMAIN, each, "mnist", "reduced") for each in ("mtt", name))
    shared, own = (method.network(method.settings(10)) for method in (mtt, other))
    assert isinstance(shared, ExpertTrajectories)
    assert isinstance(own, ExpertTrajectories)
    assert own.recipe == shared.recipe
    assert own.expert_steps == 2


@pytest.mark.parametrize("name", ["mtt", "ftd", "ddpp"])
def test_experts_of_a_reduced_schedule_go_further_where_real_images_teach_more(name: str) -> None:
    method = get_method(DOMAIN, name, "mnist", "reduced")
    few, many = (method.network(method.settings(ipc)) for ipc in (1, 10))
    assert isinstance(few, ExpertTrajectories)
    assert isinstance(many, ExpertTrajectories)
    early, late = few.recipe.protocol, many.recipe.protocol
    assert late.epochs > early.epochs
    assert late == replace(early, epochs=late.epochs, lr=2 * early.lr)


def test_haba_takes_no_other_samples_for_the_styles_of_a_code(task: ImageTask) -> None:
    raw = get_method(DOMAIN, "haba", "digits").customised(storage=get_parameterization(DOMAIN, "raw"))
    with pytest.raises(ConfigError, match=r"compares the \d samples .* and these have 1; .*no --parameterization"):
        Distiller(task, raw, 1).start()


def test_label_distillation_learns_labels_alone(task: ImageTask) -> None:
    method = get_method(DOMAIN, "ld", "digits")
    made = distill(task, method, ipc=2, settings={"steps": 30, "inner_steps": 2})
    distiller = Distiller(task, method, 2)
    start = distiller.start()
    assert sorted(start.optimizers) == ["labels"]
    assert not start.parameterization.inputs.requires_grad  # else every step differentiates the images in vain
    assert torch.equal(made.batch.inputs, start.parameterization(distiller.draws).inputs)  # type: ignore[arg-type]
    targets = made.batch.targets
    assert isinstance(targets, Tensor)
    torch.testing.assert_close(targets.sum(1), torch.ones(20))
    before = start.parameterization(distiller.draws).targets
    assert bool(((targets - before).abs() > 0.01).any())  # type: ignore[operator]
    assert float(made.learned["inner_lr"]) == pytest.approx(method.settings(2).inner_lr)  # which is not learned


def test_addressed_memory_keeps_its_rate_and_its_bytes(task: ImageTask) -> None:
    made = distill(task, "addmem", ipc=2, settings={"steps": 2, "inner_steps": 3, "inner_window": 2})
    assert len(made.batch.weight) > 20
    assert made.stored_bytes <= 20 * (64 * 4 + 1)
    method = get_method(DOMAIN, "addmem")
    assert "objective" not in method.settings(1).optimizers
    rate = method.make_objective(method.settings(1)).learned()["inner_lr"]
    assert rate.shape == ()
    assert float(rate) == pytest.approx(0.01)


def test_hallucinators_take_turns(task: ImageTask, tmp_path: Path) -> None:
    distiller = run(task, "haba", tmp_path, ipc=4, inner_steps=4, inner_parts=2)
    start = distiller.start()
    syn = start.parameterization(distiller.draws)
    objective = start.objective.objective
    steps = objective.step_batches(task, syn, distiller.draws)  # type: ignore[union-attr, operator]
    for step in range(4):  # a code's samples follow each other, style by style
        assert torch.equal(steps.inputs[step], syn.inputs[step % 2 :: 2])  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "name"),
    [("", name) for name in MATCHING] + [("cifar100", "ftd"), ("cifar100", "mtt"), ("tiny-imagenet", "ddpp")],
)
def test_published_settings_go_together(data: str, name: str) -> None:
    method = get_method(DOMAIN, name, data)
    for ipc in (1, 10, 50):
        settings = method.settings(ipc)
        method.network(settings)
        assert method.make_objective(settings).needs_target
        assert settings.experts == 100
        assert settings.augment


def test_published_tables() -> None:
    def found(name: str, data: str, ipc: int) -> Settings:
        return get_method(DOMAIN, name, data).settings(ipc)

    mtt = found("mtt", "cifar100", 50)
    assert (mtt.inner_steps, mtt.expert_steps, mtt.start_epochs, mtt.inner_batch) == (80, 2, 40, 125)
    assert found("mtt", "cifar100", 20) == found("mtt", "cifar100", 10)
    ftd = found("ftd", "cifar10", 50)
    assert (ftd.expert_sam, ftd.expert_gap, ftd.ema, ftd.inner_lr) == (0.01, 1.0, 0.999, 0.01)
    # Half of what the commands say, since TESLA's code gives the images half of the equation's gradient.
    assert found("tesla", "", 1).optimizers["codes"].lr == TESLA_CIFAR10[1].codes_lr == 500.0
    assert [found("tesla", "cifar100", ipc).optimizers["codes"].lr for ipc in (10, 50)] == [1000.0, 500.0]
    assert found("haba", "", 10).optimizers["decoder"] == OptimizerSpec("sgd", 100.0, 0.95)
    assert set(FTD_CIFAR10) == set(MTT_CIFAR100)
    tiny = [found("mtt", "tiny-imagenet", ipc) for ipc in (1, 10, 50)]
    assert [(row.inner_steps, row.start_epochs, row.inner_batch) for row in tiny] == [
        (10, 10, 0),
        (20, 40, 200),
        (20, 40, 300),
    ]
    assert found("ftd", "tiny-imagenet", 10).inner_batch == 500
    assert [found(name, data, 1).steps for name in ("mtt", "tesla") for data in ("", "tiny-imagenet")] == [
        *(5000, 5000),
        *(10_000, 10_000),
    ]
    addmem = found("addmem", "", 1)
    assert (addmem.inner_batch, addmem.real_batch, addmem.clip) == (320, 640, 2.0)
    for data, classes in (("cifar100", 100), ("tiny-imagenet", 200)):
        many = found("addmem", data, 1)
        assert (many.inner_batch, many.real_batch) == (32 * classes, 64 * classes)
        assert found("bptt", data, 1) == replace(many, inner_batch=10 * classes)
        assert [found(name, data, 1).real_batch * classes for name in ("kip", "kip-conv")] == [5000, 5000]
        for ipc in (1, 10, 50):
            for name in ("mtt", "tesla", "ddpp", "ftd", "haba", "addmem"):
                method = get_method(DOMAIN, name, data)
                assert method.make_objective(method.settings(ipc)) is not None
        haba, mtt = found("haba", data, 10), found("mtt", data, 10)
        assert (haba.inner_steps, haba.start_epochs) == (mtt.inner_steps, mtt.start_epochs)


MTT_ROWS = {
    1: (50, 2, 2, 100.0, 1e-7, 0.01, 0, 0.0, 0.0),
    10: (30, 2, 20, 100.0, 1e-5, 0.001, 0, 0.0, 0.0),
    50: (30, 2, 40, 1000.0, 1e-5, 0.001, 0, 0.0, 0.0),
}
MTT_CIFAR100_ROWS = {
    1: (20, 3, 20, 1000.0, 1e-5, 0.01, 0, 0.0, 0.0),
    10: (20, 2, 20, 1000.0, 1e-5, 0.01, 0, 0.0, 0.0),
    50: (80, 2, 40, 1000.0, 1e-5, 0.01, 125, 0.0, 0.0),
}
MTT_TINY_ROWS = {
    1: (10, 2, 10, 10_000.0, 1e-4, 0.01, 0, 0.0, 0.0),
    10: (20, 2, 40, 10_000.0, 1e-4, 0.01, 200, 0.0, 0.0),
    50: (20, 2, 40, 10_000.0, 1e-4, 0.01, 300, 0.0, 0.0),
}
PUBLISHED_ROWS = {
    ("mtt", ""): MTT_ROWS,
    ("ddpp", ""): MTT_ROWS,
    ("mtt", "cifar100"): MTT_CIFAR100_ROWS,
    ("ddpp", "cifar100"): MTT_CIFAR100_ROWS,
    ("mtt", "tiny-imagenet"): MTT_TINY_ROWS,
    ("ddpp", "tiny-imagenet"): MTT_TINY_ROWS,
    ("tesla", "tiny-imagenet"): MTT_TINY_ROWS,
    ("tesla", ""): {**MTT_ROWS, 1: (50, 2, 5, 500.0, 1e-7, 0.01, 0, 0.0, 0.0)},
    ("tesla", "cifar100"): {**MTT_CIFAR100_ROWS, 50: (80, 2, 40, 500.0, 1e-5, 0.01, 125, 0.0, 0.0)},
    ("haba", ""): {**MTT_ROWS, 50: (30, 2, 20, 100.0, 1e-5, 0.01, 0, 0.0, 0.0)},
    ("ftd", ""): {
        1: (50, 2, 2, 100.0, 1e-7, 0.01, 0, 0.3, 0.9999),
        10: (30, 2, 20, 100.0, 1e-5, 0.001, 0, 0.3, 0.9995),
        50: (30, 2, 40, 1000.0, 1e-5, 0.01, 0, 1.0, 0.999),
    },
    ("ftd", "cifar100"): {
        1: (40, 3, 20, 1000.0, 1e-5, 0.01, 0, 1.0, 0.9995),
        10: (20, 2, 40, 1000.0, 1e-5, 0.01, 0, 1.0, 0.9995),
        50: (80, 2, 40, 1000.0, 1e-5, 0.01, 1000, 1.0, 0.999),
    },
    ("ftd", "tiny-imagenet"): {
        1: (30, 2, 10, 10_000.0, 1e-4, 0.01, 0, 1.0, 0.999),
        10: (20, 2, 40, 10_000.0, 1e-4, 0.01, 500, 1.0, 0.999),
    },
}
"""By ipc: student's steps, expert's epochs, starts; rates of images, of the rate, the first rate; batch, gap, decay."""


@pytest.mark.parametrize(("name", "data"), PUBLISHED_ROWS)
def test_every_row_of_the_published_tables(name: str, data: str) -> None:
    for ipc, row in PUBLISHED_ROWS[name, data].items():
        found = get_method(DOMAIN, name, data).settings(ipc)
        rates = (found.optimizers["codes"].lr, found.optimizers["objective"].lr, found.inner_lr)
        lengths = (found.inner_steps, found.expert_steps, found.start_epochs)
        assert (*lengths, *rates, found.inner_batch, found.expert_gap, found.ema) == row


RAT_ROWS = {
    ("cifar10", 1): (200, 60, 100, 5000, 1e-3),
    ("cifar10", 50): (200, 60, 100, 5000, 1e-3),
    ("mnist", 10): (200, 60, 100, 5000, 1e-3),
    ("cifar100", 1): (130, 90, 100, 5000, 3e-4),
    ("cifar100", 5): (130, 90, 100, 5000, 3e-4),
    ("cifar100", 10): (300, 100, 100, 5000, 1e-3),
    ("cifar100", 50): (300, 100, 100, 5000, 1e-3),
    ("tiny-imagenet", 1): (300, 100, 50, 1000, 3e-4),
    ("tiny-imagenet", 10): (300, 100, 50, 1000, 3e-4),
}
"""By data and ipc: a student's longest training, window, minibatch, real images, rate of images and learned labels."""


@pytest.mark.parametrize(("data", "ipc"), RAT_ROWS)
def test_every_command_of_rat_bptt(data: str, ipc: int) -> None:
    method = get_method(DOMAIN, "rat-bptt", data)
    found = method.settings(ipc)
    rate = found.optimizers["codes"]
    row = (found.inner_steps, found.inner_window, found.inner_batch, found.real_batch, rate.lr)
    assert row == RAT_ROWS[data, ipc]
    assert (rate.name, found.init, found.inner_optimizer, found.inner_lr) == ("adam", "noise", "adam", 1e-3)
    trains_labels = data in ("cifar100", "tiny-imagenet")
    assert method.label == ("soft" if trains_labels else "hard")
    assert found.optimizers.get("labels") == (rate if trains_labels else None)


def test_labels_of_rat_bptt_are_trained_with_the_images_where_its_commands_train_them(task: ImageTask) -> None:
    short = {"steps": 2, "real_batch": 8, "inner_steps": 3, "inner_window": 2, "inner_batch": 5}
    distiller = Distiller(task, get_method(DOMAIN, "rat-bptt", "cifar100").with_settings(**short), 1)
    start = distiller.start()
    assert sorted(start.optimizers) == ["codes", "labels"]
    before = start.parameterization(KEY).targets
    targets = distill(task, distiller.method, ipc=1).batch.targets
    assert isinstance(before, Tensor)
    assert isinstance(targets, Tensor)
    torch.testing.assert_close(targets.sum(1), torch.ones(10))
    assert targets.argmax(1).tolist() == list(range(10))
    assert bool((targets != before).any(1).all())


@pytest.mark.parametrize(("name", "flat"), [("mtt", {}), ("ftd", {"sam": 0.01, "sam_gap": 0.3, "sam_adaptive": True})])
def test_published_experts(name: str, flat: dict[str, float]) -> None:
    method = get_method(DOMAIN, name)
    schedule = method.network(method.settings(10))
    assert isinstance(schedule, ExpertTrajectories)
    plain = {"lr": 0.01, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch": 256, "decay_at": ()}
    protocol = schedule.recipe.protocol
    assert protocol == FitProtocol(protocol.epochs, **{**plain, **flat})  # type: ignore[arg-type]
    assert schedule.recipe.augment


def test_experts_of_ftd_serve_other_methods(task: ImageTask, tmp_path: Path) -> None:
    few = {"start_epochs": 1, "expert_steps": 1, "experts": 1, "expert_folder": str(tmp_path), "augment": True}
    flat = {"expert_sam": 0.01, "expert_gap": 0.3}
    ftd = get_method(DOMAIN, "ftd").with_settings(**few)
    ftd.make_schedule(ftd.settings(10)).make_ready(task)
    for name in ("haba", "tesla", "mtt"):
        others = get_method(DOMAIN, name).with_settings(**few, **flat)
        with pytest.raises(CheckpointError, match=r"sam_adaptive = True, not False; .* the setting expert_adaptive"):
            others.make_schedule(others.settings(10)).make_ready(task)
        same = others.with_settings(expert_adaptive=True)
        same.make_schedule(same.settings(10)).make_ready(task)
    assert len(list(tmp_path.iterdir())) == 2
    plainly = ftd.with_settings(expert_adaptive=False).settings(10)
    assert not experts_of(ftd.make_schedule(plainly)).recipe.protocol.sam_adaptive
    with pytest.raises(ConfigError, match="expert_adaptive is true, false or None, got 1"):
        ftd.with_settings(expert_adaptive=1).settings(10)


def experts_of(schedule: object) -> ExpertTrajectories:
    assert isinstance(schedule, ExpertTrajectories)
    return schedule


@pytest.mark.parametrize(("data", "schedule"), [("digits", "published"), ("mnist", "reduced")])
def test_experts_of_early_starts_serve_late_ones_at_their_rate(data: str, schedule: str) -> None:
    method = get_method(DOMAIN, "mtt", data, schedule)
    early = experts_of(method.make_schedule(method.settings(1))).recipe
    late = method.with_settings(start_epochs=5)
    assert experts_of(late.make_schedule(late.settings(1))).recipe.protocol.lr > early.protocol.lr
    same = late.with_settings(expert_lr=early.protocol.lr)
    found = experts_of(same.make_schedule(same.settings(1))).recipe
    assert found == early.of_epochs(found.protocol.epochs)
    assert experts_of(late.make_schedule(late.with_settings(expert_batch=7).settings(1))).recipe.protocol.batch == 7


def of_one_colour(name: str, channels: int = 3, side: int = 32) -> Distiller:
    """The published settings of a method at one image per class of ten."""
    images, classes = torch.rand(20, channels, side, side), torch.arange(20) % 10
    task = image_task((images, classes), test=(images, classes), model="mlp", width=4)
    return Distiller(task, get_method(DOMAIN, name), 1)


def test_sets_of_bptt_are_judged_by_a_protocol_at_its_rate(task: ImageTask) -> None:
    made = distill(task, "bptt", ipc=2, settings={"steps": 2, "inner_steps": 3})
    assert made.learned.keys() == {"inner_lr"}  # and no order of steps, which judges would take instead


@pytest.mark.parametrize("name", ["rat-bptt", "bptt"])
def test_published_images_of_bptt_start_as_noise_of_norm_1(name: str) -> None:
    distiller = of_one_colour(name)
    images = distiller.start().parameterization(KEY).inputs
    assert isinstance(images, Tensor)
    images = images.detach()
    torch.testing.assert_close(images.flatten(1).norm(dim=1), torch.ones(10))
    assert abs(float(images.mean())) < 1e-3
    assert float((images[0] * images[1]).sum().abs()) < 0.1
    real = replace(distiller.method.settings(1), init="real")
    kept = Distiller(distiller.task, distiller.method, 1, settings=real).start().parameterization(KEY).inputs
    assert isinstance(kept, Tensor)
    assert float(kept[0].detach().norm()) > 10  # of real images, which stay as they are


def test_published_memory_of_addmem_has_sixteen_bases_and_starts_near_0() -> None:
    memory = of_one_colour("addmem").start().parameterization
    assert isinstance(memory, AddressedCodes)
    # (10 (4 * 3072 + 1) - 16 * 768 * 4) bytes for rows of 16 numbers and a label; the code, without labels, has 115.
    samples = (10 * (4 * 3072 + 1) - 16 * 768 * 4) // (10 * (4 * 16 + 1))
    assert memory.memory.shape == (16, 3, 16, 16)
    assert memory.addresses.shape == (samples, 10, 16) == (113, 10, 16)
    assert memory.stored_bytes() <= 10 * (4 * 3072 + 1)
    for tensor, bound in ((memory.memory, (6 / (16 + 768)) ** 0.5), (memory.addresses, (6 / (1130 + 16)) ** 0.5)):
        assert 0.99 * bound < float(tensor.detach().abs().max()) <= bound
        assert float(tensor.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    labels = memory(KEY).targets
    assert isinstance(labels, Tensor)
    assert labels.bincount().tolist() == [113] * 10
    tiny = of_one_colour("addmem", channels=1, side=4)
    with pytest.raises(ConfigError, match=r"16 bases for each raw image .* choose --parameterization addr"):
        tiny.start()


def test_faults_are_refused_by_name(task: ImageTask, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="at or before step"):
        distill(task, "mtt", ipc=1, settings={
            "steps": 3, "inner_steps": 3, "inner_lr": 1e30, "experts": 1, "expert_folder": str(tmp_path)
        })  # fmt: skip
    other = image_task("digits", model="mlp", width=5)
    distiller = run(other, "mtt", tmp_path)
    with pytest.raises(CheckpointError, match="are of another network: parameter"):
        distiller.step(distiller.start())
    labels = task.data.train_labels.flip(0)
    changed = image_task((task.data.train_images, labels), model="mlp", width=4)
    distiller = run(changed, "mtt", tmp_path)
    with pytest.raises(CheckpointError, match="fingerprint"):
        distiller.step(distiller.start())
