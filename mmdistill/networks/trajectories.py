"""The schedule of cached experts: where students start and which end they shall reach (Eq. 12)."""

from pathlib import Path

from mmdistill.errors import CheckpointError, ConfigError, note_kept
from mmdistill.networks.experts import (
    ExpertRecipe,
    Experts,
    experts_foretold,
    is_complete,
    open_experts,
    serving_folder,
)
from mmdistill.networks.schedules import EMPTY, NetworkSchedule, ScheduleState, Synthetic
from mmdistill.networks.statistics import with_real_statistics
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Task


class ExpertTrajectories(NetworkSchedule):
    """Start each outer step at a random epoch of a random expert, with a later epoch as the target (MTT).

    Experts that are missing are trained before the first step.

    Args:
        experts: how many.
        start_epochs: starts are drawn from the first so many epochs, the initialisation being the first.
        expert_steps: epochs between start and target.
        recipe: how missing experts train.
        folder: where they are or shall be; None: the cache folder.
    Raises:
        ConfigError: a number below 1, or a recipe of fewer epochs than the last target has.
    """

    gives_target = True

    def __init__(
        self, experts: int, start_epochs: int, expert_steps: int, recipe: ExpertRecipe, folder: Path | None = None
    ) -> None:
        if min(experts, start_epochs, expert_steps) < 1:
            raise ConfigError(
                f"experts, start_epochs and expert_steps are at least 1, got {experts}, {start_epochs}, {expert_steps}"
            )
        if recipe.protocol.epochs < needed_epochs(start_epochs, expert_steps):
            raise ConfigError(
                f"targets lie up to epoch {needed_epochs(start_epochs, expert_steps)}, but experts train for only "
                f"{recipe.protocol.epochs} epochs"
            )
        self.experts = experts
        self.start_epochs = start_epochs
        self.expert_steps = expert_steps
        self.recipe = recipe
        self.folder = folder
        self._opened: tuple[Task, Experts] | None = None

    def make_ready(self, task: Task) -> None:
        """Open the experts, training those that are missing."""
        try:
            self._experts(task)
        except KeyboardInterrupt as stop:
            kept = "experts are kept as they were a minute ago or less"
            note_kept(stop, f"{kept}, and the same command goes on from there")
            raise

    def require_ready(self, task: Task) -> None:
        """Refuse that a run goes on without the experts that it began with, since others might be trained instead.

        Raises:
            CheckpointError: some of them are missing.
        """
        folder = self.folder_for(task)
        if not is_complete(folder, self.experts):
            raise CheckpointError(
                f"the run began with {self.experts} experts in {folder.absolute()}, of which some or all are missing, "
                "and goes on with the same ones only; put them back, or train them again with 'mmdistill experts' and "
                "the options of the run: on a CPU they are the same bit by bit where as many train together "
                "(--together) as before"
            )

    def recipe_for(self, task: Task) -> ExpertRecipe:
        """Return how a task's missing experts train."""
        return self.recipe

    def folder_for(self, task: Task) -> Path:
        """Return where a task's experts are or shall be; of the cache, perhaps where there are some of more epochs."""
        return self.folder or serving_folder(task, self.recipe_for(task), self.experts)

    def foretold(self, task: Task) -> str:
        """Return in words where a task's experts are, or how many of them train before the first step.

        Raises:
            CheckpointError: the folder holds others, or damaged ones, as :meth:`make_ready` says it.
        """
        return experts_foretold(task, self.folder_for(task), self.experts, self.recipe_for(task))

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return an expert's network at a random start, with its target.

        Running statistics are the target's, by which it labels samples; students normalise by their own batches.
        """
        start, target = self.ends(task, draws)
        return ScheduleState(start._replace(buffers=target.buffers), 0, {}, target.params)

    def ends(self, task: Task, draws: Draws) -> tuple[NetworkState, NetworkState]:
        """Return an expert's networks at a random start and, so many epochs later, at its target."""
        experts, host = self._experts(task), draws.to("cpu")
        expert = int(host.fold("expert").integers(self.experts, 1))
        start = int(host.fold("start").integers(self.start_epochs, 1))
        target = experts.snapshot(expert, start + self.expert_steps)
        return experts.snapshot(expert, start), target

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Forget the network: the next step starts at another snapshot."""
        return EMPTY

    def _experts(self, task: Task) -> Experts:
        """Open the experts, training those that are missing."""
        if self._opened is None or self._opened[0] is not task:
            self._opened = task, open_experts(task, self.folder_for(task), self.experts, self.recipe_for(task))
        return self._opened[1]


class InterpolatedExperts(ExpertTrajectories):
    r"""Give each outer step a network somewhere between an expert's start and its target, which is given too (DANCE).

    .. math:: \theta = \lambda\, \theta_0 + (1 - \lambda)\, \theta_T, \quad \lambda \sim U[0, 1)

    The ends alone stand for the whole training. Batch norms have statistics of real samples for the network between.

    Args: as for :class:`ExpertTrajectories`.
    Raises:
        ConfigError: as for :class:`ExpertTrajectories`.
    Source: Zhang et al., IJCAI 2024 (the middle encoders).
    """

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return a network between an expert's start and its target, with the target."""
        start, target = self.ends(task, draws)
        share = float(draws.to("cpu").fold("share").uniform(1))
        params = {name: end.lerp(start.params[name], share) for name, end in target.params.items()}
        between = with_real_statistics(task, NetworkState(params, target.buffers), draws)
        return ScheduleState(between, 0, {}, target.params)


def needed_epochs(start_epochs: int, expert_steps: int) -> int:
    """Return the epoch of the last target."""
    return start_epochs - 1 + expert_steps
