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
"""The least value of each number among :class:`Settings`; a whole one here is a whole one there."""


MEMORY_ONLY = ("classes_at_once", "kept_steps")
"""Settings that bound memory and change a result by rounding alone, so that a run may go on with others."""
AT_RESUME = ("steps", *MEMORY_ONLY)
"""Settings that may be given anew when a run resumes: it can be taken further, to more steps, within other bounds."""
ALL_SAMPLES = 1_000_000
"""As ``inner_batch``: every synthetic sample."""
ALL_REAL = 1_000_000_000
"""As ``real_batch``: every real sample."""
OptimizerName = Literal["sgd", "adam", "adamw", "lamb", "adabelief"]


@dataclass(frozen=True)
class OptimizerSpec:
    """How one group of learned tensors is stepped.

    Args:
        name: ``sgd``, ``adam``, ``adamw`` (torch.optim), ``lamb`` or ``adabelief``.
        lr: learning rate.
        momentum: for SGD.
        betas: for all but SGD.
        weight_decay: L2 coefficient (decoupled for AdamW).
        maximize: ascend instead of descend.
        active: ``(start, stop, period)``: steps whose remainder by period lies in [start, stop) are taken; the group
            rests in the others. None: every step.
        cosine: anneal the rate over the run, to ``floor``.
        floor: the share of the rate that the annealing ends with.
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

    A method with hyper-parameters of its own may have settings of a frozen dataclass that adds fields to these.

    Args:
        steps: updates of the synthetic data.
        real_batch: real samples per class (class-wise objectives) or in all (flat ones) per step.
        syn_batch: synthetic samples of each class that a step takes, drawn anew in each, where a method matches class
            by class; 0: all.
        optimizers: by group: ``codes``, ``labels``, ``decoder``, ``objective``; without one for ``objective``, unrolled
            students keep their learning rate.
        init: what the synthetic samples start from.
        augment: augmentation while matching, siamese (Sec. 3.4.1) or, of unrolled students, per sample.
        outer_steps: updates of the synthetic data per network, for schedules that train it.
        inner_steps: network updates between them.
        inner_lr: the network's learning rate, of LD the student's.
        inner_batch: the network's minibatch size; 0: the whole set, for unrolled students.
        inner_momentum: the network's momentum.
        inner_optimizer: by which unrolled students train: ``sgd`` or ``adam``.
        inner_window: of an unrolled training, the last steps that gradients flow through; the training then ends at a
            random step from there on (performance matching). 0: gradients flow through all ``inner_steps``.
        inner_parts: with the whole set, unrolled students cycle through a fixed partition of it into so many parts.
        ridge: lambda of kernel ridge matching that does not learn it, times the kernel's mean diagonal entry; 0: the
            method's own.
        experts: how many expert trajectories (methods that match them).
        expert_steps: epochs between an expert's start and its target.
        start_epochs: an expert's start is drawn from its first so many epochs.
        start_first: the earliest epoch that starts are drawn from; 0 is the initialisation.
        start_bound: in the first step, starts are drawn from the first so many epochs, and in later ones from more,
            until they are ``start_epochs``; 0: from all of these at once.
        start_steps: the steps in which ``start_bound`` grows to ``start_epochs``.
        expert_folder: where experts are or shall be; the cache folder by default.
        expert_sam: rho of sharpness-aware training of experts; 0 trains them plainly.
        expert_gap: weight of the surrogate gap in sharpness-aware training of experts.
        expert_adaptive: whether sharpness-aware training of experts moves each parameter in proportion to its square;
            None: the method's own.
        expert_lr: the experts' learning rate, on graphs in their unit; 0: the method's own.
        expert_batch: the experts' minibatch size; 0: the method's own.
        expert_epochs: epochs that experts train for at least, though no target lies so far.
        expert_precision: number formats in which missing experts train: ``float32`` or ``bf16``.
        expert_easy: the share of each class, its easiest samples, that experts train on in their first epoch; 1: all.
        expert_joining: the epochs in which the others join these.
        expert_pacing: how they join: ``linear``, evenly; ``root``, fewer and fewer; ``geometric``, more and more.
        expert_leaving: pairs of an epoch, counted from 0, and the share of each class, its easiest samples, that
            experts no longer train on from there.
        masked: the share of the parameters that trajectories are compared without; 0 compares all.
        masked_by: which these are: the shallowest (``depth``), or those in which the student ends nearest to the target
            (``distance``).
        teacher_epochs: epochs for which the network trains that gives ``teacher`` labels where no expert does.
        ema: decay of a running average of all that is stored, which is then validated and the result; 0 keeps steps.
        ema_start: whether the start counts in that average, by what is left of it; else it is of the steps alone.
        clip: the norm of all active groups' gradients together at which a step's gradients are cut; 0 never cuts.
        skip_above: a step of a higher loss changes nothing, of trajectories one that ends further from the target than
            it began; 0 takes every step. The host waits for each step to know.
        validate_every: steps between validations that select the best step; 0 keeps the last step.
        patience: end the run after so many validations in a row without a better one; 0 takes all steps.
        classes_at_once: classes whose gradients or features are computed together, which bounds the memory of
            class-wise matching; 0 leaves it to the device.
        kept_steps: of an unrolled training, the last steps whose activations are kept instead of computed again; -1
            leaves it to the device.
        stored_bytes: the bytes that a storage may fill with codes; 0: those of the raw samples of the budget.
        interactions_per_user: of a synthetic user (recommender data); 0: the method's own number.
    Raises:
        ConfigError: a value out of range, an unknown start, or optimizers that are no OptimizerSpecs.
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
"""By the plain type of a user's own field, the values that it takes, and these in words."""


def _require_own_types(settings: Settings) -> None:
    """Refuse values of a user's own fields that are of another type than these and their defaults.

    Raises:
        ConfigError: naming the field.
    """
    for entry in fields(settings):
        named = entry.type if isinstance(entry.type, str) else getattr(entry.type, "__name__", "")
        kinds, words = OWN_TYPES.get(named.partition("[")[0], ((), ""))
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
"""Settings of the networks' training, which mean something only to schedules and objectives that read them."""


def as_settings(given: Mapping[str, object]) -> dict[str, object]:
    """Return settings as they are in Python where they come as a set's ``settings`` do, or as JSON made them.

    Optimizers may be mappings of their fields, and tuples lists.

    Raises:
        ConfigError: an optimizer without a name, or with a field that there is not.
    """
    found = {name: _as_tuples(value) for name, value in given.items()}
    groups = found.get("optimizers")
    if isinstance(groups, Mapping):
        found["optimizers"] = {group: _as_optimizer(group, spec) for group, spec in groups.items()}
    return found


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
    """Return what is damaged of recorded settings, in words; nothing where they can be read."""
    if not isinstance(settings, Mapping):
        return f"settings is {settings!r}, and no Mapping"
    groups = settings.get("optimizers", {})
    if not isinstance(groups, Mapping):
        return f"settings.optimizers is {groups!r}, and no Mapping"
    broken = [name for name, spec in groups.items() if not isinstance(spec, Mapping) or "name" not in spec]
    return f"settings.optimizers.{broken[0]} is {groups[broken[0]]!r}, and no optimizer" if broken else ""


def annealed(settings: Mapping[str, Any]) -> list[str]:
    """Return the groups of recorded settings whose rates depend on how many steps a run will have taken."""
    return [group for group, spec in settings["optimizers"].items() if spec["cosine"]]


def own_names(settings: Settings) -> set[str]:
    """Return the names of the fields that a class of a user's adds to those of :class:`Settings`."""
    return {entry.name for entry in fields(settings)} - set(Settings.__dataclass_fields__)


def read_in_closed_form(settings: Settings, label: str) -> set[str]:
    """Return the settings that a closed form may read: those of its own, and how a teacher of its labels trains."""
    return own_names(settings) | ({"teacher_epochs"} if label == "teacher" else set())


def require_settings(changes: Iterable[str], known: Collection[str]) -> None:
    """Refuse to change a setting that there is not.

    Args:
        changes: the settings to change.
        known: those that there are.
    Raises:
        ConfigError: naming the nearest one, or the place of an optimizer's.
    """
    for name in changes:
        if name in known:
            continue
        hint = did_you_mean(name, known)
        if name in OptimizerSpec.__dataclass_fields__:
            hint = f"; it is an optimizer's: optimizers={{'codes': OptimizerSpec('sgd', {name}=...)}}"
        raise ConfigError(f"unknown setting {name!r}{hint} (there are: {', '.join(known)})")


def require_plain(settings: Settings) -> None:
    """Refuse values of a user's own fields that a run cannot note and compare when it resumes.

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
        return all(isinstance(name, str) and _is_plain(one) for name, one in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, entry.name)) for entry in fields(value))
    return value is None or isinstance(value, Real | str | PurePath | Enum)


def known_names(kind: type[Settings] = Settings) -> dict[str, None]:
    """Return the names of all settings that there are, in order: those of :class:`Settings` and of its subclasses."""
    found = dict.fromkeys(kind.__dataclass_fields__)
    for own in kind.__subclasses__():
        found |= known_names(own)
    return found


def watched(settings: Settings) -> tuple[Settings, set[str]]:
    """Return the same settings, of a class that notes which of them are read, and the set that it notes these in."""
    read: set[str] = set()

    class Watched(type(settings)):  # type: ignore[misc]  # of the class that the settings have, with its fields
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            """Return an attribute, noting that it was read."""
            read.add(name)
            return super().__getattribute__(name)

    found = copy(settings)
    object.__setattr__(found, "__class__", Watched)
    read.clear()
    return found, read
