"""The command line: ``mmdistill distill | experts | evaluate | report | compare | export | methods | data``."""

import io
import os
import re
import shlex
import sys
import warnings
from argparse import HelpFormatter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    Namespace,
)

from mmdistill.config import DistillConfig, is_finished, is_started, read_settings
from mmdistill.errors import ConfigError, MmdistillError, did_you_mean

EXAMPLES = """examples:
  mmdistill distill --data digits --method dm --ipc 10 --out runs/digits
  mmdistill distill --resume runs/digits
  mmdistill experts --data digits --method mtt --ipc 1
  mmdistill evaluate runs/digits --judges convnet,mlp --networks 5
  mmdistill report runs/digits
  mmdistill compare runs/* --to comparison/
  mmdistill export runs/digits --format pt --to exported/
"""
FORMATS = (
    "images: tensors, folder, pt or ddranking; graphs: pyg or tensors; sets of graphs: pyg or tensors; "
    "text: tensors, embeds or texts; recsys: csr, csv, binary, recbole or tensors"
)
"""Names of export formats by domain, here since --help imports no domain."""
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
"""What options take, in words."""


class Parser(ArgumentParser):
    """A parser whose help spells options with hyphens, both spellings accepted, and whose errors are one line."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Return the help with hyphens in option names."""
        text = super().format_help(formatter)
        return re.sub(r"--[a-z][a-z_.]*", lambda match: match[0].replace("_", "-"), text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong with the arguments and end with exit code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [name for action in parser._actions for name in action.option_strings]
        program = parser.prog.replace(" [options]", "")
        print(f"mmdistill: error: {in_one_line(message, known)} (see {program} --help)", file=sys.stderr)
        sys.exit(2)


class ConfigFile(ActionConfigFile):
    """An option for a file of settings, whose errors name the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the file; that it is not there is the parser's to say."""
        if Path(values).is_file():
            read_settings(Path(values))
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def in_one_line(message: str, known: Sequence[str]) -> str:
    """Return an error of the parser in the words of the command line.

    Args:
        message: the parser's.
        known: the options that there are.
    """
    wrong = re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if wrong is not None:
        option = "--" + wrong[1].replace("_", "-")
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
        name, options = unknown[1][2:].partition("=")[0], (option.lstrip("-") for option in known)
        return f"unknown option --{name.replace('_', '-')}{did_you_mean(name, options).replace('_', '-')}"
    command = re.match(r"argument command: invalid choice: '([^']*)' \(choose from (.*)\)", message)
    if command is not None:
        names = re.findall(r"[\w-]+", command[2])
        return f"unknown command {command[1]!r}{did_you_mean(command[1], names)} (there are: {', '.join(names)})"
    if unknown is not None:
        return f"unexpected argument {unknown[1]!r}"
    return re.sub(r"required: \w+\.", "required: ", " ".join(message.split()))


def build_parser() -> ArgumentParser:
    """Return the whole command-line parser."""
    parser = Parser(
        prog="mmdistill", description="Distil a large training set into a tiny one that trains models nearly as well."
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = _raw_epilog(parser.formatter_class)
    parser.add_argument("--version", action="version", version=f"mmdistill {version('mmdistill')}")
    commands = parser.add_subcommands(required=True, dest="command")
    subparser = partial(Parser, allow_abbrev=False)

    distill = subparser(description="Distil a data set, judge the result beside its baselines, and draw it.")
    distill.add_argument(
        "--config", action=ConfigFile, help="a YAML file of these options, such as a run's config.yaml"
    )
    distill.add_argument(
        "--resume",
        type=str | None,
        default=None,
        help="continue the interrupted run in this folder with its own options; no other may stand beside it",
    )
    distill.add_class_arguments(DistillConfig, as_group=False)
    commands.add_subcommand("distill", distill, help="distil a data set, judge and draw the result")

    experts = subparser(description="Train the experts that a trajectory-matching method needs, ahead of distilling.")
    experts.add_argument("--data", type=str, help="data set name or path, as for distill")
    experts.add_argument("--method", type=str, default="mtt", help="the method that will match them")
    experts.add_argument("--ipc", type=int, default=1, help="samples per class, on which its settings depend")
    experts.add_argument("--count", type=int | None, default=None, help="how many; the method's own number by default")
    experts.add_argument("--together", type=int, default=10, help="experts trained at once; fewer need less memory")
    experts.add_argument("--model", type=str | None, default=None, help="network, as for distill")
    experts.add_argument("--width", type=int | None, default=None, help="its width")
    experts.add_argument("--augment", type=bool | None, default=None, help="augmentation, as for distill")
    experts.add_argument(
        "--schedule", type=Literal["published", "reduced"], default="published", help="whose experts, as for distill"
    )
    experts.add_argument("--whiten", type=str | None, default=None, help="whitening of images, as for distill")
    experts.add_argument("--size", type=int | None, default=None, help="side of a folder's images, as for distill")
    experts.add_argument("--seed", type=int, default=0, help="of the split of data that have none")
    experts.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    commands.add_subcommand("experts", experts, help="train expert trajectories ahead")

    evaluate = subparser(description="Judge a distilled set again, with other judges or more networks.")
    evaluate.add_argument("run", type=str, help="run folder")
    evaluate.add_argument("--judges", "--models", type=str | None, default=None, help="comma-separated, or 'all'")
    evaluate.add_argument("--networks", "--seeds", type=int, default=5, help="independently trained networks per judge")
    evaluate.add_argument(
        "--networks_at_once", type=int | None, default=None, help="of these, trained together; fewer need less memory"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of judging")
    evaluate.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    evaluate.add_argument("--baselines", type=str, default="random,herding,whole", help="comma-separated, or none")
    evaluate.add_argument(
        "--protocol", type=str | None, default=None, help="how judges of images train, as for distill"
    )
    evaluate.add_argument("--judge_epochs", type=int | None, default=None, help="epochs of judges")
    evaluate.add_argument("--scores", type=str, default="accuracy", help="accuracy (or the domain's own), or robust")
    commands.add_subcommand("evaluate", evaluate, help="judge a distilled set again")

    report = subparser(description="Write report.md and report.html with tables and pictures into a run folder.")
    report.add_argument("run", type=str, help="run folder")
    commands.add_subcommand("report", report, help="pictures and tables of a run")

    compare = subparser(description="Put finished runs side by side, repetitions with other seeds together.")
    compare.add_argument("runs", type=str, nargs="+", help="run folders")
    compare.add_argument("--judge", type=str | None, default=None, help="whose scores; each run's first by default")
    compare.add_argument("--metric", type=str | None, default=None, help="which of them; the judge's first by default")
    compare.add_argument("--to", type=str | None, default=None, help="folder for a page with accuracy against budget")
    commands.add_subcommand("compare", compare, help="finished runs side by side")

    export = subparser(description="Write a distilled set in a format that other tools read.")
    export.add_argument("run", type=str, help="run folder")
    export.add_argument("--format", type=str, default="tensors", help=f"what is written - {FORMATS}")
    export.add_argument("--to", type=str | None, default=None, help="folder; RUN/export by default")
    commands.add_subcommand("export", export, help="write a set for other tools")

    methods = subparser(description="List the methods, by domain.")
    methods.add_argument("--domain", type=str | None, default=None, help="image, graph, graph-set, text or recsys")
    commands.add_subcommand("methods", methods, help="list the methods")
    commands.add_subcommand(
        "data", subparser(description="List the data sets and accepted files."), help="list the data"
    )
    return parser


def _raw_epilog(base: type) -> type:
    """Return a help formatter that keeps the epilog's lines."""

    class Formatter(base):  # type: ignore[misc]
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            if text.startswith("examples:"):
                return "".join(indent + line for line in text.splitlines(keepends=True))
            filled: str = super()._fill_text(text, width, indent)
            return filled

    return Formatter


def spelled(arguments: Sequence[str]) -> list[str]:
    """Return arguments with option names in the parser's spelling: lower case with underscores."""

    def fix(argument: str) -> str:
        name, equals, value = argument.partition("=")
        return "--" + name[2:].lower().replace("-", "_") + equals + value if name.startswith("--") else argument

    return [fix(argument) for argument in arguments]


def require_resume_alone(arguments: Sequence[str]) -> None:
    """Refuse options beside ``--resume``, since a run continues with its own.

    Raises:
        ConfigError: there are some.
    """
    names = list(dict.fromkeys(argument.partition("=")[0] for argument in arguments if argument.startswith("--")))
    beside = [name.replace("_", "-") for name in names if name != "--resume"]
    if "--resume" in names and beside:
        raise ConfigError(
            f"a run resumes with its own options; leave {', '.join(beside)} out, or begin another run in a new --out"
        )


def run_command(options: Namespace) -> None:
    """Run the chosen command."""
    from mmdistill import commands  # imports torch, which --help should not wait for

    chosen = vars(options[options.command]) if options.command in options else {}
    plain = {name: value for name, value in chosen.items() if name != "config"}
    if options.command == "distill":
        resume = plain.pop("resume")
        commands.distill_command(DistillConfig(**plain), resume)
    elif options.command == "experts":
        count, together = plain.pop("count"), plain.pop("together")
        commands.experts_command(DistillConfig(**plain), count, together)
    elif options.command == "evaluate":
        commands.evaluate_command(**plain)
    elif options.command == "report":
        commands.report_command(plain["run"])
    elif options.command == "compare":
        commands.compare_command(**plain)
    elif options.command == "export":
        commands.export_command(plain["run"], plain["format"], plain["to"])
    elif options.command == "methods":
        commands.methods_command(plain["domain"])
    else:
        commands.data_command()


def _kept(options: Namespace | None) -> str:
    """Return in words what an interrupted command keeps and how to go on."""
    command = None if options is None else options.command
    if options is None or command != "distill":
        return "finished work is kept" + ("; call it again" if command == "experts" else "")
    chosen = options["distill"]
    names = ("data", "method", "ipc", "nodes", "users", "bytes", "parameterization", "out")
    folder = Path(chosen["resume"] or DistillConfig(**{name: chosen[name] for name in names}).folder())
    if not (is_finished(folder) or is_started(folder)):
        return "nothing is finished yet"
    return f"continue with: mmdistill distill --resume {shlex.quote(str(folder))}"


def _ready_streams() -> None:
    """Let output neither fail where it is closed nor where its encoding lacks a character, such as one of a path."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    _ready_streams()
    given = spelled(sys.argv[1:] if arguments is None else arguments)
    options = None
    # What torch tells torch-geometric's authors is no news to whoever runs a command.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    try:
        options = build_parser().parse_args(given or ["--help"])
        require_resume_alone(given)
        run_command(options)
    except MmdistillError as error:
        print(f"mmdistill: error: {error}", file=sys.stderr)
        return 2
    except UnicodeDecodeError as error:
        print(f"mmdistill: error: a file is not UTF-8 text: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"mmdistill: error: cannot read or write {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmdistill: stopped; {_kept(options)}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
