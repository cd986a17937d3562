"""Outer steps by the fastest path: compiled functions, and on CUDA loss and gradients captured in a graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmdistill.distiller import Distiller
from mmdistill.execution.capture import CudaGraph, Graph, Replay
from mmdistill.execution.compilation import CompileMode, worth_compiling
from mmdistill.networks.schedules import ScheduleState
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch

WORTH_COMPILING = 2000
"""With ``auto``, shorter runs on CUDA stay uncompiled: compiling takes about a minute."""
FEWEST_STEPS = 20
"""With ``auto``, runs of fewer steps stay eager without a look at what their steps cost."""

_Read = tuple[ScheduleState, Batch | ClassBatch]
"""What a step reads that the next one does not: what its schedule gave it, and real samples."""


class Stepper:
    """Steps a run by the fastest path that works.

    Drawing the network and the real batch, the optimizers' steps and the network's own training stay outside the graph,
    so networks may age, groups rest and rates change from step to step. The gradients by which a network trains have
    graphs of their own.

    Args:
        distiller: the run's distiller.
        mode: ``off`` stays eager; ``auto`` compiles for runs long enough to repay it (on a CPU, by the operations of
            the first step) and captures on CUDA; ``on`` compiles, and captures on CUDA.
        graph: makes the graphs that steps are captured in.

    Attributes:
        path: how the last step ran: ``eager``, ``compiled``, ``captured`` or ``compiled and captured``.
    """

    def __init__(
        self, distiller: Distiller, mode: CompileMode = "auto", graph: Callable[[], Graph] = CudaGraph
    ) -> None:
        self.distiller = distiller
        self.mode = mode
        self._graph = graph
        self._replays: dict[tuple[str, ...], Replay] = {}
        self._read: tuple[object, ...] = ()
        self._began = False

    @property
    def path(self) -> str:
        """How steps run: what was tried and failed, or was compiled and never called, does not count."""
        parts = ["compiled"] * self.distiller.uses_compiled
        parts += ["captured"] * any(replay.captured for replay in self._replays.values())
        return " and ".join(parts) or "eager"

    def captures(self, run: RunState) -> bool:
        """Return whether steps shall be captured."""
        return self._records() and run.objective.steady

    def _records(self) -> bool:
        """Return whether anything shall be captured."""
        wanted = self.mode == "on" or (self.mode == "auto" and self.distiller.steps >= FEWEST_STEPS)
        return wanted and self.distiller.task.device.type == "cuda"

    def _repays(self, run: RunState) -> bool:
        """Return whether compiling repays its time; on a CPU a run goes on as its steps ran so far, to the bit."""
        if self.mode != "auto" or self.distiller.steps < FEWEST_STEPS:
            return self.mode == "on"
        if self.distiller.task.device.type == "cuda":
            return self.distiller.steps >= WORTH_COMPILING
        if run.step:
            return "compiled" in run.path
        total = float(self.distiller.steps) * self.distiller.operations(run)
        return worth_compiling(total / run.objective.compiling)

    def __call__(self, run: RunState) -> tuple[RunState, Tensor]:
        """Take one step."""
        if not self._began:
            self._began = True
            if self._repays(run):
                self.distiller.compile()
            if self._records():
                self.distiller.capture(self._graph)
        return self.distiller.step(run, self._gradients if self.captures(run) else None)

    def _gradients(
        self, run: RunState, schedule: ScheduleState, real: Batch | ClassBatch, key: Draws
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return what :meth:`Distiller.gradients` does, replayed; one graph for each set of groups that learns.

        Graphs read a run where it lay when they were captured: for another run, or one that has moved, they are made
        anew.
        """
        if schedule.network is None:
            return self.distiller.gradients(run, schedule, real, key)
        if (read := _places(run)) != self._read:
            self._replays.clear()
            self._read = read
        active = self.distiller.active(run)
        if active not in self._replays:
            distiller = self.distiller  # not self, which keeps the graph: cycles, and their memory, are freed late

            def function(key: Draws, inputs: _Read) -> tuple[Tensor, list[Tensor | None]]:
                return distiller.gradients(run, *inputs, key)

            self._replays[active] = Replay(function, self._graph)
        inputs = schedule._replace(age=0, memory={}), real  # which the host alone follows, and what no step reads
        loss, found = self._replays[active](key, inputs)
        return loss.clone(), found


def _places(run: RunState) -> tuple[object, ...]:
    """Return what a graph of a run reads, and where it lies."""
    modules = run.parameterization, run.objective
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return *modules, *(tensor.data_ptr() for tensor in tensors if tensor.layout is torch.strided)
