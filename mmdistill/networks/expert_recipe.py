"""How experts train, and what they are by it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmdistill.choices import TrainingPrecision
from mmdistill.networks.architecture import described_layers
from mmdistill.networks.difficulty import BY_TEN, SCORERS_SEED, Scoring
from mmdistill.networks.expert_manifest import CURRICULUM, EXPERTS_VERSION, PASSES, PRECISION
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.lessons import ALL_SAMPLES, Curriculum
from mmdistill.runtime import Draws
from mmdistill.store import as_json
from mmdistill.task import Task

PUBLISHED = FitProtocol(epochs=50, lr=0.01, momentum=0.0, weight_decay=0.0, batch=256, decay_at=())
"""Plain SGD at a constant rate, as trajectory matching trains its experts."""


@dataclass(frozen=True)
class ExpertRecipe:
    """How experts are trained.

    Args:
        protocol: epochs, optimizer, minibatches.
        augment: augment the real minibatches per sample.
        seed: of initialisations, orders and augmentation; the experts do not depend on the distillation's seed.
        precision: what their networks compute in; parameters are float32.
    """

    protocol: FitProtocol = PUBLISHED
    augment: bool = True
    seed: int = 0
    precision: TrainingPrecision = "float32"

    def of_epochs(self, epochs: int) -> "ExpertRecipe":
        """Return the same training for so many epochs."""
        return replace(self, protocol=replace(self.protocol, epochs=epochs))

    @property
    def scheduled(self) -> "ScheduledRecipe | None":
        """The recipe itself, where epochs draw from samples of some difficulty."""
        return None


@dataclass(frozen=True)
class ScheduledRecipe(ExpertRecipe):
    """How experts are trained whose epochs draw from samples of some difficulty (PAD).

    A class of its own, so that experts of all samples are described as they always were.

    Args:
        curriculum: which samples each epoch draws from.
        scoring: who says how hard they are.

    All others are those of :class:`ExpertRecipe`.
    """

    curriculum: Curriculum = ALL_SAMPLES
    scoring: Scoring = BY_TEN

    @property
    def scheduled(self) -> "ScheduledRecipe | None":
        """The recipe itself."""
        return self

    @property
    def scorers(self) -> ExpertRecipe:
        """How the networks train that say how hard samples are."""
        return ExpertRecipe(self.scoring.protocol, self.augment, SCORERS_SEED, self.precision)


def identity(task: Task, recipe: ExpertRecipe) -> dict[str, Any]:
    """Return what experts are, as plain values: the data, their preprocessing, the network, the training."""
    info = task.describe()
    state = task.init(Draws(0, device=task.device))
    training: dict[str, Any] = {**asdict(recipe.protocol), "augment": recipe.augment, "seed": recipe.seed}
    if recipe.precision != "float32":  # what has no precision is of float32, as all were once
        training[PRECISION] = recipe.precision
    if recipe.protocol.passes == 1:  # as it was before there were others
        del training[PASSES]
    if (own := recipe.scheduled) is not None:
        training[CURRICULUM] = {**asdict(own.curriculum), "scoring": asdict(own.scoring)}
    found = {
        "version": EXPERTS_VERSION,
        "data": Path(info.data).name,
        "fingerprint": info.fingerprint,
        "preprocessing": info.prepared,
        "architecture": state.shapes(),
        "layers": described_layers(task),
        "training": training,
    }
    return as_json(found)
