"""A batch's loss in portions: value and gradient are those of the whole, the network sees no more than a portion."""

import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.execution import portions as portions_of
from mmdistill.execution.portions import ClassTerm, features_by_portions, loss_by_portions
from mmdistill.image import image_task
from mmdistill.objectives import base
from mmdistill.objectives import distribution as distribution_module
from mmdistill.objectives import gradient as gradient_module
from mmdistill.objectives.base import Network, Objective
from mmdistill.objectives.distances import row_cosine, squared_error
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching, MultiLevelGradientMatching, WarmUp
from mmdistill.objectives.kernel_ridge import FeatureKernel, KernelRidgeMatching
from mmdistill.objectives.ridge import RandomFeatureRidge
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Tensors
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

KEY = Draws(8)


class Counting:
    """A task's loss that notes how many samples it is given."""

    def __init__(self, task: BlobTask) -> None:
        self.task = task
        self.seen: list[int] = []

    def __call__(self, params: Tensors, batch: Batch) -> Tensor:
        self.seen.append(len(batch.weight))
        return self.task.loss(NetworkState(params, {}), batch)


def weighted(task: BlobTask, n: int, soft: bool) -> Batch:
    batch = task.select(torch.arange(n) * 89 % 90)
    weight = KEY.fold("w").uniform(n, low=0.1).double()
    weight[4:8] = 0.0  # one whole portion of four does not count
    targets = KEY.fold("y").normal(n, 3).double().softmax(1) if soft else batch.targets
    return Batch(batch.inputs, targets, weight)


def leaves(task: BlobTask) -> Tensors:
    return {name: tensor.requires_grad_() for name, tensor in task.init(KEY).params.items()}


def by_hand(params: Tensors, batch: Batch) -> tuple[float, oracle.Params]:
    """Loops over samples, in numpy."""
    plain = {name: tensor.detach().numpy() for name, tensor in params.items()}
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(batch.targets, Tensor)
    soft = batch.targets if batch.targets.is_floating_point() else torch.eye(3).double()[batch.targets]
    value, gradient = 0.0, {name: np.zeros_like(array) for name, array in plain.items()}
    for x, target, weight in zip(batch.inputs.numpy(), soft.numpy(), batch.weight.numpy(), strict=True):
        share = float(weight / batch.weight.numpy().sum())
        value -= share * float(target @ np.log(oracle.softmax(oracle.forward(plain, x)[2])))
        for name, own in oracle.sample_gradient(plain, x, target).items():
            gradient[name] += share * own
    return value, gradient


@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradient_are_those_of_the_whole_batch(task: BlobTask, soft: bool) -> None:
    loss, batch, params = Counting(task), weighted(task, 14, soft), leaves(task)
    value = loss_by_portions(loss, params, batch, numbers=16)
    assert loss.seen == [4, 4, 2]
    expected = by_hand(params, batch)
    assert float(value.detach()) == pytest.approx(expected[0], rel=1e-12)
    found = torch.autograd.grad(3 * value, list(params.values()))
    for name, ours in zip(params, found, strict=True):
        torch.testing.assert_close(ours, 3 * torch.from_numpy(expected[1][name]), rtol=1e-12, atol=1e-14)


def test_small_batches_and_inputs_of_several_tensors_stay_whole(task: BlobTask) -> None:
    loss, params, batch = Counting(task), leaves(task), weighted(task, 14, False)
    loss_by_portions(loss, params, batch, numbers=14 * 4)
    assert loss.seen == [14]
    shared = batch._replace(inputs={"x": batch.inputs, "edges": torch.zeros(2, 5)})  # type: ignore[dict-item]
    rows: list[int] = []

    def of_a_graph(params: Tensors, batch: Batch) -> Tensor:
        rows.append(len(batch.weight))
        return task.loss(NetworkState(params, {}), batch._replace(inputs=batch.inputs["x"]))  # type: ignore[index, call-overload]

    loss_by_portions(of_a_graph, params, shared, numbers=4)
    assert rows == [14]


def test_features_by_portions_are_those_of_all(task: BlobTask, monkeypatch: pytest.MonkeyPatch) -> None:
    state, seen = task.init(KEY), list[int]()

    def features(inputs: Inputs) -> Tensor:
        seen.append(len(inputs))
        return task.features(state, inputs)[-1]

    for numbers, portions in ((4 * 7, [6] * 5), (4 * 4, [3] * 10), (4 * 90, [30]), (1, [1] * 30)):
        seen.clear()
        monkeypatch.setattr(portions_of, "CACHED", numbers)
        found = features_by_portions(features, task.images[:30])
        assert seen == portions
        torch.testing.assert_close(found, task.features(state, task.images[:30])[-1])
        assert not found.requires_grad
    monkeypatch.setattr(portions_of, "CACHED", 4 * 5)
    seen.clear()
    assert features_by_portions(features, task.images[:23]).shape == (23, 8)
    assert seen == [5, 5, 5, 5, 3]  # nothing near divides 23


@pytest.mark.parametrize("kind", ["krr", "rfad"])
def test_kernels_read_large_real_batches_in_portions(
    task: BlobTask, network: Network, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = KernelRidgeMatching(FeatureKernel()) if kind == "krr" else RandomFeatureRidge(2).double()
    syn, real = task.select(torch.arange(0, 90, 15)), task.select(torch.arange(30))
    values, seen, features = [], list[int](), task.features
    monkeypatch.setattr(task, "features", lambda state, rows: seen.append(len(rows)) or features(state, rows))
    for numbers, largest in ((4 * 30, 30), (4 * 5, 6)):  # six synthetic samples stay together
        monkeypatch.setattr(portions_of, "CACHED", numbers)
        values.append(objective(network, syn, real, KEY).detach())
        assert max(seen) == largest
        seen.clear()
    torch.testing.assert_close(*values)


def test_without_gradients_there_is_no_graph(task: BlobTask) -> None:
    batch, params = weighted(task, 14, False), task.init(KEY).params
    value = loss_by_portions(Counting(task), params, batch, numbers=16)
    assert not value.requires_grad
    assert float(value) == pytest.approx(float(task.loss(NetworkState(params, {}), batch)), rel=1e-12)


@pytest.mark.parametrize("norm", ["in", "bn"])
def test_a_student_reads_a_large_real_batch_in_portions_but_for_batch_norms(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 1, 8, 8)).astype(np.float32))
    classes = torch.arange(60) % 3
    task = image_task((images, classes), test=(images, classes), model=f"convnet-d2-w4-{norm}")
    seen: list[int] = []
    own = task.loss

    def noted(state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        seen.append(len(batch.weight))
        return own(state, batch, train=train, draws=draws)

    monkeypatch.setattr(task, "loss", noted)
    objective, real = UnrolledPerformance(2, InnerRate(0.1)), task.select(torch.arange(12, 60))
    network = Network(task, task.init(KEY))
    found = []
    for numbers in (64 * 100, 64 * 16):
        seen.clear()
        monkeypatch.setattr(portions_of, "DIFFERENTIATED", numbers)
        pixels = images[:12].clone().requires_grad_()
        value = objective(network, Batch(pixels, classes[:12], torch.ones(12)), real, KEY)
        found.append((value.detach(), *torch.autograd.grad(value, pixels)))
        assert max(seen) == (16 if norm == "in" and numbers == 64 * 16 else 48)
    torch.testing.assert_close(*found)


def class_sides(task: BlobTask, n: int) -> tuple[ClassBatch, ClassBatch]:
    """Soft-labelled synthetic classes, of which the last is padded, and real ones."""
    syn, real = (task.sample_real(KEY.fold(side), torch.arange(3), size) for side, size in (("s", n), ("r", 9)))
    assert isinstance(syn, ClassBatch)
    assert isinstance(real, ClassBatch)
    weight = torch.ones(3, n).double()
    weight[2, -1] = 0
    soft = KEY.fold("soft").normal(3, n, 3).double().softmax(2)
    return ClassBatch(Batch(syn.batch.inputs, soft, weight), syn.dims), real


@pytest.mark.parametrize(
    "objective",
    [
        GradientMatching(row_cosine),
        GradientMatching(squared_error, weights="share"),
        GradientMatching(row_cosine, "class-sum", warm_up=WarmUp(9, 9)),
        DistributionMatching("last"),
        DistributionMatching("all"),
    ],
)
def test_terms_of_classes_keep_one_graph_and_the_gradient(
    objective: Objective, task: BlobTask, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    syn, real = class_sides(task, 4)
    if isinstance(objective, GradientMatching):  # the other takes what fits the caches
        network = network._replace(classes_at_once=1)
    seen: list[int] = []

    def run() -> tuple[Tensor, list[Tensor]]:
        leaves = [syn.batch.inputs.detach().requires_grad_(), syn.batch.targets.detach().requires_grad_()]  # type: ignore[union-attr]
        value = 3 * objective(network, ClassBatch(Batch(leaves[0], leaves[1], syn.batch.weight), syn.dims), real, KEY)
        return value.detach(), list(torch.autograd.grad(value, leaves, materialize_grads=True))

    whole_sum = portions_of.sum_by_classes
    for module in (gradient_module, distribution_module):  # all classes at once, by plain autograd
        monkeypatch.setattr(
            module, "sum_by_classes", lambda term, batch, size: term(batch, slice(0, batch.num_classes))
        )
    expected = run()

    def counted(term: ClassTerm, batch: ClassBatch, size: int) -> Tensor:
        def one(part: ClassBatch, rows: slice) -> Tensor:
            seen.append(part.num_classes)
            return term(part, rows)

        return whole_sum(one, batch, size)

    for module in (gradient_module, distribution_module):
        monkeypatch.setattr(module, "sum_by_classes", counted)
    monkeypatch.setattr(base, "CACHED", 1)
    found = run()
    assert seen == [1, 1, 1]
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found[1], expected[1], strict=True))
    assert isinstance(objective, DistributionMatching) or bool((found[1][1] != 0).any())
    with torch.no_grad():
        assert float(objective(network, syn, real, KEY)) == pytest.approx(float(expected[0]) / 3, rel=1e-12)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(
    "objective",
    [
        GradientMatching(row_cosine),
        GradientMatching(squared_error, weights="share"),
        GradientMatching(row_cosine, "class-sum"),
        GradientMatching(row_cosine, "class-sum", weights="share"),
        MultiLevelGradientMatching(),
    ],
)
def test_of_both_sides_no_more_gradients_are_there_than_of_a_part(
    objective: GradientMatching, at_once: int, task: BlobTask, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    syn, real = class_sides(task, 4)
    weight = syn.batch.weight.clone()
    weight[1, 1:] = 0  # so that shares differ
    syn = ClassBatch(syn.batch._replace(weight=weight), syn.dims)
    found, seen = [], list[tuple[bool, int]]()

    def noted(network: Network, batch: ClassBatch) -> Tensors:
        seen.append((torch.is_grad_enabled(), batch.num_classes))
        return base.class_gradients(network, batch)

    for size in (3, at_once):
        leaf = syn.batch.inputs.detach().requires_grad_()  # type: ignore[union-attr]
        batch = ClassBatch(syn.batch._replace(inputs=leaf), syn.dims)
        value = 3 * objective(network._replace(classes_at_once=size), batch, real, KEY)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
        monkeypatch.setattr(gradient_module, "class_gradients", noted)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert max(classes for _, classes in seen) == at_once
    assert sum(classes for graph, classes in seen if not graph) == 3  # the real side is taken once
    with torch.no_grad():
        plain = objective(network._replace(classes_at_once=at_once), syn, real, KEY)
    torch.testing.assert_close(3 * plain, found[0][0], rtol=1e-9, atol=1e-12)


def test_one_class_alone_is_held_beside_the_real_sides_gradients(
    task: BlobTask, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, real = class_sides(task, 4)
    expected = base.class_gradients(network._replace(classes_at_once=3), real)
    alive: list[weakref.ref[Tensor]] = []
    one_class = base._gradient

    def noted(network: Network, batch: Batch) -> Tensors:
        assert sum(one() is not None for one in alive) <= 1
        found = one_class(network, batch)
        alive.append(weakref.ref(next(iter(found.values()))))
        return found

    monkeypatch.setattr(base, "_gradient", noted)
    with torch.no_grad():
        found = base.class_gradients(network._replace(classes_at_once=1), real)
    assert len(alive) == 3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name].detach())


def test_many_small_classes_of_a_large_network_go_in_parts(task: BlobTask, monkeypatch: pytest.MonkeyPatch) -> None:
    many, network = torch.arange(40) % 3, Network(task, task.init(KEY))
    syn = task.sample_real(KEY, many, 2)
    assert isinstance(syn, ClassBatch)
    assert base.classes_at_once(network, syn) == 40
    each = sum(parameter.numel() for parameter in network.state.params.values())
    monkeypatch.setattr(base, "GRADIENT_NUMEL", 30 * each)
    assert base.classes_at_once(network, syn) == 20  # in even parts
    monkeypatch.setattr(base, "GRADIENT_NUMEL", each)
    assert base.classes_at_once(network, syn) == 14
    assert base.classes_at_once(network, syn.part(0, 16)) == 16


def test_sums_over_classes_take_several_at_once(task: BlobTask) -> None:
    syn, _ = class_sides(task, 4)
    inputs = syn.batch.inputs
    assert isinstance(inputs, Tensor)
    leaf = inputs.detach().requires_grad_()
    seen: list[tuple[int, slice]] = []

    def term(part: ClassBatch, rows: slice) -> Tensor:
        seen.append((part.num_classes, rows))
        assert isinstance(part.batch.inputs, Tensor)
        return part.batch.inputs.square().sum()

    value = portions_of.sum_by_classes(term, ClassBatch(syn.batch._replace(inputs=leaf), syn.dims), 2)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert seen == [(2, slice(0, 2)), (1, slice(2, 4))]
    assert torch.allclose(value, inputs.square().sum())
    assert torch.equal(gradient, 2 * inputs)
