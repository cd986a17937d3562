"""IDC's distances and EGM's two levels of gradients, against their oracles."""

import pytest
import torch
from torch import nn

from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.image import image_task
from mmdistill.image.methods import METHODS
from mmdistill.objectives.base import Network
from mmdistill.objectives.distances import conv_absolute_error, conv_squared_error, row_cosine
from mmdistill.objectives.gradient import GradientMatching, MultiLevelGradientMatching
from mmdistill.runtime import Draws
from mmdistill.task import ClassBatch, Tensors
from mmdistill.testing import check_objective
from tests.objectives.test_objectives import as_numpy, class_batch, per_class
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

KEY = Draws(4)


@pytest.fixture(scope="module")
def task() -> BlobTask:
    return BlobTask(dtype=torch.float64)


@pytest.fixture(scope="module")
def network(task: BlobTask) -> Network:
    return Network(task, task.init(KEY.fold("net")))


@pytest.mark.parametrize("balance", [0.0, 0.3, 2.0])
def test_both_levels_equal_their_oracle(task: BlobTask, network: Network, balance: float) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    check_objective(
        MultiLevelGradientMatching(balance=balance),
        network,
        syn,
        real,
        oracle=lambda: oracle.multi_level_gradient_matching(
            as_numpy(network), per_class(syn), per_class(real), balance
        ),
    )


def test_both_levels_are_the_sum_of_the_two_reductions(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    levels = [float(GradientMatching(row_cosine, r)(network, *sides, KEY)) for r in ("per-class", "class-sum")]  # type: ignore[arg-type]
    both = MultiLevelGradientMatching(row_cosine, balance=0.5)(network, *sides, KEY)
    assert float(both) == pytest.approx(levels[0] + 0.5 * levels[1])


def trees() -> tuple[Tensors, Tensors]:
    shapes = {"conv": (2, 4, 3, 3, 3), "bias": (2, 4), "linear": (2, 5, 6)}
    made = [{n: KEY.fold(side, n).normal(*s).double() for n, s in shapes.items()} for side in ("a", "b")]
    return made[0], made[1]


def test_convolution_distances_equal_their_oracle() -> None:
    a, b = trees()
    squared, absolute = conv_squared_error(a, b), conv_absolute_error(a, b)
    for index in range(2):
        one = [{name: t[index].numpy() for name, t in tree.items()} for tree in (a, b)]
        expected = oracle.convolution_errors(*one)
        assert (float(squared[index]), float(absolute[index])) == pytest.approx(expected)
    a["conv"].requires_grad_()
    torch.autograd.gradcheck(lambda conv: conv_squared_error({**a, "conv": conv}, b), (a["conv"],))


def test_a_network_without_convolutions_is_refused_when_the_run_is_built() -> None:
    with pytest.raises(ConfigError, match="no parameter has a convolution"):
        Distiller(image_task("digits", model="mlp", width=4), METHODS["idc"], 1).start()
    with pytest.raises(ConfigError, match="must not be negative"):
        MultiLevelGradientMatching(balance=-1.0)


class Scaled(nn.Module):
    """Logits from scales alone: nothing that a row-wise distance compares."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(10)
        self.head = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(images.flatten(1)[:, :10]))
        return logits


def test_a_network_of_scales_alone_is_refused_when_the_run_is_built() -> None:
    task = image_task("digits", model=Scaled, features=["head"])
    with pytest.raises(ConfigError, match="only biases and scales"):
        GradientMatching(row_cosine).check(task)
    assert isinstance(task.sample_real(KEY, torch.arange(10), 2), ClassBatch)
