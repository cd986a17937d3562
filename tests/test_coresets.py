import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmdistill import coresets
from mmdistill.allocation import allocate, require_members
from mmdistill.choices import CORESETS, known_coresets
from mmdistill.coresets import (
    choose_repeatedly,
    choose_samples,
    choose_start,
    coreset,
    last_layer_gradients,
    random_subset,
    train_briefly,
)
from mmdistill.errors import ConfigError, DataError, ShapeError, UnsupportedError
from mmdistill.execution.portions import concatenated
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.rules import RULES, chosen_by, craig, herding, k_center, k_means, k_means_nearest
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from tests.toys import BlobTask, RecordedTask, Sizes

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])


@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.integers(0, 100))
def test_shares_add_up_and_cover_every_class(sizes: list[int], extra: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    budget = len(sizes) + extra
    shares = allocate(budget, "nodes", labels, len(sizes))
    assert int(shares.sum()) == budget
    assert int(shares.min()) >= 1
    exact = torch.tensor(sizes) / sum(sizes) * budget
    assert bool((shares <= exact.ceil().clamp(min=1)).all())


def test_small_classes_keep_a_sample_where_shares_are_rounded() -> None:
    assert allocate(3, "nodes", torch.tensor([0] * 100 + [1, 2]), 3).tolist() == [1, 1, 1]
    assert allocate(5, "nodes", torch.tensor([0] * 100 + [1, 2, 3]), 4).tolist() == [2, 1, 1, 1]
    labels = torch.tensor([0] * 60 + [1] * 37 + [2, 3, 4])  # exact: 3.6, 2.22 and thrice 0.06
    assert allocate(6, "nodes", labels, 5).tolist() == [2, 1, 1, 1, 1]


def test_the_largest_remainder_is_rounded_up() -> None:
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor([53, 7]))
    assert allocate(12, "nodes", labels, 2).tolist() == [11, 1]  # of 10.6 and 1.4


def test_budgets_are_checked() -> None:
    assert allocate(2, "ipc", LABELS, 3).tolist() == [2, 2, 2]
    assert allocate(7, "users", None, None).tolist() == [7]
    with pytest.raises(ConfigError, match="between 1 and"):
        allocate(0, "ipc", LABELS, 3)
    with pytest.raises(ConfigError, match="cannot cover 3 classes"):
        allocate(2, "nodes", LABELS, 3)
    with pytest.raises(DataError, match="class 3 has no training sample"):
        allocate(1, "ipc", LABELS, 4)
    with pytest.raises(DataError, match="class 2 has 2 samples, fewer than the 3"):
        random_subset(LABELS, torch.tensor([3, 3, 3]), Draws(0))
    with pytest.raises(
        DataError, match=r"class Billing  has 1 sample, .* asked for; is 'Billing ' the class 'billing'"
    ):
        require_members(torch.tensor([9, 1]), torch.tensor([5, 5]), ("billing", "Billing "))


def test_random_subsets_are_class_major_and_without_repeats() -> None:
    chosen = random_subset(LABELS, torch.tensor([2, 1, 2]), Draws(0))
    assert LABELS[chosen].tolist() == [0, 0, 1, 2, 2]
    assert len(set(chosen.tolist())) == 5
    assert len(random_subset(None, torch.tensor([4]), Draws(0), 9).unique()) == 4


def test_random_subsets_of_classes_are_drawn_apart() -> None:
    chosen = random_subset(torch.arange(3).repeat_interleave(50), torch.tensor([5, 5, 5]), Draws(0)).view(3, 5)
    assert len((chosen % 50).unique(dim=0)) == 3


def test_many_classes_cost_no_look_at_all_labels_each() -> None:
    labels = Draws(3).permutation(900) % 300
    with Sizes() as sizes:
        chosen = random_subset(labels, torch.full((300,), 2), Draws(0))
    assert sizes.total < 20 * 900
    members = [(labels == index).nonzero().flatten() for index in range(300)]
    drawn = [own[Draws(0).fold(index).permutation(3)[:2]] for index, own in enumerate(members)]
    assert torch.equal(chosen, torch.cat(drawn))


def test_herding_follows_the_greedy_rule() -> None:
    points, labels = Draws(0).normal(30, 3).double() + 1, torch.arange(30) % 3
    chosen = herding(points, labels, torch.tensor([6, 3, 1]))
    expected: list[int] = []
    for label, wanted in ((0, 6), (1, 3), (2, 1)):
        members = [i for i, y in enumerate(labels.tolist()) if y == label]
        mean = sum(points[i] for i in members) / len(members)
        picked: list[int] = []
        for _ in range(wanted):
            rest = [i for i in members if i not in picked]
            gaps = [float(((sum(points[j] for j in [*picked, i]) / (len(picked) + 1)) - mean).norm()) for i in rest]
            picked.append(rest[gaps.index(min(gaps))])
        expected += picked
    assert chosen.tolist() == expected


def test_k_center_covers() -> None:
    points = torch.tensor([[0.0], [0.1], [5.0], [10.0]])
    chosen = k_center(points, None, torch.tensor([3]))
    assert set(chosen.tolist()) == {2, 3, 0}
    repeated = torch.tensor([[0.0], [0.0], [1.0], [0.0]])
    assert sorted(k_center(repeated, None, torch.tensor([4])).tolist()) == [0, 1, 2, 3]


def test_k_center_starts_at_the_mean_and_goes_on_to_the_farthest() -> None:
    points, labels, counts = Draws(4).normal(36, 2), LABELS.repeat(4), [8, 6, 3]
    expected = []
    for index, wanted in enumerate(counts):
        members = [row for row, label in enumerate(labels.tolist()) if label == index]
        mean = points[members].mean(0)
        own = [min(members, key=lambda row, mean=mean: float((points[row] - mean).norm()))]  # type: ignore[misc]
        while len(own) < wanted:
            left = [row for row in members if row not in own]
            own.append(max(left, key=lambda row, own=own: min(float((points[row] - points[c]).norm()) for c in own)))  # type: ignore[misc]
        expected += own
    assert k_center(points, labels, torch.tensor(counts)).tolist() == expected


def test_k_means_gives_centroids_by_class() -> None:
    points = torch.tensor([[0.0], [0.2], [4.0], [4.2], [9.0], [9.0], [9.0], [1.0], [3.0]])
    centroids = k_means(points, LABELS, torch.tensor([2, 1, 1]), Draws(0))
    assert sorted(centroids[:2].flatten().tolist()) == pytest.approx([0.1, 4.1], abs=1e-5)
    assert centroids[2:].flatten().tolist() == pytest.approx([9.0, 2.0])


def test_selection_through_a_task() -> None:
    task = BlobTask()
    assert task.labels is not None
    for kind in ("real", *CORESETS):
        chosen = choose_samples(task, kind, torch.tensor([2, 2, 2]), Draws(0))
        assert task.labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
        assert len(set(chosen.tolist())) == 6
    with pytest.raises(ConfigError, match="got 'best'"):
        choose_samples(task, "best", torch.tensor([2, 2, 2]), Draws(0))


Rule = Callable[[Tensor, Tensor | None, Tensor, Draws], Tensor]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda embedding, labels, counts, draws: torch.arange(5), r"chose \[5, 0, 0\] .* where \[2, 2, 2\] are asked"),
        (lambda embedding, labels, counts, draws: torch.tensor([0, 0, 8, 9, 16, 17]), "different samples"),
        (lambda embedding, labels, counts, draws: torch.tensor([16, 17, 0, 1, 8, 9]), "class after class"),
        (lambda embedding, labels, counts, draws: torch.tensor([0, 1, 8, 9, 16, 99]), "beyond the 24 that there are"),
        (lambda embedding, labels, counts, draws: [0, 1], r"one tensor \(n,\) of int64, got \[0, 1\]"),
    ],
)
def test_a_rule_of_ones_own_is_held_to_what_is_asked_for(
    rule: Rule, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "own", rule)
    assert known_coresets() == (*CORESETS, "own")
    with pytest.raises(ShapeError, match=f"the rule 'own' .*{message}"):
        choose_samples(BlobTask(per_class=8), "own", torch.tensor([2, 2, 2]), Draws(0))


def test_a_rule_of_ones_own_gets_an_embedding_classes_counts_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    task, counts, given = BlobTask(per_class=8), torch.tensor([2, 3, 1]), list[tuple[object, ...]]()

    def own(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
        given.append((embedding.shape, None if labels is None else labels.tolist(), counts.tolist(), draws))
        return herding(embedding, labels, counts)

    layers = task.features
    monkeypatch.setattr(task, "features", lambda state, inputs: (inputs, *layers(state, inputs)))
    monkeypatch.setitem(RULES, "own", own)
    assert torch.equal(choose_samples(task, "own", counts, Draws(0)), choose_samples(task, "herding", counts, Draws(0)))
    assert given == [((24, 8), task.labels.tolist(), counts.tolist(), Draws(0))]
    assert torch.equal(choose_start(task, "own", counts, Draws(0)), choose_start(task, "herding", counts, Draws(0)))
    assert Settings(1, init="own").init == "own"
    assert len(chosen_by("own", Draws(1).normal(9, 2), None, torch.tensor([4]), Draws(0))) == 4
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="got 'own'"):
        Settings(1, init="own")


@pytest.mark.parametrize("kind", ["herding", "k-center"])
def test_of_large_embeddings_one_class_is_held_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, counts = BlobTask(per_class=30), torch.tensor([2, 3, 1])
    network, rows = train_briefly(task, Draws(0), steps=3), list[int]()
    monkeypatch.setattr(coresets, "train_briefly", lambda task, draws, **kinds: network)

    def noted(parts: Iterator[Tensor], n: int) -> Tensor:
        rows.append(n)
        return concatenated(parts, n)

    def both() -> tuple[Tensor, Tensor]:
        return choose_samples(task, kind, counts, Draws(0)), choose_start(task, kind, counts, Draws(0), most=29)

    expected = both()
    monkeypatch.setattr(coresets, "concatenated", noted)
    monkeypatch.setattr(coresets, "EMBEDDED_MOST", 87 * 8 - 1)
    assert all(torch.equal(a, b) for a, b in zip(both(), expected, strict=True))
    assert max(rows) == 30


def test_parts_of_an_embedding_are_not_held_beside_the_whole() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def parts() -> Iterator[Tensor]:
        for index in range(5):
            assert sum(one() is not None for one in alive) <= 1
            part = torch.full((2, 3), float(index))
            alive.append(weakref.ref(part))
            yield part
            del part

    assert concatenated(parts(), 10)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert concatenated(parts(), 2)[0, 0] == 0


def test_a_start_is_chosen_among_drawn_candidates_of_large_classes() -> None:
    task, counts = BlobTask(), torch.tensor([2, 2, 2])
    assert task.labels is not None
    for kind in CORESETS:
        assert torch.equal(choose_start(task, kind, counts, Draws(0)), choose_samples(task, kind, counts, Draws(0)))
    for kind in ("herding", "k-center", "k-means"):
        for draws in (Draws(0), Draws(1)):
            chosen = choose_start(task, kind, counts, draws, most=3)
            assert task.labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
            sizes = torch.tensor([3, 3, 3])
            assert set(chosen.tolist()) <= set(random_subset(task.labels, sizes, draws.fold("candidates")).tolist())
    assert len(choose_start(task, "herding", torch.tensor([5, 2, 2]), Draws(0), most=3)) == 9
    for kind in ("real", "craig"):  # which compare no features
        found = choose_start(task, kind, counts, Draws(0), most=3)
        assert torch.equal(found, choose_samples(task, kind, counts, Draws(0)))


@pytest.mark.parametrize("kind", ["real", "herding"])
def test_small_classes_give_their_samples_repeatedly(kind: str) -> None:
    task, counts = BlobTask(per_class=5), torch.tensor([3, 5, 12])
    found = choose_repeatedly(task, kind, counts, Draws(1)).split(counts.tolist())
    assert found[0].tolist() == choose_start(task, kind, torch.tensor([3, 5, 5]), Draws(1))[:3].tolist()
    assert sorted(found[1].tolist()) == list(range(5, 10))
    assert sorted(found[2][:5].tolist()) == list(range(10, 15))
    assert found[2].tolist() == (3 * found[2][:5].tolist())[:12]
    task.labels = task.num_classes = None
    assert len(choose_repeatedly(task, "real", torch.tensor([20]), Draws(1)).unique()) == 15


def test_noise_needs_no_real_samples() -> None:
    task = BlobTask(per_class=5)
    few, many = (raw_samples(task, ipc, "noise", "hard", Draws(1)) for ipc in (5, 12))
    assert many(Draws(1)).targets.tolist() == [0] * 12 + [1] * 12 + [2] * 12  # type: ignore[union-attr]
    assert len(torch.unique(many.inputs.detach(), dim=0)) == 36
    assert few.stored_bytes() == 15 * (4 * 4 + 1)
    with pytest.raises(DataError, match="36 samples are more than the 15 of the data; lower the budget"):
        raw_samples(task, 12, "real", "hard", Draws(1))


def test_k_means_chooses_real_samples_near_the_centroids() -> None:
    points = torch.tensor([[0.0], [0.2], [0.1], [4.2], [9.0], [9.1], [9.3], [1.0], [3.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    chosen = k_means_nearest(points, labels, torch.tensor([2, 2, 1]), Draws(0))
    assert set(chosen[:2].tolist()) == {2, 3}
    assert len(set(chosen[2:4].tolist())) == 2
    assert chosen[4] in (7, 8)


def test_k_means_chooses_near_the_centroids_of_the_samples_own_class() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [5.0], [8.0], [8.1], [8.2], [9.0], [20.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    chosen = k_means_nearest(points, labels, torch.tensor([1, 2]), Draws(0))
    assert chosen[0] == 2
    assert sorted(chosen[1:].tolist()) in ([5, 8], [6, 8])


def test_a_short_training_takes_steps_of_sgd_with_samples_of_their_own() -> None:
    task = RecordedTask()
    trained = train_briefly(task, Draws(0), steps=3, batch=8)
    assert len({draws.path for draws in task.drawn}) == 3
    state = task.init(Draws(0).fold("init"))
    params = {name: tensor.clone().requires_grad_() for name, tensor in state.params.items()}
    optimizer = torch.optim.SGD(params.values(), lr=0.01, momentum=0.9)
    for draws, batch in [*task.losses]:
        optimizer.zero_grad()
        task.loss(state._replace(params=params), batch, train=True, draws=draws).backward()
        optimizer.step()
    torch.testing.assert_close(trained.params, params)


def test_craig_is_greedy_facility_location_on_last_layer_gradients() -> None:
    residuals, embedding = Draws(1).normal(12, 3).double(), Draws(2).normal(12, 4).double()
    labels = torch.tensor([0] * 7 + [1] * 5)
    chosen, weights = craig(residuals, embedding, labels, torch.tensor([3, 2]), Draws(0))
    gradients = [
        torch.outer(r, torch.cat([h, torch.ones(1, dtype=torch.float64)])).flatten()
        for r, h in zip(residuals, embedding, strict=True)
    ]
    expected: list[int] = []
    counts: list[int] = []
    for label, wanted in ((0, 3), (1, 2)):
        members = [i for i, y in enumerate(labels.tolist()) if y == label]
        gap = {(i, j): float((gradients[i] - gradients[j]).norm()) for i in members for j in members}
        far = max(gap.values())
        picked: list[int] = []
        for _ in range(wanted):
            rest = [j for j in members if j not in picked]
            costs = [sum(min([far] + [gap[i, k] for k in [*picked, j]]) for i in members) for j in rest]
            picked.append(rest[costs.index(min(costs))])
        expected += picked
        nearest = [min(range(wanted), key=lambda k, i=i: gap[i, picked[k]]) for i in members]  # type: ignore[misc]
        counts += [nearest.count(k) for k in range(wanted)]
    assert chosen.tolist() == expected
    assert weights.tolist() == counts
    few, stands_for = craig(residuals, embedding, labels, torch.tensor([3, 2]), Draws(0), most=4)
    assert labels[few].tolist() == [0, 0, 0, 1, 1]
    sizes = torch.bincount(labels).tolist()
    assert [float(part.sum()) for part in stands_for.split([3, 2])] == pytest.approx(sizes)


def test_craig_chooses_no_sample_twice_where_all_are_alike() -> None:
    alike = torch.ones(5, 3)
    chosen, weights = craig(alike, alike, None, torch.tensor([3]), Draws(0))
    assert len(set(chosen.tolist())) == 3
    assert int(weights.sum()) == 5


def test_craigs_samples_weigh_as_many_as_they_stand_for() -> None:
    task = BlobTask()
    batch = coreset(task, "craig", torch.tensor([2, 2, 2]), Draws(0))
    assert float(batch.weight.mean()) == pytest.approx(1)
    assert len(batch.weight.unique()) > 1
    residuals, embedding = last_layer_gradients(task, Draws(0), steps=5)
    assert (residuals.shape, embedding.shape) == ((90, 3), (90, 8))
    torch.testing.assert_close(residuals.sum(1), torch.zeros(90), atol=1e-5, rtol=0)
    task.labels = None
    with pytest.raises(UnsupportedError, match="no classes"):
        last_layer_gradients(task, Draws(0))


def test_an_unknown_start_is_refused_before_a_network_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.coresets.train_briefly", None)
    for choose in (choose_samples, choose_start):
        with pytest.raises(ConfigError, match=r"the start \(init\).*hreding"):
            choose(BlobTask(), "hreding", torch.tensor([1, 1, 1]), Draws(0))
