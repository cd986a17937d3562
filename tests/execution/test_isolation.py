"""Inside another program: what it has set changes no result, and it finds everything as it was."""

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill import cli, decode, distill, evaluate, graph_task, image_task, recsys_task, selection, text_task
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.execution import allocator, isolation
from mmdistill.execution.allocator import MALLOC_MMAP_THRESHOLD, MALLOC_TRIM_THRESHOLD
from mmdistill.execution.isolation import own_state
from mmdistill.execution.precision import PLAIN
from mmdistill.runtime import Draws, host_draws_from
from mmdistill.task import Task, num_samples
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.text.corpus import corpus
from tests.toys import BlobTask

GRAPH, TEXTS = planted_graph(), corpus()
LOG = np.random.default_rng(0).random((60, 20)) < 0.3
BUILDERS: dict[str, tuple[Callable[[], Task], str, dict[str, int]]] = {
    "image": (lambda: image_task("digits", model="convnet-w8", judge_epochs=1), "dm", {"ipc": 1}),
    "graph": (lambda: graph_task(GRAPH, model="gcn", protocol=FAST), "gcond", {"nodes": 6}),
    "text": (lambda: text_task(TEXTS, encoder="tfidf", judge_epochs=1), "dm", {"ipc": 1}),
    "recsys": (lambda: recsys_task(LOG.astype("float32")), "distill-cf-meanfield", {"users": 4}),
}


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)  # type: ignore[arg-type]


@contextmanager
def coarse_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")  # bfloat16 on CPUs that multiply it
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True


HOSTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": default_dtype,
    "inference": torch.inference_mode,
    "no-grad": torch.no_grad,
    "device": default_device,
    "device-within": lambda: torch.device("meta"),
    "coarse": coarse_products,
}


def host_state() -> tuple[object, ...]:
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        *formats(),
    )


def formats() -> tuple[object, ...]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def found(kind: str) -> list[object]:
    """Return what a domain's task distils to and how it is judged, as plain values."""
    make, method, budget = BUILDERS[kind]
    task = make()
    result = distill(task, method, **budget, settings={"steps": 2})  # type: ignore[arg-type]
    inputs = result.batch.inputs
    tensors = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    scores = evaluate(task, result, n=1, baselines=()).headline().mean
    return [task.describe().fingerprint, [(str(t.dtype), t.tolist()) for t in tensors], scores]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[object]]:
    return {kind: found(kind) for kind in BUILDERS}


@pytest.mark.parametrize("host", HOSTS)
def test_what_a_host_sets_changes_no_result(host: str, expected: dict[str, list[object]]) -> None:
    with HOSTS[host]():
        before = host_state()
        results = {kind: found(kind) for kind in BUILDERS}
        assert host_state() == before
    assert results == expected


@pytest.mark.parametrize("host", HOSTS)
def test_public_calls_compute_float32_as_torch_does_by_itself(host: str) -> None:
    with HOSTS[host](), own_state():
        assert formats() == PLAIN


@pytest.mark.parametrize("host", HOSTS)
def test_an_error_gives_a_host_its_state_back_too(host: str) -> None:
    task = BlobTask()
    with HOSTS[host]():
        before = host_state()
        with pytest.raises(ConfigError):
            distill(task, "no such method", ipc=1)
        with pytest.raises(ConfigError):
            image_task("digits", model="no such network")
        assert host_state() == before


@pytest.mark.parametrize("host", ["float64", "inference", "device"])
def test_a_set_is_read_and_decoded_in_a_host_as_elsewhere(host: str, tmp_path: Path) -> None:
    task = image_task("digits", model="convnet-w8", judge_epochs=1)
    made = distill(task, "dm", ipc=1, parameterization="upsample-2", settings={"steps": 1}, out=tmp_path)
    with HOSTS[host]():
        read, decoded = DistilledSet.load(tmp_path), decode(tmp_path)
    for batch in (read.batch, decoded):
        assert isinstance(batch.inputs, Tensor)
        assert not batch.inputs.is_inference()
        assert (batch.inputs.dtype, batch.inputs.device.type) == (torch.float32, "cpu")
        assert num_samples(batch.inputs) == num_samples(made.batch.inputs)


def test_data_that_a_host_made_for_inference_alone_are_distilled() -> None:
    with torch.inference_mode():
        images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 2
        fields = planted_fields()
    tasks = image_task((images, labels), model="mlp", judge_epochs=1), graph_task(fields, model="gcn", protocol=FAST)
    for task in tasks:
        result = distill(task, "dc" if task is tasks[0] else "gcond", 3, settings={"steps": 1})
        with torch.inference_mode():
            again = result.batch.map(Tensor.clone)
        assert evaluate(task, again, n=1, baselines=()).results == evaluate(task, result, n=1, baselines=()).results


def test_keys_draw_float32_whatever_the_default() -> None:
    key = Draws(0)
    plain = key.normal(5), key.uniform(5), key.gumbel(5)
    with default_dtype():
        again = key.normal(5), key.uniform(5), key.gumbel(5)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, again, strict=True))


def test_a_default_type_comes_back_when_the_last_call_of_any_thread_ends() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with own_state():
            inside.set()
            leave.wait(10)

    with default_dtype():
        thread = threading.Thread(target=other)
        with own_state(), own_state():
            thread.start()
            assert inside.wait(10)
        assert torch.get_default_dtype() is torch.float32
        leave.set()
        thread.join()
        assert torch.get_default_dtype() is torch.float64


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_hosts_random_numbers_go_on_as_if_nothing_had_run(kind: str) -> None:
    def states() -> list[object]:
        _, numbers, *rest = np.random.get_state()  # noqa: NPY002
        return [torch.get_rng_state().tolist(), np.asarray(numbers).tolist(), rest, random.getstate()]

    before = states()
    found(kind)
    assert states() == before


@pytest.mark.parametrize("model", ["convnet", "resnet18", "vit"])
def test_a_named_network_leaves_the_global_generator_alone(model: str) -> None:
    before = torch.get_rng_state()
    images = np.random.default_rng(0).random((8, 1, 32, 32), dtype=np.float32)
    image_task((images, np.arange(8) % 2), model=model, width=8)
    assert torch.equal(before, torch.get_rng_state())


class Libc:
    """Stands for glibc and notes what its allocator is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.trims = 0

    def mallopt(self, name: int, value: int) -> int:
        self.told.append((name, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trims += 1
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    made = Libc()
    with own_state():  # which ends what calls of other tests outside of it have left
        pass
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: made)
    monkeypatch.setattr(allocator, "WORTH_TRIMMING", -1.0)
    return made


def test_freed_memory_is_kept_until_the_outermost_call_ends(libc: Libc) -> None:
    for calls in (1, 2):
        with own_state():
            for _ in range(2):
                with own_state():
                    allocator.keep_freed_memory()
            assert libc.trims == calls - 1
            assert dict(libc.told)[MALLOC_TRIM_THRESHOLD] > 1 << 30
        assert libc.trims == calls
        assert len(libc.told) == 4 * calls
        assert 1 << 17 <= dict(libc.told)[MALLOC_MMAP_THRESHOLD] < dict(libc.told)[MALLOC_TRIM_THRESHOLD] <= 64 << 20


def test_short_calls_do_not_wait_for_their_memory_to_go(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "WORTH_TRIMMING", 1000.0)
    with own_state():
        allocator.keep_freed_memory()
    assert libc.trims == 0
    assert dict(libc.told)[MALLOC_TRIM_THRESHOLD] <= 64 << 20


def test_a_run_gives_its_memory_back(libc: Libc) -> None:
    result = distill(BlobTask(), "dm", ipc=1, settings={"steps": 1})
    assert libc.trims == 1
    evaluate(BlobTask(), result, n=1, baselines=())
    assert libc.trims == 2


def test_keeping_freed_memory_is_harmless_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with own_state():
        pass

    def missing(name: str) -> None:
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    with own_state():
        allocator.keep_freed_memory()
    assert asked == ["libc.so.6"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_host_that_frees_tensors_after_a_run_has_the_memory_back() -> None:
    code = """
import torch
from pathlib import Path
from mmdistill import distill
from tests.toys import BlobTask

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

distill(BlobTask(), "dm", ipc=1, settings={"steps": 1})
before = resident()
tensors = [torch.ones(5_000_000) for _ in range(20)]
held = resident()
del tensors
print((resident() - before) / (held - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5


def test_progress_is_shown_on_the_terminal_by_commands_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("mmdistill.somewhere")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own

    def say(options: object) -> None:
        log.info("a tenth is done")
        log.warning("beware")
        logging.getLogger("elsewhere").info("of no concern")

    monkeypatch.setattr(cli, "run_command", say)
    assert cli.main(["methods"]) == 0
    assert capsys.readouterr().err == "a tenth is done\nbeware\n"
    say(None)
    assert capsys.readouterr().err == "beware\n"  # as Python shows warnings where no program says how
    assert not logging.getLogger("mmdistill").handlers


def test_a_program_that_shows_logs_itself_gets_those_of_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cli, "run_command", lambda options: logging.getLogger("mmdistill.somewhere").info("done"))
    cli.main(["methods"])
    assert caplog.messages == ["done"]
    assert capsys.readouterr().err == ""


class Dropping(nn.Module):
    """A network that draws from torch's global generator when it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.dropout, self.head = nn.Linear(64, 16), nn.Dropout(0.3), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x.flatten(1)).relu()))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("shared", "model"), [(True, "mlp-w8"), (False, Dropping)], ids=["shared", "each"])
def test_threads_get_the_sets_and_scores_that_one_gets(shared: bool, model: str | type[nn.Module]) -> None:
    def make() -> Task:
        return image_task("digits", model=model, judge_epochs=1)

    def run(method: str) -> tuple[object, ...]:
        made = task if shared else make()
        result = distill(made, method, ipc=1, settings={"steps": 3}, progress=lambda *told: time.sleep(0.01))
        assert isinstance(result.batch.inputs, Tensor)
        return result.batch.inputs.tolist(), evaluate(made, result, n=1, baselines=()).headline().mean

    task, methods = make(), ["dm", "dd"]
    alone = [run(method) for method in methods]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, methods * 3)) == alone * 3


def test_calls_that_a_call_makes_of_its_own_task_do_not_wait_for_it() -> None:
    task, found = BlobTask(), list[float]()

    def judge(done: int, total: int, loss: float) -> None:
        made = selection(task=task, rule="random", ipc=1)
        found.append(evaluate(task, made, n=1, baselines=()).headline().mean)

    def run(seed: int) -> None:
        distill(task, "dm", ipc=1, seed=seed, settings={"steps": 2}, progress=judge)

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(run, seed) for seed in range(2)]
        for each in waiting:
            each.result(timeout=60)
    assert len(found) == 4
    assert not isolation._turns


def start(function: Callable[[], object]) -> threading.Thread:
    """Start a thread that ends with the program, so that one that waits forever fails a test and not the suite."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def score(task: Task) -> float:
    return evaluate(task, selection(task, "random", ipc=1), n=1, baselines=()).headline().mean


@pytest.mark.parametrize("call", ["distill", "evaluate"])
def test_a_progress_function_may_wait_for_another_thread_with_its_task(call: str) -> None:
    task, found = BlobTask(), list[float]()
    chosen = selection(task, "random", ipc=1)

    def judge(*told: object) -> None:
        worker = start(lambda: found.append(score(task)))
        worker.join(20)
        assert not worker.is_alive()

    calls: dict[str, Callable[[], object]] = {
        "distill": lambda: distill(task, "dm", ipc=1, settings={"steps": 2}, progress=judge),
        "evaluate": lambda: evaluate(task, chosen, n=1, baselines=(), progress=judge),
    }
    calls[call]()
    assert found == [score(task)] * 2
    assert not isolation._turns


def test_progress_functions_may_use_each_others_tasks() -> None:
    first, second = BlobTask(), BlobTask()
    both, found, expected = threading.Barrier(2), list[float](), score(first)

    def run(task: Task, other: Task) -> None:
        def judge(*told: object) -> None:
            both.wait(20)
            found.append(score(other))

        distill(task, "dm", ipc=1, settings={"steps": 1}, progress=judge)

    threads = [start(lambda: run(first, second)), start(lambda: run(second, first))]
    for thread in threads:
        thread.join(20)
    assert found == [expected] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows interrupts no wait")
def test_a_call_whose_wait_is_interrupted_leaves_the_turn_to_the_thread_that_has_it() -> None:
    task, begun, done = BlobTask(), threading.Event(), threading.Event()

    def hold(task: Task) -> None:
        begun.set()
        done.wait(20)

    def let_go(task: Task) -> None:
        with isolation.turns_let_go():
            threads.append(start(lambda: isolation.in_turn(hold)(task)))
            assert begun.wait(20)
            start(lambda: (time.sleep(0.2), signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)))

    threads = list[threading.Thread]()
    with pytest.raises(KeyboardInterrupt):
        isolation.in_turn(let_go)(task)
    assert isolation._turns[id(task)].locked()
    done.set()
    threads[0].join(20)
    assert not isolation._turns


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork processes")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks() -> None:
    task, held, done = BlobTask(), threading.Event(), threading.Event()

    def draw(task: Task) -> None:
        with host_draws_from(0):
            pass

    def hold(task: Task) -> None:
        with host_draws_from(0), isolation._lock:
            held.set()
            done.wait(60)

    thread = start(lambda: isolation.in_turn(hold)(task))
    assert held.wait(20)
    child = multiprocessing.get_context("fork").Process(target=isolation.in_turn(draw), args=(task,))
    child.start()
    child.join(20)
    child.kill()
    done.set()
    thread.join(20)
    child.join(20)
    assert child.exitcode == 0
