"""Users' networks that classify graphs, called like torch-geometric's: on all graphs side by side."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.graph.models import STRONG, WEIGHT_NAMES, ModuleNetwork, stop_caching
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.task import NetworkState, Tensors

OWNER = "batch"
"""The argument that holds each node's graph, by torch-geometric's name."""
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class GraphModule(ModuleNetwork):
    """Any module with ``forward(x, edge_index, batch)``, and perhaps an ``edge_weight`` beside ``batch``.

    It gets the edges of weight above 0; if it takes no weights, those of 0.5 or more, and edges do not learn. Other
    arguments need defaults.

    Args:
        factory: makes a freshly initialised module.
        features: the submodule whose input is the embedding of each graph; by default the last linear layer that runs.
        device: where parameters live.
    Raises:
        ConfigError: the module takes no ``batch``, or requires an argument that graphs here do not have.
    """

    def __init__(
        self, factory: ModuleFactory, features: str | Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.functional = FunctionalModule(factory, features, device)
        stop_caching(self.functional.module)
        self._further_arguments = _further_arguments(self.functional.module)
        self.takes_weight = any(name in WEIGHT_NAMES for name, _ in self._further_arguments)

    def precomputed(self, inputs: Tensors) -> Tensors:
        """Return padded or joined graphs as lists of existing edges, nodes numbered through all graphs.

        Shapes:
            x ``(M, d)``, edge_index ``(2, E)``, edge_weight ``(E,)`` and batch ``(M,)`` of the M nodes of all graphs.
        """
        if "edge_index" in inputs:
            return inputs
        if "sizes" in inputs:
            row = torch.repeat_interleave(inputs["pointer"].diff())
            edges, weight = torch.stack([row, inputs["column"]]), inputs["weight"]
            return {"x": inputs["x"], "edge_index": edges, "edge_weight": weight, OWNER: inputs["owner"]}
        present, adjacency = inputs["present"] > 0, inputs["adjacency"]
        number = present.flatten().cumsum(0).view_as(present) - 1
        edges = adjacency > 0 if self.takes_weight else adjacency >= STRONG
        graph, source, target = edges.nonzero(as_tuple=True)
        return {
            "x": inputs["x"][present],
            "edge_index": torch.stack([number[graph, source], number[graph, target]]),
            "edge_weight": adjacency[graph, source, target],
            OWNER: present.nonzero()[:, 0],
        }

    def _arguments(self, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return the module's positional arguments."""
        graphs = self.precomputed(inputs)
        values = {OWNER: graphs[OWNER]} | dict.fromkeys(WEIGHT_NAMES, graphs["edge_weight"])
        further = [values.get(name, default) for name, default in self._further_arguments]
        return graphs["x"], graphs["edge_index"], *further

    def layers(self, state: NetworkState, inputs: Tensors) -> tuple[Tensor, ...]:
        """Return the features of the named submodules.

        Raises:
            ShapeError: features are those of nodes, not of graphs.
        """
        features, graphs = super().layers(state, inputs), int(self.precomputed(inputs)[OWNER].max()) + 1
        if len(features[-1]) != graphs:
            raise ShapeError(
                f"{self.functional.feature_names[-1]!r} has {len(features[-1])} rows of features for {graphs} graphs; "
                "name a submodule that comes after the pooling with features=[...]"
            )
        return features


def _further_arguments(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the names and defaults of a module's arguments after its edges; empty names take the default.

    Raises:
        ConfigError: no ``batch`` among them, or another argument without a default.
    """
    arguments = list(inspect.signature(module.forward).parameters.values())
    names = [argument.name for argument in arguments if argument.kind in POSITIONAL]
    kind = type(module).__name__
    if OWNER not in names[2:]:
        raise ConfigError(
            f"{kind}.forward takes {', '.join(names) or 'nothing'}; a network of graphs is called with the nodes and "
            f"edges of all graphs, x and edge_index, and after them {OWNER!r}, which says of each node which graph it "
            "is of"
        )
    weighted = getattr(module, "supports_edge_weight", True)
    given = [name for name in names[2:] if name == OWNER or (weighted and name in WEIGHT_NAMES)]
    last = max(names.index(name) for name in given)
    missing = [
        argument.name
        for argument in arguments[2:]
        if argument.name not in given and argument.default is argument.empty and argument.kind not in VARIADIC
    ]
    if missing:
        raise ConfigError(
            f"{kind}.forward needs {missing[0]!r}: call it edge_weight if it takes a weight for each edge; edges and "
            "graphs have no other attributes here, so anything else needs a default"
        )
    return [(argument.name if argument.name in given else "", argument.default) for argument in arguments[2 : last + 1]]
