"""How experts train, and what identifies them."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmdistill.choices import TrainingPrecision
from mmdistill.networks.architecture import described_layers
from mmdistill.networks.curriculum import Curriculum
from mmdistill.networks.difficulty import SCORERS_SEED, Scoring
from mmdistill.networks.expert_manifest import EXPERTS_VERSION
from mmdistill.networks.fit_protocol import FitProtocol
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
        seed: of initialisations, orders and augmentation; experts do not depend on the distillation's seed.
        precision: the number format that networks compute in; parameters are float32.
        curriculum: the samples that each epoch draws from (PAD); None: all.
    """

    protocol: FitProtocol = PUBLISHED
    augment: bool = True
    seed: int = 0
    precision: TrainingPrecision = "float32"
    curriculum: Curriculum | None = None

    def of_epochs(self, epochs: int) -> "ExpertRecipe":
        """Return the same training for ``epochs`` epochs."""
        return replace(self, protocol=replace(self.protocol, epochs=epochs))

    def reaching(self, epochs: int) -> "ExpertRecipe":
        """Return the training of ``epochs`` epochs that shares its first epochs with this one; itself if none does."""
        return self.of_epochs(epochs) if self.protocol.open_ended else self

    def of_scorers(self, scoring: Scoring) -> "ExpertRecipe":
        """Return the recipe of the networks that score difficulty."""
        return ExpertRecipe(scoring.protocol, self.augment, SCORERS_SEED, self.precision)


def identity(task: Task, recipe: ExpertRecipe) -> dict[str, Any]:
    """Return what identifies experts, as plain values: the data, their preprocessing, the network, the training."""
    info = task.describe()
    state = task.init(Draws(0, device=task.device))
    training = asdict(recipe)
    manifest = {
        "version": EXPERTS_VERSION,
        "data": Path(info.data).name,
        "fingerprint": info.fingerprint,
        "preprocessing": info.prepared,
        "architecture": state.shapes(),
        "layers": described_layers(task),
        "training": {**training.pop("protocol"), **training},
    }
    return as_json(manifest)
