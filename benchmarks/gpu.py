"""Measure on a CUDA device everything that is still open: checks first, then one row of the table after the other.

    python benchmarks/gpu.py --minutes 8 --out results/gpu          # call it again to go on; finished rows are kept

``results/gpu.json`` and ``results/gpu.md``, a few kilobytes, are written before and after each check and each row, with
what was warned of meanwhile, such as why a step could not be captured. What a stop cut short is tried again after all
others. What leaves the device in an error ends the call with status 3, so that a loop can go on in a new process:

    for _ in 1 2 3 4 5; do python benchmarks/gpu.py --minutes 8 && break; done

What takes longer than four minutes prints where it is. The script imports the package: installed (``pip install -e
.``), or by ``PYTHONPATH=.`` on a machine that has its dependencies alone.

Rows are ConvNet-D3 of width 128 on random images of 3 x 32 x 32, 10 classes, 256 real ones of each, as in the targets
beside them. The textbook loop runs at torch's TF32 speed. Judges of the loop are timed on a few networks and epochs,
and scaled. A first call compiles for some minutes; ``first_s`` says how long, and a second run finds it cached.
"""

import argparse
import faulthandler
import gc
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import speed
import torch

from mmdistill.errors import first_line
from mmdistill.execution import capture
from mmdistill.execution.compilation import CompileMode
from mmdistill.execution.precision import Precision
from mmdistill.image import ImageTask
from mmdistill.networks import fit
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.runtime import Draws, describe_device
from mmdistill.settings import OptimizerSpec
from mmdistill.store import read_json, write_json

FEW_NETWORKS, FEW_EPOCHS = 2, 50
"""Of the textbook's evaluation; its time is proportional to both."""
LONG = 240
"""Seconds after which a check or row prints where it is, and again after as many."""
DEVICE_ERROR = 3
"""The status that the call ends with where the device is left in an error."""

UNCOMPILED = {"steps": 1000}
"""Runs that ``auto`` captures and does not compile, which would take the checks some minutes."""
MOVING = {name: {"optimizers": {"codes": OptimizerSpec("sgd", 100.0)}} for name in ("frepo", "kip")}
"""Rates by which checked steps move images that stand still where they are timed."""
CHECKED_STEPS, LONG_CHECKED_STEPS = capture.WARM_UP_CALLS + 2 + capture.LATER_CHECK + 5, 12
"""Steps of a check, past the later comparison of a replay, and of methods whose steps take 50 inner ones."""
FIRST_ROWS = {"judges": "evaluate", "waiting of dm": "dm", "waiting of dc": "dc"}
"""Methods whose first row is measured directly after one of their checks."""
UNFINISHED: dict[str, Any] = {"checks": "did not finish", "rows": {"failed": "did not finish"}}
"""What stands for a check and for a row while it runs."""


@dataclass(frozen=True)
class Sizes:
    """What is measured, or with smaller numbers tried.

    Args:
        shape: of an image.
        width: of the network.
        per_class: images that there are.
        real_batch: of these, in a step.
        networks: that judge.
        epochs: of each.
        compile: how our steps run.
    """

    shape: tuple[int, int, int] = (3, 32, 32)
    width: int = 128
    per_class: int = 1024
    real_batch: int = 256
    networks: int = 20
    epochs: int = 1000
    compile: CompileMode = "on"


SMALL = Sizes((3, 32, 32), 8, 64, 16, 2, 50, "off")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        method: as :mod:`speed` names it.
        ipc: images per class.
        target: the least ratio to the textbook loop.
        precision: of our step.
        changes: of our settings.
        note: what the row shows.
    """

    method: str
    ipc: int
    target: float
    precision: Precision = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        """What the row is known by in the results."""
        return f"{self.method} ipc {self.ipc} {self.precision} {self.note}".strip()


def table() -> list[Row]:
    """Return all rows, the most telling ones first."""
    rows = [Row("dm", 10, 16), Row("dc", 10, 18), Row("mtt", 10, 8, "tf32"), Row("evaluate", 10, 8)]
    rows += [Row("dsa", 10, 22), Row("frepo", 10, 5), Row("kip", 10, 5), Row("dd", 10, 5), Row("dc-epochs", 10, 18)]
    rows += [Row("dm", ipc, target) for ipc, target in ((1, 20), (50, 15))]
    rows += [Row("dc", ipc, target) for ipc, target in ((1, 20), (50, 15))]
    rows += [Row("dsa", ipc, target) for ipc, target in ((1, 25), (50, 18))]
    rows += [Row("mtt", ipc, target, "tf32") for ipc, target in ((1, 20), (50, 3.5))]
    rows += [Row("mtt", ipc, target, "bf16") for ipc, target in ((1, 25), (10, 10), (50, 4.5))]
    rows += [Row("evaluate-dsa", 10, 30), Row("evaluate", 10, 8, "bf16")]
    rows += [Row("dm", ipc, 1, changes={"classes_at_once": 1}, note="one class at once") for ipc in (1, 10, 50)]
    rows += [Row("dc", ipc, 1, changes={"classes_at_once": 10}, note="all classes at once") for ipc in (1, 10, 50)]
    rows += [Row(name, 10, 1, "float32") for name in ("dm", "dc", "mtt")]
    return rows + [Row(name, ipc, 5) for ipc in (1, 50) for name in ("frepo", "kip", "dd")]


def check_replays(task: ImageTask, name: str) -> str:
    """Return how far captured steps are from eager ones in float32, how many these were, and whether captured."""
    steps = LONG_CHECKED_STEPS if name in ("mtt", "dd") else CHECKED_STEPS
    found, changes = [], {**UNCOMPILED, **MOVING.get(name, {})}
    for mode in ("off", "auto"):
        made = speed.contest(task, name, 1, 16, mode, "float32", changes)
        for _ in range(steps):
            stepped: Any = made.ours()
        found.append([p.detach().clone() for p in stepped[0].parameterization.parameters()])
        path = made.path()
    return f"{path}, {steps} steps, relative difference {capture.difference(*found):.1e}"


def check_waiting(task: ImageTask, name: str) -> str:
    """Return whether captured steps run without a wait for the device."""
    made = speed.contest(task, name, 1, 16, "auto", changes=UNCOMPILED)
    for _ in range(speed.WARM_UP):
        made.ours()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            made.ours()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "waits for nothing"


def check_judges(task: ImageTask) -> str:
    """Return how far networks trained by replays on several streams are from those of the sequential loop."""
    data = task.select(torch.arange(40, device=task.device))
    protocol = FitProtocol(60, batch=16)

    def loss(state: Any, batch: Any, noise: Any) -> Any:
        return task.loss(state, batch, train=True), state.buffers

    key = Draws(0, device=task.device)
    states = [
        fit.fit_networks(task.init, loss, data, protocol, 6, key, mode="loop", pure=pure) for pure in (False, True)
    ]
    return f"relative difference {capture.difference(states[1].params, states[0].params):.1e}"


def checks(task: ImageTask) -> dict[str, Callable[[], str]]:
    """Return all checks by name."""
    calls: dict[str, Callable[[], str]] = {}
    for name in ("dm", "dc", "dsa", "mtt", "dd", "frepo", "kip", "rcig", "dc-epochs"):
        if name == "dsa":
            calls["judges"] = lambda: check_judges(task)
        calls[f"replays of {name}"] = lambda name=name: check_replays(task, name)  # type: ignore[misc]
        calls[f"waiting of {name}"] = lambda name=name: check_waiting(task, name)  # type: ignore[misc]
    return calls


def attempt(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what a call returns, or its error in a line, and what was warned of meanwhile, each once and in a line."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = call()
        except Exception as error:  # what fails shall cost itself alone
            traceback.print_exc()
            found = f"failed: {type(error).__name__}: {first_line(error)}"
    return found, list(dict.fromkeys(first_line(warning.message) for warning in heard))


def checked(call: Callable[[], str]) -> str:
    """Return what a check finds, with what was warned of meanwhile."""
    found, warned = attempt(call)
    return "; warned: ".join([found, *warned])


def measured(task: ImageTask, row: Row, sizes: Sizes, limits: tuple[float, float], repeats: int) -> dict[str, Any]:
    """Return a row's numbers."""
    if row.method.startswith("evaluate"):
        return evaluation(task, row, sizes)
    made = speed.contest(task, row.method, row.ipc, sizes.real_batch, sizes.compile, row.precision, row.changes)
    found = speed.measure(made, task.device, repeats, speed.WARM_UP)
    eager = speed.contest(task, row.method, row.ipc, sizes.real_batch, "off", row.precision, row.changes)
    found |= speed.shares(eager, found["ours_ms"], *limits)
    if row.method in ("dm", "dc", "mtt"):
        found["errors"] = speed.gradient_errors(task, row.method, row.ipc, sizes.real_batch, row.precision)
    return found


def evaluation(task: ImageTask, row: Row, sizes: Sizes) -> dict[str, Any]:
    """Return the numbers of training many networks; the second call counts, and the textbook's few are scaled."""
    siamese = row.method.endswith("dsa")
    made = speed.judging(task, row.ipc, sizes.networks, sizes.epochs, siamese, sizes.compile, row.precision)
    ours = made.ours
    first = speed.timed(ours, task.device)
    seconds = speed.timed(ours, task.device)
    few = speed.judging(task, row.ipc, FEW_NETWORKS, FEW_EPOCHS, siamese, sizes.compile).plain
    few()
    slow = speed.timed(few, task.device) * sizes.networks * sizes.epochs / (FEW_NETWORKS * FEW_EPOCHS)
    return {
        "ours_ms": 1000 * seconds,
        "textbook_ms": 1000 * slow,
        "ratio": slow / seconds,
        "first_s": first - seconds,
        "path": made.path(),
        "ours_mib": speed.peak(ours, task.device, reserved=True),
        "textbook_mib": speed.peak(few, task.device),
    }


def markdown(content: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    lines = [f"{content['device']}, torch {content['torch']}, {content['limits']}", ""]
    lines += [f"- {name}: {text}" for name, text in content["checks"].items()]
    lines += ["", "| row | ours ms | textbook ms | ratio | target | MiB ours / textbook | error | path |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, row in content["rows"].items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | | | | | |")
            continue
        error = " / ".join(f"{e:.1e}" for e in row.get("errors", ()))
        lines.append(
            f"| {name} | {row['ours_ms']:.2f} | {row['textbook_ms']:.1f} | {row['ratio']:.1f} | {row['target']} | "
            f"{speed.in_mib(row['ours_mib'])} / {speed.in_mib(row['textbook_mib'])} | {error} | "
            f"{row['path']}, +{row['first_s']:.0f} s |"
        )
    warned = [(name, said) for name, row in content["rows"].items() for said in row.get("warned", ())]
    lines += ["", *(f"- {name} warned: {said}" for name, said in warned)] if warned else []
    return "\n".join(lines) + "\n"


def write(out: Path, content: Mapping[str, Any]) -> None:
    """Write the results as they are."""
    write_json(out.with_suffix(".json"), json.loads(json.dumps(content)))
    out.with_suffix(".md").write_text(markdown(content), encoding="utf-8")


def main() -> int:
    """Measure what is left, and return the status that the call ends with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="start no row after so many")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on the CPU too, to try the script itself")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    chosen = parser.parse_args()
    began = time.monotonic()
    device = torch.device("cpu" if chosen.small and not torch.cuda.is_available() else "cuda")
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    place = chosen.out.with_suffix(".json")
    content: dict[str, Any] = read_json(place) if place.exists() else {"checks": {}, "rows": {}}
    limits = speed.throughput(device), speed.bandwidth(device)
    words = f"matrix product {limits[0] / 1e12:.1f} Top/s, copying {limits[1] / 1e9:.0f} GB/s"
    content |= {"device": describe_device(device), "torch": torch.__version__, "limits": words}
    sizes = SMALL if chosen.small else Sizes()
    task = speed.make_task(sizes.shape, sizes.width, sizes.per_class, device)

    def row_of(row: Row) -> dict[str, Any]:
        found, warned = attempt(lambda: measured(task, row, sizes, limits, chosen.repeats))
        told = {"warned": warned} if warned else {}
        return {"failed": found, **told} if isinstance(found, str) else {**found, "target": row.target, **told}

    rows = [row for row in table() if device.type == "cuda" or row.precision != "tf32"]
    rows = [row for row in rows if chosen.only in row.name]
    calls = checks(speed.make_task((3, 8, 8), 16, 64, device)) if device.type == "cuda" else {}
    work: list[tuple[str, str, Callable[[], Any]]] = []
    for name, call in calls.items():
        work.append(("checks", name, partial(checked, call)))
        for row in [row for row in rows if row.method == FIRST_ROWS.get(name)][:1]:
            rows.remove(row)
            work.append(("rows", row.name, partial(row_of, row)))
    work += [("rows", row.name, partial(row_of, row)) for row in rows]
    left = [item for item in work if content[item[0]].get(item[1], UNFINISHED[item[0]]) == UNFINISHED[item[0]]]
    for part, name, call in sorted(left, key=lambda item: item[1] in content[item[0]]):
        if time.monotonic() - began > 60 * chosen.minutes:
            print("out of time; call again to go on", flush=True)
            break
        content[part][name] = UNFINISHED[part]
        write(chosen.out, content)
        faulthandler.dump_traceback_later(LONG, repeat=True, file=sys.__stderr__ or sys.stderr)
        content[part][name] = call()
        faulthandler.cancel_dump_traceback_later()
        print(name, content[part][name], flush=True)
        write(chosen.out, content)
        torch._dynamo.reset()
        if device.type == "cuda" and isinstance(attempt(torch.cuda.synchronize)[0], str):
            print("the device is in an error; call again to go on", flush=True)
            return DEVICE_ERROR
        gc.collect()  # what an error's traceback held
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
