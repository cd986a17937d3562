"""The outer step by its fastest path: compiled functions, and on CUDA the whole step captured in a graph.

A captured step replays the launches that one eager step made, so the host no longer bounds it. Its random numbers are
those of the eager step: each generator that the step derives from its :class:`~mmdistill.runtime.Draws` key is
registered with the graph, and before a replay is set to the seed that the key of the *new* step gives.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from mmdistill import ranks, runtime
from mmdistill.compilation import CompileMode, worth_compiling
from mmdistill.distiller import Distiller, RunState
from mmdistill.errors import MmdistillError
from mmdistill.networks.schedules import FreshNetworks
from mmdistill.runtime import Draws

Step = Callable[[RunState], tuple[RunState, Tensor]]

WARM_UP_STEPS = 3
"""Eager steps before the capture: they compile, choose algorithms and create optimizer state."""
WORTH_COMPILING = 2000
"""With ``auto``, shorter runs on CUDA stay eager: compiling takes about a minute."""

FEWEST_COMPILED = 20
"""With ``auto``, runs of fewer steps stay eager without a look at what their steps cost."""


class Generators:
    """The generators that one step asks for, in order, so that a replay can set each to its new seed."""

    def __init__(self) -> None:
        self.keys: list[Draws] = []
        self.generators: list[torch.Generator] = []
        self._position: int | None = None

    def record(self, key: Draws) -> torch.Generator:
        """Return a generator for a key: a new one in the recording step, the same one while capturing."""
        if self._position is None:
            generator = torch.Generator(device=key.device)
            generator.manual_seed(key.integer())
            self.keys.append(key)
            self.generators.append(generator)
            return generator
        position, self._position = self._position, self._position + 1
        if position >= len(self.keys) or _without_step(self.keys[position]) != _without_step(key):
            raise RuntimeError(f"the step drew {key.path} where its recording had drawn something else")
        return self.generators[position]

    def rewind(self) -> None:
        """Hand out the recorded generators again, from the first."""
        self._position = 0

    def seed(self, step: int) -> None:
        """Set every generator to what its key gives at a step."""
        for key, generator in zip(self.keys, self.generators, strict=True):
            moved = Draws(key.seed, (key.path[0], step, *key.path[2:]), key.device)
            generator.manual_seed(moved.integer())


def _without_step(key: Draws) -> tuple[str | int, ...]:
    return (key.path[0], *key.path[2:])


class CapturedStep:
    """One outer step, captured; call it like :meth:`Distiller.step`.

    Args:
        distiller: the run's distiller.
        run: its state, after an eager step that ``generators`` recorded.
        generators: the step's generators.
    """

    def __init__(self, distiller: Distiller, run: RunState, generators: Generators) -> None:
        self.generators = generators
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators.generators:
            self.graph.register_generator_state(generator)
        generators.rewind()
        torch.cuda.synchronize()
        with runtime.recording(generators.record), torch.cuda.graph(self.graph):
            _, self.loss = distiller.step(run)
        run.step -= 1  # capturing notes the launches and runs none of them

    def __call__(self, run: RunState) -> tuple[RunState, Tensor]:
        """Replay the step with the random numbers of the run's present step."""
        self.generators.seed(run.step)
        self.graph.replay()
        run.step += 1
        return run, self.loss


def capturable(distiller: Distiller) -> bool:
    """Return whether every step launches the same work: no ageing network, no host-side change of rates, one rank."""
    steady = all(spec.active is None and not spec.cosine for spec in distiller.settings.optimizers.values())
    alone = distiller.task.device.type == "cuda" and ranks.size() == 1
    return alone and isinstance(distiller.schedule, FreshNetworks) and steady


class Stepper:
    """Steps a run by the fastest path that works: a few eager steps, then captured ones.

    Args:
        distiller: the run's distiller.
        mode: ``off`` stays eager; ``auto`` compiles for runs long enough to repay it (on a CPU, by the operations of
            the first step); ``on`` compiles, and on CUDA captures the whole step, which has not been verified on a
            device yet and hence is no default.
    """

    def __init__(self, distiller: Distiller, mode: CompileMode = "auto") -> None:
        self.distiller = distiller
        self.mode = mode
        self.captures = mode == "on" and capturable(distiller)
        self.path = "eager"
        self._step: Step = distiller.step
        self._steps_taken = 0
        self._generators = Generators()

    def _repays(self, run: RunState) -> bool:
        """Return whether compiling repays its time; the whole run counts, so that a resumed one takes the same path."""
        if self.mode != "auto" or self.distiller.steps < FEWEST_COMPILED:
            return self.mode == "on"
        if self.distiller.task.device.type == "cuda":
            return self.distiller.steps >= WORTH_COMPILING
        return worth_compiling(float(self.distiller.steps) * self.distiller.operations(run))

    def __call__(self, run: RunState) -> tuple[RunState, Tensor]:
        """Take one step."""
        if self._steps_taken == 0 and self._repays(run):
            self.distiller.compile()
            self.path = "compiled"
        self._steps_taken += 1
        if self.captures and self._steps_taken == WARM_UP_STEPS + 1:
            with runtime.recording(self._generators.record):
                return self.distiller.step(run)
        if self.captures and self._steps_taken == WARM_UP_STEPS + 2:
            self._capture(run)
        return self._step(run)

    def _capture(self, run: RunState) -> None:
        step = run.step
        try:
            self._step = CapturedStep(self.distiller, run, self._generators)
            self.path = "captured"
        except MmdistillError:
            raise
        except RuntimeError as error:
            run.step = step
            self.captures = False
            warnings.warn(f"the step could not be captured and stays {self.path}: {error}", stacklevel=3)
