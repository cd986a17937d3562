"""What users call: what it takes, what it refuses, and what it says of the set."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill.budget import GivenBudget, method_within_budget
from mmdistill.composition import without_effect
from mmdistill.coresets import choose_samples
from mmdistill.distill import distill, identity, method_settings
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, MemoryExhaustedError, NonFiniteError
from mmdistill.image import image_task
from mmdistill.labels import FixedLabels, LabelKind
from mmdistill.method import Method, Solver
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.schedules import FreshNetworks, NetworkSchedule, ScheduleState, UnreadNetwork
from mmdistill.objectives.base import Objective
from mmdistill.objectives.discrimination import DiscriminativeMatching
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.parameterizations.raw import Raw, RealSamples
from mmdistill.recsys import recsys_task
from mmdistill.registry import get_domain, get_method
from mmdistill.reporting.report import fact_rows
from mmdistill.runs import loop as run_loop
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws
from mmdistill.selections import selection
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, ClassBatch, Task
from tests.runs.blobs import method, samples
from tests.toys import BlobTask


@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        ("dm", ("--classes-at-once 1", "--real-batch", "--syn-batch", "--width"), ("--kept-steps", "--inner")),
        ("dc", ("--classes-at-once 1", "--real-batch", "--inner-batch"), ("--kept-steps", "--inner-steps")),
        ("dd", ("--kept-steps 0", "--real-batch", "--inner-steps"), ("--classes-at-once", "--syn-batch")),
        ("kip", ("--real-batch", "a smaller synthetic budget"), ("--kept", "--inner", "--classes-at-once", "--width")),
    ],
)
def test_out_of_memory_names_what_the_method_has(
    name: str, said: tuple[str, ...], unsaid: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Distiller, "step", exhausted)
    with pytest.raises(MemoryExhaustedError, match="in step 1 of the distillation") as raised:
        distill(image_task("digits", width=8), name, ipc=2, settings={"steps": 1})
    assert all(option in str(raised.value) for option in said)
    assert not any(option in str(raised.value) for option in unsaid)


def test_out_of_memory_in_choosing_samples_names_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mmdistill.coresets.train_briefly", exhausted)
    with pytest.raises(MemoryExhaustedError, match=r"the start .*--init real in place of herding") as raised:
        distill(BlobTask(), method("dm", init="herding"), ipc=1)
    assert "budget" not in str(raised.value)


class Tardy(FreshNetworks):
    """Takes its time to get ready, and between steps."""

    def make_ready(self, task: Task) -> None:
        time.sleep(0.3)

    def advance(self, task: Task, state: ScheduleState, syn: Callable[[], Batch], draws: Draws) -> ScheduleState:
        time.sleep(0.02)
        return super().advance(task, state, syn, draws)


def test_the_time_of_a_step_has_no_setup_in_it_and_is_told_without_inner_loops(tmp_path: Path) -> None:
    tardy = replace(method("dm", steps=6), network=lambda settings: Tardy())
    found = distill(BlobTask(), tardy, ipc=1, out=tmp_path, checkpoint_every=3)
    assert found.inner_seconds is not None
    assert found.setup_seconds > 0.3
    assert found.inner_seconds > 6 * 0.02
    step, update = found.seconds_per_step, found.seconds_per_update
    assert step == pytest.approx((found.seconds - found.setup_seconds) / 6)
    assert update == pytest.approx(step - found.inner_seconds / 6)
    (tmp_path / "checkpoints" / "step-00000006.safetensors").unlink()
    (tmp_path / "distilled.json").unlink()
    resumed = distill(BlobTask(), tardy, ipc=1, out=tmp_path, checkpoint_every=3, resume=True)
    assert resumed.inner_seconds is not None
    assert resumed.setup_seconds > 0.6  # it got ready twice
    assert 6 * 0.02 < resumed.inner_seconds < found.inner_seconds + 3 * 0.02 + 5.0  # a busy machine
    assert resumed.seconds > resumed.setup_seconds + resumed.inner_seconds
    cost = dict(fact_rows(resumed))["cost"]
    assert re.search(
        r" of them without training networks between updates, \d+\.\d s before the first step\), peak", cost
    )
    assert DistilledSet.load(tmp_path).inner_seconds == resumed.inner_seconds


def test_closed_forms_have_no_seconds_of_a_step() -> None:
    found = distill(image_task("digits", width=8), "random-soft", ipc=1)
    assert (found.seconds_per_step, found.seconds_per_update, found.inner_seconds) == (None, None, None)


@pytest.mark.parametrize(("reads", "seconds"), [(1, 1e9), (1, 0.0), (200, 1e9)])
def test_a_loss_that_grows_a_thousandfold_is_warned_of_once(
    reads: int, seconds: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_loop, "READS_PER_RUN", reads)
    monkeypatch.setattr(run_loop, "LONGEST_UNSHOWN", seconds)
    network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))  # noqa: E731
    settings = {"steps": 5, "lr": 1e3, "real_batch": 2}
    distill(image_task("digits", model=network), "dm", ipc=1, settings=settings, progress=lambda *given: None)
    (warning,) = caplog.messages
    assert "the loss grew from" in warning
    assert warning.endswith("Lower the learning rate (--lr, or lr among the settings)")
    caplog.clear()
    distill(BlobTask(), method("dm"), ipc=2)
    assert not caplog.messages


@pytest.mark.parametrize("unit", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([1e-9, 1.0, 0.9, 1.2, 0.8, 1.1], None),  # starts at its optimum
        ([0.0, 1.0, 4.0, 9.0, 16.0, 25.0], None),
        ([1.0, 0.01, 1e-6, 1e-6, 1e-6, 0.9], None),  # is back where it began
        ([-5.0, 0.001, 0.002, 0.001, 4.0, 0.001], None),  # has no sign
        ([-1.0, -1.0, -2.0, -1.0, -1.0, -3.0], None),
        ([2.0, 200.0, 5e3, 8e5, 1e8, 1e11], 3),
        ([0.0, 1e-3, 0.1, 1e2, 1e6, 1e9], 4),
        ([1.0, 0.5, 0.4, 0.3, 2e3, 0.3], 5),
        ([1.0, 1e5, 1e5, 1e5, 1e5, 1e5], 2),  # a jump to a plateau
        ([1.0, 0.5, 0.4, 1e4, 0.4, 1e5], 4),  # twice, and is said once
    ],
)
def test_a_growing_loss_is_told_from_one_that_starts_near_0(
    losses: list[float],
    step: int | None,
    unit: float,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def given(self: Distiller, run: RunState, *rest: object) -> tuple[RunState, Tensor]:
        run.step += 1
        return run, torch.tensor(unit * losses[run.step - 1])

    monkeypatch.setattr(Distiller, "step", given)
    distill(BlobTask(), method("dm"), ipc=2, settings={"steps": len(losses)})
    said = [message for message in caplog.messages if "the loss grew" in message]
    assert [f"by step {step}. " in message for message in said] == ([True] if step else [])


@pytest.mark.parametrize("part", ["parameterization", "objective"])
def test_a_last_update_that_bursts_is_no_result(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is taken before the update, so that it alone would not tell."""
    update = Distiller._update

    def burst(self: Distiller, run: RunState, gradients: list[Tensor | None]) -> None:
        update(self, run, gradients)
        if run.step == 11:
            next(getattr(run, part).parameters()).data.view(-1)[0] = torch.inf

    sgd = OptimizerSpec("sgd", 0.1)
    learning = method("dd", inner_steps=2, optimizers={"codes": sgd, "objective": sgd})
    monkeypatch.setattr(Distiller, "_update", burst)
    for out in (tmp_path, None):
        with pytest.raises(NonFiniteError, match="what is learned became NaN or infinite at or before step 12"):
            distill(BlobTask(), learning, ipc=2, out=out, checkpoint_every=5)
    assert [path.stem for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000005", "step-00000010"]
    assert not (tmp_path / "distilled.json").exists()


def test_an_optimizer_of_nothing_is_refused() -> None:
    sgd = OptimizerSpec("sgd", 0.1)
    with pytest.raises(ConfigError, match=r"an optimizer for 'objectiv', .*; did you mean 'objective'"):
        Distiller(BlobTask(), method("dd", optimizers={"codes": sgd, "objectiv": sgd}), 1).start()
    Distiller(BlobTask(), method("dm", optimizers={"codes": sgd, "labels": sgd}), 1).start()  # which would be learned


def test_what_makes_networks_and_settings_is_a_function() -> None:
    for wrong in ({"settings": Settings(1)}, {"network": FreshNetworks()}):
        with pytest.raises(ConfigError, match=f"the {next(iter(wrong))} of DM is a function"):
            replace(CORE_METHODS["dm"], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", get_args(LabelKind))
@pytest.mark.parametrize("objective", [DistributionMatching, DiscriminativeMatching, GradientMatching])
def test_labels_are_learned_where_the_objective_reads_them_alone(kind: LabelKind, objective: type[Objective]) -> None:
    task = BlobTask()
    distiller = Distiller(task, replace(method("dm").labelled(kind), objective=objective), 2)
    if kind == "unrestricted" and objective is GradientMatching:
        with pytest.raises(ConfigError, match="needs labels that are distributions"):
            distiller.start()
    elif kind in ("hard", "teacher") or objective is GradientMatching:
        run = distiller.start()
        before = run.parameterization.labels().clone()
        for _ in range(2):
            run, _ = distiller.step(run)
        # A teacher labels each step's samples for objectives that read labels, and always those of the finished set.
        stay = kind == "hard" or not objective.reads_labels
        assert torch.equal(run.parameterization.labels(), before) == stay
        assert torch.equal(distiller.result(run, "dm", 0.0).batch.targets, before) == (kind == "hard")  # type: ignore[arg-type]
    else:
        with pytest.raises(ConfigError, match=f"{objective.__name__} never reads labels"):
            distiller.start()


def test_a_misspelt_setting_and_one_of_an_optimizer_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'step'; did you mean 'steps'"):
        method("dm", step=3)
    with pytest.raises(
        ConfigError, match=r"'lr'; it is an optimizer's: optimizers={'codes': OptimizerSpec\('sgd', lr="
    ):
        method("dm", lr=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "steps is a whole number of at least 0, got 'many'"),
        ({"steps": -1}, "steps is a whole number of at least 0, got -1"),
        ({"steps": 1.5}, "steps is a whole number"),
        ({"steps": True}, "steps is a whole number"),
        ({"real_batch": 0}, "real_batch is a whole number of at least 1, got 0"),
        ({"outer_steps": 0}, "outer_steps is"),
        ({"patience": -1}, "patience is"),
        ({"inner_momentum": 2.0}, "inner_momentum is at least 0 and below 1, got 2"),
        ({"ema": 1.0}, "ema is at least 0 and below 1, got 1"),
        ({"inner_lr": float("nan")}, "inner_lr is a number of at least 0, got nan"),
        ({"clip": -1.0}, "clip is"),
        ({"augment": "no"}, "augment is true or false, got 'no'"),
        ({"ema_start": 0}, "ema_start is true or false, got 0"),
        ({"init": "realz"}, "is real or noise or .*, got 'realz'; did you mean 'real'"),
        ({1: 2}, "settings are called by their names, got 1"),
        ({"optimizers": 3}, "optimizers are a mapping from groups to OptimizerSpecs, got 3"),
        ({"optimizers": {"codes": 1.0}}, "the optimizer of 'codes' is an OptimizerSpec, got float"),
        ({"optimizers": {"codes": {"lr": 1.0}}}, r"the optimizer of 'codes' needs a name \(sgd, adam, "),
        ({"optimizers": {"codes": {"name": "sgd", "rl": 1}}}, "optimizer of 'codes' has no 'rl'; did you mean 'lr'"),
        ({"iterations": 3}, r"unknown setting 'iterations'.* \(there are: steps, .*, interactions_per_user\)"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(BlobTask(), CORE_METHODS["dm"], ipc=1, settings=changes)


def test_settings_given_as_arguments_are_told_where_they_belong() -> None:
    given: dict[str, Any] = {"steps": 50, "lr": 0.1}
    with pytest.raises(ConfigError, match=r"^steps and lr: settings are one argument, settings={'steps': 50, 'lr': 0"):
        distill(BlobTask(), "dm", ipc=1, **given)
    with pytest.raises(TypeError, match="unexpected keyword argument 'stages'"):
        distill(BlobTask(), "dm", ipc=1, stages=50)  # type: ignore[call-arg]  # what is told


def test_calls_that_cannot_be_are_refused(tmp_path: Path) -> None:
    task, dm = BlobTask(), method("dm")
    (tmp_path / "file").touch()
    for options, message in (
        ({"ipc": 2**70}, "is between 1 and 1,000,000,000"),
        ({"budget": 1, "ipc": 2}, "the budget was given twice: 1, and ipc"),
        ({"ipc": 1, "seed": 1.5}, "seed is a whole number, got 1.5"),
        ({"ipc": 1, "settings": [("steps", 2)]}, "settings are a mapping from names to values, got list"),
        ({"ipc": 1, "parameterization": 2}, "a parameterization is a name or a Storage, got int"),
        ({"ipc": 1, "checkpoint_every": 1.5}, "checkpoint_every is a number of steps"),
        ({"ipc": 1, "progress": 3}, r"progress is called with \(steps done, steps in all, loss\), got int"),
        ({"ipc": 1, "out": ""}, "out is a folder, got ''"),
        ({"ipc": 1, "out": tmp_path / "file"}, "is a file, and a run needs a folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill(task, dm, **options)  # type: ignore[arg-type]


def test_a_set_names_its_seed_plainly(tmp_path: Path) -> None:
    made = distill(BlobTask(), method("dm", steps=1), ipc=1, seed=np.int64(3), out=tmp_path)  # type: ignore[arg-type]
    assert type(made.seed) is int
    assert DistilledSet.load(tmp_path).seed == 3


def test_labels_and_the_samples_rate_are_chosen_as_on_the_command_line() -> None:
    task = BlobTask()
    made = distill(task, method("dc", steps=2), ipc=1, label="soft", settings={"lr": 0.5})
    assert made.label == "soft"
    expected = distill(task, method("dc", steps=2).labelled("soft").with_rate(0.5), ipc=1)
    assert torch.equal(samples(made), samples(expected))
    assert not torch.equal(samples(made), samples(distill(task, method("dc", steps=2), ipc=1, label="soft")))
    with pytest.raises(ConfigError, match="unknown kind of labels 'sofd'; did you mean 'soft'"):
        distill(task, method("dc"), ipc=1, label="sofd")
    with pytest.raises(ConfigError, match="unknown kind of labels 'softmax'"):
        replace(method("dc"), label="softmax")
    with pytest.raises(ConfigError, match="lr is a number of at least 0, got 'fast'"):
        distill(task, method("dc"), ipc=1, settings={"lr": "fast"})


@pytest.mark.parametrize("settings", [{"steps": 3}, {"lr": 0.1}])
def test_a_closed_form_takes_no_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"closed form and takes no steps, so --{next(iter(settings))} would do"):
        distill(image_task("digits", width=4), "random-soft", ipc=1, settings=settings)


def test_a_set_says_how_it_was_made(tmp_path: Path) -> None:
    soft = replace(method("dc", steps=1), judge="mlp").labelled("soft")
    made = distill(BlobTask(), soft, ipc=1, precision="mixed", out=tmp_path)
    assert (made.parameterization, made.network, made.label) == ("raw", "139 parameters", "soft")
    assert (made.precision, made.judge) == ("mixed", "mlp")
    unread = replace(method("dm", steps=0), network=lambda own: UnreadNetwork())
    assert distill(BlobTask(), unread, ipc=1).network == ""
    chosen = Distiller(BlobTask(), unread, 1, settings=Settings(0, init="herding"))  # by a network's features
    assert chosen.result(chosen.start(), "dm", 0.0).network == "139 parameters"
    task = image_task("digits", width=8)
    stored = distill(task, "dm", ipc=1, parameterization="upsample-2", settings={"steps": 1, "real_batch": 2})
    assert (stored.parameterization, stored.label) == ("upsample-2", "hard")
    assert stored.network.startswith("convnet, ")
    whole = json.loads((tmp_path / "distilled.json").read_text())
    earlier = {name: value for name, value in whole.items() if name not in ("parameterization", "network", "label")}
    (tmp_path / "distilled.json").write_text(json.dumps(earlier))
    assert DistilledSet.load(tmp_path).network == ""
    facts = dict(fact_rows(made))
    assert (facts["network"], facts["stored as"], facts["labels"]) == ("139 parameters", "raw", "soft")
    assert "network" not in dict(fact_rows(DistilledSet.load(tmp_path)))
    stored.save(tmp_path / "stored")
    facts = dict(fact_rows(DistilledSet.load(tmp_path / "stored")))
    assert facts["settings"] == "codes: adam, lr 0.01; real batch 2, init real, augment"


def test_a_schedule_is_chosen_by_name() -> None:
    task = BlobTask()
    for chosen in (distill, method_settings):
        with pytest.raises(ConfigError, match="schedule is published or reduced, got 'short'"):
            chosen(task, "dm", ipc=1, schedule="short")  # type: ignore[operator]
    with pytest.raises(ConfigError, match="a schedule goes with a method's name"):
        distill(task, method("dc"), ipc=1, schedule="reduced")
    matrix = np.kron(np.eye(3), np.ones((6, 4)))  # three tastes
    settings = {"steps": 1, "real_batch": 4}
    made = distill(recsys_task(matrix), "distill-cf", users=3, schedule="reduced", settings=settings)
    reduced = get_method(get_domain("recsys"), "distill-cf", "", "reduced").settings(3)
    assert made.settings["validate_every"] == reduced.validate_every


def test_rates_below_0_are_refused() -> None:
    with pytest.raises(ConfigError, match="lr is a number of at least 0, got -1"):
        OptimizerSpec("sgd", -1.0)


def test_arguments_of_another_kind_are_named() -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="a task is expected, got str; make one with image_task"):
        distill("digits", "dm", ipc=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a task is expected, got type"):
        distill(BlobTask, "dm", ipc=1)  # type: ignore[arg-type]
    members = {name: value for name, value in vars(BlobTask).items() if name not in ("augment", "describe")}
    with pytest.raises(ConfigError, match=r"^Own lacks augment and describe, which every task has$"):
        distill(type("Own", (), members)(), "dm", ipc=1)
    with pytest.raises(ConfigError, match="ipc is a whole number, got '1'"):
        distill(task, method("dm"), ipc="1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"ipc is a whole number, got 1\.5"):
        distill(task, method("dm"), ipc=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a method is a name or a Method, got NoneType"):
        distill(task, None, ipc=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"precision is auto or float32 or .*, got 'fp16'"):
        distill(task, method("dm"), ipc=1, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="compile is auto or on or off, got 'yes'"):
        distill(task, method("dm"), ipc=1, compile="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="checkpoint_every"):
        distill(task, method("dm"), ipc=1, checkpoint_every=-1)


class Recorded(BlobTask):
    """Notes with which key batches are augmented, and whether siamese."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, bool]] = []

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        self.calls.append((draws.path, shared))
        return super().augment(draws, batch, shared=shared)


def test_both_batches_of_a_step_are_augmented_alike() -> None:
    task = Recorded()
    distill(task, method("dm", steps=1), ipc=1)
    first, second = task.calls
    assert first == second
    assert first[1]
    students = Recorded()
    distill(students, method("dd", steps=1, augment=True, inner_steps=1), ipc=1)
    assert [shared for _, shared in students.calls] == [False]  # which augment their samples themselves


def test_groups_rest_outside_their_active_steps() -> None:
    task = BlobTask()
    resting = method("dm", optimizers={"codes": OptimizerSpec("sgd", 1.0, active=(5, 6, 100))}, steps=5)
    start = distill(task, method("dm", steps=0), ipc=2)
    assert torch.equal(samples(distill(task, resting, ipc=2)), samples(start))
    moved = resting.with_settings(steps=6)
    assert not torch.equal(samples(distill(task, moved, ipc=2)), samples(start))


def test_clipping_scales_the_gradients_of_all_groups_together() -> None:
    task, rate = BlobTask(), 0.5
    groups = {"codes": OptimizerSpec("sgd", rate), "labels": OptimizerSpec("sgd", rate)}
    learned = replace(method("dc", optimizers=groups, steps=1), label="soft")

    def moved(clip: float) -> Tensor:
        distiller = Distiller(task, learned.with_settings(clip=clip), 2)
        run = distiller.start()
        before = torch.cat([tensor.detach().flatten() for tensor in run.parameterization.parameters()])
        distiller.step(run)
        return before - torch.cat([tensor.detach().flatten() for tensor in run.parameterization.parameters()])

    free = moved(0.0)
    norm = float(free.norm()) / rate
    assert torch.equal(moved(2 * norm), free)
    # A tenth of the norm: every group keeps its direction and its share.
    assert torch.allclose(moved(0.1 * norm), 0.1 * free, rtol=1e-3, atol=1e-7)
    with pytest.raises(ConfigError, match="clip"):
        Distiller(task, learned.with_settings(clip=-1.0), 2)


def test_impossible_compositions_fail_when_built() -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="learns the group 'codes'"):
        distill(task, method("dm", optimizers={}), ipc=2)
    with pytest.raises(ConfigError, match="LD would learn nothing; use labels that are learned"):
        distill(task, get_method(get_domain("image"), "ld").labelled("hard"), ipc=2)
    with pytest.raises(ConfigError, match="unknown setting 'stepz'"):
        distill(task, CORE_METHODS["dm"], ipc=2, settings={"stepz": 3})
    with pytest.raises(ConfigError, match=r"take their budget as ipc=N or bytes=SIZE .*, got nodes=3"):
        distill(task, method("dm"), nodes=3)
    with pytest.raises(ConfigError, match="got no budget"):
        method_within_budget(task, method("dm"), GivenBudget())


def test_bytes_hold_more_noise_than_there_are_real_samples() -> None:
    task = BlobTask(per_class=5)
    for init, ipc in (("noise", 8), ("real", 5)):
        assert method_within_budget(task, method("dc", init=init), GivenBudget(bytes=8 * 3 * (4 * 4 + 1)))[1] == ipc


def test_the_seed_is_all_that_matters() -> None:
    task = BlobTask()
    one, same, other = (distill(task, method("dm"), ipc=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(samples(one), samples(same))
    assert not torch.equal(samples(one), samples(other))


def test_the_last_step_trains_no_network_in_vain() -> None:
    # outer_steps networks are trained between updates only: published loops skip the training after the last
    task = BlobTask()
    called: list[int] = []
    original = task.loss

    def counting(*args: object, **options: object) -> Tensor:
        called.append(1)
        return original(*args, **options)  # type: ignore[arg-type]

    task.loss = counting  # type: ignore[method-assign]
    distill(task, method("dc", steps=4, outer_steps=2, inner_steps=5), ipc=1)
    assert len(called) == 4 * 2 + 2 * 5


def test_a_method_that_learns_labels_alone_keeps_its_samples() -> None:
    for storage in ("upsample-2", "canvas", "raw"):
        with pytest.raises(ConfigError, match="LD learns its samples' labels alone and leaves the samples as they are"):
            distill(image_task("digits", width=4), "ld", ipc=3, parameterization=storage, settings={"steps": 1})


def test_an_unknown_view_is_refused() -> None:
    class Sideways(DistributionMatching):
        view = "class"  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"the view of Sideways.*'class'"):
        distill(BlobTask(), replace(method("dm"), objective=Sideways), ipc=1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"objective": DistributionMatching()}, "takes what makes one .*, not a DistributionMatching"),
        ({"objective": lambda: None}, "of type NoneType, where a method needs Objective"),
        (
            {"network": lambda settings: None},
            "schedule of .* is of type NoneType, where a method needs NetworkSchedule",
        ),
        ({"parameterization": lambda *given: None}, "of type NoneType, where a method needs Parameterization"),
    ],
)
def test_parts_that_make_something_else_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(BlobTask(), replace(method("dm"), **parts), ipc=1)


def test_settings_that_a_users_parts_read_are_not_called_idle() -> None:
    class Both(DistributionMatching):
        needs_target = True  # beside the real batch

    assert replace(CORE_METHODS["mtt"], objective=Both).ignored_settings(1, ["real_batch"]) == []
    assert CORE_METHODS["mtt"].ignored_settings(1, ["real_batch"]) == ["real_batch"]

    def taught(settings: Settings) -> NetworkSchedule:
        return FreshNetworks() if settings.teacher_epochs else UnreadNetwork()

    assert replace(CORE_METHODS["dm"], network=taught).ignored_settings(1, ["teacher_epochs"]) == []
    assert CORE_METHODS["dm"].ignored_settings(1, ["teacher_epochs"]) == ["teacher_epochs"]


def test_a_set_that_no_step_has_looked_at_is_finite(tmp_path: Path) -> None:
    spoiled = Method(
        "Spoiled", None, CORE_METHODS["dm"].network, lambda ipc: Settings(0),
        solve=lambda task, budget, settings, draws: Raw(
            torch.full((3, 8), float("nan")), FixedLabels(torch.arange(3)), torch.arange(3), 3
        ),
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"holds NaN or infinite values \(inputs\): the data"):
        distill(BlobTask(), spoiled, ipc=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "distilled.json").exists()


def closed(solve: Solver) -> Method:
    return Method("Closed", None, CORE_METHODS["dm"].network, lambda ipc: Settings(0), solve=solve)


def test_real_samples_of_a_closed_form_take_the_bytes_of_a_selection(caplog: pytest.LogCaptureFixture) -> None:
    task = image_task("digits", model="mlp", width=4)
    solve = closed(
        lambda task, budget, settings, draws: RealSamples(
            task, choose_samples(task, "real", torch.full((10,), budget), draws)
        )
    )
    found, beside = distill(task, solve, ipc=2), selection(task, "random", ipc=2)
    assert found.stored_bytes == beside.stored_bytes == 20 * (64 + 1)
    assert found.label == "hard"
    assert found.batch.targets.tolist() == beside.batch.targets.tolist()  # type: ignore[union-attr]
    assert method_within_budget(task, solve, GivenBudget(bytes=found.stored_bytes))[1] == 2
    assert not caplog.messages
    without = BlobTask()
    without.labels = None
    with pytest.raises(ConfigError, match="real samples go by their classes, and 'blobs' has none"):
        RealSamples(without, torch.arange(2))


@pytest.mark.parametrize("each", [1, 3])
def test_a_closed_form_of_another_count_than_its_budget_is_noted(each: int, caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.arange(24).view(3, 8)[:, :each].flatten()
    distill(BlobTask(per_class=8), closed(lambda task, *rest: RealSamples(task, rows)), ipc=2)
    assert caplog.messages == [
        f"Closed made {3 * each} samples, where ipc 2 is 6: so many have the baselines at equal count"
    ]


@pytest.mark.parametrize("name", ["lr", "inner_lr"])
def test_rates_that_no_float_holds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is too large, got 1e"):
        distill(BlobTask(), "dd", ipc=1, settings={name: 1e39})


def test_a_distiller_describes_its_parts_before_it_makes_them() -> None:
    distiller = Distiller(BlobTask(), CORE_METHODS["dm"], 1)
    before = identity(distiller, "dm")["described"]
    distiller.start()
    assert identity(distiller, "dm")["described"] == before
    assert set(before) == {"objective", "schedule"}


def test_a_setting_of_an_average_or_a_mask_that_there_is_none_of_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    task, mtt = image_task("digits", model="mlp", width=8), CORE_METHODS["mtt"]
    start, by = {"ema_start": False}, {"masked_by": "distance"}
    unread = {
        "ema_start": "{} changes nothing, since ema is 0",
        "masked_by": "{} changes nothing, since masked is 0",
    }
    assert without_effect(task, mtt, 1, start | by) == unread
    assert without_effect(task, mtt.with_settings(ema=0.9, masked=0.5), 1, start | by) == {}
    assert without_effect(task, CORE_METHODS["dm"], 1, by) == {
        "masked_by": "DM does not read {}, which changes nothing"
    }
    distill(BlobTask(), "dm", ipc=1, settings={"steps": 1, "real_batch": 4, **start})
    assert caplog.messages == ["ema_start changes nothing, since ema is 0"]
    caplog.clear()
    distill(BlobTask(), "dm", ipc=1, settings={"steps": 1, "real_batch": 4, "ema": 0.9, **start})
    assert not caplog.messages
