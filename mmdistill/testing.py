"""The conformance battery: what tasks, objectives and ways of storing must pass, in our tests and in those of users."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from mmdistill.composition import require_classes
from mmdistill.conformance import (
    SINGLE,
    TOLERANCE,
    check_single,
    check_weights,
    doubled,
    in_reverse,
    relative_error,
    require,
    samples_of,
    synthetic,
    told,
    wide,
    with_another_first,
    with_samples,
    without_firsts,
)
from mmdistill.conformance import ConformanceError as ConformanceError
from mmdistill.evaluation import checked_scores
from mmdistill.labels import LabelKind, hard_labels
from mmdistill.method import Parameterizer, made_objective
from mmdistill.names import in_words
from mmdistill.objectives.base import Network, Objective, class_gradients
from mmdistill.objectives.checks import require_gradients, require_loss
from mmdistill.objectives.solved import Solved
from mmdistill.parameterizations.base import Parameterization, require_alike, require_batch
from mmdistill.parameterizations.codes import undecodable
from mmdistill.runtime import Draws
from mmdistill.samples import require_forms
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, NetworkState, Task, missing_members, shares_inputs, tensors_of

MANY = 500
"""Numbers of a synthetic batch above which gradients are compared along one direction, not number by number."""
FEW = 2000
"""Samples of a class that are looked at."""


def _same(a: Batch, b: Batch) -> bool:
    pairs = [zip(tensors_of(left), tensors_of(right), strict=True) for left, right in zip(a, b, strict=True)]
    return all(torch.equal(x, y) for part in pairs for x, y in part)


def check_task(task: Task, *, n: int = 4, judge: str | None = None) -> None:
    """Check a task against its protocol: shapes, keys, class axes, labels, weights, evaluation.

    That judges are drawn from their key is not checked, since two of them may score alike.

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
    own = task.select(torch.arange(min(n, info.num_train)))
    require(isinstance(own, Batch), f"select: a Batch is needed, got a {type(own).__name__}")
    with told("describe: its forms are not those of select"):
        require_forms(own, info.forms)
    _check_flat(task, state, key, n)
    if task.num_classes is not None:
        _check_classes(task, state, key, n)
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
        require(any(not _same(real, own) for own in others), "sample_real: other keys must give other batches")  # type: ignore[arg-type]
    _check_outputs(task, state, real)
    loss = task.loss(state, real)
    finite = isinstance(loss, Tensor) and loss.ndim == 0 and bool(torch.isfinite(loss))
    require(finite, f"loss: a finite scalar is needed, got {loss}")
    without, other = (task.loss(state, batch) for batch in with_another_first(real, task.num_classes))
    require(relative_error(other, without) < TOLERANCE[loss.dtype], "loss: a sample of weight 0 must not count")
    copies = [NetworkState(state.params, {k: b.clone() for k, b in state.buffers.items()}) for _ in range(2)]
    one, other = (task.loss(copy, real, train=True, draws=key.fold("train")) for copy in copies)
    require(relative_error(one, other) < TOLERANCE[one.dtype], "loss: one key must give one training loss")
    augmented = task.augment(key, real, shared=True)
    require(isinstance(augmented, Batch), "augment: a Batch must stay a Batch")
    if not _same(real, augmented):  # type: ignore[arg-type]
        others = [task.augment(key.fold("augment", index), real, shared=True) for index in range(3)]
        require(any(not _same(augmented, own) for own in others), "augment: other keys must augment otherwise")  # type: ignore[arg-type]


def _check_outputs(task: Task, state: NetworkState, batch: Batch) -> None:
    """Check what a network predicts of a batch."""
    found = task.predict(state, batch.inputs)
    pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor) and isinstance(found[1], dict)
    require(pair, f"predict: a tuple of outputs and buffers by name is needed, got a {type(found).__name__}")
    shape, rows = tuple(found[0].shape), len(batch.weight)
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
    check_class_gradients(task, state, without_firsts(batch))
    one = batch.one_class(0)
    weighted = task.loss(state, Batch(one.inputs, one.targets, 3 * one.weight))
    require(relative_error(weighted, task.loss(state, one)) < 1e-4, "loss: must not change when all weights scale")
    layers = task.features(state, one.inputs)
    require(all(layer.ndim == 2 for layer in layers), "features: each layer is (n, d)")


def _check_labels(task: Task, batch: ClassBatch) -> None:
    """Check that class batches hold samples of their class, and that selected samples have their own labels."""
    assert task.labels is not None
    labels = task.labels
    for index in range(batch.num_classes):
        one, members = batch.one_class(index), (labels == index).nonzero()[:, 0]
        drawn = one.weight > 0
        require(
            isinstance(one.targets, Tensor) and bool((hard_labels(one.targets)[drawn] == index).all()),
            f"sample_real: the batch of class {index} holds samples of other classes",
        )
        own = task.select(members[:FEW])
        require(
            isinstance(own.targets, Tensor)
            and bool((hard_labels(own.targets).cpu() == labels[members[:FEW]].cpu()).all()),
            f"select: samples of class {index} have the labels of other ones",
        )
        if isinstance(one.inputs, Tensor) and isinstance(own.inputs, Tensor) and len(members) <= FEW:
            apart = torch.cdist(one.inputs[drawn].flatten(1).double(), own.inputs.flatten(1).double()).amin(1)
            size = float(own.inputs.double().flatten(1).norm(dim=1).max()) or 1.0
            require(
                bool((apart < 1e-4 * size).all()),
                f"sample_real and select: samples of class {index} differ between them",
            )


def check_class_gradients(task: Task, state: NetworkState, batch: ClassBatch) -> None:
    """Check that the vmapped, the looped and (where there is one) the closed-form class gradients agree.

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
            # A bias before a norm has no gradient but rounding, so the whole gradient sets the scale of small ones.
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
    with told("evaluate"):
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
    single: float = SINGLE,
) -> None:
    """Check an objective at one point.

    It has to give a finite scalar, that of the oracle, the same for one key and whatever the order of the samples on
    either side, and in float32 too, with a gradient that finite differences confirm.

    Args:
        objective: the objective.
        network: in float64, smooth.
        syn: the synthetic batch, in float64.
        real: the real batch.
        oracle: the same value, computed independently.
        by_position: why the order of samples matters, such as minibatches that are drawn by their positions; no order
            is then changed. That of samples which classes share, as the nodes of one graph, never is.
        single: relative error allowed of the value and of its gradient in float32; ``inf`` compares none, as of kernels
            that float32 does not tell from singular ones.
    Raises:
        ConformanceError: a breach, in words.
    """
    draws = Draws(0, ("objective",))

    def computed(syn: Batch | ClassBatch, real: Batch | ClassBatch) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
        result: Tensor = functional_call(objective, buffers, (network, syn, real, draws))
        return result

    found = computed(syn, real)
    with told("objective"):
        require_loss(objective, found, learns=False)
    value = found.detach()
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
    with told("objective"):
        require_loss(objective, loss, learns=True)
        gradients = torch.autograd.grad(loss, (leaf,), allow_unused=True)
        require_gradients(objective, gradients)
    if not by_position:
        for side, order in (("synthetic", (in_reverse(syn), real)), ("real", (syn, in_reverse(real)))):
            error = relative_error(computed(*order).detach(), value)
            require(
                error < TOLERANCE[torch.float64],
                f"objective: another order of the {side} samples changes the value by {error:.1e} of it; should order "
                "matter, say why by by_position",
            )
        check_weights(computed, syn, real, value)
    if single < math.inf:
        check_single(objective, network, syn, real, value, gradients[0], single)
    try:
        torch.autograd.gradcheck(at, (leaf,), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=leaf.numel() > MANY)
    except GradcheckError as error:
        raise ConformanceError(
            f"objective: finite differences do not confirm the gradient; what is detached counts as a constant, and at "
            f"the kink of a ReLU there is none: {error}"
        ) from error


def check_objective_on(
    task: Task,
    build: Callable[[], Objective],
    *,
    n: int = 2,
    oracle: Callable[[Network, Batch | ClassBatch, Batch | ClassBatch], float] | None = None,
    by_position: str = "",
    single: float = SINGLE,
) -> None:
    """Check an objective as :func:`check_objective` does, on a fresh network and real samples of a task, in float64.

    Args:
        task: whose network should be smooth: finite differences do not confirm gradients at the kink of a ReLU.
        build: makes the objective, as a method's ``objective`` does without settings.
        n: samples of each class, on both sides; of a task without classes, in all.
        oracle: the same value of a network and both sides, computed independently.
        by_position: why the order of samples matters, see :func:`check_objective`.
        single: relative error allowed in float32.
    Raises:
        ConformanceError: a breach, in words.
        ConfigError: what makes no objective, or one that cannot work on the task.
    """
    key = Draws(0, ("objective",), task.device)
    objective = made_objective("this check", build).to(task.device, torch.float64)
    objective.check(task)
    objective.begin(task, key.fold("begin"))
    classes = None if task.num_classes is None or objective.view == "flat" else torch.arange(task.num_classes)
    count = n * (task.num_classes or 1) if classes is None else n
    syn, real = synthetic(task, n, key, classes), wide(task.sample_real(key.fold("real"), classes, count))
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
    """Check a way of storing samples: its shapes, keys, classes and gradients, and that it stores all that it reads.

    Args:
        task: whose samples it stores.
        build: the builder, or a :class:`~mmdistill.method.Storage`.
        budget: in the task's unit.
        label: the kind of labels.
        settings: that the builder reads; those of a method that starts from real samples by default.
    Raises:
        ConformanceError: a breach, in words.
    """
    key, own = Draws(0, ("parameterization",), task.device), settings or Settings(steps=1)
    made = build(task, budget, own, label, key.fold("start")).to(task.device)
    decoded: Batch = made(key.fold("decode"))
    with told("forward"):
        require_batch(made, decoded)
    require(_same(decoded, made(key.fold("decode"))), "forward: one key must give one batch")
    _check_decoded(task, made, decoded, key)
    codes = made.groups().get("codes", [])
    numbers = [t for t in tensors_of(decoded.inputs) if t.requires_grad]
    if codes:
        found = torch.autograd.grad([t.sum() for t in numbers], codes, allow_unused=True) if numbers else [None]
        require(any(g is not None for g in found), "forward: no gradient leads from the samples to the codes")
    other = build(task, budget, own, label, key.fold("other")).to(task.device)
    try:
        other.load_state_dict(made.state_dict())
    except RuntimeError as error:
        raise ConformanceError(f"state: what one key built cannot be loaded into what another did: {error}") from error
    with torch.no_grad():
        require(
            _same(made.finished(key), other.finished(key)),
            "state: samples differ once all parameters and buffers are loaded, as a resumed run loads them; what "
            "decoding reads must be among these",
        )
    require(made.stored_bytes() > 0, "stored_bytes: samples must be stored in parameters or buffers")
    reason = undecodable(made)
    require(not reason, f"rebuilt: {reason}")


def _check_decoded(task: Task, made: Parameterization, decoded: Batch, key: Draws) -> None:
    """Check the shapes, weights and classes of decoded samples."""
    classes = None if task.num_classes is None else torch.arange(task.num_classes)
    with told("forward"):
        require_alike(made, decoded, task.sample_real(key.fold("real"), classes, 1))
        require_classes(made, Solved())
    require(all(bool(t.isfinite().all()) for t in tensors_of(decoded.inputs)), "forward: samples must be finite")
    if classes is None:
        require(bool((decoded.weight > 0).any()), "forward: all samples have weight 0")
        return
    require(made.classes is not None, "classes: the class of each decoded sample is needed in a task with classes")
    weights = made.class_batches(decoded).batch.weight
    require(bool((weights > 0).any(1).all()), "forward: every class needs a sample of weight above 0")


def as_float64(state: NetworkState) -> NetworkState:
    """Return a network state in float64."""
    return state.map(doubled)
