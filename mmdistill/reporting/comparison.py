"""Group judged runs into repetitions, which differ only in their seeds, and collect their scores."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdistill.config import read_options
from mmdistill.distilled import SET_VERSION, is_number
from mmdistill.errors import CheckpointError, ConfigError, VersionError
from mmdistill.metrics import judge_in_words, read_metrics
from mmdistill.names import canonical, split_names
from mmdistill.reporting.judged import RECORDED, JudgedRun
from mmdistill.runs.damaged import advice
from mmdistill.runs.folder import CONFIG, METRICS, SET, is_finished
from mmdistill.runs.how_to_continue import how_to_finish, how_to_judge
from mmdistill.settings import damage_of
from mmdistill.store import read_json

NO_RUN = "no run"
PACE = "seconds_per_step"
"""The key of ``metrics.json`` for the seconds of a step."""


@dataclass(frozen=True)
class Score:
    """The score of some runs by one judge and metric.

    Args:
        values: the mean of each run, fractions.
        sd: the deviation over the networks of a single run; None for several runs, or for one network.
    """

    values: tuple[float, ...]
    sd: float | None = None

    @property
    def mean(self) -> float:
        """The mean over runs, a fraction."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The deviation over runs, or over the networks of the only run; None for one network."""
        return statistics.stdev(self.values) if len(self.values) > 1 else self.sd

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" +/- {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{deviation}"


@dataclass(frozen=True)
class Repetitions:
    """Runs that differ only in their seeds, each seed once, under one judge and metric.

    Args:
        name: the folder of the first.
        data: the data set.
        method: the method.
        unit: of the budget: ipc, nodes or users.
        budget: in this unit.
        stored_bytes: of the set.
        score: of the sets.
        baselines: their scores by name, over the runs that judged them.
        seconds: of distilling, for each run that was not imported.
        judge: the judge, with the user's settings of judging.
        metric: the metric.
        networks: the fewest networks that any run's mean is over.
        parameterization: how samples are stored; empty if the set does not record it, as for the next two.
        network: used for distilling.
        label: the kind of labels.
        steps: updates of each run that was not imported; without runs whose set is missing.
        options: of the first run, as texts, those that no setting shows; None if it records none.
        settings: of the first run, as texts; None if it records none.
        moved: whether the runs' data differ, since each seed holds out other samples.
        fingerprint: of the first run's data; empty if the set does not record it.
        tested_on: a hash of the first run's test data; None if its metrics do not record it.
        judge_network: see :attr:`JudgedRun.judge_network`, of the first run.
        notes: that readers of the scores must know.
        paces: seconds of a step, for each run; empty if a run has no steps.
        folders: of the runs, in the order of the score's values.
    """

    name: str
    data: str
    method: str
    unit: str
    budget: int
    stored_bytes: int
    score: Score
    baselines: dict[str, Score]
    seconds: tuple[float, ...]
    judge: str
    metric: str
    networks: int
    parameterization: str = ""
    network: str = ""
    label: str = ""
    steps: tuple[int, ...] = ()
    options: Mapping[str, str] | None = None
    settings: Mapping[str, str] | None = None
    moved: bool = False
    fingerprint: str = ""
    tested_on: str | None = None
    judge_network: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    paces: tuple[float, ...] = ()
    folders: tuple[Path, ...] = ()

    @property
    def judged(self) -> str:
        """The metric and the judge, in words."""
        return f"{self.metric} by {self.judge}"


def judged_runs(folders: Sequence[Path]) -> tuple[list[JudgedRun], dict[Path, str]]:
    """Return the judged runs in folders, each once, and the reasons why other folders hold none, in words.

    A folder that is not a run stands for the runs in it.

    Raises:
        CheckpointError: a path does not exist.
        ConfigError: there is no judged run.
    """
    if absent := [str(folder) for folder in folders if not folder.exists()]:
        raise CheckpointError(f"no such folder: {', '.join(absent)}")
    runs: list[JudgedRun] = []
    skipped: dict[Path, str] = {}
    candidates = [run for folder in folders for run in runs_in(folder)]
    for folder in {run.resolve(): run for run in candidates}.values():
        try:
            runs.append(_read_run(folder))
        except CheckpointError as error:
            skipped[folder] = str(error)
    if not runs:
        reasons = "; ".join(f"{folder} ({reason})" for folder, reason in skipped.items())
        raise ConfigError(f"no judged run to compare: {reasons}")
    return runs, skipped


def runs_in(folder: Path) -> list[Path]:
    """Return the runs in a folder, by name; the folder itself if it is a run or holds none."""
    if _why_unjudged(folder) != NO_RUN or not folder.is_dir():
        return [folder]
    return sorted(inner for inner in folder.iterdir() if _why_unjudged(inner) != NO_RUN) or [folder]


def _read_run(folder: Path) -> JudgedRun:
    """Read the judged run of a folder.

    Raises:
        CheckpointError: the folder holds none, or its set or metrics are damaged.
    """
    if reason := _why_unjudged(folder):
        raise CheckpointError(reason)
    try:
        set_record = read_json(folder / SET, version=SET_VERSION) if (folder / SET).is_file() else {}
        if not isinstance(set_record.get("steps", 0), int) or damage_of(set_record.get("settings") or {}):
            raise CheckpointError(f"{SET} is damaged")
    except VersionError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {advice(folder)}") from error
    options = read_options(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return JudgedRun(folder, read_metrics(folder / METRICS), set_record, options)


def _why_unjudged(folder: Path) -> str:
    """Return why a folder holds no judged run and what to do, in words; empty if it holds one."""
    if (folder / METRICS).is_file():
        return ""
    if is_finished(folder) and not (folder / CONFIG).is_file():
        return "not judged; made in Python, it is judged there: evaluate, then save_evaluation(..., folder)"
    if is_finished(folder):
        return how_to_judge(folder)
    if ending := how_to_finish(folder):
        return f"unfinished; {ending}"
    return NO_RUN


def read_runs(runs: Sequence[JudgedRun], judge: str | None = None, metric: str | None = None) -> list[Repetitions]:
    """Return the scores of judged runs, repetitions together, ordered by data, method and budget.

    Args:
        runs: see :func:`judged_runs`.
        judge: whose scores; by default each run's first judge.
        metric: which score; by default the judge's first.
    Raises:
        ConfigError: no run has such a judge or metric.
    """
    groups = _group_repetitions(runs, judge, metric)
    if not groups:
        present = {f"{entry['metric']} by {entry['judge']}" for run in runs for entry in run.metrics["results"]}
        raise ConfigError(
            f"none of the runs has scores of {metric or 'any metric'} by {judge or 'any judge'} (there are: "
            f"{', '.join(sorted(present)) or 'none'})"
        )
    results = [_summarise([_best_judged(runs) for runs in seeds.values()]) for seeds in groups]
    return sorted(results, key=lambda row: (row.data, row.method, row.budget, row.name))


def judges_of(runs: Sequence[JudgedRun], wanted: Sequence[str] | str | None) -> list[str | None]:
    """Return the names of the requested judges; None stands for each run's first judge.

    Args:
        runs: whose judges ``all`` stands for.
        wanted: names, comma-separated names, or None.
    Raises:
        ConfigError: ``wanted`` has something else than names.
    """
    names = split_names(wanted) if isinstance(wanted, str) else () if wanted is None else wanted
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"judges are names, got {wanted!r}")
    if [*map(canonical, names)] != ["all"]:
        return [*names] or [None]
    return [*dict.fromkeys(entry["judge"] for run in runs for entry in run.metrics["results"])]


def repeated(runs: Sequence[JudgedRun], judge: str | None, metric: str | None) -> dict[Path, Path]:
    """Return the folders of runs that :func:`read_runs` leaves out, with that of the run of the same seed it keeps."""
    groups = _group_repetitions(runs, judge, metric)
    pairs = [(run.folder, _best_judged(runs).folder) for seeds in groups for runs in seeds.values() for run in runs]
    return {folder: kept for folder, kept in pairs if folder != kept}


def _best_judged(runs: Sequence[JudgedRun]) -> JudgedRun:
    """Return the run to keep among those of one seed: the first of those with most baselines."""
    return max(runs, key=lambda run: len(run.metrics["baselines"]))


def _group_repetitions(
    runs: Sequence[JudgedRun], judge: str | None, metric: str | None
) -> list[dict[str, list[JudgedRun]]]:
    """Return the runs with the requested scores in groups of repetitions, each a dict by what tells these apart."""
    groups: dict[str, list[JudgedRun]] = {}
    for run in runs:
        if (entry := _find_entry(run.metrics, judge, metric)) is not None:
            scored = run._replace(entry=entry)
            groups.setdefault(scored.identity(), []).append(scored)
    alike = [together for runs in groups.values() for together in _group_by_data_set(runs)]
    return [_group_by(together, lambda run: run.repetition) for together in alike]


def _group_by_data_set(runs: Sequence[JudgedRun]) -> list[list[JudgedRun]]:
    """Return runs in groups of one data set each.

    ``--seed`` may move which samples are held out. So runs of the command line whose data differ are still of one data
    set if each seed has its own data; further data of the same seed are another set. If several seeds share data, the
    seed does not move them, and other data are another set. Runs made in Python are of one set only if their data are
    equal, since other data may have the same name there.
    """
    data_of = _data_key(runs)
    by_data = _group_by(runs, data_of)
    in_python = any(not run.options for run in runs)
    if in_python or any(len({run.seed for run in alike}) > 1 for alike in by_data.values()):
        return list(by_data.values())
    first = {seed: data_of(alike[0]) for seed, alike in _group_by(runs, lambda run: run.seed).items()}
    together = [run for run in runs if data_of(run) == first[run.seed]]
    others = [run for run in runs if data_of(run) != first[run.seed]]
    return [together, *(_group_by_data_set(others) if others else [])]


def _data_key(runs: Sequence[JudgedRun]) -> Callable[[JudgedRun], str]:
    """Return a key function for the data of runs: those distilled from and, if all runs record them, tested on."""
    if any(run.tested_on is None for run in runs):
        return lambda run: run.fingerprint
    return lambda run: f"{run.fingerprint} {run.tested_on}"


def _group_by(runs: Sequence[JudgedRun], key: Callable[[JudgedRun], str]) -> dict[str, list[JudgedRun]]:
    """Return runs by a key, in their order."""
    groups: dict[str, list[JudgedRun]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _find_entry(metrics: dict[str, Any], judge: str | None, metric: str | None) -> dict[str, Any] | None:
    """Return a run's first result by a judge and a metric; None stands for any."""
    wanted = {kind: canonical(name) for kind, name in (("judge", judge), ("metric", metric)) if name is not None}
    fitting = (
        entry for entry in metrics["results"] if all(canonical(entry[kind]) == name for kind, name in wanted.items())
    )
    return next(fitting, None)


def _summarise(runs: Sequence[JudgedRun]) -> Repetitions:
    """Return repetitions as one result; what all share is read from the first run."""
    first = runs[0]
    metrics, entry = first.metrics, first.entry
    baselines, networks = _baselines(runs), min(run.entry["n"] for run in runs)
    notes = dict.fromkeys(note for run in runs for note in run.entry.get("notes") or ())
    for name, by_seed in baselines.items():
        own_notes = [note for baseline in by_seed.values() for note in baseline.get("notes") or ()]
        notes |= dict.fromkeys(f"{name}: {note}" for note in own_notes if note not in notes)
        if (with_it := sum(run.seed in by_seed for run in runs)) < len(runs):
            notes[f"{name}: of {with_it} of the {len(runs)} runs"] = None
        if (judged := min(baseline["n"] for baseline in by_seed.values())) != networks:
            notes[f"{name}: over {judged} network(s), the set's over {networks}"] = None
    unit = next(key for key in metrics["budget"] if key != "stored_bytes")
    distilled_here = [run for run in runs if not run.is_imported]
    return Repetitions(
        name=first.folder.name,
        data=first.data,
        method=metrics["method"],
        unit=unit,
        budget=metrics["budget"][unit],
        stored_bytes=metrics["budget"]["stored_bytes"],
        score=_score([run.entry for run in runs]),
        baselines={name: _score([*by_seed.values()]) for name, by_seed in baselines.items()},
        seconds=tuple(run.metrics["seconds"] for run in distilled_here),
        judge=judge_in_words(entry),
        metric=entry["metric"],
        networks=networks,
        steps=tuple(run.set_record["steps"] for run in distilled_here if "steps" in run.set_record),
        options=first.options_in_words() if first.options else None,
        settings=first.settings_in_words() if first.settings else None,
        fingerprint=first.fingerprint,
        tested_on=first.tested_on,
        judge_network=first.judge_network,
        moved=len(set(map(_data_key(runs), runs))) > 1,
        notes=tuple(notes),
        paces=_paces([run.metrics for run in runs]),
        folders=tuple(run.folder for run in runs),
        **{name: str(first.set_record.get(name) or "") for name in RECORDED},
    )


def _baselines(runs: Sequence[JudgedRun]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the entries of baselines by the runs' judge and metric, by name and by the seed that chose them."""
    judged = (runs[0].entry["judge"], runs[0].entry["metric"])
    baselines: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for name, entries in run.metrics["baselines"].items():
            for baseline in entries:
                if (baseline["judge"], baseline["metric"]) == judged:
                    baselines.setdefault(name, {}).setdefault(run.seed, baseline)
    return baselines


def _paces(metrics: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return the seconds of a step of each run; empty if a run has no steps."""
    paces = [document[PACE] for document in metrics if is_number(document.get(PACE))]
    return tuple(paces) if len(paces) == len(metrics) else ()


def _score(entries: Sequence[Mapping[str, Any]]) -> Score:
    """Return the score of runs from their entries, one of each run."""
    has_deviation = len(entries) == 1 and entries[0]["n"] > 1
    return Score(tuple(entry["mean"] for entry in entries), entries[0]["sd"] if has_deviation else None)
