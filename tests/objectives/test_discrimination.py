import math

import pytest
import torch
from torch import Tensor, nn

from mmdistill.abilities import EveryLayer
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.image import image_task
from mmdistill.objectives.base import Network, class_means, flatten_classes
from mmdistill.objectives.discrimination import DiscriminativeMatching, discrimination
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims
from mmdistill.testing import check_objective, check_objective_on
from tests.objectives.test_attention import images_of, tiny
from tests.objectives.test_objectives import as_numpy, class_batch, per_class
from tests.oracles import discrimination as oracle_on_maps
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

KEY = Draws(8)


def test_it_equals_its_oracle(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    sides = [[x for x, _ in per_class(side)] for side in (syn, real)]

    def expected() -> float:
        last = oracle.distribution_matching(as_numpy(network), *sides)
        both = oracle.layerwise_distribution_matching(as_numpy(network), *sides)
        return 0.2 * (both - last) + last + 0.5 * oracle.discrimination(as_numpy(network), *sides)

    check_objective(DiscriminativeMatching(balance=0.5, early=0.2), network, syn, real, oracle=expected)


def test_on_images_it_compares_maps_before_pooling() -> None:
    def expected(network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch) -> float:
        params = {name: p.numpy() for name, p in network.state.params.items()}
        return oracle_on_maps.discriminative_matching(params, images_of(syn), images_of(real), 0.5)

    check_objective_on(tiny(), lambda: DiscriminativeMatching(balance=0.5), oracle=expected)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("convnet-d3-w4", [4 * 1024, 4 * 256, 4 * 64, 4 * 16, 4 * 16]),
        ("convnet-d2-w4-nopool", [4 * 1024, 4 * 1024, 4 * 1024]),  # the last block's maps are the embedding as they are
        ("lenet", [6 * 28 * 28, 16 * 10 * 10, 120, 84]),
        ("alexnet-w8", [8 * 1024, 12 * 256, 16 * 64, 12 * 64, 12 * 64, 12 * 16, 12 * 16]),
        ("vgg11-w4", [4 * 1024, 8 * 256, 16 * 64, 32 * 16, 32 * 4, 32, 32]),
        ("resnet18-w4", [4 * 1024, 8 * 256, 16 * 64, 32 * 16, 32, 32]),
        ("freponet-d2-w4", [4 * 1024, 8 * 256, 8 * 64, 8 * 64]),
        ("mlp-w4", [4, 4]),
    ],
)
def test_every_layer_is_read(model: str, sizes: list[int]) -> None:
    images = KEY.normal(6, 3, 32, 32)
    task = image_task((images, torch.arange(6) % 3), test=(images, torch.arange(6) % 3), model=model, mirror=False)
    state = task.init(KEY)
    found = task.maps(state, images[:2], EveryLayer())
    assert [tuple(layer.shape) for layer in found] == [(2, size) for size in sizes]
    assert torch.equal(found[-1], task.features(state, images[:2])[-1])
    few: list[Tensor] = []
    task.maps(state, images[:2], lambda maps: few.append(maps) or maps.flatten(1))  # type: ignore[func-returns-value]
    named = sum(maps.ndim == 4 for maps in few)
    assert named == len(few) == sum(size > 120 for size in sizes[: len(task.network.feature_names) - 1])


@pytest.mark.parametrize(
    ("features", "sizes"),
    [
        (("classifier",), [256, 64, 64]),
        (("block3", "classifier"), [256, 64, 64]),
        (("block1", "block2", "block3", "classifier"), [4096, 1024, 256, 64, 64]),
        (("block1", "block2"), [4096, 1024]),  # the embedding is what block2 is given
    ],
)
def test_layers_of_ones_own_choice_end_in_their_own_embedding(features: tuple[str, ...], sizes: list[int]) -> None:
    images, labels = KEY.normal(6, 3, 32, 32), torch.arange(6) % 3
    task = image_task((images, labels), test=(images, labels), model="convnet-d3-w4", features=features, mirror=False)
    found = task.maps(task.init(KEY), images[:2], EveryLayer())
    assert [layer.shape[1] for layer in found] == sizes


@pytest.mark.parametrize("value", ["head", "nowhere", 3, True, None])
def test_an_own_networks_attribute_of_that_name_means_nothing(value: object) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last_block = nn.Linear(128, 8) if value is None else value
            self.head = nn.Linear(128, 3)

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.head(images.flatten(1))
            return out

    images, labels = KEY.normal(6, 2, 8, 8), torch.arange(6) % 3
    task = image_task((images, labels), test=(images, labels), model=Own, mirror=False)
    assert len(task.maps(task.init(KEY), images[:2], EveryLayer())) == 1


def test_layers_that_share_a_pooling_are_refused_at_the_start() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pool = nn.AvgPool2d(2)
            self.one = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), pool)
            self.two = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), pool)
            self.head = nn.Linear(12, 3)

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.head(self.two(self.one(images)).flatten(1))
            return out

    images, labels = KEY.normal(6, 2, 8, 8), torch.arange(6) % 3
    task = image_task((images, labels), test=(images, labels), model=Shared, features=["one", "head"], mirror=False)
    with pytest.raises(ConfigError, match=r"does not give: .* cannot be told apart; give each its own"):
        DiscriminativeMatching().check(task)


def test_without_balance_it_is_layerwise_matching(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    gaps = [
        float((s - r).square().sum()) for s, r in zip(*(class_means(network, side, 0) for side in sides), strict=True)
    ]
    plain = 0.1 * gaps[0] + gaps[1]  # the first layer counts a tenth
    assert float(DiscriminativeMatching(balance=0.0)(network, *sides, KEY)) == pytest.approx(plain, rel=1e-12)


def test_shared_and_padded_samples_count_as_their_class_weights_say(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 4, "real")
    objective, flat = DiscriminativeMatching(balance=0.5), flatten_classes(real)
    expected = float(objective(network, syn, real, KEY))
    membership = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 1)
    shared = ClassBatch(Batch(flat.inputs, flat.targets, membership), Dims(None, None))
    assert float(objective(network, syn, shared, KEY)) == pytest.approx(expected, rel=1e-12)
    x, y, w = real.batch
    assert isinstance(x, torch.Tensor)
    assert isinstance(y, torch.Tensor)
    padded = Batch(torch.cat([x, 9 * x], 1), torch.cat([y, y], 1), torch.cat([w, 0 * w], 1))
    assert float(objective(network, syn, ClassBatch(padded, Dims(0, 0)), KEY)) == pytest.approx(expected, rel=1e-12)


def test_equal_centres_tell_nothing_apart() -> None:
    value = discrimination(torch.ones(4, 5), KEY.normal(4, 6, 5), torch.ones(4, 6))
    assert float(value) == pytest.approx(4 * 6 * float(torch.tensor(4.0).log()), rel=1e-6)


def test_layer_weights_leave_the_embedding_whole() -> None:
    weights = [DiscriminativeMatching(early=0.1).layer_weights(layers) for layers in (1, 2, 3, 5)]
    assert weights == [(1.0,), (0.1, 1.0), (0.1, 0.1, 1.0), (0.1, 0.1, 1.0, 1.0, 1.0)]


def test_bad_sides_and_balances_are_refused(task: BlobTask, network: Network) -> None:
    real = class_batch(task, 4, "real")
    fewer = ClassBatch(Batch(*(t[:2] for t in real.batch)), real.dims)  # type: ignore[call-overload,index]
    with pytest.raises(ShapeError, match="2 synthetic classes against 3"):
        DiscriminativeMatching()(network, fewer, real, KEY)
    with pytest.raises(ConfigError, match="one batch per class"):
        DiscriminativeMatching()(network, flatten_classes(real), real, KEY)
    for changes in ({"balance": -1.0}, {"early": -1.0}, {"balance": math.nan}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))} is a number of at least 0"):
            DiscriminativeMatching(**changes)
