"""The recommendation task: rows of users, the infinite-width autoencoder, closed-form judges."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmdistill.abilities import Judging, PlainJudge, in_place_of, judging_overrides
from mmdistill.checks import require_kind, require_no_features
from mmdistill.described import described_module
from mmdistill.errors import ShapeError, UnsupportedError
from mmdistill.names import canonical, known_name
from mmdistill.networks.architecture import task_line
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.objectives.infinite_width import FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import multinomial
from mmdistill.recsys.cleaning import removal_notes
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.factorisation import is_binary
from mmdistill.recsys.judges import JUDGES, RecommenderJudge
from mmdistill.recsys.metrics import METRICS, RankingProtocol, Validation
from mmdistill.recsys.models import DISTILL_CF_RIDGES, Recommender, autoencoder_kernel
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
"""The largest users x items matrix that is kept on a device other than the CPU: 256 MB."""
FIXED = Draws(0, ("recsys",))
"""The key for results that involve no randomness."""
VALIDATION_USERS = 10_000
"""Validate on at most this many users, drawn at random: enough to tell steps and ridges apart."""
CLOSED_FORM_NOTE = (
    "closed-form judges have no randomness of their own: only the AUC's sampled negatives differ between runs"
)
GROUPS_NOTE = "ndcg@{} [a-b] is that of users of whom a to b interactions are known"
ALIKE_NOTE = "the users of the set are weighted, and judges count each of them once"


class RecsysTask:
    """Users as rows of binary interactions; nothing has a class, so objectives read flat batches.

    The default network is the infinitely wide autoencoder, whose predictions come from kernel ridge regression on a
    synthetic set. It has no parameters: its state is empty and, unfitted, it predicts its prior mean 0 for every item.
    ``model`` replaces it with a module from rows to logits.

    Each judge is an entry of ``judge_kinds``; add your own there.

    Args:
        data: the interactions.
        model: builds a module from ``(n, items)`` rows to ``(n, items)`` logits; None is the infinitely wide network.
        features: names of the module's submodules whose features are matched; the last layer's input by default.
        depth: hidden layers of the infinitely wide autoencoder, as inner model, in validation and as judge.
        protocol: how rankings are judged; None is :data:`TESTING`.
        vae: how the trained judge is built and trained; None is :data:`TRAINING`.
        judge_epochs: passes of the trained judge over the real users; on a synthetic set it takes as many updates. None
            keeps its default number of updates.
        judge_batch: users in its minibatches; None keeps its default.
        device: where everything runs.
    Raises:
        ConfigError: features of the infinitely wide network, or epochs or a batch size that is not a whole number of
            at least 1.
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
        depth: int = 1,
        protocol: RankingProtocol | None = None,
        vae: VaeProtocol | None = None,
        judge_epochs: int | None = None,
        judge_batch: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        require_kind(RankingProtocol, protocol=protocol)
        require_kind(VaeProtocol, vae=vae)
        if model is None:
            require_no_features(features, "the infinitely wide network")
        self.data: Interactions = data
        self.judges: Sequence[str] = tuple(self.judge_kinds)
        self.device: torch.device = torch.device(device)
        self.kernel: FullyConnectedKernel = autoencoder_kernel(depth)
        training, testing = in_place_of(vae, TRAINING), in_place_of(protocol, TESTING, apart=("chunk",))
        self.judging_chosen: Judging = judging_overrides(judge_epochs, judge_batch, protocol=training, testing=testing)
        self.protocol = protocol or TESTING
        self.vae: VaeProtocol = (vae or TRAINING).with_overrides(judge_epochs, judge_batch, data.num_users)
        self.module = None if model is None else FunctionalModule(model, features, self.device)
        self._cached_rows: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy, without the rows cached on a device."""
        return {**self.__dict__, "_cached_rows": None}

    def __repr__(self) -> str:
        sizes = f"{self.data.num_users:,} users and {self.data.num_items:,} items"
        return task_line(self, self.data.name, sizes)

    def init(self, draws: Draws) -> NetworkState:
        """Draw a network; the infinitely wide one has nothing to draw."""
        return NetworkState({}, {}) if self.module is None else self.module.init(draws)

    def architecture(self) -> str:
        """Return the module's own description, or the depth of the infinitely wide network."""
        return (
            f"infinitely wide, depth {self.kernel.depth}"
            if self.module is None
            else described_module(self.module.module)
        )

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return one logit per item; 0 from the infinitely wide network, which is unfitted here.

        In training, a module's dropout draws from the key.
        """
        rows = self.rows(inputs)
        if self.module is None:
            return torch.zeros_like(rows), {}
        logits, buffers = self.module(state, rows, train=train, draws=draws)
        return logits, buffers

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the multinomial negative log-likelihood of the target rows, as a weighted mean over users."""
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return multinomial(logits, self.rows(batch.targets), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the features of a module's named layers, or the rows themselves for the infinitely wide network."""
        rows = self.rows(inputs)
        return (rows,) if self.module is None else self.module.features(state, rows)

    def select(self, indices: Tensor) -> Batch:
        """Return real users' training rows, as inputs and as targets."""
        rows = self.users(indices)
        return Batch(rows, rows, torch.ones(indices.shape, device=self.device))

    def users(self, indices: Tensor) -> Tensor:
        """Return real users' training rows, ``(*indices.shape, items)``.

        On a CPU they are rebuilt each time, which is as fast as copying them out of a dense matrix.
        """
        if self.device.type == "cpu" or self.data.num_users * self.data.num_items > KEPT_NUMBERS:
            flat = indices.flatten().cpu().numpy()
            return self.data.rows(flat, device=self.device).reshape(*indices.shape, self.data.num_items)
        if self._cached_rows is None:
            self._cached_rows = self.data.rows(np.arange(self.data.num_users), device=self.device)
        return self._cached_rows[indices.to(self.device, non_blocking=True)]

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw n different users (all of them if n is larger).

        Raises:
            UnsupportedError: ``classes`` is given.
        """
        if classes is not None:
            raise UnsupportedError("interaction data have no classes to draw from; pass classes=None")
        return self.select(draws.to("cpu").permutation(self.data.num_users)[:n])

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch unchanged: interactions have no label-preserving transformations."""
        return batch

    def embedding(self) -> Tensor:
        """Return every user's coordinates in a truncated SVD of the rows, each scaled to unit length."""
        return torch.from_numpy(self._points).to(self.device)

    @functools.cached_property
    def _points(self) -> npt.NDArray[np.float32]:
        return embed_users(self.data.parts["train"], EMBEDDING_DIMENSIONS)

    def selection(self, kind: str, counts: Tensor, draws: Draws) -> Batch:
        """Return one of this domain's coreset baselines with as many users; see :func:`select_users`."""
        rows = select_users(self.data, kind, int(counts.sum()), lambda: self._points, draws).to(self.device)
        return Batch(rows, rows, torch.ones(len(rows), device=self.device))

    def judge(self, synthetic: Batch | None, name: str, draws: Draws = FIXED) -> Recommender:
        """Return an unfitted judge of synthetic users.

        Args:
            synthetic: the users; None: all real ones.
            name: any of :attr:`judges`.
            draws: the key of judges with random initialisation or training; the others ignore it.

        Raises:
            ConfigError: an unknown judge.
            ShapeError: the synthetic users have another number of items.
            UnsupportedError: data too large for the judge, or a missing package.
        """
        kind = self._kind(name)
        if synthetic is None:
            return kind.of_all(self, draws)
        return kind.of_rows(self, self._rows_to_fit(synthetic), draws)

    def describe_judge(self, judge: str) -> PlainJudge:
        """Return the facts of a judge, also if it was added after the task was made.

        Raises:
            ConfigError: an unknown judge.
        """
        name = known_name("judge", judge, self.judge_kinds)
        kind = self.judge_kinds[name]

        def epochs_on(samples: int | None) -> int | None:
            return None if kind.epochs is None else kind.epochs(self, samples or self.data.num_users)

        return PlainJudge(name, reads=kind.reads, epochs_on=epochs_on)

    def _kind(self, name: str) -> RecommenderJudge:
        return self.judge_kinds[known_name("judge", name, self.judge_kinds)]

    def chosen_ridge(self, synthetic: Batch) -> float:
        """Return the best of the ridges of Distill-CF's code on validation data; without such data the middle one."""
        model = self.judge(synthetic, "inf-ae")
        model.ridges = DISTILL_CF_RIDGES
        return model.pick(self._validation())

    def _rows_to_fit(self, synthetic: Batch) -> Tensor:
        """Return the rows that judges are fitted on: of users with positive sample weight."""
        return self.rows(synthetic.inputs).to(self.device)[synthetic.weight.to(self.device) > 0]

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Fit a judge and score its rankings of the test items.

        The ridge is the best on validation data, out of the judge's own and the one learned with the set; the step of a
        trained judge is chosen likewise. Without validation data the ridge is the learned one, or the middle one of the
        judge's own, and the step is the last; a note says so. Closed-form judges are deterministic: they give one value
        instead of n, except for the AUC, whose negatives are drawn n times.

        Raises:
            ConfigError: an unknown judge.
            ShapeError: the synthetic users have another number of items.
            UnsupportedError: data too large for the judge, or a missing package.
        """
        kind, validation = self._kind(judge), self._validation()
        keys, repeats = ([draws.fold("run", index) for index in range(n)], 1) if kind.random else ([draws], n)
        metrics: dict[str, tuple[float, ...]] = {}
        for key in keys:
            scorer = self.judge(synthetic, judge, key).fit_best(validation, kind.learned(learned))
            results = self.protocol.evaluate(scorer, self.data, "test", key.fold("test"), repeats, self.device)
            for name, values in results.items():
                metrics[name] = (*metrics.get(name, ()), *values)
        return Scores(canonical(judge), _to_report(metrics, self.protocol.ks), self._notes(synthetic, kind, metrics))

    def _notes(
        self, synthetic: Batch | None, kind: RecommenderJudge, metrics: Mapping[str, tuple[float, ...]]
    ) -> tuple[str, ...]:
        """Return what a reader of a judge's metrics must know."""
        notes: tuple[str, ...] = () if kind.random else (CLOSED_FORM_NOTE,)
        notes += (GROUPS_NOTE.format(self.protocol.ks[0]),) if any(name.endswith("]") for name in metrics) else ()
        if kind.weighted and synthetic is not None and not is_binary(self._rows_to_fit(synthetic)):
            notes += (kind.weighted,)
        if synthetic is not None and len(torch.unique(synthetic.weight[synthetic.weight > 0])) > 1:
            notes += (ALIKE_NOTE,)
        if kind.unvalidated and not self.data.validates:
            notes += (kind.unvalidated,)
        lengths = self.data.lengths("train") + self.data.lengths("valid")
        left = self.data.num_items - int(np.median(lengths))
        if too_large := [k for k in self.protocol.ks if k >= left]:
            notes += (
                f"half of the users have at most {left} items left to rank, so metrics at {too_large[0]} say little",
            )
        return notes

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float | None:
        """Return the validation NDCG@10 of the inner model on synthetic users; None without validation data.

        The inner model is EASE if a ridge for EASE was learned with them, else the infinite autoencoder. Ten times a
        learned ridge is tried as well: the likelihood of whole rows, which include known items, prefers smaller ridges
        than rankings do.
        """
        validation = self._validation()
        if validation is None:
            return None
        name = "ease" if JUDGES["ease"].learned(learned) else "inf-ae"
        model, learned_ridges = self.judge(synthetic, name), JUDGES[name].learned(learned)
        ridges = (*learned_ridges, *(10 * ridge for ridge in learned_ridges)) or model.ridges
        return max(model.validate(ridges, validation).values())

    def _validation(self) -> Validation | None:
        """Return the function that scores recommenders by validation NDCG at the first cut-off; None without data."""
        if not self.data.validates:
            return None
        most = min(self.protocol.max_users or VALIDATION_USERS, VALIDATION_USERS)
        protocol = replace(self.protocol, max_users=most)
        return lambda scorers: protocol.ndcg(scorers, self.data, "valid", self.device)

    def describe(self) -> TaskInfo:
        """Return the task's identity; its item ids are stored with the set."""
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


def _to_report(metrics: Mapping[str, tuple[float, ...]], ks: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Return the metrics to report, NDCG at the first cut-off first; with other cut-offs than the default, all."""
    if tuple(ks) != TESTING.ks:
        return dict(metrics)
    groups = [name for name in metrics if name.endswith("]")]
    return {name: metrics[name] for name in (*METRICS, *groups) if name in metrics}
