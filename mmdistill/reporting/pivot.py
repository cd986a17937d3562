"""The table that a paper takes of several runs: methods and baselines as rows, data and budgets as columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mmdistill.abilities import ROBUST_METRICS
from mmdistill.reporting.comparison import Repetitions, Score
from mmdistill.reporting.side_by_side import LEGEND, data_names, judges_told, notes, titles
from mmdistill.runs.kept_baselines import WITHOUT_BUDGET
from mmdistill.store import write_text

ESCAPED = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}"},
    }
)
"""How LaTeX writes what means something else to it."""
BOLD = "bold is the highest mean of a column as it is printed, the whole data aside; that is no test of significance"
"""What the bold numbers of :func:`write_latex` are."""


class Column(NamedTuple):
    """A column of scores.

    Args:
        place: of its data and its judge among those of all rows, by which columns are ordered.
        unit: of the budget.
        budget: how many.
        data: the name of the data, with the judge where there are several.
        ranked: whether a higher score is a better one.
    """

    place: tuple[int, int]
    unit: str
    budget: int
    data: str
    ranked: bool


Scores = dict[Column, Score]


@dataclass(frozen=True)
class Pivot:
    """Scores by rows and columns.

    Args:
        columns: in their order.
        selections: real samples at equal count, by the name of the baseline.
        methods: distilled sets, by the title of the method.
        whole: all real samples.
        notes: what readers of the scores must know.
    """

    columns: list[Column]
    selections: dict[str, Scores]
    methods: dict[str, Scores]
    whole: dict[str, Scores]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[list[str]]:
        """Return the table as text, header first."""
        head = ["", *(f"{column.data}, {column.unit} {column.budget}" for column in self.columns)]
        rows = (row for part in (self.selections, self.methods, self.whole) for row in part.items())
        return [head, *([name, *(_plain(own.get(column)) for column in self.columns)] for name, own in rows)]

    def best(self, column: Column) -> str:
        """Return the highest mean of a column, as it is printed, of all rows but the whole data; nothing of one row."""
        found = [own[column] for own in (*self.selections.values(), *self.methods.values()) if column in own]
        return _mean(max(found, key=lambda score: score.mean)) if len(found) > 1 and column.ranked else ""

    def latex(self) -> str:
        """Return the table as a ``tabular`` of the package booktabs."""
        groups = [(data, len([*own])) for data, own in groupby(column.data for column in self.columns)]
        spans, rules, first = [], [], 2
        for data, width in groups:
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_escaped(data)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
            first += width
        budgets = [_escaped(f"{column.unit} {column.budget}") for column in self.columns]
        runs = sorted({len(score.values) for own in self.methods.values() for score in own.values()})
        several = " to ".join(map(str, dict.fromkeys((runs[0], runs[-1]))))
        lines = [f"% {LEGEND}; runs: {several}", f"% {BOLD}", r"% needs \usepackage{booktabs}"]
        lines += [f"% note: {' '.join(note.split())}" for note in self.notes]
        lines += [rf"\begin{{tabular}}{{l{'c' * len(self.columns)}}}", r"\toprule", _row(["", *spans]), "".join(rules)]
        lines.append(_row(["", *budgets]))
        for part in filter(None, (self.selections, self.methods, self.whole)):
            lines.append(r"\midrule")
            for name, own in part.items():
                cells = [
                    _in_latex(own.get(column), "" if part is self.whole else self.best(column))
                    for column in self.columns
                ]
                lines.append(_row([_escaped(name), *cells]))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def pivot(rows: Sequence[Repetitions]) -> Pivot:
    """Return the scores of compared runs by method, data and budget.

    A baseline that several rows of a column have judged is that of the row with most runs.
    """
    data, judged = data_names(rows), [*dict.fromkeys(row.judged for row in rows)]
    methods: dict[str, Scores] = {}
    baselines: dict[str, Scores] = {}
    for row, title, told in zip(rows, titles(rows), judges_told(rows), strict=True):
        place = ([*data].index(row.data), judged.index(row.judged))
        ranked = row.metric not in ROBUST_METRICS
        column = Column(place, row.unit, row.budget, f"{data[row.data]}{told}", ranked)
        others = (f"{title} ({row.name}{f', {number}' * (number > 1)})" for number in range(1, len(rows) + 1))
        name = next(one for one in (title, *others) if column not in methods.get(one, {}))
        methods.setdefault(name, {})[column] = row.score
        for baseline, score in row.baselines.items():
            own = baselines.setdefault(baseline, {})
            if column not in own or len(score.values) > len(own[column].values):
                own[column] = score
    columns = sorted({column for own in methods.values() for column in own})
    whole = {name: own for name, own in baselines.items() if name in WITHOUT_BUDGET}
    selections = {name: own for name, own in baselines.items() if name not in whole}
    return Pivot(columns, selections, methods, whole, tuple(notes(rows)))


def write_latex(found: Pivot, target: Path) -> Path:
    """Write scores as a LaTeX table, :data:`BOLD` ones in bold; returns the path."""
    write_text(target, found.latex())
    return target


def _mean(score: Score) -> str:
    """Return a score's mean as it is printed."""
    return str(score).partition(" ")[0]


def _plain(score: Score | None) -> str:
    return "–" if score is None else str(score).replace("+/-", "±")


def _in_latex(score: Score | None, best: str) -> str:
    """Return a score in LaTeX, its mean bold if it is the best one."""
    if score is None:
        return "--"
    mean, _, deviation = str(score).partition(" +/- ")
    shown = rf"\mathbf{{{mean}}}" if mean == best else mean
    return rf"${shown} \pm {deviation}$" if deviation else f"${shown}$"


def _escaped(text: str) -> str:
    return text.translate(ESCAPED)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
