"""Judged runs together: which of them are repetitions of one another, and what these scored."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdistill.config import read_options
from mmdistill.distilled import SET_VERSION, is_number
from mmdistill.errors import CheckpointError, ConfigError, VersionError
from mmdistill.metrics import judge_in_words, read_metrics
from mmdistill.names import as_argument, canonical, split_names
from mmdistill.runs.damaged import advice
from mmdistill.runs.folder import CONFIG, METRICS, SET, is_finished
from mmdistill.runs.how_to_continue import how_to_finish
from mmdistill.runs.judged import RECORDED, JudgedRun
from mmdistill.settings import damage_of
from mmdistill.store import read_json

NO_RUN = "no run"
PACE = "seconds_per_step"
"""Under which metrics hold it."""


@dataclass(frozen=True)
class Score:
    """What runs scored by one judge and metric.

    Args:
        values: the mean of each run, fractions.
        sd: over the networks of a single run, of which nothing else is known; None where it has but one.
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
    """Runs that differ by nothing but their seeds, each seed once, under one judge and metric.

    Args:
        name: the folder of the first.
        data: the data set.
        method: the method.
        unit: of the budget: ipc, nodes or users.
        budget: how many.
        stored_bytes: what the set takes.
        score: of the sets.
        baselines: by name, of those runs that judged them.
        seconds: to distil, of each run that was not imported, as the steps.
        judge: who judged, with what the user set of judging.
        metric: what is scored.
        networks: that each run's mean is over, the fewest of any run.
        parameterization: how samples are stored; empty where the set does not say it, as for the next two.
        network: what was distilled with.
        label: the kind of labels.
        steps: updates of each run; empty where its set is not there.
        options: of the first run, in words, those that no setting tells; None where it records none.
        settings: of the first run, in words; None where it records none.
        moved: whether the runs' data differ, each seed having its own.
        fingerprint: of the first run's data; empty where the set does not say it.
        notes: what readers of the runs' scores must know.
        paces: seconds of a step, of each run; empty where one has no steps.
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
    notes: tuple[str, ...] = ()
    paces: tuple[float, ...] = ()
    folders: tuple[Path, ...] = ()

    @property
    def judged(self) -> str:
        """The metric and the judge, in words."""
        return f"{self.metric} by {self.judge}"


def judged_runs(folders: Sequence[Path]) -> tuple[list[JudgedRun], dict[Path, str]]:
    """Return the judged runs in folders, each once, and of the other folders why they hold none, in words.

    A folder that is no run, but holds some, stands for these.

    Raises:
        CheckpointError: a path that is not there.
        ConfigError: there is no judged run.
    """
    if absent := [str(folder) for folder in folders if not folder.exists()]:
        raise CheckpointError(f"no such folder: {', '.join(absent)}")
    runs: list[JudgedRun] = []
    skipped: dict[Path, str] = {}
    found = [run for folder in folders for run in runs_in(folder)]
    for folder in {run.resolve(): run for run in found}.values():
        try:
            runs.append(_read(folder))
        except CheckpointError as error:
            skipped[folder] = str(error)
    if not runs:
        reasons = "; ".join(f"{folder} ({reason})" for folder, reason in skipped.items())
        raise ConfigError(f"no judged run to compare: {reasons}")
    return runs, skipped


def runs_in(folder: Path) -> list[Path]:
    """Return the runs in a folder, by name; itself where it is a run or holds none."""
    if _unjudged(folder) != NO_RUN or not folder.is_dir():
        return [folder]
    return sorted(inner for inner in folder.iterdir() if _unjudged(inner) != NO_RUN) or [folder]


def _read(folder: Path) -> JudgedRun:
    """Return what a folder holds of a judged run.

    Raises:
        CheckpointError: it holds none, or a damaged one.
    """
    if reason := _unjudged(folder):
        raise CheckpointError(reason)
    try:
        made = read_json(folder / SET, version=SET_VERSION) if (folder / SET).is_file() else {}
        if not isinstance(made.get("steps", 0), int) or damage_of(made.get("settings") or {}):
            raise CheckpointError(f"{SET} is damaged")
    except VersionError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {advice(folder)}") from error
    options = read_options(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return JudgedRun(folder, read_metrics(folder / METRICS), made, options)


def _unjudged(folder: Path) -> str:
    """Return why a folder holds no judged run and what to do, in words; nothing where it holds one."""
    if (folder / METRICS).is_file():
        return ""
    if is_finished(folder) and not (folder / CONFIG).is_file():
        return "not judged; made in Python, it is judged there: evaluate, then save_evaluation(..., folder)"
    if is_finished(folder):
        return f"not judged; that does: mmdistill evaluate {as_argument(folder)}"
    if ending := how_to_finish(folder):
        return f"unfinished; {ending}"
    return NO_RUN


def read_runs(runs: Sequence[JudgedRun], judge: str | None = None, metric: str | None = None) -> list[Repetitions]:
    """Return judged runs, repetitions together, ordered by data, method and budget.

    Args:
        runs: see :func:`judged_runs`.
        judge: whose scores; by default each run's first judge.
        metric: which score; by default the judge's first.
    Raises:
        ConfigError: no run has such a judge or metric.
    """
    groups = _repetitions(runs, judge, metric)
    if not groups:
        known = {f"{entry['metric']} by {entry['judge']}" for run in runs for entry in run.metrics["results"]}
        raise ConfigError(
            f"none of the runs has scores of {metric or 'any metric'} by {judge or 'any judge'} (there are: "
            f"{', '.join(sorted(known)) or 'none'})"
        )
    found = [_together([_kept(runs) for runs in seeds.values()]) for seeds in groups]
    return sorted(found, key=lambda row: (row.data, row.method, row.budget, row.name))


def judges_of(runs: Sequence[JudgedRun], wanted: Sequence[str] | str | None) -> list[str | None]:
    """Return the judges that are wanted, names or comma-separated, or ``all`` whom runs have; None: each run's first.

    Raises:
        ConfigError: something else than names.
    """
    names = split_names(wanted) if isinstance(wanted, str) else () if wanted is None else wanted
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"judges are names, got {wanted!r}")
    if [*map(canonical, names)] != ["all"]:
        return [*names] or [None]
    return [*dict.fromkeys(entry["judge"] for run in runs for entry in run.metrics["results"])]


def repeated(runs: Sequence[JudgedRun], judge: str | None, metric: str | None) -> dict[Path, Path]:
    """Return the runs that :func:`read_runs` leaves out, since another one has their seed, with that one."""
    groups = _repetitions(runs, judge, metric)
    twice = [(run.folder, _kept(runs).folder) for seeds in groups for runs in seeds.values() for run in runs]
    return {folder: kept for folder, kept in twice if folder != kept}


def _kept(runs: Sequence[JudgedRun]) -> JudgedRun:
    """Return that run of one seed which counts: the one with most baselines, the first of these."""
    return max(runs, key=lambda run: len(run.metrics["baselines"]))


def _repetitions(runs: Sequence[JudgedRun], judge: str | None, metric: str | None) -> list[dict[str, list[JudgedRun]]]:
    """Return the runs that have the scores asked for, repetitions of one another together, by seed."""
    groups: dict[str, list[JudgedRun]] = {}
    for run in runs:
        if (entry := _chosen(run.metrics, judge, metric)) is not None:
            own = run._replace(entry=entry)
            groups.setdefault(own.identity(), []).append(own)
    return [_by(alike, lambda run: run.seed) for runs in groups.values() for alike in _of_one_data_set(runs)]


def _of_one_data_set(runs: Sequence[JudgedRun]) -> list[list[JudgedRun]]:
    """Return runs in groups of one data set each.

    ``--seed`` may move what is held out, so runs of commands whose data differ are of one set where each seed has its
    own data. Where seeds share data, seed and data are independent, and other data are another set; and so are further
    data of a seed, and any others of runs that were made in Python, where data have a seed of their own and may be
    called alike.
    """
    samples = _samples_of(runs)
    by_data = _by(runs, samples)
    in_python = any(not run.options for run in runs)
    if in_python or any(len({run.seed for run in alike}) > 1 for alike in by_data.values()):
        return list(by_data.values())
    first = {seed: samples(alike[0]) for seed, alike in _by(runs, lambda run: run.seed).items()}
    together = [run for run in runs if samples(run) == first[run.seed]]
    others = [run for run in runs if samples(run) != first[run.seed]]
    return [together, *(_of_one_data_set(others) if others else [])]


def _samples_of(runs: Sequence[JudgedRun]) -> Callable[[JudgedRun], str]:
    """Return what tells the data of runs apart: what they were distilled from and, where all say it, tested on."""
    if any(run.tested_on is None for run in runs):
        return lambda run: run.fingerprint
    return lambda run: f"{run.fingerprint} {run.tested_on}"


def _by(runs: Sequence[JudgedRun], key: Callable[[JudgedRun], str]) -> dict[str, list[JudgedRun]]:
    """Return runs by a key, in their order."""
    found: dict[str, list[JudgedRun]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def _chosen(metrics: dict[str, Any], judge: str | None, metric: str | None) -> dict[str, Any] | None:
    """Return the first of a run's results that is of a judge and a metric, where these are given."""
    wanted = {kind: canonical(name) for kind, name in (("judge", judge), ("metric", metric)) if name is not None}
    fitting = (
        entry for entry in metrics["results"] if all(canonical(entry[kind]) == name for kind, name in wanted.items())
    )
    return next(fitting, None)


def _together(runs: Sequence[JudgedRun]) -> Repetitions:
    first = runs[0]
    metrics, entry = first.metrics, first.entry
    baselines: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for name, entries in run.metrics["baselines"].items():
            same = [e for e in entries if (e["judge"], e["metric"]) == (run.entry["judge"], run.entry["metric"])]
            baselines.setdefault(name, []).extend(same)
    notes = dict.fromkeys(note for run in runs for note in run.entry.get("notes") or ())
    for name, entries in baselines.items():
        beside = [note for entry in entries for note in entry.get("notes") or ()]
        notes |= dict.fromkeys(f"{name}: {note}" for note in beside if note not in notes)
        if 0 < len(entries) < len(runs):
            notes[f"{name}: of {len(entries)} of the {len(runs)} runs"] = None
    unit = next(key for key in metrics["budget"] if key != "stored_bytes")
    made_here = [run for run in runs if not run.made.get("origin")]
    return Repetitions(
        name=first.folder.name,
        data=metrics["data"],
        method=metrics["method"],
        unit=unit,
        budget=metrics["budget"][unit],
        stored_bytes=metrics["budget"]["stored_bytes"],
        score=_score([run.entry for run in runs]),
        baselines={name: _score(entries) for name, entries in baselines.items() if entries},
        seconds=tuple(run.metrics["seconds"] for run in made_here),
        judge=judge_in_words(entry),
        metric=entry["metric"],
        networks=min(run.entry["n"] for run in runs),
        steps=tuple(run.made["steps"] for run in made_here if "steps" in run.made),
        options=first.options_said() if first.options else None,
        settings=first.settings_said() if first.settings else None,
        fingerprint=first.fingerprint,
        moved=len(set(map(_samples_of(runs), runs))) > 1,
        notes=tuple(notes),
        paces=_paces([run.metrics for run in runs]),
        folders=tuple(run.folder for run in runs),
        **{name: str(first.made.get(name) or "") for name in RECORDED},
    )


def _paces(metrics: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return the seconds of a step of each run, or nothing where one has no steps."""
    found = [run[PACE] for run in metrics if is_number(run.get(PACE))]
    return tuple(found) if len(found) == len(metrics) else ()


def _score(entries: Sequence[Mapping[str, Any]]) -> Score:
    """Return what runs scored, from the entry of each."""
    only = entries[0] if len(entries) == 1 and entries[0]["n"] > 1 else None
    return Score(tuple(entry["mean"] for entry in entries), None if only is None else only["sd"])
