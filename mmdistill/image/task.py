"""Images as a task: class batches from tensors on the device, siamese augmentation, and the field's evaluation."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self, get_args

import torch
from torch import Tensor

from mmdistill.abilities import Judging, MapReader, NormReader, judging_overrides
from mmdistill.checks import require_kind, require_left_out, require_no_width, require_sizes
from mmdistill.choices import TrainingPrecision
from mmdistill.class_rows import ClassRows
from mmdistill.described import described_module, digest_in_words
from mmdistill.errors import ShapeError, UnsupportedError, require_choice
from mmdistill.execution.isolation import isolated
from mmdistill.files.classes import ClassNames
from mmdistill.image.augment import SiameseAugmentation, image_inputs, task_augmentation
from mmdistill.image.data import ImageData
from mmdistill.image.datasets import Source, load
from mmdistill.image.judge_networks import JudgeNetworks, try_on_images
from mmdistill.image.judges import JUDGES, ImageJudge, NetworkJudge, entry_of, listed_judges
from mmdistill.image.known import DATASETS
from mmdistill.image.models import model_factory, model_name
from mmdistill.image.pixels import Pixels
from mmdistill.image.protocols import JudgingChoices, Protocol, find_protocol
from mmdistill.image.robust import robust_scores
from mmdistill.image.views import Views
from mmdistill.image.whitening import whitened
from mmdistill.labels import require_targets, target_loss, weighted_mean
from mmdistill.names import called
from mmdistill.networks.architecture import OWN, task_line
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.networks.norms import norms_read
from mmdistill.networks.pretrained import GivenTeacher, TeacherLike, given_as_teacher
from mmdistill.networks.statistics import settled_by_class
from mmdistill.runtime import Draws, Elsewhere, checked_seed, choose_device, host_draws_from
from mmdistill.samples import counted
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Scores, TaskInfo, Tensors, one_tensor

WHOLE_MOST = 2**34
"""The largest whole training set that judges train on, in bytes of its normalised pixels."""
MIRRORED = (
    "augmentation mirrors images; where a mirror image means something else, as of digits and letters, add --mirror "
    "false (mirror=False in Python)"
)
"""Note on images if neither the data set nor the user says whether they may be mirrored."""
NOT_AUGMENTED = "images with a side of one pixel may be vectors, so neither methods nor judges augment them"
"""Note on such images."""


class ImageTask:
    """Distil and judge image classification.

    The device holds images as they are stored (bytes stay bytes); each draw normalises the ones it takes.

    Args:
        data: training and test images.
        network: the network to distil with, built for these images.
        model: the network's name, which the first judge shares; ``model`` for a user's own network.
        device: where everything runs.
        judge_epochs: epochs of judges; None is the protocol's own number.
        judge_batch: minibatch size of judges; None is the protocol's own.
        judge_augment: whether judges train with per-sample augmentation; None is the protocol's own choice.
        judge_precision: number format of judges' training; None is float32, in which they are always tested.
        protocol: how judges train, or its name in :data:`~mmdistill.image.protocols.PROTOCOLS`.
        width: the width of a named network, if its name does not say it.
        augmentation: of methods and of judges that train with DSA's; None is DSA's.

    Raises:
        ConfigError: an unknown protocol, epochs or a batch size that is not a whole number of at least 1, or an
            augmentation that mirrors images which must not be.

    Attributes:
        given_teacher: a trained network to use as the teacher; None trains one when it is needed.
    """

    given_teacher: GivenTeacher | None = None

    def __init__(
        self,
        data: ImageData,
        network: FunctionalModule,
        model: str,
        device: torch.device,
        *,
        judge_epochs: int | None = None,
        judge_batch: int | None = None,
        judge_augment: bool | None = None,
        judge_precision: TrainingPrecision | None = None,
        protocol: str | Protocol | None = None,
        width: int | None = None,
        augmentation: SiameseAugmentation | None = None,
    ) -> None:
        self.data = data
        self.network = network
        self.model = model
        self.network_name = "" if model == OWN else model
        self.device = device
        self.num_classes: int | None = len(data.class_names)
        self.labels: Tensor | None = data.train_labels.cpu()
        self.views = Views(task_augmentation(augmentation, data.mirror), data.mirror, len(data.class_names))
        self._own_augmentation = self.augmentation.describe() != task_augmentation(None, data.mirror).describe()
        self.protocol = find_protocol(protocol)
        self._choose(JudgingChoices(judge_epochs, judge_batch, judge_augment, judge_precision))
        self._networks = JudgeNetworks(data, network, model, self.protocol, device, width, JUDGES)
        self.judges: Sequence[str] = listed_judges(model, data.shape)
        self._pixels = Pixels(data, device)
        self._beside_pixels = Elsewhere()
        self._classes = data.train_labels.to(device)
        self.test_set = data.test_images.to(device), data.test_labels.to(device)
        self._rows = ClassRows(data.train_labels, len(data.class_names), self._pixels.place)

    def _choose(self, chosen: JudgingChoices) -> None:
        """Set the judging choices, and the overrides that are saved with results.

        Raises:
            UnsupportedError: augmentation of images with a side of one pixel.
        """
        if not self.data.planar:
            if chosen.augment or self._own_augmentation:
                raise UnsupportedError(f"{NOT_AUGMENTED}: leave out judge_augment and augmentation")
            chosen = replace(chosen, augment=False)
        self.chosen = chosen
        own = {"augmentation": digest_in_words(self.augmentation)} if self._own_augmentation else {}
        protocol = self.protocol.own_settings(chosen.augment)
        self.judging_chosen: Judging = judging_overrides(chosen.epochs, chosen.batch, chosen.precision, protocol, **own)

    @property
    def augmentation(self) -> SiameseAugmentation:
        """The augmentation of methods, and of judges that train with DSA's; it is given when the task is built."""
        return self.views.dsa

    def judged_by(self, chosen: JudgingChoices) -> Self:
        """Return a copy of this task with other judging choices; it shares the network and the data."""
        other = copy.copy(self)
        other._choose(chosen)
        return other

    def __repr__(self) -> str:
        sizes = f"{len(self._classes):,} training and {len(self.test_set[1]):,} test samples"
        return task_line(self, self.data.name, sizes)

    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network."""
        return self.network.init(draws)

    def architecture(self) -> str:
        """Return the network's module in its own words."""
        return described_module(self.network.module)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return ``(n, C)`` logits and the updated buffers; dropout in training draws from the key.

        Raises:
            ShapeError: the network returns another shape.
        """
        images = image_inputs(inputs)
        output, buffers = self.network(state, images, train=train, draws=draws)
        if not isinstance(output, Tensor) or output.shape != (len(images), self.num_classes):
            got = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ShapeError(
                f"the network returned {got} for {len(images)} images of {self.num_classes} classes; it must return "
                "one row of logits per image"
            )
        return output, buffers

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return the network with batch norm statistics of class-balanced real images."""
        return settled_by_class(self, self.network, state, draws)

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the weighted mean of :func:`~mmdistill.labels.target_loss`."""
        output, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return weighted_mean(target_loss(output, one_tensor(batch.targets)), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return one ``(n, d_l)`` tensor per named layer, the embedding before the linear head last."""
        return self.network.features(state, image_inputs(inputs))

    def maps(self, state: NetworkState, inputs: Inputs, read: MapReader) -> tuple[Tensor, ...]:
        """Apply a reader to each named layer's maps before pooling; the embedding comes last, unread."""
        return self.network.maps(state, read, image_inputs(inputs))

    def norms(self, state: NetworkState, inputs: Inputs, read: NormReader) -> tuple[Tensor, Mapping[str, Tensors]]:
        """Return the logits, and a reader's value for each batch norm's input; see :mod:`mmdistill.networks.norms`."""
        return norms_read(self.network, state, read, image_inputs(inputs))

    def select(self, indices: Tensor) -> Batch:
        """Return real training images, normalised, ``(*indices.shape, channels, height, width)``."""
        weight = torch.ones(indices.shape, device=self.device)
        return Batch(self._pixels(indices), self._classes[indices.to(self.device, non_blocking=True)], weight)

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw n images of each class without replacement, or n of all images if ``classes`` is None.

        A class with fewer than n images gives all of them, padded with weight 0.
        """
        key = draws.to(self._pixels.place)
        if classes is None:
            return self.select(key.permutation(len(self._classes))[:n])
        rows, weight = self._rows.draw(key, self._beside_pixels(classes, self._pixels.place), n)
        batch = self.select(rows)
        return ClassBatch(batch._replace(weight=weight.to(self.device, non_blocking=True)), Dims(0, 0))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Apply DSA's augmentation, one operation per call or class, except to images with a side of one pixel."""
        if not self.data.planar:
            return batch
        if isinstance(batch, ClassBatch):
            return self.augmentation.of_classes(draws, batch, shared=shared)
        images = self.augmentation.augmented(draws, image_inputs(batch.inputs), shared=shared)
        return Batch(images, batch.targets, batch.weight)

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Train n fresh judges and return their last-epoch test accuracy, see :mod:`mmdistill.image.judges`.

        Judges in closed form (see :mod:`mmdistill.image.kernel_judge`) have no protocol and ignore learned rates.

        Raises:
            UnsupportedError: the whole training set is too large to hold in normalised units.
        """
        whole, scorer = synthetic is None, self.describe_judge(judge)
        if whole and (size := 4 * self.data.train_images.numel()) > WHOLE_MOST:
            raise UnsupportedError(
                f"training on all of {self.data.name} takes {size / 2**30:.0f} GiB; leave the baseline 'whole' out"
            )
        if whole:
            scorer.require(len(self._classes))  # refuse before all images are normalised
        batch = self.select(torch.arange(len(self._classes))) if synthetic is None else self._prepare(synthetic)
        return scorer.score(batch, draws, n, learned, whole=whole)

    def describe_judge(self, judge: str) -> ImageJudge:
        """Return a judge by its name or the title of its scores; an unknown name raises when it is first used."""
        make = JUDGES.get(entry_of(judge)) if self._networks.given_as(judge) is None else None
        return NetworkJudge(self, self._networks, judge) if make is None else make(self, judge)

    def with_judge(self, name: str, factory: ModuleFactory) -> Self:
        """Return a copy with a network of the user's as a judge, see :class:`~mmdistill.abilities.TakesJudges`."""
        other, trial = copy.copy(self), copy.copy(self)
        trial.network = FunctionalModule(factory, device=self.device)
        try_on_images(trial)
        other._networks, other.judges = self._networks.with_given(name, trial.network), (*self.judges, name)
        return other

    def robust(
        self,
        synthetic: Batch,
        judge: str,
        draws: Draws,
        n: int,
        learned: Mapping[str, Tensor],
        subset: Callable[[Draws], Batch] | None,
        classes: Tensor | None = None,
    ) -> Scores:
        """Return the label-robust and the augmentation-robust score, see :mod:`mmdistill.image.robust`.

        Raises:
            UnsupportedError: a judge that does not train, or images with a side of one pixel.
        """
        if not self.data.planar:
            raise UnsupportedError(f"{NOT_AUGMENTED}; robust scores compare trainings with and without augmentation")
        return robust_scores(self, self._prepare(synthetic), judge, draws, n, learned, subset, classes)

    def _prepare(self, batch: Batch) -> Batch:
        """Validate a flat batch, detach it, drop its samples of weight 0 and move it to the device.

        Raises:
            ShapeError: the images' shape or the labels' classes are not the task's.
            DataError: every sample has weight 0.
        """
        images, targets = image_inputs(batch.inputs).detach(), one_tensor(batch.targets).detach()
        if images.shape[1:] != self.data.shape:
            raise ShapeError(f"images of {self.data.name} are {self.data.shape}, got {tuple(images.shape[1:])}")
        require_targets(targets, len(images), len(self.data.class_names), self.data.name)
        return counted(Batch(images, targets, batch.weight)).map(lambda tensor: tensor.to(self.device))

    def describe(self) -> TaskInfo:
        """Return what identifies this task; ``preprocessing`` has all that is needed to use a set elsewhere."""
        data = self.data
        moments = {"mean": list(data.mean), "std": list(data.std)}
        units: dict[str, object] = {**moments, "range": list(data.value_range)}
        if data.whitening is not None:  # whitened units are not pixels and have no bounds
            units = {"whitening": {"kind": data.whitening.kind, **(moments if data.whitening.standardises else {})}}
        mirrored = [MIRRORED] if data.mirror and not data.mirror_known else []
        notes = mirrored if data.planar else [NOT_AUGMENTED]
        return TaskInfo(
            domain="image",
            data=data.name,
            budget="ipc",
            num_train=len(self._classes),
            stored_bytes=data.stored_bytes,
            fingerprint=data.fingerprint,
            test_fingerprint=data.test_fingerprint,
            class_names=data.class_names,
            preprocessing={
                "shape": list(data.shape),
                "scale": data.scale,
                **units,
                **({"splits": list(data.notes)} if data.notes else {}),
                **({"notes": notes} if notes else {}),
                **({"augmentation": self.augmentation.describe()} if data.planar else {}),
            },
            tensors={} if data.whitening is None else data.whitening.tensors(),
            forms={"inputs": data.shape},
        )


@isolated
def image_task(
    data: Source | ImageData,
    *,
    model: str | ModuleFactory | None = None,
    width: int | None = None,
    features: str | Sequence[str] = (),
    test: Source | None = None,
    class_names: ClassNames | None = None,
    name: str | None = None,
    mirror: bool | None = None,
    size: int | None = None,
    device: str | torch.device = "auto",
    judge_epochs: int | None = None,
    judge_batch: int | None = None,
    judge_augment: bool | None = None,
    judge_precision: TrainingPrecision | None = None,
    protocol: str | Protocol | None = None,
    whiten: str | None = None,
    teacher: TeacherLike | None = None,
    augmentation: SiameseAugmentation | None = None,
    seed: int = 0,
) -> ImageTask:
    """Build the task of distilling images.

    Args:
        data: :class:`ImageData` or any :data:`~mmdistill.image.datasets.Source`: a known name, a file or folder,
            (images, labels) as tensors, arrays or lists (also of paths), or a map-style torch data set of (sample,
            label). Images are ``(N, channels, height, width)`` or ``(N, height, width)``; labels ``(N,)`` are whole
            numbers, or names.
        model: a network's name with options, such as ``convnet`` (the default), ``convnet-d4-w64-bn`` or ``resnet18``
            (see :mod:`mmdistill.image.models`), or a function that returns an ``nn.Module``.
        width: of a named model; None is its own default.
        features: name or names of submodules whose outputs are the layers' features; the last one's *input* is the
            embedding. By default the named models' blocks, or the input of the last ``nn.Linear``.
        test: test data of the same kind as ``data``, for tensors and torch data sets.
        class_names: of tensors and torch data sets, by class index; by default those in a data set's ``classes``.
        name: what to call data in memory, in reports and when runs are compared.
        mirror: whether augmentation may mirror images; by default it may, except for known digits.
        size: resize the images of a folder, or the pictures of a data set, to ``size`` x ``size``.
        device: where everything runs; ``auto`` is a CUDA device if there is one, else the CPU.
        judge_epochs: epochs of judges; None is the protocol's own number.
        judge_batch: minibatch size of judges; None is the protocol's own.
        judge_augment: whether judges train with augmentation; None is the protocol's own choice, and False for images
            with a side of one pixel.
        judge_precision: number format of judges' training, ``float32`` (None) or ``bf16``; tests are in float32.
        protocol: how judges train: ``default``, a paper's (``dc``, ``cafe``, ``dsa``, ``dm``, ``mtt``, ``frepo``,
            ``rfad``, ``kip``, ``idc``, ``addmem``, ``rded``, ...), or one of your own.
        whiten: a paper's ZCA whitening: ``mtt``, ``frepo`` or ``kip``; None normalises channels alone.
        teacher: a trained network to use instead of training a teacher (for teacher labels, ``rded``, ``sre2l`` and
            judges that relabel): an ``nn.Module``, a state dict, or the path of its ``.safetensors``, ``.pt`` or
            ``.pth`` file, which is read without running code. It must have the parameter names and shapes of the
            task's ``model``, and gets the same input: images normalised (and whitened) by the data's moments. If it
            needs another normalisation, give a ``model`` whose first layer converts (docs/images.md).
        augmentation: of methods that augment, and of judges that train with DSA's; None is DSA's.
        seed: of the test split, for data without one.

    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.

    Raises:
        ConfigError: an unknown name or submodule, a network that does not take these images, or a teacher of another
            network.
        DataError: missing, damaged or unusable data, or such a teacher.
        UnsupportedError: the network needs larger images, or augmentation of images with a side of one pixel.
    """
    seed = checked_seed(seed)
    require_sizes(width=width, judge_epochs=judge_epochs, judge_batch=judge_batch)
    if judge_precision is not None:
        require_choice("the judges' precision", judge_precision, get_args(TrainingPrecision))
    require_kind(bool, mirror=mirror, judge_augment=judge_augment)
    chosen_device = choose_device(device)
    if isinstance(data, ImageData):
        refusal = "image data that are loaded have their test images, names and size"
        require_left_out(refusal, test=test, class_names=class_names, size=size)
        loaded = data if mirror is None else replace(data, mirror=mirror, mirror_known=True)
        loaded = called(loaded, name, data, DATASETS)
    else:
        loaded = load(data, test, class_names=class_names, mirror=mirror, size=size, seed=seed, name=name)
    if whiten is not None:
        loaded = whitened(loaded, whiten)
    if model is None or isinstance(model, str):
        network = model_name(model or "convnet", shape=loaded.shape)
        factory = model_factory(model or "convnet", loaded.shape, len(loaded.class_names), width)
        if not features:
            with host_draws_from(0):  # only the names are read; this network is discarded
                features = getattr(factory(), "feature_names", ())
    else:
        require_no_width(width, "a module of your own")
        network, factory = OWN, model
    task = ImageTask(
        loaded,
        FunctionalModule(factory, features, chosen_device),
        network,
        chosen_device,
        judge_epochs=judge_epochs,
        judge_batch=judge_batch,
        judge_augment=judge_augment,
        judge_precision=judge_precision,
        protocol=protocol,
        width=width,
        augmentation=augmentation,
    )
    try_on_images(task)
    task.given_teacher = None if teacher is None else given_as_teacher(teacher, task.network)
    return task
