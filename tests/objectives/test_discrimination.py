import pytest
import torch

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.objectives.base import Network, class_means, flatten_classes
from mmdistill.objectives.discrimination import DiscriminativeMatching, discrimination
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims
from mmdistill.testing import check_objective
from tests.objectives.test_objectives import as_numpy, class_batch, per_class
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
    for changes in ({"balance": -1.0}, {"early": -1.0}):
        with pytest.raises(ConfigError, match="must not be negative"):
            DiscriminativeMatching(**changes)
