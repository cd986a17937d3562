"""Attention matching against its oracle, and what it reads of networks."""

import copy
import pickle
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.image import ImageTask, image_task
from mmdistill.networks.module import FunctionalModule
from mmdistill.objectives.attention import SCALE, AttentionMatching
from mmdistill.objectives.base import Network, class_means, flatten_classes
from mmdistill.registry import get_domain, get_method
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims
from mmdistill.testing import as_float64, check_objective_on
from tests.oracles import attention as oracle
from tests.toys import BlobTask

KEY = Draws(5)
BLOCKS = 3


def tiny(model: str = f"convnet-d{BLOCKS}-w3-sigmoid") -> ImageTask:
    """Three classes of images of 2 x 8 x 8."""
    images, labels = KEY.fold("images").normal(24, 2, 8, 8), torch.arange(24) % 3
    return image_task((images, labels), test=(images[:6], labels[:6]), model=model, mirror=False)


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return tiny()


def sides(task: ImageTask) -> tuple[ClassBatch, ClassBatch]:
    """Two synthetic and five real images of each class."""
    found = []
    for name, n in (("syn", 2), ("real", 5)):
        batch = task.sample_real(KEY.fold(name), torch.arange(3), n)
        assert isinstance(batch, ClassBatch)
        found.append(ClassBatch(batch.batch.map(lambda t: t.double() if t.is_floating_point() else t), batch.dims))
    return found[0], found[1]


def network(task: ImageTask) -> Network:
    return Network(task, as_float64(task.init(KEY.fold("network"))))


def images_of(batch: Batch | ClassBatch) -> list[oracle.Array]:
    assert isinstance(batch, ClassBatch)
    assert isinstance(batch.batch.inputs, Tensor)
    return [images.numpy() for images in batch.batch.inputs]


@pytest.mark.parametrize(("power", "balance"), [(4.0, 0.01), (1.0, 0.5), (2.0, 0.0), (3.0, 0.1)])
def test_it_equals_its_oracle(task: ImageTask, power: float, balance: float) -> None:
    def expected(network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch) -> float:
        params = {name: p.numpy() for name, p in network.state.params.items()}
        return oracle.attention_matching(params, images_of(syn), images_of(real), BLOCKS, power, balance)

    check_objective_on(task, lambda: AttentionMatching(power, balance), oracle=expected)


def test_equal_sides_differ_by_nothing(task: ImageTask) -> None:
    syn, _ = sides(task)
    assert float(AttentionMatching()(network(task), syn, syn, KEY)) == 0


def test_brightness_does_not_change_attention() -> None:
    maps, read = KEY.fold("maps").uniform(4, 3, 5, 6), AttentionMatching(4.0).attention
    found = read(maps)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(read(7 * maps), found)
    torch.testing.assert_close(read(-maps), found)
    torch.testing.assert_close(read(maps.bfloat16()), found, rtol=0.05, atol=0.005)
    assert read(maps.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 4.0])
def test_maps_of_zeros_have_no_attention_and_no_gradient(power: float) -> None:
    maps = torch.zeros(1, 3, 4, 4, requires_grad=True)
    found = AttentionMatching(power).attention(maps)
    (gradient,) = torch.autograd.grad(found.sum(), maps)
    assert not found.any()
    assert not gradient.any()


def test_without_balance_the_embedding_counts_for_nothing(task: ImageTask) -> None:
    syn, real = sides(task)
    means = [class_means(network(task), side)[-1] for side in (syn, real)]
    values = [float(AttentionMatching(balance=balance)(network(task), syn, real, KEY)) for balance in (0.0, 0.3)]
    assert values[1] - values[0] == pytest.approx(SCALE * 0.3 * float((means[0] - means[1]).square().sum()), rel=1e-9)


def test_padded_samples_and_portions_of_classes_change_nothing(task: ImageTask) -> None:
    syn, real = sides(task)
    objective, whole = AttentionMatching(), network(task)
    expected = float(objective(whole, syn, real, KEY))
    x, y, w = real.batch
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    padded = ClassBatch(Batch(torch.cat([x, 9 * x], 1), torch.cat([y, y], 1), torch.cat([w, 0 * w], 1)), Dims(0, 0))
    assert float(objective(whole, syn, padded, KEY)) == pytest.approx(expected, rel=1e-12)
    gradients = []
    for size in (3, 1):
        leaf = syn.batch.inputs.clone().requires_grad_()  # type: ignore[union-attr]
        moved = ClassBatch(syn.batch._replace(inputs=leaf), syn.dims)
        value = objective(whole._replace(classes_at_once=size), moved, real, KEY)
        assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
        gradients += torch.autograd.grad(value, leaf)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("convnet", [(128, 32), (128, 16)]),
        ("convnet-d2-w4-maxpool", [(4, 32)]),
        ("convnet-d2-w4-nopool", [(4, 32)]),
        ("freponet-w4", [(4, 32), (8, 16)]),
        ("lenet", [(6, 28), (16, 10)]),
        ("alexnet-w8", [(8, 32), (12, 16), (16, 8), (12, 8)]),
        ("vgg11-w4", [(4, 32), (8, 16), (16, 8), (32, 4)]),
        ("resnet18-w4", [(4, 32), (8, 16), (16, 8)]),
    ],
)
def test_maps_are_those_before_pooling(model: str, sizes: list[tuple[int, int]]) -> None:
    images = KEY.normal(6, 3, 32, 32)
    task = image_task((images, torch.arange(6) % 3), test=(images, torch.arange(6) % 3), model=model, mirror=False)
    found: list[tuple[int, ...]] = []

    def read(maps: Tensor) -> Tensor:
        found.append(tuple(maps.shape))
        return maps.mean((2, 3))

    state = task.init(KEY)
    *layers, embedding = task.maps(state, images[:2], read)
    assert found == [(2, channels, side, side) for channels, side in sizes]
    assert [tuple(layer.shape) for layer in layers] == [(2, channels) for channels, _ in sizes]
    assert torch.equal(embedding, task.features(state, images[:2])[-1])
    assert len(found) == len(sizes)  # features read no maps


def test_layers_that_share_a_pooling_have_no_maps() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pool = nn.MaxPool2d(2)
            self.a, self.b = nn.Sequential(nn.Conv2d(1, 2, 3), pool), nn.Sequential(nn.Conv2d(2, 3, 2), pool)
            self.head = nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.head(self.b(self.a(images)).flatten(1))
            return out

    network = FunctionalModule(Shared, ["a", "b", "head"])
    state, images = network.init(KEY), torch.zeros(2, 1, 8, 8)
    assert [layer.shape[1] for layer in network.features(state, images)[:2]] == [18, 3]
    with pytest.raises(UnsupportedError, match="one and the same pooling module"):
        network.maps(state, lambda maps: maps.mean((2, 3)), images)


def test_copies_of_a_network_keep_maps_of_their_own(task: ImageTask) -> None:
    state, images = task.init(KEY), task.select(torch.arange(3)).inputs
    expected = task.maps(state, images, AttentionMatching().attention)
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert all(map(torch.equal, other.maps(state, images, AttentionMatching().attention), expected))


def test_a_reader_that_fails_leaves_nothing_behind(task: ImageTask) -> None:
    state, images = task.init(KEY), task.select(torch.arange(3)).inputs

    def failing(maps: Tensor) -> Tensor:
        raise UnsupportedError("no")

    with pytest.raises(UnsupportedError, match="no"):
        task.maps(state, images, failing)
    assert len(task.features(state, images)) == BLOCKS


class PoolFormed(nn.Conv2d):
    """A layer of its own, whatever its name."""


@pytest.mark.parametrize(
    ("last", "maps", "size"),
    [
        (nn.MaxPool2d(2), 2 * 6 * 6, 2 * 3 * 3),
        (nn.ReLU(), 2 * 6 * 6, 2 * 6 * 6),
        (PoolFormed(2, 5, 3), 5 * 4 * 4, 5 * 4 * 4),
    ],
)
def test_maps_of_a_module_of_ones_own(last: nn.Module, maps: int, size: int) -> None:
    net = FunctionalModule(
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), last), nn.Flatten(), nn.Linear(size, 3)), ["0", "2"]
    )
    read, embedding = net.maps(net.init(KEY), lambda maps: maps.flatten(1), KEY.normal(4, 1, 8, 8))
    assert (read.shape, embedding.shape) == ((4, maps), (4, size))


@pytest.mark.parametrize("precision", ["mixed", "bf16"])
def test_lower_precision_gives_nearly_the_same(precision: Literal["mixed", "bf16"]) -> None:
    task = tiny("convnet-d3-w8")
    syn, real = (
        ClassBatch(side.batch.map(lambda t: t.float() if t.is_floating_point() else t), side.dims)
        for side in sides(task)
    )
    whole = Network(task, task.init(KEY))
    value, expected = (
        float(AttentionMatching()(net, syn, real, KEY)) for net in (whole._replace(precision=precision), whole)
    )
    assert value == pytest.approx(expected, rel=0.05)
    assert value != expected


@pytest.mark.parametrize("model", ["mlp", "convnet-d1", "vit"])
def test_networks_without_maps_are_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="maps of convolutions before the last one"):
        AttentionMatching().check(tiny(model))


def test_bad_tasks_sides_and_numbers_are_refused(task: ImageTask) -> None:
    syn, real = sides(task)
    with pytest.raises(ConfigError, match="the network of 'blobs' has none"):
        AttentionMatching().check(BlobTask())
    with pytest.raises(ConfigError, match="one batch per class"):
        AttentionMatching()(network(task), flatten_classes(syn), real, KEY)
    with pytest.raises(ShapeError, match="2 synthetic classes against 3"):
        AttentionMatching()(network(task), syn.part(0, 2), real, KEY)
    for power in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="attention_power"):
            AttentionMatching(power=power)
    for balance in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="attention_balance"):
            AttentionMatching(balance=balance)


def test_settings_say_power_and_balance() -> None:
    method = get_method(get_domain("image"), "datadam").with_settings(attention_power=1.0, attention_balance=0.02)
    objective = method.make_objective(method.settings(1))
    assert isinstance(objective, AttentionMatching)
    assert (objective.power, objective.balance) == (1.0, 0.02)
    assert method.ignored_settings(1, ["attention_power", "attention_balance"]) == []
