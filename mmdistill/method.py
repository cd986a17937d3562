"""A method as a value: a composition of the four columns of Table 1, with its settings."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn, get_args

from mmdistill.abilities import StoresSamples
from mmdistill.checks import refuse_missing_settings, require_made
from mmdistill.errors import ConfigError, UnknownNameError, did_you_mean, require_choice
from mmdistill.labels import LabelKind, require_label_kind
from mmdistill.names import as_option
from mmdistill.networks.schedules import NetworkSchedule, UnreadNetwork
from mmdistill.objectives.base import Objective, RealView
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import (
    TRAINING,
    OptimizerSpec,
    Settings,
    as_settings,
    known_names,
    own_names,
    read_in_closed_form,
    require_settings,
    watched,
)
from mmdistill.task import Task

Parameterizer = Callable[[Task, int, Settings, LabelKind, Draws], Parameterization]
"""Builds the initial parameterization: ``(task, budget, settings, label kind, draws)``."""


@dataclass(frozen=True)
class Storage:
    """A way of storing samples, for any method; it is called as a :data:`Parameterizer`.

    Args:
        build: builds the initial parameterization.
        summary: one line for users.
        optimizers: for the groups that it learns, if the method's own rates do not suit the units of its codes.
        fills: whether the builder itself fits as many codes as possible into ``Settings.stored_bytes``; otherwise a
            budget in bytes becomes the largest budget whose set fits into them.
        name: the value of ``--parameterization``; empty for those of a method or a user.
        pretraining: describes what must be trained before samples can be built, or where it is cached; a run with one
            checks itself before it trains (:mod:`mmdistill.rehearsal`).
    """

    build: Parameterizer
    summary: str = ""
    optimizers: Mapping[str, OptimizerSpec] = field(default_factory=dict)
    fills: bool = False
    name: str = ""
    pretraining: Callable[[Task], str] | None = None

    def __call__(self, task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        """Build the initial parameterization."""
        return self.build(task, budget, settings, label, draws)


Solver = Callable[[Task, int, Any, Draws], Parameterization]
"""Builds the finished set in closed form: ``(task, budget, settings, draws)``; it may read settings of its own."""


@dataclass(frozen=True)
class Configured:
    """An objective that is made from the settings, such as the number and rate of unrolled steps.

    Args:
        make: makes the objective from the method's :class:`~mmdistill.settings.Settings`, or a subclass of its own.
    """

    make: Callable[[Any], Objective]


@dataclass(frozen=True)
class ByClasses:
    """Settings that depend on the number of classes too, for example to keep the size of a whole real batch.

    Called with a budget alone, like any method's settings, it returns those for ten classes.

    Args:
        make: returns the settings for a budget and a number of classes.
    """

    make: Callable[[int, int], Settings]

    def __call__(self, budget: int) -> Settings:
        """Return the settings for ten classes."""
        return self.make(budget, 10)


@dataclass(frozen=True)
class Method:
    """One row of Table 1.

    Args:
        title: the name in the literature.
        objective: makes the objective; :class:`Configured`: from the settings.
        network: makes the schedule from the settings, like :class:`Configured`.
        settings: the published settings, as a function of the budget (ipc, nodes or users); :class:`ByClasses`: of the
            task's number of classes too.
        parameterization: builds codes and decoder; None is the domain's default (raw samples).
        label: ``hard``, ``soft``, ``unrestricted`` or ``teacher``, see :func:`~mmdistill.labels.make_labels`.
        summary: one line for ``mmdistill methods``.
        source: the paper.
        solve: a closed form that replaces the loop.
        sized: for a closed form, builds a set of the same bytes without solving anything; None: solving takes no time.
        judge: the judge that its sets are made for; empty: the domain's first judge.
        requires: raises a ConfigError for a task of its domain whose kind of samples it does not make.
    Raises:
        UnknownNameError: an unknown kind of labels.
        ConfigError: a network or settings that cannot be called.
    """

    title: str
    objective: Callable[[], Objective] | Configured | None
    network: Callable[[Any], NetworkSchedule]
    settings: Callable[[int], Settings]
    parameterization: Parameterizer | None = None
    label: LabelKind = "hard"
    summary: str = ""
    source: str = ""
    solve: Solver | None = None
    sized: Solver | None = None
    judge: str = ""
    requires: Callable[[Task], object] = lambda task: None

    def __repr__(self) -> str:
        """Return the method's title, summary, source and kind of labels in one line."""
        return f"Method({self.title}: {self.summary}{self.source and f' [{self.source}]'}, {self.label} labels)"

    def __post_init__(self) -> None:
        """Check the kind of labels, and that network and settings are functions."""
        require_label_kind(self.label)
        for name, given in (("network", self.network), ("settings", self.settings)):
            if not callable(given):
                raise ConfigError(
                    f"the {name} of {self.title} is a function that makes it, of the settings (network) or of the "
                    f"budget (settings), got {type(given).__name__}"
                )

    @property
    def storage(self) -> str:
        """How samples are stored, in words: the name or summary of a :class:`Storage`; empty for other functions."""
        builder = self.parameterization
        if isinstance(builder, Storage):
            return builder.name or builder.summary
        return "raw" if builder is None and self.solve is None else ""

    def describe_pretraining(self, task: Task) -> str:
        """Describe what building the samples trains first; empty if nothing."""
        builder = self.parameterization
        if not isinstance(builder, Storage) or builder.pretraining is None:
            return ""
        return builder.pretraining(task)

    def make_objective(self, settings: Settings) -> Objective:
        """Return the objective for given settings.

        Raises:
            ConfigError: the method has none, makes something else, or one whose view of real batches is unknown; or
                the settings lack what it reads.
        """
        make = self.objective
        if make is None:
            raise ConfigError(f"{self.title} has neither an objective nor a closed form")
        with refuse_missing_settings(self.title, settings):
            return build_objective(self.title, partial(make.make, settings) if isinstance(make, Configured) else make)

    def make_schedule(self, settings: Settings) -> NetworkSchedule:
        """Return the network schedule for given settings.

        Raises:
            ConfigError: the method makes something else, or the settings lack what it reads.
        """
        make = self.network
        if isinstance(make, type) and issubclass(make, NetworkSchedule) and takes_no_arguments(make):
            raise ConfigError(
                f"the network of {self.title} is a function of the settings, such as lambda settings: "
                f"{make.__name__}(), got the class itself"
            )
        with refuse_missing_settings(self.title, settings):
            schedule = make(settings)
        require_made(f"the network schedule of {self.title}", schedule, NetworkSchedule)
        return schedule

    def make_parameterization(self, task: Task, budget: int, settings: Settings, draws: Draws) -> Parameterization:
        """Return the initialised samples; of a closed form, the finished ones.

        Raises:
            ConfigError: a task of other samples, a budget that allows none, a storage that builds something else, or
                settings that lack what it reads.
        """
        self.requires(task)
        with refuse_missing_settings(self.title, settings):
            if self.solve is not None:
                solve = (self.sized or self.solve) if is_rehearsal() else self.solve
                samples = solve(task, budget, settings, draws)
            elif self.parameterization is not None:
                samples = self.parameterization(task, budget, settings, self.label, draws)
            elif isinstance(task, StoresSamples):
                samples = task.stored(budget, settings, self.label, draws)
            else:
                samples = raw_samples(task, budget, settings.init, self.label, draws)
        require_made(f"what {self.title} stores", samples, Parameterization)
        return samples

    def ignored_settings(self, budget: int, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that neither the method's schedule nor its objective reads.

        Fields of a user's own settings count only without a builder of samples, which may read them.
        """
        if self.solve is not None:
            return []
        defaults = self.settings(budget)
        settings, read = watched(defaults)  # the next line fills ``read`` with the names that making the parts reads
        schedule, objective = self.make_schedule(settings), self.make_objective(settings)
        prepares = getattr(schedule, "prepare", None) is not None  # its own minibatches, without ``augment``
        by_teacher = self.label == "teacher" and not schedule.gives_target
        reads = {name: name in read for name in TRAINING}
        reads["real_batch"] = objective.reads_real or "real_batch" in read
        reads["augment"] = objective.siamese or ("augment" in read and not prepares)
        reads["classes_at_once"] = objective.view == "classes" and objective.divided
        reads["teacher_epochs"] = by_teacher or "teacher_epochs" in read
        if self.parameterization is None:
            reads |= {name: name in read for name in own_names(defaults)}
        return [name for name in names if not reads.get(name, True)]

    def reads_no_network(self, settings: Settings) -> bool:
        """Return whether a run's samples are the same with any network: their start, steps and labels read none."""
        unread = settings.init in ("real", "noise") and isinstance(self.make_schedule(settings), UnreadNetwork)
        return self.label != "teacher" and (self.solve is not None or unread)

    def customised(
        self,
        storage: Storage | None = None,
        label: LabelKind | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> "Method":
        """Return the method with a user's storage, labels and settings in place of its own.

        Args:
            storage: how samples are stored; None is the method's way.
            label: the kind of labels; None is the method's.
            settings: by field name of :class:`Settings`; ``lr`` is the learning rate of the samples.
        Raises:
            ConfigError: an unknown setting, or a change that the method does not read.
        """
        if unnamed := [name for name in settings or {} if not isinstance(name, str)]:
            raise ConfigError(f"settings are called by their names, got {unnamed[0]!r}")
        changes = as_settings(settings or {})
        if changes and self.solve is not None:
            defaults = self.settings(1)  # of the same class at every budget
            read = read_in_closed_form(defaults, self.label)
            kept = {n for n, value in changes.items() if hasattr(defaults, n) and getattr(defaults, n) == value}
            if idle := [as_option(name) for name in changes if name not in read | kept]:
                raise ConfigError(
                    f"{self.title} has a closed form and takes no steps, so {', '.join(idle)} would do nothing"
                )
        method = self if storage is None else self.stored_as(storage)
        method = method if label is None else method.labelled(label)
        lr = changes.pop("lr", None)
        method = method.with_settings(**changes) if changes else method
        return method if lr is None else method.with_rate(lr)  # type: ignore[arg-type]  # the optimizer checks it

    def for_classes(self, classes: int | None) -> "Method":
        """Return the method with its settings for a task's number of classes, if they depend on it.

        Args:
            classes: how many; None: a task without.
        """
        by_classes = self.settings
        if not isinstance(by_classes, ByClasses) or classes is None:
            return self
        return replace(self, settings=lambda budget: by_classes.make(budget, classes))

    def _with(self, change: Callable[[Settings], Settings], **others: Any) -> "Method":
        """Return the method with settings changed for every budget (and number of classes), and ``others`` replaced."""
        base = self.settings
        if isinstance(base, ByClasses):
            by_classes = ByClasses(lambda budget, classes: change(base.make(budget, classes)))
            return replace(self, settings=by_classes, **others)
        return replace(self, settings=lambda budget: change(base(budget)), **others)

    def with_settings(self, **changes: object) -> "Method":
        """Return the method with some settings replaced for every budget.

        Raises:
            ConfigError: an unknown setting; or, once the budget is known, one that only other classes of settings have.
        """
        if unknown := [name for name in changes if name not in known_names()]:
            require_settings(unknown, self.settings(1).__dataclass_fields__)

        def changed(defaults: Settings) -> Settings:
            require_settings(changes, {**Settings.__dataclass_fields__, **defaults.__dataclass_fields__})
            return replace(defaults, **changes)  # type: ignore[arg-type]

        return self._with(changed)

    def labelled(self, label: LabelKind) -> "Method":
        """Return the method with labels of another kind; learned labels without an optimizer get Adam at 0.01.

        Raises:
            ConfigError: a closed form, whose labels are its own.
        """
        if self.solve is not None:
            raise ConfigError(f"{self.title} has a closed form, whose labels are its own")
        if label == self.label:  # with its own optimizers, perhaps none for its labels
            return self
        if label not in ("soft", "unrestricted"):
            return replace(self, label=label)

        def changed(defaults: Settings) -> Settings:
            return replace(defaults, optimizers={"labels": OptimizerSpec("adam", 0.01), **defaults.optimizers})

        return self._with(changed, label=label)

    def with_rate(self, lr: float) -> "Method":
        """Return the method with another learning rate of the samples.

        Raises:
            ConfigError: once the budget is known, if the method steps no samples.
        """

        def changed(defaults: Settings) -> Settings:
            if "codes" not in defaults.optimizers:
                raise ConfigError(f"{self.title} steps no samples, so a learning rate (--lr) means nothing to it")
            codes = replace(defaults.optimizers["codes"], lr=lr)
            return replace(defaults, optimizers={**defaults.optimizers, "codes": codes})

        return self._with(changed)

    def stored_as(self, storage: Storage) -> "Method":
        """Return the method with another way of storing its samples, and the optimizers of that.

        Raises:
            ConfigError: a closed form; or, once the budget is known, a method that learns no samples.
        """
        if self.solve is not None:
            raise ConfigError(f"{self.title} has a closed form, whose samples are stored as they are")

        def changed(defaults: Settings) -> Settings:
            if defaults.optimizers and "codes" not in defaults.optimizers:
                groups = " and ".join(defaults.optimizers)
                raise ConfigError(
                    f"{self.title} learns its samples' {groups} alone and leaves the samples as they are, so it takes "
                    "no other way of storing them"
                )
            return replace(defaults, optimizers={**defaults.optimizers, **storage.optimizers})

        return self._with(changed, parameterization=storage, requires=lambda task: None)


def takes_no_arguments(kind: type) -> bool:
    """Return whether a class can be made without arguments and has no parameter ``settings``."""
    parameters = inspect.signature(kind).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters.values() if p.default is p.empty and p.kind not in variadic]
    return not required and "settings" not in parameters


def build_objective(whose: str, make: Callable[[], Objective]) -> Objective:
    """Return the objective that a function makes.

    Args:
        whose: the method, for messages.
        make: the function, or the objective's class.
    Raises:
        ConfigError: an objective in the function's place; or the function makes something else, an objective whose
            ``__init__`` skips the module's, or one with an unknown view of real batches.
    """
    if isinstance(make, Objective):
        raise ConfigError(
            f"the objective of {whose} is made for each run, so a method takes what makes one (its class, or a "
            f"function), not a {type(make).__name__}"
        )
    try:
        objective = make()
    except AttributeError as error:
        if "Module.__init__()" not in str(error):
            raise
        raise ConfigError(f"the objective of {whose} cannot be made: {error}; begin with super().__init__()") from error
    require_made(f"the objective of {whose}", objective, Objective)
    if "_parameters" not in vars(objective):
        raise ConfigError(
            f"the __init__ of {type(objective).__name__} begins with super().__init__(), which is missing"
        )
    require_choice(f"the view of {type(objective).__name__}", objective.view, get_args(RealView))
    return objective


class MethodTable(dict[str, Method]):
    """Methods by name; the error for an unknown name suggests similar ones."""

    def __missing__(self, name: str) -> NoReturn:
        """Refuse an unknown name.

        Raises:
            UnknownNameError: always.
        """
        near = did_you_mean(str(name).lower().replace("_", "-"), self)
        raise UnknownNameError(
            f"no method {name!r} in this table{near} (there are: {', '.join(sorted(self))}); all methods for one kind "
            "of data are found by mmdistill.registry.get_method(get_domain('image'), name)"
        )
