"""The command line as a person meets it, on the embedded digits."""

import errno
import importlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from mmdistill import distill, graph_set_task, graph_task, image_task, recsys_task, text_task
from mmdistill.cli import FORMATS, build_parser, main, spelled
from mmdistill.commands import finished, listings, making
from mmdistill.commands.wording import GROUPS
from mmdistill.config import SETTINGS, DistillConfig, read_settings
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, DataError, MmdistillError, MmdistillWarning, note_kept
from mmdistill.files.locks import sole_writer
from mmdistill.image import load
from mmdistill.registry import DOMAIN_PACKAGES, domain_methods, get_domain, get_method
from mmdistill.runs.state import RunState
from mmdistill.runtime import atomic_write
from mmdistill.settings import TRAINING, Settings
from mmdistill.store import write_text
from mmdistill.task import Batch, Task

FAST = ["--steps", "6", "--width", "8", "--networks", "1", "--judge-epochs", "2", "--real-batch", "8"]


def distil(folder: Path, *extra: str) -> int:
    return main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--out", str(folder), *FAST, *extra])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert distil(folder) == 0
    return folder


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


def test_an_export_has_a_folder_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    for place in ("", " ", str(run), str(run / "pictures" / "..")):
        assert main(["export", str(run), "--to", place]) == 2
        assert "--to names a folder of the export's own" in capsys.readouterr().err
    assert sorted(run.iterdir()) == before


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
    assert "this set was distilled from 'digits' as it was" in capsys.readouterr().err


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
    file.write_text("baselines:\njudges: []\n")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        distil(tmp_path / "other", "--config", str(file), "--print_config")
    printed = capsys.readouterr().out
    assert "baselines: random,herding,whole" in printed
    file.write_text(printed.replace("random,herding,whole", "none"))
    assert main(["distill", "--config", str(file)]) == 0


def test_judging_again_adds_to_the_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--models", "MLP", "--networks", "2", "--baselines", "none"]) == 0
    assert "mlp" in capsys.readouterr().out
    judges = [entry["judge"] for entry in json.loads((run / "metrics.json").read_text())["results"]]
    assert judges == ["convnet", "mlp"]


def test_several_runs_are_judged_and_drawn_though_one_cannot_be(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "a" / "config.yaml").write_text("nothing: here\n")
    before = (tmp_path / "runs" / "a" / "metrics.json").read_text()
    judge = ["--judges", "mlp", "--networks", "1", "--baselines", "none"]
    assert main(["evaluate", str(tmp_path / "runs"), str(run), str(tmp_path / "runs" / "b"), *judge]) == 2
    told = capsys.readouterr()
    places = [told.out.index(f"{folder}:") for folder in (tmp_path / "runs" / "a", tmp_path / "runs" / "b", run)]
    assert places == sorted(places)
    assert told.out.count("mlp") == 2
    assert "failed: " in told.out[places[0] : places[1]]
    assert f"1 of 3 runs failed: {tmp_path / 'runs' / 'a'} (see above)" in told.err
    assert "mlp" in (tmp_path / "runs" / "b" / "metrics.json").read_text()
    assert (tmp_path / "runs" / "a" / "metrics.json").read_text() == before
    assert main(["report", str(run), str(tmp_path / "runs" / "b")]) == 0
    assert capsys.readouterr().out.count("report.html") == 2


def test_what_nobody_foresaw_of_one_runs_files_keeps_no_other_from_its_turn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "report.md").unlink(missing_ok=True)
    found = DistilledSet.load(run)
    assert isinstance(found.batch.inputs, Tensor)
    wide = replace(found, batch=found.batch._replace(inputs=found.batch.inputs.flatten(1)))
    wide.save(tmp_path / "a")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "failed: " in said.out
    assert "1 of 2 runs failed" in said.err
    assert (tmp_path / "b" / "report.md").is_file()


def test_baselines_that_were_judged_otherwise_are_dropped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    judge = ["evaluate", str(folder), "--judges", "convnet", "--networks", "1", "--baselines"]
    assert main([*judge, "none"]) == 0
    assert "dropped" not in capsys.readouterr().out
    assert main([*judge, "random", "--judge-epochs", "3"]) == 0
    dropped = "dropped, since judged otherwise than the set now is: herding by convnet, whole by convnet\n"
    assert dropped in capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    entries = [e for es in (metrics["results"], *metrics["baselines"].values()) for e in es if e["judge"] == "convnet"]
    assert [entry["judging"] for entry in entries] == [{"epochs": 3}] * 2
    assert main(["report", str(folder)]) == 0
    assert "| convnet (epochs 3) | accuracy |" in (folder / "report.md").read_text()


def test_nothing_stays_that_was_judged_on_other_test_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    before = json.loads((folder / "metrics.json").read_text())
    data = load("digits")
    relabelled = replace(data, test_labels=data.test_labels.roll(1))
    assert relabelled.fingerprint == data.fingerprint
    monkeypatch.setattr("mmdistill.image.task.load", lambda *given, **options: relabelled)
    assert main(["evaluate", str(folder), "--judges", "mlp", "--networks", "1", "--baselines", "none"]) == 0
    printed = capsys.readouterr().out
    assert "note: the test data are others than before, so earlier results are dropped\n" in printed
    assert "dropped, since judged otherwise" not in printed
    after = json.loads((folder / "metrics.json").read_text())
    assert [entry["judge"] for entry in after["results"]] == ["mlp"]
    assert after["baselines"] == {}
    assert before["tested_on"] != after["tested_on"] == relabelled.test_fingerprint
    assert main(["distill", "--resume", str(folder)]) == 0
    resumed = json.loads((folder / "metrics.json").read_text())
    assert {entry["judge"] for entry in resumed["results"]} == {"mlp", "convnet"}
    assert set(resumed["baselines"]) == set(before["baselines"])


def test_a_judge_in_closed_form_has_no_epochs(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / "metrics.json").unlink()  # what is judged again would keep its place
    judge = ["evaluate", str(folder), "--networks", "1", "--baselines", "random", "--judges"]
    assert main([*judge, "ntk,mlp", "--judge-epochs", "3", "--judge-batch", "5"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    entries = [*metrics["results"], *metrics["baselines"]["random"]]
    judging = [(entry["judge"], entry.get("judging")) for entry in entries if entry["judge"] in ("ntk", "mlp")]
    assert judging == 2 * [("ntk", None), ("mlp", {"epochs": 3, "batch": 5})]
    assert main(["report", str(folder)]) == 0
    assert "| ntk | accuracy |" in (folder / "report.md").read_text()


def test_judging_again_goes_as_the_run_says(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    judge = ["evaluate", str(folder), "--networks", "1", "--baselines", "none", "--judges", "convnet"]

    def judging() -> list[object]:
        found = json.loads((folder / "metrics.json").read_text())["results"]
        return [(e["judge"], e.get("judging")) for e in found if e["judge"].startswith("convnet")]

    assert main([*judge, "--judge-batch", "5"]) == 0
    assert judging() == [("convnet", {"epochs": 2, "batch": 5})]
    assert main([*judge, "--protocol", "dm", "--judge-epochs", "1"]) == 0
    assert judging()[1:] == [("convnet [dm]", {"epochs": 1})]
    assert main([*judge, "--judge-precision", "bf16"]) == 0
    assert judging()[0] == ("convnet", {"epochs": 2, "precision": "bf16"})
    assert main([*judge, "--judge-precision", "float32"]) == 0
    assert judging()[0] == ("convnet", {"epochs": 2})


def test_the_report_is_one_page(run: Path) -> None:
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "random" in (run / "report.md").read_text()


def test_exports(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "pt", "--to", str(tmp_path)]) == 0
    images = torch.load(tmp_path / "images.pt", weights_only=True)
    assert images.shape == (10, 1, 8, 8)
    assert torch.load(tmp_path / "labels.pt", weights_only=True).tolist() == list(range(10))
    assert main(["export", str(run), "--format", "tensor"]) == 2
    assert "did you mean 'tensors'" in capsys.readouterr().err


def other_set(run: Path, folder: Path) -> Path:
    """Return a copy of a run with another set: of half the contrast, and with a rate that was learned."""
    shutil.copytree(run, folder)
    found = DistilledSet.load(run)
    assert isinstance(found.batch.inputs, Tensor)
    paler = found.batch._replace(inputs=found.batch.inputs / 2)
    replace(found, batch=paler, learned={"inner_lr": torch.tensor(0.1)}).save(folder)
    return folder


def test_exports_of_one_set_leave_each_other_alone(run: Path, tmp_path: Path) -> None:
    kept = {}
    for format in ("pt", "ddranking", "folder", "tensors"):
        assert main(["export", str(run), "--format", format, "--to", str(tmp_path)]) == 0
        assert {path: path.read_bytes() for path in kept} == kept
        kept = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "export.json"}
    assert {"images.pt", "ddranking/images.pt"} <= {path.relative_to(tmp_path).as_posix() for path in kept}


@pytest.mark.parametrize("format", ["folder", "pt"])
def test_exports_of_two_sets_do_not_mix(
    format: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, target = other_set(run, tmp_path / "other"), tmp_path / "exported"
    assert main(["export", str(other), "--format", "tensors", "--to", str(target)]) == 0
    assert main(["export", str(other), "--format", format, "--to", str(target)]) == 0
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["export", str(run), "--format", format, "--to", str(target)]) == 2
    assert f"{target} holds the export of another set (images.safetensors and more)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_what_a_killed_export_left_hinders_no_later_one(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--format", "folder", "--to", str(tmp_path)]) == 0
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place in (tmp_path, tmp_path / "images", tmp_path / "images" / "0"):
        (place / ".000000.png.abcd.mmdistill-part").write_bytes(b"half a pic")
    assert main(["export", str(run), "--format", "folder", "--to", str(tmp_path)]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == made


def test_one_export_at_a_time_writes_into_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sole_writer(tmp_path / "to"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ["export", str(run), "--to", str(tmp_path / "to")]).result() == 2
    assert f"another process is at work in {tmp_path / 'to'}" in capsys.readouterr().err


def test_pictures_of_other_origin_are_not_exported_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "images" / "0" / "000099.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert main(["export", str(run), "--format", "folder", "--to", str(tmp_path)]) == 2
    assert f"{mine} is no picture of this set" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_a_run_that_replaces_another_leaves_nothing_of_it_but_what_is_the_users(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "replaced"
    shutil.copytree(run, folder)

    def draw(task: Task, batch: Batch, place: Path) -> list[Path]:
        write_text(place / "own.md", "as a domain of one's own names it")
        return [place / "own.md"]

    with monkeypatch.context() as patched:
        patched.setattr("mmdistill.runs.saving.get_domain", lambda name: replace(get_domain(name), draw=draw))
        assert main(["report", str(folder)]) == 0
    assert {path.name for path in (folder / "pictures").iterdir()} == {"images.png", "loss.png", "own.md", "drawn.json"}
    assert main(["export", str(folder), "--format", "folder"]) == 0
    notes = [folder / "notes.md", folder / "export" / "mine.txt", folder / "export" / "images" / "0" / "mine.txt"]
    notes += [folder / "pictures" / "holiday.png", folder / "pictures" / "mine.md"]
    for path in notes:
        path.write_text("mine")
    assert distil(folder, "--overwrite", "--baselines", "none") == 0
    assert all(path.read_text() == "mine" for path in notes)
    assert [path.name for path in (folder / "export").rglob("*") if path.is_file()] == ["mine.txt"] * 2
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        *("images.png", "drawn.json", "holiday.png", "mine.md")
    }
    assert not list(folder.glob("report.*"))


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


def test_the_documented_use_of_an_exported_set(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--format", "pt", "--to", str(tmp_path)]) == 0
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    section = page.partition("## Using an exported set")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    data = load("digits")
    capsys.readouterr()
    exec(block, {"test_images": data.test_images, "test_labels": data.test_labels})
    assert float(capsys.readouterr().out.split()[1]) > 0.4  # of ten classes


def test_help_names_what_the_domains_have(capsys: pytest.CaptureFixture[str]) -> None:
    formats = [re.findall(r"[a-z]+", line.partition(":")[2].replace(" or ", " ")) for line in FORMATS.split(";")]
    assert formats == [list(get_domain(name).exports) for name in DOMAIN_PACKAGES]
    with pytest.raises(SystemExit):
        main(["methods", "--help"])
    assert ", ".join(DOMAIN_PACKAGES).replace(", recsys", " or recsys") in " ".join(capsys.readouterr().out.split())


def test_help_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        return capsys.readouterr().out

    commands = shown()
    distill = shown("distill")
    sweep = shown("sweep")
    others = ("experts", "evaluate", "compare", "export", "data")
    for text in (commands, distill, sweep, *(shown(name) for name in others)):
        assert "type:" not in text
        assert "null" not in text
        assert "mmdistill [options]" not in text
        assert not re.search(r"--\w+_", text)
    assert "--bytes SIZE) [options]\n" in distill
    assert re.search(r"commands:\n.*--help' for a command's options\.\n\n    distill +distil a data set", commands)
    for text in (distill, sweep):
        plain = text.partition("\noptions:\n")[2].partition("\n\n")[0]
        assert plain.strip().startswith("-h, --help")
        assert "--" not in plain.partition("--help")[2]  # every option stands in a group
        for title in GROUPS:
            assert f"\n{title}:\n" in text
    assert "--init {real,noise,herding,k-center,k-means,craig}" in distill
    assert "--ipc N" in distill
    for name in DOMAIN_PACKAGES:
        for data, methods in get_domain(name).reduced.items():
            reduced = " ".join(distill.split()).partition("--schedule {published,reduced}")[2].partition("(default")[0]
            assert (data if data != "*" else next(iter(methods))) in reduced
    assert "(default: random,herding,whole)" in " ".join(distill.split())


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--long"]) == 0
    methods = capsys.readouterr().out
    assert "  Table 1 of the survey: what is matched | on which networks" in methods
    rows = re.findall(r"^ {25}(\S.*)$", methods.partition("\ngraph ")[0], re.MULTILINE)
    assert {row.partition(":")[0] for row in rows} == {"Table 1", "no row of its own in Table 1"}
    for name in ("dm", "dc", "dsa", "krr", "gcond-x", "gcdm-x", "ridge-exact", "distill-cf", "distill-cf-meanfield"):
        assert f"  {name} " in methods
    assert main(["data"]) == 0
    data = capsys.readouterr().out
    for name in ("digits", "mnist", "cifar10", "cora", "sst2", "trec", "ml-1m"):
        assert f"  {name} " in data
    assert data.count("  PATH to import ") == len(DOMAIN_PACKAGES)
    for line in data.splitlines():
        if line.startswith("  ") and not line.startswith("  PATH"):
            assert any(words in line for words in ("; downloaded", "; bring ", "needs no download")), line


def test_methods_are_listed_in_a_line_each_above_their_row_of_table_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*given: str) -> list[str]:
        assert main(["methods", *given]) == 0
        return capsys.readouterr().out.splitlines()

    short = shown("image")
    assert shown("--domain", "image") == short
    rows = [line for line in short if re.match("  [a-z]", line) and "--" not in line]
    assert len(rows) == len(domain_methods(get_domain("image")))
    (cafe,) = [row for row in rows if row.startswith("  cafe ")]
    assert cafe.endswith(" classify real samples [Wang et al., CVPR 2022]")  # departures are for --long
    below = short[short.index(cafe) + 1]
    assert below.strip() == "Table 1: distribution (variant) | trained on S | raw or DSA | fixed"
    assert sum("Table 1: " in line for line in short) == 20
    assert "--long" in short[-1]
    assert {"graph (budget: --nodes)", "recsys (budget: --users)"} <= set(shown())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert all(len(line) <= 100 for line in shown("image") if "--" not in line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods", "imag"], "did you mean 'image'"),
        (["distill", "--data", "digit", "--method", "dm", "--ipc", "1"], "did you mean 'digits'"),
        (["distill", "--data", "digits", "--method", "dmm", "--ipc", "1"], "did you mean 'dm'?"),
        (["distill", "--data", "digits", "--method", "dn", "--ipc", "1"], "did you mean 'dc' or 'dd' or 'dm'?"),
        (
            ["distill", "--data", "digits", "--method", "qqqq", "--ipc", "1"],
            "unknown method for image data 'qqqq' (there",
        ),
        (["distill", "--data", "digits", "--method", "dm", "--nodes", "7"], "--ipc N or --bytes SIZE"),
        (["distill", "--data", "digits", "--method", "dm"], "got no budget"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "0"], "the budget (--ipc) is between 1 and"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "9" * 20], "the budget (--ipc) is between 1"),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--judges", "convent"],
            "unknown judge 'convent'; did you mean 'convnet'?",
        ),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--validate-every", "5"],
            "cannot validate; leave --validate-every out",
        ),
        (
            ["distill", "--data", "digits", "--method", "random-soft", "--ipc", "1", "--steps", "5"],
            "Random, soft has a closed form and takes no steps, so --steps would do nothing",
        ),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--judge-batch", "0"], "--judge-batch is"),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--judge-epochs", "0"],
            "--judge-epochs is a whole number of at least 1",
        ),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--lr", "-1"], "lr is a number of at least 0"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--device", "mps"], "use cpu or cuda"),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--encoder", "tfidf"],
            "--encoder is for text data, and 'digits' is image data; leave it out",
        ),
        (
            ["distill", "--data", "cora", "--method", "dm", "--nodes", "70", "--augment", "true"],
            "--augment is for image data, and 'cora' is graph data; graphs are not augmented",
        ),
        (
            ["distill", "--data", "cora", "--method", "dm", "--nodes", "70", "--judge-batch", "3"],
            "--judge-batch is for image, text and recsys data",
        ),
        (
            ["distill", "--data", "cora", "--method", "dm", "--nodes", "70", "--judge-precision", "bf16"],
            "--judge-precision is for image data",
        ),
        (
            ["distill", "--data", "mutag", "--method", "doscond", "--ipc", "1", "--model", "gin"],
            "--model is for image, graph, text and recsys data",
        ),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--size", "9"], "a size is for the images of"),
        (["experts", "--data", "digits", "--experts", "0"], "--experts is a whole number of at least 1, got 0"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "500"], "fewer than the 500 asked for"),
        (["evaluate", "RUN", "--baselines", "rnadom"], "did you mean 'random'"),
        (["distill", "--method", "dm", "--ipc", "1"], "--data is needed"),
        (["distill", "--data", "no/such/file.csv", "--method", "dm", "--ipc", "1"], "neither a known data set nor"),
        (["distill", "--data", "./nofolder", "--method", "dm", "--ipc", "1"], "neither a known data set nor"),
        (
            ["distill", "--data", "digits", "--method", "gcond", "--ipc", "1"],
            "gcond is a method for graph data, and digits is image data",
        ),
        (["distill", "--resume", "nowhere"], "is no run folder"),
        (["evaluate", "nowhere"], "is no folder"),
        (["methods", "--domain", "imag"], "did you mean 'image'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    if arguments[0] == "distill" and "--resume" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("option", [("--ipc", "0"), ("--ipc", "1", "--lr", "-1"), ("--ipc", "1", "--networks", "0")])
def test_values_that_cannot_be_are_refused_before_anything_is_noted(
    option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), 20 * index).save(tmp_path / "pets" / name / f"{index}.png")
    given = ["distill", "--data", str(tmp_path / "pets"), "--method", "dm", "--out", str(tmp_path / "run")]
    assert main([*given, *option]) == 2
    assert capsys.readouterr().out == ""


def test_a_folder_of_runs_is_answered_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("digits", "mnist"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "distilled.json").write_text("{}")
    assert main(["export", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no distilled set" in (said := capsys.readouterr().err)
    assert said.endswith("; it holds the runs digits, mnist\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--ipc", "many"], "--ipc takes a whole number, got 'many' (see mmdistill distill --help)"),
        (["distill", "--lr", "nan"], "--lr takes a number, got 'nan'"),
        (["distill", "--augment", "perhaps"], "--augment takes true or false, got 'perhaps'"),
        (["distill", "--compile", "maybe"], "--compile takes auto, on, off, got 'maybe'"),
        (["distill", "--label", "warm"], "--label takes hard, soft, unrestricted, teacher, got 'warm'"),
        (["distill", "--real-bach", "3"], "unknown option --real-bach; did you mean '--real-batch'?"),
        (["distill", "--stesp=3"], "unknown option --stesp; did you mean '--steps'?"),
        (["distill", "--learning-rate", "1"], "unknown option --learning-rate; did you mean '--lr'?"),
        (["distill", "--batch_size", "1"], "unknown option --batch-size; did you mean '--real-batch'?"),
        (["distill", "--verbose"], "unknown option --verbose (see"),
        (["export", "runs/x", "--out", "x"], "did you mean '--to'?"),
        (["evaluate", "runs/x", "--epochs=3"], "did you mean '--judge-epochs'?"),
        (["evaluate", "runs/x", "--seeds", "5"], "did you mean '--networks'?"),
        (["distill", "--seeds", "5"], "did you mean '--seed'?"),
        (["distill", "more"], "unexpected argument 'more'"),
        (["evaluate"], "required: runs (see mmdistill evaluate --help)"),
        (["distill", "--config", "absent.yaml"], "--config: File does not exist"),
        (["destill"], "unknown command 'destill'; did you mean 'distill'? (there are: distill, sweep, "),
    ],
)
def test_arguments_that_cannot_be_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_warnings_of_ours_are_notes_and_others_stay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = []

    def command() -> None:
        warnings.warn("compiling failed", MmdistillWarning, stacklevel=1)
        warnings.warn("something of another library", stacklevel=1)

    def shown(*given: object, **named: object) -> None:
        others.append(str(given[0]))

    monkeypatch.setattr(listings, "data_command", command)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", shown)
        assert main(["data"]) == 0
        assert warnings.showwarning is shown
    assert capsys.readouterr().err == "note: compiling failed\n"
    assert others == ["something of another library"]


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


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


@pytest.mark.parametrize("task", [image_task, graph_task, graph_set_task, text_task, recsys_task])
def test_what_has_a_separator_is_a_path(task: Callable[[str], object]) -> None:
    with pytest.raises(MmdistillError, match=r"\./nofolder. is neither a known data set nor an existing"):
        task("./nofolder")


@pytest.mark.parametrize("content", ["client,product,stars,when\n1,2,5,7\n3,4,1,8\n", "1,2,5,7\n3,4,1,8\n"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method", "distill-cf-binary", "--users", "1"], "Name it with --user-column (user_column)"),
        (["--method", "distill_ease"], "Name it with --user-column (user_column)"),
        (["--method", "dm", "--users", "1"], "Name it with --user-column (user_column)"),
        (["--method", "dm-tokens", "--ipc", "1"], "name their columns with --user-column and --item-column"),
    ],
)
def test_a_table_of_unknown_columns_is_what_its_method_or_budget_is_for(
    content: str, given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text(content)
    assert main(["distill", "--data", str(tmp_path / "log.csv"), *given, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_a_table_without_texts_names_the_options_of_interactions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text("who,what\n1,2\n3,4\n")
    given = ["--data", str(tmp_path / "log.csv"), "--ipc", "1", "--method", "dm"]
    assert main(["distill", *given, "--out", str(tmp_path / "run")]) == 2
    assert "recsys_task(data, user_column=..., item_column=...)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_a_run_made_in_python_is_called_that(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("distilled.json", "distilled.safetensors"):
        shutil.copy(run / name, tmp_path)
    assert main([command, str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert f"{tmp_path} holds no config.yaml: it was removed, or the run was made in Python" in printed
    assert "DistilledSet.load" in printed


def test_an_interruption_says_what_was_kept_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
        stop = KeyboardInterrupt()
        stop.add_note("finished experts are kept")
        raise stop

    monkeypatch.setattr(making, "distill_command", interrupted)
    assert distil(tmp_path / "run") == 130
    assert capsys.readouterr().err == "mmdistill: stopped; finished experts are kept\n"


def test_what_an_interruption_leaves_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
        stop = KeyboardInterrupt()
        note_kept(stop, "finished experts are kept")
        raise stop

    monkeypatch.setattr(making, "distill_command", interrupted)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    assert distil(tmp_path / "run") == 130
    assert capsys.readouterr().err == "mmdistill: stopped; finished experts are kept\n"
    note_kept(KeyboardInterrupt(), "as in Python")
    assert capsys.readouterr().err == "as in Python\n"


@pytest.mark.parametrize("replaced", [True, False])
def test_an_interruption_before_the_former_run_is_replaced_does_not_offer_to_resume_it(
    replaced: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(run, folder)
    interrupted = Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as patched:  # in the first step, or when the set that it led to is judged
        patched.setattr(Distiller, "step", Distiller.step if replaced else interrupted)
        patched.setattr(making, "judge_missing", interrupted)
        assert distil(folder, "--overwrite", "--lr", "3") == 130
    printed = capsys.readouterr().err
    assert ("continue with" in printed) == replaced
    assert (f"the former run in {folder} is untouched" in printed) != replaced
    assert ("nothing of the new run is finished yet" in printed) != replaced


def test_sigterm_ends_a_command_as_an_interruption_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(*arguments: object) -> None:
        with atomic_write(tmp_path / "made" / "file"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(finished, "export_command", terminated)
    assert main(["export", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "mmdistill: stopped; finished work is kept\n"
    assert not any((tmp_path / "made").iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_sigterm_that_is_ignored_or_handled_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    monkeypatch.setattr("mmdistill.commands.listings.data_command", lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert main(["data"]) == 0
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert main(["data"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_cache_that_cannot_be_written_to_is_named_with_its_remedy(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    common = ["--data", "digits", "--model", "mlp", "--width", "4", "--ipc", "1"]
    assert main(["distill", *common, "--method", "mtt", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "file" / "cache") in said
    assert "set MMDISTILL_CACHE to a folder that can be written to" in said
    assert main(["export", str(run), "--to", str(tmp_path / "file" / "to")]) == 2
    assert "MMDISTILL_CACHE" not in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_an_interruption_says_how_to_go_on(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my run"

    def interrupted(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        if kept:
            (folder / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "distill_command", interrupted)
    assert distil(folder) == 130
    printed = capsys.readouterr().err
    assert (f"mmdistill distill --resume '{folder}'" in printed) == kept
    assert ("nothing is finished yet" in printed) != kept


def test_all_settings_survive_the_disk(tmp_path: Path) -> None:
    config = DistillConfig(data="digits", method="dm", ipc=1, lr=1, inner_lr=0.5, augment=True, init="real", out="a b")
    config.save(tmp_path / "config.yaml")
    assert DistillConfig.load(tmp_path / "config.yaml") == config


def test_a_file_of_another_encoding_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_bytes("data: sch\xf6n\n".encode("latin-1"))
    assert main(["distill", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_run_that_cannot_begin_leaves_the_former_one_whole(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(run, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert distil(folder, "--overwrite", "true", "--ipc", "500") == 2
    assert distil(folder, "--overwrite", "true", "--networks", "0") == 2
    assert distil(folder, "--overwrite", "true", "--parameterization", "hallucinated") == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "refused",
    [
        ["--ipc", "0"],
        ["--ipc", "-3"],
        ["--ipc", "500"],
        ["--label", "soft"],
        ["--parameterization", "gan-latents", "--label", "soft"],
        ["--parameterization", "latent", "--bytes", "100"],
    ],
)
def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path, refused: list[str]) -> None:
    count = [] if "--bytes" in refused else ["--ipc", "1"]
    options = ["distill", "--data", "digits", "--method", "dm", *count, *refused]
    assert main([*options, "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.md").write_text("mine")
    assert main([*options, "--out", str(mine)]) == 2
    assert [path.name for path in mine.iterdir()] == ["notes.md"]


def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", "/proc/none")  # where no expert can be written
    options = ["distill", "--data", "digits", "--method", "mtt", "--ipc", "1", "--experts", "1", "--steps", "1"]
    assert main([*options, "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("made_in_python", [False, True])
def test_a_refused_run_leaves_an_unfinished_one_whole(run: Path, tmp_path: Path, made_in_python: bool) -> None:
    folder = tmp_path / "cut short"
    shutil.copytree(run, folder)
    (folder / "distilled.json").unlink()
    if made_in_python:
        (folder / "config.yaml").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert distil(folder, "--overwrite", "--ipc", "500") == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_interruption_before_the_first_step_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "distill", interrupted)
    for options in ([], ["--lr", "3"]):
        assert distil(tmp_path / "run", *options) == 130
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert DistillConfig.load(tmp_path / "run" / "config.yaml").lr == 3


def test_a_former_run_keeps_its_configuration_until_it_is_replaced(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next --resume would take the former run's set for that of the new one."""
    folder = tmp_path / "kept"
    shutil.copytree(run, folder)
    before = (folder / "config.yaml").read_bytes()
    for raised in (KeyboardInterrupt, MemoryError):
        with monkeypatch.context() as patched:
            patched.setattr(Distiller, "step", Mock(side_effect=raised))
            assert distil(folder, "--overwrite", "--lr", "3") != 0
        assert (folder / "config.yaml").read_bytes() == before
        assert (folder / "distilled.json").exists()
    with monkeypatch.context() as patched:  # after the step, when its first checkpoint is written
        patched.setattr(
            "mmdistill.runs.checkpoints.save_tree", Mock(side_effect=OSError(28, "No space left on device"))
        )
        assert distil(folder, "--overwrite", "--lr", "3") == 2
    assert (folder / "config.yaml").read_bytes() == before
    assert distil(folder, "--overwrite", "--lr", "3") == 0
    assert DistillConfig.load(folder / "config.yaml").lr == 3


def test_options_of_another_run_than_the_set_beside_them_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(run, folder)
    saved = DistillConfig.load(folder / "config.yaml")
    for changed, name in ((replace(saved, seed=7), "seed is 7"), (replace(saved, ipc=2), "ipc is 2")):
        changed.save(folder / "config.yaml")
        for command in (["distill", "--resume"], ["evaluate"], ["report"]):
            assert main([*command, str(folder)]) == 2
            assert f"is of another run than the set beside it: its {name}" in capsys.readouterr().err


def test_unfinished_work_is_not_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cut short"
    shutil.copytree(run, folder)
    (folder / "distilled.json").unlink()
    before = sorted((folder / "checkpoints").iterdir())
    assert distil(folder) == 2
    assert f"continue it with --resume '{folder}'" in capsys.readouterr().err
    for command in (["evaluate"], ["report"], ["export", "--format", "pt"]):
        assert main([*command, str(folder)]) == 2
        expected = f"the run in {folder} is unfinished; it goes on with: mmdistill distill --resume '{folder}'"
        assert expected in capsys.readouterr().err
    assert sorted((folder / "checkpoints").iterdir()) == before
    assert distil(folder, "--overwrite") == 0


def test_a_run_that_has_no_checkpoint_yet_begins_anew(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    for name in (".history.json.x.mmdistill-part", "pictures/.images.png.x.mmdistill-part"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"what a killed process was writing")
    assert main(["distill", "--resume", str(folder)]) == 0
    assert not list(folder.rglob("*.mmdistill-part"))
    first, second = (safetensors.torch.load_file(f / "distilled.safetensors") for f in (run, folder))
    assert torch.equal(first["inputs"], second["inputs"])


def test_a_file_is_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert distil(tmp_path / "notes.txt") == 2
    assert "is a file, and a run needs a folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_finished_work_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "distilled.safetensors").read_bytes()
    assert distil(run) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    assert (run / "distilled.safetensors").read_bytes() == before


def test_a_finished_run_resumes_with_what_is_missing_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    assert main(["evaluate", str(folder), "--judges", "mlp", "--networks", "2", "--baselines", "none"]) == 0
    whole = json.loads((folder / "metrics.json").read_text())
    lacking = {**whole, "baselines": {n: es for n, es in whole["baselines"].items() if n != "herding"}}
    (folder / "metrics.json").write_text(json.dumps(lacking))
    capsys.readouterr()
    assert main(["distill", "--resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "already distilled" in said
    assert "judging with 1 network ..." in said
    assert re.search(r"^mlp +accuracy", said, re.MULTILINE)
    assert json.loads((folder / "metrics.json").read_text()) == whole
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("mmdistill.runs.judging"), "evaluate", None)  # is not called again
        assert main(["distill", "--resume", str(folder)]) == 0
    assert "judging" not in capsys.readouterr().out
    assert json.loads((folder / "metrics.json").read_text()) == whole


def test_scores_are_printed_before_pictures_are_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)

    def undrawn(task: Task, distilled: DistilledSet, folder: Path) -> list[Path]:
        raise DataError("no pictures of these")

    monkeypatch.setattr(making, "draw", undrawn)
    assert main(["distill", "--resume", str(folder)]) == 2
    told = capsys.readouterr()
    assert "no pictures of these" in told.err
    assert "convnet" in told.out


def test_options_beside_resume_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["distill", "--resume", str(run), "--steps", "500", "--lr", "5", "--judge-epochs=3"]) == 2
    assert "a run resumes with its own options; omit --lr, --judge-epochs, or begin another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_may_resume_with_other_bounds_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(distiller: Distiller, run: RunState, gradients: object = None) -> tuple[RunState, Tensor]:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(distiller, run, gradients)  # type: ignore[arg-type]

    step = Distiller.step
    what = ["--data", "digits", "--method", "dc", "--ipc", "1", "--steps", "4", "--width", "4", "--judge-epochs", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(Distiller, "step", stopped)
        assert main(["distill", *what, "--networks", "1", "--out", str(tmp_path)]) == 130
    assert main(["distill", "--resume", str(tmp_path), "--classes-at-once", "1"]) == 0
    assert DistilledSet.load(tmp_path).settings["classes_at_once"] == 1
    assert DistillConfig.load(tmp_path / "config.yaml").classes_at_once == 1


def test_both_spellings_of_options() -> None:
    assert spelled(["--real-batch", "3", "--Judge_Epochs=2", "runs/my-Run"]) == [
        "--real_batch", "3", "--judge_epochs=2", "runs/my-Run",
    ]  # fmt: skip
    names = ["--method", "GCond_X", "--init", "K_Center", "--compile=OFF", "--expert-precision", "BF16"]
    assert spelled([*names, "--out", "My_Run", "My_Run"]) == [
        "--method", "gcond-x", "--init", "k-center", "--compile=off", "--expert_precision", "bf16",
        "--out", "My_Run", "My_Run",
    ]  # fmt: skip


def test_a_word_behind_an_equals_sign_leaves_what_comes_next_as_it_is() -> None:
    assert spelled(["--scores=Accuracy", "My_Run", "--compile=ON", "x_Y"]) == [
        "--scores=accuracy", "My_Run", "--compile=on", "x_Y",
    ]  # fmt: skip


def test_words_count_however_they_are_spelled(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("compile: off\ninit: K_Center\nmethod: DM\nbaselines: [K_center]\n")
    assert read_settings(file) == {"compile": "off", "init": "k-center", "method": "dm", "baselines": "K_center"}
    assert distil(tmp_path / "run", "--config", str(file)) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["baselines"]) == ["k-center"]
    assert main(["compare", str(run), "--judge", "ConvNet", "--metric", "Accuracy"]) == 0
    assert main(["evaluate", str(run), "--scores", "Robust", "--networks", "1", "--judge-epochs", "1"]) == 0


def start(folder: Path, *extra: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mmdistill", "distill", "--data", "digits", "--method", "DM", "--ipc", "1"]
    options = [*FAST, "--steps", "400", "--checkpoint_every", "5", "--baselines", "none", "--out", str(folder), *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_a_stopped_run_resumes_bit_identical(tmp_path: Path, number: int) -> None:
    whole = start(tmp_path / "whole")
    stopped = start(tmp_path / "stopped")
    checkpoints = tmp_path / "stopped" / "checkpoints"
    deadline = time.time() + 120
    while not list(checkpoints.glob("step-*")) and time.time() < deadline:
        time.sleep(0.1)
    stopped.send_signal(number)
    _, printed = stopped.communicate(timeout=60)
    if number == signal.SIGINT:
        assert stopped.returncode == 130
        assert f"continue with: mmdistill distill --resume {tmp_path / 'stopped'}" in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "stopped" / "distilled.json").exists()
    assert main(["distill", "--resume", str(tmp_path / "stopped")]) == 0
    whole.communicate(timeout=300)
    one, two = (safetensors.torch.load_file(tmp_path / n / "distilled.safetensors") for n in ("whole", "stopped"))
    assert torch.equal(one["inputs"], two["inputs"])


@pytest.mark.parametrize(
    ("seed", "name"), [([], "digits-dm-1"), (["--seed", "0"], "digits-dm-1"), (["--seed", "3"], "digits-dm-1-seed3")]
)
def test_runs_of_other_seeds_have_folders_of_their_own(seed: list[str], name: str) -> None:
    found = build_parser().parse_args(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", *seed]).distill
    config = DistillConfig(data=found.data, method=found.method, ipc=found.ipc, seed=found.seed)
    assert config.folder() == Path("runs") / name


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


def test_settings_that_a_method_does_not_read_are_named() -> None:
    given = {"inner_lr": 0.1, "inner_window": 3, "real_batch": 2, "outer_steps": 2}

    def unread(name: str) -> list[str]:
        return get_method(get_domain("image"), name).with_settings(**given).unread(1, given)

    assert unread("dm") == ["inner_lr", "inner_window", "outer_steps"]
    assert unread("dc") == ["inner_window"]
    assert unread("rat-bptt") == ["outer_steps"]
    assert get_method(get_domain("image"), "random-soft").unread(1, given) == []
    assert get_method(get_domain("image"), "tesla").unread(1, ["teacher_epochs"]) == ["teacher_epochs"]


@pytest.mark.parametrize("domain", DOMAIN_PACKAGES)
def test_no_method_sets_what_it_does_not_read(domain: str) -> None:
    for data in ("digits", "mnist", "cifar10") if domain == "image" else ("",):
        for name in domain_methods(get_domain(domain)):
            method = get_method(get_domain(domain), name, data)
            chosen = vars(method.settings(1))
            own = [name for name in TRAINING if chosen[name] != getattr(Settings(steps=1), name)]
            assert method.unread(1, own) == [], (name, data)


def test_the_page_names_the_settings_without_an_option() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    page = " ".join(page.split())
    named = re.findall(r"`(\w+)`", page.partition("Settings without an option are")[2].partition(". ")[0])
    by_other_names = {"stored_bytes"}  # --bytes
    assert set(named) == set(Settings.__dataclass_fields__) - set(SETTINGS) - by_other_names


def test_an_ignored_option_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, idle in (("mtt", ["real_batch", "classes_at_once"]), ("dd", ["classes_at_once"]), ("edd", ["augment"])):
        found = get_method(get_domain("image"), name, "mnist")
        assert found.unread(1, ["real_batch", "classes_at_once", "augment", "steps"]) == idle
    distill(image_task("digits", width=8), "dd", ipc=1, settings={"steps": 1, "inner_steps": 2, "classes_at_once": 1})
    assert "DD does not read classes_at_once, which changes nothing" in caplog.text
    assert distil(tmp_path / "run", "--inner-lr", "0.1", "--baselines", "none", "--steps", "1") == 0
    assert "note: DM does not read --inner-lr, which changes nothing\n" in capsys.readouterr().out
    graph = {"x": torch.eye(6), "edge_index": torch.tensor([[0, 2], [1, 3]]), "y": torch.arange(6) % 2}
    masks = {f"{part}_mask": torch.arange(6) // 2 == index for index, part in enumerate(("train", "val", "test"))}
    settings = {"steps": 1, "outer_steps": 1, "inner_steps": 1, "augment": True}
    distill(graph_task({**graph, **masks}), "gcond-x", nodes=2, settings=settings)
    assert "does not read augment, which changes nothing" in caplog.text
    idle = "note: KIP reads no network, nor does its judge: --width changes nothing\n"
    given = ["--method", "kip", "--steps", "1", "--baselines", "none", "--width", "8"]
    others = (("--judges", "convnet"), ("--label", "teacher", "--teacher-epochs", "1"), ("--init", "herding"))
    for options, noted in (((), True), *((options, False) for options in others)):
        assert distil(tmp_path / "-".join(("kip", *options)), *given, *options) == 0
        assert (idle in capsys.readouterr().out) == noted


def test_an_export_of_pictures_counts_them(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "folder", "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"10 files are in {tmp_path}\n"
    soft = tmp_path / "soft"
    shutil.copytree(run, soft)
    found = DistilledSet.load(run)
    replace(found, batch=found.batch._replace(targets=torch.eye(10))).save(soft)
    assert main(["export", str(soft), "--format", "folder"]) == 0
    assert capsys.readouterr().out.startswith(f"10 files are in {soft / 'export'}; pictures have no soft labels")


def test_a_folder_of_pictures_without_classes_says_what_it_lacks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "pictures" / "images.png", tmp_path)
    lacking = f"{tmp_path} holds pictures but no subfolders of them; put them into one subfolder per class"
    given = ["distill", "--data", str(tmp_path), "--method", "dm", "--ipc", "1", "--out", str(tmp_path / "run")]
    assert main(given) == 2
    assert capsys.readouterr().err == f"mmdistill: error: {lacking}\n"
    with pytest.raises(DataError, match=re.escape(lacking)):
        image_task(tmp_path)


def test_an_interruption_before_there_is_a_command_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("mmdistill.cli"), "main", interrupted)
    assert importlib.import_module("mmdistill.__main__").run() == 130
    assert capsys.readouterr().err == "mmdistill: stopped\n"


def test_an_option_of_true_or_false_is_true_where_it_stands_alone() -> None:
    def read(*options: str) -> tuple[bool, bool | None]:
        found = build_parser().parse_args(["distill", "--data", "digits", "--method", "dm", *options]).distill
        return found.overwrite, found.augment

    assert read() == (False, None)
    assert read("--overwrite", "--augment", "--ipc", "1") == (True, True)
    assert read("--augment", "false", "--overwrite") == (True, False)
    assert read("--overwrite=false") == (False, None)


def test_a_reduced_schedule_is_shorter_and_a_missing_one_is_named() -> None:
    domain = get_domain("image")
    assert get_method(domain, "dm", "mnist", "reduced").settings(1).steps < get_method(domain, "dm").settings(1).steps
    with pytest.raises(ConfigError, match="no reduced schedule"):
        get_method(domain, "dm", "cifar100", "reduced")
    with pytest.raises(
        ConfigError, match=r"for 'digits' \(image data that have: cifar10, fashion-mnist, mnist, svhn\)"
    ):
        get_method(domain, "dm", "digits", "reduced")


@pytest.mark.parametrize("wrong", [["--judges", "convnett"], ["--baselines", "randon"]])
def test_misspelt_judges_and_baselines_are_refused_before_distilling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert distil(tmp_path / "run", *wrong) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written_stops_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ü ☃"
    shutil.copytree(run, folder)
    written = io.BytesIO()
    with monkeypatch.context() as patched, io.TextIOWrapper(written, encoding="ascii", write_through=True) as stream:
        patched.setattr(sys, "stdout", stream)  # as PYTHONIOENCODING=ascii makes it
        assert main(["report", str(folder)]) == 0
        assert b"\\xfc \\u2603" in written.getvalue()
    assert capsys.readouterr().err == ""
    command = [sys.executable, "-m", "mmdistill", "report", str(folder)]
    closed = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], check=False)
    assert closed.returncode == 0


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "mmdistill", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.close()
    assert listing.wait(timeout=120) == 0
    assert listing.stderr.read() == ""
    listing.stderr.close()


def test_a_reader_that_has_seen_enough_is_no_error_on_windows_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There a closed pipe is an invalid argument."""

    def closed() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("mmdistill.commands.listings.data_command", closed)
    assert main(["data"]) == 2
    monkeypatch.setattr(sys, "platform", "win32")
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["data"]) == 0
    assert capsys.readouterr().err.count("\n") == 1


def test_finished_judgements_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.import_module("mmdistill.evaluate"), "coreset", interrupted
        )  # after the set's own judgement
        assert distil(tmp_path / "run") == 130
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [entry["judge"] for entry in kept["results"]] == ["convnet"]
    assert not kept["baselines"]
    assert main(["distill", "--resume", str(tmp_path / "run")]) == 0
    assert "already distilled" in capsys.readouterr().out
    judged = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert judged["results"] == kept["results"]
    assert {"random", "herding", "whole"} == set(judged["baselines"])


def test_experts_take_the_options_that_decide_whose_distilling_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DistillConfig] = []
    monkeypatch.setattr(making, "experts_command", lambda config, count, together: seen.append(config))
    assert main(["experts", "--data", "mnist", "--schedule", "reduced", "--whiten", "mtt", "--size", "32"]) == 0
    assert (seen[0].schedule, seen[0].whiten, seen[0].size) == ("reduced", "mtt", 32)


def test_a_dry_run_says_what_the_run_would_do_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["distill", "--data", "digits", "--method", "dc", "--ipc", "2", "--seed", "3", "--steps", "7"]
    assert main([*options, "--dry-run", "--judges", "mlp", "--networks", "1", "--label", "soft"]) == 0
    said = capsys.readouterr().out
    for line in ("DC, 7 steps, seed 3", "ipc 2", "soft", "mlp, 1 network each", "runs/digits-dc-2-seed3"):
        assert line in said
    assert list(tmp_path.iterdir()) == []
    assert main([*options, "--dry-run", "--judges", "mpl"]) == 2
    with pytest.raises(SystemExit):
        main([*options, "--print-config"])
    (tmp_path / "own.yaml").write_text(capsys.readouterr().out)
    assert main(["distill", "--config", str(tmp_path / "own.yaml"), "--dry-run"]) == 0
    assert "DC, 7 steps, seed 3" in capsys.readouterr().out


def planned(capsys: pytest.CaptureFixture[str], *options: str, ipc: int = 1) -> str:
    given = ("distill", "--data", "digits", "--ipc", str(ipc), *options, "--dry-run")
    assert main(list(given)) == 0
    return capsys.readouterr().out


def test_a_dry_run_says_for_how_long_networks_train(capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, "--method", "dm")
    assert "convnet, 5 networks each, 300 epochs\n" in said
    assert "random, herding, whole (60 epochs)\n" in said
    stored = planned(capsys, "--method", "dm", "--judges", "ntk,mlp", "--parameterization", "upsample-2")
    assert "ntk, mlp (epochs that depend on the finished set), 5 networks each\n" in stored
    said = planned(capsys, "--method", "dm", "--judges", "ntk,mlp", "--judge-epochs", "2", "--baselines", "random")
    assert "ntk, mlp (2 epochs), 5 networks each\n" in said
    assert "whole" not in said
    assert "convnet, 5 networks each\n" in planned(capsys, "--method", "dd")  # whose sets carry their own steps


def test_a_dry_run_says_which_experts_it_would_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    options = ("--method", "mtt", "--model", "mlp", "--width", "4", "--experts", "2", "--start-epochs", "2")
    kept = tmp_path / "kept"
    own = (*options, "--expert-steps", "1", "--expert-folder", str(kept))
    assert f"2 of 2 epochs, to be trained first in {kept}\n" in planned(capsys, *own)
    assert "2 of 3 epochs, to be trained first in " in planned(capsys, *options)
    assert not kept.exists()
    common = ["--data", "digits", "--method", "mtt", "--model", "mlp", "--width", "4", "--experts", "2"]
    assert main(["experts", *common, "--start-epochs", "3", "--expert-steps", "1", "--expert-folder", str(kept)]) == 0
    capsys.readouterr()
    assert f"2 of 3 epochs, in {kept}\n" in planned(capsys, *own)
    assert f"3 of 3 epochs, 1 of them to be trained first in {kept}\n" in planned(capsys, *own, "--experts", "3")
    given = ("distill", "--data", "digits", "--ipc", "1", *own, "--set", "expert_lr=0.5", "--dry-run")
    for more in ((), ("--experts", "3")):
        assert main([*given, *more]) == 2
        assert "trained with lr = 0.02, not 0.5; use another folder, or change the" in capsys.readouterr().err
    assert "experts" not in planned(capsys, "--method", "dm")


def test_a_dry_run_says_which_teacher_it_would_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    options = ("--model", "mlp", "--width", "4", "--teacher-epochs", "2")
    row = r"^teacher +a network of 2 epochs, {}in .*cache"
    taught = ("--method", "random-soft", *options)
    for own in (taught, ("--method", "dm", "--label", "teacher", *options)):
        assert re.search(row.format("to be trained first "), planned(capsys, *own), re.MULTILINE)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    judged = ("--networks", "1", "--judge-epochs", "1", "--baselines", "none")
    assert main(["distill", "--data", "digits", "--ipc", "1", *taught, *judged, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert re.search(row.format(""), planned(capsys, *taught), re.MULTILINE)
    tesla = ("--method", "tesla", "--label", "teacher", "--experts", "1", "--start-epochs", "2", "--expert-steps", "1")
    for own in (("--method", "dm"), tesla):  # whose experts label
        assert "teacher  " not in planned(capsys, *own, "--model", "mlp", "--width", "4").replace("labels  ", "")


def test_deterministic_kernels_are_those_of_one_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else runs that are judged after one with --deterministic are judged as it is."""
    for name, deterministic in (("a", True), ("b", False)):
        shutil.copytree(run, tmp_path / name)
        options = DistillConfig.load(tmp_path / name / "config.yaml")
        replace(options, deterministic=deterministic).save(tmp_path / name / "config.yaml")
    seen: list[bool] = []

    def judged(*args: object, **chosen: object) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        raise DataError("seen")

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(finished, "judge_and_keep", judged)
    assert main(["evaluate", str(tmp_path), "--baselines", "none"]) == 2
    assert distil(tmp_path / "c", "--deterministic", "true", "--baselines", "none", "--dry-run") == 0
    assert (seen, torch.are_deterministic_algorithms_enabled()) == ([True, False], False)


def test_a_dry_run_says_what_is_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "dm", "--out", str(tmp_path))
    (tmp_path / "distilled.json").write_text("{}")
    way = "already holds a finished run; choose another --out or begin anew with --overwrite"
    assert f"{tmp_path} {way}" in planned(capsys, *options)
    assert way not in planned(capsys, *options, "--overwrite")
    assert (
        main(["distill", "--data", "digits", "--ipc", "1", "--method", "dn", "--out", str(tmp_path), "--dry-run"]) == 2
    )
    assert "did you mean" in capsys.readouterr().err
    (tmp_path / "distilled.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-1.safetensors").write_text("")
    assert f"holds an unfinished run; continue it with --resume {tmp_path}, choose" in planned(capsys, *options)
    (tmp_path / "file").write_text("")
    assert "is a file" in planned(capsys, "--method", "dm", "--out", str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "digits", "--method", "dm", "--ipc", "0"], "the budget (--ipc) is between 1 and"),
        (["--data", "digits", "--method", "dm", "--ipc", "1000"], "fewer than the 1000 asked for"),
    ],
)
def test_a_dry_run_refuses_budgets_that_the_run_would(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *options, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "dm", "--label", "soft"], "never reads labels, only the class that groups the samples"),
        (["--method", "dm", "--label", "soft", "--parameterization", "upsample-2"], "never reads labels"),
        (["--method", "dc", "--label", "unrestricted"], "needs labels that are distributions"),
        (["--method", "haba", "--parameterization", "raw"], "as many decoders make of each code, and these have 1"),
        (["--method", "haba", "--parameterization", "hallucinated"], "compares the 2 samples .*, and these have 5"),
        (["--method", "ld", "--label", "hard"], "would learn nothing"),
        (["--method", "kip", "--precision", "bf16"], "computes nothing in bfloat16"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["distill", "--data", "digits", "--ipc", "4", "--steps", "1", *options, "--out", str(tmp_path / "run")]
    assert main([*given, "--dry-run"]) == 2
    planned = capsys.readouterr().err
    assert re.search(message, planned)
    assert main(given) == 2
    assert planned in capsys.readouterr().err


def test_a_dry_run_plans_bases_in_as_many_styles_as_the_method_compares(capsys: pytest.CaptureFixture[str]) -> None:
    assert "latent" in planned(capsys, "--method", "haba", "--parameterization", "latent", ipc=10)
    assert "teacher" in planned(capsys, "--method", "dm", "--label", "teacher")
