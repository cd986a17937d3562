"""Fixed counts of samples that go together: fewer of large images, and no result depends on how many."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdistill import coresets
from mmdistill.coresets import last_layer_gradients
from mmdistill.execution import portions
from mmdistill.execution.portions import samples_at_once
from mmdistill.image import ImageTask, image_task, judge_training, kernel_judge, pixels, repeated
from mmdistill.image.repeated import alike_images
from mmdistill.networks import difficulty, teacher
from mmdistill.networks.difficulty import el2n
from mmdistill.networks.teacher import soft_labels
from mmdistill.parameterizations.from_experts import labels_by, recognised
from mmdistill.runtime import Draws

USUAL = 16
"""Samples at once in these tests."""


def test_images_of_up_to_64_pixels_go_together_as_usual_and_larger_ones_by_their_numbers() -> None:
    for shape in ((1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 96, 96)):
        assert samples_at_once(128, torch.empty(5, *shape, device="meta")) == 128
    for usual, expected in ((1000, 81), (128, 10), (100, 8), (2, 1)):
        assert samples_at_once(usual, torch.empty(1, 3, 224, 224, device="meta")) == expected
    assert samples_at_once(128, torch.empty(1, 100_000)) == 128  # points, or the interactions of users
    assert samples_at_once(128, {"x": torch.empty(1, 3, 224, 224, device="meta")}) == 128


def small(**options: object) -> ImageTask:
    images = Draws(0).integers(256, 60, 1, 8, 8).to(torch.uint8)
    labels = torch.arange(60) % 3
    return image_task((images, labels), test=(images[:40], labels[:40]), width=4, judge_epochs=1, **options)  # type: ignore[arg-type]


def gradients(task: ImageTask) -> Tensor:
    return torch.cat(last_layer_gradients(task, Draws(1), steps=2), 1)


def known(task: ImageTask) -> Tensor:
    states = [task.init(Draws(seed)) for seed in (1, 2)]
    rows = recognised(task, lambda: states, torch.tensor([9, 9, 9]), Draws(3))
    batch = task.select(rows)
    return torch.cat([rows[:, None], labels_by(task, lambda: states, batch, task.labels[rows])], 1)


def graded(task: ImageTask) -> Tensor:
    return el2n(task, task.select(torch.arange(60)), [task.init(Draws(1))])


def labelled(task: ImageTask) -> Tensor:
    return soft_labels(task, task.init(Draws(1)), task.select(torch.arange(60)).inputs)


def judged(task: ImageTask, name: str) -> Tensor:
    scores = task.evaluate(task.select(torch.arange(12)), name, Draws(2), 1, {})
    return torch.tensor(scores.values["accuracy"])


CONVNET, KERNEL = partial(judged, name="convnet"), partial(judged, name="ntk")


@pytest.mark.parametrize("compute", [gradients, known, graded, labelled, CONVNET, KERNEL])
def test_large_images_go_through_networks_a_few_at_a_time(
    compute: Callable[[ImageTask], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for counts in (coresets.EMBED_CHUNK, judge_training.TEST_CHUNK):
        monkeypatch.setitem(counts, "cpu", USUAL)
    monkeypatch.setattr(difficulty, "SCORE_BATCH", USUAL)
    monkeypatch.setattr(teacher, "LABEL_BATCH", USUAL)
    monkeypatch.setattr(kernel_judge, "TEST_CHUNK", USUAL)
    found, split = [], torch.split
    for large, expected in ((8 * 8, USUAL), (4 * 4, USUAL // 4), (1, 1)):
        monkeypatch.setattr(portions, "LARGE", large)
        task, seen = small(), list[int]()

        def counted(tensor: Tensor, size: Any, *rest: Any, seen: list[int] = seen) -> tuple[Tensor, ...]:
            seen.append(size)
            return split(tensor, size, *rest)

        with monkeypatch.context() as inner:
            inner.setattr(torch, "split", counted)
            found.append(compute(task))
        sizes = [size for size in seen if isinstance(size, int)]
        assert expected in sizes
        assert expected == USUAL or USUAL not in sizes
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_large_images_are_prepared_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "NORMALISED_AT_ONCE", USUAL)
    monkeypatch.setattr(repeated, "AT_ONCE", USUAL)
    images = small().data.train_images[torch.arange(60) // 2]
    whole, normalised = alike_images(images), small().select(torch.arange(60)).inputs
    monkeypatch.setattr(portions, "LARGE", 4 * 4)
    assert torch.equal(alike_images(images), whole)
    assert torch.equal(small().select(torch.arange(60)).inputs, normalised)
