"""The table of several runs for a paper: methods and baselines as rows, data and budgets as columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mmdistill.abilities import ROBUST_METRICS
from mmdistill.reporting.comparison import Repetitions, Score
from mmdistill.reporting.side_by_side import LEGEND, data_names, judge_suffixes, notes, titles
from mmdistill.runs.kept_baselines import WITHOUT_BUDGET
from mmdistill.store import write_text

ESCAPED = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}"},
    }
)
"""LaTeX's spellings of its special characters."""
BOLD = "bold is the highest mean of a column as it is printed, the whole data aside; that is no test of significance"
"""What bold numbers mean in the table of :func:`write_latex`."""


class Column(NamedTuple):
    """A column of scores.

    Args:
        place: the positions of its data and its judge among those of all rows; columns are ordered by it first.
        unit: of the budget.
        budget: in this unit.
        data: the name of the data, with the judge if there are several.
        ranked: whether a higher score is better.
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
        selections: scores of real samples at equal count, by the name of the baseline.
        methods: scores of distilled sets, by the title of the method.
        whole: scores of all real samples.
        notes: that readers of the scores must know.
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
        return [head, *([name, *(_plain_text(scores.get(column)) for column in self.columns)] for name, scores in rows)]

    def best(self, column: Column) -> str:
        """Return the highest mean of a column as it is printed, without the whole data; empty for a single row."""
        rows = (*self.selections.values(), *self.methods.values())
        scores = [row[column] for row in rows if column in row]
        return _mean_text(max(scores, key=lambda score: score.mean)) if len(scores) > 1 and column.ranked else ""

    def latex(self) -> str:
        """Return the table as a LaTeX ``tabular`` with the rules of booktabs."""
        groups = [(data, len([*columns])) for data, columns in groupby(column.data for column in self.columns)]
        spans, rules, first = [], [], 2
        for data, width in groups:
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_escape(data)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
            first += width
        budgets = [_escape(f"{column.unit} {column.budget}") for column in self.columns]
        runs = sorted({len(score.values) for scores in self.methods.values() for score in scores.values()})
        run_counts = " to ".join(map(str, dict.fromkeys((runs[0], runs[-1]))))
        lines = [f"% {LEGEND}; runs: {run_counts}", f"% {BOLD}", r"% needs \usepackage{booktabs}"]
        lines += [f"% note: {' '.join(note.split())}" for note in self.notes]
        lines += [rf"\begin{{tabular}}{{l{'c' * len(self.columns)}}}", r"\toprule", _row(["", *spans]), "".join(rules)]
        lines.append(_row(["", *budgets]))
        for part in filter(None, (self.selections, self.methods, self.whole)):
            lines.append(r"\midrule")
            for name, scores in part.items():
                cells = [
                    _in_latex(scores.get(column), "" if part is self.whole else self.best(column))
                    for column in self.columns
                ]
                lines.append(_row([_escape(name), *cells]))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def pivot(rows: Sequence[Repetitions]) -> Pivot:
    """Return the scores of compared runs by method, data and budget.

    If several rows of a column have scores of a baseline, those over most runs count.
    """
    data, judged = data_names(rows), [*dict.fromkeys(row.judged for row in rows)]
    methods: dict[str, Scores] = {}
    baselines: dict[str, Scores] = {}
    for row, title, suffix in zip(rows, titles(rows), judge_suffixes(rows), strict=True):
        place = ([*data].index(row.data), judged.index(row.judged))
        ranked = row.metric not in ROBUST_METRICS
        column = Column(place, row.unit, row.budget, f"{data[row.data]}{suffix}", ranked)
        # Rows of one title and column get the name of their folder, and a number if that is taken too.
        others = (f"{title} ({row.name}{f', {number}' * (number > 1)})" for number in range(1, len(rows) + 1))
        name = next(candidate for candidate in (title, *others) if column not in methods.get(candidate, {}))
        methods.setdefault(name, {})[column] = row.score
        for baseline, score in row.baselines.items():
            scores = baselines.setdefault(baseline, {})
            if column not in scores or len(score.values) > len(scores[column].values):
                scores[column] = score
    columns = sorted({column for scores in methods.values() for column in scores})
    whole = {name: scores for name, scores in baselines.items() if name in WITHOUT_BUDGET}
    selections = {name: scores for name, scores in baselines.items() if name not in whole}
    return Pivot(columns, selections, methods, whole, tuple(notes(rows)))


def write_latex(scores: Pivot, target: Path) -> Path:
    """Write scores as a LaTeX table, the best of each column in bold; returns the path."""
    write_text(target, scores.latex())
    return target


def _mean_text(score: Score) -> str:
    """Return a score's mean as it is printed."""
    return str(score).partition(" ")[0]


def _plain_text(score: Score | None) -> str:
    return "–" if score is None else str(score).replace("+/-", "±")


def _in_latex(score: Score | None, best: str) -> str:
    """Return a score in LaTeX, in bold if its mean is the best one."""
    if score is None:
        return "--"
    mean, _, deviation = str(score).partition(" +/- ")
    mean_text = rf"\mathbf{{{mean}}}" if mean == best else mean
    return rf"${mean_text} \pm {deviation}$" if deviation else f"${mean_text}$"


def _escape(text: str) -> str:
    return text.translate(ESCAPED)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
