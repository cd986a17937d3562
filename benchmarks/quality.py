"""Distil and judge named rows, one after the other, with the results and baselines of each in a folder.

    python benchmarks/quality.py --rows mnist-dm-1,mnist-dm-10,cifar10-dm-10 --device cuda --out results/
    python benchmarks/quality.py --rows cora-gcond-x-70 --seeds 0,1,2 --out results/
    python benchmarks/quality.py --rows trec-k-means-1,trec-krr-1 --seeds 0,1,2 --against trec-k-means-1

Each seed is a distillation, a random and a herding selection and networks of its own; a row ends with means over the
seeds, their standard deviation, and by how many standard errors the set is above each baseline, paired by seed, with
the p of a paired t-test: two standard errors over three seeds are p = 0.18. With ``--against`` the rows' gaps to one of
them, or to a baseline, follow, paired likewise.

A row is DATA-METHOD-BUDGET with published settings; options after a colon override them, for example
``mnist-dm-1:schedule=reduced,width=32`` or ``mnist-dm-1:parameterization=upsample-2,steps=2000,width=32``. Finished
rows are skipped, interrupted ones resumed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import ttest_1samp

from mmdistill.distill import distill
from mmdistill.evaluate import evaluate
from mmdistill.execution.precision import Precision
from mmdistill.method import Method
from mmdistill.metrics import metrics_document
from mmdistill.names import baseline_names, split_names
from mmdistill.registry import (
    DOMAIN_PACKAGES,
    Domain,
    domain_of,
    get_domain,
    get_method,
    get_parameterization,
)
from mmdistill.runs.folder import METRICS, is_started
from mmdistill.runtime import choose_device
from mmdistill.store import read_json, write_json
from mmdistill.task import Task

TASK_OPTIONS = (
    *("model", "width", "encoder", "length", "judge_epochs", "judge_batch", "judge_precision", "protocol", "whiten"),
)
DISTILL_OPTIONS = ("schedule", "parameterization", "label", "precision")


class Prepared(NamedTuple):
    """What a row names: the task and the method with its overrides."""

    domain: Domain
    data: str
    name: str
    budget: int
    task: Task
    method: Method
    schedule: str
    precision: Precision


def prepared(row: str, device: str = "cpu") -> Prepared:
    """Return what a row names, on a device."""
    data, name, budget, overrides = parse_row(row)
    domain = domain_of(data)
    options, how = divided(overrides)
    task = make_task_of(data, {"model": domain.networks.get(name), **options}, device)
    schedule, storage = how.get("schedule", "published"), how.get("parameterization")
    method = get_method(domain, name, data, schedule).customised(
        None if storage is None else get_parameterization(domain, storage, data), how.get("label"), how["settings"]
    )
    return Prepared(domain, data, name, budget, task, method, schedule, how.get("precision", "auto"))


def make_task_of(data: str, options: Mapping[str, Any], device: str = "cpu") -> Task:
    """Return the task of data with those of its options that are not None."""
    given = {name: value for name, value in options.items() if value is not None}
    return domain_of(data).make_task(data, device=device, **given)


def split_rows(text: str) -> list[str]:
    """Return the rows of a list, separated by semicolons where a row has options, else by commas."""
    split = ";" if ";" in text or ":" in text else ","
    return [row.strip() for row in text.split(split) if row.strip()]


def parse_row(row: str) -> tuple[str, str, int, dict[str, Any]]:
    """Return data, method, budget and overrides of a row."""
    name, _, extra = row.partition(":")
    data = _data_of(row)
    method, _, budget = name.removeprefix(f"{data}-").rpartition("-")
    return data, method, int(budget), parse_options(extra)


def divided(overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the task and the arguments of ``distill`` that a row's overrides are."""
    own = {key: value for key, value in overrides.items() if key in TASK_OPTIONS}
    how = {key: value for key, value in overrides.items() if key in DISTILL_OPTIONS}
    settings = {key: value for key, value in overrides.items() if key not in (*TASK_OPTIONS, *DISTILL_OPTIONS)}
    return own, {**how, "settings": settings}


def _data_of(row: str) -> str:
    """Return the data set that a row begins with, whose name may have hyphens; a path has none."""
    for domain in map(get_domain, DOMAIN_PACKAGES):  # one after the other: importing a domain takes seconds
        named = [data for data in domain.datasets if row.startswith(f"{data}-")]
        if named:
            return max(named, key=len)
    return row.partition("-")[0]


def integers(text: str) -> list[int]:
    """Return the whole numbers of a comma-separated list."""
    return [int(number) for number in text.split(",")]


def parse_options(text: str) -> dict[str, Any]:
    """Return what ``NAME=VALUE,NAME=VALUE`` sets."""
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name: _plain(value) for name, _, value in pairs}


def _plain(text: str) -> object:
    """Return a number, truth value or list that a text spells, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def folder_of(out: Path, row: str, seed: int) -> Path:
    """Return the folder in which a row keeps what it found with a seed."""
    return out / row.replace(":", "_").replace("=", "").replace(",", "_") / f"seed-{seed}"


def run_row(
    row: str, folder: Path, device: str, networks: int, seed: int, judges: list[str], baselines: list[str]
) -> dict[str, Any]:
    """Distil and judge one row with one seed; returns its metrics document."""
    found = prepared(row, device)
    task = found.task
    resume = is_started(folder)
    last = [time.time()]

    def report(done: int, total: int, loss: float) -> None:
        if time.time() - last[0] > 20:
            last[0] = time.time()
            print(f"{row}: step {done}/{total}, loss {loss:.4g}", flush=True)

    result = distill(
        task,
        found.method,
        found.budget,
        seed=seed,
        precision=found.precision,
        out=folder,
        resume=resume,
        overwrite=True,
        progress=report,
        name=found.name,
    )
    judges = judges or [task.judges[0]]  # the network distilled with, also where the method's own judge is a kernel
    evaluation = evaluate(task, result, judges=judges, n=networks, seed=seed, baselines=baselines)
    document = metrics_document(task, result, evaluation)
    document |= {"row": row, "samples": len(result.batch.weight), "judging_seconds": evaluation.seconds}
    write_json(folder / METRICS, document)
    found.domain.draw(task, result.to(task.device), folder / "pictures")
    return document


def summarise(row: str, documents: list[dict[str, Any]]) -> str:
    """Return the row's means over the seeds, per judge and metric, with the paired gaps to the baselines."""
    lines = []
    for entry in documents[0]["results"]:
        kind = entry["judge"], entry["metric"]
        found = [percent(document["results"], kind) for document in documents]
        own = [mean for mean in found if mean is not None]
        text = f"{row} {' '.join(kind)}: {spread(own)}"
        for name in documents[0]["baselines"]:
            beside = [percent(document["baselines"].get(name, []), kind) for document in documents]
            other = [mean for mean in beside if mean is not None]
            if not other:
                continue
            text += f" | {name} {spread(other)}"
            text += paired(gaps_between(found, beside))
        lines.append(text)
    seconds = statistics.fmean(document["seconds"] for document in documents)
    return "\n".join([*lines, f"{row}: {seconds:.0f} s to distil, seeds {len(documents)}"])


def compare(row: str, against: str, found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the mean of a row's gaps, paired by seed, and its standard error, per judge and metric.

    Args:
        row: whose gaps.
        against: another row, with which one of other data is not compared, or a baseline.
        found: the metrics documents of each row, by seed.
    """
    documents, beside = found[row], found.get(against, [])
    if row == against or (beside and parse_row(row)[0] != parse_row(against)[0]):
        return ""
    others = [document["results"] for document in beside]
    others = others or [document["baselines"].get(against, []) for document in documents]
    lines = []
    for entry in documents[0]["results"]:
        kind = entry["judge"], entry["metric"]
        own = [percent(document["results"], kind) for document in documents]
        if gaps := gaps_between(own, [percent(results, kind) for results in others]):
            text = f"{row} {' '.join(kind)} above {against}: {statistics.fmean(gaps):+.1f}"
            if len(gaps) > 1:
                text += f", standard error {statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}"
            lines.append(text + paired(gaps))
    return "\n".join(lines)


def gaps_between(own: Sequence[float | None], others: Sequence[float | None]) -> list[float]:
    """Return by how much scores exceed others, where both were had."""
    return [x - y for x, y in zip(own, others, strict=True) if x is not None and y is not None]


def percent(entries: list[dict[str, Any]], kind: tuple[str, str]) -> float | None:
    """Return the mean of a judge's metric in percent; None where it was not had."""
    means = [100 * entry["mean"] for entry in entries if (entry["judge"], entry["metric"]) == kind]
    return means[0] if means else None


def paired(gaps: Sequence[float]) -> str:
    """Return by how many standard errors gaps, one for each seed, are above zero, and the p of their t-test."""
    if len(gaps) < 2 or statistics.stdev(gaps) == 0:
        return ""
    test = ttest_1samp(gaps, 0.0)
    return f" ({test.statistic:+.1f} s.e., p = {test.pvalue:.2g})"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean, and the standard deviation over seeds where there are several."""
    deviation = f" +/- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="comma-separated; semicolon-separated where a row has options")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--networks", type=int, default=5, help="judges of each kind for each seed")
    parser.add_argument("--seeds", type=integers, default="0", help="of distillation, comma-separated")
    parser.add_argument("--judges", default="", help="comma-separated; by default the network distilled with")
    parser.add_argument("--baselines", default="random,herding,whole")
    parser.add_argument("--against", help="a row or a baseline that the other rows of its data are paired with")
    chosen = parser.parse_args()
    device = str(choose_device(chosen.device))
    judges, baselines = split_names(chosen.judges), baseline_names(chosen.baselines)
    rows = split_rows(chosen.rows)
    if chosen.against not in (None, *rows, *baselines):
        parser.error(f"--against: {chosen.against!r} is none of the rows or baselines")
    found = {}
    for row in rows:
        documents = []
        for seed in chosen.seeds:
            folder = folder_of(chosen.out, row, seed)
            if (folder / METRICS).exists():
                print(f"{row}: seed {seed} is finished; judged and compared as asked for then", flush=True)
            else:
                if device.startswith("cuda"):
                    torch.cuda.init()  # which asking for a device by its number did not do
                    torch.cuda.reset_peak_memory_stats(device)
                run_row(row, folder, device, chosen.networks, seed, judges, baselines)
            documents.append(read_json(folder / METRICS))
        print(summarise(row, documents), flush=True)
        found[row] = documents
    for row in rows if chosen.against is not None else ():
        if gaps := compare(row, chosen.against, found):
            print(gaps, flush=True)


if __name__ == "__main__":
    main()
