"""What a set of images tells of its units, without the task."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import DataError, ShapeError, UnsupportedError
from mmdistill.image import ImageTask, image_task, normalised, to_pixels
from mmdistill.task import Batch


def saved(task: ImageTask, images: Tensor, folder: Path) -> DistilledSet:
    """A set as its folder gives it back, with some real images in the place of distilled ones."""
    made = distill(task, "dm", ipc=1, settings={"steps": 1, "real_batch": 8})
    normal = task.data.normalise(images)
    replace(made, batch=Batch(normal, torch.zeros(len(images), dtype=torch.long), torch.ones(len(images)))).save(folder)
    return DistilledSet.load(folder)


@pytest.mark.parametrize("whiten", [None, "mtt", "frepo", "kip"])
def test_test_images_are_normalised_as_the_task_does_it(whiten: str | None, tmp_path: Path) -> None:
    task = image_task("digits", width=4, whiten=whiten)
    test = task.data.test_images[:20]
    found = saved(task, test, tmp_path)
    assert torch.equal(normalised(test, found), task.data.normalise(test))
    assert torch.equal(normalised(test[:, 0].numpy(), found), task.data.normalise(test))
    assert torch.equal(normalised(test[3], found), task.data.normalise(test[3]))
    assert torch.equal(normalised(test.long(), found), task.data.normalise(test))
    if whiten == "kip":
        with pytest.raises(UnsupportedError, match="brightness and contrast"):
            to_pixels(found)
    else:
        assert to_pixels(found).dtype == torch.uint8
        assert torch.equal(to_pixels(found), test)


def test_floats_keep_their_own_range(tmp_path: Path) -> None:
    images = 40 * torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 10
    task = image_task((images, torch.arange(60) % 2), model="convnet-w4")
    found = saved(task, task.data.test_images, tmp_path)
    torch.testing.assert_close(to_pixels(found), task.data.test_images.clamp(*task.data.value_range))
    beyond = replace(found, batch=found.batch._replace(inputs=100 * torch.ones(1, 3, 8, 8)))
    assert to_pixels(beyond).max() == pytest.approx(float(task.data.train_images.max()))


@pytest.mark.parametrize("host", [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")])
def test_what_a_host_has_set_changes_no_units(
    host: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    task = image_task("digits", width=4, whiten="mtt")
    test = task.data.test_images[:20]
    found = saved(task, test, tmp_path)
    expected = task.data.normalise(test)
    with host():
        own, pixels = normalised(test, found), to_pixels(found)
    assert torch.equal(own, expected)
    assert torch.equal(pixels, test)
    assert not normalised(test.float().requires_grad_(), found).requires_grad


def test_channels_may_stand_last(tmp_path: Path) -> None:
    task = image_task("digits", width=4)
    test = task.data.test_images[:20]
    found = saved(task, test, tmp_path)
    assert torch.equal(normalised(np.transpose(test.numpy(), (0, 2, 3, 1)), found), task.data.normalise(test))
    assert torch.equal(normalised(test[0].movedim(0, -1), found), task.data.normalise(test[0]))


def test_images_in_other_units_or_forms_are_refused(tmp_path: Path) -> None:
    task = image_task("digits", width=4)
    test = task.data.test_images[:20]
    found = saved(task, test, tmp_path)
    for wrong in (test.float() / 16, task.data.normalise(test)):
        with pytest.raises(DataError, match="neither scaled nor normalised"):
            normalised(wrong, found)
    assert torch.equal(normalised(test.float(), found), task.data.normalise(test))
    with pytest.raises(ShapeError, match=r"end with \(1, 8, 8\), got \(20, 1, 7, 8\)$"):
        normalised(test[:, :, 1:], found)
    for odd, given in (
        (test > 3, r"pixels must be .* got torch.bool"),
        (test.int() - 300, "int32 from -300"),
        ("digits", "a tensor or an array, got str"),
    ):
        with pytest.raises(DataError, match=given):
            normalised(odd, found)
    with pytest.raises(UnsupportedError, match="of text data"):
        to_pixels(replace(found, info=replace(found.info, domain="text")))


def test_the_documented_training_on_a_set(tmp_path: Path) -> None:
    task = image_task("digits", width=8)
    distill(task, "dm", ipc=5, settings={"steps": 50}, out=tmp_path / "run")
    page = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "DistilledSet.load" in text]
    assert '"runs/digits"' in block
    own = {"test_images": task.data.test_images}
    torch.manual_seed(0)
    exec(block.replace('"runs/digits"', repr(str(tmp_path / "run"))), own)
    assert (own["predicted"] == task.data.test_labels).float().mean() > 0.6
    assert to_pixels(own["distilled"]).shape == (50, 1, 8, 8)  # type: ignore[arg-type]
