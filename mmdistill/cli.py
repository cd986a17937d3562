"""The command line: ``mmdistill distill | sweep | experts | import | evaluate | report | compare | export | ...``."""

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from jsonargparse import Namespace

from mmdistill import __version__
from mmdistill.commands.endings import ending_as_ctrl_c, kept, remedy, replaced_by
from mmdistill.commands.processes import follow_starter
from mmdistill.commands.wording import (
    EXAMPLES,
    GROUPS,
    IMPORT_OPTIONS,
    Parser,
    add_file_and_plan,
    add_set,
    import_parser,
    in_groups,
    name_values,
    sweep_parser,
    warnings_as_notes,
)
from mmdistill.config import AUTO, BUDGETS, CHOICES, DistillConfig, EvaluateConfig, SweepConfig
from mmdistill.errors import KEPT, ConfigError, MmdistillError
from mmdistill.names import as_option, canonical
from mmdistill.runs.signals import left_terminal, outlasting_reader
from mmdistill.settings import AT_RESUME

EXPERT_OPTIONS = (
    *("data", "method", "ipc", "nodes", "schedule", "model", "width", "seed", "device", "augment", "expert_steps"),
    *("start_epochs", "expert_folder", "expert_precision", "text_column", "label_column", "encoder", "length"),
    *("size", "mirror", "whiten", "inductive", "split", "split_seed"),
)
"""The options of ``distill`` that experts depend on, with those for their device and folder."""
FORMATS = (
    "images: tensors, folder, pt or ddranking; graphs: pyg or tensors; sets of graphs: pyg or tensors; "
    "text: tensors, embeds or texts; recsys: csr, csv, binary, recbole or tensors"
)
"""Names of export formats by domain, written here since --help imports no domain."""
MOVED = "where the run's data are now, if they have moved; other data are refused"
"""What ``--data`` is in commands on finished runs."""


def build_parser() -> Parser:
    """Return the whole command-line parser."""
    parser = Parser(
        prog="mmdistill",
        usage="mmdistill COMMAND ...",
        description="Distil a large training set into a tiny one that trains models nearly as well.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"mmdistill {__version__}")
    more = "Run 'mmdistill COMMAND --help' for a command's options."
    commands = parser.add_subcommands(dest="command", title="commands", description=more, prog="mmdistill")
    for name, make, line in (
        ("distill", _distill_parser, "distil a data set, judge the result beside its baselines, and draw it"),
        ("sweep", sweep_parser, "distil by several methods, with several budgets and seeds, and compare"),
        ("experts", _experts_parser, "train the experts of mtt and its relatives, ahead of distilling"),
        ("import", import_parser, "judge a set that another tool made, and keep it as a run"),
        ("evaluate", _evaluate_parser, "judge distilled sets again, by other judges or more networks"),
        ("report", _report_parser, "write a page with tables and pictures for each of some runs"),
        ("compare", _compare_parser, "put finished runs side by side"),
        ("export", _export_parser, "write a distilled set in a format that other tools read"),
        ("methods", _methods_parser, "list the methods, and the ways to store samples"),
        ("data", _data_parser, "list the data sets, and the files and folders that are read"),
    ):
        commands.add_subcommand(name, make(), help=line)
    return parser


def _distill_parser() -> Parser:
    parser = Parser(
        usage="mmdistill distill --data NAME --method NAME\n"
        "           (--ipc N | --nodes N | --users N | --bytes SIZE) [options]\n"
        "       mmdistill distill --resume FOLDER [--steps N] [--data NAME]\n"
        "           [--classes-at-once N] [--kept-steps N]",
        description="Distil a data set, judge the result beside its baselines, and draw it.",
    )
    parser.add_argument(
        "--resume",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="continue the interrupted run in this folder with its own options; beside it only --steps may be given, "
        "which takes a run further, finished or not, or ends an unfinished one earlier (none whose rates are annealed "
        "over its steps), --data, where its data are now, and --classes-at-once and --kept-steps, which bound memory. "
        "With auto and all options the same command starts a run, continues it or judges it, as a job that is requeued "
        "needs it; a folder of this name is ./auto",
    )
    add_file_and_plan(
        parser,
        "a YAML file of options, such as a run's config.yaml; options on the command line override those in it",
        "print what the run would do (its settings, network, judges and folder) and do nothing",
    )
    parser.add_class_arguments(DistillConfig, as_group=False, skip={"set"})
    name_values(parser)
    in_groups(parser, GROUPS)
    return parser


def _experts_parser() -> Parser:
    parser = Parser(
        usage="mmdistill experts --data NAME [options]",
        description="Train the experts (networks trained on real data) that a trajectory-matching method needs. "
        "'distill' trains missing ones by itself; this command trains them ahead of it, and continues where an earlier "
        "call ended.",
    )
    skipped = {*DistillConfig.__dataclass_fields__} - set(EXPERT_OPTIONS)
    parser.add_class_arguments(DistillConfig, as_group=False, skip=skipped)
    parser.set_defaults(method="mtt")
    add_set(parser)
    parser.add_argument(
        "--experts",
        "--count",
        type=int | None,
        default=None,
        help="number of experts; the method's own by default. With fewer, give distill the same option",
    )
    parser.add_argument(
        "--epochs",
        type=int | None,
        default=None,
        metavar="N",
        help="epochs of each; by default as many as the method's settings need. More need an --expert-folder",
    )
    parser.add_argument(
        "--together",
        type=int,
        default=10,
        metavar="N",
        help="experts trained at once; fewer need less memory, and are other experts",
    )
    name_values(parser)
    return parser


def _evaluate_parser() -> Parser:
    parser = Parser(
        usage="mmdistill evaluate RUN [RUN ...] [options]",
        description="Judge distilled sets again, by other judges or more networks. The results are added to each run's "
        "metrics.json, where they replace earlier results of the same judge and metric.",
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or folders of them")
    parser.add_argument(
        "--judges",
        "--models",
        type=str | None,
        default=None,
        help="judges, comma-separated, or 'all'; by default the method's own (such as ntk for kip), else the first of "
        "the data's domain, which for images is the network distilled with",
    )
    parser.add_class_arguments(EvaluateConfig, as_group=False, skip={"judges"})
    name_values(parser)
    return parser


def _report_parser() -> Parser:
    parser = Parser(
        usage="mmdistill report RUN [RUN ...] [--data FILE]",
        description="Write report.md and report.html with tables and pictures into run folders.",
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--data", type=str | None, default=None, help=MOVED)
    return parser


def _compare_parser() -> Parser:
    parser = Parser(
        usage="mmdistill compare RUN [RUN ...] [options]",
        description="Put finished runs side by side. Runs that differ only in the seed count as repetitions and share "
        "a line.",
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or folders of them")
    parser.add_argument(
        "--judge",
        "--judges",
        type=str | None,
        default=None,
        help="judges to show, comma-separated, or 'all'; each run's first by default",
    )
    parser.add_argument("--metric", type=str | None, default=None, help="score to show; the judge's first by default")
    parser.add_argument(
        "--to",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="folder for a page with pictures, comparison.csv for other programs and comparison.tex for papers; none "
        "by default",
    )
    return parser


def _export_parser() -> Parser:
    parser = Parser(
        usage="mmdistill export RUN [options]",
        description="Write a distilled set in a format that other tools read. The real data are read only where the "
        "format holds something of them: texts, embeds of the encoder tfidf, and folders of whitened images.",
    )
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--format", type=str, default="tensors", help=f"what is written - {FORMATS}")
    parser.add_argument(
        "--to", type=str | None, default=None, metavar="FOLDER", help="where it is written; RUN/export by default"
    )
    parser.add_argument("--data", type=str | None, default=None, help=MOVED)
    return parser


def _methods_parser() -> Parser:
    parser = Parser(
        usage="mmdistill methods [DOMAIN] [--long]\n       mmdistill methods METHOD [--data NAME]",
        description="List the methods by domain, and the ways to store samples that most of them can take; or say what "
        "one method is, what its settings are, and which options it reads.",
    )
    choices = "image, graph, graph-set, text or recsys, all by default; or a method, such as dm"
    parser.add_argument("name", type=str | None, nargs="?", default=None, metavar="DOMAIN or METHOD", help=choices)
    parser.add_argument("--domain", type=str | None, default=None, help="a domain, beside a method too")
    parser.add_argument(
        "--data", type=str | None, default=None, metavar="NAME", help="data set whose settings of the method are shown"
    )
    parser.add_argument("--long", action="store_true", help="all that is said of them: departures from the papers too")
    return parser


def _data_parser() -> Parser:
    return Parser(description="List the data sets by domain, how to get each, and which files of yours are read.")


def spelled(arguments: Sequence[str]) -> list[str]:
    """Return arguments in the parser's spelling: options with underscores, values of :data:`CHOICES` canonical."""
    result: list[str] = []
    expects_choice = False
    for argument in arguments:
        if not argument.startswith("--"):
            result.append(canonical(argument) if expects_choice else argument)
            expects_choice = False
            continue
        name, equals, value = argument.partition("=")
        option = name[2:].lower().replace("-", "_")
        result.append(f"--{option}{equals}{canonical(value) if option in CHOICES else value}")
        expects_choice = option in CHOICES and not equals
    return result


def config_first(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with its configuration files first, so that the other options override them."""
    others, files = list(arguments), []
    while "--config" in others[1:-1]:
        at = others.index("--config", 1)
        files += others[at : at + 2]
        del others[at : at + 2]
    files += [argument for argument in others if argument.startswith("--config=")]
    return [*others[:1], *files, *(argument for argument in others[1:] if not argument.startswith("--config="))]


def keep_given_budget(options: Namespace, given: Sequence[str]) -> None:
    """Let a budget among the arguments replace a configuration file's budget, also one in another unit."""
    names = {argument.partition("=")[0].removeprefix("--") for argument in given if argument.startswith("--")}
    if "config" in names and names & set(BUDGETS):
        command_options = options[options.command]
        for name in set(BUDGETS) - names:
            if name in command_options:
                command_options[name] = None


def require_resume_alone(options: Namespace, arguments: Sequence[str]) -> None:
    """Refuse options beside ``--resume FOLDER``, since a run continues with its own.

    Steps, the place of the data and bounds of memory may change. ``--resume auto`` takes all options but
    ``--overwrite``.

    Raises:
        ConfigError: naming the options to leave out.
    """
    if options.command == "distill" and options["distill"]["resume"] == AUTO:
        if options["distill"]["overwrite"]:
            raise ConfigError("--resume auto keeps what there is, which --overwrite replaces: leave one of them out")
        return
    names = list(dict.fromkeys(argument.partition("=")[0] for argument in arguments if argument.startswith("--")))
    allowed = ("--resume", "--data", *map(as_option, AT_RESUME))
    refused = [name for name in (name.replace("_", "-") for name in names) if name not in allowed]
    if "--resume" in names and refused:
        raise ConfigError(
            f"a run resumes with its own options; omit {', '.join(refused)}, or begin another run "
            "in a new --out, or in its place with --out and --overwrite instead of --resume"
        )


def run_command(options: Namespace) -> None:
    """Run the chosen command, isolated from the host's state as one public call."""
    from mmdistill.execution.isolation import own_state  # here, since importing torch would slow --help
    from mmdistill.reporting.figures import matplotlib_in_a_folder

    with matplotlib_in_a_folder(), own_state():
        _dispatch(options)


def _dispatch(options: Namespace) -> None:
    from mmdistill.commands import finished, listings, making, sweep

    given = vars(options[options.command]) if options.command in options else {}
    values = {name: value for name, value in given.items() if name != "config"}
    if options.command == "distill":
        resume, dry_run = values.pop("resume"), values.pop("dry_run")
        making.distill_command(DistillConfig(**values), resume, dry_run)
    elif options.command == "sweep":
        sweep_values = {name: values.pop(name) for name in SweepConfig.__dataclass_fields__}
        dry_run = values.pop("dry_run")
        sweep.sweep_command(SweepConfig(**sweep_values), DistillConfig(**values), dry_run)
    elif options.command == "experts":
        epochs, together = values.pop("epochs"), values.pop("together")
        making.experts_command(DistillConfig(**values), epochs, together)
    elif options.command == "import":
        import_values = {name: values.pop(name) for name in IMPORT_OPTIONS}
        making.import_command(DistillConfig(**values), **import_values)
    elif options.command == "evaluate":
        finished.evaluate_command(values.pop("runs"), EvaluateConfig(**values))
    elif options.command == "report":
        finished.report_command(values["runs"], values["data"])
    elif options.command == "compare":
        finished.compare_command(**values)
    elif options.command == "export":
        finished.export_command(**values)
    elif options.command == "methods":
        listings.methods_command(**values)
    else:
        listings.data_command()


@contextmanager
def _prepared_streams() -> Iterator[None]:
    """Within this context output fails neither on a closed stream or a reader that is gone, nor on any character."""
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))  # noqa: SIM115
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
                stack.enter_context(outlasting_reader(stream))
        yield


@contextmanager
def _log_on_terminal() -> Iterator[None]:
    """Within this context the library's log of its progress appears on the terminal.

    If a program that calls :func:`main` has handlers of its own, the log goes there.
    """
    log, kept_log = logging.getLogger("mmdistill"), logging.getLogger(KEPT)
    level, handler, was_disabled = log.level, logging.StreamHandler(), kept_log.disabled
    kept_log.disabled = True  # the command's last line says the same
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    if not log.hasHandlers():
        log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        kept_log.disabled = was_disabled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 2 bad input, 130 interrupted, by Ctrl-C or a signal."""
    with _prepared_streams(), ending_as_ctrl_c():
        follow_starter()
        return _exit_code(config_first(spelled(sys.argv[1:] if arguments is None else arguments)))


def _exit_code(given: Sequence[str]) -> int:
    """Run the command in the arguments; print an error or what an interruption has kept, and return the exit code."""
    options = None
    former: Mapping[str, int] = {}
    # torch's warning is for the authors of torch-geometric, not for users of a command.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    try:
        options = build_parser().parse_args(given or ["--help"])
        require_resume_alone(options, given)
        keep_given_budget(options, given)
        former = replaced_by(options)
        with _log_on_terminal(), warnings_as_notes():
            run_command(options)
    except MmdistillError as error:
        print(f"mmdistill: error: {error}", file=sys.stderr)
        return 2
    except UnicodeDecodeError as error:
        print(f"mmdistill: error: a file is not UTF-8 text: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno == errno.EIO and left_terminal():  # the terminal closed before its signal came, or without one
            return 130
        reason = f"{error.filename or 'a file'}: {error.strerror or error}{remedy(error.filename)}"
        print(f"mmdistill: error: cannot read or write {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"mmdistill: stopped; {kept(options, former, getattr(stop, '__notes__', ()))}", file=sys.stderr)
        return 130
    return 0
