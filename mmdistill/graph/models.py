"""Networks on graphs as functions of their parameters: SGC, GCN, MLP, and any user's module.

Inputs are a named dict: node features ``x (n, d)`` and, where there is structure, the edges that
:func:`mmdistill.graph.propagation.operator` reads. Two-layer networks also take some nodes without the whole graph, as
:meth:`mmdistill.graph.scene.Scene.neighbourhoods` returns them.
"""

import inspect
import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mmdistill.checks import require_at_least
from mmdistill.described import described_module
from mmdistill.errors import ConfigError, MmdistillWarning, ShapeError, UnsupportedError
from mmdistill.graph.propagation import Operator, by_rows, operator
from mmdistill.labels import is_distribution
from mmdistill.names import first_few
from mmdistill.networks.module import FunctionalModule, ModuleFactory, made_by
from mmdistill.runtime import Draws, global_draws_from, host_draws_from
from mmdistill.task import Inputs, NetworkState, Tensors

logger = logging.getLogger(__name__)

HOPS = 2
"""SGC's default hops, as many as the field's two-layer networks take; also those of embeddings and pictures."""
MODELS = ("sgc", "gcn", "mlp")
"""Own networks by name."""
WITHOUT_EDGES = "method without structure (A' = I: gcond-x, gcdm-x or krr)"
"""What to use with a network that reads no edge weights; messages name it."""
STRONG = 0.5
"""Networks that take no weights read pairs from this weight on as edges, like GAT in the published comparison on Cora
and Citeseer."""
WEIGHT_NAMES = ("edge_weight", "edge_weights", "weight", "weights", "w")
"""Names by which a module's third argument counts as the edges' weights."""


def named(inputs: Inputs) -> Tensors:
    """Return a graph's inputs by name.

    Raises:
        ShapeError: they are no dict with node features ``x``.
    """
    if not isinstance(inputs, dict) or "x" not in inputs:
        raise ShapeError("a graph's inputs are a dict with node features 'x' and, where there is structure, edges")
    return inputs


class GraphNetwork(ABC):
    """A node classifier whose parameters are passed in.

    Args:
        hops: the network reads only the real nodes' rows of A^hops X (SGC: its hops, MLP: 0); None: it reads the graph.
        two_layers: whether the real nodes' neighbourhoods, propagated once, can replace the graph (GCN).
        normalised: whether ``edge_index`` and ``edge_weight`` are those of the normalised adjacency (own networks)
            or the raw edges (modules, whose layers normalise).
    """

    hops: int | None = None
    two_layers: bool = False
    normalised: bool = True

    @property
    def name(self) -> str:
        """Its name in reports; empty: they show its description."""
        return ""

    @property
    def description(self) -> str:
        """The parts of the network that its parameters' shapes do not show."""
        return f"{type(self).__name__}(hops={self.hops})"

    @abstractmethod
    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network."""

    @abstractmethod
    def logits(
        self, state: NetworkState, inputs: Tensors, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return ``(n, C)`` logits and the buffers after the call."""

    @abstractmethod
    def layers(self, state: NetworkState, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return one ``(n, d_l)`` tensor per layer, the embedding before the linear head last."""

    def precomputed(self, inputs: Tensors) -> Tensors:
        """Return inputs that give the same logits, with all computed that does not depend on parameters."""
        return inputs

    def settled(self, state: NetworkState, inputs: Tensors) -> NetworkState:
        """Return the network with batch norm statistics of the inputs; own networks have no batch norms."""
        return state


def glorot(draws: Draws, out: int, into: int) -> Tensor:
    """Draw an ``(out, into)`` weight from Glorot's uniform distribution, the field's choice for graph convolutions."""
    bound = math.sqrt(6 / (out + into))
    return draws.uniform(out, into, low=-bound, high=bound)


class SGC(GraphNetwork):
    r"""Simplified graph convolution: softmax regression on :math:`\hat A^K X`.

    Args:
        features: d.
        classes: C.
        hops: K.
        device: where parameters are drawn.
    Raises:
        ConfigError: no whole number of hops.
    Source: Wu et al., ICML 2019, Eq. 8.
    """

    def __init__(self, features: int, classes: int, hops: int = HOPS, device: torch.device | str = "cpu") -> None:
        self.features, self.classes, self.device = features, classes, torch.device(device)
        self.hops: int = hops
        require_at_least(self, {"hops": 0})

    @property
    def name(self) -> str:
        """Its name in :data:`MODELS`, with the hops if they are not :data:`HOPS`."""
        return "sgc" if self.hops == HOPS else f"sgc(hops={self.hops})"

    def init(self, draws: Draws) -> NetworkState:
        """Draw weight ``(C, d)`` and a zero bias."""
        weight = glorot(draws.to(self.device), self.classes, self.features)
        return NetworkState({"weight": weight, "bias": torch.zeros(self.classes, device=self.device)}, {})

    def embed(self, inputs: Tensors) -> Tensor:
        """Return the features after K hops; inputs without edges are propagated already."""
        multiply, x = operator(inputs), inputs["x"]
        for _ in range(self.hops):
            x = multiply(x)
        return x

    def precomputed(self, inputs: Tensors) -> Tensors:
        """Return the propagated features, without edges."""
        return {"x": self.embed(inputs)}

    def logits(
        self, state: NetworkState, inputs: Tensors, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return logits, without dropout."""
        return self.embed(inputs) @ state.params["weight"].mT + state.params["bias"], {}

    def layers(self, state: NetworkState, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return the propagated features."""
        return (self.embed(inputs),)

    def class_gradients(self, state: NetworkState, inputs: Tensors, targets: Tensor, weight: Tensor) -> Tensors:
        r"""Return per-class gradients in closed form, :math:`(P - Y)^\top W_c Z / \sum w_c`.

        P are the predicted probabilities; for targets that are no distributions, the logits, as in
        :func:`~mmdistill.labels.target_loss`.

        Shapes:
            weight ``(C', n)``; inputs and soft ``targets`` with or without a leading class axis; returns
            weight ``(C', C, d)`` and bias ``(C', C)``.
        """
        z = self.embed(inputs)
        logits = z @ state.params["weight"].mT + state.params["bias"]
        entropy = is_distribution(targets)[..., None]
        predicted = torch.where(entropy, logits.softmax(-1) * targets.sum(-1, True), logits)
        share = (weight / weight.sum(1, keepdim=True)).unsqueeze(-1)
        error = share * (predicted - targets)
        return {"weight": error.mT @ z, "bias": error.sum(1)}


class GCN(GraphNetwork):
    r"""Two-layer graph convolutional network: :math:`\hat A\, \mathrm{relu}(\hat A X W_1 + b_1) W_2 + b_2`.

    Args:
        features: d.
        classes: C.
        width: hidden units.
        dropout: of the hidden layer, in training.
        propagates: False makes it a multi-layer perceptron on the nodes' own features.
        device: where parameters are drawn.
    Source: Kipf and Welling, ICLR 2017.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        width: int = 256,
        dropout: float = 0.5,
        propagates: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.features, self.classes, self.width, self.dropout = features, classes, width, dropout
        self.device = torch.device(device)
        self.hops = None if propagates else 0
        self.two_layers = propagates

    @property
    def name(self) -> str:
        """Its name in :data:`MODELS`."""
        return "gcn" if self.hops is None else "mlp"

    @property
    def description(self) -> str:
        """Its hops and dropout."""
        return f"{type(self).__name__}(hops={self.hops}, dropout={self.dropout})"

    def init(self, draws: Draws) -> NetworkState:
        """Draw both weights and zero biases."""
        draws = draws.to(self.device)
        params = {
            "first.weight": glorot(draws.fold("first"), self.width, self.features),
            "first.bias": torch.zeros(self.width, device=self.device),
            "second.weight": glorot(draws.fold("second"), self.classes, self.width),
            "second.bias": torch.zeros(self.classes, device=self.device),
        }
        return NetworkState(params, {})

    def precomputed(self, inputs: Tensors) -> Tensors:
        """Return the inputs, without the edges that a multi-layer perceptron does not read."""
        return inputs if self.hops is None else {"x": inputs["x"]}

    def _hidden(self, params: Tensors, inputs: Tensors) -> tuple[Tensor, Operator]:
        """Return the hidden units, and the propagation that follows them."""
        multiply = operator(self.precomputed(inputs))
        hidden = (multiply(inputs["x"] @ params["first.weight"].mT) + params["first.bias"]).relu()
        return hidden, by_rows(inputs["second"]) if "second" in inputs else multiply

    def logits(
        self, state: NetworkState, inputs: Tensors, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return logits; dropout needs ``train`` and draws."""
        params = state.params
        hidden, multiply = self._hidden(params, inputs)
        if train and self.dropout and draws is not None:
            mask = draws.to(hidden.device).uniform(*hidden.shape[-2:]) >= self.dropout
            hidden = hidden * mask / (1 - self.dropout)
        return multiply(hidden @ params["second.weight"].mT) + params["second.bias"], {}

    def layers(self, state: NetworkState, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return the hidden units after the second propagation, as the head reads them."""
        hidden, multiply = self._hidden(state.params, inputs)
        return (multiply(hidden),)


class ModuleNetwork(GraphNetwork):
    """Any graph module with ``forward(x, edge_index[, edge_weight])``, such as torch-geometric's.

    A synthetic graph without structure has no edges. With structure, the module gets all ordered pairs of nodes while
    their weights learn; to train on the graph (:meth:`precomputed`), it gets the pairs of weight above 0. A module that
    takes no weights, which torch-geometric's models state in ``supports_edge_weight``, trains on the pairs of weight
    0.5 or more, and no weights learn through it. Layers that keep what they compute of a graph (``cached=True``)
    compute it anew each time, since a network here reads several graphs.

    Args:
        factory: makes a freshly initialised module.
        features: the submodule whose input is the embedding; by default the last convolution or linear layer.
        device: where parameters live.
    Raises:
        ConfigError: the module requires a third argument that is no weight (:data:`WEIGHT_NAMES`).
    """

    normalised = False

    def __init__(
        self, factory: ModuleFactory, features: str | Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        with host_draws_from(0):  # its structure is read; each network's weights are drawn by a key of its own
            module = made_by(factory)
        names = features or _head(module)
        self.functional = FunctionalModule(factory, names, device)
        stop_caching(self.functional.module)
        self.takes_weight = _takes_weight(module)

    @property
    def description(self) -> str:
        """The module in its own words."""
        return described_module(self.functional.module)

    def init(self, draws: Draws) -> NetworkState:
        """Draw parameters as the module's constructor does."""
        return self.functional.init(draws)

    def precomputed(self, inputs: Tensors) -> Tensors:
        """Replace the weights of all pairs of nodes by a list of the graph's edges."""
        if "adjacency" not in inputs:
            return inputs
        weight = inputs["adjacency"]
        edges = (weight > 0 if self.takes_weight else weight >= STRONG).nonzero().T
        return {"x": inputs["x"], "edge_index": edges, "edge_weight": weight[edges[0], edges[1]]}

    def _arguments(self, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return the module's positional arguments.

        Raises:
            UnsupportedError: weights of all pairs, which may learn, for a module that takes none.
        """
        x = inputs["x"]
        if "adjacency" in inputs:
            if not self.takes_weight:
                raise UnsupportedError(
                    f"{type(self.functional.module).__name__} takes no edge_weight as its third argument, or ignores "
                    f"it, so edge weights cannot be learned through it; use a {WITHOUT_EDGES}"
                )
            edges = (~torch.eye(len(x), dtype=torch.bool, device=x.device)).nonzero().T
            return x, edges, inputs["adjacency"][edges[0], edges[1]]
        edges = inputs.get("edge_index", torch.zeros(2, 0, dtype=torch.long, device=x.device))
        weight = inputs.get("edge_weight", x.new_zeros(0))
        return (x, edges, weight) if self.takes_weight else (x, edges)

    def logits(
        self, state: NetworkState, inputs: Tensors, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return the module's output; its own dropout follows the draws."""
        seeded: AbstractContextManager[object] = nullcontext()
        if train and draws is not None:
            seeded = global_draws_from(draws.integer(), self.functional.device)
        with seeded:
            return self.functional(state, *self._arguments(inputs), train=train)

    def settled(self, state: NetworkState, inputs: Tensors) -> NetworkState:
        """Return the module with batch norm statistics of the inputs; unchanged if it has no batch norms."""
        return self.functional.settled(state, *self._arguments(inputs))

    def layers(self, state: NetworkState, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return the features of the named submodules."""
        return self.functional.features(state, *self._arguments(inputs))


def make_network(
    name: str, features: int, classes: int, width: int, dropout: float, hops: int, device: torch.device | str
) -> SGC | GCN:
    """Return an own network by name, one of :data:`MODELS`.

    Args:
        name: ``sgc``, ``gcn`` or ``mlp``.
        features: d.
        classes: C.
        width: hidden units of GCN and MLP.
        dropout: of these units.
        hops: of SGC.
        device: where parameters are drawn.
    """
    if name == "sgc":
        return SGC(features, classes, hops, device)
    return GCN(features, classes, width, dropout, propagates=name == "gcn", device=device)


def stop_caching(module: nn.Module) -> None:
    """Have layers compute of each graph anew what torch-geometric's keep of the first one (``cached=True``); warn."""
    caching = [
        (name, layer)
        for name, layer in module.named_modules()
        if vars(layer).get("cached") is True
        and any(base.__module__.partition(".")[0] == "torch_geometric" for base in type(layer).__mro__)
    ]
    for _, layer in caching:
        layer.cached = False
        for kept in [name for name in vars(layer) if name.startswith("_cached_")]:
            setattr(layer, kept, None)  # the factory may have run the module on some graph
    if caching:
        warnings.warn(
            f"{first_few([name or type(layer).__name__ for name, layer in caching])}: cached=True is taken as False, "
            "since the network reads several graphs, and would read the first one's edges in all of them",
            MmdistillWarning,
            stacklevel=3,
        )


def _takes_weight(module: nn.Module) -> bool:
    """Return whether a module's third argument is the edges' weight and is used.

    Raises:
        ConfigError: the argument is another one, and required.
    """
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    arguments = [parameter for parameter in parameters if parameter.kind in positional]
    if len(arguments) < 3:
        return False
    third = arguments[2]
    if third.name in WEIGHT_NAMES:
        return bool(getattr(module, "supports_edge_weight", True))
    name = f"the third argument of {type(module).__name__}.forward is {third.name!r}"
    if third.default is third.empty:
        raise ConfigError(
            f"{name}: call it edge_weight if it takes a weight for each edge; edges have no other attributes here, so "
            "anything else needs a default"
        )
    if third.name.startswith("edge"):
        logger.warning("%s, so it gets no weights; call it edge_weight if it takes a weight for each edge", name)
    return False


def _head(module: nn.Module) -> tuple[str, ...]:
    """Return the name of the last convolution or linear layer, not counting layers inside a convolution."""
    from torch_geometric.nn import MessagePassing  # slow to import, and only users' modules need it

    names: list[str] = []
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if isinstance(part, MessagePassing | nn.Linear) and not inside:
            names.append(name)
    return tuple(names[-1:])
