"""What each process of ``tests/test_ranks.py`` runs: distil toy blobs, perhaps stopped half-way.

torchrun starts it: ``-m tests.rank_worker FOLDER METHOD whole|stop|resume|patience``.
"""

import os
import signal
import sys
from pathlib import Path

import safetensors.torch

from mmdistill import ranks
from mmdistill.distill import distill
from tests.test_distill import Validated, method, samples
from tests.toys import BlobTask


class Disagreeing(Validated):
    """Of which the first rank finds the third validation best, and every other rank each new one."""

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        score = super().validate(synthetic, draws, learned)
        return score if ranks.is_first() else float(self.calls)


def main(folder: Path, name: str, how: str) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        if how == "stop" and done == 7 and not ranks.is_first():
            os.kill(os.getpid(), signal.SIGTERM)

    task, changes = BlobTask(), {}
    if how == "patience":
        task, changes = Disagreeing(), {"steps": 40, "validate_every": 2, "patience": 4}
    with ranks.process_group("cpu"):
        try:
            result = distill(
                task,
                method(name, **changes),
                ipc=2,
                seed=4,
                out=folder / "run",
                resume=how == "resume",
                progress=stop,
            )
        except KeyboardInterrupt:
            return
        safetensors.torch.save_file({"samples": samples(result)}, folder / f"{how}-{ranks.rank()}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
