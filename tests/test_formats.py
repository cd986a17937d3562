"""docs/formats.md shows what to do in Python with a run made there; this does just that."""

import json
import re
from pathlib import Path

import pytest

from mmdistill import distill, evaluate, image_task
from mmdistill.cli import main
from mmdistill.metrics import metrics_document

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"


def test_what_the_page_shows_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = image_task("digits", width=8, judge_epochs=1)
    distill(task, "dm", ipc=1, settings={"steps": 2, "real_batch": 8}, out=tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {"task": task, "folder": str(tmp_path)})
    assert {"report.md", "report.html", "pictures", "export"} <= {path.name for path in tmp_path.iterdir()}
    assert main(["compare", str(tmp_path)]) == 0
    assert "accuracy by convnet" in capsys.readouterr().out


def test_the_shown_metrics_have_the_written_names(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shown = json.loads(block)
    task = image_task("digits", width=8, judge_epochs=1)
    found = distill(task, "dm", ipc=1, settings={"steps": 1, "real_batch": 8})
    written = metrics_document(found, evaluate(task, found, n=1, baselines=()), task=task)
    assert list(shown) == list(written)
