import threading
from abc import ABC
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any, Generic, TypeVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from mmdistill.described import described_module
from mmdistill.errors import ConfigError, MmdistillWarning, UnsupportedError
from mmdistill.execution.precision import Precision
from mmdistill.graph.models import ModuleNetwork
from mmdistill.networks.best_state import Selection
from mmdistill.networks.fit import LiveTraining, SavedTraining, fit_networks, fit_steps
from mmdistill.networks.fit_protocol import FitProtocol, epoch_rate
from mmdistill.networks.module import FunctionalModule, record_initial_values
from mmdistill.networks.schedules import (
    EMPTY,
    AccuracyDriven,
    FreshNetworks,
    SteppedOnS,
    TrainedOnS,
    TrainedOnT,
    TrainedUntilOverfitting,
    UnreadNetwork,
    accuracy,
    sgd_step,
)
from mmdistill.networks.stacked import Loss
from mmdistill.objectives.base import Network, class_gradients
from mmdistill.runtime import Draws, global_draws_from, host_draws_from
from mmdistill.task import Batch, ClassBatch, NetworkState, Task, Tensors, take
from tests.toys import BlobTask, smooth_mlp

KEY = Draws(5)


def data(task: BlobTask, n: int = 12) -> Batch:
    return task.select(torch.arange(0, 90, 90 // n)[:n])


def fit(task: BlobTask, mode: str, protocol: FitProtocol, n: int = 3) -> NetworkState:
    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        assert isinstance(batch.inputs, Tensor)
        return task.loss(state, batch._replace(inputs=batch.inputs + noise["shift"])), state.buffers

    def shifts(draws: Draws, count: int) -> Tensors:
        return {"shift": 0.1 * draws.normal(count, 4).to(task.dtype)}

    def augment(draws: Draws, batch: Batch) -> Batch:
        assert isinstance(batch.inputs, Tensor)
        return batch._replace(inputs=batch.inputs + 0.1 * draws.normal(*batch.inputs.shape).to(task.dtype))

    return fit_networks(
        task.init, loss, data(task), protocol, n, KEY, noise=shifts, augment=augment, mode=mode,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_many_networks_at_once_equal_one_after_another(optimizer: str) -> None:
    task = BlobTask(dtype=torch.float64)
    protocol = FitProtocol(6, lr=0.05, optimizer=optimizer, batch=5)  # type: ignore[arg-type]
    together, apart = fit(task, "vmap", protocol), fit(task, "loop", protocol)
    for name, tensor in together.params.items():
        assert tensor.shape[0] == 3
        assert torch.allclose(tensor, apart.params[name], atol=1e-12)
        assert not torch.allclose(tensor[0], tensor[1])


@pytest.mark.parametrize("restart", [True, False])
def test_fitting_follows_torch_on_one_network(restart: bool) -> None:
    task = BlobTask(dtype=torch.float64)
    protocol = FitProtocol(10, lr=0.1, momentum=0.9, weight_decay=1e-2, batch=None, decay_at=(0.5,), restart=restart)
    whole = data(task)
    fitted = fit_networks(task.init, lambda s, b, z: (task.loss(s, b), s.buffers), whole, protocol, 1, KEY)
    module = smooth_mlp().double()
    module.load_state_dict(task.init(KEY.fold("init", 0)).params)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for rate in (0.1, 0.01):
        if restart:  # the optimizer starts afresh at the decay, momentum included
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(whole.inputs), whole.targets).backward()
            optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.allclose(fitted.params[name][0], parameter, atol=1e-12)


def test_given_steps_gather_momentum_at_rates_of_their_own() -> None:
    task, rates = BlobTask(dtype=torch.float64), (0.1, 0.2, 0.05)
    steps = task.select(torch.arange(0, 90, 10).view(3, 3).T)
    found = fit_steps(task.init, lambda s, b, z: (task.loss(s, b), s.buffers), steps, rates, 0.9, 1, KEY)
    state, momentum = task.init(KEY.fold("init", 0)), Tensors()
    for index, rate in enumerate(rates):
        state, momentum = sgd_step(task, state, momentum, take(steps, index), rate, 0.9, KEY)
    for name, tensor in state.params.items():
        torch.testing.assert_close(found.params[name][0], tensor)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradients_may_be_laid_out_otherwise_than_parameters(optimizer: str) -> None:
    """As those of compiled convolutions are; a fused optimizer on the CPU would mix them up."""
    start = KEY.normal(2, 3, 3, 3)
    data = Batch(torch.zeros(4, 1), torch.zeros(4), torch.ones(4))

    def fitted(layout: torch.memory_format) -> Tensor:
        goal = KEY.fold("goal").normal(2, 3, 3, 3).to(memory_format=layout)

        def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
            return (state.params["weight"] * goal).sum(), {}  # the gradient is the goal, as it is laid out

        protocol = FitProtocol(3, lr=0.1, optimizer=optimizer)  # type: ignore[arg-type]
        return fit_networks(
            lambda draws: NetworkState({"weight": start}, {}), loss, data, protocol, 2, KEY, mode="loop"
        ).params["weight"]

    assert torch.allclose(fitted(torch.channels_last), fitted(torch.contiguous_format))


def test_an_epoch_may_pass_over_the_data_several_times() -> None:
    """Of steps on all samples, one of three passes is three epochs."""
    task = BlobTask(dtype=torch.float64)
    protocol = FitProtocol(2, lr=0.1, momentum=0.0, batch=None, decay_at=(), passes=3)
    steps = FitProtocol(6, lr=0.1, momentum=0.0, batch=None, decay_at=())
    whole = data(task)

    def trained(protocol: FitProtocol) -> NetworkState:
        return fit_networks(task.init, lambda s, b, z: (task.loss(s, b), s.buffers), whole, protocol, 2, KEY)

    found, wanted = trained(protocol), trained(steps)
    assert all(torch.equal(tensor, wanted.params[name]) for name, tensor in found.params.items())


def test_a_training_goes_on_within_the_passes_of_an_epoch() -> None:
    """With minibatches, which each pass draws anew, and from any step of an epoch."""
    task = BlobTask(dtype=torch.float64)
    protocol = FitProtocol(2, lr=0.1, momentum=0.0, batch=40, decay_at=(), passes=3)
    stands: list[SavedTraining] = []
    seen: list[Tensor] = []

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        assert isinstance(batch.inputs, Tensor)
        seen.append(batch.inputs.detach().clone())
        return task.loss(state, batch), state.buffers

    def note(at: LiveTraining) -> None:
        state = NetworkState({name: t.detach().clone() for name, t in at.state.params.items()}, {})
        stands.append(SavedTraining(at.epoch, at.step, state, None))

    def trained(reached: SavedTraining | None = None) -> NetworkState:
        observe = note if reached is None else None
        return fit_networks(
            task.init, loss, data(task, 90), protocol, 1, KEY, mode="loop", observe=observe, resume_from=reached
        )

    end = trained()
    assert [(at.epoch, at.step) for at in stands][:4] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert len(stands) == 1 + 2 * 3 * 3  # of 90 samples, three minibatches a pass
    assert torch.equal(torch.cat(seen[:3]).sort(0).values, torch.cat(seen[3:6]).sort(0).values)
    assert not torch.equal(seen[0], seen[3])
    for index in (1, 4, 9, 14):
        again = trained(stands[index])
        assert all(torch.equal(tensor, end.params[name]) for name, tensor in again.params.items())


def test_selection_keeps_each_network_at_its_own_best_epoch() -> None:
    task = BlobTask()
    seen: list[Tensor] = []

    def select(states: NetworkState) -> Tensor:
        scores = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 1.0]])[len(seen)]
        seen.append(states.params["4.bias"].clone())
        return scores

    protocol = FitProtocol(3, lr=0.1, batch=None)
    best = fit_networks(
        task.init,
        lambda s, b, z: (task.loss(s, b), s.buffers),
        data(task),
        protocol,
        2,
        KEY,
        selection=Selection(select),
    )
    assert torch.equal(best.params["4.bias"], torch.stack([seen[0][0], seen[1][1]]))


def test_of_states_that_score_alike_the_earlier_is_kept() -> None:
    task = BlobTask()
    seen: list[Tensor] = []

    def select(states: NetworkState) -> Tensor:
        seen.append(states.params["4.bias"].clone())
        return torch.ones(2)

    protocol = FitProtocol(3, lr=0.1, batch=None)
    best = fit_networks(
        task.init, lambda s, b, z: (task.loss(s, b), s.buffers), data(task), protocol, 2, KEY,
        selection=Selection(select),
    )  # fmt: skip
    assert torch.equal(best.params["4.bias"], seen[0])
    assert not torch.equal(seen[0], seen[-1])


def test_the_rate_steps_down_at_whole_epochs_as_the_published_milestones_do() -> None:
    """IDC's are ``2 * epochs // 3`` and ``5 * epochs // 6``."""
    protocol = FitProtocol(1000, lr=1.0, decay_at=(2 / 3, 5 / 6), decay=0.2)
    rates = [epoch_rate(protocol, epoch) for epoch in (665, 666, 832, 833)]
    assert rates == pytest.approx([1.0, 0.2, 0.2, 0.04])


def test_the_rate_does_not_step_down_before_the_first_epoch() -> None:
    assert epoch_rate(FitProtocol(1, lr=0.1, decay_at=(0.5,)), 0) == 0.1
    assert epoch_rate(FitProtocol(2, lr=0.1, decay_at=(0.5,)), 1) < 0.1


def test_every_other_epoch_and_the_last_are_selected_from() -> None:
    task = BlobTask()
    seen: list[Tensor] = []

    def select(states: NetworkState) -> Tensor:
        seen.append(states.params["4.bias"].clone())
        return torch.tensor([float(len(seen))])

    def fitted(epochs: int) -> Tensor:
        protocol = FitProtocol(epochs, lr=0.1, batch=None, decay_at=())
        return fit_networks(
            task.init, lambda s, b, z: (task.loss(s, b), s.buffers), data(task), protocol, 1, KEY,
            selection=Selection(select, 2) if epochs == 5 else None,
        ).params["4.bias"]  # fmt: skip

    last = fitted(5)
    assert len(seen) == 3
    for found, epochs in zip(seen, (2, 4, 5), strict=True):
        assert torch.equal(found, last if epochs == 5 else fitted(epochs))


def test_the_rate_runs_over_all_steps_with_those_of_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    task = BlobTask()
    seen: list[tuple[int, int]] = []

    def watched(protocol: FitProtocol, step: int, steps: int) -> float:
        seen.append((step, steps))
        return 1.0

    monkeypatch.setattr("mmdistill.networks.fit.rate_factor", watched)
    protocol = FitProtocol(3, lr=0.1, batch=60)
    fit_networks(task.init, lambda s, b, z: (task.loss(s, b), s.buffers), data(task, 90), protocol, 1, KEY)
    assert seen == [(step, 6) for step in range(6)]


def test_protocols_that_cannot_be_are_refused() -> None:
    for epochs, batch in ((-1, 256), (5, 0)):
        with pytest.raises(ConfigError, match=r"(epochs|batch) is a whole number"):
            FitProtocol(epochs, batch=batch)


def test_nothing_to_fit_is_refused() -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="at least one network"):
        fit(task, "vmap", FitProtocol(1), n=0)


def test_modules_are_initialised_as_their_constructors_do() -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(16, 16), nn.Flatten(), nn.Linear(64, 500))

    direct = FunctionalModule(factory).init(KEY)
    torch.manual_seed(0)
    reference = factory().state_dict()
    for name, parameter in direct.params.items():
        assert parameter.shape == reference[name].shape
        assert float(parameter.std()) == pytest.approx(float(reference[name].std()), rel=0.15)
        assert float(parameter.abs().max()) <= float(reference[name].abs().max()) * 1.1 + 1e-6


def test_what_a_constructor_sets_itself_is_drawn_by_it() -> None:
    """In each way that constructors have."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normal, self.data, self.new = nn.Linear(50, 40), nn.Linear(50, 40), nn.Linear(50, 40)
            self.norm = nn.GroupNorm(2, 40)
            nn.init.kaiming_normal_(self.normal.weight)
            self.data.weight.data.mul_(3)
            self.new.weight = nn.Parameter(torch.randn(40, 50))
            nn.init.zeros_(self.norm.weight)

    for name in ("normal", "data", "new", "norm"):

        def factory(name: str = name) -> nn.Module:
            return nn.Sequential(getattr(Own(), name), nn.Linear(3, 3))

        state, same, other = (FunctionalModule(factory).init(KEY.fold(key)) for key in ("a", "a", "b"))
        found, built = state.params["0.weight"], factory().state_dict()["0.weight"]
        assert float(found.std()) == pytest.approx(float(built.std()), rel=0.1)
        assert torch.equal(found, same.params["0.weight"])
        assert name == "norm" or not torch.equal(found, other.params["0.weight"])


def test_layers_are_drawn_in_their_own_format() -> None:
    network = FunctionalModule(lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double())
    assert {tensor.dtype for tensor in network.init(KEY).params.values()} == {torch.float64}


def test_common_layers_are_drawn_without_their_factory() -> None:
    made: list[int] = []

    def factory() -> nn.Module:
        made.append(1)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.GroupNorm(16, 16), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 5)
        )

    module = FunctionalModule(factory)
    module.init(KEY)
    assert len(made) == 1


def test_drawing_by_a_factory_moves_no_global_generator() -> None:
    before = torch.get_rng_state()
    with host_draws_from(7):
        first = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(first, torch.rand(3))
    torch.set_rng_state(before)
    with patch("torch.manual_seed", side_effect=AssertionError):
        FunctionalModule(lambda: nn.Sequential(Scale(), nn.Linear(4, 3))).init(KEY)
    assert torch.equal(torch.get_rng_state(), before)


class Fixed(nn.Linear):
    """Draws a tensor that is neither learned nor a buffer."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.mask = torch.rand(4)

    def forward(self, x: Tensor, edge_index: Tensor | None = None) -> Tensor:
        return super().forward(x * self.mask)


def own_network(kind: str, factory: Callable[[], nn.Module]) -> nn.Module:
    return FunctionalModule(factory).module if kind == "module" else ModuleNetwork(factory).functional.module


@pytest.mark.parametrize("kind", ["module", "graph network"])
def test_a_factory_draws_by_a_seed_of_its_own_and_in_turn_with_other_threads(kind: str) -> None:
    drawn, waiting = list[Tensor](), list[bool]()

    def draw() -> None:
        with host_draws_from(7):
            drawn.append(torch.rand(3))

    def factory() -> nn.Module:
        if not waiting:
            other.start()
            other.join(0.2)
            waiting.append(not drawn)
        return Fixed()

    torch.manual_seed(0)
    other = threading.Thread(target=draw, daemon=True)
    first = own_network(kind, factory)
    other.join(20)
    assert waiting == [True]
    assert torch.equal(drawn[0], torch.rand(3, generator=torch.Generator().manual_seed(7)))
    torch.manual_seed(1)
    assert torch.equal(own_network(kind, Fixed).mask, first.mask)  # type: ignore[arg-type]


def test_dropout_by_a_key_moves_no_global_generator() -> None:
    module = FunctionalModule(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))
    state, inputs = module.init(KEY), torch.ones(9, 4)
    torch.manual_seed(KEY.fold("dropout").integer())
    expected = module(state, inputs, train=True)[0]
    before = torch.get_rng_state()
    with patch("torch.manual_seed", side_effect=AssertionError):  # which would seed those of all devices
        found = module(state, inputs, train=True, draws=KEY)[0]
    assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_of_devices_the_tasks_own_alone_is_seeded_and_put_back() -> None:
    generators = tuple(torch.Generator().manual_seed(seed) for seed in (1, 2))  # in place of those of two devices
    before = [generator.get_state() for generator in generators]
    with patch("torch.cuda.init"), patch("torch.cuda.default_generators", generators):
        with global_draws_from(7, torch.device("cuda", 1)):
            assert [generator.initial_seed() for generator in generators] == [1, 7]
        with global_draws_from(7, torch.device("cpu")):
            assert [generator.initial_seed() for generator in generators] == [1, 2]
    assert all(torch.equal(own.get_state(), state) for own, state in zip(generators, before, strict=True))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Zero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))


def test_unknown_layers_fall_back_to_the_factory() -> None:
    before = torch.random.get_rng_state()
    module = FunctionalModule(lambda: nn.Sequential(Scale(), nn.Linear(4, 3)))
    one, same, other = (module.init(KEY.fold(name)) for name in ("a", "a", "b"))
    assert torch.equal(one.params["0.scale"], same.params["0.scale"])
    assert not torch.equal(one.params["0.scale"], other.params["0.scale"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_factory_makes_networks() -> None:
    with pytest.raises(ConfigError, match=r"a function that makes a fresh network each time .* lambda: Sequential"):
        FunctionalModule(smooth_mlp())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"must return an nn\.Module, and returned None"):
        FunctionalModule(lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match=r"lazy layers, .* run it once on a dummy input"):
        FunctionalModule(lambda: nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ConfigError, match=r"parameter 'weight' of the network is frozen, .* \(register_buffer\)"):
        FunctionalModule(lambda: nn.Linear(3, 2).requires_grad_(False))


def test_networks_are_new_ones_each_time() -> None:
    net, before = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), torch.get_rng_state()
    with pytest.raises(
        ConfigError, match=r"one and the same network twice, .* lambda: Sequential\(\.\.\.\) or the class"
    ):
        FunctionalModule(lambda: net)
    assert not any(module._forward_pre_hooks for module in net.modules())
    for alike in (lambda: deepcopy(net), lambda: nn.Sequential(Zero(), nn.Flatten())):
        with pytest.warns(MmdistillWarning, match="all networks begin alike: .* equal weights twice, as of a copy"):
            FunctionalModule(alike)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_factory_is_asked_twice_where_networks_come_of_it_alone() -> None:
    made: list[int] = []

    def factory() -> nn.Module:
        made.append(1)
        return nn.Sequential(Scale(), nn.Linear(4, 3))

    FunctionalModule(factory)
    assert len(made) == 2


def test_one_name_of_features_is_not_read_as_letters() -> None:
    named = FunctionalModule(lambda: nn.Sequential(OrderedDict(body=nn.Linear(4, 5), head=nn.Linear(5, 3))), "head")
    assert named.feature_names == ("head",)


def test_features_are_found_by_name() -> None:
    module = FunctionalModule(smooth_mlp, features=["1", "4"])
    state, x = module.init(KEY), KEY.fold("x").normal(5, 4)
    first, last = module.features(state, x)
    hidden = torch.tanh(x @ state.params["0.weight"].T + state.params["0.bias"])
    assert torch.allclose(first, hidden)
    logits, _ = module(state, x)
    assert torch.allclose(last @ state.params["4.weight"].T + state.params["4.bias"], logits, atol=1e-6)
    with pytest.raises(ConfigError, match="no submodule named 'head'"):
        FunctionalModule(smooth_mlp, features=["head"])
    bare = FunctionalModule(lambda: nn.Sequential(nn.Conv2d(1, 2, 3)))  # which methods may use that read no features
    with pytest.raises(UnsupportedError, match=r"no nn\.Linear"):
        bare.features(bare.init(KEY), torch.zeros(1, 1, 3, 3))


def test_fresh_networks_differ_by_step_and_forget() -> None:
    task, schedule = BlobTask(), FreshNetworks()
    first = schedule.fetch(task, EMPTY, KEY.fold(1))
    second = schedule.fetch(task, schedule.advance(task, first, lambda: data(task), KEY), KEY.fold(2))
    assert first.network is not None
    assert second.network is not None
    assert not torch.equal(first.network.params["0.weight"], second.network.params["0.weight"])
    anew = schedule.fetch(task, first, KEY.fold(2)).network  # which has not aged
    assert anew is not None
    assert torch.equal(anew.params["0.weight"], second.network.params["0.weight"])


def test_a_network_that_nothing_reads_is_drawn_once() -> None:
    task, schedule = BlobTask(), UnreadNetwork()
    first = schedule.fetch(task, EMPTY, KEY.fold(1))
    second = schedule.fetch(task, schedule.advance(task, first, lambda: data(task), KEY), KEY.fold(2))
    assert second.network is first.network


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_trained_networks_age_train_and_start_afresh(beta: float) -> None:
    task, schedule = BlobTask(), TrainedOnS(outer_steps=3, inner_steps=2, lr=0.1, momentum=beta)
    syn = data(task)
    state = schedule.fetch(task, EMPTY, KEY)
    initial = state.network
    assert initial is not None
    for age in (1, 2):
        state = schedule.fetch(task, schedule.advance(task, state, lambda: syn, KEY.fold(age)), KEY.fold(age))
        assert state.age == age
    assert state.network is not None
    by_hand, momentum = initial, {}
    for _ in range(4):
        by_hand, momentum = sgd_step(task, by_hand, momentum, syn, 0.1, beta, KEY)
    assert torch.allclose(state.network.params["0.weight"], by_hand.params["0.weight"], atol=1e-6)
    assert schedule.advance(task, state, lambda: syn, KEY) == EMPTY


def test_an_inner_step_is_an_epoch_or_one_minibatch() -> None:
    task, syn = BlobTask(), data(BlobTask())
    count = len(syn.weight)
    epoch, minibatch = (kind(batch=count // 2).minibatches(task, syn, KEY) for kind in (TrainedOnS, SteppedOnS))
    assert [len(batch.weight) for batch in epoch] == [count // 2] * 2
    assert [len(batch.weight) for batch in minibatch] == [count // 2]
    assert torch.equal(minibatch[0].inputs, epoch[0].inputs)  # type: ignore[arg-type]


def test_minibatch_after_minibatch_is_taken_by_adam() -> None:
    task = BlobTask()
    syn, schedule = data(task), SteppedOnS(outer_steps=9, inner_steps=2, lr=0.01, batch=1000)
    state = schedule.fetch(task, EMPTY, KEY)
    assert state.network is not None
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in state.network.params.items()}
    optimizer = torch.optim.Adam(theirs.values(), lr=0.01)
    for _ in range(3):
        state = schedule.advance(task, state, lambda: syn, KEY)
        for _ in range(2):
            optimizer.zero_grad()
            task.loss(NetworkState(theirs, {}), syn, train=True, draws=KEY).backward()
            optimizer.step()
    for name, tensor in theirs.items():
        torch.testing.assert_close(state.network.params[name], tensor.detach(), rtol=1e-5, atol=1e-6)


def test_networks_trained_on_the_real_set_use_real_batches() -> None:
    task, schedule = BlobTask(), TrainedOnT(outer_steps=5, inner_steps=200, lr=0.1, momentum=0.5, batch=32)

    def never() -> Batch:
        return data(task)

    state = schedule.advance(task, schedule.fetch(task, EMPTY, KEY), never, KEY)
    assert state.network is not None
    whole = task.select(torch.arange(90))
    logits, _ = task.predict(state.network, whole.inputs)
    assert float((logits.argmax(1) == whole.targets).float().mean()) > 0.9


def test_minibatches_are_prepared_and_weights_decay() -> None:
    task = BlobTask(dtype=torch.float64)
    seen: list[Batch] = []

    def prepare(own: Task, draws: Draws, batch: Batch) -> Batch:
        assert own is task
        assert isinstance(batch.inputs, Tensor)
        seen.append(batch._replace(inputs=batch.inputs + draws.normal(4).double()))
        return seen[-1]

    schedule = TrainedOnT(outer_steps=5, inner_steps=2, lr=0.1, batch=6, weight_decay=0.3, prepare=prepare)
    start = schedule.fetch(task, EMPTY, KEY)
    end = schedule.advance(task, start, lambda: data(task), KEY)
    assert start.network is not None
    assert end.network is not None
    params = start.network.params
    for batch in seen:
        gradients = torch.func.grad(lambda p, b: task.loss(NetworkState(p, {}), b))(params, batch)
        params = {name: p - 0.1 * (gradients[name] + 0.3 * p) for name, p in params.items()}
    assert len(seen) == 2
    assert all(torch.allclose(params[name], end.network.params[name], atol=1e-12) for name in params)


def test_training_stops_when_real_samples_are_fitted_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    task, syn = BlobTask(), data(BlobTask())
    schedule = TrainedUntilOverfitting(outer_steps=9, inner_steps=30, lr=0.5, momentum=0.9, watched=40)
    start = schedule.fetch(task, EMPTY, KEY)
    seen: list[Batch] = []
    sample_real = BlobTask.sample_real

    def sampled(self: BlobTask, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        batch = sample_real(self, draws, classes, n)
        assert isinstance(batch, Batch)
        seen.append(batch)
        return batch

    monkeypatch.setattr(BlobTask, "sample_real", sampled)
    end = schedule.advance(task, start, lambda: syn, KEY)
    (real,) = seen  # one minibatch for the whole inner loop
    assert real.weight.shape == (40,)
    # the published rule, step by step in torch's own optimizer: stop after the first epoch that raises the real loss
    assert start.network is not None
    params = {name: p.clone().requires_grad_() for name, p in start.network.params.items()}
    optimizer = torch.optim.SGD(params.values(), lr=0.5, momentum=0.9)
    losses = [task.loss(NetworkState(params, {}), real).item()]
    while len(losses) <= 30:
        optimizer.zero_grad()
        task.loss(NetworkState(params, {}), syn).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(task.loss(NetworkState(params, {}), real).item())
        if losses[-1] > losses[-2]:
            break
    assert 2 < len(losses) < 31
    assert end.network is not None
    assert all(torch.allclose(params[name], end.network.params[name], atol=1e-10) for name in params)


@pytest.mark.parametrize("change", [{"batch": 0}, {"outer_steps": 0}, {"inner_steps": -1}])
@pytest.mark.parametrize("kind", [TrainedOnS, TrainedOnT, TrainedUntilOverfitting, AccuracyDriven])
def test_trainings_that_cannot_be_are_refused(kind: type[TrainedOnS], change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="minibatches of at least 1 sample"):
        kind(**change)


def test_watching_needs_a_sample() -> None:
    with pytest.raises(ConfigError, match="at least 1 real sample"):
        TrainedUntilOverfitting(watched=0)


def by_hand(schedule: AccuracyDriven, accuracies: list[float], inner: bool) -> int:
    """After how many accuracies the published rule stops, from its description: a queue of the last ``window``."""
    queue: list[float] = []
    for count, value in enumerate(accuracies, 1):
        queue.append(value)
        if len(queue) == schedule.window:
            gap = max(queue) - min(queue)
            if gap > schedule.moved if inner else gap < schedule.settled:
                return count
            queue.pop(0)
    return len(accuracies)


def test_accuracy_drives_both_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    task, syn = BlobTask(), data(BlobTask())
    schedule = AccuracyDriven(outer_steps=40, inner_steps=12, lr=0.05, window=4, settled=0.5, moved=0.3, watched=30)
    seen: dict[str, list[float]] = {"outer": [], "inner": []}
    real_accuracy = AccuracyDriven.real_accuracy

    def watched(self: AccuracyDriven, task: BlobTask, network: NetworkState, draws: Draws) -> Tensor:
        value = real_accuracy(self, task, network, draws)
        seen[next(name for name in seen if name in draws.path)].append(float(value))
        return value

    monkeypatch.setattr(AccuracyDriven, "real_accuracy", watched)
    state, ages = schedule.fetch(task, EMPTY, KEY), 0
    while True:
        seen["inner"].clear()
        state = schedule.advance(task, state, lambda: syn, KEY.fold(ages))
        ages += 1
        if state == EMPTY:
            break
        assert len(seen["inner"]) == by_hand(schedule, seen["inner"], inner=True) <= 12
    assert ages == len(seen["outer"]) == by_hand(schedule, seen["outer"], inner=False) < 40


@pytest.mark.parametrize("inner", [[0.0, 0.0, 0.0, 0.0, 0.1, 0.5], [0.5, 0.1, 0.5, 0.5]])
def test_accuracies_are_watched_over_the_last_window(monkeypatch: pytest.MonkeyPatch, inner: list[float]) -> None:
    task, syn = BlobTask(), data(BlobTask())
    schedule = AccuracyDriven(outer_steps=40, inner_steps=12, lr=0.05, window=4, settled=0.1, moved=0.3, watched=30)
    scripts = {"outer": [0.0, 0.9, 0.5, 0.5, 0.5, 0.5], "inner": inner}
    left = {"outer": list(scripts["outer"]), "inner": list[float]()}

    def scripted(self: AccuracyDriven, task: Task, network: NetworkState, draws: Draws) -> Tensor:
        return torch.tensor(left[next(name for name in left if name in draws.path)].pop(0))

    monkeypatch.setattr(AccuracyDriven, "real_accuracy", scripted)
    state = schedule.fetch(task, EMPTY, KEY)
    for age in range(1, 7):
        left["inner"] = list(scripts["inner"])
        state = schedule.advance(task, state, lambda: syn, KEY)
        assert (state == EMPTY) == (age == 6)
        assert age == 6 or not left["inner"]


def test_samples_of_weight_0_have_no_accuracy() -> None:
    task = BlobTask()
    network, batch = task.init(KEY), data(task)
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(batch.targets, Tensor)
    hits = task.predict(network, batch.inputs)[0].argmax(1) == batch.targets
    assert 0 < int(hits.sum()) < len(hits)
    assert float(accuracy(task, network, batch)) == pytest.approx(float(hits.double().mean()))
    assert float(accuracy(task, network, batch._replace(weight=hits.float()))) == 1.0


def test_bad_windows_are_refused() -> None:
    for changes in ({"window": 1}, {"watched": 0}, {"moved": -0.1}, {"settled": -0.1}):
        with pytest.raises(ConfigError, match="accuracies are watched"):
            AccuracyDriven(**changes)  # type: ignore[arg-type]


def test_momentum_follows_its_equation() -> None:
    task = BlobTask(dtype=torch.float64)
    syn, start = data(task), task.init(KEY)
    one, m1 = sgd_step(task, start, {}, syn, 0.1, 0.9, KEY)
    two, m2 = sgd_step(task, one, m1, syn, 0.1, 0.9, KEY)
    gradient = torch.func.grad(lambda p: task.loss(NetworkState(p, {}), syn))(one.params)
    for name, g in gradient.items():
        assert torch.allclose(m2[name], 0.9 * m1[name] + g)
        assert torch.allclose(two.params[name], one.params[name] - 0.1 * m2[name])


def test_momentum_gathers_the_decay_as_torch_does_it() -> None:
    task = BlobTask(dtype=torch.float64)
    syn, state, momentum = data(task), task.init(KEY), Tensors()
    params = {name: p.clone().requires_grad_() for name, p in state.params.items()}
    optimizer = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9, weight_decay=0.3)
    for _ in range(2):
        state, momentum = sgd_step(task, state, momentum, syn, 0.1, 0.9, KEY, weight_decay=0.3)
        optimizer.zero_grad()
        task.loss(NetworkState(params, {}), syn).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(torch.allclose(params[name], p, atol=1e-12) for name, p in state.params.items())


def test_a_long_training_compiles_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked = BlobTask(), list[Loss]()

    def kept(function: Loss) -> Loss:
        asked.append(function)
        return function

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        return task.loss(state, batch), state.buffers

    monkeypatch.setattr("mmdistill.networks.stacked.compiled_once", kept)
    data, found = task.select(torch.arange(20)), []
    for worth in (1e30, 1.0):
        monkeypatch.setattr("mmdistill.execution.compilation.WORTH_OPERATIONS", worth)
        protocol = FitProtocol(epochs=2, batch=8)
        found.append(fit_networks(task.init, loss, data, protocol, 2, Draws(0), mode="loop", pure=True))
    assert asked == [loss]
    assert all(torch.equal(found[0].params[name], found[1].params[name]) for name in found[0].params)


def test_deciding_whether_to_compile_moves_no_statistics() -> None:
    network = FunctionalModule(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        assert isinstance(batch.targets, Tensor)
        output, buffers = network(state, batch.inputs, train=True)
        return nn.functional.cross_entropy(output, batch.targets), buffers

    found = [
        fit_networks(network.init, loss, data(BlobTask()), FitProtocol(3), 2, KEY, mode="loop", pure=pure)
        for pure in (False, True)
    ]
    for name, tensor in found[0].buffers.items():
        assert torch.equal(tensor, found[1].buffers[name])


@pytest.mark.parametrize(
    "wrong",
    [
        {"visits": 0},
        {"passes": 0},
        {"warmup": -1},
        {"optimizer": "foo"},
        {"decay_at": (2.0,)},
        {"lr": -1.0},
        {"epochs": -1},
        {"momentum": float("nan")},
    ],
    ids=str,
)
def test_protocols_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FitProtocol(**{"epochs": 1, **wrong})


def test_layers_are_as_before_when_threads_have_noted_how_they_start() -> None:
    before = vars(nn.Linear)["reset_parameters"]
    inside = threading.Event()

    def other() -> None:
        inside.set()
        with record_initial_values() as starts:
            made = nn.Linear(2, 2)
            assert made in starts

    with ThreadPoolExecutor(1) as pool:
        with record_initial_values() as starts:
            later = pool.submit(other)
            inside.wait(10)
            made = nn.Linear(2, 2)
        later.result()
    assert made in starts
    assert vars(nn.Linear)["reset_parameters"] is before


def test_a_head_may_learn_faster_than_its_body() -> None:
    from mmdistill.networks.fit import _make_optimizer, _set_rate
    from mmdistill.networks.fit_protocol import FitProtocol

    params = {"body.weight": torch.zeros(1, 2), "head.weight": torch.zeros(1, 2), "head.bias": torch.zeros(1, 1)}
    protocol = FitProtocol(1, optimizer="adam", weight_decay=0.0, faster=(("head.", 10.0),))
    optimizer = _make_optimizer(protocol, params, 0.1)
    _set_rate(optimizer, 0.01)
    for tensor in params.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    moved = {name: round(float(tensor.abs().max()), 5) for name, tensor in params.items()}
    assert moved == {"body.weight": 0.01, "head.weight": 0.1, "head.bias": 0.1}


def test_of_weight_decay_by_matrices_biases_and_norms_are_spared() -> None:
    from mmdistill.networks.fit import _make_optimizer
    from mmdistill.networks.fit_protocol import FitProtocol

    shapes = {"layer.weight": (1, 2, 2), "layer.bias": (1, 2), "norm.weight": (1, 2), "tokens": (1, 2, 2)}
    params = {name: torch.ones(shape) for name, shape in shapes.items()}
    for tensor in params.values():
        tensor.grad = torch.zeros_like(tensor)
    _make_optimizer(FitProtocol(1, optimizer="adamw-matrices", weight_decay=0.5), params, 0.1).step()
    left = {name: round(float(tensor.mean()), 5) for name, tensor in params.items()}
    assert left == {"layer.weight": 0.95, "layer.bias": 1.0, "norm.weight": 1.0, "tokens": 1.0}


class DropsByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(x, 0.5, self.training))


def test_dropout_called_as_a_function_follows_the_key() -> None:
    module = FunctionalModule(DropsByFunction)
    state, x = module.init(KEY), torch.ones(8, 4)
    one, same, other = (module(state, x, train=True, draws=KEY.fold(name))[0] for name in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("layer", "random"),
    [
        (nn.Dropout(0.5), True),
        (nn.LSTM(4, 4, 2, dropout=0.5), True),
        (nn.LSTM(4, 4), False),
        (nn.MultiheadAttention(4, 2), False),
        (Scale(), False),
    ],
)
def test_only_layers_that_drop_out_are_random(layer: nn.Module, random: bool) -> None:
    assert FunctionalModule(lambda: nn.Sequential(layer, nn.Linear(4, 3))).random is random


def wave(activation: str) -> nn.Module:
    """A network of a user's, whose classes look alike whatever they do."""

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

    def sine(self: Wave, x: Tensor) -> Tensor:
        return torch.sin(self.layer(x))

    def cosine(self: Wave, x: Tensor) -> Tensor:
        return torch.cos(self.layer(x))

    Wave.forward = {"sine": sine, "cosine": cosine}[activation]  # type: ignore[method-assign]
    return Wave()


def test_a_networks_description_follows_the_code_of_a_users_classes() -> None:
    assert described_module(wave("sine")) == described_module(wave("sine"))
    assert str(wave("sine")) == str(wave("cosine"))
    assert described_module(wave("sine")) != described_module(wave("cosine"))
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert described_module(plain) == str(plain)


Kind = TypeVar("Kind")


def flattening(features: int, start: int) -> nn.Module:
    """A network of a user's with a property and a static method, which also derives from classes of Python's own."""

    class Flat(nn.Module, ABC, Generic[Kind]):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, self.width)

        @property
        def width(self) -> int:
            return features if features < 9 else 3

        @staticmethod
        def flat(x: Tensor) -> Tensor:
            return x.flatten(start)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.flat(x))  # type: ignore[no-any-return]

    return Flat()


def test_a_networks_description_follows_properties_and_static_methods_of_a_users_classes_alone() -> None:
    lines = described_module(flattening(3, 1)).split("\n")
    assert lines == described_module(flattening(3, 1)).split("\n")
    assert [line.partition(": ")[0] for line in lines if line.startswith("code of ")] == [
        "code of flattening.<locals>.Flat"
    ]
    for other in (flattening(9, 1), flattening(3, 2)):
        assert str(other) == str(flattening(3, 1))
        assert described_module(other) != "\n".join(lines)


@pytest.mark.parametrize("precision", ["mixed", "bf16"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_gradients_of_all_classes_pass_through_norms_in_bfloat16(norm: type[nn.Module], precision: Precision) -> None:
    task = BlobTask()
    task.module = FunctionalModule(lambda: nn.Sequential(nn.Linear(4, 6), norm(6), nn.ReLU(), nn.Linear(6, 3)))
    network = Network(task, task.init(Draws(0)), precision=precision)
    batch = task.sample_real(Draws(1), torch.arange(3), 5)
    assert isinstance(batch, ClassBatch)
    together, apart = (class_gradients(network._replace(classes_at_once=n), batch) for n in (3, 1))
    for name, gradient in apart.items():
        assert torch.allclose(together[name], gradient, rtol=0.05, atol=0.02), name


class Residual(nn.Module):
    """A network of a user's, which attributes change that no layer shows."""

    def __init__(self, activation: Callable[[Tensor], Tensor], scales: tuple[float, ...]) -> None:
        super().__init__()
        self.activation, self.scales = activation, scales
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scales[0] * self.activation(self.layer(x))


def test_a_networks_description_follows_the_attributes_of_a_users_classes() -> None:
    described = described_module(Residual(torch.relu, (1.0,)))
    assert described == described_module(Residual(torch.relu, (1.0,)))
    assert "0x" not in described
    for other in (
        Residual(torch.tanh, (1.0,)),
        Residual(torch.relu, (2.0,)),
        Residual(lambda x: x, (1.0,)),
        Residual(partial(torch.clamp, min=0.5), (1.0,)),
        Residual(partial(torch.clamp, min=0.1), (1.0,)),
    ):
        assert described_module(other) != described
    halves = [Residual(partial(torch.clamp, min=least), (1.0,)) for least in (0.1, 0.5)]
    assert described_module(halves[0]) != described_module(halves[1])
    for network, mask in zip(halves, (torch.zeros(3), torch.ones(3)), strict=True):
        network.activation, network.mask = torch.relu, mask
    assert described_module(halves[0]) != described_module(halves[1])


def test_features_are_the_input_of_the_last_linear_layer_that_runs() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.unused = nn.Linear(5, 3), nn.Linear(4, 5), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).relu())

    network = FunctionalModule(HeadFirst)
    state, x = network.init(Draws(0)), Draws(1).normal(6, 4)
    (found,) = network.features(state, x)
    wanted = (x @ state.params["body.weight"].T + state.params["body.bias"]).relu()
    torch.testing.assert_close(found, wanted)


def test_a_network_without_parameters_is_refused() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(4, 3)]

    with pytest.raises(ConfigError, match=r"no parameters that torch knows of.* nn\.ModuleList"):
        FunctionalModule(Listed)
