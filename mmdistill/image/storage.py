"""Ways of storing images, for the ``parameterization`` of any method: ``replace(METHODS["dm"], parameterization=...)``.

Each takes no more bytes than the raw images of the same ipc. Decoders are an optimizer group of their own,
``decoder``, for which the settings must give an optimizer.
"""

from mmdistill.labels import LabelKind
from mmdistill.methods import Parameterizer, Settings
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.decoder import hallucinated_bases, latent_codes
from mmdistill.parameterizations.memory import addressed_memory
from mmdistill.parameterizations.upsample import multi_formation
from mmdistill.runtime import Draws
from mmdistill.task import Task


def tiled(factor: int = 2) -> Parameterizer:
    """Images of ``factor x factor`` tiles, see :func:`~mmdistill.parameterizations.upsample.multi_formation`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return multi_formation(task, budget, settings.init, label, draws, factor)

    return build


def latent(factor: int = 4, count: int = 2, width: int = 16) -> Parameterizer:
    """Small codes that decoders share, see :func:`~mmdistill.parameterizations.decoder.latent_codes`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return latent_codes(task, budget, settings.init, label, draws, factor, count, width)

    return build


def hallucinated(count: int = 5) -> Parameterizer:
    """Bases in several styles, see :func:`~mmdistill.parameterizations.decoder.hallucinated_bases`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return hallucinated_bases(task, budget, settings.init, label, draws, count)

    return build


def addressed(factor: int = 2, multiple: int = 4) -> Parameterizer:
    """Combinations of shared bases, see :func:`~mmdistill.parameterizations.memory.addressed_memory`."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return addressed_memory(task, budget, settings.init, label, draws, factor, multiple)

    return build
