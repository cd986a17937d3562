"""CONTRIBUTING.md shows how to add a method and a kind of data; this does just what it shows."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from inspect import isabstract
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.neighbors import NearestCentroid

from mmdistill import cli, export, image_task, selection
from mmdistill.cli import main
from mmdistill.coresets import coreset
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.evaluate import evaluate, find_baselines, find_judges
from mmdistill.image.judges import JUDGES
from mmdistill.image.models import FAMILIES
from mmdistill.labels import LabelKind
from mmdistill.methods import CORE_METHODS
from mmdistill.metrics import read_metrics
from mmdistill.networks import early, schedules, staggered
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.objectives import base
from mmdistill.objectives.base import Network, Objective
from mmdistill.objectives.wrapper import FLAGS
from mmdistill.parameterizations.codes import KINDS, load_codes
from mmdistill.registry import DOMAIN_PACKAGES, Domain, get_domain, get_method
from mmdistill.rules import RULES
from mmdistill.runtime import Draws
from mmdistill.task import TaskInfo
from mmdistill.testing import check_parameterization, check_task

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
REFERENCE = PAGE.parent / "docs" / "extending.md"
README = PAGE.parent / "README.md"
APPLICATIONS_PAGE = PAGE.parent / "docs" / "applications.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
UNTYPED = "# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls\n"
"""What pages leave out for brevity are annotations, which this makes of no account; torch leaves some out as well."""
TYPED = """
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from mmdistill import image_task, text_task
from mmdistill.objectives.base import Network, Objective, flatten_classes
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch
frame = pd.DataFrame({"text": ["good", "bad"], "label": [1, 0]})
text_task((frame["text"], frame["label"]))
text_task((frame["text"].to_numpy(), np.array([1, 0])))
text_task({"train": (frame["text"], frame["label"]), "test": (["good"], torch.tensor([1]))})
image_task((torch.zeros(2, 1, 8, 8), frame["label"]))
class Flat(Objective):
    view = "flat"
    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        syn, real = flatten_classes(syn), flatten_classes(real)
        return network.features(syn.inputs)[-1].sum() + real.weight.sum()
"""
"""What annotations of users' own say of data and batches."""
OWN_DATA = """import torch
images = test_images = held_images = torch.zeros(5, 1, 8, 8)
labels = test_labels = held_labels = torch.zeros(5, dtype=torch.long)
"""
"""What the page of applications takes as given."""
QUICK = ["--steps", "2", "--networks", "1", "--judge-epochs", "1", "--baselines", "none"]


@pytest.fixture(scope="module")
def shown() -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {}
    domain = get_domain("image")
    tables = (domain.methods, domain.presets, domain.reduced, domain.parameterizations, FAMILIES, KINDS, JUDGES, RULES)
    before = [(table, dict(table)) for table in tables]
    for page in (PAGE, REFERENCE):
        for block in BLOCK.findall(page.read_text()):
            exec(block, names)
    yield names
    for table, entries in before:  # what the page adds to the package is this page's alone
        assert isinstance(table, MutableMapping)
        table.clear()
        table.update(entries)
    cli.build_parser.cache_clear()  # type: ignore[attr-defined]  # whose help may name them: tests keep one


@pytest.mark.slow  # minutes where mypy has not read the package before, and seconds after that
def test_a_strict_type_checker_takes_the_shown_code(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    shown = [block for page in (PAGE, REFERENCE) for block in BLOCK.findall(page.read_text())]
    (training,) = [block for block in BLOCK.findall(README.read_text()) if "DistilledSet.load" in block]
    scripts = {
        "shown.py": UNTYPED + "".join(shown),
        "training.py": f"{UNTYPED}import torch\ntest_images = test_labels = torch.zeros(5, 1, 8, 8)\n{training}",
        "data.py": TYPED,
        "applications.py": OWN_DATA + "".join(BLOCK.findall(APPLICATIONS_PAGE.read_text())),
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in scripts]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *files], cwd=PAGE.parent, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture(scope="module")
def task(shown: dict[str, Any]) -> Any:
    labels = Draws(0).integers(3, 120)
    points = Draws(1).normal(120, 5) + 3 * Draws(2).normal(3, 5)[labels]
    return shown["PointTask"](points, labels)


def test_the_shown_task_keeps_its_contract(task: Any) -> None:
    check_task(task, judge="linear")


@pytest.mark.parametrize("name", ["mine", "spread", "powered", "head", "student"])
def test_the_shown_methods_distil(shown: dict[str, Any], task: Any, name: str) -> None:
    losses: list[float] = []
    result = distill(task, shown[name], ipc=2, progress=lambda done, total, loss: losses.append(loss))
    assert result.batch.weight.shape == (6,)
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_shown_loop_steps_a_run(shown: dict[str, Any]) -> None:
    assert (shown["by_hand"].steps, shown["by_hand"].method) == (60, "flat-dc")
    (group,) = shown["run"].optimizers["codes"].param_groups
    assert group["lr"] == 0.05 * 0.5**3


@pytest.mark.parametrize("name", ["dm", "krr"])
def test_the_packages_methods_distil_the_shown_task(task: Any, name: str) -> None:
    assert not torch.bincount(task.labels).eq(40).all()  # real batches are larger than some classes
    result = distill(task, name, ipc=2, settings={"steps": 2, "real_batch": 256})
    assert evaluate(task, result, n=1, baselines=["random"]).headline().mean > 0.3


def test_settings_of_the_shown_class_are_replaced_and_recorded(shown: dict[str, Any], task: Any) -> None:
    result = distill(task, shown["powered"], ipc=1, settings={"power": 1.5, "steps": 2})
    assert result.settings["power"] == 1.5
    assert isinstance(described := result.described["objective"], dict)
    assert described == {"class": "SpreadMatching", "power": 1.5}


@pytest.mark.parametrize("label", ["hard", "soft"])
def test_the_shown_storage_keeps_its_contract(shown: dict[str, Any], label: LabelKind) -> None:
    check_parameterization(shown["task"], shown["HALVED"], label=label)


def test_what_a_script_registers_goes_by_name(shown: dict[str, Any], tmp_path: Path) -> None:
    halved = distill(shown["task"], "flat-dc", ipc=1, parameterization="halved", settings={"steps": 1})
    assert halved.batch.weight.shape == (40,)
    first, *_ = shown_commands()
    assert main([*first, *QUICK, "--out", str(tmp_path)]) == 0
    codes, about = load_codes(tmp_path / "codes.safetensors")
    decoded, kept = codes(Draws(0)).inputs, DistilledSet.load(tmp_path).batch.inputs
    assert isinstance(kept, torch.Tensor)
    assert torch.allclose(decoded, kept, atol=1e-5)
    assert about["kind"] == "shrunk"
    metrics = read_metrics(tmp_path / "metrics.json")
    assert metrics["results"][0]["judge"] == "two"
    assert (
        main(
            [
                "distill",
                "--data",
                "digits",
                "--method",
                "spread-p",
                "--ipc",
                "1",
                *QUICK,
                "--set",
                "power=1.5",
                "--model",
                "two-w8",
                "--out",
                str(tmp_path / "own"),
            ]
        )
        == 0
    )
    assert DistilledSet.load(tmp_path / "own").settings["power"] == 1.5


def test_the_shown_judge_goes_by_name(shown: dict[str, Any]) -> None:
    task, domain = shown["task"], get_domain("image")
    assert [name for name in ("ntk-d2", "mlp", "means", "means [own]") if domain.network_added(name)] == [
        "means",
        "means [own]",
    ]
    with pytest.raises(ConfigError, match=r"unknown judge 'meens'; did you mean 'means'"):
        find_judges(task, ["meens"])
    made = distill(task, "dm", ipc=2, settings={"steps": 1})
    found = evaluate(task, made, judges=["Means", "ntk"], n=2, baselines=["whole"])
    assert [entry.judge for entry in found.results] == ["means", "ntk"]
    nearest = NearestCentroid().fit(task.data.normalise(task.data.train_images).flatten(1), task.labels)
    images, labels = task.test_set
    right = nearest.score(task.data.normalise(images).flatten(1), labels)
    assert found.baselines["whole"][0].mean == pytest.approx(right)
    assert {"means", "ntk"} <= {*find_judges(image_task("digits", model="mlp", width=4), ["all"])}


def test_the_shown_closed_form_gives_real_samples_at_their_own_bytes(shown: dict[str, Any]) -> None:
    found = distill(shown["task"], shown["solved"], ipc=2)
    assert found.stored_bytes == selection(shown["task"], "random", ipc=2).stored_bytes
    images = shown["task"].select(torch.arange(len(shown["task"].labels))).inputs.flatten(1).sum(1)
    for label, light in enumerate(found.batch.inputs.flatten(1).sum(1).split(2)):  # type: ignore[union-attr]
        torch.testing.assert_close(light, images[shown["task"].labels == label].topk(2).values)


def test_the_shown_rule_is_known_wherever_herding_is(shown: dict[str, Any], tmp_path: Path) -> None:
    task = shown["task"]
    chosen = selection(task, "Outliers", ipc=2)
    expected = coreset(task, "outliers", torch.full((10,), 2), Draws(0, ("selection", "outliers")))
    assert torch.equal(chosen.batch.inputs, expected.inputs)  # type: ignore[arg-type]
    assert chosen.stored_bytes == selection(task, "herding", ipc=2).stored_bytes
    assert find_baselines(task, "all")[-2:] == ["outliers", "whole"]
    start = distill(task, "dm", ipc=2, settings={"steps": 0, "init": "outliers"}).batch
    assert torch.equal(start.targets, expected.targets)  # type: ignore[arg-type]
    own = ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--model", "mlp", "--init", "OUTLIERS"]
    assert main([*own, *QUICK[:-1], "outliers", "--out", str(tmp_path)]) == 0
    assert DistilledSet.load(tmp_path).settings["init"] == "outliers"
    assert read_metrics(tmp_path / "metrics.json")["baselines"].keys() == {"outliers"}


def test_a_script_of_the_shown_blocks_runs_in_place_of_the_command(tmp_path: Path) -> None:
    script = tmp_path / "my_methods.py"
    script.write_text("\n".join(BLOCK.findall(PAGE.read_text())))
    _, sweep = shown_commands()
    made = subprocess.run(
        [sys.executable, script, *sweep, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert len(made.stdout.splitlines()) == 12
    assert "digits-flat-dc-10-seed2" in made.stdout


def shown_commands() -> list[list[str]]:
    """Return the arguments that the page gives its script."""
    return [shlex.split(line) for line in re.findall(r"^python my_methods\.py (.*)$", PAGE.read_text(), re.MULTILINE)]


def test_the_reference_names_all_there_is() -> None:
    page = BLOCK.sub("", REFERENCE.read_text())
    flags = {name: getattr(Objective, name) for name in FLAGS}
    table = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", page, re.MULTILINE))
    assert table == {name: f'"{value}"' if isinstance(value, str) else str(value) for name, value in flags.items()}
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", page))))
    assert set(Network._fields) <= named
    assert {name for name in vars(Draws) if not name.startswith("_")} - {"path", "device", "seed"} <= named
    for name in ("class_sides", "class_means", "class_summary", "class_gradients", "flatten_classes"):
        assert name in named
        assert hasattr(base, name)
    for module in (schedules, early, staggered):
        kinds = {name for name, kind in vars(module).items() if _is_schedule(kind, module.__name__)}
        assert kinds - {"FreshNetworks", "UnreadNetwork", "TrainedOnS", "SteppedOnS"} <= named


def _is_schedule(kind: object, module: str) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, NetworkSchedule)
        and kind.__module__ == module
        and not isabstract(kind)
    )


def test_the_shown_settings_for_a_data_set_are_found(shown: dict[str, Any]) -> None:
    domain = get_domain("image")
    assert get_method(domain, "flat-dc").settings(1).steps == 60
    assert get_method(domain, "flat-dc", "digits").settings(1).steps == 30
    assert get_method(domain, "flat-dc", "digits", "reduced").settings(1).steps == 5
    assert "dm" in domain.presets["digits"] or get_method(domain, "dm", "digits")  # what was there stays


def test_a_script_registers_a_domain_as_the_page_says(
    shown: dict[str, Any], task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Series(type(task)):  # type: ignore[misc]
        def describe(self) -> TaskInfo:
            return replace(super().describe(), domain="series")

    series, few = Series(task.points, task.labels), {"steps": 2, "real_batch": 8}
    with pytest.raises(ConfigError, match=r"unknown domain 'series'.*Method values.*DOMAIN_PACKAGES\['series'\]"):
        distill(series, "dm", ipc=1, settings=few)
    assert distill(series, CORE_METHODS["dm"], ipc=1, settings=few).steps == 2
    (tmp_path / "own_series.py").write_text(
        "from mmdistill.methods import CORE_METHODS\n"
        "from mmdistill.registry import Domain\n"
        "DOMAIN = Domain('series', 'ipc', {}, lambda path: False, None, draw=lambda *_: [],\n"
        "                methods={'dm': CORE_METHODS['dm']})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DOMAIN_PACKAGES, "series", "own_series")
    assert distill(series, "dm", ipc=1, settings=few).steps == 2
    with pytest.raises(ConfigError, match=r"krr is a method for .*series data"):
        distill(series, "krr", ipc=1, settings=few)


def test_a_domain_has_the_exports_that_it_lists(
    shown: dict[str, Any], task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = distill(task, CORE_METHODS["dm"], ipc=1, settings={"steps": 2, "real_batch": 8})
    found = replace(found, info=replace(found.info, domain="series"))
    domain = Domain("series", "ipc", {}, lambda path: False, lambda **_: None, {}, lambda *_: [])  # type: ignore[arg-type,return-value]
    own = SimpleNamespace(DOMAIN=domain)
    monkeypatch.setitem(sys.modules, "own_series", own)
    monkeypatch.setitem(DOMAIN_PACKAGES, "series", "own_series")
    with pytest.raises(ConfigError, match=r"series data have no exports: .*distilled.safetensors.* mmdistill.exp"):
        export(found, "tensors", tmp_path)
    own.DOMAIN = replace(domain, exports={"pt": shown["export_pt"]})
    assert export(found, "pt", tmp_path / "made") == [tmp_path / "made" / "points.pt"]
    assert torch.equal(torch.load(tmp_path / "made" / "points.pt")["points"], found.batch.inputs)
    with pytest.raises(ConfigError, match=r"unknown export format for series data 'tensors' \(there are: pt\)"):
        export(found, "tensors", tmp_path)
