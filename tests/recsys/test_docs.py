import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mmdistill.distill import distill
from mmdistill.objectives.kernel_ridge import LinearKernel
from mmdistill.recsys import DOMAIN, recsys_task
from mmdistill.recsys.models import Ease
from tests.recsys.conftest import taste_matrix

PAGE = Path(__file__).parents[2] / "docs" / "recommenders.md"


def snippets():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def write_export(found, folder):
    """Write what ``mmdistill export --format csr`` does."""
    DOMAIN.exports["csr"](found, folder)
    learned = {name: tensor.tolist() for name, tensor in found.learned.items()}
    (folder / "learned.json").write_text(json.dumps(learned))


@pytest.mark.parametrize(("method", "key"), [("distill-ease", "absolute_ridge"), ("distill-cf-clusters", "ridge")])
def test_ease_of_the_page_is_that_of_the_library_and_stands_alone(method, key, tmp_path, monkeypatch):
    users, items = np.nonzero(taste_matrix(60, 30))
    task = recsys_task(pd.DataFrame({"user": users, "item": [f"film-{i}" for i in items]}))
    found = distill(task, method, users=6, settings={"steps": 5})
    write_export(found, tmp_path / "weighted")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(snippets()[1], str(PAGE), "exec"), scope)  # the page is ours
    rows = found.batch.inputs
    unit = 1.0 if key == "absolute_ridge" else float(LinearKernel()(None, rows, rows).diagonal().mean())
    assert scope["ridge"] == pytest.approx(float(found.learned[key]) * unit, rel=1e-4)
    known = torch.from_numpy(scope["known"]).float()
    assert known.sum() == 2
    expected = Ease(rows).scorer(scope["ridge"])(known[None])[0]
    others = ~scope["known"]
    np.testing.assert_allclose(scope["scores"][others], expected.numpy()[others], rtol=1e-3, atol=1e-4)
    assert np.isinf(scope["scores"][~others]).all()


@pytest.mark.filterwarnings("ignore:OpenBLAS:RuntimeWarning")
def test_the_snippets_run_on_what_is_exported(tmp_path, monkeypatch, capsys):
    pytest.importorskip("implicit")
    users, items = np.nonzero(taste_matrix(60, 30))
    task = recsys_task(pd.DataFrame({"user": users, "item": [f"film-{i}" for i in items]}))
    found = distill(task, "distill-cf-binary", users=6, settings={"steps": 5})
    write_export(found, tmp_path / "weighted")
    for name in ("binary", "recbole"):
        DOMAIN.exports[name](found, tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    blocks = snippets()
    assert len(blocks) == 3
    scope = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)  # the page is ours
    printed = capsys.readouterr().out
    assert len(re.findall("film-", printed)) == 10
    assert not re.findall("'film-[37]'", printed)
    assert (tmp_path / scope["config"]["data_path"] / "distilled" / "distilled.inter").exists()


def test_every_export_method_and_selection_is_on_the_page():
    text = PAGE.read_text()
    names = [*DOMAIN.exports, *DOMAIN.methods, "head", "svp", "clusters", *recsys_task(taste_matrix()).judges]
    assert [name for name in names if f"`{name}`" not in text] == []
