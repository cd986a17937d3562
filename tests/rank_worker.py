"""What each process of ``tests/test_ranks.py`` runs: distil toy blobs, perhaps stopped half-way.

torchrun starts it: ``-m tests.rank_worker FOLDER METHOD [stop|resume]``.
"""

import os
import signal
import sys
from pathlib import Path

import safetensors.torch

from mmdistill import ranks
from mmdistill.distill import distill
from tests.test_distill import method, samples
from tests.toys import BlobTask


def main(folder: Path, name: str, how: str) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        if how == "stop" and done == 7 and not ranks.is_first():
            os.kill(os.getpid(), signal.SIGTERM)

    with ranks.process_group("cpu"):
        try:
            result = distill(
                BlobTask(), method(name), ipc=2, seed=4, out=folder / "run", resume=how == "resume", progress=stop
            )
        except KeyboardInterrupt:
            return
        safetensors.torch.save_file({"samples": samples(result)}, folder / f"{how}-{ranks.rank()}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
