"""Bytes as a budget: the largest set within them, found by building few sets and solving nothing."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from mmdistill.budget import find_budget, largest_within
from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError
from mmdistill.graph import graph_task
from mmdistill.image import image_task
from mmdistill.method import MethodTable, Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.recsys import recsys_task
from mmdistill.registry import get_domain, get_method
from mmdistill.runtime import Draws
from mmdistill.task import Task
from tests.graph.toy import planted_graph
from tests.text.corpus import small_task

MOST = 700


@given(st.integers(0, 500), st.integers(1, 90), st.integers(0, 5), st.integers(1, 40_000), st.integers(1, 9))
def test_the_largest_count_is_found(shared: int, each: int, pairs: int, limit: int, smallest: int) -> None:
    """Something shared, so much a sample, so much a pair of samples; and no more samples than there are."""

    def size(count: int) -> int:
        if count > MOST:
            raise DataError("no more samples")
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
    def refuse(task: Task, budget: int, draws: Draws) -> Parameterization:
        raise AssertionError("solved")

    task, methods, count = found()
    sized = {name: method for name, method in methods.items() if method.sized is not None}
    assert sized
    for name, method in sized.items():
        assert method.solve is not None
        taken = method.solve(task, count, Draws(0)).stored_bytes()
        unsolved = replace(method, solve=refuse)
        assert find_budget(task, unsolved, bytes=taken)[1] == count, name
        assert find_budget(task, unsolved, bytes=taken - 1)[1] == count - 1, name


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("init", ["real", "herding"])
def test_samples_that_follow_real_ones_of_many_sizes_stay_within_the_bytes(init: str, seed: int) -> None:
    limit = 5000
    generator = np.random.default_rng(1)
    users = [generator.choice(800, int(generator.integers(*((3, 8) if u % 2 else (30, 60))))) for u in range(80)]
    rows = np.repeat(np.arange(80), [len(items) for items in users])
    task = recsys_task(csr_matrix((np.ones(len(rows)), (rows, np.concatenate(users))), shape=(80, 800)))
    chosen = get_method(get_domain("recsys"), "distill-cf-binary").with_settings(init=init)
    method, count = find_budget(task, chosen, bytes=limit, seed=seed)
    assert 0 < Distiller(task, method, count, seed=seed).initial().stored_bytes() <= limit


def test_a_closed_form_of_one_size_ends() -> None:
    task, methods, _ = text_methods()
    assert find_budget(task, methods["ridge-exact"], bytes="1MB")[1] == 1


def test_a_storage_that_exceeds_the_bytes_that_it_says_to_fill_is_refused() -> None:
    task = image_task("digits", width=4)
    stored = Storage(
        lambda task, budget, settings, label, draws: raw_samples(task, budget, "real", label, draws), "mine"
    )
    with pytest.raises(ConfigError, match=r"take 2,960 bytes, more than the 2,600 that they may.*fills=True"):
        distill(task, "krr", parameterization=replace(stored, fills=True), bytes=2600, settings={"steps": 1})
    assert distill(task, "dm", parameterization=stored, bytes="20KB", settings={"steps": 1}).budget == 7
