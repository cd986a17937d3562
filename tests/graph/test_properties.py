import math

import pytest
import torch

from mmdistill.graph.propagation import normalise_dense
from mmdistill.graph.properties import dense_properties, real_properties
from tests.graph.toy import planted_graph


def test_properties_of_a_small_weighted_graph_by_hand() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.0], [0.5, 0.0, 0.25], [0.0, 0.25, 0.0]])
    density, degree, homophily, energy = dense_properties(weights, torch.tensor([0, 0, 1]))
    assert density == pytest.approx(4 / 6)
    assert degree == pytest.approx(1.5 / 3)
    assert homophily == pytest.approx(0.5 / 0.75)
    eigenvalues = torch.linalg.eigvalsh(normalise_dense(weights.double()))
    assert energy == pytest.approx(float(eigenvalues.square().mean()))


def test_unknown_classes_are_left_out_of_homophily_and_no_edges_have_none() -> None:
    weights = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert dense_properties(weights, torch.tensor([0, 0, -1])).homophily == 1
    assert math.isnan(dense_properties(torch.zeros(3, 3), torch.tensor([0, 0, 1])).homophily)


def test_a_planted_graph_is_sparse_and_homophilous() -> None:
    graph = planted_graph()
    found = real_properties(graph)
    assert found.mean_degree == pytest.approx(graph.edge_index.shape[1] / 120)
    assert found.density < 0.1
    assert found.homophily > 0.7
