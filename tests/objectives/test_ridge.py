"""The kernel ridge family: margin, random networks with Platt scaling, and the NTK in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.image import image_task
from mmdistill.labels import centred_one_hot
from mmdistill.networks.module import redrawn
from mmdistill.objectives.adversary import StyleAdversary
from mmdistill.objectives.base import Network, Objective, class_means
from mmdistill.objectives.implicit import ImplicitPerformance
from mmdistill.objectives.infinite_width import ConvolutionalKernel, FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import (
    FeatureKernel,
    KernelRidgeMatching,
    LinearKernel,
    RidgeScale,
    RidgeSystem,
    multinomial,
    ridge_prediction,
)
from mmdistill.objectives.ridge import MarginKernelRidge, RandomFeatureRidge, label_margin
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, real_classes, stack_classes
from mmdistill.testing import check_objective
from tests.oracles import objectives as oracle
from tests.oracles.kernels import wide_relu
from tests.toys import BlobTask

KEY = Draws(9)
OBJECTIVE_KEY = Draws(0, ("objective",))
"""The key with which the battery calls objectives."""


def as_numpy(tensor: object) -> oracle.Array:
    assert isinstance(tensor, Tensor)
    return tensor.numpy()


def test_the_margin_equals_its_oracle() -> None:
    labels = KEY.normal(20, 4, dtype=torch.float64) / 4
    assert float(label_margin(labels)) == pytest.approx(oracle.label_margin(labels.numpy()), rel=1e-12)
    apart = 10 * torch.eye(4)
    assert float(label_margin(apart)) == -0.25


def test_margin_kernel_ridge_equals_its_oracle(task: BlobTask, network: Network, syn: Batch, real: Batch) -> None:
    phi_s, phi_t = (as_numpy(network.features(batch.inputs)[-1]) for batch in (syn, real))
    goal = np.eye(3)[as_numpy(real.targets)] - 1 / 3
    check_objective(
        MarginKernelRidge(1e-2), network, syn, real,
        oracle=lambda: oracle.kernel_ridge(phi_t, goal, phi_s, as_numpy(syn.targets), 1e-2)
        + oracle.label_margin(as_numpy(syn.targets)),
    )  # fmt: skip
    classes = syn._replace(targets=torch.arange(len(syn.weight)) % 3)
    hard = MarginKernelRidge(1e-2)(network, classes, real, KEY)
    centred = classes._replace(targets=centred_one_hot(classes.targets, 3).to(syn.targets.dtype))
    assert torch.allclose(hard, MarginKernelRidge(1e-2)(network, centred, real, KEY))


def test_random_feature_ridge_equals_its_oracle(task: BlobTask, network: Network, syn: Batch, real: Batch) -> None:
    objective = RandomFeatureRidge(networks=3, ridge=1e-2).double()
    with torch.no_grad():
        objective.log_scale.fill_(0.7)
    states = objective.random_networks(task, OBJECTIVE_KEY)
    phi_s, phi_t = ([as_numpy(task.features(s, b.inputs)[-1]) for s in states] for b in (syn, real))

    def value() -> float:
        k_ts = oracle.random_feature_kernel(phi_t, phi_s, 0.01)
        k_ss = oracle.random_feature_kernel(phi_s, phi_s, 0.01)
        prediction = oracle.ridge_prediction(k_ts, k_ss, as_numpy(syn.targets), 1e-2 * float(np.trace(k_ss)) / 5)
        return oracle.platt_cross_entropy(prediction, as_numpy(real.targets).tolist(), 0.7)

    # the toy's random networks are in float64 whatever the samples are in
    check_objective(objective, network, syn, real, oracle=value, single=math.inf)
    assert objective.learned()["platt_log_scale"].item() == pytest.approx(0.7)
    (gradient,) = torch.autograd.grad(objective(network, syn, real, KEY), [objective.log_scale])
    assert float(gradient) != 0


def test_random_networks_have_the_stated_moments() -> None:
    wide = BlobTask(width=400)
    state = redrawn(wide.init(KEY), KEY.fold("weights"), 0.1)
    weight, bias = state.params["2.weight"], state.params["2.bias"]
    assert float(weight.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert float(bias.std()) == pytest.approx(0.1, rel=0.15)
    convolution = redrawn(NetworkState({"weight": torch.zeros(64, 8, 3, 3)}, {}), KEY, 0.1)
    assert float(convolution.params["weight"].std()) == pytest.approx((2 / 72) ** 0.5, rel=0.05)
    fresh = [*RandomFeatureRidge(2).random_networks(wide, KEY), *RandomFeatureRidge(2).random_networks(wide, Draws(8))]
    assert len({float(state.params["2.weight"][0, 0]) for state in fresh}) == 4
    assert all(bool(state.params["2.bias"].any()) for state in fresh)
    (plain,) = RandomFeatureRidge(1, bias_std=0.0).random_networks(wide, KEY)
    assert not plain.params["2.bias"].any()


def test_the_ntk_is_solved_in_float64(task: BlobTask, network: Network, syn: Batch, real: Batch) -> None:
    kernel = FullyConnectedKernel("ntk", depth=1, dtype=torch.float64)
    rows_s, rows_t = as_numpy(syn.inputs), as_numpy(real.inputs)
    goal = np.eye(3)[as_numpy(real.targets)] - 1 / 3

    def value() -> float:
        k_ts, k_ss = (
            np.array([[wide_relu(x, y, 1, 2**0.5, 0.1)[1] for y in rows_s] for x in rows]) for rows in (rows_t, rows_s)
        )
        prediction = oracle.ridge_prediction(k_ts, k_ss, as_numpy(syn.targets), 1e-6 * float(np.trace(k_ss)) / 5)
        return float(0.5 * ((prediction - goal) ** 2).sum() / len(goal))

    check_objective(KernelRidgeMatching(kernel, 1e-6, "trace"), network, syn, real, oracle=value)
    narrow = Batch(*(t.float() for t in syn))  # type: ignore[union-attr]
    assert KernelRidgeMatching(kernel, 1e-6, "trace")(network, narrow, real, KEY).dtype == torch.float64


@pytest.mark.parametrize(
    "objective",
    [
        KernelRidgeMatching(FeatureKernel()),
        KernelRidgeMatching(FullyConnectedKernel("ntk", depth=1, dtype=torch.float64), loss=multinomial),
        MarginKernelRidge(),
        RandomFeatureRidge(networks=2),
        ImplicitPerformance().double(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_real_samples_of_weight_0_change_nothing(
    objective: Objective, network: Network, syn: Batch, real: Batch
) -> None:
    real = real._replace(targets=torch.eye(3).double()[real.targets])  # type: ignore[index]
    padded = Batch(*(torch.cat([tensor, tensor[:4]]) for tensor in real))  # type: ignore[arg-type,index]
    padded.weight[9:] = 0
    torch.testing.assert_close(objective(network, syn, padded, KEY), objective(network, syn, real, KEY))


def test_wrong_compositions_are_refused(network: Network, syn: Batch, real: Batch) -> None:
    without = BlobTask()
    for without.num_classes in (None, 1):
        for objective in (MarginKernelRidge(), RandomFeatureRidge()):
            with pytest.raises(ConfigError, match="at least 2 classes"):
                objective.check(without)
    without.num_classes = None
    with pytest.raises(ConfigError, match="matches class by class"):
        KernelRidgeMatching(LinearKernel(), view="classes").check(without)
    without.num_classes = 3
    for objective in (MarginKernelRidge(), RandomFeatureRidge()):
        objective.check(without)
    for wrong in ({"networks": 0}, {"ridge": 0.0}, {"ridge": math.nan}, {"bias_std": -1.0}, {"offset": -1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is "):
            RandomFeatureRidge(**wrong)  # type: ignore[arg-type]


def test_more_samples_than_features_keep_a_finite_loss() -> None:
    narrow = BlobTask(per_class=200)
    batch = narrow.sample_real(KEY, None, 600)
    assert isinstance(batch, Batch)
    targets = KEY.normal(600, 3)
    network = Network(narrow, narrow.init(KEY))
    for objective in (KernelRidgeMatching(FeatureKernel()), MarginKernelRidge()):
        assert bool(torch.isfinite(objective(network, Batch(batch.inputs, targets, batch.weight), batch, KEY)))


class Featureless(BlobTask):
    """Blobs whose network has no features, or shapeless ones."""

    layers: tuple[Tensor, ...] = ()

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        if not self.layers:
            raise UnsupportedError("it counts pixels")
        return self.layers


class Named(BlobTask):
    """Blobs whose samples are dicts."""

    def select(self, indices: Tensor) -> Batch:
        batch = super().select(indices)
        assert isinstance(batch.inputs, Tensor)
        return Batch({"nodes": batch.inputs, "edges": batch.inputs}, batch.targets, batch.weight)


def test_networks_without_features_are_refused_when_the_run_is_built() -> None:
    styled = StyleAdversary(UnrolledPerformance(1, InnerRate(0.1)), 2)
    readers = KernelRidgeMatching(FeatureKernel()), MarginKernelRidge(), RandomFeatureRidge(), ImplicitPerformance()
    for objective in (*readers, styled):
        with pytest.raises(ConfigError, match="has none: it counts pixels"):
            objective.check(Featureless())
    shapeless = Featureless()
    for shape in ((2, 3, 4), (3, 4), (2, 0)):
        shapeless.layers = (torch.ones(shape),)
        with pytest.raises(ConfigError, match="one row of features per sample"):
            MarginKernelRidge().check(shapeless)
    KernelRidgeMatching(FullyConnectedKernel()).check(Featureless())


def test_samples_that_a_kernel_cannot_read_are_refused_when_the_run_is_built() -> None:
    for kernel in (LinearKernel(), FullyConnectedKernel(), ConvolutionalKernel()):
        with pytest.raises(ConfigError, match="a dict of nodes, edges"):
            KernelRidgeMatching(kernel).check(Named())
    with pytest.raises(ConfigError, match="reads samples of 3 axes"):
        KernelRidgeMatching(ConvolutionalKernel()).check(BlobTask())


def test_the_multinomial_likelihood_reads_rows_of_interactions() -> None:
    with pytest.raises(ShapeError, match=r"targets of shape \(3, 3\) are expected, got \(3,\)"):
        multinomial(torch.zeros(3, 3), torch.arange(3), torch.ones(3))


def test_features_in_float32_are_multiplied_in_float64() -> None:
    task = BlobTask()
    network, images = Network(task, task.init(KEY)), (task.images[:20], task.images[30:50])
    syn, real = (network.features(each)[-1].double() for each in images)
    assert torch.equal(FeatureKernel()(network, *images), syn @ real.T)
    features = KEY.normal(5, 12)
    found = RandomFeatureRidge(networks=3, offset=0.0)._gram(features, features)
    torch.testing.assert_close(found, 2 * features.double() @ features.double().T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", ["trace", "absolute"])
@pytest.mark.parametrize("columns", [2, 9])
def test_the_prediction_is_the_same_from_whichever_side_it_is_solved(scale: RidgeScale, columns: int) -> None:
    real, syn, targets = (KEY.fold(rows).normal(rows, width).double() for rows, width in ((3, 4), (5, 4), (6, columns)))
    k_ts, k_ss, goal = real @ syn.T, syn @ syn.T, targets[:5]
    amount = 0.3 * (k_ss.diagonal().mean() if scale == "trace" else 1.0)
    expected = k_ts @ torch.linalg.inv(k_ss + amount * torch.eye(5).double()) @ goal
    system = RidgeSystem(k_ts, k_ss, goal, torch.tensor(0.3).double(), scale, real, syn)
    torch.testing.assert_close(ridge_prediction(system), expected)
    single = system._replace(k_ts=k_ts.float(), k_ss=k_ss.float(), targets=goal.float())
    torch.testing.assert_close(ridge_prediction(single), expected.float(), rtol=1e-3, atol=1e-3)


def test_mixed_precision_lowers_the_real_side_alone_and_means_stay_in_float32() -> None:
    task = BlobTask()
    batch = task.sample_real(KEY, torch.arange(3), 4)
    assert isinstance(batch, ClassBatch)
    plain = class_means(Network(task, task.init(KEY)), batch)
    for precision, kept in (("mixed", True), ("bf16", False)):
        network = Network(task, task.init(KEY), precision=precision)  # type: ignore[arg-type]
        with torch.no_grad():
            lowered = class_means(network, batch)
        graph = class_means(network, batch)
        assert all(mean.dtype == torch.float32 for mean in (*lowered, *graph))
        assert torch.equal(graph[-1], plain[-1]) == kept
        assert not torch.equal(lowered[-1], plain[-1])
        torch.testing.assert_close(lowered[-1], plain[-1], rtol=0.05, atol=0.05)


def test_copies_that_fill_up_classes_are_no_samples() -> None:
    task = image_task("digits", width=4)
    network = Network(task, task.init(KEY))
    flat = task.select(torch.cat([(task.labels == label).nonzero()[: 3 - label, 0] for label in range(3)]))
    table, present = torch.tensor([[0, 1, 2], [3, 4, 0], [5, 0, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    filled = stack_classes(flat, table, present.float())
    real = real_classes(task, KEY, torch.arange(3), 4)
    kernel = FullyConnectedKernel("ntk", 1, dtype=torch.float64)

    def found(ridge: float, syn: Batch | ClassBatch) -> Tensor:
        return KernelRidgeMatching(kernel, ridge, view="classes")(network, syn, real, KEY)

    for ridge in (1e-6, 1e-2):
        assert float(found(ridge, filled)) == pytest.approx(float(found(ridge, flat)), rel=1e-9)
