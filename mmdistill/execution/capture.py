"""Functions of tensors whose CUDA launches are captured once and replayed, so that the host no longer limits them.

A :class:`Replay` calls its function eagerly a few times, then captures it in a CUDA graph. All that changes from call
to call is passed as tensors, which are copied to where the graph reads them, and as one
:class:`~mmdistill.runtime.Draws` key. Every generator that the function derives from the key is registered with the
graph, and is seeded by the new key before a replay. So a replay computes what an eager call would.
"""

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from mmdistill import runtime
from mmdistill.errors import MmdistillError, MmdistillWarning, first_line
from mmdistill.execution.streams import lent_stream
from mmdistill.runtime import Draws

Function = Callable[[Draws, Any], Any]
"""``(key, tree of tensors) -> tree of tensors``, pure, or idempotent in the tensors that it updates in place.

Idempotent, since a step that checks a replay computes the function more than once.
"""

BROKEN = "due to a previous error during capture"
"""CUDA's message for every call in a capture that an earlier error has broken."""
_alone = threading.Lock()
"""Held by the thread that captures, since torch allows one capture at a time in a process."""
_kept: list[torch.cuda.CUDAGraph] = []
"""Broken graphs that torch's allocator of host memory may still refer to: see :func:`abandon`."""

WARM_UP_CALLS = 3
"""Eager calls before the recording one: they compile, choose algorithms and fill caches."""
LATER_CHECK = 100
"""The number of the replay that is compared with an eager call again. Memory that a graph reads although it was freed
may still hold its old values in the first replays, but not by then."""
SHAPES = 4
"""Shapes of inputs for which a function is captured; others stay eager."""
SMALLEST_SHARE = 1e-3
"""Fraction of the largest tensor's norm below which a tensor's difference is measured relative to that fraction."""
TOLERANCE = 0.05
"""Relative difference allowed between a replay and an eager call, far above the rounding of sums in bfloat16."""
EAGER_DIFFERENCES = 10
"""A replay may also differ from an eager call by this many times the difference of two eager calls. A device adds up in
no fixed order, and a student that nearly diverges amplifies that."""


class Generators:
    """The generators that one call requests, in order, so that a replay can seed each anew.

    Args:
        base: the key of the recorded call, from which all others derive.
    """

    def __init__(self, base: Draws) -> None:
        self.base = base
        self.names: list[tuple[str | int, ...]] = []
        self.generators: list[torch.Generator] = []
        self._position: int | None = None
        self._thread = threading.get_ident()

    def record(self, key: Draws) -> torch.Generator | None:
        """Return a generator for a key: a new one in the recording call, the recorded one while capturing.

        Return None if another thread draws from a key of its own; threads of a backward pass draw from the call's key.

        Raises:
            RuntimeError: the key is for the host or of another call, or differs from the one recorded at this place.
        """
        if threading.get_ident() != self._thread and not self._is_derived(key):
            return None
        name = self._name(key)
        if self._position is None:
            generator = torch.Generator(device=key.device)
            generator.manual_seed(key.integer())
            self.names.append(name)
            self.generators.append(generator)
            return generator
        position, self._position = self._position, self._position + 1
        if position >= len(self.names) or self.names[position] != name:
            raise RuntimeError(f"the call drew {name} where its recording had drawn something else")
        return self.generators[position]

    def _name(self, key: Draws) -> tuple[str | int, ...]:
        """Return a key's path below the call's key."""
        start = len(self.base.path)
        if not self._is_derived(key):
            raise RuntimeError(f"the call drew {key.path}, which does not derive from its own key {self.base.path}")
        if key.device.type != self.base.device.type:
            raise RuntimeError(
                f"the call drew {key.path[start:]} on the {key.device.type}, which a replay cannot repeat"
            )
        return key.path[start:]

    def _is_derived(self, key: Draws) -> bool:
        return key.path[: len(self.base.path)] == self.base.path and key.seed == self.base.seed

    def rewind(self, base: Draws) -> None:
        """Hand out the recorded generators again from the first, to a call of this thread with another key."""
        self.base = base
        self._position = 0
        self._thread = threading.get_ident()

    def seed(self, base: Draws) -> None:
        """Seed every generator as under another key."""
        for name, generator in zip(self.names, self.generators, strict=True):
            generator.manual_seed(base.fold(*name).integer())

    def require_all(self) -> None:
        """Check that the capture drew as often as the recording.

        Raises:
            RuntimeError: it drew less often.
        """
        if self._position != len(self.names):
            raise RuntimeError(f"the call drew {self._position} times, its recording {len(self.names)} times")


class Graph(Protocol):
    """Captures launches and repeats them."""

    def capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
        """Capture the launches of a call, which need not run; return the tensors where its results will be."""
        ...

    def replay(self) -> None:
        """Repeat the launches."""
        ...


class CudaGraph:
    """A CUDA graph.

    Each is captured on its own stream: when a graph dies, torch frees the workspaces of matrix products on its stream,
    also those that another graph of this stream still reads (pytorch issue 193402).
    """

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
        """Capture the launches of a call and return the tensors of its results; other threads capture afterwards.

        Work of other threads on the device neither breaks the capture nor fails. If capturing fails, torch's current
        stream and default generator are restored, and the original error is raised. torch does not restore them:
        ending a broken capture raises before torch leaves the capturing stream, and in some versions the generator then
        refuses every later draw and the allocator returns no memory to the device.
        """
        with _alone:
            return self._capture(call, generators)

    def _capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
        for generator in generators:
            self.graph.register_generator_state(generator)
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()
        stream, default = torch.cuda.current_stream(), torch.cuda.default_generators[torch.cuda.current_device()]
        generator_state, call_error = default.get_state(), None
        try:
            own_stream = lent_stream(stream.device, self)
            capturing = torch.cuda.graph(self.graph, pool=pool, stream=own_stream, capture_error_mode="thread_local")
            with uncollected(), capturing:
                try:
                    return call()
                except BaseException as error:
                    call_error = error
                    raise
        except BaseException as error:
            torch.cuda.set_stream(stream)
            abandon(self.graph, stream.device.index, pool)
            fresh = torch.Generator(device=default.device)
            fresh.set_state(generator_state)
            default.graphsafe_set_state(fresh.graphsafe_get_state())
            raise cause(call_error or error) from None

    def replay(self) -> None:
        """Repeat the launches."""
        self.graph.replay()


def cause(error: BaseException) -> BaseException:
    """Return the error that broke a capture, if the given one only says that the capture was broken before."""
    while BROKEN in str(error) and error.__context__ is not None:
        error = error.__context__
    return error


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect garbage now and not within this context: freeing another graph during a capture would break it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def abandon(graph: torch.cuda.CUDAGraph, index: int, pool: tuple[int, int]) -> None:
    """Release the memory of a broken capture, which torch does itself from 2.14 on.

    Up to 2.11 torch leaves the allocator in the capture (pytorch issue 180395); up to 2.13 the graph never releases the
    memory of a capture that it did not end (pytorch issue 190348). Up to 2.11 the allocator of host memory still refers
    to the graph, so the graph is kept alive. If torch's private functions have other names, nothing is done.
    """
    with suppress(RuntimeError):
        graph.pool()  # succeeds if the capture was ended properly, as when memory ran out in it
        return
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(index, pool)
    if TorchVersion(torch.__version__) < TorchVersion("2.12"):
        _kept.append(graph)
    if TorchVersion(torch.__version__) < TorchVersion("2.14"):
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_releasePool(index, pool)


class Replay:
    """A function of a key and tensors: for each shape of inputs a few eager calls, then replays of one captured call.

    The next replay overwrites a replay's results, so copy those that should stay. A function that cannot be captured,
    or whose first replay differs from an eager call, stays eager, with one warning that says why. A later replay is
    compared too; if that one differs, earlier ones may have, and an error ends the run.

    Args:
        function: see :data:`Function`.
        graph: makes the graph that captures and replays.

    Attributes:
        failed: whether capturing has failed.
    """

    def __init__(self, function: Function, graph: Callable[[], Graph] = CudaGraph) -> None:
        self.function = function
        self.failed = False
        self._make_graph = graph
        self._captures: dict[tuple[torch.Size, ...], _Capture] = {}

    @property
    def captured(self) -> bool:
        """Whether calls are replayed."""
        return not self.failed and any(capture.trusted for capture in self._captures.values())

    def __call__(self, key: Draws, inputs: Any) -> Any:
        """Return the function's results."""
        shapes = tuple(leaf.shape for leaf in _tensors(inputs))
        if self.failed or (shapes not in self._captures and len(self._captures) >= SHAPES):
            return self.function(key, inputs)
        capture = self._captures.setdefault(shapes, _Capture(self.function, self._make_graph))
        try:
            with _on_device(key.device):
                return capture(key, inputs)
        except MmdistillError:
            raise
        except RuntimeError as error:
            if capture.warming:
                raise
            reason = first_line(error)
        # After the except block, since the error's traceback holds the memory of the failed graph.
        self.failed = True
        self._captures.clear()
        del capture
        warnings.warn(f"a step could not be captured and stays as it is: {reason}", MmdistillWarning, 2)
        return self.function(key, inputs)


class _Capture:
    """The eager calls, the capture and the replays of a :class:`Replay` for one shape of inputs; errors are raised."""

    def __init__(self, function: Function, graph: Callable[[], Graph]) -> None:
        self.function = function
        self.trusted = False
        self._make_graph = graph
        self._graph: Graph | None = None
        self._generators: Generators | None = None
        self._inputs: list[Tensor] = []
        self._groups: list[list[int]] = []
        self._results: Any = None
        self._calls = 0
        self._replays = 0

    @property
    def warming(self) -> bool:
        """Whether only plain eager calls were made so far, so that an error is the function's own."""
        return self._generators is None

    def __call__(self, key: Draws, inputs: Any) -> Any:
        self._calls += 1
        if self._calls <= WARM_UP_CALLS:
            return self.function(key, inputs)
        if self._generators is None:
            self._generators = Generators(key)
            with runtime.recording(self._generators.record):
                return self.function(key, inputs)
        if self._graph is None:
            return self._capture(self._generators, key, inputs)
        self._replays += 1
        if self._replays in (1, LATER_CHECK):
            return self._replay_and_check(self._generators, key, inputs)
        return self._replay(self._generators, key, inputs)

    def _capture(self, generators: Generators, key: Draws, inputs: Any) -> Any:
        """Capture one call on copies of its inputs, which live as long as the graph; return eager results."""
        copies = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), inputs)
        generators.rewind(key)
        graph = self._make_graph()
        with runtime.recording(generators.record):
            self._results = graph.capture(lambda: self.function(key, copies), generators.generators)
        generators.require_all()
        self._graph, self._inputs = graph, _tensors(copies)
        self._groups = alike(self._inputs)
        return self.function(key, inputs)

    def _replay_and_check(self, generators: Generators, key: Draws, inputs: Any) -> Any:
        """Compare a replay, on other inputs than the captured call's, with an eager call; return eager results."""
        replayed, expected = self._replay(generators, key, inputs), self.function(key, inputs)
        error = difference(replayed, expected)
        if not error <= TOLERANCE and not error <= EAGER_DIFFERENCES * difference(self.function(key, inputs), expected):
            if not self.trusted:
                raise RuntimeError(f"its first replay differs from an eager call by {error:.1e}")
            raise MmdistillError(
                f"replay {self._replays} of a captured step differs from an eager call by {error:.1e}, as earlier ones "
                "may have; run again with --compile off"
            )
        self.trusted = True
        with _alone:
            torch.cuda.empty_cache()  # releases the memory of eager calls; the graph has its own
        return expected

    def _replay(self, generators: Generators, key: Draws, inputs: Any) -> Any:
        """Replay the captured call with other inputs and another key, and return its results."""
        copy_into(self._inputs, _tensors(inputs), self._groups)
        generators.seed(key)
        assert self._graph is not None
        self._graph.replay()
        return self._results


def alike(tensors: list[Tensor]) -> list[list[int]]:
    """Group the positions of tensors by device and number format, as torch's fused operations on lists require."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(position)
    return list(groups.values())


@torch.no_grad()
def copy_into(targets: list[Tensor], values: list[Tensor], groups: list[list[int]]) -> None:
    """Copy values into targets, in one operation for each group of :func:`alike`."""
    for group in groups:
        torch._foreach_copy_([targets[i] for i in group], [values[i] for i in group], non_blocking=True)


def copied_together(tree: Any) -> Any:
    """Return a copy of a tree of tensors, such as results that should outlive the next replay."""
    values, structure = tree_flatten(tree)
    copies = [torch.empty_like(value) for value in values]
    copy_into(copies, values, alike(values))
    return tree_unflatten(copies, structure)


def _on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context with ``device`` as the current one, on whose streams graphs are captured and replayed."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def difference(found: Any, expected: Any) -> float:
    """Return the largest relative difference between the tensors of two trees; infinite if only one of two is finite.

    Tensors that are finite in neither tree are left out. A tensor's norm counts as at least :data:`SMALLEST_SHARE` of
    the largest: a tensor that ought to vanish, such as the gradient of a bias before an instance norm, is only rounding
    and differs from call to call.
    """
    pairs = [(a, b) for a, b in zip(_tensors(found), _tensors(expected), strict=True) if a.is_floating_point()]
    finite = [(bool(a.isfinite().all()), bool(b.isfinite().all())) for a, b in pairs]
    if any(a_finite != b_finite for a_finite, b_finite in finite):
        return float("inf")
    pairs = [pair for pair, (is_finite, _) in zip(pairs, finite, strict=True) if is_finite]
    norms = [float(b.norm()) for _, b in pairs]
    smallest_norm = max(SMALLEST_SHARE * max(norms, default=0.0), torch.finfo(torch.float32).tiny)
    return max(
        (float((a - b).norm()) / max(norm, smallest_norm) for (a, b), norm in zip(pairs, norms, strict=True)),
        default=0.0,
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
