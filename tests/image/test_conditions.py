"""What published numbers belong to, and that a run which differs says so."""

import pytest

from mmdistill.assembly import unmet_conditions
from mmdistill.config import DistillConfig
from mmdistill.image import DOMAIN
from mmdistill.image.models import model_factory
from mmdistill.image.protocols import PROTOCOLS
from mmdistill.image.published import MODEL_OF, PROTOCOL_OF, WHITENING_OF, conditions
from mmdistill.image.whitening import KINDS
from mmdistill.registry import domain_methods


def test_conditions_name_what_there_is() -> None:
    assert {*PROTOCOL_OF, *MODEL_OF, *WHITENING_OF} <= set(domain_methods(DOMAIN))
    assert set(PROTOCOL_OF.values()) <= set(PROTOCOLS)
    assert {kind for kind, _ in WHITENING_OF.values()} <= set(KINDS)
    for model in MODEL_OF.values():
        assert model_factory(model, (3, 32, 32), 10, None) is not None


@pytest.mark.parametrize(
    ("method", "data", "ipc", "expected"),
    [
        ("mtt", "cifar10", 1, {"protocol": "mtt", "whiten": "mtt"}),
        ("mtt", "cifar10", 50, {"protocol": "mtt"}),
        ("frepo", "mnist", 1, {"model": "freponet-bn", "protocol": "frepo"}),
        ("dm", "cifar10", 10, {}),
        ("mtt", "digits", 1, {}),
    ],
)
def test_published_numbers_belong_to_options(method: str, data: str, ipc: int, expected: dict[str, str]) -> None:
    assert conditions(method, data, ipc) == expected
    config = DistillConfig(data=data, method=method, ipc=ipc)
    assert unmet_conditions(config, DOMAIN, ipc) == expected
    assert unmet_conditions(DistillConfig(data=data, method=method, ipc=ipc, **expected), DOMAIN, ipc) == {}  # type: ignore[arg-type]
    assert unmet_conditions(DistillConfig(data=data, method=method, ipc=ipc, schedule="reduced"), DOMAIN, ipc) == {}
    assert unmet_conditions(DistillConfig(data="a/folder", method=method, ipc=ipc), DOMAIN, ipc) == {}
