"""What was learned with a set is honoured when it is judged."""

from dataclasses import replace

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.errors import ConfigError, DataError
from mmdistill.image import ImageTask, image_task, judge_training, judges
from mmdistill.image.judge_training import JudgeTraining, judge_loss, with_learned_rate
from mmdistill.image.protocols import CLASSIFICATION, Plan
from mmdistill.image.relabelling import divergence
from mmdistill.labels import weighted_mean
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.fit import fit_steps
from mmdistill.networks.minibatches import fixed_order, gather_steps, learned_steps
from mmdistill.networks.stacked import state_at
from mmdistill.networks.statistics import copied
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors, one_tensor
from tests.oracles import unroll as oracle
from tests.toys import BlobTask

KEY = Draws(4)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", model="mlp", width=8, judge_epochs=3, judge_augment=False)


def accuracy(task: ImageTask, batch: Batch, learned: Tensors) -> float:
    return task.evaluate(batch, "mlp", KEY, 1, learned).values["accuracy"][0]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_learned_steps_equal_their_oracle(mode: str) -> None:
    task = BlobTask(dtype=torch.float64)
    batch = task.sample_real(KEY.fold("syn"), None, 5)
    assert isinstance(batch, Batch)
    rates, beta = (0.3, 0.1, 0.2), 0.5
    steps = gather_steps(batch, fixed_order(5, 3, 2, torch.device("cpu")))
    fitted = fit_steps(
        task.init,
        lambda state, b, noise: (task.loss(state, b), {}),
        steps,
        rates,
        beta,
        2,
        KEY,
        mode=mode,  # type: ignore[arg-type]
    )
    params = {name: p.numpy() for name, p in task.init(KEY.fold("init", 1)).params.items()}
    sets = [[0, 2, 4], [1, 3], [0, 2, 4]]
    eye = torch.eye(3, dtype=torch.float64).numpy()
    batches = [(batch.inputs[rows].numpy(), eye[batch.targets[rows].numpy()]) for rows in sets]  # type: ignore[index]
    expected = oracle.student(params, batches, list(rates), beta)
    for name, tensor in state_at(fitted, 1).params.items():
        torch.testing.assert_close(tensor, torch.from_numpy(expected[name]), rtol=1e-10, atol=1e-12)


def test_labels_that_are_no_distributions_are_scaled_unless_a_rate_was_learned_with_them(
    digits: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(JudgeTraining, "score", lambda self, *rest: plans.append(self.plan))
    batch = digits.select(torch.arange(4))
    scores = Batch(batch.inputs, torch.randn(4, 10), batch.weight)
    for learned in ({}, {"inner_lr": torch.tensor(0.05)}, {"inner_lr": torch.tensor(-1.0)}):
        digits.evaluate(scores, "mlp", KEY, 1, learned)
    digits.evaluate(batch, "mlp", KEY, 1, {})
    assert [plan.squared for plan in plans] == [True, False, True, False]
    assert plans[0].label_scale == 8
    assert (plans[1].fit.optimizer, plans[1].fit.lr) == ("sgd", pytest.approx(0.05))


def test_one_learned_rate_replaces_the_protocols(digits: ImageTask) -> None:
    protocol, notes = with_learned_rate(CLASSIFICATION, {"inner_lr": torch.tensor(0.05)})
    assert (protocol.lr, protocol.optimizer, protocol.epochs) == (pytest.approx(0.05), "sgd", 1000)
    assert notes == ()
    assert with_learned_rate(CLASSIFICATION, {}) == (CLASSIFICATION, ())
    mine = replace(CLASSIFICATION, momentum=0.5, optimizer="adam")
    several, _ = with_learned_rate(mine, {"inner_lr": torch.tensor([0.1, 0.3])})
    assert several == replace(mine, optimizer="sgd", lr=several.lr)
    assert several.lr == pytest.approx(0.2)
    batch = digits.select(torch.arange(100))
    kept = {"inner_lr": torch.tensor(CLASSIFICATION.lr)}
    assert accuracy(digits, batch, kept) == accuracy(digits, batch, {})
    trained = image_task("digits", model="mlp", width=8, judge_epochs=40, judge_augment=False)
    untrained = {"inner_lr": torch.tensor(1e-9)}
    assert accuracy(trained, batch, untrained) < accuracy(trained, batch, {"inner_lr": torch.tensor(0.1)}) - 0.2


def test_judges_train_by_the_statistics_of_their_minibatches() -> None:
    task = image_task("digits", model="convnet-bn-w4")
    state, batch = task.network.init(KEY), task.select(torch.arange(20))
    one, other = (NetworkState(state.params, copied(state.buffers)) for _ in range(2))
    loss, buffers = judge_loss(task.network, None)(one, batch, {})
    logits, moved = task.network(other, batch.inputs, train=True)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, one_tensor(batch.targets)))
    for name, tensor in moved.items():
        torch.testing.assert_close(buffers[name], tensor)
    assert any(not torch.equal(buffers[name], tensor) for name, tensor in state.buffers.items())
    taught = batch._replace(targets=KEY.uniform(20, 10).softmax(1))
    loss, _ = judge_loss(task.network, None, temperature=4.0)(one, taught, {})
    torch.testing.assert_close(loss, divergence(logits, taught.targets, 4.0).mean())


@pytest.mark.parametrize("rate", [-0.01, 0.0, float("nan")])
def test_a_rate_that_cannot_train_is_said(rate: float, digits: ImageTask) -> None:
    scores = digits.evaluate(digits.select(torch.arange(20)), "mlp", KEY, 1, {"inner_lr": torch.tensor(rate)})
    assert "cannot train; judged with the protocol's 0.01" in scores.notes[0]


def test_learned_steps_that_cannot_train_are_not_taken(digits: ImageTask) -> None:
    batch = digits.select(torch.arange(20))
    order = {"inner_parts": torch.tensor(2), "inner_momentum": torch.tensor(0.9)}
    rates = {"inner_lr": torch.tensor([0.05, -0.01, 0.05])}
    scores = digits.evaluate(batch, "convnet", KEY, 1, order | rates)
    assert "-0.01 cannot train" in scores.notes[0]
    assert scores.values == digits.evaluate(batch, "convnet", KEY, 1, {}).values
    fine = {"inner_lr": torch.tensor([0.05, 0.05])}
    judged = digits.evaluate(batch, "vit", KEY, 1, order | fine)
    assert "not a transformer's" in judged.notes[0]
    assert judged.values == digits.evaluate(batch, "vit", KEY, 1, {}).values
    assert "rate inf" in with_learned_rate(CLASSIFICATION, {"inner_lr": torch.tensor([torch.inf, 0.1])})[1][0]


def test_unrolled_performance_is_judged_by_its_own_steps(digits: ImageTask) -> None:
    settings = {"steps": 2, "real_batch": 16, "inner_steps": 6, "inner_lr": 0.05, "inner_parts": 2}
    result = distill(digits, CORE_METHODS["dd"], ipc=2, settings=settings)
    assert result.learned["inner_parts"].item() == 2
    assert result.learned["inner_momentum"].item() == pytest.approx(0.9)
    judged = accuracy(digits, result.batch, dict(result.learned))
    # The same by the objective's own student, from the judge's initialisation.
    objective = (
        CORE_METHODS["dd"]
        .with_settings(**settings)
        .make_objective(CORE_METHODS["dd"].with_settings(**settings).settings(2))
    )
    assert isinstance(objective, UnrolledPerformance)
    steps = learned_steps(result.batch, result.learned)
    assert steps is not None
    assert torch.equal(
        steps.batches.inputs,  # type: ignore[arg-type]
        objective.step_batches(digits, result.batch, KEY).inputs,  # type: ignore[arg-type]
    )
    params = digits.init(KEY.fold("init", 0)).params
    ended = plain_steps(digits, params, steps.batches, steps.rates, steps.momentum)
    images, labels = digits.data.test_images, digits.data.test_labels
    logits, _ = digits.predict(NetworkState(ended, {}), digits.data.normalise(images))
    assert judged == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def plain_steps(task: ImageTask, params: Tensors, steps: Batch, rates: tuple[float, ...], beta: float) -> Tensors:
    velocity = {name: torch.zeros_like(p) for name, p in params.items()}
    for index, rate in enumerate(rates):
        batch = Batch(steps.inputs[index], steps.targets[index], steps.weight[index])  # type: ignore[index]
        gradient = torch.func.grad(lambda p, b=batch: task.loss(NetworkState(p, {}), b))(params)
        velocity = {name: beta * velocity[name] + gradient[name] for name in params}
        params = {name: params[name] - rate * velocity[name] for name in params}
    return params


@pytest.mark.parametrize(("scale", "soft"), [(None, False), (None, True), (8.0, False)])
def test_judges_train_in_bfloat16_with_a_loss_in_float32(
    scale: float | None, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = image_task("digits", model="mlp", width=64)
    batch = task.select(torch.arange(32))
    targets = one_tensor(batch.targets)
    if soft:
        batch = batch._replace(targets=torch.nn.functional.one_hot(targets, 10).float() * 0.9 + 0.01)
    seen: list[torch.dtype] = []
    monkeypatch.setattr(
        judge_training, "weighted_mean", lambda losses, weight: seen.append(losses.dtype) or losses.mean()
    )
    state, gradients = task.init(KEY), {}
    for precision in ("float32", "bf16"):
        loss = judge_loss(task.network, scale, precision)  # type: ignore[arg-type]
        (gradient, _) = torch.func.grad(lambda p, loss=loss: loss(NetworkState(p, {}), batch, {}), has_aux=True)(
            state.params
        )
        gradients[precision] = torch.cat([g.flatten() for g in gradient.values()])
    apart = (gradients["bf16"] - gradients["float32"]).norm() / gradients["float32"].norm()
    assert 0 < apart < 0.05  # roundings to 8 bits, each of up to 0.4 %
    assert seen == [torch.float32] * 2


def test_the_precision_of_judges_is_chosen_by_name() -> None:
    task = image_task("digits", model="mlp", width=8, judge_epochs=3, judge_precision="bf16")
    batch, plain = task.select(torch.arange(32)), image_task("digits", model="mlp", width=8, judge_epochs=3)
    assert accuracy(task, batch, {}) == pytest.approx(accuracy(plain, batch, {}), abs=0.05)
    with pytest.raises(ConfigError, match="the judges' precision"):
        image_task("digits", judge_precision="float16")  # type: ignore[arg-type]


def test_without_an_order_there_are_no_steps_to_take(digits: ImageTask) -> None:
    batch = digits.select(torch.arange(20))
    rates = InnerRate(0.02, 3)
    for objective in (UnrolledPerformance(3, rates, batch=5), UnrolledPerformance(3, rates, augment=True)):
        assert learned_steps(batch, objective.learned()) is None
    steps = gather_steps(batch, fixed_order(20, 3, 1, batch.weight.device))
    with pytest.raises(ConfigError, match="as many rates"):
        fit_steps(digits.init, lambda state, one, noise: (digits.loss(state, one), {}), steps, [0.1], 0.0, 1, KEY)


@pytest.mark.parametrize("model", ["mlp", "ntk"])
def test_samples_without_weight_are_as_if_they_were_not_there(model: str, digits: ImageTask) -> None:
    good, bad = digits.select(torch.arange(20)), digits.select(torch.arange(20))
    wrong = bad._replace(targets=(one_tensor(bad.targets) + 1) % 10, weight=torch.zeros(20))
    both = Batch(*(torch.cat([one, other]) for one, other in zip(good, wrong, strict=True)))  # type: ignore[arg-type]
    one, other = (digits.evaluate(batch, model, KEY, 2, {}) for batch in (good, both))
    assert one.values == other.values
    with pytest.raises(DataError, match="no sample of the set has a weight above 0"):
        digits.evaluate(wrong, model, KEY, 1, {})


def test_a_minibatch_of_samples_without_weight_moves_no_network() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    found = weighted_mean(values, torch.zeros(2))
    assert float(found.detach()) == 0
    assert torch.autograd.grad(found, values)[0].tolist() == [0, 0]
    assert float(weighted_mean(values.detach(), torch.tensor([1.0, 3.0]))) == 1.75


def test_the_entry_of_a_judge_is_the_longest_name_that_its_own_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linear", "Linear_SVM"):
        monkeypatch.setitem(judges.JUDGES, name, judges.JUDGES["ntk"])
    for name in ("linear-svm", "linear_svm-rbf", "linear-svm (C=1)", "Linear SVM".replace(" ", "-")):
        assert judges.entry_of(name) == "linear-svm"
        assert judges.is_added_judge(name)
    assert [judges.entry_of(name) for name in ("linear, k=3", "ntk-d2", "linears", "vit")] == ["linear", "ntk", "", ""]
    assert not judges.is_added_judge("ntk-d2")
