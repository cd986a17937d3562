"""Time our steps against plain textbook loops of the same methods, in one process, interleaved.

    python benchmarks/speed.py                                     # a small sweep for a CPU
    python benchmarks/gpu.py                                       # all of it on a GPU
    python benchmarks/speed.py --methods gcond                     # an epoch of GCond: graph_speed.py

One line per method and ipc: median milliseconds of both, their ratio, the first call's extra seconds (compiling,
capturing), which path ran, peak device memory, the relative error of both pixel gradients to float64, and our step's
share of two measured limits: its operations of the device's matrix-product throughput, and its traffic, as an eager
step would cause it, of the device's copying speed (fused kernels need less, so more than all of it is possible). On one
thread of a CPU, process time stands for wall time, since it holds on a busy machine; on a CPU, memory is not told
apart. Images are random; no accuracy is measured here.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import graph_speed
import textbook
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdistill.choices import TrainingPrecision
from mmdistill.distiller import Distiller
from mmdistill.evaluate import evaluate
from mmdistill.execution import compilation
from mmdistill.execution.capture import CudaGraph, Function, Graph, Replay
from mmdistill.execution.compilation import CompileMode, operations
from mmdistill.execution.precision import Precision, matrix_products, resolved
from mmdistill.image import ImageTask, image_task
from mmdistill.image.judge_training import judge_loss
from mmdistill.method import Method
from mmdistill.methods import fresh
from mmdistill.networks import stacked
from mmdistill.networks.schedules import EMPTY, NetworkSchedule, ScheduleState, Synthetic
from mmdistill.objectives.base import Network
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.registry import get_domain, get_method
from mmdistill.runs.stepper import Stepper
from mmdistill.runtime import Draws, choose_device, describe_device
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.store import write_json
from mmdistill.task import Batch, ClassBatch, Dims, NetworkState, Task

CLASSES = 10
MTT = {1: (50, 10), 10: (30, 100), 50: (30, 500)}
"""Student steps and minibatch by ipc."""
FLAT_BATCH = {"frepo": 1024, "kip": 5000, "dd": 1024}
DD_STEPS = 30
EPOCHS = {50: 10}
"""Epochs that DC's network trains for between two steps, by ipc, 50 for others; at one image per class none."""
STEPS_TOGETHER = 5
"""Of ours on CUDA, timed together: in a run nothing waits for the device between steps either."""
WARM_UP = 8
"""Steps on CUDA before timing: eager ones, the capture and its check."""


class RandomTargets(NetworkSchedule):
    """A fresh network each step and another as the target: what matching experts costs without training any."""

    gives_target = True

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Draw both."""
        return ScheduleState(task.init(draws), 0, {}, task.init(draws.fold("target")).params)

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Forget them."""
        return EMPTY


@dataclass(frozen=True)
class Contest:
    """Two callables that do the same work.

    Args:
        ours: takes one step of the library.
        plain: takes one step of the textbook loop.
        path: says how ours ran, once it has.
    """

    ours: Callable[[], object]
    plain: Callable[[], object]
    path: Callable[[], str]


def make_task(shape: tuple[int, int, int], width: int, per_class: int, device: torch.device) -> ImageTask:
    """Return the task of random images."""
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    images = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(0))
    return image_task((images, labels), test=(images[::per_class], labels[::per_class]), width=width, device=device)


def problem_of(task: ImageTask, ipc: int, real_batch: int) -> textbook.Problem:
    """Return the textbook's side of a task: the same images and network."""
    assert task.labels is not None
    batch = task.select(torch.arange(len(task.labels)))
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(batch.targets, Tensor)
    synthetic = torch.randn(CLASSES * ipc, *batch.inputs.shape[1:]).to(task.device)
    return textbook.Problem(batch.inputs, batch.targets, synthetic, lambda: make_network(task), real_batch)


def make_network(task: ImageTask, smooth: bool = False) -> nn.Module:
    """Return a fresh network of the task's kind in torch's own layers, drawn where it lies."""
    with task.device:
        return textbook.ConvNet(task.data.shape, CLASSES, width_of(task), depth_of(task), smooth)


def width_of(task: ImageTask) -> int:
    """Return the channels of a task's network."""
    return int(task.network.module.block1[0].out_channels)  # type: ignore[union-attr,index]


def depth_of(task: ImageTask) -> int:
    """Return the blocks of a task's network, fewer where images are small."""
    return sum(name.startswith("block") for name, _ in task.network.module.named_children())


def settings_of(method: Method, name: str, ipc: int, real_batch: int) -> Settings:
    """Return a method's settings for one step after another with a fresh network each."""
    settings = replace(method.settings(ipc), steps=1_000_000, real_batch=real_batch, init="noise", outer_steps=1)
    if name in ("kip", "frepo"):  # the textbook steps plainly, and the image alone
        settings = replace(settings, optimizers={"codes": OptimizerSpec("sgd", 0.0)})
    if name == "dc-epochs":
        return replace(settings, outer_steps=settings.steps, inner_steps=EPOCHS.get(ipc, 50))
    if name == "mtt":
        steps, batch = MTT[ipc]
        return replace(settings, inner_steps=steps, inner_batch=batch, inner_lr=0.01, augment=True)
    if name == "dd":
        return replace(settings, inner_steps=DD_STEPS, inner_lr=0.02, inner_momentum=0.9, inner_parts=1)
    if name == "frepo":
        return replace(settings, outer_steps=100, inner_batch=CLASSES * ipc)
    return settings


def contest(
    task: ImageTask,
    name: str,
    ipc: int,
    real_batch: int,
    compile: CompileMode,
    precision: Precision = "auto",
    changes: Mapping[str, Any] | None = None,
) -> Contest:
    """Return a method's two steps; the textbook has none of RCIG, whose own can still be checked.

    Args:
        task: of random images.
        name: the method.
        ipc: images per class.
        real_batch: real images per class, of methods that read class batches.
        compile: how ours runs.
        precision: of ours.
        changes: of ours' settings, such as its knobs.
    """
    domain = get_domain("image")
    method = get_method(domain, name.removesuffix("-epochs"))
    if name in ("dm", "dc", "dsa"):
        method = replace(method, network=fresh)
    elif name == "mtt":
        method = replace(method, network=lambda settings: RandomTargets())
    elif name in ("kip", "frepo"):
        method = replace(method, label="hard")  # as the textbook's
    drawn = FLAT_BATCH.get(name, real_batch)
    own = drawn // CLASSES if name == "kip" else drawn
    settings = replace(settings_of(method, name, ipc, own), **(changes or {}))
    distiller = Distiller(task, method, ipc, settings=settings, precision=precision)
    stepper, run = Stepper(distiller, compile), distiller.start()
    p = problem_of(task, ipc, drawn)
    steps, batch = MTT.get(ipc, (30, 10 * ipc))
    network = p.make()
    plain: dict[str, Callable[[], Tensor]] = {
        "dm": lambda: textbook.dm(p),
        "dc": lambda: textbook.dc(p),
        "dsa": lambda: textbook.dc(p, siamese=True),
        "dc-epochs": lambda: textbook.dc_and_epochs(p, network, EPOCHS.get(ipc, 50)),
        "mtt": lambda: textbook.mtt(p, steps, batch, 0.01),
        "dd": lambda: textbook.dd(p, DD_STEPS, 0.02, 0.9),
        "frepo": lambda: textbook.frepo(p),
        "kip": lambda: textbook.kip(p),
    }
    return Contest(lambda: stepper(run), lambda: plain[name](), lambda: stepper.path)


def judging(
    task: ImageTask,
    ipc: int,
    networks: int,
    epochs: int,
    siamese: bool,
    compile: str,
    precision: Precision = "float32",
) -> Contest:
    """Return the two ways of training networks on a set; of precisions, bf16 alone is of judges."""
    lowered: TrainingPrecision = "bf16" if precision == "bf16" else "float32"
    if compile == "on":
        always_compile()
    replays: list[Replay] = []

    class Noted(Replay):
        def __init__(self, function: Function, graph: Callable[[], Graph] = CudaGraph) -> None:
            super().__init__(function, graph)
            replays.append(self)

    ways: set[str] = set()
    p = problem_of(task, ipc, 1)
    judge = image_task(
        task.data,
        width=width_of(task),
        device=task.device,
        judge_epochs=epochs,
        judge_augment=siamese,
        judge_precision=lowered,
    )
    batch = Batch(p.synthetic.detach(), p.targets, torch.ones(len(p.targets), device=task.device))

    def ours() -> None:
        with patch.object(stacked, "Replay", Noted):
            evaluate(judge, batch, n=networks, baselines=[])
        ways.update("captured" for replay in replays if replay.captured)
        replays.clear()  # they hold their graphs, and these their memory

    return Contest(
        ours,
        lambda: textbook.evaluation(p, networks, epochs, 256, siamese),
        lambda: path_of(judge, ways, lowered),
    )


def always_compile() -> None:
    """Let trainings compile however short they are, as those of the published number of epochs do."""
    compilation.WORTH_OPERATIONS = 0.0
    stacked.WORTH_COMPILING = 0


def path_of(judge: ImageTask, ways: set[str], precision: TrainingPrecision) -> str:
    """Return how judges' steps ran, by what was compiled and captured in fact."""
    program = compilation.compiled_once(judge_loss(judge.network, None, precision))
    return " and ".join(["compiled"] * (program.seconds > 0) + sorted(ways)) or "eager"


def clock(device: torch.device) -> float:
    """Return seconds: process time of one thread, else wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call."""
    began = clock(device)
    call()
    return clock(device) - began


def peak(call: Callable[[], object], device: torch.device, reserved: bool = False) -> float | None:
    """Return the peak device memory of a call in MiB, None on a CPU.

    Args:
        call: what is measured.
        device: where.
        reserved: count what the allocator holds, not what tensors take: a graph's own memory is no tensor's.
    """
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    found = torch.cuda.max_memory_reserved(device) if reserved else torch.cuda.max_memory_allocated(device)
    return found / 2**20


def throughput(device: torch.device) -> float:
    """Return the operations per second of a large float32 matrix product at torch's present precision."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device)
    seconds = [timed(lambda: a @ a, device) for _ in range(4)][1:]
    return 2 * size**3 / min(seconds)


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second that copying a large tensor reads and writes."""
    source = torch.ones(1 << (28 if device.type == "cuda" else 25), device=device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(4)][1:]
    return 2 * source.nbytes / min(seconds)


class Traffic(TorchDispatchMode):
    """Adds up the bytes of what operators read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, out))
            self.total += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return out


def traffic(call: Callable[[], object]) -> int:
    """Return the bytes that a call's operators read and write."""
    with Traffic() as counter:
        call()
    return counter.total


def measure(found: Contest, device: torch.device, repeats: int, warm_up: int) -> dict[str, Any]:
    """Return medians of both sides, interleaved after warm-up."""
    first = timed(found.ours, device)
    for _ in range(warm_up):
        found.ours()
    found.plain()
    gc.collect()
    together = STEPS_TOGETHER if device.type == "cuda" and warm_up else 1

    def several() -> None:
        for _ in range(together):
            found.ours()

    ours, plain = [], []
    gc.freeze()  # what compiling made is not searched for garbage while steps are timed
    try:
        for _ in range(repeats):
            ours.append(timed(several, device) / together)
            plain.append(timed(found.plain, device))
    finally:
        gc.unfreeze()  # and with it the graphs of earlier measurements, whose memory would count as this one's
    gc.collect()
    fast, slow = statistics.median(ours), statistics.median(plain)
    return {
        "ours_ms": 1000 * fast,
        "textbook_ms": 1000 * slow,
        "ratio": slow / fast,
        "first_s": first - fast,
        "path": found.path(),
        "ours_mib": peak(found.ours, device, reserved=True),
        "textbook_mib": peak(found.plain, device),
    }


def gradient_errors(
    task: ImageTask, name: str, ipc: int, real_batch: int, precision: Precision = "auto"
) -> tuple[float, float]:
    """Return the relative errors of our pixel gradient and the textbook's to the textbook's in float64.

    The networks are smooth: a ReLU whose input is so close to 0 that rounding turns its sign makes an error of 1e-4 to
    1e-2 by itself, on whichever side it falls, and of the millions in one step about one does.
    """
    p = problem_of(task, ipc, real_batch)
    net, goal = make_network(task, smooth=True), make_network(task, smooth=True)
    task = image_task(task.data, width=width_of(task), device=task.device, model="convnet-swish")
    real = [p.real(c) for c in range(CLASSES)]
    whole = [torch.arange(len(p.targets), device=task.device)] * 10

    def plain(dtype: torch.dtype) -> Tensor:
        p.synthetic = p.synthetic.detach().to(dtype).requires_grad_()
        p.optimizer = torch.optim.SGD([p.synthetic], lr=0.0)
        one, other, images = net.to(dtype), goal.to(dtype), [x.to(dtype) for x in real]
        step = textbook.dm if name == "dm" else textbook.dc
        found = textbook.mtt(p, 10, 0, 0.01, one, other, whole) if name == "mtt" else step(p, one, images)
        return found.detach().double().clone()

    chosen = resolved(precision, task.device)
    with matrix_products(chosen, task.device):
        textbook_gradient = plain(torch.float32)
    state, target = (NetworkState({k: v.detach() for k, v in m.named_parameters()}, {}) for m in (net, goal))
    inputs = p.synthetic.detach().clone().requires_grad_()
    grouped = ClassBatch(
        Batch(inputs.unflatten(0, (CLASSES, ipc)), p.targets.view(CLASSES, ipc), torch.ones(CLASSES, ipc).to(inputs)),
        Dims(0, 0),
    )
    classes = torch.arange(CLASSES, device=task.device)[:, None].expand(CLASSES, real_batch)
    truth = ClassBatch(Batch(torch.stack(real), classes, torch.ones(CLASSES, real_batch).to(inputs)), Dims(0, 0))
    network, key = Network(task, state, target.params, precision=chosen), Draws(0, device=task.device)
    with matrix_products(chosen, task.device):
        if name == "mtt":
            flat = Batch(inputs, p.targets, torch.ones(len(p.targets)).to(inputs))
            loss = TrajectoryMatching(10, InnerRate(0.01)).to(task.device)(network, flat, flat, key)
        else:
            loss = (DistributionMatching() if name == "dm" else GradientMatching())(network, grouped, truth, key)
        ours = torch.autograd.grad(loss, inputs)[0].double()
    exact = plain(torch.float64)
    return tuple(float((g - exact).norm() / exact.norm()) for g in (ours, textbook_gradient))  # type: ignore[return-value]


def shares(eager: Contest, milliseconds: float, limit: float, copying: float) -> dict[str, float]:
    """Return the shares of the device's two limits that a step of so many milliseconds reaches."""
    seconds = milliseconds / 1000
    return {
        "share": operations(eager.ours)[1] / seconds / limit,
        "traffic": traffic(eager.ours) / seconds / copying,
    }


def in_mib(found: float | None) -> str:
    """Return a peak as text, a dash where it is not told apart."""
    return "-" if found is None else f"{found:.0f}"


def line(name: str, ipc: int, row: dict[str, Any]) -> str:
    """Return a row as text."""
    text = f"{name:12s} ipc {ipc:3d}  ours {row['ours_ms']:9.2f} ms  textbook {row['textbook_ms']:9.2f} ms"
    text += f"  {row['ratio']:5.2f}x  {row['path']:8s} first {row['first_s']:+.1f} s"
    text += f"  {in_mib(row['ours_mib'])} / {in_mib(row['textbook_mib'])} MiB"
    if "errors" in row:
        text += f"  error {row['errors'][0]:.1e} / {row['errors'][1]:.1e}"
    if "share" in row:
        text += f"  {100 * row['share']:.0f} % of the matrix product, {100 * row['traffic']:.0f} % of copying"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="dm,dc,dsa,mtt,dd,frepo,kip,evaluate,evaluate-dsa")
    parser.add_argument("--ipc", default="1,10")
    parser.add_argument("--shape", default="1,28,28", help="channels, height, width")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--real-batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", type=int, default=5, help="judges, for evaluate")
    parser.add_argument("--epochs", type=int, default=30, help="their epochs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=get_args(CompileMode), default="auto")
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "mixed", "bf16"),
        default="float32",
        help="tf32 (CUDA) is of both sides; mixed and bf16 are ours alone, against the loop in float32",
    )
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    chosen = parser.parse_args()
    if chosen.methods == "gcond":
        graph_speed.main(["--repeats", str(chosen.repeats), "--out", str(chosen.out)])
        return
    device = choose_device(chosen.device)
    tf32 = chosen.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    channels, height, width = (int(text) for text in chosen.shape.split(","))
    task = make_task((channels, height, width), chosen.width, max(2 * chosen.real_batch, 512), device)
    limit, copying = throughput(device), bandwidth(device)
    speeds = f"matrix product {limit / 1e9:.0f} Gop/s, copying {copying / 1e9:.1f} GB/s"
    print(f"{describe_device(device)}, {speeds}, {chosen.precision}", flush=True)
    rows = []
    for ipc in (int(text) for text in chosen.ipc.split(",")):
        for name in chosen.methods.split(","):
            if name.startswith("evaluate"):
                siamese = name.endswith("dsa")
                found = judging(task, ipc, chosen.networks, chosen.epochs, siamese, chosen.compile, chosen.precision)
                row = measure(found, device, chosen.repeats, 0)
            else:
                found = contest(task, name, ipc, chosen.real_batch, chosen.compile, chosen.precision)
                row = measure(found, device, chosen.repeats, WARM_UP if device.type == "cuda" else 1)
                eager = contest(task, name, ipc, chosen.real_batch, "off", chosen.precision)
                row |= shares(eager, row["ours_ms"], limit, copying)
            if name in ("dm", "dc", "mtt"):
                row["errors"] = gradient_errors(task, name, ipc, chosen.real_batch, chosen.precision)
            rows.append({"method": name, "ipc": ipc, **row})
            print(line(name, ipc, row), flush=True)
            settings = {key: str(value) for key, value in vars(chosen).items()}
            content = {"device": describe_device(device), "limit": limit, "settings": settings, "rows": rows}
            write_json(chosen.out, json.loads(json.dumps(content)))


if __name__ == "__main__":
    main()
