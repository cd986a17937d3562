"""IDC's distances and EGM's two levels of gradients, against their oracles."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.image import image_task
from mmdistill.image.methods import METHODS
from mmdistill.methods import CORE_METHODS
from mmdistill.objectives.base import Network
from mmdistill.objectives.distances import conv_absolute_error, conv_squared_error, row_cosine
from mmdistill.objectives.gradient import GradientMatching, MultiLevelGradientMatching, WarmUp
from mmdistill.runtime import Draws
from mmdistill.task import ClassBatch, Tensors
from mmdistill.testing import check_objective
from tests.objectives.test_objectives import as_numpy, class_batch, per_class
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

KEY = Draws(4)


@pytest.mark.parametrize("balance", [0.0, 0.3, None])
def test_both_levels_equal_their_oracle(task: BlobTask, network: Network, balance: float | None) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    weight = syn.num_classes if balance is None else balance  # in the published code the number of classes
    check_objective(
        MultiLevelGradientMatching(balance=balance),
        network,
        syn,
        real,
        oracle=lambda: oracle.multi_level_gradient_matching(as_numpy(network), per_class(syn), per_class(real), weight),
    )


def test_both_levels_are_the_sum_of_the_two_reductions(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    levels = [float(GradientMatching(row_cosine, r)(network, *sides, KEY)) for r in ("per-class", "class-sum")]  # type: ignore[arg-type]
    both = MultiLevelGradientMatching(row_cosine, balance=0.5)(network, *sides, KEY)
    assert float(both) == pytest.approx(levels[0] + 0.5 * levels[1])


def test_classes_weigh_by_their_share(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 4, "syn"), class_batch(task, 9, "real")
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    uneven = ClassBatch(syn.batch._replace(weight=present), syn.dims)
    single = [
        oracle.gradient_matching(as_numpy(network), [(s[0][:n], s[1][:n])], [r])
        for s, r, n in zip(per_class(syn), per_class(real), (4, 2, 1), strict=True)
    ]
    value = GradientMatching(weights="share")(network, uneven, real, KEY)
    assert float(value) == pytest.approx(single[0] + single[1] / 2 + single[2] / 4, rel=1e-9)
    even = (GradientMatching(row_cosine, r, weights=w) for r in ("per-class", "class-sum") for w in ("equal", "share"))  # type: ignore[arg-type]
    values = [float(objective(network, syn, real, KEY)) for objective in even]
    assert (values[0], values[2]) == pytest.approx((values[1], values[3]), rel=1e-9)


def test_the_mean_over_uneven_classes_is_that_of_their_gradients(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 4, "syn"), class_batch(task, 9, "real")
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    uneven = ClassBatch(syn.batch._replace(weight=present), syn.dims)
    trees = [
        oracle.class_gradient(as_numpy(network), x[:n], y[:n])
        for (x, y), n in zip(per_class(syn), (4, 2, 1), strict=True)
    ]
    goals = [oracle.class_gradient(as_numpy(network), *one) for one in per_class(real)]
    for weights, shares in (("equal", (1.0, 1.0, 1.0)), ("share", (1.0, 0.5, 0.25))):
        means = [
            {name: sum(s * tree[name] for s, tree in zip(shares, side, strict=True)) / sum(shares) for name in side[0]}
            for side in (trees, goals)
        ]
        value = GradientMatching(row_cosine, "class-sum", weights=weights)(network, uneven, real, KEY)  # type: ignore[arg-type]
        assert float(value) == pytest.approx(oracle.row_cosine(means[0], means[1]), rel=1e-9)


def test_matching_the_sum_over_classes_warms_up_class_by_class(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    by_class, summed = (
        float(GradientMatching(row_cosine, r)(network, *sides, KEY)) for r in ("per-class", "class-sum")
    )  # type: ignore[arg-type]
    objective = GradientMatching(row_cosine, "class-sum", warm_up=WarmUp(steps=20, age=3))
    assert not objective.steady  # a captured step would go on as it began
    for step, age, expected in ((0, 0, by_class), (19, 2, by_class), (19, 3, summed), (20, 0, summed)):
        value = objective(network._replace(step=step, age=age), *sides, KEY)
        assert float(value) == pytest.approx(expected, rel=1e-12)


def test_objectives_are_told_the_step_how_long_its_network_has_served_and_how_many_classes_to_take() -> None:
    told: list[tuple[int, int, int]] = []

    class Told(GradientMatching):
        def forward(self, network: Network, *others: Any) -> Tensor:
            told.append((network.step, network.age, network.classes_at_once))
            return super().forward(network, *others)

    method = replace(CORE_METHODS["dc"], objective=Told)
    settings = {"real_batch": 8, "outer_steps": 2, "inner_steps": 1, "classes_at_once": 2}
    distiller = Distiller(BlobTask(), method.with_settings(**settings), 1)
    run = distiller.start()
    for _ in range(4):
        run, _ = distiller.step(run)
    assert told == [(0, 0, 2), (1, 1, 2), (2, 0, 2), (3, 1, 2)]


def test_an_augmentation_of_its_own_takes_the_place_of_the_task_s(task: BlobTask, network: Network) -> None:
    def shifted(draws: Draws, batch: ClassBatch) -> ClassBatch:
        assert isinstance(batch.batch.inputs, torch.Tensor)
        return ClassBatch(batch.batch._replace(inputs=batch.batch.inputs + draws.normal(4).double()), batch.dims)

    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    own = GradientMatching(augment=shifted)
    assert GradientMatching().siamese
    assert not own.siamese
    expected = GradientMatching()(network, shifted(KEY, syn), shifted(KEY, real), KEY)
    assert float(own(network, syn, real, KEY)) == float(expected)


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
