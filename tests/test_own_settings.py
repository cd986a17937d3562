"""Settings with fields of a user's own: overridden, recorded, resumed and noted when unread, like the package's."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.image import METHODS, image_task
from mmdistill.method import Configured, Method
from mmdistill.methods import fresh
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.parameterizations.raw import Raw, raw_samples
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings, watched
from mmdistill.task import Task
from tests.toys import BlobTask

CODES = {"codes": OptimizerSpec("sgd", 0.1)}


@dataclass(frozen=True)
class FewLayers(Settings):
    few: bool = False
    unread: int = 3


@dataclass(frozen=True, slots=True)
class Slotted(Settings):
    few: bool = False


def method(kind: type[Settings] = FewLayers) -> Method:
    return Method(
        "Few",
        Configured(lambda own: DistributionMatching("last" if getattr(own, "few", False) else "all")),
        fresh,
        lambda ipc: kind(steps=4, real_batch=8, optimizers=CODES),
    )


def test_own_fields_are_settings_like_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = BlobTask()
    with caplog.at_level(logging.WARNING):
        result = distill(task, method(), ipc=1, out=tmp_path, settings={"few": True, "steps": 3, "lr": 0.2})
    assert not caplog.messages
    assert (result.settings["few"], result.settings["unread"], result.steps) == (True, 3, 3)
    assert json.loads((tmp_path / "distilled.json").read_text())["settings"]["few"] is True
    with pytest.raises(CheckpointError, match=r"its settings\.few is True, not False"):
        distill(task, method(), ipc=1, out=tmp_path, settings={"steps": 3, "lr": 0.2}, resume=True)


def test_a_closed_form_reads_its_own_fields(tmp_path: Path) -> None:
    def samples(task: Task, budget: int, settings: Settings, draws: Draws) -> Raw:
        made = raw_samples(task, budget, "real", "hard", draws)
        assert isinstance(settings, FewLayers)
        return Raw(made.inputs * settings.unread, made.labels, made.classes, made.num_classes)

    closed = Method("Closed", None, fresh, lambda ipc: FewLayers(0), solve=samples)
    plain = distill(BlobTask(), closed, ipc=1).batch.inputs
    found = distill(BlobTask(), closed, ipc=1, out=tmp_path, settings={"unread": 6})
    assert torch.equal(found.batch.inputs, 2 * plain)  # type: ignore[operator]
    assert found.settings["unread"] == 6
    with pytest.raises(ConfigError, match="Closed has a closed form and takes no steps, so --augment would do nothing"):
        distill(BlobTask(), closed, ipc=1, settings={"unread": 6, "augment": True})


def test_own_fields_that_nobody_reads_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        distill(BlobTask(), method(), ipc=1, settings={"unread": 4})
    assert caplog.messages == ["Few does not read unread, which changes nothing"]


@pytest.mark.parametrize("kind", [FewLayers, Slotted])
def test_settings_of_any_class_are_watched(kind: type[Settings]) -> None:
    own = kind(steps=4)
    found, read = watched(own)
    assert isinstance(found, kind)
    assert not read
    assert found.steps == 4
    assert found.few is False  # type: ignore[attr-defined]
    assert {"steps", "few"} <= read
    assert "real_batch" not in read
    assert type(own) is kind


def test_own_fields_of_other_methods_are_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'fews'; did you mean 'few'") as refused:
        method().with_settings(fews=True)
    assert str(refused.value).endswith(", interactions_per_user, few, unread)")  # its own, and nobody else's
    plain = method(Settings).with_settings(few=True)  # known, but to settings of another class
    with pytest.raises(ConfigError, match="unknown setting 'few'"):
        plain.settings(1)


@pytest.mark.parametrize(
    ("name", "field"), [("rcig", "pool"), ("idm", "pool_size"), ("datadam", "attention_power"), ("rded", "tiles")]
)
def test_settings_that_lack_what_a_method_reads_are_refused(name: str, field: str) -> None:
    task, given = image_task("digits", width=4), Settings(1, optimizers=CODES)
    message = f"reads the setting '{field}', which these settings lack; change those of the method"
    with pytest.raises(ConfigError, match=message):
        Distiller(task, METHODS[name], 1, settings=given).rehearse()
    plain = replace(METHODS[name], settings=lambda ipc: given)
    with pytest.raises(ConfigError, match=message):
        distill(task, plain, ipc=1, settings={} if plain.solve else {"real_batch": 4})


def test_attributes_that_other_objects_lack_are_told_as_they_are() -> None:
    wrong = replace(method(), network=lambda settings: settings.optimizers.missing)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="missing"):
        distill(BlobTask(), wrong, ipc=1)


@dataclass(frozen=True)
class Typed(Settings):
    few: bool = False
    power: float = 1
    depth: int = 2
    name: str = "all"
    bands: tuple[float, ...] = (1.0,)
    loose: int | None = 3
    wrong: int = "text"  # type: ignore[assignment]  # a default that is of another type says nothing


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"few": 1}, "few is true or false, got 1"),
        ({"power": "2"}, "power is a number, got '2'"),
        ({"depth": 2.5}, r"depth is a whole number, got 2\.5"),
        ({"depth": True}, "depth is a whole number, got True"),
        ({"name": 3}, "name is a text, got 3"),
        ({"bands": 3.0}, r"bands is a tuple or list, got 3\.0"),
    ],
)
def test_own_fields_have_the_type_that_they_say(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method(Typed).with_settings(**given).settings(1)


def test_own_fields_take_what_their_types_mean() -> None:
    found = method(Typed).with_settings(power=2.5, bands=[1, 2], loose=None, wrong=1.5).settings(1)
    assert found.power == 2.5  # type: ignore[attr-defined]


@dataclass(frozen=True)
class WithTensor(Settings):
    points: object = None


@pytest.mark.parametrize("value", [torch.zeros(3), lambda x: x, (1, {2: 3})])
def test_values_that_a_run_cannot_note_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"the setting 'points' is a \w+, and settings are numbers, texts"):
        distill(BlobTask(), method(WithTensor), ipc=1, settings={"points": value})


@pytest.mark.parametrize("value", [OptimizerSpec("sgd", 0.1), Path("a"), np.float32(0.5), {"a": (1, "b")}])
def test_values_that_a_run_can_note_resume(value: object, tmp_path: Path) -> None:
    own = {"points": value, "steps": 2}
    first = distill(BlobTask(), method(WithTensor), ipc=1, out=tmp_path, settings=own)
    again = distill(BlobTask(), method(WithTensor), ipc=1, out=tmp_path, settings=own, resume=True)
    assert torch.equal(first.batch.weight, again.batch.weight)
