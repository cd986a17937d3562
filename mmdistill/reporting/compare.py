"""The comparison of judged runs as a Python value, which ``mmdistill compare`` prints and writes."""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.names import first_few
from mmdistill.reporting.comparison import Repetitions, judged_runs, judges_of, read_runs, repeated
from mmdistill.reporting.pivot import pivot, write_latex
from mmdistill.reporting.report import write_comparison
from mmdistill.reporting.side_by_side import LEGEND, TIMES, draw_budgets, notes, records, table, write_csv
from mmdistill.reporting.tabular import aligned, html_table

if TYPE_CHECKING:  # importing it takes a quarter of a second
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Comparison:
    """A comparison of judged runs; prints as the table of ``mmdistill compare``, in notebooks too.

    Args:
        results: by judge, data, method and budget; runs that differ only in the seed are one result. Scores are
            fractions, sizes bytes, times seconds.
        without: folders of runs that are left out, since they lack the requested scores.
        repeated: folders of runs that are left out, since another run has their seed, or is the same
            imported set, with that run's folder.
        skipped: folders without a judged run, with the reason.
    """

    results: tuple[Repetitions, ...]
    without: tuple[Path, ...] = ()
    repeated: Mapping[Path, Path] = field(default_factory=dict)
    skipped: Mapping[Path, str] = field(default_factory=dict)

    def rows(self) -> list[list[str]]:
        """Return a table of the results and their baselines in percent, header first."""
        return table(self.results)

    def units(self) -> str:
        """Return the meaning of the numbers in :meth:`rows`, in words."""
        return f"{LEGEND}; {TIMES}"

    def notes(self) -> list[str]:
        """Return the notes that readers of the scores must know, each once, with its results."""
        return notes(self.results)

    def remarks(self) -> list[str]:
        """Return the runs that are left out, the notes and the skipped folders, a line each."""
        lines = []
        if self.without:
            lines.append(f"left out, since they have no such scores: {first_few(self.without, 3)}")
        for folder, kept in self.repeated.items():
            lines.append(f"left out: {folder}, which has the seed of {kept} and nothing else that counts")
        lines += [f"note: {note}" for note in self.notes()]
        return [*lines, *(f"skipped: {folder} ({reason})" for folder, reason in self.skipped.items())]

    def records(self) -> list[dict[str, object]]:
        """Return the results as plain dicts with the keys of ``comparison.csv`` (see docs/formats.md).

        ``mean``, ``sd``, ``values`` (a list, one of each run) and each baseline's ``NAME_mean`` and ``NAME_sd`` are
        fractions, ``stored_bytes`` bytes, ``seconds`` and ``seconds_per_step`` seconds, ``notes`` a list of texts.
        Settings in which rows of one method, data and budget differ have a key each, such as ``codes_lr``. Missing
        values are None.
        """
        return records(self.results)

    def frame(self) -> "pd.DataFrame":
        """Return :meth:`records` as a data frame, a row for each; missing numbers are NaN."""
        import pandas as pd

        frame = pd.DataFrame.from_records(self.records())
        empty = frame.columns[frame.isna().all()]
        return frame.astype(dict.fromkeys(empty, float))

    def write(self, folder: Path | str) -> list[Path]:
        """Write the files of ``mmdistill compare --to`` into a folder, where they replace files of these names.

        Beside the returned files it draws a picture of the scores on each data set, ``DATA-budgets.png``.

        Returns:
            The paths of ``comparison.html``, ``comparison.csv`` and ``comparison.tex``.
        Raises:
            OSError: the folder cannot be written to.
        """
        folder, scores = users_path(folder), pivot(self.results)
        pictures = draw_budgets(self.results, folder)
        page = write_comparison(folder, scores.lines(), self.rows(), self.notes(), pictures)
        tables = [write_csv(self.results, folder / "comparison.csv"), write_latex(scores, folder / "comparison.tex")]
        return [page, *tables]

    def __repr__(self) -> str:
        return "\n".join([aligned(self.rows()), self.units(), *self.remarks()])

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        remarks = [f"<p>{html.escape(remark)}</p>" for remark in self.remarks()]
        return "\n".join([f"<p>{html.escape(self.units())}</p>", *html_table(self.rows()), *remarks])


def compare(*folders: Path | str, judges: Sequence[str] | str | None = None, metric: str | None = None) -> Comparison:
    """Compare judged runs, as ``mmdistill compare`` does; runs that differ only in the seed are one result.

    Args:
        folders: run folders, or folders of them, such as a sweep's.
        judges: whose scores: names, ``["all"]``, or None for each run's first judge; one text may have several names,
            as on the command line (``"mlp,vit"``).
        metric: which score; None is the judge's first.
    Returns:
        The results, each with its baselines, its cost and its notes; ``print`` shows them as a table, ``frame()`` gives
        a data frame, ``write(folder)`` writes the files of ``--to``.
    Raises:
        ConfigError: no folders are given, no run is judged, or none has such a judge or metric. The message says what
            each folder lacks and what to do.
        CheckpointError: a folder does not exist.
    """
    if not folders or not all(isinstance(folder, str | os.PathLike) for folder in folders):
        raise ConfigError(
            f"run folders are compared, or folders of them, such as compare('runs/a', 'runs/b'); got {folders!r}"
        )
    runs, skipped = judged_runs([users_path(folder) for folder in folders])
    names = judges_of(runs, judges)
    results = tuple(row for name in names for row in read_runs(runs, name, metric))
    duplicates = {folder: kept for name in names for folder, kept in repeated(runs, name, metric).items()}
    scored = {folder for row in results for folder in row.folders} | duplicates.keys()
    without = tuple(run.folder for run in runs if run.folder not in scored)
    return Comparison(results, without, duplicates, skipped)
