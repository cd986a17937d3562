"""Steps of SGD by operations on all parameters at once."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmdistill.networks.update_rules import sgd_update
from mmdistill.runtime import Draws
from mmdistill.task import Tensors

KEY = Draws(5)


class Counting(TorchDispatchMode):
    """Counts operators."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("beta", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 5e-4), (0.9, 5e-4)])
def test_all_parameters_are_updated_at_once_as_one_by_one(beta: float, decay: float, dtype: torch.dtype) -> None:
    shapes = {"b": (7, 5), "a": (3,), "c": (2, 3, 4), "scale": ()}
    drawn = [{n: KEY.fold(part, n).normal(*s).to(dtype) for n, s in shapes.items()} for part in ("p", "g", "h")]
    params, *gradients = drawn
    momentum, expected, kept = Tensors(), params, Tensors()
    for found in gradients:
        with Counting() as counted:
            params, momentum = sgd_update(params, found, momentum, 0.01, beta, decay)
        decayed = {n: g + decay * expected[n] if decay else g for n, g in found.items()}
        kept = {n: beta * kept[n] + g if n in kept else g for n, g in decayed.items()}
        expected, kept = {n: p - 0.01 * kept[n] for n, p in expected.items()}, kept if beta else {}
        assert list(params) == list(shapes)
        assert list(momentum) == list(kept)
        assert all(torch.equal(params[n], expected[n]) for n in shapes)
        assert all(torch.equal(momentum[n], kept[n]) for n in kept)
    assert counted.calls == 2 + 2 * bool(decay) + 2 * bool(beta)
