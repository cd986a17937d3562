"""Distil and judge named rows, one after the other, with the results and baselines of each in one JSON lines file.

    python benchmarks/quality.py --rows mnist-dm-1,mnist-dm-10,cifar10-dm-10 --device cuda --out results/

A row is DATA-METHOD-BUDGET with published settings; options after a colon override them, for example
``mnist-dm-1:steps=2000,real_batch=64,width=32,judge_epochs=200``. Finished rows are skipped, interrupted ones resumed.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from mmdistill.distill import distill
from mmdistill.evaluate import evaluate, metrics_document
from mmdistill.registry import TaskOptions, domain_of, get_method
from mmdistill.runtime import choose_device
from mmdistill.store import write_json

TASK_OPTIONS = ("model", "width", "encoder", "judge_epochs", "judge_batch")


def parse_row(row: str) -> tuple[str, str, int, dict[str, object]]:
    """Return data, method, budget and overrides of a row."""
    name, _, extra = row.partition(":")
    data, rest = name.split("-", 1) if not name.startswith(("fashion-mnist", "ml-1m")) else _two_part(name)
    method, _, budget = rest.rpartition("-")
    options: dict[str, object] = {}
    for item in filter(None, extra.split(",")):
        key, _, value = item.partition("=")
        options[key] = json.loads(value) if value[:1] in "0123456789tf[-" else value
    return data, method, int(budget), options


def _two_part(name: str) -> tuple[str, str]:
    first, second, rest = name.split("-", 2)
    return f"{first}-{second}", rest


def run_row(row: str, folder: Path, device: str, networks: int, seed: int) -> dict[str, object]:
    """Distil and judge one row; returns its metrics document."""
    data, name, budget, overrides = parse_row(row)
    domain = domain_of(data)
    task_options = {key: overrides.pop(key) for key in TASK_OPTIONS if key in overrides}
    task = domain.make_task(data, TaskOptions(device=device, **task_options))  # type: ignore[arg-type]
    method = get_method(domain, name)
    resume = any((folder / "checkpoints").glob("step-*.safetensors"))
    last = [time.time()]

    def report(done: int, total: int, loss: float) -> None:
        if time.time() - last[0] > 20:
            last[0] = time.time()
            print(f"{row}: step {done}/{total}, loss {loss:.4g}", flush=True)

    result = distill(
        task, method, budget, seed=seed, settings=overrides, out=folder, resume=resume, progress=report, name=name
    )
    evaluation = evaluate(task, result, n=networks)
    document = metrics_document(result, evaluation) | {"row": row, "judging_seconds": evaluation.seconds}
    write_json(folder / "metrics.json", document)
    domain.draw(task, result.to(task.device), folder / "pictures")
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="space- or semicolon-separated where a row has options")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    device = str(choose_device(chosen.device))
    split = ";" if ";" in chosen.rows or ":" in chosen.rows else ","
    for row in filter(None, (part.strip() for part in chosen.rows.split(split))):
        folder = chosen.out / row.replace(":", "_").replace("=", "").replace(",", "_")
        if (folder / "metrics.json").exists():
            continue
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        document = run_row(row, folder, device, chosen.networks, chosen.seed)
        with (chosen.out / "results.jsonl").open("a") as lines:
            lines.write(json.dumps(document) + "\n")
        results = document["results"]
        print(row, json.dumps(results), json.dumps(document["baselines"]), document["seconds"], flush=True)


if __name__ == "__main__":
    main()
