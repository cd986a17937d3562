"""Finished runs side by side: a table, and accuracy against the budget."""

import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdistill.config import read_settings
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.figures import literal, save_figure
from mmdistill.judged_run import RECORDED, JudgedRun
from mmdistill.metrics import judge_in_words, read_metrics
from mmdistill.run_folder import CONFIG, METRICS, SET, how_to_finish, is_finished
from mmdistill.store import read_json

NO_RUN = "no run"
LEGEND = "percent on untouched test data; +/- is the deviation over runs where there are several, else over networks"
"""What the numbers of :func:`table` are."""


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
        values: the judge's mean in each run, fractions.
        sd: over the networks of a single run, of which nothing else is known; None where it has but one.
        baselines: by name, the mean of each run that judged them.
        seconds: to distil, of each run.
        judged: the metric and the judge, in words, with what the user set of judging.
        parameterization: how samples are stored; empty where the set does not say it, as for the next two.
        network: what was distilled with.
        label: the kind of labels.
        steps: updates of each run; empty where its set is not there.
        options: settings and other options of the first run.
        moved: whether the runs' data differ, each seed having its own.
        fingerprint: of the first run's data; empty where the set does not say it.
    """

    name: str
    data: str
    method: str
    unit: str
    budget: int
    stored_bytes: int
    values: tuple[float, ...]
    sd: float | None
    baselines: dict[str, tuple[float, ...]]
    seconds: tuple[float, ...]
    judged: str
    parameterization: str = ""
    network: str = ""
    label: str = ""
    steps: tuple[int, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    moved: bool = False
    fingerprint: str = ""

    @property
    def mean(self) -> float:
        """The mean over runs, a fraction."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The deviation over runs, or over the networks of the only run; None for one network."""
        return statistics.stdev(self.values) if len(self.values) > 1 else self.sd


def judged_runs(folders: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return those folders that hold a judged run, and of the others why they do not, in words.

    A folder that is no run, but holds some, stands for these.

    Raises:
        CheckpointError: a path that is not there.
        ConfigError: there is no judged run.
    """
    if absent := [str(folder) for folder in folders if not folder.exists()]:
        raise CheckpointError(f"no such folder: {', '.join(absent)}")
    folders = [run for folder in folders for run in _runs_in(folder)]
    skipped = {folder: reason for folder in folders if (reason := _unjudged(folder) or _damage(folder))}
    judged = [folder for folder in folders if folder not in skipped]
    if not judged:
        reasons = "; ".join(f"{folder} ({reason})" for folder, reason in skipped.items())
        raise ConfigError(f"no judged run to compare: {reasons}")
    return judged, skipped


def _runs_in(folder: Path) -> list[Path]:
    """Return the runs in a folder, by name; itself where it is a run or holds none."""
    if _unjudged(folder) != NO_RUN or not folder.is_dir():
        return [folder]
    return sorted(inner for inner in folder.iterdir() if _unjudged(inner) != NO_RUN) or [folder]


def _damage(folder: Path) -> str:
    """Return what is damaged of a judged run, in words; nothing where all can be read."""
    try:
        read_metrics(folder / METRICS)
        made = _distilled(folder)
        _options(folder)
    except CheckpointError as error:
        return str(error)
    fits = isinstance(made.get("steps", 0), int) and isinstance(made.get("settings") or {}, Mapping)
    return "" if fits else "distilled.json is damaged"


def _unjudged(folder: Path) -> str:
    """Return why a folder holds no judged run and what to do, in words; nothing where it holds one."""
    if (folder / METRICS).is_file():
        return ""
    if is_finished(folder) and not (folder / CONFIG).is_file():
        return "not judged; made in Python, it is judged there: docs/formats.md shows how"
    if is_finished(folder):
        return f"not judged; that does: mmdistill evaluate {shlex.quote(str(folder))}"
    if ending := how_to_finish(folder):
        return f"unfinished; {ending}"
    return NO_RUN


def read_runs(folders: Sequence[Path], judge: str | None = None, metric: str | None = None) -> list[Repetitions]:
    """Return judged runs, repetitions together, ordered by data, method and budget.

    Args:
        folders: run folders.
        judge: whose scores; by default each run's first judge.
        metric: which score; by default the judge's first.
    Raises:
        CheckpointError: a folder without judged results.
        ConfigError: no run has such a judge or metric.
    """
    groups = _repetitions(folders, judge, metric)
    if not groups:
        known = {f"{entry['metric']} by {entry['judge']}" for f in folders for entry in _read(f)["results"]}
        raise ConfigError(
            f"none of the runs has scores of {metric or 'any metric'} by {judge or 'any judge'} (there are: "
            f"{', '.join(sorted(known)) or 'none'})"
        )
    found = [_together([runs[0] for runs in seeds.values()]) for seeds in groups]
    return sorted(found, key=lambda row: (row.data, row.method, row.budget, row.name))


def repeated(folders: Sequence[Path], judge: str | None, metric: str | None) -> dict[Path, Path]:
    """Return the runs that :func:`read_runs` leaves out, since another one has their seed, with that one."""
    groups = _repetitions(folders, judge, metric)
    return {run.folder: runs[0].folder for seeds in groups for runs in seeds.values() for run in runs[1:]}


def _repetitions(folders: Sequence[Path], judge: str | None, metric: str | None) -> list[dict[str, list[JudgedRun]]]:
    """Return the runs that have the scores asked for, repetitions of one another together, by seed."""
    groups: dict[str, list[JudgedRun]] = {}
    for folder in {folder.resolve(): folder for folder in folders}.values():  # one that is given twice counts once
        metrics = _read(folder)
        entry = _chosen(metrics, judge, metric)
        if entry is not None:
            run = JudgedRun(folder, metrics, entry, _distilled(folder), _options(folder))
            groups.setdefault(run.identity(), []).append(run)
    return [_by(alike, lambda run: run.seed) for runs in groups.values() for alike in _of_one_data_set(runs)]


def _of_one_data_set(runs: Sequence[JudgedRun]) -> list[list[JudgedRun]]:
    """Return runs in groups of one data set each.

    A seed may move what is held out, so runs whose data differ are of one set where each seed has its own data. Where
    seeds share data, seed and data are independent, and other data are another set; and so are further data of a seed.
    """
    samples = _samples_of(runs)
    by_data = _by(runs, samples)
    if any(len({run.seed for run in alike}) > 1 for alike in by_data.values()):
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


def without_scores(folders: Sequence[Path], judge: str | None, metric: str | None) -> list[Path]:
    """Return the run folders that :func:`read_runs` leaves out, since they lack the scores asked for."""
    return [folder for folder in folders if _chosen(_read(folder), judge, metric) is None]


def _chosen(metrics: dict[str, Any], judge: str | None, metric: str | None) -> dict[str, Any] | None:
    """Return the first of a run's results that is of a judge and a metric, where these are given."""
    fitting = (
        entry
        for entry in metrics["results"]
        if (judge is None or entry["judge"] == judge) and (metric is None or entry["metric"] == metric)
    )
    return next(fitting, None)


def _read(folder: Path) -> dict[str, Any]:
    if reason := _unjudged(folder):
        raise CheckpointError(f"{folder} holds no metrics.json ({reason})")
    return read_metrics(folder / METRICS)


def _options(folder: Path) -> dict[str, Any]:
    """Return a run's configuration; nothing of a run that was made in Python.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_settings(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _distilled(folder: Path) -> dict[str, Any]:
    """Return what a run's set says of itself; nothing where it is not there."""
    return read_json(folder / SET) if (folder / SET).is_file() else {}


def _together(runs: Sequence[JudgedRun]) -> Repetitions:
    first = runs[0]
    metrics, entry = first.metrics, first.entry
    baselines: dict[str, list[float]] = {}
    for run in runs:
        for name, entries in run.metrics["baselines"].items():
            same = [e for e in entries if (e["judge"], e["metric"]) == (run.entry["judge"], run.entry["metric"])]
            baselines.setdefault(name, []).extend(e["mean"] for e in same)
    unit = next(key for key in metrics["budget"] if key != "stored_bytes")
    return Repetitions(
        name=first.folder.name,
        data=metrics["data"],
        method=metrics["method"],
        unit=unit,
        budget=metrics["budget"][unit],
        stored_bytes=metrics["budget"]["stored_bytes"],
        values=tuple(run.entry["mean"] for run in runs),
        sd=entry["sd"] if entry["n"] > 1 else None,
        baselines={name: tuple(values) for name, values in baselines.items() if values},
        seconds=tuple(run.metrics["seconds"] for run in runs),
        judged=f"{entry['metric']} by {judge_in_words(entry)}",
        steps=tuple(run.made["steps"] for run in runs if "steps" in run.made),
        options=first.said(),
        fingerprint=first.fingerprint,
        moved=len(set(map(_samples_of(runs), runs))) > 1,
        **{name: str(first.made.get(name) or "") for name in RECORDED},
    )


def titles(rows: Sequence[Repetitions]) -> list[str]:
    """Return what each row is called: its method, and what it has that others of this method and data have not.

    Rows that differ by nothing but data of one name have the beginning of the data's fingerprint.
    """

    def title(row: Repetitions) -> str:
        alike = [other for other in rows if (other.data, other.method) == (row.data, row.method)]
        differing = [name for name in RECORDED if len({getattr(other, name) for other in alike}) > 1]
        words = [getattr(row, name) for name in differing]
        words += [f"{name.replace('_', '-')} {row.options[name]}" for name in _differing(alike) if name in row.options]
        own = ", ".join(filter(None, words))
        return f"{row.method} ({own})" if own else row.method

    found = [title(row) for row in rows]
    seen = [(row.data, row.unit, row.budget, row.judged, name) for row, name in zip(rows, found, strict=True)]
    return [
        f"{name} (data {row.fingerprint[:8]})" if seen.count(key) > 1 and row.fingerprint else name
        for row, name, key in zip(rows, found, seen, strict=True)
    ]


def _differing(rows: Sequence[Repetitions]) -> list[str]:
    """Return the options by which rows of one budget differ, in their order."""
    budgets: dict[tuple[str, int], list[Repetitions]] = {}
    for row in rows:
        budgets.setdefault((row.unit, row.budget), []).append(row)
    names = dict.fromkeys(name for row in rows for name in row.options)
    return [
        name for name in names if any(len({row.options.get(name) for row in alike}) > 1 for alike in budgets.values())
    ]


def table(rows: Sequence[Repetitions]) -> list[list[str]]:
    """Return the comparison in percent, header first; :data:`LEGEND` says what its numbers are."""
    names = list(dict.fromkeys(name for row in rows for name in row.baselines))
    head = ["data", "method", "budget", "bytes", "judged", "distilled", *names, "runs", "steps", "seconds", "folder"]
    lines = [head]
    for row, title in zip(rows, titles(rows), strict=True):
        deviation = "" if row.deviation is None else f" +/- {100 * row.deviation:.1f}"
        means = {name: f"{100 * statistics.fmean(values):.1f}" for name, values in row.baselines.items()}
        lines.append(
            [
                row.data,
                title,
                f"{row.unit} {row.budget}",
                f"{row.stored_bytes:,}",
                row.judged,
                f"{100 * row.mean:.1f}{deviation}",
                *(means.get(name, "-") for name in names),
                str(len(row.values)),
                " to ".join(f"{steps:,}" for steps in sorted({min(row.steps), max(row.steps)})) if row.steps else "-",
                f"{statistics.fmean(row.seconds):.0f}",
                row.name,
            ]
        )
    return lines


def draw_budgets(rows: Sequence[Repetitions], folder: Path) -> list[Path]:
    """Draw each data set's scores against the budget, baselines dashed; returns the pictures.

    A line joins the means of the budgets of one method, stored, distilled with, labelled and judged alike.
    """
    names: dict[str, str] = {}
    for data in dict.fromkeys(row.data for row in rows):
        stem, alike = Path(data).stem, sum(Path(other).stem == Path(data).stem for other in names)
        names[data] = f"{stem}-{alike + 1}" if alike else stem
    return [
        _draw([row for row in rows if row.data == data], folder / f"{name}-budgets.png") for data, name in names.items()
    ]


def _means(found: Sequence[tuple[int, Sequence[float]]]) -> tuple[list[int], list[float]]:
    """Return the budgets in order, and the mean in percent of what was found for each."""
    seen: dict[int, list[float]] = {}
    for budget, values in found:
        seen.setdefault(budget, []).extend(values)
    points = sorted((budget, 100 * statistics.fmean(values)) for budget, values in seen.items() if values)
    return [budget for budget, _ in points], [mean for _, mean in points]


def _draw(rows: Sequence[Repetitions], target: Path) -> Path:
    from matplotlib.figure import Figure  # here, since importing it takes half a second

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    several = len({row.judged for row in rows}) > 1
    names = [f"{title}, {row.judged}" if several else title for row, title in zip(rows, titles(rows), strict=True)]
    for number, name in enumerate(dict.fromkeys(names)):
        own = [row for row, other in zip(rows, names, strict=True) if other == name]
        axes.errorbar(
            [row.budget for row in own],
            [100 * row.mean for row in own],
            [100 * (row.deviation or 0.0) for row in own],
            marker="o",
            capsize=3,
            linestyle="none",
            color=f"C{number}",
            label=literal(name),
        )
        axes.plot(*_means([(row.budget, (row.mean,)) for row in own]), color=f"C{number}")
    for name in dict.fromkeys(name for row in rows for name in row.baselines):
        budgets, means = _means([(row.budget, row.baselines.get(name, ())) for row in rows])
        axes.plot(budgets, means, linestyle="--", marker=".", color="grey", linewidth=1)
        axes.annotate(
            name, (budgets[-1], means[-1]), textcoords="offset points", xytext=(6, -3), fontsize=8, color="grey"
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted({row.budget for row in rows}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_xlabel(rows[0].unit)
    axes.set_ylabel("percent" if several else literal(f"{rows[0].judged}, percent"))
    axes.set_title(literal(Path(rows[0].data).stem))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return save_figure(figure, target)
