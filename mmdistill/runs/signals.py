"""Signals that end a run or a command; without torch, for which the command line's help does not wait."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from mmdistill.errors import MmdistillError

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""What is sent where the terminal is gone, be it a closed window or a lost connection; Windows has none."""
ENDING = (signal.SIGTERM, *([] if HANGUP is None else [signal.Signals(HANGUP)]))
"""The signals that end a command as Ctrl-C does."""

Handler = Callable[[int, FrameType | None], object]


def hung_up(number: int, frame: FrameType | None) -> None:
    """Take SIGHUP for Ctrl-C, once: the system, the shell and what manages sessions may each send it.

    Raises:
        KeyboardInterrupt: always.
    """
    signal.signal(number, signal.SIG_IGN)
    left_terminal()
    raise KeyboardInterrupt


def left_terminal() -> bool:
    """Let what would be printed on a terminal that is gone, where that fails, go nowhere; return whether one is."""
    gone = [stream for stream in (1, 2) if _is_gone(stream)]
    for stream in gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)
    return bool(gone)


def _is_gone(stream: int) -> bool:
    """Return whether an open file was a terminal's that is gone; what is none says another error, or none."""
    try:
        os.get_terminal_size(stream)
    except OSError as error:
        return error.errno == errno.EIO
    return False


class Signals:
    """What signals ask of a run, which ends its step first.

    Args:
        own: handlers that the program has installed, by the signal's number.

    Attributes:
        stop: whether a signal asks to stop that the program leaves to Python, to the system or to the commands.
    """

    def __init__(self, own: Mapping[int, Handler]) -> None:
        self.stop = False
        self._own = own
        self._again = False
        self._pending: list[tuple[int, FrameType | None]] = []

    @property
    def is_pending(self) -> bool:
        """Whether a handler of the program's is still to be called."""
        return bool(self._pending)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; another one has its effect at once, but not a lost terminal's, which nobody has asked for."""
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

    def pass_on(self) -> None:
        """Call the program's handlers of the signals that came."""
        while self._pending:
            number, frame = self._pending.pop(0)
            self._own[number](number, frame)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Take what fails in a step for the stop that was asked for, since signals reach the compiler and others too.

        Raises:
            KeyboardInterrupt: in place of all but the errors of this package, which say themselves what to do.
        """
        try:
            yield
        except MmdistillError:
            raise
        except Exception as error:
            if self.stop:
                raise KeyboardInterrupt from error
            raise


@contextmanager
def taken_over() -> Iterator[Signals]:
    """Take Ctrl-C and what ends commands over, so that a step ends whole.

    What is ignored, or handled outside Python, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Signals({})
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    previous = {number: handler for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
    own: dict[int, Handler] = {
        number: handler
        for number, handler in previous.items()
        if callable(handler) and handler not in (signal.default_int_handler, hung_up)
    }
    asked = Signals(own)
    take = asked.receive  # one object, by which it is known again
    for number in previous:
        signal.signal(number, take)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is take:  # not what a handler has installed meanwhile
                signal.signal(number, handler)
        asked.pass_on()
