"""What a user can set on the command line or in YAML: typed, documented, printable."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from mmdistill.errors import CheckpointError, ConfigError, did_you_mean
from mmdistill.run_folder import is_finished, is_started
from mmdistill.settings import InitKind, Settings


@dataclass(frozen=True)
class DistillConfig:
    """Distil a data set into a tiny synthetic one.

    Args:
        data: data set name (see 'mmdistill data') or a path to a file or folder of yours
        method: method name (see 'mmdistill methods')
        ipc: samples per class (images, texts, sets of graphs)
        nodes: nodes in all (graphs)
        users: users in all (recommender data)
        bytes: instead of a count, the bytes that the set may take, such as 100KB; the largest that fits is made
        parameterization: how samples are stored (see 'mmdistill methods'); each method's own way by default
        out: run folder; runs/DATA-METHOD[-PARAMETERIZATION]-BUDGET by default, with -seedN for a seed other than 0
        overwrite: replace the run in that folder, finished or not
        seed: seed of everything random
        device: auto, cpu, cuda or cuda:N
        deterministic: on CUDA, only kernels that give the same bits each time; the CPU always does
        compile: auto compiles runs long enough to repay it, on does always, off never; both capture steps on CUDA
        precision: number formats - float32, tf32 (CUDA), mixed (real samples in bf16; twice as fast on CPUs that
            multiply it too, with AMX or AVX512-BF16) or bf16; auto is float32 on the CPU and mixed on CUDA
        model: network to distil with, such as convnet, resnet18 or mlp (images), gcn (graphs), textcnn (texts); the
            domain's own by default
        width: width of the network
        encoder: text encoder - minilm (the default), tfidf, average, or the name or folder of a transformers model
        length: tokens kept of each text, for networks that read tokens; what 95 % of the texts need by default, at most
            128
        text_column: column of the texts in a table; two, comma-separated, for pairs of texts
        label_column: column of the labels in a table
        schedule: published settings, or reduced ones that a CPU finishes in minutes, with --width 32 say; there are
            reduced ones for mnist, fashion-mnist, cifar10, svhn and, on any interactions, distill-cf
        steps: updates of the synthetic data
        lr: learning rate of the synthetic samples
        real_batch: real samples in each step, per class where a method matches class by class
        syn_batch: synthetic samples of each class in each step, where a method matches class by class; 0 is all
        init: what the synthetic samples start from: random real samples, noise, or real samples chosen in some way
        label: hard, soft (learned probabilities), unrestricted (learned numbers) or teacher (a trained network's
            probabilities); the method's own by default
        augment: augment images while matching, real and synthetic ones alike
        outer_steps: updates of the synthetic data per network
        inner_steps: network updates between them, or those of each student that is trained on the set
        inner_lr: learning rate of these network updates; where it is learned, what it starts from
        inner_batch: minibatch size of these network updates; 0 is the whole set, for students that are trained on it
        inner_momentum: momentum of these network updates
        inner_window: last steps of a student's training that gradients flow through, which then ends at a random step
            (rat-bptt); 0 is all steps
        clip: norm at which a step's gradients are cut, for unrolled training whose gradients burst; 0 never cuts
        ridge: lambda of kernel ridge matching (krr, frepo, rfad, kip); larger where a narrow network's features hardly
            outnumber the samples; 0 is the method's own
        classes_at_once: classes computed together where they are matched one by one; fewer need less memory
        kept_steps: last steps of an unrolled training whose activations are kept; fewer need less memory and more time
        experts: how many experts' trajectories are matched (mtt and its relatives); those that are missing are trained
        expert_steps: epochs of an expert's training that a student shall follow
        start_epochs: from how many of an expert's first epochs these start
        expert_folder: where experts are or shall be; the cache by default
        teacher_epochs: epochs of the network that labels samples (--label teacher)
        ema: decay of a running average of the samples, which becomes the result; 0 keeps the last
        validate_every: steps between validations that pick the best step; 0 keeps the last
        patience: validations without a better step after which the run ends; 0 takes all steps
        interactions_per_user: interactions of a synthetic user (recommender data)
        checkpoint_every: steps between checkpoints, which an interruption loses at most; 0 is a tenth of the run, at
            most ten minutes, and fewer at first
        judges: who judges the result, comma-separated, or 'all'; the method's or the domain's first judge by default
        networks: independently trained networks per judge
        networks_at_once: networks trained together; fewer need less memory; all by default
        judge_epochs: training epochs of judges; the protocol's by default
        judge_batch: minibatch size of judges; the protocol's by default
        protocol: how judges of images train: default, dc, cafe, dsa, dm, mtt, frepo, rfad, kip, idc or addmem (see
            'mmdistill methods')
        whiten: ZCA whitening of images as a paper has it: mtt, frepo or kip; none by default
        inductive: condense a graph's training nodes and the edges among them alone; by default as is usual for the data
        size: side in pixels to which the images of a folder are resized; without it all must have one size
        baselines: what is judged beside the set, comma-separated - random, herding, k-center, k-means, craig (real
            samples at equal count), whole (all of them), or those of the data's domain; 'none' for nothing
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
    device: str = "auto"
    deterministic: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    precision: Literal["auto", "float32", "tf32", "mixed", "bf16"] = "auto"
    model: str | None = None
    width: int | None = None
    encoder: str | None = None
    length: int | None = None
    text_column: str | None = None
    label_column: str | None = None
    schedule: Literal["published", "reduced"] = "published"
    steps: int | None = None
    lr: float | None = None
    real_batch: int | None = None
    syn_batch: int | None = None
    init: InitKind | None = None
    label: Literal["hard", "soft", "unrestricted", "teacher"] | None = None
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
    teacher_epochs: int | None = None
    ema: float | None = None
    validate_every: int | None = None
    patience: int | None = None
    interactions_per_user: int | None = None
    checkpoint_every: int = 0
    judges: str | None = None
    networks: int = 5
    networks_at_once: int | None = None
    judge_epochs: int | None = None
    judge_batch: int | None = None
    protocol: str | None = None
    whiten: str | None = None
    size: int | None = None
    inductive: bool | None = None
    baselines: str = "random,herding,whole"

    def folder(self) -> Path:
        """Return the run folder."""
        if self.out:
            return Path(self.out)
        budget = next((b for b in (self.ipc, self.nodes, self.users, self.bytes) if b is not None), 0)
        name = self.method if self.parameterization is None else f"{self.method}-{self.parameterization}"
        seed = f"-seed{self.seed}" if self.seed else ""
        return Path("runs") / f"{Path(str(self.data)).stem}-{name}-{budget}{seed}"

    def overrides(self) -> dict[str, object]:
        """Return the settings that replace the method's own."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}

    def judge_names(self) -> list[str]:
        """Return the judges asked for; empty for the default."""
        return split_names(self.judges)

    def save(self, path: Path) -> None:
        """Write the configuration as YAML that re-runs it, without leave to replace what there is by then."""
        from mmdistill.runtime import atomic_write  # imports torch, which --help should not wait for

        content = {name: value for name, value in asdict(self).items() if value is not None and name != "overwrite"}
        with atomic_write(path) as handle:
            handle.write(yaml.safe_dump(content, sort_keys=False).encode())

    @staticmethod
    def load(path: Path) -> "DistillConfig":
        """Read a configuration that :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged, or a setting in it is unknown or of another type.
        """
        kinds = {field.name: field.type for field in fields(DistillConfig)}
        content = read_settings(path)
        for name, value in content.items():
            if not _fits(value, kinds[name]):
                raise CheckpointError(f"{path} has {name}: {value!r}, which cannot be; mend or remove the line")
        return DistillConfig(**content)


SETTINGS = tuple(entry.name for entry in fields(DistillConfig) if entry.name in Settings.__dataclass_fields__)
"""Options that replace a method's own settings."""


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file, whose values are not looked at; those left empty are as if they were not there.

    Names of judges and baselines may be a list.

    Raises:
        CheckpointError: the file is missing or damaged, or a setting in it is unknown.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(_no_configuration(path)) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no settings by name")
    kinds = [field.name for field in fields(DistillConfig)]
    for name, value in content.items():
        if name not in kinds and (name, value) != ("resume", None):  # which --print-config writes
            raise CheckpointError(f"{path} has an unknown setting {name!r}{did_you_mean(str(name), kinds)}")
    for name, nothing in (("judges", None), ("baselines", "none")):
        if isinstance(listed := content.get(name), list):
            content[name] = ",".join(map(str, listed)) or nothing
    return {name: value for name, value in content.items() if value is not None}


def _no_configuration(path: Path) -> str:
    """Return in words why a run folder has no configuration: it is none, or the run was made in Python."""
    folder = path.parent
    if not (is_finished(folder) or is_started(folder)):
        return f"{folder} is no run folder: {path.name} is missing"
    return (
        f"{folder} was made in Python, which writes no {path.name}, so that its task is known there alone; use "
        "distill(task, ..., out=folder, resume=True), evaluate(task, DistilledSet.load(folder)) and the calls that "
        "docs/formats.md shows for exports and reports"
    )


def _fits(value: object, kind: Any) -> bool:
    """Return whether a value is of a field's type."""
    if get_origin(kind) in (UnionType, Union):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def split_names(text: str | None) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def baseline_names(text: str) -> list[str]:
    """Return the baselines asked for; 'none' means nothing."""
    return [] if text.strip().lower() == "none" else split_names(text.lower())


def require_data_and_method(config: DistillConfig) -> tuple[str, str]:
    """Return the data and method names.

    Raises:
        ConfigError: one is missing.
    """
    if config.data is None or config.method is None:
        missing = "--data" if config.data is None else "--method"
        raise ConfigError(f"{missing} is needed; see 'mmdistill data' and 'mmdistill methods' for what there is")
    return config.data, config.method
