"""The run that the commands' tests make: of the embedded digits, in a second."""

from pathlib import Path

from mmdistill.cli import main

FAST = ["--steps", "6", "--width", "8", "--networks", "1", "--judge-epochs", "2", "--real-batch", "8"]


def distil(folder: Path, *extra: str) -> int:
    return main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--out", str(folder), *FAST, *extra])
