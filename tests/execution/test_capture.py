"""Replays without a device: their bookkeeping, under a stand-in for CUDA graphs that repeats the captured call."""

import gc
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mmdistill import runtime
from mmdistill.errors import MmdistillError
from mmdistill.execution import capture, streams
from mmdistill.execution.capture import (
    LATER_CHECK,
    SHAPES,
    WARM_UP_CALLS,
    CudaGraph,
    Generators,
    Graph,
    Replay,
    difference,
)
from mmdistill.runtime import Draws

EAGER = WARM_UP_CALLS + 1
"""Calls before the capture: the warm-up and the recording."""


class RepeatedCall:
    """Stands for a CUDA graph: results have one place, and a replay knows no more than the captured call did."""

    def __init__(self) -> None:
        self.replays = 0

    def capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
        states = [generator.get_state() for generator in generators]
        self.call = call
        self.results = tree_map_only(Tensor, torch.clone, call())
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        self.own = generators
        return self.results

    def replay(self) -> None:
        self.replays += 1
        handed = iter(self.own)
        with runtime.recording(lambda key: next(handed)):
            found = tree_leaves(self.call())
        for place, value in zip(tree_leaves(self.results), found, strict=True):
            if isinstance(place, Tensor):
                place.copy_(value)


def test_generators_are_set_to_what_another_key_would_draw() -> None:
    base = Draws(5).fold("step", 3)
    record = Generators(base)
    for name in ("real", "augment"):
        record.record(base.fold(name))
    record.seed(Draws(5).fold("step", 8))
    for name, generator in zip(("real", "augment"), record.generators, strict=True):
        expected = Draws(5).fold("step", 8, name).normal(4)
        assert torch.equal(torch.randn(4, generator=generator), expected)


def test_a_call_that_draws_otherwise_than_recorded_is_refused() -> None:
    base, later = Draws(5).fold("step", 3), Draws(5).fold("step", 4)
    record = Generators(base)
    record.record(base.fold("real"))
    record.rewind(later)
    with pytest.raises(RuntimeError, match="drew 0 times"):
        record.require_all()
    assert record.record(later.fold("real")) is record.generators[0]
    record.require_all()
    record.rewind(later)
    with pytest.raises(RuntimeError, match="had drawn something else"):
        record.record(later.fold("augment"))
    with pytest.raises(RuntimeError, match="does not derive"):
        record.record(base.fold("real"))
    with pytest.raises(RuntimeError, match="on the meta"):
        record.record(later.fold("real").to("meta"))


def test_another_thread_draws_from_keys_of_its_own_while_a_call_is_recorded() -> None:
    base, other = Draws(5).fold("step", 3), Draws(6).fold("step", 3)
    record, found = Generators(base), []

    def beside() -> None:
        found.append(other.normal(4))
        with runtime.recording(Generators(other).record):
            entered.set()
            assert left.wait(60)

    entered, left = threading.Event(), threading.Event()
    with runtime.recording(record.record):
        thread = threading.Thread(target=beside)
        thread.start()
        assert entered.wait(60)
        drawn = base.fold("real").normal(4)  # while the other thread records too, later
        left.set()
        thread.join()
        backward = threading.Thread(target=lambda: found.append(base.fold("again").normal(4)))  # as of autograd's own
        backward.start()
        backward.join()
        with pytest.raises(RuntimeError, match="does not derive"):
            other.generator()
    assert torch.equal(found[0], other.normal(4))
    assert torch.equal(drawn, base.fold("real").normal(4))
    assert record.names == [("real",), ("again",)]


def noisy(key: Draws, inputs: Any) -> Any:
    x, rest = inputs
    return {"sum": x + key.fold("a").normal(3), "rest": [rest["y"] * key.fold("b").uniform(1), None]}


def test_replays_equal_eager_calls_of_any_key_and_input() -> None:
    graphs: list[RepeatedCall] = []

    def graph() -> Graph:
        graphs.append(RepeatedCall())
        return graphs[-1]

    replay = Replay(noisy, graph)
    for step in range(EAGER + 5):
        key = Draws(3).fold("step", step)
        inputs = torch.full((3,), float(step)), {"y": torch.arange(2.0) + step}
        assert difference(replay(key, inputs), noisy(key, inputs)) == 0
    assert replay.captured
    assert graphs[0].replays == 4  # the first of them was compared with an eager call
    for size in range(2, 2 + SHAPES):  # other shapes warm up anew, and too many stay eager
        other = torch.ones(size, 3), {"y": torch.ones(1)}
        assert replay(Draws(3).fold("step", 99), other)["sum"].shape == (size, 3)
    assert (len(graphs), graphs[0].replays) == (1, 4)


class ListCopies(TorchDispatchMode):
    """Notes the number formats of lists of tensors that are copied in one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: list[list[torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._foreach_copy_.default:
            self.formats.append([tensor.dtype for tensor in args[0]])
        return func(*args, **(kwargs or {}))


def test_inputs_of_one_format_are_copied_together() -> None:
    """CUDA copies lists of several formats one tensor after the other."""

    def function(key: Draws, inputs: list[Tensor]) -> Tensor:
        return torch.stack([x.double().sum() for x in inputs])

    replay = Replay(function, RepeatedCall)
    for step in range(EAGER + 2):
        inputs = [torch.full((2,), step).to(d) for d in (torch.float32, torch.int64, torch.float32, torch.float64)]
        with ListCopies() as noted:
            assert torch.equal(replay(Draws(3), inputs), function(Draws(3), inputs))
    assert noted.formats == [[torch.float32] * 2, [torch.int64], [torch.float64]]


def test_a_function_of_its_key_alone_is_replayed() -> None:
    replay = Replay(lambda key, inputs: key.normal(2), RepeatedCall)
    for step in range(EAGER + 3):
        key = Draws(3).fold("step", step)
        assert torch.equal(replay(key, None), key.normal(2))
    assert replay.captured


def test_checks_leave_no_memory_of_eager_calls_beside_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(step))
    replay = Replay(noisy, RepeatedCall)
    inputs = torch.zeros(3), {"y": torch.ones(2)}
    for step in range(EAGER + LATER_CHECK + 5):
        replay(Draws(1).fold("step", step), inputs)
    assert emptied == [EAGER + 1, EAGER + LATER_CHECK]


@pytest.mark.parametrize("fault", ["host", "frozen", "broken"])
def test_what_cannot_be_replayed_stays_eager_with_one_warning(fault: str) -> None:
    class Broken(RepeatedCall):
        def capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    function = {"host": drawn_elsewhere, "frozen": by_the_step, "broken": noisy_zeros}[fault]
    replay = Replay(function, Broken if fault == "broken" else RepeatedCall)
    words = {"host": "which a replay cannot repeat", "frozen": "differs from an eager call", "broken": "not permitted"}
    with pytest.warns(UserWarning, match=words[fault]):  # noqa: PT031
        for step in range(EAGER + 4):
            key = Draws(1).fold("step", step)
            assert difference(replay(key, torch.zeros(2)), function(key, torch.zeros(2))) == 0
    assert not replay.captured


def test_the_memory_of_a_failed_capture_is_free_for_the_eager_call() -> None:
    class Full(RepeatedCall):
        def capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
            held.append(weakref.ref(self))
            raise torch.OutOfMemoryError("out of memory")

    def function(key: Draws, x: Tensor) -> Tensor:
        alive.append([graph() is not None for graph in held])
        return x

    held: list[weakref.ref[Graph]] = []
    alive: list[list[bool]] = []
    replay = Replay(function, Full)
    with pytest.warns(UserWarning, match="out of memory"):  # noqa: PT031
        for step in range(EAGER + 1):
            replay(Draws(1).fold("step", step), torch.zeros(2))
    assert alive[-1] == [False]


def test_a_function_that_fails_by_itself_says_so() -> None:
    def function(key: Draws, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("too large")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(torch.OutOfMemoryError, match="too large"):
            Replay(function, RepeatedCall)(Draws(1), torch.zeros(2))


def test_a_graph_that_goes_wrong_later_ends_the_run() -> None:
    class Overwritten(RepeatedCall):
        def replay(self) -> None:
            super().replay()
            if self.replays > LATER_CHECK // 2:
                self.results["sum"] += 1

    replay = Replay(noisy, Overwritten)
    inputs = torch.zeros(3), {"y": torch.ones(2)}
    for step in range(EAGER + LATER_CHECK):  # one of these captures, so that one replay is left
        replay(Draws(1).fold("step", step), inputs)
    with pytest.raises(MmdistillError, match=f"replay {LATER_CHECK} .*--compile off"):
        replay(Draws(1).fold("step", EAGER + LATER_CHECK), inputs)


def test_a_replay_may_differ_as_eager_calls_differ_from_each_other() -> None:
    calls = iter(range(10_000))

    def chaotic(key: Draws, inputs: Tensor) -> Tensor:
        return inputs + key.normal(1) + next(calls) % 7

    replay = Replay(chaotic, RepeatedCall)
    for step in range(EAGER + LATER_CHECK + 5):
        replay(Draws(1).fold("step", step), torch.zeros(1))
    assert replay.captured


class BrokenDevice:
    """Stands for ``torch.cuda`` where a wait breaks a capture: ending it raises before the stream is left.

    Args:
        monkeypatch: by which it takes the place.
        version: torch's, which takes its allocator out of the capture from 2.12 on, and lets graphs release their
            memory from 2.14 on.
        whole: whether the capture was ended, and what the call raised is all that went wrong.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: str, whole: bool = False) -> None:
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        self.ended, self.whole = TorchVersion(version) >= TorchVersion("2.12"), whole
        self.stream = self.main = SimpleNamespace(device=torch.device("cuda", 1))
        generator = SwappedGenerator()
        generator.manual_seed(3)
        self.default_generators = [generator]
        self.allocator: list[str] = []
        for name in ("synchronize", "current_stream", "current_device", "set_stream", "graph", "default_generators"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            call = partial(self.settle, name)
            monkeypatch.setattr(torch._C, name, call, raising=False)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=self.pool))
        monkeypatch.setattr(torch.cuda, "Stream", RoundRobin())
        monkeypatch.setattr(streams, "_SPARE", defaultdict(list))
        monkeypatch.setattr(streams, "_TAKEN", defaultdict(set))
        monkeypatch.setattr(capture, "_kept", [])
        monkeypatch.setattr(torch, "Generator", SwappedGenerator)

    def settle(self, name: str, index: int, pool: tuple[int, int]) -> None:
        assert (index, pool) == (1, (0, 7))
        if name == "_cuda_endAllocateToPool" and self.ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocator.append(name)

    def pool(self) -> tuple[int, int]:
        if not self.whole:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return 0, 7

    def synchronize(self) -> None:
        pass

    def current_stream(self) -> SimpleNamespace:
        return self.stream

    def current_device(self) -> int:
        return 0

    def set_stream(self, stream: SimpleNamespace) -> None:
        self.stream = stream

    @contextmanager
    def graph(
        self, graph: object, pool: tuple[int, int], stream: SimpleNamespace, capture_error_mode: str
    ) -> Iterator[None]:
        assert (stream.device, pool) == (self.stream.device, (0, 7))
        assert capture_error_mode == "thread_local"  # what other threads do breaks nothing
        assert not gc.isenabled()
        self.stream = stream
        self.default_generators[0].refuses = True
        try:
            yield
        finally:
            self.stream = self.main if self.whole else stream
            if not self.whole:
                raise RuntimeError("operation failed due to a previous error during capture")


class RoundRobin:
    """Hands out streams of a device as torch does: so many, in turn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, device: torch.device) -> SimpleNamespace:
        self.drawn += 1
        return SimpleNamespace(device=device, cuda_stream=self.drawn % streams.TORCHS_STREAMS)


class SwappedGenerator(torch.Generator):
    """A generator whose state can be exchanged, as CUDA's can, and which may refuse to draw, as after a capture."""

    refuses = False

    def graphsafe_get_state(self) -> "SwappedGenerator":
        return self

    def graphsafe_set_state(self, state: torch.Generator) -> None:
        self.set_state(state.get_state())
        self.refuses = False


def test_streams_that_are_lent_serve_one_living_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_SPARE", defaultdict(list))
    monkeypatch.setattr(streams, "_TAKEN", defaultdict(set))
    monkeypatch.setattr(torch.cuda, "Stream", RoundRobin())
    device = torch.device("cuda", 1)
    first, second = RepeatedCall(), RepeatedCall()
    lent = streams.lent_stream(device, first), streams.lent_stream(device, second)
    assert lent[0] is not lent[1]
    del first
    assert streams.lent_stream(device, owner := RepeatedCall()) is lent[0]
    assert streams.lent_stream(torch.device("cuda", 0), owner).device.index == 0


def test_streams_serve_one_thing_as_long_as_torch_has_such_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_SPARE", defaultdict(list))
    monkeypatch.setattr(streams, "_TAKEN", defaultdict(set))
    turns = RoundRobin()
    monkeypatch.setattr(torch.cuda, "Stream", turns)
    device, owners = torch.device("cuda", 1), [RepeatedCall() for _ in range(streams.TORCHS_STREAMS + 1)]
    lent = []
    for owner in owners:
        lent.append(streams.lent_stream(device, owner).cuda_stream)
        for _ in range(7):  # which others take
            turns(device)
    assert len(set(lent)) == streams.TORCHS_STREAMS


@pytest.mark.parametrize(
    ("version", "left"),
    [
        ("2.11.0", ["_cuda_endAllocateToPool", "_cuda_releasePool"]),
        ("2.13.0+cu130", ["_cuda_releasePool"]),
        ("2.14.0", []),
    ],
)
def test_a_broken_capture_leaves_torch_as_it_was(
    version: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def waiting() -> None:
        torch.rand(2, generator=device.default_generators[0])
        raise RuntimeError("operation not permitted when stream is capturing")

    device = BrokenDevice(monkeypatch, version)
    before = device.default_generators[0].get_state()
    with pytest.raises(RuntimeError, match="not permitted"):  # what broke it, not that it could not be ended
        CudaGraph().capture(waiting, [])
    assert device.stream is device.main
    assert device.allocator == left
    assert len(capture._kept) == ("_cuda_endAllocateToPool" in left)  # which torch may go on asking
    assert gc.isenabled()
    assert not device.default_generators[0].refuses
    assert torch.equal(device.default_generators[0].get_state(), before)


def test_what_broke_a_capture_is_said_and_not_what_cleaning_up_met(monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting() -> None:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            torch.cuda.current_stream().wait_stream()

    def refuse() -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nand more")

    device = BrokenDevice(monkeypatch, "2.14.0")
    device.main.wait_stream = refuse
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: device.main)
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraph().capture(waiting, [])


def test_threads_capture_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[int] = []
    most: list[int] = []

    def slow() -> None:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.05)
        inside.pop()

    BrokenDevice(monkeypatch, "2.14.0", whole=True)
    threads = [threading.Thread(target=lambda: CudaGraph().capture(slow, [])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_a_capture_that_was_ended_keeps_its_memory_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    device = BrokenDevice(monkeypatch, "2.11.0", whole=True)
    with pytest.raises(torch.OutOfMemoryError):
        CudaGraph().capture(too_much, [])
    assert device.allocator == []  # the graph releases what it holds when it dies


def drawn_elsewhere(key: Draws, x: Tensor) -> Tensor:
    key.to("meta").fold("noise").generator() if runtime._recorders else None
    return x


def by_the_step(key: Draws, x: Tensor) -> Tensor:
    return x + int(key.path[-1])  # known to the host alone


def noisy_zeros(key: Draws, x: Tensor) -> Tensor:
    return x + key.normal(2)


def test_the_difference_of_two_trees_is_their_worst_leaf() -> None:
    same = {"a": torch.ones(2), "n": torch.tensor(3)}
    assert difference(same, same) == 0
    assert difference({"a": torch.ones(2)}, {"a": 2 * torch.ones(2)}) == pytest.approx(0.5)
    assert difference({"a": torch.ones(2), "b": torch.tensor(2.0)}, {"a": torch.ones(2), "b": torch.tensor(1.0)}) == 1
    rounding = {"weight": torch.ones(2), "bias": torch.tensor([1e-8, -1e-8])}
    assert difference(rounding, {"weight": torch.ones(2), "bias": torch.tensor([-1e-8, 1e-8])}) < 1e-4
    assert difference(torch.tensor(torch.nan), torch.tensor(1.0)) == torch.inf
    assert difference(torch.tensor(torch.nan), torch.tensor(torch.nan)) == 0
