"""Names and paths as other systems than this one write them."""

from pathlib import PureWindowsPath

import pytest

from mmdistill import names
from mmdistill.errors import UnknownNameError
from mmdistill.names import as_argument, as_file_name, known_name
from mmdistill.reporting.report import Page, _markdown


def test_arguments_are_quoted_as_the_shell_of_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "WINDOWS", False)
    assert [as_argument(one) for one in ("runs/a", "it's mine")] == ["runs/a", "'it'\"'\"'s mine'"]
    monkeypatch.setattr(names, "WINDOWS", True)
    assert [as_argument(PureWindowsPath(one)) for one in ("runs/a", "it's mine")] == [r"runs\a", '"it\'s mine"']


def test_file_names_lose_what_some_file_system_refuses() -> None:
    assert as_file_name('a:b/c\\d"e?f*g<h>i|j\n') == "a-b-c-d-e-f-g-h-i-j-"
    assert as_file_name("My table_é, v2.1-dm-10") == "My table_é, v2.1-dm-10"


def test_links_of_a_page_have_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.reporting.report.caption_of", lambda path: "")  # of a file that is not there
    folder = PureWindowsPath("C:/runs/digits")
    shown = [folder / "pictures" / "loss.png"]
    page = _markdown(Page("t", [["a"]], "c", [], shown), [], folder)  # type: ignore[arg-type]
    assert "](pictures/loss.png)" in page


def test_a_table_without_names_says_so() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'dm' \(there are none\)"):
        known_name("method", "dm", {})
