"""The distilled set: its samples and everything that must travel with them, on disk as safetensors and JSON."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_origin

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, StackDataset, TensorDataset

from mmdistill.checks import LARGEST, is_of
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
from mmdistill.samples import require_forms, require_weighed
from mmdistill.settings import damage_of
from mmdistill.store import DIGEST, digest_of, read_json, read_tensors, write_json, write_tensors
from mmdistill.task import Batch, Inputs, Targets, TaskInfo, Tensors, named_tensors, shapes, shares_inputs, under
from mmdistill.versions import package_versions

SET_VERSION = 2
METADATA = {"format": "mmdistill"}
KEPT_APART = ("batch", "learned", "info", "classes", "history")
"""What is not among the plain values of a set's file."""
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
        stored_bytes: bytes of what must be kept to regenerate the samples, decoder and labels included.
        learned: what was learned beside the samples (ridge, inner learning rates).
        seed: the run's seed.
        steps: the updates behind the samples; for a set kept by validation, those up to the best.
        settings: the method's settings as plain values, as they were asked for.
        seconds: wall time of the distillation, all included.
        peak_memory_bytes: peak of the process, or of the CUDA device.
        device: in words.
        path: how the steps ran: ``eager``, ``compiled`` (what the network does), ``captured`` (loss and gradients, in a
            CUDA graph), or ``compiled and captured``.
        compile_seconds: what compiling took of ``seconds``.
        setup_seconds: what all before the first step took of them (experts, generators, the start of decoders and of
            samples), each time the run was resumed too.
        inner_seconds: what training networks between updates took of them; None where it was not measured (on CUDA)
            or there are no steps. Students that a step unrolls train within the update.
        precision: the number formats of the steps.
        parameterization: how samples are stored, in words; empty where that is the method's own way, or unknown.
        network: what was distilled with, in words; empty where it was none.
        label: ``hard``, ``soft``, ``unrestricted`` or ``teacher``, as users call labels, or, of numbers that are not
            learned, ``fixed probabilities`` or ``fixed scores``; empty where there are none.
        judge: whose scores the method makes sets for; empty: the task's first judge.
        described: the objective and the network schedule with what is set of them, as plain values, and of a network
            of the user's own its name and a digest of what it is made of; of a given ``teacher`` its digest.
        taken: updates made, of which patience may have left out some that were asked for; 0 where there are none.
        classes: ``(n,)`` the class that each sample stands for, where labels are soft and need not say it; else None.
        teacher: that was given and asked, by its name and a digest's first digits; empty where none was.
        origin: of a set that another tool made, its files in words; empty of others.
        history: ``(step, loss)`` of some hundred of all steps that the run took, the first and the last among them, be
            the set of an earlier one: the two columns of ``pandas.DataFrame(distilled.history)``. Empty where there
            were no steps (closed forms, selections, sets of other tools), and of a folder without ``history.json``.
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
        """Return in one line what this is a set of, its size and its shapes."""
        return (
            f"DistilledSet({self.info.data} by {self.method}, {self.info.budget} {self.budget}, "
            f"inputs {shapes(self.batch.inputs)}, targets {shapes(self.batch.targets)}, {self.stored_bytes:,} bytes)"
        )

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds of a step, with the networks' training after its update (the survey's Fig. 7 a).

        Validation and checkpoints are shared out; set-up and compiling are not in it. None where there are no steps.
        """
        return (self.seconds - self.setup_seconds - self.compile_seconds) / self.taken if self.taken else None

    @property
    def seconds_per_update(self) -> float | None:
        """Seconds of a step without training networks between updates (Fig. 7 b); None where that is not known."""
        whole, inner = self.seconds_per_step, self.inner_seconds
        return None if whole is None or inner is None else whole - inner / self.taken

    def save(self, folder: Path | str) -> None:
        """Write ``distilled.safetensors`` and ``distilled.json`` into a folder; targets that are the inputs once.

        Its history goes into ``history.json``; without one none is written, but an empty one in the place of another's.
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
        """Return copies of all tensors of the set on the CPU, by the names that they have in its file."""
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
        """Read a set from its folder, with the history of its run; one that is damaged is left out, with a warning.

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
        if odd := [f"{name}, {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in FORMATS]:
            raise CheckpointError(f"{path} is damaged: no set has such numbers ({first_few(odd)})")
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
            info["forms"] = _forms(info["forms"])
            info["tensors"] = under("info.", tensors)
            learned = under("learned.", tensors)
            inputs = _unnamed("inputs", tensors)
            own = any(name.partition(".")[0] == "targets" for name in tensors)
            batch = Batch(inputs, _unnamed("targets", tensors) if own else inputs, tensors["weight"])
            classes, history = tensors.get("classes"), _history(folder)
            found = DistilledSet(batch, TaskInfo(**info), learned=learned, classes=classes, history=history, **content)
            _require_types(found)
            _require_types(found.info)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / SET} is damaged or incomplete: {error}") from error
        try:
            _require_samples(found)
        except (ShapeError, DataError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        return found

    def require_finite(self) -> None:
        """Refuse a set of which no step has seen all: that of a closed form or of no step, and a teacher's labels.

        Raises:
            NonFiniteError: it holds NaN or infinite values.
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
            CheckpointError: another domain, other training samples, or the same ones in other units or other forms.
        """
        if info.domain != self.info.domain:
            raise CheckpointError(f"this set was distilled from {self.info.domain} data, the task is {info.domain}")
        own, same = self.info.class_names, info.data == self.info.data
        if own and set(own) < set(info.class_names) and same and info.units == self.info.units:
            raise CheckpointError(
                f"this set is of the classes {first_few(own)} of {info.data!r}, the task has "
                f"{first_few(info.class_names)}; mmdistill.image.joined puts sets of parts of the classes together"
            )
        if info.fingerprint != self.info.fingerprint and same:
            raise CheckpointError(
                f"this set was distilled from {info.data!r} as it was with fingerprint {self.info.fingerprint}; it has "
                f"{info.fingerprint} now{self._differences(info) or AS_THEY_WERE}"
            )
        if info.fingerprint != self.info.fingerprint:
            raise CheckpointError(
                f"this set was distilled from {self.info.data!r} (fingerprint {self.info.fingerprint}), "
                f"the task's data {info.data!r} has fingerprint {info.fingerprint}{self._differences(info)}"
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
        """Return in words what differs between the set's preprocessing and a task's: an encoder, a length."""
        found = [
            f"{name} {self.info.preprocessing[name]!r} there, {info.preprocessing[name]!r} here"
            for name in self.info.preprocessing.keys() & info.preprocessing.keys()
            if isinstance(info.preprocessing[name], str | int)
            and name != "space"
            and self.info.preprocessing[name] != info.preprocessing[name]
        ]
        return f" ({'; '.join(sorted(found))})" if found else ""

    def to(self, device: torch.device | str) -> Batch:
        """Return the samples on a device."""
        return self.batch.map(lambda t: t.to(device))

    def dataset(self) -> Dataset[Any]:
        """Return the samples as a torch data set of (inputs, targets) for a ``DataLoader``; named parts are dicts.

        Raises:
            UnsupportedError: the nodes of one graph, which are no samples of their own.
        """
        if self.info.budget == "nodes" or shares_inputs(self.batch):
            raise UnsupportedError("the nodes of one graph come together: train on all of them, which are in 'batch'")
        inputs, targets = self.batch.inputs, self.batch.targets
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            return TensorDataset(inputs, targets)
        parts: list[Any] = [StackDataset(**t) if isinstance(t, dict) else t for t in (inputs, targets)]  # type: ignore[arg-type]
        return StackDataset(*parts)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that this set's labels ask for: cross entropy, or of scores the mean squared error.

        Shapes:
            outputs ``(n, C)`` logits; targets ``(n,)`` or ``(n, C)``, as the set's are; returns a scalar.
        Raises:
            UnsupportedError: a set without classes, whose samples are their own targets.
            ShapeError: outputs or targets of other shapes.
        """
        if not self.info.class_names:
            raise UnsupportedError(f"{self.info.domain} data have no classes, and a loss of their own")
        wanted = (len(targets), len(self.info.class_names))
        if outputs.shape != wanted or targets.shape not in (wanted, wanted[:1]):
            found = f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
            raise ShapeError(f"expected outputs {wanted} and a label, or a row of them, for each; got {found}")
        own = self.batch.targets if isinstance(self.batch.targets, Tensor) else targets
        if are_probabilities(own):
            return soft_cross_entropy(outputs, targets).mean()
        return functional.mse_loss(outputs, targets)


def unsaid(classes: Tensor | None, targets: Targets) -> Tensor | None:
    """Return the classes that samples stand for, on the CPU, where their targets are soft; class indices say them."""
    soft = isinstance(targets, dict) or targets.is_floating_point()
    return classes.cpu() if soft and classes is not None else None


def broken_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of those tensors that hold NaN or infinite values."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def stored_value(info: TaskInfo, name: str, fits: Callable[[Any], bool], words: str) -> Any:
    """Return a value of a set's preprocessing, which a person may have edited in its file.

    Raises:
        CheckpointError: it is missing, or of another kind than a function says and words name.
    """
    value = info.preprocessing.get(name)
    if not fits(value):
        raise CheckpointError(
            f"{SET} of the set of {info.data!r} is damaged: info.preprocessing.{name} is {value!r:.80}, and no {words}"
        )
    return value


def is_number(value: object) -> bool:
    """Return whether a value that was read from JSON is a number that floats hold; NaN, of a failed judge, is one."""
    return is_of(value, float) or (is_of(value, int) and abs(value) <= LARGEST)  # type: ignore[arg-type]


def _history(folder: Path) -> tuple[Reading, ...]:
    """Return the history in a folder; nothing, and a warning, where it is damaged, without which the set is whole."""
    try:
        return read_history(folder)
    except CheckpointError as error:
        warnings.warn(f"{error}; the loss of this run is left out", MmdistillWarning, stacklevel=4)
        return ()


def _require_types(record: "DistilledSet | TaskInfo") -> None:
    """Check the plain fields of what was read from JSON, which a person may have edited.

    Raises:
        TypeError: naming a field of another type.
    """
    for entry in fields(record):
        value = getattr(record, entry.name)
        optional = entry.type == float | None
        if optional and value is None:
            continue
        kind: Any = float if optional else get_origin(entry.type) or entry.type
        wanted = (int, float) if kind is float else kind
        if kind in (int, float, str, Mapping) and not isinstance(value, wanted):
            raise TypeError(f"{entry.name} is {value!r}, and no {kind.__name__}")


def _forms(said: object) -> dict[str, tuple[int | None, ...]]:
    """Return the forms of inputs that a set's file says.

    Raises:
        TypeError: they are none.
    """
    axes = list(said.values()) if isinstance(said, Mapping) else [None]
    if not all(isinstance(own, list) and all(axis is None or is_of(axis, int) for axis in own) for own in axes):
        raise TypeError(f"info.forms is {said!r}, and no lists of whole numbers by name")
    return {name: tuple(own) for name, own in said.items()}  # type: ignore[attr-defined]


def _require_samples(found: DistilledSet) -> None:
    """Check the forms of a set's samples, which files may say as they like; targets that are no classes have their own.

    Raises:
        ShapeError: inputs, targets, weights or classes of other lengths, inputs of other axes than the task's or no
            floats, or no row of a number for each class.
        DataError: no samples, or classes that there are not.
    """
    require_weighed(found.batch)
    require_forms(found.batch, found.info.forms)
    targets, names = found.batch.targets, found.info.class_names
    indices = {} if found.classes is None else {"classes": found.classes}
    if names and isinstance(targets, Tensor) and not targets.is_floating_point():
        indices["targets"] = targets
    for name, classes in indices.items():
        if classes.shape != found.batch.weight.shape or classes.is_floating_point():
            raise ShapeError(f"{name} are a class index for each sample, got {tuple(classes.shape)} {classes.dtype}")
        if classes.min() < 0 or (names and classes.max() >= len(names)):
            raise DataError(f"{name} are indices of {len(names)} classes, got {classes.min()} to {classes.max()}")
    if names and isinstance(targets, Tensor) and "targets" not in indices and targets.shape[1:] != (len(names),):
        raise ShapeError(f"targets are rows of {len(names)} numbers, one for each class, got {tuple(targets.shape)}")


def _same(inputs: Inputs, targets: Targets) -> bool:
    """Return whether samples are their own targets, as interactions are."""
    if isinstance(inputs, dict) or isinstance(targets, dict) or inputs.dtype != targets.dtype:
        return False
    return torch.equal(inputs, targets)


def _unnamed(prefix: str, tensors: Tensors) -> Inputs | Targets:
    if prefix in tensors:
        return tensors[prefix]
    found = under(f"{prefix}.", tensors)
    if not found:
        raise KeyError(prefix)
    return found
