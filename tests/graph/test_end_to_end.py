"""From a user's file on the command line to an unmodified torch-geometric model trained on the export."""

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn.models import basic_gnn

from mmdistill.cli import main
from mmdistill.store import read_json
from tests.graph.toy import planted_fields


@pytest.mark.parametrize("method", ["gcond", "gcond-x"])
def test_a_file_becomes_a_graph_that_trains_a_plain_model(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data.from_dict(planted_fields())
    torch.save(data, tmp_path / "mine.pt")
    run = tmp_path / "run"
    options = ["--method", method, "--nodes", "9", "--steps", "30", "--out", str(run)]
    judging = ["--judge-epochs", "40", "--networks", "2", "--baselines", "random,coarsening"]
    main(["distill", "--data", str(tmp_path / "mine.pt"), *options, *judging])
    assert set(read_json(run / "metrics.json")["baselines"]) == {"random", "coarsening"}
    main(["report", str(run)])
    assert "adjacency" in (run / "report.html").read_text() or method == "gcond-x"
    main(["export", str(run), "--format", "pyg"])
    capsys.readouterr()
    small = Data.from_dict(torch.load(run / "export" / "graph.pt", weights_only=True))
    assert small.validate()
    assert small.is_undirected()
    torch.manual_seed(0)
    model = basic_gnn.GCN(12, 16, 2, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.02, weight_decay=5e-4)
    for _ in range(100):
        optimizer.zero_grad()
        out = model(small.x, small.edge_index, edge_weight=small.edge_weight)
        torch.nn.functional.cross_entropy(out[small.train_mask], small.y[small.train_mask]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    assert float(right[data.test_mask].float().mean()) > 0.6


def test_a_file_can_be_condensed_inductively(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Data.from_dict(planted_fields()), tmp_path / "mine.pt")
    options = ["--method", "gcond-x", "--nodes", "3", "--steps", "2", "--judge-epochs", "2", "--networks", "1"]
    command = ["distill", "--data", str(tmp_path / "mine.pt"), *options, "--baselines", "none", "--inductive", "true"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert read_json(tmp_path / "run" / "distilled.json")["info"]["preprocessing"]["setting"] == "inductive"
    assert main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--inductive", "true"]) == 2
    assert "--inductive is for graph data" in capsys.readouterr().err


def test_a_budget_below_the_number_of_classes_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Data.from_dict(planted_fields()), tmp_path / "mine.pt")
    command = ["distill", "--data", str(tmp_path / "mine.pt"), "--method", "gcond", "--nodes", "2"]
    code = main([*command, "--out", str(tmp_path / "run")])
    assert code
    assert "give at least 3" in capsys.readouterr().err
