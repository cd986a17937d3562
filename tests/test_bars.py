import os
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import pytest

from mmdistill import bars
from mmdistill.bars import in_notebook, progress_bar


def test_a_bar_appears_with_the_first_call_and_shows_facts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("judging", "set") as show:
        assert not capsys.readouterr().err
        show(0, 4, now="herding by convnet")
        begun = capsys.readouterr().err
        show(4, 4)
    assert "judging" in begun
    assert "0/4" in begun
    assert "herding by convnet" in begun
    assert "4/4" in capsys.readouterr().err


def test_nothing_is_shown_before_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such budget"), progress_bar("digits dm", "step"):
        raise ValueError("no such budget")
    assert not capsys.readouterr().err


def test_an_invisible_bar_counts_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("digits dm", "step", visible=False) as show:
        show(1, 2)
        show(2, 2)
    assert not capsys.readouterr().err


def test_facts_change_between_two_units(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.bars.LOG_SECONDS", 0.0)
    with progress_bar("judging", "set") as show:
        for epoch in range(5):
            show(1, 2, now=f"the distilled set, epoch {epoch}/5")
    assert "epoch 4/5" in capsys.readouterr().err


def test_a_log_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("digits dm", "step") as show:
        for step in range(10_000):
            show(step + 1, 10_000, loss="1.0")
    assert capsys.readouterr().err.count("digits dm") < 5


def test_a_notebooks_bar_is_redrawn_as_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not in_notebook()
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setattr("mmdistill.bars.TERMINAL_SECONDS", 0.0)
    assert in_notebook()
    assert bars.is_redrawn()
    with progress_bar("digits dm", "step") as show:
        for step in range(5):
            show(step + 1, 5)
            assert f"{step + 1}/5" in capsys.readouterr().err
    shell.config = {}  # a terminal's IPython
    assert not in_notebook()


def test_a_notebook_without_widgets_gets_a_bar_without_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr("tqdm.notebook.IProgress", None)
    monkeypatch.delitem(sys.modules, "tqdm.auto", raising=False)
    monkeypatch.delitem(sys.modules, "tqdm.autonotebook", raising=False)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with progress_bar("digits dm", "step", visible=False) as show:
            show(1, 2)
        assert "tqdm.auto" not in sys.modules
        with progress_bar("digits dm", "step") as show:
            show(1, 2)
    assert "tqdm.auto" in sys.modules
    assert not warned
    assert "1/2" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens terminals otherwise")
def test_a_terminal_that_says_it_has_no_columns_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    terminal, own = pty.openpty()
    assert os.get_terminal_size(own).columns == 0
    with os.fdopen(own, "w", encoding="utf-8") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        patched.setattr("mmdistill.bars.tqdm", partial(bars.tqdm, file=stream))
        with progress_bar("digits dm", "step") as show:
            show(1, 2)
            assert "1/2" in os.read(terminal, 1000).decode()
    os.close(terminal)


def test_a_stream_without_a_number_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    stream = SimpleNamespace(write=written.append, flush=lambda: None, isatty=lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("digits dm", "step") as show:
        show(1, 2)
    assert "1/2" in "".join(written)
