"""The state of a run: what a step updates, and what resuming needs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmdistill.composition import grouped
from mmdistill.errors import CheckpointError
from mmdistill.execution import ranks
from mmdistill.labels import TeacherLabels
from mmdistill.networks.schedules import ScheduleState
from mmdistill.networks.statistics import copied
from mmdistill.objectives.base import Objective
from mmdistill.parameterizations.base import Parameterization
from mmdistill.task import NetworkState, Tensors


@dataclass
class RunState:
    """All that resuming needs; random numbers need nothing, since they derive from the seed and the step.

    Args:
        step: outer steps taken.
        parameterization: codes, decoder and labels.
        objective: with the scalars it learns.
        optimizers: one per group.
        schedule: the network schedule's state.
        finite: whether every loss so far was finite, kept on the device.
        history: ``(step, loss)`` at the steps that were read back.
        best: the best step by validation: score, step, both modules' states.
        average: the running average of the parameterization's state, where the settings ask for one.
        skipped: steps that changed nothing, since their loss was higher than the settings allow.
        path: how the last step ran, see :class:`~mmdistill.runs.stepper.Stepper`.
        compile_seconds: that compiling has taken.
        setup_seconds: that all before the first step has taken, each time the run was resumed included.
        inner_seconds: that training networks between updates has taken; None where nobody knows, since steps are on a
            device that works on while the host does, or began there.
    """

    step: int
    parameterization: Parameterization
    objective: Objective
    optimizers: dict[str, torch.optim.Optimizer]
    schedule: ScheduleState
    finite: Tensor
    history: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    average: Tensors | None = None
    skipped: int = 0
    path: str = "eager"
    compile_seconds: float = 0.0
    setup_seconds: float = 0.0
    inner_seconds: float | None = 0.0

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return what is learned, by optimizer group."""
        return grouped(self.parameterization, self.objective)

    def module_states(self) -> dict[str, Any]:
        """Return copies of both modules' states, which :meth:`load_module_states` takes."""
        modules = {"parameterization": self.parameterization, "objective": self.objective}
        return {name: copied(module.state_dict()) for name, module in modules.items()}

    def load_module_states(self, states: Mapping[str, Any]) -> None:
        """Give both modules the states that :meth:`module_states` returned."""
        self.parameterization.load_state_dict(states["parameterization"])
        self.objective.load_state_dict(states["objective"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the running average of the samples, where there is one; afterwards the run goes on as it was."""
        with self._holding({} if self.average is None else {"parameterization": self.average}):
            yield

    @contextmanager
    def selected(self) -> Iterator[int]:
        """Hold what the set is made of, and yield the step that this is of; afterwards the run goes on as it was.

        It is the best step by validation or the last, of each the running average, where there is one.
        """
        if self.best is None:
            with self.averaged():
                yield self.step
            return
        with self._holding(self.best):
            yield self.best["step"]

    @contextmanager
    def _holding(self, states: Mapping[str, Any]) -> Iterator[None]:
        """Hold some modules' states and then again what was held before; nothing is copied where there are none."""
        own = self.module_states() if states else {}
        try:
            if states:
                self.load_module_states({**own, **states})
            yield
        finally:
            if states:
                self.load_module_states(own)

    def share(self) -> None:
        """Give all ranks the first one's start, which kernels of a device may round differently on each."""
        modules = (self.parameterization, self.objective)
        held = chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
        for tensor in (*held, *(self.average or {}).values()):
            ranks.share(tensor.detach())

    def stored_finite(self) -> Tensor:
        """Return whether all that is stored and learned is finite, a scalar on the device."""
        modules = (self.parameterization, self.objective)
        found = [tensor.isfinite().all() for module in modules for tensor in module.parameters()]
        return torch.stack(found).all() if found else torch.ones_like(self.finite)

    def tree(self) -> dict[str, Any]:
        """Return the state as a tree that the store can write."""
        network = self.schedule.network
        return {
            "step": self.step,
            "parameterization": dict(self.parameterization.state_dict()),
            "objective": dict(self.objective.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "network": None if network is None else [network.params, network.buffers],
            "age": self.schedule.age,
            "memory": self.schedule.memory,
            "history": [list(entry) for entry in self.history],
            "best": self.best,
            "average": self.average,
            "skipped": self.skipped,
            "path": self.path,
            "compile_seconds": self.compile_seconds,
            "setup_seconds": self.setup_seconds,
            "inner_seconds": self.inner_seconds,
        }

    def load(self, tree: Mapping[str, Any], device: torch.device) -> None:
        """Take over a tree that :meth:`tree` made.

        Raises:
            CheckpointError: its tensors do not fit this run.
        """

        def placed(tensors: Tensors) -> Tensors:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        try:
            self.load_module_states(tree)
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(tree["optimizers"][name])
            network = tree["network"]
            state = None if network is None else NetworkState(placed(network[0]), placed(network[1]))
            self.schedule = ScheduleState(state, tree["age"], placed(tree["memory"]))
            self.history = [(int(step), float(loss)) for step, loss in tree["history"]]
            self.best = tree["best"]
            self.average = None if tree["average"] is None else placed(tree["average"])
            self.skipped = tree.get("skipped", 0)  # of checkpoints that do not count them
            self.path, self.compile_seconds = tree["path"], tree["compile_seconds"]
            self.setup_seconds = tree["setup_seconds"]
            self.inner_seconds = None if self.inner_seconds is None else tree["inner_seconds"]
            self.step = tree["step"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run: {error}") from error


def out_of_patience(step: int, best: Mapping[str, Any] | None, patience: int) -> bool:
    """Return whether the best step is as many steps ago as a run is patient; 0: it is so without end."""
    return bool(patience) and best is not None and step - int(best["step"]) >= patience


def follow(average: Tensors, current: Parameterization, decay: float, step: int | None = None) -> None:
    """Move a running average towards the current state, in place; a teacher's labels are copied, not averaged.

    Args:
        average: what moves.
        current: whose state it follows.
        decay: what is kept of the average.
        step: counted from 0, of an average of the steps alone, whose weights are divided by their sum (as Adam corrects
            its moments); None: what it starts from counts for all steps before.
    """
    share = 1 - decay if step is None else (1 - decay) / (1 - decay ** (step + 1))
    taught = isinstance(current.labels, TeacherLabels)
    for name, tensor in current.state_dict().items():
        if tensor.is_floating_point() and not (taught and name.startswith("labels.")):
            average[name].lerp_(tensor.detach(), share)
        else:
            average[name].copy_(tensor)
