"""Results of judging: one entry for each judge and metric, for the distilled set and for its baselines."""

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING

from mmdistill.checks import are_numbers
from mmdistill.classification import is_of_samples
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.names import brief_repr
from mmdistill.reporting.tabular import aligned, html_table
from mmdistill.task import Scores

MOST_CLASSES = 50
"""Up to this number of classes a report shows the accuracy of each; beyond it, of the ``LOWEST`` only."""
LOWEST = 10
"""The number of classes with the lowest accuracies that a report shows."""

if TYPE_CHECKING:  # importing it takes a quarter of a second
    import pandas as pd


@dataclass(frozen=True)
class Entry:
    """One number of ``metrics.json``: mean and standard deviation over n independently drawn judges, as fractions.

    Args:
        judge: the judge's title.
        metric: ``accuracy``, ``ndcg@10``, ...
        mean: over the runs.
        sd: sample standard deviation over the runs, 0 for a single one.
        n: runs.
        notes: warnings that belong to the number.
        by_class: beside an accuracy, each class's by name, a mean over the runs; empty if not known.
        said: whether ``str`` names the judge; not part of the entry's value.
    """

    judge: str
    metric: str
    mean: float
    sd: float
    n: int
    notes: tuple[str, ...] = ()
    by_class: Mapping[str, float] = field(default_factory=dict, hash=False)
    said: bool = field(default=False, repr=False, compare=False)

    def plain(self) -> dict[str, object]:
        """Return the entry as ``metrics.json`` holds it; notes and classes only where there are any."""
        values = asdict(self) | {"notes": list(self.notes)}
        return {name: value for name, value in values.items() if name != "said" and value not in ([], {})}

    def __str__(self) -> str:
        spread = f" +/- {100 * self.sd:.1f}" if self.n > 1 else ""
        return f"{100 * self.mean:.1f}{spread}{f' by {self.judge}' if self.said else ''}"


class Baselines(dict[str, list[Entry]]):
    """Entries of baselines by name; the error for a missing one says why it could not be judged.

    Args:
        entries: by name.
        failures: of judging, as :class:`Evaluation` has them.
    """

    def __init__(
        self,
        entries: Mapping[str, list[Entry]] | Iterable[tuple[str, list[Entry]]] = (),
        failures: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(entries)
        self.failures = failures or {}

    def __missing__(self, name: str) -> list[Entry]:
        """Refuse a missing name.

        Raises:
            KeyError: always; with the failures of a baseline of this name.
        """
        title = f"the {name} baseline"
        reasons = [
            _named(failed, reason)
            for failed, reason in self.failures.items()
            if failed == title or failed.startswith(f"{title} by ")
        ]
        raise KeyError(f"{name} ({'; '.join(reasons)})" if reasons else name)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Results of one set with its baselines; printed as a table, in notebooks too.

    Args:
        results: of the distilled set.
        baselines: by name: ``random`` and ``herding`` real samples at equal count, the ``whole`` training set.
        seconds: of judging, all together.
        failures: judges and baselines that failed, with the reason.
        usual: the title of the task's default judge; empty if not known.
    """

    results: list[Entry]
    baselines: dict[str, list[Entry]] = field(default_factory=dict)
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    usual: str = ""

    def __post_init__(self) -> None:
        """Make the baselines a :class:`Baselines`, whose error says why one is missing."""
        object.__setattr__(self, "baselines", Baselines(self.baselines, self.failures))

    def headline(self) -> Entry:
        """Return the first judge's first metric, of the set or, if only baselines were judged, of the first baseline.

        Its text is mean and deviation in percent, and names the judge unless only the task's default one judged.

        Raises:
            ConfigError: nothing was judged.
        """
        shown = self._main_entries()
        if not shown:
            raise ConfigError("nothing was judged, so there is no score; see remarks() for what failed")
        return shown[0] if {entry.judge for entry in shown} == {self.usual} else replace(shown[0], said=True)

    def rows(self) -> list[list[str]]:
        """Return the results beside those of the baselines, in percent, as a table, header first."""
        sources = self._sources()
        columns = [{(entry.judge, entry.metric): entry for entry in entries} for entries in sources.values()]
        keys = dict.fromkeys((entry.judge, entry.metric) for entry in self._main_entries())
        body = [[*key, *(str(column[key]) if key in column else "-" for column in columns)] for key in keys]
        return [["judge", "metric", *sources], *body]

    def class_rows(self, judge: str = "", most: int | None = None) -> list[list[str]]:
        """Return the accuracy of each class beside those of the baselines, in percent, as a table, header first.

        Args:
            judge: the judge's title; by default the first that knows them.
            most: if there are more classes than this, only the :data:`LOWEST` with the lowest accuracies; None: all.
        Returns:
            A row for each class: its name, and means over the networks. Empty if no such judge knows them.
        """
        judge = judge or next((entry.judge for entry in self._main_entries() if entry.by_class), "")
        columns = {
            source: entry.by_class
            for source, entries in self._sources().items()
            for entry in entries
            if entry.judge == judge and entry.by_class
        }
        if not columns:
            return []
        classes = list(dict.fromkeys(name for column in columns.values() for name in column))
        if most is not None and len(classes) > most:
            first = next(iter(columns.values()))
            classes = sorted(classes, key=lambda name: first.get(name, math.inf))[:LOWEST]
        body = [
            [name, *(f"{100 * column[name]:.1f}" if name in column else "-" for column in columns.values())]
            for name in classes
        ]
        return [["class", *columns], *body]

    def units(self) -> str:
        """Describe the unit of the numbers in :meth:`rows`."""
        counts = sorted({entry.n for entry in self._main_entries()})
        extremes = " to ".join(str(count) for count in dict.fromkeys((*counts[:1], *counts[-1:])))
        return "percent, " + ("1 network" if counts == [1] else f"mean +/- sd of {extremes or 'no'} networks")

    def remarks(self) -> list[str]:
        """Return the notes of the results and the failures, a line each."""
        failed = [f"failed: {_named(name, reason)}" for name, reason in self.failures.items()]
        return [*(f"note: {note}" for note in self.notes()), *failed]

    def notes(self) -> list[str]:
        """Return the notes that readers of the numbers need, each once, behind the judges that have it.

        A note on a judge itself is not repeated for the baselines; a note on samples that a judge fails on is.
        """
        set_notes = {note for entry in self.results for note in entry.notes if not is_of_samples(note)}
        noted = [(entry.judge, entry.notes) for entry in self.results]
        for name, entries in self.baselines.items():
            noted += [
                (f"{name} by {e.judge}", tuple(note for note in e.notes if note not in set_notes)) for e in entries
            ]
        judges_by_note: dict[str, dict[str, None]] = {}
        for judge, notes in noted:
            for note in notes:
                judges_by_note.setdefault(note, {})[judge] = None
        return [f"{', '.join(judges)}: {note}" for note, judges in judges_by_note.items()]

    def frame(self) -> "pd.DataFrame":
        """Return all entries as rows of a data frame: samples, judge, metric, mean, sd and n.

        Scores are fractions; a single network has no sd (NaN).
        """
        import pandas as pd

        records = [
            (name, entry.judge, entry.metric, entry.mean, entry.sd if entry.n > 1 else math.nan, entry.n)
            for name, entries in self._sources().items()
            for entry in entries
        ]
        return pd.DataFrame.from_records(records, columns=["samples", "judge", "metric", "mean", "sd", "n"])

    def _sources(self) -> dict[str, list[Entry]]:
        """Return the entries of the set and of the baselines, by name."""
        return {"distilled": self.results, **self.baselines}

    def _main_entries(self) -> list[Entry]:
        """Return the entries whose judges and metrics are shown: the set's, or the baselines' if it was not judged."""
        return self.results or [entry for entries in self.baselines.values() for entry in entries]

    def __repr__(self) -> str:
        return "\n".join([f"Evaluation: {self.units()}", aligned(self.rows()), *self.remarks()])

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        remarks = [f"<p>{html.escape(remark)}</p>" for remark in self.remarks()]
        return "\n".join([f"<p>{self.units()}</p>", *html_table(self.rows()), *remarks])


def _named(name: str, reason: str) -> str:
    """Return a reason with the name of what failed in front, unless it begins with that already."""
    return reason if reason.startswith(f"{name} ") else f"{name}: {reason}"


def summarise(scores: Iterable[Scores], class_names: Sequence[str] = ()) -> list[Entry]:
    """Return one entry per judge and metric; classes without a name go by their index."""

    def entry(judged: Scores, metric: str, values: tuple[float, ...]) -> Entry:
        accuracies = judged.by_class if metric == "accuracy" else {}
        by_class = {
            class_names[index] if index < len(class_names) else str(index): statistics.fmean(runs)
            for index, runs in accuracies.items()
        }
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        return Entry(judged.judge, metric, statistics.fmean(values), sd, len(values), judged.notes, by_class)

    return [entry(judged, metric, values) for judged in scores for metric, values in judged.values.items()]


def checked_scores(scores: object, task: object) -> Scores:
    """Return the scores of a task's judge, once they are known to be fractions.

    Raises:
        ShapeError: something else; the message names the task.
    """
    owner = f"evaluate of {type(task).__name__}"
    if not isinstance(scores, Scores) or not isinstance(scores.values, Mapping) or not scores.values:
        raise ShapeError(f"{owner} must return Scores with a metric, and returned {brief_repr(scores)}")
    for metric, values in scores.values.items():
        if not are_numbers(values, Real) or not values:
            raise ShapeError(
                f"{owner} must give {metric} as a tuple of numbers, one for each network, and gave {brief_repr(values)}"
            )
        if any(value > 1 + 1e-5 for value in values):  # sums in float32 round
            raise ShapeError(
                f"{owner} must give {metric} as fractions (0.97, which is shown as 97.0), and gave {brief_repr(values)}"
            )
    return scores
