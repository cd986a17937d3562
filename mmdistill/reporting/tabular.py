"""Rows of text as tables: in columns for the terminal, in HTML for pages and notebooks, in Markdown."""

import html
import re
from collections.abc import Sequence

MARKED = re.compile(r"[\\|`*~]|(?<!\w)_|_(?!\w)|\](?=[(\[])")
"""What has a meaning in Markdown: wherever it stands, or at a word's end, or, a bracket, where an address follows."""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def markdown_cell(text: str) -> str:
    """Return a text in a line of Markdown, in a table or not, where it is shown as it is: no code, markup or link."""
    line = MARKED.sub(r"\\\g<0>", " ".join(text.splitlines()))
    return line.replace("&", "&amp;").replace("<", "&lt;")


def unmarked(text: str) -> str:
    """Return Markdown with the texts of :func:`markdown_cell` as they were, for where it is shown unread."""
    return html.unescape(re.sub(r"\\([\\|`*~_\]])", r"\1", text))


def markdown_row(row: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(map(markdown_cell, row)) + " |"


def html_row(row: Sequence[str], tag: str) -> str:
    """Return a row of an HTML table, whose cells are ``td`` or ``th``."""
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"


def html_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of an HTML table, of which the first row is the head."""
    head, *body = rows
    return ["<table>", html_row(head, "th"), *(html_row(row, "td") for row in body), "</table>"]
