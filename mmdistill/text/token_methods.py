"""Methods for token embeddings: the shared objectives, composed as in the papers on text."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.method import Configured, Method, MethodTable
from mmdistill.methods import fresh, ridge_matching, trained_on_s, unrolled_performance
from mmdistill.objectives.base import Network, flatten_classes
from mmdistill.objectives.distances import flat_cosine
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.objectives.kernel_ridge import FeatureKernel, KernelRidgeMatching
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, ClassBatch, Task
from mmdistill.text.methods import PointKernel
from mmdistill.text.words import as_attended_task, as_token_task, attended_samples, token_samples


class EncodedRidgeMatching(KernelRidgeMatching):
    """Kernel ridge matching on the points of a pre-trained encoder, with real texts encoded once.

    The body of a pre-trained network does not change, so neither do the points of real texts, and a step encodes only
    the few synthetic samples. The kernel is that of a wide MLP on points.

    Args:
        ridge: lambda.
        batch: real texts per step.
    Shapes:
        flat batches; the real batch is not read, since the task provides the points of real texts.
    """

    reads_real = False

    def __init__(self, ridge: float = 1e-2, batch: int = 1024) -> None:
        super().__init__(PointKernel(), ridge)
        self.batch = batch

    def check(self, task: Task) -> None:
        """Refuse networks other than transformers, whose body is the encoder.

        Raises:
            ConfigError: another network.
        """
        as_attended_task(task)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the loss of the ridge prediction on encoded real texts."""
        task = as_token_task(network.task)
        points = task.embedding()
        rows = draws.to(points.device).permutation(len(points))[: self.batch]
        encoded = F.normalize(network.features(flatten_classes(syn).inputs)[-1], dim=1)
        goal = Batch(points[rows], task.classes(rows), torch.ones(len(rows), device=points.device))
        return super().forward(network, flatten_classes(syn)._replace(inputs=encoded), goal, draws)


LEARNED = (0.5, 0.999)
"""Adam's betas of the papers."""


def _adam(lr: float) -> OptimizerSpec:
    return OptimizerSpec("adam", lr, betas=LEARNED, cosine=True)


def _unrolled(ipc: int, labels: bool) -> Settings:
    """Return settings chosen on development questions of TREC, for convolutional and recurrent networks alike.

    So few inner steps need high rates. Without momentum these make the student chaotic and its gradient noisy. For the
    same reason the gradient norm is clipped, and the step that does best on development texts is kept.
    """
    optimizers = {"codes": _adam(0.05), "objective": _adam(0.02)}
    if labels:
        optimizers["labels"] = _adam(0.03)
    return Settings(
        steps=300 if ipc < 10 else 400,
        real_batch=96,
        optimizers=optimizers,
        init="herding",
        inner_steps=8 if ipc < 10 else 16,
        inner_lr=0.05,
        inner_momentum=0.9,
        inner_batch=0,
        inner_parts=min(ipc, 8),
        clip=1.0,
        validate_every=20,
    )


def _attention(ipc: int) -> Settings:
    """Return our own settings with the paper's optimizer: one rate for everything learned, and no warm-up."""
    optimizers = {name: OptimizerSpec("adamw", 0.01) for name in ("codes", "labels", "objective")}
    return Settings(
        steps=300,
        real_batch=64,
        optimizers=optimizers,
        init="herding",
        inner_steps=1,
        inner_lr=0.05,
        inner_batch=0,
        clip=1.0,
    )


TOKEN_METHODS = MethodTable(
    {
        "dd": Method(
            "DD of token embeddings",
            Configured(unrolled_performance),
            fresh,
            lambda ipc: _unrolled(ipc, labels=False),
            token_samples,
            "hard",
            "performance matching through an unrolled training, a learned rate for each step",
            "Li and Li, 2021; ours as sldd",
            requires=as_token_task,
        ),
        "sldd": Method(
            "Soft-label DD of token embeddings",
            Configured(unrolled_performance),
            fresh,
            lambda ipc: _unrolled(ipc, labels=True),
            token_samples,
            "soft",
            "the same with learned soft labels",
            "Sucholutsky and Schonlau, IJCNN 2021; ours start from real texts instead of noise, students have "
            "momentum, labels are probabilities, rates are annealed, and development texts choose the step",
            requires=as_token_task,
        ),
        "attention-labels": Method(
            "Attention labels of token embeddings",
            Configured(unrolled_performance),
            fresh,
            _attention,
            attended_samples,
            "soft",
            "soft labels of the classes and of a transformer's attention, unrolled fine-tuning",
            "Maekawa et al., ACL 2023; ours start from real texts and even attention instead of noise, the rate is "
            "constant, and the classifier reads the mean of all tokens instead of the first",
            requires=as_attended_task,
        ),
        "dm-tokens": Method(
            "DM of token embeddings",
            lambda: DistributionMatching("last"),
            fresh,
            lambda ipc: Settings(300, 64, {"codes": _adam(0.05)}, init="herding"),
            token_samples,
            "hard",
            "mean feature matching over fresh networks",
            "Zhao and Bilen, WACV 2023",
            requires=as_token_task,
        ),
        "dc-tokens": Method(
            "DC of token embeddings",
            lambda: GradientMatching(flat_cosine),
            trained_on_s,
            lambda ipc: Settings(
                300, 64, {"codes": _adam(0.05)}, init="herding", outer_steps=10, inner_steps=5, inner_lr=0.05
            ),
            token_samples,
            "hard",
            "gradient matching (flat cosine), network trained on S",
            "Zhao et al., ICLR 2021; on text also Maekawa et al., NAACL 2024, who generate texts and match the "
            "gradients of the classifier alone",
            requires=as_token_task,
        ),
        "krr-encoder": Method(
            "KRR of token embeddings through the encoder",
            Configured(lambda settings: EncodedRidgeMatching(settings.ridge or 1e-2, settings.real_batch)),
            fresh,
            lambda ipc: Settings(100, 1024, {"codes": _adam(0.05), "labels": _adam(0.05)}, init="herding"),
            token_samples,
            "soft",
            "kernel ridge matching on a transformer's pre-trained points, learned soft labels",
            "Nguyen et al., ICLR 2021; the real texts are encoded once",
            requires=as_attended_task,
        ),
        "krr-tokens": Method(
            "KRR of token embeddings",
            ridge_matching(partial(KernelRidgeMatching, FeatureKernel()), 1e-2),
            trained_on_s,
            lambda ipc: Settings(
                300,
                128,
                {"codes": _adam(0.05), "labels": _adam(0.02)},
                init="herding",
                outer_steps=10,
                inner_steps=5,
                inner_lr=0.05,
            ),
            token_samples,
            "soft",
            "kernel ridge matching on a network's features, learned soft labels",
            "Nguyen et al., ICLR 2021; Zhou et al., NeurIPS 2022",
            requires=as_token_task,
        ),
    }
)
"""Methods of token embeddings. Rates are in the units of standardised vectors."""
