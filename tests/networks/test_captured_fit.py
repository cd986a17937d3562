"""Networks trained by replays of one captured call, as on CUDA, against the sequential loop on the same streams."""

from functools import partial

import pytest
import torch
from torch import nn

from mmdistill.execution.capture import Replay
from mmdistill.execution.streams import side_streams
from mmdistill.image.models.layers import BatchNorm2d
from mmdistill.labels import soft_cross_entropy, weighted_mean
from mmdistill.networks import stacked
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import FunctionalModule
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors
from tests.execution.test_capture import RepeatedCall


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("protocol", [FitProtocol(6, batch=4), FitProtocol(8, batch=None, sam=0.1)])
def test_captured_training_equals_the_sequential_loop(protocol: FitProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    net = FunctionalModule(small_net)
    key = Draws(4)
    images, labels = key.normal(10, 1, 4, 4), key.integers(3, 10)  # minibatches of 4, 4 and 2: two shapes
    data = Batch(images, labels, torch.ones(10))

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[torch.Tensor, Tensors]:
        output, buffers = net(state, batch.inputs, train=True)
        return weighted_mean(soft_cross_entropy(output, batch.targets), batch.weight), buffers  # type: ignore[arg-type]

    plain = fit_networks(net.init, loss, data, protocol, 3, key, mode="loop")
    replays: list[Replay] = []

    def begin(self: stacked.GradientEngine, *args: object) -> None:
        self._replay = self._make_replay(RepeatedCall)
        replays.append(self._replay)

    monkeypatch.setattr(stacked.GradientEngine, "_begin", begin)
    captured = fit_networks(net.init, loss, data, protocol, 3, key, mode="loop")
    assert replays[0].captured
    for one, other in zip(plain, captured, strict=True):
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


def test_statistics_are_of_where_a_network_stands_not_of_uphill() -> None:
    """GSAM's code turns running statistics off for the second gradient."""
    net = FunctionalModule(small_net)
    data = Batch(Draws(4).normal(10, 1, 4, 4), Draws(5).integers(3, 10), torch.ones(10))

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[torch.Tensor, Tensors]:
        output, buffers = net(state, batch.inputs, train=True)
        return weighted_mean(soft_cross_entropy(output, batch.targets), batch.weight), buffers  # type: ignore[arg-type]

    found = [
        fit_networks(net.init, loss, data, FitProtocol(1, batch=None, sam=sam), 2, Draws(6), mode="loop")
        for sam in (0.0, 0.5)
    ]
    assert found[0].buffers
    for name, buffer in found[0].buffers.items():
        torch.testing.assert_close(found[1].buffers[name], buffer)
    assert any(not torch.equal(found[1].params[name], parameter) for name, parameter in found[0].params.items())


def test_streams_of_the_cpu_do_nothing() -> None:
    with side_streams(torch.device("cpu")) as streams:
        for _ in range(6):
            with next(streams):
                pass


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_captured_training_equals_the_sequential_loop_on_cuda(mode: str) -> None:
    net = FunctionalModule(
        partial(nn.Sequential, nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), device="cuda"
    )
    key = Draws(4, device=torch.device("cuda"))
    data = Batch(key.normal(10, 1, 4, 4), key.integers(3, 10), torch.ones(10, device="cuda"))

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[torch.Tensor, Tensors]:
        output, buffers = net(state, batch.inputs, train=True)
        return weighted_mean(soft_cross_entropy(output, batch.targets), batch.weight), buffers  # type: ignore[arg-type]

    protocol = FitProtocol(60, batch=4)
    found = [
        fit_networks(net.init, loss, data, protocol, 9, key, mode=mode, pure=pure)  # type: ignore[arg-type]
        for pure in (False, True)
    ]
    for name, tensor in found[0].params.items():
        assert torch.allclose(tensor, found[1].params[name], rtol=1e-3, atol=1e-5), name
