import math
from types import SimpleNamespace

import pytest
import torch

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.objectives import infinite_width
from mmdistill.objectives.infinite_width import (
    ConvolutionalKernel,
    FullyConnectedKernel,
    convolutional,
    fully_connected,
)
from mmdistill.objectives.pairs import relu_moments
from mmdistill.runtime import Draws
from tests.oracles.kernels import wide_relu, wide_relu_conv


def samples(n, d, name, dtype=torch.float64):
    return Draws(3).fold(name).normal(n, d, dtype=dtype)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize(("w_std", "b_std"), [(math.sqrt(2), 0.1), (1.3, 0.0), (0.7, 0.5)])
def test_equals_the_loop_oracle(depth, w_std, b_std):
    a, b = samples(4, 6, "a"), samples(3, 6, "b")
    b[1] = a[0]  # a parallel pair
    b[2] = -a[1]  # an opposite pair
    got = fully_connected(a, b, depth=depth, w_std=w_std, b_std=b_std)
    for i in range(4):
        for j in range(3):
            nngp, ntk = wide_relu(a[i].tolist(), b[j].tolist(), depth, w_std, b_std)
            assert got.nngp[i, j].item() == pytest.approx(nngp, abs=1e-7)
            assert got.ntk[i, j].item() == pytest.approx(ntk, abs=1e-6)


def test_float32_agrees_with_float64():
    x = samples(20, 300, "x").relu()
    exact = fully_connected(x, x, depth=2)
    single = fully_connected(x.float(), x.float(), depth=2)
    # near c = 1 the angle is the square root of the rounding error of c, hence 1e-3
    torch.testing.assert_close(single.ntk.double(), exact.ntk, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(single.nngp.double(), exact.nngp, rtol=1e-5, atol=1e-5)


def test_the_empirical_kernels_of_wide_networks_approach_the_limit():
    x, width, networks, w_std, b_std = samples(5, 4, "x"), 4000, 20, math.sqrt(2), 0.1
    nngp = torch.zeros(5, 5, dtype=torch.float64)
    ntk = torch.zeros(5, 5, dtype=torch.float64)
    for index in range(networks):
        key = Draws(0).fold(index)
        w1 = key.fold("w1").normal(width, 4, dtype=torch.float64)
        b1 = key.fold("b1").normal(width, dtype=torch.float64)
        w2 = key.fold("w2").normal(width, dtype=torch.float64)
        u = w_std * x @ w1.T / 2 + b_std * b1  # sqrt(d) = 2
        hidden = u.relu()
        readout = w_std**2 * hidden @ hidden.T / width + b_std**2
        gate = (u > 0).double() * w2
        ntk += readout + w_std**2 * (gate @ gate.T / width) * (w_std**2 * x @ x.T / 4 + b_std**2)
        nngp += readout
    limit = fully_connected(x, x, depth=1, w_std=w_std, b_std=b_std)
    torch.testing.assert_close(nngp / networks, limit.nngp, rtol=0.02, atol=0.02)
    torch.testing.assert_close(ntk / networks, limit.ntk, rtol=0.02, atol=0.03)


def test_gradcheck():
    a = samples(3, 5, "a").requires_grad_()
    b = samples(2, 5, "b").requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: fully_connected(a, b, depth=2).ntk, (a, b))
    assert torch.autograd.gradgradcheck(lambda a: fully_connected(a, b.detach(), depth=1).ntk, (a,))


def test_gradient_of_a_set_with_itself_is_exact_on_the_diagonal():
    x = samples(4, 5, "x")

    def diagonal(x):
        return fully_connected(x, x, depth=1).ntk.diagonal().sum()

    gradient = torch.func.grad(diagonal)(x)
    # on the diagonal c = 1, so Theta = 2 K0 + b^2 / ... with K0 = 2 |x|^2 / d + b^2: its gradient is 2 * 4 x / d
    torch.testing.assert_close(gradient, 8 * x / 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_opposite_and_zero_rows_have_finite_gradients(dtype):
    x = samples(3, 8, "x", dtype)
    x = torch.cat([x, x[:1], -x[1:2], torch.zeros(1, 8, dtype=dtype), 2 * x[2:]])
    for b_std in (0.0, 0.1):
        gradient = torch.func.grad(lambda x, b_std=b_std: fully_connected(x, x, depth=3, b_std=b_std).ntk.sum())(x)
        assert gradient.isfinite().all()


def test_is_positive_semi_definite_and_symmetric():
    x = samples(30, 6, "x")
    for matrix in fully_connected(x, x, depth=2):
        torch.testing.assert_close(matrix, matrix.T)
        assert torch.linalg.eigvalsh(matrix).min() > 0


def test_moments_at_special_angles():
    """Twice the moments of rectified Gaussians are the arc-cosine kernels (Cho and Saul, NeurIPS 2009, Eq. 3-6)."""
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], dtype=torch.float64)
    moment, slope = relu_moments(x @ x.T, x.square().sum(1), x.square().sum(1))
    torch.testing.assert_close(2 * slope[0], torch.tensor([1, 0.5, 0], dtype=torch.float64))
    torch.testing.assert_close(2 * moment[0], torch.tensor([1, 2 / math.pi, 0], dtype=torch.float64))


def test_bad_arguments():
    x = torch.ones(2, 3)
    with pytest.raises(ShapeError, match="one d"):
        fully_connected(x, torch.ones(2, 4))
    with pytest.raises(ConfigError, match="depth"):
        fully_connected(x, x, depth=-1)
    with pytest.raises(ConfigError, match="ntk"):
        FullyConnectedKernel(kind="laplace")
    with pytest.raises(ShapeError, match="got a dict of x"):
        FullyConnectedKernel()(None, {"x": x}, {"x": x})


def images(n, name, shape=(2, 4, 3), dtype=torch.float64):
    return Draws(5).fold(name).normal(n, *shape, dtype=dtype)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("w_std", "b_std"), [(math.sqrt(2), 0.1), (0.8, 0.5)])
def test_the_convolutional_kernel_equals_the_loop_oracle(depth, w_std, b_std):
    a, b = images(3, "a"), images(2, "b")
    b[1] = a[0]
    for pairs in (1024, 2):  # in one part, and row by row
        got = convolutional(a, b, depth=depth, w_std=w_std, b_std=b_std, pairs=pairs)
        for i in range(3):
            for j in range(2):
                nngp, ntk = wide_relu_conv(a[i].tolist(), b[j].tolist(), depth, w_std, b_std)
                assert got.nngp[i, j].item() == pytest.approx(nngp, abs=1e-7)
                assert got.ntk[i, j].item() == pytest.approx(ntk, abs=1e-6)


def test_wide_convolutional_networks_approach_the_limit():
    x, width, networks, w_std, b_std = images(3, "x", (1, 3, 3)), 256, 12, math.sqrt(2), 0.3
    nngp, ntk = (torch.zeros(3, 3, dtype=torch.float64) for _ in range(2))
    for index in range(networks):
        key = Draws(0).fold("conv", index)
        shapes = {
            "w1": (width, 1, 3, 3),
            "b1": (width,),
            "w2": (width, width, 3, 3),
            "b2": (width,),
            "w3": (width * 9,),
        }
        params = {name: key.fold(name).normal(*shape, dtype=torch.float64) for name, shape in shapes.items()}

        def hidden(params, image):
            u = torch.conv2d(image[None], w_std / 3 * params["w1"], b_std * params["b1"], padding=1).relu()
            w2 = w_std / (9 * width) ** 0.5 * params["w2"]
            return torch.conv2d(u, w2, b_std * params["b2"], padding=1).relu().flatten()

        def output(params, image):
            return w_std / (9 * width) ** 0.5 * hidden(params, image) @ params["w3"]

        gradients = [torch.func.grad(output)(params, image) for image in x]
        rows = torch.stack([torch.cat([g.flatten() for g in tree.values()]) for tree in gradients])
        last = torch.stack([hidden(params, image) for image in x])
        ntk += rows @ rows.T + b_std**2  # the readout's bias adds its variance to both
        nngp += w_std**2 * last @ last.T / (9 * width) + b_std**2
    limit = convolutional(x, x, depth=2, w_std=w_std, b_std=b_std)
    # twelve networks of width 256 scatter by some 4 %
    torch.testing.assert_close(nngp / networks, limit.nngp, rtol=0.12, atol=0.05)
    torch.testing.assert_close(ntk / networks, limit.ntk, rtol=0.12, atol=0.05)


def test_the_convolutional_kernel_has_exact_gradients_in_parts_too():
    a, b = images(3, "a", (1, 3, 3)).requires_grad_(), images(2, "b", (1, 3, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: convolutional(a, b, depth=2).ntk, (a, b))
    whole, parts = (
        torch.autograd.grad(convolutional(a, b, depth=2, pairs=pairs).ntk.square().sum(), (a, b)) for pairs in (1024, 1)
    )
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    for index, constant in enumerate(((a, b.detach()), (a.detach(), b))):
        (alone,) = torch.autograd.grad(convolutional(*constant, depth=2, pairs=1).ntk.square().sum(), (a, b)[index])
        torch.testing.assert_close(alone, whole[index])
    same = torch.func.grad(lambda x: convolutional(x, x, depth=2, b_std=0.0).ntk.sum())(torch.zeros_like(a))
    assert same.isfinite().all()


def test_a_set_with_itself_in_parts_is_computed_half_and_equals_the_whole(monkeypatch):
    x, weight = images(5, "x", (1, 3, 3)).requires_grad_(), images(5, "weight", (5,))

    def kernel_and_gradient(pairs, a, b):
        found = convolutional(a, b, depth=2, pairs=pairs).ntk
        return found, *torch.autograd.grad((weight * found).sum(), x)

    whole = kernel_and_gradient(25, x, x)
    tiles = []
    plain = infinite_width._pixel_kernels
    monkeypatch.setattr(
        infinite_width, "_pixel_kernels", lambda *args, **kwargs: tiles.append(1) or plain(*args, **kwargs)
    )
    half = kernel_and_gradient(4, x, x)
    assert len(tiles) == 2 * 6  # tiles of 2, 2 and 1 rows, on and above the diagonal, forward and once more backward
    both = kernel_and_gradient(4, x, x.clone())
    assert len(tiles) == 2 * 6 + 2 * 9
    for found in (half, both):
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other)


def test_a_cuda_device_holds_as_many_pairs_as_a_quarter_of_its_memory(monkeypatch):
    def pairs(memory, shape, depth=3, kind="cuda", size=8):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
        there = SimpleNamespace(device=torch.device(kind), shape=torch.Size(shape), element_size=lambda: size)
        return infinite_width.pairs_at_once(there, depth)

    assert pairs(80 << 30, (10, 3, 32, 32)) == 32_768
    assert pairs(80 << 30, (10, 3, 32, 32), size=4) == 65_536
    assert pairs(24 << 30, (10, 3, 32, 32)) == 8192
    assert pairs(1 << 20, (0, 3, 224, 224)) == 1
    assert pairs(80 << 30, (10, 3, 32, 32), kind="cpu") == infinite_width.CPU_PAIRS


def test_a_kernel_in_too_many_parts_is_not_captured(monkeypatch):
    asked = []
    monkeypatch.setattr(infinite_width, "require_short", lambda tiles, device: asked.append(tiles))
    convolutional(images(3, "x"), images(11, "y"), depth=1, pairs=4)
    monkeypatch.undo()
    assert asked == [12]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    infinite_width.require_short(infinite_width.MOST_CAPTURED, torch.device("cuda"))
    infinite_width.require_short(121, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="in 121 parts is too long for a graph"):
        infinite_width.require_short(121, torch.device("cuda"))


def test_kernels_have_the_scales_the_type_and_the_parts_that_they_were_made_with(monkeypatch):
    scales = {"depth": 2, "w_std": 0.8, "b_std": 0.5}
    single, tiles = images(3, "x", dtype=torch.float32), []
    a, b, plain = single.double(), single[:2].double(), infinite_width._pixel_kernels
    monkeypatch.setattr(
        infinite_width, "_pixel_kernels", lambda *args, **kwargs: tiles.append(1) or plain(*args, **kwargs)
    )
    kernel = ConvolutionalKernel(**scales, dtype=torch.float64, pairs=1)
    found = [kernel(None, single, single), kernel(None, single, single[:2])]
    assert len(tiles) == 6 + 6  # of a set with itself, the diagonal and one side of it
    for one, other in zip(found, (a, b), strict=True):
        torch.testing.assert_close(one, convolutional(a, other, **scales).ntk)
    flat = FullyConnectedKernel("nngp", **scales)(None, a, b)
    torch.testing.assert_close(flat, fully_connected(a.flatten(1), b.flatten(1), **scales).nngp)


def test_bad_images():
    with pytest.raises(ShapeError, match="images of one shape"):
        convolutional(images(2, "a"), images(2, "b", (2, 4, 4)))
    with pytest.raises(ConfigError, match="at least 1 convolution"):
        convolutional(images(2, "a"), images(2, "b"), depth=0)
    with pytest.raises(ConfigError, match="1 pair at a time"):
        convolutional(images(2, "a"), images(2, "b"), pairs=0)
    with pytest.raises(ConfigError, match="ntk or nngp"):
        ConvolutionalKernel(kind="laplace")
    nngp = ConvolutionalKernel("nngp", depth=1)(None, images(2, "a"), images(1, "b"))
    assert torch.equal(nngp, convolutional(images(2, "a"), images(1, "b"), depth=1).nngp)
