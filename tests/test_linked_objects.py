"""Objectives may hold objects that refer to one another, whatever they are: each is described in time and space."""

import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.described import described_value, has_content

networkx = pytest.importorskip("networkx")
pandas = pytest.importorskip("pandas")


class Linked:
    """An object that refers to others."""

    def __init__(self, linked: object = None) -> None:
        self.linked = linked


def chained(length: int, last: object = None) -> Linked:
    chain = Linked(last)
    for _ in range(length):
        chain = Linked(chain)
    return chain


def of_all(number: int) -> Linked:
    members = [Linked() for _ in range(number)]
    for member in members:
        member.linked = members
    return members[0]


def doubled(depth: int) -> Linked:
    pair = Linked()
    for _ in range(depth):
        pair = Linked([pair, pair])
    return pair


def dispatched(number: int) -> Callable[[str, int], int]:
    table: dict[str, Callable[[str, int], int]] = {}

    def made() -> Callable[[str, int], int]:
        return lambda name, n: table[name](name, n - 1) if n else 0

    table |= {str(place): made() for place in range(number)}
    return table["0"]


def itself() -> list[object]:
    holder: list[object] = []
    holder.extend((holder, holder))
    return holder


def enclosing(value: object) -> Callable[[], object]:
    return lambda: value


def mapping_of_itself() -> dict[str, object]:
    holder: dict[str, object] = {}
    holder["held"] = holder
    return holder


def doubled_lists(depth: int) -> list[object]:
    pair: list[object] = [1]
    for _ in range(depth):
        pair = [pair, pair]
    return pair


def graph_in_use() -> object:
    graph = networkx.path_graph(4)
    return graph, graph.nodes, graph.adj, graph.edges


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


LINKED: dict[str, Callable[[], object]] = {
    "graph of networkx": graph_in_use,
    "chain": lambda: chained(400),
    "each holds all": lambda: of_all(30),
    "each is held twice": lambda: doubled(25),
    "functions in a table": lambda: dispatched(30),
    "list of itself": itself,
    "list of itself in a function": lambda: enclosing(itself()),
    "mapping of itself in a function": lambda: enclosing(mapping_of_itself()),
    "each list is held twice in a function": lambda: enclosing(doubled_lists(25)),
    "meta tensor": lambda: torch.ones(3, device="meta"),
    "nested tensor": lambda: nested(torch.strided),
    "jagged tensor": lambda: nested(torch.jagged),
    "list of many numbers": lambda: [float(number) for number in range(500_000)],
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", LINKED.values(), ids=LINKED)
def test_linked_and_long_values_are_described_alike_in_short(make: Callable[[], object]) -> None:
    began = time.perf_counter()
    text = json.dumps(described_value(SimpleNamespace(held=make())))
    assert time.perf_counter() - began < 5
    assert len(text) < 50_000
    assert text == json.dumps(described_value(SimpleNamespace(held=make())))
    assert "0x" not in text


def cached(power: int) -> Callable[[float], float]:
    if power == 1:

        @lru_cache
        def computed(x: float) -> float:
            return x

    else:

        @lru_cache
        def computed(x: float) -> float:
            return x * x

    return computed


def of_class(value: object) -> object:
    class Setting:
        held = value

    return Setting()


def cached_by_class(power: int) -> object:
    class Setting:
        computed = cached(power)

    return Setting()


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held


def sparse_matrix(value: float) -> object:
    return pytest.importorskip("scipy.sparse").csr_matrix(np.array([[0.0, value]]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chained(5, 1), chained(5, 2)),
        (torch.ones(3, device="meta"), torch.ones(4, device="meta")),
        (list(range(50_000)), [*range(49_999), 0]),
        (pandas.DataFrame({"a": [1, 2]}), pandas.DataFrame({"a": [1, 3]})),
        (Slotted(1), Slotted(2)),
        (pandas.Series([1, 2]), pandas.Series([1, 3])),
        (pandas.Series([1, 2]), pandas.Series([1, 2], name="a")),
        (pandas.Index([1, 2]), pandas.Index([1, 3])),
        (pandas.DataFrame({"a": [[1], [2]]}), pandas.DataFrame({"a": [[1], [3]]})),
        (sparse_matrix(1.0), sparse_matrix(2.0)),
        (enclosing(np.int64(1)), enclosing(np.int64(2))),
        (enclosing(Path("a")), enclosing(Path("b"))),
        (enclosing(torch.float32), enclosing(torch.float16)),
        (enclosing([np.ones(1)]), enclosing([np.zeros(1)])),
        (enclosing(partial(max, np.ones(1))), enclosing(partial(max, np.zeros(1)))),
        (cached(1), cached(2)),
        (enclosing(cached(1)), enclosing(cached(2))),
        (cached_by_class(1), cached_by_class(2)),
        (of_class([1]), of_class([2])),
        (of_class({"a": 1}), of_class({"a": 2})),
        (of_class(np.ones(1)), of_class(np.zeros(1))),
        (of_class(torch.ones(1)), of_class(torch.zeros(1))),
        (type(of_class([1])), type(of_class([2]))),
        (date(2020, 1, 1), date(2021, 1, 1)),
        (timedelta(1), timedelta(2)),
        (Decimal(1), Decimal(2)),
        (re.compile("a"), re.compile("b")),
        (slice(1), slice(2)),
        (b"a", b"b"),
        (deque([1]), deque([2])),
    ],
)
def test_other_values_are_told_apart(one: Any, other: Any) -> None:
    assert described_value(one) != described_value(other)


def test_objects_of_installed_packages_are_only_named() -> None:
    assert described_value(networkx.path_graph(3)) == "Graph"
    assert described_value(np.random.default_rng(0)) == "Generator"
    assert described_value(np.mean) == "mean"


class Caching:
    """An object that keeps what it computes."""

    @cached_property
    def computed(self) -> int:
        return 1


def test_what_a_property_keeps_is_not_what_an_object_is() -> None:
    used = Caching()
    assert used.computed
    assert described_value(used) == described_value(Caching())


def test_a_description_leaves_room_on_the_stack() -> None:
    limit, depth = sys.getrecursionlimit(), 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + 250)
    try:
        described_value(chained(400))
    finally:
        sys.setrecursionlimit(limit)


def test_a_table_is_read_only_where_it_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the table was read")

    monkeypatch.setattr(pandas.util, "hash_pandas_object", read)
    monkeypatch.setattr(pandas.DataFrame, "to_csv", read)
    table = pandas.DataFrame({"a": [1, 2]})
    assert has_content(table)
    with pytest.raises(AssertionError, match="the table was read"):
        described_value(table)
