"""One network for all steps, that was trained on the real data: the teacher of methods that invert it."""

from mmdistill.errors import ConfigError
from mmdistill.networks.schedules import NetworkSchedule, ScheduleState, Synthetic
from mmdistill.networks.teacher import describe_teacher, trained_teacher
from mmdistill.runtime import Draws
from mmdistill.task import Task


class TrainedNetwork(NetworkSchedule):
    """Give all steps the network that :func:`~mmdistill.networks.teacher.trained_teacher` trains, with its statistics.

    The run keeps it, so that it goes on with the same network.

    Args:
        epochs: for which it trains on the real data, as ``teacher_epochs`` of the settings say where it also labels.
    Raises:
        ConfigError: no epoch.
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise ConfigError(f"a network that steps read trains for at least 1 epoch, got {epochs}")
        self.epochs = epochs

    def make_ready(self, task: Task) -> None:
        """Train the network where it is not in the cache."""
        trained_teacher(task, self.epochs)

    def describe_teacher(self, task: Task) -> str:
        """Return in words where the network is, or that it will be trained."""
        return describe_teacher(task, self.epochs)

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return the network, whose batch norms keep the statistics of its training."""
        return ScheduleState(trained_teacher(task, self.epochs), 0, {}) if state.network is None else state

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Keep the network."""
        return state._replace(age=state.age + 1)
