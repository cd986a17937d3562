"""Configurations from the command line or YAML: typed, documented, printable."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mmdistill.checks import has_type, require_checkpoint_every
from mmdistill.choices import CompileMode, InitKind, LabelKind, Precision, Schedule, SplitBy, TrainingPrecision
from mmdistill.errors import CheckpointError, did_you_mean
from mmdistill.files.paths import users_path
from mmdistill.files.plain_yaml import as_yaml, settings_by_name
from mmdistill.names import as_assignments, as_file_name, assignments, canonical, split_names
from mmdistill.runs.folder import IMPORTED, holds_work
from mmdistill.settings import MEMORY_ONLY, Settings, known_names

ASIDE = {"resume": None, "dry_run": False}
"""Options of ``distill`` that are not part of its configuration, with their defaults."""
AUTO = "auto"
"""The value of ``--resume`` with which one command starts a run, continues it or judges it."""
WITHOUT_TEXT = ("optimizers", "stored_bytes")
"""Settings without an option: structured values, and the result of a budget in bytes."""
BUDGETS = ("ipc", "nodes", "users", "bytes")
"""Options for the size of a set."""
JUDGE_TRAINING = ("judge_epochs", "judge_batch", "judge_precision")
"""Options for how judges train; validation trains its networks likewise, so they also decide which step it selects."""
JUDGING_OPTIONS = ("judges", "baselines", "networks", "networks_at_once", *JUDGE_TRAINING)
"""Options for who judges and how, but for the protocol, which scores are called by."""
HOW_IT_RUNS = ("out", "overwrite", "device", "checkpoint_every", "compile", *MEMORY_ONLY)
"""Options for how and where a run is made, which do not identify it."""


@dataclass(frozen=True)
class DistillConfig:
    """Distil a data set into a tiny synthetic one.

    Args:
        data: data set name (see 'mmdistill data') or a path to a file or folder of yours
        method: method name (see 'mmdistill methods')
        ipc: samples per class (images, texts, sets of graphs)
        nodes: nodes in all (graphs)
        users: users in all (recommender data)
        bytes: a budget in bytes instead of a count, such as 100KB; the largest set that fits is made
        parameterization: how samples are stored (see 'mmdistill methods'); each method's own way by default
        out: run folder; runs/DATA-METHOD[-PARAMETERIZATION]-BUDGET by default, with -seedN for a seed other than 0
        overwrite: replace a run that the run folder already holds, finished or not
        seed: seed of everything random
        split_seed: seed of what is held out of data without a split of their own, for all seeds; --seed by default
        device: auto, cpu, cuda or cuda:N
        deterministic: on CUDA, use only kernels that give the same bits each time; the CPU always does so
        compile: auto compiles runs that are long enough to repay it, on compiles always, off never; auto and on
            also capture steps as CUDA graphs on CUDA
        precision: number formats - float32, tf32 (CUDA), mixed (bf16 for what is not differentiated again: real samples
            matched class by class, networks that train between steps; up to 2.6 times as fast for wide networks, also
            on CPUs with AMX or AVX512-BF16) or bf16; auto is float32 on the CPU and mixed on CUDA
        model: network to distil with, such as convnet, resnet18 or mlp (images), gcn (graphs), textcnn (texts); the
            domain's own by default
        width: width of the network
        encoder: text encoder - minilm (the default), tfidf, average, or the name or folder of a transformers model
        length: tokens kept of each text, for networks that read tokens; by default what 95 % of them need, at most 128
        text_column: column of the texts in a table; two, comma-separated, for pairs of texts
        label_column: column of the labels in a table
        user_column: column of the users in a table of interactions; its position from 0 in a file without a header
        item_column: column of the items in a table of interactions
        rating_column: column of the ratings in a table of interactions
        time_column: column of the times in a table of interactions
        min_rating: lowest rating that counts as an interaction; any above 0 by default
        split_by: time tests with each user's latest tenth of interactions, leave-one-out with the latest one, random
            with any; by default a split of the data is heeded, and without one the split is random
        schedule: published settings, or reduced ones that a CPU finishes in minutes (images: with --width 32 or less);
            reduced ones exist for mnist, fashion-mnist, cifar10, svhn and, on any interactions, for distill-cf
        steps: updates of the synthetic data
        lr: learning rate of the synthetic samples
        real_batch: real samples in each step, per class where a method matches class by class
        syn_batch: synthetic samples of each class in each step, where a method matches class by class; 0 is all
        init: what the synthetic samples start from: random real samples (real), noise, or real samples chosen by a
            selection method (the others)
        label: hard, soft (learned probabilities), unrestricted (learned numbers) or teacher (a trained network's
            probabilities); the method's own by default
        teacher: file of a network that is trained already, asked wherever one would be trained for --teacher-epochs
            (images, texts): a state dict (.safetensors, .pt or .pth) of the network distilled with
        augment: augment images while matching, real and synthetic ones alike
        outer_steps: updates of the synthetic data for which one network serves
        inner_steps: training of the network between two of these updates (epochs on the set for dc and its relatives),
            or steps of each student that is trained on the set
        inner_lr: learning rate of this training; where the rate is learned, what it starts from
        inner_batch: minibatch size of this training; for students, 0 is the whole set
        inner_momentum: momentum of this training
        inner_window: differentiate only the last N steps of a student's training, which then ends at a random step
            (rat-bptt); 0 differentiates all steps
        clip: norm to which a step's gradients are clipped, for unrolled training whose gradients explode; 0 never clips
        ridge: lambda of kernel ridge matching (krr of any data, frepo, rfad, kip and their like); raise it where a
            narrow network has hardly more features than the set has samples; 0 is the method's own
        classes_at_once: classes computed together, where a method matches class by class; fewer need less memory
        kept_steps: last steps of an unrolled training whose activations are kept; fewer need less memory, more time
        experts: number of experts whose trajectories are matched (mtt and its relatives); missing ones are trained
        expert_steps: epochs of an expert's training that a student must follow
        start_epochs: students start at a random one of an expert's first N epochs, the first being its initialisation
        expert_folder: folder that experts are read from and saved to; the cache by default
        expert_precision: number formats that missing experts train in - float32, or bf16, which is faster on GPUs and
            on CPUs with AMX or AVX512-BF16
        teacher_epochs: training epochs of the network that labels samples (--label teacher)
        ema: decay of a running average of the samples, which becomes the result; 0 takes the last samples as they are
        validate_every: steps between validations, the best of which decides what step is kept; 0 keeps the last step
        patience: end the run after N validations in a row without an improvement; 0 takes all steps
        interactions_per_user: interactions of a synthetic user (recommender data)
        set: NAME=VALUE, as often as there are settings to set that have no option of their own, such as inner_parts and
            those that a method of yours adds; a file may also name them like the others
        checkpoint_every: steps between checkpoints, the most that an interruption can lose; 0 writes one every tenth of
            the run, at least every ten minutes, and more often at first
        judges: judges of the result, comma-separated, or 'all'; by default the method's own, else the domain's first;
            'none' leaves judging to 'mmdistill evaluate', later or on another machine
        networks: independently trained networks per judge
        networks_at_once: networks trained together, all by default; fewer need less memory, and are other networks
        judge_epochs: training epochs of judges; the protocol's by default
        judge_batch: minibatch size of judges; the protocol's by default
        judge_precision: number formats that judges of images train in, float32 or bf16; they are tested in float32
        protocol: how judges of images train: default, dc, cafe, dsa, dm, mtt, datm, frepo, rcig, rfad, kip, idc,
            dance, ncfm, addmem, rded or sre2l (see 'mmdistill methods')
        whiten: ZCA whitening of images, in one paper's version: mtt, frepo or kip; none by default
        split: which split of a graph whose masks have several columns, from 0; the first by default
        inductive: condense a graph's training nodes and the edges among them alone; by default as is usual for the data
        mirror: whether augmentation mirrors images; false is right for digits, letters and signs, which a mirror image
            changes; by default all are mirrored but the known sets of digits
        size: resize the images of a folder or of hf:NAME to this side in pixels; without it all must have the same size
        baselines: what is judged beside the set, comma-separated - random, herding, k-center, k-means, craig (real
            samples, as many as the set has), whole (the whole training set), or the domain's own; 'all' or 'none'
    """

    data: str | None = None
    method: str | None = None
    ipc: int | None = None
    nodes: int | None = None
    users: int | None = None
    bytes: str | int | None = None
    parameterization: str | None = None
    out: str | None = None
    overwrite: bool = False
    seed: int = 0
    split_seed: int | None = None
    device: str = "auto"
    deterministic: bool = False
    compile: CompileMode = "auto"
    precision: Precision = "auto"
    model: str | None = None
    width: int | None = None
    encoder: str | None = None
    length: int | None = None
    text_column: str | None = None
    label_column: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    rating_column: str | None = None
    time_column: str | None = None
    min_rating: float | None = None
    split_by: SplitBy | None = None
    schedule: Schedule = "published"
    steps: int | None = None
    lr: float | None = None
    real_batch: int | None = None
    syn_batch: int | None = None
    init: InitKind | None = None
    label: LabelKind | None = None
    teacher: str | None = None
    augment: bool | None = None
    outer_steps: int | None = None
    inner_steps: int | None = None
    inner_lr: float | None = None
    inner_batch: int | None = None
    inner_momentum: float | None = None
    inner_window: int | None = None
    clip: float | None = None
    ridge: float | None = None
    classes_at_once: int | None = None
    kept_steps: int | None = None
    experts: int | None = None
    expert_steps: int | None = None
    start_epochs: int | None = None
    expert_folder: str | None = None
    expert_precision: TrainingPrecision | None = None
    teacher_epochs: int | None = None
    ema: float | None = None
    validate_every: int | None = None
    patience: int | None = None
    interactions_per_user: int | None = None
    set: tuple[str, ...] | None = None
    checkpoint_every: int = 0
    judges: str | None = None
    networks: int = 5
    networks_at_once: int | None = None
    judge_epochs: int | None = None
    judge_batch: int | None = None
    judge_precision: TrainingPrecision | None = None
    protocol: str | None = None
    whiten: str | None = None
    mirror: bool | None = None
    size: int | None = None
    split: int | None = None
    inductive: bool | None = None
    baselines: str = "random,herding,whole"

    def __post_init__(self) -> None:
        """Sort the entries of ``set``, keep the last of each name, and spell ``none`` so: equal ones compare equal.

        Raises:
            ConfigError: a negative number of steps between checkpoints.
        """
        require_checkpoint_every(self.checkpoint_every)
        given = (f"{name}={text}" for name, text in sorted(assignments(self.set or ()).items()))
        object.__setattr__(self, "set", tuple(given) or None)
        if [*map(canonical, self.judge_names())] == ["none"]:
            object.__setattr__(self, "judges", "none")

    def folder(self, varied: str = "") -> Path:
        """Return the run folder; without ``out`` its name has the text ``varied`` before the seed."""
        if self.out:
            return users_path(self.out)
        budget = next(iter(self.budgets().values()), 0)
        name = self.method if self.parameterization is None else f"{self.method}-{self.parameterization}"
        seed = f"-seed{self.seed}" if self.seed else ""
        data = Path(str(self.data))
        stem = data.stem if data.name not in ("", "..") else data.resolve().stem  # "./" has no name
        return Path("runs") / as_file_name(f"{stem}-{name}-{budget}{varied}{seed}")

    def budgets(self) -> dict[str, Any]:
        """Return the budget by its unit, ``{"ipc": 10}``; if several are given, all of them."""
        return {unit: budget for unit in BUDGETS if (budget := getattr(self, unit)) is not None}

    @property
    def count(self) -> int:
        """The number of samples per class, nodes or users; 1 if none is given."""
        return self.ipc or self.nodes or self.users or 1

    def overrides(self) -> dict[str, object]:
        """Return the settings that replace the method's own."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}

    def judge_names(self) -> list[str]:
        """Return the names of the judges; empty for the default."""
        return split_names(self.judges)

    @property
    def unjudged(self) -> bool:
        """Whether judging is left to another command."""
        return self.judges == "none"

    def save(self, path: Path, *, imported: bool = False) -> None:
        """Write the configuration as YAML that re-runs it, without ``overwrite``.

        An imported set's is marked as such, since no method makes the set again.
        """
        from mmdistill.runtime import atomic_write  # here, since importing torch would slow --help

        content = {name: value for name, value in asdict(self).items() if value is not None and name != "overwrite"}
        content |= {IMPORTED: True} if imported else {}
        with atomic_write(path) as handle:
            handle.write(as_yaml(content).encode())

    @staticmethod
    def load(path: Path) -> "DistillConfig":
        """Read a configuration that :meth:`save` wrote; errors as in :func:`read_options`."""
        return DistillConfig(**read_options(path))


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge distilled sets again.

    Args:
        judges: judges, comma-separated, or 'all'
        networks: independently trained networks per judge
        networks_at_once: networks trained together, all by default; fewer need less memory, and are other networks
        seed: seed of the judges; that of each run by default
        device: auto, cpu, cuda or cuda:N
        baselines: baselines, comma-separated, 'all' or 'none'
        protocol: how judges of images train, as for distill
        judge_epochs: training epochs of judges; those of the run by default, with --protocol the protocol's
        judge_batch: minibatch size of judges; that of the run by default, with --protocol the protocol's
        judge_precision: number formats that judges of images train in, float32 or bf16; that of the run by default
        teacher: file of the network that judges ask for labels, as for distill; that of the run by default
        data: where the runs' data are now, if they have moved; other data are refused
        scores: 'accuracy' (or what the data have instead), or 'robust' for the two robust scores of images
    """

    judges: str | None = None
    networks: int = 5
    networks_at_once: int | None = None
    seed: int | None = None
    device: str = "auto"
    baselines: str = "random,herding,whole"
    protocol: str | None = None
    judge_epochs: int | None = None
    judge_batch: int | None = None
    judge_precision: TrainingPrecision | None = None
    teacher: str | None = None
    data: str | None = None
    scores: str = "accuracy"

    def replaced(self, config: DistillConfig) -> DistillConfig:
        """Return a run's configuration with these options of judging; a protocol brings its own epochs and minibatch.

        The run's seed stays, since data may be held out by it.
        """
        run = config if self.protocol is None else replace(config, judge_epochs=None, judge_batch=None)
        options: dict[str, Any] = {name: getattr(self, name) for name in (*JUDGING_OPTIONS, "protocol", "teacher")}
        left_out = {name for name in (*JUDGE_TRAINING, "protocol", "teacher") if options[name] is None}
        return replace(run, **{name: value for name, value in options.items() if name not in left_out})


@dataclass(frozen=True)
class SweepConfig:
    """Distil by several methods, with several budgets and seeds.

    Args:
        methods: method names, comma-separated (see 'mmdistill methods')
        ipc: samples per class, comma-separated (images, texts, sets of graphs)
        nodes: nodes in all, comma-separated (graphs)
        users: users in all, comma-separated (recommender data)
        bytes: budgets in bytes instead of counts, comma-separated, such as 10KB,100KB
        seeds: seeds of everything random, comma-separated
        devices: auto, cpu, cuda or cuda:N, comma-separated; each has one run at a time, one that is named twice two
        out: folder of the runs, one each, and of their comparison
    """

    methods: str | None = None
    ipc: str | int | None = None
    nodes: str | int | None = None
    users: str | int | None = None
    bytes: str | int | None = None
    seeds: str | int = "0"
    devices: str = "auto"
    out: str | None = None


SETTINGS = tuple(entry.name for entry in fields(DistillConfig) if entry.name in Settings.__dataclass_fields__)
"""Options that replace a method's own settings."""
_VARIABLE = {"lr", "label", "parameterization", *SETTINGS} - {"expert_folder", *HOW_IT_RUNS}
VARIED = tuple(entry.name for entry in fields(DistillConfig) if entry.name in _VARIABLE)
"""Options of which a sweep takes several values."""


def assignable() -> set[str]:
    """Return the settings that ``--set`` takes: those without an option, of all classes of settings so far."""
    return {*known_names()} - {*SETTINGS, *WITHOUT_TEXT}


def _chooses(kind: Any) -> bool:
    """Return whether a type is a choice of a few words."""
    return get_origin(kind) is Literal or any(map(_chooses, get_args(kind)))


NAMED = {"method", "methods", "model", "parameterization", "init", "protocol", "whiten", "scores", "units"}
"""Options whose values are names of this package."""
CHOICES = {entry.name for kind in (DistillConfig, EvaluateConfig) for entry in fields(kind) if _chooses(entry.type)}
CHOICES |= NAMED  # in any spelling; the canonical one is recorded
LISTED = {field.name for field in fields(SweepConfig)} - {"out"} | {"judges", "baselines", "text_column"}
"""Options that take a comma-separated list, or a list in YAML."""


def read_settings(path: Path, kinds: Collection[str] = tuple(DistillConfig.__dataclass_fields__)) -> dict[str, Any]:
    """Read the settings of a YAML file without checking their values; empty ones are left out.

    Args:
        path: the file.
        kinds: the names of settings that it may have.
    Raises:
        CheckpointError: the file is missing or damaged, or a setting in it is unknown.
    """
    try:
        content = settings_by_name(path)
    except FileNotFoundError as error:
        raise CheckpointError(_no_configuration(path)) from error
    for name, value in ASIDE.items():  # --print-config writes these
        if content.get(name, ...) == value:
            del content[name]
    known = {*kinds, *(assignable() if "set" in kinds else ())}
    if IMPORTED in content and IMPORTED not in known:
        raise CheckpointError(f"{path} is that of a set which was imported: no method makes it")
    for name in content:
        if name not in known:
            raise CheckpointError(f"{path} has an unknown setting {name!r:.80}{did_you_mean(str(name), known)}")
    without_option = {name: content.pop(name) for name in sorted(known & {*content} - {*kinds})}
    if given := [*as_assignments(content.get("set")), *as_assignments(without_option)]:
        content["set"] = given
    for name in CHOICES & set(content):
        if isinstance(content[name], bool):  # YAML reads "on" and "off" as booleans
            content[name] = "on" if content[name] else "off"
        if isinstance(content[name], str):
            content[name] = canonical(content[name])
    for name in (LISTED | ({*VARIED} if "seeds" in kinds else set())) & set(content):
        if isinstance(listed := content[name], list):
            content[name] = ",".join(map(str, listed)) or ("none" if name in ("judges", "baselines") else None)
    return {name: value for name, value in content.items() if value is not None}


def read_options(path: Path) -> dict[str, Any]:
    """Read the options in a run's file, by name.

    Raises:
        CheckpointError: as :func:`read_settings`, and a setting of another type.
    """
    kinds = {field.name: field.type for field in fields(DistillConfig)}
    content = read_settings(path, (*kinds, IMPORTED))
    content.pop(IMPORTED, None)
    for name, value in content.items():
        if not has_type(value, kinds[name]):
            raise CheckpointError(f"{path} has {name}: {value!r:.80}, which cannot be; mend or remove the line")
    return content


def _no_configuration(path: Path) -> str:
    """Explain why a folder has no configuration: it is not a run's, or the run was made in Python."""
    folder = path.parent
    if not holds_work(folder):
        return f"{folder} is no run folder: {path.name} is missing"
    return (
        f"{folder} holds no {path.name}, so nothing says which data and network its run is of: it was made in Python "
        "(or the file was removed). There distill(task, ..., out=folder, resume=True) goes on with it, "
        "evaluate(task, DistilledSet.load(folder)) judges it, save_evaluation writes its report, and export exports it"
    )
