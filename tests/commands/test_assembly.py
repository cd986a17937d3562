"""Options that only some kinds of data take, and which those are."""

import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmdistill import registry
from mmdistill.commands.assembly import SIZES, chosen_method, make_task
from mmdistill.config import DistillConfig
from mmdistill.distill import method_settings
from mmdistill.errors import ConfigError
from mmdistill.methods import CORE_METHODS
from mmdistill.names import in_words
from mmdistill.registry import (
    DOMAIN_PACKAGES,
    OF_SOME_DOMAINS,
    Domain,
    domain_of,
    get_domain,
    get_method,
    get_parameterization,
    takers,
)
from tests.toys import BlobTask

Told = list[dict[str, object]]
WAVES = DistillConfig(data="waves", method="dm", device="cpu")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Register a domain of one's own that takes a size; what its tasks are told is kept here."""
    found: Told = []

    def build(data: str, **options: object) -> Any:
        found.append(options)
        return BlobTask()

    names, own = {"waves": "of water"}, ("size", "augment")
    domain = Domain("series", "ipc", names, lambda path: False, build, {}, lambda *_: [], options=own)
    monkeypatch.setitem(sys.modules, "own_series", SimpleNamespace(DOMAIN=domain))
    monkeypatch.setitem(DOMAIN_PACKAGES, "series", "own_series")
    return found


def test_what_a_domain_takes_is_an_option_and_every_such_option_is_taken() -> None:
    taken = {option for name in DOMAIN_PACKAGES for option in get_domain(name).options}
    assert taken == set(OF_SOME_DOMAINS)  # what is missing there would be passed over in silence elsewhere
    assert taken <= {entry.name for entry in fields(DistillConfig)}


def test_a_domain_of_ones_own_takes_the_options_that_it_names(told: Told) -> None:
    make_task(replace(WAVES, size=8, augment=True))
    assert told == [{"size": 8, "device": "cpu", "seed": 0}]  # what was given, and no setting of methods
    with pytest.raises(ConfigError, match=r"^--mirror is for image data, and 'waves' is series data; leave it out$"):
        make_task(replace(WAVES, mirror=True))
    assert takers("size") == ["image", "series"]
    with pytest.raises(ConfigError, match=r"^--size is for image and series data, and 'cora' is graph data"):
        make_task(replace(WAVES, data="cora", size=8))


def test_splits_have_a_seed_of_their_own_and_methods_a_network_that_another_replaces(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_task(replace(WAVES, seed=3))
    make_task(replace(WAVES, seed=3, split_seed=0))
    domain = replace(get_domain("series"), networks={"dm": "gru"}, options=("model",))
    monkeypatch.setitem(sys.modules, "own_series", SimpleNamespace(DOMAIN=domain))
    make_task(WAVES, "cpu")
    make_task(replace(WAVES, model="rnn", method="dc"))
    assert [(own["seed"], own.get("model")) for own in told] == [(3, None), (0, None), (0, "gru"), (0, "rnn")]
    make_task(replace(WAVES, method="dc"))
    assert "model" not in told[-1]


def test_files_of_a_domain_of_ones_own_go_to_it_before_those_that_take_anything(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, images = tmp_path / "a.csv", tmp_path / "a.npz"
    table.write_text("text,label\n" + "".join(f"word {row},{row % 3}\n" for row in range(30)))
    np.savez(images, images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2)
    assert [domain_of(str(path)).name for path in (table, images)] == ["text", "image"]
    own = {"waving": CORE_METHODS["dm"], "dm": CORE_METHODS["dm"]}
    domain = replace(get_domain("series"), accepts=lambda path: path.suffix in (".csv", ".npz"), methods=own)
    monkeypatch.setitem(sys.modules, "own_series", SimpleNamespace(DOMAIN=domain))
    for path in (table, images):
        for told_of in ({}, {"budget": "ipc"}, {"method": "dm"}, {"method": "Waving"}):
            assert domain_of(str(path), **told_of).name == "series"  # type: ignore[arg-type]
    assert domain_of(str(images), method="mtt").name == "image"  # which no other domain has
    assert domain_of(str(table), budget="users").name == "recsys"
    assert domain_of(str(table), ["text_column"]).name == "text"
    assert domain_of("digits", method="waving").name == "image"


@pytest.mark.parametrize("option", SIZES)
def test_sizes_are_refused_by_their_names_on_the_command_line(option: str, told: Told) -> None:
    name, data = f"--{option.replace('_', '-')}", {"length": "trec", "size": "waves"}.get(option, "digits")
    with pytest.raises(ConfigError, match=f"^{name} is a whole number of at least 1, got 0$"):
        make_task(replace(WAVES, data=data, **{option: 0}))
    assert not told


def test_domains_are_asked_for_their_options_only_where_one_is_refused(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_domain.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "DOMAIN_PACKAGES", {"series": "own_series", "slow": "slow_domain"})
    make_task(replace(WAVES, size=8, width=4, judge_epochs=2, steps=3, lr=0.1))
    assert told == [{"size": 8, "width": 4, "judge_epochs": 2, "device": "cpu", "seed": 0}]
    with pytest.raises(RuntimeError, match="imported"):
        make_task(replace(WAVES, mirror=True))


@pytest.mark.parametrize(
    ("names", "words"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_stand_in_a_sentence(names: list[str], words: str) -> None:
    assert in_words(names) == words


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("name", DOMAIN_PACKAGES)
def test_a_methods_name_means_the_same_in_python_and_on_the_command_line(name: str, classes: int) -> None:
    domain, task = get_domain(name), BlobTask()
    task.num_classes = classes
    for data in ("own", *domain.datasets, *domain.presets):
        info = replace(task.describe(), domain=name, data=data, budget=domain.budget)
        task.describe = lambda info=info: info  # type: ignore[method-assign,misc]
        short = domain.reduced.get(data, domain.reduced.get("*", {}))
        for schedule, methods in (("published", {*domain.methods, *domain.presets.get(data, ())}), ("reduced", short)):
            for key in methods:
                registered = get_method(domain, key, data, schedule)  # type: ignore[arg-type]
                config = DistillConfig(data=data, method=key, schedule=schedule)  # type: ignore[arg-type]
                settings = method_settings(task, key, budget=1, schedule=schedule)  # type: ignore[arg-type]
                assert chosen_method(config, task).settings(1) == settings
                assert registered.for_classes(classes).settings(1) == settings


def test_a_way_of_storing_has_the_settings_for_the_data() -> None:
    config = DistillConfig(data="digits", method="dm", parameterization="gan-latents", width=4)
    digits = get_parameterization(get_domain("image"), "gan-latents", "digits")
    assert chosen_method(config, make_task(config, "cpu")[1]).parameterization == digits
