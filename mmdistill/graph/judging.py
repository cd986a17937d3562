"""Which judges there are of a condensed graph, and what each of them sees of the real one."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mmdistill.errors import ShapeError
from mmdistill.graph.architectures import ARCHITECTURES, make_architecture
from mmdistill.graph.judges import Fitted, JudgeProtocol, LoopSample, Sample, Seen, StackedJudges, fit_one_by_one
from mmdistill.graph.models import ModuleNetwork, make_network
from mmdistill.graph.propagation import operator
from mmdistill.graph.scene import Part, View
from mmdistill.networks.architecture import OWN
from mmdistill.runtime import Draws
from mmdistill.task import Tensors

JUDGES = ("gcn", "sgc", *ARCHITECTURES, "mlp")
SGC_HOPS = 2
TOGETHER_BYTES = 2**28
"""Bytes of hidden units of judges that train side by side."""


class GraphJudges:
    """Judges of one graph.

    Args:
        parts: training, validation and test nodes by name.
        num_classes: C.
        own: the user's module, which is a judge too.
    """

    def __init__(self, parts: Mapping[str, Part], num_classes: int, own: ModuleNetwork | None = None) -> None:
        self.parts, self.num_classes, self.own = parts, num_classes, own
        self.names = (*JUDGES, OWN) if own is not None else JUDGES
        self._views: dict[tuple[str, str], View] = {}

    def fit(self, synthetic: LoopSample | None, name: str, draws: Draws, n: int, protocol: JudgeProtocol) -> Fitted:
        """Train n judges, as many side by side as memory allows.

        Args:
            synthetic: the condensed graph; None is the training nodes in the real graph.
            name: one of ``names``.
            draws: the key.
            n: networks.
            protocol: how they train.

        Raises:
            ShapeError: nodes whose features are not this graph's.
        """
        self._require_width(synthetic)
        if name == OWN or name in ARCHITECTURES:
            return self._fit_apart(synthetic, name, draws, n, protocol)
        test = self._real_view(name, "test")
        fitted = [
            Fitted(judges.read(params, test), score)
            for judges, params, score in self._trained(synthetic, name, draws, n, protocol)
        ]
        return Fitted(torch.cat([one.test for one in fitted]), torch.cat([one.validation for one in fitted]))

    def validation(self, synthetic: LoopSample, name: str, draws: Draws, n: int, protocol: JudgeProtocol) -> Tensor:
        """Train judges of an own architecture as :meth:`fit` does and return their ``(n,)`` validation accuracies."""
        self._require_width(synthetic)
        return torch.cat([score for *_, score in self._trained(synthetic, name, draws, n, protocol)])

    def _require_width(self, synthetic: LoopSample | None) -> None:
        width = self.parts["train"].scene.x.shape[1]
        if synthetic is not None and synthetic.inputs["x"].shape[-1] != width:
            raise ShapeError(f"synthetic nodes must be (n, {width}), got {tuple(synthetic.inputs['x'].shape)}")

    def _trained(
        self, synthetic: LoopSample | None, name: str, draws: Draws, n: int, protocol: JudgeProtocol
    ) -> Iterator[tuple[StackedJudges, Sequence[Tensor], Tensor]]:
        """Yield judges that train side by side, their chosen parameters and validation accuracies."""
        scene = self.parts["train"].scene
        if synthetic is None:
            targets = self.parts["train"].classes
            sample = Sample(self._real_view(name, "train"), targets, torch.ones(len(targets), device=targets.device))
        else:
            sample = Sample(_synthetic_view(name, synthetic.inputs), synthetic.targets, synthetic.weight)
        val = self.parts["val"].classes
        seen = (self._real_view(name, "val"), val) if len(val) else None
        width, dropout = protocol.width, protocol.dropout
        network = make_network(name, scene.x.shape[1], self.num_classes, width, dropout, SGC_HOPS, scene.device)
        each = max(TOGETHER_BYTES // (4 * sample.view.first.shape[0] * width), 1)
        for first in range(0, n, each):
            judges = StackedJudges(network, draws.to(scene.device), range(first, min(first + each, n)))
            yield judges, *judges.fit(sample, seen, protocol)

    def _fit_apart(
        self, synthetic: LoopSample | None, name: str, draws: Draws, n: int, protocol: JudgeProtocol
    ) -> Fitted:
        """Train n judges of any architecture one after the other."""
        network = self._network(name, protocol)

        def seen(part: Part) -> Seen:
            return Seen(part.scene.inputs(network.normalised), part.nodes, part.classes)

        train, val = self.parts["train"], self.parts["val"]
        if synthetic is None:  # nodes of unknown class carry class 0, and weigh nothing
            weight = torch.zeros(len(train.scene), device=train.nodes.device).index_fill_(0, train.nodes, 1.0)
            synthetic = LoopSample(train.scene.inputs(network.normalised), train.scene.y.clamp(min=0), weight)
        validation = seen(val) if len(val.nodes) else None
        return fit_one_by_one(network, synthetic, validation, seen(self.parts["test"]), protocol, draws, n)

    def _network(self, name: str, protocol: JudgeProtocol) -> ModuleNetwork:
        if name == OWN and self.own is not None:
            return self.own
        scene = self.parts["train"].scene
        return make_architecture(
            name, scene.x.shape[1], self.num_classes, protocol.width, protocol.dropout, scene.device
        )

    def _real_view(self, judge: str, part: str) -> View:
        """Return what a judge sees of the training, validation or test nodes on the real graph, computed once."""
        if (judge, part) not in self._views:
            scene, nodes, _ = self.parts[part]
            if judge == "gcn":
                view = scene.neighbourhood(nodes, part == "train")
            else:
                view = scene.rows(nodes, SGC_HOPS if judge == "sgc" else 0, part == "train")
            self._views[judge, part] = view
        return self._views[judge, part]


def _synthetic_view(judge: str, inputs: Tensors) -> View:
    """Return what a judge sees of a synthetic graph, with its structure or A' = I."""
    if judge == "mlp":
        return View(inputs["x"])
    multiply = operator(inputs)
    first = multiply(inputs["x"])
    if judge == "sgc":
        return View(multiply(first))
    if "adjacency" not in inputs:
        return View(first)
    return View(first, multiply(torch.eye(len(first), dtype=first.dtype, device=first.device)))
