"""Relabelling for judges: a teacher labels each minibatch as the judges see it, augmented and mixed.

Stored labels are then ignored, also those of random or herded images. All scores under a teacher include its knowledge,
so they compare with each other alone; a set's bytes do not count the teacher.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from mmdistill.abilities import given_teacher
from mmdistill.checks import require_at_least, require_positive
from mmdistill.image.augment import image_inputs
from mmdistill.names import counted
from mmdistill.networks.fit import Augment
from mmdistill.networks.teacher import describe_teacher, soft_labels, trained_teacher
from mmdistill.runtime import Draws
from mmdistill.task import Batch

if TYPE_CHECKING:
    from mmdistill.image.task import ImageTask


@dataclass(frozen=True)
class Relabelling:
    """A teacher that labels every minibatch of judges anew.

    The teacher is the task's given one, or else the distillation network, trained on the real data by
    :func:`~mmdistill.networks.teacher.trained_teacher` once for all judges, sets and baselines.

    Args:
        epochs: of the teacher's training; None: as many as networks on all real images train for.
        temperature: T, which divides the logits of both sides.
    Raises:
        ConfigError: epochs below 1, or a temperature that is not positive.
    Source: Shen and Xing, ECCV 2022 (fast knowledge distillation); Yin et al., NeurIPS 2023, Sec. 3.3; Sun et al.,
        CVPR 2024.
    """

    epochs: int | None = None
    temperature: float = 20.0

    def __post_init__(self) -> None:
        if self.epochs is not None:
            require_at_least(self, {"epochs": 1})
        require_positive(self, "temperature")

    def _epochs(self, task: "ImageTask") -> int:
        """Return the epochs of the teacher's training."""
        return self.epochs or task.data.whole_epochs

    def describe_teacher(self, task: "ImageTask") -> str:
        """Return in words where the teacher is, or that it will be trained."""
        return describe_teacher(task, self._epochs(task))

    def note(self, task: "ImageTask") -> str:
        """Return what readers of a score must know, of the task whose network the teacher is."""
        epochs, named = counted(self._epochs(task), "epoch"), f" ({task.network_name})" if task.network_name else ""
        given = given_teacher(task)
        teacher = f"a network{named} trained on all real data for {epochs}" if given is None else f"the given {given}"
        return f"each minibatch was labelled anew by {teacher}: scores include what it knows, stored bytes do not"

    def labeller(self, task: "ImageTask", before: Augment | None) -> Augment:
        """Train the teacher, and return a function that augments and labels all networks' minibatches in one call.

        Args:
            task: whose network the teacher is.
            before: augments the images first; None: no augmentation.
        """
        teacher = trained_teacher(task, self._epochs(task))

        def label(draws: Draws, flat: Batch) -> Batch:
            batch = flat if before is None else before(draws, flat)
            return batch._replace(targets=soft_labels(task, teacher, image_inputs(batch.inputs), self.temperature))

        return label


def divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    r"""Return the Kullback-Leibler divergence of a network's probabilities from a teacher's, at temperature T.

    .. math:: \sum_c t_c \left( \log t_c - \log \mathrm{softmax}(z / T)_c \right)

    Like SRe2L's and RDED's code, which train by AdamW, it does not multiply by T^2.

    Shapes:
        logits z ``(n, C)``; targets t ``(n, C)``, probabilities at the same temperature; returns ``(n,)``, in nats.
    """
    return F.kl_div((logits / temperature).log_softmax(-1), targets, reduction="none").sum(-1)
