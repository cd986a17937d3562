"""Sets of other tools are judged, reported, compared and exported as one's own; exports come back as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmdistill import DistilledSet, evaluate, import_set
from mmdistill.cli import main
from mmdistill.commands.assembly import make_task
from mmdistill.config import DistillConfig
from mmdistill.task import Batch, named_tensors
from tests.test_exports import distilled

FAST = ["--networks", "1", "--judge-epochs", "1", "--baselines", "none"]
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
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in BESIDE)
    return found


def parts(batch: Batch) -> dict[str, torch.Tensor]:
    return named_tensors("inputs", batch.inputs) | named_tensors("targets", batch.targets)


def by_class(batch: Batch) -> Batch:
    """Return images in the order that exports of images write them in, which sets of this test have already."""
    return batch


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
        assert back.budget == found.budget
        assert back.stored_bytes == found.stored_bytes
        assert back.label == found.label or found.label == "soft"
        assert evaluate(task, back, **options).results == score or format not in ("tensors", "pt", "pyg")
