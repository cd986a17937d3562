"""Progress bars, on the terminal's error stream or in a notebook."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Never, Protocol

from tqdm import TqdmWarning, tqdm

TERMINAL_SECONDS = 0.1
"""Between two pictures of a bar on a terminal."""
LOG_SECONDS = 20.0
"""And in a file, where each is a line of its own."""

SIZE = {"ncols": 80, "nrows": 20}
"""Of a terminal that says it has no columns, on which tqdm draws nothing."""
UNEVEN = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
"""A bar without a remaining time."""


_showing: ContextVar[bool] = ContextVar("showing", default=False)


@contextmanager
def showing(visible: bool) -> Iterator[None]:
    """Let what takes long meanwhile show a bar of its own, where this or an outer one is visible."""
    token = _showing.set(visible or is_showing())
    try:
        yield
    finally:
        _showing.reset(token)


def is_showing() -> bool:
    """Return whether a run around this shows a bar."""
    return _showing.get()


class Show(Protocol):
    """Shows how far a long piece of work has come."""

    def __call__(self, done: int, total: int, **facts: str) -> None:
        """Show so many units done of all, and facts beside them."""


def in_notebook() -> bool:
    """Return whether this runs in a notebook's kernel, whose output redraws a bar though it is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _knows_size() -> bool:
    """Return whether the error stream is no terminal, or one with columns: those that programs open may have none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # of what took its place
        return True


@contextmanager
def progress_bar(title: str, unit: str, *, visible: bool = True, even: bool = True) -> Iterator[Show]:
    """Yield what shows progress in a bar, which appears with the first call: errors before it stand alone.

    Rates and remaining times count from the first call's ``done``, so that what an earlier run did is not mistaken
    for speed.

    Args:
        title: what is done.
        unit: what is counted.
        visible: False shows nothing.
        even: whether each unit takes about as long as another; of others no remaining time is guessed.
    """
    bar: tqdm[Never] | None = None
    kind, every = tqdm, TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    if visible and in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # that ipywidgets are not there, without which it is a text
            from tqdm.auto import tqdm as kind

        every = TERMINAL_SECONDS

    def show(done: int, total: int, **facts: str) -> None:
        nonlocal bar
        if bar is None:
            bar = kind(
                desc=title,
                unit=unit,
                total=total,
                initial=done,
                miniters=0,  # facts change between two units too
                mininterval=every,
                maxinterval=max(every, 10.0),
                **({"dynamic_ncols": True} if not visible or _knows_size() else SIZE),
                disable=not visible,
                bar_format=None if even else UNEVEN,
                postfix=facts,
            )
        bar.set_postfix(facts, refresh=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
