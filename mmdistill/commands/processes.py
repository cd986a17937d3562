"""Start runs as processes, stop them with a checkpoint, and tell why one failed."""

import _thread
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

GRACE = 120
"""Seconds that a stopping process has to end its step and write a checkpoint."""
PAUSE = 0.05
"""Seconds between two polls of stopping processes; on Windows Ctrl-C would not interrupt a wait for one."""
PROGRAM = "mmdistill"
"""The module to run if the user started no script or module of their own."""
FOLLOWS = "MMDISTILL_FOLLOWS_STDIN"
"""Environment variable that tells a process to end when the other end of its standard input closes."""


def own_program() -> list[str]:
    """Return the command line that starts this program again, for another of its commands.

    If the user started the sweep from a script, module, folder or archive (``python SCRIPT.py sweep ...``), perhaps
    under a profiler, it is that one, since it may register methods; else ``python -m mmdistill``.
    """
    python, main = [sys.executable, "-u"], sys.modules["__main__"]  # unbuffered, so that a log is in order
    if sys.argv[1:2] == ["sweep"]:
        spec, script = main.__spec__, sys.argv[0]
        if spec is None:
            script = str(getattr(main, "__file__", ""))
        elif spec.name == "__main__":  # a folder or an archive, such as the program that pip installs on Windows
            return [*python, str(Path(str(spec.origin)).parent)]
        elif script == spec.origin:  # unequal for a module that runs another one, as profilers do
            return [*python, "-m", spec.name.removesuffix(".__main__")]
        if Path(script).suffix == ".py":
            return [*python, script]
        if _is_module(script):  # run by a profiler
            return [*python, "-m", script]
    return [*python, "-m", PROGRAM]


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def start(command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a process that writes into a log, out of reach of the terminal's Ctrl-C.

    :func:`stop` passes Ctrl-C on; two would end the process without a checkpoint. A process that calls
    :func:`follow_starter` ends by itself when this one is gone, for instance killed.
    """
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", FOLLOWS: "1"}  # the log is UTF-8 on every system
    return subprocess.Popen(
        command, stdin=_lifeline(), stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
    )


@functools.cache
def _lifeline() -> int:
    """Return the reading end of a pipe that nobody writes to; its other end closes when this process ends."""
    return os.pipe()[0]


def follow_starter() -> None:
    """Watch the process that started this one by :func:`start`, and end as on SIGTERM, with a checkpoint, if it ends.

    Standard input, which is the pipe to that process, reads as empty afterwards. Does nothing in other processes.
    """
    if os.environ.pop(FOLLOWS, None) is None:  # removed, so that this process's own children do not follow
        return
    lifeline, nowhere = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)

    def watch() -> None:
        os.read(lifeline, 1)
        if sys.platform == "win32":  # SIGTERM would kill the process there
            _thread.interrupt_main()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def stop(processes: Sequence["subprocess.Popen[bytes]"], interrupted: bool = True) -> None:
    """Let processes end their steps and write checkpoints; kill those that take too long, or all on another Ctrl-C.

    Args:
        processes: to stop.
        interrupted: whether Ctrl-C in a terminal is the reason. Windows then interrupts all processes of the console
            itself; for other reasons they are killed at once there.
    """
    deadline = time.monotonic() + GRACE
    try:
        for process in processes:
            if sys.platform != "win32" or not interrupted:
                process.terminate()
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(PAUSE)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def why_failed(code: int, log: Path) -> str:
    """Return why a process failed: the signal that killed it, or else the error in the last line of its log."""
    if code < 0:  # for instance killed for lack of memory; the log's last line does not tell
        return f"killed by {_signal_name(-code)}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return re.split("[Ee]rror: ", lines[-1], maxsplit=1)[-1] if lines else f"ended with {code}"


def _signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL; its number if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
