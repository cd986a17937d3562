"""Trajectories compared without some parameters: the shallowest, or those that end nearest (PAD)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.choices import MaskedBy
from mmdistill.described import described
from mmdistill.errors import ConfigError
from mmdistill.image import DOMAIN
from mmdistill.image.methods.trajectory import styled_trajectory
from mmdistill.methods import CORE_METHODS
from mmdistill.objectives.adversary import StyleAdversary
from mmdistill.objectives.base import Network
from mmdistill.objectives.trajectory import (
    Masking,
    PrunedTrajectoryMatching,
    TrajectoryMatching,
    TrajectoryMatchingConstantMemory,
    without_first,
)
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Tensors
from mmdistill.testing import check_objective
from tests.oracles import unroll as oracle
from tests.toys import BlobTask, matched_network, six_samples

KEY = Draws(31)
RATE = 0.25
WAYS: tuple[MaskedBy, ...] = ("depth", "distance")


@pytest.fixture(scope="module")
def network(task: BlobTask) -> Network:
    return matched_network(task, KEY)


@pytest.fixture(scope="module")
def syn(task: BlobTask) -> Batch:
    return six_samples(task, KEY)


def rate() -> InnerRate:
    return InnerRate(RATE).double()


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.93])  # none, within the first layer, beyond it, in the last bias
def test_the_masked_distance_equals_its_oracle(share: float, by: MaskedBy, network: Network, syn: Batch) -> None:
    assert network.target is not None
    start, target = ({n: p.numpy() for n, p in tree.items()} for tree in (network.state.params, network.target))
    steps = [(syn.inputs.numpy(), np.eye(3)[syn.targets.numpy()])] * 2  # type: ignore[union-attr]
    masking = Masking(share, by)
    check_objective(
        TrajectoryMatching(2, rate(), masking=masking), network, syn, syn,
        oracle=lambda: oracle.masked_trajectory(start, target, steps, [RATE] * 2, share, by),
    )  # fmt: skip
    held = TrajectoryMatchingConstantMemory(2, rate(), masking=masking)(network, syn, syn, KEY)
    assert float(held.detach()) == pytest.approx(oracle.masked_trajectory(start, target, steps, [RATE] * 2, share, by))
    pruned = PrunedTrajectoryMatching(2, rate(), -5.0, masking=masking)(network, syn, syn, KEY)
    both = oracle.masked_trajectory(start, target, steps, [RATE] * 2, share, by, -5.0)
    assert float(pruned.detach()) == pytest.approx(both)


def test_the_oracle_without_a_mask_is_the_plain_one(network: Network, syn: Batch) -> None:
    assert network.target is not None
    start, target = ({n: p.numpy() for n, p in tree.items()} for tree in (network.state.params, network.target))
    steps = [(syn.inputs.numpy(), np.eye(3)[syn.targets.numpy()])] * 2  # type: ignore[union-attr]
    plain = oracle.trajectory(start, target, steps, [RATE] * 2)
    for by in WAYS:
        assert oracle.masked_trajectory(start, target, steps, [RATE] * 2, 0.0, by) == pytest.approx(plain)


def test_the_targets_of_shallow_parameters_count_nothing(network: Network, syn: Batch) -> None:
    assert network.target is not None
    counts = {name: p.numel() for name, p in network.state.params.items()}
    first = counts["0.weight"] + counts["0.bias"]
    share = (first + 0.5) / sum(counts.values())

    def found(objective: TrajectoryMatching, changed: str) -> tuple[Tensor, Tensor]:
        leaf = syn.inputs.clone().requires_grad_()  # type: ignore[union-attr]
        assert network.target is not None
        target = {name: p + 1.0 if name == changed else p for name, p in network.target.items()}
        value = objective(network._replace(target=target), syn._replace(inputs=leaf), syn, KEY)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    masked, plain = TrajectoryMatching(2, rate(), masking=Masking(share)), TrajectoryMatching(2, rate())
    for name in counts:
        same = all(torch.equal(a, b) for a, b in zip(found(masked, name), found(masked, ""), strict=True))
        assert same == name.startswith("0."), name
        assert not torch.equal(found(plain, name)[0], found(plain, "")[0])


def test_parameters_are_cut_in_the_order_of_the_network(task: BlobTask, syn: Batch) -> None:
    # An expert's file may name its tensors in another order, and so may whatever trains the student.
    network = Network(task, task.init(KEY.fold("net")), dict(reversed(task.init(KEY.fold("end")).params.items())))
    ordered = network._replace(target=task.init(KEY.fold("end")).params)
    for by in WAYS:
        objective = TrajectoryMatching(2, rate(), masking=Masking(0.4, by))
        assert torch.equal(*(objective(one, syn, syn, KEY).detach() for one in (network, ordered)))


def test_without_first() -> None:
    tree: Tensors = {"a": torch.arange(3.0), "b": torch.arange(4.0).view(2, 2), "c": torch.ones(1)}
    assert {name: t.tolist() for name, t in without_first(tree, 4).items()} == {"b": [1.0, 2.0, 3.0], "c": [1.0]}
    assert {name: t.shape for name, t in without_first(tree, 3).items()} == {"b": (2, 2), "c": (1,)}


def test_masks_are_described() -> None:
    found = described(TrajectoryMatching(2, rate(), masking=Masking(0.5, "distance")))["masking"]
    assert found == {"class": "Masking", "share": 0.5, "by": "distance"}


@pytest.mark.parametrize("name", ["mtt", "tesla", "ftd", "ddpp", "datm", "pad"])
def test_settings_mask_every_comparison_of_trajectories(name: str) -> None:
    method = get_method(DOMAIN, name).with_settings(masked=0.3, masked_by="distance")
    objective = method.make_objective(method.settings(10))
    assert isinstance(objective, TrajectoryMatching)
    assert objective.masking == Masking(0.3, "distance")


def test_styles_are_compared_by_a_masked_distance_too() -> None:
    method = get_method(DOMAIN, "haba").with_settings(masked=0.3)
    objective = styled_trajectory(method.settings(10))
    assert isinstance(objective, StyleAdversary)
    assert [one.masking for one in objective.modules() if isinstance(one, TrajectoryMatching)] == [Masking(0.3)]


def test_masks_out_of_range_are_refused() -> None:
    for share in (1.0, -0.1):
        with pytest.raises(ConfigError, match="share"):
            Masking(share)
    with pytest.raises(ConfigError, match=r"masked_by.*'width'"):
        Masking(0.5, "width")  # type: ignore[arg-type]
    mtt = CORE_METHODS["mtt"]
    with pytest.raises(ConfigError, match=r"masked is at least 0 and below 1, got 1"):
        mtt.with_settings(masked=1.0).settings(1)
    with pytest.raises(ConfigError, match=r"masked_by"):
        mtt.with_settings(masked_by="width").settings(1)
    assert get_method(DOMAIN, "dm").with_settings(masked=0.5).ignored_settings(1, ["masked", "masked_by"]) == [
        "masked",
        "masked_by",
    ]
