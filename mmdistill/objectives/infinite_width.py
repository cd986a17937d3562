"""Closed-form kernels of infinitely wide networks, fully connected and convolutional, as pure functions."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.errors import ConfigError, ShapeError, require_choice
from mmdistill.objectives.base import Network
from mmdistill.objectives.kernel_ridge import Kernel, require_one_tensor
from mmdistill.objectives.pairs import neighbour_sums, products, relu_moments
from mmdistill.task import Inputs, Task, one_tensor

KernelKind = Literal["ntk", "nngp"]

W_STD = math.sqrt(2.0)
"""Weight scale with which a ReLU layer keeps the norm of its inputs."""
B_STD = 0.1
"""Bias scale of the published infinite-width autoencoder."""

CPU_PAIRS = 256
"""Pairs of images held at once on a CPU: the fastest of five values from 100 to 1024."""
DEVICE_PAIRS = 2048
"""Pairs of images held at once on devices other than a CPU and CUDA; with few, launches would be the bottleneck."""
DEVICE_SHARE = 4
"""Pairs held at once may take the memory of a CUDA device divided by this; not tuned."""
NUMEL_PER_PAIR = 20
"""Numbers held for each pair, pixel and layer."""
MOST_CAPTURED = 100
"""Most tiles, of some 700 launches each, that are captured in a CUDA graph; not tuned."""


class WideKernels(NamedTuple):
    """The NNGP and the NTK of the same network, each ``(n_a, n_b)``."""

    nngp: Tensor
    ntk: Tensor


def fully_connected(
    a: Tensor,
    b: Tensor,
    *,
    depth: int = 1,
    w_std: float = W_STD,
    b_std: float = B_STD,
    dtype: torch.dtype | None = None,
    inner: torch.dtype | None = None,
) -> WideKernels:
    r"""Return NNGP and NTK of ``[Dense, ReLU] x depth, Dense`` in NTK parameterization at infinite width.

    .. math:: K_0 = \sigma_w^2 x y^\top / d + \sigma_b^2, \quad \Theta_0 = K_0, \quad
        K_{l+1} = \sigma_w^2 E[\phi(u)\phi(v)] + \sigma_b^2, \quad
        \Theta_{l+1} = \sigma_w^2 E[\phi'(u)\phi'(v)] \Theta_l + K_{l+1}

    Args:
        a: samples.
        b: samples; the same tensor as ``a`` for the kernel of a set with itself.
        depth: hidden layers; 0 is the linear kernel.
        w_std: standard deviation of the weights before the 1/sqrt(fan-in) scale.
        b_std: standard deviation of the biases.
        dtype: the type of the kernels and of all arithmetic but the inner products; None: the inputs'.
        inner: the type of inner products of samples, which take most of the time; None: that of the kernels.

    Shapes:
        a ``(n_a, d)``, b ``(n_b, d)``; returns two ``(n_a, n_b)``.

    Raises:
        ShapeError: the inputs are not two floating-point matrices with the same number of columns.
        ConfigError: a negative depth.

    Source: Lee et al., ICLR 2018 (NNGP); Jacot et al., NeurIPS 2018 (NTK); Sachdeva et al., NeurIPS 2022.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(f"two (n, d) matrices of one d are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    if dtype is None and not (a.is_floating_point() and b.is_floating_point()):
        raise ShapeError(f"kernels are of floating-point numbers, got {a.dtype} and {b.dtype}; convert them (.float())")
    if depth < 0:
        raise ConfigError(f"the depth counts hidden layers, so it is 0 or more; got {depth}")
    w2, b2, d = w_std**2, b_std**2, a.shape[1]
    dtype = dtype or b.dtype
    covariance, square_a, square_b = products(a, b, dtype, inner or dtype)
    shift = covariance.new_full((), b2)  # filled on the device: CUDA graphs allow no copy from the host
    nngp = torch.add(shift, covariance, alpha=w2 / d)
    var_a, var_b = (torch.add(shift, square, alpha=w2 / d) for square in (square_a, square_b))
    ntk = nngp
    for _ in range(depth):
        moment, slope = relu_moments(nngp, var_a, var_b)
        nngp = torch.add(shift, moment, alpha=w2)
        ntk = torch.addcmul(nngp, slope, ntk, value=w2)
        var_a = w2 * var_a / 2 + b2  # E[relu(u)^2] is half of E[u^2]
        var_b = w2 * var_b / 2 + b2
    return WideKernels(nngp, ntk)


def convolutional(
    a: Tensor, b: Tensor, *, depth: int = 3, w_std: float = W_STD, b_std: float = B_STD, pairs: int | None = None
) -> WideKernels:
    r"""Return NNGP and NTK of ``[Conv 3x3, ReLU] x depth, Flatten, Dense`` in NTK parameterization at infinite width.

    Zero padding keeps the size of the images. Without pooling, a pixel's covariance reads its own neighbours only:

    .. math:: K_1(p) = \frac{\sigma_w^2}{9 c} \sum_{q \in N(p)} x_q^\top y_q + \sigma_b^2, \quad \Theta_1 = K_1, \\
        K_{l+1}(p) = \frac{\sigma_w^2}{9} \sum_{q \in N(p)} E[\phi(u_q)\phi(v_q)] + \sigma_b^2, \quad
        \Theta_{l+1}(p) = \frac{\sigma_w^2}{9} \sum_{q \in N(p)} E[\phi'(u_q)\phi'(v_q)] \Theta_l(q) + K_{l+1}(p)

    and the last layer is the fully connected one, with the mean over pixels for the sum over neighbours.

    Args:
        a: images.
        b: images; the same tensor as ``a`` for the kernel of a set with itself.
        depth: convolutions, at least 1.
        w_std: standard deviation of the weights before the 1/sqrt(fan-in) scale.
        b_std: standard deviation of the biases.
        pairs: how many pairs of images are held at once. More pairs are computed in tiles, which the backward pass
            computes again; memory is about 20 ``pairs`` numbers per pixel and layer. None: :data:`CPU_PAIRS` on a CPU,
            as many as a quarter of the memory holds on CUDA, and :data:`DEVICE_PAIRS` elsewhere.

    Shapes:
        a ``(n_a, c, h, w)``, b ``(n_b, c, h, w)``; returns two ``(n_a, n_b)``, in the inputs' dtype.

    Raises:
        ShapeError: the inputs are not two floating-point sets of images of one shape.
        ConfigError: no convolution, or no pairs.
        RuntimeError: more than :data:`MOST_CAPTURED` tiles while a CUDA graph is captured, which gives the capture up.

    Source: Novak et al., ICLR 2019 (NNGP); Arora et al., NeurIPS 2019 (NTK); Nguyen et al., ICLR and NeurIPS 2021.
    """
    if a.ndim != 4 or b.ndim != 4 or a.shape[1:] != b.shape[1:]:
        raise ShapeError(
            f"two sets of (n, channels, height, width) images of one shape are needed, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ShapeError(f"kernels are of floating-point numbers, got {a.dtype} and {b.dtype}; convert them (.float())")
    if pairs is None:
        pairs = pairs_at_once(a, depth)
    if depth < 1 or pairs < 1:
        raise ConfigError(f"the kernel takes at least 1 convolution and 1 pair at a time, got {depth} and {pairs}")
    tile = partial(_pixel_kernels, depth=depth, w2=w_std**2, b2=b_std**2)
    if a.shape[0] * b.shape[0] <= pairs:
        return tile(a, b)
    side = math.isqrt(pairs)
    require_short(math.ceil(a.shape[0] / side) * math.ceil(b.shape[0] / side), a.device)
    return WideKernels(*_Tiled.apply(a, b, tile, side))  # type: ignore[no-untyped-call]


def require_short(tiles: int, device: torch.device) -> None:
    """Refuse to capture a kernel of too many tiles in a CUDA graph.

    Raises:
        RuntimeError: there are more than :data:`MOST_CAPTURED` tiles during a capture.
    """
    if tiles > MOST_CAPTURED and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"a kernel in {tiles} parts is too long for a graph; fewer samples at once make fewer parts")


def pairs_at_once(images: Tensor, depth: int) -> int:
    """Return the default number of pairs held at once, for images of this shape and dtype."""
    if images.device.type != "cuda":
        return CPU_PAIRS if images.device.type == "cpu" else DEVICE_PAIRS
    memory = torch.cuda.get_device_properties(images.device).total_memory // DEVICE_SHARE
    pairs = memory // (NUMEL_PER_PAIR * images.shape[-2:].numel() * depth * images.element_size())
    return 1 << max(pairs, 1).bit_length() - 1  # the largest power of two up to it, which suits devices


class _Tiled(torch.autograd.Function):
    """Both kernels computed tile by tile, and each tile again for its gradient.

    The kernels of a set with itself are symmetric, so each tile fills its mirror too. A tile leaves nothing but its
    result, so that the next one can reuse its memory.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, tile: Callable[[Tensor, Tensor], WideKernels], side: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, b)
        ctx.tile, ctx.side, ctx.mirrored = tile, side, b is a
        kernels = a.new_empty(a.shape[0], b.shape[0]), a.new_empty(a.shape[0], b.shape[0])
        for rows, columns in _tiles(a.shape[0], b.shape[0], side, ctx.mirrored):
            for kernel, values in zip(kernels, tile(a[rows], b[columns]), strict=True):
                kernel[rows, columns] = values
                if ctx.mirrored:
                    kernel[columns, rows] = values.T
        return kernels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        gradients = tuple(torch.zeros_like(x) for x in (a, b))
        for rows, columns in _tiles(a.shape[0], b.shape[0], ctx.side, ctx.mirrored):
            samples = [a[rows].detach(), b[columns].detach()]
            leaves = [part.requires_grad_() for part, need in zip(samples, needed, strict=True) if need]
            of_tile = [cotangent[rows, columns] for cotangent in cotangents]
            if ctx.mirrored and rows != columns:
                mirrors = [cotangent[columns, rows].T for cotangent in cotangents]
                of_tile = [upper + lower for upper, lower in zip(of_tile, mirrors, strict=True)]
            with torch.enable_grad():
                of_leaves = iter(torch.autograd.grad(ctx.tile(*samples), leaves, of_tile))
            for gradient, indices, need in zip(gradients, (rows, columns), needed, strict=True):
                if need:
                    gradient[indices] += next(of_leaves)
        return *(gradient if need else None for gradient, need in zip(gradients, needed, strict=True)), None, None


def _tiles(rows: int, columns: int, side: int, mirrored: bool) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of square tiles that cover a matrix; if mirrored, only its upper triangle."""
    for top in range(0, rows, side):
        for left in range(top if mirrored else 0, columns, side):
            yield slice(top, min(top + side, rows)), slice(left, min(left + side, columns))


def _pixel_kernels(a: Tensor, b: Tensor, depth: int, w2: float, b2: float) -> WideKernels:
    """Return the kernels of :func:`convolutional` for a few images, with covariances of ``(h, w, n_a, n_b)``."""
    by_pixel = [x.permute(2, 3, 0, 1) for x in (a, b)]
    ninth = w2 / 9  # a mean over neighbours, times the variance of the weights
    nngp = neighbour_sums(by_pixel[0] @ by_pixel[1].mT, ninth / a.shape[1]) + b2
    var_a, var_b = (neighbour_sums(x.square().mean(-1), ninth) + b2 for x in by_pixel)
    ntk = nngp
    for layer in range(1, depth + 1):
        moment, slope = relu_moments(nngp, var_a, var_b)
        if layer == depth:
            break
        nngp = neighbour_sums(moment, ninth) + b2
        ntk = neighbour_sums(slope * ntk, ninth) + nngp
        var_a, var_b = (neighbour_sums(variance, ninth / 2) + b2 for variance in (var_a, var_b))
    last = w2 * moment.mean((0, 1)) + b2
    return WideKernels(last, w2 * (slope * ntk).mean((0, 1)) + last)


@dataclass(frozen=True)
class WideKernel(Kernel):
    """The NTK or NNGP of an infinitely wide network, as a :class:`Kernel`.

    Args:
        kind: ``ntk`` (all layers trained) or ``nngp`` (only the last).
        depth: hidden layers.
        w_std: standard deviation of the weights.
        b_std: standard deviation of the biases.
        dtype: the kernel's type; None: the samples'. In float64 a ridge of 1e-6 resolves small eigenvalues (KIP).
    """

    kind: KernelKind = "ntk"
    depth: int = 1
    w_std: float = W_STD
    b_std: float = B_STD
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require_choice("the kernel", self.kind, get_args(KernelKind))

    @abstractmethod
    def kernels(self, a: Tensor, b: Tensor) -> WideKernels:
        """Return both kernels of two sets of samples."""

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the ``(n_a, n_b)`` kernel of this kind."""
        kernels = self.kernels(a, b)
        return kernels.ntk if self.kind == "ntk" else kernels.nngp

    def __call__(self, network: Network, a: Inputs, b: Inputs) -> Tensor:
        """Return the ``(n_a, n_b)`` kernel of two sets of raw inputs; the network is not read.

        Raises:
            ShapeError: inputs are a named dict.
        """
        reader = "the kernel of an infinitely wide network"
        return self.matrix(one_tensor(a, reader), one_tensor(b, reader))


@dataclass(frozen=True)
class FullyConnectedKernel(WideKernel):
    """The kernel of :func:`fully_connected` on samples flattened to rows.

    Args:
        kind: ``ntk`` or ``nngp``.
        depth: hidden layers.
        w_std: standard deviation of the weights.
        b_std: standard deviation of the biases.
        dtype: the kernel's type, see :class:`WideKernel`.
        inner: the type of inner products of samples; None: the kernel's. Products of samples that have no negative
            values lose nothing to cancellation, so float32 does for them.
    """

    inner: torch.dtype | None = None

    def kernels(self, a: Tensor, b: Tensor) -> WideKernels:
        """Return both kernels of two sets of samples of any shape."""
        rows_a = a.flatten(1)
        rows_b = rows_a if b is a else b.flatten(1)
        scales = {"w_std": self.w_std, "b_std": self.b_std}
        return fully_connected(rows_a, rows_b, depth=self.depth, **scales, dtype=self.dtype, inner=self.inner)


@dataclass(frozen=True)
class ConvolutionalKernel(WideKernel):
    """The kernel of :func:`convolutional` on images.

    Args:
        kind: ``ntk`` or ``nngp``.
        depth: convolutions.
        w_std: standard deviation of the weights.
        b_std: standard deviation of the biases.
        dtype: the kernel's type, see :class:`WideKernel`.
        pairs: how many pairs of images are held at once, see :func:`convolutional`.
    """

    depth: int = 3
    pairs: int | None = None

    def kernels(self, a: Tensor, b: Tensor) -> WideKernels:
        """Return both kernels of two sets of images."""
        if self.dtype is not None:
            # A set with itself stays one tensor, by which `convolutional` knows that the kernel is symmetric.
            a, b = (wide := a.to(self.dtype)), wide if b is a else b.to(self.dtype)
        return convolutional(a, b, depth=self.depth, w_std=self.w_std, b_std=self.b_std, pairs=self.pairs)

    def check(self, task: Task) -> None:
        """Refuse samples that are not images."""
        require_one_tensor(type(self).__name__, task, ndim=3)
