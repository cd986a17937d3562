"""Raw storage: the samples themselves are learned."""

import torch
from torch import Tensor, nn

from mmdistill.labels import Labels
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs, num_samples


class Raw(Parameterization):
    """Learn the samples themselves, in the task's own (normalised) units.

    Args:
        inputs: initial samples ``(M, ...)``, or a named dict of tensors.
        labels: their targets.
        classes: ``(M,)`` the class each sample stands for.
        num_classes: C.
        learn: the names of a dict's tensors that are learned; all floating-point ones by default.
    """

    def __init__(
        self,
        inputs: Inputs,
        labels: Labels,
        classes: Tensor | None,
        num_classes: int | None,
        learn: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(labels, classes, num_classes)
        self.count = num_samples(inputs)
        self._single = not isinstance(inputs, dict)
        named = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        self._names = tuple(named)
        for name, tensor in named.items():
            learned = tensor.is_floating_point() if learn is None else name in learn
            if learned:
                self.register_parameter(name, nn.Parameter(tensor.clone()))
            else:
                self.register_buffer(name, tensor.clone())

    def forward(self, draws: Draws) -> Batch:
        """Return the stored samples."""
        named = {name: getattr(self, name) for name in self._names}
        inputs: Inputs = named["inputs"] if self._single else named
        weight = torch.ones(self.count, device=next(iter(named.values())).device)
        assert self.labels is not None
        return Batch(inputs, self.labels(), weight)
