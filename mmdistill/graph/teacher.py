"""Label all nodes of a graph with few labels: perceptrons on randomly propagated features are made consistent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.checks import require_at_least, require_below_one, require_positive
from mmdistill.graph.data import LARGE
from mmdistill.graph.models import glorot
from mmdistill.graph.propagation import propagate, propagate_columns, sparse_entries
from mmdistill.graph.scene import Part, Scene, compact
from mmdistill.labels import one_hot
from mmdistill.networks.best_state import is_scored
from mmdistill.runtime import Draws

BATCH = 8192
"""Nodes per epoch on a large graph, at most half of them labelled."""


@dataclass(frozen=True)
class TeacherRecipe:
    r"""How the perceptrons of :func:`teach` train.

    Args:
        networks: perceptrons whose probabilities are averaged.
        epochs: full-batch steps of Adam.
        hops: K; features are averaged over 0 to K hops.
        samples: S, the random propagations of an epoch, whose predictions should agree.
        dropped: the dropout rate of nodes, features and hidden units in each of them.
        width: hidden units.
        lr: Adam's rate.
        weight_decay: L2 coefficient.
        consistency: weight of the disagreement of the S predictions.
        temperature: below 1, it sharpens the mean prediction that all S should agree with.
        validate_every: epochs between validations, which choose the best one.
    Raises:
        ConfigError: a value out of range.
    """

    networks: int = 2
    epochs: int = 300
    hops: int = 8
    samples: int = 4
    dropped: float = 0.5
    width: int = 32
    lr: float = 0.01
    weight_decay: float = 5e-4
    consistency: float = 1.0
    temperature: float = 0.5
    validate_every: int = 5

    def __post_init__(self) -> None:
        require_at_least(self, dict.fromkeys(("networks", "epochs", "hops", "samples", "width", "validate_every"), 1))
        require_at_least(self, {"weight_decay": 0.0, "consistency": 0.0})
        require_positive(self, "lr", "temperature")
        require_below_one(self, "dropped")


def teach(part: Part, val: Part, num_classes: int, draws: Draws, recipe: TeacherRecipe | None = None) -> Tensor:
    r"""Return every node's class probabilities: its label where it has one, else the mean of trained perceptrons.

    .. math:: \bar X = \tfrac{1}{K+1} \sum_k \hat A^k (b \odot X), \quad
        \ell = \tfrac{1}{S} \sum_s \Big( \mathrm{CE}(P_s, Y) + \tfrac{\lambda}{N} \lVert P_s - Q \rVert^2 \Big)

    with b the mask of kept nodes, and Q the sharpened mean of the S predictions, without gradient.

    Args:
        part: the labelled nodes in their graph.
        val: validation nodes; if they are in the same graph, they choose each perceptron's epoch.
        num_classes: C.
        draws: the key.
        recipe: how they train; by default as published, except for fewer epochs and two perceptrons.

    Shapes:
        Returns ``(N, C)``.
    Differs from: features are dropped before propagation, so that the graph multiplies few columns. On large graphs
        features are propagated only once, without dropping nodes, and an epoch reads a batch of nodes, as in Feng et
        al., WWW 2022 (GRAND+), which also approximates the propagation.
    Source: Feng et al., NeurIPS 2020 (GRAND), Sec. 3 and Table 5.
    """
    recipe = recipe or TeacherRecipe()
    watched = val if val.scene is part.scene and len(val.nodes) else None
    keys = [draws.to(part.scene.device).fold("teacher", index) for index in range(recipe.networks)]
    mean = torch.stack([_train(part, watched, num_classes, key, recipe) for key in keys]).mean(0)
    mean[part.nodes] = one_hot(part.classes, num_classes)
    return mean


def _train(part: Part, val: Part | None, num_classes: int, draws: Draws, recipe: TeacherRecipe) -> Tensor:
    """Train one perceptron; return its probabilities ``(N, C)`` at the best validation epoch, else at the last."""
    kind = _SettledPerceptron if len(part.scene) >= LARGE else _Perceptron
    perceptron = kind(part.scene, num_classes, draws, recipe)
    optimizer = torch.optim.Adam(perceptron.params, lr=recipe.lr, weight_decay=recipe.weight_decay)
    chosen, best = perceptron.read(), (-1.0, 0.0)
    for epoch in range(1, recipe.epochs + 1):
        keys = [draws.fold("epoch", epoch, index) for index in range(recipe.samples)]
        loss = teacher_loss(*perceptron.taught(part, keys), recipe)
        for parameter, gradient in zip(perceptron.params, torch.autograd.grad(loss, perceptron.params), strict=True):
            parameter.grad = gradient
        optimizer.step()
        if not is_scored(epoch, recipe.epochs, recipe.validate_every):
            continue
        log_probabilities = perceptron.read()
        score = (0.0, float(epoch)) if val is None else _score(log_probabilities[val.nodes], val.classes)
        if score > best:
            chosen, best = log_probabilities, score
    return chosen.exp()


def teacher_loss(outputs: Tensor, nodes: Tensor, classes: Tensor, recipe: TeacherRecipe) -> Tensor:
    """Return the supervised and the consistency loss of S predictions.

    Shapes:
        outputs ``(S, N, C)`` log probabilities; nodes and classes ``(m,)``; returns a scalar.
    """
    supervised = F.nll_loss(outputs[:, nodes].flatten(0, 1), classes.repeat(len(outputs)))
    agreed = outputs.detach().exp().mean(0) ** (1 / recipe.temperature)
    agreed = agreed / agreed.sum(1, keepdim=True)
    return supervised + recipe.consistency * (outputs.exp() - agreed).square().sum(2).mean()


def _score(predicted: Tensor, classes: Tensor) -> tuple[float, float]:
    """Return the accuracy, and the negative loss to break ties."""
    return float((predicted.argmax(1) == classes).float().mean()), -float(F.nll_loss(predicted, classes))


class _Perceptron:
    """A perceptron of one hidden layer on features averaged over hops; only hidden units are propagated."""

    def __init__(self, scene: Scene, num_classes: int, draws: Draws, recipe: TeacherRecipe) -> None:
        self.scene, self.recipe = scene, recipe
        self.x = compact(scene.x)
        first = glorot(draws.fold("first"), recipe.width, scene.x.shape[1]).mT.contiguous()
        second = glorot(draws.fold("second"), num_classes, recipe.width).mT.contiguous()
        biases = (torch.zeros(recipe.width, device=scene.device), torch.zeros(num_classes, device=scene.device))
        self.params = [tensor.requires_grad_(True) for tensor in (first, second, *biases)]

    def __call__(self, keys: Sequence[Draws | None]) -> Tensor:
        """Return log probabilities ``(S, N, C)`` of S propagations, random for keys that are not None."""
        first, second, first_bias, second_bias = self.params
        hidden = torch.cat([self._kept_nodes(self._features(key) @ first, key) for key in keys], 1)
        total = hidden
        for _ in range(self.recipe.hops):
            hidden = propagate(self.scene.edges, hidden)
            total = total + hidden
        mean = (total / (self.recipe.hops + 1)).view(len(total), len(keys), -1).transpose(0, 1)
        every = zip((mean + first_bias).relu(), keys, strict=True)
        units = torch.stack([self._kept_units(own, key) for own, key in every])
        return (units @ second + second_bias).log_softmax(2)

    def taught(self, part: Part, keys: Sequence[Draws]) -> tuple[Tensor, Tensor, Tensor]:
        """Return an epoch's log probabilities ``(S, n, C)``, the positions of labelled nodes, and their labels."""
        return self(keys), part.nodes, part.classes

    @torch.no_grad()
    def read(self) -> Tensor:
        """Return log probabilities ``(N, C)`` without dropout."""
        return self([None])[0]

    def _kept_nodes(self, hidden: Tensor, draws: Draws | None) -> Tensor:
        return hidden if draws is None else self._dropped(hidden, draws.fold("nodes").uniform(len(hidden), 1))

    def _kept_units(self, units: Tensor, draws: Draws | None) -> Tensor:
        return units if draws is None else self._dropped(units, draws.fold("units").uniform(*units.shape))

    def _features(self, draws: Draws | None) -> Tensor:
        """Return the nodes' own features, with dropout if draws are given."""
        if draws is None:
            return self.x
        key = draws.fold("features")
        if not self.x.is_sparse:
            return self._dropped(self.x, key.uniform(*self.x.shape))
        values = self.x.values()
        kept = self._dropped(values, key.uniform(len(values)))
        return sparse_entries(self.x.indices(), kept, self.x.shape, coalesced=True)

    def _dropped(self, values: Tensor, chance: Tensor) -> Tensor:
        return values * (chance >= self.recipe.dropped) / (1 - self.recipe.dropped)


class _SettledPerceptron(_Perceptron):
    """A perceptron on minibatches of features that are averaged over hops once, so no epoch reads the graph."""

    def __init__(self, scene: Scene, num_classes: int, draws: Draws, recipe: TeacherRecipe) -> None:
        super().__init__(scene, num_classes, draws, recipe)
        hidden, total = scene.x, scene.x.clone()
        for _ in range(recipe.hops):
            hidden = propagate_columns(scene.edges, hidden)
            total += hidden
        self.x = total.div_(recipe.hops + 1)

    def __call__(self, keys: Sequence[Draws | None], nodes: Tensor | None = None) -> Tensor:
        """Return log probabilities ``(S, n, C)`` of some nodes or all; keys drop features and units."""
        first, second, first_bias, second_bias = self.params
        x = self.x if nodes is None else self.x[nodes]
        inputs = [x if key is None else self._dropped(x, key.fold("features").uniform(*x.shape)) for key in keys]
        units = [
            self._kept_units((kept @ first + first_bias).relu(), key) for kept, key in zip(inputs, keys, strict=True)
        ]
        return (torch.stack(units) @ second + second_bias).log_softmax(2)

    def taught(self, part: Part, keys: Sequence[Draws]) -> tuple[Tensor, Tensor, Tensor]:
        """Return an epoch's outputs as the base class does, for a minibatch of labelled and random other nodes."""
        labelled = keys[0].fold("labelled").permutation(len(part.nodes))[: BATCH // 2]
        others = keys[0].fold("others").integers(len(self.x), BATCH - len(labelled))
        outputs = self(keys, torch.cat([part.nodes[labelled], others]))
        return outputs, torch.arange(len(labelled), device=outputs.device), part.classes[labelled]
