"""Rows of text as tables: in columns for the terminal, in HTML for pages and notebooks."""

import html
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def html_row(row: Sequence[str], tag: str) -> str:
    """Return a row of an HTML table, whose cells are ``td`` or ``th``."""
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"


def html_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of an HTML table, of which the first row is the head."""
    head, *body = rows
    return ["<table>", html_row(head, "th"), *(html_row(row, "td") for row in body), "</table>"]
