"""Format rows of text as tables: in columns for the terminal, in HTML for pages and notebooks, in Markdown."""

import html
import re
from collections.abc import Sequence

MARKED = re.compile(r"[\\|`*~]|(?<!\w)_|_(?!\w)|\](?=[(\[])")
"""Characters with a meaning in Markdown: some always, ``_`` at a word's edge, ``]`` before an address."""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def markdown_cell(text: str) -> str:
    """Escape a text for one line of Markdown, in a table or not, so that it is shown as it is."""
    line = MARKED.sub(r"\\\g<0>", " ".join(text.splitlines()))
    return line.replace("&", "&amp;").replace("<", "&lt;")


def unmarked(text: str) -> str:
    """Undo the escapes of :func:`markdown_cell` in Markdown that is shown as plain text."""
    return html.unescape(re.sub(r"\\([\\|`*~_\]])", r"\1", text))


def markdown_row(row: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(map(markdown_cell, row)) + " |"


def html_row(row: Sequence[str], tag: str) -> str:
    """Return a row of an HTML table with cells of a tag, ``td`` or ``th``."""
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"


def html_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of an HTML table whose first row is the head."""
    head, *body = rows
    return ["<table>", html_row(head, "th"), *(html_row(row, "td") for row in body), "</table>"]
