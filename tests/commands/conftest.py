"""A finished run for the tests of the commands."""

from pathlib import Path

import pytest

from tests.commands.digits import distil


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert distil(folder) == 0
    return folder
