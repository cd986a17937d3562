"""The imports point one way: the core imports no domain, and no domain imports the command line or the distiller."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

import mmdistill
from mmdistill.config import DistillConfig
from mmdistill.registry import DOMAIN_PACKAGES
from tests.image.test_data import write_cifar_binary, write_idx

PACKAGE = Path(mmdistill.__file__).parent
DOMAINS = tuple(dict.fromkeys(package.split(".")[1] for package in DOMAIN_PACKAGES.values()))


@cache
def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("mmdistill")}


def files(*, domains: bool) -> list[Path]:
    inside = {path for name in DOMAINS for path in (PACKAGE / name).rglob("*.py")}
    return sorted(inside if domains else set(PACKAGE.rglob("*.py")) - inside)


def test_the_core_imports_no_domain() -> None:
    for path in files(domains=False):
        if path == PACKAGE / "__init__.py":
            continue  # the front door re-exports the domains' task builders, on demand
        offenders = {name for name in imported(path) if name.split(".")[1:2] and name.split(".")[1] in DOMAINS}
        assert not offenders, f"{path.relative_to(PACKAGE)} imports {offenders}"


def test_domains_import_neither_the_distiller_nor_each_other() -> None:
    banned = {"cli", "commands", "config", "distill", "distiller", "runs"}
    for path in files(domains=True):
        own = path.relative_to(PACKAGE).parts[0]
        parts = {name.split(".")[1] for name in imported(path) if "." in name}
        offenders = parts & (banned | set(DOMAINS) - {own})
        assert not offenders, f"{path.relative_to(PACKAGE)} imports {offenders}"


def test_lower_layers_do_not_import_upper_ones() -> None:
    runs = {"distill", "distiller", "runs", "reporting", "commands", "config", "cli"}
    methods = {"methods", "registry", "evaluate", *runs}
    layers = {
        "files": {"task", "execution", "networks", "objectives", "parameterizations", *methods},
        "execution": {"networks", "objectives", "parameterizations", *methods},
        "task.py": {"objectives", "networks", "parameterizations", *methods},
        "objectives": {"parameterizations", *methods},
        "networks": {"objectives", "parameterizations", *methods},
        "parameterizations": {"objectives", *methods},
        "method.py": methods,
        "methods.py": methods - {"methods"},
        "evaluate.py": runs,
        "judgements.py": {"evaluate", *runs},
        "distiller.py": {"distill", "commands", "config", "cli"},
        "runs": {"distill", "commands", "cli"},
        "reporting": {"distill", "distiller", "evaluate", "commands", "cli"},
    }
    for name, banned in layers.items():
        place = PACKAGE / name
        for path in [place] if place.is_file() else place.rglob("*.py"):
            parts = {module.split(".")[1] for module in imported(path) if "." in module}
            assert not parts & banned, f"{path.relative_to(PACKAGE)} imports {parts & banned}"


def words(kind: object) -> tuple[object, ...]:
    """Return the words that an option of a type takes; none where it takes anything."""
    return next((get_args(one) for one in (kind, *get_args(kind)) if get_origin(one) is Literal), ())


def test_the_words_of_an_option_are_written_once() -> None:
    known = {entry.name: found for entry in fields(DistillConfig) if (found := words(entry.type))}
    assert known.keys() >= {"compile", "label", "precision", "schedule", "split_by"}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "choices.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                found = ast.literal_eval(node.slice)
                assert found not in known.values(), f"{path.relative_to(PACKAGE)} repeats {found}; see choices.py"


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; import mmdistill.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_listing_methods_imports_no_library_that_takes_seconds() -> None:
    code = "import sys; from mmdistill.cli import main; main(['methods']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "torch" in loaded
    assert not loaded & {"sklearn", "torchvision", "matplotlib", "transformers", "torch_geometric", "scipy.stats"}


def test_images_that_are_there_are_read_without_what_downloads_them(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", zipped=True)
    write_cifar_binary(tmp_path / "cifar-10-batches-bin")
    code = "import sys; from mmdistill.image import load; data = [load('mnist'), load('cifar10')]; print(*sys.modules)"
    place = {**os.environ, "MMDISTILL_DATA": str(tmp_path), "MMDISTILL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=place)
    assert not set(done.stdout.split()) & {"torchvision", "torch._dynamo"}


def run_in(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs of a module, in functions too; not what is there for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from run_in(child)


def import_graph() -> dict[str, set[str]]:
    """Return which modules of the package each of them imports, at any time."""
    paths = {".".join(("mmdistill", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found: set[str] = set()
        for node in run_in(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in modules else str(node.module) for name in inner.values()}
        graph[module] = found & modules.keys() - {module}
    return graph


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph[waiting.pop()] - found
        found |= fresh
        waiting += fresh
    return found


def test_no_modules_import_each_other_not_even_in_functions() -> None:
    graph = import_graph()
    assert "mmdistill.text.encoder" in graph["mmdistill.text.vocabulary"]
    assert not [module for module in graph if module in reached(graph, module)]


def test_files_stay_short() -> None:
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long
