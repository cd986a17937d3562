import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from mmdistill.allocation import allocate
from mmdistill.class_rows import ClassRows
from mmdistill.coresets import choose_samples
from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError, ShapeError, UnsupportedError
from mmdistill.evaluate import evaluate, find_judges
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.data import build
from mmdistill.image.datasets import load
from mmdistill.image.draw import folder_name
from mmdistill.image.methods.ridge import may_mirror
from mmdistill.image.task import MIRRORED, NOT_AUGMENTED
from mmdistill.labels import centred_one_hot, is_distribution, target_loss
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims
from mmdistill.testing import check_task
from tests.toys import Sizes, held

DIGITS_METHODS = ("dm", "datadam", "dc", "dsa", "krr")


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", width=8, judge_epochs=3)


def tiny(n: int = 40, classes: int = 4, side: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % classes
    images = torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1)
    return images, labels


@pytest.mark.parametrize("judge", ["convnet", "mlp"])
def test_the_task_keeps_its_contract(digits: ImageTask, judge: str) -> None:
    check_task(digits, judge=judge)


@pytest.mark.parametrize("model", ["mlp", "lenet", "resnet18"])
def test_other_models_keep_the_contract(model: str) -> None:
    check_task(image_task(tiny(side=16), model=model, width=6))


def test_class_batches_hold_distinct_images_of_their_class(digits: ImageTask) -> None:
    batch = digits.sample_real(Draws(0), torch.tensor([3, 7]), 20)
    assert isinstance(batch, ClassBatch)
    assert batch.batch.inputs.shape == (2, 20, 1, 8, 8)
    assert batch.batch.targets.tolist() == [[3] * 20, [7] * 20]
    assert batch.batch.inputs.flatten(2)[0].unique(dim=0).shape[0] == 20
    assert bool((batch.batch.weight == 1).all())


def test_small_classes_are_padded_with_weight_zero() -> None:
    images = torch.rand(12, 1, 8, 8)
    labels = torch.tensor([0] * 9 + [1] * 3)
    task = image_task((images, labels), test=(images, labels), width=4)
    batch = task.sample_real(Draws(0), torch.arange(2), 6)
    assert isinstance(batch, ClassBatch)
    assert batch.batch.weight.sum(1).tolist() == [6, 3]
    whole = task.sample_real(Draws(0), torch.arange(2), 100)
    assert isinstance(whole, ClassBatch)
    assert whole.batch.weight.sum(1).tolist() == [9, 3]
    kept = whole.batch.inputs[1][whole.batch.weight[1] > 0]
    expected = task.select(torch.arange(9, 12)).inputs
    assert sorted(kept.sum((1, 2, 3)).tolist()) == sorted(expected.sum((1, 2, 3)).tolist())


def test_a_long_tail_needs_no_table_of_all_classes_by_the_largest() -> None:
    labels = torch.cat([torch.zeros(400, dtype=torch.long), torch.arange(1, 40).repeat_interleave(2)])
    labels = labels[Draws(1).permutation(len(labels))]
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).float().expand(-1, 1, 8, 8).contiguous()
    task = image_task((images, labels), test=(images, labels), model="mlp", width=4)
    with Sizes() as sizes:
        rows, weight = ClassRows(labels, 40, task.device).draw(Draws(0), torch.arange(40), 3)
    assert sizes.largest <= len(labels)
    batch = task.sample_real(Draws(0), torch.arange(40), 3)
    assert isinstance(batch, ClassBatch)
    assert torch.equal(batch.batch.inputs, task.select(rows).inputs)  # type: ignore[arg-type]
    assert torch.equal(batch.batch.weight, weight)
    assert weight.sum(1).tolist() == [3] + [2] * 39
    for label, (own, there) in enumerate(zip(rows, weight > 0, strict=True)):
        assert set(labels[own[there]].tolist()) == {label}
        assert len(own[there].unique()) == int(there.sum())
    whole, present = task._rows.draw(Draws(2), torch.tensor([7, 0]), 500)
    assert whole.shape == (2, 400)
    assert sorted(whole[0][present[0] > 0].tolist()) == (labels == 7).nonzero().flatten().tolist()
    assert sorted(whole[1].tolist()) == (labels == 0).nonzero().flatten().tolist()
    drawn = torch.cat([task._rows.draw(Draws(step), torch.tensor([0]), 40)[0][0] for step in range(400)])
    often = drawn.bincount(minlength=len(labels))[labels == 0]  # 40 of each in the mean, with a deviation of 6
    assert 15 < int(often.min()) <= int(often.max()) < 70
    assert 5 < float(often.double().std()) < 7


def test_siamese_augmentation_is_shared_by_a_class_and_by_both_sides(digits: ImageTask) -> None:
    image = digits.select(torch.tensor([0])).inputs
    few = ClassBatch(Batch(image.expand(3, 2, 1, 8, 8), torch.zeros(3, 2), torch.ones(3, 2)), Dims(0, 0))
    many = ClassBatch(Batch(image.expand(3, 5, 1, 8, 8), torch.zeros(3, 5), torch.ones(3, 5)), Dims(0, 0))
    key = Draws(5, ("step", 1))
    one, other = (digits.augment(key, batch, shared=True).batch.inputs for batch in (few, many))
    assert torch.equal(one[:, 0], one[:, 1])
    assert torch.equal(one[:, 0], other[:, 4])
    assert not torch.equal(one[0], one[1]) or not torch.equal(one[1], one[2])
    flat = Batch(image.expand(50, -1, -1, -1), torch.zeros(50), torch.ones(50))
    samples = digits.augment(key.fold(1), flat, shared=False).inputs
    assert samples.flatten(1).unique(dim=0).shape[0] > 5


def test_digits_are_never_mirrored() -> None:
    assert "flip" not in image_task("digits").augmentation.operations
    assert "flip" in image_task(tiny()).augmentation.operations


def test_images_with_a_side_of_one_pixel_are_augmented_neither_by_methods_nor_by_judges() -> None:
    images, labels = torch.rand(40, 1, 1, 6), torch.arange(40) % 4
    task, plain = (
        image_task((images, labels), model="mlp", width=4, judge_epochs=2, protocol="rded", teacher=teacher, **chosen)
        for teacher in [image_task((images, labels), model="mlp", width=4).network.module.state_dict()]
        for chosen in ({}, {"judge_augment": False})
    )
    flat, of_classes = task.select(torch.arange(8)), task.sample_real(Draws(0), torch.arange(4), 2)
    assert task.augment(Draws(0), flat, shared=False) is flat
    assert task.augment(Draws(0), of_classes, shared=True) is of_classes
    assert task.describe().preprocessing["notes"] == [NOT_AUGMENTED]
    assert "augmentation" not in task.describe().preprocessing
    assert task.judging_chosen == {"epochs": 2, "protocol": "augmentation off"}
    assert task.evaluate(flat, "mlp", Draws(0), 1, {}) == plain.evaluate(flat, "mlp", Draws(0), 1, {})
    with pytest.raises(UnsupportedError, match=r"a side of one pixel may be vectors.* leave out judge_augment"):
        image_task((images, labels), model="mlp", judge_augment=True)
    task = image_task((images, labels), model="mlp", judge_epochs=1)
    with pytest.raises(UnsupportedError, match=r"a side of one pixel .*; robust scores compare"):
        task.robust(flat, "mlp", Draws(0), 1, {}, None)
    assert image_task(tiny()).describe().preprocessing["notes"] == [MIRRORED]
    coloured = [image_task((torch.rand(40, 3, *sides), labels), model="mlp") for sides in ((1, 6), (2, 3))]
    assert [may_mirror(task) for task in coloured] == [False, True]


def test_loss_is_cross_entropy_for_distributions_and_squared_error_otherwise() -> None:
    logits = torch.randn(4, 3)
    classes = torch.tensor([0, 2, 1, 1])
    probabilities = torch.softmax(torch.randn(4, 3), 1)
    scores = centred_one_hot(classes, 3)
    assert is_distribution(probabilities).all()
    assert not is_distribution(scores).any()
    torch.testing.assert_close(
        target_loss(logits, classes), nn.functional.cross_entropy(logits, classes, reduction="none")
    )
    torch.testing.assert_close(
        target_loss(logits, probabilities), nn.functional.cross_entropy(logits, probabilities, reduction="none")
    )
    torch.testing.assert_close(target_loss(logits, scores), 0.5 * (logits - scores).square().sum(1))
    mixed = torch.stack([probabilities[0], scores[1]])
    assert float(target_loss(logits[:2], mixed)[1]) == float(target_loss(logits, scores)[1])


def test_soft_labels_are_judged(digits: ImageTask) -> None:
    batch = digits.select(torch.arange(30))
    soft = torch.full((30, 10), 0.01)
    soft[torch.arange(30), batch.targets] = 0.91
    for targets in (soft, centred_one_hot(batch.targets, 10)):
        scores = digits.evaluate(Batch(batch.inputs, targets, batch.weight), "convnet", Draws(0), 2, {})
        assert len(scores.values["accuracy"]) == 2


def test_a_collapsed_judge_says_so() -> None:
    digits = image_task("digits", judge_epochs=100, judge_augment=False)
    batch = digits.select(torch.arange(4))
    scores = digits.evaluate(Batch(batch.inputs, torch.zeros_like(batch.targets), batch.weight), "mlp", Draws(0), 1, {})
    assert scores.notes == ("predicts only 1 of 10 classes",)


class Own(nn.Module):
    """A user's network: its own names, dropout, batch norm and an unusual layer order."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten())
        self.head = nn.Linear(4 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_the_users_own_network_and_data() -> None:
    images, labels = tiny()
    dataset = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    task = image_task(dataset, model=Own, features=("body.0", "head"), judge_epochs=4)
    assert task.judges[0] == "model"
    state = task.init(Draws(0))
    assert [layer.shape for layer in task.features(state, task.select(torch.arange(2)).inputs)] == [(2, 144), (2, 144)]
    check_task(task, judge="model")
    result = distill(task, "dm", ipc=2, settings={"steps": 3, "real_batch": 4})
    assert result.batch.inputs.shape == (8, 1, 8, 8)


class Odd(nn.Linear):
    """A network that refuses its inputs."""

    def __init__(self) -> None:
        super().__init__(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("odd")


class Attentive(nn.Module):
    """A network of fused attention over image rows, and of an activation of choice."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.activation = activation
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.activation(self.layer(x[:, 0])).flatten(1))
        return logits


@pytest.mark.parametrize("name", ["dsa", "dd"])
def test_attention_is_differentiated_twice_and_what_cannot_be_is_named(name: str) -> None:
    settings = {"steps": 2, "real_batch": 4, "inner_steps": 2}
    task = image_task(tiny(), model=lambda: Attentive(nn.ReLU()))
    assert distill(task, name, ipc=1, settings=settings).batch.inputs.isfinite().all()  # type: ignore[union-attr]
    task = image_task(tiny(), model=lambda: Attentive(nn.Hardsigmoid()))
    with pytest.raises(UnsupportedError, match=r"differentiates gradients again, .* \(hardsigmoid_backward\)"):
        distill(task, name, ipc=1, settings=settings)


def test_pictures_keep_four_channels_and_refuse_what_they_would_lose(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (8, 4, 6, 5), dtype=torch.uint8)
    task = image_task((images, torch.arange(8) % 2), model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(120, 2)))
    batch = task.select(torch.arange(len(task.data.train_images)))
    paths = DOMAIN.exports["folder"](held(task, batch), tmp_path / "four")
    with Image.open(paths[0]) as picture:
        assert (picture.mode, len(paths)) == ("RGBA", len(task.data.train_images))
    with pytest.raises(UnsupportedError, match="class '1' is the largest label of no image"):
        DOMAIN.exports["folder"](held(task, task.select(task.labels.eq(0).nonzero().flatten())), tmp_path / "one")
    two = image_task((images[:, :2], torch.arange(8) % 2), model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(60, 2)))
    with pytest.raises(UnsupportedError, match="pictures have 1, 3 or 4 channels, these 2"):
        DOMAIN.exports["folder"](held(two, two.select(torch.arange(2))), tmp_path / "two")


class Shifting(nn.Module):
    """Changes what it is given, which the next network would read."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def test_networks_that_change_their_input_are_refused() -> None:
    with pytest.raises(ConfigError, match="changes its input in place"):
        image_task(tiny(classes=2), model=Shifting)


def test_networks_that_cannot_work_are_refused_when_the_task_is_built() -> None:
    with pytest.raises(ConfigError, match="cannot run on images of shape"):
        image_task(tiny(side=9), model=Own)
    with pytest.raises(ConfigError, match="cannot run on images of shape"):
        image_task(tiny(classes=3), model=Own)
    with pytest.raises(ConfigError, match=r"cannot run on images of shape .*: ValueError\('odd'\)"):
        image_task(tiny(), model=Odd)
    with pytest.raises(ConfigError, match=r"float32, and body.0.weight of this one is float64"):
        image_task((tiny()[0].double(), tiny()[1]), model=lambda: Own().double())
    with pytest.raises(ConfigError, match="no submodule named 'neck'"):
        image_task(tiny(), model=Own, features=("neck",))
    with pytest.raises(ConfigError, match="a module of your own takes no width"):
        image_task(tiny(), model=Own, width=3)
    with pytest.raises(ConfigError, match="unknown model 'resnet'"):
        image_task(tiny(), model="resnet")
    with pytest.raises(UnsupportedError, match="at least 16 x 16"):
        image_task("digits", model="lenet")


def test_bad_requests(digits: ImageTask) -> None:
    for options in ({"protocol": 3}, {"whiten": 3}):
        with pytest.raises(ConfigError, match="a name is expected, got 3, which is int"):
            image_task("digits", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the number of networks is a whole number of at least 1, got None"):
        evaluate(digits, digits.select(torch.arange(3)), n=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown judge 'vgg'"):
        digits.evaluate(None, "vgg", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="one tensor, got a dict"):
        digits.predict(digits.init(Draws(0)), {"x": torch.zeros(1)})
    with pytest.raises(DataError, match="10,000 samples are more than the 1,297 of the data"):
        distill(digits, "dm", ipc=1000)
    images, labels = torch.rand(9, 1, 8, 8), torch.arange(9) % 2
    named = image_task(build("pets", (images, labels), (images, labels), class_names=("cat", "dog")), width=8)
    for start in ("real", "herding"):
        with pytest.raises(DataError, match="10 samples are more than the 9 of the data"):
            distill(named, "dm", ipc=5, settings={"init": start})


def test_the_domain_builds_tasks_and_knows_digits_settings() -> None:
    task = DOMAIN.make_task("digits", model="mlp", width=16, judge_epochs=2, judge_batch=50)
    assert task.judges == ("mlp", "convnet", "convnet-nn", "vit", "ntk")
    assert task.describe().preprocessing["shape"] == [1, 8, 8]
    json.dumps(dict(task.describe().preprocessing))
    assert get_method(DOMAIN, "dm", "digits").settings(1).steps < 2000
    assert get_method(DOMAIN, "dm", "mnist").settings(1).steps == 20_000


@pytest.mark.parametrize("name", ["..", ".", "../../x", ".hidden"])
def test_pictures_stay_in_their_folder_whatever_classes_are_called(name: str, tmp_path: Path) -> None:
    task = image_task(replace(load("digits"), class_names=(name, *(f"z{index}" for index in range(9)))), width=4)
    batch = task.select(torch.tensor([int((task.data.train_labels == index).nonzero()[0]) for index in range(10)]))
    paths = DOMAIN.exports["folder"](held(task, batch), tmp_path / "export")
    assert all(path.resolve().parent.parent == (tmp_path / "export" / "images").resolve() for path in paths)


def test_pictures_and_exports(digits: ImageTask, tmp_path: Path) -> None:
    indices = choose_samples(digits, "real", allocate(3, "ipc", digits.labels, 10), Draws(0))
    batch = digits.select(indices.flip(0))
    (picture,) = DOMAIN.draw(digits, batch, tmp_path)
    with Image.open(picture) as image:
        assert min(image.size) > 200
    (tensors,) = DOMAIN.exports["tensors"](held(digits, batch), tmp_path)
    stored = safetensors.torch.load_file(tensors)
    assert stored["labels"].tolist() == sorted(batch.targets.tolist())
    DOMAIN.exports["pt"](held(digits, batch), tmp_path)
    images, labels = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("images", "labels"))
    assert torch.equal(images, stored["images"])
    assert torch.equal(labels, stored["labels"])
    units = json.loads((tmp_path / "preprocessing.json").read_text())
    mean, std = (torch.tensor(units[name]).view(-1, 1, 1) for name in ("mean", "std"))
    raw = digits.data.test_images[:5]
    torch.testing.assert_close((raw / units["scale"] - mean) / std, digits.data.normalise(raw))
    assert units["class_names"] == list(digits.data.class_names)
    assert len(DOMAIN.exports["folder"](held(digits, batch), tmp_path)) == 30
    folder = ImageFolder(str(tmp_path / "images"))
    assert folder.classes == list(digits.data.class_names)
    pixels = digits.data.denormalise(images)
    with Image.open(folder.samples[4][0]) as image:
        shown = torch.from_numpy(np.array(image)) / 255
    torch.testing.assert_close(shown, pixels[4, 0], atol=0.003, rtol=0)
    soft = Batch(batch.inputs, centred_one_hot(batch.targets, 10), batch.weight)
    DOMAIN.exports["pt"](held(digits, soft), tmp_path / "soft")
    assert torch.load(tmp_path / "soft" / "labels.pt", weights_only=True).shape == (30, 10)


def test_folders_are_numbered_where_the_alphabet_would_reorder_classes(tmp_path: Path) -> None:
    data = tiny(n=24, classes=12)
    task = image_task(data, test=data, width=4)
    DOMAIN.exports["folder"](held(task, task.select(torch.arange(12))), tmp_path)
    assert [int(name.split("-")[1]) for name in ImageFolder(str(tmp_path / "images")).classes] == list(range(12))


def test_folders_differ_where_disks_ignore_case(tmp_path: Path) -> None:
    data = tiny(n=24, classes=4)
    task = image_task(data, test=data, width=4, class_names=["A", "B", "a", "b"])
    DOMAIN.exports["folder"](held(task, task.select(torch.arange(12))), str(tmp_path))
    assert [path.name for path in sorted((tmp_path / "images").iterdir())] == ["0-A", "1-B", "2-a", "3-b"]
    assert len(ImageFolder(str(tmp_path / "images"))) == 12


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ('a<>:"/\\|?*b', "a---------b"),
        ("tab\there", "tab-here"),
        ("etc...", "etc"),
        ("..", "_"),
        ("NUL", "_NUL"),
        ("con.fusion", "_con.fusion"),
        ("COM1 ", "_COM1"),
        ("lpt¹", "_lpt¹"),
        ("console", "console"),
        ("été 2", "été 2"),
    ],
)
def test_class_folders_are_named_so_that_every_system_can_have_them(name: str, folder: str) -> None:
    assert folder_name(name) == folder


@pytest.mark.parametrize("method", DIGITS_METHODS)
def test_every_method_runs_and_resumes_to_the_bit(method: str, digits: ImageTask, tmp_path: Path) -> None:
    settings = {"steps": 4, "real_batch": 16}
    whole = distill(digits, method, ipc=1, settings=settings)
    assert bool(whole.batch.inputs.isfinite().all())
    folder = tmp_path / method
    distill(digits, method, ipc=1, settings=settings, out=folder, checkpoint_every=2)
    newest = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
    newest.unlink()
    again = distill(digits, method, ipc=1, settings=settings, out=folder, checkpoint_every=2, resume=True)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)
    assert torch.equal(again.batch.targets, whole.batch.targets)


def test_the_export_for_ddranking_has_its_layout(tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=4)
    assert task.labels is not None
    shuffled = torch.cat([(task.labels == label).nonzero().flatten()[:2] for label in reversed(range(10))])
    paths = DOMAIN.exports["ddranking"](held(task, task.select(shuffled)), tmp_path)
    images, labels = (torch.load(path, weights_only=True) for path in paths[:2])
    assert paths[2].name == "preprocessing.json"
    assert (images.shape, images.dtype) == ((20, 3, 8, 8), torch.float32)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert torch.equal(images[:, 0], images[:, 2])
    with pytest.raises(UnsupportedError, match="equally many"):
        DOMAIN.exports["ddranking"](held(task, task.select(torch.arange(15))), tmp_path)


@pytest.mark.parametrize("format", ["ddranking", "pt"])
def test_images_are_exported_by_the_class_they_stand_for_whatever_their_soft_label(format: str, tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=4)
    batch = task.select(torch.arange(20))
    targets = centred_one_hot(torch.arange(10).repeat_interleave(2), 10)
    targets[[0, 7, 8]] = targets[[18, 8, 7]]  # one image of another label, two that have each other's
    written = DOMAIN.exports[format](held(task, batch._replace(targets=targets)), tmp_path)
    images, labels = (torch.load(path, weights_only=True) for path in written[:2])
    assert torch.equal(images[:, :1], batch.inputs)  # type: ignore[arg-type]
    assert torch.equal(labels, targets)
    with pytest.raises(UnsupportedError, match="equally many"):
        DOMAIN.exports["ddranking"](held(task, Batch(batch.inputs[:19], targets[:19], batch.weight[:19])), tmp_path)  # type: ignore[index]


def test_pictures_show_a_class_in_each_row_whatever_soft_labels_say(tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=4)
    batch = task.select(torch.arange(20))
    classes = torch.arange(10).repeat_interleave(2)
    targets = centred_one_hot(classes, 10)
    targets[0] = targets[18]
    pictures = []
    for name, labels in (("hard", classes), ("soft", targets)):
        (path,) = DOMAIN.draw(task, batch._replace(targets=labels), tmp_path / name)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]


def test_sets_of_other_images_and_classes_are_refused(digits: ImageTask) -> None:
    batch = digits.select(torch.arange(10))
    assert isinstance(batch.inputs, Tensor)
    with pytest.raises(ShapeError, match=r"images of digits are \(1, 8, 8\), got \(3, 8, 8\)"):
        evaluate(digits, batch._replace(inputs=batch.inputs.expand(-1, 3, -1, -1)), n=1, baselines=[])
    for labels in (torch.arange(10) + 1, torch.arange(10) - 1, torch.eye(10, 11)):
        with pytest.raises(ShapeError, match="digits has 10 classes, and the labels are of others"):
            evaluate(digits, batch._replace(targets=labels), n=1, baselines=[])


class Branching(nn.Module):
    """Looks at its inputs' values, which torch cannot batch over classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images / 2 if images.abs().max().item() > 1e3 else images)
        return out


class Paired(Branching):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(images), images


def test_a_network_without_features_serves_methods_that_read_none() -> None:
    def convolutional() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    task = image_task(tiny(), model=convolutional)
    assert distill(task, "dc", ipc=1, settings={"steps": 2, "real_batch": 4}).steps == 2
    for method in ("dm", "cafe", "frepo", "rfad"):
        with pytest.raises(ConfigError, match=r"reads a network's features, .* no nn.Linear whose input"):
            Distiller(task, get_method(DOMAIN, method), 1).start()
    assert distill(image_task(tiny(), model=convolutional, features="1"), "dm", ipc=1, settings={"steps": 1}).steps == 1


def test_a_network_that_cannot_be_batched_over_classes_takes_one_at_a_time() -> None:
    task = image_task(tiny(), model=Branching)
    settings = {"steps": 2, "real_batch": 4}
    with pytest.raises(UnsupportedError, match="--classes-at-once 1"):
        distill(task, "dc", ipc=1, settings=settings)
    assert distill(task, "dc", ipc=1, settings={**settings, "classes_at_once": 1}).steps == 2


def test_a_network_that_returns_more_than_logits_is_refused_when_the_task_is_built() -> None:
    with pytest.raises(ConfigError, match="the network returned a tuple for 2 images"):
        image_task(tiny(), model=Paired)


def test_a_network_that_mixes_up_images_and_rows_is_refused() -> None:
    class Halved(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[: max(len(images) // 2, 1)]

    def halved() -> nn.Module:
        return Halved(nn.Flatten(), nn.Linear(64, 4))

    with pytest.raises(ConfigError, match=r"the network returned \(1, 4\) for 2 images of 4 classes"):
        image_task(tiny(), model=halved)


class Divided(nn.Module):
    """A network whose logits are none."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(images.flatten(1)) / torch.zeros(())
        return out


def test_judges_whose_logits_are_not_finite_are_noted() -> None:
    task = image_task(tiny(), model=Divided, judge_epochs=1)
    scores = task.evaluate(task.select(torch.arange(8)), task.judges[0], Draws(0), 2, {})
    assert "2 of 2 networks give NaN or infinite logits: they diverged, or cannot read these images" in scores.notes
    assert find_judges(task, ["all", "mlp"]) == list(task.judges)


def test_a_collapse_is_seen_where_the_test_images_lack_classes() -> None:
    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    few = labels < 2
    task = image_task((images, labels), test=(images[few], labels[few]), model="mlp", width=4, judge_epochs=1)
    blank = Batch(torch.zeros(4, 1, 8, 8), torch.full((4,), 3), torch.ones(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mmdistill.image.judge_training.JudgeTraining.predict",
            lambda *_: [(torch.full((20,), 3), torch.tensor(True))],
        )
        scores = task.evaluate(blank, "mlp-w4", Draws(0), 1, {})
    assert (scores.values["accuracy"], scores.notes) == ((0.0,), ("predicts only 1 of 4 classes",))


def test_a_judge_that_does_not_fit_takes_no_other_scores_with_it() -> None:
    task = image_task("digits", model="mlp", width=4, judge_epochs=1)
    batch = task.select(torch.arange(10))
    found = evaluate(task, batch, judges=["mlp-w4", "resnet18"], n=1, baselines=[])
    assert [entry.judge for entry in found.results] == ["mlp"]  # the network distilled with is 4 units wide
    assert "at least 16 x 16 pixels" in found.failures["resnet18"]
    with pytest.raises(UnsupportedError, match="at least 16 x 16 pixels"):
        evaluate(task, batch, judges=["resnet18", "vgg11"], n=1, baselines=[])
    with pytest.raises(ConfigError, match="unknown judge 'foo'"):
        evaluate(task, batch, judges=["mlp-w4", "foo"], n=1, baselines=[])
