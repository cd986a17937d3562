"""Tests run side by side: one thread each, since threads that wait for each other's cores cost many times the work."""

import functools
import gc
import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a shell's script starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage among the libraries' objects: not while they are imported, nor in each test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def baselines_of_this_test_alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let runs of a test find none of the baselines that others have judged."""
    from mmdistill.runs import kept_baselines

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(kept_baselines, "cache_folder", lambda: folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def parser_made_once() -> Iterator[None]:
    """Let commands share a parser, which is the same for each of them and takes longer to make than to parse."""
    try:
        from mmdistill import cli
    except ModuleNotFoundError as error:
        if error.name != "jsonargparse":  # without which tests that use no command, as those of a GPU, still run
            raise
        yield
        return

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli, "build_parser", functools.cache(cli.build_parser))
        yield


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit the starts of codes to their images for two steps, where how near they come is not what a test is about."""
    from mmdistill.parameterizations import decoder

    fit = decoder.fit_to_images
    monkeypatch.setattr(
        decoder, "fit_to_images", lambda made, images, steps, draws: fit(made, images, min(steps, 2), draws)
    )


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write plots as blank pictures, where no test looks at them: to lay one out and draw it takes half a second."""
    from matplotlib.figure import Figure
    from PIL import Image

    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **how: Image.new("RGB", (4, 4)).save(file, "png"))
