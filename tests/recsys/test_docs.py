import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmdistill.distill import distill
from mmdistill.recsys import DOMAIN, recsys_task
from tests.recsys.conftest import taste_matrix

PAGE = Path(__file__).parents[2] / "docs" / "recommenders.md"


@pytest.mark.filterwarnings("ignore:OpenBLAS:RuntimeWarning")
def test_the_snippets_run_on_what_is_exported(tmp_path, monkeypatch, capsys):
    pytest.importorskip("implicit")
    users, items = np.nonzero(taste_matrix(60, 30))
    task = recsys_task(pd.DataFrame({"user": users, "item": [f"film-{i}" for i in items]}))
    found = distill(task, "distill-cf-binary", users=6, settings={"steps": 5})
    for name, folder in (("binary", "export"), ("recbole", "export"), ("csr", "weighted")):
        DOMAIN.exports[name](found, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 3
    scope = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)  # the page is ours
    printed = capsys.readouterr().out
    assert len(re.findall("film-", printed)) == 10
    assert (tmp_path / scope["config"]["data_path"] / "distilled" / "distilled.inter").exists()


def test_every_export_method_and_selection_is_on_the_page():
    text = PAGE.read_text()
    names = [*DOMAIN.exports, *DOMAIN.methods, "head", "svp", "clusters", *recsys_task(taste_matrix()).judges]
    assert [name for name in names if f"`{name}`" not in text] == []
