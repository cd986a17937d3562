"""Every command that the documentation shows is one that the programs still take."""

import argparse
import functools
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmdistill.cli import build_parser, spelled
from mmdistill.errors import ConfigError
from mmdistill.image.kernel_judge import kernel_judge
from mmdistill.image.known import DATASETS
from mmdistill.image.models import refusal
from mmdistill.method import Method
from mmdistill.names import split_names
from mmdistill.registry import domain_of, get_method, get_parameterization
from mmdistill.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
PLACEHOLDERS = {"n", "N", "COMMAND", "..."}
"""Words that stand for a value: what holds one is a pattern, not a command. FOLDERS in capitals stand for data."""
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)
STARTS = ("mmdistill ", "python ", "quality ", "torchrun ")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a page or a docstring, without the variables that are set before it."""
    blocks = FENCED.findall(text)
    rest = FENCED.sub("", text)
    lines = [line for block in [*blocks, *INDENTED.findall(rest)] for line in _joined(block).splitlines()]
    lines += [" ".join(code.split()) for code in INLINE.findall(rest)]
    for line in lines:
        bare = re.sub(r"^([A-Z_]+=\S+ )+", "", line.strip())
        bare = f"quality {bare}" if bare.startswith("--rows ") else bare  # of a command that stands before it
        if bare.startswith(STARTS):
            words = shlex.split(bare, comments=True)
            if len(words) > 2 and not PLACEHOLDERS & set(words):  # of two, a program is only mentioned
                yield words


def _joined(block: str) -> str:
    """Return a block whose commands stand on one line each: after a backslash, or more deeply indented."""
    block = re.sub(r"\\\n", " ", block)
    return re.sub(r"\n( {8,}|  +(?=--))(?=\S)", " ", block)


SHOWN = [
    pytest.param(words, id=f"{page.name}-{index}")
    for page in [*PAGES, *SCRIPTS]
    for index, words in enumerate(commands(page.read_text().replace("{", "").replace("}", "")))
]


PARSER = functools.cache(build_parser)


class ArgumentsAreRead(Exception):  # noqa: N818  # no error
    """Ends a script once it has read its arguments."""


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def require_method(data: str, name: str, schedule: str) -> Method | None:
    """Return the method of that name; None for files and folders, which are not here and are taken on trust."""
    try:
        domain = domain_of(data)
    except ConfigError:
        assert {".", "/"} & set(data) or data.isupper(), data
        return None
    return get_method(domain, name, data, schedule)  # type: ignore[arg-type]


def shape_of(data: str) -> tuple[int, int, int] | None:
    """Return the shape of a known data set's images, or of those of a run's folder that is called after it."""
    known = max((name for name in DATASETS if Path(data).name.startswith(name)), key=len, default="")
    if not known:
        return None
    height, width, colours = re.findall(r"(\d+) x (\d+) (grey|colour)", DATASETS[known])[0]
    return 1 if colours == "grey" else 3, int(height), int(width)


def require_networks(data: str, names: str | None) -> None:
    """Check that networks, separated by commas, take images of data or of a run's folder; other data are trusted."""
    if shape := shape_of(data):
        for name in split_names(names or ""):
            assert name in {"all", "model"} or kernel_judge(name) is not None or not refusal(name, shape), (data, name)


def check_mmdistill(arguments: list[str]) -> None:
    """Check a command line of mmdistill: the method, storage and networks that it names are there and fit the data."""
    if "--config" in arguments:  # a file that is not here
        del arguments[(place := arguments.index("--config")) : place + 2]
    chosen = PARSER().parse_args(spelled(arguments))
    if chosen.command == "distill" and chosen.distill.data is not None and chosen.distill.method is not None:
        own = chosen.distill
        require_method(own.data, own.method, own.schedule)
        if own.parameterization is not None:
            get_parameterization(domain_of(own.data), own.parameterization)
        for names in (own.model, own.judges):
            require_networks(own.data, names)
    if chosen.command == "evaluate":
        for run in chosen.evaluate.runs:
            require_networks(run, chosen.evaluate.judges)
    if chosen.command == "sweep":
        for method in split_names(chosen.sweep.methods):
            require_method(chosen.sweep.data, method, chosen.sweep.schedule)


def check_script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return what a benchmark reads from its arguments; an unknown one, or one of another type, is an error."""
    found: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any) -> argparse.Namespace:
        found.append(parse(self, *args))
        raise ArgumentsAreRead

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(ArgumentsAreRead):
        importlib.import_module(Path(name).stem).main()
    return found[0]


def check_rows(rows: str) -> None:
    """Check that the methods and settings of rows, as ``quality.py`` spells them, are there."""
    quality = importlib.import_module("quality")
    for row in quality.split_rows(rows):
        data, name, budget, options = quality.parse_row(row)
        assert budget > 0
        method = require_method(data, name, options.get("schedule", "published"))
        settings = Settings.__dataclass_fields__ if method is None else vars(method.settings(budget))
        assert set(options) <= {*quality.TASK_OPTIONS, *quality.DISTILL_OPTIONS, *settings, "lr"}, row


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("words", SHOWN)
def test_what_is_shown_is_taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    if words[0] == "mmdistill":
        check_mmdistill(words[1:])
    elif words[0] == "quality" or words[1].startswith("benchmarks/"):
        script, arguments = ("quality.py", words[1:]) if words[0] == "quality" else (words[1], words[2:])
        if script.endswith("ddranking_scores.py"):
            return  # runs in an environment of its own
        if Path(script).stem == "quality" and "--rows" not in arguments:
            return  # what "quality" stands for
        chosen = check_script(script, arguments, monkeypatch)
        if rows := vars(chosen).get("rows") or vars(chosen).get("row"):
            check_rows(rows)
    elif words[1] == "my_methods.py":  # whose names tests/test_contributing.py knows
        PARSER().parse_args(spelled(words[2:]))
    else:
        assert words[:3] == ["python", "-m", "pytest"] or words[1:3] == ["-m", "venv"], words


def test_commands_are_found_wherever_they_stand() -> None:
    page = (
        "```sh\nA=1 mmdistill a --b \\\n    c   # d\nls\n```\nSee `python\nx.py 2`, `mmdistill export` and `--n n`, "
        "`mmdistill e --f n`.\n\n"
        "    quality --rows a:b=c; --seeds 1\n        --two 2\n\nAnd `--rows d:e=f`.\n"
    )
    assert list(commands(page)) == [
        ["mmdistill", "a", "--b", "c"],
        ["quality", "--rows", "a:b=c;", "--seeds", "1", "--two", "2"],
        ["python", "x.py", "2"],
        ["quality", "--rows", "d:e=f"],
    ]


@pytest.mark.usefixtures("benchmarks")
def test_commands_that_are_not_taken_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        check_mmdistill(["distill", "--data", "mnist", "--method", "dmm", "--ipc", "1"])
    with pytest.raises(ConfigError):
        check_mmdistill(["sweep", "--data", "mnist", "--methods", "dm,dmm", "--ipc", "1", "--out", "x"])
    with pytest.raises(AssertionError):  # 8 x 8 pixels are too few
        check_mmdistill(["evaluate", "sweeps/digits", "--judges", "mlp,resnet18"])
    with pytest.raises(SystemExit):
        check_mmdistill(["distill", "--data", "mnist", "--metod", "dm"])
    with pytest.raises(SystemExit):
        check_script("quality.py", ["--rows", "mnist-dm-1", "--networks", "x"], monkeypatch)
    with pytest.raises(AssertionError):
        check_rows("mnist-dm-1:stepz=3;")
