"""User-item interactions as a task: rows of users, the infinite-width autoencoder, closed-form judges."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.labels import weighted_mean
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.recsys.data import Interactions, Source, load_interactions
from mmdistill.recsys.metrics import METRICS, RankingProtocol
from mmdistill.recsys.models import ClosedForm, Ease, InfiniteAutoencoder, Popularity
from mmdistill.registry import TaskOptions, unknown_name
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Scores, TaskInfo, Tensors

EMBEDDING_DIMENSIONS = 64
CLOSED_FORM_NOTE = (
    "closed-form judges have no randomness of their own: only the AUC's sampled negatives differ between runs"
)
MODELS = ("infinite", "autoencoder")
"""The networks that ``--model`` names: infinitely wide, or one hidden layer of ``--width`` units."""


class RecsysTask:
    """Users as rows of binary interactions; nothing has a class, so objectives read flat batches.

    The default network is the infinitely wide autoencoder, whose predictions come from kernel ridge regression on
    a synthetic set. It has no parameters: its state is empty and, unfitted, it predicts its prior mean 0 for
    every item. A factory of modules from rows to logits makes the task one of that network.

    Args:
        data: the interactions.
        model: makes a module from ``(n, items)`` rows to ``(n, items)`` logits; None is the infinitely wide one.
        features: names of the module's submodules whose features are matched; the last layer's input by default.
        hold_out: the fraction of each target user's interactions that is hidden from the input, so that matching
            rewards prediction instead of reconstruction; 0 as published.
        protocol: how rankings are judged.
        device: where everything runs.
    """

    num_classes: int | None = None
    labels: Tensor | None = None
    judges: Sequence[str] = ("inf-ae", "ease", "popularity")

    def __init__(
        self,
        data: Interactions,
        *,
        model: ModuleFactory | None = None,
        features: tuple[str, ...] = (),
        hold_out: float = 0.0,
        protocol: RankingProtocol | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= hold_out < 1:
            raise ConfigError(f"hold_out is a fraction below 1, got {hold_out}")
        self.data = data
        self.device = torch.device(device)
        self.hold_out = hold_out
        self.protocol = protocol or RankingProtocol(device=self.device)
        self.module = None if model is None else FunctionalModule(model, features, self.device)
        self._chosen: dict[str, float] = {}
        self._info: TaskInfo | None = None

    def init(self, draws: Draws) -> NetworkState:
        """Draw a network; the infinitely wide one has nothing to draw."""
        return NetworkState({}, {}) if self.module is None else self.module.init(draws)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return one logit per item; 0 from the infinitely wide network, which knows no data here."""
        rows = self.rows(inputs)
        if self.module is None:
            return torch.zeros_like(rows), {}
        logits, buffers = self.module(state, rows, train=train)
        return logits, buffers

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the multinomial negative log-likelihood of the target rows, the weighted mean over users."""
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        targets = self.rows(batch.targets)
        return weighted_mean(-(targets * logits.log_softmax(1)).sum(1), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the named layers of a module, or the rows themselves for the infinitely wide network."""
        rows = self.rows(inputs)
        return (rows,) if self.module is None else self.module.features(state, rows)

    def select(self, indices: Tensor) -> Batch:
        """Return real users' training rows, as inputs and as targets."""
        flat = indices.flatten().cpu().numpy()
        rows = self.data.rows(flat).to(self.device).reshape(*indices.shape, self.data.num_items)
        return Batch(rows, rows, torch.ones(indices.shape, device=self.device))

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw n different users (all of them where n is larger); targets are their whole training rows."""
        if classes is not None:
            raise UnsupportedError("interaction data have no classes to draw from; pass classes=None")
        chosen = draws.to("cpu").permutation(self.data.num_users)[:n]
        batch = self.select(chosen)
        if not self.hold_out or isinstance(batch.inputs, dict):
            return batch
        chance = draws.fold("hold out").to(self.device).uniform(*batch.inputs.shape)
        return batch._replace(inputs=batch.inputs * (chance >= self.hold_out))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch as it is: interactions have no label-preserving transformations."""
        return batch

    def embedding(self) -> Tensor:
        """Return every user's leading coordinates in the singular space of the rows, each row at unit length."""
        train = self.data.parts["train"]
        sizes = np.sqrt(np.maximum(np.asarray(train.sum(1)).ravel(), 1))
        scaled = train.multiply(1 / sizes[:, None]).tocsr()
        dimensions = min(EMBEDDING_DIMENSIONS, min(train.shape) - 1)
        if dimensions < 1:
            return torch.from_numpy(scaled.toarray()).float().to(self.device)
        reduced = TruncatedSVD(dimensions, random_state=0).fit_transform(scaled)
        return torch.from_numpy(np.ascontiguousarray(reduced)).float().to(self.device)

    def judge(self, synthetic: Batch | None, name: str) -> ClosedForm:
        """Return a judge, ready to be solved, on synthetic users (None: on all real ones).

        Raises:
            ConfigError: an unknown judge.
            ShapeError: the synthetic users have another number of items.
        """
        if name not in self.judges:
            raise unknown_name("judge", name, self.judges)
        if synthetic is None:
            return self._judge_of_all(name)
        rows = self.rows(synthetic.inputs).to(self.device)
        rows = rows[synthetic.weight.to(self.device) > 0]
        if name == "inf-ae":
            return InfiniteAutoencoder(rows)
        return Ease(rows) if name == "ease" else Popularity(rows.sum(0))

    def _judge_of_all(self, name: str) -> ClosedForm:
        if name == "inf-ae":
            return InfiniteAutoencoder(self.data.rows(np.arange(self.data.num_users)).to(self.device))
        if name == "popularity":
            return Popularity(self.data.item_counts().to(self.device))
        train = self.data.parts["train"]
        if self.data.num_users < self.data.num_items:
            return Ease(self.data.rows(np.arange(self.data.num_users)).to(self.device))
        return Ease(gram=torch.from_numpy((train.T @ train).toarray()).to(self.device))

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Fit a closed-form judge and score its rankings of the test items.

        The ridge is the learned one where the set carries one (infinite autoencoder), else the best on validation.
        The judges have no randomness of their own: the n values differ only in the AUC's sampled negatives.
        """
        model = self.judge(synthetic, judge)
        key = judge if synthetic is None else ""
        if judge == "inf-ae" and "ridge" in learned:
            ridge = float(learned["ridge"])
        elif key in self._chosen:
            ridge = self._chosen[key]
        else:
            ridge = model.pick(self.data, self._validation(), draws.fold("validate"))
        if key:
            self._chosen[key] = ridge
        found = self.protocol.evaluate(model.scorer(ridge), self.data, "test", draws.fold("test"), repeats=n)
        order = [name for name in METRICS if name in found] or list(found)
        return Scores(judge, {name: found[name] for name in order}, (CLOSED_FORM_NOTE,))

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float:
        """Return the validation NDCG@10 of the infinite autoencoder on synthetic users."""
        model = self.judge(synthetic, "inf-ae")
        ridges = (float(learned["ridge"]),) if "ridge" in learned else model.ridges
        return max(model.validate(ridge, self.data, self._validation(), draws) for ridge in ridges)

    def _validation(self) -> RankingProtocol:
        return RankingProtocol(
            self.protocol.ks[:1], 0, self.protocol.chunk, self.protocol.max_users, self.protocol.device
        )

    def describe(self) -> TaskInfo:
        """Return what identifies this task; the item ids travel with the set."""
        if self._info is None:
            self._info = TaskInfo(
                domain="recsys",
                data=self.data.name,
                budget="users",
                num_train=self.data.num_users,
                stored_bytes=self.data.stored_bytes(),
                fingerprint=self.data.fingerprint(),
                preprocessing={"item_ids": self.data.item_ids.tolist(), "dropped": dict(self.data.counts)},
            )
        return self._info

    def rows(self, inputs: Inputs) -> Tensor:
        """Return inputs as rows of interactions.

        Raises:
            ShapeError: they are not rows of this task's items.
        """
        if isinstance(inputs, dict) or inputs.ndim < 1 or inputs.shape[-1] != self.data.num_items:
            shape = list(inputs) if isinstance(inputs, dict) else tuple(inputs.shape)
            raise ShapeError(f"users are (n, {self.data.num_items}) rows of interactions, got {shape}")
        return inputs


def recsys_task(
    data: Source | Interactions,
    *,
    model: ModuleFactory | Literal["infinite", "autoencoder"] | None = None,
    features: tuple[str, ...] = (),
    width: int = 600,
    hold_out: float = 0.0,
    min_rating: float | None = None,
    max_users: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> RecsysTask:
    """Make a task of interactions.

    Args:
        data: a data set's name, a file or folder, a data frame, a users x items matrix, or loaded interactions.
        model: ``infinite`` (default), ``autoencoder``, or a function that returns a module from rows to logits.
        features: names of the module's submodules whose features are matched.
        width: hidden units of ``autoencoder``.
        hold_out: see :class:`RecsysTask`.
        min_rating: the lowest rating that counts as an interaction; by default any above 0.
        max_users: judge on this many users, drawn at random; None is all.
        seed: of the split, where the data come without one.
        device: where everything runs.
    """
    if not isinstance(data, Interactions):
        data = load_interactions(data, min_rating=min_rating, seed=seed)
    factory = network_factory(model, data.num_items, width) if isinstance(model, str) else model
    device = torch.device(device)
    protocol = RankingProtocol(max_users=max_users, device=device)
    return RecsysTask(data, model=factory, features=features, hold_out=hold_out, protocol=protocol, device=device)


def network_factory(name: str, num_items: int, width: int) -> ModuleFactory | None:
    """Return the factory of a network by name; None is the infinitely wide one."""
    if name not in MODELS:
        raise unknown_name("model for recsys data", name, MODELS)
    if name == "infinite":
        return None
    return lambda: nn.Sequential(nn.Linear(num_items, width), nn.Tanh(), nn.Linear(width, num_items))


def make_task(data: str, options: TaskOptions) -> RecsysTask:
    """Make a task from what the command line gives."""
    model = options.model or "infinite"
    if model not in MODELS:
        raise unknown_name("model for recsys data", model, MODELS)
    return recsys_task(
        data,
        model="autoencoder" if model == "autoencoder" else "infinite",
        width=options.width or 600,
        seed=options.seed,
        device=options.device,
    )
