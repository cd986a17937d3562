"""Performance matching in closed form: kernel ridge regression fitted on S and scored on T (Eq. 4-6)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError, require_choice
from mmdistill.execution.portions import features_by_portions
from mmdistill.labels import as_probabilities, regression_targets, weighted_mean
from mmdistill.objectives.base import Network, Objective, RealView, flatten_classes, require_features
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, Targets, Task, Tensors, one_tensor

RidgeScale = Literal["trace", "absolute"]


class Kernel(ABC):
    """A positive semi-definite similarity of samples, which may read a network."""

    of_network = False
    """Whether the network is read."""

    @abstractmethod
    def __call__(self, network: Network, a: Inputs, b: Inputs) -> Tensor:
        """Return the ``(n_a, n_b)`` kernel matrix."""

    def grams(self, network: Network, real: Inputs, syn: Inputs) -> tuple[Tensor, Tensor]:
        """Return K_ts ``(n_t, n_s)`` and K_ss ``(n_s, n_s)``; override it where both share work."""
        return self(network, real, syn), self(network, syn, syn)

    def check(self, task: Task) -> None:
        """Refuse a task that this kernel cannot read, when the run is built; by default, samples of several tensors.

        Raises:
            ConfigError: saying why.
        """
        require_one_tensor(type(self).__name__, task)


class FeatureKernel(Kernel):
    """Inner products of a network's last features, flattened (FRePo's kernel, Eq. 6).

    They are computed in float64: where samples outnumber features the matrix is singular, and float32 rounding gives
    it negative eigenvalues larger than a ridge of 1e-6.
    """

    of_network = True

    def __call__(self, network: Network, a: Inputs, b: Inputs) -> Tensor:
        """Return phi(a) phi(b)^T."""
        return network.features(a)[-1].double() @ network.features(b)[-1].double().T

    def grams(self, network: Network, real: Inputs, syn: Inputs) -> tuple[Tensor, Tensor]:
        """Return both matrices, computing each sample's features once; the real side keeps no graph."""
        phi_real = features_by_portions(lambda inputs: network.features(inputs)[-1], real).double()
        phi_syn = network.features(syn)[-1].double()
        return phi_real @ phi_syn.T, phi_syn @ phi_syn.T

    def check(self, task: Task) -> None:
        """Refuse networks without features."""
        require_features(type(self).__name__, task)


class LinearKernel(Kernel):
    """Inner products of the raw inputs (one tensor, flattened)."""

    def __call__(self, network: Network, a: Inputs, b: Inputs) -> Tensor:
        """Return a b^T, ``(n_a, n_b)``.

        Raises:
            ShapeError: inputs are a named dict.
        """
        return one_tensor(a, "the linear kernel").flatten(1) @ one_tensor(b, "the linear kernel").flatten(1).T


def require_one_tensor(name: str, task: Task, ndim: int | None = None) -> None:
    """Refuse a task whose samples are not one tensor each, of ``ndim`` axes if given.

    Raises:
        ConfigError: saying what the samples are.
    """
    inputs, data = task.select(torch.arange(1)).inputs, task.describe().data
    if isinstance(inputs, dict):
        raise ConfigError(
            f"{name} reads one input tensor, but samples of {data!r} are a dict of {', '.join(inputs)}; use a kernel "
            "of network features (krr, frepo)"
        )
    if ndim is not None and inputs.ndim != ndim + 1:
        raise ConfigError(
            f"{name} reads samples of {ndim} axes, those of {data!r} have the shape {tuple(inputs.shape[1:])}"
        )


def ridge_solution(kernel: Tensor, targets: Tensor, ridge: Tensor | float, scale: RidgeScale) -> Tensor:
    """Return (K + lambda I)^-1 Y by Cholesky in float64.

    A matrix that is not positive definite gives NaN, which stops a run; raising would synchronise with the device.

    Args:
        kernel: K, ``(n, n)``.
        targets: Y, ``(n, k)``.
        ridge: lambda; with ``scale="trace"`` it is multiplied by tr(K)/n.
        scale: the ridge's convention.
    Returns:
        ``(n, k)`` float64 coefficients.
    """
    return torch.cholesky_solve(targets.double(), ridge_factor(kernel, ridge, scale))


def ridge_factor(kernel: Tensor, ridge: Tensor | float, scale: RidgeScale) -> Tensor:
    """Return the Cholesky factor of K + lambda I in float64, ``(n, n)``; see :func:`ridge_solution`."""
    k = kernel.double()
    n = k.shape[0]
    absolute_ridge = ridge * k.diagonal().mean() if scale == "trace" else ridge
    factor, info = torch.linalg.cholesky_ex(k + absolute_ridge * torch.eye(n, dtype=k.dtype, device=k.device))
    return torch.where(info == 0, factor, torch.nan)


def without_padding(k_ss: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel and targets of a ridge system from which padding samples are decoupled.

    Each becomes an equation of its own with target 0, so its coefficient is 0. Its diagonal is the others' mean, so
    that lambda does not change.

    Shapes:
        k_ss ``(n, n)``, targets ``(n, k)``, present ``(n,)`` bool; returns the first two.
    """
    mask = present.to(k_ss)
    mean = (k_ss.diagonal() * mask).sum() / mask.sum()
    k_ss = k_ss * mask[:, None] * mask + torch.diag_embed((1 - mask) * mean)
    return k_ss, targets * mask.to(targets)[:, None]


RidgeLoss = Callable[[Tensor, Targets, Tensor], Tensor]
"""``(prediction (n, k), real targets, weight (n,)) -> scalar``."""


def half_squared_error(prediction: Tensor, targets: Targets, weight: Tensor) -> Tensor:
    """Return half the squared error to one-hot targets minus 1/C, summed over classes and averaged over samples.

    Shapes:
        prediction ``(n, C)``; targets ``(n,)`` int64 or ``(n, C)`` float, from both of which 1/C is subtracted; weight
        ``(n,)``; returns a scalar.
    Raises:
        ShapeError: targets are a named dict.
    """
    classes = prediction.shape[1]
    goal = as_probabilities(one_tensor(targets, "the squared error"), classes, prediction.dtype) - 1.0 / classes
    return weighted_mean(0.5 * (prediction - goal).square().sum(1), weight.to(prediction))


def multinomial(prediction: Tensor, targets: Targets, weight: Tensor) -> Tensor:
    """Return the multinomial negative log-likelihood -sum_i x_i log softmax(f)_i, averaged over users.

    Shapes:
        prediction ``(n, items)``, f; targets ``(n, items)``, x; weight ``(n,)``; returns a scalar.
    Raises:
        ShapeError: targets are a named dict, or not of the prediction's shape (class indices, for example).
    Source: Liang et al., WWW 2018; Sachdeva et al., NeurIPS 2022.
    """
    targets = one_tensor(targets, "the multinomial likelihood")
    if targets.shape != prediction.shape:
        raise ShapeError(f"targets of shape {tuple(prediction.shape)} are expected, got {tuple(targets.shape)}")
    return weighted_mean(-(targets.to(prediction) * prediction.log_softmax(1)).sum(1), weight.to(prediction))


class RidgeSystem(NamedTuple):
    """A ridge regression on the synthetic set: what readouts take.

    Args:
        k_ts: ``(n_t, n_s)`` kernel of real with synthetic samples.
        k_ss: ``(n_s, n_s)`` kernel of the synthetic samples.
        targets: ``(n_s, k)`` synthetic targets.
        ridge: lambda.
        scale: the ridge's convention, see :func:`ridge_solution`.
        real: the real inputs.
        syn: the synthetic inputs.
    """

    k_ts: Tensor
    k_ss: Tensor
    targets: Tensor
    ridge: Tensor
    scale: RidgeScale
    real: Inputs
    syn: Inputs


Readout = Callable[[RidgeSystem], Tensor]
"""Maps a ridge system to predictions ``(n_t, k)`` for the real samples."""


def ridge_prediction(system: RidgeSystem) -> Tensor:
    """Return K_ts (K_ss + lambda I)^-1 Y_s.

    Shapes:
        with m synthetic and n real samples K_ss ``(m, m)``, K_ts ``(n, m)`` and Y_s ``(m, k)``; returns ``(n, k)``,
        scores in the units of Y_s.
    """
    k_ts, k_ss, targets, ridge, scale, *_ = system
    if targets.shape[1] > k_ts.shape[0]:  # solve for K_st: there are fewer real samples than targets (items)
        weights = ridge_solution(k_ss, k_ts.T, ridge, scale).T
        return weights.to(k_ts.dtype) @ targets.to(k_ts.dtype)
    return k_ts @ ridge_solution(k_ss, targets, ridge, scale).to(k_ts.dtype)


def without_diagonal(system: RidgeSystem) -> Tensor:
    r"""Predict each input coordinate from all others: EASE, with the linear kernel and Y_s = X_s.

    .. math:: f(x)_i = \frac{(K_{ts} A^{-1} X_s)_i - h_i x_i}{1 - h_i}, \quad
        h_i = (X_s^\top A^{-1} X_s)_{ii}, \quad A = X_s X_s^\top + \lambda I

    This is EASE's dual form: nothing of size k x k appears.

    Shapes:
        with m synthetic and n real rows of width k, K_ss ``(m, m)``, K_ts ``(n, m)``, X_s ``(m, k)``; returns
        ``(n, k)``, scores in the units of the rows.
    Raises:
        ShapeError: inputs are not rows as wide as the targets.
    Source: Steck, WWW 2019, Eq. 8, by the Woodbury identity.
    """
    real, syn, targets = system.real, system.syn, system.targets
    if isinstance(real, dict) or isinstance(syn, dict) or not real.shape[1:] == syn.shape[1:] == targets.shape[1:]:
        raise ShapeError("removing the diagonal needs rows of inputs that are as wide as the targets")
    solved = ridge_solution(system.k_ss, targets, system.ridge, system.scale).to(system.k_ts.dtype)
    diagonal = (syn.to(solved) * solved).sum(0)
    return (system.k_ts @ solved - diagonal * real.to(solved)) / (1 - diagonal)


class KernelRidgeMatching(Objective):
    r"""Fit kernel ridge regression on the synthetic set and score it on real samples (Eq. 5).

    .. math:: \ell\big(K_{ts} (K_{ss} + \lambda I)^{-1} Y_s,\; Y_t\big)

    Args:
        kernel: the kernel.
        ridge: lambda, or with ``learn_ridge`` its initial value.
        scale: ``trace`` multiplies lambda by tr(K_ss)/n, ``absolute`` takes it as it is.
        loss: compares predictions with real targets.
        learn_ridge: learn log(lambda) (optimizer group ``objective``); lambda is then stored with the set.
        view: ``flat`` draws real samples of all classes together, ``classes`` the same number of each.
        readout: maps the ridge system to predictions; :func:`without_diagonal` makes the linear kernel EASE.
    Shapes:
        flat or class batches; 1/C is subtracted from class indices (as one-hot) and probabilities; returns a scalar.
    Raises:
        ConfigError: a ridge that is not positive, or an unknown scale or view.
    Source: Nguyen et al., ICLR 2021; Zhou et al., NeurIPS 2022; survey Sec. 3.3.2.
    """

    def __init__(
        self,
        kernel: Kernel,
        ridge: float = 1e-6,
        scale: RidgeScale = "trace",
        loss: RidgeLoss = half_squared_error,
        learn_ridge: bool = False,
        view: RealView = "flat",
        readout: Readout = ridge_prediction,
    ) -> None:
        super().__init__()
        require_choice("scale", scale, get_args(RidgeScale))
        require_choice("view", view, get_args(RealView))
        if ridge <= 0:
            raise ConfigError(f"the ridge must be positive, got {ridge}")
        self.kernel = kernel
        self.scale = scale
        self.loss = loss
        self.view = view
        self.readout = readout
        self.exact = not kernel.of_network
        log_ridge = torch.tensor(float(ridge), dtype=torch.float64).log()
        if learn_ridge:
            self.log_ridge = nn.Parameter(log_ridge)
        else:
            self.register_buffer("log_ridge", log_ridge)

    def check(self, task: Task) -> None:
        """Refuse what the view or the kernel cannot read; flat batches may have no classes."""
        super().check(task)
        self.kernel.check(task)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the loss of the ridge prediction on the real batch."""
        padded = isinstance(syn, ClassBatch)
        syn, real = flatten_classes(syn), flatten_classes(real)
        k_ts, k_ss = self.kernel.grams(network, real.inputs, syn.inputs)
        targets = synthetic_targets(syn, network)
        if padded:
            k_ss, targets = without_padding(k_ss, targets, syn.weight > 0)
        system = RidgeSystem(k_ts, k_ss, targets, self.log_ridge.exp(), self.scale, real.inputs, syn.inputs)
        return self.loss(self.readout(system), real.targets, real.weight)

    def learned(self) -> Tensors:
        """Return the ridge where it is learned, as ``ridge`` (times the mean diagonal) or ``absolute_ridge``."""
        name = "ridge" if self.scale == "trace" else "absolute_ridge"
        return {name: self.log_ridge.detach().exp()} if isinstance(self.log_ridge, nn.Parameter) else {}


def synthetic_targets(syn: Batch, network: Network) -> Tensor:
    """Return ``(n, k)`` targets by :func:`~mmdistill.labels.regression_targets`; of tasks without classes, unchanged.

    Raises:
        ConfigError: class indices in a task without classes.
        ShapeError: targets are a named dict.
    """
    targets, classes = one_tensor(syn.targets, "kernel ridge matching"), network.task.num_classes
    if classes is not None:
        return regression_targets(targets, classes, torch.float64)
    if not targets.is_floating_point():
        raise ConfigError("class indices as targets need a task with classes")
    return targets
