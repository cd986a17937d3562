"""ZCA whitening in its three forms, fitted, kept, applied, undone and stored with a set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from mmdistill.files.saved import read_saved
from mmdistill.image import image_task
from mmdistill.image.data import ImageData, build
from mmdistill.image.draw import export_ddranking, export_tensors, to_picture_bytes
from mmdistill.image.whitening import FAINT, fit_whitening, unit_images, whitened, whitening_matrix
from mmdistill.runtime import Draws


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr("mmdistill.image.whitening.CHUNK", 25)
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(60, 3, 1, 1, generator=generator) * 120
    images = (base + torch.rand(60, 3, 4, 4, generator=generator) * 120).to(torch.uint8)
    return build("toy", (images, torch.arange(60) % 3), (images[:9], torch.arange(9) % 3))


def by_hand(data: ImageData, kind: str) -> np.ndarray:
    """The first two training images whitened, with loops and numpy in float64."""
    raw = data.train_images.numpy().astype(np.float64) / 255
    if kind != "mtt":
        for channel in range(3):
            raw[:, channel] = (raw[:, channel] - data.mean[channel]) / data.std[channel]
    flat = raw.reshape(len(raw), -1)
    if kind == "kip":
        flat = np.stack([(row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).sum()) for row in flat])
    else:
        flat = flat - flat.mean(0)
    n, d = flat.shape
    covariance = sum(np.outer(row, row) for row in flat) / (n - 1 if kind == "mtt" else n)
    ridge = 0.1 if kind == "mtt" else 0.1 * np.trace(covariance) / d
    u, s, _ = np.linalg.svd(covariance)
    return (flat[:2] @ (u @ np.diag((s + ridge) ** -0.5) @ u.T)).reshape(2, 3, 4, 4)


@pytest.mark.parametrize("kind", ["mtt", "frepo", "kip"])
def test_each_kind_equals_its_equation_and_is_undone(data: ImageData, kind: str) -> None:
    white = whitened(data, kind)
    found = white.normalise(data.train_images[:2])
    np.testing.assert_allclose(found.numpy(), by_hand(data, kind), atol=2e-5)
    pixels = data.train_images[:20].float() / 255
    shown = white.denormalise(white.normalise(data.train_images[:20]))
    if kind == "kip":  # gives back the training images' mean brightness and contrast
        corner = torch.corrcoef(torch.stack([shown[3].flatten(), pixels[3].flatten()]))[0, 1]
        assert float(corner) > 0.95
    else:
        torch.testing.assert_close(shown, pixels, atol=1e-4, rtol=1e-4)


def test_what_kip_undoes_has_the_training_images_mean_brightness_and_contrast(data: ImageData) -> None:
    bright = replace(data, mean=(0.1, 0.1, 0.1))  # so that standardised images have a mean far from 0
    whitening = fit_whitening(bright, "kip")
    assert whitening.offset > 1
    assert abs(whitening.norm - 1) > 0.5
    images = bright.standardised(bright.train_images)
    expected = unit_images(images.flatten(1))[0] * whitening.norm + whitening.offset
    torch.testing.assert_close(whitening.invert(whitening.apply(images)).flatten(1), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("side", [2, 8, 28])
def test_kip_makes_an_image_without_contrast_zero(side: int) -> None:
    grey = torch.linspace(-2, 2, 41)[:, None].expand(-1, side**2)
    assert torch.equal(unit_images(grey)[0], torch.zeros_like(grey))


@pytest.mark.parametrize(("unit", "said"), [(1.0, False), (0.3, False), (1e-2, True), (1e-6, True)])
def test_only_mtts_depends_on_the_scale_of_floats_and_says_where_it_hardly_whitens(
    data: ImageData, unit: float, said: bool
) -> None:
    labels = data.train_labels
    usual, scaled = (
        build("floats", (images, labels), (images[:9], labels[:9]))
        for images in (data.train_images / 255, data.train_images / 255 * unit)
    )
    assert (FAINT in image_task(scaled, whiten="mtt").describe().notes) == said
    for kind in ("frepo", "kip"):
        found, expected = (whitened(own, kind).normalise(own.train_images) for own in (scaled, usual))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert FAINT not in whitened(scaled, kind).notes
    again = whitened(scaled, "mtt")  # from the cache
    assert (FAINT in again.notes) == said


def test_mtts_equals_kornias(data: ImageData) -> None:
    kornia = pytest.importorskip("kornia")
    pixels = data.train_images.float() / 255
    reference = kornia.enhance.ZCAWhitening(eps=0.1, unbiased=True).fit(pixels)(pixels)
    torch.testing.assert_close(whitened(data, "mtt").normalise(data.train_images), reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "factor"), [("frepo", 1.0), ("mtt", 0.1**-0.5)])
def test_in_directions_that_few_images_do_not_have_only_mtts_scales(data: ImageData, kind: str, factor: float) -> None:
    few = replace(data, train_images=data.train_images[:12], train_labels=data.train_labels[:12])
    matrix = fit_whitening(few, kind).matrix  # type: ignore[arg-type]
    assert int(((torch.linalg.eigvalsh(matrix) - factor).abs() < 1e-4).sum()) >= 48 - 12


@pytest.mark.parametrize("kind", ["frepo", "kip"])
def test_few_images_in_any_order_have_one_matrix(data: ImageData, kind: str) -> None:
    images = data.train_images[:20].clone()
    images[:, 1, 2] = 7  # a row of pixels without variance
    images[19] = images[3]
    few = replace(data, train_images=images, train_labels=data.train_labels[:20])
    turned = replace(few, train_images=images.flip(0))
    first, second = (fit_whitening(own, kind) for own in (few, turned))  # type: ignore[arg-type]
    torch.testing.assert_close(second.matrix, first.matrix, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second.inverse, first.inverse, atol=1e-5, rtol=1e-5)


def test_the_directions_that_few_images_have_are_scaled() -> None:
    covariance = torch.diag(torch.tensor([0.0, 0.0, 0.0, 4.0, 9.0], dtype=torch.float64))
    scales = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    matrix, inverse = whitening_matrix(covariance, 0.0, samples=2)
    torch.testing.assert_close(matrix, torch.diag(1 / scales))
    torch.testing.assert_close(inverse, torch.diag(scales))


def test_the_matrix_is_kept_and_a_damaged_one_made_anew(data: ImageData, tmp_path: Path) -> None:
    first = whitened(data, "kip").whitening
    (path,) = (tmp_path / "whitening").glob("*.safetensors")
    assert first is not None
    again = whitened(data, "kip").whitening
    assert again is not None
    assert torch.equal(first.matrix, again.matrix)
    assert (first.offset, first.norm) == (again.offset, again.norm)
    path.write_bytes(path.read_bytes()[:50])
    anew = whitened(data, "kip").whitening
    assert anew is not None
    torch.testing.assert_close(anew.matrix, first.matrix)


def test_a_cache_that_takes_no_matrix_is_no_hindrance(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    found = whitened(data, "mtt").whitening
    assert found is not None
    assert torch.equal(found.matrix, fit_whitening(data, "mtt").matrix)
    assert "could not be cached" in caplog.text


def test_it_travels_with_the_set(data: ImageData, tmp_path: Path) -> None:
    task = image_task(data, whiten="frepo", width=4, judge_epochs=2)
    result = distill(task, "dm", ipc=1, out=tmp_path / "run", settings={"steps": 2, "real_batch": 4})
    loaded = DistilledSet.load(tmp_path / "run")
    matrix = loaded.info.tensors["whitening.matrix"]
    assert task.data.whitening is not None
    assert torch.equal(matrix, task.data.whitening.matrix)
    assert loaded.info.preprocessing["whitening"]["kind"] == "frepo"  # type: ignore[index]
    assert "range" not in loaded.info.preprocessing
    loaded.require(task.describe())
    for other in (None, "mtt"):
        with pytest.raises(CheckpointError, match="fingerprint"):
            loaded.require(image_task(data, whiten=other, width=4).describe())
    (path,) = export_tensors(result, tmp_path / "export")
    assert torch.equal(read_saved(path)["whitening.matrix"], matrix)
    with pytest.raises(UnsupportedError, match=r"tests on images that are normalised .* whitened \(frepo\)"):
        export_ddranking(result, tmp_path / "ddranking")
    assert not (tmp_path / "ddranking").exists()
    shown = to_picture_bytes(task, task.select(torch.arange(5)).inputs)  # type: ignore[arg-type]
    assert int((shown.int() - data.train_images[:5].int()).abs().max()) <= 1
    assert len(task.evaluate(result.batch, "convnet", Draws(0), 1, {}).values["accuracy"]) == 1


def test_the_same_bytes_in_other_units_have_a_matrix_of_their_own(data: ImageData) -> None:
    for kind in ("mtt", "frepo", "kip"):
        first = whitened(data, kind)
        for other in (
            replace(data, scale=16.0),
            replace(data, std=(0.3, 0.2, 0.1)),
            replace(data, mean=(0.1, 0.2, 0.3)),
        ):
            own = fit_whitening(other, kind)  # type: ignore[arg-type]
            found = whitened(other, kind).whitening
            assert found is not None
            assert torch.equal(found.matrix, own.matrix)
            assert torch.equal(found.mean, own.mean)
        assert torch.equal(whitened(data, kind).whitening.matrix, first.whitening.matrix)  # type: ignore[union-attr]


def test_bad_requests(data: ImageData) -> None:
    with pytest.raises(ConfigError, match="unknown whitening 'zca'"):
        whitened(data, "zca")
    with pytest.raises(ConfigError, match="already"):
        whitened(whitened(data, "mtt"), "mtt")
    large = replace(data, train_images=torch.zeros(3, 3, 65, 65, dtype=torch.uint8))
    with pytest.raises(UnsupportedError, match="12,675 values"):
        whitened(large, "mtt")


@pytest.mark.parametrize("kind", ["mtt", "frepo", "kip"])
def test_images_that_are_all_alike_are_refused(kind: str) -> None:
    images, labels = torch.full((6, 1, 4, 4), 7, dtype=torch.uint8), torch.arange(6) % 2
    with pytest.raises(DataError, match="are all alike"):
        whitened(build("flat", (images, labels), (images, labels)), kind)
