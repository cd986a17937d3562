"""A distilled set as a proxy in architecture search, beside as many real images.

    python benchmarks/search.py --row digits-dm-10 --widths 8,16 --seeds 0,1
    python benchmarks/search.py --depths 1,2,3 --widths 8,16 --poolings avgpool --whole-epochs 2 --seeds 0,1
        --row mnist-dm-10:schedule=reduced,width=16,judge_epochs=100,judge_batch=25

Candidates are ConvNets of a grid of depths, widths, norms, activations and poolings. Each is trained from scratch on
the distilled set, on random and on herded images at equal count (the proxies), and on the whole training set, and
scored on a part of the training images that is held out of all of these; test images are never looked at. Prints for
each proxy

- Spearman's rank correlation of its scores with those of whole training, over all candidates and over the half that
  whole training finds best, as the mean and deviation over seeds;
- what its best candidate reaches by whole training. Beside it stand the best of all candidates, which is chosen and
  scored by the same numbers, and their mean, which a blind choice gets;
- the seconds (process time, of the device's machine) of making the set and of judging all candidates.

A row is one of quality.py, of images; ``judge_epochs`` are those on a proxy. Each seed is a distillation, selections
and networks of its own. Writes ``search.json`` and ``search.md`` into the row's folder below ``--out``; what is
finished there is not measured again, and an interrupted distillation goes on, whose earlier seconds are not counted.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from choose import held_out
from quality import divided, folder_of, integers, parse_row, spread
from scipy.stats import spearmanr

from mmdistill import DistilledSet, distill, evaluate, image_task, selection
from mmdistill.errors import UnsupportedError
from mmdistill.image import ImageTask
from mmdistill.store import read_json, write_json

REAL = ("random", "herding")
WHOLE = "whole"
HELD_OUT = 0.1
"""Share of the training images that candidates are scored on, at most 5,000."""
Scores = dict[str, Any]
"""``made``: the seconds of each proxy; ``judged``: mean, seconds and networks of each candidate, by proxy and seed."""


def searched(row: str, whole_epochs: int | None, device: str) -> tuple[ImageTask, str, int, dict[str, Any]]:
    """Return a row's task without test images, its method and budget, and the other options of its distillation."""
    name, method, ipc, overrides = parse_row(row)
    options, how = divided(overrides)
    whiten = options.pop("whiten", None)
    data = held_out(image_task(name, whiten=whiten, device=device).data, fraction=HELD_OUT)
    data = replace(data, whole_epochs=whole_epochs or data.whole_epochs)
    return image_task(data, device=device, **options), method, ipc, how


def grid(task: ImageTask, *values: str) -> list[str]:
    """Return the candidates of comma-separated depths, widths, norms, activations and poolings that take the images."""
    found = []
    for depth, width, *words in itertools.product(*(text.split(",") for text in values)):
        try:
            found.append(task.describe_judge("-".join(["convnet", f"d{depth}", f"w{width}", *words])).name)
        except UnsupportedError:  # too many poolings for these images
            continue
    return list(dict.fromkeys(found))


def judge(task: ImageTask, candidate: str, proxy: DistilledSet, networks: int, seed: int, whole: bool) -> Scores:
    """Return the held-out accuracy of a candidate that is trained on a proxy, or on the whole training set."""
    began = time.process_time()
    beside = [WHOLE] if whole else []
    found = evaluate(
        task, proxy, judges=[candidate], n=networks, seed=seed, baselines=beside, baselines_only=whole
    ).headline()
    return {"mean": found.mean, "sd": found.sd, "networks": networks, "seconds": time.process_time() - began}


def measure(
    row: tuple[ImageTask, str, int, dict[str, Any]],
    candidates: Sequence[str],
    seeds: Sequence[int],
    networks: tuple[int, int],
    folder: Path,
) -> Scores:
    """Return what its folder holds of a search, and all that is missing there.

    Args:
        row: what :func:`searched` returns.
        candidates: by name.
        seeds: of proxies and networks.
        networks: of each candidate, on a proxy and on the whole training set.
        folder: of the row.
    """
    task, method, ipc, how = row
    path = folder / "search.json"
    found: Scores = read_json(path) if path.exists() else {"made": {}, "judged": {}}
    proxies = {}
    for seed, kind in itertools.product(seeds, (method, *REAL)):
        key, began = f"{kind} {seed}", time.process_time()
        if kind in REAL:
            proxies[key] = selection(task, kind, ipc, seed=seed)
        else:
            proxies[key] = distill(task, kind, ipc=ipc, seed=seed, out=folder / f"seed-{seed}", resume="auto", **how)
        found["made"].setdefault(key, time.process_time() - began)
        write_json(path, found)
    for candidate in candidates:
        for key in (whole_key(task), *proxies):
            whole, judged = key not in proxies, found["judged"].setdefault(key, {})
            n = networks[1] if whole else networks[0]
            if candidate in judged and judged[candidate]["networks"] == n:
                continue
            proxy = proxies[f"{method} {seeds[0]}" if whole else key]
            judged[candidate] = judge(task, candidate, proxy, n, 0 if whole else int(key.split()[-1]), whole)
            write_json(path, found)
            print(f"{candidate} on {key}: {100 * judged[candidate]['mean']:.1f}", flush=True)
    return found


def whole_key(task: ImageTask) -> str:
    """Return under which name scores of whole training are kept: with its epochs, on which no proxy depends."""
    return f"{WHOLE} {task.data.whole_epochs}"


def table(
    found: Scores, whole_name: str, kinds: Sequence[str], candidates: Sequence[str], seeds: Sequence[int]
) -> list[str]:
    """Return how well each proxy ranks the candidates, as a Markdown table."""
    whole = [found["judged"][whole_name][name] for name in candidates]
    truth = [100 * entry["mean"] for entry in whole]
    better = sorted(range(len(truth)), key=truth.__getitem__)[len(truth) // 2 :]
    lines = ["| proxy | correlation, all | correlation, better half | its choice | seconds to make | to judge |"]
    lines.append("|" + "---|" * 6)
    for kind in kinds:
        everything, half, choices, made, judging = [], [], [], [], []
        for seed in seeds:
            own = found["judged"][f"{kind} {seed}"]
            scores = [own[name]["mean"] for name in candidates]
            everything.append(correlation(scores, truth))
            half.append(correlation([scores[i] for i in better], [truth[i] for i in better]))
            choices.append(truth[max(range(len(scores)), key=scores.__getitem__)])
            made.append(found["made"][f"{kind} {seed}"])
            judging.append(sum(own[name]["seconds"] for name in candidates))
        cells = [spread(everything, 2), spread(half, 2), spread(choices)]
        lines.append(
            f"| {kind} | {' | '.join(cells)} | {statistics.fmean(made):.0f} | {statistics.fmean(judging):.0f} |"
        )
    seconds = sum(entry["seconds"] for entry in whole)
    lines += [f"| whole training set | | | {max(truth):.1f} | | {seconds:.0f} |"]
    lines += [f"| none, a blind choice | | | {statistics.fmean(truth):.1f} | | |", ""]
    first = found["judged"][f"{kinds[0]} {seeds[0]}"][candidates[0]]["networks"]
    lines.append(
        f"{len(candidates)} candidates, {len(seeds)} seeds; networks of each: {first} on a proxy, "
        f"{whole[0]['networks']} on the whole training set."
    )
    return lines


def correlation(scores: Sequence[float], truth: Sequence[float]) -> float:
    """Return Spearman's rank correlation; 0 where all scores are alike, which order nothing."""
    if min(len(set(scores)), len(set(truth))) < 2:
        return 0.0
    return float(spearmanr(scores, truth).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, help="as in quality.py")
    parser.add_argument("--depths", default="1,2,3")
    parser.add_argument("--widths", default="8,16")
    parser.add_argument("--norms", default="nn,in", help="of nn, in, bn, ln and gn")
    parser.add_argument("--activations", default="relu,sigmoid", help="of relu, leakyrelu, sigmoid and swish")
    parser.add_argument("--poolings", default="avgpool,maxpool", help="of avgpool, maxpool and nopool")
    parser.add_argument("--whole-epochs", type=int, help="on the whole training set, at most judge_epochs")
    parser.add_argument("--seeds", type=integers, default="0", help="of proxies, comma-separated")
    parser.add_argument("--networks", type=int, default=2, help="of each candidate on each proxy")
    parser.add_argument("--whole-networks", type=int, default=1, help="of each candidate on the whole training set")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results"))
    chosen = parser.parse_args()
    row = searched(chosen.row, chosen.whole_epochs, chosen.device)
    names = grid(row[0], chosen.depths, chosen.widths, chosen.norms, chosen.activations, chosen.poolings)
    folder = folder_of(chosen.out / "search", chosen.row, 0).parent
    found = measure(row, names, chosen.seeds, (chosen.networks, chosen.whole_networks), folder)
    lines = table(found, whole_key(row[0]), (row[1], *REAL), names, chosen.seeds)
    (folder / "search.md").write_text("\n".join([f"`{chosen.row}`", "", *lines]) + "\n", encoding="utf-8")
    print("\n".join([*lines, f"wrote {folder}/search.json and search.md"]))


if __name__ == "__main__":
    main()
