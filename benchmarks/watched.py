"""Watch a program's updates of its synthetic data: how much CPU time passes between two, and how far memory grows."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

PEAK, NOW = "VmHWM", "VmRSS"
"""Lines of Linux's ``/proc/self/status``."""


class EnoughError(BaseException):
    """As many updates were seen as were asked for; no program handles it."""


@dataclass
class Watch:
    """Counts the steps of optimizers that hold ``numbers`` numbers in one tensor: those of the synthetic data.

    An authors' script and a run of ours are watched alike, whatever else trains in between. The first ``skipped``
    updates (imports, compiling, first calls) are not timed. An update is ``parts`` steps, where a script steps class by
    class.
    """

    numbers: int
    updates: int
    skipped: int = 1
    parts: int = 1
    seconds: list[float] = field(default_factory=list)
    _last: float | None = None
    _steps: int = 0
    _before: int = 0

    def run(self, program: Callable[[], object]) -> dict[str, Any]:
        """Run a program until enough updates were seen; return seconds of each, and the growth in bytes."""
        construct = Optimizer.__init__

        def constructed(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            construct(optimizer, *args, **kwargs)
            if self._holds(optimizer) and not self._before:  # what follows is the first step
                Path("/proc/self/clear_refs").write_text("5")
                self._before = memory(NOW)

        Optimizer.__init__ = constructed  # type: ignore[method-assign, assignment]
        hook = register_optimizer_step_post_hook(self._stepped)
        try:
            program()
        except EnoughError:
            pass
        except SystemExit:
            if len(self.seconds) < self.updates:  # else the program has caught EnoughError, and ended
                raise
        finally:
            hook.remove()
            Optimizer.__init__ = construct  # type: ignore[method-assign]
        if len(self.seconds) < self.updates:
            raise SystemExit(f"the program ended after {self._steps // self.parts} updates of {self.numbers} numbers")
        return {"seconds": self.seconds, "bytes": memory(PEAK) - self._before}

    def _holds(self, optimizer: Optimizer) -> bool:
        return any(p.numel() == self.numbers for group in optimizer.param_groups for p in group["params"])

    def _stepped(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self._holds(optimizer):
            return
        now, self._steps = time.process_time(), self._steps + 1
        updates, rest = divmod(self._steps, self.parts)
        if rest:
            return
        if self._last is not None and updates > self.skipped:
            self.seconds.append(now - self._last)
        if len(self.seconds) == self.updates:
            raise EnoughError
        self._last = time.process_time()


def memory(line: str) -> int:
    """Return a number of ``/proc/self/status``, in bytes."""
    (value,) = [row.split()[1] for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(line)]
    return 1024 * int(value)
