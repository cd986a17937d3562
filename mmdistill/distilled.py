"""The distilled set: its samples and everything that must travel with them, on disk as safetensors and JSON."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, StackDataset, TensorDataset

from mmdistill.allocation import MOST
from mmdistill.checks import LARGEST, has_type, is_of
from mmdistill.errors import (
    CheckpointError,
    DataError,
    MmdistillWarning,
    NonFiniteError,
    ShapeError,
    UnsupportedError,
)
from mmdistill.execution.isolation import isolated
from mmdistill.files.paths import users_path
from mmdistill.labels import are_probabilities, soft_cross_entropy
from mmdistill.names import first_few
from mmdistill.runs.folder import HISTORY, SAMPLES, SET, is_finished, runs_within
from mmdistill.runs.history import Reading, read_history, write_history
from mmdistill.samples import forms_read, require_forms, require_set
from mmdistill.settings import damage_of
from mmdistill.store import DIGEST, digest_of, read_json, read_tensors, write_json, write_tensors
from mmdistill.task import (
    Batch,
    BudgetKind,
    Inputs,
    Targets,
    TaskInfo,
    Tensors,
    named_tensors,
    shapes,
    shares_inputs,
    under,
)
from mmdistill.versions import package_versions

SET_VERSION = 2
METADATA = {"format": "mmdistill"}
KEPT_APART = ("batch", "learned", "info", "classes", "history")
"""Fields of a set that are not among the plain values of its file."""
FORMATS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""The number formats of a set's tensors."""
AS_THEY_WERE = (
    "; bring the data back as they were, or give the task a copy of these (a run of the command line names its data in "
    "the line 'data' of its config.yaml)"
)


@dataclass(frozen=True, repr=False, eq=False)
class DistilledSet:
    """A distilled set: the decoded samples and everything that must travel with them. It is equal to itself alone.

    Args:
        batch: the samples, on the CPU.
        info: the task they were distilled from.
        method: the method's name.
        budget: ipc, nodes or users, by ``info.budget``.
        stored_bytes: bytes needed to regenerate the samples, decoder and labels included.
        learned: tensors learned beside the samples (ridge, inner learning rates).
        seed: the run's seed.
        steps: the updates behind the samples; for a set kept by validation, those up to the best.
        settings: the method's settings as plain values, as the run was given them.
        seconds: wall time of the distillation, all included.
        peak_memory_bytes: peak of the process, or of the CUDA device.
        device: in words.
        path: how the steps ran: ``eager``, ``compiled`` (the network's functions), ``captured`` (loss and gradients, in
            a CUDA graph), or ``compiled and captured``.
        compile_seconds: the part of ``seconds`` that compiling took.
        setup_seconds: the part of ``seconds`` before the first step (experts, generators, initial decoders and
            samples), summed over resumptions.
        inner_seconds: the part of ``seconds`` spent on training networks between updates; None if not measured (on
            CUDA) or without steps. Students that a step unrolls train within the update.
        precision: the number formats of the steps.
        parameterization: how samples are stored, in words; empty for the method's own way, or if unknown.
        network: the network distilled with, in words; empty without one.
        label: ``hard``, ``soft``, ``unrestricted`` or ``teacher``; for numbers that are not learned, ``fixed
            probabilities`` or ``fixed scores``; empty without labels.
        judge: the judge that the method makes sets for; empty: the task's first.
        described: the objective and the network schedule with their settings, as plain values, and what a user made of
            them with digests of its code and tensors; of a user's own network, its name and a digest of its content; of
            a user's closed form or builder of samples, its code's; of a given ``teacher``, its digest.
        taken: updates made, which patience may have ended early; 0 without steps.
        classes: ``(n,)`` the class that each sample stands for, where labels are soft and need not tell; else None.
        teacher: the given teacher that the run used, by its name and a digest's first digits; empty without one.
        origin: the files of a set that another tool made, in words; else empty.
        history: ``(step, loss)`` of up to a few hundred of the run's steps, always the first and the last, even if the
            set is an earlier step's: the two columns of ``pandas.DataFrame(distilled.history)``. Empty without steps
            (closed forms, selections, sets of other tools), and for a folder without ``history.json``.
    """

    batch: Batch
    info: TaskInfo
    method: str
    budget: int
    stored_bytes: int
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    steps: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    device: str = ""
    path: str = "eager"
    compile_seconds: float = 0.0
    setup_seconds: float = 0.0
    inner_seconds: float | None = None
    precision: str = "float32"
    parameterization: str = ""
    network: str = ""
    label: str = ""
    judge: str = ""
    described: Mapping[str, object] = field(default_factory=dict)
    taken: int = 0
    classes: Tensor | None = None
    teacher: str = ""
    origin: str = ""
    history: tuple[Reading, ...] = ()

    def __repr__(self) -> str:
        """Return the set's data, method, size and shapes in one line."""
        return (
            f"DistilledSet({self.info.data} by {self.method}, {self.info.budget} {self.budget}, "
            f"inputs {shapes(self.batch.inputs)}, targets {shapes(self.batch.targets)}, {self.stored_bytes:,} bytes)"
        )

    @property
    def seconds_per_step(self) -> float | None:
        """Mean seconds of a step, with the networks' training after its update (the survey's Fig. 7 a).

        Validation and checkpoints count, set-up and compiling do not. None without steps.
        """
        return (self.seconds - self.setup_seconds - self.compile_seconds) / self.taken if self.taken else None

    @property
    def seconds_per_update(self) -> float | None:
        """Mean seconds of a step without training networks between updates (Fig. 7 b); None if not measured."""
        step_seconds, inner_seconds = self.seconds_per_step, self.inner_seconds
        return None if step_seconds is None or inner_seconds is None else step_seconds - inner_seconds / self.taken

    def save(self, folder: Path | str) -> None:
        """Write ``distilled.safetensors`` (without targets equal to the inputs) and ``distilled.json`` into a folder.

        The history goes into ``history.json``. Without a history none is written, but another set's is emptied.
        """
        folder, tensors = users_path(folder), self.tensors()
        content = {name: value for name, value in self.__dict__.items() if name not in KEPT_APART}
        content |= {
            "version": SET_VERSION,
            DIGEST: digest_of(tensors),
            "info": asdict(replace(self.info, tensors={})),
            "packages": package_versions(),
        }
        if self.history or (folder / HISTORY).exists():
            write_history(folder, self.history)
        write_tensors(folder / SAMPLES, tensors, METADATA)
        write_json(folder / SET, content)

    def tensors(self) -> Tensors:
        """Return copies of all tensors of the set on the CPU, by their names in its file."""
        tensors: Tensors = {"weight": self.batch.weight}
        tensors |= named_tensors("inputs", self.batch.inputs)
        if not _same(self.batch.inputs, self.batch.targets):
            tensors |= named_tensors("targets", self.batch.targets)
        if self.classes is not None:
            tensors["classes"] = self.classes
        tensors |= {f"learned.{name}": tensor for name, tensor in self.learned.items()}
        tensors |= {f"info.{name}": tensor for name, tensor in self.info.tensors.items()}
        return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    @staticmethod
    @isolated
    def load(folder: Path | str) -> "DistilledSet":
        """Read a set from its folder, with its run's history; a damaged history is left out with a warning.

        Raises:
            CheckpointError: a file is missing, damaged, or (a VersionError) of another version.
        """
        folder = users_path(folder)
        if not is_finished(folder):
            raise CheckpointError(f"{folder} holds no distilled set (distilled.json is missing){runs_within(folder)}")
        content = read_json(folder / SET, version=SET_VERSION)
        if content.pop("version", None) is None:
            raise CheckpointError(f"{folder / SET} is damaged (it has no version)")
        content.pop("packages", None)
        digest, path = content.pop(DIGEST, None), folder / SAMPLES
        tensors, _ = read_tensors(path)
        if unknown := [f"{name}, {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in FORMATS]:
            raise CheckpointError(f"{path} is damaged: no set has such numbers ({first_few(unknown)})")
        if broken := broken_tensors(tensors):
            raise CheckpointError(f"{path} holds NaN or infinite values ({', '.join(broken)})")
        if digest != digest_of(tensors):
            raise CheckpointError(f"{path} is damaged, or of another set than distilled.json beside it")
        try:
            info = content.pop("info")
            if damage := damage_of(content["settings"]):
                raise TypeError(damage)
            if not isinstance(names := info["class_names"], list) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"info.class_names is {names!r}, and no list of texts")
            info["class_names"] = tuple(names)
            info["forms"] = forms_read(info["forms"])
            info["tensors"] = under("info.", tensors)
            learned = under("learned.", tensors)
            inputs = _unnamed("inputs", tensors)
            has_targets = any(name.partition(".")[0] == "targets" for name in tensors)
            targets = _unnamed("targets", tensors) if has_targets else inputs
            batch = Batch(inputs, targets, tensors["weight"])
            classes, history = tensors.get("classes"), _history(folder)
            loaded = DistilledSet(batch, TaskInfo(**info), learned=learned, classes=classes, history=history, **content)
            _require_types(loaded)
            _require_types(loaded.info)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / SET} is damaged or incomplete: {error}") from error
        try:
            require_set(loaded.batch, loaded.info, loaded.classes)
        except (ShapeError, DataError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if damage := _damage_of_budget(loaded):
            raise CheckpointError(f"{folder / SET} is damaged: {damage}")
        return loaded

    def require_finite(self) -> None:
        """Refuse NaN and infinite values, which no loss reveals in closed forms and in a teacher's labels.

        Raises:
            NonFiniteError: the set holds NaN or infinite values.
        """
        samples = named_tensors("inputs", self.batch.inputs) | named_tensors("targets", self.batch.targets)
        if broken := broken_tensors(samples):
            raise NonFiniteError(
                f"the set of {self.method} holds NaN or infinite values ({', '.join(broken)}): the data's are too "
                "large (scale them), or the network gives such"
            )
        if broken := broken_tensors(self.learned):
            raise NonFiniteError(f"{', '.join(broken)} of {self.method} became NaN or infinite: lower the rates")

    def require(self, info: TaskInfo) -> None:
        """Refuse a task that this set was not distilled from.

        Raises:
            CheckpointError: another domain, other training samples, or the same ones in other units, of other
                forms, or counted otherwise.
        """
        if info.domain != self.info.domain:
            raise CheckpointError(f"this set was distilled from {self.info.domain} data, the task is {info.domain}")
        classes, same_data = self.info.class_names, info.data == self.info.data
        if classes and set(classes) < set(info.class_names) and same_data and info.units == self.info.units:
            raise CheckpointError(
                f"this set is of the classes {first_few(classes)} of {info.data!r}, the task has "
                f"{first_few(info.class_names)}; mmdistill.image.joined puts sets of parts of the classes together"
            )
        if info.fingerprint != self.info.fingerprint and same_data:
            raise CheckpointError(
                f"this set was distilled from {info.data!r} as it was with fingerprint {self.info.fingerprint}; it has "
                f"{info.fingerprint} now{self._differences(info) or AS_THEY_WERE}"
            )
        if info.fingerprint != self.info.fingerprint:
            raise CheckpointError(
                f"this set was distilled from {self.info.data!r} (fingerprint {self.info.fingerprint}), "
                f"the task's data {info.data!r} has fingerprint {info.fingerprint}{self._differences(info)}"
            )
        if info.budget != self.info.budget:
            raise CheckpointError(
                f"this set counts its budget in {self.info.budget} ({SET}, info.budget), the task in {info.budget}"
            )
        if info.units != self.info.units:
            raise CheckpointError(
                f"this set is in the units of {self.info.units}, the task's data {info.data!r} in those of {info.units}"
            )
        try:
            require_forms(self.batch, info.forms)
        except ShapeError as error:
            raise CheckpointError(f"this set's samples ({SAMPLES}) are none of {info.data!r}: {error}") from error

    def _differences(self, info: TaskInfo) -> str:
        """Describe how the set's preprocessing differs from a task's: an encoder, a length."""
        differences = [
            f"{name} {self.info.preprocessing[name]!r} there, {info.preprocessing[name]!r} here"
            for name in self.info.preprocessing.keys() & info.preprocessing.keys()
            if isinstance(info.preprocessing[name], str | int)
            and name != "space"
            and self.info.preprocessing[name] != info.preprocessing[name]
        ]
        return f" ({'; '.join(sorted(differences))})" if differences else ""

    def to(self, device: torch.device | str) -> Batch:
        """Return the samples on a device."""
        return self.batch.map(lambda t: t.to(device))

    def dataset(self) -> Dataset[Any]:
        """Return the samples as a torch data set of (inputs, targets) for a ``DataLoader``; named parts are dicts.

        Raises:
            UnsupportedError: the nodes of one graph, which cannot be taken singly.
        """
        if self.info.budget == "nodes" or shares_inputs(self.batch):
            raise UnsupportedError("the nodes of one graph come together: train on all of them, which are in 'batch'")
        inputs, targets = self.batch.inputs, self.batch.targets
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            return TensorDataset(inputs, targets)
        parts: list[Any] = [StackDataset(**t) if isinstance(t, dict) else t for t in (inputs, targets)]  # type: ignore[arg-type]
        return StackDataset(*parts)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that fits this set's labels: the mean squared error for scores, else cross entropy.

        Shapes:
            outputs ``(n, C)`` logits; targets ``(n,)`` or ``(n, C)``, as the set's are; returns a scalar.
        Raises:
            UnsupportedError: a set without classes.
            ShapeError: outputs or targets of other shapes.
        """
        if not self.info.class_names:
            raise UnsupportedError(f"{self.info.domain} data have no classes, and a loss of their own")
        expected = (len(targets), len(self.info.class_names))
        if outputs.shape != expected or targets.shape not in (expected, expected[:1]):
            shapes_found = f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
            raise ShapeError(f"expected outputs {expected} and a label, or a row of them, for each; got {shapes_found}")
        labels = self.batch.targets if isinstance(self.batch.targets, Tensor) else targets
        if are_probabilities(labels):
            return soft_cross_entropy(outputs, targets).mean()
        return functional.mse_loss(outputs, targets)


def classes_beside_soft_targets(classes: Tensor | None, targets: Targets) -> Tensor | None:
    """Return the samples' classes, on the CPU, if their targets are soft, else None: hard targets are the classes."""
    soft = isinstance(targets, dict) or targets.is_floating_point()
    return classes.cpu() if soft and classes is not None else None


def broken_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinite values."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def stored_value(info: TaskInfo, name: str, fits: Callable[[Any], bool], words: str) -> Any:
    """Return a value of a set's preprocessing, which a person may have edited in its file.

    Raises:
        CheckpointError: the value is missing or does not fit; ``words`` tell what it should be.
    """
    value = info.preprocessing.get(name)
    if not fits(value):
        raise CheckpointError(
            f"{SET} of the set of {info.data!r} is damaged: info.preprocessing.{name} is {value!r:.80}, and no {words}"
        )
    return value


def is_number(value: object) -> bool:
    """Return whether a value read from JSON is a number that fits a float; NaN, a failed judge's score, does."""
    return is_of(value, float) or (is_of(value, int) and abs(value) <= LARGEST)  # type: ignore[arg-type]


def _history(folder: Path) -> tuple[Reading, ...]:
    """Return the history in a folder; if it is damaged, warn and return none, since the set is complete without it."""
    try:
        return read_history(folder)
    except CheckpointError as error:
        warnings.warn(f"{error}; the loss of this run is left out", MmdistillWarning, stacklevel=4)
        return ()


def _require_types(record: "DistilledSet | TaskInfo") -> None:
    """Check the types of a record from JSON, which a person may have edited; a TypeError names a wrong one."""
    for entry in fields(record):
        value = getattr(record, entry.name)
        if get_origin(entry.type) not in (tuple, Literal) and not has_type(value, entry.type):
            raise TypeError(f"{entry.name} is {value!r}, and no {getattr(entry.type, '__name__', entry.type)}")


def _damage_of_budget(loaded: DistilledSet) -> str:
    """Return in words why a set's budget is none: an unknown unit, or no count; else empty.

    The number of samples says nothing of it: some storages and closed forms hold more than their budget, others fewer.
    """
    unit, budget = loaded.info.budget, loaded.budget
    if unit not in get_args(BudgetKind):
        return f"info.budget is {unit!r}, and none of {', '.join(get_args(BudgetKind))}"
    return "" if 1 <= budget <= MOST else f"budget is {budget!r}, and no number of {unit}"


def _same(inputs: Inputs, targets: Targets) -> bool:
    """Return whether the targets are the inputs themselves, as for interactions."""
    if isinstance(inputs, dict) or isinstance(targets, dict) or inputs.dtype != targets.dtype:
        return False
    return torch.equal(inputs, targets)


def _unnamed(prefix: str, tensors: Tensors) -> Inputs | Targets:
    """Undo :func:`named_tensors`."""
    if prefix in tensors:
        return tensors[prefix]
    parts = under(f"{prefix}.", tensors)
    if not parts:
        raise KeyError(prefix)
    return parts
