"""Matching of characteristic functions, against its oracle, and what it asks of samples."""

import math

import pytest
import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.objectives import characteristic
from mmdistill.objectives.base import Network, class_summary, flatten_classes
from mmdistill.objectives.calibration import CalibratedMatching, calibration_loss
from mmdistill.objectives.characteristic import CharacteristicMatching, characteristic_function
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims
from mmdistill.testing import check_objective, check_objective_on
from tests.objectives.test_objectives import as_numpy, class_batch, per_class
from tests.oracles import objectives as oracle
from tests.toys import BlobTask

KEY = Draws(9)


def drawn(task: BlobTask, network: Network, draws: Draws, count: int) -> Tensor:
    width = class_summary(network, class_batch(task, 2, "syn"), -1)[1].shape[-1]
    return draws.fold("frequencies").normal(count, width)


@pytest.mark.parametrize("amplitude", [0.5, 0.2, 0.9, 0.0, 1.0])
def test_it_equals_its_oracle(task: BlobTask, network: Network, amplitude: float) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    sides = [[x for x, _ in per_class(side)] for side in (syn, real)]
    frequencies = drawn(task, network, KEY, 5).double().numpy()
    expected = oracle.characteristic_matching(as_numpy(network), *sides, frequencies, amplitude)
    found = CharacteristicMatching(5, amplitude)(network, syn, real, KEY)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_it_keeps_the_contract(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    for amplitude in (0.5, 0.2):
        check_objective(CharacteristicMatching(6, amplitude), network, *sides)
    check_objective_on(task, lambda: CharacteristicMatching(6))
    check_objective_on(task, lambda: CalibratedMatching(0.3, matching=CharacteristicMatching(6)))


def test_equal_sides_differ_by_nothing_and_move_nothing(task: BlobTask, network: Network) -> None:
    real = class_batch(task, 9, "real")
    assert isinstance(real.batch.inputs, Tensor)
    for amplitude in (0.5, 0.0, 1.0):
        inputs = real.batch.inputs.clone().requires_grad_()
        syn = ClassBatch(real.batch._replace(inputs=inputs), real.dims)
        value = CharacteristicMatching(7, amplitude)(network, syn, real, KEY)
        assert float(value.detach()) <= 300 * 3 * 1.001 * math.sqrt(characteristic.LEAST)
        (gradient,) = torch.autograd.grad(value, inputs)
        assert float(gradient.abs().max()) == 0


def test_each_step_has_frequencies_of_its_own(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    first, second = (CharacteristicMatching(7)(network, *sides, KEY.fold(step)) for step in (0, 1))
    assert float(first) != float(second)
    many = [float(CharacteristicMatching(20_000)(network, *sides, KEY.fold(step))) for step in (0, 1)]
    assert many[0] == pytest.approx(many[1], rel=0.03)  # of the same distribution


def test_portions_change_nothing(task: BlobTask, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    assert isinstance(syn.batch.inputs, Tensor)
    found = []
    for angles, classes in ((1 << 20, 0), (4 * 7, 0), (1, 1), (2 * 7 * 5, 2)):
        monkeypatch.setattr(characteristic, "ANGLES", angles)
        inputs = syn.batch.inputs.clone().requires_grad_()
        side = ClassBatch(syn.batch._replace(inputs=inputs), syn.dims)
        value = CharacteristicMatching(7)(network._replace(classes_at_once=classes), side, real, KEY)
        found.append((float(value.detach()), torch.autograd.grad(value, inputs)[0]))
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-12)
        assert torch.allclose(gradient, found[0][1], rtol=1e-9, atol=1e-12)


def test_shared_and_padded_samples_count_as_their_class_weights_say(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 4, "syn"), class_batch(task, 9, "real")
    matching = CharacteristicMatching(8)
    expected = pytest.approx(float(matching(network, syn, real, KEY)), rel=1e-12)

    def shared(batch: ClassBatch, n: int) -> ClassBatch:
        flat = flatten_classes(batch)
        membership = torch.eye(3, dtype=torch.float64).repeat_interleave(n, 1)
        return ClassBatch(Batch(flat.inputs, flat.targets, membership), Dims(None, None))

    def padded(batch: ClassBatch) -> ClassBatch:
        x, y, w = batch.batch
        assert isinstance(x, Tensor)
        assert isinstance(y, Tensor)
        return ClassBatch(Batch(torch.cat([x, 9 * x], 1), torch.cat([y, y], 1), torch.cat([w, 0 * w], 1)), batch.dims)

    assert float(matching(network, shared(syn, 4), shared(real, 9), KEY)) == expected
    assert float(matching(network, padded(syn), padded(real), KEY)) == expected


def test_a_function_is_one_at_rest_and_never_larger() -> None:
    embedding, share = torch.randn(3, 4, 5, dtype=torch.float64), torch.full((3, 4), 0.25, dtype=torch.float64)
    at_rest = characteristic_function(embedding, share, torch.zeros(1, 5, dtype=torch.float64))
    assert torch.equal(at_rest[0], torch.ones(3, 1, dtype=torch.float64))
    assert torch.equal(at_rest[1], torch.zeros(3, 1, dtype=torch.float64))
    assert float(characteristic_function(embedding, share, torch.randn(9, 5).double()).norm(dim=0).max()) <= 1


def test_an_expert_calibrates_it(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    between = network._replace(target=task.init(KEY.fold("expert")).params)
    matching = CharacteristicMatching(8)
    both = CalibratedMatching(0.5, matching=matching)(between, syn, real, KEY)
    apart = matching(network, syn, real, KEY) + 0.5 * calibration_loss(between, syn, KEY)
    assert float(both) == pytest.approx(float(apart), rel=1e-12)


def test_what_cannot_be_matched_is_refused(task: BlobTask, network: Network) -> None:
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    with pytest.raises(ConfigError, match="at one frequency or more, got 0"):
        CharacteristicMatching(0)
    with pytest.raises(ConfigError, match="two frequencies or more by a sampler, got 1"):
        CharacteristicMatching(1, minmax=True)
    with pytest.raises(ConfigError, match=r"\(amplitude\) is between 0 and 1, got 1.5"):
        CharacteristicMatching(amplitude=1.5)
    with pytest.raises(ConfigError, match="characteristic matching reads one batch per class"):
        CharacteristicMatching()(network, flatten_classes(syn), real, KEY)


def test_a_sampler_is_given_the_objective_s_own_gradient(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    objective = CharacteristicMatching(6, 0.3, minmax=True)
    objective.begin(task, KEY)
    objective.to(torch.float64)
    assert objective.learned() == {}
    weight = objective.sampler.weight
    (found,) = torch.autograd.grad(objective(network, *sides, KEY), weight)
    for index in ((0, 1, 2), (2, 0, 3)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[index] += step
                values.append(float(objective(network, *sides, KEY)))
                weight[index] -= step
        assert float(found[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_a_sampler_does_not_change_what_samples_are_given(task: BlobTask, network: Network) -> None:
    check_objective_on(task, lambda: CharacteristicMatching(6, minmax=True))
    objective = CharacteristicMatching(6, minmax=True)
    objective.begin(task, KEY)
    objective.to(torch.float64)
    syn, real = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    sides = [[x for x, _ in per_class(side)] for side in (syn, real)]
    frequencies = objective.sampler(drawn(task, network, KEY, 6).double()).detach()
    assert float(frequencies.abs().max()) < 1
    expected = oracle.characteristic_matching(as_numpy(network), *sides, frequencies.numpy(), 0.5)
    assert float(objective(network, syn, real, KEY).detach()) == pytest.approx(expected, rel=1e-10)


def test_a_sampler_that_ascends_tells_the_sides_further_apart(task: BlobTask, network: Network) -> None:
    sides = class_batch(task, 2, "syn"), class_batch(task, 9, "real")
    objective = CharacteristicMatching(32, minmax=True)
    objective.begin(task, KEY)
    objective.to(torch.float64)
    stepping = torch.optim.SGD(objective.parameters(), 1e-2, maximize=True)
    values = []
    for step in range(30):
        stepping.zero_grad()
        value = objective(network, *sides, KEY.fold(step))
        value.backward()  # type: ignore[no-untyped-call]
        stepping.step()
        values.append(float(value.detach()))
    assert min(values[-5:]) > max(values[:5])
