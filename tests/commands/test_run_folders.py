"""What a run keeps in its folder, and the options that it is made by."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import safetensors.torch
import torch

from mmdistill import distill, evaluate, image_task, save_evaluation
from mmdistill.cli import build_parser, main
from mmdistill.commands.endings import folder_of
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.image import load
from mmdistill.runs.folder import COMMON_NAMES, is_own, why_occupied
from tests.commands.digits import FAST, distil


def test_a_run_folder_holds_everything(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"distilled.safetensors", "distilled.json", "metrics.json", "config.yaml", "history.json"} <= names
    assert list((run / "pictures").glob("*.png"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["budget"]["ipc"] == 1
    assert {"random", "herding", "whole"} == set(metrics["baselines"])


def test_a_run_finds_its_data_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    for folder in (place, elsewhere):
        folder.mkdir()
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    safetensors.torch.save_file({"images": images, "labels": torch.arange(20) % 2}, place / "digits.safetensors")
    monkeypatch.chdir(place)
    options = ["--method", "dm", "--ipc", "1", "--baselines", "none", "--out", "run", *FAST]
    assert main(["distill", "--data", "digits.safetensors", *options]) == 0
    assert DistilledSet.load(place / "run").info.data == str(place / "digits.safetensors")
    monkeypatch.chdir(elsewhere)
    assert main(["report", str(place / "run")]) == 0


def test_a_configuration_re_runs_exactly(run: Path, tmp_path: Path) -> None:
    assert main(["distill", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, second = (safetensors.torch.load_file(f / "distilled.safetensors") for f in (run, tmp_path / "again"))
    assert torch.equal(first["inputs"], second["inputs"])
    results = [json.loads((f / "metrics.json").read_text())["results"] for f in (run, tmp_path / "again")]
    assert results[0] == results[1]


def test_results_that_could_not_be_kept_are_not_begun(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("mmdistill.runs.judging.evaluate", Mock(side_effect=AssertionError("judging has begun")))
    assert main(["evaluate", str(run), "--judges", "mlp"]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_texts_of_a_configuration_stay_texts(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f"data: digits\nmethod: dm\nipc: 1\nout: '{tmp_path}/1e5'\nencoder: '1e3'\nbaselines: 'none'\n")
    found = build_parser().parse_args(["distill", "--config", str(file)])["distill"]
    assert (found["encoder"], found["out"]) == ("1e3", f"{tmp_path}/1e5")


def test_a_finished_run_is_not_resumed_on_other_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = tmp_path / "copy", load("digits")
    shutil.copytree(run, folder)
    other = replace(data, train_images=data.train_images.flip(0))
    monkeypatch.setattr("mmdistill.image.task.load", lambda *given, **options: other)
    assert main(["distill", "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert data.fingerprint in error
    assert other.fingerprint in error
    assert "bring the data back as they were, or name their place by --data" in error


def test_options_go_before_a_configuration_wherever_they_stand(run: Path, tmp_path: Path) -> None:
    """Else a run whose configuration is used again is replaced in place of the new one."""
    file, folder = str(run / "config.yaml"), tmp_path / "new"
    before = (run / "distilled.json").read_bytes()
    options = ["--out", str(folder), "--seed", "7"]
    assert main(["distill", *options, "--config", file, "--steps", "3"]) == 0
    assert main(["distill", *options, f"--config={file}", "--steps", "2", "--overwrite"]) == 0
    assert (DistilledSet.load(folder).seed, DistilledSet.load(folder).steps) == (7, 2)
    assert (run / "distilled.json").read_bytes() == before
    assert main(["distill", "--config", str(folder / "config.yaml"), "--steps", "1"]) == 2  # leave is not kept
    assert DistilledSet.load(folder).steps == 2


def test_a_configuration_may_leave_settings_empty_and_list_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("judges: [convnet, mlp]\nbaselines: []\nprotocol:\nresume:\n")
    assert distil(tmp_path / "run", "--config", str(file)) == 0
    judges = {entry["judge"] for entry in json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]}
    assert judges == {"convnet", "mlp"}
    file.write_text("data: digits\nmethod: dm\nipc: 2\nsteps: 1\nbaselines: none\nnetworks: 1\njudge_epochs: 1\n")
    given = ["distill", "--config", str(file)]
    assert main([*given, "--bytes", "3KB", "--out", str(tmp_path / "bytes")]) == 0
    assert json.loads((tmp_path / "bytes" / "metrics.json").read_text())["budget"]["ipc"] == 1
    assert main([*given, "--ipc", "1", "--bytes", "3KB", "--out", str(tmp_path / "both")]) == 2
    file.write_text("judges: []\n")
    assert distil(tmp_path / "unjudged", "--config", str(file)) == 0
    assert not (tmp_path / "unjudged" / "metrics.json").exists()
    assert DistillConfig.load(tmp_path / "unjudged" / "config.yaml").judges == "none"
    file.write_text("baselines:\njudges:\n")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        distil(tmp_path / "other", "--config", str(file), "--print_config")
    printed = capsys.readouterr().out
    assert "baselines: random,herding,whole" in printed
    file.write_text(printed.replace("random,herding,whole", "none"))
    assert main(["distill", "--config", str(file)]) == 0


@pytest.mark.parametrize("name", ["pictures", "checkpoints", "export", ".finished", "checkpoints/rank-1"])
def test_nothing_is_written_or_removed_where_a_link_leads_out_of_a_runs_folder(
    run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, others = tmp_path / "run", tmp_path / "others"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / name, ignore_errors=True)
    others.mkdir()
    mine = [others / own for own in ("images.png", "step-00000001.safetensors", ".x.mmdistill-part")]
    for path in mine:
        path.write_text("mine")
    (folder / name).symlink_to(others)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    asked = [["report", str(folder)], ["distill", "--resume", str(folder), "--steps", "9"]]
    for command in (*asked, ["export", str(folder), "--format", "folder"]):
        assert main(command) == 2
        assert f"{folder} holds the link {name}, which leads out of it to {others}" in capsys.readouterr().err
    assert distil(folder, "--overwrite") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert sorted(others.iterdir()) == sorted(mine)
    assert {path.read_text() for path in mine} == {"mine"}
    (tmp_path / "linked").symlink_to(folder)
    (folder / name).unlink()
    assert main(["report", str(tmp_path / "linked")]) == 0  # a run's folder may be a link itself


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta: digits", "unknown setting 'dta'; did you mean 'data'?"),
        ("ipc: lots", "has ipc: 'lots', which cannot be"),
        ("overwrite: 3", "has overwrite: 3, which cannot be"),
        ("compile: maybe", "has compile: 'maybe', which cannot be"),
        ("seed: true", "has seed: True, which cannot be"),
        ("- digits", "holds no settings by name"),
        ("", "holds no settings by name"),
        ("data: [", "is damaged"),
        ("data: !!python/object/apply:os.getcwd []", "is damaged"),
        ("data: 2020-13-45", "is damaged"),
        ("ipc: !!int ''", "is damaged"),
        ("set: &a [lr=1]\nmodel: *a", "is damaged: an alias (*) of a list or mapping"),
        ("set: &a [*a]", "is damaged: an alias (*) of a list or mapping"),
        (f"ipc: {'x' * 999}", f"has ipc: '{'x' * 79}, which cannot be"),
    ],
)
def test_a_configuration_that_a_person_broke_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        DistillConfig.load(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("ipcs: 1", "mine.yaml has an unknown setting 'ipcs'; did you mean 'ipc'?"), ("data: [", "mine.yaml is damaged")],
)
def test_errors_of_a_file_of_settings_name_it(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["distill", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_a_run_made_in_python_is_called_that(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("distilled.json", "distilled.safetensors"):
        shutil.copy(run / name, tmp_path)
    assert main([command, str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert f"{tmp_path} holds no config.yaml, so nothing says which data and network its run is of" in printed
    assert "DistilledSet.load" in printed


def test_all_settings_survive_the_disk(tmp_path: Path) -> None:
    config = DistillConfig(data="digits", method="dm", ipc=1, lr=1, inner_lr=0.5, augment=True, init="real", out="a b")
    config.save(tmp_path / "config.yaml")
    assert DistillConfig.load(tmp_path / "config.yaml") == config


def test_a_file_of_another_encoding_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_bytes("data: sch\xf6n\n".encode("latin-1"))
    assert main(["distill", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.yaml", "history.json", "metrics.json"])
@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--dry-run"]])
def test_a_persons_files_of_the_same_names_stay(
    name: str, extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("{}")
    assert distil(tmp_path, *extra) == (0 if "--dry-run" in extra else 2)
    assert f"holds a {name} of yours, which the run's own would replace" in "".join(capsys.readouterr())
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == [name]
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize("comment", ["# mine\n", ""])
def test_the_configuration_that_a_run_is_given_is_not_replaced_by_it(
    comment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{comment}data: digits\nmethod: dm\nipc: 1\n"
    (tmp_path / "config.yaml").write_text(text)
    assert main(["distill", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path)]) == 2
    assert "rename it, or choose another --out" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == text


def test_a_runs_own_files_are_told_from_others(run: Path, tmp_path: Path) -> None:
    for name in COMMON_NAMES:
        assert is_own(run / name)
        shutil.copy(run / name, tmp_path)
    assert why_occupied(tmp_path, other="another --out", writes=COMMON_NAMES) == ""
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("# mine\n")
    assert "config.yaml of yours" in why_occupied(tmp_path, other="another --out", writes=COMMON_NAMES)
    assert why_occupied(tmp_path, other="another --out") == ""
    for damaged in ("[1]", "[" * 100_000, ""):
        (tmp_path / "history.json").write_text(damaged)
        assert not is_own(tmp_path / "history.json")


def test_python_leaves_files_that_its_runs_do_not_write(tmp_path: Path) -> None:
    task, mine = image_task("digits", width=4), ("config.yaml", "metrics.json")
    for name in mine:
        (tmp_path / name).write_text("{}")
    made = distill(task, "dm", 1, out=tmp_path, settings={"steps": 1})
    assert all((tmp_path / name).read_text() == "{}" for name in mine)
    scores = evaluate(task, made, n=1, baselines="none")
    with pytest.raises(CheckpointError, match=r"is no metrics\.json of mmdistill"):
        save_evaluation(task, made, scores, tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a metrics\.json of yours"):
        save_evaluation(task, made, scores, tmp_path / "new")
    (tmp_path / "new" / "history.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a history\.json of yours"):
        distill(task, "dm", 1, out=tmp_path / "new", settings={"steps": 1})


def test_a_file_is_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert distil(tmp_path / "notes.txt") == 2
    assert "is a file, and a run needs a folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("seed", "name"), [([], "digits-dm-1"), (["--seed", "0"], "digits-dm-1"), (["--seed", "3"], "digits-dm-1-seed3")]
)
def test_runs_of_other_seeds_have_folders_of_their_own(seed: list[str], name: str) -> None:
    found = build_parser().parse_args(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", *seed]).distill
    config = DistillConfig(data=found.data, method=found.method, ipc=found.ipc, seed=found.seed)
    assert config.folder() == Path("runs") / name


def test_the_spelling_of_a_data_set_makes_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["distill", "--data", "Digits", "--method", "dm", "--ipc", "1", "--baselines", "none", *FAST]
    assert main(command) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["digits-dm-1"]
    assert DistillConfig.load(Path("runs") / "digits-dm-1" / "config.yaml").data == "digits"
    assert main(["digits" if word == "Digits" else word for word in command]) == 2
    assert "already holds a finished run" in capsys.readouterr().err


def test_an_interrupted_run_is_named_by_the_one_name_of_its_data() -> None:
    options = ["distill", "--data", "Digits", "--method", "dm", "--ipc", "1"]
    assert folder_of(build_parser().parse_args(options)) == Path("runs") / "digits-dm-1"
    assert folder_of(build_parser().parse_args([*options, "--out", "mine"])) == Path("mine")


def test_a_seed_of_the_split_holds_out_the_same_samples_for_all_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = tmp_path / "mine.safetensors"
    safetensors.torch.save_file({"images": images, "labels": torch.arange(40) % 2}, data)
    options = ["--data", str(data), "--method", "dm", "--ipc", "1", "--baselines", "random", *FAST]

    def tested(name: str, *chosen: str) -> object:
        assert main(["distill", *options, "--out", str(tmp_path / name), *chosen]) == 0
        assert main(["evaluate", str(tmp_path / name), "--judges", "mlp", "--networks", "1", "--seed", "5"]) == 0
        assert "earlier results are dropped" not in capsys.readouterr().out
        return json.loads((tmp_path / name / "metrics.json").read_text())["tested_on"]

    alike = [tested(f"split-{seed}", "--seed", str(seed), "--split-seed", "3") for seed in (0, 1)]
    assert alike == [tested("three", "--seed", "3")] * 2
    assert tested("plain") != alike[0]
    assert main(["distill", "--resume", str(tmp_path / "split-1"), "--steps", "8"]) == 0
    assert json.loads((tmp_path / "split-1" / "metrics.json").read_text())["tested_on"] == alike[0]
    assert main(["distill", "--resume", str(tmp_path / "split-0"), "--steps", "8"]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "split-0"), str(tmp_path / "split-1"), "--to", str(tmp_path / "page")]) == 0
    assert "held out different data" not in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "page" / "comparison.csv")["runs"].tolist() == [2]
    runs = [tmp_path / "three", tmp_path / "plain"]
    assert main(["compare", *map(str, runs)]) == 0
    assert "held out different data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("hf:ag_news", "hf-ag_news-krr-10"),
        ("hf:glue:sst2", "hf-glue-sst2-krr-10"),
        ("./", "here-krr-10"),
        ("../here/..", "{above}-krr-10"),
        ("a b/my_table.v2.csv", "my_table.v2-krr-10"),
    ],
)
def test_run_folders_have_names_that_every_system_takes(
    data: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    expected = Path("runs") / name.format(above=tmp_path.name)
    assert DistillConfig(data=data, method="krr", ipc=10).folder() == expected
