"""Draw the images of several finished runs on the same data in one picture, a row for each.

    python benchmarks/gallery.py --to docs/mnist.png DM=results/mnist-dm-1/seed-0 MTT=results/mnist-mtt-1/seed-0

Of sets with more images than one per class the first ones of each class in turn are shown.
"""

import argparse
from pathlib import Path

from mmdistill.distilled import DistilledSet
from mmdistill.image.draw import picture_grid, to_picture_bytes
from mmdistill.image.task import image_task
from mmdistill.labels import classes_of
from mmdistill.task import one_tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER, from the top")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--most", type=int, default=10, help="images of a run, the first of each class in turn")
    chosen = parser.parse_args()
    names, rows = [], []
    for run in chosen.runs:
        name, _, folder = run.partition("=")
        distilled = DistilledSet.load(Path(folder))
        task = image_task(distilled.info.data, width=8)
        images = one_tensor(distilled.batch.inputs, "a picture")
        labels = classes_of(one_tensor(distilled.batch.targets, "a picture"), len(task.data.class_names))
        turn = [int((labels[:index] == label).sum()) for index, label in enumerate(labels)]
        order = sorted(range(len(labels)), key=lambda index: (turn[index], int(labels[index])))
        names.append(name)
        rows.append(to_picture_bytes(task, images[order[: chosen.most]]))
    picture_grid(rows, tuple(names)).save(chosen.to, optimize=True)
    print(f"wrote {chosen.to}")


if __name__ == "__main__":
    main()
