"""Tables by name to which a user's code adds."""

import pytest

from mmdistill.errors import ConfigError
from mmdistill.open_table import OpenTable


def test_names_have_one_spelling_and_entries_of_users_are_known() -> None:
    table = OpenTable({"herding": 1, "k-center": 2}, reserved=("real",))
    table["My_Rule"] = 3
    assert (table["my-rule"], table["MY_RULE"], "my-rule" in table, list(table)) == (
        (3, 3, True, ["herding", "k-center", "my-rule"])
    )
    assert [table.added(name) for name in ("My_Rule", "Herding", "unknown")] == [True, False, False]
    table["herding"] = 4
    assert table.added("herding")
    del table["My_Rule"]
    assert len(table) == 2


def test_names_that_mean_something_else_are_refused() -> None:
    table = OpenTable({"herding": 1}, reserved=("real",))
    for name in ("Real", "ALL", "none", "", "a,b"):
        with pytest.raises(ConfigError, match=f"'{name}' means something else here; choose another name"):
            table[name] = 2
    assert list(table) == ["herding"]
