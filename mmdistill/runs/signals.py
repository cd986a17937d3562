"""Handle signals that end a run or a command; does not import torch, so that the command line's help is fast."""

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from mmdistill.errors import MmdistillError

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""The signal that the terminal is gone, by a closed window or a lost connection; None on Windows."""
WARNING: int | None = getattr(signal, "SIGUSR1", None)
"""The signal by which schedulers warn of the end of a job's time (SLURM's ``--signal``); None on Windows."""
ENDING = (signal.SIGTERM, *(signal.Signals(number) for number in (HANGUP, WARNING) if number is not None))
"""The signals that end a command as Ctrl-C does."""

Handler = Callable[[int, FrameType | None], object]


def hung_up(number: int, frame: FrameType | None) -> None:
    """Handle SIGHUP as Ctrl-C and ignore further ones: system, shell and session manager may each send it.

    Raises:
        KeyboardInterrupt: always.
    """
    signal.signal(number, signal.SIG_IGN)
    left_terminal()
    raise KeyboardInterrupt


def left_terminal() -> bool:
    """Send standard output and error to the null device if their terminal is gone; return whether one is.

    Printing there would fail.
    """
    gone = [stream for stream in (1, 2) if _is_gone(stream)]
    for stream in gone:
        _send_to_null_device(stream)
    return bool(gone)


def _send_to_null_device(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _is_gone(stream: int) -> bool:
    """Return whether a file descriptor is that of a vanished terminal; others raise another error, or none."""
    try:
        os.get_terminal_size(stream)
    except OSError as error:
        return error.errno == errno.EIO
    return False


@contextmanager
def outlasting_reader(stream: TextIO) -> Iterator[None]:
    """Within this context a stream goes to the null device once its reader, such as head or tee, is gone.

    What is still unwritten at the end of the context is written, or else left for the interpreter to report.
    """
    former = dict(vars(stream))
    changed = {name: _outlasting(getattr(stream, name), stream) for name in ("write", "flush")}
    vars(stream).update(changed)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            stream.flush()
        for name in changed:
            del vars(stream)[name]
        vars(stream).update(former)


def _outlasting(method: Callable[..., Any], stream: TextIO) -> Callable[..., Any]:
    """Return a method of a stream that is called again, on the null device, if the stream's reader is gone."""

    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except OSError as error:
            if not isinstance(error, BrokenPipeError) and (sys.platform, error.errno) != ("win32", errno.EINVAL):
                raise
            _send_to_null_device(stream.fileno())
            return method(*arguments)

    return call


class Signals:
    """Signals that arrived within a step, which a run handles after the step.

    Args:
        own: handlers that the program has installed, by the signal's number.

    Attributes:
        stop: whether a signal arrived for which the program has no handler of its own, so that the run must stop.
    """

    def __init__(self, own: Mapping[int, Handler]) -> None:
        self.stop = False
        self._own = own
        self._again = False
        self._pending: list[tuple[int, FrameType | None]] = []

    @property
    def is_pending(self) -> bool:
        """Whether a handler of the program must still be called."""
        return bool(self._pending)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the second one acts at once, except SIGHUP, which is no request of the user's."""
        if number in self._own:
            if any(number == earlier for earlier, _ in self._pending):
                self._own[number](number, frame)
            else:
                self._pending.append((number, frame))
        elif number == HANGUP:
            self.stop = True
            left_terminal()
        elif self._again:
            raise KeyboardInterrupt
        else:
            self.stop = self._again = True

    def call_handlers(self) -> None:
        """Call the program's own handlers for the signals that arrived."""
        while self._pending:
            number, frame = self._pending.pop(0)
            self._own[number](number, frame)

    @contextmanager
    def errors_as_stop(self) -> Iterator[None]:
        """Within this context an error after a signal to stop counts as that stop: the compiler got the signal too.

        Raises:
            KeyboardInterrupt: in place of such errors, except this package's own, whose messages say what to do.
        """
        try:
            yield
        except MmdistillError:
            raise
        except Exception as error:
            if self.stop:
                raise KeyboardInterrupt from error
            raise


def _ends_program(number: int) -> bool:
    """Return whether a signal ends the program: no handler is set, in Python or, where Linux says so, in C."""
    handler = signal.getsignal(number)
    if handler is not signal.SIG_DFL:
        return handler is signal.default_int_handler
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is None or not int(caught[1], 16) >> (number - 1) & 1


@contextmanager
def deferred_signals() -> Iterator[Signals]:
    """Within this context Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 are only noted, so that steps end whole.

    Signals that are ignored, or handled outside Python, stay so, and so does a SIGUSR1 that the program handles, which
    need not end it. Outside the main thread nothing is noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Signals({})
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    previous = {number: handler for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
    previous = {number: handler for number, handler in previous.items() if number != WARNING or _ends_program(number)}
    own: dict[int, Handler] = {
        number: handler
        for number, handler in previous.items()
        if callable(handler) and handler not in (signal.default_int_handler, hung_up)
    }
    signals = Signals(own)
    receive = signals.receive  # one bound method, so that ``is`` finds it again below
    for number in previous:
        signal.signal(number, receive)
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is receive:  # else a handler has installed another one meanwhile
                signal.signal(number, handler)
        signals.call_handlers()
