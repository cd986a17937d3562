"""A sweep: several methods, budgets and seeds on the same data, each run in a process of its own, side by side."""

import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from mmdistill.allocation import allocate
from mmdistill.budget import method_within_budget, parse_bytes
from mmdistill.commands.assembly import chosen_method, is_same_file, make_task, note_of_more_steps, placed
from mmdistill.commands.finished import compare_command
from mmdistill.commands.processes import PROGRAM, own_program, start, stop, why_failed
from mmdistill.config import BUDGETS, HOW_IT_RUNS, DistillConfig, EvaluateConfig, SweepConfig
from mmdistill.errors import ConfigError, MmdistillError
from mmdistill.evaluate import find_baselines, find_judges, require_networks
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.metrics import former_metrics, of_same_test, read_metrics, recorded
from mmdistill.names import as_argument, as_option, baseline_names, canonical, split_names
from mmdistill.registry import Domain, domain_methods, get_method, get_parameterization, located
from mmdistill.reporting.tabular import aligned
from mmdistill.rules import RULES
from mmdistill.runs.damaged import whole_set
from mmdistill.runs.folder import CONFIG, LOG, METRICS, holds_work, is_finished, is_started, require_free
from mmdistill.runs.judging import missing
from mmdistill.runtime import choose_device
from mmdistill.task import Task

FINISHED = "finished"
PAUSE = 0.2
"""Seconds between two looks at the runs."""


class Running(NamedTuple):
    """A run on its way: its options, its process, when that began, and what the run is called in the list of all."""

    config: DistillConfig
    process: "subprocess.Popen[bytes]"
    began: float
    title: str


def sweep_command(asked: SweepConfig, common: DistillConfig, dry_run: bool) -> None:
    """Make the runs of a sweep that are missing and compare all in its folder; a dry run lists them.

    Args:
        asked: what the runs differ in, and where they lie.
        common: the options of every run.
        dry_run: whether nothing is done but to say which runs there are.
    Raises:
        ConfigError: options that are wrong for every run, or a folder that holds another run.
        MmdistillError: some runs failed; the others are finished and compared.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep starts a process for each run by itself; start it without torchrun")
    configs = planned(asked, common)
    devices = split_names(asked.devices) or ["auto"]
    kinds = {choose_device(device).type for device in devices}
    if len(kinds) > 1 and common.precision == "auto":
        raise ConfigError(f"--precision is another one on {' and '.join(sorted(kinds))}; name the one of all runs")
    if holds_work(users_path(str(asked.out))):
        raise ConfigError(f"{asked.out} holds a run of its own, and a sweep's folder holds those of its runs")
    for config in configs:
        require_own_folder(config)
    task = require_possible(configs)
    states = {config: state(config, task) for config in configs}
    del task  # whose memory the runs may need
    if dry_run:
        print(aligned([[str(config.folder()), found] for config, found in states.items()]))
        return
    folder = users_path(str(asked.out))
    with sole_writer(folder):
        counts = Counter(states.values())
        print(f"runs in {folder}: {', '.join(f'{count} {found}' for found, count in counts.items())}")
        failed = run_all([config for config, found in states.items() if found != FINISHED], devices, len(configs))
        if any((config.folder() / METRICS).is_file() for config in configs):
            compare_command([str(folder)], "all" if common.judges else None, None, str(folder / "comparison"))
    if failed:
        names = ", ".join(config.folder().name for config in failed)
        raise MmdistillError(f"{len(failed)} of {len(configs)} runs failed ({LOG} in their folders says how): {names}")


def planned(asked: SweepConfig, common: DistillConfig) -> list[DistillConfig]:
    """Return the options of each run, in the order in which they are made.

    All methods and budgets come with the first seed, then with the next one, so that a whole table is there early.

    Raises:
        ConfigError: something is missing, given twice or no number.
    """
    methods = [canonical(name) for name in split_names(asked.methods)]
    given = {unit: str(value) for unit in BUDGETS if (value := getattr(asked, unit)) is not None}
    for option, there in (("data", common.data), ("methods", methods), ("out", asked.out)):
        if not there:
            raise ConfigError(f"--{option} is needed; see 'mmdistill sweep --help'")
    if len(given) != 1:
        raise ConfigError(f"a sweep takes one of --{', --'.join(BUDGETS)}, got {' and '.join(given) or 'none'}")
    ((unit, text),) = given.items()
    budgets = split_names(text) if unit == "bytes" else _numbers(unit, text)
    common = placed(replace(common, data=located(str(common.data))))
    found = []
    for seed in _numbers("seeds", str(asked.seeds)):
        for budget in budgets:
            for method in methods:
                own: dict[str, Any] = {"method": method, unit: budget, "seed": seed}
                config = replace(common, **own)
                found.append(replace(config, out=str(users_path(str(asked.out)) / config.folder().name)))
    return list(dict.fromkeys(found))


def _numbers(option: str, text: str) -> list[int]:
    """Return the numbers of a comma-separated list.

    Raises:
        ConfigError: something else, or none.
    """
    try:
        found = [int(number) for number in split_names(text)]
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"--{option} takes whole numbers, comma-separated, got {text!r}")
    return found


def require_own_folder(config: DistillConfig) -> None:
    """Refuse a run whose folder holds work of another one; how that one ran makes no difference.

    Raises:
        ConfigError: it does; says in which options.
        CheckpointError: work without options, or with damaged ones.
    """
    folder = config.folder()
    require_free(folder, other="another --out")
    saved = DistillConfig.load(folder / CONFIG) if holds_work(folder) else config
    asked, there = asdict(config), asdict(saved)
    if is_same_file(there["teacher"], asked["teacher"]):
        there["teacher"] = asked["teacher"]
    differing = [name for name in asked if name not in HOW_IT_RUNS and there[name] != asked[name]]
    if differing:
        asked, there = ({**one, "set": " ".join(one["set"] or ())} for one in (asked, there))
        said = ", ".join(f"{name.replace('_', '-')} {there[name]} in place of {asked[name]}" for name in differing)
        ways = "choose another --out or remove it"
        if differing == ["steps"] and (config.steps or 0) > (saved.steps or 0) > 0:
            ways = f"mmdistill distill --resume {as_argument(folder)} --steps N takes a run further; else {ways}"
        elif set(differing) <= set(EvaluateConfig.__dataclass_fields__) - {"seed", "teacher"} and is_finished(folder):
            given = (f"{as_option(name)} {asked[name]}" for name in differing if asked[name] is not None)
            options = " ".join(given)
            ways = f"mmdistill evaluate {as_argument(folder)} {options} judges its set so; else {ways}"
        raise ConfigError(f"{folder} holds another run, of {said}; {ways}")


def require_possible(configs: Sequence[DistillConfig]) -> Task:
    """Return the task of a sweep's first run, once the data, all names and all budgets are known to be there.

    What a method's parts refuse of each other is left to its runs, of which others need not fail.

    Raises:
        ConfigError: an unknown name, an option that the data or some of the methods do not take, a budget in another
            unit or out of bounds.
    """
    first = configs[0]
    domain, task = make_task(first, "cpu")
    find_judges(task, first.judge_names())
    find_baselines(task, first.baselines)
    require_networks(first.networks, first.networks_at_once)
    if first.parameterization is not None:
        get_parameterization(domain, first.parameterization, str(first.data))
    _require_known_to_runs(domain, configs)
    _require_settings(domain, task, configs)
    for config in configs:
        method = get_method(domain, str(config.method), str(config.data), config.schedule)
        if config.bytes is not None:
            parse_bytes(config.bytes)
        else:
            _, budget = method_within_budget(task, method, **config.budgets())
            allocate(budget, task.describe().budget, task.labels, task.num_classes)
    return task


def _require_settings(domain: Domain, task: Task, configs: Sequence[DistillConfig]) -> None:
    """Refuse settings that some of the methods do not take: all runs of a sweep have the same options.

    Raises:
        ConfigError: naming these methods; or what no method takes.
    """
    refused: dict[str, ConfigError] = {}
    of_each = {str(config.method): config for config in configs}
    for name, config in of_each.items():
        try:
            chosen_method(config, domain, task.num_classes).settings(config.count)
        except ConfigError as error:
            refused[name] = error
    if not refused:
        return
    first = next(iter(refused.values()))
    if len(refused) == len(of_each):
        raise first
    apart = f"sweep {', '.join(refused)} apart, perhaps into the same --out"
    raise ConfigError(f"{first}; all runs of a sweep have the same options: {apart}") from first


def _require_known_to_runs(domain: Domain, configs: Sequence[DistillConfig]) -> None:
    """Refuse methods, storages and the like that the running script added, where runs are no processes of that script.

    Raises:
        ConfigError: naming them, and how to start the script.
    """
    added = {*domain_methods(domain), *domain.parameterizations} - domain.shipped
    names = {name for config in configs for name in (config.method, config.parameterization)} & added
    networks = {name for config in configs for name in (config.model or "", *config.judge_names())}
    rules = {rule for config in configs for rule in (config.init or "", *baseline_names(config.baselines))}
    own = sorted({*map(str, names), *filter(domain.network_added, networks), *filter(RULES.added, rules)})
    if own and own_program()[-1] == PROGRAM:
        raise ConfigError(
            f"{', '.join(own)} would be unknown to the runs: each is a process of its own, which is that of the script "
            "that adds them only where this calls main() without a list of arguments; put these on the command line "
            "(python SCRIPT.py sweep ...)"
        )


def state(config: DistillConfig, task: Task) -> str:
    """Return how far a run has come, in a word or two."""
    folder = config.folder()
    if not is_finished(folder):
        return "unfinished" if is_started(folder) else "new"
    found = whole_set(folder)
    if found is None or note_of_more_steps(config, found, folder):
        return "unfinished"
    metrics = of_same_test(former_metrics(folder / METRICS), task)
    judges = find_judges(task, config.judge_names(), found.judge)
    lacking = missing(task, judges, find_baselines(task, config.baselines), metrics)
    return "not judged" if lacking else FINISHED


def run_all(configs: Sequence[DistillConfig], devices: Sequence[str], total: int) -> list[DistillConfig]:
    """Make or continue runs, one at a time on each device, with a line for each; returns those that failed.

    Args:
        configs: of the runs.
        devices: where they run; a device that is named twice has two at a time.
        total: runs of the sweep, the finished ones before these included.
    Raises:
        KeyboardInterrupt: Ctrl-C, once all have ended with a checkpoint.
    """
    waiting = deque(enumerate(configs, total - len(configs) + 1))
    running: dict[int, Running] = {}
    failed: list[DistillConfig] = []
    alone = len(devices) == 1  # a line may wait for its end
    interrupted = False
    try:
        while waiting or running:
            for place, device in enumerate(devices):
                if place in running and running[place].process.poll() is not None:
                    run = running.pop(place)
                    found, well = _outcome(run)
                    print(found if alone else f"{run.title} {found}", flush=True)
                    failed += [] if well else [run.config]
                if place not in running and waiting:
                    number, config = waiting.popleft()
                    title = f"{number} of {total}: {_title(config)} ..."
                    if alone:
                        print(title, end=" ", flush=True)
                    running[place] = Running(config, _begun(config, device), time.monotonic(), title)
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        interrupted = True
        ending = f"{len(running)} run(s) end their step and keep a checkpoint; Ctrl-C again ends them at once"
        print(f"\nmmdistill: {ending}", file=sys.stderr)
        raise
    finally:
        stop([run.process for run in running.values()], interrupted)
    return failed


def _begun(config: DistillConfig, device: str) -> "subprocess.Popen[bytes]":
    """Return the process that makes or continues a run, whose options are in its folder as if it had begun before."""
    folder = config.folder()
    replace(config, device=device).save(folder / CONFIG)
    if (folder / LOG).is_symlink():  # whose file is another's
        (folder / LOG).unlink()
    with (folder / LOG).open("wb") as log:
        return start([*own_program(), "distill", f"--resume={folder}"], log)


def _title(config: DistillConfig) -> str:
    """Return what tells a run from the others of its sweep."""
    unit, budget = next(iter(config.budgets().items()))
    return f"{config.method} {unit} {budget} seed {config.seed}"


def _outcome(run: Running) -> tuple[str, bool]:
    """Return what a run that has ended scored, or why it failed, and whether it went well."""
    folder, code = run.config.folder(), run.process.returncode
    if code:
        return f"failed: {why_failed(code, folder / LOG)}", False
    try:
        score = recorded(read_metrics(folder / METRICS)).headline()
    except MmdistillError as error:  # no judge could judge it
        return f"failed: {error}", False
    return f"{score} in {time.monotonic() - run.began:,.0f} s", True
