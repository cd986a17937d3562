"""Labels of synthetic samples: how they start, and what is told of them row by row."""

import pytest
import torch

from mmdistill.errors import ConfigError
from mmdistill.labels import (
    FixedLabels,
    LearnedLabels,
    SoftmaxLabels,
    is_distribution,
    make_labels,
    regression_targets,
    target_loss,
)

PROBABILITIES, SCORES = [0.2, 0.5, 0.3], [1.5, -0.75, 0.25]
"""Both sum to 1."""


@pytest.mark.parametrize("missing", ["classes", "num_classes"])
def test_labels_of_a_task_without_classes_are_refused(missing: str) -> None:
    given = {"classes": torch.tensor([0, 1]), "num_classes": 2, missing: None}
    with pytest.raises(ConfigError, match="soft labels start from classes, which the task lacks"):
        make_labels("soft", **given)  # type: ignore[arg-type]


def test_learned_probabilities_start_at_their_confidence() -> None:
    found = SoftmaxLabels(torch.tensor([0, 2]), 3, 0.9)()
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]]))


def test_labels_leave_what_they_start_from_as_it_is() -> None:
    given = torch.tensor([PROBABILITIES, SCORES])
    before = given.clone()
    for labels in (FixedLabels(given), LearnedLabels(given), SoftmaxLabels.of_logits(given)):
        (values,) = labels.state_dict().values()
        values.zero_()
        assert torch.equal(given, before)


def test_numbers_below_0_are_scores_whatever_they_sum_to() -> None:
    targets, logits = torch.tensor([PROBABILITIES, SCORES]), torch.tensor([[0.3, -1.0, 0.5]] * 2)
    assert is_distribution(targets).tolist() == [True, False]
    entropy = -(targets[0] * logits[0].log_softmax(0)).sum()
    torch.testing.assert_close(
        target_loss(logits, targets), torch.stack([entropy, 0.5 * (logits - targets)[1] @ (logits - targets)[1]])
    )


def test_regression_takes_soft_labels_for_probabilities_where_all_are() -> None:
    targets = torch.tensor([PROBABILITIES, SCORES])
    assert torch.equal(regression_targets(targets, 3), targets)
    torch.testing.assert_close(regression_targets(targets[:1], 3), targets[:1] - 1 / 3)
    exact = torch.eye(3, dtype=torch.float64) - 1 / 3
    torch.testing.assert_close(regression_targets(torch.arange(3), 3, torch.float64), exact, rtol=0, atol=1e-15)
