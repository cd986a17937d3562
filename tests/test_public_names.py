"""The names that the package promises are what they say, in whatever order modules are imported."""

import subprocess
import sys

import pytest

import mmdistill


def test_functions_are_not_hidden_by_their_modules() -> None:
    code = """
from mmdistill import distill
import mmdistill.evaluate
from mmdistill import evaluate
print(callable(distill), callable(evaluate), mmdistill.distill is distill)
from mmdistill.distill import identity
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True"] * 3


def test_every_public_name_is_there() -> None:
    assert set(mmdistill.__all__) <= set(dir(mmdistill))
    assert all(getattr(mmdistill, name) is not None for name in mmdistill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        mmdistill.distil  # noqa: B018
