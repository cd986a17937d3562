import pytest
import torch

from mmdistill.objectives.base import Network
from mmdistill.runtime import Draws
from mmdistill.task import Batch
from tests.toys import BlobTask

KEY = Draws(9)


@pytest.fixture(scope="module")
def task() -> BlobTask:
    return BlobTask(dtype=torch.float64)


@pytest.fixture(scope="module")
def network(task: BlobTask) -> Network:
    return Network(task, task.init(Draws(3).fold("net")))


@pytest.fixture(scope="module")
def real(task: BlobTask) -> Batch:
    batch = task.sample_real(KEY.fold("real"), None, 9)
    assert isinstance(batch, Batch)
    return batch


@pytest.fixture(scope="module")
def syn(task: BlobTask) -> Batch:
    batch = task.sample_real(KEY.fold("syn"), None, 5)
    assert isinstance(batch, Batch)
    return Batch(batch.inputs, KEY.fold("labels").normal(5, 3, dtype=torch.float64) / 5, batch.weight)
