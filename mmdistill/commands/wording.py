"""The texts of the command line: help in groups, and errors in one line."""

import json
import re
import sys
import warnings
from argparse import PARSER, Action
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TextIO, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from mmdistill.choices import Units, starts
from mmdistill.config import JUDGING_OPTIONS, VARIED, DistillConfig, SweepConfig, assignable, read_settings
from mmdistill.errors import MmdistillWarning, did_you_mean
from mmdistill.names import as_option

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}
"""The types of options, in words."""
GROUPS = {
    "what is distilled, and how": (
        *("data", "method", "methods", "ipc", "nodes", "users", "bytes"),
        *("schedule", "model", "width", "parameterization", "label", "teacher"),
    ),
    "the run": (
        *("out", "overwrite", "resume", "dry_run", "config", "print_config", "seed", "seeds", "checkpoint_every"),
        *("device", "devices", "precision", "compile", "deterministic"),
    ),
    "reading the data": (
        *("text_column", "label_column", "encoder", "length", "user_column", "item_column", "rating_column"),
        *("time_column", "min_rating", "split_by", "split_seed", "size", "mirror", "whiten", "split"),
        "inductive",
    ),
    "judging": (*JUDGING_OPTIONS, "protocol"),
    "settings in place of the method's own": (
        *("steps", "lr", "real_batch", "syn_batch", "init", "augment", "outer_steps", "inner_steps", "inner_lr"),
        *("inner_batch", "inner_momentum", "inner_window", "clip", "ridge"),
        *("validate_every", "patience", "classes_at_once", "kept_steps", "interactions_per_user"),
        *("experts", "expert_steps", "start_epochs", "expert_folder", "expert_precision", "teacher_epochs", "ema"),
        "set",
    ),
}
"""The options of ``distill`` and ``sweep``, as their help shows them."""
IMPORT_OPTIONS = ("files", "name", "units", "which", "logits", "inner_lr", "stored_bytes")
"""The options of ``import`` that describe a set."""
VALUES = {int: "N", float: "X", bool: "{true,false}"}
"""Placeholders for an option's value in the help, by type."""
ELSEWHERE = {
    "learning-rate": ("lr",),
    **dict.fromkeys(("lr-img", "lr-syn", "lr-feat"), ("lr",)),
    **dict.fromkeys(("batch-size", "batch-real"), ("real-batch", "judge-batch")),
    "batch-syn": ("syn-batch",),
    **dict.fromkeys(("epochs", "num-epochs", "iteration", "iterations", "niter"), ("steps", "judge-epochs")),
    **dict.fromkeys(("images-per-class", "budget"), ("ipc",)),
    "reduction-rate": ("nodes",),
    "zca": ("whiten",),
    **dict.fromkeys(("n", "num-eval", "repeats"), ("networks",)),
    **dict.fromkeys(("gpu", "cuda"), ("device", "devices")),
    **dict.fromkeys(("net", "arch", "architecture", "backbone", "depth", "network"), ("model", "judges")),
    **dict.fromkeys(("out", "output", "output-dir", "save-path", "to"), ("out", "to")),
}
"""Names of options in other programs; an error suggests the first of ours that the command has."""
EXAMPLES = """examples:
  mmdistill distill --data digits --method dm --ipc 10 --out runs/digits
  mmdistill distill --resume runs/digits
  mmdistill distill --resume runs/digits --steps 2000
  mmdistill sweep --data digits --methods dm,dc --ipc 1,10 --seeds 0,1,2 --out sweeps/digits
  mmdistill experts --data digits --method mtt --ipc 1
  mmdistill import images_best.pt labels_best.pt --data digits --name theirs --out runs/theirs
  mmdistill evaluate runs/digits --judges convnet,mlp --networks 5
  mmdistill report runs/digits
  mmdistill compare runs --to comparison/
  mmdistill export runs/digits --format pt --to exported/
"""
BETWEEN = " [options]"
"""What the parser puts between program and command; left out of help and errors, since no option goes there."""


class Formatter(DefaultHelpFormatter):
    """Format help without the types of options and without defaults of None; examples keep their lines."""

    def _get_help_string(self, action: Action) -> str:
        if action.nargs == PARSER:
            return ""  # each command has its own line
        text = super()._get_help_string(action)
        text = re.sub(r"(, )?type: %\(type\)s(, )?", lambda match: (match[1] and match[2]) or "", text)
        if action.default is None:
            text = re.sub(r"(, )?default: %\(default\)s", "", text)
        if isinstance(action.default, bool):
            text = text.replace("%(default)s", str(action.default).lower())
        return text.replace(" ()", "")

    def _format_action(self, action: Action) -> str:
        text = super()._format_action(action)
        return "    " + text.lstrip() if action.nargs == PARSER else text

    def _format_action_invocation(self, action: Action) -> str:
        return "" if action.nargs == PARSER else super()._format_action_invocation(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


class Parser(ArgumentParser):
    """A parser whose help spells options with hyphens (underscores work too) and whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)

    def format_help(self, *arguments: Any) -> str:
        """Return the help with hyphens in option names; newer versions of the parser pass a formatter."""
        text = super().format_help(*arguments).replace(f"mmdistill{BETWEEN} ", "mmdistill ")
        return re.sub(r"--[a-z][a-z_.]*", lambda match: match[0].replace("_", "-"), text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong with the arguments and end with exit code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        command = re.search(r"required: (\w+)\.", message)
        program = f"{self.prog} {command[1]}" if command else parser.prog.replace(BETWEEN, "")
        known = [name for action in parser._actions for name in action.option_strings]
        print(f"mmdistill: error: {in_one_line(message, known)} (see {program} --help)", file=sys.stderr)
        sys.exit(2)


class ConfigFile(ActionConfigFile):
    """An option that reads a file of its parser's options; errors name the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the file; if it is missing, the parser reports that."""
        if Path(values).is_file():
            options = {action.dest for action in parser._actions}
            names = {field.name for kind in (DistillConfig, SweepConfig) for field in fields(kind)} & options
            # JSON is YAML with every text quoted, so that texts such as "1e3" stay texts.
            values = json.dumps(read_settings(Path(values), names), default=str)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Within this context this package's warnings are printed as notes of the command, without a line of code.

    The warning filters still decide which warnings are shown, and how often.
    """
    former = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, MmdistillWarning):
            print(f"note: {message}", file=sys.stderr if file is None else file)
        else:
            former(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former


def in_one_line(message: str, known: Sequence[str]) -> str:
    """Return an error of the parser in words of the command line, with a suggestion for unknown names.

    Args:
        message: of the parser.
        known: the command's options.
    """
    invalid = re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if invalid is not None:
        option = as_option(invalid[1])
        value = re.search(r"(?:Given|Got) value: (.*)", message)
        kinds = re.findall(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])", message)
        types = " or ".join(
            choices.replace("'", "") or KINDS.get(kind, kind) for kind, choices in kinds if kind != "NoneType"
        )
        if value is not None and types:
            return f"{option} takes {types}, got {value[1]!r}"
        return f"{option}: {' '.join(invalid[2].split())}"
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown is not None and unknown[1].startswith("--"):
        name = unknown[1][2:].partition("=")[0].replace("_", "-")
        options = [option.lstrip("-").replace("_", "-") for option in known]
        suggested = [other for other in ELSEWHERE.get(name, ()) if other in options]
        if name == "seeds" and "scores" in options:  # of evaluate: more seeds mean more networks there
            suggested = ["networks"]
        hint = f"; did you mean '--{suggested[0]}'?" if suggested else did_you_mean(name, options).replace(" '", " '--")
        if "set" in options and (setting := name.replace("-", "_")) in assignable():
            hint = f"; did you mean '--set {setting}=VALUE'?"
        return f"unknown option --{name}{hint}"
    command = re.match(r"argument command: invalid choice: '([^']*)' \(choose from (.*)\)", message)
    if command is not None:
        names = re.findall(r"[\w-]+", command[2])
        return f"unknown command {command[1]!r}{did_you_mean(command[1], names)} (there are: {', '.join(names)})"
    if unknown is not None:
        return f"unexpected argument {unknown[1]!r}"
    return re.sub(r"required: \w+\.", "required: ", " ".join(message.split()))


def in_groups(parser: ArgumentParser, groups: Mapping[str, Sequence[str]]) -> None:
    """Move the options of a parser into groups, which its help shows.

    Args:
        parser: with all its options.
        groups: the names of options by the groups' titles; options in no group stay where they are.
    """
    ungrouped = next(group for group in parser._action_groups if group.title == "options")
    by_name = {action.dest: action for action in ungrouped._group_actions}
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in filter(by_name.get, names):
            ungrouped._group_actions.remove(by_name[name])
            group._group_actions.append(by_name[name])


def add_set(parser: ArgumentParser) -> None:
    """Add ``--set``, which may come several times, for settings without an option of their own."""
    line = "a setting that has no option, such as inner_parts=2, or that a method of yours adds; as often as needed"
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help=line)


def sweep_parser() -> Parser:
    """Return the parser of ``sweep``: what its runs differ in, and the options of ``distill``, some as lists."""
    parser = Parser(
        usage="mmdistill sweep --data NAME --methods NAME,NAME\n"
        "           (--ipc N,N | --nodes N,N | --users N,N | --bytes SIZE,SIZE) [--seeds N,N] --out FOLDER [options]",
        description="Distil by each of several methods with each of several budgets and seeds, every run in a process "
        "of its own, and put all runs in the folder side by side, as 'compare' does. The other options are those of "
        "'distill', and of every run; of those in place of a method's settings, of --label and --parameterization "
        "several values may be given, comma-separated (--lr 1,3,10), each of which every method is run with. The same "
        "command called again goes on: it makes what is missing.",
    )
    add_file_and_plan(
        parser,
        "a YAML file of options, in which several names or numbers may be a list; options on the command line override "
        "those in it",
        "print which runs are finished, not judged, unfinished or new; do nothing",
    )
    parser.add_class_arguments(SweepConfig, as_group=False)
    skipped = {"method", "seed", "device", "overwrite", "set", *SweepConfig.__dataclass_fields__}
    parser.add_class_arguments(DistillConfig, as_group=False, skip=skipped | {*VARIED})
    single = Parser()
    single.add_class_arguments(DistillConfig, as_group=False, skip={*DistillConfig.__dataclass_fields__} - {*VARIED})
    for action in single._actions:
        if action.dest in VARIED:  # lists of values are texts
            kind = str | int | float | bool | None
            parser.add_argument(f"--{action.dest}", type=kind, default=None, help=action.help)
    name_values(parser)
    in_groups(parser, GROUPS)
    return parser


def add_file_and_plan(parser: Parser, file: str, plan: str) -> None:
    """Add ``--config`` with the help text ``file``, ``--dry-run`` with ``plan``, and ``--set``."""
    parser.add_argument("--config", action=ConfigFile, help=file)
    parser.add_argument("--dry_run", action="store_true", help=plan)
    add_set(parser)


def import_parser() -> Parser:
    """Return the parser of ``import``: its files, their description, and the options of the data and of judging."""
    parser = Parser(
        usage="mmdistill import FILE [FILE ...] --data NAME [--name NAME] [--out FOLDER] [options]",
        description="Read a set that another tool made of known data or of yours, judge it beside its baselines, draw "
        "it, and keep it as a run, which the other commands take. 'mmdistill data' says which files are read; no code "
        "is run from them.",
    )
    units = (
        "of images - normalised (and whitened, with --whiten) as networks read them, or pixels between black and "
        "white; told by the values where these can tell"
    )
    size = "what the set takes in storage, where it is decoded from less than its tensors in float32"
    rate = "the rate that was learned with the images, at which judges train"
    add = parser.add_argument
    add("files", type=str, nargs="+", help="the set's file, files or folder")
    add("--name", type=str, default="imported", help="what its method is called in reports and tables")
    add("--units", type=Units | None, default=None, metavar=value_name(Units), help=units)
    add("--which", type=int | None, default=None, metavar="N", help="of several sets in a file, which one, from 0")
    add("--logits", action="store_true", help="soft labels are logits, whose softmax is taken")
    add("--inner_lr", type=float | None, default=None, metavar="X", help=rate)
    add("--stored_bytes", type=str | int | None, default=None, metavar="SIZE", help=size)
    included = {"data", "out", "overwrite", "seed", "device", "deterministic", "model", "width", "teacher"}
    included |= {*GROUPS["reading the data"], *GROUPS["judging"]}
    skipped = {*DistillConfig.__dataclass_fields__} - included
    parser.add_class_arguments(DistillConfig, as_group=False, skip=skipped)
    name_values(parser)
    (model,) = (action for action in parser._actions if action.dest == "model")
    model.help = model.help and model.help.replace("network to distil with", "network that judges")
    data, *others = GROUPS
    in_groups(parser, {"the data and the network": GROUPS[data]} | {title: GROUPS[title] for title in others[:-1]})
    return parser


def name_values(parser: ArgumentParser) -> None:
    """Name the values of the options of :class:`~mmdistill.config.DistillConfig` in the help: numbers or choices.

    An option of true or false without a value is true.
    """
    kinds = {field.name: value_name(field.type) for field in fields(DistillConfig)}
    for action in parser._actions:
        if kinds.get(action.dest) is not None:
            action.metavar = kinds[action.dest]
        if action.dest == "bytes":
            action.metavar = "SIZE"
        if action.dest == "init":
            action.metavar = f"{{{','.join(starts())}}}"
        if action.dest == "print_config":
            action.help = "print the configuration that the other options make, and exit; =skip_default omits defaults"
        if action.metavar == VALUES[bool]:
            action.nargs, action.const = "?", True


def value_name(kind: Any) -> str | None:
    """Return the help's placeholder for values of a type; None: the parser's default, the option's name."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    members = [member for member in get_args(kind) if member is not NoneType]
    return VALUES.get(kind) if not members else value_name(members[0])
