"""Distil a large generated interaction log and say what each stage took in seconds and in memory.

    python benchmarks/recsys_scale.py                             # 100,000 users x 50,000 items
    python benchmarks/recsys_scale.py --users 20000 --items 10000 --synthetic 50 --steps 50

Users like a few tastes each; a taste is a part of the items with its own Zipf law. The peak is the process's.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy import sparse

from mmdistill.distill import distill
from mmdistill.evaluate import evaluate
from mmdistill.names import split_names
from mmdistill.recsys import recsys_task
from mmdistill.runtime import peak_memory_bytes


def generated(users: int, items: int, tastes: int, mean: float, seed: int) -> sparse.csr_array:
    """Return a binary log: each user draws from three tastes, each taste from items by Zipf's law."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(mean) - 0.5, 1.0, users), 8, 2000).astype(np.int64)
    owner = np.repeat(np.arange(users), lengths)
    own = rng.integers(tastes, size=(users, 3))
    taste = own[owner, rng.integers(3, size=len(owner))]
    rank = np.minimum((rng.pareto(1.0, len(owner)) * 20).astype(np.int64), items - 1)
    start = rng.permutation(items)[:tastes]
    item = rng.permutation(items)[(start[taste] + rank) % items]
    matrix = sparse.csr_array((np.ones(len(owner), dtype=np.float32), (owner, item)), shape=(users, items))
    matrix.data[:] = 1
    return matrix


@contextmanager
def stage(name: str, device: str = "cpu") -> Iterator[None]:
    began, used = time.perf_counter(), time.process_time()
    yield
    seconds, busy = time.perf_counter() - began, time.process_time() - used
    peak = peak_memory_bytes(torch.device(device)) / 2**30
    print(f"{name}: {seconds:.0f} s (CPU {busy:.0f} s), peak {peak:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--tastes", type=int, default=200)
    parser.add_argument("--mean", type=float, default=40.0, help="interactions per user")
    parser.add_argument("--synthetic", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--real-batch", type=int, default=256)
    parser.add_argument("--method", default="distill-cf-meanfield")
    parser.add_argument("--judged", type=int, default=3000, help="users that are judged on")
    parser.add_argument("--judges", default="inf-ae,ease,popularity")
    parser.add_argument("--baselines", default="random")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    matrix = generated(chosen.users, chosen.items, chosen.tastes, chosen.mean, chosen.seed)
    with stage("reading"):
        task = recsys_task(matrix, max_users=chosen.judged)
    data = task.data
    print(f"{data.num_users:,} users, {data.num_items:,} items, {matrix.nnz:,} interactions", flush=True)
    settings = {"steps": chosen.steps, "real_batch": chosen.real_batch, "validate_every": max(chosen.steps // 4, 1)}
    with stage("distilling"):
        found = distill(task, chosen.method, users=chosen.synthetic, seed=chosen.seed, settings=settings)
    with stage("judging"):
        result = evaluate(task, found, judges=chosen.judges.split(","), n=1, baselines=split_names(chosen.baselines))
    for name, entries in {"distilled": result.results, **result.baselines}.items():
        scores = [f"{e.judge} {100 * e.mean:.2f}" for e in entries if e.metric == "ndcg@10"]
        print(f"{name}: NDCG@10 {', '.join(scores)}", flush=True)


if __name__ == "__main__":
    main()
