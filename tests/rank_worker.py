"""What each process of ``tests/execution/test_ranks.py`` runs: distil toy blobs, perhaps stopped half-way.

torchrun starts it: ``-m tests.rank_worker FOLDER METHOD HOW``, with one of the words below; ``skips`` has a number
after a colon, the loss above which steps change nothing. ``failing`` notes how each rank ends where one of them fails,
and distils after all that.
"""

import faulthandler
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, DataError
from mmdistill.execution import ranks
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.runs.damaged import whole_set
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch
from tests.runs.blobs import Validated, method, samples
from tests.toys import BlobTask, RandomTargets


class Disagreeing(Validated):
    """Of which the first rank finds the third validation best, and every other rank each new one."""

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        score = super().validate(synthetic, draws, learned)
        return score if ranks.is_first() else float(self.calls)


class RefusedError(DataError):
    """An error of a user's own, made of more than a message."""

    def __init__(self, where: str, number: int) -> None:
        super().__init__(f"{where} {number}")


def failing(folder: Path) -> None:
    """Fail on one rank in several ways, and note how each rank ends of it."""

    def raised(rank: int, error: BaseException) -> None:
        if ranks.rank() == rank:
            raise error

    def alone(rank: int, error: BaseException) -> Callable[[], object]:
        def call() -> None:
            with ranks.first_alone():
                raised(rank, error)

        return call

    def starting(*args: object) -> Parameterization:
        raised(0, DataError("no data"))
        return raw_samples(BlobTask(), 2, "real", "hard", Draws(0))

    def fill(name: str) -> None:
        if not ranks.is_first():  # a file where its first checkpoint goes
            (folder / name / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / name / "checkpoints/rank-1").touch()

    def filling(done: int, total: int, loss: float) -> None:
        if done == 1:
            fill("full")

    class Bursting(BlobTask):
        """Real data that hold NaN in the second batch, when the disk of the second rank is full."""

        calls = 0

        def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
            found = super().sample_real(draws, classes, n)
            if isinstance(found, ClassBatch):
                self.calls += 1
                assert isinstance(found.batch.inputs, Tensor)
                if self.calls == 2:
                    fill("burst")
                    found.batch.inputs[0, 0, 0] = torch.nan
            return found

    def mixed(name: str, steps: int, resume: Literal[True, "auto"]) -> Callable[[], object]:
        """Make a run whose second rank has checkpoints of another one, and return what continues it."""
        for seed, of in enumerate((name, f"other-{name}")):
            distill(BlobTask(), method("dm", steps=steps), ipc=2, seed=seed, out=folder / of)
        if not ranks.is_first():
            shutil.copytree(
                folder / f"other-{name}/checkpoints/rank-1", folder / name / "checkpoints/rank-1", dirs_exist_ok=True
            )
        return lambda: distill(BlobTask(), method("dm"), ipc=2, out=folder / name, resume=resume)

    def unread() -> None:
        """Find a set that the second rank alone cannot read."""
        with patch.object(DistilledSet, "load", lambda path: raised(1, CheckpointError("damaged"))):
            whole_set(folder / "unread")

    cases: dict[str, Callable[[], object]] = {
        "first": alone(0, RefusedError("row", 3)),
        "other": alone(1, OSError("no space")),
        "stop": alone(0, KeyboardInterrupt()),
        "start": lambda: distill(BlobTask(), replace(method("dm"), parameterization=starting), ipc=2),
        "taken": lambda: distill(BlobTask(), method("dm"), ipc=2, out=folder / "taken"),
        "full": lambda: distill(
            BlobTask(), method("dm"), ipc=2, out=folder / "full", progress=filling, checkpoint_every=3
        ),
        "burst": lambda: distill(Bursting(), method("dm"), ipc=2, out=folder / "burst", checkpoint_every=10),
        "finished": mixed("finished", 12, "auto"),
        "unread": unread,
        "resumed": mixed("resumed", 6, True),
    }
    distill(BlobTask(), method("dm"), ipc=2, out=folder / "taken")  # which the first rank alone refuses to replace
    ends = {}
    for name, call in cases.items():
        try:
            call()
        except (Exception, KeyboardInterrupt) as error:
            ends[name] = [type(error).__name__, str(error)]
    (folder / f"ends-{ranks.rank()}.json").write_text(json.dumps(ends))


def shifted(batch: Batch, shift: Tensor) -> Batch:
    assert isinstance(batch.inputs, Tensor)
    return batch._replace(inputs=batch.inputs + shift)


def main(folder: Path, name: str, how: str) -> None:
    how, _, most = how.partition(":")

    def stop(done: int, total: int, loss: float) -> None:
        if how == "stop" and done == 7 and not ranks.is_first():
            os.kill(os.getpid(), signal.SIGTERM)

    task, own = BlobTask(), method(name)
    if how == "patience":
        task, own = Disagreeing(), method(name, steps=40, validate_every=2, patience=4)
    if how in ("longer", "further"):
        own = method(name, steps=20)
    if how == "skips":
        own = method(name, steps=1, skip_above=float(most))
    if how == "labels":
        own = replace(own, label="teacher", network=lambda settings: RandomTargets())
    if how == "apart":

        def apart(*args: object) -> Parameterization:
            made = raw_samples(BlobTask(), 2, "real", "hard", Draws(ranks.rank()))
            made.register_buffer("shift", torch.tensor(float(ranks.rank())), persistent=False)
            forward = made.forward
            made.forward = lambda draws: shifted(forward(draws), made.shift)
            return made

        own = replace(own, parameterization=apart)
    with ranks.process_group("cpu"):
        if how == "failing":
            faulthandler.dump_traceback_later(60, exit=True)  # ranks that wait for each other do so for days
            failing(folder)
        if how == "averages":
            numbers = torch.arange(6.0) + ranks.rank()
            made = [numbers[::2], numbers.view(2, 3).T, numbers[:1].expand(2)]
            averages = (tensor.contiguous() for tensor in ranks.averages(made))
            content = dict(zip(("strided", "transposed", "expanded"), averages, strict=True))
            safetensors.torch.save_file(content, folder / f"averages-{ranks.rank()}.safetensors")
            return
        try:
            result = distill(
                task,
                own,
                ipc=2,
                seed=4,
                out=folder / "run",
                resume=how in ("resume", "further"),
                progress=stop,
            )
        except KeyboardInterrupt:
            return
        assert isinstance(result.batch.targets, Tensor)
        content = {"samples": samples(result), "targets": result.batch.targets}
        safetensors.torch.save_file(content, folder / f"{how}-{ranks.rank()}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
