"""Ways of storing samples of a user's own: checked by one call, and kept as codes only if these decode to the set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.image import image_task
from mmdistill.image.storage import hallucinated, latent
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.method import Parameterizer, Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.codes import CODES, KINDS, decode, save_codes
from mmdistill.registry import get_domain
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, Task, Tensors
from mmdistill.testing import ConformanceError, check_parameterization
from tests.toys import BlobTask


class Products(Parameterization):
    """Samples of four numbers, as outer products of codes."""

    u: Tensor

    def __init__(self, u: Tensor, v: Tensor, labels: Labels, classes: Tensor | None, num_classes: int | None) -> None:
        super().__init__(labels, classes, num_classes)
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)

    def forward(self, draws: Draws) -> Batch:
        return Batch((self.u @ self.v).flatten(1), self.labels(), torch.ones(len(self.u)))

    def plain_values(self) -> Mapping[str, object] | None:
        return {}

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "Products":
        assert set(tensors) == {"u", "v"}
        return cls(tensors["u"], tensors["v"], labels, classes, num_classes)


class Hidden(Products):
    """Adds what it neither stores nor derives from plain values."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shift = args[0].detach().clone().sum((1, 2))[:, None]

    def forward(self, draws: Draws) -> Batch:
        decoded = super().forward(draws)
        assert isinstance(decoded.inputs, Tensor)
        return decoded._replace(inputs=decoded.inputs + self.shift)


class Broken(Products):
    """Needs a tensor by a name that it does not store."""

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "Products":
        return cls(tensors["w"], tensors["v"], labels, classes, num_classes)


class Moved(Products):
    """Changes what it reads while samples are learned."""

    shift = 0.0

    def forward(self, draws: Draws) -> Batch:
        decoded = super().forward(draws)
        assert isinstance(decoded.inputs, Tensor)
        return decoded._replace(inputs=decoded.inputs + self.shift)

    def project(self) -> None:
        self.shift += 1.0


class Cut(Products):
    """Lets no gradient through to its codes."""

    def forward(self, draws: Draws) -> Batch:
        decoded = super().forward(draws)
        return decoded.map(lambda t: t.detach())


class Bare(Products):
    """Decodes inputs alone."""

    def forward(self, draws: Draws) -> Batch:
        return super().forward(draws).inputs  # type: ignore[return-value]


class Noisy(Products):
    """Decodes other samples at each call."""

    def forward(self, draws: Draws) -> Batch:
        decoded = super().forward(draws)
        assert isinstance(decoded.inputs, Tensor)
        return decoded._replace(inputs=decoded.inputs + torch.rand(()))


class Narrow(Products):
    """Decodes samples of another shape than real ones."""

    def forward(self, draws: Draws) -> Batch:
        decoded = super().forward(draws)
        assert isinstance(decoded.inputs, Tensor)
        return decoded._replace(inputs=decoded.inputs[:, :3])


def storage(kind: type[Products], flipped: bool = False, none: bool = False) -> Storage:
    def build(task: Task, budget: int, own: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        classes = torch.arange(3).repeat_interleave(budget)
        codes = draws.fold("u").normal(len(classes), 2, 1), draws.fold("v").normal(len(classes), 1, 2)
        given = None if none else classes.flip(0) if flipped else classes
        return kind(*codes, make_labels(label, classes, 3), given, 3)

    return Storage(build, "outer products")


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Products, Hidden, Broken, Moved, Cut, Noisy, Narrow):
        monkeypatch.setitem(KINDS, kind.__name__.lower(), kind)


@pytest.mark.parametrize("label", ["hard", "soft", "unrestricted"])
def test_codes_of_a_users_kind_decode_to_the_set(tmp_path: Path, label: LabelKind) -> None:
    check_parameterization(BlobTask(), storage(Products), 2, label=label)
    few = {"steps": 2, "inner_steps": 2}
    distill(BlobTask(), "dd", ipc=2, label=label, parameterization=storage(Products), settings=few, out=tmp_path)
    found, own = decode(tmp_path), DistilledSet.load(tmp_path).batch
    assert isinstance(found.inputs, Tensor)
    assert isinstance(own.inputs, Tensor)
    assert torch.equal(found.inputs, own.inputs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Hidden, "codes of Hidden decode to other inputs than its own: what decoding reads must be a parameter"),
        (Broken, "Broken cannot be rebuilt from its codes"),
    ],
)
def test_codes_that_do_not_decode_to_the_set_are_refused_before_the_first_step(
    tmp_path: Path, kind: type[Products], message: str
) -> None:
    few, taken = {"steps": 2}, storage(kind)
    if kind is Hidden:
        build = taken.build

        def built(*args: Any) -> Parameterization:
            made = build(*args)
            assert isinstance(made, Hidden)
            made.shift.mul_(1e-5)
            with torch.no_grad():
                for parameter in made.groups()["codes"]:  # so that it is not what rebuilding finds again
                    parameter.mul_(-1e-5)
            return made

        taken = Storage(built)
    with pytest.raises(ConfigError, match=message):
        distill(BlobTask(), "dm", ipc=1, parameterization=taken, settings=few, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert distill(BlobTask(), "dm", ipc=1, parameterization=taken, settings=few).steps == 2  # nothing to keep


def test_a_set_is_kept_though_its_codes_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = {"steps": 2}
    result = distill(BlobTask(), "dm", ipc=1, parameterization=storage(Moved), settings=few, out=tmp_path)
    assert "codes of Moved decode to other inputs" in caplog.text
    assert not (tmp_path / CODES).exists()
    assert DistilledSet.load(tmp_path).stored_bytes == result.stored_bytes
    made = storage(Moved)(BlobTask(), 1, Settings(steps=1), "hard", Draws(0))
    assert save_codes(tmp_path / CODES, made, 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (storage(Hidden), "what decoding reads must be among these"),
        (storage(Broken), "rebuilt: Broken cannot be rebuilt"),
        (storage(Cut), "no gradient leads from the samples to the codes"),
        (storage(Noisy), "one key must give one batch"),
        (storage(Bare), "forward of Bare returns a Batch .* not a Tensor"),
        (storage(Narrow), r"samples of \(3,\), and real ones are \(4,\)"),
        (storage(Products, flipped=True), "says class 2 of sample 0, whose hard label is 0"),
        (storage(Products, none=True), "the class of each decoded sample is needed"),
    ],
)
def test_ways_of_storing_that_break_the_contract_are_told(build: Parameterizer, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_parameterization(BlobTask(), build, 2)


PACKAGED: dict[str, Callable[[], Storage]] = {
    "upsample-2": lambda: get_domain("image").parameterizations["upsample-2"],
    "addressed": lambda: get_domain("image").parameterizations["addressed"],
    "coefficients": lambda: get_domain("image").parameterizations["coefficients"],
    "latent": lambda: latent(2, 2, 2),
    "hallucinated": lambda: hallucinated(2),
}


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("name", PACKAGED)
def test_the_packages_own_ways_of_storing_pass(name: str) -> None:
    check_parameterization(image_task("digits", width=4), PACKAGED[name](), 4)
