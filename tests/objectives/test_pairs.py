from functools import partial

import pytest
import torch

from mmdistill.objectives.pairs import neighbour_sums, products, relu_moments
from mmdistill.runtime import Draws


def samples(n, d, name, dtype=torch.float64):
    return Draws(7).fold(name).normal(n, d, dtype=dtype)


DOUBLE = torch.float64


def test_products_are_those_of_the_wider_format_of_a_sample_of_zeros_too():
    a, b = samples(11, 5, "a", torch.float32), samples(3, 5, "b")
    a[4] = 0
    weights = samples(11, 3, "weight"), samples(11, 1, "of a")[:, 0], samples(3, 1, "of b")[:, 0]

    def gradients(function, a, b):
        leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
        found = function(*leaves)
        assert {part.dtype for part in found} == {DOUBLE}
        total = sum((part * weight).sum() for part, weight in zip(found, weights, strict=True))
        return *found, *torch.autograd.grad(total, leaves)

    def plain(a, b):
        return a.double() @ b.T, a.double().square().sum(1), b.square().sum(1)

    got = gradients(lambda a, b: products(a, b, DOUBLE, DOUBLE), a, b)
    for part, expected in zip(got, gradients(plain, a, b), strict=True):
        torch.testing.assert_close(part, expected)


def test_products_in_a_narrower_format_round_them_alone_and_keep_the_diagonal_of_a_set_with_itself():
    a = samples(40, 3000, "a", torch.float32).abs()
    exact, norms, _ = products(a, a.clone(), DOUBLE, DOUBLE)
    found, square_a, square_b = products(a, a, DOUBLE, torch.float32)
    assert found.dtype == DOUBLE
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    assert not torch.equal(found, exact)  # it is narrower indeed
    assert torch.equal(found.diagonal(), square_a)
    torch.testing.assert_close(square_a, norms, rtol=1e-12, atol=0)
    torch.testing.assert_close(square_b, norms, rtol=1e-7, atol=0)  # squares are rounded, their sum is not
    binary = (a > 1).float()
    assert torch.equal(products(binary, binary.clone(), DOUBLE, torch.float32)[0], binary.double() @ binary.double().T)


def test_products_differentiate_twice():
    a, b = samples(4, 3, "a").requires_grad_(), samples(2, 3, "b").requires_grad_()
    wide = partial(products, dtype=DOUBLE, inner=DOUBLE)
    assert torch.autograd.gradcheck(wide, (a, b))
    assert torch.autograd.gradgradcheck(wide, (a, b))


def test_relu_moments_differentiate_twice():
    a, b = samples(3, 4, "a").requires_grad_(), samples(2, 4, "b").requires_grad_()

    def moments(a, b):
        return relu_moments(a @ b.T, a.square().sum(1), b.square().sum(1))

    assert torch.autograd.gradcheck(moments, (a, b))
    assert torch.autograd.gradgradcheck(moments, (a, b))
    inner, squares = (a @ b.T).detach(), b.square().sum(1).detach()
    variance = a.square().sum(1).detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda variance: relu_moments(inner, variance, squares), (variance,))


def test_relu_moments_are_the_means_of_gaussians():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)
    u, v = (samples(2_000_000, 2, "gaussians") @ factor.T).T
    moment, slope = relu_moments(covariance[:1, 1:], covariance[:1, 0], covariance[1:, 1])
    assert moment.item() == pytest.approx((u.relu() * v.relu()).mean().item(), rel=0.01)
    assert slope.item() == pytest.approx(((u > 0) & (v > 0)).double().mean().item(), rel=0.01)


def test_a_sample_is_parallel_to_itself_whatever_rounding_says():
    a = samples(300, 5, "a", torch.float32).requires_grad_()
    slope = relu_moments(a @ a.T, a.square().sum(1), a.square().sum(1))[1].diagonal()
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5), rtol=0, atol=1e-6)
    assert not torch.autograd.grad(slope.sum(), a)[0].any()


def test_moments_are_batched_over_problems():
    a, b = samples(6, 4, "a").view(2, 3, 4), samples(4, 4, "b").view(2, 2, 4)

    def gradient(a, b):
        def total(a):
            return relu_moments(*products(a, b, DOUBLE, DOUBLE))[0].sum()

        return torch.func.grad(total)(a)

    together = torch.func.vmap(gradient)(a, b)
    torch.testing.assert_close(together, torch.stack([gradient(x, y) for x, y in zip(a, b, strict=True)]))


def test_neighbour_sums_are_those_of_a_padded_convolution_and_differentiate_twice():
    image = Draws(7).fold("image").normal(4, 3, 2, dtype=torch.float64).requires_grad_()
    plain = torch.conv2d(image.permute(2, 0, 1)[:, None], torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1)
    torch.testing.assert_close(neighbour_sums(image, 0.5), 0.5 * plain[:, 0].permute(1, 2, 0))
    assert torch.autograd.gradcheck(neighbour_sums, (image, 0.5))
    assert torch.autograd.gradgradcheck(neighbour_sums, (image, 0.5))
    together = torch.func.vmap(lambda x: neighbour_sums(x, 0.5))(torch.stack([image, 2 * image]))
    torch.testing.assert_close(together[1], neighbour_sums(2 * image, 0.5))
