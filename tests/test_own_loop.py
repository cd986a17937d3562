"""A run that is stepped by hand: the same as one of distill, with optimizers and rates of one's own."""

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.method import ByClasses, Method
from mmdistill.methods import CORE_METHODS, fresh
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.settings import OptimizerSpec, Settings
from tests.runs.blobs import method, samples
from tests.toys import BlobTask


@pytest.mark.parametrize("cosine", [False, True])
def test_steps_by_hand_make_what_distill_makes(cosine: bool) -> None:
    own = method("dm", optimizers={"codes": OptimizerSpec("sgd", 0.5, 0.5, cosine=cosine)})
    distiller = Distiller(BlobTask(), own, 2, seed=3)
    run = distiller.start()
    while run.step < distiller.steps:
        run, _ = distiller.step(run)
    made = distill(BlobTask(), own, ipc=2, seed=3, compile="off")
    assert torch.equal(samples(distiller.result(run, "dm", 0.0)), samples(made))


def test_an_optimizer_of_ones_own_keeps_its_rate_and_follows_its_scheduler() -> None:
    distiller = Distiller(BlobTask(), method("dm", optimizers={"codes": OptimizerSpec("sgd", 1.0)}), 1)
    run = distiller.start()
    run.optimizers["codes"] = torch.optim.SGD(run.groups()["codes"], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(run.optimizers["codes"], 1, 0.0)
    start = samples(distiller.result(run, "dm", 0.0)).clone()
    run, _ = distiller.step(run)
    first = samples(distiller.result(run, "dm", 0.0)).clone()
    assert run.optimizers["codes"].param_groups[0]["lr"] == 0.5
    assert not torch.equal(start, first)
    scheduler.step()
    run, _ = distiller.step(run)
    assert torch.equal(samples(distiller.result(run, "dm", 0.0)), first)  # at rate 0 nothing moves


def test_settings_are_those_for_the_tasks_classes() -> None:
    by_classes = ByClasses(lambda budget, classes: Settings(steps=1, real_batch=10 * classes))
    assert Distiller(BlobTask(), Method("own", DistributionMatching, fresh, by_classes), 1).settings.real_batch == 30


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("digits", CORE_METHODS["dm"], 1, None), "a task is expected, got str"),
        ((BlobTask(), "dm", 1, None), r"a run takes a Method, got str; get_method\(get_domain"),
        ((BlobTask(), CORE_METHODS["dm"], "10", None), "the budget is a whole number of at least 1, got '10'"),
        ((BlobTask(), CORE_METHODS["dm"], 0, None), "the budget is a whole number of at least 1, got 0"),
        ((BlobTask(), CORE_METHODS["dm"], 1, {"steps": 3}), "settings are a Settings, got dict; method.with_settings"),
    ],
)
def test_what_no_run_is_made_of_is_named(given: tuple[object, object, object, object], message: str) -> None:
    task, own, budget, settings = given
    with pytest.raises(ConfigError, match=message):
        Distiller(task, own, budget, settings=settings)  # type: ignore[arg-type]


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"precision is auto or float32 or .*, got 'fp16'"):
        Distiller(BlobTask(), CORE_METHODS["dm"], 1, precision="fp16")  # type: ignore[arg-type]
