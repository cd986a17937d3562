"""Whole runs on another device than the CPU: nothing meets what lies elsewhere, and the set is that of the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

OTHERS = ("image-methods", "graph", "graph-set", "text", "recsys")


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="torch has no such devices yet"
)
@pytest.mark.parametrize(
    "domain",
    ["image", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)],
)
def test_a_run_on_another_device_is_that_of_the_cpu(domain: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.elsewhere_worker", str(tmp_path), domain]
    place = {**os.environ, "MMDISTILL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=place)
    assert done.returncode == 0, done.stderr[-3000:]
