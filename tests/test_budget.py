"""Bytes as a budget: the largest set within them, found by building few sets and solving nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from mmdistill.budget import GivenBudget, largest_within, method_within_budget
from mmdistill.commands.planning import plan_rows
from mmdistill.config import DistillConfig
from mmdistill.coresets import choose_start
from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError, MmdistillWarning
from mmdistill.evaluate import evaluate
from mmdistill.graph import graph_task
from mmdistill.image import image_task
from mmdistill.method import MethodTable, Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.parameterizations.starts import filled_up
from mmdistill.recsys import recsys_task
from mmdistill.registry import get_domain, get_method
from mmdistill.runtime import Draws
from mmdistill.selections import known_bytes
from mmdistill.settings import InitKind, Settings
from mmdistill.task import Inputs, Task
from tests.graph.toy import planted_graph
from tests.text.corpus import small_task

MOST = 700


@given(st.integers(0, 500), st.integers(1, 90), st.integers(0, 5), st.integers(1, 40_000), st.integers(1, 9))
def test_the_largest_count_is_found(shared: int, each: int, pairs: int, limit: int, smallest: int) -> None:
    """Something shared, so much a sample, so much a pair of samples; and no more samples than there are."""

    def size(count: int) -> int:
        if count > MOST:
            raise (DataError, ConfigError)[count % 2]("no more samples")
        return shared + each * count + pairs * count * (count - 1) // 2

    limit = max(limit, size(smallest))
    assert largest_within(size, smallest, limit) == max(n for n in range(smallest, MOST + 1) if size(n) <= limit)


def test_few_sets_are_built() -> None:
    built: list[int] = []

    def size(count: int) -> int:
        built.append(count)
        return 100 + 17 * count

    assert largest_within(size, 1, 100 + 17 * 5000) == 5000
    assert len(built) <= 4


def test_a_set_that_does_not_grow_takes_the_smallest_budget() -> None:
    assert largest_within(lambda count: 30, 2, 10**9) == 2


def text_methods() -> tuple[Task, MethodTable, int]:
    from mmdistill.text.methods import METHODS

    return small_task(), METHODS, 4


def graph_methods() -> tuple[Task, MethodTable, int]:
    from mmdistill.graph.methods import METHODS

    return graph_task(planted_graph()), METHODS, 9


@pytest.mark.parametrize("found", [text_methods, graph_methods])
def test_closed_forms_are_sized_without_solving(found: Callable[[], tuple[Task, MethodTable, int]]) -> None:
    def refuse(task: Task, budget: int, settings: Settings, draws: Draws) -> Parameterization:
        raise AssertionError("solved")

    task, methods, count = found()
    sized = {name: method for name, method in methods.items() if method.sized is not None}
    assert sized
    for name, method in sized.items():
        assert method.solve is not None
        taken = method.solve(task, count, method.settings(count), Draws(0)).stored_bytes()
        unsolved = replace(method, solve=refuse)
        assert method_within_budget(task, unsolved, GivenBudget(bytes=taken))[1] == count, name
        assert method_within_budget(task, unsolved, GivenBudget(bytes=taken - 1))[1] == count - 1, name


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("init", ["real", "herding"])
def test_samples_that_follow_real_ones_of_many_sizes_stay_within_the_bytes(init: str, seed: int) -> None:
    limit = 5000
    generator = np.random.default_rng(1)
    users = [generator.choice(800, int(generator.integers(*((3, 8) if u % 2 else (30, 60))))) for u in range(80)]
    rows = np.repeat(np.arange(80), [len(items) for items in users])
    task = recsys_task(csr_matrix((np.ones(len(rows)), (rows, np.concatenate(users))), shape=(80, 800)))
    chosen = get_method(get_domain("recsys"), "distill-cf-binary").with_settings(init=init)
    method, count = method_within_budget(task, chosen, GivenBudget(bytes=limit), seed=seed)
    assert 0 < Distiller(task, method, count, seed=seed).initial().stored_bytes() <= limit


def test_samples_that_must_start_from_centroids_are_sized_with_them() -> None:
    task, methods, _ = text_methods()
    made = Distiller(task, methods["dm"], 3).initial().stored_bytes()
    assert method_within_budget(task, methods["dm"], GivenBudget(bytes=made))[1] == 3


def test_a_closed_form_of_one_size_ends() -> None:
    task, methods, _ = text_methods()
    assert method_within_budget(task, methods["ridge-exact"], GivenBudget(bytes="1MB"))[1] == 1


def test_a_storage_that_exceeds_the_bytes_that_it_says_to_fill_is_refused() -> None:
    task = image_task("digits", width=4)
    stored = Storage(
        lambda task, budget, settings, label, draws: raw_samples(task, budget, "real", label, draws), "mine"
    )
    with pytest.raises(ConfigError, match=r"take 2,960 bytes, more than the 2,600 that they may.*fills=True"):
        distill(task, "krr", parameterization=replace(stored, fills=True), bytes=2600, settings={"steps": 1})
    assert distill(task, "dm", parameterization=stored, bytes="20KB", settings={"steps": 1}).budget == 7


@pytest.fixture(scope="module")
def long_tail() -> Task:
    labels = torch.tensor([0] * 2 + [1] * 9 + [2] * 30)
    images = Draws(0).uniform(len(labels), 1, 8, 8)
    return image_task((images, labels), test=(images, labels), width=4, class_names=("rare", "few", "many"))


def test_bytes_that_a_small_class_leaves_unused_are_said(long_tail: Task, caplog: pytest.LogCaptureFixture) -> None:
    dm = get_method(get_domain("image"), "dm")
    assert method_within_budget(long_tail, dm, GivenBudget(bytes="10KB"))[1] == 12
    assert not caplog.records
    assert method_within_budget(long_tail, dm, GivenBudget(bytes="20KB"))[1] == 13  # no more than the 41 real samples
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "the set takes 10,023 of 20,000 bytes (ipc 13): 42 samples are more than the 41 of the data; samples "
        "that start from noise need no real ones: --init noise (settings={'init': 'noise'} in Python)"
    )
    caplog.clear()
    assert method_within_budget(long_tail, dm.with_settings(init="noise"), GivenBudget(bytes="20KB"))[1] == 25
    assert method_within_budget(long_tail, dm, GivenBudget(bytes=771))[1] == 1
    tiled = dm.stored_as(get_domain("image").parameterizations["upsample-2"])
    assert method_within_budget(long_tail, tiled, GivenBudget(bytes="10KB"))[1] > 9
    assert not caplog.records
    assert method_within_budget(long_tail, get_method(get_domain("image"), "ld"), GivenBudget(bytes="10KB"))[1] == 2
    assert caplog.records[0].getMessage().endswith("fewer than the 3 asked for")  # whose samples stay what they are


@pytest.mark.parametrize("name", ["ld", "random-soft", "rded"])
def test_samples_that_stay_real_are_no_more_than_a_class_has(long_tail: Task, name: str) -> None:
    with pytest.raises(DataError, match=r"rare has 2 samples, fewer than the 3 asked for; lower the budget$"):
        distill(long_tail, name, ipc=3, settings={"steps": 1} if name == "ld" else None)


@pytest.mark.parametrize("name", ["dm", "krr"])
def test_more_samples_than_the_data_have_can_start_from_noise(long_tail: Task, name: str) -> None:
    with pytest.raises(
        DataError, match=r"42 samples are more than the 41 of the data; lower .*, or start from noise by"
    ):
        distill(long_tail, name, ipc=14, settings={"steps": 1})
    assert distill(long_tail, name, ipc=14, settings={"steps": 1, "init": "noise"}).budget == 14


def test_a_dry_run_says_what_starts_from_none(long_tail: Task, tmp_path: Path) -> None:
    config = DistillConfig(data="mine", method="dm", ipc=14, out=str(tmp_path / "run"))
    with pytest.raises(
        DataError,
        match=r"42 samples are more than the 41 of the data; lower the budget, or start from noise by --init noise",
    ):
        plan_rows(config, long_tail, get_method(get_domain("image"), "dm"), 14)


COPIED = "class rare has 2 samples, fewer than the 4 asked for: the rest start as copies with a little noise"


@pytest.mark.parametrize("init", ["real", "herding", "k-center", "k-means", "craig"])
def test_small_classes_start_from_copies_that_differ(long_tail: Task, init: InitKind) -> None:
    counts = torch.tensor([4, 4, 4])

    def larger(present: torch.Tensor) -> Inputs:
        chosen = long_tail.select(choose_start(long_tail, init, present, Draws(3))).inputs
        assert isinstance(chosen, torch.Tensor)
        return 100 * chosen

    with pytest.warns(MmdistillWarning, match=COPIED):
        made = raw_samples(long_tail, 4, init, "hard", Draws(3))
    with pytest.warns(MmdistillWarning, match=COPIED):
        scaled = filled_up(long_tail, larger, counts, Draws(3))
    torch.testing.assert_close(scaled, 100 * made.inputs.detach(), rtol=1e-4, atol=1e-3)
    rare, few = made.inputs.detach()[:4].flatten(1), made.inputs.detach()[4:8].flatten(1)
    real = long_tail.select(torch.arange(11)).inputs
    assert isinstance(real, torch.Tensor)
    apart = torch.cdist(rare, real[:2].flatten(1))
    assert apart.argmin(1).bincount().tolist() == [2, 2]
    assert (apart[:2].amin(1) == 0).all()  # the real ones come first, as they are
    expected = 0.1 * float(made.inputs.detach()[[0, 1, *range(4, 12)]].std()) * 8  # of 64 pixels
    assert apart[2:].amin(1).tolist() == pytest.approx([expected] * 2, rel=0.3)
    assert (torch.cdist(few, real[2:].flatten(1)).amin(1) == 0).all()
    assert made(Draws(0)).targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # type: ignore[union-attr]


def test_classes_of_enough_samples_start_as_they_did(long_tail: Task) -> None:
    chosen = choose_start(long_tail, "real", torch.tensor([2, 2, 2]), Draws(3))
    assert torch.equal(raw_samples(long_tail, 2, "real", "hard", Draws(3)).inputs, long_tail.select(chosen).inputs)  # type: ignore[arg-type]


def test_small_classes_stand_beside_baselines_of_all_that_they_have(long_tail: Task) -> None:
    with pytest.warns(MmdistillWarning, match=COPIED):
        made = distill(long_tail, "dm", ipc=4, settings={"steps": 1})
    found = evaluate(long_tail, made, n=1, judges=["ntk"], baselines=["random", "herding", "whole"])
    assert not found.failures
    note = "class rare has 2 samples, fewer than the 4 at equal count, and gives all of them"
    assert [note in found.baselines[name][0].notes for name in ("random", "herding", "whole")] == [True, True, False]
    assert note not in found.headline().notes
    assert known_bytes(long_tail, 4)["random"] == -(-10 * long_tail.describe().stored_bytes // 41)
