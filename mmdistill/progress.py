"""Progress of distilling and judging in Python: a user's own function, or a bar for ``progress=True``."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mmdistill.bars import progress_bar, showing
from mmdistill.errors import ConfigError
from mmdistill.execution import ranks
from mmdistill.execution.isolation import turns_let_go
from mmdistill.networks.clock import time_in_words
from mmdistill.networks.watching import watching

StepProgress = Callable[[int, int, float], object]
"""Called with (steps done, steps in all, loss), 200 times in a run and every two seconds."""
ShowJudging = Callable[[int, int, str], None]
"""Called with (judgements done, in all, what is judged next)."""
Callback = TypeVar("Callback", bound=Callable[..., object])


def own_progress(progress: Callback | bool | None, called_with: str) -> Callback | None:
    """Return the user's function, or None if a bar or nothing is shown.

    While it runs, other threads may use the task.

    Args:
        progress: a function, or whether to show a bar.
        called_with: the arguments of such a function, for the error.
    Raises:
        ConfigError: something that cannot be called.
    """
    if progress is None or isinstance(progress, bool):
        return None
    if not callable(progress):
        raise ConfigError(
            f"progress is called with ({called_with}), got {type(progress).__name__}, which cannot be; True shows a bar"
        )
    return turns_let_go()(progress)


@contextmanager
def step_bar(title: str, visible: bool) -> Iterator[StepProgress]:
    """Yield a function that shows the steps of a run in a bar; of several processes, only the first shows it.

    Fitting the start, before the steps, shows a bar of its own.
    """
    shown = visible and ranks.is_first()
    with showing(shown), progress_bar(title, "step", visible=shown) as show:
        yield lambda done, total, loss: show(done, total, loss=f"{loss:.4g}")


@contextmanager
def judging_bar() -> Iterator[ShowJudging]:
    """Yield a function that shows judgements in a bar, with the epochs of the networks in training."""
    with progress_bar("judging", "set", even=False) as show:
        current: tuple[int, int, str] | None = None
        began = 0.0

        def begin(done: int, total: int, subject: str) -> None:
            nonlocal current, began
            show(done, total, **({"now": subject} if subject else {}))
            current, began = (done, total, subject), time.perf_counter()

        def epoch(number: int, epochs: int) -> None:
            nonlocal began
            if current is None:
                return
            done, total, subject = current
            if number == 1 or number == epochs:  # the first takes longer than others; after the last no time is left
                show(done, total, now=f"{subject}, epoch {number}/{epochs}")
                began = time.perf_counter()
                return
            remaining = (time.perf_counter() - began) / (number - 1) * (epochs - number)
            show(done, total, now=f"{subject}, epoch {number}/{epochs}, {time_in_words(remaining)} left")

        with watching(epoch):
            yield begin
