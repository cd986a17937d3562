"""A classifier of graphs, padded or side by side: convolutions, mean pooling, a linear head."""

import torch
from torch import Tensor

from mmdistill.errors import ShapeError
from mmdistill.graph.models import GraphNetwork, glorot
from mmdistill.graph.propagation import operator
from mmdistill.runtime import Draws
from mmdistill.task import Inputs, NetworkState, Tensors

GCN = "gcn"
"""The name of :class:`GraphClassifier`, as a network and as a judge."""
WIDTH = 128
"""Default units of a layer."""
DEPTH = 3
"""The number of convolutions."""
PADDED = frozenset({"x", "adjacency", "present"})
JOINED = frozenset({"sizes", "x", "owner", "pointer", "column", "weight", "scale"})
"""Names of the inputs in the two forms of :class:`~mmdistill.graph.sets.data.GraphSet`."""


def graph_inputs(inputs: Inputs) -> Tensors:
    """Return the inputs of graphs by name.

    Raises:
        ShapeError: they are neither padded nor joined graphs.
    """
    if not isinstance(inputs, dict) or set(inputs) not in (PADDED, JOINED):
        raise ShapeError("graphs are a dict of x (n, m, d), adjacency (n, m, m) and present (n, m), or joined ones")
    return inputs


class GraphClassifier(GraphNetwork):
    r"""Graph convolutions :math:`\mathrm{relu}(\hat A H W + b)`, the mean over a graph's nodes, and a linear head.

    Args:
        features: d.
        classes: C.
        width: units of each layer.
        device: where parameters are drawn.
    Source: Kipf and Welling, ICLR 2017; Jin et al., KDD 2022, Sec. 4.1.
    """

    def __init__(self, features: int, classes: int, width: int = WIDTH, device: torch.device | str = "cpu") -> None:
        self.sizes = [features, *[width] * DEPTH]
        self.classes, self.device = classes, torch.device(device)

    @property
    def name(self) -> str:
        """Its name in reports."""
        return GCN

    @property
    def description(self) -> str:
        """The parts of the network that its parameters' shapes do not show."""
        return f"{type(self).__name__}(depth={DEPTH}, relu, mean pooling)"

    def init(self, draws: Draws) -> NetworkState:
        """Draw weights and zero biases."""
        draws = draws.to(self.device)
        params: Tensors = {}
        for index, (into, out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            params[f"layer{index}.weight"] = glorot(draws.fold(index), out, into)
            params[f"layer{index}.bias"] = torch.zeros(out, device=self.device)
        params["head.weight"] = glorot(draws.fold("head"), self.classes, self.sizes[-1])
        params["head.bias"] = torch.zeros(self.classes, device=self.device)
        return NetworkState(params, {})

    def embed(self, params: Tensors, inputs: Tensors) -> Tensor:
        """Return each graph's mean node after the convolutions, ``(n, width)``."""
        hidden, multiply = inputs["x"], operator(inputs)
        for index in range(DEPTH):
            weight, bias = params[f"layer{index}.weight"], params[f"layer{index}.bias"]
            hidden = (multiply(hidden @ weight.mT) + bias).relu()
        if "sizes" in inputs:
            total = hidden.new_zeros(len(inputs["sizes"]), hidden.shape[1]).index_add(0, inputs["owner"], hidden)
            return total / inputs["sizes"].unsqueeze(1)
        present = inputs["present"]
        return (present.unsqueeze(-1) * hidden).sum(-2) / present.sum(-1, keepdim=True)

    def logits(
        self, state: NetworkState, inputs: Tensors, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return ``(n, C)`` logits; there are neither buffers nor dropout."""
        params = state.params
        return self.embed(params, inputs) @ params["head.weight"].mT + params["head.bias"], {}

    def layers(self, state: NetworkState, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return the pooled embedding."""
        return (self.embed(state.params, inputs),)
