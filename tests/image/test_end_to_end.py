import pytest
import torch

from mmdistill.coresets import allocate, choose_samples
from mmdistill.distill import distill
from mmdistill.image import ImageTask, image_task
from mmdistill.runtime import Draws
from mmdistill.task import Batch


def accuracy(task: ImageTask, batch: Batch, seed: int) -> float:
    return task.evaluate(batch, "convnet", Draws(seed, ("judge",)), 1, {}).values["accuracy"][0]


def chosen(task: ImageTask, kind: str, ipc: int, seed: int) -> Batch:
    counts = allocate(ipc, "ipc", task.labels, task.num_classes)
    return task.select(choose_samples(task, kind, counts, Draws(seed, ("baseline",))))  # type: ignore[arg-type]


def above(better: list[float], worse: list[float]) -> bool:
    """Whether paired runs differ by more than two standard errors."""
    gap = torch.tensor(better) - torch.tensor(worse)
    return float(gap.mean()) > 2 * float(gap.std()) / len(gap) ** 0.5


def test_dm_beats_random_images() -> None:
    task = image_task("digits", width=16, judge_epochs=60, judge_augment=False)
    seeds = range(3)
    settings = {"steps": 60, "real_batch": 32}
    distilled = [accuracy(task, distill(task, "dm", ipc=1, seed=s, settings=settings).batch, s) for s in seeds]
    assert above(distilled, [accuracy(task, chosen(task, "real", 1, s), s) for s in seeds])


@pytest.mark.slow
@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize("method", ["dm", "dc", "dsa", "krr"])
def test_every_method_beats_random_and_herding_on_digits(method: str, ipc: int) -> None:
    task = image_task("digits")
    seeds = range(5)
    distilled = [accuracy(task, distill(task, method, ipc=ipc, seed=s).batch, s) for s in seeds]
    for kind in ("real", "herding"):
        assert above(distilled, [accuracy(task, chosen(task, kind, ipc, s), s) for s in seeds]), kind
