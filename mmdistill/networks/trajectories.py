"""Schedules of cached experts: where students start, and the target that they should reach (Eq. 12)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmdistill.errors import CheckpointError, ConfigError, note_kept
from mmdistill.networks.expert_recipe import ExpertRecipe
from mmdistill.networks.experts import Experts, describe_experts, is_complete, open_experts, serving_folder
from mmdistill.networks.schedules import EMPTY, NetworkSchedule, ScheduleState, Synthetic
from mmdistill.networks.statistics import with_real_statistics
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Task


@dataclass(frozen=True)
class StartWindow:
    """The epochs of an expert that students start from, a range that may grow during a run (DATM).

    Args:
        first: the earliest start.
        bound: starts of the first step lie before this epoch; the bound then grows until all starts are allowed. 0: all
            starts are allowed from the first step on.
        steps: the number of steps over which the bound grows, evenly.
    Source: Guo et al., ICLR 2024, Sec. 3.2.
    """

    first: int = 0
    bound: int = 0
    steps: int = 0

    @property
    def grows(self) -> bool:
        """Whether the window depends on the step."""
        return bool(self.bound)

    def require_within(self, start_epochs: int) -> None:
        """Refuse a window that is empty or exceeds ``start_epochs``.

        Raises:
            ConfigError: naming the settings.
        """
        least = self.bound or start_epochs
        if not 0 <= self.first < least <= start_epochs:
            raise ConfigError(
                f"starts lie from epoch start_first on, before start_bound in the first step and before start_epochs "
                f"in the end, got start_first {self.first}, start_bound {self.bound} and start_epochs {start_epochs}; "
                "with start_bound=0 all of them may be drawn from the first step on"
            )
        if self.grows and self.steps < 1:
            raise ConfigError(f"start_bound grows to start_epochs in start_steps of at least 1, got {self.steps}")

    def until(self, start_epochs: int, step: int) -> int:
        """Return the epoch before which the starts of a step lie."""
        if not self.grows:
            return start_epochs
        return min(self.bound + (start_epochs - self.bound) * step // self.steps, start_epochs)


ALL_STARTS = StartWindow()


class ExpertTrajectories(NetworkSchedule):
    """Start each outer step at a random epoch of a random expert, with a later epoch as the target (MTT).

    Missing experts are trained before the first step.

    Args:
        experts: number of experts.
        start_epochs: starts are drawn from epochs 0 (the initialisation) to ``start_epochs - 1``.
        expert_steps: epochs between start and target.
        recipe: how missing experts train.
        folder: where the experts are or will be; None: the cache folder.
        window: narrows the epochs that starts are drawn from.
    Raises:
        ConfigError: a number below 1, a recipe with too few epochs for the last target, or a window without starts.
    """

    gives_target = True

    def __init__(
        self,
        experts: int,
        start_epochs: int,
        expert_steps: int,
        recipe: ExpertRecipe,
        folder: Path | None = None,
        window: StartWindow = ALL_STARTS,
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
        window.require_within(start_epochs)
        self.experts = experts
        self.start_epochs = start_epochs
        self.expert_steps = expert_steps
        self.recipe = recipe
        self.folder = folder
        self.window = window
        self._opened: tuple[Task, Experts] | None = None

    def make_ready(self, task: Task) -> None:
        """Open the experts, training those that are missing."""
        try:
            self._open(task)
        except KeyboardInterrupt as stop:
            what = "experts are kept as they were a minute ago or less"
            note_kept(stop, f"{what}, and the same command goes on from there")
            raise

    def require_ready(self, task: Task) -> None:
        """Refuse to resume a run whose experts are missing, since new ones might differ.

        Raises:
            CheckpointError: some experts are missing.
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
        """Return the folder of a task's experts; in the cache it may be that of experts with more epochs."""
        return self.folder or serving_folder(task, self.recipe_for(task), self.experts)

    def describe_experts(self, task: Task) -> str:
        """Describe in words where a task's experts are, or how many of them train before the first step.

        Raises:
            CheckpointError: the folder holds other or damaged experts, as for :meth:`make_ready`.
        """
        return describe_experts(task, self.folder_for(task), self.experts, self.recipe_for(task))

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return an expert's network at a random start, with its target.

        Running statistics are the target's, with which it labels samples; students normalise by their own batches. If
        the window grows, the state's age counts the run's steps.
        """
        start, target = self.ends(task, state.age, draws)
        return ScheduleState(start._replace(buffers=target.buffers), state.age, {}, target.params)

    def ends(self, task: Task, step: int, draws: Draws) -> tuple[NetworkState, NetworkState]:
        """Return a random expert's networks at a random start and at its target, ``expert_steps`` epochs later."""
        experts, expert = self._open(task), draws.fold("expert").index(self.experts)
        first, until = self.window.first, self.window.until(self.start_epochs, step)
        start = first + draws.fold("start").index(until - first)
        return experts.snapshot(expert, start), experts.snapshot(expert, start + self.expert_steps)

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Forget the network: the next step starts at another snapshot."""
        return EMPTY._replace(age=state.age + 1) if self.window.grows else EMPTY

    def finals(self, task: Task) -> Iterator[NetworkState]:
        """Yield each expert's network at the end of its training."""
        experts = self._open(task)
        for index in range(self.experts):
            yield experts.snapshot(index, self.recipe.protocol.epochs)

    def _open(self, task: Task) -> Experts:
        """Open the experts, training those that are missing."""
        if self._opened is None or self._opened[0] is not task:
            self._opened = task, open_experts(task, self.folder_for(task), self.experts, self.recipe_for(task))
        return self._opened[1]


class InterpolatedExperts(ExpertTrajectories):
    r"""Give each outer step a network between an expert's start and its target, together with the target (DANCE).

    .. math:: \theta = \lambda\, \theta_0 + (1 - \lambda)\, \theta_T, \quad \lambda \sim U[0, 1)

    Start and target stand for the whole training. The batch norms of the interpolated network have statistics of real
    samples.

    Args: as for :class:`ExpertTrajectories`.
    Raises:
        ConfigError: as for :class:`ExpertTrajectories`.
    Source: Zhang et al., IJCAI 2024 (the middle encoders).
    """

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return a network between an expert's start and its target, with the target."""
        start, target = self.ends(task, state.age, draws)
        share = float(draws.to("cpu").fold("share").uniform(1))
        params = {name: end.lerp(start.params[name], share) for name, end in target.params.items()}
        between = with_real_statistics(task, NetworkState(params, target.buffers), draws)
        return ScheduleState(between, state.age, {}, target.params, target.buffers)


def needed_epochs(start_epochs: int, expert_steps: int) -> int:
    """Return the epoch of the last target."""
    return start_epochs - 1 + expert_steps
