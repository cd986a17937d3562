"""How networks train between steps: in which number formats, compiled and captured, and that it is the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmdistill.distiller import Distiller
from mmdistill.execution.capture import WARM_UP_CALLS
from mmdistill.execution.precision import autocast_for
from mmdistill.image import image_task
from mmdistill.image.task import ImageTask
from mmdistill.networks.early import EarlyStagePool
from mmdistill.networks.enriched import RIGHT, counting_loss
from mmdistill.networks.gradients import gradients_by_name
from mmdistill.networks.schedules import accuracy
from mmdistill.networks.staggered import regression_loss
from mmdistill.networks.statistics import copied
from mmdistill.networks.training import (
    MOST_COMPILED_LOSSES,
    NetworkLoss,
    Trainer,
    network_gradients,
    network_outputs,
    training_loss,
)
from mmdistill.registry import get_domain, get_method
from mmdistill.runs.stepper import Stepper
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors, real_samples
from tests.execution.test_capture import ListCopies, RepeatedCall
from tests.toys import BlobTask, Uncompiled, noting

KEY = Draws(3, ("training",))
GIVEN: list[NetworkLoss] = [training_loss, regression_loss, counting_loss]


def small_images(model: Callable[[], nn.Module] | str) -> ImageTask:
    images = KEY.fold("images").uniform(40, 1, 8, 8)
    data = images, torch.arange(40) % 10
    return image_task(data, test=data, model=model, judge_epochs=1)


def drawn(task: BlobTask | ImageTask, n: int = 12) -> tuple[NetworkState, Batch]:
    return task.init(KEY.fold("net")), real_samples(task, KEY.fold("real"), n)


def gap(found: Tensors, expected: Tensors) -> float:
    """The distance of two trees as a share of the second one's norm."""
    assert found.keys() == expected.keys()
    distance = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return float((distance / sum(float(tensor.square().sum()) for tensor in expected.values())) ** 0.5)


def recorded(function: Callable[[Trainer], Any], asked: list[Trainer]) -> Callable[[Trainer], Any]:
    def noting(trainer: Trainer) -> Any:
        asked.append(trainer)
        return function(trainer)

    return noting


@pytest.mark.parametrize("loss", GIVEN)
def test_gradients_are_those_of_plain_autograd(loss: NetworkLoss) -> None:
    task = BlobTask(dtype=torch.float64)
    network, batch = drawn(task)
    network = network.map(Tensor.double)
    gradients, _ = network_gradients(loss, task, network, batch, None)
    expected = gradients_by_name(lambda params: loss(task, NetworkState(params, {}), batch, None)[0], network.params)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


@pytest.mark.parametrize("precision", ["float32", "tf32", "mixed", "bf16"])
def test_networks_train_in_the_formats_of_the_run(precision: Any) -> None:
    """What is multiplied is lowered; parameters and gradients stay in float32."""
    task, seen = small_images("convnet-w8"), []
    task.network.module.get_submodule("classifier").register_forward_hook(lambda *call: seen.append(call[2].dtype))
    network, batch = drawn(task)
    expected, _ = network_gradients(training_loss, task, network, batch, None)
    with Trainer(task, precision).training():
        found, _ = network_gradients(training_loss, task, network, batch, None)
        outputs = network_outputs(task, network, batch.inputs)
    lowered = precision in ("mixed", "bf16")
    assert seen == [torch.float32, *[torch.bfloat16 if lowered else torch.float32] * 2]
    assert {tensor.dtype for tensor in (*found.values(), outputs)} == {torch.float32}
    assert gap(found, expected) < 0.05 if lowered else gap(found, expected) == 0


@pytest.mark.parametrize("loss", GIVEN)
def test_losses_of_lowered_networks_are_taken_in_full(loss: NetworkLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a logarithm, or a difference from a target, would keep 8 bits."""
    task = small_images("convnet-w8")
    network, batch = drawn(task)
    with autocast_for("bf16", task.device, graph=True):
        outputs, buffers = task.predict(network, batch.inputs, train=True)
        monkeypatch.setattr(task, "predict", lambda *args, **kwargs: (outputs, buffers))
        found, _ = loss(task, network, batch, None)
    assert outputs.dtype == torch.bfloat16
    monkeypatch.setattr(task, "predict", lambda *args, **kwargs: (outputs.double(), buffers))
    assert torch.allclose(found.double(), loss(task, network, batch, None)[0].double(), rtol=1e-6)


def test_samples_that_share_inputs_are_lowered_by_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where classes are matched: products of sparse matrices stay in float32 under mixed."""
    task, formats = BlobTask(), []
    network, batch = drawn(task)
    linked = batch._replace(inputs={"x": batch.inputs, "adjacency": torch.eye(3)})

    def loss(*_: object) -> tuple[Tensor, Tensors]:
        formats.append(torch.is_autocast_enabled("cpu"))
        return next(iter(network.params.values())).sum() * 0 + torch.zeros((), requires_grad=True), {}

    def predict(*_: object) -> tuple[Tensor, Tensors]:
        formats.append(torch.is_autocast_enabled("cpu"))
        return torch.zeros(12, 3), {}

    monkeypatch.setattr(task, "predict", predict)
    for precision in ("mixed", "bf16"):
        with Trainer(task, precision).training():  # type: ignore[arg-type]
            network_gradients(loss, task, network, linked, None)
            network_outputs(task, network, linked.inputs)
    assert formats == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["convnet-w8", "convnet-w8-bn"])
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_networks_train_alike(model: str) -> None:
    task = small_images(model)
    network, batch = drawn(task)
    before = copied(network.buffers)
    expected = network_gradients(counting_loss, task, network, batch, None)
    trainer = Trainer(task, compiles=True)
    with trainer.training():
        found = network_gradients(counting_loss, task, network, batch, None)
        right = accuracy(task, network, batch)
    assert trainer.compile_seconds > 0
    assert gap(found[0], expected[0]) < 1e-5
    assert found[1].keys() == {RIGHT, *before}
    assert all(torch.allclose(found[1][name], expected[1][name], rtol=1e-5) for name in found[1])
    assert right == accuracy(task, network, batch)
    assert all(torch.equal(network.buffers[name], tensor) for name, tensor in before.items())


def test_what_a_replay_returns_stays() -> None:
    task = BlobTask()
    network = task.init(KEY.fold("net"))
    batches = [real_samples(task, KEY.fold("real", call), 6) for call in range(WARM_UP_CALLS + 6)]
    with Trainer(task, graph=RepeatedCall).training():
        found = [network_gradients(counting_loss, task, network, batch, KEY) for batch in batches]
    for batch, (gradients, beside) in zip(batches, found, strict=True):
        expected, counted = network_gradients(counting_loss, task, network, batch, KEY)
        assert gap(gradients, expected) == 0
        assert beside[RIGHT] == counted[RIGHT]


def test_what_a_replay_returns_is_copied_together() -> None:
    """Not tensor by tensor: gradients and counts are of one number format."""
    task = BlobTask()
    network, batch = drawn(task)
    given = len(tree_leaves((network, batch)))
    with Trainer(task, graph=RepeatedCall).training():
        for _ in range(WARM_UP_CALLS + 4):
            with ListCopies() as noted:
                gradients, beside = network_gradients(counting_loss, task, network, batch, None)
    assert list(gradients) == list(network.params)
    inputs, results = sum(map(len, noted.formats[:-1])), noted.formats[-1]
    assert (inputs, results) == (given, [torch.float32] * len([*gradients, *beside]))


@pytest.mark.parametrize("loss", GIVEN)
def test_dropout_follows_its_key_where_the_rest_would_be_captured(
    loss: NetworkLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    task = small_images(dropping)
    network, batch = drawn(task)
    expected = [network_gradients(loss, task, network, batch, KEY.fold(call))[0] for call in range(8)]
    monkeypatch.setattr("mmdistill.networks.training.Program", pytest.fail)
    with Trainer(task, compiles=True, graph=RepeatedCall).training():
        for call, plain in enumerate(expected):
            found, _ = network_gradients(loss, task, network, batch, KEY.fold(call))
            assert gap(found, plain) == 0
    assert gap(expected[0], expected[1]) > 0.1


def test_losses_that_are_made_in_each_step_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.networks.training.Program", Uncompiled)
    task = BlobTask()
    network, batch = drawn(task)
    expected, _ = network_gradients(training_loss, task, network, batch, None)
    trainer = Trainer(task, compiles=True)
    spent = []
    with trainer.training():
        for _ in range(MOST_COMPILED_LOSSES + 3):
            found, _ = network_gradients(lambda *given: training_loss(*given), task, network, batch, None)
            assert gap(found, expected) == 0
            spent.append(trainer.compile_seconds)
    assert spent[-4] == spent[-1] > spent[-5] > 0


def test_outputs_keep_the_format_of_the_network() -> None:
    task = BlobTask(dtype=torch.float64)
    network, batch = drawn(task)
    assert network_outputs(task, network.map(Tensor.double), batch.inputs).dtype == torch.float64


def test_what_compiles_later_trains_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.networks.training.Program", Uncompiled)
    monkeypatch.setattr("mmdistill.objectives.compiled.Program", Uncompiled)
    method = get_method(get_domain("image"), "dc").with_settings(steps=4, real_batch=8, outer_steps=9, inner_steps=1)
    distiller = Distiller(image_task("digits", width=4), method, 1)
    run, _ = distiller.step(distiller.start())
    assert distiller.compile_seconds == 0
    distiller.compile()
    asked: list[Trainer] = []
    monkeypatch.setattr(Trainer, "training", recorded(Trainer.training, asked))
    distiller.step(run)
    assert [trainer.compiles for trainer in asked] == [False, True]


@pytest.mark.parametrize("exact", [False, True])
def test_networks_beside_exact_objectives_train_in_float32(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method(get_domain("image"), "dc").with_settings(steps=4, real_batch=8, outer_steps=9, inner_steps=1)
    distiller = Distiller(image_task("digits", width=4), method, 1, precision="mixed")
    run, asked = distiller.start(), list[Trainer]()
    run.objective.exact = exact
    monkeypatch.setattr(Trainer, "training", recorded(Trainer.training, asked))
    distiller.step(run)
    assert [trainer.precision for trainer in asked] == ["float32" if exact else "mixed"] * 2


def test_a_trainer_is_of_one_task_and_while_it_is_at_work() -> None:
    task, other = small_images("convnet-w8"), small_images("convnet-w8")
    network, batch = drawn(task)
    trainer, asked = Trainer(task, "bf16"), partial(network_gradients, training_loss)
    plain, _ = asked(task, network, batch, None)
    with trainer.training():
        assert gap(asked(task, network, batch, None)[0], plain) > 0
        assert gap(asked(other, network, batch, None)[0], plain) == 0
    assert gap(asked(task, network, batch, None)[0], plain) == 0


@pytest.mark.parametrize("name", ["dc", "idm", "frepo", "cafe"])
def test_a_compiled_run_compiles_how_its_networks_train(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mmdistill.networks.training.Program", noting(asked))
    monkeypatch.setattr("mmdistill.objectives.compiled.Program", Uncompiled)
    changes = {"steps": 2, "real_batch": 8, "outer_steps": 3, "inner_steps": 2, "augment": False}
    method = get_method(get_domain("image"), name).with_settings(**changes)
    distiller = Distiller(image_task("digits", width=4), method, 1)
    Stepper(distiller, "on")(distiller.start())
    assert set(asked) == ({"value", "predict"} if name == "cafe" else {"value"})
    assert distiller.compile_seconds >= len(asked)


def test_what_a_step_begins_with_never_depends_on_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on makes its pool again when it already knows that it compiles."""
    pools = []
    monkeypatch.setattr("mmdistill.networks.training.Program", pytest.fail)
    monkeypatch.setattr("mmdistill.objectives.compiled.Program", Uncompiled)
    for mode in ("off", "on"):
        method = get_method(get_domain("image"), "edd").with_settings(steps=2, real_batch=8, inner_steps=0)
        distiller = Distiller(image_task("digits", width=4), method, 1, precision="mixed")
        Stepper(distiller, mode)(distiller.start())  # type: ignore[arg-type]
        assert isinstance(distiller.schedule, EarlyStagePool)
        pools.append(distiller.schedule.pool(distiller.task, distiller.draws))
    for one, other in zip(*pools, strict=True):
        assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
