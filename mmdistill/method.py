"""What a method is: a composition of four columns of Table 1, as a value, with its settings."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn, get_args

from mmdistill.abilities import StoresSamples
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
        optimizers: for the groups that it learns, where a method's own rates are for other units than its codes have.
        fills: whether the builder fits as many codes as it can into given bytes (``Settings.stored_bytes``); else these
            become the largest budget whose set takes no more.
        name: what ``--parameterization`` calls it; empty for those of a method or a user.
        pretraining: returns in words what must be trained before samples can be built, or where it is cached; a run
            with one checks itself before it trains (:mod:`mmdistill.rehearsal`).
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


Solver = Callable[[Task, int, Settings, Draws], Parameterization]
"""Builds the finished set in closed form: ``(task, budget, settings, draws)``."""


@dataclass(frozen=True)
class Configured:
    """An objective with hyper-parameters of its own that come from the settings (unrolled steps, their rate).

    Args:
        make: makes the objective, of the method's own kind of :class:`~mmdistill.settings.Settings`.
    """

    make: Callable[[Any], Objective]


@dataclass(frozen=True)
class ByClasses:
    """Settings that depend on the number of classes too, as those of a real batch of one size in all do.

    Called with a budget alone, as settings are that do not, it returns those of ten classes.

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
        objective: makes the objective, from the settings where it is :class:`Configured`.
        network: makes the schedule from the settings.
        settings: the published settings, as a function of the budget (ipc, nodes or users); :class:`ByClasses`: of the
            task's number of classes too.
        parameterization: builds codes and decoder; None is the domain's default (raw samples).
        label: ``hard``, ``soft``, ``unrestricted`` or ``teacher``, see :func:`~mmdistill.labels.make_labels`.
        summary: one line for ``mmdistill methods``.
        source: the paper.
        solve: a closed form that replaces the loop; of the settings it may read fields of its own.
        sized: of a closed form, builds a set of the same bytes without solving anything; None: solving takes no time.
        judge: whose scores its sets are made for; empty: the domain's first judge.
        domains: of a method of all domains (``CORE_METHODS``), those that have it; a domain's own are its alone.
        requires: raises a ConfigError for a task of its domain whose samples are of another kind than it makes.
    Raises:
        UnknownNameError: labels of no known kind.
        ConfigError: a network or settings that are no function.
    """

    title: str
    objective: Callable[[], Objective] | Configured | None
    network: Callable[[Settings], NetworkSchedule]
    settings: Callable[[int], Settings]
    parameterization: Parameterizer | None = None
    label: LabelKind = "hard"
    summary: str = ""
    source: str = ""
    solve: Solver | None = None
    sized: Solver | None = None
    judge: str = ""
    domains: tuple[str, ...] = ("image",)
    requires: Callable[[Task], object] = lambda task: None

    def __repr__(self) -> str:
        """Return in one line what the method is, where it comes from, and how its samples are labelled."""
        return f"Method({self.title}: {self.summary}{self.source and f' [{self.source}]'}, {self.label} labels)"

    def __post_init__(self) -> None:
        """Check the kind of labels, and that what a run makes is given as what makes it."""
        require_label_kind(self.label)
        for name, given in (("network", self.network), ("settings", self.settings)):
            if not callable(given):
                raise ConfigError(
                    f"the {name} of {self.title} is a function that makes it, of the settings (network) or of the "
                    f"budget (settings), got {type(given).__name__}"
                )

    @property
    def storage(self) -> str:
        """How samples are stored, in words: a parameterization's name or summary; empty where only code says it."""
        if self.parameterization is None and self.solve is None:
            return "raw"
        return (found.name or found.summary) if isinstance(found := self.parameterization, Storage) else ""

    def describe_pretraining(self, task: Task) -> str:
        """Return what building its samples trains first, in words; empty where nothing is."""
        told = found.pretraining if isinstance(found := self.parameterization, Storage) else None
        return "" if told is None else told(task)

    def make_objective(self, settings: Settings) -> Objective:
        """Return the objective for some settings.

        Raises:
            ConfigError: the method has none, something else, or one that reads real batches in no known way.
        """
        if self.objective is None:
            raise ConfigError(f"{self.title} has neither an objective nor a closed form")
        made = self.objective
        return made_objective(self.title, partial(made.make, settings) if isinstance(made, Configured) else made)

    def make_schedule(self, settings: Settings) -> NetworkSchedule:
        """Return the network schedule for some settings.

        Raises:
            ConfigError: the method makes something else.
        """
        made = self.network
        if isinstance(made, type) and issubclass(made, NetworkSchedule) and made_of_nothing(made):
            raise ConfigError(
                f"the network of {self.title} is a function of the settings, such as lambda settings: "
                f"{made.__name__}(), got the class itself"
            )
        schedule = self.network(settings)
        require_made(f"the network schedule of {self.title}", schedule, NetworkSchedule)
        return schedule

    def make_parameterization(self, task: Task, budget: int, settings: Settings, draws: Draws) -> Parameterization:
        """Return the initialised samples; of a closed form, the finished ones.

        Raises:
            ConfigError: a task of other samples, a budget that allows none, or a storage that builds something else.
        """
        self.requires(task)
        if self.solve is not None:
            solve = (self.sized or self.solve) if is_rehearsal() else self.solve
            made = solve(task, budget, settings, draws)
        elif self.parameterization is not None:
            made = self.parameterization(task, budget, settings, self.label, draws)
        elif isinstance(task, StoresSamples):
            made = task.stored(budget, settings, self.label, draws)
        else:
            made = raw_samples(task, budget, settings.init, self.label, draws)
        require_made(f"what {self.title} stores", made, Parameterization)
        return made

    def ignored_settings(self, budget: int, names: Iterable[str]) -> list[str]:
        """Return those of some settings that neither the method's networks nor its objective look at.

        Fields of a user's own count where no builder of samples may read them too.
        """
        if self.solve is not None:
            return []
        own = self.settings(budget)
        settings, read = watched(own)  # the next two lines fill ``read`` with the names that they look at
        schedule, objective = self.make_schedule(settings), self.make_objective(settings)
        prepares = getattr(schedule, "prepare", None) is not None  # minibatches in a way of its own
        by_teacher = self.label == "teacher" and not schedule.gives_target
        reads = {name: name in read for name in TRAINING}
        reads["real_batch"] = objective.reads_real or "real_batch" in read
        reads["augment"] = objective.siamese or ("augment" in read and not prepares)
        reads["classes_at_once"] = objective.view == "classes" and objective.divided
        reads["teacher_epochs"] = by_teacher or "teacher_epochs" in read
        if self.parameterization is None:
            reads |= {name: name in read for name in own_names(own)}
        return [name for name in names if not reads.get(name, True)]

    def reads_no_network(self, budget: int) -> bool:
        """Return whether its samples are the same with any network: it neither steps, starts nor labels by one."""
        settings = self.settings(budget)
        stepped = settings.init in ("real", "noise") and isinstance(self.make_schedule(settings), UnreadNetwork)
        return self.label != "teacher" and (self.solve is not None or stepped)

    def customised(
        self,
        storage: Storage | None = None,
        label: LabelKind | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> "Method":
        """Return the method with what a user puts in place of its own.

        Args:
            storage: how samples are stored; None is the method's way.
            label: the kind of labels; None is the method's.
            settings: by field name of :class:`Settings`; ``lr`` is the learning rate of the samples.
        Raises:
            ConfigError: something that the method does not read, or an unknown setting.
        """
        if unnamed := [name for name in settings or {} if not isinstance(name, str)]:
            raise ConfigError(f"settings are called by their names, got {unnamed[0]!r}")
        changes = as_settings(settings or {})
        if changes and self.solve is not None:
            own = self.settings(1)  # of one class, whatever the budget
            moved = {name for name, value in changes.items() if not hasattr(own, name) or getattr(own, name) != value}
            read = read_in_closed_form(own, self.label)
            if idle := [as_option(name) for name in changes if name in moved - read]:
                raise ConfigError(
                    f"{self.title} has a closed form and takes no steps, so {', '.join(idle)} would do nothing"
                )
        found = self if storage is None else self.stored_as(storage)
        found = found if label is None else found.labelled(label)
        lr = changes.pop("lr", None)
        found = found.with_settings(**changes) if changes else found
        return found if lr is None else found.with_rate(lr)  # type: ignore[arg-type]  # the optimizer checks the number

    def for_classes(self, classes: int | None) -> "Method":
        """Return the method with its settings for a task's number of classes, where they depend on it.

        Args:
            classes: how many; None: a task without.
        """
        own = self.settings
        if not isinstance(own, ByClasses) or classes is None:
            return self
        return replace(self, settings=lambda budget: own.make(budget, classes))

    def _with(self, change: Callable[[Settings], Settings], **others: Any) -> "Method":
        """Return the method with its settings changed, whatever the budget (and the classes), and with other parts."""
        base = self.settings
        if isinstance(base, ByClasses):
            return replace(
                self, settings=ByClasses(lambda budget, classes: change(base.make(budget, classes))), **others
            )
        return replace(self, settings=lambda budget: change(base(budget)), **others)

    def with_settings(self, **changes: object) -> "Method":
        """Return the method with some settings replaced, whatever the budget.

        Raises:
            ConfigError: an unknown setting; once the budget is known, one that settings of another class have.
        """
        if unknown := [name for name in changes if name not in known_names()]:
            require_settings(unknown, self.settings(1).__dataclass_fields__)

        def changed(own: Settings) -> Settings:
            require_settings(changes, {**Settings.__dataclass_fields__, **own.__dataclass_fields__})
            return replace(own, **changes)  # type: ignore[arg-type]

        return self._with(changed)

    def labelled(self, label: LabelKind) -> "Method":
        """Return the method with labels of another kind; learned ones for which it has no rate get Adam's 0.01.

        Raises:
            ConfigError: a closed form, whose labels are its own.
        """
        if self.solve is not None:
            raise ConfigError(f"{self.title} has a closed form, whose labels are its own")
        if label == self.label:
            return self
        if label not in ("soft", "unrestricted"):
            return replace(self, label=label)

        def changed(own: Settings) -> Settings:
            return replace(own, optimizers={"labels": OptimizerSpec("adam", 0.01), **own.optimizers})

        return self._with(changed, label=label)

    def with_rate(self, lr: float) -> "Method":
        """Return the method with another learning rate of the samples.

        Raises:
            ConfigError: once the budget is known, where it steps no samples.
        """

        def changed(own: Settings) -> Settings:
            if "codes" not in own.optimizers:
                raise ConfigError(f"{self.title} steps no samples, so a learning rate (--lr) means nothing to it")
            codes = replace(own.optimizers["codes"], lr=lr)
            return replace(own, optimizers={**own.optimizers, "codes": codes})

        return self._with(changed)

    def stored_as(self, storage: Storage) -> "Method":
        """Return the method with another way of storing its samples, and the rates that this needs.

        Raises:
            ConfigError: a closed form, which has a way of its own; once the budget is known, a method that learns no
                samples.
        """
        if self.solve is not None:
            raise ConfigError(f"{self.title} has a closed form, whose samples are stored as they are")

        def changed(own: Settings) -> Settings:
            if own.optimizers and "codes" not in own.optimizers:
                raise ConfigError(
                    f"{self.title} learns its samples' {' and '.join(own.optimizers)} alone and leaves the samples as "
                    "they are, so it takes no other way of storing them"
                )
            return replace(own, optimizers={**own.optimizers, **storage.optimizers})

        return self._with(changed, parameterization=storage, requires=lambda task: None)


def made_of_nothing(kind: type) -> bool:
    """Return whether a class needs nothing to be made, and no settings, so that it is not made of these."""
    parameters = inspect.signature(kind).parameters
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [one for one in parameters.values() if one.default is one.empty and one.kind not in various]
    return not needed and "settings" not in parameters


def made_objective(whose: str, make: Callable[[], Objective]) -> Objective:
    """Return the objective that a function makes.

    Args:
        whose: it is, for messages.
        make: the function, or the objective's class.
    Raises:
        ConfigError: an objective in the function's place, or a function of something else than an objective that was
            set up as a module and reads real batches in a known way.
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


def require_made(what: str, made: object, wanted: type) -> None:
    """Refuse what a function made, unless it is of the type that the function is there for.

    Raises:
        ConfigError: naming both types.
    """
    if not isinstance(made, wanted):
        raise ConfigError(f"{what} is of type {type(made).__name__}, where a method needs {wanted.__name__}")


class MethodTable(dict[str, Method]):
    """Methods by name; the error for a name that is not there says which names are near."""

    def __missing__(self, name: str) -> NoReturn:
        """Refuse a name that is not there.

        Raises:
            UnknownNameError: always.
        """
        near = did_you_mean(str(name).lower().replace("_", "-"), self)
        raise UnknownNameError(
            f"no method {name!r} in this table{near} (there are: {', '.join(sorted(self))}); all methods for one kind "
            "of data are found by mmdistill.registry.get_method(get_domain('image'), name)"
        )
