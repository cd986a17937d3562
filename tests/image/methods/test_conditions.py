"""What published numbers belong to, and that a run which differs says so."""

import re
from pathlib import Path

import pytest

from mmdistill.commands.assembly import unmet_conditions
from mmdistill.config import DistillConfig
from mmdistill.image import DOMAIN
from mmdistill.image.methods import CONDITIONS, conditions
from mmdistill.image.models import model_factory
from mmdistill.image.protocols import PROTOCOLS
from mmdistill.image.whitening import KINDS

PAGE = Path(__file__).parents[3] / "docs" / "fidelity.md"


def test_conditions_name_what_there_is() -> None:
    for found in CONDITIONS.values():
        assert found.protocol in {"", *PROTOCOLS}
        assert set(found.whiten) <= set(KINDS)
        assert {*found.model_on, *(data for cells in found.whiten.values() for data in cells)} <= set(DOMAIN.datasets)
        shape = (1, 28, 28) if found.model_on else (3, 32, 32)
        assert model_factory(found.model or "convnet", shape, 10, None) is not None


@pytest.mark.parametrize(
    ("method", "data", "ipc", "expected"),
    [
        ("mtt", "cifar10", 1, {"protocol": "mtt", "whiten": "mtt"}),
        ("mtt", "cifar10", 50, {"protocol": "mtt"}),
        ("frepo", "mnist", 1, {"model": "freponet-bn", "protocol": "frepo"}),
        ("frepo", "tiny-imagenet", 50, {"model": "freponet-bn", "protocol": "frepo"}),
        ("rfad", "cifar10", 1, {"model": "convnet-w256-nn", "protocol": "rfad", "whiten": "frepo"}),
        ("rfad", "svhn", 1, {"model": "convnet-w256-nn", "protocol": "rfad", "whiten": "kip"}),
        ("rcig", "mnist", 10, {"model": "freponet-softplus", "protocol": "rcig"}),
        ("rcig", "cifar10", 1, {"model": "freponet-softplus", "protocol": "rcig", "whiten": "frepo"}),
        ("datm", "cifar10", 500, {"protocol": "datm", "whiten": "mtt"}),
        ("datm", "mnist", 1, {"protocol": "datm"}),
        ("pad", "cifar10", 10, {"protocol": "datm", "whiten": "mtt"}),
        ("addmem", "mnist", 1, {"protocol": "addmem"}),
        ("dance", "cifar10", 10, {"protocol": "dance"}),
        ("idm", "cifar10", 10, {}),
        ("ncfm", "cifar10", 10, {"protocol": "ncfm"}),
        ("ld", "mnist", 10, {"model": "lenet"}),
        ("ld", "cifar10", 10, {}),
        ("rded", "cifar10", 10, {"model": "convnet-bn", "protocol": "rded"}),
        ("sre2l", "cifar100", 10, {"model": "resnet18-bn", "protocol": "sre2l"}),
        ("rat-bptt", "cifar100", 1, {"whiten": "kip"}),
        ("rat-bptt", "tiny-imagenet", 10, {}),
        ("dm", "cifar10", 10, {}),
        ("mtt", "digits", 1, {}),
    ],
)
def test_published_numbers_belong_to_options(method: str, data: str, ipc: int, expected: dict[str, str]) -> None:
    assert conditions(method, data, ipc) == expected
    config = DistillConfig(data=data, method=method, ipc=ipc)
    assert unmet_conditions(config, DOMAIN, ipc) == expected
    assert unmet_conditions(DistillConfig(data=data, method=method, ipc=ipc, **expected), DOMAIN, ipc) == {}  # type: ignore[arg-type]
    spelled = {name: value.upper().replace("-", "_") for name, value in expected.items()}
    assert unmet_conditions(DistillConfig(data=data, method=method, ipc=ipc, **spelled), DOMAIN, ipc) == {}  # type: ignore[arg-type]
    assert unmet_conditions(DistillConfig(data=data, method=method, ipc=ipc, schedule="reduced"), DOMAIN, ipc) == {}
    assert unmet_conditions(DistillConfig(data="a/folder", method=method, ipc=ipc), DOMAIN, ipc) == {}


def shown() -> dict[str, tuple[str, str, str]]:
    """Return the page's table: model, protocol and whitening by method."""
    part = PAGE.read_text().partition("## What published numbers belong to")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:3] == "| `"]
    return {name: (row[1], row[2], row[3]) for row in rows for name in re.findall(r"`(.+?)`", row[0])}


def shown_model(text: str, data: str) -> str:
    """Return the network that a cell like "`a`" or "`a`: `x`, `y`" has for data."""
    name, _, places = text.partition(": ")
    return name if not places or f"`{data}`" in places.split(", ") else ""


def shown_whitening(text: str, data: str, ipc: int) -> str:
    """Return the kind that a cell like "`a`: `x` at ipc 1; `y`, `z` at ipc 1, 10; `b`: `w` at ipc 1" has for data."""
    kind = ""
    for part in text.split("; "):
        named, _, cells = part.rpartition(": ")
        kind = named or kind
        places, _, ipcs = cells.partition(" at ipc ")
        if f"`{data}`" in places.split(", ") and str(ipc) in ipcs.split(", "):
            return kind
    return ""


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_the_page_shows_what_published_numbers_belong_to(data: str, ipc: int) -> None:
    for method in DOMAIN.methods:
        model, protocol, whitening = shown().get(method, ("", "", ""))
        whiten = shown_whitening(whitening, data, ipc)
        found = {"model": shown_model(model, data), "protocol": protocol, "whiten": whiten}
        assert conditions(method, data, ipc) == {name: text.strip("`") for name, text in found.items() if text}, method


def test_a_width_beside_the_model_counts() -> None:
    wide, narrow = (
        DistillConfig(data="mnist", method="rfad", ipc=1, model="convnet-nn", width=width, protocol="rfad")
        for width in (256, 16)
    )
    assert unmet_conditions(wide, DOMAIN, 1) == {}
    assert unmet_conditions(narrow, DOMAIN, 1) == {"model": "convnet-w256-nn"}
