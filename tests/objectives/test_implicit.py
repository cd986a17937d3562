"""Implicit gradients against a linear solve with the explicit Jacobian, finite differences and dense systems."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError
from mmdistill.image import ImageTask, image_task
from mmdistill.image.methods.implicit import MirroredImplicit
from mmdistill.image.methods.ridge import with_mirror_images
from mmdistill.labels import centred_one_hot
from mmdistill.networks.linearized import LinearizedNetwork, readout_of
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.quadratic import AdamDescent, ConjugateGradients
from mmdistill.objectives.base import Network
from mmdistill.objectives.implicit import ImplicitPerformance
from mmdistill.objectives.ridge import label_margin
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState
from mmdistill.testing import as_float64, check_objective
from tests.oracles import implicit as oracle
from tests.toys import BlobTask, smooth_mlp

KEY = Draws(9)
EXACT = ConjugateGradients(80)
LAST = "4.weight"


def network_of(between: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> Network:
    """A network of blobs with a given layer before the last one."""

    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), between(), nn.Linear(8, 3, bias=bias))

    task = BlobTask(dtype=torch.float64)
    task.module = FunctionalModule(factory, features=["1", "4"])
    return Network(task, task.init(KEY))


def exact(l2: float = 1e-2, clip: bool = False) -> ImplicitPerformance:
    objective = ImplicitPerformance(l2, EXACT, clip=clip).double()
    with torch.no_grad():
        objective.log_scale.fill_(0.7)
    return objective


def closed_form(network: Network, inputs: Tensor, targets: Tensor, real: Batch, scale: Tensor, l2: float) -> Tensor:
    """The oracle's loss for the network of a task."""

    def forward(params: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        state = NetworkState(params, network.state.buffers)
        return network.task.predict(state, rows)[0], network.task.features(state, rows)[-1]

    both = (real.inputs, real.targets)
    return oracle.implicit_loss(forward, network.state.params, LAST, (inputs, targets), both, l2 * len(inputs), scale)  # type: ignore[arg-type]


def leaves_of(syn: Batch) -> tuple[Tensor, Tensor]:
    assert isinstance(syn.inputs, Tensor)
    assert isinstance(syn.targets, Tensor)
    return syn.inputs.clone().requires_grad_(), syn.targets.clone().requires_grad_()


@pytest.mark.parametrize(("l2", "between"), [(1e-2, lambda: nn.LayerNorm(8)), (1e-4, nn.Tanh)])
def test_value_and_gradients_are_those_of_the_explicit_jacobian(
    syn: Batch, real: Batch, l2: float, between: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdistill.objectives.implicit.DIFFERENTIATED", 4 * 4)  # nine real samples, four at a time
    objective, network = exact(l2), network_of(between)
    inputs, targets = leaves_of(syn)
    value = objective(network, Batch(inputs, targets, syn.weight), real, KEY)
    expected = closed_form(network, *(others := leaves_of(syn)), real, objective.log_scale, l2)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    found = torch.autograd.grad(value, [inputs, targets, objective.log_scale])
    wanted = torch.autograd.grad(expected, [*others, objective.log_scale])
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).norm()) < 1e-8 * float(other.norm())


def test_implicit_performance_passes_the_battery(network: Network, syn: Batch, real: Batch) -> None:
    inputs, targets = leaves_of(syn)
    expected = closed_form(network, inputs, targets, real, exact().log_scale, 1e-2)
    check_objective(exact(), network, syn, real, oracle=lambda: float(expected.detach()))
    classes = syn._replace(targets=torch.arange(5) % 3)
    centred = classes._replace(targets=centred_one_hot(torch.arange(5) % 3, 3, torch.float64))
    torch.testing.assert_close(exact()(network, classes, real, KEY), exact()(network, centred, real, KEY))
    assert exact().learned()["platt_log_scale"].item() == pytest.approx(0.7)


def test_a_few_steps_of_either_solver_come_nearer(network: Network, syn: Batch, real: Batch) -> None:
    def gradient(objective: ImplicitPerformance) -> Tensor:
        inputs, targets = leaves_of(syn)
        value = objective.double()(network, Batch(inputs, targets, syn.weight), real, KEY)
        (found,) = torch.autograd.grad(value, [inputs])
        return found

    goal = gradient(ImplicitPerformance(1e-2, EXACT, clip=False))
    for kind in (ConjugateGradients, lambda steps: AdamDescent(steps, 0.05)):
        few, many = (
            float((gradient(ImplicitPerformance(1e-2, kind(steps), clip=False)) - goal).norm()) for steps in (3, 60)
        )
        assert many < 0.2 * few


def test_the_implicit_gradient_is_cut_to_the_norm_of_the_direct_one(
    network: Network, syn: Batch, real: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Tensor] = []
    plain = torch.autograd.grad

    def noting(*given: object, **named: object) -> tuple[Tensor, ...]:
        found = plain(*given, **named)  # type: ignore[arg-type]
        noted.append(found[0])
        return found

    results = []
    for size in (1e-3, 1.0, 1e3):  # of the adjoint, in which the implicit gradient is linear
        objective = ImplicitPerformance(1e-2, EXACT, Scaled(80, size)).double()
        monkeypatch.setattr(torch.autograd, "grad", noting)
        inputs, targets = leaves_of(syn)
        value = objective(network, Batch(inputs, targets, syn.weight), real, KEY)
        direct, implicit = noted[-2:]
        monkeypatch.undo()
        (found,) = torch.autograd.grad(value, [inputs])
        shrunk = min(1.0, float(direct.norm() / implicit.norm()))
        torch.testing.assert_close(found, direct + shrunk * implicit)
        results.append(shrunk)
    assert results[0] == 1.0
    assert results[2] < 1.0


class Scaled(ConjugateGradients):
    """A solver whose solution is multiplied."""

    def __init__(self, steps: int, size: float) -> None:
        super().__init__(steps)
        object.__setattr__(self, "size", size)

    def solve(self, product, goal):  # type: ignore[no-untyped-def]
        return self.size * super().solve(product, goal)  # type: ignore[attr-defined]


def test_solvers_solve_dense_systems_and_stay_at_a_solution() -> None:
    root = KEY.normal(6, 6, dtype=torch.float64)
    matrix, goal = root @ root.T + torch.eye(6), KEY.fold("goal").normal(6, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, goal)
    for steps in (6, 40):
        torch.testing.assert_close(ConjugateGradients(steps).solve(lambda x: matrix @ x, goal), expected)
    assert not ConjugateGradients(3).solve(lambda x: matrix @ x, torch.zeros_like(goal)).any()
    found, x = AdamDescent(7, 0.1).solve(lambda x: matrix @ x, goal), torch.zeros(6).double().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(7):
        optimizer.zero_grad()
        (0.5 * x @ matrix @ x - goal @ x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(found, x.detach())


@pytest.mark.parametrize("bias", [True, False])
def test_pushed_and_pulled_directions_are_adjoint(syn: Batch, bias: bool) -> None:
    network = network_of(bias=bias)
    readout = readout_of(network.state, 3, 8)
    assert readout == (LAST, "4.bias" if bias else None)
    linear = LinearizedNetwork(network.task, network.state, readout)
    direction = KEY.normal(8 * 4 + 8 + 8 * 8 + 8 + 3 * bias, dtype=torch.float64)
    _, outputs = linear.jvp(syn.inputs, direction)
    products = linear.recorded_products(syn.inputs)
    above = KEY.fold("above").normal(5, 3, dtype=torch.float64)
    assert float((outputs * above).sum()) == pytest.approx(float(direction @ products.vjp(above)), rel=1e-12)
    torch.testing.assert_close(products.vjp(above), linear.vjp(syn.inputs, above))
    torch.testing.assert_close(products.jvp(direction), outputs)
    torch.testing.assert_close(products.embedded, network.features(syn.inputs)[-1])


def test_the_readout_is_the_last_layer_of_its_shape() -> None:
    square = {name: torch.zeros(3, 3) for name in ("0.weight", "2.weight", "2.scale")}
    assert readout_of(NetworkState(square | {"0.bias": torch.zeros(3)}, {}), 3, 3) == ("2.weight", None)
    assert readout_of(NetworkState(square | {"2.bias": torch.zeros(3)}, {}), 3, 3) == ("2.weight", "2.bias")


def test_the_margin_is_cut_at_half() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.1, 0.0]])
    assert float(label_margin(labels, 0.5)) == pytest.approx(-(0.25 + 0.1) / 2)
    assert float(label_margin(labels)) == pytest.approx(-(0.5 + 0.1) / 2)


@pytest.mark.slow
def test_mirror_images_train_too() -> None:
    images, labels = KEY.uniform(30, 3, 2, 2), torch.arange(30) % 3
    task = image_task(
        (images, labels), test=(images, labels), model=lambda: nn.Sequential(nn.Flatten(), *smooth_mlp(4, inputs=12))
    )
    task = ImageTask(replace(task.data, mirror=True), task.network, task.model, task.device)
    network = Network(task, as_float64(task.init(KEY)))
    batches = (task.select(torch.arange(*span)) for span in ((3, 12), (0, 3)))
    real, syn = (batch.map(lambda t: t.double() if t.is_floating_point() else t) for batch in batches)
    syn = syn._replace(targets=KEY.normal(3, 3).double())
    both = with_mirror_images(syn)
    check_objective(
        MirroredImplicit(1e-2, EXACT, clip=False).double(), network, syn, real,
        oracle=lambda: float(ImplicitPerformance(5e-3, EXACT).double()(network, both, real, KEY).detach()),
    )  # fmt: skip


def test_wrong_compositions_are_refused(network: Network) -> None:
    without = BlobTask()
    without.num_classes = None
    with pytest.raises(ConfigError, match="at least 2 classes"):
        ImplicitPerformance().check(without)
    without.num_classes = 3
    ImplicitPerformance().check(without)
    with pytest.raises(ConfigError, match="l2 must be positive"):
        ImplicitPerformance(0.0)
    with pytest.raises(ConfigError, match="at least 1 step"):
        ConjugateGradients(0)
    with pytest.raises(ConfigError, match="rate is positive"):
        AdamDescent(3, 0.0)


class Bent(BlobTask):
    """Blobs whose outputs are no linear function of the embedding."""

    def predict(self, state, inputs, *, train=False, draws=None):  # type: ignore[no-untyped-def]
        output, buffers = super().predict(state, inputs, train=train, draws=draws)
        return output.sin(), buffers


def test_a_network_without_a_linear_end_is_refused_when_the_run_is_built() -> None:
    with pytest.raises(ConfigError, match="no linear function of its embedding"):
        ImplicitPerformance().check(Bent())
