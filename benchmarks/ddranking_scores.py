"""Score an exported set with the field's neutral evaluator, the package ddranking, in an environment of its own.

It needs numpy < 2 and an old scipy, so it is no dependency of mmdistill:

    python -m venv ddranking-env && ddranking-env/bin/pip install ddranking
    mmdistill export runs/cifar10-dm --format ddranking --to exported/
    ddranking-env/bin/python benchmarks/ddranking_scores.py --set exported/ --ipc 10 --real data/ --lr 0.01

It knows CIFAR-10, CIFAR-100, Tiny-ImageNet and parts of ImageNet. For a set with a learned rate give that one as --lr:
it is learned.inner_lr in the run's distilled.safetensors. Its scores mix percent and fractions: compare differences of
accuracies, and take the scores from 'mmdistill evaluate --scores robust', which also serves every other data set.
"""

import argparse
from pathlib import Path

import torch

DSA = {
    "prob_flip": 0.5,
    "ratio_rotate": 15.0,
    "saturation": 2.0,
    "brightness": 1.0,
    "contrast": 0.5,
    "ratio_scale": 1.2,
    "ratio_crop_pad": 0.125,
    "ratio_cutout": 0.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder with images.pt and labels.pt")
    parser.add_argument("--ipc", type=int, required=True)
    parser.add_argument("--real", default="./dataset", help="root of the real data, as torchvision lays them out")
    parser.add_argument("--dataset", default="CIFAR10")
    parser.add_argument("--model", default="ConvNet-3")
    parser.add_argument("--lr", type=float, default=0.01, help="of judges of the set")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    from ddranking.metrics import LabelRobustScoreHard  # here, so that --help needs no such environment

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
        im_size=tuple(images.shape[-2:]),
        device=chosen.device,
        random_data_path=str(chosen.set / "random"),
        save_path=str(chosen.set / "ddranking.csv"),
        eval_full_data=False,
    )
    hard = labels.argmax(1) if labels.is_floating_point() else labels
    print(evaluator.compute_metrics(image_tensor=images, hard_labels=hard, syn_lr=chosen.lr))


if __name__ == "__main__":
    main()
