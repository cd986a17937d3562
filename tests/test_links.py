"""Every relative link of the documentation leads to a file that exists."""

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for path, _ in links(page.read_text()):
        if "://" not in path:
            assert (page.parent / path).exists(), path


def test_a_link_is_a_path_and_an_anchor() -> None:
    text = "[a](docs/b.md#c-d), ![e](f.png), [g](#h), [i](https://j.k/l) and `[m](n.md)`"
    assert links(text) == [("docs/b.md", "c-d"), ("f.png", ""), ("", "h"), ("https://j.k/l", "")]
