"""The Objective contract, the Network that objectives read, and per-class gradients and features."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmdistill.abilities import GivesClassGradients, MapReader
from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.execution.portions import CACHED
from mmdistill.execution.precision import Precision, autocast_for
from mmdistill.labels import in_full
from mmdistill.networks.gradients import gradients_by_name
from mmdistill.networks.trial import fresh_network
from mmdistill.objectives.compiled import Compiled, batched_gradients
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Task, Tensors, map_inputs, num_samples

RealView = Literal["classes", "flat"]

LOOP_FROM_NUMEL = 16_384
"""Numbers in one class's inputs from which a CPU takes classes one at a time (about 20 images of 28 x 28)."""
GRADIENT_NUMEL = 1 << 24
"""Most numbers in the gradients of the small classes that a CPU takes together (64 MiB)."""
MIN_CLASSES_AT_ONCE = 16
"""Least number of small classes that a CPU takes together, or averages together, however large the network."""
DEVICE_INPUT_NUMEL = 1 << 23
"""Most numbers of inputs (2,700 images of 3 x 32 x 32) that other devices take at once: 10 GiB of a ConvNet's graph."""


class Network(NamedTuple):
    """A task's network at one state: what objectives read.

    Args:
        task: the task.
        state: the network's parameters and buffers.
        target: the expert's parameters that a student should reach from ``state``, where the schedule gives them.
        compiled: compiled forms of the task's functions; None runs them eagerly.
        step: outer steps that the run has taken; a Python number, so a captured CUDA graph does not follow it.
        age: outer steps that this network has served; likewise a Python number.
        precision: the number formats, see :mod:`mmdistill.execution.precision`.
        classes_at_once: classes that class-wise objectives take together, to bound memory; 0 lets them choose.
        accuracy: the network's accuracy on real samples, a scalar, where the schedule counts it.
    """

    task: Task
    state: NetworkState
    target: Tensors | None = None
    compiled: Compiled | None = None
    step: int = 0
    age: int = 0
    precision: Precision = "float32"
    classes_at_once: int = 0
    accuracy: Tensor | None = None

    def lowered(self, batch: ClassBatch) -> AbstractContextManager[object]:
        """Return the autocast context for one side of class-wise matching.

        ``bf16`` lowers both sides; ``mixed`` only the side without gradients, and not where classes share their inputs.
        """
        graph = torch.is_grad_enabled() or batch.dims.inputs is None
        return autocast_for(self.precision, batch.batch.weight.device, graph=graph)

    def features(self, inputs: Inputs, read: MapReader | None = None) -> tuple[Tensor, ...]:
        """Return one ``(n, d_l)`` tensor per layer, the embedding last.

        Args:
            inputs: the samples.
            read: a function of each layer's maps, in place of its features; only for a task that has maps
                (:class:`~mmdistill.abilities.GivesMaps`).

        Raises:
            ShapeError: inputs with a class axis, which the network cannot take.
        """
        functions = self.task if self.compiled is None else self.compiled
        try:
            if read is None:
                return functions.features(self.state, inputs)
            return functions.maps(self.state, inputs, read)  # type: ignore[union-attr,misc]  # checked by objectives
        except RuntimeError as error:
            if isinstance(inputs, Tensor) and (axes := self._batch_axes()) and inputs.ndim > axes:
                raise ShapeError(
                    f"a network takes samples in one axis, got inputs of {tuple(inputs.shape)}; class_summary and "
                    "class_means give the features of a ClassBatch, class by class"
                ) from error
            raise

    def _batch_axes(self) -> int:
        """Return the number of axes of a batch of samples; 0 where a batch is a dict of tensors."""
        inputs = self.task.select(torch.tensor([0])).inputs
        return inputs.ndim if isinstance(inputs, Tensor) else 0


class Objective(nn.Module, ABC):
    """A scalar to minimise over the synthetic data, given one network (Eq. 1).

    The optimizer group ``objective`` steps its parameters, if it has any; :meth:`learned` returns those that are stored
    with the set. The class attributes below say what it reads and how it may be computed.
    """

    view: RealView = "classes"
    """``"classes"``: both batches are a :class:`ClassBatch`; ``"flat"``: a :class:`Batch`."""
    reads_labels = True
    """Whether the loss depends on the labels; False: they only group samples by class, so they cannot be learned."""
    reads_scores = True
    """Whether labels may be any numbers; False: they must be probabilities."""
    reads_real = True
    """Whether the real batch is read; False: a batch of one sample is passed."""
    needs_target = False
    """Whether ``network.target``, an expert's end point, is read."""
    needs_accuracy = False
    """Whether ``network.accuracy`` is read."""
    siamese = True
    """Whether both batches come augmented alike; False: they come as they are, and the objective augments them."""
    divided = True
    """Whether classes may be taken a few at a time (``classes_at_once``); False: it needs all together."""
    steady = True
    """Whether a step may be captured as a CUDA graph: all steps do the same, and change nothing but their result."""
    lowers = False
    """Whether it runs networks under bfloat16 autocast (as ``network.lowered`` does); False: ``bf16`` is refused."""
    exact = False
    """Whether matrix products must be in full float32: a small ridge would vanish in TF32's rounding."""
    compiling = 1
    """Its compile time on a CPU relative to most objectives, by which compiling is judged to pay or not."""
    relative_to_start = False
    """Whether the loss is a student's squared distance from a target divided by that at its start: 1 is no nearer."""
    styles = 1
    """Samples that each code is decoded into, for objectives that compare them."""

    @abstractmethod
    def forward(self, network: Network, syn: "Batch | ClassBatch", real: "Batch | ClassBatch", draws: Draws) -> Tensor:
        """Return the scalar objective, differentiable with respect to the synthetic batch."""

    def check(self, task: Task) -> None:
        """Refuse a task that this objective cannot work on, when the run is built.

        Raises:
            ConfigError: for example, a class-wise objective on a task without classes.
        """
        if self.view == "classes" and task.num_classes is None:
            raise ConfigError(
                f"{type(self).__name__} matches class by class, but {task.describe().data!r} has no classes; use an "
                "objective of whole batches (view 'flat'), such as GradientMatching(distance, 'batch') or a kernel "
                "ridge method"
            )

    @property
    def samples_read(self) -> int | None:
        """The most synthetic samples that a step reads; None: all."""
        return None

    def begin(self, task: Task, draws: Draws) -> None:
        """Draw the modules and buffers that the objective keeps, when a run begins; most keep none."""

    def learned(self) -> Tensors:
        """Return the learned values that are stored with the set (a ridge, a temperature), by name.

        By default these are the objective's own scalar and vector parameters, and what inner objectives return. Weights
        of its submodules (a sampler, a critic) are of no use once the set is finished. Override it to store others.
        """
        own = {name: p.detach() for name, p in self.named_parameters(recurse=False) if p.ndim <= 1}
        inner = [module for module in self.children() if isinstance(module, Objective)]
        return own | {name: tensor for objective in inner for name, tensor in objective.learned().items()}


def require_parameters(objective: Objective, does: str, task: Task) -> Tensors:
    """Return the parameters of a fresh network.

    Args:
        objective: the objective that needs them, for the message.
        does: what it does with them, for the message.
        task: the task.
    Raises:
        ConfigError: the network has none, as an infinitely wide one.
    """
    params = task.init(Draws(0, ("check",), task.device)).params
    if not params:
        raise ConfigError(
            f"{type(objective).__name__} {does}, and the network of {task.describe().data!r} has no parameters; choose "
            "one that has (of interactions, --model autoencoder, model='autoencoder' in Python)"
        )
    return params


def require_features(name: str, task: Task) -> None:
    """Refuse a task whose network gives no feature vectors, by running a fresh one on two real samples.

    Args:
        name: the class that reads features, for the message.
        task: the task.

    Raises:
        ConfigError: the network has no features, or not one row of them per sample.
    """
    data = task.describe().data
    try:
        state, inputs = fresh_network(task)
        with torch.no_grad():
            layers = task.features(state, inputs)
    except (UnsupportedError, NotImplementedError) as error:
        raise ConfigError(f"{name} reads a network's features, but that of {data!r} has none: {error}") from error
    count = num_samples(inputs)  # all that the inputs hold: two nodes come with their whole graph
    if not layers or layers[-1].ndim != 2 or layers[-1].shape[0] != count or layers[-1].shape[1] == 0:
        shapes = [tuple(layer.shape) for layer in layers]
        raise ConfigError(
            f"{name} reads one row of features per sample, but the network of {data!r} gives {shapes} for {count}; "
            "name the submodule whose input is the embedding"
        )


def class_sides(syn: Batch | ClassBatch, real: Batch | ClassBatch, matching: str) -> tuple[ClassBatch, ClassBatch]:
    """Return both sides of an objective that matches class by class, checked.

    Args:
        syn: the synthetic batch.
        real: the real batch.
        matching: what the objective does, for the message.
    Raises:
        ConfigError: a side is not a :class:`ClassBatch`.
        ShapeError: the class axes differ.
    """
    if not isinstance(syn, ClassBatch) or not isinstance(real, ClassBatch):
        raise ConfigError(f"{matching} reads one batch per class on both sides")
    if syn.num_classes != real.num_classes:
        raise ShapeError(f"{syn.num_classes} synthetic classes against {real.num_classes} real ones")
    return syn, real


def class_gradients(network: Network, batch: ClassBatch) -> Tensors:
    """Return the gradient of each class's loss with respect to the parameters.

    Classes are batched in one call, or taken a few at a time to save memory, see :func:`classes_at_once`; both agree to
    rounding. Where classes share their inputs, a batched call runs one forward pass. Without gradients enabled (the
    real side) no graph of the gradients is kept. A task's own closed form takes precedence.

    Args:
        network: the network, at whose parameters the gradient is taken.
        batch: one batch per class.

    Shapes:
        Each parameter of shape ``s`` gives ``(C, *s)``, differentiable with respect to the batch.
    """
    if isinstance(network.task, GivesClassGradients) and network.precision != "bf16":  # closed forms are not lowered
        gradients = network.task.class_gradients(network.state, batch)
        if gradients is not None:
            return gradients
    size = classes_at_once(network, batch)
    with network.lowered(batch):
        if size > 1 and size >= batch.num_classes:
            return _batch_gradients(network, batch)
        if not torch.is_grad_enabled():
            return _fill_gradients(network, batch, size)
        trees = [tree for _, tree in _iterate_gradients(network, batch, size)]
    join = torch.cat if size > 1 else torch.stack
    return {name: join([tree[name] for tree in trees]) for name in network.state.params}


def _iterate_gradients(network: Network, batch: ClassBatch, size: int) -> Iterator[tuple[slice, Tensors]]:
    """Yield the rows and gradients of ``size`` classes at a time; with a size of 1 they have no class axis."""
    for start in range(0, batch.num_classes, size):
        rows = slice(start, start + size)
        if size > 1:
            yield rows, _batch_gradients(network, batch.part(start, rows.stop))
        else:
            yield rows, _gradient(network, batch.one_class(start))


def _fill_gradients(network: Network, batch: ClassBatch, size: int) -> Tensors:
    """Return all classes' gradients without a graph, holding the result and one part of it at a time."""
    filled: Tensors = {}
    for rows, tree in _iterate_gradients(network, batch, size):
        for name, parameter in network.state.params.items():
            if name not in filled:
                filled[name] = tree[name].new_empty(batch.num_classes, *parameter.shape)
            filled[name][rows] = tree[name]
    return filled


def classes_at_once(network: Network, batch: ClassBatch) -> int:
    """Return how many classes' gradients one call takes: ``network.classes_at_once``, or else what is fastest.

    That is one class where its gradient is compiled for CUDA, and where it is large on a CPU (grouped convolutions and
    vmapped norms are slow there); of many small classes, as many as have :data:`GRADIENT_NUMEL` numbers together.
    """
    if network.classes_at_once:
        return network.classes_at_once
    if batch.dims.inputs is None:  # the classes share their inputs
        return batch.num_classes
    if batch.batch.weight.device.type == "cpu":
        return 1 if _keeps_cpu_busy(batch) else _classes_by_gradients(network, batch.num_classes)
    return 1 if network.compiled is not None else _classes_by_inputs(batch, DEVICE_INPUT_NUMEL)


def _batch_gradients(network: Network, batch: ClassBatch) -> Tensors:
    """Return the gradients of all classes of a batch in one call, by the compiled form if there is one."""
    if network.compiled is not None:
        return network.compiled.class_gradients(network.state, batch)
    return batched_gradients(network.task, network.state, batch)


def _gradient(network: Network, batch: Batch) -> Tensors:
    """Return the gradient of one class, compiled where that pays."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tree_leaves(tuple(batch)))
    if network.compiled is not None and batch.weight.is_cuda:
        return network.compiled.gradient(network.state, batch)
    loss = network.task.loss if keep or network.compiled is None else network.compiled.loss
    buffers = network.state.buffers
    return gradients_by_name(
        lambda params: loss(NetworkState(params, buffers), batch), network.state.params, keep_graph=keep
    )


def _keeps_cpu_busy(batch: ClassBatch) -> bool:
    """Return whether one class alone keeps a CPU busy."""
    return _input_numel(batch) >= LOOP_FROM_NUMEL * batch.num_classes


def _classes_by_gradients(network: Network, classes: int) -> int:
    """Return the classes per part, for the fewest even parts with at most :data:`GRADIENT_NUMEL` gradient numbers."""
    each = sum(parameter.numel() for parameter in network.state.params.values())
    return _largest_part(classes, -(-classes // max(GRADIENT_NUMEL // max(each, 1), MIN_CLASSES_AT_ONCE)))


def _largest_part(classes: int, parts: int) -> int:
    """Return the size of the largest part when ``classes`` are split evenly into ``parts``."""
    return max(-(-classes // max(parts, 1)), 1)


def _input_numel(batch: ClassBatch) -> int:
    """Return how many numbers the inputs of all classes hold."""
    inputs = batch.batch.inputs
    return sum(tensor.numel() for tensor in (inputs.values() if isinstance(inputs, dict) else [inputs]))


def class_summary(
    network: Network, batch: ClassBatch, first: int = 0, read: MapReader | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the weighted mean feature of each class, per layer, and the embeddings of each class's samples (Eq. 15).

    All classes take one forward pass together, or a few at a time. Of layers before the embedding only the means are
    kept. Where classes share their samples, as the nodes of one graph, the embeddings are a view that gives each class
    all samples, and those of other classes have weight 0.

    Args:
        network: the network.
        batch: one batch per class.
        first: the first layer whose means are returned; -1 is the embedding alone.
        read: a function of each layer's maps, see :meth:`Network.features`.

    Shapes:
        Returns ``(C, d_l)`` per layer, and ``(C, n, d)``.
    """
    means, embeddings = compact_summary(network, batch, first, read)
    return means, embeddings.expand(batch.num_classes, -1, -1)


def compact_summary(
    network: Network, batch: ClassBatch, first: int = 0, read: MapReader | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Like :func:`class_summary`, but return embeddings ``(n, d)`` where classes share their samples."""
    if batch.dims.inputs is None:
        with network.lowered(batch):
            layers = tuple(map(in_full, network.features(batch.batch.inputs, read)[first:]))
        shares = batch.shares
        return tuple(shares @ layer for layer in layers), layers[-1]
    size = features_at_once(network, batch)
    means, embeddings = [], []
    for start in range(0, batch.num_classes, size):
        part = batch.part(start, start + size)
        layers = _flat_features(network, part, read)[first:]
        shares = part.shares
        means.append(tuple(torch.einsum("cn,cnd->cd", shares, layer) for layer in layers))
        embeddings.append(layers[-1])
    if len(means) == 1:
        return means[0], embeddings[0]
    return tuple(torch.cat(layers) for layers in zip(*means, strict=True)), torch.cat(embeddings)


def _flat_features(network: Network, batch: ClassBatch, read: MapReader | None) -> tuple[Tensor, ...]:
    """Return the features of all classes of a batch from one forward pass."""
    classes, n = batch.batch.weight.shape
    with network.lowered(batch):
        layers = network.features(map_inputs(lambda t: t.flatten(0, 1), batch.batch.inputs), read)
    if layers[0].shape[0] != classes * n:
        raise ShapeError(f"features returned {layers[0].shape[0]} rows for {classes * n} samples")
    return tuple(layer.reshape(classes, n, -1) for layer in map(in_full, layers))


def features_at_once(network: Network, batch: ClassBatch) -> int:
    """Return how many classes one forward pass takes: as many as fit a CPU's caches or a device's memory."""
    return network.classes_at_once or _classes_by_inputs(
        batch, CACHED if batch.batch.weight.device.type == "cpu" else DEVICE_INPUT_NUMEL
    )


def _classes_by_inputs(batch: ClassBatch, most: int) -> int:
    """Return the classes per part, for the fewest even parts with at most ``most`` input numbers."""
    return _largest_part(batch.num_classes, -(-_input_numel(batch) // most))


def class_means(
    network: Network, batch: ClassBatch, first: int = 0, read: MapReader | None = None
) -> tuple[Tensor, ...]:
    """Return the weighted mean feature of each class, ``(C, d_l)`` per layer from layer ``first`` on (Eq. 15)."""
    return class_summary(network, batch, first, read)[0]


def flatten_classes(batch: Batch | ClassBatch) -> Batch:
    """Return all classes' samples as one flat batch; where classes share inputs, their weights are summed."""
    if not isinstance(batch, ClassBatch):
        return batch
    if batch.dims.inputs is None:
        return batch.batch._replace(weight=batch.batch.weight.sum(0))
    return batch.batch.map(lambda tensor: tensor.flatten(0, 1))
