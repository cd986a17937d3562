"""Every objective against its loop-written float64 oracle, by finite differences, and in its analytic truths."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.labels import one_hot, soft_cross_entropy, weighted_mean
from mmdistill.networks.module import FunctionalModule
from mmdistill.objectives.base import (
    Network,
    Objective,
    class_gradients,
    class_means,
    class_sides,
    class_summary,
    flatten_classes,
)
from mmdistill.objectives.compiled import batched_gradients
from mmdistill.objectives.distances import flat_cosine, row_cosine, row_cosine_euclidean, squared_error
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching, WarmUp
from mmdistill.objectives.kernel_ridge import FeatureKernel, KernelRidgeMatching, LinearKernel, ridge_solution
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Tensors, share_classes
from mmdistill.testing import (
    ConformanceError,
    as_float64,
    check_class_gradients,
    check_objective,
    check_objective_on,
    check_task,
)
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

DRAWS = Draws(3)


def class_batch(task: BlobTask, n: int, name: str) -> ClassBatch:
    batch = task.sample_real(DRAWS.fold(name), torch.arange(3), n)
    assert isinstance(batch, ClassBatch)
    return batch


def as_numpy(network: Network) -> oracle.Params:
    return {name: p.numpy() for name, p in network.state.params.items()}


def per_class(batch: ClassBatch) -> list[tuple[oracle.Array, oracle.Array]]:
    eye = np.eye(3)
    assert isinstance(batch.batch.inputs, Tensor)
    assert isinstance(batch.batch.targets, Tensor)
    return [(x.numpy(), eye[y.numpy()]) for x, y in zip(batch.batch.inputs, batch.batch.targets, strict=True)]


def test_features_without_a_row_for_each_sample_are_refused() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, 2)).mean(1) if len(x) == 12 else x  # not when the network is built

    make = lambda: nn.Sequential(Pooled(), nn.Linear(4, 3))  # noqa: E731
    task = BlobTask()
    task.module = FunctionalModule(make)
    network = Network(task, task.init(DRAWS))
    with pytest.raises(ShapeError, match="features returned 6 rows for 12 samples"):
        class_summary(network, class_batch(task, 4, "real"))
    assert class_summary(network, class_batch(task, 3, "real"))[1].shape == (3, 3, 4)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("targets", [None, 0])
def test_some_classes_of_shared_samples_share_all_of_them(named: bool, targets: int | None) -> None:
    x, weight = torch.rand(5, 2), torch.rand(4, 5)
    y = torch.arange(5) if targets is None else torch.rand(4, 5)
    part = ClassBatch(Batch({"x": x} if named else x, y, weight), Dims(None, targets)).part(1, 3)
    inputs = part.batch.inputs
    assert torch.equal(inputs["x"] if isinstance(inputs, dict) else inputs, x)
    assert isinstance(part.batch.targets, Tensor)
    assert torch.equal(part.batch.targets, y if targets is None else y[1:3])
    assert torch.equal(part.batch.weight, weight[1:3])
    assert part.dims == Dims(None, targets)


class Drifting(Objective):
    """An objective of the flat view, whose gradient is not that of its value where it is ``wrong``."""

    view = "flat"

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        assert isinstance(syn, Batch)
        assert isinstance(real, Batch)
        s, r = (network.features(side.inputs)[-1].mean(0) for side in (syn, real))
        return (s - r).square().sum() + (s.detach().sum() if self.wrong else 0)


class Detached(Drifting):
    """Its loss no gradient leads back from."""

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        return super().forward(network, syn, real, draws).detach()


class Klass(Drifting):
    """Reads real batches in no known way."""

    view = "klass"  # type: ignore[assignment]


class Unmade(Drifting):
    """Is not set up as a module."""

    def __init__(self) -> None:
        self.wrong = False


class Unmade2(Drifting):
    """Sets a parameter before it is set up as a module."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (Detached, ConformanceError, "no gradient leads from the loss of Detached"),
        (Klass, ConfigError, "the view of Klass"),
        (Drifting(), ConfigError, "takes what makes one .* not a Drifting"),
        (Unmade, ConfigError, r"the __init__ of Unmade begins with super\(\).__init__\(\)"),
        (Unmade2, ConfigError, r"begin with super\(\).__init__\(\)"),
        (nn.Identity, ConfigError, "of type Identity"),
    ],
)
def test_what_is_no_objective_is_told(build: Callable[[], Objective], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        check_objective_on(BlobTask(), build)


def short_trajectory() -> TrajectoryMatching:
    return TrajectoryMatching(2, InnerRate(0.1))


@pytest.mark.parametrize("build", [GradientMatching, DistributionMatching, Drifting, short_trajectory])
def test_an_objective_is_checked_on_a_task_alone(task: BlobTask, build: Callable[[], Objective]) -> None:
    check_objective_on(BlobTask(), build)  # in float32, as tasks are
    with pytest.raises(ConformanceError, match="differs from the oracle's -1"):
        check_objective_on(task, build, oracle=lambda network, syn, real: -1.0)
    with pytest.raises(ConformanceError, match="finite differences do not confirm the gradient"):
        check_objective_on(task, lambda: Drifting(wrong=True))
    check_objective_on(task, lambda: Drifting(wrong=True), detached="the mean's gap")
    with pytest.raises(ConformanceError, match="differs from the oracle"):
        check_objective_on(task, lambda: Drifting(wrong=True), oracle=lambda *sides: -1.0, detached="the mean's gap")


class Ordered(Drifting):
    """Weighs the samples of one side by their positions."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        rows = (syn if self.side == "synthetic" else real).inputs  # type: ignore[union-attr]
        by_place = (rows.sum(1) * torch.arange(len(rows))).sum()  # type: ignore[union-attr,arg-type]
        return super().forward(network, syn, real, draws) + by_place


class Unweighted(Objective):
    """Matches second moments whatever the weights."""

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        syn, real = class_sides(syn, real, "moments")
        s, r = (class_summary(network, side, -1)[1].square().mean(1) for side in (syn, real))
        return (s - r.detach()).square().sum()


class Averaging(DistributionMatching):
    """Divides by a running mean of its value, which is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        value = super().forward(network, syn, real, draws)
        self.mean = 0.9 * self.mean + 0.1
        self.mean.add_(1.0)
        return value / self.mean


def test_samples_of_weight_0_may_not_count() -> None:
    with pytest.raises(ConformanceError, match=r"synthetic samples of weight 0 change the value.*batch\.batch\.weight"):
        check_objective_on(BlobTask(), Unweighted)


def test_an_objective_is_checked_at_the_buffers_that_it_begins_with() -> None:
    made = Averaging()
    check_objective_on(BlobTask(), lambda: made)
    assert float(made.mean) == 1.0


class Cancelling(Drifting):
    """Adds and takes away what float32 does not hold beside its value."""

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        return super().forward(network, syn, real, draws) + 1e6 - 1e6


@pytest.mark.parametrize("side", ["synthetic", "real"])
def test_an_order_of_samples_that_matters_is_found_unless_it_is_said(side: str) -> None:
    with pytest.raises(ConformanceError, match=f"another order of the {side} samples changes the value"):
        check_objective_on(BlobTask(), lambda: Ordered(side))
    check_objective_on(BlobTask(), lambda: Ordered(side), by_position="they count by their places")


def test_a_value_that_float32_does_not_hold_is_found(task: BlobTask, network: Network) -> None:
    syn, real = (flatten_classes(class_batch(task, 2, name)) for name in ("syn", "real"))
    with pytest.raises(ConformanceError, match="its value in float32 differs by"):
        check_objective(Cancelling(), network, syn, real)


@pytest.mark.parametrize("reduction", ["per-class", "class-sum"])
@pytest.mark.parametrize("at_once", [3, 2, 1])
def test_gradient_matching_equals_its_oracle(task: BlobTask, network: Network, reduction: str, at_once: int) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    written = oracle.gradient_matching if reduction == "per-class" else oracle.class_summed_gradient_matching
    check_objective(
        GradientMatching(row_cosine, reduction),  # type: ignore[arg-type]
        network._replace(classes_at_once=at_once),
        syn,
        real,
        oracle=lambda: written(as_numpy(network), per_class(syn), per_class(real)),
    )


@pytest.mark.parametrize("distance", [row_cosine, flat_cosine])
def test_gradients_of_whole_batches_equal_plain_autograd(
    task: BlobTask, network: Network, distance: Callable[[Tensors, Tensors], Tensor]
) -> None:
    syn, real = (flatten_classes(class_batch(task, n, name)) for n, name in ((2, "syn"), (9, "real")))
    syn = syn._replace(weight=DRAWS.fold("w").uniform(len(syn.weight), low=0.5))
    network = network._replace(state=as_float64(network.state))

    def gradient(batch: Batch) -> Tensors:
        params = {name: tensor.detach().requires_grad_() for name, tensor in network.state.params.items()}
        rows = Batch(*(t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in batch))
        loss = task.loss(network.state._replace(params=params), rows)
        found = torch.autograd.grad(loss, list(params.values()))
        return {name: one[None] for name, one in zip(params, found, strict=True)}

    check_objective(
        GradientMatching(distance, "batch"),
        network,
        syn,
        real,
        oracle=lambda: float(distance(gradient(syn), gradient(real))),
    )


def test_whole_batches_have_no_weights_of_classes_nor_a_warm_up_by_them() -> None:
    for own in ({"weights": "share"}, {"warm_up": WarmUp(1, 1)}, {"augment": lambda draws, batch: batch}):
        with pytest.raises(ConfigError, match="weights, a warm-up and an augmentation of its own are those of classes"):
            GradientMatching(row_cosine, "batch", **own)  # type: ignore[arg-type]


def test_distances_of_whole_gradients_equal_the_oracle() -> None:
    shapes = {"weight": (2, 3, 4), "bias": (2, 3), "kernel": (2, 2, 3, 2, 2)}
    a, b = ({name: DRAWS.fold(side, name).normal(*shape).double() for name, shape in shapes.items()} for side in "ab")
    for label in range(2):
        cosine, squared = oracle.whole_distances(*({n: t[label].numpy() for n, t in tree.items()} for tree in (a, b)))
        assert float(flat_cosine(a, b)[label]) == pytest.approx(cosine, rel=1e-10)
        assert float(squared_error(a, b)[label]) == pytest.approx(squared, rel=1e-10)


@pytest.mark.parametrize("distance", [flat_cosine, squared_error, row_cosine_euclidean])
def test_other_distances_pass_the_battery(task: BlobTask, network: Network, distance: object) -> None:
    check_objective(
        GradientMatching(distance),  # type: ignore[arg-type]
        network,
        class_batch(task, 2, "syn"),
        class_batch(task, 9, "real"),
    )


def test_distribution_matching_equals_its_oracle(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    sides = [[x for x, _ in per_class(side)] for side in (syn, real)]
    check_objective(
        DistributionMatching("last"), network, syn, real,
        oracle=lambda: oracle.distribution_matching(as_numpy(network), *sides),
    )  # fmt: skip
    check_objective(
        DistributionMatching("all"), network, syn, real,
        oracle=lambda: oracle.layerwise_distribution_matching(as_numpy(network), *sides),
    )  # fmt: skip


def test_kernel_ridge_matching_equals_the_normal_equations(task: BlobTask, network: Network) -> None:
    syn, real = flatten_classes(class_batch(task, 2, "syn")), flatten_classes(class_batch(task, 9, "real"))
    phi_s, phi_t = (network.features(b.inputs)[-1].numpy() for b in (syn, real))
    y_s, y_t = (np.eye(3)[b.targets.numpy()] - 1 / 3 for b in (syn, real))  # type: ignore[union-attr]
    check_objective(
        KernelRidgeMatching(FeatureKernel(), ridge=1e-2), network, syn, real,
        oracle=lambda: oracle.kernel_ridge(phi_t, y_t, phi_s, y_s, 1e-2),
    )  # fmt: skip
    check_objective(
        KernelRidgeMatching(LinearKernel(), ridge=1e-2), network, syn, real,
        oracle=lambda: oracle.kernel_ridge(real.inputs.numpy(), y_t, syn.inputs.numpy(), y_s, 1e-2),  # type: ignore[union-attr]
    )  # fmt: skip


def test_probabilities_are_regressed_as_the_classes_that_they_are(task: BlobTask, network: Network) -> None:
    syn, real = flatten_classes(class_batch(task, 2, "syn")), flatten_classes(class_batch(task, 9, "real"))
    objective = KernelRidgeMatching(FeatureKernel(), ridge=1e-3)

    def value(targets: Tensor) -> Tensor:
        return objective(network, syn._replace(targets=targets), real, Draws(3))

    assert isinstance(syn.targets, Tensor)
    certain = one_hot(syn.targets, 3, torch.float64)
    torch.testing.assert_close(value(certain), value(syn.targets))
    torch.testing.assert_close(value(certain - 1 / 3), value(syn.targets))  # scores are as they are


def test_ridge_scales_and_learned_ridge(task: BlobTask, network: Network) -> None:
    k = torch.tensor([[2.0, 0.5], [0.5, 4.0]], dtype=torch.float64)
    y = torch.eye(2, dtype=torch.float64)
    absolute = ridge_solution(k, y, 3e-1, "absolute")
    assert torch.allclose(absolute, torch.linalg.inv(k + 0.3 * y))
    assert torch.allclose(ridge_solution(k, y, 0.1, "trace"), torch.linalg.inv(k + 0.3 * y))
    assert ridge_solution(-k, y, 1e-9, "trace").isnan().all()
    learned = KernelRidgeMatching(FeatureKernel(), ridge=0.5, learn_ridge=True)
    assert learned.learned()["ridge"].item() == pytest.approx(0.5)
    assert [name for name, _ in learned.named_parameters()] == ["log_ridge"]
    with pytest.raises(ConfigError, match="positive"):
        KernelRidgeMatching(FeatureKernel(), ridge=0.0)


def test_equal_sets_have_zero_loss(task: BlobTask, network: Network) -> None:
    real = class_batch(task, 5, "real")
    for objective in (GradientMatching(squared_error), DistributionMatching("all")):
        assert float(objective(network, real, real, DRAWS)) == 0.0
    # 1 - cos of equal rows is eps / (norm^2 + eps), not 0: the published epsilon
    rows = [g.flatten(2).square().sum(2) for g in class_gradients(network, real).values() if g.ndim > 2]
    expected = sum(float((1e-6 / (squared + 1e-6)).sum()) for squared in rows)
    assert float(GradientMatching(row_cosine)(network, real, real, DRAWS)) == pytest.approx(expected, rel=1e-6)


def test_an_uncentred_linear_mmd_is_mean_matching(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    total = 0.0
    for index in range(3):
        s, r = (network.features(side.one_class(index).inputs)[-1] for side in (syn, real))
        total += float((s @ s.T).mean() - 2 * (s @ r.T).mean() + (r @ r.T).mean())
    assert float(DistributionMatching("last")(network, syn, real, DRAWS)) == pytest.approx(total, rel=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.permutations(list(range(6))))
def test_permuting_samples_changes_nothing(order: list[int]) -> None:
    task = BlobTask(dtype=torch.float64)
    network = Network(task, task.init(DRAWS.fold("net")))
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 6, "real")
    mixed = ClassBatch(Batch(*(t[:, order] for t in real.batch)), real.dims)  # type: ignore[call-overload,index]
    for objective in (GradientMatching(), DistributionMatching()):
        assert float(objective(network, syn, mixed, DRAWS)) == pytest.approx(
            float(objective(network, syn, real, DRAWS)), rel=1e-9
        )


def test_padding_of_weight_zero_changes_nothing(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 6, "real")
    x, y, w = real.batch
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    junk = 100 * torch.ones_like(x[:, :2])
    padded = Batch(torch.cat([x, junk], 1), torch.cat([y, y[:, :2]], 1), torch.cat([w, 0 * w[:, :2]], 1))
    for objective in (GradientMatching(), DistributionMatching()):
        expected = float(objective(network, syn, real, DRAWS))
        assert float(objective(network, syn, ClassBatch(padded, Dims(0, 0)), DRAWS)) == pytest.approx(
            expected, rel=1e-9
        )


def test_shared_inputs_give_the_gradients_of_stacked_ones(task: BlobTask, network: Network) -> None:
    stacked = class_batch(task, 4, "real")
    flat = flatten_classes(stacked)
    membership = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 1)
    shared = ClassBatch(Batch(flat.inputs, flat.targets, membership), Dims(None, None))
    check_class_gradients(task, network.state, shared)
    for name, gradient in class_gradients(network, shared).items():
        assert torch.allclose(gradient, class_gradients(network, stacked)[name], atol=1e-12)
    for one, other in zip(class_means(network, shared), class_means(network, stacked), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_float32_stays_near_float64() -> None:
    narrow, wide = BlobTask(), BlobTask(dtype=torch.float64)
    values = []
    for task in (narrow, wide):
        network = Network(task, task.init(DRAWS.fold("net")))
        syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
        values.append([float(o(network, syn, real, DRAWS)) for o in (GradientMatching(), DistributionMatching())])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_mismatched_sides_are_refused(task: BlobTask, network: Network) -> None:
    real = class_batch(task, 4, "real")
    fewer = ClassBatch(Batch(*(t[:2] for t in real.batch)), real.dims)  # type: ignore[call-overload,index]
    for objective in (GradientMatching(), DistributionMatching()):
        with pytest.raises(ShapeError, match="2 synthetic classes against 3"):
            objective(network, fewer, real, DRAWS)
        with pytest.raises(ConfigError, match="one batch per class"):
            objective(network, flatten_classes(real), real, DRAWS)
    with pytest.raises(ConfigError, match="only biases"):
        row_cosine({"b": torch.ones(3, 4)}, {"b": torch.ones(3, 4)})
    with pytest.raises(ShapeError, match="have shapes"):
        squared_error({"w": torch.ones(3, 4, 2)}, {"w": torch.ones(3, 4, 3)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientMatching(reduction="per_class"), "reduction is per-class or .*mean 'per-class'"),  # type: ignore[arg-type]
        (lambda: GradientMatching(weights="shares"), "weights is equal or share.*mean 'share'"),  # type: ignore[arg-type]
        (lambda: DistributionMatching("lats"), "layers is last or all.*mean 'last'"),  # type: ignore[arg-type]
        (lambda: KernelRidgeMatching(FeatureKernel(), scale="trave"), "scale is trace or absolute.*mean 'trace'"),  # type: ignore[arg-type]
        (lambda: KernelRidgeMatching(FeatureKernel(), view="rows"), "view is classes or flat"),  # type: ignore[arg-type]
    ],
)
def test_a_choice_that_there_is_not_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class BreaksContract(BlobTask):
    """A task that is wrong in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def init(self, draws: Draws) -> NetworkState:
        return super().init(Draws(0) if self.how == "one network" else draws)

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        if self.how == "one batch":
            draws = Draws(0)
        found = super().sample_real(draws, classes, n)
        if self.how == "reversed classes" and isinstance(found, ClassBatch):
            return ClassBatch(Batch(*(part.flip(0) for part in found.batch)), found.dims)  # type: ignore[union-attr]
        if self.how == "other rows" and isinstance(found, ClassBatch):
            return ClassBatch(found.batch._replace(inputs=found.batch.inputs + 1), found.dims)  # type: ignore[operator]
        return found

    def select(self, indices: Tensor) -> Batch:
        found = super().select(indices)
        if self.how == "selected tuple":
            return tuple(found)[:2]  # type: ignore[return-value]
        if self.how == "other labels":
            assert isinstance(found.targets, Tensor)
            return found._replace(targets=(found.targets + 1) % 3)
        return found

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        logits, buffers = super().predict(state, inputs, train=train)
        if self.how == "two classes":
            return logits[:, :2], buffers
        return logits if self.how == "logits alone" else (logits, buffers)  # type: ignore[return-value]

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        if self.how in ("no weights", "logits alone", "two classes"):
            assert isinstance(batch.targets, Tensor)
            logits = self.module(state, batch.inputs, train=train)[0]
            losses = soft_cross_entropy(logits, batch.targets)
            return losses.mean() if self.how == "no weights" else weighted_mean(losses, batch.weight)
        return super().loss(state, batch, train=train)

    def class_gradients(self, state: NetworkState, batch: ClassBatch) -> Tensors | None:
        if self.how != "gradients without weights":
            return None
        return batched_gradients(
            self, state, ClassBatch(batch.batch._replace(weight=torch.ones_like(batch.batch.weight)), batch.dims)
        )

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        if self.how == "flat augmentation" and isinstance(batch, ClassBatch):
            return batch.batch
        return super().augment(Draws(0) if self.how == "one augmentation" else draws, batch, shared=shared)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("one network", "init: another key"),
        ("one batch", "sample_real: other keys"),
        ("reversed classes", "the batch of class 0 holds samples of other classes"),
        ("other rows", "samples of class 0 differ between them"),
        ("other labels", "samples of other classes|the labels of other ones"),
        ("flat augmentation", "augment: a ClassBatch must stay one"),
        ("one augmentation", "augment: other keys"),
        ("no weights", "loss: a sample of weight 0 must not count"),
        ("gradients without weights", "class_gradients: .* differs"),
        ("logits alone", "predict: a tuple of outputs and buffers by name is needed, got a Tensor"),
        ("two classes", r"predict: outputs are \(n, classes\), here \(4, 3\), got \(4, 2\)"),
        ("selected tuple", "select: a Batch is needed, got a tuple"),
    ],
)
def test_the_battery_finds_what_is_wrong(how: str, said: str) -> None:
    with pytest.raises(ConformanceError, match=said):
        check_task(BreaksContract(how), judge="mlp")


def test_members_that_a_task_lacks_are_named() -> None:
    members = {name: value for name, value in vars(BlobTask).items() if name not in ("augment", "describe")}
    with pytest.raises(ConformanceError, match=r"^Own lacks augment and describe, which every task has$"):
        check_task(type("Own", (), members)())


def test_the_toy_task_conforms() -> None:
    check_task(BlobTask(), judge="mlp")


def test_a_task_whose_dropout_follows_no_key_does_not_conform() -> None:
    task = BlobTask()
    task.module = FunctionalModule(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    with pytest.raises(ConformanceError, match="one training loss"):
        check_task(task)


def test_proposition_1_in_its_true_form() -> None:
    # || M (Y_t - F_t W_s) ||^2 = || W_t - W_s ||^2 with M = (F_t^T F_t)^-1 F_t^T; Eq. 21 pulls the norm of M out
    f_t, f_s = DRAWS.fold("ft").normal(20, 4).double(), DRAWS.fold("fs").normal(3, 4).double()
    y_t, y_s = DRAWS.fold("yt").normal(20, 2).double(), DRAWS.fold("ys").normal(3, 2).double()
    w_s = f_s.T @ torch.linalg.inv(f_s @ f_s.T) @ y_s
    m = torch.linalg.inv(f_t.T @ f_t) @ f_t.T
    left = (m @ (y_t - f_t @ w_s)).square().sum()
    right = (m @ y_t - w_s).square().sum()
    assert float(left) == pytest.approx(float(right), rel=1e-10)
    printed = m.square().sum() * (y_t - f_t @ w_s).square().sum()
    assert float(printed) > 1.5 * float(right)


def test_proposition_2_for_constant_predictions() -> None:
    # with one constant prediction per class, each row of the head's gradient is (p - 1[c]) times the mean feature
    features_s, features_r = DRAWS.fold("s").normal(2, 5).double(), DRAWS.fold("r").normal(7, 5).double()
    p = 1 / 3
    coefficients = torch.tensor([p - 1, p, p], dtype=torch.float64)
    gradient_s = sum(torch.outer(coefficients, f) for f in features_s) / 2
    gradient_r = sum(torch.outer(coefficients, f) for f in features_r) / 7
    gap = (gradient_s - gradient_r).square().sum()  # type: ignore[union-attr]
    means = (features_s.mean(0) - features_r.mean(0)).square().sum()
    assert float(gap) == pytest.approx(float(coefficients.square().sum() * means), rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_proposition_3_as_an_inequality(seed: int) -> None:
    # a squared norm of a sum of two needs the factor 2 that the printed bound lacks
    key = Draws(seed)
    f_s, f_t = key.fold("fs").normal(3, 4).double(), key.fold("ft").normal(9, 4).double()
    y_s, y_t = key.fold("ys").normal(3, 2).double(), key.fold("yt").normal(9, 2).double()
    w = key.fold("w").normal(4, 2).double()
    gap = (f_s.T @ (f_s @ w - y_s) / 3 - f_t.T @ (f_t @ w - y_t) / 9).square().sum()
    second = ((f_s.T @ f_s / 3 - f_t.T @ f_t / 9) @ w).square().sum()
    first = (f_t.T @ y_t / 9 - f_s.T @ y_s / 3).square().sum()
    assert float(gap) <= 2 * float(second + first) * (1 + 1e-9)


def test_classes_one_at_a_time_give_the_same_pixel_gradient(task: BlobTask, network: Network) -> None:
    real, syn = class_batch(task, 4, "real"), class_batch(task, 2, "synthetic")
    found = []
    for at_once in (3, 1):
        inputs = syn.batch.inputs.clone().requires_grad_()
        one = ClassBatch(Batch(inputs, syn.batch.targets, syn.batch.weight), syn.dims)
        loss = GradientMatching()(network._replace(classes_at_once=at_once), one, real, DRAWS)
        found.append(torch.autograd.grad(loss, inputs)[0])
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)
    assert found[0].norm() > 0


def test_inputs_that_classes_share_flatten_to_the_weights_that_they_had() -> None:
    batch = Batch({"x": torch.zeros(6, 2)}, torch.arange(6) // 2, torch.linspace(0.5, 1.0, 6))
    shared = share_classes(batch, torch.eye(3).repeat_interleave(2, 1))
    assert torch.equal(flatten_classes(shared).weight, batch.weight)


def test_a_set_carries_an_objectives_own_numbers_and_none_of_its_helpers() -> None:
    class Sampled(Drifting):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.scales = nn.Parameter(torch.ones(3))
            self.frequencies = nn.Parameter(torch.ones(3, 4))
            self.sampler = nn.Linear(2, 5)

    assert Sampled().learned().keys() == {"scale", "scales"}


def test_an_objective_made_of_others_carries_what_they_learned() -> None:
    class Both(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.part = TrajectoryMatching(2, InnerRate(0.25))

        def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
            return self.scale * self.part(network, syn, real, draws)

    learned = Both().learned()
    assert learned.keys() == {"scale", "inner_lr"}
    assert float(learned["inner_lr"]) == pytest.approx(0.25)
