"""A sweep: runs of several methods, budgets and seeds on the same data, each in a process of its own."""

import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from mmdistill.allocation import allocate
from mmdistill.budget import GivenBudget, given_count, parse_bytes
from mmdistill.commands.assembly import (
    chosen_method,
    make_task,
    note_of_more_steps,
    require_own_folder,
    with_absolute_paths,
)
from mmdistill.commands.finished import compare_command
from mmdistill.commands.processes import PROGRAM, own_program, start, stop, why_failed
from mmdistill.commands.varied import combinations, require_effect, varied_settings
from mmdistill.config import BUDGETS, DistillConfig, SweepConfig
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, MmdistillError
from mmdistill.evaluate import find_baselines, find_judges, require_networks
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.metrics import former_metrics, of_same_test, read_metrics, recorded
from mmdistill.names import baseline_names, canonical, split_names
from mmdistill.registry import Domain, get_domain, located
from mmdistill.reporting.tabular import aligned
from mmdistill.rules import RULES
from mmdistill.runs.damaged import whole_set
from mmdistill.runs.finished import checkpoint_fingerprint, require_same_data
from mmdistill.runs.folder import CONFIG, LOG, METRICS, holds_work, is_finished
from mmdistill.runs.how_to_continue import how_to_judge
from mmdistill.runs.judging import missing, wanted_scores
from mmdistill.runtime import choose_device
from mmdistill.task import Task

FINISHED = "finished"
COMPARISON = "comparison"
"""The folder of a sweep's tables and pictures."""
CLAIM = ".sweep"
"""The folder in a run's folder that a sweep locks while the run's process, which locks the run's folder, is at work."""
PAUSE = 0.2
"""Seconds between two polls of the runs' processes."""


class Running(NamedTuple):
    """A run in progress: its options, its process, when that started, its title in the output, and its claim."""

    config: DistillConfig
    process: "subprocess.Popen[bytes]"
    began: float
    title: str
    claim: ExitStack


def sweep_command(sweep: SweepConfig, common: DistillConfig, dry_run: bool) -> None:
    """Make or continue the runs of a sweep that are not finished, and compare all runs in its folder.

    Args:
        sweep: what the runs differ in, and where they lie.
        common: the options of every run.
        dry_run: only list the runs and their states.
    Raises:
        ConfigError: options are wrong for every run, or a run's folder holds another run.
        CheckpointError: a run's training data were others.
        MmdistillError: some runs failed; the others are finished and compared.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep starts a process for each run by itself; start it without torchrun")
    configs = plan_runs(sweep, common)
    devices = split_names(sweep.devices) or ["auto"]
    kinds = {choose_device(device).type for device in devices}
    if len(kinds) > 1 and common.precision == "auto":
        raise ConfigError(f"--precision is another one on {' and '.join(sorted(kinds))}; name the one of all runs")
    if holds_work(users_path(str(sweep.out))):
        raise ConfigError(f"{sweep.out} holds a run of its own, and a sweep's folder holds those of its runs")
    for config in configs:
        require_own_folder(config)
    task = require_possible(configs)
    states = states_of(configs, task)
    del task  # the runs may need its memory
    if dry_run:
        print(aligned([[str(config.folder()), status] for config, status in states.items()]))
        return
    for config, status in states.items():
        if status == FINISHED:
            _note_place(config)
    folder = users_path(str(sweep.out))
    counts = Counter(states.values())
    print(f"runs in {folder}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
    failed = run_all([config for config, status in states.items() if status != FINISHED], devices, len(configs))
    if any((config.folder() / METRICS).is_file() for config in configs):
        with sole_writer(folder / COMPARISON, wait="compare the runs of a sweep"):
            compare_command([str(folder)], "all" if common.judges else None, None, str(folder / COMPARISON))
    elif common.unjudged and len(failed) < len(configs):
        print(how_to_judge(folder))
    if failed:
        names = ", ".join(config.folder().name for config in failed)
        raise MmdistillError(f"{len(failed)} of {len(configs)} runs failed ({LOG} in their folders says how): {names}")


def plan_runs(sweep: SweepConfig, common: DistillConfig) -> list[DistillConfig]:
    """Return the options of each run in the order in which the runs are made: all of the first seed come first.

    So a whole table of methods and budgets is there early.

    Args:
        sweep: what the runs differ in.
        common: the options of every run, some with several values, see :func:`combinations`.
    Raises:
        ConfigError: an option is missing, given twice or of another type, or two runs would have the same folder.
    """
    methods = [canonical(name) for name in split_names(sweep.methods)]
    given_budgets = {unit: str(value) for unit in BUDGETS if (value := getattr(sweep, unit)) is not None}
    for option, value in (("data", common.data), ("methods", methods), ("out", sweep.out)):
        if not value:
            raise ConfigError(f"--{option} is needed; see 'mmdistill sweep --help'")
    if len(given_budgets) != 1:
        names = " and ".join(given_budgets) or "none"
        raise ConfigError(f"a sweep takes one of --{', --'.join(BUDGETS)}, got {names}")
    ((unit, text),) = given_budgets.items()
    budgets = split_names(text) if unit == "bytes" else _parse_numbers(unit, text)
    common = with_absolute_paths(replace(common, data=located(str(common.data))))
    seeds = _parse_numbers("seeds", str(sweep.seeds))
    configs = []
    for seed, budget, (settings, mark), method in product(seeds, budgets, combinations(common), methods):
        options: dict[str, Any] = {**settings, "method": method, unit: budget, "seed": seed}
        config = replace(common, **options)
        configs.append(replace(config, out=str(users_path(str(sweep.out)) / config.folder(mark).name)))
    configs = list(dict.fromkeys(configs))
    (folder, count), *_ = Counter(config.out for config in configs).most_common(1)
    if count > 1:
        raise ConfigError(f"two runs would be in {folder}; sweep them apart")
    return configs


def _parse_numbers(option: str, text: str) -> list[int]:
    """Return the numbers of a comma-separated list.

    Raises:
        ConfigError: the list is empty or has something else.
    """
    try:
        numbers = [int(number) for number in split_names(text)]
    except ValueError:
        numbers = []
    if not numbers:
        raise ConfigError(f"--{option} takes whole numbers, comma-separated, got {text!r}")
    return numbers


def require_possible(configs: Sequence[DistillConfig]) -> Task:
    """Check the data, all names and all budgets of a sweep, and return the task of its first run.

    Whether a method's parts fit together is left to its own run, so that the other runs need not fail.

    Raises:
        ConfigError: a name is unknown, the data or a method does not take an option, or a budget is in another unit or
            out of bounds.
    """
    first = configs[0]
    domain, task = make_task(first, "cpu")
    find_judges(task, first.judge_names())
    find_baselines(task, first.baselines)
    require_networks(first.networks, first.networks_at_once)
    _require_known_to_runs(domain, configs)
    _require_settings(task, configs)
    for config in configs:
        if config.bytes is not None:
            parse_bytes(config.bytes)
        else:
            budget = given_count(task, GivenBudget(**config.budgets()))
            allocate(budget, task.describe().budget, task.labels, task.num_classes)
    return task


def _require_settings(task: Task, configs: Sequence[DistillConfig]) -> None:
    """Refuse settings that some of the methods do not take or that are varied and not read.

    All runs of a sweep share their options and what these vary.

    Raises:
        ConfigError: some methods refuse them, which it names; or all do.
    """
    refused: dict[str, ConfigError] = {}
    varied = varied_settings(configs)
    for config in (config for config in configs if config.seed == configs[0].seed):
        try:
            method = chosen_method(config, task)
            method.settings(config.count)
            require_effect(method, task, config, varied)
        except ConfigError as error:
            refused.setdefault(str(config.method), error)
    if not refused:
        return
    first = next(iter(refused.values()))
    if len(refused) == len({config.method for config in configs}):
        raise first
    apart = f"sweep {', '.join(refused)} apart, perhaps into the same --out"
    raise ConfigError(f"{first}; all runs of a sweep have the same options: {apart}") from first


def _require_known_to_runs(domain: Domain, configs: Sequence[DistillConfig]) -> None:
    """Refuse methods, storages and the like that this script registered unless the runs start the script too.

    Raises:
        ConfigError: names them, and how to start the script.
    """
    added = {*domain.methods, *domain.parameterizations} - domain.shipped
    names = {name for config in configs for name in (config.method, config.parameterization)} & added
    networks = {name for config in configs for name in (config.model or "", *config.judge_names())}
    rules = {rule for config in configs for rule in (config.init or "", *baseline_names(config.baselines))}
    foreign = sorted({*map(str, names), *filter(domain.network_added, networks), *filter(RULES.added, rules)})
    if foreign and own_program()[-1] == PROGRAM:
        listed = ", ".join(foreign)
        raise ConfigError(
            f"{listed} would be unknown to the runs: each is a process of its own, which is that of the script "
            "that adds them only where this calls main() without a list of arguments; put these on the command line "
            "(python SCRIPT.py sweep ...)"
        )


def states_of(configs: Sequence[DistillConfig], task: Task) -> dict[DistillConfig, str]:
    """Return the state of each run: ``new``, ``unfinished``, ``not judged`` or :data:`FINISHED`.

    Args:
        configs: of the runs.
        task: of the first run. Others have tasks of their own where their seeds hold out other samples, or where their
            methods have networks that read the data otherwise; such are built for runs of other data alone, one at a
            time.
    Raises:
        CheckpointError: a run's training data were others than this sweep's; unfinished runs are asked only where the
            sweep names another place of the data.
    """
    info = task.describe()
    networks = get_domain(info.domain).networks
    key, own = _task_key(configs[0], networks), task
    states = {}
    for config in configs:
        folder = config.folder()
        distilled = whole_set(folder) if is_finished(folder) else None
        fingerprint = None if distilled is None else distilled.info.fingerprint
        if distilled is None and holds_work(folder) and DistillConfig.load(folder / CONFIG).data != config.data:
            fingerprint = checkpoint_fingerprint(folder)
        if fingerprint is None:
            states[config] = "unfinished" if holds_work(folder) else "new"
            continue
        if fingerprint != info.fingerprint and (asked := _task_key(config, networks)) != key:
            key, own = asked, make_task(config, "cpu")[1]
        states[config] = _state(config, distilled, task if fingerprint == info.fingerprint else own)
    return states


def _note_place(config: DistillConfig) -> None:
    """Write into a finished run's options where its data, which have been compared, are now."""
    path = config.folder() / CONFIG
    if (saved := DistillConfig.load(path)).data != config.data:
        replace(saved, data=config.data).save(path)


def _task_key(config: DistillConfig, networks: Mapping[str, str]) -> tuple[str | None, int]:
    """Return the options of a task in which the runs of a sweep differ: its network and the seed of its splits."""
    seed = config.seed if config.split_seed is None else config.split_seed
    return config.model or networks.get(canonical(str(config.method))), seed


def _state(config: DistillConfig, distilled: DistilledSet | None, task: Task) -> str:
    """Return the state of a run with work, of which more steps or more scores may be wanted now.

    Raises:
        CheckpointError: its training data were others than its task's.
    """
    folder = config.folder()
    try:
        if distilled is None:
            require_same_data(task, folder)
        else:
            distilled.require(task.describe())
    except CheckpointError as error:
        state = "" if distilled is None else f"{folder} is finished, and "
        raise CheckpointError(f"{state}{error}; or sweep into another --out") from error
    if distilled is None or note_of_more_steps(config, distilled, folder):
        return "unfinished"
    metrics = of_same_test(former_metrics(folder / METRICS), task)
    return "not judged" if missing(task, wanted_scores(config, task, distilled), metrics) else FINISHED


def run_all(configs: Sequence[DistillConfig], devices: Sequence[str], total: int) -> list[DistillConfig]:
    """Make or continue runs, one at a time on each device, and print a line for each; returns those that failed.

    Runs that another process is at work on, or has judged as wanted since this was called, are left to it.

    Args:
        configs: of the runs.
        devices: where they run; a device that is named twice runs two at a time.
        total: number of runs in the sweep, those that were finished before included.
    Raises:
        KeyboardInterrupt: on Ctrl-C, after all runs have ended with a checkpoint.
    """
    waiting = deque(enumerate(configs, total - len(configs) + 1))
    running: dict[int, Running] = {}
    failed: list[DistillConfig] = []
    judged_before = {config: _judged_at(config) for config in configs}
    alone = len(devices) == 1  # then a run's line can stay open until the run ends
    interrupted = False
    try:
        while waiting or running:
            for place, device in enumerate(devices):
                if place in running and running[place].process.poll() is not None:
                    run = running.pop(place)
                    run.claim.close()
                    outcome, succeeded = _outcome(run)
                    print(outcome if alone else f"{run.title} {outcome}", flush=True)
                    failed += [] if succeeded else [run.config]
                if place not in running and waiting:
                    number, config = waiting.popleft()
                    title = f"{number} of {total}: {_title(config)} ..."
                    try:
                        claim, why_left = _claim(config, judged_before[config])
                    except MmdistillError as error:  # another process has begun another run there
                        claim, why_left = ExitStack(), f"failed: {error}"
                        failed.append(config)
                    if why_left:
                        print(f"{title} {why_left}", flush=True)
                        continue
                    if alone:
                        print(title, end=" ", flush=True)
                    running[place] = Running(config, _start_run(config, device), time.monotonic(), title, claim)
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        interrupted = True
        ending = f"{len(running)} run(s) end their step and keep a checkpoint; Ctrl-C again ends them at once"
        print(f"\nmmdistill: {ending}", file=sys.stderr)
        raise
    finally:
        try:
            stop([run.process for run in running.values()], interrupted)
        finally:
            for run in running.values():
                run.claim.close()
    return failed


def _claim(config: DistillConfig, judged_before: int) -> tuple[ExitStack, str]:
    """Keep other sweeps from a run.

    Args:
        config: of the run.
        judged_before: when its scores had been written as the sweep began, as :func:`_judged_at` says.
    Returns:
        What gives the run free once it is closed, and why the run is left to another process, in words; empty if not.
    Raises:
        MmdistillError: another run, or one of other training data, is in its folder now.
    """
    with ExitStack() as claim:
        try:
            claim.enter_context(sole_writer(config.folder() / CLAIM))
            with sole_writer(config.folder()):  # held by a process that no sweep started, or whose sweep was killed
                pass
        except ConfigError:
            require_own_folder(config, at_work=True)
            return ExitStack(), "skipped: another process is at work on it"
        require_own_folder(config)
        is_judged = _judged_at(config) != judged_before
        if is_judged and states_of([config], make_task(config, "cpu")[1])[config] == FINISHED:
            return ExitStack(), "judged by another process meanwhile"
        return claim.pop_all(), ""


def _judged_at(config: DistillConfig) -> int:
    """Return when a run's scores were written, in ns; 0 without any."""
    path = config.folder() / METRICS
    return path.stat().st_mtime_ns if path.exists() else 0


def _start_run(config: DistillConfig, device: str) -> "subprocess.Popen[bytes]":
    """Save a run's options in its folder and start a process that resumes it there, new or not.

    Where the data of a run have moved, the process notes their new place, once it has seen that they are the same.
    """
    folder = config.folder()
    moved = []
    if holds_work(folder) and (former := DistillConfig.load(folder / CONFIG).data) != config.data:
        moved, config = [f"--data={config.data}"], replace(config, data=former)
    replace(config, device=device).save(folder / CONFIG)
    if (folder / LOG).is_symlink():  # do not overwrite the file it links to
        (folder / LOG).unlink()
    with (folder / LOG).open("wb") as log:
        return start([*own_program(), "distill", f"--resume={folder}", *moved], log)


def _title(config: DistillConfig) -> str:
    """Return a run's method, budget, varied settings and seed, which tell it from the others of its sweep."""
    unit, budget = next(iter(config.budgets().items()))
    without = replace(config, out=None, seed=0).folder().name
    varied = config.folder().name.removeprefix(without).removesuffix(f"-seed{config.seed}").replace("-", " ")
    return f"{config.method} {unit} {budget}{varied} seed {config.seed}"


def _outcome(run: Running) -> tuple[str, bool]:
    """Return what an ended run scored, or why it failed, and whether it succeeded."""
    folder, code, seconds = run.config.folder(), run.process.returncode, time.monotonic() - run.began
    if code:
        return f"failed: {why_failed(code, folder / LOG)}", False
    if run.config.unjudged:
        return f"distilled, not judged, in {seconds:,.0f} s", True
    try:
        score = recorded(read_metrics(folder / METRICS)).headline()
    except MmdistillError as error:  # such as no scores, since no judge could judge the set
        return f"failed: {error}", False
    return f"{score} in {seconds:,.0f} s", True
