"""Markdown shows a user's names and texts as they are."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mmdistill.recsys import load_interactions, recsys_task
from mmdistill.recsys.draw import draw as draw_users
from mmdistill.reporting.report import write_report
from mmdistill.reporting.tabular import markdown_cell, markdown_row, unmarked
from mmdistill.text.draw import write_nearest
from tests.recsys.conftest import taste_matrix
from tests.text.corpus import small_task
from tests.toys import BlobTask, held

EVIL = "<img src=x onerror=alert(1)> a|b\n[here](http://x.y) `code` *bold* __init__ ~~x~~ &lt;b"
SHOWN = r"&lt;img src=x onerror=alert(1)> a\|b [here\](http://x.y) \`code\` \*bold\* \__init_\_ \~\~x\~\~ &amp;lt;b"


def test_ordinary_cells_stay_as_they_are() -> None:
    for text in (
        "accuracy",
        "balanced_accuracy",
        "ndcg@10 [1-5]",
        "81.2 ± 0.3 (of 2)",
        "convnet-d4-w64-bn",
        "[CLS] a, b.",
        "---",
    ):
        assert markdown_cell(text) == text
    assert markdown_cell(EVIL) == SHOWN
    assert unmarked(SHOWN) == EVIL.replace("\n", " ")
    assert markdown_cell(r"C:\data") == r"C:\\data"
    assert markdown_row(["a|b", "1"]) == r"| a\|b | 1 |"


def test_reports_hold_no_markup_of_users(tmp_path: Path) -> None:
    own = BlobTask()
    found = held(own, own.select(torch.arange(3)))
    entry = {"judge": EVIL, "metric": "accuracy", "mean": 0.5, "sd": 0.1, "n": 2, "notes": [EVIL]}
    markdown, page = write_report(
        tmp_path, replace(found, info=replace(found.info, data=EVIL)), {"results": [entry]}, []
    )
    text = markdown.read_text()
    assert text.count("[here\\](http://x.y)") == 5  # title, data, judge, and a note with its judge
    assert not re.search(r"<img|\]\(http", text.replace("\\](", ""))
    assert "<img src=x" not in page.read_text()


def test_tables_of_samples_hold_no_markup_of_users(tmp_path: Path) -> None:
    data = load_interactions(taste_matrix(30, 12))
    named = replace(data, item_ids=np.array([EVIL] * 12), user_ids=np.array([EVIL] * data.num_users))
    task = recsys_task(named)
    _, users = draw_users(task, task.select(torch.arange(2)), tmp_path)
    texts = small_task()
    evil = texts.data.train.__class__((EVIL,) * len(texts.data.train.texts), texts.data.train.labels)
    texts.data = replace(texts.data, name=EVIL, train=evil, class_names=(EVIL, "b"))
    nearest = write_nearest(texts, texts.select(torch.arange(2)), tmp_path)
    for path in (users, nearest):
        assert SHOWN in path.read_text()
        assert "<img" not in path.read_text()
