"""A network that is linear in its parameters: its first-order expansion around the ones that it has."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.inner_steps import Layout
from mmdistill.networks.trial import fresh_network
from mmdistill.task import Inputs, NetworkState, Task, Tensors, num_samples


class Readout(NamedTuple):
    """The last, linear layer: the names of its weight ``(C, d)`` and of its bias; None where it has none."""

    weight: str
    bias: str | None

    def outputs(self, params: Tensors, embedded: Tensor) -> Tensor:
        """Return what the layer makes of embeddings ``(..., d)``."""
        found = embedded @ params[self.weight].T
        return found if self.bias is None else found + params[self.bias]


def readout_of(state: NetworkState, classes: int, width: int) -> Readout | None:
    """Return the last layer that can be linear from embeddings to outputs, by the shapes of its parameters.

    Args:
        state: the network.
        classes: C.
        width: d, that of an embedding.
    """
    fitting = [name for name, p in state.params.items() if p.shape == (classes, width) and name.endswith("weight")]
    if not fitting:
        return None
    bias = fitting[-1].removesuffix("weight") + "bias"
    return Readout(fitting[-1], bias if bias in state.params else None)


class LinearizedNetwork:
    r"""The change of a network's outputs to first order in that of all parameters but the last layer's weight.

    .. math:: J(x)\, \omega = W_0\, D\phi(x)[\omega] + \omega_b

    with the embedding :math:`\phi`, the last weight :math:`W_0` and the last bias's share :math:`\omega_b`. Directions
    :math:`\omega` are vectors, laid out as ``layout`` says.

    Args:
        task: the task, whose networks run in eval mode.
        state: the point of expansion.
        readout: the last layer.
    """

    def __init__(self, task: Task, state: NetworkState, readout: Readout) -> None:
        self.task = task
        self.buffers = state.buffers
        self.weight, self.weight_name, self.bias_name = state.params[readout.weight].detach(), *readout
        self.body = {name: p.detach() for name, p in state.params.items() if name != readout.weight}
        self.layout = Layout.of(self.body)

    def embeddings(self, body: Tensors, inputs: Inputs) -> Tensor:
        """Return ``(n, d)`` embeddings at given parameters."""
        params = {**body, self.weight_name: self.weight}
        return self.task.features(NetworkState(params, self.buffers), inputs)[-1]

    def jvp(self, inputs: Inputs, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings ``(n, d)`` at the point of expansion, and the outputs' change ``(n, C)`` in a direction."""
        tangents = self.layout.unflatten(direction)
        found = torch.func.jvp(lambda body: self.embeddings(body, inputs), (self.body,), (tangents,))
        return found[0], self._outputs(found[1], tangents)

    def vjp(self, inputs: Inputs, cotangent: Tensor) -> Tensor:
        """Return the vector-Jacobian product of a cotangent ``(n, C)`` of the outputs, laid out as ``layout`` says."""
        embedded, leaves = self._recorded(inputs)
        return self._vjp(embedded, leaves, cotangent)

    def recorded_products(self, inputs: Inputs) -> "Products":
        """Return embeddings with Jacobian products that can be taken any number of times, from one recorded graph.

        A Jacobian-vector product is then the derivative of a vector-Jacobian product by its cotangent, without running
        the network again: less than half the time of forward mode, for a hundred images.
        """
        embedded, leaves = self._recorded(inputs)
        above = torch.zeros_like(embedded).requires_grad_()
        with torch.enable_grad():
            found = torch.autograd.grad(
                embedded, list(leaves.values()), above, retain_graph=True, create_graph=True, materialize_grads=True
            )
        reached = [(name, gradient) for name, gradient in zip(leaves, found, strict=True) if gradient.requires_grad]

        def jvp(direction: Tensor) -> Tensor:
            tangents = self.layout.unflatten(direction)
            (moved,) = torch.autograd.grad(
                [gradient for _, gradient in reached], above, [tangents[name] for name, _ in reached], retain_graph=True
            )
            return self._outputs(moved, tangents)

        return Products(embedded.detach(), jvp, lambda cotangent: self._vjp(embedded, leaves, cotangent))

    def _recorded(self, inputs: Inputs) -> tuple[Tensor, Tensors]:
        """Return embeddings with the graph by which they depend on the parameters."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.body.items()}
        with torch.enable_grad():
            return self.embeddings(leaves, inputs), leaves

    def _vjp(self, embedded: Tensor, leaves: Tensors, cotangent: Tensor) -> Tensor:
        above = cotangent @ self.weight
        found = torch.autograd.grad(embedded, list(leaves.values()), above, retain_graph=True, materialize_grads=True)
        named = dict(zip(leaves, found, strict=True))
        if self.bias_name is not None:
            named[self.bias_name] = named[self.bias_name] + cotangent.sum(0)
        return self.layout.flatten(named)

    def _outputs(self, moved: Tensor, tangents: Tensors) -> Tensor:
        outputs = moved @ self.weight.T
        return outputs if self.bias_name is None else outputs + tangents[self.bias_name]


class Products(NamedTuple):
    """The products of a linearised network's Jacobian on n samples.

    Args:
        embedded: embeddings ``(n, d)``.
        jvp: from a direction to the change of outputs ``(n, C)``.
        vjp: from cotangents ``(n, C)`` to a vector of all directions.
    """

    embedded: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]


def require_readout(name: str, task: Task) -> None:
    """Refuse a task whose outputs are not a linear function of the embedding, by running a fresh network.

    Args:
        name: who asks, for the message.
        task: the task, whose network has embeddings.
    Raises:
        ConfigError: no such layer.
    """
    state, inputs = fresh_network(task)
    with torch.no_grad():
        embedded, outputs = task.features(state, inputs)[-1], task.predict(state, inputs)[0]
        readout = readout_of(state, task.num_classes or 0, embedded.shape[1])
        if readout is not None:
            found = readout.outputs(state.params, embedded)
            if found.shape == outputs.shape and torch.allclose(found, outputs, rtol=1e-3, atol=1e-4):
                return
    raise ConfigError(
        f"{name} reads the weights of the last layer, but the outputs of the network of "
        f"{task.describe().data!r} are no linear function of its embedding of width {embedded.shape[1]} for "
        f"{num_samples(inputs)} samples; let the network end with the nn.Linear whose input the embedding is"
    )
