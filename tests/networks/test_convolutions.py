"""Convolutions that are differentiated twice by convolutions of their own shapes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.networks.convolutions import Shape, TwiceDifferentiable, convolution
from mmdistill.networks.unroll import StepLoss, Unrolling, unroll
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Tensors

KEY = Draws(11)
SHAPES = {
    "plain": ((2, 3, 5, 5), (4, 3, 3, 3), Shape((1, 1), (1, 1), (1, 1), 1)),
    "uneven": ((2, 3, 7, 6), (4, 3, 3, 2), Shape((2, 1), (0, 1), (1, 2), 1)),
    "groups": ((2, 4, 5, 5), (6, 2, 3, 3), Shape((1, 1), (1, 1), (1, 1), 2)),
    "a line": ((2, 3, 7), (4, 3, 3), Shape((2,), (1,), (1,), 1)),
    "a volume": ((1, 2, 4, 4, 4), (2, 2, 3, 3, 3), Shape((1,) * 3, (1,) * 3, (1,) * 3, 1)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_second_derivatives_are_those_of_finite_differences(kind: str) -> None:
    of_x, of_weight, shape = SHAPES[kind]
    x = KEY.fold("x").normal(*of_x).double().requires_grad_()
    weight = KEY.fold("w").normal(*of_weight).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: convolution(a, b, shape), (x, weight))
    assert torch.autograd.gradgradcheck(lambda a, b: convolution(a, b, shape), (x, weight))


def test_what_needs_no_gradient_gets_none() -> None:
    x, weight = KEY.normal(2, 3, 5, 5).double(), KEY.fold("w").normal(4, 3, 3, 3).double()
    shape = SHAPES["plain"][2]
    for own, other in ((x, weight), (weight, x)):
        moved = own.clone().requires_grad_()
        out = convolution(moved, other, shape) if own is x else convolution(other, moved, shape)
        (gradient,) = torch.autograd.grad(out.square().sum(), moved, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), moved)
        plain = own.clone().requires_grad_()
        torch_out = F.conv2d(plain, other, padding=1) if own is x else F.conv2d(other, plain, padding=1)
        (wanted,) = torch.autograd.grad(torch_out.square().sum(), plain, create_graph=True)
        torch.testing.assert_close(second, torch.autograd.grad(wanted.square().sum(), plain)[0])


def test_convolutions_in_float32_and_of_words_stay_those_of_torch() -> None:
    x, weight = KEY.normal(2, 3, 5, 5).requires_grad_(), KEY.fold("w").normal(4, 3, 3, 3)
    with TwiceDifferentiable():
        found = F.conv2d(x, weight, None, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            worded = F.conv2d(x, weight, padding="same")
            lowered = F.conv2d(x, weight, torch.ones(4), padding=1)
    names = [type(out.grad_fn).__name__ for out in (found, worded, lowered)]
    assert names[:2] == ["ConvolutionBackward0", "ConvolutionBackward0"]
    assert names[2] == "AddBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(lowered, F.conv2d(x, weight, torch.ones(4), padding=1), rtol=0.02, atol=0.02)


def two_layers(lowered: bool) -> StepLoss:
    """Return the loss of two convolutions: the gradient through the second one depends on its weights."""

    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered, cache_enabled=False):
            hidden = F.conv2d(batch.inputs, params["first"], padding=1)
            out = F.conv2d(hidden.tanh(), params["second"], padding=1)
        return (out.float() if lowered else out).tanh().square().sum() / 10_000

    return loss


def test_students_in_bfloat16_have_the_right_adjoint() -> None:
    """Ten images of 16 x 16, for which torch's own formula gives noise on CPUs with AMX."""
    start = {"first": KEY.fold("a").normal(32, 3, 3, 3) / 5, "second": KEY.fold("b").normal(32, 32, 3, 3) / 17}
    images = KEY.fold("x").normal(1, 10, 3, 16, 16)
    found = {}
    for dtype, lowered in ((torch.float64, False), (torch.float32, True)):
        params = {name: tensor.to(dtype).requires_grad_() for name, tensor in start.items()}
        batch = Batch(images.to(dtype), torch.zeros(1, 10, dtype=torch.int64), torch.ones(1, 10, dtype=dtype))
        end = unroll(two_layers(lowered), params, batch, 1.0, Unrolling())["first"]
        reached = (end * KEY.fold("e").normal(*end.shape).to(dtype)).sum()
        (found[lowered],) = torch.autograd.grad(reached, params["second"])
    apart = (found[True].double() - found[False]).norm() / found[False].norm()
    assert apart < 0.03  # roundings to 8 bits


def test_students_in_bfloat16_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every CPU, since on most of them torch's own formula is right too."""
    shapes = []

    def watched(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        shapes.append(tuple(weight.shape))
        return convolution(x, weight, shape)

    monkeypatch.setattr("mmdistill.networks.convolutions.convolution", watched)
    params = {"first": torch.ones(2, 1, 3, 3), "second": torch.ones(2, 2, 3, 3)}
    batch = Batch(torch.ones(1, 1, 1, 4, 4).requires_grad_(), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    for lowered in (False, True):
        end = unroll(two_layers(lowered), params, batch, 1.0, Unrolling(keep=0, mode="reverse"))["first"]
        assert shapes == []
        torch.autograd.grad(end.sum(), batch.inputs)
        assert shapes == [(2, 1, 3, 3), (2, 2, 3, 3)] * lowered


def test_networks_of_modules_use_them() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    with TwiceDifferentiable(), torch.autocast("cpu", torch.bfloat16):
        out = network[0](torch.ones(1, 1, 4, 4))
    assert type(out.grad_fn).__name__ == "AddBackward0"
    assert out.dtype == torch.bfloat16
