"""Compared runs as a table for the terminal, a table for other programs, and pictures of scores by budget."""

import csv
import io
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from mmdistill.names import as_file_name, encodable
from mmdistill.reporting.comparison import Repetitions, Score
from mmdistill.reporting.figures import literal, one_plot, save_figure
from mmdistill.reporting.judged import RECORDED
from mmdistill.store import write_text

LEGEND = "percent on untouched test data; +/- is the deviation over runs where there are several, else over networks"
"""What the scores in :func:`table` are."""
TIMES = "seconds are those of distilling in all, ms a step are without set-up and compiling"
"""What the times in :func:`table` are."""
MOVED = "the runs held out different data, since --seed moves what is held out without --split-seed"
"""The note on repetitions whose data differ."""
OTHER_TEST = "not comparable with other rows of data of this name, which were tested on other samples"
"""The note on rows whose test data differ from those of other rows under the same name."""
OTHER_JUDGE = "not comparable with other rows, whose judge of this name is a network of another size"
"""The note on rows whose judge, the network distilled with, differs from that of other rows under the same name."""
NAMED_MOST = 3
"""The most rows that a note names."""
USUAL = 3
"""The fewest rows that make their common value the usual one."""
NAME_WIDTH, NAME_HEIGHT = 88, 0.19
"""Characters in a line of a picture's legend, and the line's height in inches."""
ROW_WIDTH = 36
"""Characters in a line of a row's label."""
KINDS = ("options", "settings")
"""The fields of a row that hold texts by name."""
WORDS: Mapping[str | None, bool | None] = {None: None, "": None, "None": None, "True": True, "False": False}
"""Texts that are values, and those that stand for none."""


def titles(rows: Sequence[Repetitions]) -> list[str]:
    """Return a title for each row: its method, with the values that tell it from other rows of its method and data.

    A value that most rows share is left out, if these are at least :data:`USUAL`. Rows that differ only in data of the
    same name get the beginning of the data's fingerprint.
    """
    groups = _by_method(rows)
    varied = {key: _varied_names(alike) for key, alike in groups.items()}
    names = [_title(row, groups[row.data, row.method], varied[row.data, row.method]) for row in rows]
    keys = [(row.data, row.unit, row.budget, row.judged, name) for row, name in zip(rows, names, strict=True)]
    fingerprints: dict[tuple[object, ...], set[str]] = {}
    for row, key in zip(rows, keys, strict=True):
        fingerprints.setdefault(key, set()).add(row.fingerprint)
    return [
        f"{name} (data {row.fingerprint[:8]})" if len(fingerprints[key]) > 1 and row.fingerprint else name
        for row, name, key in zip(rows, names, keys, strict=True)
    ]


def _title(row: Repetitions, alike: Sequence[Repetitions], varied: Mapping[str, Sequence[str]]) -> str:
    """Return a row's method, with the values that tell it from the other rows of its method and data in brackets."""
    details = [getattr(row, name) for name in varied["recorded"]]
    details += [word for kind in KINDS for word in _unusual_values(row, alike, kind, varied[kind])]
    words = ", ".join(filter(None, details))
    return f"{row.method} ({words})" if words else row.method


def _by_method(rows: Iterable[Repetitions]) -> dict[tuple[str, str], list[Repetitions]]:
    """Return the rows of each data and method."""
    groups: dict[tuple[str, str], list[Repetitions]] = {}
    for row in rows:
        groups.setdefault((row.data, row.method), []).append(row)
    return groups


def _varied_names(alike: Sequence[Repetitions]) -> dict[str, list[str]]:
    """Return the names in which rows of one method and data differ: of both :data:`KINDS`, and those ``recorded``."""
    recorded = [name for name in RECORDED if len({getattr(row, name) for row in alike}) > 1]
    return {"recorded": recorded, **{kind: _differing(alike, kind) for kind in KINDS}}


def _unusual_values(row: Repetitions, alike: Sequence[Repetitions], kind: str, names: Iterable[str]) -> list[str]:
    """Return a row's ``options`` or ``settings`` of some names, as names and values; none that are usual."""
    values: Mapping[str, str] = getattr(row, kind) or {}
    recorded = [given for other in alike if (given := getattr(other, kind)) is not None]
    return [
        f"{name.replace('_', '-')} {values[name]}"
        for name in names
        if name in values and not _is_usual(values[name], [given.get(name) for given in recorded])
    ]


def _is_usual(value: str, values: Sequence[str | None]) -> bool:
    """Return whether all rows have a value, and more than half, at least :data:`USUAL`, have this one."""
    return None not in values and values.count(value) >= USUAL and 2 * values.count(value) > len(values)


def _differing(rows: Sequence[Repetitions], kind: str) -> list[str]:
    """Return the names of ``options`` or ``settings`` in which rows of the same budget differ, in their order.

    Rows that record none, such as the options of runs made in Python, are left out.
    """
    by_budget: dict[tuple[str, int], list[Mapping[str, str]]] = {}
    for row in rows:
        if (values := getattr(row, kind)) is not None:
            by_budget.setdefault((row.unit, row.budget), []).append(values)
    names = dict.fromkeys(name for group in by_budget.values() for values in group for name in values)
    return [
        name for name in names if any(len({values.get(name) for values in group}) > 1 for group in by_budget.values())
    ]


def table(rows: Sequence[Repetitions]) -> list[list[str]]:
    """Return the comparison in percent, header first; :data:`LEGEND` and :data:`TIMES` say what its numbers are."""
    names = _baseline_names(rows)
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
    """Return the notes that readers of the scores must know, each with its rows."""
    rows_of: dict[str, list[str]] = {}
    for row, title, row_notes in zip(rows, titles(rows), notes_by_row(rows), strict=True):
        for note in row_notes:
            row_name = row.name if note == MOVED else f"{title}, {row.unit} {row.budget}, {row.judge}"
            rows_of.setdefault(note, []).append(row_name)
    return [f"{note} ({_list_rows(named, len(rows))})" for note, named in rows_of.items()]


def notes_by_row(rows: Sequence[Repetitions]) -> list[tuple[str, ...]]:
    """Return the notes on each row's scores: those of its runs, and why rows of one data and judge do not compare."""
    tests: dict[str, set[str]] = {}
    networks: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        if row.tested_on is not None and not row.moved:
            tests.setdefault(row.data, set()).add(row.tested_on)
        if row.judge_network:
            networks.setdefault((row.data, row.judged), []).append(row.judge_network)
    return [
        (
            *row.notes,
            *_data_notes(row, tests.get(row.data, ())),
            *_judge_notes(row.judge_network, networks.get((row.data, row.judged), ())),
        )
        for row in rows
    ]


def _data_notes(row: Repetitions, tests: Collection[str]) -> Iterator[str]:
    """Yield the note that a row's data differ, given all test data under their name."""
    if row.moved:
        yield MOVED
    elif row.tested_on is not None and len(tests) > 1:
        yield f"{OTHER_TEST} (test data {row.tested_on[:8]})"


def _judge_notes(network: Mapping[str, str], alike: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the note that a row's judge differs, given what tells the networks of all judges of its name apart."""
    kinds = ("size",) if all("size" in other for other in alike) else ("width", "size")
    for kind in kinds:
        if kind in network and any(other.get(kind, network[kind]) != network[kind] for other in alike):
            yield f"{OTHER_JUDGE} ({network[kind]})"
            return


def _list_rows(named: Sequence[str], total: int) -> str:
    """Return the names of some rows of a total, in words."""
    if len(named) == total > 1:
        return "all rows"
    more = len(named) - NAMED_MOST
    return "; ".join(named[:NAMED_MOST]) + (f"; and {more} more" if more > 0 else "")


def records(rows: Sequence[Repetitions]) -> list[dict[str, object]]:
    """Return a plain dict for each row, all with the same keys, which docs/formats.md explains.

    Scores are fractions in full precision, ``values`` the scores of the runs. Missing values are None.
    """
    names = _baseline_names(rows)
    fixed: list[dict[str, object]] = [
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
            **{key: value for name in names for key, value in _baseline_columns(name, row.baselines.get(name)).items()},
            "steps": max(row.steps, default=None),
            "seconds": sum(row.seconds) / len(row.seconds) if row.seconds else None,
            "seconds_per_step": sum(row.paces) / len(row.paces) if row.paces else None,
            "folder": row.name,
            "notes": [*row_notes],
        }
        for row, title, row_notes in zip(rows, titles(rows), notes_by_row(rows), strict=True)
    ]
    columns = _varied_columns(rows, fixed[0] if fixed else ())
    return [
        {**record, **{key: values[number] for key, values in columns.items()}} for number, record in enumerate(fixed)
    ]


def _varied_columns(rows: Sequence[Repetitions], taken: Collection[str]) -> dict[str, list[object]]:
    """Return the values, one of each row, of what tells rows of the same method, data and budget apart.

    Args:
        rows: all rows.
        taken: the keys of other columns; a setting of such a name gets ``setting_`` before it.
    """
    columns: dict[str, list[object]] = {}
    varied = [_varied_names(alike) for alike in _by_method(rows).values()]
    for kind in KINDS:
        for name in dict.fromkeys(name for names in varied for name in names[kind]):
            key = name.replace(" ", "_").replace("-", "_")
            texts = [(getattr(row, kind) or {}).get(name) for row in rows]
            columns[f"setting_{key}" if key in taken else key] = _as_values(texts)
    recorded = {name for names in varied for name in names["recorded"]}
    return columns | {name: [getattr(row, name) or None for row in rows] for name in RECORDED if name in recorded}


def _as_values(texts: Sequence[str | None]) -> list[object]:
    """Return the numbers and truth values that texts spell if all do, else the texts; None for what is missing."""
    values = [_as_value(text) for text in texts]
    if any(isinstance(value, str) for value in values):
        return [None if value is None else text for value, text in zip(values, texts, strict=True)]
    return values


def _as_value(text: str | None) -> object:
    """Return the number, truth value or None whose ``str`` a text is, else the text."""
    if text in WORDS:
        return WORDS[text]
    for kind in (int, float):
        with suppress(ValueError):
            if str(value := kind(str(text))) == text:
                return value
    return text


def _baseline_columns(name: str, score: Score | None) -> dict[str, float | None]:
    """Return the mean and the deviation of a baseline by their keys; None without a score."""
    if score is None:
        return {f"{name}_mean": None, f"{name}_sd": None}
    return {f"{name}_mean": score.mean, f"{name}_sd": score.deviation}


def write_csv(rows: Sequence[Repetitions], target: Path) -> Path:
    """Write the :func:`records` as CSV, a line for each; returns the path.

    ``values`` are separated by spaces, ``notes`` by semicolons. Missing values are empty.
    """
    text = io.StringIO()
    records_of_rows = records(rows)
    writer = csv.DictWriter(text, [*records_of_rows[0]], lineterminator="\n")
    writer.writeheader()
    for row, record in zip(rows, records_of_rows, strict=True):
        values, notes = " ".join(map(repr, row.score.values)), "; ".join(cast(list[str], record["notes"]))
        writer.writerow({**record, "values": values, "notes": notes})
    write_text(target, text.getvalue())
    return target


def _baseline_names(rows: Iterable[Repetitions]) -> list[str]:
    """Return the names of all baselines, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row.baselines))


def draw_budgets(rows: Sequence[Repetitions], folder: Path) -> list[Path]:
    """Draw each data set's scores against the budget, baselines dashed; returns the pictures.

    A line joins the means of one title (see :func:`titles`) and judge over the budgets; each judge has its own
    baselines. With a single budget each method and baseline has a row instead.
    """
    pictures = []
    for data, name in data_names(rows).items():
        rows_of_data = [row for row in rows if row.data == data]
        one_budget = len({(row.unit, row.budget) for row in rows_of_data}) == 1
        draw = _draw_rows if one_budget else _draw_lines
        pictures.append(draw(rows_of_data, folder / f"{as_file_name(encodable(name))}-budgets.png"))
    return pictures


def data_names(rows: Iterable[Repetitions]) -> dict[str, str]:
    """Return a unique short name for each data set of rows: without a file's suffix, numbered if taken."""
    names: dict[str, str] = {}
    for data in dict.fromkeys(row.data for row in rows):
        path = Path(data)
        name = path.stem if path.suffix[1:].isalpha() else path.name  # the number of a version is no suffix
        numbered = (f"{name}-{number}" for number in range(2, len(names) + 3))
        names[data] = next(candidate for candidate in (name, *numbered) if candidate not in names.values())
    return names


def _method_lines(rows: Sequence[Repetitions]) -> dict[str, list[tuple[int, Score]]]:
    """Return the points (budget, score) of each method's line by its name, with the judge if there are several."""
    points: dict[str, list[tuple[int, Score]]] = {}
    for row, title, suffix in zip(rows, titles(rows), judge_suffixes(rows), strict=True):
        points.setdefault(f"{title}{suffix}", []).append((row.budget, row.score))
    return points


def judge_suffixes(rows: Sequence[Repetitions]) -> list[str]:
    """Return a suffix for the name of each row that says its judge; empty if all have the same judge and metric."""
    if len({row.judged for row in rows}) == 1:
        return [""] * len(rows)
    one_metric = len({row.metric for row in rows}) == 1
    return [f" by {row.judge}" if one_metric else f", {row.judged}" for row in rows]


def _baseline_lines(rows: Sequence[Repetitions]) -> dict[str, list[tuple[int, Score]]]:
    """Return the points (budget, score) of each baseline's line by its name, one line for each judge."""
    points: dict[str, list[tuple[int, Score]]] = {}
    for row, suffix in zip(rows, judge_suffixes(rows), strict=True):
        for name, score in row.baselines.items():
            points.setdefault(f"{name}{suffix}", []).append((row.budget, score))
    return points


def _means(points: Sequence[tuple[int, Score]]) -> tuple[list[int], list[float]]:
    """Return the budgets in order, and the mean in percent of all runs at each."""
    values: dict[int, list[float]] = {}
    for budget, score in points:
        values.setdefault(budget, []).extend(score.values)
    budgets = sorted(values)
    return budgets, [100 * sum(values[budget]) / len(values[budget]) for budget in budgets]


def _draw_lines(rows: Sequence[Repetitions], target: Path) -> Path:
    """Draw scores against the budget: error bars of each result, a line through a method's means, baselines dashed."""
    methods, baselines = _method_lines(rows), _baseline_lines(rows)
    names = ["\n".join(textwrap.wrap(name, NAME_WIDTH)) for name in methods]
    legend = NAME_HEIGHT * sum(name.count("\n") + 1 for name in names) + 0.2
    figure, axes = one_plot(7, 4 + legend)
    for number, (name, points) in enumerate(zip(names, methods.values(), strict=True)):
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
    for name, points in baselines.items():
        budgets, means = _means(points)
        axes.plot(budgets, means, linestyle="--", marker=".", color="grey", linewidth=1)
        end = (budgets[-1], means[-1])
        axes.annotate(literal(name), end, textcoords="offset points", xytext=(6, -3), fontsize=8, color="grey")
    axes.set_xscale("log")
    axes.set_xticks(sorted({row.budget for row in rows}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_xlabel(rows[0].unit)
    axes.set_ylabel(_score_label(rows))
    axes.set_title(literal(Path(rows[0].data).stem))
    figure.legend(loc="outside lower left", frameon=False, fontsize=9)
    return save_figure(figure, target)


def _draw_rows(rows: Sequence[Repetitions], target: Path) -> Path:
    """Draw the scores of one budget, a row for each method and baseline; equal scores of a row only once."""
    methods, baselines = _method_lines(rows), _baseline_lines(rows)
    names = ["\n".join(textwrap.wrap(name, ROW_WIDTH)) for name in (*methods, *baselines)]
    heights = [name.count("\n") + 2 for name in names]
    places = [sum(heights[:number]) + height / 2 for number, height in enumerate(heights)]
    figure, axes = one_plot(7, 1.2 + NAME_HEIGHT * sum(heights))
    for number, (place, points) in enumerate(zip(places, (*methods.values(), *baselines.values()), strict=True)):
        scores = sorted({(100 * score.mean, 100 * (score.deviation or 0.0)) for _, score in points})
        colour = f"C{number}" if number < len(methods) else "grey"
        for index, (mean, deviation) in enumerate(scores):
            y = place + heights[number] * ((index + 1) / (len(scores) + 1) - 0.5)
            axes.errorbar([mean], [y], xerr=[deviation], marker="o", capsize=3, color=colour)
    axes.set_yticks(places, [literal(name) for name in names], fontsize=9)
    axes.set_ylim(sum(heights), 0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(_score_label(rows))
    axes.set_title(literal(f"{Path(rows[0].data).stem}, {rows[0].unit} {rows[0].budget}"))
    return save_figure(figure, target)


def _score_label(rows: Sequence[Repetitions]) -> str:
    """Return the label of the axis of scores: the metric, with the judge if there is only one."""
    judged = {row.judged for row in rows}
    shown = judged if len(judged) == 1 else {row.metric for row in rows}
    return literal(f"{', '.join(sorted(shown))}, percent")
