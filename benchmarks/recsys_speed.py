"""Time steps of Distill-CF beside its authors' program, which needs JAX.

    git clone https://github.com/noveens/distill_cf theirs/distill_cf
    python -m venv jax && jax/bin/pip install "jax==0.4.30" "jaxlib==0.4.30" neural-tangents h5py
    OMP_NUM_THREADS=1 python benchmarks/recsys_speed.py --checkout theirs/distill_cf --python jax/bin/python

Both sides run in turns on the same users' rows, each time in a process of its own on one thread, with all real users in
each step. A step is what passes between two updates of the synthetic users: its median CPU time, after a first step
that is not timed. No accuracy is measured here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

METHODS = ("distill-cf", "distill-cf-meanfield")
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def their_seconds(args: argparse.Namespace) -> list[float]:
    """Return the CPU time of each step of the authors' program, whose interpreter need not have our packages."""
    sys.path.insert(0, str(args.checkout))
    import numpy

    jax: Any = import_module("jax")
    linalg: Any = import_module("jax.scipy.linalg")
    solve = linalg.solve
    linalg.solve = lambda a, b, sym_pos: solve(a, b, assume_a="pos")  # the keyword has this name by now
    hyper_params = import_module("hyper_params").hyper_params
    get_update_functions = import_module("distill").get_update_functions
    rows = numpy.load(args.rows)
    known = {"num_users": rows.shape[0], "num_items": rows.shape[1], "num_interactions": int(rows.sum())}
    state, params_of, update, _, _, zeros = get_update_functions(hyper_params | known, {"x": rows[: args.users]})
    key, params = jax.random.PRNGKey(0), params_of(state)
    gradients, seconds = zeros(params), []
    for step in range(args.updates + 1):
        start = time.process_time()
        state, gradients, key = update(step + 1, state, params, gradients, (rows,), key, reg=1.0)
        params = jax.block_until_ready(params_of(state))
        seconds.append(time.process_time() - start)
    return seconds[1:]


def our_seconds(args: argparse.Namespace) -> list[float]:
    """Return the CPU time of each step of our method."""
    from watched import Watch

    from mmdistill import distill, recsys_task
    from mmdistill.settings import ALL_REAL

    task = recsys_task(args.data)
    settings = {"steps": args.updates + 2, "validate_every": 0, "real_batch": ALL_REAL}
    watch = Watch(args.users * task.data.num_items, args.updates)
    watched = watch.run(lambda: distill(task, args.method, args.users, settings=settings))
    return list(watched["seconds"])


def write_rows(data: str, path: Path) -> None:
    """Write the training rows of all users as the authors' program takes them."""
    import numpy
    import torch

    from mmdistill import recsys_task

    task = recsys_task(data)
    numpy.save(path, task.users(torch.arange(task.data.num_users)).numpy())


def measured(python: str, side: str, options: list[str]) -> list[float]:
    """Return the steps' CPU times that a process of one side measures."""
    environment = {**os.environ, "XLA_FLAGS": ONE_THREAD}
    command = [python, __file__, "--side", side, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{side}:\n{done.stderr[-2000:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure each method's steps and the authors'; print a row of a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="the authors' repository")
    parser.add_argument("--python", required=True, help="an interpreter that has JAX")
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--users", type=int, default=500, help="synthetic ones")
    parser.add_argument("--updates", type=int, default=3, help="timed in each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--method", default=METHODS[0], help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(our_seconds(args) if args.side == "ours" else their_seconds(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npy"
        write_rows(args.data, rows)
        names = ("checkout", "python", "data", "users", "updates")
        options = [f"--{name}={getattr(args, name)}" for name in names] + [f"--rows={rows}"]
        sides: dict[str, list[float]] = {name: [] for name in ("theirs", *METHODS)}
        for _ in range(args.rounds):
            sides["theirs"] += measured(args.python, "theirs", options)
            for method in METHODS:
                sides[method] += measured(sys.executable, "ours", [*options, f"--method={method}"])
    seconds: dict[str, Any] = {side: statistics.median(steps) for side, steps in sides.items()}
    print("| method | theirs | ours | ratio |\n|---|---|---|---|")
    for method in METHODS:
        ratio = seconds["theirs"] / seconds[method]
        print(f"| {method}, {args.users} users | {seconds['theirs']:.2f} s | {seconds[method]:.2f} s | {ratio:.1f} |")


if __name__ == "__main__":
    main()
