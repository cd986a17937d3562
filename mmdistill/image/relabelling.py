"""Judges that ask a teacher anew: each minibatch is labelled as they see it, augmented and mixed.

The labels that a set stores are then not read, and neither are those of random or herded images: all images are told
apart by the same knowledge. Scores include it, so they compare with each other alone, and the bytes of a set do not
count the teacher.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from mmdistill.abilities import NamesNetwork, given_teacher
from mmdistill.checks import require_at_least, require_positive
from mmdistill.image.augment import image_inputs
from mmdistill.names import counted
from mmdistill.networks.fit import Augment
from mmdistill.networks.teacher import describe_teacher, soft_labels, trained_teacher
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Task


@dataclass(frozen=True)
class Relabelling:
    """A teacher that labels every minibatch of judges anew.

    The teacher is the network distilled with, trained on the real data as
    :func:`~mmdistill.networks.teacher.trained_teacher` does it, once for all judges, sets and baselines, or the one
    that the task was given.

    Args:
        epochs: of its training; None: as many as networks on all real images train for. A given one has trained.
        temperature: T, by which the logits of both sides are divided.
    Raises:
        ConfigError: no epoch, or a temperature that is not positive.
    Source: Shen and Xing, ECCV 2022 (fast knowledge distillation); Yin et al., NeurIPS 2023, Sec. 3.3; Sun et al.,
        CVPR 2024.
    """

    epochs: int | None = None
    temperature: float = 20.0

    def __post_init__(self) -> None:
        if self.epochs is not None:
            require_at_least(self, {"epochs": 1})
        require_positive(self, "temperature")

    def of_epochs(self, usual: int) -> int:
        """Return for how many epochs the teacher trains, where networks on all real images do for ``usual`` ones."""
        return self.epochs or usual

    def describe_teacher(self, task: Task, usual: int) -> str:
        """Return in words where the teacher is, or that it will be trained."""
        return describe_teacher(task, self.of_epochs(usual))

    def note(self, task: Task, usual: int) -> str:
        """Return what readers of a score must know.

        Args:
            task: whose network the teacher is.
            usual: epochs, see :meth:`of_epochs`.
        """
        network = task.network_name if isinstance(task, NamesNetwork) else ""
        epochs, named = counted(self.of_epochs(usual), "epoch"), f" ({network})" if network else ""
        given = given_teacher(task)
        by = f"a network{named} trained on all real data for {epochs}" if given is None else f"the given {given}"
        return f"each minibatch was labelled anew by {by}: scores include what it knows, stored bytes do not"

    def asking(self, task: Task, usual: int, before: Augment | None) -> Augment:
        """Return what labels flat batches by the teacher, all networks' minibatches in one call; it is trained first.

        Args:
            task: whose network it is.
            usual: epochs, see :meth:`of_epochs`.
            before: what becomes of the images first; None leaves them.
        """
        teacher = trained_teacher(task, self.of_epochs(usual))

        def labelled(draws: Draws, flat: Batch) -> Batch:
            batch = flat if before is None else before(draws, flat)
            return batch._replace(targets=soft_labels(task, teacher, image_inputs(batch.inputs), self.temperature))

        return labelled


def divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    r"""Return the Kullback-Leibler divergence from a teacher's probabilities at a temperature T to a network's.

    .. math:: \sum_c t_c \left( \log t_c - \log \mathrm{softmax}(z / T)_c \right)

    It is not multiplied by T^2, as in the code of SRe2L and RDED, which train by AdamW.

    Shapes:
        logits z ``(n, C)``; targets t ``(n, C)``, probabilities at the same temperature; returns ``(n,)``, in nats.
    """
    return F.kl_div((logits / temperature).log_softmax(-1), targets, reduction="none").sum(-1)
