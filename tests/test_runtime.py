import errno
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdistill import runtime
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.methods import CORE_METHODS
from mmdistill.runs.checkpoints import Checkpoints
from mmdistill.runtime import Draws, Elsewhere, atomic_write, choose_device, host_draws_from
from tests.toys import BlobTask


def test_a_key_is_a_value() -> None:
    key = Draws(1).fold("step", 3)
    assert torch.equal(key.normal(5), Draws(1, ("step", 3)).normal(5))
    assert not torch.equal(key.normal(5), key.fold("other").normal(5))
    assert not torch.equal(key.normal(5), Draws(2, ("step", 3)).normal(5))
    assert Draws(0).fold("a", 1).integer() != Draws(0).fold("a1").integer()


def test_keys_of_numpys_integers_are_those_of_pythons() -> None:
    assert Draws(np.int64(3)).fold("step", np.int32(2)).integer() == Draws(3).fold("step", 2).integer()  # type: ignore[arg-type]
    assert Draws(0, ("step", 3)).integer() == 1408448647129807148


def test_keys_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    key = Draws(0)
    for draw in (key.normal(3), key.uniform(3), key.integers(5, 3), key.permutation(4), key.gumbel(3)):
        assert draw.isfinite().all()
    assert torch.equal(before, torch.random.get_rng_state())


def test_distributions_have_their_moments() -> None:
    key = Draws(0)
    assert abs(float(key.fold("n").normal(20_000).std()) - 1) < 0.03
    uniform = key.fold("u").uniform(20_000, low=-1, high=3)
    assert abs(float(uniform.mean()) - 1) < 0.05
    assert float(uniform.min()) >= -1
    assert abs(float(key.fold("g").gumbel(20_000).mean()) - 0.5772) < 0.04
    assert sorted(key.fold("p").permutation(9).tolist()) == list(range(9))


def test_an_index_is_drawn_on_the_cpu_whatever_the_device() -> None:
    found = [Draws(3, ("i", step), torch.device("cuda")).index(5) for step in range(40)]
    assert found == [int(Draws(3, ("i", step)).integers(5, 1)) for step in range(40)]
    assert set(found) == set(range(5))


def test_devices_are_checked() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="unknown device"):
        choose_device("gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"


def test_a_cuda_device_is_named_as_its_tensors_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:0")] == ["cuda:1", "cuda:1", "cuda:0"]


def test_an_atomic_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with atomic_write(target) as handle:
        handle.write(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as handle:  # noqa: PT012
        handle.write(b"half of the new cont")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_files_have_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with atomic_write(tmp_path / "file") as handle:
            handle.write(b"mine")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runtime.os, "fsync", full)
    with pytest.raises(OSError, match="No space"), atomic_write(target) as handle:
        handle.write(b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _held(monkeypatch: pytest.MonkeyPatch, action: str, times: int, *, windows: bool) -> None:
    """Let a virus scanner hold each file whose removal or replacement is tried, as often as that."""
    tried, plain = [], getattr(Path, action)

    def refused(path: Path, *how: object, **more: object) -> object:
        tried.append(path)
        if len(tried) <= times:
            raise PermissionError(errno.EACCES, "it is being used by another process", str(path))
        return plain(path, *how, **more)

    monkeypatch.setattr(Path, action, refused)
    monkeypatch.setattr(runtime, "HELD", 0.2)
    if windows:
        monkeypatch.setattr(sys, "platform", "win32")


@pytest.mark.parametrize(("times", "windows", "replaced"), [(2, True, True), (99, True, False), (1, False, False)])
def test_a_file_that_another_program_holds_for_a_moment_is_replaced_on_windows(
    times: int, windows: bool, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    _held(monkeypatch, "replace", times, windows=windows)
    with nullcontext() if replaced else pytest.raises(PermissionError), atomic_write(target) as handle:
        handle.write(b"new")
    assert target.read_bytes() == (b"new" if replaced else b"old")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_another_program_holds_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=9), 1).start()
    kept = Checkpoints(tmp_path, {})
    for run.step in range(4):
        kept.save(run, 0.0)
        if run.step == 1:
            _held(monkeypatch, "unlink", 1, windows=False)
        assert len(kept.paths()) == (3 if run.step == 2 else min(run.step + 1, 2))


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "c"))
    monkeypatch.delenv("MMDISTILL_DATA", raising=False)
    assert runtime.data_root() == tmp_path / "c" / "data"
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path / "d"))
    assert runtime.data_root() == tmp_path / "d"


def test_the_cache_is_where_the_environment_says_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMDISTILL_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for ignored in ("", "relative/place", None):
        if ignored is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert runtime.cache_folder() == tmp_path / "home" / ".cache" / "mmdistill"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="set MMDISTILL_CACHE"):
        runtime.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert runtime.cache_folder() == tmp_path / "xdg" / "mmdistill"


def test_what_killed_processes_left_goes_where_nobody_can_be_writing(tmp_path: Path) -> None:
    fresh, stale, whole = (tmp_path / f".{name}{runtime.UNFINISHED}" for name in ("fresh", "stale", "whole"))
    whole = whole.with_name("whole")
    for path in (fresh, stale, whole):
        path.write_bytes(b"")
    for path in (stale, whole):
        os.utime(path, (time.time() - 2 * runtime.STALE,) * 2)
    runtime.remove_stale_parts(tmp_path)
    assert set(tmp_path.iterdir()) == {fresh, whole}
    runtime.remove_stale_parts(tmp_path / "missing")
    runtime.remove_parts(tmp_path)
    assert set(tmp_path.iterdir()) == {whole}


def test_systems_without_unix_modules_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runtime.peak_memory_bytes(torch.device("cpu")) == 0


@pytest.mark.parametrize(
    ("pages", "expected"),
    [(1 << 20, 512 << 20), (1 << 24, 4 << 30), (None, 1 << 30)],
    ids=["4 GiB", "64 GiB", "unknown"],
)
def test_the_cpu_spends_an_eighth_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, pages: int | None, expected: int
) -> None:
    def sysconf(name: str) -> int:
        if pages is None:
            raise ValueError(name)
        return {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}[name]

    monkeypatch.setattr("os.sysconf", sysconf)
    assert runtime.spare_memory_bytes.__wrapped__() == expected


def test_a_container_spares_an_eighth_of_what_it_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1 << 17)  # pages of so many bytes, and so many pages: 16 GiB
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(runtime, "CGROUP_LIMIT", limit)
    for content, expected in ((None, 1 << 31), ("max\n", 1 << 31), (f"{1 << 29}\n", 1 << 26)):
        if content is not None:
            limit.write_text(content)
        assert runtime.spare_memory_bytes.__wrapped__() == expected


def test_a_constant_is_copied_once() -> None:
    there, meta = Elsewhere(), torch.device("meta")
    one, other = torch.arange(3), torch.arange(3)
    first = there(one, meta)
    assert first.device == meta
    assert there(one, meta) is first
    assert there(other, meta) is not first
    again = there(other, meta)
    other += 1
    assert there(other, meta) is not again
    assert there(other, torch.device("cpu")) is other
    with torch.inference_mode():
        assert there(torch.arange(3), meta).device == meta


def test_threads_that_construct_by_the_global_generator_take_turns() -> None:
    def constructed(seed: int) -> torch.Tensor:
        with host_draws_from(seed):
            first = torch.rand(2)
            time.sleep(0.02)  # in which another thread would draw
            return torch.cat([first, torch.rand(2)])

    alone = [constructed(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(constructed, range(4)))
    assert torch.equal(torch.stack(together), torch.stack(alone))
