"""Steps that differentiate gradients again, which not all of torch's layers can."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdistill.errors import UnsupportedError

MISSING = re.compile(r"derivative for '?(?:aten::)?(\w+)'? is not implemented")
"""What torch says of an operation whose gradient cannot be differentiated."""


@contextmanager
def differentiable_again(title: str) -> Iterator[None]:
    """Let attention run in plain products meanwhile, whose gradients can be differentiated; fused ones cannot.

    Args:
        title: of the method.

    Raises:
        UnsupportedError: the network has an operation whose gradient cannot be differentiated at all.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        found = MISSING.search(str(error))
        if found is None:
            raise
        raise UnsupportedError(
            f"{title} differentiates gradients again, which torch cannot do through a layer of this network "
            f"({found[1]}); replace the layer, or take a method that differentiates once, such as dm or krr"
        ) from error
