"""A method's hyper-parameters as plain values."""

from collections.abc import Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, Literal, get_args

from mmdistill.checks import are_numbers, is_of, require_at_least, require_below_one
from mmdistill.choices import InitKind as InitKind
from mmdistill.choices import InnerOptimizer, MaskedBy, Pacing, TrainingPrecision, starts
from mmdistill.errors import ConfigError, did_you_mean, require_choice

LEAST: Mapping[str, float] = {
    "steps": 0,
    "real_batch": 1,
    "syn_batch": 0,
    "outer_steps": 1,
    "inner_steps": 0,
    "inner_lr": 0.0,
    "inner_batch": 0,
    "inner_momentum": 0.0,
    "inner_parts": 1,
    "inner_window": 0,
    "ridge": 0.0,
    "experts": 1,
    "expert_steps": 1,
    "start_epochs": 1,
    "start_first": 0,
    "start_bound": 0,
    "start_steps": 0,
    "expert_sam": 0.0,
    "expert_gap": 0.0,
    "expert_lr": 0.0,
    "expert_batch": 0,
    "expert_epochs": 0,
    "expert_easy": 0.0,
    "expert_joining": 0,
    "masked": 0.0,
    "teacher_epochs": 1,
    "ema": 0.0,
    "clip": 0.0,
    "skip_above": 0.0,
    "validate_every": 0,
    "patience": 0,
    "classes_at_once": 0,
    "kept_steps": -1,
    "stored_bytes": 0,
    "interactions_per_user": 0,
}
"""The least value of each number in :class:`Settings`; where it is an integer, so is the setting."""


MEMORY_ONLY = ("classes_at_once", "kept_steps")
"""Settings that bound memory and change results by rounding alone, so a run may resume with others."""
AT_RESUME = ("steps", *MEMORY_ONLY)
"""Settings that may change when a run resumes: the number of steps and the bounds of memory."""
ALL_SAMPLES = 1_000_000
"""A value of ``inner_batch`` for all synthetic samples."""
ALL_REAL = 1_000_000_000
"""A value of ``real_batch`` for all real samples."""
OptimizerName = Literal["sgd", "adam", "adamw", "lamb", "adabelief"]


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer of one group of learned tensors.

    Args:
        name: ``sgd``, ``adam``, ``adamw`` (torch.optim), ``lamb`` or ``adabelief``.
        lr: learning rate.
        momentum: for SGD.
        betas: for all but SGD.
        weight_decay: L2 coefficient (decoupled for AdamW).
        maximize: ascend instead of descend.
        active: ``(start, stop, period)``: the group is updated in steps with ``start <= step % period < stop``. None:
            in every step.
        cosine: anneal the rate over the run, to ``floor``.
        floor: the final rate of the annealing, as a fraction of ``lr``.
    Raises:
        ConfigError: an unknown name, or a value out of range.
    """

    name: OptimizerName = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    maximize: bool = False
    active: tuple[int, int, int] | None = None
    cosine: bool = False
    floor: float = 0.0

    def __post_init__(self) -> None:
        require_choice("the optimizer", self.name, get_args(OptimizerName))
        require_at_least(self, {"lr": 0.0, "weight_decay": 0.0, "floor": 0.0})
        require_below_one(self, "momentum")
        if self.floor > 1:
            raise ConfigError(f"floor is a share of the rate between 0 and 1, got {self.floor}")
        if self.active is not None and not (
            are_numbers(self.active, Integral, 3) and 0 <= self.active[0] < self.active[1] <= self.active[2]
        ):
            raise ConfigError(f"active is (start, stop, period) with 0 <= start < stop <= period, got {self.active!r}")
        if not (are_numbers(self.betas, Real, 2) and all(0 <= beta < 1 for beta in self.betas)):
            raise ConfigError(f"betas are two numbers of at least 0 and below 1, got {self.betas!r}")


@dataclass(frozen=True)
class Settings:
    """A method's hyper-parameters; each may be overridden in Python, most by an option and in YAML.

    A method with hyper-parameters of its own subclasses this, as a frozen dataclass with more fields.

    Args:
        steps: updates of the synthetic data.
        real_batch: real samples per class (class-wise objectives) or in all (flat ones) per step.
        syn_batch: synthetic samples of each class that a step takes, drawn anew each time, for methods that match class
            by class; 0: all.
        optimizers: by group: ``codes``, ``labels``, ``decoder``, ``objective``; without one for ``objective``, unrolled
            students keep their learning rate.
        init: what the synthetic samples start from.
        augment: augmentation while matching: siamese (Sec. 3.4.1) or, for unrolled students, per sample.
        outer_steps: updates of the synthetic data per network, for schedules that train it.
        inner_steps: network updates between them.
        inner_lr: the network's learning rate; in LD, the student's.
        inner_batch: the network's minibatch size; 0: the whole set, for unrolled students.
        inner_momentum: the network's momentum.
        inner_optimizer: the optimizer of unrolled students: ``sgd`` or ``adam``.
        inner_window: truncated unrolling: gradients flow through the last ``inner_window`` steps, and the training ends
            at a random step of at least that number (performance matching). 0: through all ``inner_steps``.
        inner_parts: if ``inner_batch`` is 0, the number of parts of a fixed partition of the set, through which
            unrolled students cycle.
        ridge: lambda of kernel ridge matching that does not learn it, times the kernel's mean diagonal entry; 0: the
            method's own.
        experts: how many expert trajectories (methods that match them).
        expert_steps: epochs between an expert's start and its target.
        start_epochs: the number of first epochs that an expert's start is drawn from.
        start_first: the earliest epoch that starts are drawn from; 0 is the initialisation.
        start_bound: the value of ``start_epochs`` in the first step, from which it grows; 0: it is constant.
        start_steps: the steps in which ``start_bound`` grows to ``start_epochs``.
        expert_folder: the folder of experts, which is filled if necessary; the cache folder by default.
        expert_sam: rho of sharpness-aware training of experts; 0 trains them plainly.
        expert_gap: weight of the surrogate gap in sharpness-aware training of experts.
        expert_adaptive: whether sharpness-aware training of experts moves each parameter in proportion to its square;
            None: the method's own.
        expert_lr: the experts' learning rate, on graphs in their unit; 0: the method's own.
        expert_batch: the experts' minibatch size; 0: the method's own.
        expert_epochs: the least number of epochs that experts train for, even beyond the last target.
        expert_precision: number formats in which missing experts train: ``float32`` or ``bf16``.
        expert_easy: the share of each class, its easiest samples, that experts train on in their first epoch; 1: all.
        expert_joining: the epochs over which the harder samples join.
        expert_pacing: how they join: ``linear``, evenly; ``root``, fewer and fewer; ``geometric``, more and more.
        expert_leaving: pairs of an epoch, counted from 0, and the share of each class, its easiest samples, that
            experts no longer train on from then.
        masked: the share of the parameters that the comparison of trajectories leaves out; 0 compares all.
        masked_by: which are left out: the shallowest (``depth``), or those in which the student ends nearest to the
            target (``distance``).
        teacher_epochs: training epochs of the network that gives ``teacher`` labels if no expert does.
        ema: decay of a running average of all stored tensors, which is validated and becomes the result (labelled by
            the last teacher if there is one); 0: none.
        ema_start: whether the initial state is part of that average, with its decayed weight.
        clip: the largest norm of all active groups' gradients together; 0 never clips.
        skip_above: skip the update of a step with a higher loss (for trajectories, 1: the student ends further from the
            target than it began); 0 skips none. The host waits for each step's loss.
        validate_every: steps between validations that select the best step; 0 keeps the last step.
        patience: end the run after this number of validations in a row without a better one; 0 takes all steps.
        classes_at_once: classes whose gradients or features are computed together, which bounds the memory of
            class-wise matching; 0: chosen for the device.
        kept_steps: in an unrolled training, the last steps whose activations are kept instead of recomputed; -1: chosen
            for the device.
        stored_bytes: the bytes that a storage may fill with codes; 0: those of the budget's raw samples.
        interactions_per_user: of a synthetic user (recommender data); 0: the method's own number.
    Raises:
        ConfigError: a value out of range, an unknown start, or optimizers that are not OptimizerSpecs.
    """

    steps: int
    real_batch: int = 256
    optimizers: Mapping[str, OptimizerSpec] = field(default_factory=dict)
    init: InitKind = "real"
    augment: bool = False
    syn_batch: int = 0
    outer_steps: int = 1
    inner_steps: int = 0
    inner_lr: float = 0.01
    inner_batch: int = 256
    inner_momentum: float = 0.0
    inner_optimizer: InnerOptimizer = "sgd"
    inner_window: int = 0
    inner_parts: int = 1
    ridge: float = 0.0
    experts: int = 20
    expert_steps: int = 2
    start_epochs: int = 2
    start_first: int = 0
    start_bound: int = 0
    start_steps: int = 0
    expert_folder: str = ""
    expert_sam: float = 0.0
    expert_gap: float = 0.0
    expert_adaptive: bool | None = None
    expert_lr: float = 0.0
    expert_batch: int = 0
    expert_epochs: int = 0
    expert_precision: TrainingPrecision = "float32"
    expert_easy: float = 1.0
    expert_joining: int = 0
    expert_pacing: Pacing = "linear"
    expert_leaving: tuple[tuple[int, float], ...] = ()
    masked: float = 0.0
    masked_by: MaskedBy = "depth"
    teacher_epochs: int = 10
    ema: float = 0.0
    ema_start: bool = True
    clip: float = 0.0
    skip_above: float = 0.0
    validate_every: int = 0
    patience: int = 0
    classes_at_once: int = 0
    kept_steps: int = -1
    stored_bytes: int = 0
    interactions_per_user: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, LEAST)
        require_below_one(self, "inner_momentum", "masked", "ema")
        require_choice("the start (init)", self.init, starts())
        require_choice("the students' optimizer (inner_optimizer)", self.inner_optimizer, get_args(InnerOptimizer))
        require_choice("what masks parameters (masked_by)", self.masked_by, get_args(MaskedBy))
        require_choice("how samples join (expert_pacing)", self.expert_pacing, get_args(Pacing))
        require_choice("the experts' precision (expert_precision)", self.expert_precision, get_args(TrainingPrecision))
        for name in ("augment", "ema_start"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} is true or false, got {value!r}")
        if not (self.expert_adaptive is None or isinstance(self.expert_adaptive, bool)):
            raise ConfigError(f"expert_adaptive is true, false or None, got {self.expert_adaptive!r}")
        if not isinstance(self.optimizers, Mapping):
            raise ConfigError(f"optimizers are a mapping from groups to OptimizerSpecs, got {self.optimizers!r}")
        for group, spec in self.optimizers.items():
            if not isinstance(spec, OptimizerSpec):
                raise ConfigError(f"the optimizer of {group!r} is an OptimizerSpec, got {type(spec).__name__}")
        _require_own_types(self)


OWN_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((Integral,), "a whole number"),
    "float": ((Real,), "a number"),
    "str": ((str,), "a text"),
    "tuple": ((tuple, list), "a tuple or list"),
    "list": ((tuple, list), "a tuple or list"),
}
"""The types of values that a field added by a user takes, and these in words, by the name of its annotation."""


def _require_own_types(settings: Settings) -> None:
    """Check the values of fields added by a user against annotations, as far as the defaults keep to these.

    Raises:
        ConfigError: naming the field.
    """
    for entry in fields(settings):
        annotation = entry.type if isinstance(entry.type, str) else getattr(entry.type, "__name__", "")
        kinds, words = OWN_TYPES.get(annotation.partition("[")[0], ((), ""))
        if entry.name in Settings.__dataclass_fields__ or not kinds or not is_of(entry.default, *kinds):
            continue
        if not is_of(value := getattr(settings, entry.name), *kinds):
            raise ConfigError(f"{entry.name} is {words}, got {value!r}")


TRAINING = tuple(
    entry.name
    for entry in fields(Settings)
    if entry.name.startswith(("inner_", "expert", "start_", "masked"))
    or entry.name in ("outer_steps", "kept_steps", "ridge")
)
"""Settings of the networks' training, which have an effect only if the schedule or objective reads them."""


def as_settings(given: Mapping[str, object]) -> dict[str, object]:
    """Convert settings from JSON or from a set's ``settings``: lists become tuples, mappings OptimizerSpecs.

    Raises:
        ConfigError: an optimizer without a name, or with an unknown field.
    """
    settings = {name: _as_tuples(value) for name, value in given.items()}
    groups = settings.get("optimizers")
    if isinstance(groups, Mapping):
        settings["optimizers"] = {group: _as_optimizer(group, spec) for group, spec in groups.items()}
    return settings


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _as_optimizer(group: object, spec: object) -> object:
    if not isinstance(spec, Mapping):
        return spec
    known = OptimizerSpec.__dataclass_fields__
    if "name" not in spec:
        raise ConfigError(f"the optimizer of {group!r} needs a name ({', '.join(get_args(OptimizerName))})")
    if unknown := [name for name in spec if name not in known]:
        hint = did_you_mean(str(unknown[0]), known)
        raise ConfigError(f"the optimizer of {group!r} has no {unknown[0]!r}{hint} (there are: {', '.join(known)})")
    values: dict[str, Any] = {name: _as_tuples(value) for name, value in spec.items()}
    return OptimizerSpec(**values)


def damage_of(settings: object) -> str:
    """Describe the damage in recorded settings; empty if they can be read."""
    if not isinstance(settings, Mapping):
        return f"settings is {settings!r}, and no Mapping"
    groups = settings.get("optimizers", {})
    if not isinstance(groups, Mapping):
        return f"settings.optimizers is {groups!r}, and no Mapping"
    broken = [name for name, spec in groups.items() if not isinstance(spec, Mapping) or "name" not in spec]
    return f"settings.optimizers.{broken[0]} is {groups[broken[0]]!r}, and no optimizer" if broken else ""


def annealed(settings: Mapping[str, Any]) -> list[str]:
    """Return the groups of recorded settings whose rates depend on the run's total number of steps."""
    return [group for group, spec in settings["optimizers"].items() if spec["cosine"]]


def own_names(settings: Settings) -> set[str]:
    """Return the names of the fields that a subclass adds to those of :class:`Settings`."""
    return {entry.name for entry in fields(settings)} - set(Settings.__dataclass_fields__)


def read_in_closed_form(settings: Settings, label: str) -> set[str]:
    """Return the settings that a closed form may read: its own, and for teacher labels ``teacher_epochs``."""
    return own_names(settings) | ({"teacher_epochs"} if label == "teacher" else set())


def require_settings(changes: Iterable[str], known: Collection[str]) -> None:
    """Refuse changes of unknown settings.

    Args:
        changes: the names of the settings to change.
        known: all names.
    Raises:
        ConfigError: suggesting the nearest name, or where a field of an optimizer belongs.
    """
    for name in changes:
        if name in known:
            continue
        hint = did_you_mean(name, known)
        if name in OptimizerSpec.__dataclass_fields__:
            hint = f"; it is an optimizer's: optimizers={{'codes': OptimizerSpec('sgd', {name}=...)}}"
        raise ConfigError(f"unknown setting {name!r}{hint} (there are: {', '.join(known)})")


def require_plain(settings: Settings) -> None:
    """Refuse values of fields added by a user that a run cannot record and compare when it resumes.

    Raises:
        ConfigError: something else than numbers, texts, paths, enumerations and None, and tuples, lists,
            dataclasses and mappings of these.
    """
    for name in sorted(own_names(settings)):
        if not _is_plain(value := getattr(settings, name)):
            raise ConfigError(
                f"the setting {name!r} is a {type(value).__name__}, and settings are numbers, texts, booleans, None or "
                "tuples, dataclasses and mappings of these, with texts as names, which runs note and compare"
            )


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, entry.name)) for entry in fields(value))
    return value is None or isinstance(value, Real | str | PurePath | Enum)


def known_names(kind: type[Settings] = Settings) -> dict[str, None]:
    """Return the names of all settings, in order: of :class:`Settings`, then of its subclasses."""
    names = dict.fromkeys(kind.__dataclass_fields__)
    for subclass in kind.__subclasses__():
        names |= known_names(subclass)
    return names


def watched(settings: Settings) -> tuple[Settings, set[str]]:
    """Return a copy of settings that records which of its attributes are read, and the set of their names."""
    read: set[str] = set()

    class Watched(type(settings)):  # type: ignore[misc]  # of the class that the settings have, with its fields
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            """Return an attribute, and record that it was read."""
            read.add(name)
            return super().__getattribute__(name)

    recording = copy(settings)
    object.__setattr__(recording, "__class__", Watched)
    read.clear()
    return recording, read
