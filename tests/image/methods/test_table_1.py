"""Methods of the image domain end to end on the digits: at equal storage they beat random images."""

import pytest

from mmdistill.commands.listings import methods_command
from mmdistill.distill import distill
from mmdistill.image import ImageTask, image_task
from mmdistill.image.methods.taxonomy import TABLE_1
from mmdistill.networks.schedules import FreshNetworks
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.registry import get_domain
from tests.image.test_end_to_end import above, accuracy, chosen

SHORT = {"steps": 40, "real_batch": 32, "augment": False}


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=16, judge_epochs=60, judge_augment=False)


def test_the_twenty_rows_of_table_1_are_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(TABLE_1) == 20
    methods = get_domain("image").methods
    assert set(TABLE_1) <= set(methods)
    experts = {name for name, row in TABLE_1.items() if row.objective.startswith("multi-step")}
    for name, row in TABLE_1.items():
        schedule = methods[name].network(methods[name].settings(10))
        assert isinstance(schedule, ExpertTrajectories) == (name in experts)
        assert isinstance(schedule, FreshNetworks) == (row.network in ("not updated", "trained on S (unrolled)"))
    methods_command("image", long=True)
    shown = capsys.readouterr().out
    assert shown.count("Table 1: ") == 20
    assert "Table 1: performance (kernel ridge) | trained on S, a pool | raw | learnable" in shown


@pytest.mark.parametrize("method", ["idc", "edd", "dcc", "egm", "cafe", "cafe+dsa"])
def test_the_loss_falls(task: ImageTask, method: str) -> None:
    losses: list[float] = []
    settings = {**SHORT, "steps": 12, "real_batch": 16, "outer_steps": 1, "init": "noise"}
    if method == "edd":
        settings["inner_batch"] = 512
    made = distill(task, method, ipc=1, settings=settings, progress=lambda done, total, loss: losses.append(loss))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert made.stored_bytes == 10 * 64 * 4 + 10


@pytest.mark.slow
@pytest.mark.parametrize("method", ["idc", "edd", "egm", "cafe"])
def test_short_runs_beat_random_images(task: ImageTask, method: str) -> None:
    seeds = range(4)
    # the perturbed pool of EDD makes noisier gradients: 40 steps are too few to tell it from random images
    settings = {**SHORT, "steps": 120} if method == "edd" else SHORT
    distilled = [accuracy(task, distill(task, method, ipc=1, seed=s, settings=settings).batch, s) for s in seeds]
    assert above(distilled, [accuracy(task, chosen(task, "real", 1, s), s) for s in seeds])
