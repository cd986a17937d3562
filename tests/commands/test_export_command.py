"""Exports: what goes where, and that two sets never mix."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill import image_task
from mmdistill.cli import main
from mmdistill.distilled import DistilledSet
from mmdistill.errors import DataError
from mmdistill.files.locks import sole_writer
from mmdistill.image import load


def test_an_export_has_a_folder_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    for place in ("", " ", str(run), str(run / "pictures" / "..")):
        assert main(["export", str(run), "--to", place]) == 2
        assert "--to names a folder of the export's own" in capsys.readouterr().err
    assert sorted(run.iterdir()) == before


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


def test_the_documented_use_of_an_exported_set(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--format", "pt", "--to", str(tmp_path)]) == 0
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    section = page.partition("## Using an exported set")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    data = load("digits")
    capsys.readouterr()
    exec(block, {"test_images": data.test_images, "test_labels": data.test_labels})
    assert float(capsys.readouterr().out.split()[1]) > 0.4  # of ten classes


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
    lacking = (
        f"{tmp_path} holds pictures but no subfolders of them; put them into one subfolder per class, or a table of "
        "their names and labels beside them (labels.csv)"
    )
    given = ["distill", "--data", str(tmp_path), "--method", "dm", "--ipc", "1", "--out", str(tmp_path / "run")]
    assert main(given) == 2
    assert capsys.readouterr().err == f"mmdistill: error: {lacking}\n"
    with pytest.raises(DataError, match=re.escape(lacking)):
        image_task(tmp_path)
