"""Comparisons in Python: the rows of the command as values, its text, its files and its errors."""

import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pandas as pd
import pytest

import mmdistill
from mmdistill import compare
from mmdistill.cli import main
from mmdistill.errors import CheckpointError, ConfigError
from tests.reporting.test_comparison import ENTRY, changed, finished


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs of which two are repetitions, one of these with a note, and one lacks baselines."""
    found = [finished(tmp_path / f"s{seed}", 0.8 + 0.0123456789 * seed, seed=seed) for seed in range(2)]
    changed(found[1], results=[{**ENTRY, "mean": 0.8123456789, "notes": ["predicts only 3 of 10 classes"]}])
    return [*found, changed(finished(tmp_path / "plain", 0.5, ipc=10), baselines={})]


def test_rows_are_values(runs: list[Path]) -> None:
    found = compare(*runs)
    first, plain = found.results
    assert (first.data, first.method, first.unit, first.budget, first.stored_bytes) == ("digits", "dm", "ipc", 1, 100)
    assert (first.judge, first.metric, first.networks) == ("convnet", "accuracy", 5)
    assert first.score.values == (0.8, 0.8123456789)
    assert first.folders == (runs[0], runs[1])
    assert first.notes == ("predicts only 3 of 10 classes",)
    assert first.baselines["random"].mean == pytest.approx(0.70617, abs=1e-5)
    assert plain.baselines == {}
    with pytest.raises(FrozenInstanceError):
        found.results = ()  # type: ignore[misc]
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), compare(str(runs[0]), *runs[1:])):
        assert other == found


def test_records_make_a_data_frame_in_one_call(runs: list[Path], tmp_path: Path) -> None:
    found = compare(*runs)
    first, plain = found.records()
    assert first["values"] == [0.8, 0.8123456789]
    assert first["notes"] == ["predicts only 3 of 10 classes"]
    assert first["sd"] == pytest.approx(0.0123456789 / 2**0.5)
    assert list(first) == list(plain)
    assert (plain["random_mean"], plain["random_sd"], plain["seconds_per_step"]) == (None, None, None)
    assert (plain["mean"], plain["sd"], plain["steps"], plain["seconds"]) == (0.5, 0.01, 10, 3.0)
    json.dumps(found.records())
    frame = pd.DataFrame(found.records())
    assert frame["budget"].tolist() == [1, 10]
    assert frame["random_mean"].isna().tolist() == [False, True]
    (_, csv, _) = found.write(tmp_path / "page")
    assert list(pd.read_csv(csv)) == list(frame)
    numbers = found.frame().select_dtypes("number")
    pd.testing.assert_frame_equal(numbers, pd.read_csv(csv)[list(numbers)])
    assert {"mean", "random_sd", "seconds_per_step"} <= set(numbers)
    assert math.isnan(numbers["seconds_per_step"][0])


def test_the_command_shows_and_writes_the_same(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = finished(tmp_path / "z-again", 0.8, seed=1)
    lacking = changed(finished(tmp_path / "lacking", 0.8, ipc=3), results=[{**ENTRY, "judge": "mlp"}])
    (tmp_path / "empty").mkdir()
    folders = [*runs, again, lacking, tmp_path / "empty"]
    assert main(["compare", *map(str, folders), "--judge", "convnet", "--to", str(tmp_path / "command")]) == 0
    told = capsys.readouterr().out
    found = compare(*folders, judges=["convnet"])
    assert (found.without, found.skipped) == ((lacking,), {tmp_path / "empty": "no run"})
    assert found.repeated == {again: runs[1]}
    written = found.write(str(tmp_path / "python"))
    assert [path.name for path in written] == ["comparison.html", "comparison.csv", "comparison.tex"]
    shown = "".join(f"{path}\n" for path in written).replace("python", "command")
    assert told == f"{found}\n{shown}"
    assert [line.split(":")[0] for line in str(found).splitlines()[-4:]] == [
        "left out, since they have no such scores",
        "left out",
        "note",
        "skipped",
    ]
    one, other = (sorted((tmp_path / name).iterdir()) for name in ("command", "python"))
    assert [path.name for path in one] == [path.name for path in other]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert len(one) == 4  # with the picture


def test_notebooks_show_a_table(runs: list[Path]) -> None:
    found = compare(changed(runs[2], data="<b>"))
    assert "<td>&lt;b&gt;</td><td>dm</td><td>ipc 10</td>" in found._repr_html_()
    assert repr(found) == str(found)


@pytest.mark.parametrize("judges", ["all", ["all"], ["convnet", "mlp"], ("ConvNet", "MLP"), "convnet,mlp"])
def test_judges_go_by_a_list_or_as_on_the_command_line(tmp_path: Path, judges: list[str] | str) -> None:
    found = compare(finished(tmp_path / "a", 0.8), judges=judges, metric="Accuracy")
    assert [row.judge for row in found.results] == ["convnet", "mlp"]


def test_errors_are_those_of_the_command(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    for kind, folder, options in (
        (CheckpointError, absent, {}),
        (ConfigError, empty, {}),
        (ConfigError, runs[0], {"judges": "vit"}),
        (ConfigError, runs[0], {"metric": "f1"}),
    ):
        with pytest.raises(kind) as error:
            compare(folder, **options)
        told = [f"--{name.removesuffix('s')}={value}" for name, value in options.items()]
        assert main(["compare", str(folder), *told]) == 2
        assert str(error.value) in capsys.readouterr().err
    for folders in ((), (runs,), (runs[0], None)):
        with pytest.raises(ConfigError, match="run folders are compared"):
            compare(*folders)
    for judges in (3, [3]):
        with pytest.raises(ConfigError, match="judges are names, got"):
            compare(runs[0], judges=judges)  # type: ignore[arg-type]


def test_it_is_a_public_name() -> None:
    assert "compare" in mmdistill.__all__
    assert mmdistill.compare is compare
