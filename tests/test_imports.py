"""Sets of other tools are judged, reported, compared and exported as one's own; exports come back as they were."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from mmdistill import DistilledSet, evaluate, export, graph_task, image_task, import_set
from mmdistill.cli import main
from mmdistill.commands.assembly import make_task
from mmdistill.config import DistillConfig
from mmdistill.errors import ConfigError, DataError, MmdistillWarning, ShapeError, UnsupportedError
from mmdistill.files.saved import array_names, metadata, read_saved
from mmdistill.importers import LABELS, class_targets, names_by_role
from mmdistill.task import Batch, Task, named_tensors
from tests.graph.toy import planted_fields, planted_graph
from tests.test_exports import distilled
from tests.toys import BlobTask

JUDGES = {"log.csv": ["ease"]}
EXACT = {
    "pictures": ("tensors", "pt", "ddranking"),
    "whitened": ("tensors", "pt"),
    "graph.pt": ("tensors", "pyg"),
    "RINGS": ("tensors", "pyg"),
    "log.csv": ("csr", "csv", "binary", "recbole", "tensors"),
    "points": ("tensors", "embeds"),
    "words": ("tensors", "embeds"),
    "tokens": ("tensors", "embeds"),
}
"""By kind of data the formats that keep all of a set."""
BESIDE = {"preprocessing.json", "export.json", "encoder.safetensors", "binary.csv"}
"""What exports write that is not the set, or is it once more."""


def exported(run: Path, format: str) -> list[Path]:
    """Return what an export of a run is imported from."""
    folder = run / format
    assert main(["export", str(run), "--format", format, "--to", str(folder)]) == 0
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in BESIDE)


def parts(batch: Batch) -> dict[str, torch.Tensor]:
    return named_tensors("inputs", batch.inputs) | named_tensors("targets", batch.targets)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", EXACT)
def test_exports_come_back_as_they_were(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = distilled(name, tmp_path, monkeypatch)
    _, task = make_task(DistillConfig.load(run / "config.yaml"))
    found = DistilledSet.load(run)
    options: Any = {"judges": JUDGES.get(name), "n": 1, "baselines": ()}
    score = evaluate(task, found, **options).results
    for format in EXACT[name]:
        files = exported(run, format)
        back = import_set(task, files, name="theirs")
        own, theirs = parts(found.batch), parts(back.batch)
        assert own.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(tensor, own[key], rtol=1e-5, atol=1e-5, check_dtype=False, msg=f"{format} {key}")
        whole = list((run / format).iterdir())  # as a shell gives all that an export wrote
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "not read: binary.csv")
            assert format == "embeds" or import_set(task, whole).origin
        assert back.budget == found.budget
        assert back.stored_bytes == found.stored_bytes == import_set(task, found.batch).stored_bytes
        assert back.label == found.label or found.label == "soft"
        assert evaluate(task, back, **options).results == score or format not in ("tensors", "pt", "pyg")


@pytest.fixture(scope="module")
def task() -> Task:
    """The digits, whose pixels lie between 0 and 1."""
    return image_task("digits", model="mlp", width=8, judge_epochs=1)


def ten(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a normalised digit of each class."""
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return images, torch.arange(10)


def test_the_pair_of_mtt_and_its_rate(task: Task, tmp_path: Path) -> None:
    images, labels = ten()
    names = ["images_best.pt", "labels_best.pt", "lr.pt"]
    for name, value in zip(names, (images, labels, torch.tensor([0.02])), strict=True):
        torch.save(value, tmp_path / name)
    found = import_set(task, [tmp_path / name for name in names], name="MTT (authors)")
    assert torch.equal(parts(found.batch)["inputs"], images)
    assert found.learned["inner_lr"].item() == pytest.approx(0.02)
    assert (found.budget, found.steps, found.settings, found.method) == (1, 0, {}, "MTT (authors)")
    assert found.stored_bytes == 4 * images.numel() + 10
    assert found.origin == "images_best.pt, labels_best.pt, lr.pt"
    given = import_set(task, [tmp_path / name for name in names[:2]], inner_lr=0.01, stored_bytes="1KB")
    assert given.learned["inner_lr"].item() == pytest.approx(0.01)
    assert given.stored_bytes == 1000
    assert evaluate(task, found, n=1, baselines=("random",)).baselines["random"]


def test_the_dict_of_dc_with_numbers_of_numpy(task: Task, tmp_path: Path) -> None:
    sets, path = [list(ten(seed)) for seed in range(2)], tmp_path / "res_DM_digits_ConvNet_1ipc.pt"
    torch.save({"data": sets, "accs_all_exps": {"ConvNet": [np.float64(0.5), np.float32(1)]}}, path)
    with pytest.raises(ConfigError, match="holds 2 sets; say which"):
        import_set(task, path)
    with pytest.raises(ConfigError, match="no number 2"):
        import_set(task, path, which=2)
    assert torch.equal(parts(import_set(task, path, which=1).batch)["inputs"], sets[1][0])
    torch.save({"data": [{}]}, path)
    with pytest.raises(DataError, match=r"list of \[images, labels\]"):
        import_set(task, path)


def test_pixels_of_any_kind_are_normalised(task: Task, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    labels = np.repeat(np.arange(10), 2)
    np.savez(tmp_path / "bytes.npz", images=pixels.numpy(), labels=labels)
    found = import_set(task, tmp_path / "bytes.npz")
    assert (found.budget, found.stored_bytes) == (2, pixels.numel() + 20)
    wanted = task.data.normalise(pixels.float() / 255 * task.data.scale)  # type: ignore[attr-defined]
    torch.testing.assert_close(parts(found.batch)["inputs"], wanted)
    assert import_set(task, {"images": pixels.long(), "labels": labels}).stored_bytes == pixels.numel() + 20
    floats = import_set(task, {"images": (pixels / 255)[:, 0], "labels": labels}, units="pixels")
    torch.testing.assert_close(parts(floats.batch)["inputs"], wanted)
    assert floats.origin == "values in Python"
    for values, units, message in (
        (pixels / 255, None, "say which they are"),
        (pixels.float(), "pixels", "divided by 255 first"),
        (pixels.float(), None, "divided by 255 first; of normalised ones say so"),
        (pixels.float() + 0.25, None, "divided by 255 first; of normalised ones say so"),
        (pixels.float() % 3, None, "of normalised ones say so"),
        (ten()[0].repeat(2, 1, 1, 1), "pixels", "they are no pixels"),
        (pixels, "normalised", "are pixels and not normalised"),
    ):
        with pytest.raises(ConfigError, match=message):
            import_set(task, {"images": values, "labels": labels}, units=units)  # type: ignore[arg-type]
    positive = ten()[0].abs()  # which is less than any normalised image would be, and may be one all the same
    assert torch.equal(parts(import_set(task, {"images": positive, "labels": np.arange(10)}).batch)["inputs"], positive)
    said = import_set(task, {"images": pixels.float(), "labels": labels}, units="normalised")
    assert torch.equal(parts(said.batch)["inputs"], pixels.float())


def test_pictures_come_back_by_the_names_of_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = distilled("pictures", tmp_path, monkeypatch)  # of Ape and zebra, whose order folders keep
    _, own = make_task(DistillConfig.load(run / "config.yaml"))
    assert main(["export", str(run), "--format", "folder"]) == 0
    found, back = DistilledSet.load(run), import_set(own, run / "export" / "images")
    assert torch.equal(parts(import_set(own, run / "export").batch)["inputs"], parts(back.batch)["inputs"])
    assert back.batch.targets.tolist() == [0, 1]  # type: ignore[union-attr]
    shown = own.data.denormalise(found.batch.inputs) - own.data.denormalise(back.batch.inputs)  # type: ignore[attr-defined]
    assert float(shown.abs().max()) <= 0.51 / 255
    for place, name in (("Ape", "new000"), ("zebra", "new001")):  # as SRe2L calls them
        (run / "export" / "images" / place).rename(run / "export" / "images" / name)
    numbered = import_set(own, run / "export" / "images")
    assert torch.equal(parts(numbered.batch)["inputs"], parts(back.batch)["inputs"])
    for place in (run / "export" / "images").iterdir():
        (place / "notes.txt").write_text("none")
    with pytest.warns(MmdistillWarning, match=r"files of other kinds are not read: 2 .txt"):
        import_set(own, run / "export" / "images")
    for place in (run / "export" / "images").iterdir():
        (place / "notes.txt").unlink()
    (run / "export" / "images" / "new000").rename(run / "export" / "images" / "ape-like")
    with pytest.raises(DataError, match="folder 'ape-like' is none of the classes"):
        import_set(own, run / "export" / "images")


def test_labels_of_any_kind(task: Task) -> None:
    images, labels = ten()
    soft = torch.rand(10, 10).softmax(1)
    for given, wanted in (
        (labels.float(), labels),
        (labels[:, None], labels),
        (torch.eye(10), labels),
        (soft, soft),
    ):
        found = import_set(task, {"images": images, "labels": given})
        torch.testing.assert_close(found.batch.targets, wanted)
    logits = 3 * torch.randn(10, 10)
    assert import_set(task, {"images": images, "labels": logits}, logits=True).label == "fixed probabilities"
    with pytest.warns(MmdistillWarning, match="judges regress them"):
        assert import_set(task, {"images": images, "labels": logits}).label == "fixed scores"
    with pytest.warns(
        MmdistillWarning, match=r"no sample of 9 of 10 classes: 1, 2, 3, 4, 5 and 4 more|classes differ in size"
    ):
        found = import_set(task, {"images": images[:1], "labels": [0]})
    assert found.budget == 1
    with pytest.warns(MmdistillWarning, match="have 2 of each class"):
        assert import_set(task, {"images": images[[*range(10), 0]], "labels": [*range(10), 0]}).budget == 2
    for given, message in (
        (labels + 1, r"from 0 to 9, got 1 to 10: the labels run from 1 to 10"),
        (labels - 1, "from 0 to 9, got -1 to 8"),
        (labels + 0.5, "some of these are none"),
        (labels[:9], r"got \(9,\)"),
        (soft[:, :9], r"a row of 10 numbers, one for each class; got \(10, 9\)"),
        (soft * torch.nan, "NaN"),
    ):
        with pytest.raises(DataError, match=message):
            import_set(task, {"images": images, "labels": given})


def test_channels_that_stand_last_are_brought_forward(task: Task) -> None:
    images, labels = ten()
    first, last = (import_set(task, {"images": way, "labels": labels}) for way in (images, images.permute(0, 2, 3, 1)))
    assert torch.equal(parts(first.batch)["inputs"], parts(last.batch)["inputs"])


def test_what_is_no_such_set_is_refused(task: Task, tmp_path: Path) -> None:
    images, labels = ten()
    for given, message in (
        (images[:, :, :7], r"images of digits are \(n, 1, 8, 8\), got \(10, 1, 7, 8\)"),
        (images.expand(-1, 3, -1, -1) * torch.arange(3).view(3, 1, 1), r"got \(10, 3, 8, 8\)"),
        (300 * images.long(), r"bytes \(0 to 255\) or floats, got torch.int64 from -"),
        (images / 0, "NaN or infinite"),
        ("none", "is a str, and a tensor of numbers is expected"),
    ):
        with pytest.raises(DataError, match=message):
            import_set(task, {"images": given, "labels": labels})
    for values, message in (
        ({"pictures": images, "labels": labels}, r"no images: .* images or image or data .found: pictures, labels"),
        ({"images_1": images, "images_2": images, "labels": labels}, "images are in images_1 and in images_2"),
    ):
        with pytest.raises(DataError, match=message):
            import_set(task, values)
    with pytest.warns(MmdistillWarning, match="not read: extra"):
        import_set(task, {"images": images, "labels": labels, "extra": images})
    with pytest.raises(DataError, match="no file or folder"):
        import_set(task, tmp_path / "none.pt")
    (tmp_path / "run" / "deep").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no subfolder of pictures for each class; of tensors name the files"):
        import_set(task, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"files, values by name or a Batch, got int; .* are task\.select\(torch"):
        import_set(task, 3)
    for empty in ("", [""], [images, ""]):
        with pytest.raises(ConfigError, match="the name of a file is empty"):
            import_set(task, empty)
    for other in (images, pd.DataFrame({"images": [1]}), []):
        with pytest.raises(ConfigError, match="files, values by name or a Batch, got"):
            import_set(task, other)
    with pytest.raises(ConfigError, match="chooses among the sets of a file"):
        import_set(task, {"images": images, "labels": labels}, which=0)
    for options in (
        {"name": " "},
        {"units": "bytes"},
        {"which": -1},
        {"inner_lr": float("nan")},
        {"stored_bytes": "few"},
    ):
        with pytest.raises(ConfigError):
            import_set(task, {"images": images, "labels": labels}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (
            ["x_cora", "y_cora", "edge_index_cora"],
            {"features": "x_cora", "labels": "y_cora", "edges": "edge_index_cora"},
        ),
        (["feat_a", "label"], {"features": "feat_a", "labels": "label"}),
        (["feat_a", "label_a"], {"features": "feat_a", "labels": "label_a"}),
        (["A", "X", "y"], {"adjacency": "A", "features": "X", "labels": "y"}),
        (
            ["Cora_0.5_x_s", "Cora_0.5_y_s", "a_1"],
            {"features": "Cora_0.5_x_s", "labels": "Cora_0.5_y_s", "adjacency": "a_1"},
        ),
        (["not_a_feature"], {"features": "not_a_feature"}),
        (["what_x_means"], {}),
        (["labels_1", "soft_labels_1"], {"labels": "labels_1"}),
        (["soft_labels_1"], {"labels": "soft_labels_1"}),
        (["syn_lr", "lr_teacher", "lr_img"], {"rate": "syn_lr"}),
        (["lr_img"], {}),
        (["whitening_matrix"], {"whitening": "whitening_matrix"}),
    ],
)
def test_names_are_known_by_their_words(names: list[str], wanted: dict[str, str]) -> None:
    roles = {
        "features": ("x", "feat", "feature"),
        "labels": LABELS,
        "adjacency": ("adjacency", "adj", "a"),
        "edges": ("edge_index",),
        "rate": ("lr",),
        "whitening": ("whitening.matrix",),
    }
    assert names_by_role(names, roles, ("lr_img", "lr_teacher")) == wanted


def test_rates_by_which_a_set_was_made_are_not_learned_ones(task: Task) -> None:
    images, labels = ten()
    given = {"images": images, "labels": labels, "lr_img": torch.tensor(100.0)}
    with pytest.warns(MmdistillWarning, match="not read: lr_img"):
        assert not import_set(task, given).learned
    with pytest.warns(MmdistillWarning, match="not read: lr_img"):
        assert import_set(task, given | {"syn_lr": torch.tensor(0.5)}).learned["inner_lr"].item() == 0.5


def test_a_folder_within_an_export_has_what_was_learned_from_beside_it(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = ten()
    given = {"images": images, "labels": labels, "lr": torch.tensor(0.02)}
    export(import_set(task, given), "ddranking", tmp_path)
    monkeypatch.chdir(tmp_path / "ddranking")
    for folder in (tmp_path, tmp_path / "ddranking", "."):
        assert import_set(task, folder, units="normalised").learned["inner_lr"].item() == pytest.approx(0.02)
    (tmp_path / "export.json").write_text("[]")
    assert not import_set(task, tmp_path / "ddranking", units="normalised").learned


@pytest.mark.parametrize("rate", [0.0, -0.1, [0.1, -0.1]])
def test_learned_rates_that_cannot_train_are_left_out(task: Task, rate: Any, tmp_path: Path) -> None:
    images, labels = ten()
    torch.save({"images": images, "labels": labels}, tmp_path / "set.pt")
    (tmp_path / "learned.json").write_text(json.dumps({"inner_lr": rate, "ridge": 0.5}))
    given = {"images": images, "labels": labels, "lr": torch.tensor(rate)}
    for source, left in ((tmp_path, {"ridge"}), (given, set())):
        with pytest.warns(MmdistillWarning, match=r"learned rate -?0\.?1? cannot train.* left out"):
            assert import_set(task, source).learned.keys() == left


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), []])
def test_learned_numbers_that_are_none_are_refused(task: Task, rate: Any, tmp_path: Path) -> None:
    images, labels = ten()
    with pytest.raises(DataError, match=r"inner_lr.* should be"):
        import_set(task, {"images": images, "labels": labels, "lr": torch.as_tensor(rate)})
    torch.save({"images": images, "labels": labels}, tmp_path / "set.pt")
    for name in ("inner_lr", "ridge"):
        (tmp_path / "learned.json").write_text(json.dumps({name: rate}))
        with pytest.raises(DataError, match=rf"{name}.* should be"):
            import_set(task, tmp_path)


def test_batches_are_in_the_units_of_the_task(task: Task) -> None:
    images, labels = ten()
    found = import_set(task, Batch(images, labels, torch.ones(10)), name="mine")
    assert torch.equal(parts(found.batch)["inputs"], images)
    with pytest.raises(ShapeError, match=r"\(n, 1, 8, 8\)"):
        import_set(task, Batch(images[:, 0], labels, torch.ones(10)))
    with pytest.raises(DataError, match="from 0 to 9, got 1 to 10"):
        import_set(task, Batch(images, labels + 1, torch.ones(10)))
    with pytest.raises(ConfigError, match="units already; leave logits out"):
        import_set(task, Batch(images, labels, torch.ones(10)), logits=True)
    with pytest.raises(UnsupportedError, match="a BlobTask reads no sets of other tools"):
        import_set(BlobTask(), {"images": images, "labels": labels})


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code that a file has run",)


def test_empty_sets_are_refused() -> None:
    for shape in ((0,), (0, 2)):
        with pytest.raises(DataError, match="holds no sample"):
            class_targets(torch.zeros(shape), 0, ("a", "b"))


def test_labels_may_be_the_numbers_by_which_classes_are_called(recwarn: pytest.WarningsRecorder) -> None:
    called = ("2", "3", "7")
    assert class_targets(torch.tensor([7, 2, 2, 3]), 4, called).tolist() == [2, 0, 0, 1]
    assert class_targets(torch.tensor([1, 2, 0, 0]), 4, called).tolist() == [1, 2, 0, 0]
    assert class_targets(torch.tensor([3, 1, 2]), 3, ("1", "2", "3")).tolist() == [2, 0, 1]
    assert class_targets(torch.tensor([3, 1, 2, 0]), 4, ("0", "1", "2", "3")).tolist() == [3, 1, 2, 0]
    assert not recwarn.list
    with pytest.warns(MmdistillWarning, match="class indices from 0; those called 0 and 1 are 0, 2"):
        assert class_targets(torch.tensor([0, 2, 2, 0]), 4, ("0", "2", "5")).tolist() == [0, 2, 2, 0]
    with pytest.raises(DataError, match="from 0 to 2, got 2 to 4"):
        class_targets(torch.tensor([2, 4]), 2, called)


def test_files_run_no_code_and_damage_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"images": _Code()}, tmp_path / "code.pt")
    with pytest.raises(DataError, match=r"names (builtins.)?print, which is not run; save tensors"):
        read_saved(tmp_path / "code.pt")
    assert "code that a file has run" not in capsys.readouterr().out
    np.save(tmp_path / "objects.npy", np.array([_Code()], dtype=object), allow_pickle=True)
    whole = tmp_path / "whole.pt"
    torch.save(torch.arange(1000.0), whole)
    for name in ("cut.pt", "cut.npz", "cut.safetensors"):
        (tmp_path / name).write_bytes(whole.read_bytes()[:700])
    for name in ("objects.npy", "cut.pt", "cut.npz", "cut.safetensors"):
        with pytest.raises(DataError, match="is damaged, or no such file"):
            read_saved(tmp_path / name)
    for peek, name in ((array_names, "cut.npz"), (metadata, "cut.safetensors")):
        with pytest.raises(DataError, match="is damaged, or no such file"):
            peek(tmp_path / name)
        assert not peek(tmp_path / "cut.pt")
    (tmp_path / "folder.safetensors").mkdir()
    for read in (read_saved, metadata):
        with pytest.raises(DataError, match=r"folder.safetensors is a folder, and no file"):
            read(tmp_path / "folder.safetensors")
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="is no file of tensors"):
        read_saved(tmp_path / "notes.txt")
    np.save(tmp_path / "alone.npy", np.arange(3))
    assert read_saved(tmp_path / "alone.npy").tolist() == [0, 1, 2]


@pytest.mark.usefixtures("blank_figures")
def test_an_imported_set_is_a_run_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = ten()
    torch.save(images, "images_best.pt")
    torch.save(labels, "labels_best.pt")
    order = ["import", "images_best.pt", "labels_best.pt", "--data", "digits", "--name", "MTT (authors)"]
    options = ["--model", "mlp", "--width", "8", "--networks", "1", "--judge-epochs", "1", "--baselines", "random"]
    assert main([*order, *options, "--out", "runs/theirs"]) == 0
    said = capsys.readouterr().out
    assert "imported DistilledSet(digits by MTT (authors), ipc 1" in said
    assert "random" in said
    assert main([*order, *options, "--out", "runs/theirs"]) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    assert main([*order, *options, "--out", "runs/theirs", "--overwrite", "--inner-lr", "0.02"]) == 0
    assert DistilledSet.load("runs/theirs").learned["inner_lr"].item() == pytest.approx(0.02)
    assert main(["evaluate", "runs/theirs", "--networks", "2", "--baselines", "herding"]) == 0
    metrics = json.loads(Path("runs/theirs/metrics.json").read_text())
    assert metrics["results"][0]["n"] == 2
    assert {"random", "herding"} <= metrics["baselines"].keys()
    assert main(["report", "runs/theirs"]) == 0
    page = Path("runs/theirs/report.md").read_text()
    assert "MTT (authors), imported from images_best.pt, labels_best.pt, seed 0" in page
    assert "| cost |" not in page
    assert main([*order, *options]) == 0
    assert Path("runs/digits-MTT (authors)-1/distilled.json").is_file()
    capsys.readouterr()
    assert main(["compare", "runs", "--to", "page"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("digits  MTT (authors)"))
    assert row.split()[-6:] == ["2", "-", "-", "-", "digits-MTT", "(authors)-1"]  # two sets of one name
    assert main(["distill", "--resume", "runs/theirs"]) == 2
    assert "holds a set that was imported, and no run to resume" in capsys.readouterr().err
    assert main(["distill", "--config", "runs/theirs/config.yaml", "--out", "runs/other"]) == 2
    assert "config.yaml is that of a set which was imported" in capsys.readouterr().err
    assert main(["export", "runs/theirs", "--format", "pt"]) == 0
    assert json.loads(Path("runs/theirs/export/learned.json").read_text()) == {"inner_lr": pytest.approx(0.02)}


@pytest.mark.usefixtures("blank_figures")
def test_a_damaged_imported_set_is_imported_again_and_never_distilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = ten()
    torch.save({"images": images, "labels": labels}, "theirs.pt")
    order = ["import", "theirs.pt", "--data", "digits", "--name", "DM", "--model", "mlp", "--width", "8"]
    options = ["--networks", "1", "--judge-epochs", "1", "--baselines", "none", "--out", "runs/dm"]
    assert main([*order, *options]) == 0
    again = "mmdistill import FILES ... --out runs/dm --overwrite imports its set again"
    (described := Path("runs/dm/distilled.json")).write_text("{")
    for command in (["distill", "--resume", "runs/dm"], ["evaluate", "runs/dm"], ["report", "runs/dm"]):
        assert main(command) == 2
        assert again in capsys.readouterr().err
    described.unlink()
    assert main(["report", "runs/dm"]) == 2
    assert again in capsys.readouterr().err
    assert main([*order, *options, "--overwrite"]) == 0
    tensors = Path("runs/dm/distilled.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-8])
    Path("runs/dm/config.yaml").write_text(Path("runs/dm/config.yaml").read_text().replace("imported: true", ""))
    for command in (["distill", "--resume", "runs/dm"], ["evaluate", "runs/dm"]):  # which the set itself says by then
        assert main(command) == 2
        assert again in capsys.readouterr().err
    assert main([*order, *options, "--overwrite"]) == 0
    assert main(["report", "runs/dm"]) == 0


def test_units_are_known_however_they_are_spelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"images": torch.rand(10, 1, 8, 7), "labels": torch.arange(10)}, tmp_path / "set.pt")
    assert main(["import", str(tmp_path / "set.pt"), "--data", "digits", "--model", "mlp", "--units", "Pixels"]) == 2
    assert "images of digits are (n, 1, 8, 8)" in capsys.readouterr().err  # and not the units


def test_an_option_of_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(planted_fields(), tmp_path / "graph.pt")
    order = ["import", str(tmp_path / "graph.pt"), "--data", str(tmp_path / "graph.pt"), "--units", "pixels"]
    assert main(order) == 2
    assert "units is not for graph data" in capsys.readouterr().err


class Samples(torch.utils.data.Dataset[Any]):
    """A data set of digits whose samples are tensors, as after ``ToTensor``, or PIL images."""

    classes: tuple[str, ...] = tuple(map(str, range(10)))

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.pixels = torch.randint(0, 256, (30, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = self.pixels[index]
        return Image.fromarray(pixels.numpy()) if self.kind == "pictures" else pixels[None] / 255, index % 10


@pytest.mark.parametrize(
    "source",
    [
        lambda pixels: (pixels.numpy(), np.arange(10)),
        lambda pixels: [pixels, torch.arange(10)],
        lambda pixels: ([Image.fromarray(image.numpy()) for image in pixels], [str(index) for index in range(10)]),
        lambda pixels: {"images": [image[None] for image in pixels], "labels": pd.Series(map(str, range(10)))},
        lambda pixels: {"images": [Image.fromarray(image.numpy()) for image in pixels], "labels": torch.eye(10)},
        lambda pixels: [(Image.fromarray(image.numpy()), index) for index, image in enumerate(pixels)],
        lambda pixels: TensorDataset(pixels[:, None], torch.arange(10)),
        lambda pixels: Subset(Samples("pictures"), range(10, 20)),
        lambda pixels: Subset(Samples("floats"), range(10, 20)),
    ],
    ids=["pair", "list", "pictures", "names", "soft", "rows", "tensors", "subset", "floats"],
)
def test_chosen_images_are_read_as_a_task_reads_data(task: Task, source: Callable[[torch.Tensor], Any]) -> None:
    pixels = Samples("pictures").pixels[10:20]
    wanted = import_set(task, {"images": pixels, "labels": torch.arange(10)})
    found = import_set(task, source(pixels), name="mine")
    torch.testing.assert_close(parts(found.batch)["inputs"], parts(wanted.batch)["inputs"])
    assert torch.equal(parts(found.batch)["targets"], torch.arange(10))
    assert (found.budget, found.method, found.origin) == (1, "mine", "values in Python")
    assert found.stored_bytes in (pixels.numel() + 10, 4 * pixels.numel() + 10)


def test_chosen_images_that_cannot_be_read_say_why(task: Task) -> None:
    pictures = [Image.fromarray(image.numpy()) for image in Samples("pictures").pixels[:10]]
    for source, message in (
        ((pictures, [*"012345678", "ten"]), "the set: label 9 is 'ten', which is no class"),
        ((pictures, list("012345678")), r"got \(9,\)"),
        (([*pictures, 3], torch.arange(11)), "the set: item 10 holds a int"),
        (TensorDataset(ten()[0], ten()[1], ten()[1]), r"the set: item 0 is no \(sample, label\) pair"),
    ):
        with pytest.raises(DataError, match=message):
            import_set(task, source)
    with pytest.raises(ConfigError, match="they are no pixels"):
        import_set(task, TensorDataset(*ten()))
    normalised = import_set(task, TensorDataset(*ten()), units="normalised")
    assert torch.equal(parts(normalised.batch)["inputs"], ten()[0])
    with pytest.raises(ConfigError, match="a set is read from files, values by name or a Batch, got DataLoader"):
        import_set(task, torch.utils.data.DataLoader(Samples("floats")))


def random_images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Listed(TensorDataset):
    """A data set of images and labels with names of its classes."""

    def __init__(self, classes: list[str], labels: list[int]) -> None:
        super().__init__(random_images(len(labels)), torch.tensor(labels))
        self.classes = classes


def test_classes_of_a_data_set_are_those_of_the_task_by_name(task: Task) -> None:
    reversed_digits = Listed(list("9876543210"), list(range(10)))
    assert parts(import_set(task, reversed_digits).batch)["targets"].tolist() == list(range(10))[::-1]
    in_words = Listed([f"{digit} - digit" for digit in range(10)], list(range(10)))
    with pytest.warns(MmdistillWarning, match="the set's classes are called 0 - digit, .* taken in this order"):
        assert parts(import_set(task, in_words).batch)["targets"].tolist() == list(range(10))
    data = (random_images(30), torch.arange(30) % 3)
    animals = image_task(data, class_names=["ant", "bee", "cat"], model="mlp", width=8)
    for chosen in (Listed(["ant", "cat", "bee"], [2, 1, 0]), Listed(["cat", "dog", "bee", "ant"], [2, 0, 3])):
        assert parts(import_set(animals, chosen).batch)["targets"].tolist() == [1, 2, 0]
    with pytest.warns(MmdistillWarning) as told:
        assert parts(import_set(animals, Listed(["bee", "cat"], [0, 1])).batch)["targets"].tolist() == [1, 2]
    assert str(told[0].message) == "the set has no sample of 1 of 3 classes: ant"
    with pytest.raises(DataError, match=r"the set: label 1 is 'dog', which is no class"):
        import_set(animals, Listed(["cat", "dog"], [0, 1]))
    with pytest.raises(DataError, match="the set names 2 classes and has labels from 0 to 2"):
        import_set(animals, Listed(["ant", "bee"], [0, 2]))


@pytest.mark.filterwarnings("ignore:classes differ in size")
def test_labels_of_chosen_images_are_the_numbers_that_the_task_has_renumbered() -> None:
    images, labels = random_images(30), torch.arange(30) % 3 + 1
    own = image_task((images, labels), model="mlp", width=8)
    for source in (Subset(TensorDataset(images, labels), [0, 1, 3, 4]), (images[:4], [1, 2, 1, 2])):
        with pytest.warns(MmdistillWarning, match=r"^the set has no sample of 1 of 3 classes: 3$"):
            assert parts(import_set(own, source, units="pixels").batch)["targets"].tolist() == [0, 1, 0, 1]
    message = r"label 0 is 0, a class .* lack \(they have: 1, 2, 3\); .* go in by name, \{'images': \.\.\., 'labels'"
    with pytest.raises(DataError, match=message):
        import_set(own, (images[:3], torch.arange(3)), units="pixels")
    by_name = import_set(own, {"images": images[:3], "labels": torch.arange(3)}, units="pixels")
    assert parts(by_name.batch)["targets"].tolist() == [0, 1, 2]
    part = image_task(own.data.of_classes(["3", "1"]), model="mlp", width=8)
    pair = import_set(part, (images[[0, 2]], [1, 3]), units="pixels")
    assert parts(pair.batch)["targets"].tolist() == [1, 0]
    soft = import_set(own, (images[:3], torch.eye(3)), units="pixels")
    assert parts(soft.batch)["targets"].tolist() == [0, 1, 2]
    signs = image_task((images, labels % 2 * 2 - 1), model="mlp", width=8)
    pair = import_set(signs, (images[:2], np.array([[1], [-1]])), units="pixels")
    assert parts(pair.batch)["targets"].tolist() == [1, 0]
    high = image_task((images, labels % 2), class_names=["3", "7"], model="mlp", width=8)
    for numbers in ([0, 1], [3, 7]):
        pair = import_set(high, (images[:2], numbers), units="pixels")
        assert parts(pair.batch)["targets"].tolist() == [0, 1]


@pytest.mark.filterwarnings(
    "ignore:labels are read as class indices", "ignore:the set has no", "ignore:classes differ in size"
)
def test_numbers_that_classes_are_called_by_and_never_had_as_labels_are_names_alone(tmp_path: Path) -> None:
    images, labels = random_images(30), torch.arange(30) % 5
    for index in range(30):
        picture = tmp_path / str(index % 5 + 1) / f"{index}.png"
        picture.parent.mkdir(exist_ok=True)
        Image.fromarray((images[index, 0] * 255).byte().numpy()).save(picture)
    data = TensorDataset(images, labels)
    for own in (
        image_task(data, class_names=list("12345"), model="mlp", width=8),
        image_task(Listed(list("12345"), labels.tolist()), model="mlp", width=8),
        image_task(tmp_path, model="mlp", width=8),
    ):
        for chosen in ([1, 2, 3, 4], [0, 1, 2, 3, 4]):
            for source in (Subset(data, chosen), (images[chosen], labels[chosen])):
                assert parts(import_set(own, source, units="pixels").batch)["targets"].tolist() == chosen


def test_classes_of_other_names_are_those_of_the_task_in_this_order() -> None:
    data = Listed(["cat", "dog", "eel"], [index % 3 for index in range(30)])
    french = image_task(data, class_names=["chat", "chien", "anguille"], model="mlp", width=8)
    with pytest.warns(MmdistillWarning, match="the set's classes are called cat, dog, eel, and are taken in this"):
        chosen = import_set(french, Subset(data, range(6)), name="mine")
    assert parts(chosen.batch)["targets"].tolist() == [0, 1, 2, 0, 1, 2]
    for names in (["cat", "dog"], ["cat", "dog", "chat"], ["cat", "dog", "eel", "fox"]):
        with pytest.raises(DataError, match="the set: label 0 is 'cat', which is no class"):
            import_set(french, Listed(names, [0, 1]))


def test_samples_chosen_by_their_indices_are_a_set_of_any_task() -> None:
    for own in (image_task("digits", model="mlp", width=8), graph_task(planted_graph())):
        assert own.labels is not None
        chosen = torch.cat([(own.labels == label).nonzero()[:2, 0] for label in own.labels.unique()])
        found = import_set(own, own.select(chosen), name="mine")
        assert found.budget == (2 if found.info.budget == "ipc" else len(chosen))
        assert torch.equal(parts(found.batch)["targets"], own.labels[chosen])
