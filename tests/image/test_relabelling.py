"""Judges whose minibatches a teacher labels anew, as they see them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdistill.abilities import overrides_of
from mmdistill.cli import main
from mmdistill.errors import ConfigError, UnsupportedError
from mmdistill.evaluate import evaluate
from mmdistill.image import ImageTask, image_task, relabelling
from mmdistill.image import views as views_module
from mmdistill.image.judge_training import judge_loss
from mmdistill.image.protocols import PROTOCOLS, JudgingCase, JudgingChoices, Protocol, plan_for
from mmdistill.image.relabelling import Relabelling
from mmdistill.image.views import Views
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import FunctionalModule
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Task, Tensors, one_tensor
from tests.image.methods.test_realistic import PictureTask, untrained

KEY = Draws(6)
SHORT = replace(PROTOCOLS["rded"], fit=replace(PROTOCOLS["rded"].fit, epochs=4), teacher=Relabelling(epochs=2))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", model="mlp", width=8, protocol=SHORT)


def softmax(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["rded", "sre2l"])
def test_the_loss_of_a_minibatch_is_the_divergence_from_the_teachers_view_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relabelling, "trained_teacher", untrained)
    task, temperature = PictureTask(shape=(3, 8, 8)), 4.0
    plan = plan_for(
        replace(PROTOCOLS[name], teacher=Relabelling(1, temperature)),
        image_task("digits", model="mlp").data,
        JudgingCase(6),
    )
    views = Views(task_augmentation(), True, 3)
    flat = Batch(task.images[:8], torch.arange(8) % 3, torch.ones(8, dtype=torch.float64))
    seen = views(plan, 2, KEY, flat)  # of two networks, four images each
    assert plan.teacher is not None
    label = plan.teacher.labeller(task, lambda draws, batch: views(plan, 2, draws, batch))  # type: ignore[arg-type]
    found = label(KEY, flat)
    assert torch.equal(found.inputs, seen.inputs)  # type: ignore[arg-type]
    assert not torch.equal(seen.inputs, flat.inputs)  # type: ignore[arg-type]
    student = FunctionalModule(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double())
    state = student.init(KEY)
    mine = found.map(lambda tensor: tensor[4:])
    loss, _ = judge_loss(student, None, temperature=temperature)(state, mine, {})
    teacher = untrained(task, 1)
    with torch.no_grad():
        images = seen.inputs[4:]  # type: ignore[index]
        t = softmax(task.module(teacher, images)[0] / temperature)
        s = softmax((images.flatten(1) @ state.params["1.weight"].T + state.params["1.bias"]) / temperature)
        wanted = sum(t[i, c] * (t[i, c].log() - s[i, c].log()) for i in range(4) for c in range(3)) / 4
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-12)


def task_augmentation() -> Any:
    return image_task("digits", model="mlp").augmentation


@pytest.mark.parametrize("name", ["rded", "sre2l"])
def test_photographs_are_cropped_and_small_images_are_not(
    name: str, digits: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan_for(PROTOCOLS[name], digits.data, JudgingCase(6)), cutmix=0.0)
    images = 5 + KEY.normal(40, 3, 8, 8, dtype=torch.float64)
    flat = Batch(images, torch.arange(40) % 3, torch.ones(40))
    small = Views(digits.augmentation, False, 3)(plan, 2, KEY, flat).inputs
    shifted = bool((small == 0).any())  # what comes in is zero
    assert shifted == (name == "sre2l")
    assert name == "sre2l" or torch.equal(small, images)  # type: ignore[arg-type]
    monkeypatch.setattr(views_module, "LARGE", 8)
    monkeypatch.setitem(views_module.SHARES, name, 1.0)
    whole = Views(digits.augmentation, True, 3)(plan, 2, KEY, flat).inputs
    same = [torch.allclose(a, b) for a, b in zip(whole, images, strict=True)]
    turned = [torch.allclose(a, b.flip(2)) for a, b in zip(whole, images, strict=True)]
    assert 0 < sum(same) < 40
    assert sum(same) + sum(turned) == 40
    monkeypatch.setitem(views_module.SHARES, name, 0.1)
    crops = Views(digits.augmentation, False, 3)(plan, 2, KEY, flat).inputs
    assert crops.shape == images.shape  # type: ignore[union-attr]
    assert sum(torch.allclose(a, b) for a, b in zip(crops, images, strict=True)) < 10  # large crops, rounded up


@pytest.mark.parametrize("name", ["rded", "sre2l"])
def test_crops_of_photographs_have_ratios_of_their_own(name: str, digits: ImageTask) -> None:
    plan = replace(plan_for(PROTOCOLS[name], digits.data, JudgingCase(6)), cutmix=0.0)
    places = torch.stack(torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij"))
    flat = Batch(places.expand(60, 2, 128, 128), torch.arange(60) % 3, torch.ones(60))
    seen = one_tensor(Views(digits.augmentation, False, 3)(plan, 2, KEY, flat).inputs)
    height, width = (seen.amax((2, 3)) - seen.amin((2, 3))).unbind(1)
    assert float((width / height).max()) == pytest.approx(4 / 3, rel=0.08)
    assert float((width / height).min()) == pytest.approx(3 / 4, rel=0.08)


def test_all_networks_ask_in_one_call(monkeypatch: pytest.MonkeyPatch, digits: ImageTask) -> None:
    asked: list[int] = []
    labelled = relabelling.soft_labels

    def noted(task: Task, teacher: NetworkState, inputs: Tensor, temperature: float) -> Tensor:
        asked.append(len(inputs))
        return labelled(task, teacher, inputs, temperature)

    monkeypatch.setattr(relabelling, "soft_labels", noted)
    digits.evaluate(digits.select(torch.arange(70)), "mlp", KEY, 3, {})
    assert asked == 4 * [150, 60]


def test_the_labels_of_the_set_are_not_read(digits: ImageTask) -> None:
    batch = digits.select(torch.arange(20))
    scores = digits.evaluate(batch, "mlp", KEY, 2, {})
    others = batch._replace(targets=torch.randn(20, 10))
    rates = {"inner_lr": torch.tensor([0.1, 0.2]), "inner_parts": torch.tensor(2), "inner_momentum": torch.tensor(0.9)}
    again = digits.evaluate(others, "mlp", KEY, 2, rates)
    assert again.values == scores.values
    assert "labelled anew by a network (mlp) trained on all real data for 2 epochs" in scores.notes[0]
    assert "stored bytes do not" in scores.notes[0]
    assert again.notes == (
        "a rate learned with a set belongs to its own labels; with a teacher's the protocol's is used",
        *scores.notes,
    )
    assert not any("anew" in note for note in digits.evaluate(batch, "ntk", KEY, 1, {}).notes)


def test_baselines_are_labelled_too_and_the_whole_set_is_not(digits: ImageTask) -> None:
    found = evaluate(digits, digits.select(torch.arange(10)), n=1, baselines=["whole"])
    assert found.results[0].judge == "mlp [rded]"
    assert not any("anew" in note for note in found.baselines["whole"][0].notes)
    plan = plan_for(SHORT, digits.data, JudgingCase(1000, whole=True))
    assert plan == replace(plan_for(PROTOCOLS["default"], digits.data, JudgingCase(1000, whole=True)))
    assert plan_for(SHORT, digits.data, JudgingCase(10, own=False)).augment == "rded"
    assert plan_for(SHORT, digits.data, JudgingCase(10, scores=True)).squared is False
    assert plan_for(SHORT, digits.data, JudgingCase(10), JudgingChoices(augment=False)).cutmix == 0
    assert plan_for(SHORT, digits.data, JudgingCase(10, kind="transformer")).fit.optimizer == "adamw-matrices"


@pytest.mark.slow
def test_a_teacher_makes_random_images_worth_more() -> None:
    """At ten digits per class networks learn more of what a teacher says of their mixtures than of their classes."""
    own = Relabelling(epochs=30)
    batch = image_task("digits", model="mlp").select(torch.arange(100))
    plain, asking = (
        image_task("digits", model="mlp", width=32, protocol=protocol, judge_epochs=300)
        for protocol in (None, replace(PROTOCOLS["rded"], teacher=own))
    )
    scores = [sum(task.evaluate(batch, "mlp", KEY, 2, {}).values["accuracy"]) / 2 for task in (plain, asking)]
    assert scores[1] > scores[0] + 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relabelling(epochs=0), "epochs is a whole number of at least 1"),
        (lambda: Relabelling(epochs=1.5), "epochs is a whole number"),  # type: ignore[arg-type]
        (lambda: Relabelling(temperature=0.0), "temperature is above 0"),
        (lambda: Relabelling(temperature=float("nan")), "temperature is a number"),
        (lambda: Protocol("mine", "", teacher=3), "a protocol's teacher is a Relabelling"),  # type: ignore[arg-type]
        (lambda: Protocol("mine", "", teacher=Relabelling(), squared=True), "do not regress"),
        (lambda: FitProtocol(1, optimizer="adamax"), "adamw"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_robust_scores_need_the_sets_own_labels(digits: ImageTask) -> None:
    with pytest.raises(UnsupportedError, match="protocol rded ask a teacher"):
        digits.robust(digits.select(torch.arange(10)), "mlp", KEY, 1, {}, None)


def test_protocols_of_other_teachers_are_told_apart(digits: ImageTask) -> None:
    named = image_task("digits", model="mlp", protocol="rded")
    assert overrides_of(named) == {}
    assert "teacher epochs 2" in str(overrides_of(digits)["protocol"])
    hotter = image_task("digits", model="mlp", protocol=replace(PROTOCOLS["rded"], teacher=Relabelling(None, 4.0)))
    assert overrides_of(hotter) == {"protocol": "teacher temperature 4.0"}
    mine = image_task("digits", model="mlp", protocol=Protocol("mine", "", teacher=Relabelling()))
    assert "teacher Relabelling" in str(overrides_of(mine)["protocol"])


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw-matrices"])
def test_adamw_decays_apart_from_the_gradient(optimizer: Any, mode: Any) -> None:
    """Weights that no gradient moves shrink by the rate times the decay, step by step; some spare vectors."""
    task = PictureTask()
    task.module = FunctionalModule(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(105, 3))
    )
    data = Batch(task.images[:4], torch.arange(4) % 3, torch.ones(4, dtype=torch.float64))

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        return sum((0 * p).sum() for p in state.params.values()), {}  # type: ignore[return-value]

    fit = FitProtocol(3, lr=0.1, optimizer=optimizer, weight_decay=0.5, batch=None, decay_at=())
    found = fit_networks(task.module.init, loss, data, fit, 2, KEY, mode=mode)
    start = task.module.init(KEY.fold("init", 0))
    for name, tensor in start.params.items():
        spared = optimizer == "adamw-matrices" and name not in ("0.weight", "3.weight")
        torch.testing.assert_close(found.params[name][0], tensor if spared else tensor * 0.95**3)


def test_plans_tell_the_teacher_and_commands_keep_baselines_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "rded", SHORT)
    command = ["distill", "--data", "digits", "--model", "mlp", "--width", "4", "--networks", "1", "--ipc", "1"]
    command += ["--method", "dm", "--steps", "1", "--judge-epochs", "4", "--baselines", "random"]
    assert main([*command, "--protocol", "rded", "--judges", "mlp,ntk", "--dry-run"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("judges' teacher"))
    assert "2 epochs, to be trained first in" in row
    assert main([*command, "--protocol", "rded", "--method", "dd", "--dry-run"]) == 0  # whose steps are not taken
    assert "mlp [rded], 1 network each, 4 epochs" in capsys.readouterr().out
    assert main([*command, "--judges", "ntk", "--protocol", "rded", "--dry-run"]) == 0
    assert "judges' teacher" not in capsys.readouterr().out
    for folder, options in (("a", []), ("b", ["--protocol", "rded"])):
        assert main([*command, "--out", str(tmp_path / folder), *options]) == 0
    assert "judged alike" not in capsys.readouterr().out
    found = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert found["baselines"]["random"][0]["judge"] == "mlp [rded]"
    assert "labelled anew" in found["baselines"]["random"][0]["notes"][0]
    assert main([*command, "--out", str(tmp_path / "c"), "--protocol", "rded", "--seed", "0", "--lr", "2"]) == 0
    assert "judged alike by an earlier run: random by mlp [rded]" in capsys.readouterr().out
    assert main([*command, "--protocol", "rded", "--dry-run"]) == 0
    assert "a network of 2 epochs, in " in capsys.readouterr().out
