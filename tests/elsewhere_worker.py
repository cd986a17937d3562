"""What the processes of ``tests/test_elsewhere.py`` run: a whole run of each kind on another device and on the CPU.

``-m tests.elsewhere_worker FOLDER DOMAIN``. The device must be known before the first backward pass of a process.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.sparse
import torch
from torch_geometric.data import Data

from mmdistill import distill, evaluate, graph_task, image_task, recsys_task
from mmdistill.abilities import Validates
from mmdistill.distilled import DistilledSet
from mmdistill.evaluation import Evaluation
from mmdistill.graph.judges import JudgeProtocol
from mmdistill.graph.sets import graph_set_task
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.recsys.vae import VaeProtocol
from mmdistill.runtime import Draws
from mmdistill.task import Task
from tests.elsewhere import There, elsewhere
from tests.graph.sets.toy import rings
from tests.graph.toy import planted_fields
from tests.text.corpus import small_task, token_corpus_task

SHORT = FitProtocol(epochs=3, optimizer="adam", batch=None)


def images(folder: Path, device: torch.device, **options: Any) -> Task:
    labels = torch.arange(10).repeat_interleave(8)
    pairs = Draws(1).uniform(80, 1, 8, 8), labels
    return image_task(pairs, test=pairs, **{"width": 8, "judge_epochs": 2, "device": device, **options})


def graphs(folder: Path, device: torch.device) -> Task:
    return graph_task(Data(**planted_fields()), protocol=JudgeProtocol(epochs=3, width=8), device=device)


def sets_of_graphs(folder: Path, device: torch.device) -> Task:
    return graph_set_task(rings(folder), width=8, protocol=SHORT, device=device)


def users(folder: Path, device: torch.device) -> Task:
    taken = Draws(1).uniform(60, 30) < 0.3
    task = recsys_task(scipy.sparse.csr_array(taken.numpy()), max_users=40, device=device)
    task.vae = VaeProtocol(hidden=20, latent=5, steps=4, batch=60, checks=2, epochs=1)
    return task


def sentences(folder: Path, device: torch.device) -> Task:
    return small_task(device=device, judge_epochs=3)


def tokens(folder: Path, device: torch.device) -> Task:
    return token_corpus_task(folder, device=device, judge_epochs=3)


Run = tuple[Callable[..., Task], str, dict[str, Any]]
FEW = {"steps": 2, "real_batch": 8}
INNER = {**FEW, "inner_steps": 2}
EXPERTS = {**INNER, "experts": 1, "start_epochs": 1, "expert_steps": 1}
RUNS: dict[str, list[Run]] = {
    "image": [(images, "dc", INNER)],
    "image-methods": [
        (images, "dm", FEW),
        (lambda *where: images(*where, whiten="mtt", model="convnet-bn"), "frepo", FEW),
        (images, "mtt", EXPERTS),
    ],
    "graph": [(graphs, "gcond", FEW), (graphs, "sfgc", EXPERTS)],
    "graph-set": [(sets_of_graphs, "doscond", FEW)],
    "text": [(sentences, "krr", FEW), (tokens, "sldd", INNER)],
    "recsys": [(users, "distill-cf-meanfield", FEW)],
}


def judged(task: Task, found: DistilledSet) -> Evaluation:
    return evaluate(task, found, n=1, baselines=("random", "herding", "whole"))


def main(folder: Path, domain: str) -> None:
    for index, (make, method, settings) in enumerate(RUNS[domain]):
        place = folder / str(index)
        budget = {"graph": {"nodes": 6}, "recsys": {"users": 5}}.get(domain, {"ipc": 2})
        here = make(place / "cpu", torch.device("cpu"))
        expected = distill(here, method, settings=settings, **budget)  # type: ignore[arg-type]
        judged(here, expected)
        with elsewhere() as device:
            task = make(place / "elsewhere", device)
            found = distill(task, method, settings=settings, **budget)  # type: ignore[arg-type]
            assert all(isinstance(parameter, There) for parameter in task.init(Draws(0)).params.values())
            judged(task, found)
            found.save(place)
            loaded = DistilledSet.load(place).batch
            assert not isinstance(loaded.weight, There)
            task.evaluate(loaded, task.judges[0], Draws(0), 1, {})
            evaluate(task, loaded, n=1, baselines=())
            if isinstance(task, Validates):
                task.validate(loaded, Draws(0), {})
        torch.testing.assert_close(loaded.inputs, expected.batch.inputs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(loaded.targets, expected.batch.targets, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    # Python must not shut down: if the device's thread of torch's autograd, on a busy machine, releases its last step's
    # dispatch mode only then, it aborts the process ("terminate called without an active exception").
    os._exit(0)
