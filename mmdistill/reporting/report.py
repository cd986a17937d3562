"""The report of a run: a table for the terminal, and a page of results, pictures and the loss curve."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mmdistill.distilled import DistilledSet
from mmdistill.evaluation import LOWEST, MOST_CLASSES, Evaluation
from mmdistill.metrics import judge_in_words, recorded
from mmdistill.names import as_argument
from mmdistill.reporting.figures import caption_of, one_plot, save_figure
from mmdistill.reporting.tabular import aligned, html_row, html_table, markdown_cell, markdown_row, unmarked
from mmdistill.runs.folder import DRAWN, PAGE, PICTURES, REPORT
from mmdistill.runs.history import Reading
from mmdistill.runs.listings import note_written
from mmdistill.settings import ALL_REAL, ALL_SAMPLES, MEMORY_ONLY, OptimizerSpec, Settings
from mmdistill.store import write_text

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .9em;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%;image-rendering:auto}
pre{background:#f6f6f6;padding:.8em;overflow-x:auto;white-space:pre-wrap}.q{color:#666}"""
LEAST_TOLD = 0.01
"""The smallest share of a run's seconds, or of a step's, that a report mentions."""
WHOLE = {"inner_batch": (0, ALL_SAMPLES), "real_batch": (ALL_REAL,)}
"""Values of minibatch sizes that stand for all samples."""


class Page(NamedTuple):
    """The content of a page.

    Args:
        title: of the page.
        results: a table, header first; empty if nothing is judged yet, which the notes then say.
        caption: what the table's numbers are; empty without them.
        notes: that readers of the numbers must know.
        shown: files of pictures, and of texts that are shown as they are.
        classes: the heading and the rows of a table of classes, header first; both empty without such a table.
    """

    title: str
    results: Sequence[Sequence[str]]
    caption: str
    notes: Sequence[str]
    shown: Sequence[Path]
    classes: tuple[str, Sequence[Sequence[str]]] = ("", ())


def percent(entry: Mapping[str, Any]) -> str:
    """Return an entry of ``metrics.json`` in percent, with the deviation over networks if there are several."""
    mean = f"{100 * entry['mean']:.1f}"
    return f"{mean} ± {100 * entry['sd']:.1f}" if entry["n"] > 1 else mean


def result_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return the results and their baselines as a table, header first."""
    baselines: Mapping[str, Sequence[Mapping[str, Any]]] = metrics.get("baselines", {})
    rows = [["judge", "metric", "distilled", *baselines, "networks"]]
    for entry in metrics.get("results", []):
        key = (entry["judge"], entry["metric"])
        cells = []
        for entries in baselines.values():
            same = (baseline for baseline in entries if (baseline["judge"], baseline["metric"]) == key)
            cells.append(next((_baseline_cell(baseline, entry["n"]) for baseline in same), "–"))
        rows.append([judge_in_words(entry), entry["metric"], percent(entry), *cells, str(entry["n"])])
    return rows


def _baseline_cell(baseline: Mapping[str, Any], networks: int) -> str:
    """Return a baseline's entry in percent, with its number of networks if that is not ``networks``."""
    count = baseline["n"]
    return percent(baseline) if count == networks else f"{percent(baseline)} (of {count})"


def fact_rows(distilled: DistilledSet) -> list[list[str]]:
    """Return the facts of a set and its run, rows of name and value."""
    info = distilled.info
    percentage = 100 * distilled.stored_bytes / max(info.stored_bytes, 1)
    share = f"{percentage:.2g}" if percentage < 99.5 else f"{percentage:,.0f}"
    share += " % of the whole"
    memory = f"{distilled.peak_memory_bytes / 2**20:,.0f} MiB" if distilled.peak_memory_bytes else "unknown"
    path = distilled.path + (f" ({distilled.compile_seconds:.0f} s of it)" if distilled.compile_seconds >= 1 else "")
    cost = f"{distilled.seconds:.1f} s{_pace(distilled)}, peak {memory}, {distilled.device}"
    optional = (
        ("network", distilled.network),
        ("stored as", distilled.parameterization),
        ("labels", distilled.label),
        ("teacher", distilled.teacher),
    )
    return [
        ["data", f"{info.data} ({info.domain}, {info.num_train:,} training samples, {info.stored_bytes:,} bytes)"],
        *([name, value] for name, value in info.preprocessing.items() if isinstance(value, str) and name != "space"),
        *(["read as", note] for note in info.notes),
        ["method", f"{distilled.method}, {_origin_in_words(distilled)}, seed {distilled.seed}"],
        [
            "budget",
            f"{budget_in_words(distilled)}: {distilled.stored_bytes:,} bytes, {share}",
        ],
        *([name, value] for name, value in optional if value),
        *([["settings", settings_in_words(distilled.settings, distilled.parameterization)]] if distilled.steps else []),
        *([] if distilled.origin else (["cost", cost], ["run", f"{path}, {distilled.precision}"])),
    ]


def _origin_in_words(distilled: DistilledSet) -> str:
    """Return the steps of a set's run, or the source that it was imported from, in words."""
    return f"imported from {distilled.origin}" if distilled.origin else f"{distilled.steps:,} steps"


def _pace(distilled: DistilledSet) -> str:
    """Return how a run's seconds divide between steps and set-up, in brackets; empty if it has no steps."""
    step, update = distilled.seconds_per_step, distilled.seconds_per_update
    if step is None:
        return ""
    parts = [f"{1000 * step:.1f} ms a step"]
    if update is not None and step - update >= LEAST_TOLD * step:
        parts.append(f"{1000 * update:.1f} of them without training networks between updates")
    if distilled.setup_seconds > LEAST_TOLD * distilled.seconds:
        parts.append(f"{distilled.setup_seconds:.1f} s before the first step")
    return f" ({', '.join(parts)})"


def budget_in_words(distilled: DistilledSet) -> str:
    """Return a set's budget, with its number of samples if the budget does not imply that."""
    unit, budget, count = distilled.info.budget, distilled.budget, len(distilled.batch.weight)
    implied = budget * len(distilled.info.class_names) if unit == "ipc" else budget
    return f"{unit} {budget}" if count == implied else f"{unit} {budget}, {count} samples"


def settings_in_words(settings: Mapping[str, Any], parameterization: str) -> str:
    """Return a set's settings, in words: its optimizers, and values that differ from the defaults.

    Args:
        settings: by name.
        parameterization: how samples are stored, in words.
    """
    defaults, raw = asdict(Settings(steps=0)), parameterization == "raw"
    groups = [
        f"{'samples' if raw and group == 'codes' else group}: {optimizer_in_words(spec)}; "
        for group, spec in settings.get("optimizers", {}).items()
    ]
    values = {name: "all" if value in WHOLE.get(name, ()) else value for name, value in settings.items()}
    hidden = ("steps", "optimizers", "stored_bytes", *MEMORY_ONLY)
    others = _changed_in_words(values, defaults, always=("real_batch", "init"), never=hidden)
    return "".join(groups) + ", ".join(others)


def optimizer_in_words(spec: Mapping[str, Any]) -> str:
    """Return an optimizer's name, learning rate, other values that differ from the defaults, and its active steps."""
    changed = _changed_in_words(spec, asdict(OptimizerSpec()), always=("lr",), never=("name", "active"))
    words = [str(spec["name"]), *changed]
    if spec.get("active"):
        start, stop, period = spec["active"]
        words.append(f"steps {start} to {stop - 1} of each {period}")
    return ", ".join(words)


def _changed_in_words(
    values: Mapping[str, Any], defaults: Mapping[str, Any], *, always: Sequence[str], never: Sequence[str]
) -> list[str]:
    """Return names and values of those that differ from the defaults or are shown always, but never some others."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}  # from JSON
    changed = {name: value for name, value in plain.items() if name in always or value != defaults.get(name)}
    texts = {name.replace("_", " "): value for name, value in changed.items() if name not in never}
    return [name if value is True else f"{name} {value}" for name, value in texts.items()]


def summary(distilled: DistilledSet, evaluation: Evaluation, baseline_bytes: Mapping[str, int]) -> str:
    """Return the results as a table for the terminal: the distilled set beside its baselines.

    Args:
        distilled: the set.
        evaluation: its scores.
        baseline_bytes: the known sizes of baselines, by name.
    """
    rows = evaluation.rows()
    sizes = {"distilled": distilled.stored_bytes, "whole": distilled.info.stored_bytes, **baseline_bytes}
    rows.append(["", "bytes", *(f"{sizes[name]:,}" if name in sizes else "-" for name in rows[0][2:])])
    title = f"{distilled.info.data}, {distilled.method}, {budget_in_words(distilled)}, seed {distilled.seed}"
    return "\n".join([f"{title}: {evaluation.units()}", aligned(rows), *evaluation.remarks()])


def draw_curve(folder: Path, history: Sequence[Reading]) -> Path | None:
    """Draw a run's loss against its steps into its folder; returns the path, or None if there are too few points."""
    if len(history) < 2:
        return None
    steps, losses = zip(*history, strict=True)
    figure, axes = one_plot(6, 3)
    axes.plot(steps, losses, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("objective")
    if min(losses) > 0:
        axes.set_yscale("log")
    drawn = save_figure(figure, folder / PICTURES / "loss.png")
    note_written(folder / DRAWN, [drawn])
    return drawn


def write_comparison(
    folder: Path,
    scores: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    pictures: Sequence[Path],
) -> Path:
    """Write ``comparison.html`` into a folder; returns its path.

    Args:
        folder: of the file.
        scores: a table of scores by data and budget, header first.
        rows: a table of all results in detail, header first.
        notes: that readers of the scores must know.
        pictures: of the scores.
    """
    target = folder / "comparison.html"
    caption = (
        "Percent on untouched test data, mean ± standard deviation: over runs where there are several, else networks."
    )
    write_text(target, _html(Page("Distilled sets side by side", rows, caption, notes, pictures), html_table(scores)))
    return target


def write_report(
    folder: Path, distilled: DistilledSet, metrics: Mapping[str, Any], pictures: Sequence[Path]
) -> list[Path]:
    """Write ``report.md`` and a self-contained ``report.html`` into a run folder; returns both paths.

    Args:
        folder: the run folder.
        distilled: its set.
        metrics: the content of its ``metrics.json``.
        pictures: files that the domain drew: images, and texts that are shown as they are.
    """
    curve = draw_curve(folder, distilled.history)
    shown = [*pictures, *([curve] if curve is not None else [])]
    title = f"{distilled.info.data} distilled with {distilled.method}"
    evaluation = recorded(metrics)
    notes = evaluation.notes()
    if not metrics.get("results"):
        notes = [f"not judged yet: mmdistill evaluate {as_argument(folder)}"]
    deviations = any(entry["n"] > 1 for entry in metrics.get("results", []))
    over = ", mean ± standard deviation over independently trained networks" if deviations else ""
    rows = result_rows(metrics)
    if len(rows) > 1:
        page = Page(title, rows, f"Percent{over}, on untouched test data.", notes, shown, class_table(evaluation))
    else:
        page = Page(title, (), "", notes, shown)
    facts = fact_rows(distilled)
    write_text(folder / REPORT, _markdown(page, facts, folder))
    head = ["<table>", *(html_row(row, "td") for row in facts), "</table>"]
    write_text(folder / PAGE, _html(page, head))
    return [folder / REPORT, folder / PAGE]


def class_table(evaluation: Evaluation) -> tuple[str, list[list[str]]]:
    """Return the heading and the rows of a table of classes, header first, see :meth:`Evaluation.class_rows`.

    Both are empty if no judge scored classes.
    """
    judge = next((entry.judge for entry in evaluation.results if entry.by_class), "")
    rows = evaluation.class_rows(judge, MOST_CLASSES) if judge else []
    if not rows:
        return "", []
    classes = next(len(entry.by_class) for entry in evaluation.results if entry.by_class)
    which = f"the {LOWEST} lowest of {classes} classes" if classes > MOST_CLASSES else "each class"
    return f"accuracy of {which} by {judge}, mean over networks in percent", rows


def _markdown(page: Page, facts: Sequence[Sequence[str]], folder: Path) -> str:
    """Return a page as Markdown for a file in ``folder``, facts first."""
    listed = [f"- **{markdown_cell(name)}**: {markdown_cell(value)}" for name, value in facts]
    lines = [f"# {markdown_cell(page.title)}", "", *listed]
    if page.results:
        lines += ["", page.caption, "", *_markdown_table(page.results)]
    lines += ["", *(line for note in page.notes for line in (f"> {markdown_cell(note)}", ""))]
    heading, classes = page.classes
    if classes:
        lines += [f"## {markdown_cell(heading)}", "", *_markdown_table(classes), ""]
    for path in page.shown:
        name = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
        lines += [
            f"## {markdown_cell(_heading(path))}",
            "",
            f"![{path.stem}]({name})" if path.suffix == ".png" else _read_text(path),
            "",
        ]
    return "\n".join(lines)


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return [markdown_row(row) for row in (head, ["---"] * len(head), *body)]


def _heading(path: Path) -> str:
    """Return the heading of a picture or text: its name, and the caption of a picture of only a part of the set."""
    caption = caption_of(path) if path.suffix == ".png" else ""
    return f"{path.stem} ({caption})" if caption else path.stem


def _read_text(path: Path) -> str:
    """Return the content of a text that is shown as it is."""
    return path.read_text(encoding="utf-8")


def _html(page: Page, head: Sequence[str]) -> str:
    """Return a page as self-contained HTML, with the lines ``head`` of HTML below its title."""
    title = html.escape(page.title)
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>", f"<h1>{title}</h1>"]
    parts += head
    if page.results:
        parts += [f"<p class=q>{html.escape(page.caption)}</p>", *html_table(page.results)]
    parts += [f"<p><b>Note</b>: {html.escape(note)}</p>" for note in page.notes]
    heading, classes = page.classes
    if classes:
        parts += [f"<h2>{html.escape(heading)}</h2>", *html_table(classes)]
    for path in page.shown:
        parts.append(f"<h2>{html.escape(_heading(path))}</h2>")
        if path.suffix == ".png":
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">')
        else:
            parts.append(f"<pre>{html.escape(unmarked(_read_text(path)))}</pre>")
    return "\n".join(parts) + "\n"
