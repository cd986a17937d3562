"""Small tasks for tests: blobs seen through a smooth network, without any data on disk."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdistill.distilled import DistilledSet
from mmdistill.execution.compilation import Program
from mmdistill.labels import soft_cross_entropy, weighted_mean
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.schedules import FreshNetworks, ScheduleState
from mmdistill.objectives.base import Network
from mmdistill.runtime import Draws
from mmdistill.task import (
    Batch,
    ClassBatch,
    Dims,
    Inputs,
    NetworkState,
    Scores,
    Task,
    TaskInfo,
    Tensors,
    map_inputs,
)


def smooth_mlp(width: int = 8, inputs: int = 4, classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, classes)
    )


def held(task: Task, batch: Batch) -> DistilledSet:
    """A set of any samples of a task."""
    return DistilledSet(batch, task.describe(), "random", 1, 0)


class BlobTask:
    """Three Gaussian blobs in four dimensions and a smooth MLP."""

    def __init__(self, per_class: int = 30, dtype: torch.dtype = torch.float32, width: int = 8) -> None:
        self.num_classes: int | None = 3
        self.judges = ("mlp",)
        self.device = torch.device("cpu")
        self.dtype = dtype
        draws = Draws(7, ("blobs",))
        centres = 2 * draws.fold("centres").normal(3, 4)
        labels = torch.arange(3).repeat_interleave(per_class)
        self.labels: Tensor | None = labels
        self.images = (centres[labels] + draws.fold("noise").normal(3 * per_class, 4)).to(dtype)
        self.test_images = (centres[labels] + draws.fold("test").normal(3 * per_class, 4)).to(dtype)
        self.module = FunctionalModule(partial(smooth_mlp, width), features=["1", "4"])

    def init(self, draws: Draws) -> NetworkState:
        state = self.module.init(draws)
        return NetworkState({name: p.to(self.dtype) for name, p in state.params.items()}, state.buffers)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        return self.module(state, inputs, train=train)

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        logits, _ = self.predict(state, batch.inputs, train=train)
        assert isinstance(batch.targets, Tensor)
        return weighted_mean(soft_cross_entropy(logits, batch.targets), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        return self.module.features(state, inputs)

    def select(self, indices: Tensor) -> Batch:
        assert self.labels is not None
        return Batch(self.images[indices], self.labels[indices], torch.ones(indices.shape, dtype=self.dtype))

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        total = len(self.images)
        if classes is None:
            return self.select(draws.permutation(total)[:n])
        per_class = total // 3
        order = draws.uniform(len(classes), per_class).argsort(1)[:, : min(n, per_class)]
        return ClassBatch(self.select(classes[:, None] * per_class + order), Dims(0, 0))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        flat = batch.batch if isinstance(batch, ClassBatch) else batch
        shift = 0.1 * draws.normal(4)
        moved = Batch(map_inputs(lambda t: t + shift, flat.inputs), flat.targets, flat.weight)
        return ClassBatch(moved, batch.dims) if isinstance(batch, ClassBatch) else moved

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        data = self.select(torch.arange(len(self.images))) if synthetic is None else synthetic
        protocol = FitProtocol(25, lr=0.1, weight_decay=0.0, batch=None)
        states = fit_networks(
            self.init, lambda state, batch, noise: (self.loss(state, batch), state.buffers), data, protocol, n, draws
        )
        logits = torch.func.vmap(lambda params: self.predict(NetworkState(params, {}), self.test_images)[0])(
            states.params
        )
        accuracy = (logits.argmax(2) == self.labels).double().mean(1)
        return Scores(judge, {"accuracy": tuple(accuracy.tolist())})

    def describe(self) -> TaskInfo:
        return TaskInfo("image", "blobs", "ipc", len(self.images), self.images.numel() * 4, "blobs-7", ("a", "b", "c"))


class RecordedTask(BlobTask):
    """Blobs that note what losses, augmentations and draws of real samples are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[tuple[Draws | None, Batch]] = []
        self.augmented: list[tuple[Draws, Batch | ClassBatch, bool]] = []
        """Keys, batches, and whether the augmentation is siamese."""
        self.drawn: list[Draws] = []

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        self.losses.append((draws, batch))
        return super().loss(state, batch, train=train, draws=draws)

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        self.drawn.append(draws)
        return super().sample_real(draws, classes, n)

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        self.augmented.append((draws, batch, shared))
        return super().augment(draws, batch, shared=shared)


class Sizes(TorchDispatchMode):
    """Notes how many numbers torch's operations make meanwhile: the most of one, and of all together."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.total = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        sizes = [tensor.numel() for tensor in tree_leaves(found) if isinstance(tensor, Tensor)]
        self.largest, self.total = max([self.largest, *sizes]), self.total + sum(sizes)
        return found


class RandomTargets(FreshNetworks):
    """A fresh network each step, and another as the target, by which samples may be labelled."""

    gives_target = True

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        return ScheduleState(task.init(draws), 0, {}, task.init(draws.fold("target")).params)


class Uncompiled(Program[..., object]):
    """A program that counts as compiled, and whose function stays as it is."""

    def _call_first(self, signature: object, *args: object, **kwargs: object) -> object:
        self.seconds += 1.0
        return self.function(*args, **kwargs)


def noting(asked: list[str]) -> type[Uncompiled]:
    """Return programs that count as compiled, and note the names of the functions that would be."""

    class Noted(Uncompiled):
        def _call_first(self, signature: object, *args: object, **kwargs: object) -> object:
            asked.append(self.function.__name__)
            return super()._call_first(signature, *args, **kwargs)

    return Noted


def matched_network(task: BlobTask, key: Draws) -> Network:
    """Return a network with a target that trajectories are compared with."""
    return Network(task, task.init(key.fold("net")), task.init(key.fold("end")).params)


def six_samples(task: BlobTask, key: Draws) -> Batch:
    """Return real samples that stand for synthetic ones."""
    batch = task.sample_real(key.fold("syn"), None, 6)
    assert isinstance(batch, Batch)
    return batch
