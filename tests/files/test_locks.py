"""One process at a time in a folder, and what is done where nothing can be locked."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from mmdistill import runtime
from mmdistill.errors import ConfigError
from mmdistill.files import locks
from mmdistill.files.locks import LOCK, sole_writer
from mmdistill.networks.experts import train_experts
from mmdistill.runtime import atomic_write
from tests.toys import BlobTask

Lock = Callable[[int, bool], bool]


def test_one_process_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keeper = (
        "import sys; from pathlib import Path; from mmdistill.files.locks import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])): print('kept', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", keeper, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "kept\n"
        with pytest.raises(ConfigError, match="another process"), sole_writer(folder):
            pass
        other.kill()
    with sole_writer(folder), sole_writer(folder):  # which is free again, and whose keeper may ask again
        pass


def test_one_thread_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "run"), ThreadPoolExecutor(1) as pool:

        def ask() -> None:
            with sole_writer(tmp_path / "run"):
                pass

        with pytest.raises(ConfigError, match="another process"):
            pool.submit(ask).result()


def test_who_waited_for_a_folder_that_was_then_removed_keeps_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    waiting, entered, leave = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        with sole_writer(folder, wait="test"):
            entered.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with sole_writer(folder):  # which is removed at the end, since nothing is written
            later = pool.submit(wait)
            waiting.wait(10)
            time.sleep(0.2)
        assert entered.wait(10)
        with pytest.raises(ConfigError, match="another process"), sole_writer(folder):
            pass
        leave.set()
        later.result()


def test_who_waited_removes_what_another_one_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it comes in before who made it can remove it, as on NFS, where the lock must be closed first."""
    folder, close, remove = tmp_path / "a" / "b", os.close, locks._remove_empty
    waiting, entered, left = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(locks.logger, "warning", lambda *_: waiting.set())

    def closed(handle: int) -> None:
        close(handle)
        if threading.current_thread() is threading.main_thread():
            entered.wait(10)
            monkeypatch.setattr(locks, "_remove_empty", remove)

    def wait() -> bool:
        with sole_writer(folder, wait="test"):
            entered.set()
            assert left.wait(10)
            return folder.exists()

    with ThreadPoolExecutor(1) as pool:
        with sole_writer(folder):
            later = pool.submit(wait)
            assert waiting.wait(10)
            monkeypatch.setattr(os, "close", closed)
            monkeypatch.setattr(locks, "_remove_empty", lambda *_: None)
        monkeypatch.undo()
        left.set()
        assert later.result()
    assert not (tmp_path / "a").exists()


def test_who_comes_second_into_a_folder_of_its_own_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened = tmp_path / "a" / "b", locks._open

    def come_and_go() -> None:
        with sole_writer(folder):
            pass

    def overtaken(path: Path) -> int | None:
        monkeypatch.undo()
        handle = opened(path)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(come_and_go).result()
        return handle

    monkeypatch.setattr(locks, "_open", overtaken)
    with sole_writer(folder, wait="test"):
        pass
    assert not (tmp_path / "a").exists()


def test_a_folder_that_is_a_loop_of_links_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"loop"), sole_writer(tmp_path / "loop"):
        pass


def test_what_is_locked_is_a_file_that_goes_at_the_end(tmp_path: Path) -> None:
    with sole_writer(tmp_path) as alone:
        assert alone
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())
    with sole_writer(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lock_that_a_killed_process_left_serves_again(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with sole_writer(tmp_path) as alone:
        assert alone
    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_made_hinders_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def read_only(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and path.name == LOCK:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, mode)

    monkeypatch.setattr(locks.os, "open", read_only)
    with sole_writer(tmp_path) as alone:
        assert not alone
    (tmp_path / LOCK).write_bytes(b"")  # another user's
    with sole_writer(tmp_path) as alone:
        assert alone


def _without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, wait: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", flock)


def test_where_nothing_can_be_locked_it_is_said_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_locks(monkeypatch)
    with sole_writer(tmp_path / "run") as alone, sole_writer(tmp_path / "run") as again:
        assert not alone
        assert not again
        assert not list((tmp_path / "run").iterdir())
    assert not (tmp_path / "run").exists()


def test_a_system_without_locks_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with sole_writer(tmp_path / "run") as alone:
        assert not alone


@pytest.mark.parametrize("locked", [True, False])
def test_what_another_process_is_writing_into_the_cache_stays_where_it_may_be_at_work(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locked:
        _without_locks(monkeypatch)
    train_experts(BlobTask(), tmp_path, 1)
    with atomic_write(tmp_path / "expert-0001.safetensors") as other:
        train_experts(BlobTask(), tmp_path, 1)
        left = list(tmp_path.glob(f".*{runtime.UNFINISHED}"))
        assert len(left) == (not locked)
        if locked:  # which a process that is gone had left
            shutil.copy(tmp_path / "expert-0000.safetensors", other.name)


def test_windows_locks_the_file_by_its_own_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def locking(handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    def wait() -> bool:
        with sole_writer(tmp_path / "run", wait="test") as alone:
            return alone

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(locks, "POLL", 0.05)
    with ThreadPoolExecutor(2) as pool:
        with sole_writer(tmp_path / "run") as alone:
            assert alone
            with pytest.raises(ConfigError, match="another process"):
                pool.submit(lambda: sole_writer(tmp_path / "run").__enter__()).result()
            later = pool.submit(wait)
            time.sleep(0.2)
            assert not later.done()
        assert later.result()


def test_what_was_made_for_a_lock_goes_where_a_removed_file_stays_while_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, whose clients keep it under another name until it is closed."""
    unlink, close, left = Path.unlink, os.close, tmp_path / "a" / "b" / ".nfs"

    def renamed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        left.touch()

    def closed(handle: int) -> None:
        close(handle)
        left.exists() and unlink(left)  # type: ignore[func-returns-value]

    with sole_writer(tmp_path / "a" / "b") as alone:
        assert alone
        monkeypatch.setattr(Path, "unlink", renamed)
        monkeypatch.setattr(os, "close", closed)
    monkeypatch.undo()
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_no_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"), sole_writer(tmp_path):
        pass
