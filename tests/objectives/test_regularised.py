"""Matching whose samples the network itself has to classify, against its oracle, and what it asks of networks."""

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.image import image_task
from mmdistill.method import Method
from mmdistill.methods import fresh
from mmdistill.objectives.base import Network, flatten_classes
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.regularised import RegularisedMatching, class_losses
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, ClassBatch, Dims
from mmdistill.testing import check_objective, check_objective_on
from tests.objectives.test_objectives import as_numpy, class_batch, per_class
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

KEY = Draws(9)


@pytest.fixture(scope="module")
def counted(network: Network) -> Network:
    return network._replace(accuracy=torch.tensor(0.7, dtype=torch.float64))


def test_it_equals_its_oracle(task: BlobTask, counted: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")

    def expected() -> float:
        sides = [[x for x, _ in per_class(side)] for side in (syn, real)]
        own = as_numpy(counted)
        return oracle.distribution_matching(own, *sides) + 3.0 * 0.7 * oracle.calibration_loss(own, per_class(syn))

    check_objective(RegularisedMatching(3.0), counted, syn, real, oracle=expected)
    check_objective(RegularisedMatching(3.0), counted._replace(classes_at_once=2), syn, real, oracle=expected)
    check_objective_on(task, RegularisedMatching)


def test_a_network_that_has_learned_nothing_matches_alone(task: BlobTask, counted: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    plain = DistributionMatching()(counted, *sides, KEY)
    for weight, accuracy in ((0.0, 0.7), (3.0, 0.0)):
        network = counted._replace(accuracy=torch.tensor(accuracy, dtype=torch.float64))
        assert torch.equal(RegularisedMatching(weight)(network, *sides, KEY), plain)


def test_losses_are_those_of_the_task_however_samples_lie(task: BlobTask, counted: Network) -> None:
    syn = class_batch(task, 4, "syn")
    embeddings = counted.features(flatten_classes(syn).inputs)[-1].reshape(3, 4, -1)
    found = class_losses(counted, syn, embeddings)
    expected = torch.stack([task.loss(counted.state, syn.one_class(index)) for index in range(3)])
    torch.testing.assert_close(found, expected)
    flat = flatten_classes(syn)
    membership = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 1)
    shared = ClassBatch(Batch(flat.inputs, flat.targets, membership), Dims(None, None))
    torch.testing.assert_close(class_losses(counted, shared, embeddings.flatten(0, 1)), expected)
    objective, real = RegularisedMatching(), class_batch(task, 9, "real")
    torch.testing.assert_close(objective(counted, shared, real, KEY), objective(counted, syn, real, KEY))
    x, y, w = syn.batch
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    padded = ClassBatch(Batch(torch.cat([x, 9 * x], 1), torch.cat([y, y], 1), torch.cat([w, 0 * w], 1)), Dims(0, 0))
    torch.testing.assert_close(objective(counted, padded, real, KEY), objective(counted, syn, real, KEY))
    soft = ClassBatch(Batch(x, nn.functional.one_hot(y, 3).double(), w), Dims(0, 0))
    torch.testing.assert_close(objective(counted, soft, real, KEY), objective(counted, syn, real, KEY))


def test_what_cannot_be_regularised_is_refused(task: BlobTask, network: Network, counted: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    with pytest.raises(ConfigError, match=r"networks' loss \(regularisation\) must not be negative, got -1"):
        RegularisedMatching(-1.0)
    with pytest.raises(ConfigError, match="nobody counted it"):
        RegularisedMatching()(network, *sides, KEY)
    with pytest.raises(ConfigError, match="regularised matching reads one batch per class"):
        RegularisedMatching()(counted, flatten_classes(sides[0]), sides[1], KEY)
    settings = Settings(steps=1, optimizers={"codes": OptimizerSpec("sgd", 0.1)})
    method = Method("Regularised", RegularisedMatching, fresh, lambda ipc: settings, summary="for this test")
    with pytest.raises(ConfigError, match="how accurate a network is, which FreshNetworks does not count"):
        Distiller(BlobTask(), method, 1).make_objective()


def test_networks_that_end_otherwise_are_refused() -> None:
    def ends_in_tanh() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10), nn.Tanh())

    with pytest.raises(ConfigError, match="RegularisedMatching reads the weights of the last layer"):
        RegularisedMatching().check(image_task("digits", model=ends_in_tanh))
