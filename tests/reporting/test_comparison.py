"""Runs side by side: repetitions are pooled, other settings are not, and pictures show the budget."""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmdistill.cli import main
from mmdistill.errors import ConfigError
from mmdistill.reporting import comparison, side_by_side
from mmdistill.reporting.compare import compare
from mmdistill.reporting.comparison import Repetitions, Score, judged_runs, read_runs, repeated
from mmdistill.reporting.figures import literal
from mmdistill.reporting.pivot import pivot, write_latex
from mmdistill.reporting.side_by_side import draw_budgets, records, table, titles, write_csv

ENTRY = {"judge": "convnet", "metric": "accuracy", "mean": 0.5, "sd": 0.01, "n": 5}


def finished(folder: Path, mean: float, ipc: int = 1, seed: int = 0, steps: int = 10) -> Path:
    folder.mkdir(parents=True)
    entry = {**ENTRY, "mean": mean}
    metrics = {
        "version": 1,
        "data": "digits",
        "method": "dm",
        "budget": {"ipc": ipc, "stored_bytes": 100 * ipc},
        "results": [entry, {**entry, "judge": "mlp", "mean": mean / 2}],
        "baselines": {"random": [{**entry, "mean": mean - 0.1}]},
        "seconds": 3.0,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.yaml").write_text(f"data: digits\nseed: {seed}\nout: {folder}\n")
    (folder / "distilled.json").write_text(json.dumps({"settings": {"steps": steps}, "steps": steps, "seed": seed}))
    return folder


def rows_of(folders: Sequence[Path], judge: str | None = None, metric: str | None = None) -> list[Repetitions]:
    return read_runs(judged_runs(folders)[0], judge, metric)


def test_repetitions_are_pooled_and_other_settings_are_not(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8 + 0.02 * seed, seed=seed) for seed in range(3)]
    other = finished(tmp_path / "longer", 0.9, steps=20)
    rows = rows_of([*runs, other])
    assert [(row.name, len(row.score.values)) for row in rows] == [("longer", 1), ("s0", 3)]
    assert rows[1].score.mean == pytest.approx(0.82)
    assert rows[1].score.deviation == pytest.approx(0.02)
    assert rows[0].score.deviation == 0.01
    assert rows[1].baselines["random"].values == pytest.approx((0.7, 0.72, 0.74))
    document = json.loads((runs[2] / "metrics.json").read_text())
    document["results"][0]["judging"] = {"epochs": 20}
    (runs[2] / "metrics.json").write_text(json.dumps(document))
    rows = rows_of(runs)
    assert [len(row.score.values) for row in rows] == [2, 1]
    assert [row.judged for row in rows] == ["accuracy by convnet", "accuracy by convnet (epochs 20)"]
    (mlp, _) = rows_of([*runs, other], judge="mlp")
    assert mlp.score.mean == pytest.approx(0.45)


def test_a_baseline_is_that_of_the_runs_own_judge_and_metric(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.8)
    document = json.loads((run / "metrics.json").read_text())
    document["results"].append({**ENTRY, "metric": "macro F1", "mean": 0.6})
    document["baselines"]["random"] = [
        {**ENTRY, "judge": judge, "metric": metric, "mean": mean}
        for judge, metric, mean in (
            *(("mlp", "accuracy", 0.1), ("convnet", "macro F1", 0.2), ("convnet", "accuracy", 0.3)),
        )
    ]
    (run / "metrics.json").write_text(json.dumps(document))
    (row,) = rows_of([run])
    assert {name: score.values for name, score in row.baselines.items()} == {"random": (0.3,)}
    (row,) = rows_of([run], metric="macro F1")
    assert {name: score.values for name, score in row.baselines.items()} == {"random": (0.2,)}
    (row,) = rows_of([run], judge="mlp")
    assert {name: score.values for name, score in row.baselines.items()} == {"random": (0.1,)}


def test_rows_are_ordered_by_data_then_method_then_budget(tmp_path: Path) -> None:
    expected = [("cora", "gcond", 9), ("digits", "dc", 2), ("digits", "dc", 10), ("digits", "dm", 1)]
    folders = []
    for index, (data, method, budget) in enumerate(reversed(expected)):
        run = finished(tmp_path / str(index), 0.8, ipc=budget)
        document = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**document, "data": data, "method": method}))
        folders.append(run)
    assert [(row.data, row.method, row.budget) for row in rows_of(folders)] == expected


def test_one_network_of_one_run_has_no_deviation(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.8)
    assert table(rows_of([run]))[1][5] == "80.0 +/- 1.0"
    (run / "metrics.json").write_text((run / "metrics.json").read_text().replace('"n": 5', '"n": 1'))
    rows = rows_of([run])
    assert table(rows)[1][5] == "80.0"
    assert draw_budgets(rows, tmp_path)[0].is_file()


def test_runs_without_the_judge_are_refused_by_name(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.8)
    with pytest.raises(ConfigError, match=r"by resnet18 \(there are: accuracy by convnet, accuracy by mlp\)"):
        rows_of([run], judge="resnet18")
    (run / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="mmdistill evaluate"):
        rows_of([run])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "no metrics.json of"), ('{"version": 1, "results": 3}', "is damaged"), ("[]", "no JSON object")],
)
def test_damaged_metrics_are_named(tmp_path: Path, text: str, message: str) -> None:
    run = finished(tmp_path / "a", 0.8)
    (run / "metrics.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        rows_of([run])
    (run / "metrics.json").write_text('{"version": 1, "results": [{"judge": "mlp"}], "baselines": {}}')
    with pytest.raises(ConfigError, match="is damaged; move it away to judge anew"):
        rows_of([run])


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("metrics.json", {"seconds": None}),
        ("metrics.json", {"budget": {"ipc": 1}}),
        ("metrics.json", {"budget": {r"\input{/etc/passwd}": 1, "stored_bytes": 5}}),
        ("metrics.json", {"budget": {"ipc": 1, "nodes": 1, "stored_bytes": 5}}),
        ("metrics.json", {"budget": {"ipc": 10**400, "stored_bytes": 5}}),
        ("metrics.json", {"budget": {"ipc": True, "stored_bytes": 5}}),
        ("metrics.json", {"results": [{**ENTRY, "mean": 10**400}]}),
        ("metrics.json", {"results": [{"judge": "mlp", "metric": "accuracy", "mean": "a", "sd": 0.0, "n": 1}]}),
        ("metrics.json", {"results": [{**ENTRY, "judging": [1]}]}),
        ("metrics.json", {"results": [{**ENTRY, "notes": 5}]}),
        ("metrics.json", {"results": [{**ENTRY, "notes": [5]}]}),
        ("distilled.json", {"steps": "3"}),
        ("distilled.json", {"settings": [1]}),
    ],
)
def test_an_edited_run_is_skipped_by_name(
    tmp_path: Path, file: str, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, edited = finished(tmp_path / "whole", 0.8), finished(tmp_path / "edited", 0.9)
    document = json.loads((edited / file).read_text())
    (edited / file).write_text(json.dumps({**document, **change}))
    assert main(["compare", str(whole), str(edited)]) == 0
    said = capsys.readouterr().out
    assert f"skipped: {edited} (" in said
    assert "is damaged" in said


@pytest.mark.parametrize("line", ["model: [1, 2]", "seed: one", "model: &a [1]\nset: *a"])
def test_a_run_whose_options_cannot_be_is_skipped(tmp_path: Path, line: str) -> None:
    whole, edited = finished(tmp_path / "whole", 0.8), finished(tmp_path / "edited", 0.9)
    (edited / "config.yaml").write_text(f"data: digits\n{line}\n")
    runs, skipped = judged_runs([whole, edited])
    assert [run.folder for run in runs] == [whole]
    assert "config.yaml" in skipped[edited]


def test_an_alias_of_a_plain_value_is_one(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.8)
    (run / "config.yaml").write_text("networks: &n 3\njudge_epochs: *n\n")
    assert judged_runs([run])[0][0].options == {"networks": 3, "judge_epochs": 3}


@pytest.mark.parametrize("data", ["a\x00b", "\ud800", "what?", "$\\frac{$"])
def test_data_of_any_name_are_compared(tmp_path: Path, data: str, recwarn: pytest.WarningsRecorder) -> None:
    run = finished(tmp_path / "a", float("nan"))  # a judge that failed
    document = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**document, "data": data}))
    assert main(["compare", str(run), "--to", str(tmp_path / "to")]) == 0
    assert len(list((tmp_path / "to").glob("*-budgets.png"))) == 1


def test_a_run_whose_configuration_is_no_text_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, edited = finished(tmp_path / "whole", 0.8), finished(tmp_path / "edited", 0.9)
    (edited / "config.yaml").write_bytes(b"\xff\xfe")
    assert main(["compare", str(whole), str(edited)]) == 0
    assert f"skipped: {edited} ({edited / 'config.yaml'} is not UTF-8 text" in capsys.readouterr().out


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.8)
    document = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**document, "data": r"/data/$_$\udcff.tsv", "method": r"a$\foo$"}))
    assert draw_budgets(rows_of([run]), tmp_path)[0].is_file()
    assert literal("5 $ \udcff") == r"5 \$ \udcff"


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(finished(tmp_path / f"ipc{ipc}", 0.7 + ipc / 100, ipc)) for ipc in (1, 10)]
    assert main(["compare", *runs, "--to", str(tmp_path / "page")]) == 0
    said = capsys.readouterr().out
    assert "ipc 10  1,000  accuracy by convnet  80.0 +/- 1.0  70.0" in said
    assert (tmp_path / "page" / "digits-budgets.png").stat().st_size > 5000
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "data:image/png;base64," in page
    assert "<th>digits, ipc 10</th></tr>\n<tr><td>random</td><td>61.0 ± 1.0</td>" in page
    assert r"\begin{tabular}" in (tmp_path / "page" / "comparison.tex").read_text()
    assert main(["compare", str(tmp_path / "absent"), *runs]) == 2
    assert f"no such folder: {tmp_path / 'absent'}" in capsys.readouterr().err


def test_the_steps_of_repetitions_are_named(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(3)]
    column = table(rows_of(runs))[0].index("steps")
    assert table(rows_of(runs))[1][column] == "10"
    document = json.loads((runs[1] / "distilled.json").read_text())
    (runs[1] / "distilled.json").write_text(json.dumps({**document, "steps": 1000}))  # the best of a validated run
    assert table(rows_of(runs))[1][column] == "10 to 1,000"
    of_another_tool = json.loads((runs[2] / "distilled.json").read_text())
    (runs[2] / "distilled.json").write_text(json.dumps({**of_another_tool, "steps": 0, "origin": "images.pt"}))
    changed(runs[2], seconds=0.0)  # whose distillation is not known
    assert table(rows_of(runs))[1][column : column + 2] == ["10 to 1,000", "3"]
    (runs[0] / "distilled.json").unlink()
    assert table(rows_of(runs[:1]))[1][column] == "-"


def test_folders_without_a_judged_run_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, unjudged = finished(tmp_path / "a", 0.8), finished(tmp_path / "b", 0.8)
    (unjudged / "metrics.json").unlink()
    unfinished, python, empty, file = (tmp_path / name for name in ("k 3", "python", "empty", "notes.md"))
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("data: digits\n")
    (python / "checkpoints").mkdir(parents=True)
    (python / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
    empty.mkdir()
    file.write_text("mine")
    others = [unjudged, unfinished, python, empty, file]
    assert main(["compare", str(run), *map(str, others)]) == 0
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    assert skipped == [
        f"skipped: {unjudged} (not judged; that does: mmdistill evaluate {unjudged})",
        f"skipped: {unfinished} (unfinished; it goes on with: mmdistill distill --resume '{unfinished}')",
        f"skipped: {python} (unfinished; distill(task, ..., out=folder, resume=True) in Python continues it)",
        f"skipped: {empty} (no run)",
        f"skipped: {file} (no run)",
    ]
    assert main(["compare", str(tmp_path)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")] == skipped[:3]
    assert main(["compare", *map(str, others)]) == 2
    assert f"no judged run to compare: {unjudged} (not judged; " in capsys.readouterr().err


def test_a_folder_of_runs_stands_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b", "a"):
        finished(tmp_path / "runs" / name, 0.8, seed={"a": 0, "b": 1}[name])
    (tmp_path / "runs" / "notes").mkdir()
    assert main(["compare", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "skipped" not in out
    assert main(["compare", str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "b")]) == 0
    assert out == capsys.readouterr().out


def test_a_run_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.8)
    (tmp_path / "link").symlink_to(run)
    (run / "distilled.json").unlink()  # without which nothing says its seed
    (row,) = rows_of([run, run, tmp_path / "link"])
    assert row.score.values == (0.8,)
    other = finished(tmp_path / "b", 0.6)
    (other / "distilled.json").unlink()
    (row,) = rows_of([run, other])
    assert row.score.values == (0.8, 0.6)
    (other / "config.yaml").write_text("data: digits\nsteps: 20\n")  # which no set records
    assert len(rows_of([run, other])) == 2


def test_files_of_a_run_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [str(finished(tmp_path / f"s{seed}", 0.8, seed=seed)) for seed in range(3)]
    readers = {name: Mock(wraps=getattr(comparison, name)) for name in ("read_metrics", "read_json", "read_options")}
    for name, reader in readers.items():
        monkeypatch.setattr(comparison, name, reader)
    assert main(["compare", *runs, "--judge", "all", "--to", str(tmp_path / "page")]) == 0
    assert {name: reader.call_count for name, reader in readers.items()} == dict.fromkeys(readers, 3)


def test_a_seed_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (finished(tmp_path / name, 0.8, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    (row,) = rows_of([first, again, other])
    assert len(row.score.values) == 2
    assert main(["compare", *map(str, (first, again, other))]) == 0
    assert f"left out: {again}, which has the seed of {first}" in capsys.readouterr().out


def imported(folder: Path, mean: float, digest: str, seed: int = 0) -> Path:
    """Return a run folder of a set that another tool made."""
    finished(folder, mean, seed=seed)
    record = {"settings": {}, "steps": 0, "seed": seed, "origin": "images_best.pt", "digest": digest}
    (folder / "distilled.json").write_text(json.dumps(record))
    return folder


def test_imported_sets_of_one_seed_are_repetitions_and_share_their_baselines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [imported(tmp_path / name, mean, name) for name, mean in (("a", 0.8), ("b", 0.7))]
    for run in sets:  # one seed chooses and judges one baseline
        document = json.loads((run / "metrics.json").read_text())
        document["baselines"]["random"][0]["mean"] = 0.5
        (run / "metrics.json").write_text(json.dumps(document))
    (row,) = rows_of(sets)
    assert row.score.values == (0.8, 0.7)
    assert row.baselines["random"] == Score((0.5,), sd=ENTRY["sd"])
    assert not row.notes
    other = imported(tmp_path / "c", 0.6, "c", seed=1)
    (row,) = rows_of([*sets, other])
    assert row.score.values == (0.8, 0.7, 0.6)
    assert row.baselines["random"].values == (0.5, 0.5)
    again = imported(tmp_path / "again", 0.8, "a")
    assert main(["compare", *map(str, (*sets, again))]) == 0
    assert f"left out: {again}, which has the seed of {sets[0]}" in capsys.readouterr().out


def test_baselines_of_other_networks_are_noted(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.8)
    document = json.loads((run / "metrics.json").read_text())
    document["baselines"]["random"][0]["n"] = 1
    (run / "metrics.json").write_text(json.dumps(document))
    (row,) = rows_of([run])
    assert row.notes == (f"random: over 1 network(s), the set's over {ENTRY['n']}",)


def test_runs_that_lack_the_scores_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = finished(tmp_path / "a", 0.8), finished(tmp_path / "b", 0.7, ipc=2)
    document = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps({**document, "results": document["results"][:1]}))
    assert main(["compare", str(run), str(other), "--judge", "mlp"]) == 0
    assert f"left out, since they have no such scores: {other}" in capsys.readouterr().out
    assert main(["compare", str(run), str(other)]) == 0
    assert "left out" not in capsys.readouterr().out
    many = [shutil.copytree(other, tmp_path / f"c{number}") for number in range(5)]
    assert main(["compare", str(run), *map(str, many), "--judge", "mlp"]) == 0
    assert (
        f"left out, since they have no such scores: {many[0]}, {many[1]}, {many[2]} and 2 more"
        in capsys.readouterr().out
    )


def test_data_of_one_file_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, 0.8, seed=index) for index, name in enumerate("ab")]
    for run, folder in zip(runs, ("one", "other"), strict=True):
        document = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**document, "data": f"{folder}/train.csv"}))
    pictures = draw_budgets(rows_of(runs), tmp_path)
    assert [path.name for path in pictures] == ["train-budgets.png", "train-2-budgets.png"]


def test_runs_that_were_stored_otherwise_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [finished(tmp_path / f"{index}", 0.7 + 0.1 * index) for index in range(3)]
    for run, stored in zip(runs, ("raw", "upsample-2", "upsample-2"), strict=True):
        document = {"settings": {"steps": 10}, "parameterization": stored, "network": "convnet", "label": "hard"}
        (run / "distilled.json").write_text(json.dumps(document))
        (run / "config.yaml").write_text(f"width: 1{run.name}\n")  # which the network's title would say
    rows = rows_of(runs)
    assert titles(rows) == ["dm (raw)", "dm (upsample-2)", "dm (upsample-2)"]
    assert titles(rows[1:]) == ["dm", "dm"]
    rows += [replace(row, budget=10) for row in rows]
    lines: list[list[tuple[float, float]]] = []
    plot = Axes.plot

    def noted(self: Axes, x: list[float], y: list[float], **options: object) -> list[Line2D]:
        lines.append(list(zip(x, y, strict=True)))
        return plot(self, x, y, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", noted)
    draw_budgets(rows, tmp_path)
    assert [len(line) for line in lines] == [2, 2, 2]  # two methods and a baseline, each at both budgets
    assert lines[1][0][1] == pytest.approx(85.0)


def test_rows_say_by_which_options_they_differ_at_one_budget(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(index), 0.8, ipc, steps=index) for index, ipc in enumerate((1, 1, 10))]
    for run, rate, init in zip(runs, (0.1, 0.2, 0.2), ("real", "noise", "real"), strict=True):
        settings = {"steps": 10, "optimizers": {"codes": {"name": "adam", "lr": rate}}, "init": init}
        (run / "distilled.json").write_text(json.dumps({"settings": settings, "seed": 0}))
    (runs[0] / "config.yaml").write_text((runs[0] / "config.yaml").read_text() + "init: real\nencoder: minilm\n")
    rows = rows_of(runs)
    assert titles(rows) == [
        "dm (encoder minilm, codes lr 0.1, init real)",
        "dm (codes lr 0.2, init noise)",
        "dm (codes lr 0.2, init real)",
    ]
    assert titles([rows[0], rows[2]]) == ["dm", "dm"]


def test_runs_of_other_steps_are_rows_and_points_of_their_own(tmp_path: Path) -> None:
    rows = rows_of([finished(tmp_path / str(steps), 0.8, steps=steps) for steps in (10, 20)])
    assert titles(rows) == ["dm (steps 10)", "dm (steps 20)"]
    assert [*pivot(rows).methods] == titles(rows)


def test_what_rows_differ_in_is_a_column_of_numbers_or_words(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(index), 0.8, ipc) for index, ipc in enumerate((1, 1, 1, 10, 1))]
    kinds = (("adam", 0.1, "real", True), ("adam", 2.0, "noise", False), ("adam", 1e-7, "real", None))
    for run, (name, rate, init, own) in zip(runs, (*kinds, ("sgd", 5.0, "real", None)), strict=False):
        settings = {"steps": 10, "optimizers": {"codes": {"name": name, "lr": rate}}, "init": init}
        settings |= {} if own is None else {"augment": own, "mean": 3}
        described = {"schedule": {"class": f"Networks{run.name}"}}
        label = "soft" if run.name == "1" else "hard"
        document = {"settings": settings, "seed": 0, "described": described, "label": label}
        (run / "distilled.json").write_text(json.dumps(document))
    changed(runs[4], method="dc")
    records = compare(*runs).records()
    assert len({tuple(record) for record in records}) == 1
    values = {record["folder"]: record for record in records}
    assert [values[name]["codes_lr"] for name in "01234"] == [0.1, 2.0, 1e-7, 5.0, None]
    assert [values[name]["init"] for name in "01234"] == ["real", "noise", "real", "real", None]
    assert [values[name]["augment"] for name in "012"] == [True, False, None]
    assert [values[name]["label"] for name in "014"] == ["hard", "soft", None]
    assert [values[name]["setting_mean"] for name in "012"] == [3, 3, None]
    assert values["0"]["mean"] == 0.8
    assert (values["0"]["networks"], values["1"]["setting_networks"]) == (5, "Networks1")
    assert "codes_name" not in records[0]  # which differs between budgets alone
    frame = compare(*runs[:3]).frame()
    assert frame.sort_values("codes_lr")["folder"].tolist() == ["2", "0", "1"]
    assert "codes_lr" not in compare(runs[0], runs[3]).records()[0]


def test_only_what_a_number_is_written_as_is_read_as_one(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(index), 0.8) for index in range(2)]
    texts = {"digest": "1234e567", "size": "0x10", "count": "1_000", "where": r"C:\d", "code": "00123456", "mixed": "7"}
    for run, settings in zip(
        runs, (texts | {"lr": 1e-7, "own": None}, {"mixed": "7a", "lr": 3, "own": "x"}), strict=True
    ):
        (run / "distilled.json").write_text(json.dumps({"settings": settings, "seed": 0}))
    one, other = compare(*runs).records()
    assert {name: one[name] for name in texts} == texts
    assert (one["lr"], other["lr"], one["own"], other["own"], other["mixed"], other["code"]) == (
        *(1e-7, 3, None, "x", "7a", None),
    )


def test_what_many_rows_differ_in_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [finished(tmp_path / str(steps), 0.8, steps=steps) for steps in range(1, 31)]
    rows = rows_of(runs)
    found = Mock(wraps=side_by_side._differing)
    monkeypatch.setattr(side_by_side, "_differing", found)
    assert [record["setting_steps"] for record in records(rows)] == [row.steps[0] for row in rows]
    assert found.call_count == 4  # options and settings, for titles and for columns


def test_runs_whose_samples_were_changed_otherwise_are_told_apart_by_number(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(index), 0.8) for index in range(4)]
    for run, own in zip(runs, ({}, {"noise": 0.1}, {"noise": 2.0}, {"noise": 2.0}), strict=True):
        of_data([run], "a", preprocessing={"encoder": "minilm", **({"augmentation": own} if own else {})})
    rows = rows_of(runs[:3])
    assert titles(rows) == ["dm", "dm (noise 0.1)", "dm (noise 2.0)"]
    assert titles([rows[0], *[rows[2]] * 3]) == ["dm", *["dm (noise 2.0)"] * 3]  # most have it, but not all have any
    assert titles([rows[1], rows[2]] * 3) == ["dm (noise 0.1)", "dm (noise 2.0)"] * 3  # no more than half
    assert len(rows_of(runs)) == 3


def test_an_option_that_names_a_default_makes_no_other_run(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(2)]
    (runs[1] / "config.yaml").write_text((runs[1] / "config.yaml").read_text() + "steps: 10\n")
    assert [len(row.score.values) for row in rows_of(runs)] == [2]


def test_pooled_runs_that_held_out_other_data_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(3)]
    of_data(runs, "aab")
    assert main(["compare", *map(str, runs[:2])]) == 0
    assert "held out" not in capsys.readouterr().out
    tested = json.loads((runs[0] / "metrics.json").read_text())
    (runs[0] / "metrics.json").write_text(json.dumps({**tested, "tested_on": "x"}))  # the other one says nothing of it
    assert main(["compare", *map(str, runs[:2])]) == 0
    assert "held out" not in capsys.readouterr().out
    changed(runs[1], tested_on="y")
    assert main(["compare", *map(str, runs[:2])]) == 0
    assert "held out" in capsys.readouterr().out
    of_data(runs, "abc")
    page, moved = (
        tmp_path / "page",
        "the runs held out different data, since --seed moves what is held out without --split-seed",
    )
    assert main(["compare", *map(str, runs), "--to", str(page)]) == 0
    assert f"{moved} (s0)" in capsys.readouterr().out
    assert f"{moved} (s0)" in (page / "comparison.html").read_text()
    assert f"\n% note: {moved} (s0)\n" in (page / "comparison.tex").read_text()
    assert pd.read_csv(page / "comparison.csv")["notes"].tolist() == [moved]
    changed(runs[0], results=[{**ENTRY, "notes": ["cannot train"]}])
    assert main(["compare", *map(str, runs), "--to", str(page)]) == 0
    assert pd.read_csv(page / "comparison.csv")["notes"].tolist() == [f"cannot train; {moved}"]


def test_runs_of_another_split_are_a_row_of_their_own(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(2)]
    split = finished(tmp_path / "split", 0.8, seed=2)
    (split / "config.yaml").write_text("data: digits\nseed: 2\nsplit_seed: 0\n")
    rows = rows_of([*runs, split])
    assert [(row.name, len(row.score.values)) for row in rows] == [("s0", 2), ("split", 1)]
    assert titles(rows)[1] == "dm (split-seed 0)"


def of_data(runs: list[Path], fingerprints: str, **info: object) -> None:
    for run, fingerprint in zip(runs, fingerprints, strict=True):
        document = json.loads((run / "distilled.json").read_text())
        (run / "distilled.json").write_text(json.dumps({**document, "info": {"fingerprint": fingerprint, **info}}))


@pytest.mark.parametrize(
    ("seeds", "fingerprints", "expected"),
    [
        ((0, 0), "ab", [1, 1]),
        ((0, 1, 2), "aab", [2, 1]),
        ((0, 1), "ab", [2]),
        ((0, 1, 0, 1), "aabb", [2, 2]),
        ((0, 1, 0), "abc", [2, 1]),
    ],
)
def test_other_data_of_the_same_name_are_a_row_of_their_own(
    seeds: tuple[int, ...], fingerprints: str, expected: list[int], tmp_path: Path
) -> None:
    runs = [finished(tmp_path / f"{index}", 0.8, seed=seed) for index, seed in enumerate(seeds)]
    of_data(runs, fingerprints)
    assert [len(row.score.values) for row in rows_of(runs)] == expected
    assert not repeated(judged_runs(runs)[0], None, None)
    names = titles(rows_of(runs))
    assert len(set(names)) == len(names)
    configs = {run / "config.yaml": (run / "config.yaml").read_text() for run in runs}
    for config in configs:
        config.unlink()
    assert len(rows_of(runs)) == len(set(fingerprints))  # made in Python, where a name says nothing of the data
    for config, text in configs.items():
        config.write_text(text)
    of_data(runs[:1], "a", num_train=7)  # whatever moves with the seed keeps its size
    assert next(len(row.score.values) for row in rows_of(runs)) == 1


def test_other_methods_on_other_test_data_of_the_same_name_are_noted(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, 0.8) for name in ("dm", "dc", "mtt")]
    for run, method, tested_on in zip(runs, ("dm", "dc", "mtt"), ("a", "b", "b"), strict=True):
        changed(run, method=method, tested_on=tested_on)
    told = [record["notes"] for record in records(rows_of(runs))]
    assert [[note.rpartition(" (")[2] for note in notes] for notes in told] == [[f"test data {x})"] for x in "bab"]
    assert compare(*runs).notes()[0].startswith("not comparable with other rows of data of this name")
    assert "tested on other samples" in pd.read_csv(write_csv(rows_of(runs), tmp_path / "all.csv"))["notes"][0]
    assert not any(record["notes"] for record in records(rows_of(runs[1:])))
    changed(runs[0], tested_on=None)  # of an earlier version
    assert not any(record["notes"] for record in records(rows_of(runs)))


def test_judges_of_one_name_and_several_widths_are_noted(tmp_path: Path) -> None:
    runs = {name: finished(tmp_path / name, 0.8) for name in ("dc", "dm", "theirs", "python")}
    for method, run in runs.items():
        changed(run, method=method)

    def told(network: dict[str, str], options: dict[str, str], domain: str = "image") -> list[str]:
        for name, run in runs.items():
            record = json.loads((run / "distilled.json").read_text())
            own = {"network": network.get(name, ""), "info": {"domain": domain}}
            (run / "distilled.json").write_text(json.dumps({**record, **own}))
            (run / "config.yaml").write_text(options[name]) if name in options else (run / "config.yaml").unlink(True)
        notes = [(row["method"], note) for row in records(rows_of([*runs.values()])) for note in row["notes"]]  # type: ignore[attr-defined]
        return [f"{method} {note.rpartition(' (')[2]}" for method, note in notes]

    networks = {"dc": "convnet, 9 parameters", "dm": "convnet, 9 parameters", "python": "convnet, 9 parameters"}
    options = {"dc": "width: 8", "dm": "width: 8", "theirs": "width: 8"}
    assert told(networks, options) == []
    assert told(networks, {**options, "theirs": "seed: 0"}) == [
        "dc width 8)",
        "dm width 8)",
        "theirs the default width)",
    ]
    assert told(networks, {**options, "theirs": "judges: convnet"}) == []  # of its default width, but none can tell
    sized = {**networks, "theirs": "convnet, 9 parameters"}
    assert told(sized, {**options, "theirs": "seed: 0"}) == []  # the default width, named by the others
    other = {**networks, "python": "convnet, 18 parameters"}
    assert told(other, options) == ["dc 9 parameters)", "dm 9 parameters)", "python 18 parameters)"]
    assert told({**other, "python": "mlp, 18 parameters"}, options) == []
    assert told(other, options, domain="graph") == []


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_data_that_have_moved_are_those_of_the_runs_at_their_new_place(prefix: str, tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(2)]
    for index, run in enumerate(runs):
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**metrics, "data": f"{prefix}/job{index}/photos"}))
        (run / "config.yaml").write_text(f"data: {prefix}/job1/photos\nseed: {index}\n")
    (row,) = rows_of(runs)
    assert (row.data, len(row.score.values)) == (f"{prefix}/job1/photos", 2)


def test_steps_are_timed_where_there_are_any(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(2)]
    for run, pace in zip(runs, (0.1, 0.3), strict=True):
        changed(run, setup_seconds=1.0, seconds_per_step=pace)
    column = table(rows_of(runs))[0].index("ms a step")
    assert table(rows_of(runs))[1][column] == "200.0"
    assert pd.read_csv(write_csv(rows_of(runs), tmp_path / "all.csv"))["seconds_per_step"].tolist() == [0.2]
    changed(runs[1], seconds_per_step=None)
    assert table(rows_of(runs))[1][column] == "-"
    assert pd.read_csv(write_csv(rows_of(runs), tmp_path / "all.csv"))["seconds_per_step"].isna().tolist() == [True]


def test_runs_by_several_judges_say_which(tmp_path: Path) -> None:
    run, other = finished(tmp_path / "a", 0.8), finished(tmp_path / "b", 0.8)
    document = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps({**document, "results": document["results"][1:]}))
    lines = table(rows_of([run, other]))
    assert [line[4] for line in lines] == ["judged", "accuracy by convnet", "accuracy by mlp"]


def changed(run: Path, **parts: object) -> Path:
    """Change parts of a run's metrics."""
    document = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**document, **parts}))
    return run


def test_how_a_run_was_judged_makes_no_other_method(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(3)]
    for run, options in zip(runs, ("baselines: none\n", "networks: 3\njudges: convnet\n", "bytes: 100\n"), strict=True):
        (run / "config.yaml").write_text((run / "config.yaml").read_text() + options)
    changed(runs[0], baselines={})
    (row,) = rows_of(runs)
    assert len(row.score.values) == 3
    assert row.baselines["random"].values == pytest.approx((0.7, 0.7))
    assert titles([row]) == ["dm"]


def test_what_validation_trains_by_tells_runs_apart(tmp_path: Path) -> None:
    def row_counts(validate_every: int) -> list[int]:
        runs = [finished(tmp_path / f"{validate_every}-{seed}", 0.8, seed=seed) for seed in range(2)]
        for run, epochs in zip(runs, (10, 20), strict=True):
            made = json.loads((run / "distilled.json").read_text())
            made["settings"] |= {"validate_every": validate_every}
            (run / "distilled.json").write_text(json.dumps(made))
            (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"judge_epochs: {epochs}\n")
        return [len(row.score.values) for row in rows_of(runs)]

    assert row_counts(0) == [2]
    assert row_counts(5) == [1, 1]


def drawn(rows: list[Repetitions], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Draw rows and return the points of the baselines' dashed lines by what stands beside them."""
    lines: list[list[float]] = []
    names: list[str] = []
    plot, annotate = Axes.plot, Axes.annotate

    def noted(self: Axes, x: list[float], y: list[float], **options: object) -> list[Line2D]:
        if options.get("linestyle") == "--":
            lines.append(list(y))
        return plot(self, x, y, **options)  # type: ignore[arg-type]

    def named(self: Axes, text: str, *places: object, **options: object) -> object:
        names.append(text)
        return annotate(self, text, *places, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", noted)
    monkeypatch.setattr(Axes, "annotate", named)
    draw_budgets(rows, folder)
    return dict(zip(names, lines, strict=True))


def test_each_judge_has_baselines_of_its_own_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = finished(tmp_path / "a", 0.8)
    other = finished(tmp_path / "b", 0.6)
    entry = {**ENTRY, "judge": "ntk", "mean": 0.6}
    changed(other, results=[entry], baselines={"random": [{**entry, "mean": 0.3}]})
    rows = rows_of([one, other])
    found = drawn([*rows, *(replace(row, budget=10) for row in rows)], tmp_path, monkeypatch)
    assert found["random by convnet"] == pytest.approx([70.0, 70.0])
    assert found["random by ntk"] == pytest.approx([30.0, 30.0])


def test_of_one_budget_each_method_and_baseline_has_a_row_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [finished(tmp_path / method, mean) for method, mean in (("dm", 0.8), ("dc", 0.6))]
    for run in runs:
        changed(run, method=run.name)
    seen: list[Figure] = []
    monkeypatch.setattr("mmdistill.reporting.side_by_side.save_figure", lambda figure, target: seen.append(figure))
    draw_budgets(rows_of(runs), tmp_path)
    (axes,) = seen[0].axes
    names = dict(zip(axes.get_yticks().tolist(), (text.get_text() for text in axes.get_yticklabels()), strict=True))
    found: dict[str, list[float]] = {}
    for bars in axes.containers:
        (x, y), *_ = bars.lines[0].get_xydata().tolist()  # type: ignore[union-attr]
        found.setdefault(names[min(names, key=lambda tick: abs(tick - y))], []).append(round(x, 6))
    assert found == {"dc": [60.0], "dm": [80.0], "random": [50.0, 70.0]}  # each run has random images of its own
    assert axes.get_title() == "digits, ipc 1"


def test_a_long_legend_leaves_the_axes_their_room(tmp_path: Path) -> None:
    for index in range(8):
        run = finished(tmp_path / str(index), 0.8, 1 + index)
        settings = {"steps": 10, "note": f"{index} " + "of many words " * 20}
        (run / "distilled.json").write_text(json.dumps({"settings": settings, "seed": 0}))
    rows = [replace(row, budget=1) for row in rows_of([tmp_path / str(index) for index in range(8)])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (picture,) = draw_budgets(rows, tmp_path)
    height = int.from_bytes(picture.read_bytes()[20:24], "big")  # of a PNG's header
    assert height > 120 * 4 + 8 * 20


def test_a_table_for_other_programs_has_all_digits(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8 + 0.0123456789 * seed, seed=seed) for seed in range(2)]
    plain = finished(tmp_path / "plain", 0.5, ipc=10)
    changed(plain, baselines={})
    fewer = json.loads((runs[1] / "metrics.json").read_text())["results"][0]
    changed(runs[1], results=[{**fewer, "n": 3}])
    found = pd.read_csv(write_csv(rows_of([*runs, plain]), tmp_path / "comparison.csv"))
    assert found["budget"].tolist() == [1, 10]
    first = found.iloc[0]
    assert [float(value) for value in first["values"].split()] == [0.8, 0.8 + 0.0123456789]
    assert first["mean"] == pytest.approx(0.8 + 0.0123456789 / 2, abs=1e-15)
    assert first["sd"] == pytest.approx(0.0123456789 / 2**0.5)
    assert first["random_mean"] == pytest.approx(0.7 + 0.0123456789 / 2)
    assert found["random_mean"].isna().tolist() == [False, True]
    assert first[["runs", "networks", "judge", "metric"]].tolist() == [2, 3, "convnet", "accuracy"]


def test_a_papers_table_has_methods_as_rows_and_budgets_as_columns(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}-{ipc}", 0.5 + ipc / 100, ipc, seed) for seed in (0, 1) for ipc in (10, 2)]
    poorer = changed(finished(tmp_path / "dc", 0.4), method="d_c", budget={"ipc": 2, "stored_bytes": 100})
    changed(poorer, baselines={"random": [{**ENTRY, "mean": 0.1}], "whole": [{**ENTRY, "mean": 0.9}]})
    other = changed(finished(tmp_path / "mnist", 0.9, ipc=2), data="/of/mnist 50%.pt", baselines={})
    found = pivot(rows_of([*runs, poorer, other]))
    assert found.lines() == [
        ["", "mnist 50%, ipc 2", "digits, ipc 2", "digits, ipc 10"],
        ["random", "–", "42.0 ± 0.0", "50.0 ± 0.0"],  # of two runs, not of the other method's one
        ["dm", "90.0 ± 1.0", "52.0 ± 0.0", "60.0 ± 0.0"],
        ["d_c", "–", "40.0 ± 1.0", "–"],
        ["whole", "–", "90.0 ± 1.0", "–"],
    ]
    assert write_latex(found, tmp_path / "comparison.tex").read_text().splitlines()[3:] == [
        r"\begin{tabular}{lccc}",
        r"\toprule",
        r" & \multicolumn{1}{c}{mnist 50\%} & \multicolumn{2}{c}{digits} \\",
        r"\cmidrule(lr){2-2}\cmidrule(lr){3-4}",
        r" & ipc 2 & ipc 2 & ipc 10 \\",
        r"\midrule",
        r"random & -- & $42.0 \pm 0.0$ & $50.0 \pm 0.0$ \\",
        r"\midrule",
        r"dm & $90.0 \pm 1.0$ & $\mathbf{52.0} \pm 0.0$ & $\mathbf{60.0} \pm 0.0$ \\",  # a single one is not the best
        r"d\_c & -- & $40.0 \pm 1.0$ & -- \\",
        r"\midrule",
        r"whole & -- & $90.0 \pm 1.0$ & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_equal_means_and_better_baselines_are_bold_too(tmp_path: Path) -> None:
    runs = [changed(finished(tmp_path / name, 0.5), method=name, baselines={"whole": [ENTRY]}) for name in "ab"]
    tex = pivot(rows_of(runs)).latex()
    assert tex.count(r"\mathbf{50.0}") == 2
    assert "; runs: 1\n" in tex
    changed(runs[0], baselines={"herding": [{**ENTRY, "mean": 0.6, "n": 1}]})
    tex = pivot(rows_of(runs)).latex()
    assert tex.count(r"\mathbf") == 1
    assert r"herding & $\mathbf{60.0}$ \\" in tex
    for run in runs:  # of which a lower one is better
        changed(run, results=[{**ENTRY, "metric": "hard-label gap"}], baselines={})
    assert r"\mathbf" not in pivot(rows_of(runs)).latex()


def test_each_judge_has_columns_of_its_own_and_no_score_is_lost(tmp_path: Path) -> None:
    one, same = (
        finished(tmp_path / "a", 0.8),
        changed(finished(tmp_path / "b", 0.6), budget={"ipc": 1, "stored_bytes": 1}),
    )
    rows = [row for judge in ("convnet", "mlp") for row in rows_of([one, same], judge)]
    head, random, *methods = pivot(rows).lines()
    assert head[1:] == ["digits by convnet, ipc 1", "digits by mlp, ipc 1"]
    assert random[1:] == ["70.0 ± 1.0", "–"]
    assert methods == [["dm", "80.0 ± 1.0", "40.0 ± 1.0"], ["dm (b)", "60.0 ± 1.0", "30.0 ± 1.0"]]


def test_data_of_one_file_name_and_versions_have_columns_of_their_own(tmp_path: Path) -> None:
    places = ("one/train.csv", "other/train.csv", "photos-v1.5", "photos-v1.6")
    runs = [changed(finished(tmp_path / str(index), 0.5), data=place) for index, place in enumerate(places)]
    found = pivot(rows_of(runs))
    assert found.lines()[0][1:] == [f"{name}, ipc 1" for name in ("train", "train-2", "photos-v1.5", "photos-v1.6")]
    assert found.latex().count(r"\multicolumn") == 4


def test_runs_of_one_name_in_several_folders_all_have_rows(tmp_path: Path) -> None:
    alike = [
        changed(finished(tmp_path / name / "run", mean), budget={"ipc": 1, "stored_bytes": size})
        for name, mean, size in (("a", 0.1, 1), ("b", 0.2, 2), ("c", 0.3, 3))
    ]
    names, scores = zip(*((row[0], row[1]) for row in pivot(rows_of(alike)).lines()[2:]), strict=True)
    assert names == ("dm", "dm (run)", "dm (run, 2)")
    assert scores == ("10.0 ± 1.0", "20.0 ± 1.0", "30.0 ± 1.0")


def test_notes_of_scores_are_named_with_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(2)]
    runs += [finished(tmp_path / f"n{ipc}", 0.8, ipc=ipc) for ipc in range(2, 7)]
    for run in runs[1:]:  # of the first two, which are repetitions, one has a note
        changed(run, results=[{**ENTRY, "notes": ["predicts only 3 of 10 classes"]}])
    changed(runs[-1], results=[{**ENTRY, "notes": ["predicts only 3 of 10 classes", "cannot train"]}])
    assert main(["compare", *map(str, runs[2:]), "--to", str(tmp_path / "page")]) == 0
    assert "\nnote: predicts only 3 of 10 classes (all rows)\n" in capsys.readouterr().out
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "predicts only 3 of 10 classes (all rows)" in page
    assert "cannot train (dm, ipc 6, convnet)" in page
    found = pd.read_csv(tmp_path / "page" / "comparison.csv")
    assert found["notes"].tolist() == [
        *["predicts only 3 of 10 classes"] * 4,
        "predicts only 3 of 10 classes; cannot train",
    ]
    plain = finished(tmp_path / "plain", 0.8, ipc=7)
    assert main(["compare", *map(str, [*runs, plain])]) == 0
    named = "; ".join(f"dm, ipc {ipc}, convnet" for ipc in (1, 2, 3))
    assert f"note: predicts only 3 of 10 classes ({named}; and 3 more)" in capsys.readouterr().out


def test_notes_of_baselines_are_compared_by_their_names(tmp_path: Path) -> None:
    known, other = "predicts only 3 of 10 classes", "trained for 5 epochs (30 updates)"
    run = changed(
        finished(tmp_path / "a", 0.8),
        results=[{**ENTRY, "notes": [known]}],
        baselines={"random": [{**ENTRY, "notes": [known]}], "whole": [{**ENTRY, "notes": [other]}]},
    )
    assert rows_of([run])[0].notes == (known, f"whole: {other}")


def test_all_judges_are_shown_and_baselines_have_their_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(finished(tmp_path / f"s{seed}", 0.8 + 0.02 * seed, seed=seed)) for seed in range(2)]
    assert main(["compare", *runs, "--judge", "all"]) == 0
    said = capsys.readouterr().out
    assert "accuracy by convnet  81.0 +/- 1.4  71.0 +/- 1.4" in said
    assert "accuracy by mlp      40.5 +/- 0.7  -" in said
    assert main(["compare", *runs, "--judges", "mlp,vit"]) == 2
    assert "by vit (there are: accuracy by convnet, accuracy by mlp)" in capsys.readouterr().err


def test_baselines_that_only_some_runs_have_are_noted(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"s{seed}", 0.8, seed=seed) for seed in range(3)]
    assert rows_of(runs)[0].notes == ()
    changed(runs[1], baselines={})
    assert rows_of(runs)[0].notes == ("random: of 2 of the 3 runs",)


def test_of_two_runs_of_one_seed_that_with_more_baselines_counts(tmp_path: Path) -> None:
    poor, rich = changed(finished(tmp_path / "a", 0.8), baselines={}), finished(tmp_path / "b", 0.8)
    (row,) = rows_of([poor, rich])
    assert row.name == "b"
    assert repeated(judged_runs([poor, rich])[0], None, None) == {poor: rich}


def test_a_run_that_does_not_record_its_settings_makes_no_titles_long(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(index), 0.8, steps=10 + index) for index in range(3)]
    for run in runs:
        (run / "config.yaml").write_text((run / "config.yaml").read_text() + "encoder: minilm\n")
    (runs[0] / "distilled.json").unlink()
    (runs[1] / "config.yaml").unlink()
    assert titles(rows_of(runs)) == ["dm", "dm (steps 11)", "dm (steps 12)"]


def test_published_and_reduced_schedules_are_told_apart_beside_what_sets_say_of_theirs(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, 0.8) for name in ("published", "reduced")]
    for run in runs:
        (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"schedule: {run.name}\n")
        document = json.loads((run / "distilled.json").read_text())
        (run / "distilled.json").write_text(json.dumps({**document, "described": {"schedule": {"class": "Fresh"}}}))
    assert titles(rows_of(runs)) == ["dm (schedule published)", "dm (schedule reduced)"]
