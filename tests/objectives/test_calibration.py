"""Matching that an expert calibrates, against its oracle, and what it asks of networks and samples."""

import pytest
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.image import image_task
from mmdistill.networks.statistics import copied
from mmdistill.objectives.base import Network, flatten_classes
from mmdistill.objectives.calibration import CalibratedMatching, calibration_loss
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, NetworkState, real_classes
from mmdistill.testing import check_objective, check_objective_on
from tests.objectives.test_objectives import as_numpy, class_batch, per_class
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

KEY = Draws(9)


@pytest.fixture(scope="module")
def between(task: BlobTask, network: Network) -> Network:
    return network._replace(target=task.init(KEY.fold("expert")).params)


def test_it_equals_its_oracle(task: BlobTask, between: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    assert between.target is not None
    expert = {name: tensor.numpy() for name, tensor in between.target.items()}

    def expected() -> float:
        sides = [[x for x, _ in per_class(side)] for side in (syn, real)]
        return oracle.distribution_matching(as_numpy(between), *sides) + 0.3 * oracle.calibration_loss(
            expert, per_class(syn)
        )

    check_objective(CalibratedMatching(0.3), between, syn, real, oracle=expected)
    check_objective_on(task, CalibratedMatching)


def test_without_weight_it_is_distribution_matching(task: BlobTask, between: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    for layers in ("last", "all"):
        matching = DistributionMatching(layers)
        found = CalibratedMatching(0.0, matching=matching)(between, *sides, KEY)
        assert torch.equal(found, matching(between, *sides, KEY))


def test_shared_and_padded_samples_count_as_their_class_weights_say(task: BlobTask, between: Network) -> None:
    syn = class_batch(task, 4, "syn")
    flat, expected = flatten_classes(syn), float(calibration_loss(between, syn, KEY))
    membership = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 1)
    shared = ClassBatch(Batch(flat.inputs, flat.targets, membership), Dims(None, None))
    assert float(calibration_loss(between, shared, KEY)) == pytest.approx(expected, rel=1e-12)
    x, y, w = syn.batch
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    padded = Batch(torch.cat([x, 9 * x], 1), torch.cat([y, y], 1), torch.cat([w, 0 * w], 1))
    assert float(calibration_loss(between, ClassBatch(padded, Dims(0, 0)), KEY)) == pytest.approx(expected, rel=1e-12)
    few = between._replace(classes_at_once=2)
    assert float(calibration_loss(few, syn, KEY)) == pytest.approx(expected, rel=1e-12)


def test_both_sides_are_augmented_alike_and_the_expert_s_samples_otherwise(task: BlobTask, between: Network) -> None:
    def moved(draws: Draws, batch: ClassBatch) -> ClassBatch:
        assert isinstance(batch.batch.inputs, Tensor)
        return ClassBatch(batch.batch._replace(inputs=batch.batch.inputs + draws.normal(4)), batch.dims)

    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    objective = CalibratedMatching(0.5, augment=moved)
    assert not objective.siamese
    assert CalibratedMatching().siamese
    matching = DistributionMatching()(between, moved(KEY, syn), moved(KEY, real), KEY)
    calibration = calibration_loss(between, moved(KEY.fold("calibration"), syn), KEY)
    assert torch.allclose(objective(between, syn, real, KEY), matching + 0.5 * calibration, rtol=1e-12)


def test_what_cannot_be_calibrated_is_refused(task: BlobTask, network: Network, between: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    with pytest.raises(ConfigError, match=r"weight of the expert's loss \(calibration\) must not be negative, got -1"):
        CalibratedMatching(-1.0)
    with pytest.raises(ConfigError, match="use a schedule of cached experts"):
        CalibratedMatching()(network, *sides, KEY)
    other = between._replace(target=BlobTask(width=5).init(KEY).params)
    with pytest.raises(ShapeError, match="the expert's target"):
        CalibratedMatching()(other, *sides, KEY)
    with pytest.raises(ConfigError, match="calibrated matching reads one batch per class"):
        CalibratedMatching()(between, flatten_classes(sides[0]), sides[1], KEY)


def test_batch_norms_of_the_expert_read_all_classes_however_many_are_taken_at_once() -> None:
    task = image_task("digits", model="convnet-d1-w4-bn")
    expert = task.init(KEY.fold("expert")).params
    network = Network(task, task.init(KEY), target=expert)
    buffers = copied(network.state.buffers)
    real = real_classes(task, KEY, torch.arange(10), 3)
    assert isinstance(real.batch.inputs, Tensor)

    def found(at_once: int) -> tuple[Tensor, Tensor]:
        images = real.batch.inputs.clone().requires_grad_()  # type: ignore[union-attr]
        syn = ClassBatch(real.batch._replace(inputs=images), real.dims)
        loss = calibration_loss(network._replace(classes_at_once=at_once), syn, KEY)
        return loss.detach(), torch.autograd.grad(loss, images)[0]

    for one, other in zip(found(10), found(3), strict=True):
        torch.testing.assert_close(one, other)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.state.buffers.items())
    in_training = 10 * task.loss(NetworkState(expert, buffers), flatten_classes(real), train=True)
    torch.testing.assert_close(found(10)[0], in_training)
