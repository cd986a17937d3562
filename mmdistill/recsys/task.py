"""User-item interactions as a task: rows of users, the infinite-width autoencoder, closed-form judges."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmdistill.abilities import Judging, in_place_of, judging_overrides
from mmdistill.checks import require_below_one, require_kind, require_no_features
from mmdistill.errors import ShapeError, UnsupportedError
from mmdistill.names import canonical, known_name
from mmdistill.networks.architecture import described_module, task_line
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.objectives.infinite_width import FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import multinomial
from mmdistill.recsys.cleaning import removal_notes
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.factorisation import is_binary
from mmdistill.recsys.judges import JUDGES, RecommenderJudge
from mmdistill.recsys.metrics import METRICS, Judged, RankingProtocol, Scorer
from mmdistill.recsys.models import DISTILL_CF_RIDGES, Recommender
from mmdistill.recsys.selection import SELECTIONS, embed_users, select_users
from mmdistill.recsys.vae import VaeProtocol
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Scores, TaskInfo, Tensors

EMBEDDING_DIMENSIONS = 64
TESTING = RankingProtocol(groups=3)
"""How judges are tested unless the user says otherwise: on all users and items, with three groups of users."""
TRAINING = VaeProtocol()
"""How the trained judge is built and trained unless the user says otherwise."""
KEPT_NUMBERS = 2**26
"""Of users x items, up to which the real rows stay on a device other than the CPU: 256 MB."""
FIXED = Draws(0, ("recsys",))
"""The key where nothing is random."""
VALIDATION_USERS = 10_000
"""Validation data of more users are not read; drawn at random, these tell steps and ridges apart."""
CLOSED_FORM_NOTE = (
    "closed-form judges have no randomness of their own: only the AUC's sampled negatives differ between runs"
)
GROUPS_NOTE = "ndcg@{} [a-b] is that of users of whom a to b interactions are known"
ALIKE_NOTE = "the users of the set are weighted, and judges count each of them once"


class RecsysTask:
    """Users as rows of binary interactions; nothing has a class, so objectives read flat batches.

    The default network is the infinitely wide autoencoder, whose predictions come from kernel ridge regression on
    a synthetic set. It has no parameters: its state is empty and, unfitted, it predicts its prior mean 0 for
    every item. A factory of modules from rows to logits makes the task one of that network.

    What is known of a judge is its entry in ``judge_kinds``, where another one is added.

    Args:
        data: the interactions.
        model: makes a module from ``(n, items)`` rows to ``(n, items)`` logits; None is the infinitely wide one.
        features: names of the module's submodules whose features are matched; the last layer's input by default.
        hold_out: the fraction of each target user's interactions that is hidden from the input, so that matching
            rewards prediction instead of reconstruction; 0 as published.
        depth: hidden layers of the infinitely wide autoencoder, as inner model, for validation and as judge.
        protocol: how rankings are judged; None is :data:`TESTING`.
        vae: how the trained judge is built and trained; None is :data:`TRAINING`.
        judge_epochs: passes over the real users for which it trains, and by as many updates on few users; None is its
            own number of updates.
        judge_batch: users in its minibatches; None is its own number.
        device: where everything runs.
    Raises:
        ConfigError: hold_out outside [0, 1), features of the infinitely wide network, or epochs or a size that are no
            whole numbers of at least 1.
    """

    num_classes: int | None = None
    labels: Tensor | None = None
    judge_kinds: Mapping[str, RecommenderJudge] = JUDGES
    selections: Sequence[str] = SELECTIONS

    def __init__(
        self,
        data: Interactions,
        *,
        model: ModuleFactory | None = None,
        features: str | Sequence[str] = (),
        hold_out: float = 0.0,
        depth: int = 1,
        protocol: RankingProtocol | None = None,
        vae: VaeProtocol | None = None,
        judge_epochs: int | None = None,
        judge_batch: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.hold_out = hold_out
        require_below_one(self, "hold_out")
        require_kind(RankingProtocol, protocol=protocol)
        require_kind(VaeProtocol, vae=vae)
        if model is None:
            require_no_features(features, "the infinitely wide network")
        self.data: Interactions = data
        self.judges: Sequence[str] = tuple(self.judge_kinds)
        self.device: torch.device = torch.device(device)
        self.kernel: FullyConnectedKernel = FullyConnectedKernel(depth=depth)
        trained, tested = in_place_of(vae, TRAINING), in_place_of(protocol, TESTING, apart=("chunk",))
        self.judging_chosen: Judging = judging_overrides(judge_epochs, judge_batch, protocol=trained, testing=tested)
        self.protocol = protocol or TESTING
        self.vae: VaeProtocol = (vae or TRAINING).lasting(judge_epochs, judge_batch, data.num_users)
        self.module = None if model is None else FunctionalModule(model, features, self.device)
        self._kept: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts with: rows that are kept on a device stay here."""
        return {**self.__dict__, "_kept": None}

    def __repr__(self) -> str:
        sizes = f"{self.data.num_users:,} users and {self.data.num_items:,} items"
        return task_line(self, self.data.name, sizes)

    def init(self, draws: Draws) -> NetworkState:
        """Draw a network; the infinitely wide one has nothing to draw."""
        return NetworkState({}, {}) if self.module is None else self.module.init(draws)

    def architecture(self) -> str:
        """Return the network as its module describes itself; of the infinitely wide one, its depth."""
        return (
            f"infinitely wide, depth {self.kernel.depth}"
            if self.module is None
            else described_module(self.module.module)
        )

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return one logit per item; 0 from the infinitely wide network, which knows no data here.

        Dropout of a module draws from the key in training.
        """
        rows = self.rows(inputs)
        if self.module is None:
            return torch.zeros_like(rows), {}
        logits, buffers = self.module(state, rows, train=train, draws=draws)
        return logits, buffers

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the multinomial negative log-likelihood of the target rows, the weighted mean over users."""
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return multinomial(logits, self.rows(batch.targets), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the named layers of a module, or the rows themselves for the infinitely wide network."""
        rows = self.rows(inputs)
        return (rows,) if self.module is None else self.module.features(state, rows)

    def select(self, indices: Tensor) -> Batch:
        """Return real users' training rows, as inputs and as targets."""
        rows = self.users(indices)
        return Batch(rows, rows, torch.ones(indices.shape, device=self.device))

    def users(self, indices: Tensor) -> Tensor:
        """Return real users' training rows, ``(*indices.shape, items)``.

        They are made anew on a CPU, where this takes no longer than to copy them out of a dense matrix.
        """
        if self.device.type == "cpu" or self.data.num_users * self.data.num_items > KEPT_NUMBERS:
            flat = indices.flatten().cpu().numpy()
            return self.data.rows(flat, device=self.device).reshape(*indices.shape, self.data.num_items)
        if self._kept is None:
            self._kept = self.data.rows(np.arange(self.data.num_users), device=self.device)
        return self._kept[indices.to(self.device, non_blocking=True)]

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw n different users (all of them where n is larger); targets are their whole training rows.

        Raises:
            UnsupportedError: classes are asked for.
        """
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
        return torch.from_numpy(self._points).to(self.device)

    @functools.cached_property
    def _points(self) -> npt.NDArray[np.float32]:
        return embed_users(self.data.parts["train"], EMBEDDING_DIMENSIONS)

    def selection(self, kind: str, counts: Tensor, draws: Draws) -> Batch:
        """Return one of this domain's own baselines at equal count; see :func:`select_users`."""
        rows = select_users(self.data, kind, int(counts.sum()), lambda: self._points, draws).to(self.device)
        return Batch(rows, rows, torch.ones(len(rows), device=self.device))

    def judge(self, synthetic: Batch | None, name: str, draws: Draws = FIXED) -> Recommender:
        """Return a judge, not fitted yet, on synthetic users (None: on all real ones).

        Args:
            synthetic: the users.
            name: any of :attr:`judges`.
            draws: the key of a factorisation's start, or of a training; the others need none.

        Raises:
            ConfigError: an unknown judge.
            ShapeError: the synthetic users have another number of items.
            UnsupportedError: data too large for the judge, or a missing package.
        """
        kind = self._kind(name)
        if synthetic is None:
            return kind.of_all(self, draws)
        return kind.of_rows(self, self._fitted_rows(synthetic), draws)

    def judge_name(self, name: str) -> str:
        """Return a judge's name in its one spelling, also of one that was added since the task was made.

        Raises:
            ConfigError: an unknown one.
        """
        return known_name("judge", name, self.judge_kinds)

    def _kind(self, name: str) -> RecommenderJudge:
        return self.judge_kinds[self.judge_name(name)]

    def chosen_ridge(self, synthetic: Batch) -> float:
        """Return the ridge of Distill-CF's code that validation data choose on users; without any, the middle one."""
        model = self.judge(synthetic, "inf-ae")
        model.ridges = DISTILL_CF_RIDGES
        return model.pick(self._judged())

    def _fitted_rows(self, synthetic: Batch) -> Tensor:
        return self.rows(synthetic.inputs).to(self.device)[synthetic.weight.to(self.device) > 0]

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Fit a judge and score its rankings of the test items.

        The ridge is the best on validation, out of the judge's own and the one that was learned with the set; a
        trained judge's step is chosen so, too. Without validation data it is the learned one, or the middle one of the
        judge's own, and the step the last; a note says so. Judges in closed form have no randomness of their own: of
        n values they give one, but of the AUC, whose negatives are drawn n times.

        Raises:
            ConfigError: an unknown judge.
            ShapeError: the synthetic users have another number of items.
            UnsupportedError: data too large for the judge, or a missing package.
        """
        kind, judged = self._kind(judge), self._judged()
        found: dict[str, tuple[float, ...]] = {}
        for key in [draws.fold("run", index) for index in range(n)] if kind.random else [draws]:
            scorer = self.judge(synthetic, judge, key).fitted(judged, kind.learned(learned))
            for name, values in self._tested(scorer, key, 1 if kind.random else n).items():
                found[name] = (*found.get(name, ()), *values)
        return Scores(canonical(judge), _reported(found, self.protocol.ks), self._notes(synthetic, kind, found))

    def _tested(self, scorer: Scorer, draws: Draws, n: int) -> dict[str, tuple[float, ...]]:
        return self.protocol.evaluate(scorer, self.data, "test", draws.fold("test"), n, self.device)

    def _notes(
        self, synthetic: Batch | None, kind: RecommenderJudge, found: Mapping[str, tuple[float, ...]]
    ) -> tuple[str, ...]:
        """Return what a reader of a judge's metrics must know."""
        notes: tuple[str, ...] = () if kind.random else (CLOSED_FORM_NOTE,)
        notes += (GROUPS_NOTE.format(self.protocol.ks[0]),) if any(name.endswith("]") for name in found) else ()
        if kind.weighted and synthetic is not None and not is_binary(self._fitted_rows(synthetic)):
            notes += (kind.weighted,)
        if synthetic is not None and len(torch.unique(synthetic.weight[synthetic.weight > 0])) > 1:
            notes += (ALIKE_NOTE,)
        if kind.unvalidated and not self.data.validates:
            notes += (kind.unvalidated,)
        known = self.data.lengths("train") + self.data.lengths("valid")
        left = self.data.num_items - int(np.median(known))
        if wide := [k for k in self.protocol.ks if k >= left]:
            notes += (f"half of the users have at most {left} items left to rank, so metrics at {wide[0]} say little",)
        return notes

    def judging_read(self, judge: str) -> Sequence[str]:
        """Return what a judge reads of what is set of judging: all but the trained one how they are tested."""
        return self._kind(judge).reads

    def judging_epochs(self, judge: str, samples: int | None) -> int | None:
        """Return for how many passes a judge trains on so many users, None: on all; None of what is solved."""
        passes = self._kind(judge).epochs
        return None if passes is None else passes(self, samples or self.data.num_users)

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float | None:
        """Return the validation NDCG@10 of the inner model on synthetic users; None without validation data.

        That is EASE where a ridge of EASE's was learned with them, else the infinite autoencoder. Ten times a learned
        ridge is tried as well: the likelihood of whole rows, known items included, likes smaller ones than rankings do.
        """
        judged = self._judged()
        if judged is None:
            return None
        name = "ease" if JUDGES["ease"].learned(learned) else "inf-ae"
        model, own = self.judge(synthetic, name), JUDGES[name].learned(learned)
        ridges = (*own, *(10 * ridge for ridge in own)) or model.ridges
        return max(model.validate(ridges, judged).values())

    def _judged(self) -> Judged | None:
        """Return what scores recommenders on validation data by NDCG at the first cut-off; None without such data."""
        if not self.data.validates:
            return None
        most = min(self.protocol.max_users or VALIDATION_USERS, VALIDATION_USERS)
        protocol = replace(self.protocol, max_users=most)
        return lambda scorers: protocol.ndcg(scorers, self.data, "valid", self.device)

    def describe(self) -> TaskInfo:
        """Return what identifies this task; the item ids travel with the set."""
        return self._info

    @functools.cached_property
    def _info(self) -> TaskInfo:
        removed = removal_notes(self.data.counts, self.data.min_rating)
        return TaskInfo(
            domain="recsys",
            data=self.data.name,
            budget="users",
            num_train=self.data.num_users,
            stored_bytes=self.data.stored_bytes,
            fingerprint=self.data.fingerprint,
            test_fingerprint=self.data.test_fingerprint,
            preprocessing={
                "item_ids": self.data.item_ids.tolist(),
                "dropped": dict(self.data.counts),
                **({"splits": list(self.data.notes)} if self.data.notes else {}),
                **({"notes": removed} if removed else {}),
                **({"augmentation": {"hold_out": self.hold_out}} if self.hold_out else {}),
            },
            forms={"inputs": (self.data.num_items,)},
        )

    def rows(self, inputs: Inputs) -> Tensor:
        """Return inputs as rows of interactions.

        Raises:
            ShapeError: they are not rows of this task's items.
        """
        if isinstance(inputs, dict) or inputs.ndim < 1 or inputs.shape[-1] != self.data.num_items:
            shape = list(inputs) if isinstance(inputs, dict) else tuple(inputs.shape)
            raise ShapeError(f"users are (n, {self.data.num_items}) rows of interactions, got {shape}")
        return inputs


def _reported(found: Mapping[str, tuple[float, ...]], ks: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Return the metrics that are reported, NDCG at the first cut-off first; all where the cut-offs are others."""
    if tuple(ks) != TESTING.ks:
        return dict(found)
    groups = [name for name in found if name.endswith("]")]
    return {name: found[name] for name in (*METRICS, *groups) if name in found}
