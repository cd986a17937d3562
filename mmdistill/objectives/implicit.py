"""Performance matching by implicit gradients: the real loss of a linearised network trained to its minimum (RCIG)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError
from mmdistill.execution.portions import DIFFERENTIATED, with_gradients
from mmdistill.labels import soft_cross_entropy
from mmdistill.networks.forward_mode import ExactNorms
from mmdistill.networks.linearized import LinearizedNetwork, Products, readout_of, require_readout
from mmdistill.networks.quadratic import ConjugateGradients, QuadraticSolver
from mmdistill.objectives.base import Network, Objective, flatten_classes, require_features
from mmdistill.objectives.kernel_ridge import ridge_factor, ridge_solution, synthetic_targets
from mmdistill.objectives.ridge import label_margin, require_classes
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task, Tensors, one_tensor, take


class ImplicitPerformance(Objective):
    r"""The real loss of a linearised network trained to its minimum on S, with the gradient of the implicit function.

    The network is expanded around where it is, but for the last layer, whose weights w are solved for. With embeddings
    :math:`\Phi`, outputs :math:`J \omega` of the other parameters' change and :math:`\lambda = n` times ``l2``,
    training is

    .. math:: \omega^* = \arg\min_\omega \min_w
        \lVert Y_s - J_s \omega - \Phi_s w \rVert^2 + \lambda \lVert w \rVert^2
        + \lambda \lVert \omega \rVert^2

    a strongly convex quadratic problem. What is matched is the cross entropy of
    :math:`e^k (J_t \omega^* + \Phi_t w^*)`, with a learned k (Platt's; optimizer group ``objective``), less a margin of
    the labels, at most 1/2C. Its gradient is the direct one, at constant :math:`\omega^*` but not :math:`w^*`, and the
    implicit one,

    .. math:: \nabla_S \big\langle J_s v, (\Phi_s \Phi_s^\top + \lambda I)^{-1} (Y_s - J_s \omega^*) \big\rangle, \quad
        A v = \nabla_\omega \ell_t, \quad A = J_s^\top (\Phi_s \Phi_s^\top + \lambda I)^{-1} J_s + I

    with constant v. :math:`\omega^*` and v are found by the same solver, both from 0: the gradient is that of the value
    to within what the solver leaves.

    Args:
        l2: lambda over the number of synthetic samples; absolute, in the unit of the embeddings.
        solver: of both systems.
        inverse: of the second one, where that has another.
        clip: cut the implicit gradient of images and labels to the norm of the direct one.

    Shapes:
        flat batches; class indices count as one-hot minus 1/C on the synthetic side; returns a scalar.
    Raises:
        ConfigError: an l2 that is not positive, a task of fewer than two classes, or a network that does not end with a
            linear layer on its embedding.
    Differs from: in the published code a change of the last layer's weight takes part in the second system alone, which
        moves gradients by about a tenth; 20 steps of Adam solve both systems, counted on from those in which a network
        of the pool was trained, at rates that are found by trying, the first of which is moved as the run goes.
    Source: Loo et al., ICML 2023.
    """

    view = "flat"

    def __init__(
        self,
        l2: float = 5e-4,
        solver: QuadraticSolver | None = None,
        inverse: QuadraticSolver | None = None,
        clip: bool = True,
    ) -> None:
        super().__init__()
        if l2 <= 0:
            raise ConfigError(f"l2 must be positive, got {l2}")
        self.l2 = l2
        self.solver = solver or ConjugateGradients()
        self.inverse = inverse or self.solver
        self.clip = clip
        self.log_scale = nn.Parameter(torch.zeros(()))

    def check(self, task: Task) -> None:
        """Refuse tasks without at least two classes, and networks without a linear layer on an embedding."""
        require_classes(self, task)
        require_features(type(self).__name__, task)
        require_readout(type(self).__name__, task)

    def joined(self, network: Network, syn: Batch) -> Batch:
        """Return the samples that train; here those that there are."""
        return syn

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the real loss less the margin.

        Raises:
            ShapeError: inputs or targets that are a named dict.
        """
        syn, real = flatten_classes(syn), flatten_classes(real)
        sources = [one_tensor(syn.inputs, "implicit gradients"), one_tensor(syn.targets, "implicit gradients")]
        leaves = [source.detach().requires_grad_(source.is_floating_point()) for source in sources]
        with torch.enable_grad():
            samples = self.joined(network, Batch(leaves[0], leaves[1], syn.weight))
            inputs, targets = one_tensor(samples.inputs), synthetic_targets(samples, network)
            margin = label_margin(targets, 0.5)
        with torch.no_grad():
            trained = self._trained(network, inputs.detach(), targets.detach(), self.l2 * len(leaves[0]))
            found = self._matched(trained, real)
        value = found.loss + margin.detach().to(found.loss)
        if not torch.is_grad_enabled():
            return value
        with torch.no_grad():
            adjoint = self.inverse.solve(trained.product, trained.pulled(found))
        with torch.enable_grad():
            direct, implicit = _terms(trained, found, adjoint, inputs, targets)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            gradients = self._joint(direct + margin.to(direct), implicit, wanted)
        learned = [source for source, leaf in zip(sources, leaves, strict=True) if leaf.requires_grad]
        return with_gradients(value, [*learned, self.log_scale], [*gradients, found.by_scale.to(self.log_scale)])

    def learned(self) -> Tensors:
        """Return Platt's k."""
        return {"platt_log_scale": self.log_scale.detach()}

    def _trained(self, network: Network, inputs: Tensor, targets: Tensor, amount: float) -> "_Trained":
        """Return the linearised network with what its training on samples ends with."""
        width = network.task.features(network.state, inputs[:1])[-1].shape[1]
        readout = readout_of(network.state, targets.shape[1], width)
        if readout is None:
            raise ConfigError(
                f"the network has no linear layer of {targets.shape[1]} outputs on an embedding of {width}"
            )
        linear = LinearizedNetwork(network.task, network.state, readout)
        products = linear.recorded_products(inputs)
        embedded = products.embedded
        factor = ridge_factor(embedded.double() @ embedded.double().T, amount, "absolute")
        system = _Trained(linear, amount, products, factor, embedded, embedded)
        change = self.solver.solve(system.product, products.vjp(system.solved(targets)))
        dual = system.solved(targets - products.jvp(change))
        return system._replace(change=change, weights=embedded.T @ dual)

    def _matched(self, trained: "_Trained", real: Batch) -> "_Matched":
        """Return the real loss of a trained network, and its gradients, portion by portion."""
        whole, inputs = real.weight.sum(), one_tensor(real.inputs, "implicit gradients")
        size = len(inputs)
        if inputs.device.type == "cpu":
            size = max(1, DIFFERENTIATED // max(inputs[0].numel(), 1))
        sums: list[Tensor] = []
        for start in range(0, len(inputs), size):
            part = take(real, slice(start, start + size))
            found = trained.matched(part, self.log_scale, whole)
            sums = [total + one for total, one in zip(sums, found, strict=True)] if sums else list(found)
        return _Matched(*sums)

    def _joint(self, direct: Tensor, implicit: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        """Return the gradients of both terms together."""
        if not self.clip:
            return list(torch.autograd.grad(direct + implicit, leaves))
        first = torch.autograd.grad(direct, leaves, retain_graph=True)
        second = torch.autograd.grad(implicit, leaves)
        return [a + b * (a.norm() / b.norm()).clamp(max=1).nan_to_num() for a, b in zip(first, second, strict=True)]


class _Matched(NamedTuple):
    """The real loss with its gradients.

    Args:
        loss: the cross entropy, a scalar.
        by_weights: ``(d, C)``, by the last layer's weights.
        by_change: by the change of the other parameters, a vector.
        by_scale: by the logarithm of the scale, a scalar.
    """

    loss: Tensor
    by_weights: Tensor
    by_change: Tensor
    by_scale: Tensor


class _Trained(NamedTuple):
    """A linearised network, the system of its training on n samples, and its solution.

    Args:
        linear: the network.
        amount: lambda.
        products: of its Jacobian on the samples.
        factor: Cholesky's of the kernel with lambda, ``(n, n)`` in float64.
        change: of all parameters but the last layer's weights, a vector.
        weights: of the last layer, ``(d, C)``.
    """

    linear: LinearizedNetwork
    amount: float
    products: Products
    factor: Tensor
    change: Tensor
    weights: Tensor

    def solved(self, rest: Tensor) -> Tensor:
        """Return the kernel's coefficients of ``(n, C)`` residuals."""
        return torch.cholesky_solve(rest.double(), self.factor).to(self.products.embedded)

    def product(self, vector: Tensor) -> Tensor:
        """Return the system's product with a vector."""
        return self.products.vjp(self.solved(self.products.jvp(vector))) + vector

    def pulled(self, found: _Matched) -> Tensor:
        """Return the real loss's gradient by the change, which moves the last layer's weights too."""
        products = self.products
        return found.by_change - products.vjp(self.solved(products.embedded @ found.by_weights))

    def matched(self, part: Batch, log_scale: Tensor, whole: Tensor) -> _Matched:
        """Return what some real samples add to a weighted mean over all."""
        inputs = one_tensor(part.inputs)
        embedded, outputs = self.linear.jvp(inputs, self.change)
        prediction = (outputs + embedded @ self.weights).requires_grad_()
        scale = log_scale.detach().to(prediction).requires_grad_()
        with torch.enable_grad():
            losses = soft_cross_entropy(scale.exp() * prediction, one_tensor(part.targets, "the cross entropy"))
            loss = (losses * part.weight.to(losses)).sum() / whole.to(losses)
        cotangent, by_scale = torch.autograd.grad(loss, [prediction, scale])
        return _Matched(loss.detach(), embedded.T @ cotangent, self.linear.vjp(inputs, cotangent), by_scale)


def _terms(
    trained: _Trained, found: _Matched, adjoint: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the direct and the implicit gradient are those of, as functions of samples that train."""
    with ExactNorms():
        embedded, outputs = trained.linear.jvp(inputs, trained.change)
        _, along = trained.linear.jvp(inputs, adjoint)
    kernel = embedded.double() @ embedded.double().T
    dual = ridge_solution(kernel, targets - outputs, trained.amount, "absolute").to(embedded)
    return ((embedded.T @ dual) * found.by_weights).sum(), (along * dual).sum()
