"""Locks that let one process at a time write into a folder."""

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmdistill.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK = ".mmdistill-lock"
"""The lock file in a folder. A file is locked, since NFS locks files across hosts, but folders on one host only."""
MOST_TRIES = 20
"""Attempts to create a folder that others remove at the same time."""
REMOVED = (errno.ENOENT, errno.ESTALE)
"""Error codes of a file that another process, or another host, has removed."""
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error codes of a file that may not be written to."""
POLL = 0.5
"""Seconds between attempts to lock where the system cannot wait for a lock, as on Windows."""


class _HeldFolders(threading.local):
    """The folders that a thread has locked, which it may enter again."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()


_held = _HeldFolders()


@contextmanager
def sole_writer(folder: Path, wait: str = "") -> Iterator[bool]:
    """Within this context, no other process or thread that calls this can enter the folder.

    The folder is created if missing, and removed at the end if it is empty. The system releases the lock when the
    process ends, in whatever way.

    Args:
        folder: the folder to write into.
        wait: wait for another process or thread that holds the folder, and log that it is there to do this; empty:
            refuse instead.
    Yields:
        True if the folder is locked; False where nothing can be locked (some network drives, folders that cannot be
        written to), so that others may write too.
    Raises:
        ConfigError: another process or thread holds the folder, and ``wait`` is empty.
    """
    place = Path(os.path.realpath(folder))
    if place in _held.folders:
        yield True
        return
    handle, created = _acquire(place, wait)
    if handle is None:
        try:
            yield False
        finally:
            _remove_empty(place, created)
        return
    _held.folders.add(place)
    try:
        yield True
    finally:
        _held.folders.discard(place)
        try:  # before the lock is released, so that a waiting process sees that the file is gone
            _remove_lock(place)
            _remove_empty(place, created)
        finally:
            os.close(handle)
        if sys.platform == "win32":  # cannot remove a file that this or another process has open
            _remove_lock(place)
        # Again, since NFS keeps a removed file in its folder while it is open. If a waiting process has taken over, the
        # folder is not empty, and the count in the lock file tells that process to remove it.
        _remove_empty(place, created)


def _remove_lock(place: Path) -> None:
    with suppress(OSError):
        (place / LOCK).unlink(missing_ok=True)


def _remove_empty(place: Path, count: int) -> None:
    """Remove a folder and its nearest parents, ``count`` folders in all, up to the first that is not empty."""
    with suppress(OSError):  # a folder that is not empty
        for folder in (place, *place.parents)[:count]:
            folder.rmdir()


def _acquire(place: Path, wait: str) -> tuple[int | None, int]:
    """Lock a folder, creating it where it is missing.

    A former holder may have removed the lock file and the empty folder while this process waited; then both are created
    again.

    Returns:
        A descriptor of the lock file, or None where the folder cannot be locked; and how many folders, this one and its
        nearest parents, this process or those that it waited for created, and so should remove if empty.
    """
    tries = created = 0
    while True:
        tries += 1
        created = max(created, sum(not folder.exists() for folder in (place, *place.parents)))
        is_new = not (place / LOCK).exists()
        try:
            place.mkdir(parents=True, exist_ok=True)
            handle = _open(place / LOCK)
        except (FileNotFoundError, FileExistsError):  # just removed, it or a parent; or nothing can be created there
            if tries == MOST_TRIES:
                raise
            continue
        if handle is None:
            return None, created
        try:
            if not _lock(handle, wait=False):
                if not wait:
                    raise ConfigError(f"another process is at work in {place}; wait for it, or choose another one")
                logger.warning("waiting for another process, which is there to %s in %s", wait, place)
                _lock(handle, wait=True)
            created = _update_created(handle, created)
            if _is_current(handle, place / LOCK):
                return handle, created
        except (ImportError, OSError) as error:
            if getattr(error, "errno", None) not in REMOVED:  # a system or a file system without locks
                os.close(handle)
                if is_new:
                    (place / LOCK).unlink(missing_ok=True)
                return None, created
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _update_created(handle: int, created: int) -> int:
    """Return the larger of the lock file's count of created folders and ``created``, and write it into the file."""
    content = os.read(handle, 20)
    created = max(created, int(content) if content.isdigit() else 0)
    if created:
        with suppress(OSError):  # another user's file, or a full disk
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, b"%d" % created)
    return created


def _is_current(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one at its path; on Windows it always is."""
    return sys.platform == "win32" or os.path.samestat(os.fstat(handle), os.stat(path))


def _open(path: Path) -> int | None:
    """Open a file, created if missing; return its descriptor, or None without permission to create or open it.

    Raises:
        OSError: any other failure, such as a full disk.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        with suppress(OSError):
            return os.open(path, os.O_RDONLY)  # another user's file can be locked too
    return None


def _lock(handle: int, wait: bool) -> bool:
    """Lock an open file, waiting for others if ``wait``; return whether it is locked.

    Raises:
        ImportError: the system has no locks.
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                return True
            except PermissionError:
                if not wait:
                    return False
                time.sleep(POLL)
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
