"""Algorithm 1, one step at a time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor, nn

from mmdistill import composition
from mmdistill.abilities import Validates, given_teacher
from mmdistill.distilled import DistilledSet, classes_beside_soft_targets
from mmdistill.errors import ConfigError, require_choice
from mmdistill.execution import ranks
from mmdistill.execution.allocator import keep_freed_memory
from mmdistill.execution.capture import Graph
from mmdistill.execution.compilation import operations
from mmdistill.execution.precision import Precision, matrix_products, resolved
from mmdistill.execution.second_order import differentiable_again
from mmdistill.labels import TeacherLabels
from mmdistill.method import Method
from mmdistill.networks.architecture import network_title
from mmdistill.networks.schedules import EMPTY, ScheduleState, Synthetic, require_advanced
from mmdistill.networks.statistics import copied
from mmdistill.networks.teacher import soft_labels, trained_teacher
from mmdistill.networks.training import Trainer
from mmdistill.objectives.base import Network, Objective
from mmdistill.objectives.checks import require_given, require_gradients, require_loss, watched
from mmdistill.objectives.compiled import Compiled
from mmdistill.objectives.solved import Solved
from mmdistill.optimizers import anneal, is_active
from mmdistill.parameterizations.base import Chosen, Parameterization, decode_for_step
from mmdistill.rehearsal import rehearsal
from mmdistill.runs.first_step import require_real_weights, require_start
from mmdistill.runs.state import RunState, follow, out_of_patience
from mmdistill.runtime import Draws, describe_device, host_draws_from, peak_memory_bytes
from mmdistill.settings import Settings, require_plain
from mmdistill.store import detached
from mmdistill.task import Batch, ClassBatch, NetworkState, Task, augmented, real_classes, real_samples


class Distiller:
    """One run: a task, a method and a budget; :meth:`step` is one update of the synthetic data (Algorithm 1).

    Args:
        task: what to distil.
        method: how, with its settings for as many classes as the task has.
        budget: in the task's unit (ipc, nodes, users).
        seed: of everything random.
        settings: the method's hyper-parameters; the published ones for the budget by default.
        precision: the number formats, see :mod:`mmdistill.execution.precision`.
    Raises:
        ConfigError: an argument of another type, an unknown precision, or a composition that cannot work.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        budget: int,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        precision: Precision = "auto",
    ) -> None:
        composition.require_parts(task, method, budget, settings)
        self.task = task
        self.method = method.for_classes(task.num_classes)
        self.budget = budget
        self.settings = self.method.settings(budget) if settings is None else settings
        self.draws = Draws(seed, device=task.device)
        require_plain(self.settings)
        composition.require_selectable(task, self.method, self.settings)
        require_choice("precision", precision, get_args(Precision))
        self.precision = resolved(precision, task.device)
        self.schedule = self.method.make_schedule(self.settings)
        self.classes = None if task.num_classes is None else torch.arange(task.num_classes, device=task.device)
        self._compiled: Compiled | None = None
        self._graph: Callable[[], Graph] | None = None
        self._trainer: Trainer | None = None
        if task.device.type == "cpu":
            keep_freed_memory()
        self._teacher: NetworkState | None = None

    @cached_property
    def described(self) -> dict[str, object]:
        """The run's own network, objective, schedule and teacher as plain values, which identify the run."""
        return composition.describe_parts(self.task, self.method, self.budget, self.settings, self.schedule)

    def compile(self) -> None:
        """Compile the network functions that objectives call most, each at its first call."""
        self._compiled, self._trainer = Compiled.of(self.task, self.precision), None

    def capture(self, graph: Callable[[], Graph]) -> None:
        """Capture the training of networks between steps in such graphs; the step itself is captured by the caller."""
        self._graph, self._trainer = graph, None

    @property
    def compile_seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        step = 0.0 if self._compiled is None else self._compiled.seconds
        return step + (0.0 if self._trainer is None else self._trainer.compile_seconds)

    @property
    def uses_compiled(self) -> bool:
        """Whether any compiled function has run."""
        return self.compile_seconds > 0

    @property
    def steps(self) -> int:
        """Outer steps of the whole run; none for closed forms."""
        return 0 if self.method.solve is not None else self.settings.steps

    def start(self) -> RunState:
        """Build the initial state: initialised samples, new optimizers; refuse parts that do not go together."""
        if composition.trains_first(self.task, self.method, self.settings):
            self.rehearse()
        objective, parameterization, optimizers = self._compose()
        if composition.needs_teacher(parameterization, self.schedule):
            self._teacher = trained_teacher(self.task, self.settings.teacher_epochs)
        finite = torch.ones((), dtype=torch.bool, device=self.task.device)
        average = copied(parameterization.state_dict()) if self.settings.ema else None
        inner = 0.0 if self.task.device.type == "cpu" else None  # elsewhere timing it would wait for the device
        return RunState(0, parameterization, objective, optimizers, EMPTY, finite, average=average, inner_seconds=inner)

    def rehearse(self) -> Parameterization:
        """Refuse what :meth:`start` refuses, without its long computations; return samples of the same form."""
        with rehearsal():
            return self._compose()[1]

    def _compose(self) -> tuple[Objective, Parameterization, dict[str, torch.optim.Optimizer]]:
        """Build the objective, the initial samples and the optimizers of both; refuse those that do not go together."""
        objective = self.make_objective()
        objective.begin(self.task, self.draws.fold("objective"))
        samples = self.initial()
        optimizers = composition.check_and_build_optimizers(
            self.method, self.settings, samples, objective, self.task.device
        )
        return objective, samples, optimizers

    def make_objective(self) -> Objective:
        """Return the objective, checked against the task and the schedule; of a closed form, one that does nothing.

        Raises:
            ConfigError: bf16 for an objective that computes nothing in it, or parts that do not go together.
        """
        with host_draws_from(self.draws.fold("made").integer()):  # the weights of an objective's own networks
            objective = Solved() if self.method.solve else self.method.make_objective(self.settings)
        composition.require_precision(self.method, self.precision, objective)
        if self.method.solve is None:
            objective.check(self.task)
            require_given(objective, self.schedule)
        return objective

    def initial(self) -> Parameterization:
        """Build the initialised samples; of a closed form, the finished ones."""
        with composition.suggest_noise(self.task, self.method, self.budget, self.settings):
            return self.method.make_parameterization(self.task, self.budget, self.settings, self.draws.fold("start"))

    def real(self, run: RunState, key: Draws) -> Batch | ClassBatch:
        """Draw the real batch of a step, not augmented, in the objective's view; one sample if it reads none."""
        count = self.settings.real_batch if run.objective.reads_real else 1
        if run.objective.view == "classes" and self.classes is not None:
            return real_classes(self.task, key.fold("real"), self.classes, count)
        return real_samples(self.task, key.fold("real"), count)

    def batches(
        self,
        run: RunState,
        network: ScheduleState,
        decoded: Batch,
        real: Batch | ClassBatch,
        key: Draws,
        chosen: Chosen | None,
    ) -> tuple[Batch | ClassBatch, Batch | ClassBatch]:
        """Return the synthetic and the real batch of a step, in the objective's view, augmented alike.

        Args:
            run: the state.
            network: the step's network.
            decoded: the step's synthetic samples.
            real: the step's real batch, not augmented.
            key: the step's.
            chosen: which samples of each class ``decoded`` holds; None: all.
        """
        syn: Batch | ClassBatch = self._relabel(run, decoded, network) if run.objective.reads_labels else decoded
        if chosen is not None:
            syn = chosen.by_class(decoded)
        elif run.objective.view == "classes" and isinstance(syn, Batch):
            syn = run.parameterization.class_batches(syn)
        if self.settings.augment and run.objective.siamese:
            siamese = key.fold("augment")
            syn = augmented(self.task, siamese, syn, shared=True)
            real = augmented(self.task, siamese, real, shared=True)
        return syn, real

    def _relabel(self, run: RunState, syn: Batch, network: ScheduleState) -> Batch:
        """Return a decoded batch with its teacher's labels, if it has a teacher: the step's target, or the run's."""
        labels, teacher = run.parameterization.labels, self._teacher
        if network.target is not None and network.network is not None:
            buffers = network.network.buffers if network.target_buffers is None else network.target_buffers
            teacher = NetworkState(network.target, buffers)
        if not isinstance(labels, TeacherLabels) or teacher is None:
            return syn
        labels.assign(soft_labels(self.task, teacher, syn.inputs))
        return syn._replace(targets=labels())

    def _final_labeller(self, run: RunState, steps: int) -> ScheduleState:
        """Return the schedule's state whose expert labels the finished samples after ``steps`` steps.

        It is the last step's if they are redrawn or averaged after it; else EMPTY, and samples keep that step's labels.
        """
        taught = isinstance(run.parameterization.labels, TeacherLabels) and self.schedule.gives_target
        if not (steps and taught and (run.parameterization.redraws or run.average is not None)):
            return EMPTY
        before = EMPTY._replace(age=steps - 1)  # schedules with targets read only the age
        return self.schedule.fetch(self.task, before, self.key(replace(run, step=steps - 1)).fold("network"))

    def _network(self, run: RunState, schedule: ScheduleState) -> Network:
        """Return a step's network as objectives read it."""
        if schedule.network is None:
            raise ConfigError(f"{type(self.schedule).__name__} gave no network")
        return Network(
            self.task,
            schedule.network,
            target=schedule.target,
            compiled=self._compiled,
            step=run.step,
            age=schedule.age,
            precision=self.precision,
            classes_at_once=self.settings.classes_at_once,
            accuracy=schedule.accuracy,
        )

    def operations(self, run: RunState) -> int:
        """Count the floating-point operations of the first step's objective and gradient; the run stays as it is."""
        before = run.module_states()  # restored below, since computing some objectives trains them (an adversary)
        first = replace(run, step=0, schedule=EMPTY)
        key = self.key(first)
        real = self.real(first, key)
        with self._numerics(first):
            schedule = self._fetch(first, EMPTY, key)
            count = operations(lambda: self.gradients(first, schedule, real, key))[1]
        run.load_module_states(before)
        return count

    def _fetch(self, run: RunState, schedule: ScheduleState, key: Draws) -> ScheduleState:
        """Return the schedule's state with a step's network.

        Its training is never compiled, so that a resumed run makes the same networks again.
        """
        with Trainer(self.task, self._training_precision(run)).training():
            return self.schedule.fetch(self.task, schedule, key.fold("network"))

    def _advance(self, run: RunState, schedule: ScheduleState, syn: Synthetic, key: Draws) -> ScheduleState:
        """Return the schedule's state after a step, its network trained with the step's compilation and capture."""
        if self._trainer is None:
            compiles, precision = self._compiled is not None, self._training_precision(run)
            self._trainer = Trainer(self.task, precision, compiles=compiles, graph=self._graph)
        with self._trainer.training():
            advanced = self.schedule.advance(self.task, schedule, syn, key.fold("inner"))
        return require_advanced(self.schedule, schedule, advanced)

    def _training_precision(self, run: RunState) -> Precision:
        """Return the number formats in which networks train."""
        return "float32" if run.objective.exact else self.precision

    @contextmanager
    def _numerics(self, run: RunState) -> Iterator[None]:
        """Within this context matrix products have the step's precision and attention is twice differentiable."""
        with matrix_products(self._training_precision(run), self.task.device), differentiable_again(self.method.title):
            yield

    def key(self, run: RunState) -> Draws:
        """Return the key of this rank's random numbers in the run's current step."""
        return self.draws.fold("step", run.step, "rank", ranks.rank())

    def step(self, run: RunState, gradients: "Gradients | None" = None) -> tuple[RunState, Tensor]:
        """Take one outer step; return the state, updated in place, and the loss, still on the device.

        Args:
            run: the state.
            gradients: a faster computation of :meth:`gradients`; None is that method itself.
        """
        key = self.key(run)
        with self._numerics(run):
            schedule, real = self._fetch(run, run.schedule, key), self.real(run, key)
            if run.step == 0:
                require_real_weights(self.task, run.objective, real)
            loss, group_gradients = (gradients or self.gradients)(run, schedule, real, key)
            if run.step == 0:
                require_start(run, self.active(run), loss, group_gradients, key.fold("synthetic"))
            if self._skips(loss):
                run.skipped += 1
            else:
                run.finite &= torch.isfinite(loss)
                self._update(run, group_gradients)
                run.parameterization.project()
            if run.average is not None:
                since = None if self.settings.ema_start else run.step
                follow(run.average, run.parameterization, self.settings.ema, since)

            def current() -> Batch:
                with torch.no_grad():
                    decoded: Batch = run.parameterization(key.fold("advance"))
                return decoded

            began = time.perf_counter()
            run.schedule = self._advance(run, schedule, current, key)
            if run.inner_seconds is not None:
                run.inner_seconds += time.perf_counter() - began
        run.step += 1
        return run, loss

    def gradients(
        self, run: RunState, schedule: ScheduleState, real: Batch | ClassBatch, key: Draws
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return a step's loss and its gradients with respect to the tensors of all active groups, in group order."""
        network, samples = self._network(run, schedule), run.parameterization
        most = run.objective.samples_read if run.objective.view == "flat" else None
        decoded, chosen = decode_for_step(samples, self.settings.syn_batch, most, real, key)
        syn, real = self.batches(run, schedule, decoded, real, key, chosen)
        with nullcontext() if run.step else watched(run.objective, network, syn, real):
            loss = run.objective(network, syn, real, key.fold("objective"))
        if (penalty := samples.penalty(network.features, decoded.inputs, chosen)) is not None:
            loss = loss + penalty
        tensors = self._active_parameters(run)
        require_loss(run.objective, loss, learns=bool(tensors))
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True) if tensors else ()
        codes = {id(tensor) for tensor in run.groups().get("codes", ())}
        code_gradients = [gradient for tensor, gradient in zip(tensors, gradients, strict=True) if id(tensor) in codes]
        require_gradients(run.objective, code_gradients or gradients)
        return loss.detach(), list(gradients)

    def active(self, run: RunState) -> tuple[str, ...]:
        """Return the names of the groups that this step updates."""
        return tuple(name for name in run.groups() if is_active(self.settings.optimizers[name], run.step))

    def _active_parameters(self, run: RunState) -> list[nn.Parameter]:
        """Return the tensors of all active groups, in group order."""
        groups = run.groups()
        return [parameter for name in self.active(run) for parameter in groups[name]]

    def _skips(self, loss: Tensor) -> bool:
        """Return whether the step is skipped because its loss, averaged over ranks, exceeds ``skip_above``."""
        return bool(self.settings.skip_above) and bool(ranks.averages([loss.clone()])[0] > self.settings.skip_above)

    def _update(self, run: RunState, gradients: list[Tensor | None]) -> None:
        """Average the gradients over ranks, clip them, and step the optimizer of every active group."""
        averages = iter(ranks.averages([g for g in gradients if g is not None]))
        tensors = self._active_parameters(run)
        for parameter, gradient in zip(tensors, gradients, strict=True):
            parameter.grad = None if gradient is None else next(averages)
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(tensors, self.settings.clip)
        for name in self.active(run):
            optimizer, spec = run.optimizers[name], self.settings.optimizers[name]
            anneal(optimizer, spec, run.step, self.steps)
            optimizer.step()

    def out_of_patience(self, run: RunState) -> bool:
        """Return whether the last ``settings.patience`` validations found no better step."""
        return out_of_patience(run.step, run.best, self.settings.patience * self.settings.validate_every)

    def validate(self, run: RunState) -> None:
        """Keep the current step if it is the best on validation data.

        All ranks use the first one's score: scores may differ between devices by a rounding, and ranks that disagree on
        when to stop would wait for each other forever. Without validation data the last step is kept.
        """
        assert isinstance(self.task, Validates)
        with run.averaged():
            samples = self._decode_finished(run, run.step)
            score = ranks.gathered(self.task.validate(samples, self.draws.fold("validate"), run.objective.learned()))[0]
            if score is not None and (run.best is None or score > run.best["score"]):
                run.best = {"score": score, "step": run.step, **run.module_states()}

    def _decode_finished(self, run: RunState, step: int) -> Batch:
        """Decode the samples, with their labels, as the finished set after ``step`` steps holds them."""
        with torch.no_grad():
            decoded = run.parameterization.finished(self.draws.fold("decode"))
            batch = self._relabel(run, decoded, self._final_labeller(run, step))
            if isinstance(run.parameterization.labels, TeacherLabels) and isinstance(batch.targets, Tensor):
                ranks.share(batch.targets)  # each rank has drawn its own teacher for the last step
        return batch

    def result(self, run: RunState, method_name: str, seconds: float) -> DistilledSet:
        """Return the run's set at its selected step; the run stays as it is."""
        with run.selected() as step:
            batch = self._decode_finished(run, step)
            return DistilledSet(
                detached(batch),
                self.task.describe(),
                method_name,
                self.budget,
                run.parameterization.stored_bytes(),
                learned={name: tensor.to("cpu", copy=True) for name, tensor in run.objective.learned().items()},
                seed=self.draws.seed,
                steps=step,
                settings=asdict(self.settings),
                seconds=seconds,
                peak_memory_bytes=peak_memory_bytes(self.task.device),
                device=describe_device(self.task.device),
                precision=self.precision,
                parameterization=self.method.storage,
                network="" if self.method.reads_no_network(self.settings) else network_title(self.task),
                label=run.parameterization.labels.title,
                judge=self.method.judge,
                described=self.described,
                teacher=str(given_teacher(self.task)) if composition.TEACHER in self.described else "",
                taken=run.step,
                classes=classes_beside_soft_targets(run.parameterization.classes, batch.targets),
            )


Gradients = Callable[[RunState, ScheduleState, Batch | ClassBatch, Draws], tuple[Tensor, list[Tensor | None]]]
"""``(run, its network, real batch, key) -> loss, gradients``, see :meth:`Distiller.gradients`."""
