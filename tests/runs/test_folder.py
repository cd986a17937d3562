"""What is said of runs whose methods a script added: the command line alone does not know them."""

from pathlib import Path

import pytest

from mmdistill.errors import ConfigError
from mmdistill.evaluate import find_judges
from mmdistill.image import METHODS, image_task
from mmdistill.methods import CORE_METHODS
from mmdistill.registry import get_domain, get_method, get_parameterization, has_method
from mmdistill.runs.how_to_continue import how_to_finish


def options(folder: Path, method: str) -> Path:
    (folder / "config.yaml").write_text(f"data: digits\nmethod: {method}\nipc: 1\n")
    return folder


def test_an_unfinished_run_of_a_scripts_method_goes_on_with_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert how_to_finish(options(tmp_path, "dm")) == f"it goes on with: mmdistill distill --resume {tmp_path}"
    unknown = how_to_finish(options(tmp_path, "covm"))
    assert "its method 'covm' is that of a script" in unknown
    assert unknown.endswith(f"python SCRIPT.py distill --resume {tmp_path}")
    monkeypatch.setitem(METHODS, "covm", CORE_METHODS["dm"])
    assert how_to_finish(tmp_path) == f"it goes on with: mmdistill distill --resume {tmp_path}"


def test_a_setting_of_the_scripts_own_does_not_hide_whose_the_method_is(tmp_path: Path) -> None:
    file = options(tmp_path, "covm") / "config.yaml"
    file.write_text(file.read_text() + "powers: 1.5\n")
    assert "its method 'covm' is that of a script" in how_to_finish(tmp_path)


def test_damaged_options_are_not_taken_for_a_scripts(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: [")
    assert how_to_finish(tmp_path) == f"it goes on with: mmdistill distill --resume {tmp_path}"


def test_methods_of_any_domain_are_known() -> None:
    assert has_method("DM")
    assert has_method("gcond")
    assert has_method("distill-cf")
    assert not has_method("covm")


def test_an_unknown_method_that_resembles_none_may_be_a_scripts() -> None:
    domain = get_domain("image")
    script = "that a script of yours adds is known there alone: run it in place of mmdistill, or import it in Python"
    with pytest.raises(ConfigError, match=f"a method {script}"):
        get_method(domain, "qqqqqq", "digits")
    with pytest.raises(ConfigError, match=f"one {script}"):
        get_parameterization(domain, "qqqqqq")
    task = image_task("digits", width=4)
    with pytest.raises(ConfigError, match=f"a network {script}"):
        image_task("digits", model="qqqqqq")
    with pytest.raises(ConfigError, match=f"a judge {script}"):
        find_judges(task, ["qqqqqq"])
    with pytest.raises(ConfigError, match="did you mean 'dsa'") as near:
        get_method(domain, "dsaa", "digits")
    assert "script" not in str(near.value)
