"""Samples behind one learned linear map: the product by loops, its gradients, its budget and its limit."""

import pytest
import torch

from mmdistill.errors import ConfigError
from mmdistill.labels import FixedLabels, LearnedLabels
from mmdistill.parameterizations.transform import Transformed
from mmdistill.runtime import Draws

KEY = Draws(2)


def test_samples_are_rows_times_the_matrix() -> None:
    codes = KEY.normal(3, 1, 2, 2, dtype=torch.float64)
    found = Transformed(codes, LearnedLabels(torch.zeros(3, 3)), torch.arange(3), 3)
    assert torch.equal(found(KEY).inputs, codes)  # type: ignore[arg-type]
    matrix = KEY.fold("matrix").normal(4, 4, dtype=torch.float64)
    with torch.no_grad():
        found.decoder.matrix.copy_(matrix)
    images = found(KEY).inputs
    assert isinstance(images, torch.Tensor)
    for image, code in zip(images, codes, strict=True):
        for column, value in enumerate(image.flatten()):
            expected = sum(code.flatten()[row] * matrix[row, column] for row in range(4))
            torch.testing.assert_close(value, torch.as_tensor(expected))
    assert {name: [p.numel() for p in group] for name, group in found.groups().items()} == {
        "codes": [12],
        "labels": [9],
        "decoder": [16],
    }
    assert found.stored_bytes() == 12 * 8 + 9 * 4


def test_a_map_too_large_is_refused() -> None:
    with pytest.raises(ConfigError, match="19200 x 19200"):
        Transformed(torch.zeros(1, 3, 80, 80), FixedLabels(torch.zeros(1)), None, None)
