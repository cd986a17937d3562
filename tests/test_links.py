"""Every relative link of the documentation leads to a file, and to a heading of it, that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def links(text: str) -> list[tuple[str, str]]:
    """Return the path and the anchor of each link outside code; either may be empty."""
    return LINK.findall(CODE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page.read_text()):
        if "://" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text()), f"{path}#{anchor}"


def test_an_anchor_is_a_heading_without_punctuation() -> None:
    assert anchors("# A b\n```sh\n# c\n```\n### `d-e`, f: 8 x 8\n") == {"a-b", "d-e-f-8-x-8"}


def test_a_link_is_a_path_and_an_anchor() -> None:
    text = "[a](docs/b.md#c-d), ![e](f.png), [g](#h), [i](https://j.k/l) and `[m](n.md)`"
    assert links(text) == [("docs/b.md", "c-d"), ("f.png", ""), ("", "h"), ("https://j.k/l", "")]
