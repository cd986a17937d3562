"""The file of what a set stores: it takes the bytes that the set claims, and decodes to the set without the data."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mmdistill
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, UnsupportedError
from mmdistill.image import ImageTask, image_task
from mmdistill.image.methods.generative import of_generator
from mmdistill.image.storage import addressed, addressed_latent, canvas, coefficients, hallucinated, latent
from mmdistill.labels import FixedLabels, LearnedLabels, NoLabels
from mmdistill.method import Storage
from mmdistill.parameterizations.canvas import Canvases
from mmdistill.parameterizations.codes import CODES, KEY, decode, load_codes, save_codes
from mmdistill.parameterizations.decoder import DecodedCodes, LatentDecoder
from mmdistill.parameterizations.generated import Inversion
from mmdistill.runtime import Draws
from mmdistill.store import digest_of, write_tensors
from mmdistill.task import Batch

STORAGES: dict[str, Storage | str] = {
    "upsample-2": "upsample-2",
    "addressed": "addressed",
    "coefficients": "coefficients",
    "latent": latent(2, 2, 2),
    "hallucinated": hallucinated(2),
    "canvas": canvas(3),
    "addressed-latent": addressed_latent(2, 1, 2, multiple=2),
    "addressed-upsample-2": addressed(multiple=1, tiles=2),  # few, since labels of tiles take most of the bytes
    "hallucinated-upsample-2": hallucinated(2, tiles=2),
    "coefficients-upsample-2": coefficients(1, tiles=2),
    "canvas-upsample-2": canvas(1, tiles=2),
}

pytestmark = pytest.mark.usefixtures("short_fits")


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=4)


def run(task: ImageTask, storage: Storage | str, label: str, out: Path) -> DistilledSet:
    settings = {"init": "real", "steps": 2, "real_batch": 4, "outer_steps": 1, "inner_steps": 2, "teacher_epochs": 1}
    method = "dd" if label == "unrestricted" else "dsa"  # which compares gradients of the cross entropy alone
    return distill(task, method, ipc=4, parameterization=storage, label=label, settings=settings, out=out)


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
    made, about = load_codes(tmp_path / CODES)
    assert (made.stored_bytes(), about["seed"], about["label"]) == (found.stored_bytes, found.seed, found.label)
    assert made.classes is not None
    assert torch.equal(made.classes, torch.arange(10).repeat_interleave(torch.tensor(about["samples"])))


@pytest.mark.parametrize(("name", "method"), [(name, "dsa") for name in STORAGES] + [("upsample-2", "tesla")])
def test_codes_of_an_average_have_its_teachers_labels(task: ImageTask, name: str, method: str, tmp_path: Path) -> None:
    of_experts = {"experts": 1, "expert_steps": 1, "start_epochs": 1, "expert_epochs": 1, "inner_batch": 0}
    settings = {"init": "real", "steps": 2, "ema": 0.5, "inner_steps": 2}
    settings |= of_experts if method == "tesla" else {"real_batch": 4, "outer_steps": 1, "teacher_epochs": 1}
    found = distill(
        task, method, ipc=4, parameterization=STORAGES[name], label="teacher", settings=settings, out=tmp_path
    )
    assert_same(mmdistill.decode(tmp_path), found.batch)


def test_a_canvas_is_cropped_anew_by_another_seed(task: ImageTask, tmp_path: Path) -> None:
    found = run(task, canvas(3), "hard", tmp_path)
    again = decode(tmp_path, seed=1)
    assert not torch.equal(again.inputs, found.batch.inputs)  # type: ignore[arg-type]
    assert torch.equal(again.targets, found.batch.targets)  # type: ignore[arg-type]
    save_codes(tmp_path / CODES, load_codes(tmp_path / CODES)[0], 1)
    assert_same(decode(tmp_path), again)
    assert_same(decode(tmp_path, seed=0), found.batch)
    with pytest.raises(ConfigError, match="seed"):
        decode(tmp_path, seed=1.5)  # type: ignore[arg-type]


def test_decoded_labels_are_plain_numbers(task: ImageTask, tmp_path: Path) -> None:
    run(task, canvas(3), "unrestricted", tmp_path)
    assert not decode(tmp_path).targets.requires_grad  # type: ignore[union-attr]


def test_crops_of_another_seed_have_no_teachers_labels(task: ImageTask, tmp_path: Path) -> None:
    found = run(task, canvas(3), "teacher", tmp_path)
    assert_same(decode(tmp_path, seed=found.seed), found.batch)
    with pytest.raises(UnsupportedError, match="a teacher labelled the samples of seed 0"):
        decode(tmp_path, seed=1)
    found = run(task, "upsample-2", "teacher", tmp_path / "same")
    assert_same(decode(tmp_path / "same", seed=1), found.batch)  # whose samples are those of any seed


@pytest.mark.gpu
def test_a_canvas_of_a_device_decodes_to_the_same_set(tmp_path: Path) -> None:
    found = run(image_task("digits", width=4, device="cuda"), canvas(3), "hard", tmp_path)  # softmax rounds elsewhere
    assert_same(decode(tmp_path), found.batch)


class Images(nn.Module):
    """A generator of a user's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 64)

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.layer(latents)
        return images.view(-1, 1, 8, 8)


def inverted() -> Storage:
    return of_generator(Images(), 4, inversion=Inversion(steps=2, feature_steps=2))


@pytest.mark.parametrize("make", [lambda: "raw", lambda: "coefficients-by-index", inverted])
def test_what_needs_more_than_its_tensors_is_not_written(
    task: ImageTask, make: Callable[[], Storage | str], tmp_path: Path
) -> None:
    run(task, make(), "hard", tmp_path)
    assert not (tmp_path / CODES).exists()
    with pytest.raises(CheckpointError, match=r"codes.safetensors is missing: here is no finished run, or one whose"):
        decode(tmp_path)


class Own(LatentDecoder):
    """Decodes in another way than its base."""


class Sharp(LearnedLabels):
    """Gives other targets than its base."""


def test_decoders_of_the_users_kind_are_not_written(tmp_path: Path) -> None:
    codes, classes = torch.zeros(2, 1, 4, 4), torch.arange(2)
    known = LatentDecoder(1, 2, 2)
    for decoder, labels, order in (
        (nn.Identity(), FixedLabels(classes), classes),
        (Own(1, 2, 2), FixedLabels(classes), classes),
        (known, Sharp(torch.eye(2)), classes),
        (known, NoLabels(), classes),
        (known, FixedLabels(classes), classes.flip(0)),
    ):
        assert not save_codes(tmp_path / CODES, DecodedCodes(codes, [decoder], labels, order, 2), 0)
        assert not list(tmp_path.iterdir())
    assert save_codes(tmp_path / CODES, DecodedCodes(codes, [known], FixedLabels(classes), classes, 2), 0)


def test_codes_keep_their_number_format(tmp_path: Path) -> None:
    codes, classes = torch.randn(300, 1, 2, 2, dtype=torch.float64), torch.arange(300)
    made = DecodedCodes(codes, [LatentDecoder(1, 2, 2).double()], FixedLabels(classes), classes, 300)
    save_codes(tmp_path / CODES, made, 0)
    assert load_file(tmp_path / CODES)["labels.targets"].dtype == torch.uint16
    assert_same(decode(tmp_path), Batch(*(part.detach() for part in made(Draws(0)))))  # type: ignore[union-attr]


def test_what_a_file_says_is_strict_json(task: ImageTask, tmp_path: Path) -> None:
    run(task, "coefficients", "hard", tmp_path)
    with safe_open(tmp_path / CODES, "pt") as handle:
        about = json.loads(handle.metadata()["mmdistill"])["content"]
    assert "Infinity" not in about
    assert json.loads(about)["plain"]["low"] is None


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


@pytest.mark.parametrize(
    "change",
    [
        {"samples": [10**9, 1]},
        {"samples": [10**400, 1]},
        {"samples": [-1, 3]},
        {"samples": {"a": 1}},
        {"samples": []},
        {"plain": {"size": [4, 4], "crops": 10**9}},
        {"plain": {"size": [4, 4], "crops": 2.0}},
        {"plain": {"size": 10**400, "crops": 1}},
        {"plain": [1]},
        {"seed": "one"},
        None,
        "[" * 200_000,
    ],
)
def test_codes_of_more_samples_than_their_tensors_make_are_damaged(tmp_path: Path, change: object) -> None:
    tensors = {"canvases": torch.zeros(2, 1, 4, 4), "labels.targets": torch.arange(2)}
    content = {"version": 2, "kind": "canvas", "plain": {"size": [4, 4], "crops": 1, "tiles": 1}, "label": "hard"}
    content |= {"samples": [1, 1], "seed": 0}

    def write(about: object) -> Path:
        digest = digest_of(tensors, about if isinstance(about, str) else "")
        write_tensors(tmp_path / CODES, tensors, {KEY: json.dumps({"digest": digest, "content": about})})
        return tmp_path / CODES

    assert decode(write(json.dumps(content))).weight.tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="codes of version 1 and kind 'canvas'; this mmdistill reads version 2"):
        decode(write(json.dumps(content | {"version": 1})))
    about = json.dumps(content | change) if isinstance(change, dict) else change
    with pytest.raises(CheckpointError, match="is damaged"):
        decode(write(about))


def test_a_new_run_removes_the_codes_of_a_former_one(task: ImageTask, tmp_path: Path) -> None:
    run(task, "upsample-2", "hard", tmp_path)
    settings = {"steps": 2, "real_batch": 4, "outer_steps": 1}
    distill(task, "dsa", ipc=1, settings=settings, out=tmp_path, overwrite=True)
    assert not (tmp_path / CODES).exists()


def test_an_unknown_kind_is_refused_by_name(task: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(task, "upsample-2", "hard", tmp_path)
    monkeypatch.setattr("mmdistill.parameterizations.codes.KINDS", {"canvas": Canvases})
    with pytest.raises(CheckpointError, match=r"kind 'upsampled'; .* version 2 of canvas.* is imported"):
        decode(tmp_path)
