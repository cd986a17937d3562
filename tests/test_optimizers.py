"""LAMB and AdaBelief against their equations written with loops."""

import math
from typing import get_args

import pytest
import torch

from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.methods import CORE_METHODS
from mmdistill.optimizers import LAMB, AdaBelief, is_active, make_optimizer
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerName, OptimizerSpec, Settings
from tests.toys import BlobTask

KEY = Draws(8)


def by_loops(values: list[float], gradients: list[list[float]], lr: float, decay: float) -> list[float]:
    first, second = [0.0] * len(values), [0.0] * len(values)
    for step, gradient in enumerate(gradients, 1):
        update = []
        for i, g in enumerate(gradient):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            corrected = math.sqrt(second[i] / (1 - 0.999**step))
            update.append(first[i] / (1 - 0.9**step) / (corrected + 1e-6) + decay * values[i])
        own, moved = (math.sqrt(sum(x * x for x in vector)) for vector in (values, update))
        ratio = own / moved if own > 0 and moved > 0 else 1.0
        values = [v - lr * ratio * u for v, u in zip(values, update, strict=True)]
    return values


@pytest.mark.parametrize(("decay", "maximize"), [(0.0, False), (0.1, False), (0.0, True)])
def test_lamb_equals_its_equation(decay: float, maximize: bool) -> None:
    start = KEY.normal(5, dtype=torch.float64)
    gradients = [KEY.fold(step).normal(5, dtype=torch.float64) for step in range(6)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = LAMB([parameter], lr=0.02, weight_decay=decay, maximize=maximize)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    sign = -1 if maximize else 1
    expected = by_loops(start.tolist(), [(sign * g).tolist() for g in gradients], 0.02, decay)
    torch.testing.assert_close(parameter.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def belief_by_loops(
    values: list[float], gradients: list[list[float]], lr: float, eps: float, decay: float
) -> list[float]:
    first, second = [0.0] * len(values), [0.0] * len(values)
    for step, gradient in enumerate(gradients, 1):
        for i, given in enumerate(gradient):
            g = given + decay * values[i]
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * (g - first[i]) ** 2 + eps
            root = math.sqrt(second[i] / (1 - 0.999**step)) + eps
            values[i] -= lr * first[i] / (1 - 0.9**step) / root
    return values


@pytest.mark.parametrize(("eps", "decay", "maximize"), [(1e-16, 0.5, False), (1e-3, 0.0, False), (1e-8, 0.0, True)])
def test_adabelief_equals_its_equation(eps: float, decay: float, maximize: bool) -> None:
    start = KEY.normal(5, dtype=torch.float64)
    gradients = [KEY.fold(step).normal(5, dtype=torch.float64) for step in range(6)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = AdaBelief([parameter], lr=0.02, eps=eps, weight_decay=decay, maximize=maximize)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    sign = -1 if maximize else 1
    expected = belief_by_loops(start.tolist(), [(sign * g).tolist() for g in gradients], 0.02, eps, decay)
    torch.testing.assert_close(parameter.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_each_tensor_moves_by_its_share_and_zeros_move_as_adam() -> None:
    large, zero = torch.nn.Parameter(torch.full((4,), 100.0)), torch.nn.Parameter(torch.zeros(4))
    optimizer = LAMB([large, zero], lr=0.01)
    for parameter in (large, zero):
        parameter.grad = torch.ones(4)
    optimizer.step()
    assert large.tolist() == pytest.approx([99.0] * 4, rel=1e-5)
    assert zero.tolist() == pytest.approx([-0.01] * 4, rel=1e-4)
    resting = torch.nn.Parameter(torch.ones(2))
    LAMB([resting]).step()
    resting.grad = torch.zeros(2)
    LAMB([resting]).step()
    assert resting.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("optimizer", [LAMB, AdaBelief])
def test_a_loaded_state_lies_where_its_parameter_does(optimizer: type[LAMB | AdaBelief]) -> None:
    stepped = torch.ones(2, requires_grad=True)
    stepped.sum().backward()  # type: ignore[no-untyped-call]
    saved = optimizer([stepped])
    saved.step()
    there = torch.ones(2, device="meta", requires_grad=True)
    loaded = optimizer([there])
    loaded.load_state_dict(saved.state_dict())
    assert {name: tensor.device.type for name, tensor in loaded.state[there].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), "meta"
    )


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_an_optimizer_has_what_its_settings_say(name: OptimizerName) -> None:
    own = {"momentum": 0.7} if name == "sgd" else {"betas": (0.6, 0.95)}
    said = {"lr": 0.3, "weight_decay": 0.01, "maximize": True, **own}
    (group,) = make_optimizer(OptimizerSpec(name, **said), [torch.zeros(2)]).param_groups  # type: ignore[arg-type]
    assert {key: group[key] for key in said} == said


def test_the_annealed_rate_ends_at_its_floor() -> None:
    rate = OptimizerSpec("adabelief", 0.1, cosine=True, floor=0.1)
    method = CORE_METHODS["dm"].with_settings(steps=4, real_batch=4, augment=False, optimizers={"codes": rate})
    distiller = Distiller(BlobTask(), method, 1)
    run, rates = distiller.start(), []
    for _ in range(4):
        run, _ = distiller.step(run)
        rates.append(run.optimizers["codes"].param_groups[0]["lr"])
    expected = [0.1 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 4))) for step in range(4)]
    assert rates == pytest.approx(expected)
    with pytest.raises(ConfigError, match="floor is a share"):
        OptimizerSpec(floor=1.5)


def test_a_group_is_active_in_its_part_of_every_period() -> None:
    steps = [step for step in range(9) if is_active(OptimizerSpec(active=(1, 3, 4)), step)]
    assert steps == [1, 2, 5, 6]


def test_optimizers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the optimizer is sgd or .* or adabelief, got .adma.; did you mean 'adam'"):
        OptimizerSpec("adma")  # type: ignore[arg-type]
    for active in ((2, 2, 4), (0, 5, 4), (-1, 2, 4), (0, 1, 0), (0, 1), 3, (0, 0.5, 1), "abc"):
        with pytest.raises(ConfigError, match="start < stop <= period"):
            OptimizerSpec(active=active)  # type: ignore[arg-type]
    for floor in (-0.1, "0.5", None, float("nan")):
        with pytest.raises(ConfigError, match="floor is a number of at least 0"):
            OptimizerSpec(floor=floor)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\(inner_optimizer\) is sgd or adam, got 'adma'; did you mean 'adam'\?"):
        Settings(steps=1, inner_optimizer="adma")  # type: ignore[arg-type]


def test_rates_that_are_whole_numbers_are_numbers_of_any_size() -> None:
    made = OptimizerSpec("sgd", 10**25)
    assert (made.lr, type(made.lr)) == (1e25, float)
    with pytest.raises(ConfigError, match="lr is too large, got 1000"):
        OptimizerSpec("sgd", 10**400)
    with pytest.raises(ConfigError, match="lr is a number of at least 0, got nan"):
        OptimizerSpec("sgd", float("nan"))
