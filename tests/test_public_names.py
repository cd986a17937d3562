"""The names that the package promises are what they say, in whatever order modules are imported."""

import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest

import mmdistill
from mmdistill.commands.listings import methods_command
from mmdistill.errors import ConfigError
from mmdistill.method import MethodTable
from mmdistill.registry import DOMAIN_PACKAGES, get_domain, get_method
from tests.toys import BlobTask


def test_functions_are_not_hidden_by_their_modules() -> None:
    code = """
from mmdistill import distill
import mmdistill.evaluate
from mmdistill import evaluate
print(callable(distill), callable(evaluate), mmdistill.distill is distill)
from mmdistill.distill import identity
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True"] * 3


def test_every_public_name_is_there() -> None:
    assert set(mmdistill.__all__) <= set(dir(mmdistill))
    assert all(getattr(mmdistill, name) is not None for name in mmdistill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        mmdistill.distil  # noqa: B018


def fresh(code: str) -> str:
    """Return what code prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_errors_are_there_after_the_import_of_the_package_alone() -> None:
    code = "import sys, mmdistill; print(mmdistill.errors.DataError.__mro__[1] is mmdistill.MmdistillError)"
    assert fresh(f"{code}; print('torch' in sys.modules)").split() == ["True", "False"]


def test_only_names_that_are_promised_are_listed() -> None:
    shown = fresh("import mmdistill, mmdistill.image.task; print(*dir(mmdistill))").split()
    others = {name for name in shown if not (name.startswith("__") and name.endswith("__"))} - {*mmdistill.__all__}
    modules = {name.split(".")[1] for name in sys.modules if name.startswith("mmdistill.")}
    assert "image" in others
    assert others <= modules


def test_unknown_methods_are_named_with_their_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"no method 'gcond' in this table.*get_method"):
        mmdistill.METHODS["gcond"]
    graphs = get_domain("graph").methods
    with pytest.raises(KeyError, match=r"no method 'GC_DM' in this table; did you mean 'gcdm'\? \(there are: doscond"):
        graphs["GC_DM"]
    assert graphs.get("GC_DM") is None
    assert graphs["gcdm"].title == "GCDM"


@pytest.mark.parametrize("name", DOMAIN_PACKAGES)
def test_a_domain_has_one_table_of_methods(name: str) -> None:
    methods = get_domain(name).methods
    assert isinstance(methods, MethodTable)
    assert all(get_method(get_domain(name), key) is method for key, method in methods.items())
    core = [key for key in methods if methods[key] is mmdistill.METHODS.get(key)]
    assert core == (list(mmdistill.METHODS) if name == "image" else [])


def test_the_methods_of_a_task_are_those_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    task = BlobTask()
    names = mmdistill.method_names(task)
    assert {"dm", "frepo", "rat-bptt"} <= set(names)
    methods_command("image")
    listed = re.findall("^  ([a-z]\\S*)", capsys.readouterr().out, re.MULTILINE)
    assert listed[: len(names)] == names
    assert set(mmdistill.METHODS) < set(names)
    assert "``METHODS`` holds the six methods" in (mmdistill.__doc__ or "")
    elsewhere = replace(task.describe(), domain="waves")
    task.describe = lambda: elsewhere  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="unknown domain 'waves'"):
        mmdistill.method_names(task)
    with pytest.raises(ConfigError):
        mmdistill.method_names("digits")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "name"),
    [(f"mmdistill.{domain}.methods", "METHODS") for domain in ("image", "graph", "text", "recsys")]
    + [("mmdistill.graph.sets", "METHODS"), ("mmdistill.text.token_methods", "TOKEN_METHODS")],
)
def test_tables_of_domains_name_neighbours_too(module: str, name: str) -> None:
    with pytest.raises(ConfigError, match="no method 'none-such' in this table"):
        getattr(import_module(module), name)["none-such"]
