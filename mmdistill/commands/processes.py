"""Runs in processes of their own: how they are started, how they are stopped with a checkpoint, and why they failed."""

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
"""Seconds in which processes that are asked to stop may end their step and keep a checkpoint."""
PAUSE = 0.05
"""Seconds between two looks at whether they have ended; Windows tells of Ctrl-C in none that waits for them."""
PROGRAM = "mmdistill"
"""What runs where no script or module of the user's was started."""
FOLLOWS = "MMDISTILL_FOLLOWS_STDIN"
"""Environment variable of processes that are to end when what is at the other end of their standard input has."""


def own_program() -> list[str]:
    """Return the words that start again the program that sweeps here, for another of its commands.

    Where a script, a module, or a folder or archive of the user's was started (``python SCRIPT.py sweep ...``), be it
    under a profiler, it is that one, which knows methods of its own; else ``python -m mmdistill``.
    """
    python, main = [sys.executable, "-u"], sys.modules["__main__"]  # unbuffered: what a log ends with came last
    if sys.argv[1:2] == ["sweep"]:
        spec, script = main.__spec__, sys.argv[0]
        if spec is None:
            script = str(getattr(main, "__file__", ""))
        elif spec.name == "__main__":  # of a folder or an archive, as is what pip installs on Windows
            return [*python, str(Path(str(spec.origin)).parent)]
        elif script == spec.origin:  # else a module that runs another one, as profilers do
            return [*python, "-m", spec.name.removesuffix(".__main__")]
        if Path(script).suffix == ".py":
            return [*python, script]
        if _is_module(script):  # that a profiler runs
            return [*python, "-m", script]
    return [*python, "-m", PROGRAM]


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def start(command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a process that writes into a log; a terminal's Ctrl-C is left to :func:`stop`, since two end it at once.

    Where it calls :func:`follow_starter`, it ends by itself when this process is gone, killed say.
    """
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", FOLLOWS: "1"}  # of the log, whatever the system's is
    return subprocess.Popen(
        command, stdin=_lifeline(), stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
    )


@functools.cache
def _lifeline() -> int:
    """Return the end to read of a pipe into which nothing is written; the other end closes as this process ends."""
    return os.pipe()[0]


def follow_starter() -> None:
    """End this process as SIGTERM does, a run with a checkpoint, once the one that started it by :func:`start` is gone.

    Elsewhere nothing is done. Standard input, by which it knows, reads as empty from then on.
    """
    if os.environ.pop(FOLLOWS, None) is None:  # processes that are started here do not follow
        return
    lifeline, nowhere = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)

    def watch() -> None:
        os.read(lifeline, 1)
        if sys.platform == "win32":  # where SIGTERM would kill it
            _thread.interrupt_main()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def stop(processes: Sequence["subprocess.Popen[bytes]"], interrupted: bool = True) -> None:
    """Let processes end their steps and keep checkpoints; end those that take too long, or all on another Ctrl-C.

    Args:
        processes: which.
        interrupted: whether Ctrl-C in a terminal is why; on Windows, whose console tells all processes in it, they are
            left to themselves then. Stopped for another reason, they end at once there.
    """
    until = time.monotonic() + GRACE
    try:
        for process in processes:
            if sys.platform != "win32" or not interrupted:
                process.terminate()
        while any(process.poll() is None for process in processes) and time.monotonic() < until:
            time.sleep(PAUSE)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def why_failed(code: int, log: Path) -> str:
    """Return why a process failed: by its exit code the signal that ended it, else what its log says last."""
    if code < 0:  # as the system does without memory, whatever the log's last line is
        return f"killed by {_signal_name(-code)}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return re.split("[Ee]rror: ", lines[-1], maxsplit=1)[-1] if lines else f"ended with {code}"


def _signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL; its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
