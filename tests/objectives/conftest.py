import pytest
import torch

from mmdistill.objectives.base import Network
from mmdistill.runtime import Draws
from tests.toys import BlobTask


@pytest.fixture(scope="module")
def task() -> BlobTask:
    return BlobTask(dtype=torch.float64)


@pytest.fixture(scope="module")
def network(task: BlobTask) -> Network:
    return Network(task, task.init(Draws(3).fold("net")))
