"""The judges of a condensed graph, and what each of them sees of the real one."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mmdistill.graph.architectures import ARCHITECTURES, make_architecture
from mmdistill.graph.judges import JudgeProtocol, Sample, StackedJudges, fit_apart, read_apart
from mmdistill.graph.models import HOPS, ModuleNetwork, make_network, named
from mmdistill.graph.propagation import normalised_matrix, operator
from mmdistill.graph.scene import Part, View
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Tensors, one_tensor

JUDGES = ("gcn", "sgc", *ARCHITECTURES, "mlp")
TOGETHER_BYTES = 2**28
"""Bytes of hidden units of judges that train side by side."""


class GraphJudges:
    """Judges of one graph.

    Args:
        parts: training, validation and test nodes by name.
        num_classes: C.
    """

    def __init__(self, parts: Mapping[str, Part], num_classes: int) -> None:
        self.parts, self.num_classes = parts, num_classes
        self._views: dict[tuple[str, str], View] = {}

    def fit(
        self, synthetic: Batch | None, judge: str | ModuleNetwork, draws: Draws, n: int, protocol: JudgeProtocol
    ) -> Tensor:
        """Train n judges, as many side by side as memory allows, and return their logits of the test nodes.

        Args:
            synthetic: the condensed graph, as :func:`~mmdistill.graph.placing.placed_set` returns it; None: the
                training nodes in the real graph.
            judge: one of :data:`JUDGES`, or a module of the user's.
            draws: the key.
            n: networks.
            protocol: how they train.

        Shapes:
            Returns ``(n, m, C)`` for m test nodes, each network's at its best validation epoch.
        """
        if judge in ARCHITECTURES:
            judge = self._architecture(str(judge), protocol)
        if isinstance(judge, ModuleNetwork):
            return self._fit_apart(synthetic, judge, draws, n, protocol)
        test = self._real_view(judge, "test")
        groups = self._train(synthetic, judge, draws, n, protocol)
        return torch.cat([judges.read(params, test) for judges, params, _ in groups])

    def validation(self, synthetic: Batch, name: str, draws: Draws, n: int, protocol: JudgeProtocol) -> Tensor:
        """Train ``gcn``, ``sgc`` or ``mlp`` judges as :meth:`fit` does; return their validation accuracies ``(n,)``."""
        return torch.cat([score for *_, score in self._train(synthetic, name, draws, n, protocol)])

    def _train(
        self, synthetic: Batch | None, name: str, draws: Draws, n: int, protocol: JudgeProtocol
    ) -> Iterator[tuple[StackedJudges, Sequence[Tensor], Tensor]]:
        """Train judges group by group; yield each group with its chosen parameters and validation accuracies."""
        scene = self.parts["train"].scene
        if synthetic is None:
            targets = self.parts["train"].classes
            sample = Sample(self._real_view(name, "train"), targets, torch.ones(len(targets), device=targets.device))
        else:
            view = _synthetic_view(name, named(synthetic.inputs))
            sample = Sample(view, one_tensor(synthetic.targets), synthetic.weight)
        val_classes = self.parts["val"].classes
        validation = (self._real_view(name, "val"), val_classes) if len(val_classes) else None
        width, dropout = protocol.width, protocol.dropout
        network = make_network(name, scene.x.shape[1], self.num_classes, width, dropout, HOPS, scene.device)
        group_size = max(TOGETHER_BYTES // (4 * sample.view.first.shape[0] * width), 1)
        for first in range(0, n, group_size):
            judges = StackedJudges(network, draws.to(scene.device), range(first, min(first + group_size, n)))
            yield judges, *judges.fit(sample, validation, protocol)

    def _fit_apart(
        self, synthetic: Batch | None, network: ModuleNetwork, draws: Draws, n: int, protocol: JudgeProtocol
    ) -> Tensor:
        """Train n judges of any architecture one after the other, and return their logits of the test nodes."""
        val = self.parts["val"]
        sample = self.parts["train"].whole(network.normalised) if synthetic is None else synthetic
        states = fit_apart(network, sample, val if len(val.nodes) else None, protocol, draws, n)
        return read_apart(network, states, self.parts["test"])

    def _architecture(self, name: str, protocol: JudgeProtocol) -> ModuleNetwork:
        scene = self.parts["train"].scene
        return make_architecture(
            name, scene.x.shape[1], self.num_classes, protocol.width, protocol.dropout, scene.device
        )

    def _real_view(self, judge: str, part: str) -> View:
        """Return a judge's view of the training, validation or test nodes on the real graph, computed once."""
        if (judge, part) not in self._views:
            scene, nodes, _ = self.parts[part]
            if judge == "gcn":
                view = scene.neighbourhood(nodes, part == "train")
            else:
                view = scene.rows(nodes, HOPS if judge == "sgc" else 0, part == "train")
            self._views[judge, part] = view
        return self._views[judge, part]


def _synthetic_view(judge: str, inputs: Tensors) -> View:
    """Return a judge's view of a synthetic graph; without structure, A' = I."""
    if judge == "mlp":
        return View(inputs["x"])
    multiply = operator(inputs)
    first = multiply(inputs["x"])
    if judge == "sgc":
        return View(multiply(first))
    if "pointer" in inputs:
        return View(first, normalised_matrix(inputs))
    if "adjacency" not in inputs:
        return View(first)
    return View(first, multiply(torch.eye(len(first), dtype=first.dtype, device=first.device)))
