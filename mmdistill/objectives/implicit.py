"""Performance matching by implicit gradients: the real loss of a linearised network trained to convergence (RCIG)."""

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
    r"""Minimise the real loss of a linearised network trained to convergence on S, by implicit differentiation.

    The network is linearised in all parameters but the last layer's weights w, which are solved for in closed form.
    With embeddings :math:`\Phi`, the Jacobian J of the outputs, the change :math:`\omega` of the other parameters, and
    :math:`\lambda = n` times ``l2``, training is

    .. math:: \omega^* = \arg\min_\omega \min_w
        \lVert Y_s - J_s \omega - \Phi_s w \rVert^2 + \lambda \lVert w \rVert^2
        + \lambda \lVert \omega \rVert^2

    a strongly convex quadratic problem. The loss is the cross entropy of :math:`e^k (J_t \omega^* + \Phi_t w^*)`, with
    a learned k (Platt scaling; optimizer group ``objective``), minus a margin of the labels, at most 1/2C. Its gradient
    is the sum of the direct one, with :math:`\omega^*` held constant but not :math:`w^*`, and the implicit one,

    .. math:: \nabla_S \big\langle J_s v, (\Phi_s \Phi_s^\top + \lambda I)^{-1} (Y_s - J_s \omega^*) \big\rangle, \quad
        A v = \nabla_\omega \ell_t, \quad A = J_s^\top (\Phi_s \Phi_s^\top + \lambda I)^{-1} J_s + I

    with v held constant. Both :math:`\omega^*` and the adjoint v are solved for iteratively from 0, so the gradient is
    exact up to the solver's residual.

    Args:
        l2: lambda over the number of synthetic samples; absolute, in the unit of the embeddings.
        solver: solves for the change, and for the adjoint unless ``inverse`` does.
        inverse: solves for the adjoint; None: ``solver`` does.
        clip: clip the implicit gradient of images and labels to the norm of the direct one.

    Shapes:
        flat batches; synthetic class indices count as one-hot minus 1/C; returns a scalar.
    Raises:
        ConfigError: an l2 that is not positive, a task of fewer than two classes, or a network that does not end with a
            linear layer on its embedding.
    Differs from: in the published code a change of the last layer's weight takes part in the second system only, which
        changes gradients by about a tenth. It solves both systems by 20 steps of Adam, whose step count goes on from
        the pool network's training, at rates found by trial, the first of which it adapts during the run.
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
        """Return the samples that the network trains on; subclasses may add to the synthetic ones."""
        return syn

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the real loss minus the margin.

        Raises:
            ShapeError: inputs or targets are a named dict.
        """
        syn, real = flatten_classes(syn), flatten_classes(real)
        sources = [one_tensor(syn.inputs, "implicit gradients"), one_tensor(syn.targets, "implicit gradients")]
        leaves = [source.detach().requires_grad_(source.is_floating_point()) for source in sources]
        with torch.enable_grad():
            samples = self.joined(network, Batch(leaves[0], leaves[1], syn.weight))
            inputs, targets = one_tensor(samples.inputs), synthetic_targets(samples, network)
            margin = label_margin(targets, 0.5)
        with torch.no_grad():
            solution = self._solve_inner(network, inputs.detach(), targets.detach(), self.l2 * len(leaves[0]))
            outer = self._outer_loss(solution, real)
        value = outer.loss + margin.detach().to(outer.loss)
        if not torch.is_grad_enabled():
            return value
        with torch.no_grad():
            adjoint = self.inverse.solve(solution.hessian_product, solution.total_gradient(outer))
        with torch.enable_grad():
            direct, implicit = _gradient_terms(solution, outer, adjoint, inputs, targets)
            learned_leaves = [leaf for leaf in leaves if leaf.requires_grad]
            gradients = self._combine_gradients(direct + margin.to(direct), implicit, learned_leaves)
        learned = [source for source, leaf in zip(sources, leaves, strict=True) if leaf.requires_grad]
        return with_gradients(value, [*learned, self.log_scale], [*gradients, outer.by_scale.to(self.log_scale)])

    def learned(self) -> Tensors:
        """Return Platt's k."""
        return {"platt_log_scale": self.log_scale.detach()}

    def _solve_inner(self, network: Network, inputs: Tensor, targets: Tensor, ridge: float) -> "_InnerSolution":
        """Linearise the network and train it to convergence on the samples."""
        width = network.task.features(network.state, inputs[:1])[-1].shape[1]
        linear = LinearizedNetwork(network.task, network.state, readout_of(network.state, targets.shape[1], width))
        products = linear.recorded_products(inputs)
        embedded = products.embedded
        factor = ridge_factor(embedded.double() @ embedded.double().T, ridge, "absolute")
        system = _InnerSolution(linear, ridge, products, factor, embedded, embedded)  # the last two are replaced below
        change = self.solver.solve(system.hessian_product, products.vjp(system.coefficients(targets)))
        dual = system.coefficients(targets - products.jvp(change))
        return system._replace(change=change, weights=embedded.T @ dual)

    def _outer_loss(self, solution: "_InnerSolution", real: Batch) -> "_OuterLoss":
        """Compute the real loss of the trained network and its gradients, portion by portion."""
        total_weight, inputs = real.weight.sum(), one_tensor(real.inputs, "implicit gradients")
        size = len(inputs)
        if inputs.device.type == "cpu":
            size = max(1, DIFFERENTIATED // max(inputs[0].numel(), 1))
        sums: list[Tensor] = []
        for start in range(0, len(inputs), size):
            part = take(real, slice(start, start + size))
            terms = solution.outer_loss(part, self.log_scale, total_weight)
            sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else list(terms)
        return _OuterLoss(*sums)

    def _combine_gradients(self, direct: Tensor, implicit: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        """Return the sum of both terms' gradients, the implicit one clipped if asked for."""
        if not self.clip:
            return list(torch.autograd.grad(direct + implicit, leaves))
        of_direct = torch.autograd.grad(direct, leaves, retain_graph=True)
        of_implicit = torch.autograd.grad(implicit, leaves)
        pairs = zip(of_direct, of_implicit, strict=True)
        return [a + b * (a.norm() / b.norm()).clamp(max=1).nan_to_num() for a, b in pairs]


class _OuterLoss(NamedTuple):
    """The real loss with its gradients.

    Args:
        loss: the cross entropy, a scalar.
        by_weights: the gradient with respect to the last layer's weights, ``(d, C)``.
        by_change: that with respect to the change of the other parameters, a vector.
        by_scale: that with respect to the logarithm of the scale, a scalar.
    """

    loss: Tensor
    by_weights: Tensor
    by_change: Tensor
    by_scale: Tensor


class _InnerSolution(NamedTuple):
    """A linearised network, the linear system of its training on n samples, and the system's solution.

    Args:
        linear: the network.
        ridge: lambda.
        products: products with the network's Jacobian on the samples.
        factor: the Cholesky factor of the embeddings' kernel plus lambda, ``(n, n)`` in float64.
        change: the change of all parameters but the last layer's weights, a vector.
        weights: the last layer's weights, ``(d, C)``.
    """

    linear: LinearizedNetwork
    ridge: float
    products: Products
    factor: Tensor
    change: Tensor
    weights: Tensor

    def coefficients(self, residuals: Tensor) -> Tensor:
        """Return the kernel ridge coefficients of residuals, both ``(n, C)``."""
        return torch.cholesky_solve(residuals.double(), self.factor).to(self.products.embedded)

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return A times a vector; A is the Hessian of the training loss in the change, up to a factor."""
        return self.products.vjp(self.coefficients(self.products.jvp(vector))) + vector

    def total_gradient(self, outer: _OuterLoss) -> Tensor:
        """Return the real loss's gradient with respect to the change, including its effect through the weights."""
        products = self.products
        return outer.by_change - products.vjp(self.coefficients(products.embedded @ outer.by_weights))

    def outer_loss(self, part: Batch, log_scale: Tensor, total_weight: Tensor) -> _OuterLoss:
        """Return the part of the weighted mean loss that some real samples contribute, and its gradients."""
        inputs = one_tensor(part.inputs)
        embedded, outputs = self.linear.jvp(inputs, self.change)
        prediction = (outputs + embedded @ self.weights).requires_grad_()
        scale = log_scale.detach().to(prediction).requires_grad_()
        with torch.enable_grad():
            losses = soft_cross_entropy(scale.exp() * prediction, one_tensor(part.targets, "the cross entropy"))
            loss = (losses * part.weight.to(losses)).sum() / total_weight.to(losses)
        cotangent, by_scale = torch.autograd.grad(loss, [prediction, scale])
        return _OuterLoss(loss.detach(), embedded.T @ cotangent, self.linear.vjp(inputs, cotangent), by_scale)


def _gradient_terms(
    solution: _InnerSolution, outer: _OuterLoss, adjoint: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return two scalars whose gradients with respect to the training samples are the direct and the implicit one."""
    with ExactNorms():
        embedded, outputs = solution.linear.jvp(inputs, solution.change)
        _, adjoint_outputs = solution.linear.jvp(inputs, adjoint)
    kernel = embedded.double() @ embedded.double().T
    dual = ridge_solution(kernel, targets - outputs, solution.ridge, "absolute").to(embedded)
    return ((embedded.T @ dual) * outer.by_weights).sum(), (adjoint_outputs * dual).sum()
