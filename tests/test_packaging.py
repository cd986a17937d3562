"""What the package says of itself: what it imports, and its version."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

import mmdistill
from mmdistill.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
"""Names of packages in a registry, where they are imported under others."""


def test_the_version_is_one_literal() -> None:
    assert "version" not in PROJECT
    module = Path(mmdistill.__file__).read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.*)"$', module, re.MULTILINE) == [mmdistill.__version__]


def test_a_checkout_that_is_not_installed_knows_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: pytest.fail(f"{name} is looked up"))
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mmdistill {mmdistill.__version__}\n"


def distribution(requirement: str) -> str:
    """Return whose requirement it is, in the spelling of an import where nothing else is known."""
    return re.split(r"[\[<>=! ]", requirement)[0].lower().replace("-", "_")


def test_every_imported_library_is_declared() -> None:
    optional = [one for extra in ("text", "ogb", "recsys") for one in PROJECT["optional-dependencies"][extra]]
    declared = {distribution(one) for one in (*PROJECT["dependencies"], *optional)}
    for path in Path(mmdistill.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "mmdistill"}:
                found = distribution(DISTRIBUTIONS.get(name, name))
                assert found in declared, f"{path.name} imports {name}, which pyproject.toml does not declare"
