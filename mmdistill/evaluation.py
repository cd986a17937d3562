"""What judging gives: one entry for each judge and metric, of the distilled set and of its baselines."""

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
from mmdistill.reporting.tabular import aligned, html_table
from mmdistill.task import Scores

MOST_CLASSES = 50
"""Up to so many classes a report shows the accuracy of each; of more, of those that are hardest for the set."""
LOWEST = 10
"""How many these are."""

if TYPE_CHECKING:  # importing it takes a quarter of a second
    import pandas as pd


@dataclass(frozen=True)
class Entry:
    """One number of ``metrics.json``: mean and standard deviation over n independently drawn judges, as fractions.

    Args:
        judge: who judged.
        metric: ``accuracy``, ``ndcg@10``, ...
        mean: over the runs.
        sd: sample standard deviation over the runs, 0 for a single one.
        n: runs.
        notes: warnings that belong to the number.
        by_class: beside an accuracy, that of each class by its name, a mean over the runs; empty where nothing tells.
        said: whether ``str`` says who judged; no part of what the entry is.
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
        found = asdict(self) | {"notes": list(self.notes)}
        return {name: value for name, value in found.items() if name != "said" and value not in ([], {})}

    def __str__(self) -> str:
        spread = f" +/- {100 * self.sd:.1f}" if self.n > 1 else ""
        return f"{100 * self.mean:.1f}{spread}{f' by {self.judge}' if self.said else ''}"


class Baselines(dict[str, list[Entry]]):
    """Entries of baselines by name; one that could not be judged is missing, and the error that says so says why.

    Args:
        found: the entries.
        failures: of judging, as :class:`Evaluation` has them.
    """

    def __init__(
        self,
        found: Mapping[str, list[Entry]] | Iterable[tuple[str, list[Entry]]] = (),
        failures: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(found)
        self.failures = failures or {}

    def __missing__(self, name: str) -> list[Entry]:
        """Refuse a name.

        Raises:
            KeyError: always; with what failed of a baseline of this name.
        """
        own = f"the {name} baseline"
        reasons = [_named(one, why) for one, why in self.failures.items() if one == own or one.startswith(f"{own} by ")]
        raise KeyError(f"{name} ({'; '.join(reasons)})" if reasons else name)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Results of one set with its baselines; printed as a table, in notebooks too.

    Args:
        results: of the distilled set.
        baselines: by name: ``random`` and ``herding`` real samples at equal count, the ``whole`` training set.
        seconds: of judging, all together.
        failures: judges that could not judge and baselines that could not be had, with the reason.
        usual: the task's default judge, as scores call it; empty where that is not known.
    """

    results: list[Entry]
    baselines: dict[str, list[Entry]] = field(default_factory=dict)
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    usual: str = ""

    def __post_init__(self) -> None:
        """Let the baselines say why one is missing."""
        object.__setattr__(self, "baselines", Baselines(self.baselines, self.failures))

    def headline(self) -> Entry:
        """Return the first judge's first metric, of the set or, where baselines alone were judged, of the first one.

        Its text is mean and deviation in percent, and says the judge unless that is the task's default one, alone.

        Raises:
            ConfigError: nothing was judged.
        """
        shown = self._shown()
        if not shown:
            raise ConfigError("nothing was judged, so there is no score; see remarks() for what failed")
        return shown[0] if {entry.judge for entry in shown} == {self.usual} else replace(shown[0], said=True)

    def rows(self) -> list[list[str]]:
        """Return the results beside those of the baselines, in percent, as a table, header first."""
        sources = self._sources()
        tables = [{(entry.judge, entry.metric): entry for entry in entries} for entries in sources.values()]
        keys = dict.fromkeys((entry.judge, entry.metric) for entry in self._shown())
        body = [[*key, *(str(table[key]) if key in table else "-" for table in tables)] for key in keys]
        return [["judge", "metric", *sources], *body]

    def class_rows(self, judge: str = "", most: int | None = None) -> list[list[str]]:
        """Return the accuracy of each class beside those of the baselines, in percent, as a table, header first.

        Args:
            judge: whose; by default the first's that tells it.
            most: of more classes than so many, only the :data:`LOWEST` with the lowest accuracies; None shows all.
        Returns:
            A row for each class: its name, and means over the networks. Empty where no such judge tells it.
        """
        judge = judge or next((entry.judge for entry in self._shown() if entry.by_class), "")
        told = {
            name: entry.by_class
            for name, entries in self._sources().items()
            for entry in entries
            if entry.judge == judge and entry.by_class
        }
        if not told:
            return []
        classes = list(dict.fromkeys(name for own in told.values() for name in own))
        if most is not None and len(classes) > most:
            first = next(iter(told.values()))
            classes = sorted(classes, key=lambda name: first.get(name, math.inf))[:LOWEST]
        shares = [[f"{100 * own[name]:.1f}" if name in own else "-" for own in told.values()] for name in classes]
        body = [[name, *row] for name, row in zip(classes, shares, strict=True)]
        return [["class", *told], *body]

    def units(self) -> str:
        """Return what the numbers of :meth:`rows` are, in words."""
        counts = sorted({entry.n for entry in self._shown()})
        several = " to ".join(str(count) for count in dict.fromkeys((*counts[:1], *counts[-1:])))
        return "percent, " + ("1 network" if counts == [1] else f"mean +/- sd of {several or 'no'} networks")

    def remarks(self) -> list[str]:
        """Return the notes of the results, and what failed, a line each."""
        failed = [f"failed: {_named(name, reason)}" for name, reason in self.failures.items()]
        return [*(f"note: {note}" for note in self.notes()), *failed]

    def notes(self) -> list[str]:
        """Return what readers of the numbers must know, each note once.

        What holds of a judge on any samples is said of the baselines where no result has the same; whose judges fail on
        some samples is said of all of them.
        """
        known = {note for entry in self.results for note in entry.notes if not is_of_samples(note)}
        found = [(entry.judge, entry.notes) for entry in self.results]
        for name, entries in self.baselines.items():
            found += [(f"{name} by {e.judge}", tuple(note for note in e.notes if note not in known)) for e in entries]
        judges: dict[str, dict[str, None]] = {}
        for judge, notes in found:
            for note in notes:
                judges.setdefault(note, {})[judge] = None
        return [f"{', '.join(own)}: {note}" for note, own in judges.items()]

    def frame(self) -> "pd.DataFrame":
        """Return all entries as a data frame of a row each: samples, judge, metric, mean, sd and n.

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
        """Return the entries of the set and of the baselines, by the name of what was judged."""
        return {"distilled": self.results, **self.baselines}

    def _shown(self) -> list[Entry]:
        """Return the entries whose judges and metrics are shown: of the set, where it was judged."""
        return self.results or [entry for entries in self.baselines.values() for entry in entries]

    def __repr__(self) -> str:
        return "\n".join([f"Evaluation: {self.units()}", aligned(self.rows()), *self.remarks()])

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        remarks = [f"<p>{html.escape(remark)}</p>" for remark in self.remarks()]
        return "\n".join([f"<p>{self.units()}</p>", *html_table(self.rows()), *remarks])


def _named(name: str, reason: str) -> str:
    """Return why something failed with its name, which the reason may say itself."""
    return reason if reason.startswith(f"{name} ") else f"{name}: {reason}"


def summarise(scores: Iterable[Scores], class_names: Sequence[str] = ()) -> list[Entry]:
    """Return one entry per judge and metric; classes without a name go by their index."""

    def entry(one: Scores, metric: str, values: tuple[float, ...]) -> Entry:
        told = one.by_class if metric == "accuracy" else {}
        by_class = {
            class_names[index] if index < len(class_names) else str(index): statistics.fmean(own)
            for index, own in told.items()
        }
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        return Entry(one.judge, metric, statistics.fmean(values), sd, len(values), one.notes, by_class)

    return [entry(one, metric, values) for one in scores for metric, values in one.values.items()]


def checked_scores(found: object, task: object) -> Scores:
    """Return what a task's judge found, once it can be shown: fractions, which are shown in percent.

    Raises:
        ShapeError: something else, in the task's name.
    """
    owner = f"evaluate of {type(task).__name__}"
    if not isinstance(found, Scores) or not isinstance(found.values, Mapping) or not found.values:
        raise ShapeError(f"{owner} must return Scores with a metric, and returned {_shown_briefly(found)}")
    for metric, values in found.values.items():
        if not are_numbers(values, Real) or not values:
            raise ShapeError(
                f"{owner} must give {metric} as a tuple of numbers, one for each network, and gave "
                f"{_shown_briefly(values)}"
            )
        if any(value > 1 + 1e-5 for value in values):  # sums in float32 round
            raise ShapeError(
                f"{owner} must give {metric} as fractions (0.97, which is shown as 97.0), and gave "
                f"{_shown_briefly(values)}"
            )
    return found


def _shown_briefly(value: object) -> str:
    """Return a value, or of a long one its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
