"""Kinds of labels that a user may ask of any method."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.labels import LabelKind, SoftmaxLabels
from mmdistill.runtime import Draws
from mmdistill.text.methods import METHODS
from mmdistill.text.token_methods import TOKEN_METHODS
from tests.text.corpus import token_corpus_task


@pytest.mark.parametrize("kind", get_args(LabelKind))
def test_every_kind_of_label_is_distilled_and_judged(tmp_path: Path, kind: LabelKind) -> None:
    task = token_corpus_task(tmp_path, length=10, judge_epochs=40)
    method = TOKEN_METHODS["dd"].labelled(kind)
    settings = {"steps": 2, "real_batch": 8, "init": "real", "inner_steps": 2, "teacher_epochs": 1}
    result = distill(task, method, ipc=6, settings=settings)
    targets = result.batch.targets
    assert isinstance(targets, torch.Tensor)
    if kind == "hard":
        assert targets.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    else:
        assert targets.shape == (18, 3)
        distribution = torch.allclose(targets.sum(1), torch.ones(18), atol=1e-4)
        assert distribution == (kind != "unrestricted")
    assert len(task.evaluate(result.batch, "textcnn", Draws(0), 1, result.learned).values["accuracy"]) == 1
    wrong = result.batch._replace(targets=targets.roll(6, 0))
    for judge in ("textcnn", "read-tfidf"):
        right, turned = (task.evaluate(b, judge, Draws(0), 1, {}).values["accuracy"][0] for b in (result.batch, wrong))
        if kind != "teacher":  # a teacher of one epoch knows nothing
            assert right > turned + 0.1, judge


def test_labels_of_closed_forms_are_their_own() -> None:
    with pytest.raises(ConfigError, match="closed form"):
        METHODS["k-means"].labelled("soft")
    assert METHODS["krr"].labelled("soft").settings(1) == METHODS["krr"].settings(1)
    fixed = replace(METHODS["dm"], label="soft")  # labels that no optimizer moves
    assert fixed.labelled("soft").settings(1) == fixed.settings(1)


def test_softmax_labels_start_as_sure_as_they_are_told() -> None:
    found = SoftmaxLabels(torch.tensor([0, 2]), 3, confidence=0.7)().detach()
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.15, 0.15], [0.15, 0.15, 0.7]]))
