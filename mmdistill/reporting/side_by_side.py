"""Runs side by side: a table for the terminal, one for other programs, and scores against the budget, drawn."""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmdistill.names import as_file_name, encodable
from mmdistill.reporting.comparison import Repetitions, Score
from mmdistill.reporting.figures import literal, one_plot, save_figure
from mmdistill.runs.judged import RECORDED
from mmdistill.store import write_text

LEGEND = "percent on untouched test data; +/- is the deviation over runs where there are several, else over networks"
"""What the scores of :func:`table` are."""
TIMES = "seconds are those of distilling in all, ms a step are without set-up and compiling"
"""What its times are."""
MOVED = "the runs held out different data, since --seed moves what is held out without --split-seed"
"""What is said of repetitions whose data differ."""
NAMED_MOST = 3
"""Rows that a note names."""
USUAL = 3
"""Rows of one value from which on it may be the usual one."""
NAME_WIDTH, NAME_HEIGHT = 88, 0.19
"""Characters in a line of a picture's legend, and its height in inches."""
ROW_WIDTH = 36
"""Characters in a line beside the row of a picture."""


def titles(rows: Sequence[Repetitions]) -> list[str]:
    """Return what each row is called: its method, and what it has that others of this method and data have not.

    What most rows have, if these are not few, is said of the others alone.
    Rows that differ by nothing but data of one name have the beginning of the data's fingerprint.
    """

    def title(row: Repetitions) -> str:
        alike = [other for other in rows if (other.data, other.method) == (row.data, row.method)]
        differing = [name for name in RECORDED if len({getattr(other, name) for other in alike}) > 1]
        words = [getattr(row, name) for name in differing]
        for kind in ("options", "settings"):
            values: Mapping[str, str] = getattr(row, kind) or {}
            recorded = [given for other in alike if (given := getattr(other, kind)) is not None]
            told = {name: values[name] for name in _differing(alike, kind) if name in values}
            words += [
                f"{name.replace('_', '-')} {value}"
                for name, value in told.items()
                if not _usual(value, [given.get(name) for given in recorded])
            ]
        own = ", ".join(filter(None, words))
        return f"{row.method} ({own})" if own else row.method

    found = [title(row) for row in rows]
    seen = [(row.data, row.unit, row.budget, row.judged, name) for row, name in zip(rows, found, strict=True)]
    prints = {key: {row.fingerprint for row, own in zip(rows, seen, strict=True) if own == key} for key in seen}
    return [
        f"{name} (data {row.fingerprint[:8]})" if len(prints[key]) > 1 and row.fingerprint else name
        for row, name, key in zip(rows, found, seen, strict=True)
    ]


def _usual(value: str, values: Sequence[str | None]) -> bool:
    """Return whether more than half of some rows, and not few, have a value, and the others another one to be told."""
    return None not in values and values.count(value) >= USUAL and 2 * values.count(value) > len(values)


def _differing(rows: Sequence[Repetitions], kind: str) -> list[str]:
    """Return the ``options`` or ``settings`` by which rows of one budget differ, in their order.

    Rows that record none, as options of runs made in Python, do not differ by them.
    """
    budgets: dict[tuple[str, int], list[Mapping[str, str]]] = {}
    for row in rows:
        if (values := getattr(row, kind)) is not None:
            budgets.setdefault((row.unit, row.budget), []).append(values)
    names = dict.fromkeys(name for alike in budgets.values() for values in alike for name in values)
    return [
        name for name in names if any(len({values.get(name) for values in alike}) > 1 for alike in budgets.values())
    ]


def table(rows: Sequence[Repetitions]) -> list[list[str]]:
    """Return the comparison in percent, header first; :data:`LEGEND` and :data:`TIMES` say what its numbers are."""
    names = _baselines(rows)
    head = ["data", "method", "budget", "bytes", "judged", "distilled", *names]
    lines = [[*head, "runs", "steps", "seconds", "ms a step", "folder"]]
    for row, title in zip(rows, titles(rows), strict=True):
        lines.append(
            [
                row.data,
                title,
                f"{row.unit} {row.budget}",
                f"{row.stored_bytes:,}",
                row.judged,
                str(row.score),
                *(str(row.baselines.get(name, "-")) for name in names),
                str(len(row.score.values)),
                " to ".join(f"{steps:,}" for steps in sorted({min(row.steps), max(row.steps)})) if row.steps else "-",
                f"{sum(row.seconds) / len(row.seconds):.0f}" if row.seconds else "-",
                f"{1000 * sum(row.paces) / len(row.paces):.1f}" if row.paces else "-",
                row.name,
            ]
        )
    return lines


def notes(rows: Sequence[Repetitions]) -> list[str]:
    """Return what readers of the scores must know, each with the rows that it is of."""
    found: dict[str, list[str]] = {}
    for row, title in zip(rows, titles(rows), strict=True):
        for note in row_notes(row):
            whose = row.name if note == MOVED else f"{title}, {row.unit} {row.budget}, {row.judge}"
            found.setdefault(note, []).append(whose)
    return [f"{note} ({_whose(named, len(rows))})" for note, named in found.items()]


def row_notes(row: Repetitions) -> tuple[str, ...]:
    """Return what readers of a row's scores must know: the notes of its runs, and whether their data differ."""
    return (*row.notes, MOVED) if row.moved else row.notes


def _whose(named: Sequence[str], rows: int) -> str:
    """Return which of so many rows are named, in words."""
    if len(named) == rows > 1:
        return "all rows"
    more = len(named) - NAMED_MOST
    return "; ".join(named[:NAMED_MOST]) + (f"; and {more} more" if more > 0 else "")


def records(rows: Sequence[Repetitions]) -> list[dict[str, object]]:
    """Return a plain dict for each row, all of the same keys, which docs/formats.md explains.

    Scores are fractions in full precision; ``values`` are those of the runs, ``notes`` what readers of them must know.
    What there is not is None.
    """
    names = _baselines(rows)
    return [
        {
            "data": row.data,
            "method": row.method,
            "title": title,
            "unit": row.unit,
            "budget": row.budget,
            "stored_bytes": row.stored_bytes,
            "judge": row.judge,
            "metric": row.metric,
            "networks": row.networks,
            "runs": len(row.score.values),
            "mean": row.score.mean,
            "sd": row.score.deviation,
            "values": [*row.score.values],
            **{key: value for name in names for key, value in _of_baseline(name, row.baselines.get(name)).items()},
            "steps": max(row.steps, default=None),
            "seconds": sum(row.seconds) / len(row.seconds) if row.seconds else None,
            "seconds_per_step": sum(row.paces) / len(row.paces) if row.paces else None,
            "folder": row.name,
            "notes": [*row_notes(row)],
        }
        for row, title in zip(rows, titles(rows), strict=True)
    ]


def _of_baseline(name: str, score: Score | None) -> dict[str, float | None]:
    """Return the mean and the deviation of a baseline by their keys; None where there is none."""
    found = (None, None) if score is None else (score.mean, score.deviation)
    return dict(zip((f"{name}_mean", f"{name}_sd"), found, strict=True))


def write_csv(rows: Sequence[Repetitions], target: Path) -> Path:
    """Write the :func:`records` for other programs, a line for each; returns the path.

    ``values`` stand with spaces between them, ``notes`` with semicolons. What there is not is empty.
    """
    text = io.StringIO()
    found = records(rows)
    lines = csv.DictWriter(text, [*found[0]], lineterminator="\n")
    lines.writeheader()
    for row, record in zip(rows, found, strict=True):
        values = " ".join(map(repr, row.score.values))
        lines.writerow({**record, "values": values, "notes": "; ".join(row_notes(row))})
    write_text(target, text.getvalue())
    return target


def _baselines(rows: Iterable[Repetitions]) -> list[str]:
    """Return the names of all baselines, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row.baselines))


def draw_budgets(rows: Sequence[Repetitions], folder: Path) -> list[Path]:
    """Draw each data set's scores against the budget, baselines dashed; returns the pictures.

    A line joins the means of the budgets of one method, stored, distilled with, labelled and judged alike; each judge
    has baselines of its own. Of a single budget each method and baseline has a row.
    """
    pictures = []
    for data, name in data_names(rows).items():
        own = [row for row in rows if row.data == data]
        draw = _draw_rows if len({(row.unit, row.budget) for row in own}) == 1 else _draw
        pictures.append(draw(own, folder / f"{as_file_name(encodable(name))}-budgets.png"))
    return pictures


def data_names(rows: Iterable[Repetitions]) -> dict[str, str]:
    """Return short names of the data of rows, all different: files without their ending, numbered where two are one."""
    names: dict[str, str] = {}
    for data in dict.fromkeys(row.data for row in rows):
        path = Path(data)
        name = path.stem if path.suffix[1:].isalpha() else path.name  # a version's number is no ending
        numbered = (f"{name}-{number}" for number in range(2, len(names) + 3))
        names[data] = next(one for one in (name, *numbered) if one not in names.values())
    return names


def _lines(rows: Sequence[Repetitions]) -> dict[str, list[tuple[int, Score]]]:
    """Return the points of each method's line by its name, which says the judge where there are several."""
    found: dict[str, list[tuple[int, Score]]] = {}
    for row, title, told in zip(rows, titles(rows), judges_told(rows), strict=True):
        found.setdefault(f"{title}{told}", []).append((row.budget, row.score))
    return found


def judges_told(rows: Sequence[Repetitions]) -> list[str]:
    """Return what follows the name of a line of each row: nothing where all have one judge and metric."""
    if len({row.judged for row in rows}) == 1:
        return [""] * len(rows)
    one_metric = len({row.metric for row in rows}) == 1
    return [f" by {row.judge}" if one_metric else f", {row.judged}" for row in rows]


def _baseline_lines(rows: Sequence[Repetitions]) -> dict[str, list[tuple[int, Score]]]:
    """Return the points of each baseline's line, of every judge apart."""
    found: dict[str, list[tuple[int, Score]]] = {}
    for row, told in zip(rows, judges_told(rows), strict=True):
        for name, score in row.baselines.items():
            found.setdefault(f"{name}{told}", []).append((row.budget, score))
    return found


def _means(points: Sequence[tuple[int, Score]]) -> tuple[list[int], list[float]]:
    """Return the budgets in order, and the mean in percent of all that was found for each."""
    seen: dict[int, list[float]] = {}
    for budget, score in points:
        seen.setdefault(budget, []).extend(score.values)
    budgets = sorted(seen)
    return budgets, [100 * sum(seen[budget]) / len(seen[budget]) for budget in budgets]


def _draw(rows: Sequence[Repetitions], target: Path) -> Path:
    own, beside = _lines(rows), _baseline_lines(rows)
    names = ["\n".join(textwrap.wrap(name, NAME_WIDTH)) for name in own]
    legend = NAME_HEIGHT * sum(name.count("\n") + 1 for name in names) + 0.2
    figure, axes = one_plot(7, 4 + legend)
    for number, (name, points) in enumerate(zip(names, own.values(), strict=True)):
        axes.errorbar(
            [budget for budget, _ in points],
            [100 * score.mean for _, score in points],
            [100 * (score.deviation or 0.0) for _, score in points],
            marker="o",
            capsize=3,
            linestyle="none",
            color=f"C{number}",
            label=literal(name),
        )
        axes.plot(*_means(points), color=f"C{number}")
    for name, points in beside.items():
        budgets, means = _means(points)
        axes.plot(budgets, means, linestyle="--", marker=".", color="grey", linewidth=1)
        end = (budgets[-1], means[-1])
        axes.annotate(literal(name), end, textcoords="offset points", xytext=(6, -3), fontsize=8, color="grey")
    axes.set_xscale("log")
    axes.set_xticks(sorted({row.budget for row in rows}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_xlabel(rows[0].unit)
    axes.set_ylabel(_scores_of(rows))
    axes.set_title(literal(Path(rows[0].data).stem))
    figure.legend(loc="outside lower left", frameon=False, fontsize=9)
    return save_figure(figure, target)


def _draw_rows(rows: Sequence[Repetitions], target: Path) -> Path:
    """Draw the scores of one budget, each method and baseline in a row; equal scores of a row once."""
    own, beside = _lines(rows), _baseline_lines(rows)
    names = ["\n".join(textwrap.wrap(name, ROW_WIDTH)) for name in (*own, *beside)]
    heights = [name.count("\n") + 2 for name in names]
    places = [sum(heights[:number]) + height / 2 for number, height in enumerate(heights)]
    figure, axes = one_plot(7, 1.2 + NAME_HEIGHT * sum(heights))
    for number, (place, points) in enumerate(zip(places, (*own.values(), *beside.values()), strict=True)):
        scores = sorted({(100 * score.mean, 100 * (score.deviation or 0.0)) for _, score in points})
        colour = f"C{number}" if number < len(own) else "grey"
        for index, (mean, deviation) in enumerate(scores):
            aside = place + heights[number] * ((index + 1) / (len(scores) + 1) - 0.5)
            axes.errorbar([mean], [aside], xerr=[deviation], marker="o", capsize=3, color=colour)
    axes.set_yticks(places, [literal(name) for name in names], fontsize=9)
    axes.set_ylim(sum(heights), 0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(_scores_of(rows))
    axes.set_title(literal(f"{Path(rows[0].data).stem}, {rows[0].unit} {rows[0].budget}"))
    return save_figure(figure, target)


def _scores_of(rows: Sequence[Repetitions]) -> str:
    """Return what the axis of scores is called: the metric, with the judge where there is one."""
    shown = {row.judged for row in rows} if len({row.judged for row in rows}) == 1 else {row.metric for row in rows}
    return literal(f"{', '.join(sorted(shown))}, percent")
