"""Sets are exported from their run's folder alone, whatever became of the data, but where these are exported too."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mmdistill import distill, export, image_task
from mmdistill.cli import main
from mmdistill.commands.assembly import make_task
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, MmdistillError, ShapeError, UnknownNameError
from mmdistill.export import require_own
from mmdistill.exporters import task_exporter
from mmdistill.registry import DOMAIN_PACKAGES, get_domain
from mmdistill.runs.listings import remove_written
from mmdistill.store import read_tensors
from mmdistill.task import Task
from tests.graph.sets.toy import write_rings
from tests.graph.toy import planted_fields
from tests.recsys.conftest import taste_matrix
from tests.text.corpus import sentences, tiny_transformer, write_tsv
from tests.toys import BlobTask, held


class Kind(NamedTuple):
    """A run: what writes its data, its options, and the formats that read the data again."""

    write: Callable[[Path], object]
    options: str
    real: tuple[str, ...] = ()


def pictures(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 9, 8, 8, 3), dtype=np.uint8)
    for name, images in zip(("zebra", "Ape"), pixels, strict=True):
        (path / name).mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(image).save(path / name / f"{index}.png")


def log(path: Path) -> None:
    users, items = np.nonzero(taste_matrix(60, 20))
    pd.DataFrame({"user": users, "item": [f"0{item}, a" for item in items]}).to_csv(path, index=False)


def texts(path: Path) -> None:
    path.mkdir()
    for split, seed in (("train", 0), ("dev", 1), ("test", 2)):
        write_tsv(path / f"{split}.tsv", *sentences(10, seed))
    tiny_transformer(path.parent / "bert")


SMALL = "--ipc 1 --steps 2 --width 8 --real-batch 8"
KINDS = {
    "pictures": Kind(pictures, f"--method dc --label soft --mirror false {SMALL}"),
    "whitened": Kind(pictures, f"--method dm --whiten frepo --mirror false {SMALL}", ("folder", "ddranking")),
    "graph.pt": Kind(lambda path: torch.save(planted_fields(), path), "--method gcond --nodes 6 --steps 2"),
    "RINGS": Kind(write_rings, f"--method doscond {SMALL}"),
    "log.csv": Kind(log, "--method distill-cf-binary --users 3 --interactions-per-user 4 --steps 2"),
    "points": Kind(texts, "--method k-means --ipc 1 --encoder bert", ("texts",)),
    "words": Kind(texts, "--method k-means --ipc 1 --encoder tfidf", ("embeds", "texts")),
    "tokens": Kind(texts, f"--method sldd --model textcnn --length 7 --encoder bert {SMALL}", ("texts",)),
}


def distilled(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run folder of a kind whose data lie beside it."""
    monkeypatch.chdir(place)
    KINDS[name].write(place / name)
    judging = ["--networks", "1", "--judge-epochs", "1", "--baselines", "none"]
    assert main(["distill", "--data", name, *KINDS[name].options.split(), *judging, "--out", "run"]) == 0
    return place / "run"


def content(folder: Path) -> dict[str, object]:
    """Return what files hold: tensors and metadata of safetensors, whose order in the file is none, others' bytes."""

    def held_by(path: Path) -> object:
        if path.suffix != ".safetensors":
            return path.read_bytes()
        tensors, metadata = read_tensors(path)
        return {key: (tensor.dtype, tensor.tolist()) for key, tensor in tensors.items()}, metadata

    return {str(path.relative_to(folder)): held_by(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", KINDS)
def test_exports_need_no_data_but_those_of_real_samples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = distilled(name, tmp_path, monkeypatch)
    domain, task = make_task(DistillConfig.load(run / "config.yaml"))
    found = DistilledSet.load(run)
    formats = [name for name in domain.exports if name != "ddranking" or "whitening" not in found.info.preprocessing]
    for format in formats:  # from what the task says of itself, as it did when the set was made
        domain.exports[format](replace(found, info=task.describe()), tmp_path / "task" / format, task)
        (tmp_path / "there" / format).mkdir(parents=True)
        assert main(["export", str(run), "--format", format, "--to", str(tmp_path / "there" / format)]) == 0
    (tmp_path / name).rename(tmp_path / "moved")
    for format in formats:
        capsys.readouterr()
        code = main(["export", str(run), "--format", format, "--to", str(tmp_path / "gone" / format)])
        assert code == (2 if format in KINDS[name].real else 0)
        kept = content(tmp_path / "there" / format)
        if code:
            assert "evaluate, report and export take their place by --data" in capsys.readouterr().err
            assert not (tmp_path / "gone" / format).exists()
            moved = ["--data", str(tmp_path / "moved")]
            assert main(["export", str(run), "--format", format, "--to", str(tmp_path / "gone" / format), *moved]) == 0
            assert content(tmp_path / "gone" / format) == kept
        else:
            assert content(tmp_path / "gone" / format) == kept
        own = {path: kept[path] for path in kept if path not in ("export.json", "learned.json")}
        assert content(tmp_path / "task" / format) == own


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
@pytest.mark.parametrize("name", ["pictures", "graph.pt", "log.csv", "points"])
def test_names_of_files_need_be_no_utf8(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[name].write(tmp_path / f"\udcff{name}")
    kept = ["--networks", "1", "--judge-epochs", "1", "--baselines", "none", "--out", "run\udcff"]
    assert main(["distill", "--data", f"\udcff{name}", *KINDS[name].options.split(), *kept]) == 0
    for command in (["evaluate", *kept[:-2]], ["report"], ["compare", "--to", "page\udcff"]):
        assert main([command[0], "run\udcff", *command[1:]]) == 0
    assert r"\udcff" in (tmp_path / "run\udcff" / "report.md").read_text(encoding="utf-8")
    domain = get_domain(DistilledSet.load("run\udcff").info.domain)
    for format in [format for format in domain.exports if format != "ddranking"]:
        assert main(["export", "run\udcff", "--format", format]) == 0


@pytest.mark.usefixtures("blank_figures")
def test_data_that_have_grown_are_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = distilled("log.csv", tmp_path, monkeypatch)
    path, before = tmp_path / "log.csv", (tmp_path / "log.csv").read_text()
    path.write_text(before + "".join(f'999,"0{item}, a"\n' for item in range(8)))
    assert main(["export", str(run), "--format", "csv"]) == 0
    for command in (["evaluate", "--baselines", "none"], ["report"]):
        assert main([command[0], str(run), *command[1:]]) == 2
        said = capsys.readouterr().err
        assert "as it was with fingerprint" in said
        assert "bring the data back as they were, or give the task a copy of these (a run of the command line" in said
    (tmp_path / "copy.csv").write_text(before)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("log.csv", "copy.csv"))
    assert main(["report", str(run)]) == 0


def test_a_run_made_in_python_is_exported_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = distilled("points", tmp_path, monkeypatch)
    (run / "config.yaml").unlink()
    assert main(["export", str(run), "--format", "embeds"]) == 0
    assert main(["export", str(run), "--format", "texts"]) == 2
    assert "it was made in Python" in capsys.readouterr().err


def test_an_exporter_asks_for_the_task_of_its_set_alone(tmp_path: Path) -> None:
    own = BlobTask()
    made: list[Path] = []

    @task_exporter
    def write(found: DistilledSet, folder: Path, task: Callable[[], Task]) -> list[Path]:
        """Write nothing."""
        made.append(folder)
        assert task() is own
        return []

    found = held(own, own.select(torch.arange(3)))
    assert write(found, str(tmp_path), own) == write(found, tmp_path, lambda: own) == []
    assert made == [tmp_path, tmp_path]
    assert write.__doc__ == "Write nothing."
    with pytest.raises(ConfigError, match="give the task that it was distilled from too"):
        write(found, tmp_path)
    other = replace(found, info=replace(found.info, fingerprint="other"))
    with pytest.raises(CheckpointError, match="bring the data back"):
        write(other, tmp_path, own)


@pytest.mark.parametrize("domain", DOMAIN_PACKAGES)
def test_sets_of_other_data_are_refused(domain: str, tmp_path: Path) -> None:
    own = BlobTask()
    flat = held(own, own.select(torch.arange(3)))
    for name, write in get_domain(domain).exports.items():
        with pytest.raises(MmdistillError):
            write(flat, tmp_path / name, own)
        assert not (tmp_path / name).exists()


def test_damaged_preprocessing_is_named(tmp_path: Path) -> None:
    found = distill(image_task("digits", model="mlp", width=8), "dm", ipc=1, settings={"steps": 1})
    for name, value in (("mean", "x"), ("std", [0.5, 0.5]), ("range", [1]), ("scale", None)):
        own = replace(found.info, preprocessing={**found.info.preprocessing, name: value})
        with pytest.raises(CheckpointError, match=rf"distilled.json .* is damaged: info.preprocessing.{name} is"):
            export(replace(found, info=own), "folder", tmp_path)


def test_listings_name_files_alone(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").touch()
    names = [".", "", "inner", "a\0b", "n" * 5000, "../a.bin", "a.bin/b", 3, "a.bin", "./a.bin"]
    (tmp_path / "export.json").write_text(json.dumps({"set": "one", "files": names}))
    with pytest.raises(ConfigError, match=r"holds the export of another set \(a.bin and more\)"):
        require_own(tmp_path, "other")
    remove_written(tmp_path / "export.json")
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_sets_are_exported_from_python(tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=8)
    one, other = (distill(task, "dd", ipc=1, seed=seed, settings={"steps": 1, "inner_steps": 2}) for seed in (0, 1))
    written = export(one, "PT", tmp_path / "to")
    assert {path.name for path in written} == {"images.pt", "labels.pt", "preprocessing.json", "learned.json"}
    export(one, "tensors", str(tmp_path / "to"))  # beside it
    one.save(tmp_path / "run")
    export(DistilledSet.load(tmp_path / "run"), "folder", tmp_path / "to")
    with pytest.raises(ConfigError, match="holds the export of another set"):
        export(other, "pt", tmp_path / "to")
    for found in (str(tmp_path / "run"), one.batch):
        with pytest.raises(ConfigError, match=r"a DistilledSet is exported, got \w+; DistilledSet.load\(folder\)"):
            export(found, "pt", tmp_path / "to")  # type: ignore[arg-type]
    rounded = replace(one, batch=one.batch.map(lambda tensor: tensor.long()))
    with pytest.raises(ShapeError, match=r"inputs are floats \(n, 1, 8, 8\), got int64 \(10, 1, 8, 8\)"):
        export(rounded, "tensors", tmp_path / "to")
    with pytest.raises(UnknownNameError, match="unknown export format for image data 'pyg'"):
        export(one, "pyg", tmp_path / "to")
