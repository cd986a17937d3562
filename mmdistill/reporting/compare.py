"""Judged runs side by side as a value: what ``mmdistill compare`` shows and writes, for Python."""

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
    """Judged runs side by side; printed as the table of ``mmdistill compare``, in notebooks too.

    Args:
        results: by judge, data, method and budget; runs that differ only in the seed are one of them. Scores are
            fractions, sizes bytes, times seconds.
        without: folders of runs that are left out, since they lack the scores asked for.
        repeated: folders of runs that are left out, since another one has their seed, with that one's folder.
        skipped: folders without a judged run, with the reason.
    """

    results: tuple[Repetitions, ...]
    without: tuple[Path, ...] = ()
    repeated: Mapping[Path, Path] = field(default_factory=dict)
    skipped: Mapping[Path, str] = field(default_factory=dict)

    def rows(self) -> list[list[str]]:
        """Return the results beside those of their baselines, in percent, as a table, header first."""
        return table(self.results)

    def units(self) -> str:
        """Return what the numbers of :meth:`rows` are, in words."""
        return f"{LEGEND}; {TIMES}"

    def notes(self) -> list[str]:
        """Return what readers of the scores must know, each note once, with the results that it is of."""
        return notes(self.results)

    def remarks(self) -> list[str]:
        """Return which runs are left out, the notes, and which folders were skipped, a line each."""
        lines = []
        if self.without:
            lines.append(f"left out, since they have no such scores: {first_few(self.without, 3)}")
        for folder, kept in self.repeated.items():
            lines.append(f"left out: {folder}, which has the seed of {kept} and no other option that counts")
        lines += [f"note: {note}" for note in self.notes()]
        return [*lines, *(f"skipped: {folder} ({reason})" for folder, reason in self.skipped.items())]

    def records(self) -> list[dict[str, object]]:
        """Return the results as plain dicts of the same keys, those of ``comparison.csv`` (see docs/formats.md).

        ``mean``, ``sd``, ``values`` (a list, of each run) and each baseline's ``NAME_mean`` and ``NAME_sd`` are
        fractions, ``stored_bytes`` bytes, ``seconds`` and ``seconds_per_step`` seconds, ``notes`` a list of texts. What
        there is not is None.
        """
        return records(self.results)

    def frame(self) -> "pd.DataFrame":
        """Return :meth:`records` as a data frame of a row each; a number that there is not is NaN."""
        import pandas as pd

        found = pd.DataFrame.from_records(self.records())
        unknown = found.columns[found.isna().all()]
        return found.astype(dict.fromkeys(unknown, float))

    def write(self, folder: Path | str) -> list[Path]:
        """Write what ``mmdistill compare --to`` writes into a folder, replacing what lies there of these names.

        Beside the files that are returned it draws a picture of the scores of each data set, ``DATA-budgets.png``.

        Returns:
            The paths of ``comparison.html``, ``comparison.csv`` and ``comparison.tex``.
        Raises:
            OSError: the folder cannot be written to.
        """
        folder, scores = users_path(folder), pivot(self.results)
        pictures = draw_budgets(self.results, folder)
        page = write_comparison(folder, scores.lines(), self.rows(), self.notes(), pictures)
        others = [write_csv(self.results, folder / "comparison.csv"), write_latex(scores, folder / "comparison.tex")]
        return [page, *others]

    def __repr__(self) -> str:
        return "\n".join([aligned(self.rows()), self.units(), *self.remarks()])

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        remarks = [f"<p>{html.escape(remark)}</p>" for remark in self.remarks()]
        return "\n".join([f"<p>{html.escape(self.units())}</p>", *html_table(self.rows()), *remarks])


def compare(*folders: Path | str, judges: Sequence[str] | str | None = None, metric: str | None = None) -> Comparison:
    """Put judged runs side by side, as ``mmdistill compare`` does. Runs that differ only in the seed are one result.

    Args:
        folders: run folders, or folders of them, such as a sweep's.
        judges: whose scores: names, ``["all"]``, or None for each run's first judge; one text may name several, as on
            the command line (``"mlp,vit"``).
        metric: which score; None is the judge's first.
    Returns:
        The results, each with its baselines, its cost and its notes; ``print`` shows them as a table, ``frame()`` gives
        a data frame, ``write(folder)`` writes the files of ``--to``.
    Raises:
        ConfigError: no folders, or other things; there is no judged run, or none has such a judge or metric. The
            message says of each folder what is missing and what to do.
        CheckpointError: a folder that is not there.
    """
    if not folders or not all(isinstance(folder, str | os.PathLike) for folder in folders):
        raise ConfigError(
            f"run folders are compared, or folders of them, such as compare('runs/a', 'runs/b'); got {folders!r}"
        )
    found, skipped = judged_runs([users_path(folder) for folder in folders])
    names = judges_of(found, judges)
    results = tuple(row for name in names for row in read_runs(found, name, metric))
    twice = {folder: kept for name in names for folder, kept in repeated(found, name, metric).items()}
    scored = {folder for row in results for folder in row.folders} | twice.keys()
    without = tuple(run.folder for run in found if run.folder not in scored)
    return Comparison(results, without, twice, skipped)
