import gzip
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from mmdistill.errors import ConfigError, DataError
from mmdistill.recsys import DOMAIN, load_interactions, recsys_task
from mmdistill.recsys.sources import resolve
from mmdistill.recsys.splits import SPLITS
from tests.recsys.conftest import ML1M

RNG = np.random.default_rng(0)
ROWS = [
    (user, int(item), 1 + (user + int(item)) % 5)
    for user in range(1, 7)
    for item in 10 + RNG.choice(9, 6, replace=False)
]


def pairs(data):
    found = set()
    for part in SPLITS:
        entries = data.parts[part].tocoo()
        users, items = entries.coords
        found |= {(str(data.user_ids[u]), str(data.item_ids[i])) for u, i in zip(users, items, strict=True)}
    return found


EXPECTED = {(str(user), str(item)) for user, item, _ in ROWS}


def write_csv(path, rows=ROWS, header="user_id,item_id,rating", separator=","):
    lines = [header] if header else []
    text = "\n".join(lines + [separator.join(map(str, row)) for row in rows]) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("a.csv", "user_id,item_id,rating", ","),
        ("a.csv.gz", "userId,movieId,rating", ","),
        ("a.tsv", "user\titem\tscore", "\t"),
        ("a.txt", "uid;iid;stars", ";"),
        ("a.inter", "user_id:token\titem_id:token\trating:float", "\t"),
        ("ratings.dat", None, "::"),
        ("u.data", None, "\t"),
    ],
)
def test_reads_published_layouts(tmp_path, name, header, separator):
    path = write_csv(
        tmp_path / name, [(*row, 978300760) for row in ROWS] if header is None else ROWS, header, separator
    )
    data = load_interactions(path)
    assert pairs(data) == EXPECTED
    assert DOMAIN.accepts(path)
    assert DOMAIN.accepts(tmp_path) or (name.startswith("a.") and not name.endswith(".inter"))
    assert data.item_ids.dtype == np.int64


def test_reads_matrices_and_tables(tmp_path):
    matrix = sparse.coo_array(([r for *_, r in ROWS], ([u for u, *_ in ROWS], [i for _, i, _ in ROWS])))
    path = tmp_path / "m.npz"
    sparse.save_npz(path, matrix.tocsr())
    assert DOMAIN.accepts(path)
    loud = tmp_path / "LOUD.NPZ"
    loud.write_bytes(path.read_bytes())
    assert DOMAIN.accepts(loud)
    dense = matrix.toarray().astype(np.float32)
    frame = pd.DataFrame(ROWS, columns=["user", "item", "rating"])
    for source in (path, loud, matrix, matrix.tocsc(), dense, torch.from_numpy(dense), frame):
        data = load_interactions(source)
        assert pairs(data) == EXPECTED
    counts = load_interactions(matrix).counts
    assert counts["short_users"] == 1  # row 0 is empty
    assert counts["unused_items"] == 10 + 9 - len({i for _, i, _ in ROWS})


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:Sparse invariant checks")  # torch 2.11
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_are_never_dense(layout):
    # As a dense matrix, these entries would take 4 TB.
    users, items = torch.arange(30) // 10 * 400_000, torch.arange(30) % 10 * 100_000
    place, shape = torch.stack([users, items]), (1_000_000, 1_000_000)
    matrix = torch.sparse_coo_tensor(place, torch.ones(30), shape, check_invariants=True)
    data = load_interactions(matrix.to_sparse(layout=layout))
    assert (data.num_users, data.num_items) == (3, 10)


def test_random_split_is_disjoint_seeded_and_leaves_a_test_item():
    rng = np.random.default_rng(1)
    matrix = (rng.random((50, 60)) < 0.5).astype(np.float32)
    data = load_interactions(matrix, seed=1)
    train, valid, test = (data.parts[part].toarray() for part in SPLITS)
    assert ((train + valid + test) <= 1).all()
    again, other = load_interactions(matrix, seed=1), load_interactions(matrix, seed=2)
    assert (again.parts["test"].toarray() == test).all()
    assert (other.parts["test"].toarray() != test).any()
    assert data.fingerprint == again.fingerprint != other.fingerprint
    parts = {**data.parts, "valid": data.parts["test"], "test": data.parts["valid"]}
    swapped = replace(data, parts=parts)
    assert swapped.fingerprint != data.fingerprint  # since validation chooses the step
    assert swapped.test_fingerprint not in (data.test_fingerprint, swapped.fingerprint)
    assert replace(data, item_ids=data.item_ids + 1).fingerprint != data.fingerprint
    values = data.parts["train"]
    of_next = values.indptr.copy()
    of_next[1] -= 1  # the first user's last interaction is the second's
    moved = sparse.csr_array((values.data, values.indices, of_next), shape=values.shape)
    assert replace(data, parts={**data.parts, "train": moved}).fingerprint != data.fingerprint


@pytest.mark.parametrize("count", [*range(3, 60), 399, 2314])
def test_a_random_split_has_the_sizes_of_distill_cf_and_validates_each_user(count):
    first, second = int(0.8 * count), int(0.9 * count)  # as its code divides a shuffled list, whose first one tests too
    published = (first - 1, second - first, count - second + 1)
    data = load_interactions(np.ones((3, count)))
    sizes = np.stack([data.parts[part].sum(1) for part in SPLITS], 1)
    expected = published if count > 5 else (count - 2, 1, 1)
    np.testing.assert_array_equal(sizes, [expected] * 3)
    assert sizes.sum() == 3 * count


def test_splits_by_time_and_of_named_rows_hold_a_tenth():
    count = 29
    rows = pd.DataFrame({"user": 0, "item": range(count), "time": range(count)})
    timed = load_interactions(rows, split_by="time")
    assert [timed.lengths(part)[0] for part in SPLITS] == [25, 2, 2]
    named = load_interactions(rows.assign(split=["train"] * (count - 4) + ["test"] * 4))
    assert [named.lengths(part)[0] for part in SPLITS] == [23, 2, 4]


def test_text_ids_are_kept_as_written(tmp_path):
    rows = [(f"u{u}", f"0{i}", 1) for u, i, _ in ROWS]
    data = load_interactions(write_csv(tmp_path / "a.csv", rows))
    assert set(data.item_ids) == {f"0{i}" for _, i, _ in ROWS}


def test_ids_of_mixed_types_are_one_id_where_they_read_alike():
    users = [str(user) if row % 2 else user for row, user in enumerate(np.repeat(np.arange(5), 8))]
    data = load_interactions(pd.DataFrame({"user": users, "item": np.tile(np.arange(8), 5)}))
    assert data.num_users == 5
    assert data.user_ids.tolist() == [0, 1, 2, 3, 4]


def test_ids_that_are_lists_are_refused():
    with pytest.raises(DataError, match="user ids that are no numbers or texts"):
        load_interactions(pd.DataFrame({"user": [[1], [2]], "item": [1, 2]}))


def test_half_precision_is_read():
    rows = (torch.rand(12, 9, generator=torch.Generator().manual_seed(0)) > 0.3).to(torch.bfloat16)
    assert load_interactions(rows).fingerprint == load_interactions(rows.float()).fingerprint


def test_given_split_is_used_and_overlaps_are_removed_and_counted(tmp_path):
    learn = ["train", "Train", "training", "train"]
    named = [*learn, "val", "TEST", *learn, "dev", "testing"]
    rows = [(u, i, 1, named[k % 12]) for k, (u, i, _) in enumerate(ROWS)]
    first = next(row for row in rows if row[3] == "train")
    rows += [(*first[:3], "test"), *[(*first[:3], "train")] * 2]
    data = load_interactions(write_csv(tmp_path / "a.csv", rows, "user,item,rating,split"))
    assert data.notes == ()
    assert [data.parts[part].nnz for part in SPLITS] == [24, 6, 6]
    assert data.counts["overlaps"] == 1
    assert data.counts["duplicates"] == 2
    assert data.counts["cold_items"] == (data.item_counts() == 0).sum() < data.num_items / 2


def test_a_column_of_folds_is_not_read_as_splits():
    frame = pd.DataFrame(ROWS, columns=["user", "item", "rating"])
    data = load_interactions(frame.assign(fold=range(len(frame))))
    fold, split = data.notes
    assert fold == "the column 'fold' names no splits (train, valid, test) and is not read"
    assert split.endswith("at random and not by time, seed 0")
    assert recsys_task(data).describe().preprocessing["splits"] == list(data.notes)
    assert recsys_task(frame).describe().preprocessing["splits"] == [split]
    named = ["test" if k % 6 == 0 else "train" for k in range(len(frame))]
    assert split not in load_interactions(frame.assign(fold=range(len(frame)), subset=named)).notes


def test_validation_is_taken_from_training_where_it_is_missing():
    rows = [(u, i, "test" if k % 6 == 0 else "train") for k, (u, i, _) in enumerate(ROWS)]
    data = load_interactions(pd.DataFrame(rows, columns=["user", "item", "split"]))
    assert [data.parts[part].nnz for part in SPLITS] == [24, 6, 6]


def test_duplicates_are_removed_and_counted():
    data = load_interactions(pd.DataFrame(ROWS + ROWS[:4], columns=["user", "item", "rating"]))
    assert data.counts["duplicates"] == 4
    assert pairs(data) == EXPECTED


def test_ratings_are_binarised_above_zero_or_from_a_threshold():
    rows = [*ROWS, (1, 99, 0), (2, 98, -1)]
    data = load_interactions(pd.DataFrame(rows, columns=["user", "item", "rating"]))
    assert data.counts["not_positive"] == 2
    assert pairs(data) == EXPECTED
    assert data.counts["unused_items"] == 2
    picky = load_interactions(pd.DataFrame(rows, columns=["user", "item", "rating"]), min_rating=2)
    assert sum(part.nnz for part in picky.parts.values()) == sum(r >= 2 for *_, r in ROWS)
    assert set(np.unique(picky.rows([0]).numpy())) == {0.0, 1.0}


def test_users_with_few_interactions_are_dropped_and_counted():
    rows = [*ROWS, (77, 10, 5), (77, 11, 5)]
    data = load_interactions(pd.DataFrame(rows, columns=["user", "item", "rating"]))
    assert data.counts["short_users"] == 1
    assert 77 not in data.user_ids
    with pytest.raises(DataError, match="nobody is left"):
        load_interactions(pd.DataFrame(ROWS[:2], columns=["user", "item", "rating"]))
    with pytest.raises(ConfigError, match="at least 3"):
        load_interactions(pd.DataFrame(rows, columns=["user", "item", "rating"]), min_interactions=2)
    with pytest.raises(ConfigError, match="at least 1"):
        load_interactions(pd.DataFrame(rows, columns=["user", "item", "rating"]), min_interactions=0)


def test_a_given_split_keeps_users_of_few_interactions():
    rows = [(*row[:2], "train") for row in ROWS] + [(1, 50, "test"), (77, 10, "train"), (77, 11, "test")]
    frame = pd.DataFrame([*rows, (78, 10, "train")], columns=["user", "item", "split"])
    data = load_interactions(frame)
    assert {77, 78} <= set(data.user_ids)
    assert data.counts["short_users"] == 0
    fewer = load_interactions(frame, min_interactions=2)
    assert 77 in fewer.user_ids
    assert 78 not in fewer.user_ids
    assert 77 not in load_interactions(frame, split_by="random").user_ids


def test_users_without_training_rows_are_dropped():
    rows = [(*row[:2], "train") for row in ROWS] + [(99, i, "test") for i in range(10, 14)] + [(1, 50, "test")]
    data = load_interactions(pd.DataFrame(rows, columns=["user", "item", "split"]))
    assert data.counts["untrained_users"] == 1
    assert data.counts["cold_items"] >= 1  # item 50 is never trained on


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("user_id,item_id,rating\n", "has no interactions"),
        ("user_id,rating\n1,2\n", "no item column"),
        ("item,rating\n1,2\n", "no user column"),
        ("user,item,rating\n1,2,5\n1,3,good\n", "row 2 .* 'good'"),
        ("user,item,rating\n1,2,5\n1,3,\n", "row 2"),
        ("user,item,rating\n1,2,5\n1,3,inf\n", "finite"),
        ("user,item,rating\n1,2,5\nnan,3,1\n", "row 2 .* no user id"),
        ("user,item,rating\n1,,5\n", "no item id"),
        ("user,item,rating\n1,2,-1\n1,3,0\n1,4,-5\n", "nobody likes anything"),
        ("user,item,split\n1,2,train\n1,3,trian\n1,4,test\n", "'trian'"),
        ("user,item,split\n1,2,train\n1,3,train\n1,4,valid\n", "needs both train and test"),
        ("user,item,split\n1,2,train\n1,3,\n1,4,test\n", "row 2"),
        ("user,item\n1,2,3,4\n1,2\n", "cannot be read|no interactions|no user"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_interactions(path)


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no file"):
        load_interactions(tmp_path / "missing.csv")
    with pytest.raises(DataError, match="no file"):
        load_interactions(tmp_path / "missing.npz")
    with pytest.raises(DataError, match="has no interactions: expected one of"):
        load_interactions(tmp_path)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"user,item\n" + b"1,2\n" * 10000)[:60])
    with pytest.raises(DataError, match="cannot be read"):
        load_interactions(tmp_path / "cut.csv.gz")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(DataError, match="UTF-8"):
        load_interactions(tmp_path / "binary.csv")
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n5::6\n")
    with pytest.raises(DataError, match="row 2"):
        load_interactions(tmp_path / "ratings.dat")
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="save_npz"):
        load_interactions(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", a=np.ones(3))
    with pytest.raises(DataError, match="save_npz"):
        load_interactions(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", format=np.array("csr"), shape=np.array([object(), 2]), data=np.array([object()]))
    with pytest.raises(DataError, match="damaged"):
        load_interactions(tmp_path / "z.npz")
    odd = {"indices": np.array([0, 9]), "indptr": np.array([0, 1, 2]), "shape": np.array([2, 3])}
    np.savez(tmp_path / "o.npz", format=b"csr", data=np.ones(2), **odd)
    with pytest.raises(DataError, match="damaged"):
        load_interactions(tmp_path / "o.npz")
    (tmp_path / "latin.csv").write_bytes("user,item\nü,1\n".encode("latin-1"))
    for name in ("latin.csv", "x.npz", "o.npz"):  # so that the error is one about interactions
        assert DOMAIN.accepts(tmp_path / name)
    with pytest.raises(DataError, match="not UTF-8 throughout: line 2 holds"):
        load_interactions(tmp_path / "latin.csv")
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    with pytest.raises(DataError, match="unpack the MovieLens archive"):
        load_interactions("ml-1m")
    with pytest.raises(ConfigError, match="did you mean 'ml-1m'"):
        load_interactions("ml-1n")


def test_names_resolve_under_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    (tmp_path / "ml-1m").mkdir()
    path = write_csv(tmp_path / "ml-1m" / "interactions.csv")
    assert resolve("ML_1M") == {"all": path}
    (tmp_path / "two").mkdir()
    for name in ("a.inter", "b.inter"):
        (tmp_path / "two" / name).write_text("x")
    with pytest.raises(DataError, match=r"2 \.inter files"):
        resolve(tmp_path / "two")
    inner = tmp_path / "ml-20m" / "ml-20m"
    inner.mkdir(parents=True)
    path = write_csv(inner / "ratings.csv")
    assert resolve("ml-20m") == {"all": path}


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((4, 5)), "has no interactions"),
        (np.full((4, 5), np.nan), "NaN"),
        (-np.ones((4, 5)), "nobody likes anything"),
        (np.ones(5), "users x items"),
        (np.array([["a", "b"]]), "matrix of numbers"),
        (sparse.csr_array(np.ones((2, 3)) * 1j), "matrix of numbers, .* got complex128"),
        (np.ones((0, 5)), "shape"),
        (sparse.csr_array((np.ones(2), np.array([0, 9]), np.array([0, 1, 2])), shape=(2, 3)), "damaged"),
    ],
)
def test_bad_matrices(matrix, message):
    with pytest.raises(DataError, match=message):
        load_interactions(matrix)


def test_other_files_are_not_taken_for_interactions(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nhello,1\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "i.png").write_bytes(b"x")
    for path in (tmp_path / "t.csv", tmp_path / "empty.csv", tmp_path / "i.png", tmp_path):
        assert not DOMAIN.accepts(path)


@pytest.mark.data
@pytest.mark.skipif(not ML1M.exists(), reason="ml-1m/interactions.csv.gz is not under MMDISTILL_DATA")
def test_ml1m_has_its_published_size():
    data = load_interactions("ml-1m")
    assert (data.num_users, data.num_items) == (6040, 3706)
    assert [data.parts[part].nnz for part in SPLITS] == [791_718, 99_692, 108_799]
    assert data.notes == ()
    assert not any(data.counts[name] for name in ("duplicates", "overlaps", "short_users"))


def test_a_table_of_interactions_is_no_matrix():
    table = np.array([(user, item, 1 + item % 5, 10**9 + item) for user in range(60) for item in range(user % 7, 40)])
    for columns in (2, 3, 4):
        for given in (table[:, :columns], torch.from_numpy(table[:, :columns]), table[:, :columns].tolist()):
            with pytest.raises(DataError, match="look like a table of \\(user, item, rating, time\\)"):
                load_interactions(given)
    with pytest.raises(DataError, match="got dict"):
        load_interactions({"user": [1], "item": [2]})


def test_tables_of_polars_and_pyarrow_are_read_as_those_of_pandas():
    columns = dict(zip(("user", "item", "rating"), map(list, zip(*ROWS, strict=True)), strict=True))
    wanted = load_interactions(pd.DataFrame(columns))
    kind = SimpleNamespace(is_integer=lambda: True)
    polars_columns = {
        name: SimpleNamespace(dtype=kind, null_count=lambda: 0, to_list=values.copy) for name, values in columns.items()
    }
    polars = SimpleNamespace(to_dicts=None, to_dict=lambda: polars_columns)
    arrow = SimpleNamespace(to_pydict=None, to_pandas=lambda **options: pd.DataFrame(columns))
    for table in (polars, arrow):
        found = load_interactions(table)
        assert (found.name, found.fingerprint) == ("table", wanted.fingerprint)


def test_users_and_items_may_come_as_a_tuple():
    users, items, ratings = (np.array(column) for column in zip(*ROWS, strict=True))
    wanted = load_interactions(pd.DataFrame({"user": users, "item": items}))
    for pair in (
        (users, items),
        (users.tolist(), tuple(items.tolist())),
        (torch.from_numpy(users), torch.from_numpy(items).float()),
        (pd.Series(users), pd.Series(items, index=np.arange(len(items))[::-1])),  # rows by place, not by index
        tuple(np.stack([users, items])),
    ):
        found = recsys_task(pair).data
        assert (found.name, found.fingerprint) == ("table", wanted.fingerprint)
    rated = load_interactions(pd.DataFrame(ROWS, columns=["user", "item", "rating"]), min_rating=3)
    for table in ((users, items, ratings), tuple(torch.from_numpy(np.array(ROWS)).T), (users, items, ratings, items)):
        assert load_interactions(table, min_rating=3).fingerprint == rated.fingerprint
    timed = load_interactions((users, items, ratings, items), split_by="time").parts["test"].tocoo()
    latest = pd.DataFrame(ROWS, columns=["user", "item", "rating"]).groupby("user")["item"].max()
    assert timed.coords[1].tolist() == [int(item) - 10 for item in latest]
    names = ([f"user {user}" for user in users], [f"item {item}" for item in items])
    assert load_interactions(names).user_ids[0] == "user 1"


def test_a_list_of_tuples_is_a_table():
    table = pd.DataFrame(ROWS, columns=["user", "item", "rating"]).assign(time=range(len(ROWS)))
    for count in (2, 3, 4):
        columns = table.iloc[:, :count]
        found = load_interactions([*columns.itertuples(index=False, name=None)])
        assert found.fingerprint == load_interactions(columns).fingerprint
        assert found.notes[0] == f"tuples are read as {', '.join(table.columns[:count])}"
    with pytest.raises(ConfigError, match="has no names of columns"):
        load_interactions([(1, 2)] * 5, user_column="user")


def test_what_is_no_tuple_of_columns_is_refused():
    users, items, _ = (np.array(column) for column in zip(*ROWS, strict=True))
    with pytest.raises(DataError, match="36 users, 35 items"):
        load_interactions((users, items[:-1]))
    with pytest.raises(ConfigError, match="a tuple of users and items has no names of columns"):
        load_interactions((users, items), user_column="user")
    with pytest.raises(DataError, match="row 1 of table has no item id"):
        load_interactions((users, [None, *items[1:]]))


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_an_array_with_a_row_of_users_and_a_row_of_items_is_no_matrix(rows):
    table = np.array([*zip(*ROWS, strict=True), range(len(ROWS))])[:rows]
    for given in (table, torch.from_numpy(table).float(), table.tolist()):
        with pytest.raises(DataError, match=r"with a row for each, .* give the rows as a tuple, \(users, items\)"):
            load_interactions(given)
    counts = np.random.default_rng(0).integers(0, 99, (rows, 30))
    assert load_interactions(sparse.csr_array(counts)).num_users == rows


def test_lists_of_items_are_no_matrix():
    with pytest.raises(DataError, match=r"rows differ in length .*; lists of each user's items are a table"):
        load_interactions([[1, 2, 3], [4, 5, 6, 7]])


def test_an_array_of_half_precision_is_read():
    matrix = (np.random.default_rng(0).random((20, 9)) < 0.6).astype(np.float16)
    assert load_interactions(matrix).num_users <= 20


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": np.array([60.5, 40])},
        {"format": np.array(1)},
        {"data": np.array(["a"] * 3)},
        {"data": np.array(["2020-01-01"] * 3, dtype="datetime64[D]")},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_damaged_matrix_is_an_error_of_the_data(changed, tmp_path):
    path = tmp_path / "matrix.npz"
    sparse.save_npz(path, sparse.csr_array(np.eye(3)))
    with np.load(path) as stored:
        parts = dict(stored)
    np.savez(path, **parts | changed)
    with pytest.raises(DataError, match=r"matrix.npz"):
        load_interactions(path)


def test_a_random_split_is_said_and_a_given_one_is_not():
    frame = pd.DataFrame(ROWS, columns=["user", "item", "rating"])
    (note,) = load_interactions(frame, seed=3).notes
    assert note.endswith("at random and not by time, seed 3")
    assert note in recsys_task(frame, seed=3).describe().notes
    given = frame.assign(split=["train", "train", "train", "valid", "test", "train"] * 6)
    assert load_interactions(given).notes == ()
