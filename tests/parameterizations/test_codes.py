"""The file of what a set stores: it takes the bytes that the set claims, and decodes to the set without the data."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mmdistill
from mmdistill.distill import distill
from mmdistill.errors import CheckpointError
from mmdistill.image import ImageTask, image_task
from mmdistill.image.generative import of_generator
from mmdistill.image.storage import canvas, hallucinated, latent
from mmdistill.labels import FixedLabels
from mmdistill.method import Storage
from mmdistill.parameterizations.codes import CODES, decode, load_codes, save_codes
from mmdistill.parameterizations.decoder import DecodedCodes
from mmdistill.store import DistilledSet
from mmdistill.task import Batch

STORAGES: dict[str, Storage | str] = {
    "upsample-2": "upsample-2",
    "addressed": "addressed",
    "coefficients": "coefficients",
    "latent": latent(2, 2, 2),
    "hallucinated": hallucinated(2),
    "canvas": canvas(3),
}


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=4)


def run(task: ImageTask, storage: Storage | str, label: str, out: Path) -> DistilledSet:
    settings = {"steps": 2, "real_batch": 4, "outer_steps": 1, "teacher_epochs": 1}
    return distill(task, "dsa", ipc=4, parameterization=storage, label=label, settings=settings, out=out)


def assert_same(found: Batch, expected: Batch) -> None:
    for part, own in zip(found, expected, strict=True):
        assert isinstance(part, Tensor)
        assert isinstance(own, Tensor)
        assert torch.equal(part, own)


@pytest.mark.parametrize("label", ["hard", "soft", "unrestricted", "teacher"])
@pytest.mark.parametrize("name", STORAGES)
def test_codes_take_the_bytes_that_are_claimed_and_decode_to_the_set(
    task: ImageTask, name: str, label: str, tmp_path: Path
) -> None:
    found = run(task, STORAGES[name], label, tmp_path)
    assert (
        sum(tensor.numel() * tensor.itemsize for tensor in load_file(tmp_path / CODES).values()) == found.stored_bytes
    )
    assert_same(mmdistill.decode(tmp_path), found.batch)
    made, seed = load_codes(tmp_path / CODES)
    assert (made.stored_bytes(), seed) == (found.stored_bytes, found.seed)


def test_a_canvas_is_cropped_anew_by_another_seed(task: ImageTask, tmp_path: Path) -> None:
    found = run(task, canvas(3), "hard", tmp_path)
    again = decode(tmp_path, seed=1)
    assert not torch.equal(again.inputs, found.batch.inputs)  # type: ignore[arg-type]
    assert torch.equal(again.targets, found.batch.targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", ["raw", "coefficients-by-index", of_generator(nn.Linear(4, 64), 4)])
def test_what_needs_more_than_its_tensors_is_not_written(
    task: ImageTask, storage: Storage | str, tmp_path: Path
) -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 64)

        def forward(self, latents: Tensor) -> Tensor:
            images: Tensor = self.layer(latents)
            return images.view(-1, 1, 8, 8)

    run(task, of_generator(Images(), 4) if isinstance(storage, Storage) else storage, "hard", tmp_path)
    assert not (tmp_path / CODES).exists()
    with pytest.raises(CheckpointError, match=r"codes.safetensors is missing; raw samples .* have no codes"):
        decode(tmp_path)


def test_decoders_of_the_users_kind_are_not_written(tmp_path: Path) -> None:
    codes, classes = torch.zeros(2, 1, 8, 8), torch.arange(2)
    made = DecodedCodes(codes, [nn.Identity()], FixedLabels(classes), classes, 2)
    assert not save_codes(tmp_path / CODES, made, 0)
    assert not list(tmp_path.iterdir())


def test_damage_is_told(task: ImageTask, tmp_path: Path) -> None:
    run(task, "upsample-2", "hard", tmp_path)
    path = tmp_path / CODES
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        decode(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its content has changed"):
        decode(path)
    path.write_bytes(whole.replace(b"upsampled", b"upsampler"))
    with pytest.raises(CheckpointError, match="its content has changed"):
        decode(path)
    path.write_bytes(whole)
    with safe_open(path, "pt") as handle:
        assert list(handle.metadata()) == ["mmdistill"]
    save_file({"t": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds no codes"):
        decode(path)


def test_a_new_run_removes_the_codes_of_a_former_one(task: ImageTask, tmp_path: Path) -> None:
    run(task, "upsample-2", "hard", tmp_path)
    settings = {"steps": 2, "real_batch": 4, "outer_steps": 1}
    distill(task, "dsa", ipc=1, settings=settings, out=tmp_path, overwrite=True)
    assert not (tmp_path / CODES).exists()


def test_an_unknown_kind_is_refused_by_name(task: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(task, "upsample-2", "hard", tmp_path)
    kinds = {"other": replace}
    monkeypatch.setattr("mmdistill.parameterizations.codes.KINDS", kinds)
    with pytest.raises(CheckpointError, match=r"kind 'upsampled'; this mmdistill reads version 1 of other"):
        decode(tmp_path)
