"""docs/python.md shows what to do in Python, docs/formats.md what runs leave; this does just that."""

import json
import re
from pathlib import Path

import pytest

from mmdistill import distill, evaluate, image_task
from mmdistill.cli import main
from mmdistill.image import load
from mmdistill.metrics import metrics_document

DOCS = Path(__file__).parents[1] / "docs"


def test_what_the_page_shows_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load("digits")
    names = {"folder": str(tmp_path), "images": data.test_images, "labels": data.test_labels}
    names |= {"test_images": data.test_images, "test_labels": data.test_labels}
    short = {'"steps": 1000': '"steps": 2', "judge_epochs=300": "judge_epochs=1, width=8"}
    short |= {"(250, 500, 1000)": "(1, 2)", "steps > 250": "steps > 1"}
    short["evaluate(task, distilled, "] = 'evaluate(task, distilled, n=1, baselines=["random"], '
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL):
        for shown, run in short.items():
            block = block.replace(shown, run)
        exec(block, names)
    assert len(names["numbers"]) == 100  # type: ignore[arg-type]
    assert {"report.md", "report.html", "pictures", "export"} <= {path.name for path in tmp_path.iterdir()}
    assert main(["compare", str(tmp_path)]) == 0
    assert "accuracy by convnet" in capsys.readouterr().out


def test_the_shown_metrics_have_the_written_names(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (DOCS / "formats.md").read_text(), re.DOTALL)
    shown = json.loads(block)
    task = image_task("digits", width=8, judge_epochs=1)
    found = distill(task, "dm", ipc=1, settings={"steps": 1, "real_batch": 8})
    written = metrics_document(task, found, evaluate(task, found, n=1, baselines=()))
    assert list(shown) == list(written)
