"""Steps that differentiate gradients again, which not all of torch's layers support."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdistill.errors import UnsupportedError

MISSING = re.compile(r"derivative for '?(?:aten::)?(\w+)'? is not implemented")
"""torch's message for an operation whose gradient cannot be differentiated."""


@contextmanager
def differentiable_again(title: str) -> Iterator[None]:
    """Within this context compute attention by plain products, since gradients of fused ones cannot be differentiated.

    Args:
        title: the method's title.

    Raises:
        UnsupportedError: the network has an operation whose gradient cannot be differentiated at all.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        operation = MISSING.search(str(error))
        if operation is None:
            raise
        raise UnsupportedError(
            f"{title} differentiates gradients again, which torch cannot do through a layer of this network "
            f"({operation[1]}); replace the layer, or take a method that differentiates once, such as dm or krr"
        ) from error
