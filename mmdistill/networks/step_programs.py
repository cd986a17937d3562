"""An inner step's gradient, and what moves it, as compiled programs.

What torch compiles it cannot differentiate twice. So the second derivative itself is traced, down to its single
operations, and compiled as one function without a graph: norms and activations, which take half of an eager step on a
CPU, are fused, and nothing is kept from step to step.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from mmdistill.errors import MmdistillWarning
from mmdistill.execution.compilation import SHAPES, Program, tracing, uncounted
from mmdistill.execution.memory import exhausted

PRODUCTS_MOST = 100.0
"""Operations of products for each byte that a recorded step keeps, up to which a CPU gains by programs in float32.

ConvNets have three quarters of their width: those of 32 channels take .57 of their time, of 64 .69, of 128 .9.
"""
Outputs = Sequence[Tensor]
OfTensors = Callable[..., Outputs]
"""``(*tensors) -> tensors``, a pure function that takes derivatives by itself."""


class StepPrograms:
    """The programs of a run's inner steps, of which each is traced and compiled when it is first asked for.

    A trace holds what a function reads beside its arguments as it was then, so these must be all that changes.

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
        """Return a function's results by its program; by itself where there is none.

        Args:
            name: of the function; together with the shapes of its arguments of the program.
            function: what is computed.
            tensors: its arguments, which nothing differentiates.
        """
        kind = name, tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if kind not in self._programs:
            if len(self._programs) >= SHAPES:
                self._tell_full()
                return function(*tensors)
            self._programs[kind] = _traced(function, tensors)
        program = self._programs[kind]
        with torch.no_grad():
            return function(*tensors) if program is None else program(*tensors)

    def _tell_full(self) -> None:
        """Warn, once, that there are programs enough."""
        if not self._full:
            self._full = True
            warnings.warn(
                f"inner steps came in more than {SHAPES} shapes and kinds; further ones stay eager", MmdistillWarning, 3
            )


def _traced(function: OfTensors, tensors: Sequence[Tensor]) -> Program[..., Outputs] | None:
    """Return a function's program for tensors of these shapes; None where it cannot be traced, with a warning.

    The function itself is known to work, so whatever is wrong is tracing's, which raises errors of any kind.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes half a second

    try:
        with uncounted(), tracing(), torch.no_grad():
            graph = make_fx(function)(*tensors)
    except Exception as error:
        if exhausted(error):
            raise
        reason = str(error).strip().split("\n", 1)[0]
        warnings.warn(f"inner steps cannot be traced and stay eager: {reason}", MmdistillWarning, 2)
        return None

    def traced(*tensors: Tensor) -> Outputs:
        found: Outputs = graph(*tensors)
        return found

    return Program(traced)
