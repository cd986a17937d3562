"""Class-incremental learning with a distilled memory, beside memories of as many real images.

    python benchmarks/continual.py --row digits-dm-10 --steps 5 --seeds 0,1,2
    python benchmarks/continual.py --steps 5 --seeds 0,1,2 --networks 3
        --row mnist-dm-10:schedule=reduced,width=16,judge_epochs=300,judge_batch=25

Classes arrive in steps, in an order that is drawn by the seed. At each step the new classes alone are distilled, their
images join the memory, and nothing else of them is kept. After each step networks are trained from scratch on the
memory of all classes seen so far, and tested on all test images of these classes (GDumb; Zhao and Bilen, WACV 2023,
have it with DM). The memories ``random`` and ``herding`` are real images of the new classes, as many at each step, and
the same networks judge all of them by the library's protocol. Pixels are normalised by the moments of the whole data
set, which a strict stream would not know.

A row is one of quality.py, of images. Each seed is an order of classes, a distillation, selections and networks of its
own. Writes ``continual.json``, ``continual.md`` and ``continual.png`` into the row's folder below ``--out``; what is
finished there is not measured again, and an interrupted distillation goes on.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import torch
from matplotlib import pyplot as plt
from quality import divided, folder_of, integers, paired, parse_row, spread

from mmdistill import DistilledSet, distill, evaluate, image_task, selection
from mmdistill.image import ImageData, ImageTask, joined
from mmdistill.names import split_names
from mmdistill.store import read_json, write_json

REAL = {"random": ":", "herding": "--"}
"""Memories of real images, with the lines that the figure has for them."""
ASIDE = 0.08
"""By how many classes points of one step stand apart, so that their deviations can be told from one another."""
Entry = dict[str, Any]


class Stream:
    """What a row says, for the parts of its classes.

    Args:
        row: as of quality.py, of images.
        device: where everything runs.
    """

    def __init__(self, row: str, device: str) -> None:
        name, self.method, self.ipc, overrides = parse_row(row)
        self.options, self.how = divided(overrides)
        self.options["device"] = device
        self.data: ImageData = image_task(name, whiten=self.options.pop("whiten", None), device=device).data

    def task(self, classes: list[int]) -> ImageTask:
        """Return the task of some classes alone."""
        return image_task(self.data.of_classes(classes), **self.options)

    def kept(self, memory: str, classes: list[int], seed: int, folder: Path) -> DistilledSet:
        """Return what a memory keeps of classes that are new."""
        task = self.task(classes)
        if memory in REAL:
            return selection(task, memory, self.ipc, seed=seed)
        return distill(task, self.method, ipc=self.ipc, seed=seed, out=folder, resume="auto", **self.how)

    def judged(self, classes: list[int], memory: list[DistilledSet], networks: int, seed: int) -> Entry:
        """Return the accuracy on the test images of classes of networks that are trained on their memory."""
        task = self.task(classes)
        found = evaluate(task, joined(task, memory), judges=task.judges[:1], n=networks, seed=seed, baselines=())
        return {"classes": classes, **found.headline().plain()}


def arrivals(classes: int, steps: int, seed: int) -> list[list[int]]:
    """Return which classes arrive at each step, in an order drawn by the seed."""
    if not 1 <= steps <= classes // 2:
        raise SystemExit(f"--steps: {classes} classes arrive in 1 to {classes // 2} steps, of two or more each")
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    return [part.tolist() for part in order.tensor_split(steps)]


def follow(stream: Stream, memory: str, steps: int, seed: int, networks: int, folder: Path) -> list[Entry]:
    """Return an entry for each step of one memory; those that its folder holds are taken as they are."""
    path = folder / memory / "steps.json"
    entries: list[Entry] = read_json(path)["steps"] if path.exists() else []
    entries = [entry for entry in entries if entry["n"] == networks]
    sets: list[DistilledSet] = []
    seen: list[int] = []
    parts = arrivals(len(stream.data.class_names), steps, seed)
    for step, classes in enumerate(parts if len(entries) < len(parts) else ()):
        sets.append(stream.kept(memory, classes, seed, folder / memory / f"step-{step}"))
        seen = [*seen, *classes]
        if step >= len(entries):
            entries.append(stream.judged(seen, sets, networks, seed))
            write_json(path, {"steps": entries})
            print(f"seed {seed}, {memory}, {len(seen)} classes: {100 * entries[-1]['mean']:.1f}", flush=True)
    return entries


def table(found: dict[str, list[list[Entry]]]) -> list[str]:
    """Return the means over seeds, and their deviation, as a Markdown table, with paired gaps below it."""
    runs = next(iter(found.values()))
    lines = ["| memory, classes seen | " + " | ".join(str(len(entry["classes"])) for entry in runs[0]) + " |"]
    lines.append("|" + "---|" * (len(runs[0]) + 1))
    for memory, own in found.items():
        cells = (spread([100 * entry["mean"] for entry in step]) for step in zip(*own, strict=True))
        lines.append(f"| {memory} | {' | '.join(cells)} |")
    first, *others = found
    networks = runs[0][0]["n"]
    lines += ["", f"{len(runs)} class orders x {networks} networks, percent; deviations are over orders."]
    for other in others:
        pairs = zip(found[first], found[other], strict=True)
        gaps = [100 * (mine[-1]["mean"] - theirs[-1]["mean"]) for mine, theirs in pairs]
        lines.append(f"- {first} - {other} in the end: {spread(gaps)}{paired(gaps)}")
    return lines


def draw(title: str, found: dict[str, list[list[Entry]]], path: Path) -> None:
    """Draw accuracy against classes seen, with deviations over seeds."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for index, (memory, runs) in enumerate(found.items()):
        steps = [[100 * entry["mean"] for entry in step] for step in zip(*runs, strict=True)]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in steps]
        x = [len(entry["classes"]) + ASIDE * (index - (len(found) - 1) / 2) for entry in runs[0]]
        y = [statistics.fmean(values) for values in steps]
        style: dict[str, str] = {"linestyle": REAL[memory], "color": "black"} if memory in REAL else {"marker": "o"}
        axes.errorbar(x, y, deviations, label=memory, capsize=2, **style)  # type: ignore[arg-type]
    axes.set_xticks([len(entry["classes"]) for entry in next(iter(found.values()))[0]])
    axes.set_xlabel("classes seen")
    axes.set_ylabel("test accuracy on the classes seen so far (%)")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, help="as in quality.py")
    parser.add_argument("--steps", type=int, default=5, help="in which classes arrive")
    parser.add_argument("--memories", default="random,herding", help="of real images, beside the distilled one")
    parser.add_argument("--seeds", type=integers, default="0", help="of class orders, comma-separated")
    parser.add_argument("--networks", type=int, default=3, help="judges after each step")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results"))
    chosen = parser.parse_args()
    stream = Stream(chosen.row, chosen.device)
    real = split_names(chosen.memories)
    if unknown := set(real) - set(REAL):
        parser.error(f"--memories: {' and '.join(REAL)} are there, not {unknown.pop()}")
    place = folder_of(chosen.out / f"continual-{chosen.steps}", chosen.row, 0).parent
    found: dict[str, list[list[Entry]]] = {memory: [] for memory in (stream.method, *real)}
    for seed in chosen.seeds:
        for memory, runs in found.items():
            runs.append(follow(stream, memory, chosen.steps, seed, chosen.networks, place / f"seed-{seed}"))
    lines = table(found)
    write_json(place / "continual.json", {"row": chosen.row, "seeds": chosen.seeds, "steps": found})
    (place / "continual.md").write_text("\n".join([f"`{chosen.row}`", "", *lines]) + "\n", encoding="utf-8")
    title = f"{stream.data.name}, {stream.ipc} images per class: accuracy on all classes seen"
    draw(title, found, place / "continual.png")
    print("\n".join([*lines, f"wrote {place}/continual.json, .md and .png"]))


if __name__ == "__main__":
    main()
