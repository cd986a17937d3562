"""A network linearised in its parameters: its first-order expansion around their current values."""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.inner_steps import Layout
from mmdistill.networks.trial import fresh_network
from mmdistill.task import Inputs, NetworkState, Task, Tensors, num_samples


class Readout(NamedTuple):
    """The last, linear layer: the names of its weight ``(C, d)`` and of its bias, or None without a bias."""

    weight: str
    bias: str | None

    def outputs(self, params: Tensors, embedded: Tensor) -> Tensor:
        """Return the layer's outputs ``(..., C)`` of embeddings ``(..., d)``."""
        outputs = embedded @ params[self.weight].T
        return outputs if self.bias is None else outputs + params[self.bias]


def readout_of(state: NetworkState, classes: int, width: int) -> Readout:
    """Return the last layer whose weight has the shape of a linear map from embeddings to outputs.

    Args:
        state: the network.
        classes: C.
        width: d, an embedding's width.

    Raises:
        ConfigError: there is none.
    """
    weights = [name for name, p in state.params.items() if p.shape == (classes, width) and name.endswith("weight")]
    if not weights:
        raise ConfigError(f"the network has no linear layer of {classes} outputs on an embedding of {width}")
    bias = weights[-1].removesuffix("weight") + "bias"
    return Readout(weights[-1], bias if bias in state.params else None)


class LinearizedNetwork:
    r"""The first-order change of a network's outputs with all parameters but the last layer's weight.

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
        """Return the embeddings ``(n, d)`` at the parameters ``body``."""
        params = {**body, self.weight_name: self.weight}
        return self.task.features(NetworkState(params, self.buffers), inputs)[-1]

    def jvp(self, inputs: Inputs, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings ``(n, d)`` at the point of expansion, and the outputs' change ``(n, C)`` in a direction."""
        tangents = self.layout.unflatten(direction)
        result = torch.func.jvp(lambda body: self.embeddings(body, inputs), (self.body,), (tangents,))
        embedded, embedding_change = result[0], result[1]
        return embedded, self._output_change(embedding_change, tangents)

    def vjp(self, inputs: Inputs, cotangent: Tensor) -> Tensor:
        """Return the vector-Jacobian product of a cotangent ``(n, C)`` of the outputs, laid out as ``layout`` says."""
        embedded, leaves = self._record_embeddings(inputs)
        return self._vjp(embedded, leaves, cotangent)

    def recorded_products(self, inputs: Inputs) -> "Products":
        """Return embeddings with Jacobian products that can be taken any number of times, from one recorded graph.

        A Jacobian-vector product is then the derivative of a vector-Jacobian product with respect to its cotangent,
        without running the network again: less than half the time of forward mode, for a hundred images.
        """
        embedded, leaves = self._record_embeddings(inputs)
        cotangent = torch.zeros_like(embedded).requires_grad_()
        gradients = torch.autograd.grad(
            embedded, list(leaves.values()), cotangent, retain_graph=True, create_graph=True, materialize_grads=True
        )

        def jvp(direction: Tensor) -> Tensor:
            tangents = self.layout.unflatten(direction)
            (change,) = torch.autograd.grad(gradients, cotangent, list(tangents.values()), retain_graph=True)
            return self._output_change(change, tangents)

        return Products(embedded.detach(), jvp, lambda cotangent: self._vjp(embedded, leaves, cotangent))

    def _record_embeddings(self, inputs: Inputs) -> tuple[Tensor, Tensors]:
        """Return embeddings with their graph, and the parameters that are its leaves."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.body.items()}
        with torch.enable_grad():
            return self.embeddings(leaves, inputs), leaves

    def _vjp(self, embedded: Tensor, leaves: Tensors, cotangent: Tensor) -> Tensor:
        embedded_cotangent = cotangent @ self.weight
        gradients = torch.autograd.grad(
            embedded, list(leaves.values()), embedded_cotangent, retain_graph=True, materialize_grads=True
        )
        by_name = dict(zip(leaves, gradients, strict=True))
        if self.bias_name is not None:
            by_name[self.bias_name] = by_name[self.bias_name] + cotangent.sum(0)
        return self.layout.flatten(by_name)

    def _output_change(self, embedding_change: Tensor, tangents: Tensors) -> Tensor:
        change = embedding_change @ self.weight.T
        return change if self.bias_name is None else change + tangents[self.bias_name]


class Products(NamedTuple):
    """The products of a linearised network's Jacobian on n samples.

    Args:
        embedded: embeddings ``(n, d)``.
        jvp: maps a direction to the change of outputs ``(n, C)``.
        vjp: maps a cotangent ``(n, C)`` to a vector in the layout of directions.
    """

    embedded: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]


def require_readout(name: str, task: Task) -> None:
    """Refuse a task whose outputs are not a linear function of the embedding, by running a fresh network.

    Args:
        name: the method, for the message.
        task: the task, whose network has embeddings.
    Raises:
        ConfigError: the network does not end with such a layer.
    """
    state, inputs = fresh_network(task)
    with torch.no_grad():
        embedded, outputs = task.features(state, inputs)[-1], task.predict(state, inputs)[0]
        with suppress(ConfigError):
            readout = readout_of(state, task.num_classes or 0, embedded.shape[1])
            expected = readout.outputs(state.params, embedded)
            if expected.shape == outputs.shape and torch.allclose(expected, outputs, rtol=1e-3, atol=1e-4):
                return
    raise ConfigError(
        f"{name} reads the weights of the last layer, but the outputs of the network of "
        f"{task.describe().data!r} are no linear function of its embedding of width {embedded.shape[1]} for "
        f"{num_samples(inputs)} samples; let the network end with the nn.Linear whose input the embedding is"
    )
