"""Logs with feedback of 0 and 1, splits by users, and ids that pandas made floats; and other files than tables."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from mmdistill.cli import main
from mmdistill.errors import DataError
from mmdistill.recsys import DOMAIN, load_interactions, recsys_task
from mmdistill.recsys.splits import SPLITS
from mmdistill.registry import domain_of

USERS, ITEMS = 12, 10


def log(**columns):
    """Return a log in which every user has had every item, with further columns."""
    users, items = np.divmod(np.arange(USERS * ITEMS), ITEMS)
    return pd.DataFrame({"user": users, "item": items, **columns})


def total(data):
    return sum(data.parts[part].nnz for part in SPLITS)


def by_users(train, valid=0):
    """Return a split column that puts whole users into one part."""
    users = np.arange(USERS * ITEMS) // ITEMS
    return np.select([users < train, users < train + valid], ["train", "valid"], "test")


@pytest.mark.parametrize("valid", [0, 3])
def test_a_test_part_of_users_without_history_is_refused(valid):
    with pytest.raises(DataError, match=r"the test rows .* belong to users with no training rows; give these users"):
        load_interactions(log(split=by_users(6, valid)))


def test_test_users_without_history_are_counted_apart_and_said():
    split = by_users(9)
    split[4] = "test"  # of the first user
    data = load_interactions(log(split=split))
    assert data.num_users == 9
    assert data.counts["untrained_users"] == 3
    assert data.counts["short_users"] == 0
    assert [note for note in data.notes if "3 users have no training rows" in note]
    split[:] = np.where(np.arange(len(split)) % ITEMS == 0, "test", "train")
    fine = load_interactions(log(split=split))
    assert fine.notes == ()
    assert "untrained_users" not in fine.counts


def test_a_list_with_a_dictionary_per_row_is_a_table():
    table = log(rating=[5, 0, 3, 4, 1] * (USERS * ITEMS // 5), split=np.tile(["train"] * 8 + ["valid", "test"], USERS))
    rows = table.to_dict("records")
    expected, found = load_interactions(table), recsys_task(rows).data
    assert (found.fingerprint, found.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    assert found.counts == expected.counts
    named = [{"client": row["user"], "product": row["item"]} for row in rows]
    assert load_interactions(named, user_column="client", item_column="product").num_users == USERS
    with pytest.raises(DataError, match="the table has no user column"):
        load_interactions(named)
    with pytest.raises(DataError, match="row 1 of table has no item id"):
        load_interactions([{"user": 1}, *rows])
    for wrong in ([], [*rows, 3], [("a", "b"), ("c",)]):
        with pytest.raises(DataError, match=r"expected a users x items matrix|list with a dictionary per row"):
            load_interactions(wrong)


def test_what_reading_removed_is_among_the_notes(tmp_path, capsys):
    few = pd.DataFrame({"user": [50, 51, 51], "item": [1, 2, 77]})
    data = load_interactions(pd.concat([log(), log()[:7], few]))
    (note,) = [note for note in recsys_task(data).describe().notes if "left out" in note]
    said = "7 repeated interactions, 2 users with too few interactions, 1 items without a remaining interaction"
    assert note == f"left out when reading: {said}"
    assert not [note for note in recsys_task(log()).describe().notes if "left out" in note]
    wide = np.pad(np.ones((USERS, ITEMS)), ((0, 0), (0, 3)))  # items that nobody had
    assert not [note for note in recsys_task(wide).describe().notes if "left out" in note]
    pd.concat([log(), log()[:7]]).to_csv(tmp_path / "log.csv", index=False)
    given = ["--data", str(tmp_path / "log.csv"), "--method", "distill-cf-binary", "--users", "2", "--dry-run"]
    assert main(["distill", *given]) == 0
    assert "note: left out when reading: 7 repeated interactions\n" in capsys.readouterr().out


def test_validation_rows_of_dropped_users_only_are_taken_from_training_instead():
    split = by_users(9, valid=3)
    split[: 9 * ITEMS : ITEMS] = "test"
    data = load_interactions(log(split=split))
    assert data.parts["valid"].nnz == 9


@pytest.mark.parametrize("name", ["clicked", "click", "is_click", "like", "is_like", "target", "Book-Rating", "plays"])
def test_feedback_of_zero_is_no_interaction_whatever_its_usual_name(name, tmp_path):
    table = log(**{name: np.arange(USERS * ITEMS) % 2})
    assert total(load_interactions(table)) == USERS * ITEMS // 2
    table.to_csv(tmp_path / "log.csv", index=False)
    assert total(load_interactions(tmp_path / "log.csv")) == USERS * ITEMS // 2


def test_feedback_may_be_true_or_false(tmp_path):
    table = log(clicked=np.arange(USERS * ITEMS) % 2 == 0)
    table.to_csv(tmp_path / "log.csv", index=False)
    words = np.where(table["clicked"], " True ", "FALSE\t")
    for source in (table, tmp_path / "log.csv", table.assign(clicked=words)):
        assert total(load_interactions(source)) == USERS * ITEMS // 2


def test_feedback_in_words_is_not_read_as_ratings_and_said():
    data = load_interactions(log(interaction="view"))
    assert total(data) == USERS * ITEMS
    assert [note for note in data.notes if "'interaction'" in note]


def test_columns_that_are_not_read_are_said_with_a_hint_where_they_hold_zeros():
    table = log(timestamp=1, price=2.5, bought=np.arange(USERS * ITEMS) % 2, place=np.arange(USERS * ITEMS))
    (note,) = [note for note in load_interactions(table).notes if "not read" in note]
    assert "'price'" in note
    assert "'timestamp'" not in note
    assert "'bought' holds zeros" in note
    assert "--rating-column" in note
    assert "'place' holds" not in note  # a number of each row has one zero
    assert not [note for note in load_interactions(log(timestamp=1)).notes if "not read" in note]
    named = load_interactions(table, rating_column="bought")
    assert total(named) == USERS * ITEMS // 2
    assert not [note for note in named.notes if "holds zeros" in note]


def test_columns_of_any_type_may_stand_beside():
    table = log(mark=pd.Categorical(["a"] * USERS * ITEMS), style=[{"size": 1}] * (USERS * ITEMS))
    table["seen"] = pd.Timestamp("2020-01-01")
    table["spans"] = pd.Timedelta("1h")
    data = load_interactions(table)
    assert total(data) == USERS * ITEMS
    assert all(repr(name) in data.notes[0] for name in ("mark", "style", "seen", "spans"))


def test_whole_numbers_that_pandas_made_floats_are_integer_ids():
    table = log()
    data = load_interactions(table.astype({"user": float}))
    assert data.user_ids.tolist() == load_interactions(table).user_ids.tolist() == list(range(USERS))
    halves = load_interactions(table.assign(user=table["user"] / 2))
    assert set(halves.user_ids.tolist()) == {str(u // 2) if u % 2 == 0 else f"{u / 2}" for u in range(USERS)}


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.json", "log.json.gz", "array.json"])
def test_json_is_read(name, tmp_path):
    # As Amazon and Yelp publish reviews: ids, stars and what is no column of a table.
    rows = [
        {"reviewerID": f"0{u}", "asin": f"a{i}", "overall": float(i % 2), "helpful": [0, 1], "reviewText": "fine"}
        for u in range(USERS)
        for i in range(ITEMS)
    ]
    content = json.dumps(rows, indent=1) if name.startswith("array") else "\n".join(map(json.dumps, rows)) + "\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    assert DOMAIN.accepts(path)
    data = load_interactions(path)
    assert total(data) == USERS * ITEMS // 2
    assert set(data.user_ids.tolist()) == {f"0{u}" for u in range(USERS)}
    assert [note for note in data.notes if "'reviewText'" in note]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"user": 1, "item": 2}\n{"user": 1', "line 2, is not JSON"),
        ('{"user": 1, "item": 2}\n[1, 2]\n', "line 2, is a JSON list"),
        ('[{"user": 1, "item": 2}, 3]', "entry 2, is a JSON int"),
        ('[{"user": 1, "item": 2}', "is not JSON"),
        ('{"text": "a", "label": 1}\n', "no user column"),
        ("[]", "has no interactions"),
    ],
)
def test_json_that_is_no_table(content, message, tmp_path):
    (tmp_path / "log.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_interactions(tmp_path / "log.json")


def test_texts_in_json_are_no_interactions(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "label": 1}\n')
    assert not DOMAIN.accepts(tmp_path / "texts.jsonl")


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_tables_that_pandas_reads(suffix, tmp_path, monkeypatch):
    path, table = tmp_path / f"log.{suffix}", log(rating=np.arange(USERS * ITEMS) % 2)
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(pd, f"read_{suffix}", lambda given: table if given == path else None)
    assert DOMAIN.accepts(path)
    assert load_interactions(path).fingerprint == load_interactions(table).fingerprint
    monkeypatch.setattr(pd, f"read_{suffix}", lambda given: pd.DataFrame({"text": ["a"], "label": [1]}))
    assert not DOMAIN.accepts(path)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_tables_that_pandas_cannot_read_here(suffix, tmp_path, monkeypatch):
    def missing(path):
        raise ImportError("pyarrow is missing")

    path = tmp_path / f"log.{suffix}"
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(pd, f"read_{suffix}", missing)
    assert DOMAIN.accepts(path)  # so that the error says what to do
    with pytest.raises(DataError, match=rf"install pyarrow.*pd.read_{suffix}\(path\) to recsys_task"):
        load_interactions(path)


def rated_again(**columns):
    """Return a log of likes in which each user rates the first two items again, at 1 and at 4."""
    likes = log(rating=5, timestamp=np.arange(USERS * ITEMS))
    again = likes[likes["item"] < 2].assign(rating=lambda rows: np.where(rows["item"] == 0, 1, 4), timestamp=1000)
    return pd.concat([again, likes]).assign(**columns)  # the later ones come first


@pytest.mark.parametrize("way", ["time", "random"])
def test_the_latest_rating_of_an_item_decides(way):
    data = load_interactions(rated_again(), min_rating=4, split_by=way)
    assert data.item_ids.tolist() == list(range(1, ITEMS))
    assert data.counts["taken_back"] == USERS
    shown = log(rating=0, timestamp=-1)[: 2 * ITEMS]
    behind = load_interactions(pd.concat([shown, rated_again()]), min_rating=4, split_by=way)
    assert behind.counts["taken_back"] == USERS
    (note,) = [note for note in recsys_task(data).describe().notes if "left out" in note]
    assert "12 ratings below 4, 12 ratings that later ones of the same user and item took back, 12 repeated" in note
    liked = load_interactions(rated_again(timestamp=lambda rows: -rows["timestamp"]), min_rating=4, split_by=way)
    assert liked.num_items == ITEMS
    assert "taken_back" not in liked.counts
    assert "taken_back" not in load_interactions(rated_again(), split_by=way).counts  # all above 0


def test_of_ratings_of_one_time_the_last_row_decides():
    rows = rated_again(timestamp=7)
    assert load_interactions(rows, min_rating=4).num_items == ITEMS
    assert load_interactions(rows[::-1], min_rating=4).num_items == ITEMS - 1


def test_a_rating_of_one_user_takes_nothing_of_another_back():
    users, items = np.divmod(np.arange(2 * ITEMS), ITEMS)  # more items than users
    low = (users == 1) & (items == 0)
    rows = pd.DataFrame({"user": users, "item": items, "rating": np.where(low, 1, 5), "timestamp": 9 * low})
    data = load_interactions(rows, min_rating=4)
    assert total(data) == 2 * ITEMS - 1
    assert "taken_back" not in data.counts


@pytest.mark.parametrize("times", [None, "soon"])
def test_pairs_that_are_rated_both_ways_without_times_are_noted(times):
    rows = rated_again(timestamp=times) if times else rated_again().drop(columns="timestamp")
    data = load_interactions(rows, min_rating=4)
    assert data.num_items == ITEMS
    (note,) = [note for note in data.notes if "pairs" in note]
    assert note.startswith("12 pairs of user and item have ratings that count and others that do not")
    assert not [note for note in load_interactions(rows).notes if "pairs" in note]


def test_a_rating_of_the_test_part_takes_none_of_training_back():
    rows = rated_again()
    given = rows.assign(split=np.where((rows["timestamp"] == 1000) | (rows["item"] == 9), "test", "train"))
    data = load_interactions(given, min_rating=4)
    assert data.num_items == ITEMS
    assert "taken_back" not in data.counts


def test_ratings_that_do_not_count_are_said_to_be_below_the_lowest():
    rows = log(rating=[5, 4, 3, 2, 1] * (USERS * ITEMS // 5))
    (note,) = [note for note in recsys_task(rows, min_rating=2.5).describe().notes if "left out" in note]
    assert "48 ratings below 2.5" in note
    (plain,) = [
        note for note in recsys_task(rows.assign(rating=rows["rating"] - 1)).describe().notes if "left out" in note
    ]
    assert "24 ratings that are not positive" in plain


def test_an_impression_takes_no_click_back():
    clicks = log(clicked=1, timestamp=np.arange(USERS * ITEMS))
    shown = clicks.assign(clicked=0, timestamp=1000)
    data = load_interactions(pd.concat([clicks, shown]))
    assert data.num_items == ITEMS
    assert "taken_back" not in data.counts
    assert data.num_users == USERS
    assert not [note for note in data.notes if "pairs" in note]


def test_reviews_of_products_and_their_variants_are_of_the_product_and_may_be_texts(tmp_path, capsys):
    """As Amazon Reviews 2023 has them; its authors advise to take ``parent_asin``."""
    rows = [
        {"rating": 5.0, "text": f"good {item}", "asin": f"v{item}", "parent_asin": f"p{item}", "user_id": f"u{user}"}
        for user in range(8)
        for item in range(6)
    ]
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load_interactions(path)
    assert data.item_ids.tolist() == [f"p{item}" for item in range(6)]
    assert "columns that are not read: 'text', 'asin'" in data.notes
    for given, name in (
        ((), "recsys"),
        (["encoder"], "text"),
        (["split_by"], "recsys"),
        (["min_rating", "model"], "recsys"),
        (["model"], "recsys"),
        (["encoder", "min_rating"], "recsys"),
    ):
        assert domain_of(str(path), given).name == name
    assert domain_of(str(path), budget="ipc").name == "text"
    assert domain_of(str(path), budget="ipc", method="distill-cf").name == "recsys"
    assert domain_of(str(path), ["encoder"], "users").name == "text"
    assert main(["distill", "--data", str(path), "--method", "distill-cf", "--ipc", "1", "--dry-run"]) == 2
    assert "--users" in capsys.readouterr().err
