"""Kernel ridge matching on graphs: random perceptrons on propagated features, a teacher for nodes without labels."""

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.graph.models import glorot
from mmdistill.graph.task import GraphTask
from mmdistill.graph.teacher import TeacherRecipe, teach
from mmdistill.method import Configured
from mmdistill.objectives.base import Network
from mmdistill.objectives.ridge import RandomFeatureRidge
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, Task


class PropagatedRidge(RandomFeatureRidge):
    r"""Kernel ridge matching with the kernel of a random perceptron on embeddings, against all nodes of a graph.

    .. math:: \phi(x) = \mathrm{relu}(W f(x)), \quad W_{ij} \sim U, \quad
        \mathrm{CE}\big(e^k K_{ts} (K_{ss} + \lambda \mathrm{tr}(K_{ss})/m\, I)^{-1} Y_s,\; y_t\big)

    with f the network's embedding (SGC: the propagated features) and W drawn anew in each step; the kernels of an
    infinitely wide perceptron and of f alone fit better but train worse networks. If less than half of the nodes have
    labels, :func:`~mmdistill.graph.teacher.teach` gives the targets, of as many nodes as a real batch has.

    Args:
        nodes: real nodes per step where a teacher labels them.
        width: hidden units.
        ridge: lambda.
        recipe: how the teacher trains.
    Raises:
        ConfigError: the task's data are not one graph.
    Source: Loo et al., NeurIPS 2022 (the objective); Wang et al., WWW 2024 (GC-SNTK: ridge regression on graphs).
    """

    def __init__(
        self, nodes: int = 512, width: int = 256, ridge: float = 0.01, recipe: TeacherRecipe | None = None
    ) -> None:
        super().__init__(networks=1, ridge=ridge, bias_std=0.0, offset=0.0)
        self.nodes, self.width, self.recipe = nodes, width, recipe
        self._taught: tuple[Task, int, Tensor] | None = None

    def check(self, task: Task) -> None:
        """Refuse tasks of other data than one graph.

        Raises:
            ConfigError: the task's data are not one graph.
        """
        super().check(task)
        if not isinstance(task, GraphTask):
            raise ConfigError(f"{type(self).__name__} reads the nodes of a graph, {task.describe().data!r} is none")

    def begin(self, task: Task, draws: Draws) -> None:
        """Train the teacher where nodes lack labels, so that its time is not a step's; not in a rehearsal."""
        super().begin(task, draws)
        if isinstance(task, GraphTask) and _is_taught(task) and not is_rehearsal():
            self.taught(task, draws)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the cross entropy of the scaled ridge prediction; a teacher labels nodes where few have labels."""
        task = network.task
        if isinstance(task, GraphTask) and _is_taught(task):
            targets = self.taught(task, draws)
            nodes = draws.fold("real").to(targets.device).permutation(len(targets))[: self.nodes]
            real = task.seen(nodes, targets)
        return super().forward(network, syn, real, draws)

    def describe_teacher(self, task: Task) -> str:
        """Return the teacher's networks in words.

        Empty where at least half of the nodes have labels, so that no teacher is needed.
        """
        recipe = self.recipe or TeacherRecipe()
        networks = f"{recipe.networks} perceptrons of {recipe.epochs} epochs, to be trained first"
        return networks if isinstance(task, GraphTask) and _is_taught(task) else ""

    def taught(self, task: GraphTask, draws: Draws) -> Tensor:
        """Return the teacher's targets of all nodes ``(N, C)``, cached for the last task and seed."""
        if self._taught is None or self._taught[0] is not task or self._taught[1] != draws.seed:
            key = Draws(draws.seed, ("teacher",), task.device)
            targets = teach(task.parts["train"], task.parts["val"], task.graph.num_classes, key, self.recipe)
            self._taught = task, draws.seed, targets
        return self._taught[2]

    def kernels(self, network: Network, real: Inputs, syn: Inputs, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return K_ts ``(n_t, n_s)`` and K_ss ``(n_s, n_s)`` in float64; the real side has no gradient.

        If no unit is active on any synthetic node, both are 0, and a ridge proportional to the trace leaves K_ss
        singular. K_ss is the identity then, so that the prediction is 0.
        """
        features = network.task.features  # not compiled: for SGC it only copies
        embedded = features(network.state, syn)[-1]
        key = draws.fold("perceptron").to(embedded.device)
        weight = glorot(key, self.width, embedded.shape[1]).to(embedded)
        with torch.no_grad():
            phi_real = (features(network.state, real)[-1] @ weight.mT).relu().double()
        phi_syn = (embedded @ weight.mT).relu().double()  # CUDA does not round float64 products to TF32
        k_ss = phi_syn @ phi_syn.mT
        dead = k_ss.diagonal().sum() == 0
        return phi_real @ phi_syn.mT, k_ss + dead * torch.eye(len(k_ss), dtype=k_ss.dtype, device=k_ss.device)


def _is_taught(task: GraphTask) -> bool:
    """Return whether less than half of the nodes have labels, so that a teacher labels the others."""
    return 2 * len(task.graph.train) < len(task.scene)


propagated_ridge = Configured(lambda settings: PropagatedRidge(settings.real_batch, ridge=settings.ridge or 0.01))
"""Propagated ridge matching on real batches of the settings' size."""
