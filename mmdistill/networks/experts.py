"""Expert trajectories: networks trained on the real data, with their state after every epoch kept on disk (Eq. 12).

A folder holds ``experts.json``, which describes the experts, and one safetensors file for each expert, whose tensors
have a leading axis of epochs; reading one snapshot reads one row of each.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mmdistill.abilities import GradesSamples
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.execution.isolation import in_turn, isolated
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.files.locks import sole_writer
from mmdistill.names import counted, first_few
from mmdistill.networks.clock import LoggedProgress, TrainingClock, TrainingProgress, describe_training
from mmdistill.networks.curriculum import CurriculumRows, epoch_offsets
from mmdistill.networks.difficulty import cached_scores, difficulty_of, scored_classes
from mmdistill.networks.expert_group import (
    EPOCH_DIGESTS,
    OWN,
    ExpertGroup,
    epoch_digest,
    groups_of,
    numbers_in,
    open_groups,
    remove_finished,
    shard,
)
from mmdistill.networks.expert_loss import batches_networks, expert_loss, training_batch
from mmdistill.networks.expert_manifest import (
    MANIFEST,
    digest,
    read_manifest,
    relatives,
    require_same,
    trained_epochs,
)
from mmdistill.networks.expert_recipe import ExpertRecipe, identity
from mmdistill.networks.fit import LiveTraining, SavedTraining, fit_networks
from mmdistill.networks.fit_protocol import visits_and_size
from mmdistill.networks.stacked import Mode, operations_looped, repays_looped, stack_states, state_of
from mmdistill.runtime import Draws, cache_folder, remove_parts
from mmdistill.store import opened_tensors, write_json
from mmdistill.task import Batch, ClassBatch, Dims, NetworkState, Task, Tensors, augmented, shares_inputs, take

logger = logging.getLogger(__name__)

TOGETHER = 10
"""Experts trained at once; another number gives other experts."""


def cache_name(task: Task, manifest: dict[str, Any]) -> str:
    """Return the name in the cache folder of a task's files that a manifest describes."""
    data = "".join(c if c.isalnum() else "-" for c in Path(task.describe().data).name.lower())
    return f"{data}-{digest(manifest)}"


def default_folder(task: Task, recipe: ExpertRecipe) -> Path:
    """Return the cache folder of a task's experts."""
    return cache_folder() / "experts" / cache_name(task, identity(task, recipe))


def serving_folder(task: Task, recipe: ExpertRecipe, count: int) -> Path:
    """Return the cache folder whose experts serve a recipe: the one with its epochs, or a complete one with more.

    Experts of more epochs serve if their first epochs are the same bit by bit on a CPU: no rate depends on the number
    of epochs, the same experts trained together, and both trainings are compiled or neither is.
    """
    default = default_folder(task, recipe)
    if is_complete(default, count) or not recipe.protocol.open_ended:
        return default
    manifest, groups = identity(task, recipe), groups_of(default, count, TOGETHER)
    trainer: _ExpertTrainer | None = None
    for epochs, folder in relatives(default, manifest):
        if epochs < recipe.protocol.epochs or not is_complete(folder, count):
            continue
        if [numbers_in(shard(folder, index)) for index in range(count)] != groups:
            continue
        trainer = trainer or _ExpertTrainer(task, default, recipe, None, manifest)
        if all(trainer.agrees(networks, epochs) for networks in {len(group) for group in groups}):
            return folder
    return default


class Experts:
    """A folder of expert trajectories, read snapshot by snapshot.

    Args:
        folder: where :func:`train_experts` put them.
        task: the task; experts must be of its data and network.
        count: number of experts needed.
        recipe: how they must have trained, for its epochs or more (exactly its epochs if a rate depends on their
            number); None accepts any training.
    Raises:
        CheckpointError: none or too few, damaged ones, or experts of other data, another network or other training.
    """

    def __init__(self, folder: Path, task: Task, count: int = 1, recipe: ExpertRecipe | None = None) -> None:
        if not (folder / MANIFEST).exists():
            raise CheckpointError(f"{folder} holds no experts ({MANIFEST} is missing); make them with train_experts")
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._digest = digest(self.manifest)
        self._checked: set[tuple[int, int]] = set()
        self.device = task.device
        self.epochs = trained_epochs(self.manifest)
        wanted = identity(task, (recipe or ExpertRecipe()).reaching(self.epochs))
        require_same(folder, self.manifest, wanted, training=recipe is not None)
        if recipe is not None and self.epochs < recipe.protocol.epochs:
            raise CheckpointError(
                f"the experts in {folder} trained for {self.epochs} epochs, {recipe.protocol.epochs} are needed"
            )
        missing = [index for index in range(count) if not shard(folder, index).exists()]
        if missing:
            raise CheckpointError(
                f"of {count} experts in {folder}, experts {first_few(missing)} are missing; "
                "train_experts makes the missing ones"
            )
        for index in range(count):
            with self._opened(index):
                pass

    def snapshot(self, expert: int, epoch: int) -> NetworkState:
        """Return an expert's network after an epoch; 0 is the initialisation."""
        tensors = self._read(expert, epoch)
        if self.device.type == "cuda":  # pinned, so that no copy waits for earlier launches
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        state = state_of({name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()})
        return state._replace(params={name: state.params[name] for name in self.manifest["architecture"]})

    def together(self, experts: Sequence[int], epochs: int) -> Iterator[Tensors]:
        """Yield the stacked tensors ``(M, ...)`` of some experts at each epoch from 0 to ``epochs``."""
        for epoch in range(epochs + 1):
            snapshots = [self._read(expert, epoch) for expert in experts]
            yield {name: torch.stack([snapshot[name] for snapshot in snapshots]) for name in snapshots[0]}

    @contextmanager
    def _opened(self, expert: int) -> Iterator[Any]:
        """Open an expert's file; within this context errors of reading it become a CheckpointError."""
        path = shard(self.folder, expert)
        try:
            with opened_tensors(path) as handle:
                if not (handle.metadata() or {}).get(OWN, "").startswith(self._digest):
                    raise CheckpointError(f"{path} belongs to other experts than {MANIFEST} beside it describes")
                yield handle
        except (safetensors.SafetensorError, OSError, IndexError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); remove it, and it is trained anew") from error

    def _read(self, expert: int, epoch: int) -> Tensors:
        """Read one epoch's tensors and, the first time, check them by their digest."""
        with self._opened(expert) as handle:
            tensors = {name: handle.get_slice(name)[epoch : epoch + 1][0].clone() for name in handle.keys()}  # noqa: SIM118
        expected_digest = tensors.pop(EPOCH_DIGESTS, None)
        if (expert, epoch) not in self._checked:
            if expected_digest is None or not torch.equal(expected_digest, epoch_digest(tensors)):
                raise CheckpointError(
                    f"{shard(self.folder, expert)} is damaged (epoch {epoch} has changed since it was written); remove "
                    "it, and it is trained anew"
                )
            self._checked.add((expert, epoch))
        return tensors


def is_complete(folder: Path, count: int) -> bool:
    """Return whether a folder holds ``count`` finished experts, of any kind."""
    return (folder / MANIFEST).exists() and all(shard(folder, index).exists() for index in range(count))


@in_turn
@isolated
def train_experts(
    task: Task,
    folder: Path,
    count: int,
    recipe: ExpertRecipe | None = None,
    *,
    together: int = TOGETHER,
    mode: Mode | None = None,
    progress: TrainingProgress | None = None,
) -> Experts:
    """Train the experts that a folder lacks and keep their state after every epoch.

    An interrupted call resumes from finished files and from what
    :class:`~mmdistill.networks.expert_group.ExpertGroup` saved, and ends with the same experts. In the cache, experts
    continue from others that trained in the same way for fewer epochs, if their optimizer has no state. Of several
    processes one trains, and the others wait for it.

    Args:
        task: gives the network and the real samples.
        folder: where to put the experts.
        count: number of experts that the folder should hold.
        recipe: how they train; if the folder's experts have more epochs, new ones train for as many.
        together: experts trained at once. Orders and augmentation are drawn for all of them in one call, so another
            number gives other experts.
        mode: see :func:`~mmdistill.networks.fit.fit_networks`; None takes ``loop`` on a CPU, elsewhere ``vmap`` if
            the network allows it.
        progress: called after every step.
    Raises:
        CheckpointError: the folder holds experts of other data, another network or other training.
        ConfigError: count, together or epochs below 1.
    """
    recipe = recipe or ExpertRecipe()
    if min(count, together, recipe.protocol.epochs) < 1:
        raise ConfigError(
            f"count, together and epochs are at least 1, got {count}, {together}, {recipe.protocol.epochs}"
        )
    with sole_writer(folder, wait="train experts") as alone:
        remove_parts(folder, alone)
        recipe = longer(recipe, folder)
        manifest = identity(task, recipe)
        if (folder / MANIFEST).exists():
            require_same(folder, read_manifest(folder), manifest, training=True)
        else:
            write_json(folder / MANIFEST, manifest)
        if groups := open_groups(folder, count, together):
            trainer = _ExpertTrainer(task, folder, recipe, mode, manifest)
            clock = TrainingClock(len(groups) * trainer.first[-1], progress)
            for group in groups:
                with out_of_memory_advice(
                    f"training {len(group)} networks together", "fewer at once (--together) or less --width"
                ):
                    trainer.train(group, clock)
        remove_finished(folder)
        return Experts(folder, task, count, recipe)


def longer(recipe: ExpertRecipe, folder: Path) -> ExpertRecipe:
    """Return a recipe with the number of epochs of a folder's experts, if that is larger and serves as well."""
    if not (folder / MANIFEST).exists():
        return recipe
    return recipe.reaching(max(trained_epochs(read_manifest(folder)), recipe.protocol.epochs))


def open_experts(task: Task, folder: Path, count: int, recipe: ExpertRecipe, *, called: str = "experts") -> Experts:
    """Open a folder's experts after training those that it lacks; the log calls these ``called``."""
    if is_complete(folder, count):
        return Experts(folder, task, count, recipe)
    what = f"the missing ones of {count} networks" if count > 1 else "a network"
    logger.info("training %s in %s", what, folder)
    return train_experts(task, folder, count, recipe, progress=LoggedProgress(called))


def describe_experts(task: Task, folder: Path, count: int, recipe: ExpertRecipe, *, called: str = "") -> str:
    """Describe in words where a task's experts are, or how many of them :func:`open_experts` will train.

    Args:
        task: the experts' task.
        folder: where they are or will be.
        count: number of experts needed.
        recipe: how they train.
        called: their name, in place of the count.
    Raises:
        CheckpointError: the folder holds other or damaged experts, as for :func:`open_experts`.
        ConfigError: as for :func:`lessons_on`.
    """
    recipe = longer(recipe, folder)
    if is_complete(folder, count):
        Experts(folder, task, count, recipe)
    elif (folder / MANIFEST).exists():
        require_same(folder, read_manifest(folder), identity(task, recipe), training=True)
    missing = sum(not shard(folder, index).exists() for index in range(count))
    what = f"{called or f'{count:,}'} of {counted(recipe.protocol.epochs, 'epoch')}"
    description = describe_training(what, missing, count, folder)
    if not missing or recipe.curriculum is None:
        return description
    data, scoring = training_batch(task), recipe.curriculum.scoring
    epoch_offsets(recipe.protocol, data.weight.shape[0], lessons_on(task, recipe, data))
    if is_complete(serving_folder(task, recipe.of_scorers(scoring), scoring.networks), scoring.networks):
        return description
    scorers = f"{scoring.networks} networks of {counted(scoring.protocol.epochs, 'epoch')}"
    return f"{description}, after {scorers} that score difficulty"


def lessons_on(task: Task, recipe: ExpertRecipe, data: Batch) -> CurriculumRows | None:
    """Return the training samples that each epoch draws from; None: all.

    Difficulty is scored when the first epoch begins.

    Raises:
        ConfigError: samples have no classes, or share inputs in a task that does not grade them.
    """
    if recipe.curriculum is None:
        return None
    classes = scored_classes(data)[data.weight > 0]
    if isinstance(task, GradesSamples):
        classes = torch.zeros_like(classes)
    elif shares_inputs(data):
        raise ConfigError("samples share inputs, and their task does not grade them; leave expert_easy and so on out")
    scoring = recipe.curriculum.scoring
    scores = partial(difficulty_scores, task, recipe.of_scorers(scoring), scoring.networks, data)
    return CurriculumRows(recipe.curriculum, classes, scores)


def difficulty_scores(task: Task, recipe: ExpertRecipe, count: int, data: Batch) -> Tensor:
    """Return the difficulty of the training samples, ``(n,)``, from the cache if it is there.

    Otherwise ``count`` networks score it, which are trained by ``recipe`` if missing and cached as experts are.
    """
    folder = serving_folder(task, recipe, count)
    scorers = open_experts(task, folder, count, recipe, called="networks that score difficulty")
    states = (scorers.snapshot(index, recipe.protocol.epochs) for index in range(count))
    path = scorers.folder / f"difficulty-{count}-{recipe.protocol.epochs}.safetensors"
    return cached_scores(path, int((data.weight > 0).sum()), partial(difficulty_of, task, data, states))


class _ExpertTrainer:
    """Trains groups of experts side by side.

    Args:
        task: gives the network and the real samples.
        folder: where finished experts go, and the state of those in training.
        recipe: how they train.
        mode: see :func:`~mmdistill.networks.fit.fit_networks`; None chooses.
        manifest: the folder's manifest.
    """

    def __init__(
        self, task: Task, folder: Path, recipe: ExpertRecipe, mode: Mode | None, manifest: dict[str, Any]
    ) -> None:
        self.task, self.folder, self.recipe, self.manifest = task, folder, recipe, manifest
        self.data = training_batch(task)
        self.whole = shares_inputs(self.data)  # networks then see all samples at once, without augmentation
        self.protocol = replace(recipe.protocol, batch=None, visits=None) if self.whole else recipe.protocol
        self.lessons = lessons_on(task, recipe, self.data)
        self.first = epoch_offsets(self.protocol, self.data.weight.shape[0], self.lessons)
        """The number of each epoch's first step in a group's training, and at the end the number of all steps."""
        self.pure = batches_networks(task, self.data)
        self._operations: int | None = None
        # On the CPU one network keeps the machine busy, and convolutions batched over networks are slow.
        self.mode: Mode = mode or ("vmap" if self.pure and task.device.type != "cpu" else "loop")
        self.loss = expert_loss(task, random=not self.pure, precision=recipe.precision)

    def train(self, group: Sequence[int], clock: TrainingClock) -> None:
        """Train a group's experts and write those that are missing."""
        saver = ExpertGroup(self.folder, group, digest(self.manifest))
        saved = saver.load_state(self.task.device) or self._start_from_shorter(saver, group)
        if saved is not None:
            clock.skip(self.first[saved.epoch] + saved.step)

        def observe(at: LiveTraining) -> None:
            saver.note(at)
            if at.epoch or at.step:
                clock.tick()

        def augment(draws: Draws, batch: Batch) -> Batch:
            by_network = batch.map(lambda t: t.unflatten(0, (len(group), -1)))
            result = augmented(self.task, draws, ClassBatch(by_network, Dims(0, 0)), shared=False)
            return result.batch.map(lambda t: t.flatten(0, 1))

        fit_networks(
            self.task.init,
            self.loss,
            self.data,
            self.protocol,
            len(group),
            Draws(self.recipe.seed, ("experts", group[0], len(group)), self.task.device),
            augment=augment if self.recipe.augment and not self.whole else None,
            noise=None if self.pure else lambda key, n: {"seed": key.to("cpu").integers(2**62, n)},
            observe=observe,
            resume_from=saved,
            lessons=self.lessons,
            mode=self.mode,
            pure=self.pure,
        )
        for position, index in enumerate(group):
            if not shard(self.folder, index).exists():
                saver.finish(position, shard(self.folder, index))
        saver.remove()

    def agrees(self, networks: int, epochs: int) -> bool:
        """Return whether training ``networks`` networks for ``epochs`` gives the same numbers in the common epochs.

        On a CPU a long training is compiled and a short one is not, so they may differ by rounding.
        """
        if self.task.device.type != "cpu" or self.mode != "loop" or not self.pure:
            return True
        if self._operations is None:
            size = visits_and_size(self.protocol, self.data.weight.shape[0])[1]
            batch = self.data if self.whole else take(self.data, slice(size))
            network = stack_states([self.task.init(Draws(0))])
            self._operations = operations_looped(self.loss, network, batch, {}, batched=False)

        def is_compiled(epochs: int, operations: int) -> bool:
            protocol = replace(self.protocol, epochs=epochs)
            steps = epoch_offsets(protocol, self.data.weight.shape[0], self.lessons)[-1]
            return repays_looped(steps, networks, operations)

        return is_compiled(self.protocol.epochs, self._operations) == is_compiled(epochs, self._operations)

    def _start_from_shorter(self, saver: ExpertGroup, group: Sequence[int]) -> SavedTraining | None:
        """Start a group's training from the cached epochs of a shorter one; return None if there is none.

        These epochs are the same as those of an uninterrupted training, see :func:`serving_folder`.
        """
        if not (self.protocol.open_ended and self.protocol.keeps_nothing):
            return None
        for epochs, folder in reversed(relatives(self.folder, self.manifest)):
            same_group = all(numbers_in(shard(folder, index)) == list(group) for index in group)
            if epochs > self.protocol.epochs or not same_group or not self.agrees(len(group), epochs):
                continue
            try:
                shorter = Experts(folder, self.task, 0)
                saved = saver.start_from(shorter.together(group, epochs), self.task.device)
            except CheckpointError as error:
                logger.warning("experts do not go on from those of %d epochs: %s", epochs, error)
                continue
            logger.info("going on from the %d epochs in %s", epochs, folder)
            return saved
        return None
