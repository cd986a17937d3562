"""Score an exported set with the field's neutral evaluator, the package ddranking, in an environment of its own.

It needs numpy < 2 and an old scipy, so it is no dependency of mmdistill:

    python -m venv ddranking-env && ddranking-env/bin/pip install ddranking
    mmdistill export runs/cifar10-dm --format ddranking --to exported
    ddranking-env/bin/python benchmarks/ddranking_scores.py --set exported/ddranking --ipc 10 --real data/ --lr 0.01

It knows CIFAR-10, CIFAR-100, Tiny-ImageNet and parts of ImageNet; CIFAR-10 may lie there in the binary layout too.
Test images are normalised, not whitened, so whitened sets are refused by the export.
It trains on all real data as well, for as many epochs, unless --whole says what these give.
For a set with a learned rate give that one as --lr: it is learned.inner_lr in the run's distilled.safetensors. Its
scores mix percent and fractions: compare differences of accuracies, and take the scores from
'mmdistill evaluate --scores robust', which also serves every other data set.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

DSA = {
    "flip": 0.5,
    "rotate": 15.0,
    "saturation": 2.0,
    "brightness": 1.0,
    "contrast": 0.5,
    "scale": 1.2,
    "crop": 0.125,
    "cutout": 0.5,
}


BINARY = "cifar-10-batches-bin"


class BinaryCIFAR10(torch.utils.data.Dataset[tuple[object, int]]):
    """CIFAR-10 in its binary layout, with torchvision's signature: a label byte, then 3 x 32 x 32 bytes."""

    def __init__(
        self,
        root: str,
        train: bool = True,
        download: bool = False,
        transform: Callable[[Image.Image], object] = np.array,
    ) -> None:
        names = [f"data_batch_{part}.bin" for part in range(1, 6)] if train else ["test_batch.bin"]
        rows = np.concatenate([np.fromfile(Path(root) / BINARY / name, np.uint8).reshape(-1, 3073) for name in names])
        self.targets = rows[:, 0].tolist()
        self.data = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder with images.pt and labels.pt")
    parser.add_argument("--ipc", type=int, required=True)
    parser.add_argument("--real", default="./dataset", help="root of the real data, as torchvision lays them out")
    parser.add_argument("--dataset", default="CIFAR10")
    parser.add_argument("--model", default="ConvNet-3")
    parser.add_argument("--lr", type=float, default=0.01, help="of judges of the set")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--whole", type=float, help="percent that all real data give, where that is known already")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4, help="processes that load data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    from ddranking.metrics import LabelRobustScoreHard, hard_label  # here, so that --help needs no such environment

    if (Path(chosen.real) / BINARY).is_dir():  # ddranking asks torchvision, which reads the pickled layout alone
        torchvision.datasets.CIFAR10 = BinaryCIFAR10
    if chosen.whole is not None:
        hard_label.REAL_DATA_ACC_CACHE[f"{chosen.dataset}-{chosen.model}"] = chosen.whole
    # Version 0.2.0 notes each score twice, so that its columns differ in length and its own table cannot be written.
    hard_label.save_results = lambda results, path: Path(path).write_text(json.dumps(results), encoding="utf-8")
    images = torch.load(chosen.set / "images.pt", map_location="cpu", weights_only=True)
    labels = torch.load(chosen.set / "labels.pt", map_location="cpu", weights_only=True)
    evaluator = LabelRobustScoreHard(
        dataset=chosen.dataset,
        real_data_path=chosen.real,
        ipc=chosen.ipc,
        model_name=chosen.model,
        data_aug_func="dsa",
        aug_params=DSA,
        num_eval=chosen.networks,
        num_epochs=chosen.epochs,
        step_size=max(chosen.epochs // 2, 1),
        im_size=tuple(images.shape[-2:]),
        device=chosen.device,
        random_data_path=str(chosen.set / "random"),
        save_path=str(chosen.set / "ddranking.json"),
        num_workers=chosen.workers,
        eval_full_data=chosen.whole is None,
    )
    # Class after class, as exported; a soft label's largest class need not be its image's.
    by_class = torch.arange(len(labels) // chosen.ipc).repeat_interleave(chosen.ipc)
    hard = by_class if labels.is_floating_point() else labels
    print(evaluator.compute_metrics(image_tensor=images, hard_labels=hard, syn_lr=chosen.lr))


if __name__ == "__main__":
    main()
