"""Logs as people have them: with columns of their own, ratings, and times to split by."""

import gzip

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse

from mmdistill.cli import main
from mmdistill.errors import ConfigError, DataError
from mmdistill.image.datasets import load
from mmdistill.recsys import load_interactions, recsys_task
from mmdistill.recsys.files import read_table
from mmdistill.recsys.folders import looks_like_interactions
from mmdistill.recsys.splits import SPLITS, _ranks, by_time
from mmdistill.registry import domain_of
from tests.recsys.conftest import taste_matrix

OWN = {"user_column": "client", "item_column": "product", "rating_column": "liking"}


def shop(users=12, items=20, seed=0):
    """Return a shop's log, whose columns have no common names, in a random order of rows."""
    draw = np.random.default_rng(seed)
    rows = [
        (f"c{user}", f"p{item}", 1 + (user + item) % 5, f"2024-03-{1 + place:02d} 08:00")
        for user in range(users)
        for place, item in enumerate(draw.permutation(items)[:15])
    ]
    table = pd.DataFrame(rows, columns=["client", "product", "liking", "when"])
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def entries(data, part):
    """Return the pairs of a part by their own ids."""
    users, items = data.parts[part].tocoo().coords
    return set(zip(data.user_ids[users].tolist(), data.item_ids[items].tolist(), strict=True))


def test_columns_are_read_by_the_names_that_the_user_gives():
    table = shop()
    data = load_interactions(table, **OWN)
    wanted = set(zip(table["client"], table["product"], strict=True))
    assert set().union(*(entries(data, part) for part in SPLITS)) == wanted
    swapped = load_interactions(table, user_column="product", item_column="client")
    assert set(swapped.item_ids.tolist()) == set(table["client"])
    liked = load_interactions(table, **OWN, min_rating=4)
    many = table[table["liking"] >= 4]
    assert set().union(*(entries(liked, part) for part in SPLITS)) == set(
        zip(many["client"], many["product"], strict=True)
    )
    assert liked.counts["not_positive"] == (table["liking"] < 4).sum()


@pytest.mark.parametrize("dates", [True, False], ids=["dates", "seconds"])
def test_a_split_by_time_tests_with_the_latest_interactions(dates):
    table = shop()
    if not dates:
        table["when"] = pd.to_datetime(table["when"]).astype("int64") // 10**9
    data = load_interactions(table, **OWN, time_column="when", split_by="time")
    assert data.notes == ("test and validation: each user's last tenth by time, and the tenth before it",)
    for user, rows in table.groupby("client"):
        late = rows.sort_values("when")["product"].tolist()
        for part, expected in (("test", late[-1:]), ("valid", late[-2:-1]), ("train", late[:-2])):
            assert {item for owner, item in entries(data, part) if owner == user} == set(expected)


@pytest.mark.parametrize(("name", "separator"), [("ratings.dat", "::"), ("u.data", "\t")])
def test_movielens_files_are_read_gzipped_too(tmp_path, name, separator):
    rows = [(user, item, 5, 1000 - item) for user in range(4) for item in range(5)]
    content = "\r\n".join(separator.join(map(str, row)) for row in rows).encode()
    (tmp_path / name).write_bytes(content)
    plain = load_interactions(tmp_path / name, split_by="time")
    (tmp_path / name).unlink()
    zipped = tmp_path / f"{name}.gz"
    zipped.write_bytes(gzip.compress(content))
    assert looks_like_interactions(zipped)
    for source in (zipped, tmp_path):
        assert load_interactions(source, split_by="time").fingerprint == plain.fingerprint
    zipped.write_bytes(gzip.compress(content)[:40])
    with pytest.raises(DataError, match="is a damaged gzip file"):
        load_interactions(zipped)
    zipped.write_bytes(gzip.compress(content + b"\n\xfc"))
    with pytest.raises(DataError, match="not UTF-8 throughout: line 21 holds the byte 0xfc"):
        load_interactions(zipped)


def test_recbole_files_are_read_gzipped_too(tmp_path):
    path = tmp_path / "log.inter.gz"
    lines = ["user_id:token\titem_id:token", *(f"u{user}\ti{item}" for user in range(4) for item in range(5))]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert looks_like_interactions(path)
    assert load_interactions(path).num_users == 4


def test_of_a_repeated_pair_the_earliest_counts_in_a_split_by_time():
    rows = [("a", item, item) for item in range(6)] + [("a", 0, 99)]
    table = pd.DataFrame(rows, columns=["user", "item", "time"])
    data = load_interactions(table, split_by="time")
    assert entries(data, "test") == {("a", 5)}
    assert data.counts["duplicates"] == 1


def test_a_way_of_splitting_that_is_asked_for_goes_before_a_column_of_splits():
    table = shop().assign(split="train")
    table.loc[::5, "split"] = "test"
    named = load_interactions(table, **OWN, time_column="when")
    assert named.notes == ()  # as of any split that came with the data
    timed = load_interactions(table, **OWN, time_column="when", split_by="time")
    assert "last tenth by time" in timed.notes[0]
    assert timed.fingerprint == load_interactions(shop(), **OWN, time_column="when", split_by="time").fingerprint
    random = load_interactions(table, **OWN, split_by="random", seed=4)
    assert random.fingerprint == load_interactions(shop(), **OWN, seed=4).fingerprint


def test_times_of_files_without_a_header_are_read(tmp_path):
    rows = [(user, item, 5, 1000 - item) for user in range(4) for item in range(5)]
    for name, separator in (("u.data", "\t"), ("ratings.dat", "::")):
        (tmp_path / name).write_text("\n".join(separator.join(map(str, row)) for row in rows))
        data = load_interactions(tmp_path / name, split_by="time")
        assert entries(data, "test") == {(user, 0) for user in range(4)}  # the latest has the lowest number
    (tmp_path / "ratings.dat").write_text("\n".join("::".join(map(str, row[:3])) for row in rows))
    assert load_interactions(tmp_path / "ratings.dat").num_users == 4
    with pytest.raises(ConfigError, match="has no times to be split by"):
        load_interactions(tmp_path / "ratings.dat", split_by="time")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**OWN, "user_column": "clients"}, r"no column 'clients'; did you mean 'client'\?"),
        ({**OWN, "item_column": "client"}, "one column is to be user and item"),
        ({**OWN, "split_by": "time"}, "has no times to be split by: name their column with --time-column"),
        ({**OWN, "split_by": "date"}, "unknown way to split interactions 'date'"),
        ({"user_column": "client", "item_column": "product", "min_rating": 4}, "has no ratings, so none is at least 4"),
    ],
)
def test_names_and_ways_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        load_interactions(shop(), **options)


def test_columns_that_nobody_named_are_asked_for():
    with pytest.raises(DataError, match=r"no user column.*--user-column \(user_column\)"):
        load_interactions(shop())


def test_a_time_that_is_none_is_named_by_its_row():
    table = shop()
    table.loc[3, "when"] = "yesterday"
    with pytest.raises(DataError, match=r"row 4 of table has time 'yesterday'.*\(1 are not\)"):
        load_interactions(table, **OWN, time_column="when", split_by="time")


def test_matrices_have_no_columns_to_name(tmp_path):
    matrix = sparse.csr_array(taste_matrix(30, 12))
    with pytest.raises(ConfigError, match="a matrix has no names of columns, so none is called 'client'"):
        recsys_task(matrix, user_column="client")
    sparse.save_npz(tmp_path / "m.npz", matrix)
    with pytest.raises(ConfigError, match="a matrix, has no names of columns"):
        recsys_task(tmp_path / "m.npz", item_column="product")
    (tmp_path / "u.data").write_text("1\t2\t3\t4\n")
    with pytest.raises(ConfigError, match="which has no header, has no names of columns"):
        recsys_task(tmp_path / "u.data", item_column="product")


@pytest.mark.usefixtures("blank_figures")
def test_the_command_line_reads_own_columns_and_a_resumed_run_does_too(tmp_path, capsys):
    path, out = tmp_path / "shop.csv", tmp_path / "run"
    shop(users=40).to_csv(path, index=False)
    assert domain_of(str(path)).name == "text"  # a table may be anything
    columns = ["--user-column", "client", "--item-column", "product", "--time-column", "when", "--split-by", "time"]
    run = ["--method", "distill-cf-meanfield", "--users", "3", "--steps", "2", "--networks", "1", "--out", str(out)]
    assert main(["distill", "--data", str(path), *columns, *run, "--baselines", "none"]) == 0
    assert "each user's last tenth by time" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--judges", "ease", "--baselines", "none"]) == 0
    assert main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--min-rating", "4"]) == 2
    assert "--min-rating is for recsys data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "written",
    [
        ["03/11/2020", "28/11/2020", "01/12/2020", "13/12/2020"],
        ["11/03/2020", "11/28/2020", "12/01/2020", "12/13/2020"],
        ["30.11.2020", "01.12.2020", "02.12.2020", "14.12.2020"],
        ["Mar 5, 2020", "Apr 1, 2020", "Apr 12, 2020"],
        ["3/5/2020 9:00 AM", "3/5/2020 10:00 PM", "3/15/2020 1:00 PM"],
        ["2020-01-01T00:00:00+02:00", "2020-01-01T00:00:00Z"],
        ["20191231", "20200101"],
        ["13.11.20", "01.12.20", "05.12.20"],
        ["14/3/2020 9:00 PM", "15/3/2020 1:00 AM"],
        ["2012-02-01 00:05:55 UTC", "2012-03-01 00:05:55.123 UTC"],
        ["14/11/2020 10:00:00 UTC", "15/11/2020 09:00:00 UTC"],
        [1_600_000_000_000_000_001, 1_600_000_000_000_000_002],
    ],
)
def test_a_column_of_times_is_read_in_one_way_as_a_whole(written):
    table = pd.DataFrame({"time": written[::-1]})
    assert by_time(table, "t")["time"].tolist() == written


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["05/11/2020", "06/11/2020", "01/12/2020"], "may have days or months first"),
        (["05/11/20", "06/10/20"], "may have days or months first"),
        (["5/11/2020 3:02 PM", "6/10/2020 3:02 PM"], "may have days or months first"),
        (["1", "2", None], r"row 3 of t has time .*\(1 are not\)"),
        ([1.0, float("inf")], "row 2 of t has time 'inf'"),
        (pd.to_datetime(["2020-01-02", None]), "row 2 of t has time 'NaT'"),
        (["13/12/2020", "31/12/2020", "soon"], r"row 3 of t has time 'soon'.*\(1 are not\)"),
    ],
)
def test_times_that_are_none_or_may_be_two_are_refused(times, message):
    with pytest.raises(DataError, match=message):
        by_time(pd.DataFrame({"time": times}), "t")


@pytest.mark.parametrize(("column", "values"), [("plays", ["3", None, "1"]), ("target", ["7", "t1", "t2"])])
def test_a_guessed_column_of_feedback_counts_only_if_it_is_all_numbers(column, values):
    table = pd.DataFrame({"user": np.repeat(range(3), 10), "item": np.tile(range(10), 3)})
    found = load_interactions(table.assign(**{column: np.resize(np.array(values, dtype=object), 30)}))
    assert sum(found.parts[part].nnz for part in SPLITS) == 30
    assert any(repr(column) in note and "not read" in note for note in found.notes)


def test_columns_that_pandas_numbers_are_named_by_their_numbers():
    rows = [(user, item) for user in range(4) for item in range(5)]
    assert load_interactions(pd.DataFrame(rows), user_column=0, item_column=1).num_users == 4
    with pytest.raises(ConfigError, match="one column is to be user and item"):
        load_interactions(pd.DataFrame(rows, columns=["user", "item"]), user_column="item")


def test_odd_csv_files(tmp_path):
    rows = [(user, item) for user in range(4) for item in range(5)]
    path = tmp_path / "a.csv"
    path.write_text("user, item\n" + "\n".join(f"u{user}, i{item}" for user, item in rows))
    assert load_interactions(path).item_ids.tolist() == [f"i{item}" for item in range(5)]
    path.write_text("user,item,item\n1,2,3\n")
    with pytest.raises(DataError, match="several columns called 'item'"):
        load_interactions(path)


def test_options_that_name_columns_make_no_table_of_other_files(tmp_path, capsys):
    torch.save({"x": torch.ones(3)}, tmp_path / "g.pt")
    data = load("digits")
    save_file({"images": data.train_images, "labels": data.train_labels}, tmp_path / "d.safetensors")
    for option in ("--text-column", "--user-column"):
        run = ["distill", "--data", str(tmp_path / "d.safetensors"), "--method", "dm", "--ipc", "1", option, "a"]
        assert main(run) == 2
        assert f"{option} is for" in capsys.readouterr().err


def test_a_named_column_is_not_guessed_as_something_else():
    edges = pd.DataFrame(
        [(f"a{user}", f"b{item}") for user in range(4) for item in range(5)], columns=["source", "target"]
    )
    assert load_interactions(edges, user_column="source", item_column="target").num_items == 5


@pytest.mark.parametrize("given", [{"user_column": "client"}, {"min_rating": 4.0}, {"split_by": "time"}])
def test_arguments_of_reading_beside_loaded_interactions_are_refused(given):
    with pytest.raises(ConfigError, match=f"loaded are read and divided; leave {next(iter(given))} out"):
        recsys_task(load_interactions(taste_matrix()), **given)


@pytest.mark.parametrize("name", ["log.csv", "ratings.dat"])
def test_times_are_numbers_unless_rows_are_split_by_them(tmp_path, name):
    mark = "::" if name == "ratings.dat" else ","
    rows = [f"{user}{mark}{item}{mark}{1 + item}{mark}0{user + item}" for user in range(5) for item in range(6)]
    (tmp_path / name).write_text("\n".join([*(["user,item,rating,time"] if mark == "," else []), *rows]))
    table, _ = read_table(tmp_path / name)
    assert table["time"].tolist() == [user + item for user in range(5) for item in range(6)]
    assert table["rating"].tolist()[:6] == list("123456")
    assert read_table(tmp_path / name, by_time=True)[0]["time"].tolist()[:2] == ["00", "01"]


@pytest.mark.parametrize("time", ["{}", "{}.5", "0{}", "2020-01-0{}", "day {}", ""])
@pytest.mark.parametrize("by", [None, "time"])
def test_a_file_is_read_as_its_text_is(tmp_path, time, by):
    """Ratings of one pair dispute each other, so that their times count."""
    log = pd.DataFrame(
        [
            (user, item, rating, time.format(1 + (3 * item + user + 2 * rating) % 9), (user + item) % 2)
            for user in range(6)
            for item in range(8)
            for rating in (1, 5)
        ],
        columns=["user", "item", "rating", "time", "seen"],
    ).astype(str)
    log.to_csv(tmp_path / "log.csv", index=False)
    given = {"min_rating": 4, "min_interactions": 3, "split_by": by}
    if by and time in ("day {}", ""):
        messages = []
        for source in (log, tmp_path / "log.csv"):
            with pytest.raises(DataError) as error:
                load_interactions(source, **given)
            messages.append(str(error.value).replace(str(tmp_path / "log.csv"), "table"))
        assert messages[0].split(" has time ")[0] == messages[1].split(" has time ")[0]
        return
    wanted, found = (load_interactions(source, **given) for source in (log, tmp_path / "log.csv"))
    assert (wanted.fingerprint, wanted.test_fingerprint) == (found.fingerprint, found.test_fingerprint)
    assert (wanted.counts, wanted.notes) == (found.counts, found.notes)


def test_later_interactions_have_lower_ranks_and_equal_ones_keep_their_order():
    draw = np.random.default_rng(0)
    users, late = draw.integers(5, size=200), draw.integers(8, size=200).astype(np.float32)
    users[users == 3] = 4  # a number without a user
    wanted = [
        sum(other > own or (other == own and place < row) for place, other in enumerate(late) if users[place] == user)
        for row, (user, own) in enumerate(zip(users, late, strict=True))
    ]
    assert _ranks(users, late).tolist() == wanted
    in_order = sorted(range(200), key=lambda row: late[row])  # which keeps equal ones in place
    assert by_time(pd.DataFrame({"time": late}), "t").index.tolist() == in_order


PLACES = {"user_column": 0, "item_column": 1, "rating_column": 2, "time_column": 3}


@pytest.mark.parametrize("separator", [",", "\t", " ", ";", "::"])
@pytest.mark.parametrize("name", ["ratings_Beauty.csv", "log.txt", "log.tsv"])
def test_a_file_without_a_header_is_refused_and_then_read_by_positions(tmp_path, name, separator):
    rows = [
        (f"A{user}", f"B{item}", f"{1 + (user + item) % 5}.0", 100 - item) for user in range(4) for item in range(6)
    ]
    path = tmp_path / name
    path.write_text("\n".join(separator.join(map(str, row)) for row in rows))
    wanted = load_interactions(pd.DataFrame(rows, columns=["user", "item", "rating", "time"]), split_by="time")
    if separator == "::":  # as MovieLens has it
        assert load_interactions(path, split_by="time").fingerprint == wanted.fingerprint
    else:
        for given in ({}, {"user_column": "A0", "item_column": "who"}):
            with pytest.raises(
                DataError, match=r"no header: its first line holds numbers \(A0, B0, 1.0, 100\).*-column 0"
            ):
                load_interactions(path, **given)
    for places in (PLACES, {role: str(place) for role, place in PLACES.items()}):
        data = load_interactions(path, **places, split_by="time")
        assert (data.fingerprint, data.test_fingerprint) == (wanted.fingerprint, wanted.test_fingerprint)
        assert data.notes[0] == f"{name} is read without a header; its first line: A0, B0, 1.0, 100"
    swapped = load_interactions(path, user_column=1, item_column=0)
    assert set(swapped.user_ids.tolist()) == {f"B{item}" for item in range(6)}
    assert "columns that are not read: '2', '3'" in swapped.notes


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("user,item\n1,2\n", {"user_column": 0, "item_column": 1}, r"no column '0' \(there are: 'user', 'item'\)"),
        ("7,8,9\n1,2,3\n", {"user_column": 0, "item_column": 3}, r"no column '3' \(there are: '0', '1', '2'\)"),
        ("7,8,9\n1,2,3\n", {"user_column": 0}, r"no item column: .*Name it with --item-column"),
        ("7,8,9\n1,2,3\n", {"user_column": 0, "item_column": 0}, "one column is to be user and item"),
        ("7,8,9\n1,2,3\n", {"user_column": 0, "item_column": "who"}, "seems to have no header"),
        ("7 8\n1 2\n1 2 3\n", {"user_column": 0, "item_column": 1}, "cannot be read as lines of 2 fields"),
    ],
)
def test_positions_that_cannot_be(tmp_path, text, given, message):
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises((ConfigError, DataError), match=message):
        load_interactions(tmp_path / "log.txt", **given)


def test_a_header_of_positions_is_read_as_a_header_and_said(tmp_path):
    pd.DataFrame([(user, item) for user in range(4) for item in range(5)]).to_csv(tmp_path / "a.csv", index=False)
    data = load_interactions(tmp_path / "a.csv", user_column=0, item_column=1)
    assert data.notes[0] == "the first line of a.csv is read as a header, with the columns 0, 1"
    assert sum(data.parts[part].nnz for part in SPLITS) == 20


def test_a_header_that_holds_numbers_is_one_where_its_names_are_given(tmp_path):
    path, pairs = tmp_path / "a.csv", [(user, item, 1, 0) for user in range(4) for item in range(5)]
    for header in ("customer,product,2020,2021", "customer:token,product:token,2020,2021"):
        path.write_text("\n".join([header, *(",".join(map(str, row)) for row in pairs)]))
        data = load_interactions(path, user_column="customer", item_column="product")
        assert sum(data.parts[part].nnz for part in SPLITS) == 20
        assert data.notes[0].startswith("the first line of a.csv is read as a header, with the columns customer")
    path.write_text("\n".join(["1,2,3", *(f"9,{user},{item}" for user, item, *_ in pairs)]))
    note = load_interactions(path, user_column="1", item_column="2").notes[0]
    assert note.endswith("its first line: 1, 2, 3; taken as positions of columns, not as names: '1', '2'")


def test_data_files_are_tables_as_others_are(tmp_path):
    rows = [(user, item) for user in range(4) for item in range(5)]
    (tmp_path / "log.data").write_text("\n".join(["user\titem", *(f"{user}\t{item}" for user, item in rows)]))
    assert load_interactions(tmp_path / "log.data").num_users == 4
    lines = [f"{user}::{item}::5" + "::7" * (user > 0) for user, item in rows]
    (tmp_path / "ratings.dat").write_text("\n".join(lines))
    assert sum(load_interactions(tmp_path / "ratings.dat").parts[part].nnz for part in SPLITS) == 20
    (tmp_path / "ratings.dat").write_text("\n".join(["user::item::rating", *lines]))
    with pytest.raises(DataError, match="cannot be read as lines of 3 fields"):
        load_interactions(tmp_path / "ratings.dat")


@pytest.mark.parametrize("separator", ["\t", "::", " "])
def test_a_dat_file_with_a_header_is_a_table(tmp_path, separator, capsys):
    rows = [(user, item, 100 * item) for user in range(4) for item in range(6)]
    path = tmp_path / "user_artists.dat"
    path.write_text("\n".join(separator.join(map(str, row)) for row in [("userID", "artistID", "weight"), *rows]))
    with pytest.raises(DataError, match=r"no item column.* found userID, artistID, weight"):
        load_interactions(path)
    wanted = load_interactions(pd.DataFrame(rows, columns=["user", "item", "weight"]))
    assert load_interactions(path, item_column="artistID").fingerprint == wanted.fingerprint
    run = ["distill", "--data", str(path), "--item-column", "artistID", "--users", "2", "--method", "distill-ease"]
    assert main([*run, "--dry-run"]) == 0
    assert "recsys" in capsys.readouterr().out
    path.write_text(path.read_text().replace("artistID", "movieID", 1))
    assert looks_like_interactions(path) == (separator != " ")  # prose has such words too
    assert load_interactions(path).fingerprint == wanted.fingerprint


@pytest.mark.parametrize("name", ["u1.base", "u5.test", "ua.base"])
def test_parts_of_movielens_100k_are_read_by_their_names(tmp_path, name):
    (tmp_path / name).write_text("\n".join(f"{user}\t{item}\t5\t1" for user in range(4) for item in range(5)))
    assert looks_like_interactions(tmp_path / name)
    assert load_interactions(tmp_path / name).num_users == 4


def test_messages_list_few_columns_and_say_what_a_frame_becomes():
    log = pd.DataFrame([(user, item, 5) for user in range(4) for item in range(20)], columns=["user", "item", "rating"])
    wide = log.pivot(index="user", columns="item", values="rating")
    with pytest.raises(DataError, match=r"found 0, 1, 2, 3, 4, 5, 6, 7 and 12 more.*stack\(\).reset_index\(name"):
        load_interactions(wide)
    assert load_interactions(wide.stack().reset_index(name="rating")).num_items == 20
    with pytest.raises(ConfigError, match=r"there are: '0', .* '19'\)"):
        load_interactions(wide, user_column="user")
    indexed = log.set_index("user")
    with pytest.raises(
        DataError, match=r"no user column.*; user of the index becomes a column by frame.reset_index\(\)"
    ):
        load_interactions(indexed)
    assert load_interactions(indexed.reset_index()).num_users == 4


@pytest.mark.usefixtures("blank_figures")
def test_a_run_on_a_file_without_a_header_is_judged_again(tmp_path, capsys):
    path, out = tmp_path / "log.csv", tmp_path / "run"
    shop(users=40).to_csv(path, index=False, header=False)
    columns = ["--user-column", "0", "--item-column", "1", "--time-column", "3", "--split-by", "leave-one-out"]
    run = ["--method", "distill-cf-meanfield", "--users", "3", "--steps", "2", "--networks", "1", "--out", str(out)]
    assert main(["distill", "--data", str(path), *columns, *run, "--baselines", "none"]) == 0
    said = capsys.readouterr().out
    assert "log.csv is read without a header; its first line: c" in said
    assert "each user's last interaction by time" in said
    assert main(["evaluate", str(out), "--judges", "ease", "--baselines", "none"]) == 0


def test_a_first_interaction_that_holds_the_positions_raises_no_doubt(tmp_path):
    pairs = [(user, item, 1, 1000) for user in range(4) for item in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(",".join(map(str, row)) for row in pairs))
    data = load_interactions(tmp_path / "log.csv", user_column="0", item_column="1")
    assert sum(data.parts[part].nnz for part in SPLITS) == 20
    assert not any("taken as positions" in note for note in data.notes)
