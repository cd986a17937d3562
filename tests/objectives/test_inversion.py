"""Samples that a trained network recognises, with the statistics of its batch norms: the loss against its oracle."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmdistill.abilities import NormReader
from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.image import image_task
from mmdistill.image.models.layers import BatchNorm2d
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.norms import norms_read
from mmdistill.objectives.base import Network
from mmdistill.objectives.inversion import BatchNormInversion
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Tensors, one_tensor
from mmdistill.testing import check_objective, check_objective_on
from tests.image.methods.test_realistic import PictureTask
from tests.oracles import inversion as oracle
from tests.toys import BlobTask

KEY = Draws(11)
SHAPE = (2, 4, 4)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1), BatchNorm2d(4)),
        *(nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)),
    )


class NormedTask(PictureTask):
    """Pictures of noise and a smooth network with two batch norms."""

    def __init__(self) -> None:
        super().__init__(shape=SHAPE)
        self.module = FunctionalModule(network)

    def norms(self, state: NetworkState, inputs: Inputs, read: NormReader) -> tuple[Tensor, dict[str, Tensors]]:
        return norms_read(self.module, state, read, one_tensor(inputs))


def trained(task: NormedTask) -> NetworkState:
    """A network whose norms have seen something."""
    state = task.init(KEY).map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    buffers = {
        name: tensor + KEY.fold(name).uniform(*tensor.shape).double() if tensor.ndim else tensor
        for name, tensor in state.buffers.items()
    }
    return NetworkState(state.params, buffers)


def class_batch(task: NormedTask, n: int) -> ClassBatch:
    found = task.sample_real(KEY.fold("syn"), torch.arange(3), n)
    assert isinstance(found, ClassBatch)
    return found


@pytest.fixture(scope="module")
def task() -> NormedTask:
    return NormedTask()


@pytest.mark.parametrize("together", [False, True])
def test_it_equals_its_oracle(task: NormedTask, together: bool) -> None:
    given, syn = Network(task, trained(task)), class_batch(task, 2)
    images, (params, buffers) = one_tensor(syn.batch.inputs), given.state
    norms = [(buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"]) for name in ("1", "4")]
    together_groups = [[(c, i) for c in range(3) for i in range(2)]]
    groups = together_groups if together else [[(c, i) for c in range(3)] for i in range(2)]

    def expected() -> float:
        total = torch.zeros((), dtype=torch.float64)
        for group in groups:
            logits, inner = oracle.convnet(params, buffers, torch.stack([images[place] for place in group]))
            total = total + oracle.recovery(logits, [c for c, _ in group], inner, norms, 0.3, 7.0)
        return float(total)

    objective = BatchNormInversion(0.3, 7.0, together=together)
    order = "" if together else "samples of different classes make groups by their places"
    check_objective(objective, given, syn, class_batch(task, 1), oracle=expected, by_position=order)


def test_its_network_is_read_as_when_it_is_tested(task: NormedTask) -> None:
    given, syn = Network(task, trained(task)), class_batch(task, 1)
    before = {name: tensor.clone() for name, tensor in given.state.buffers.items()}
    found, _ = task.norms(given.state, syn.batch.inputs.flatten(0, 1), lambda *_: {})  # type: ignore[union-attr]
    assert torch.equal(found, task.predict(given.state, syn.batch.inputs.flatten(0, 1))[0])  # type: ignore[union-attr]
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state.buffers.items())
    assert not any(norm._forward_pre_hooks for norm in task.module.module.modules() if isinstance(norm, nn.Tanh))
    with pytest.raises(ZeroDivisionError):
        task.norms(given.state, syn.batch.inputs.flatten(0, 1), lambda *_: {"x": 1 / 0})  # type: ignore[union-attr]
    hooks = [len(norm._forward_pre_hooks) for norm in task.module.module.modules() if isinstance(norm, BatchNorm2d)]
    assert hooks == [1, 1]  # the module's own, that takes norms to float32


def test_padded_samples_count_nothing(task: NormedTask) -> None:
    given, syn = Network(task, trained(task)), class_batch(task, 2)
    x, y, w = syn.batch
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    short = w.clone()
    short[1, 1] = 0
    other = x.clone()
    other[1, 1] += 5
    for together in (False, True):
        objective = BatchNormInversion(0.3, together=together)
        values = [
            float(objective(given, ClassBatch(Batch(images, y, short), Dims(0, 0)), syn, KEY)) for images in (x, other)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_what_the_network_sees_is_what_is_matched(task: NormedTask) -> None:
    given, syn = Network(task, trained(task)), class_batch(task, 2)
    shown = ClassBatch(syn.batch._replace(inputs=2 * syn.batch.inputs), syn.dims)  # type: ignore[operator]
    seen = BatchNormInversion(seen=lambda draws, images: 2 * images)(given, syn, syn, KEY)
    torch.testing.assert_close(seen, BatchNormInversion()(given, shown, syn, KEY))


def test_named_networks_of_images_are_read() -> None:
    order = "samples of different classes make groups by their places"
    task = image_task("digits", model="convnet-bn-w4-d1")
    check_objective_on(task, lambda: BatchNormInversion(0.0), n=1, by_position=order)


def without_running_statistics() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("convnet", r"its norms are InstanceNorm\)"),
        ("vit", r"its norms are LayerNorm\)"),
        ("mlp", "no norms at all"),
        (without_running_statistics, r"its norms are BatchNorm2d\)"),
    ],
)
def test_networks_without_batch_norms_are_refused_by_the_norms_they_have(
    model: str | Callable[[], nn.Module], named: str
) -> None:
    task = image_task("digits", model=model)
    with pytest.raises(ConfigError, match=f"{named}.*--model convnet-bn"):
        BatchNormInversion().check(task)
    with pytest.raises(UnsupportedError, match=named):
        task.norms(task.init(KEY), task.select(torch.arange(2)).inputs, lambda *_: {})


@pytest.mark.parametrize(
    "make",
    [
        lambda: BatchNormInversion(-0.1),
        lambda: BatchNormInversion(first=-1.0),
        lambda: BatchNormInversion(float("nan")),
    ],
)
def test_weights_are_not_negative(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        make()


def test_what_has_no_norms_or_no_classes_is_refused(task: NormedTask) -> None:
    with pytest.raises(ConfigError, match="do not give"):
        BatchNormInversion().check(BlobTask())
    given = Network(task, trained(task))
    flat = task.sample_real(KEY, None, 4)
    with pytest.raises(ShapeError, match="samples of each class by themselves"):
        BatchNormInversion()(given, flat, flat, KEY)
