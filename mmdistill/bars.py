"""Progress bars, on the terminal's error stream or in a notebook."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Never, Protocol

from tqdm import TqdmWarning, tqdm

from mmdistill.contexts import holding

TERMINAL_SECONDS = 0.1
"""Seconds between two updates of a bar on a terminal."""
LOG_SECONDS = 20.0
"""Seconds between two updates in a file, where each is a line of its own."""
UNSHOWN_SECONDS = 2.0
"""Seconds after which work that is usually shorter shows a bar."""

SIZE = {"ncols": 80, "nrows": 20}
"""The size to assume for a terminal that reports no columns, on which tqdm would draw nothing."""
UNEVEN = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
"""A bar without a remaining time."""


_showing: ContextVar[bool] = ContextVar("showing", default=False)


def showing(visible: bool) -> AbstractContextManager[None]:
    """Within this context long computations show a bar of their own, if ``visible`` here or in an outer context."""
    return holding(_showing, visible or is_showing())


def is_showing() -> bool:
    """Return whether a surrounding :func:`showing` is visible."""
    return _showing.get()


class Show(Protocol):
    """A function that shows progress."""

    def __call__(self, done: int, total: int, **facts: str) -> None:
        """Show that ``done`` of ``total`` units are done, with facts beside."""


def in_notebook() -> bool:
    """Return whether this runs in a notebook's kernel, which can redraw a bar without being a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def is_redrawn() -> bool:
    """Return whether a bar is redrawn in its place, on a terminal or in a notebook, and does not fill a file."""
    return sys.stderr.isatty() or in_notebook()


def _knows_size() -> bool:
    """Return whether tqdm can find the error stream's width; terminals opened by programs may report no columns."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # not a terminal, or a replaced stream
        return True


@contextmanager
def progress_bar(title: str, unit: str, *, visible: bool = True, even: bool = True) -> Iterator[Show]:
    """Yield a function that shows progress in a bar; the bar appears with its first call, so not before an error.

    Rates and remaining times count from the first call's ``done``, so that the steps of a resumed run's earlier part do
    not count as speed.

    Args:
        title: the bar's title.
        unit: the name of what is counted.
        visible: False shows nothing.
        even: whether all units take about as long; if not, no remaining time is shown.
    """
    bar: tqdm[Never] | None = None
    kind, every = tqdm, TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    if visible and in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # without ipywidgets the bar is a text, which is fine
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
                miniters=0,  # facts may change between units
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
