"""The state of a run: all that a step updates and a checkpoint holds."""

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
from mmdistill.networks.schedules import ScheduleState
from mmdistill.networks.statistics import copied
from mmdistill.objectives.base import Objective
from mmdistill.parameterizations.base import Parameterization
from mmdistill.task import NetworkState, Tensors


@dataclass
class RunState:
    """All that resuming needs; random numbers need no state, since they derive from the seed and the step.

    Args:
        step: outer steps taken.
        parameterization: codes, decoder and labels.
        objective: with the scalars it learns.
        optimizers: one per group.
        schedule: the network schedule's state.
        finite: whether every loss so far was finite, but for those of skipped steps, on the device.
        history: ``(step, loss)`` at the steps at which the loss was read.
        best: the best step by validation: score, step, both modules' states.
        average: the running average of the parameterization's state, if the settings want one.
        skipped: steps that were skipped, since their loss exceeded ``skip_above``.
        path: how the last step ran, see :class:`~mmdistill.runs.stepper.Stepper`.
        compile_seconds: spent on compiling.
        setup_seconds: spent before the first step, summed over all times the run was started or resumed.
        inner_seconds: spent on training networks between updates; None if unknown, since the run is, or began, on a
            device that computes asynchronously.
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
        """Return the learned parameters by optimizer group, without a group that appeared after the first step."""
        groups = grouped(self.parameterization, self.objective)
        return {name: group for name, group in groups.items() if name in self.optimizers or not self.optimizers}

    def module_states(self) -> dict[str, Any]:
        """Return copies of both modules' states, for :meth:`load_module_states`."""
        modules = {"parameterization": self.parameterization, "objective": self.objective}
        return {name: copied(module.state_dict()) for name, module in modules.items()}

    def load_module_states(self, states: Mapping[str, Any]) -> None:
        """Load states that :meth:`module_states` returned."""
        self.parameterization.load_state_dict(states["parameterization"])
        self.objective.load_state_dict(states["objective"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the parameterization holds its running average, if there is one."""
        with self._holding({} if self.average is None else {"parameterization": self.average}):
            yield

    @contextmanager
    def selected(self) -> Iterator[int]:
        """Within this context the modules hold the states that the set is made of; yields the step of these.

        The step is the best one by validation, otherwise the last; with a running average, that of this step.
        """
        if self.best is None:
            with self.averaged():
                yield self.step
            return
        with self._holding(self.best):
            yield self.best["step"]

    @contextmanager
    def _holding(self, states: Mapping[str, Any]) -> Iterator[None]:
        """Within this context the named modules hold these states; copies nothing if there are none."""
        if not states:
            yield
            return
        former = self.module_states()
        try:
            self.load_module_states({**former, **states})
            yield
        finally:
            self.load_module_states(former)

    def share(self) -> None:
        """Copy the first rank's initial state to all ranks, since kernels may round differently on each device."""
        modules = (self.parameterization, self.objective)
        stored = chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
        for tensor in (*stored, *(self.average or {}).values()):
            ranks.share(tensor.detach())

    def stored_finite(self) -> Tensor:
        """Return whether all parameters are finite, as a scalar on the device."""
        modules = (self.parameterization, self.objective)
        finite = [tensor.isfinite().all() for module in modules for tensor in module.parameters()]
        return torch.stack(finite).all() if finite else torch.ones_like(self.finite)

    def tree(self) -> dict[str, Any]:
        """Return the state as a tree for the store."""
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
        """Load a tree that :meth:`tree` returned.

        Raises:
            CheckpointError: its tensors do not fit this run.
        """

        def to_device(tensors: Tensors) -> Tensors:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        try:
            self.load_module_states(tree)
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(tree["optimizers"][name])
            network = tree["network"]
            state = None if network is None else NetworkState(to_device(network[0]), to_device(network[1]))
            self.schedule = ScheduleState(state, tree["age"], to_device(tree["memory"]))
            self.history = [(int(step), float(loss)) for step, loss in tree["history"]]
            self.best = tree["best"]
            self.average = None if tree["average"] is None else to_device(tree["average"])
            self.skipped = tree["skipped"]
            self.path, self.compile_seconds = tree["path"], tree["compile_seconds"]
            self.setup_seconds = tree["setup_seconds"]
            self.inner_seconds = None if self.inner_seconds is None else tree["inner_seconds"]
            self.step = tree["step"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run: {error}") from error


def out_of_patience(step: int, best: Mapping[str, Any] | None, patience: int) -> bool:
    """Return whether the best step is at least ``patience`` steps ago; never if that is 0."""
    return bool(patience) and best is not None and step - int(best["step"]) >= patience


def follow(average: Tensors, current: Parameterization, decay: float, step: int | None = None) -> None:
    """Move a running average towards the current state, in place.

    Args:
        average: is updated.
        current: the parameterization with the current state.
        decay: the weight of the average.
        step: counted from 0; the average is then over the steps alone, its weights divided by their sum (Adam's bias
            correction). None: the initial average counts for all steps before.
    """
    share = 1 - decay if step is None else (1 - decay) / (1 - decay ** (step + 1))
    for name, tensor in current.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor.detach(), share)
        else:
            average[name].copy_(tensor)
