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

AUTHORS_OF_GRAPHS = """
import deeprobust.graph.utils as utils
import numpy
import scipy.sparse
import torch
from deeprobust.graph.data import Dataset
from deeprobust.graph.utils import *
from helpers import ITERATIONS
from ogb.nodeproppred import PygNodePropPredDataset
from torch_geometric.data import NeighborSampler
from torch_geometric.datasets import Planetoid
from torch_sparse import SparseTensor, matmul

torch.cuda.set_device(0)
graph = Planetoid("data", "cora")[0]
count, ends = graph.num_nodes, graph.edge_index
adjacency = scipy.sparse.csr_matrix((numpy.ones(ends.shape[1]), (ends[0], ends[1])), shape=(count, count))
x, edges, y = utils.to_tensor(graph.x.numpy(), adjacency, graph.y.numpy(), device="cuda")
assert utils.is_sparse_tensor(edges) and y.dtype == torch.int64
normalised = utils.normalize_adj_tensor(edges, sparse=True)
looped = adjacency.toarray() + numpy.eye(count)
scale = looped.sum(0) ** -0.5
expected = torch.from_numpy(scale[:, None] * looped * scale).float()
torch.testing.assert_close(normalised.to_dense(), expected)
torch.testing.assert_close(normalize_adj_tensor(edges.to_dense()), expected)
row, col = normalised._indices()
matrix = SparseTensor(row=row, col=col, value=normalised._values(), sparse_sizes=normalised.size()).t()
nodes = torch.arange(count)[graph.train_mask & (y == 3)]
sampler = NeighborSampler(matrix, node_idx=nodes, sizes=[10, 5], batch_size=256, num_nodes=matrix.size(0), shuffle=True)
size, read, hops = sampler.sample(nodes.numpy())
assert size == 20 and read[:size].equal(nodes)
reached = x[read]
for hop, _, (_, targets) in (hop.to("cuda") for hop in hops):
    assert isinstance(hop, SparseTensor)
    reached = matmul(hop, reached)
    assert len(reached) == targets
torch.testing.assert_close(reached, (expected @ expected @ x)[nodes])
assert utils.accuracy(torch.eye(4), torch.tensor([0, 1, 3, 2])) == 0.5
features, structure = torch.zeros(70, 1433, requires_grad=True), torch.nn.Linear(128, 128)
optimizers = torch.optim.SGD([features], 0.1), torch.optim.SGD(structure.parameters(), 0.1)
for _ in range(ITERATIONS):
    (features.sum() + structure.weight.sum()).backward()
    optimizers[FIRST].step()
"""


def run(
    folder: Path,
    iterations: int,
    name: str = "dm",
    script: str = "DatasetCondensation/main_DM.py",
    content: str = AUTHORS,
) -> subprocess.CompletedProcess[str]:
    path = folder / script
    path.parent.mkdir(exist_ok=True)
    (path.parent / "helpers.py").write_text(f"ITERATIONS = {iterations}\n")
    path.write_text(content)
    return run_side(folder, name, "theirs")


def run_side(folder: Path, name: str, side: str) -> subprocess.CompletedProcess[str]:
    options = ["--side", side, "--checkouts", str(folder), "--result", str(folder / "result.json")]
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "watched"), [("gcond", 1), ("doscond", 0)])
def test_a_script_for_graphs_gets_a_graph_and_what_it_reads_of_packages(
    tmp_path: Path, name: str, watched: int
) -> None:
    script = AUTHORS_OF_GRAPHS.replace("FIRST", str(watched))
    done = run(tmp_path, 1000, name, "GCond/train_gcond_transduct.py", script)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "result.json").read_text())["seconds"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcond", "doscond", "sfgc"])
def test_our_side_of_a_pair_updates_what_the_authors_program_does(tmp_path: Path, name: str) -> None:
    done = run_side(tmp_path, name, "ours")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "result.json").read_text())["seconds"]) == 3
