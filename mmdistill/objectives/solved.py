"""The placeholder objective of methods that find the set in closed form."""

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.objectives.base import Network, Objective
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch


class Solved(Objective):
    """A placeholder for methods that find the set in closed form, without steps."""

    view = "flat"

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Refuse to compute a loss.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a closed form has no objective to step")
