"""Take outer steps by the fastest path: compiled functions, and on CUDA loss and gradients captured in a graph."""

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
"""With ``auto``, runs of fewer steps stay eager; the cost of their steps is not counted."""

_StepInputs = tuple[ScheduleState, Batch | ClassBatch]
"""Inputs of a step that are new in each step: the schedule's state and the real batch."""


class Stepper:
    """Steps a run by the fastest path that works.

    The graph captures the loss and its gradients. Drawing the network and the real batch, the optimizers' steps and the
    network's training stay outside, so that networks may age, groups pause and learning rates change between steps. The
    gradients by which a network trains have graphs of their own.

    Args:
        distiller: the run's distiller.
        mode: ``off`` stays eager; ``auto`` compiles runs that are long enough to repay it (on a CPU, by the operations
            of the first step) and captures on CUDA; ``on`` compiles, and captures on CUDA.
        graph: makes an empty graph to capture a step in.

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
        self._addresses: tuple[object, ...] = ()
        self._began = False

    @property
    def path(self) -> str:
        """How steps run; captures that failed and compiled functions that were never called do not count."""
        parts = ["compiled"] * self.distiller.uses_compiled
        parts += ["captured"] * any(replay.captured for replay in self._replays.values())
        return " and ".join(parts) or "eager"

    def captures(self, run: RunState) -> bool:
        """Return whether to capture steps."""
        return self._may_capture() and run.objective.steady

    def _may_capture(self) -> bool:
        """Return whether to capture anything, steps or a network's training."""
        enabled = self.mode == "on" or (self.mode == "auto" and self.distiller.steps >= FEWEST_STEPS)
        return enabled and self.distiller.task.device.type == "cuda"

    def _compiling_pays(self, run: RunState) -> bool:
        """Return whether to compile; on a CPU a resumed run keeps the path of its steps so far, for equal bits."""
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
            if self._compiling_pays(run):
                self.distiller.compile()
            if self._may_capture():
                self.distiller.capture(self._graph)
        return self.distiller.step(run, self._gradients if self.captures(run) else None)

    def _gradients(
        self, run: RunState, schedule: ScheduleState, real: Batch | ClassBatch, key: Draws
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the result of :meth:`Distiller.gradients` by replaying a graph, one for each set of active groups.

        A graph reads a run's tensors at the addresses of its capture, so another run and moved tensors need new ones.
        """
        if schedule.network is None:
            return self.distiller.gradients(run, schedule, real, key)
        if (addresses := _addresses(run)) != self._addresses:
            self._replays.clear()
            self._addresses = addresses
        active = self.distiller.active(run)
        if active not in self._replays:
            distiller = self.distiller  # capturing self would make a cycle through the graph, freed late

            def function(key: Draws, inputs: _StepInputs) -> tuple[Tensor, list[Tensor | None]]:
                return distiller.gradients(run, *inputs, key)

            self._replays[active] = Replay(function, self._graph)
        inputs = schedule._replace(age=0, memory={}), real  # only the host reads the age, and no step the memory
        loss, gradients = self._replays[active](key, inputs)
        return loss.clone(), gradients


def _addresses(run: RunState) -> tuple[object, ...]:
    """Return the modules of a run and the addresses of their tensors, all of which a graph reads."""
    modules = run.parameterization, run.objective
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return *modules, *(tensor.data_ptr() for tensor in tensors if tensor.layout is torch.strided)
