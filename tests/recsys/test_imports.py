"""Synthetic users as matrices and tables become rows of the task's items."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from mmdistill import evaluate, import_set
from mmdistill.errors import DataError, MmdistillWarning
from mmdistill.recsys import RecsysTask


def users() -> np.ndarray:
    return (np.random.default_rng(0).random((5, 80)) < 0.2).astype(np.float32)


def test_matrices_and_tables(task: RecsysTask, tmp_path: Path) -> None:
    rows = users()
    sparse.save_npz(tmp_path / "users.npz", sparse.csr_array(rows))
    np.savez(tmp_path / "dense.npz", users=rows)
    np.save(tmp_path / "mine.npy", rows)
    torch.save(torch.from_numpy(rows), tmp_path / "mine.pt")
    user, item = np.nonzero(rows)
    names = task.data.item_ids[item]
    pd.DataFrame({"user": user, "item": names}).to_csv(tmp_path / "pairs.csv", index=False)
    table = pd.DataFrame({"user": user, "item": names, "rating": rows[user, item]})
    table.to_csv(tmp_path / "weights.csv", index=False)
    sources = [*sorted(tmp_path.iterdir()), {"users": rows}, {"users": sparse.csr_array(rows)}]
    sources += [rows, torch.from_numpy(rows), sparse.csr_array(rows), table, {"mine": table}, table.astype(float)]
    for source in sources:
        found = import_set(task, source, name="theirs")
        assert torch.equal(torch.as_tensor(found.batch.inputs), torch.from_numpy(rows))
        assert found.batch.targets is found.batch.inputs or torch.equal(
            torch.as_tensor(found.batch.targets), torch.as_tensor(found.batch.inputs)
        )
        assert (found.budget, found.stored_bytes) == (5, rows.sum())
    assert evaluate(task, found, judges=["ease"], n=1, baselines=("random",)).baselines["random"]
    weighted = import_set(task, {"users": 0.5 * rows})
    assert weighted.stored_bytes == 4 * rows.size


def test_columns_of_a_matrix_may_be_in_another_order(task: RecsysTask, tmp_path: Path) -> None:
    rows, order = users(), np.random.default_rng(1).permutation(80)
    np.save(tmp_path / "mine.npy", rows[:, order])
    table = pd.DataFrame({"column": np.arange(80), "item_id": task.data.item_ids[order]})
    table.to_csv(tmp_path / "items.csv", index=False)
    found = import_set(task, [tmp_path / "mine.npy", tmp_path / "items.csv"])
    assert torch.equal(torch.as_tensor(found.batch.inputs), torch.from_numpy(rows))
    table["item_id"] = table["item_id"].astype(str).replace(str(task.data.item_ids[3]), "other")
    table.to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(DataError, match="has the item 'other', which the data do not have"):
        import_set(task, [tmp_path / "mine.npy", tmp_path / "items.csv"])
    table[:5].to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(DataError, match=r"names 5 columns, and the matrix is \(5, 80\)"):
        import_set(task, [tmp_path / "mine.npy", tmp_path / "items.csv"])


def test_a_matrix_counts_before_a_table_of_its_name(task: RecsysTask, tmp_path: Path) -> None:
    rows = users()
    sparse.save_npz(tmp_path / "binary.npz", sparse.csr_array(rows))
    user, item = np.nonzero(rows)
    table = pd.DataFrame({"user": user, "item": task.data.item_ids[item]})
    table.to_csv(tmp_path / "binary.csv", index=False)
    with pytest.warns(MmdistillWarning, match=r"not read: binary.csv, beside the matrix of that name"):
        found = import_set(task, tmp_path)
    assert torch.equal(torch.as_tensor(found.batch.inputs), torch.from_numpy(rows))
    (tmp_path / "binary.csv").rename(tmp_path / "other.csv")
    with pytest.raises(DataError, match="come in one file"):
        import_set(task, tmp_path)


def test_columns_that_are_not_read_are_noted(task: RecsysTask, tmp_path: Path) -> None:
    table = pd.DataFrame({"user": [0], "item": task.data.item_ids[:1], "mood": ["good"]})
    table.to_csv(tmp_path / "pairs.csv", index=False)
    for source in (table, tmp_path / "pairs.csv"):
        with pytest.warns(MmdistillWarning, match="columns that are not read: 'mood'"):
            import_set(task, source)


def test_what_are_no_users_of_these_data_is_refused(task: RecsysTask, tmp_path: Path) -> None:
    rows = users()
    for given, message in (
        (rows[:, :70], r"rows of 80 items, got \(5, 70\)"),
        (2 * rows, "between 0 and 1"),
        (rows * np.nan, "between 0 and 1"),
        (0 * rows, "5 users have no interaction"),
    ):
        with pytest.raises(DataError, match=message):
            import_set(task, {"users": given})
    for held in (b"cut", b""):
        (tmp_path / "users.npz").write_bytes(held)
        with pytest.raises(DataError, match=r"users\.npz cannot be read: it is damaged"):
            import_set(task, tmp_path / "users.npz")
    with (tmp_path / "users.npz").open("wb") as file:
        np.save(file, rows)  # one array under a name of archives
    assert import_set(task, tmp_path / "users.npz").budget == 5
    with pytest.raises(DataError, match="is called users; found a, b"):
        import_set(task, {"a": rows, "b": rows})
    pd.DataFrame({"user": [0], "item": ["none"]}).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(DataError, match="has the item 'none'"):
        import_set(task, tmp_path / "pairs.csv")
    with pytest.raises(DataError, match="the table has the item 'none'"):
        import_set(task, pd.DataFrame({"user": [0], "item": ["none"]}))
    with pytest.raises(DataError, match="come in one file"):
        import_set(task, [tmp_path / "pairs.csv", tmp_path / "pairs.csv"])
