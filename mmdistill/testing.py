"""The conformance battery: tests for every task, objective and way of storing samples, ours or a user's."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from mmdistill.composition import require_classes
from mmdistill.conformance import (
    SINGLE,
    TOLERANCE,
    as_conformance_error,
    change_first_sample,
    check_gradient,
    check_judges,
    check_single,
    check_weights,
    doubled,
    drop_first_samples,
    relative_error,
    require,
    reverse_samples,
    samples_of,
    synthetic,
    to_float64,
    with_samples,
)
from mmdistill.conformance import ConformanceError as ConformanceError
from mmdistill.evaluation import checked_scores
from mmdistill.labels import LabelKind, hard_labels
from mmdistill.method import Parameterizer, build_objective
from mmdistill.names import in_words
from mmdistill.objectives.base import Network, Objective, class_gradients
from mmdistill.objectives.checks import require_gradients, require_loss, watched
from mmdistill.objectives.solved import Solved
from mmdistill.parameterizations.base import Parameterization, require_alike, require_batch
from mmdistill.parameterizations.codes import undecodable
from mmdistill.runtime import Draws
from mmdistill.samples import require_forms
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, NetworkState, Task, missing_members, shares_inputs, tensors_of

FEW = 2000
"""The most samples of a class that are compared."""


def _same(a: Batch, b: Batch) -> bool:
    pairs = [zip(tensors_of(left), tensors_of(right), strict=True) for left, right in zip(a, b, strict=True)]
    return all(torch.equal(x, y) for part in pairs for x, y in part)


def check_task(task: Task, *, n: int = 4, judge: str | None = None) -> None:
    """Check a task against its protocol: shapes, keys, class axes, labels, weights, evaluation.

    It does not check that other keys give other judges, since these may have equal scores.

    Args:
        task: the task.
        n: samples per class to draw.
        judge: evaluate with this judge too (two networks on a few real samples); None skips it.
    Raises:
        ConformanceError: the first breach, in words.
    """
    missing = missing_members(task)
    require(not missing, f"{type(task).__name__} lacks {in_words(missing)}, which every task has")
    key = Draws(0, ("conformance",), task.device)
    state = task.init(key)
    again = task.init(key)
    require(
        all(torch.equal(state.params[k], again.params[k]) for k in state.params), "init: one key must give one network"
    )
    other = task.init(key.fold("other"))
    require(
        not state.params or any(not torch.equal(state.params[k], other.params[k]) for k in state.params),
        "init: another key must give another network",
    )
    info = task.describe()
    require(info.num_train > 0 and bool(info.fingerprint), "describe: num_train and fingerprint are needed")
    selected = task.select(torch.arange(min(n, info.num_train)))
    require(isinstance(selected, Batch), f"select: a Batch is needed, got a {type(selected).__name__}")
    with as_conformance_error("describe: its forms are not those of select"):
        require_forms(selected, info.forms)
    _check_flat(task, state, key, n)
    if task.num_classes is not None:
        _check_classes(task, state, key, n)
    check_judges(task)
    if judge is not None:
        _check_evaluation(task, judge, key)


def _check_flat(task: Task, state: NetworkState, key: Draws, n: int) -> None:
    real = task.sample_real(key.fold("flat"), None, n)
    require(isinstance(real, Batch), "sample_real: classes=None must give a flat Batch")
    assert not isinstance(real, ClassBatch)
    same = task.sample_real(key.fold("flat"), None, n)
    require(_same(real, same), "sample_real: one key must give one batch")  # type: ignore[arg-type]
    if task.describe().num_train > n:
        others = [task.sample_real(key.fold("flat", index), None, n) for index in range(3)]
        require(any(not _same(real, batch) for batch in others), "sample_real: other keys must give other batches")  # type: ignore[arg-type]
    _check_outputs(task, state, real)
    loss = task.loss(state, real)
    finite = isinstance(loss, Tensor) and loss.ndim == 0 and bool(torch.isfinite(loss))
    require(finite, f"loss: a finite scalar is needed, got {loss}")
    without, changed = (task.loss(state, batch) for batch in change_first_sample(real, task.num_classes))
    require(relative_error(changed, without) < TOLERANCE[loss.dtype], "loss: a sample of weight 0 must not count")
    copies = [NetworkState(state.params, {k: b.clone() for k, b in state.buffers.items()}) for _ in range(2)]
    first, second = (task.loss(copy, real, train=True, draws=key.fold("train")) for copy in copies)
    require(relative_error(first, second) < TOLERANCE[first.dtype], "loss: one key must give one training loss")
    augmented = task.augment(key, real, shared=True)
    require(isinstance(augmented, Batch), "augment: a Batch must stay a Batch")
    if not _same(real, augmented):  # type: ignore[arg-type]
        others = [task.augment(key.fold("augment", index), real, shared=True) for index in range(3)]
        require(any(not _same(augmented, batch) for batch in others), "augment: other keys must augment otherwise")  # type: ignore[arg-type]


def _check_outputs(task: Task, state: NetworkState, batch: Batch) -> None:
    """Check the type and shape of a network's predictions."""
    result = task.predict(state, batch.inputs)
    is_pair = isinstance(result, tuple) and len(result) == 2
    valid = is_pair and isinstance(result[0], Tensor) and isinstance(result[1], dict)
    require(valid, f"predict: a tuple of outputs and buffers by name is needed, got a {type(result).__name__}")
    shape, rows = tuple(result[0].shape), len(batch.weight)
    if task.num_classes is not None:
        require(
            shape[1:] == (task.num_classes,) and (shares_inputs(batch) or shape[0] == rows),
            f"predict: outputs are (n, classes), here {(rows, task.num_classes)}, got {shape}",
        )


def _check_classes(task: Task, state: NetworkState, key: Draws, n: int) -> None:
    classes = task.num_classes or 0
    require(task.labels is not None and len(task.labels) == task.describe().num_train, "labels: one per real sample")
    batch = task.sample_real(key.fold("classes"), torch.arange(classes), n)
    require(isinstance(batch, ClassBatch), "sample_real: classes must give a ClassBatch")
    assert isinstance(batch, ClassBatch)
    require(batch.num_classes == classes, f"sample_real: {classes} classes asked, {batch.num_classes} given")
    require(bool((batch.batch.weight.sum(1) > 0).all()), "sample_real: every class needs a sample of weight above 0")
    _check_labels(task, batch)
    augmented = task.augment(key.fold("augment"), batch, shared=True)
    require(
        isinstance(augmented, ClassBatch) and augmented.num_classes == classes,
        "augment: a ClassBatch must stay one, of as many classes",
    )
    check_class_gradients(task, state, drop_first_samples(batch))
    first_class = batch.one_class(0)
    weighted = task.loss(state, Batch(first_class.inputs, first_class.targets, 3 * first_class.weight))
    require(
        relative_error(weighted, task.loss(state, first_class)) < 1e-4, "loss: must not change when all weights scale"
    )
    layers = task.features(state, first_class.inputs)
    require(all(layer.ndim == 2 for layer in layers), "features: each layer is (n, d)")


def _check_labels(task: Task, batch: ClassBatch) -> None:
    """Check that class batches hold samples of their class, and that selected samples keep their labels."""
    assert task.labels is not None
    labels = task.labels
    for index in range(batch.num_classes):
        drawn, members = batch.one_class(index), (labels == index).nonzero()[:, 0]
        weighted = drawn.weight > 0
        require(
            isinstance(drawn.targets, Tensor) and bool((hard_labels(drawn.targets)[weighted] == index).all()),
            f"sample_real: the batch of class {index} holds samples of other classes",
        )
        selected = task.select(members[:FEW])
        require(
            isinstance(selected.targets, Tensor)
            and bool((hard_labels(selected.targets).cpu() == labels[members[:FEW]].cpu()).all()),
            f"select: samples of class {index} have the labels of other ones",
        )
        if isinstance(drawn.inputs, Tensor) and isinstance(selected.inputs, Tensor) and len(members) <= FEW:
            rows = selected.inputs.flatten(1).double()
            distances = torch.cdist(drawn.inputs[weighted].flatten(1).double(), rows).amin(1)
            size = float(rows.norm(dim=1).max()) or 1.0
            require(
                bool((distances < 1e-4 * size).all()),
                f"sample_real and select: samples of class {index} differ between them",
            )


def check_class_gradients(task: Task, state: NetworkState, batch: ClassBatch) -> None:
    """Check that the vmapped, the looped and (if the task has one) the closed-form class gradients agree.

    Raises:
        ConformanceError: they differ beyond rounding.
    """
    network = Network(task, state)
    bare = Network(_OpenTask(task), state)  # type: ignore[arg-type]
    with torch.no_grad():
        default = class_gradients(network, batch)
        trees = {
            "vmap": class_gradients(bare._replace(classes_at_once=batch.num_classes), batch),
            "loop": class_gradients(bare._replace(classes_at_once=1), batch),
        }
    for mode, tree in trees.items():
        whole = float(torch.stack([gradient.double().norm() for gradient in tree.values()]).norm())
        for name, gradient in tree.items():
            # The gradient of a bias before a norm is rounding alone, so small ones are compared by the whole gradient.
            scale = max(float(gradient.double().norm()), 1e-2 * whole, 1e-12)
            error = float((default[name].double() - gradient.double()).norm()) / scale
            require(
                error < TOLERANCE[gradient.dtype], f"class_gradients: {name} differs by {error:.1e} from mode {mode}"
            )


class _OpenTask:
    """A task without its closed forms."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> object:
        if name == "class_gradients":
            raise AttributeError(name)
        return getattr(self._task, name)


def _check_evaluation(task: Task, judge: str, key: Draws) -> None:
    indices = torch.arange(min(task.describe().num_train, 20))
    with as_conformance_error("evaluate"):
        scores = checked_scores(task.evaluate(task.select(indices), judge, key.fold("judge"), 2, {}), task)
    for metric, values in scores.values.items():
        require(len(values) in (1, 2), f"evaluate: {metric} has {len(values)} values for 2 judges")
        require(all(0 <= value <= 1 + 1e-5 for value in values), f"evaluate: {metric} must be a fraction, got {values}")
    again = task.evaluate(task.select(indices), judge, key.fold("judge"), 2, {})
    require(scores.values == again.values, "evaluate: one key must give one result")


def check_objective(
    objective: Objective,
    network: Network,
    syn: Batch | ClassBatch,
    real: Batch | ClassBatch,
    *,
    oracle: Callable[[], float] | None = None,
    by_position: str = "",
    detached: str = "",
    single: float = SINGLE,
) -> None:
    """Check an objective at one point.

    Its value must be a finite scalar, equal the oracle's, and be the same for one key, for any order of the samples on
    either side, and in float32. Finite differences must confirm its gradient, unless a part of it is ``detached``.

    Args:
        objective: the objective.
        network: in float64, smooth.
        syn: the synthetic batch, in float64.
        real: the real batch.
        oracle: the same value, computed independently.
        by_position: why the order of samples matters, such as minibatches that are drawn by position; the order is then
            not changed. Nor is it for samples that classes share, like the nodes of one graph.
        detached: what depends on the samples but counts as a constant in the gradient, such as a kernel's width; finite
            differences are then not compared.
        single: relative error allowed in the value and gradient in float32; ``inf`` skips float32, for kernels that
            become singular in it.
    Raises:
        ConformanceError: a breach, in words.
    """
    draws = Draws(0, ("objective",))

    def computed(syn: Batch | ClassBatch, real: Batch | ClassBatch) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
        result: Tensor = functional_call(objective, buffers, (network, syn, real, draws))
        return result

    with as_conformance_error("objective"):
        with watched(objective, network, syn, real, contents=True):
            first_loss = computed(syn, real)
        require_loss(objective, first_loss, learns=False)
    value = first_loss.detach()
    require(value.ndim == 0 and bool(torch.isfinite(value)), f"objective: a finite scalar is needed, got {value}")
    require(torch.equal(value, computed(syn, real)), "objective: one key must give one value")
    if oracle is not None:
        expected = oracle()
        error = abs(float(value) - expected) / max(abs(expected), 1e-12)
        require(error < TOLERANCE[torch.float64], f"objective: {float(value)} differs from the oracle's {expected}")
    leaf = samples_of(syn).detach().clone().requires_grad_()

    def at(inputs: Tensor) -> Tensor:
        return computed(with_samples(syn, inputs), real)

    loss = at(leaf)
    with as_conformance_error("objective"):
        require_loss(objective, loss, learns=True)
        gradients = torch.autograd.grad(loss, (leaf,), allow_unused=True)
        require_gradients(objective, gradients)
    if not by_position:
        for side, order in (("synthetic", (reverse_samples(syn), real)), ("real", (syn, reverse_samples(real)))):
            error = relative_error(computed(*order).detach(), value)
            require(
                error < TOLERANCE[torch.float64],
                f"objective: another order of the {side} samples changes the value by {error:.1e} of it; should order "
                "matter, say why by by_position",
            )
        check_weights(computed, syn, real, value)
    if single < math.inf:
        check_single(objective, network, syn, real, value, gradients[0], single)
    if not detached:
        check_gradient(at, leaf)


def check_objective_on(
    task: Task,
    build: Callable[[], Objective],
    *,
    n: int = 2,
    oracle: Callable[[Network, Batch | ClassBatch, Batch | ClassBatch], float] | None = None,
    by_position: str = "",
    detached: str = "",
    single: float = SINGLE,
) -> None:
    """Run :func:`check_objective` on a fresh network and real samples of a task, in float64.

    Args:
        task: with a smooth network, since finite differences do not confirm gradients at the kink of a ReLU.
        build: makes the objective, like a method's ``objective`` without settings.
        n: samples of each class, on both sides; without classes, in all.
        oracle: computes the same value independently, from a network and both sides.
        by_position: why the order of samples matters, see :func:`check_objective`.
        detached: what counts as a constant in the gradient, see :func:`check_objective`.
        single: relative error allowed in float32.
    Raises:
        ConformanceError: a breach, in words.
        ConfigError: ``build`` makes no objective, or one that cannot work on the task.
    """
    key = Draws(0, ("objective",), task.device)
    objective = build_objective("this check", build).to(task.device, torch.float64)
    objective.check(task)
    objective.begin(task, key.fold("begin"))
    classes = None if task.num_classes is None or objective.view == "flat" else torch.arange(task.num_classes)
    count = n * (task.num_classes or 1) if classes is None else n
    syn, real = synthetic(task, n, key, classes), to_float64(task.sample_real(key.fold("real"), classes, count))
    target = as_float64(task.init(key.fold("target"))).params if objective.needs_target else None
    network = Network(task, as_float64(task.init(key.fold("network"))), target)
    if objective.needs_accuracy:
        network = network._replace(accuracy=torch.tensor(0.5, dtype=torch.float64, device=task.device))
    check_objective(
        objective,
        network,
        syn,
        real,
        oracle=None if oracle is None else lambda: oracle(network, syn, real),
        by_position=by_position,
        detached=detached,
        single=single,
    )


def check_parameterization(
    task: Task,
    build: Parameterizer,
    budget: int = 1,
    *,
    label: LabelKind = "hard",
    settings: Settings | None = None,
) -> None:
    """Check a way of storing samples: its shapes, keys, classes and gradients, and that its state is complete.

    Args:
        task: the task whose samples it stores.
        build: the builder, or a :class:`~mmdistill.method.Storage`.
        budget: in the task's unit.
        label: the kind of labels.
        settings: for the builder; by default those of a method that starts from real samples.
    Raises:
        ConformanceError: a breach, in words.
    """
    key, builder_settings = Draws(0, ("parameterization",), task.device), settings or Settings(steps=1)
    samples = build(task, budget, builder_settings, label, key.fold("start")).to(task.device)
    decoded: Batch = samples(key.fold("decode"))
    with as_conformance_error("forward"):
        require_batch(samples, decoded)
    require(_same(decoded, samples(key.fold("decode"))), "forward: one key must give one batch")
    _check_decoded(task, samples, decoded, key)
    codes = samples.groups().get("codes", [])
    floats = [t for t in tensors_of(decoded.inputs) if t.requires_grad]
    if codes:
        gradients = torch.autograd.grad([t.sum() for t in floats], codes, allow_unused=True) if floats else [None]
        require(any(g is not None for g in gradients), "forward: no gradient leads from the samples to the codes")
    other = build(task, budget, builder_settings, label, key.fold("other")).to(task.device)
    try:
        other.load_state_dict(samples.state_dict())
    except RuntimeError as error:
        raise ConformanceError(f"state: what one key built cannot be loaded into what another did: {error}") from error
    with torch.no_grad():
        require(
            _same(samples.finished(key), other.finished(key)),
            "state: samples differ once all parameters and buffers are loaded, as a resumed run loads them; what "
            "decoding reads must be among these",
        )
    require(samples.stored_bytes() > 0, "stored_bytes: samples must be stored in parameters or buffers")
    reason = undecodable(samples)
    require(not reason, f"rebuilt: {reason}")


def _check_decoded(task: Task, samples: Parameterization, decoded: Batch, key: Draws) -> None:
    """Check the shapes, weights and classes of decoded samples."""
    classes = None if task.num_classes is None else torch.arange(task.num_classes)
    with as_conformance_error("forward"):
        require_alike(samples, decoded, task.sample_real(key.fold("real"), classes, 1))
        require_classes(samples, Solved())
    require(all(bool(t.isfinite().all()) for t in tensors_of(decoded.inputs)), "forward: samples must be finite")
    if classes is None:
        require(bool((decoded.weight > 0).any()), "forward: all samples have weight 0")
        return
    require(samples.classes is not None, "classes: the class of each decoded sample is needed in a task with classes")
    weights = samples.class_batches(decoded).batch.weight
    require(bool((weights > 0).any(1).all()), "forward: every class needs a sample of weight above 0")


def as_float64(state: NetworkState) -> NetworkState:
    """Return a network state in float64."""
    return state.map(doubled)
