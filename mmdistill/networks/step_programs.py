"""An inner step's gradient and second derivatives as compiled programs.

torch cannot differentiate compiled functions twice. So the second derivative itself is traced, down to single
operations, and compiled as one function without a graph: norms and activations, which take half of an eager step on a
CPU, are fused, and nothing is kept from step to step.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from mmdistill.errors import MmdistillWarning, first_line
from mmdistill.execution.compilation import SHAPES, Program, tracing, uncounted
from mmdistill.execution.memory import exhausted

PRODUCTS_MOST = 100.0
"""Operations of products per byte that a recorded step keeps, up to which programs in float32 save time on a CPU.

A ConvNet's number is three quarters of its width: compiled, 32 channels take .57 of the eager time, 64 .69, 128 .9.
"""
Outputs = Sequence[Tensor]
OfTensors = Callable[..., Outputs]
"""``(*tensors) -> tensors``, a pure function that computes its derivatives itself."""


class StepPrograms:
    """The programs of a run's inner steps, each traced and compiled at its first call.

    A trace freezes everything that a function reads beside its arguments, so nothing but the arguments may change.

    Args:
        lowered: whether products are in bfloat16, where they are never most of the work.
    """

    def __init__(self, lowered: bool = False) -> None:
        self.most = math.inf if lowered else PRODUCTS_MOST
        self._programs: dict[Hashable, Program[..., Outputs] | None] = {}
        self._full = False

    @property
    def seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        return sum(program.seconds for program in self._programs.values() if program is not None)

    def __call__(self, name: Hashable, function: OfTensors, *tensors: Tensor) -> Outputs:
        """Return a function's results, computed by its program if it has one.

        Args:
            name: the function's name; a program is kept by name and shapes of the arguments.
            function: the function.
            tensors: its arguments, which nothing differentiates.
        """
        key = name, tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._programs:
            if len(self._programs) >= SHAPES:
                self._warn_full_once()
                return function(*tensors)
            self._programs[key] = _trace(function, tensors)
        program = self._programs[key]
        with torch.no_grad():
            return function(*tensors) if program is None else program(*tensors)

    def _warn_full_once(self) -> None:
        """Warn, once, that no more programs are made."""
        if not self._full:
            self._full = True
            warnings.warn(
                f"inner steps came in more than {SHAPES} shapes and kinds; further ones stay eager", MmdistillWarning, 3
            )


def _trace(function: OfTensors, tensors: Sequence[Tensor]) -> Program[..., Outputs] | None:
    """Return a function's program for tensors of these shapes, or None with a warning if it cannot be traced.

    The function itself is known to work, so any error is one of tracing, which raises many kinds.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes half a second

    try:
        with uncounted(), tracing(), torch.no_grad():
            graph = make_fx(function)(*tensors)
    except Exception as error:
        if exhausted(error):
            raise
        warnings.warn(f"inner steps cannot be traced and stay eager: {first_line(error)}", MmdistillWarning, 2)
        return None

    def traced(*tensors: Tensor) -> Outputs:
        outputs: Outputs = graph(*tensors)
        return outputs

    return Program(traced)
