"""Authors' scripts run beside ours: what stands in for a GPU, the network and old packages, and what is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
AUTHORS = """
import einops.layers.torch
import numpy
import torch
from efficientnet_pytorch import EfficientNet
import wandb
from torchvision import datasets
from helpers import ITERATIONS

data = datasets.MNIST("data", train=True, download=True, transform=lambda image: torch.zeros(1, *image.size))
assert len(data) == 4000 and data[13][1] == 3 and data[0][0].shape == (1, 28, 28)
wandb.init(config=type("", (), {"rate": 0.1}))
rate = wandb.config._items["rate"]
images = torch.zeros(10, 1, 28, 28, requires_grad=True)
network = torch.nn.Linear(784, 2).cuda().to("cuda")
shift = torch.ones(2, device="cuda").to(torch.device("cuda:0")) + numpy.int(2.5)
ours, theirs = torch.optim.SGD([images], rate), torch.optim.SGD(network.parameters(), rate)
for _ in range(ITERATIONS):
    angles = torch.rand(3, 1)
    angles[:] = angles[0]
    loss = network(images.transpose(2, 3).view(10, -1)).sum() * angles.mean() + shift.sum()
    loss.backward()
    for optimizer in (theirs, ours, theirs):
        optimizer.step()
"""


def run(
    folder: Path, iterations: int, name: str = "dm", script: str = "DatasetCondensation/main_DM.py"
) -> subprocess.CompletedProcess[str]:
    path = folder / script
    path.parent.mkdir(exist_ok=True)
    (path.parent / "helpers.py").write_text(f"ITERATIONS = {iterations}\n")
    path.write_text(AUTHORS)
    options = ["--side", "theirs", "--checkouts", str(folder), "--result", str(folder / "result.json")]
    command = [sys.executable, str(SCRIPTS / "beside.py"), name, *options, "--updates", "3", "--skipped", "2"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_script_is_watched_until_enough_updates_of_its_images(tmp_path: Path) -> None:
    done = run(tmp_path, 1000)
    assert done.returncode == 0, done.stderr
    watched = json.loads((tmp_path / "result.json").read_text())
    assert len(watched["seconds"]) == 3
    assert all(0 < seconds < 1 for seconds in watched["seconds"])
    assert 0 <= watched["bytes"] < 2**30


@pytest.mark.slow
def test_a_script_that_ends_too_soon_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, 4)
    assert done.returncode == 1
    assert "the program ended after 4 updates of 7840 numbers" in done.stderr


@pytest.mark.slow
def test_ten_steps_of_a_script_that_goes_class_by_class_are_one_update(tmp_path: Path) -> None:
    done = run(tmp_path, 49, "idc", "Efficient-Dataset-Condensation/condense.py")
    assert done.returncode == 1
    assert "the program ended after 4 updates of 7840 numbers" in done.stderr
