"""Forward over reverse mode, which torch has wrong for some norms, against reverse mode twice, for every norm."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.image.models import model_factory
from mmdistill.labels import soft_cross_entropy
from mmdistill.networks.forward_mode import BY_GROUPS, ExactNorms
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.statistics import copied
from mmdistill.networks.unroll import Unrolling, unroll
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors

KEY = Draws(5)
STEPS, SAMPLES, CLASSES = 2, 3, 3
OWN = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "LayerNorm": lambda: nn.LayerNorm([4, 8, 8]),
    "RMSNorm": lambda: nn.RMSNorm([4, 8, 8]),
}


def own(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm(), nn.Tanh(), nn.Flatten(), nn.Linear(256, CLASSES))


def gradients(factory: Callable[[], nn.Module], side: int, mode: str) -> list[Tensor]:
    """Return those of the images and the rates through an unrolled training, in float64."""
    module = FunctionalModule(factory)
    state = module.init(KEY.fold("init"))
    params = {name: p.double() for name, p in state.params.items()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in state.buffers.items()}

    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        logits, _ = module(NetworkState(params, copied(buffers)), batch.inputs, train=True)
        assert isinstance(batch.targets, Tensor)
        return soft_cross_entropy(logits, batch.targets).mean()

    images = KEY.fold("x").normal(STEPS, SAMPLES, 1, side, side).double().requires_grad_()
    labels = KEY.fold("y").normal(STEPS, SAMPLES, CLASSES).double().softmax(-1)
    rates = torch.full((STEPS,), 0.1, dtype=torch.float64, requires_grad=True)
    steps = Batch(images, labels, torch.ones(STEPS, SAMPLES, dtype=torch.float64))
    end = unroll(loss, params, steps, rates, Unrolling(mode=mode, keep=0))  # type: ignore[arg-type]
    reached = sum(p.sin().sum() for p in end.values())
    assert isinstance(reached, Tensor)
    return list(torch.autograd.grad(reached, [images, rates]))


def assert_right(factory: Callable[[], nn.Module], side: int) -> None:
    for found, wanted in zip(gradients(factory, side, "forward"), gradients(factory, side, "reverse"), strict=True):
        assert float((found - wanted).norm()) <= 1e-8 * float(wanted.norm())


@pytest.mark.parametrize("norm", ["nn", "in", "bn", "ln", "gn"])
def test_norms_of_the_library(norm: str) -> None:
    assert_right(lambda: model_factory(f"convnet-d2-w4-{norm}", (1, 8, 8), CLASSES)(), 8)


@pytest.mark.parametrize("name", ["freponet-d2-w4-bn", "vit-d1-w8", "resnet18-w4-bn"])
def test_networks_of_the_library(name: str) -> None:
    assert_right(lambda: model_factory(name, (1, 32, 32), CLASSES)(), 32)


@pytest.mark.parametrize("norm", OWN)
def test_norms_of_a_network_of_ones_own(norm: str) -> None:
    assert_right(lambda: own(OWN[norm]), 8)


def test_the_norms_have_the_values_of_torch() -> None:
    x = KEY.fold("values").normal(3, 4, 2, 5).double()
    scale, shift, mean = (KEY.fold(name).normal(4).double() for name in ("scale", "shift", "mean"))
    full = KEY.fold("full").normal(2, 5).double()
    calls: list[Callable[[], Tensor]] = [
        lambda: F.layer_norm(x, [2, 5], full, full, eps=0.1),
        lambda: F.layer_norm(x, [2, 5]),
        lambda: F.batch_norm(x, None, None, scale, shift, training=True, eps=0.1),
        lambda: F.batch_norm(x[..., 0, 0], None, None, scale, shift, training=True),
        lambda: F.batch_norm(x, mean, mean.square(), scale, shift),
        lambda: F.instance_norm(x, weight=scale, bias=shift, eps=0.1),
        lambda: F.instance_norm(x, mean, mean.square(), scale, shift, use_input_stats=False),
    ]
    for call in calls:
        wanted = call()
        with ExactNorms():
            torch.testing.assert_close(call(), wanted)


@pytest.mark.parametrize("norm", BY_GROUPS)
def test_torch_still_has_them_wrong(norm: Callable[..., Tensor]) -> None:
    """Once this fails, the module is no longer needed."""
    x = KEY.fold("x").normal(4, 6, 5).double()
    v, c = KEY.fold("v").normal(4, 6, 5).double(), KEY.fold("c").normal(4, 6, 5).double()
    options = {"normalized_shape": [5]} if norm is F.layer_norm else {"running_mean": None, "running_var": None}
    options |= {"training": True} if norm is F.batch_norm else {}

    def value(x: Tensor) -> Tensor:
        return (norm(x, **options).sin() * c).sum()

    found = torch.func.grad(lambda x: torch.func.jvp(value, (x,), (v,))[1])(x)
    wanted = torch.func.grad(lambda x: (torch.func.grad(value)(x) * v).sum())(x)
    assert float((found - wanted).norm()) > 0.01 * float(wanted.norm())
