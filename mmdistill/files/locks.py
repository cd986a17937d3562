"""One process at a time in a folder."""

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
"""The file that is locked in a folder: a file, since NFS locks files for other hosts too, but folders for one alone."""
MOST_TRIES = 20
"""How often a folder is made that others remove at the same time."""
REMOVED = (errno.ENOENT, errno.ESTALE)
"""What is said of a file that another process, or another host, has removed."""
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What is said of a file that may not be written to."""
POLL = 0.5
"""Seconds between two looks at a lock where the system does not wait for it, as on Windows."""


class _Kept(threading.local):
    """The folders that a thread keeps, which may ask again."""

    def __init__(self) -> None:
        self.places: set[Path] = set()


_kept = _Kept()


@contextmanager
def sole_writer(folder: Path, wait: str = "") -> Iterator[bool]:
    """Keep other processes that ask alike from writing into a folder meanwhile.

    It is made if it is missing, and removed at the end where nothing has been written into it. The system lets go when
    the process ends, however it does.

    Args:
        folder: which.
        wait: what another process or thread that has the folder is there to do: it is waited for; empty: it is not.
    Yields:
        Whether nobody else is at work there. Where nothing can be locked (some network drives, folders that cannot be
        written to) it is not known.
    Raises:
        ConfigError: another process or thread has the folder, and is not waited for.
    """
    place = Path(os.path.realpath(folder))
    if place in _kept.places:
        yield True
        return
    handle, made = _locked(place, wait)
    if handle is None:
        try:
            yield False
        finally:
            _remove_empty(place, made)
        return
    _kept.places.add(place)
    try:
        yield True
    finally:
        _kept.places.discard(place)
        try:  # before the lock goes, so that who waits for it sees that its file is gone
            _remove_lock(place)
            _remove_empty(place, made)
        finally:
            os.close(handle)
        if sys.platform == "win32":  # where a file that is open cannot be removed, be it by this process or another one
            _remove_lock(place)
        # Again, since NFS keeps a removed file in its folder while it is open; where who waited is in it already, the
        # lock's file has told them to remove it.
        _remove_empty(place, made)


def _remove_lock(place: Path) -> None:
    with suppress(OSError):
        (place / LOCK).unlink(missing_ok=True)


def _remove_empty(place: Path, made: int) -> None:
    """Remove a folder and its nearest parents, so many in all, as far as they are empty."""
    with suppress(OSError):  # where something has been written
        for folder in (place, *place.parents)[:made]:
            folder.rmdir()


def _locked(place: Path, wait: str) -> tuple[int | None, int]:
    """Return a descriptor of a folder's lock, None where it has none, and how many of it and its parents are to go.

    Those are the ones that had to be made, by this process or by one that had the folder while this one waited. Who had
    it may have removed its file, and the folder as empty, meanwhile; then it is made anew.
    """
    tries = made = 0
    while True:
        tries += 1
        made = max(made, sum(not folder.exists() for folder in (place, *place.parents)))
        fresh = not (place / LOCK).exists()
        try:
            place.mkdir(parents=True, exist_ok=True)
            handle = _opened(place / LOCK)
        except (FileNotFoundError, FileExistsError):  # removed meanwhile, it or a parent; or nothing can be made there
            if tries == MOST_TRIES:
                raise
            continue
        if handle is None:
            return None, made
        try:
            if not _lock(handle, wait=False):
                if not wait:
                    raise ConfigError(f"another process is at work in {place}; wait for it, or choose another one")
                logger.warning("waiting for another process, which is there to %s in %s", wait, place)
                _lock(handle, wait=True)
            made = _handed_on(handle, made)
            if _is_there(handle, place / LOCK):
                return handle, made
        except (ImportError, OSError) as error:
            if getattr(error, "errno", None) not in REMOVED:  # a system or a file system without locks
                os.close(handle)
                if fresh:
                    (place / LOCK).unlink(missing_ok=True)
                return None, made
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _handed_on(handle: int, made: int) -> int:
    """Return how many folders those who held a lock have made, who say it in its file, at least as many as this one."""
    before = os.read(handle, 20)
    made = max(made, int(before) if before.isdigit() else 0)
    if made:
        with suppress(OSError):  # another user's file, or a full disk
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, b"%d" % made)
    return made


def _is_there(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one of its name, as on Windows it always is."""
    return sys.platform == "win32" or os.path.samestat(os.fstat(handle), os.stat(path))


def _opened(path: Path) -> int | None:
    """Return a descriptor of a file, made where it is missing; None where it may be neither made nor opened.

    Raises:
        OSError: what has nothing to do with permissions, as a full disk.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        with suppress(OSError):
            return os.open(path, os.O_RDONLY)  # another user's
    return None


def _lock(handle: int, wait: bool) -> bool:
    """Lock an open file, if need be once others let go; return whether it is locked.

    Raises:
        ImportError: the system has no locks.
        OSError: the file system has none.
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
