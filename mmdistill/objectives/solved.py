"""What stands where a closed form needs no objective."""

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.objectives.base import Network, Objective
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch


class Solved(Objective):
    """No objective: the set is found in closed form."""

    view = "flat"

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Refuse: there is nothing to step.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a closed form has no objective to step")
