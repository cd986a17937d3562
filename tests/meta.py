"""A device that is not there: torch's meta device, whose tensors have shapes but no values that could be read.

A step taken there shows whatever would wait for a real device: reading a value raises, so does all that depends on
values, and :class:`NoTransfers` refuses operators that touch the host and the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdistill import runtime
from mmdistill.composition import make_optimizers
from mmdistill.distiller import Distiller
from mmdistill.image.task import ImageTask
from mmdistill.runs.state import RunState

META = torch.device("meta")
MADE_OF_VALUES = torch.tensor, torch.as_tensor, Tensor.new_tensor
"""What makes a tensor of values, which are its last argument."""


class TransferError(RuntimeError):
    """Tensors were copied between the host and the device."""


class NoTransfers(TorchDispatchMode):
    """Refuses operators that read one device and write another, or that look whether a factorisation worked."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._linalg_check_errors.default:
            raise TransferError(f"{func} reads what a factorisation reports")
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor) and leaf.ndim]
        places = {tensor.device.type for tensor in tensors}
        if len(places) > 1:
            raise TransferError(f"{func} between {' and '.join(sorted(places))}")
        return out


class NoHostValues(TorchFunctionMode):
    """Refuses tensors of the device that are made of values of the host, which a captured call may not read.

    Such a copy reaches no dispatch mode.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in MADE_OF_VALUES and out.device == META and not isinstance(args[-1], Tensor):
            raise TransferError(f"{func.__name__} copies {args[-1]} from the host")
        return out


def _placed(module: nn.Module) -> None:
    """Replace a module's tensors by ones of its shapes on the device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=META))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=META)


@contextmanager
def on_meta(distiller: Distiller, run: RunState) -> Iterator[None]:
    """Move a run of an image task that was started on the CPU to the device that is not there, meanwhile."""
    task = distiller.task
    assert isinstance(task, ImageTask)
    # Moments are brought to a device once and kept.
    moments = patch(
        "mmdistill.image.moments.moments_on", lambda mean, std, device: (torch.ones(1, 1, 1, device=META),) * 2
    )
    with moments, patch.object(runtime.Draws, "generator", lambda key: None):  # it has none
        task.device = task.network.device = META
        task._pixels.device, task._pixels._images = META, task._pixels._images.to(META)
        if task.data.whitening is not None:  # its matrix is brought to a device once as well
            task.data.whitening._by_device[META] = tuple(
                t.to(META) for t in task.data.whitening._on(torch.device("cpu"))
            )
        task._classes = task._classes.to(META)
        for name in ("table", "present"):
            setattr(task._rows, name, getattr(task._rows, name).to(META))
        for module in (task.network.module, run.parameterization, run.objective):
            _placed(module)
        assert distiller.classes is not None
        distiller.classes = distiller.classes.to(META)
        distiller.draws = distiller.draws.to(META)
        run.finite = run.finite.to(META)
        run.average = None if run.average is None else {name: t.to(META) for name, t in run.average.items()}
        run.optimizers = make_optimizers(distiller.method, distiller.settings, run.groups())
        yield
