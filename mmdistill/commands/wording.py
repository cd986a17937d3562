"""What the command line says: help in groups, and errors in one line."""

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
from mmdistill.config import DistillConfig, SweepConfig, assignable, read_settings
from mmdistill.errors import MmdistillWarning, did_you_mean
from mmdistill.names import as_option

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}
"""What options take, in words."""
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
        *("time_column", "min_rating", "split_by", "split_seed", "size", "mirror", "whiten", "inductive"),
    ),
    "judging": (
        *("judges", "baselines", "networks", "networks_at_once"),
        *("judge_epochs", "judge_batch", "judge_precision", "protocol"),
    ),
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
"""What ``import`` is told of a set."""
VALUES = {int: "N", float: "X", bool: "{true,false}"}
"""How help calls the values of an option."""
ELSEWHERE = {
    "learning-rate": ("lr",),
    **dict.fromkeys(("lr-img", "lr-syn", "lr-feat"), ("lr",)),
    **dict.fromkeys(("batch-size", "batch-real"), ("real-batch", "judge-batch")),
    "batch-syn": ("syn-batch",),
    **dict.fromkeys(("epochs", "iteration", "iterations", "niter"), ("steps", "judge-epochs")),
    "images-per-class": ("ipc",),
    **dict.fromkeys(("n", "num-eval", "repeats"), ("networks",)),
    **dict.fromkeys(("gpu", "cuda"), ("device", "devices")),
    **dict.fromkeys(("net", "arch", "architecture", "network"), ("model",)),
    **dict.fromkeys(("out", "output", "output-dir", "save-path", "to"), ("out", "to")),
}
"""What other programs call the options of these, the first that a command has."""
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
"""What the parser writes between the program and a command, where no option goes."""


class Formatter(DefaultHelpFormatter):
    """Help without the types of options, and with defaults only where there are any; examples keep their lines."""

    def _get_help_string(self, action: Action) -> str:
        if action.nargs == PARSER:
            return ""  # the commands speak for themselves
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
    """A parser whose help spells options with hyphens, both spellings accepted, and whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)

    def format_help(self, *given: Any) -> str:
        """Return the help with hyphens in option names; newer versions of the parser give a formatter."""
        text = super().format_help(*given).replace(f"mmdistill{BETWEEN} ", "mmdistill ")
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
    """An option for a file of settings, those of its parser; errors name the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the file; that it is not there is the parser's to say."""
        if Path(values).is_file():
            own = {action.dest for action in parser._actions}
            kinds = {field.name for kind in (DistillConfig, SweepConfig) for field in fields(kind)} & own
            values = json.dumps(read_settings(Path(values), kinds), default=str)  # YAML whose texts stay texts
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Have this package's warnings printed as the notes of commands are, without a line of code; not those of others.

    Which warnings are shown, and how often, stays as the filters say.
    """
    shown = warnings.showwarning

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
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def in_one_line(message: str, known: Sequence[str]) -> str:
    """Return an error of the parser in the words of the command line.

    Args:
        message: the parser's.
        known: the options that there are.
    """
    wrong = re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if wrong is not None:
        option = as_option(wrong[1])
        given = re.search(r"(?:Given|Got) value: (.*)", message)
        kinds = re.findall(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])", message)
        wanted = " or ".join(
            choices.replace("'", "") or KINDS.get(kind, kind) for kind, choices in kinds if kind != "NoneType"
        )
        if given is not None and wanted:
            return f"{option} takes {wanted}, got {given[1]!r}"
        return f"{option}: {' '.join(wrong[2].split())}"
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown is not None and unknown[1].startswith("--"):
        name = unknown[1][2:].partition("=")[0].replace("_", "-")
        options = [option.lstrip("-").replace("_", "-") for option in known]
        ours = [other for other in ELSEWHERE.get(name, ()) if other in options]
        if name == "seeds" and "scores" in options:  # of evaluate, whose --seed judges no more networks
            ours = ["networks"]
        near = f"; did you mean '--{ours[0]}'?" if ours else did_you_mean(name, options).replace(" '", " '--")
        if "set" in options and (own := name.replace("-", "_")) in assignable():
            near = f"; did you mean '--set {own}=VALUE'?"
        return f"unknown option --{name}{near}"
    command = re.match(r"argument command: invalid choice: '([^']*)' \(choose from (.*)\)", message)
    if command is not None:
        names = re.findall(r"[\w-]+", command[2])
        return f"unknown command {command[1]!r}{did_you_mean(command[1], names)} (there are: {', '.join(names)})"
    if unknown is not None:
        return f"unexpected argument {unknown[1]!r}"
    return re.sub(r"required: \w+\.", "required: ", " ".join(message.split()))


def in_groups(parser: ArgumentParser, groups: Mapping[str, Sequence[str]]) -> None:
    """Let the help of a parser show its options in groups.

    Args:
        parser: with all its options.
        groups: the names of options by the groups' titles; options that are named nowhere stay where they are.
    """
    plain = next(group for group in parser._action_groups if group.title == "options")
    by_name = {action.dest: action for action in plain._group_actions}
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in filter(by_name.get, names):
            plain._group_actions.remove(by_name[name])
            group._group_actions.append(by_name[name])


def add_set(parser: ArgumentParser) -> None:
    """Add the option for settings that have none of their own, which may come several times."""
    line = "a setting that has no option, such as inner_parts=2, or that a method of yours adds; as often as needed"
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help=line)


def import_parser() -> Parser:
    """Return the parser of ``import``: files, what is said of them, and the options of the data and of judging."""
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
    taken = {"data", "out", "overwrite", "seed", "device", "deterministic", "model", "width", "teacher"}
    taken |= {*GROUPS["reading the data"], *GROUPS["judging"]}
    skipped = {*DistillConfig.__dataclass_fields__} - taken
    parser.add_class_arguments(DistillConfig, as_group=False, skip=skipped)
    name_values(parser)
    (model,) = (action for action in parser._actions if action.dest == "model")
    model.help = model.help and model.help.replace("network to distil with", "network that judges")
    data, *others = GROUPS
    in_groups(parser, {"the data and the network": GROUPS[data]} | {title: GROUPS[title] for title in others[:-1]})
    return parser


def name_values(parser: ArgumentParser) -> None:
    """Let the help say what the options of :class:`~mmdistill.config.DistillConfig` take: numbers, some words.

    One that takes true or false is true where it stands alone.
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
    """Return how help calls the values of a type, None where the option's own name says it."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    given = [one for one in get_args(kind) if one is not NoneType]
    return VALUES.get(kind) if not given else value_name(given[0])
