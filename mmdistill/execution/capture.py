"""Functions of tensors whose CUDA launches are recorded once and replayed, so that the host no longer bounds them.

A :class:`Replay` calls its function eagerly a few times, then captures it in a CUDA graph. Whatever changes from call
to call comes in as tensors, which are copied to where the graph reads them, and as one
:class:`~mmdistill.runtime.Draws` key: every generator that the function derives from the key is registered with the
graph and set, before a replay, to the seed that the new key gives. So a replay computes what an eager call would.
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
from mmdistill.errors import MmdistillError, MmdistillWarning
from mmdistill.execution.streams import lent_stream
from mmdistill.runtime import Draws

Function = Callable[[Draws, Any], Any]
"""``(key, tree of tensors) -> tree of tensors``, pure, or idempotent in the tensors that it updates in place.

A step whose replay is checked computes it more than once.
"""

BROKEN = "due to a previous error during capture"
"""What CUDA says of all that is tried in a capture that something else has broken."""
_alone = threading.Lock()
"""Held by the thread that captures: torch has one capture at a time in a process."""
_kept: list[torch.cuda.CUDAGraph] = []
"""Graphs that broke, which torch's allocator of host memory may go on asking: see :func:`abandon`."""

WARM_UP_CALLS = 3
"""Eager calls before the recording one: they compile, choose algorithms and fill caches."""
LATER_CHECK = 100
"""The replay that is compared with an eager call once more: memory that the graph reads although nobody keeps it holds
what it held in the first replays, and something else by then."""
SHAPES = 4
"""Shapes of inputs for which a function is captured; others stay eager."""
SMALLEST_SHARE = 1e-3
"""Of the norm of the largest tensor of a result: differences of smaller ones are relative to it."""
TOLERANCE = 0.05
"""Relative difference of a first replay from an eager call: far above what the order of additions makes in bfloat16."""
EAGER_DIFFERENCES = 10
"""A replay may also differ from an eager call by so many times what two eager calls differ by. A device adds up in no
fixed order, and a student that nearly diverges amplifies that."""


class Generators:
    """The generators that one call asks for, in order, so that a replay can set each to its new seed.

    Args:
        base: the key of the recorded call, from which all others are derived.
    """

    def __init__(self, base: Draws) -> None:
        self.base = base
        self.names: list[tuple[str | int, ...]] = []
        self.generators: list[torch.Generator] = []
        self._position: int | None = None
        self._thread = threading.get_ident()

    def record(self, key: Draws) -> torch.Generator | None:
        """Return a generator for a key: a new one in the recording call, the same one while capturing.

        None where another thread draws from a key of its own. Threads of a backward pass draw from the call's.

        Raises:
            RuntimeError: the key is of the host or of another call, or not the one that was recorded here.
        """
        if threading.get_ident() != self._thread and not self._derives(key):
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
        start = len(self.base.path)
        if not self._derives(key):
            raise RuntimeError(f"the call drew {key.path}, which does not derive from its own key {self.base.path}")
        if key.device.type != self.base.device.type:
            raise RuntimeError(
                f"the call drew {key.path[start:]} on the {key.device.type}, which a replay cannot repeat"
            )
        return key.path[start:]

    def _derives(self, key: Draws) -> bool:
        return key.path[: len(self.base.path)] == self.base.path and key.seed == self.base.seed

    def rewind(self, base: Draws) -> None:
        """Hand out the recorded generators again, from the first, to a call of this thread with another key."""
        self.base = base
        self._position = 0
        self._thread = threading.get_ident()

    def seed(self, base: Draws) -> None:
        """Set every generator to what it gives under another key."""
        for name, generator in zip(self.names, self.generators, strict=True):
            generator.manual_seed(base.fold(*name).integer())

    def require_all(self) -> None:
        """Check that the capture drew as much as the recording.

        Raises:
            RuntimeError: it drew less.
        """
        if self._position != len(self.names):
            raise RuntimeError(f"the call drew {self._position} times, its recording {len(self.names)} times")


class Graph(Protocol):
    """What records launches and repeats them."""

    def capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
        """Note the launches of a call, which need not run, and return where its results will be."""
        ...

    def replay(self) -> None:
        """Repeat the launches."""
        ...


class CudaGraph:
    """A CUDA graph.

    Each is captured on a stream of its own: torch frees the workspaces that matrix products took on a graph's stream
    when the graph dies, also those that another graph of this stream still reads (pytorch issue 193402).
    """

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
        """Note the launches of a call and return where its results will be; other threads capture later.

        What other threads do on the device meanwhile neither breaks the capture nor fails. Where capturing fails,
        torch's current stream and default generator are put back, and what broke it is raised. Ending a broken capture
        raises too, before torch has left the capturing stream, and in some versions leaves the generator refusing every
        later draw, and the allocator returning nothing to the device.
        """
        with _alone:
            return self._capture(call, generators)

    def _capture(self, call: Callable[[], Any], generators: list[torch.Generator]) -> Any:
        for generator in generators:
            self.graph.register_generator_state(generator)
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()
        stream, default = torch.cuda.current_stream(), torch.cuda.default_generators[torch.cuda.current_device()]
        drawn, reason = default.get_state(), None
        try:
            own = lent_stream(stream.device, self)
            begun = torch.cuda.graph(self.graph, pool=pool, stream=own, capture_error_mode="thread_local")
            with uncollected(), begun:
                try:
                    return call()
                except BaseException as error:
                    reason = error
                    raise
        except BaseException as error:
            torch.cuda.set_stream(stream)
            abandon(self.graph, stream.device.index, pool)
            fresh = torch.Generator(device=default.device)
            fresh.set_state(drawn)
            default.graphsafe_set_state(fresh.graphsafe_get_state())
            raise cause(reason or error) from None

    def replay(self) -> None:
        """Repeat the launches."""
        self.graph.replay()


def cause(error: BaseException) -> BaseException:
    """Return what broke a capture, where the error is that cleaning up after it failed in the broken capture."""
    while BROKEN in str(error) and error.__context__ is not None:
        error = error.__context__
    return error


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect garbage, and then none: a graph that is found to be garbage during a capture would break it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def abandon(graph: torch.cuda.CUDAGraph, index: int, pool: tuple[int, int]) -> None:
    """Give back the memory of a broken capture, which torch does by itself from 2.14 on.

    Up to 2.11 it leaves the allocator in the capture (pytorch issue 180395); up to 2.13 the graph never releases the
    memory of a capture that it did not end (pytorch issue 190348). Up to 2.11 the allocator of host memory goes on
    asking the graph what belongs to it, so the graph is kept. Where torch has other names for what it keeps to itself,
    nothing is done.
    """
    with suppress(RuntimeError):
        graph.pool()  # which a graph has whose capture was ended, as where memory ran out in it
        return
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(index, pool)
    if TorchVersion(torch.__version__) < TorchVersion("2.12"):
        _kept.append(graph)
    if TorchVersion(torch.__version__) < TorchVersion("2.14"):
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_releasePool(index, pool)


class Replay:
    """A function of a key and tensors: a few eager calls, then replays of one captured call, for each shape of inputs.

    Results of a replay lie where the next one puts its own: copy what is to stay. A function that cannot be captured,
    or whose first replay gives something else than an eager call, stays as it is, with one warning that says why. A
    later replay is compared too; if that one differs, earlier ones may have, and an error ends the run.

    Args:
        function: see :data:`Function`.
        graph: makes what captures and replays.

    Attributes:
        failed: whether capturing was tried in vain.
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
        """Return what the function returns."""
        shapes = tuple(leaf.shape for leaf in _tensors(inputs))
        if self.failed or (shapes not in self._captures and len(self._captures) >= SHAPES):
            return self.function(key, inputs)
        capture = self._captures.setdefault(shapes, _Capture(self.function, self._make_graph))
        try:
            with _current(key.device):
                return capture(key, inputs)
        except MmdistillError:
            raise
        except RuntimeError as error:
            if capture.warming:
                raise
            reason = str(error).split("\n", 1)[0]
        # No longer while the error is handled, whose traceback holds the memory of the failed graph.
        self.failed = True
        self._captures.clear()
        del capture
        warnings.warn(f"a step could not be captured and stays as it is: {reason}", MmdistillWarning, 2)
        return self.function(key, inputs)


class _Capture:
    """What :class:`Replay` does for one shape of inputs; raises where that cannot be done."""

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
        """Whether nothing but eager calls was made, so that what fails is the function itself."""
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
            return self._checked(self._generators, key, inputs)
        return self._replayed(self._generators, key, inputs)

    def _capture(self, generators: Generators, key: Draws, inputs: Any) -> Any:
        """Capture one call on copies of its inputs, which live as long as the graph."""
        own = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), inputs)
        generators.rewind(key)
        graph = self._make_graph()
        with runtime.recording(generators.record):
            self._results = graph.capture(lambda: self.function(key, own), generators.generators)
        generators.require_all()
        self._graph, self._inputs = graph, _tensors(own)
        self._groups = alike(self._inputs)
        return self.function(key, inputs)

    def _checked(self, generators: Generators, key: Draws, inputs: Any) -> Any:
        """Compare a replay, which is of another call than the captured one, with an eager call."""
        found, expected = self._replayed(generators, key, inputs), self.function(key, inputs)
        error = difference(found, expected)
        if not error <= TOLERANCE and not error <= EAGER_DIFFERENCES * difference(self.function(key, inputs), expected):
            if not self.trusted:
                raise RuntimeError(f"its first replay differs from an eager call by {error:.1e}")
            raise MmdistillError(
                f"replay {self._replays} of a captured step differs from an eager call by {error:.1e}, as earlier ones "
                "may have; run again with --compile off"
            )
        self.trusted = True
        with _alone:
            torch.cuda.empty_cache()  # of what eager calls took beside the graph, which has memory of its own
        return expected

    def _replayed(self, generators: Generators, key: Draws, inputs: Any) -> Any:
        """Return the results of a replay with other inputs and another key."""
        copy_into(self._inputs, _tensors(inputs), self._groups)
        generators.seed(key)
        assert self._graph is not None
        self._graph.replay()
        return self._results


def alike(tensors: list[Tensor]) -> list[list[int]]:
    """Return the positions of tensors, together where the device and the number format are the same.

    CUDA's fused operations on lists take no others.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(position)
    return list(groups.values())


@torch.no_grad()
def copy_into(places: list[Tensor], values: list[Tensor], groups: list[list[int]]) -> None:
    """Copy values to their places, in one operation for each group of :func:`alike`."""
    for group in groups:
        torch._foreach_copy_([places[at] for at in group], [values[at] for at in group], non_blocking=True)


def copied_together(tree: Any) -> Any:
    """Return copies of a tree of tensors, such as results that are to stay."""
    values, structure = tree_flatten(tree)
    copies = [torch.empty_like(value) for value in values]
    copy_into(copies, values, alike(values))
    return tree_unflatten(copies, structure)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which graphs are captured and replayed on a device: both take the current one's streams."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def difference(found: Any, expected: Any) -> float:
    """Return the relative difference of two trees of tensors of which all or none is finite, the largest of any.

    A tensor counts as no smaller than :data:`SMALLEST_SHARE` of the largest: what ought to vanish, such as the gradient
    of a bias before an instance norm, is rounding alone and differs from call to call.
    """
    pairs = [(a, b) for a, b in zip(_tensors(found), _tensors(expected), strict=True) if a.is_floating_point()]
    finite = [(bool(a.isfinite().all()), bool(b.isfinite().all())) for a, b in pairs]
    if any(one != other for one, other in finite):
        return float("inf")
    pairs = [pair for pair, (is_finite, _) in zip(pairs, finite, strict=True) if is_finite]
    norms = [float(b.norm()) for _, b in pairs]
    least = max(SMALLEST_SHARE * max(norms, default=0.0), torch.finfo(torch.float32).tiny)
    return max(
        (float((a - b).norm()) / max(norm, least) for (a, b), norm in zip(pairs, norms, strict=True)), default=0.0
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
