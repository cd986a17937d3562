"""Compiling: when, what it counts, and what happens where it fails or inputs keep changing."""

import gc
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo.config
import torch._inductor.config
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from mmdistill.distiller import Distiller
from mmdistill.execution.compilation import (
    CACHE_VARIABLE,
    SHAPES,
    Program,
    _prepare_compiler,
    compiled_once,
    operations,
    uncounted,
)
from mmdistill.execution.isolation import own_state
from mmdistill.methods import CORE_METHODS
from mmdistill.registry import get_domain, get_method
from mmdistill.runs.stepper import Stepper
from tests.toys import BlobTask


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pickle looks into all modules, also at what is old
def test_a_broken_compiler_leaves_functions_eager_with_one_warning_that_says_why() -> None:
    program = Program(double)
    with (
        torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)),
        pytest.warns(UserWarning, match="stays eager: .*no-such-compiler"),
    ):
        assert torch.equal(program(torch.ones(3)), torch.full((3,), 2.0))
    assert torch.equal(program(torch.ones(2)), torch.full((2,), 2.0))  # a second warning would be an error here
    assert (program.broken, program.seconds) == (True, 0.0)


def test_a_cpu_without_a_cuda_runtime_is_not_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    remarks = logging.getLogger("torch.utils.cpp_extension")

    def compiling(x: Tensor) -> Tensor:
        remarks.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
        remarks.warning("another one")
        return double(x)

    program = Program(double)
    program._program = compiling
    before = list(remarks.filters)
    assert torch.equal(program(torch.ones(3)), torch.full((3,), 2.0))
    assert caplog.messages == ["another one"]
    assert remarks.filters == before


@pytest.fixture
def no_compiler_of_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let forwards compile, to what runs eagerly, and fail every backward."""
    plain = torch.compile

    def forward(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        return make_boxed_func(module.forward)

    def backward(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        raise RuntimeError("the compiler was killed")

    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: plain(function, backend=backend, dynamic=dynamic))


@pytest.mark.usefixtures("no_compiler_of_backwards")
def test_a_compiler_that_breaks_on_the_backward_leaves_functions_eager_too() -> None:
    program = Program(double)
    with pytest.warns(UserWarning, match="this function stays eager") as said:
        result = program(torch.ones(3, requires_grad=True))
    assert (len(said), program.broken, program.seconds) == (1, True, 0.0)
    assert torch.equal(result, torch.full((3,), 2.0))


@pytest.mark.usefixtures("no_compiler_of_backwards")
@pytest.mark.parametrize("name", ["dm", "dc"])
def test_a_step_whose_backward_cannot_be_compiled_is_taken_eagerly(name: str) -> None:
    method, found = CORE_METHODS[name].with_settings(steps=2, augment=False), []
    for mode in ("off", "on"):
        distiller = Distiller(BlobTask(), method, 1)
        stepper, run = Stepper(distiller, mode), distiller.start()
        with nullcontext() if mode == "off" else pytest.warns(UserWarning, match="this function stays eager"):
            run, loss = stepper(run)
        assert (run.step, stepper.path) == (1, "eager")
        found.append(loss)
    assert torch.equal(*found)


def test_a_function_whose_memory_runs_out_while_it_compiles_is_not_taken_for_broken() -> None:
    program = Program(double)
    for words in ("GET was unable to find an engine to execute this computation", "CUDA driver error: out of memory"):

        def full(x: Tensor, words: str = words) -> Tensor:
            raise RuntimeError(words)

        program._program = full  # type: ignore[assignment]
        with pytest.raises(RuntimeError, match=words):
            program(torch.ones(2))
    assert not program.broken


def test_shapes_that_keep_changing_compile_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(function: Callable[[torch.Tensor], torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        def call(x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            return function(x)

        return call

    monkeypatch.setattr(torch, "compile", noted)
    program = Program(double)
    with pytest.warns(UserWarning, match=f"more than {SHAPES} shapes"):  # noqa: PT031
        for size in range(1, SHAPES + 4):
            assert torch.equal(program(torch.ones(size)), torch.full((size,), 2.0))
    assert asked == list(range(1, SHAPES + 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program(torch.ones(2))
        program(torch.ones(99))
    assert (asked[-1], caught) == (2, [])


@pytest.fixture
def unprepared() -> None:
    """End what programs that other tests have called outside of public calls have left."""
    with own_state():
        pass


@pytest.mark.usefixtures("unprepared")
@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_compiled_code_is_kept_in_the_users_cache_folder(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    before = chosen or default_cache_dir()
    monkeypatch.setenv(CACHE_VARIABLE, before)
    with own_state():
        _prepare_compiler()
        assert os.environ[CACHE_VARIABLE] == (chosen or str(tmp_path / "compiled"))
    assert os.environ[CACHE_VARIABLE] == before


@pytest.mark.usefixtures("unprepared")
def test_a_user_without_a_name_may_say_where_compiled_code_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.default_cache_dir", nameless)
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    for chosen in (str(tmp_path / "own"), None):
        if chosen is None:
            monkeypatch.delenv(CACHE_VARIABLE)
        else:
            monkeypatch.setenv(CACHE_VARIABLE, chosen)
        with own_state():
            _prepare_compiler()
            assert os.environ[CACHE_VARIABLE] == (chosen or str(tmp_path / "compiled"))


@pytest.mark.usefixtures("unprepared")
def test_each_thread_may_compile_many_shapes_and_has_its_own_limit_back() -> None:
    """Newer torch keeps the limit for each thread."""
    limit, seen, ready, done = torch._dynamo.config.recompile_limit, [], threading.Event(), threading.Event()

    def other() -> None:
        with own_state():
            _prepare_compiler()
            seen.append(torch._dynamo.config.recompile_limit)
            ready.set()
            done.wait(10)
        seen.append(torch._dynamo.config.recompile_limit)

    thread = threading.Thread(target=other)
    with own_state():
        thread.start()
        assert ready.wait(10)
        _prepare_compiler()
        seen.append(torch._dynamo.config.recompile_limit)
    done.set()
    thread.join()
    assert min(seen[:2]) > limit
    assert seen[2] == torch._dynamo.config.recompile_limit == limit


@pytest.mark.usefixtures("unprepared")
def test_a_host_compiles_as_before_and_programs_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler is told meanwhile is no part of what a program is found by."""
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    graphs, folders = [], []
    limit = torch._dynamo.config.recompile_limit

    def counted(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(module)
        return module.forward

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: plain(function, backend=counted, dynamic=dynamic))
    program = Program(double)
    for size in (2, 3, 2, 3):
        with own_state():
            assert torch.equal(program(torch.ones(size)), torch.full((size,), 2.0))
            folders.append(os.environ[CACHE_VARIABLE])
            assert torch._dynamo.config.recompile_limit > limit
        assert torch._dynamo.config.recompile_limit == limit
        assert CACHE_VARIABLE not in os.environ
    assert len(graphs) == 2
    assert len(set(folders)) == 1


def test_where_the_cache_takes_nothing_compiled_code_is_kept_where_torch_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv(CACHE_VARIABLE, default_cache_dir())
    with own_state():
        with pytest.warns(UserWarning, match="torch's temporary folder: .*file/cache"):
            _prepare_compiler()
        assert os.environ[CACHE_VARIABLE] == default_cache_dir()


def test_operations_count_products_and_leave_the_run_alone() -> None:
    distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=3, augment=False), 1)
    run = distiller.start()
    before = [p.detach().clone() for p in run.parameterization.parameters()]
    assert distiller.operations(run) > 0
    assert run.step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameterization.parameters(), strict=True))
    assert operations(lambda: torch.ones(3, 4) @ torch.ones(4, 5))[1] == 2 * 3 * 4 * 5


def test_operations_are_those_of_the_first_step_wherever_a_run_is() -> None:
    settings = {"steps": 3, "inner_steps": 6, "inner_window": 2, "real_batch": 8}
    distiller = Distiller(BlobTask(), get_method(get_domain("image"), "rat-bptt").with_settings(**settings), 1)
    run = distiller.start()
    counts = set()
    for run.step in range(6):
        counts.add(distiller.operations(run))
    assert len(counts) == 1


def test_a_program_goes_with_its_function() -> None:
    def function(tensor: Tensor) -> Tensor:
        return tensor + 1

    assert compiled_once(function) is compiled_once(function)
    some, others = ({"x": 1}.get, {"x": 2}.get)
    assert compiled_once(some) is not compiled_once(others)
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None


def test_operations_of_one_thread_count_while_those_of_another_do_not() -> None:
    product = partial(torch.mm, torch.ones(4, 4), torch.ones(4, 4))
    with ThreadPoolExecutor(1) as pool, uncounted():
        assert operations(product)[1] == 0
        assert pool.submit(operations, product).result()[1] == 2 * 4**3
