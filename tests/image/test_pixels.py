"""Training images that are normalised once, when they are drawn, or that do not lie on the task's device."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mmdistill.image import image_task, pixels
from mmdistill.image.pixels import Pixels
from mmdistill.runtime import Draws
from mmdistill.task import ClassBatch


def digits() -> tuple[Tensor, Tensor]:
    key = Draws(0)
    return key.integers(256, 40, 1, 8, 8).to(torch.uint8), torch.arange(4).repeat_interleave(10)


@pytest.mark.parametrize("whiten", [None, "mtt"])
def test_images_normalised_once_are_those_normalised_when_drawn(
    whiten: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "NORMALISED_AT_ONCE", 7)
    once = image_task(digits(), width=8, whiten=whiten)
    monkeypatch.setattr(pixels, "NORMALISED_MOST", 0)
    monkeypatch.setattr(pixels, "spare_memory_bytes", lambda: 0)
    drawn = image_task(digits(), width=8, whiten=whiten)
    index = torch.tensor([[3, 1], [0, 7]])
    assert torch.allclose(once.select(index).inputs, drawn.select(index).inputs, atol=1e-5)  # type: ignore[arg-type]
    assert once._pixels._images.dtype == torch.float32
    assert drawn._pixels._images.dtype == torch.uint8


def test_whitened_images_may_take_more_memory_since_whitening_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * image_task(digits(), width=8).data.train_images.numel()
    monkeypatch.setattr(pixels, "NORMALISED_MOST", 0)
    for memory, whiten, expected in (
        (size, None, torch.uint8),
        (size, "mtt", torch.float32),
        (size - 1, "mtt", torch.uint8),
    ):
        monkeypatch.setattr(pixels, "spare_memory_bytes", lambda memory=memory: memory)
        task = image_task(digits(), width=8, whiten=whiten)
        assert task._pixels._images.dtype == torch.uint8  # nothing is normalised before images are drawn
        task.select(torch.tensor([1]))
        assert task._pixels._images.dtype == expected


def test_whitened_images_get_no_less_memory_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "spare_memory_bytes", lambda: 0)
    task = image_task(digits(), width=8, whiten="mtt")
    task.select(torch.tensor([1]))
    assert task._pixels._images.dtype == torch.float32


def test_images_on_the_host_are_sampled_there_and_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is another one as far as the pixels know; what is sent there comes back, so that it can be seen."""
    task = image_task(digits(), width=8)
    classes = torch.tensor([2, 0])
    expected = task.sample_real(Draws(1), classes, 3)
    sent: list[tuple[int, ...]] = []
    there = torch.device("meta")

    def pinned(self: Tensor) -> Tensor:
        sent.append(tuple(self.shape))
        return self

    real_to: Callable[..., Tensor] = Tensor.to

    def to(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self if args and args[0] == there else real_to(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(Tensor, "to", to)
    task._pixels.device = there
    found = task.sample_real(Draws(1), classes, 3)
    assert isinstance(found, ClassBatch)
    assert isinstance(expected, ClassBatch)
    assert torch.equal(found.batch.inputs, expected.batch.inputs)  # type: ignore[arg-type]
    assert sent == [(2, 3, 1, 8, 8)]


@pytest.mark.gpu
def test_images_too_large_for_the_device_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=0))
    task = image_task(digits(), width=8, device="cuda")
    assert isinstance(task._pixels, Pixels)
    assert task._pixels.place.type == "cpu"
    batch = task.sample_real(Draws(1), torch.arange(4, device="cuda"), 3)
    assert isinstance(batch, ClassBatch)
    assert batch.batch.inputs.device.type == "cuda"  # type: ignore[union-attr]
