"""What ``metrics.json`` holds: the results of a set and its baselines, as they were judged."""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from mmdistill.abilities import JUDGING, Judging, LimitsJudging, ask_teacher, given_teacher, overrides_of
from mmdistill.distilled import DistilledSet, is_number
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.evaluation import Entry, Evaluation
from mmdistill.networks.architecture import OWN, own_network
from mmdistill.store import read_json
from mmdistill.task import BudgetKind, Task

METRICS_VERSION = 1
NETWORK, TEACHER = "network", "teacher"
"""Under which the ``judging`` of an entry says which network one of the user's own is, and which a given teacher."""
ENTRY = {"judge": str, "metric": str, "mean": Real, "sd": Real, "n": int}
DOCUMENT = {"data": str, "method": str, "seconds": Real}
"""What an entry, and the whole, must have."""


def metrics_document(
    task: Task,
    distilled: DistilledSet,
    evaluation: Evaluation,
    previous: Mapping[str, Any] | None = None,
    judging: Judging | None = None,
) -> dict[str, object]:
    """Return the content of ``metrics.json``.

    Entries of the same judge and metric replace previous ones; previous baselines stay where they were judged alike.
    Nothing stays of what was judged on other test data.

    Args:
        task: that judged; it says what its judges read, what of that the user set, and what they are tested on.
        distilled: the set.
        evaluation: its results and baselines.
        previous: what the file held before.
        judging: what the user set of judging, of a task that does not keep it.
    """
    previous = of_same_test(previous or {}, task)

    def plain(entries: Sequence[Entry]) -> list[dict[str, object]]:
        own = [judging_record(task, entry.judge, judging) for entry in entries]
        return [entry.plain() | ({"judging": read} if read else {}) for entry, read in zip(entries, own, strict=True)]

    results = _merged(previous.get("results", []), plain(evaluation.results))
    baselines = {name: _alike(entries, results) for name, entries in previous.get("baselines", {}).items()}
    for name, entries in evaluation.baselines.items():
        baselines[name] = _merged(baselines.get(name, []), plain(entries))
        _require_one_network(results, baselines[name])  # they stand side by side
    return {
        "version": METRICS_VERSION,
        "data": distilled.info.data,
        "method": distilled.method,
        "budget": {distilled.info.budget: distilled.budget, "stored_bytes": distilled.stored_bytes},
        "whole_bytes": distilled.info.stored_bytes,
        **_tested_on(task),
        "results": results,
        "baselines": {name: entries for name, entries in baselines.items() if entries},
        "seconds": distilled.seconds,
        "setup_seconds": distilled.setup_seconds,
        "compile_seconds": distilled.compile_seconds,
        "seconds_per_step": distilled.seconds_per_step,
        "seconds_per_update": distilled.seconds_per_update,
        "peak_memory_bytes": distilled.peak_memory_bytes,
        "device": distilled.device,
    }


def _tested_on(task: Task) -> dict[str, str]:
    """Return a hash of a task's test data as metrics hold it; nothing where the task does not say it."""
    found = task.describe().test_fingerprint
    return {"tested_on": found} if found else {}


def of_same_test(metrics: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
    """Return metrics as they are, or empty where they are known to be of other test data than a task's."""
    return {} if any(metrics.get(name, own) != own for name, own in _tested_on(task).items()) else metrics


def read_metrics(path: Path) -> dict[str, Any]:
    """Read what :func:`metrics_document` made.

    Raises:
        CheckpointError: the file is damaged, or of another version.
    """
    document = read_json(path)
    if document.get("version") != METRICS_VERSION:
        version = document.get("version")
        raise CheckpointError(
            f"{path} has version {version}, this mmdistill reads {METRICS_VERSION}; move it away to judge anew"
        )
    results, baselines = document.get("results"), document.get("baselines")
    lists = [results, *baselines.values()] if isinstance(baselines, Mapping) else [None]
    entries_fit = all(isinstance(entries, list) and all(fits(e, ENTRY) for e in entries) for entries in lists)
    sizes = document.get("budget")
    sizes_fit = any(
        isinstance(sizes, Mapping) and sizes.keys() == {unit, "stored_bytes"} and fits(sizes, dict.fromkeys(sizes, int))
        for unit in get_args(BudgetKind)
    )
    if not (entries_fit and sizes_fit and fits(document, DOCUMENT)):
        raise CheckpointError(f"{path} is damaged; move it away to judge anew")
    return document


def former_metrics(path: Path) -> dict[str, Any]:
    """Return what :func:`read_metrics` reads, or nothing where nothing was judged."""
    return read_metrics(path) if path.exists() else {}


def fits(found: object, types: Mapping[str, type]) -> bool:
    """Return whether a mapping has values of some types; of what an entry may lack, where it has it."""
    if not isinstance(found, Mapping):
        return False
    optional = {"judging": Mapping, "notes": list, "by_class": Mapping}
    numbers = [found.get(name) for name, kind in types.items() if kind in (Real, int)]
    return (
        all(isinstance(found.get(name), kind) for name, kind in types.items())
        and all(map(is_number, numbers))
        and all(isinstance(found[name], kind) for name, kind in optional.items() if name in found)
        and all(isinstance(note, str) for note in found.get("notes", ()))
        and all(map(is_number, found.get("by_class", {}).values()))
    )


def judging_record(task: Task, judge: str, judging: Judging | None = None) -> dict[str, int | str]:
    """Return what a judge reads of what the user set of judging, and which one a network of the user's own is.

    Of a judge that asks the teacher that the task was given, also the first digits of that one's digest.

    Args:
        task: whose judge it is.
        judge: by name or title.
        judging: what the user set beside what the task keeps of it.
    """
    read = task.judging_read(judge) if isinstance(task, LimitsJudging) else JUDGING
    found = {name: value for name, value in {**overrides_of(task), **(judging or {})}.items() if name in read}
    own = own_network(task) if judge.partition(" [")[0] == OWN else ""
    found |= {NETWORK: own} if own else {}
    if (given := given_teacher(task)) is not None and ask_teacher(task, [judge]):
        found[TEACHER] = given.digest[:8]
    return found


def judge_in_words(entry: Mapping[str, Any]) -> str:
    """Return who judged, with what the user set of judging in brackets."""
    chosen = ", ".join(f"{name} {value}" for name, value in entry.get("judging", {}).items())
    return f"{entry['judge']} ({chosen})" if chosen else str(entry["judge"])


def recorded(document: Mapping[str, Any], failures: Mapping[str, str] | None = None) -> Evaluation:
    """Return the results that ``metrics.json`` holds, with the failures of judging them where there were any."""

    def entries(plain: Sequence[Mapping[str, Any]]) -> list[Entry]:
        return [
            Entry(e["judge"], e["metric"], e["mean"], e["sd"], e["n"], tuple(e.get("notes", ())), e.get("by_class", {}))
            for e in plain
        ]

    baselines = {name: entries(plain) for name, plain in document.get("baselines", {}).items()}
    return Evaluation(entries(document.get("results", [])), baselines, failures=dict(failures or {}))


def _key(entry: Mapping[str, object]) -> tuple[object, object]:
    return entry.get("judge"), entry.get("metric")


def _merged(old: list[dict[str, object]], new: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return old entries with new ones of the same judge and metric in their places, then those that are new."""
    _require_one_network(old, new)
    fresh = {_key(entry): entry for entry in new}
    kept = [fresh.pop(_key(entry), entry) for entry in old]
    return kept + list(fresh.values())


def _require_one_network(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> None:
    """Refuse results of one network of the user's own in the place of another's, or beside them as baselines.

    Raises:
        ConfigError: they are two.
    """
    former = {_key(entry): entry.get("judging", {}).get(NETWORK) for entry in old}
    for entry in new:
        network, other = entry.get("judging", {}).get(NETWORK), former.get(_key(entry))
        if network and other and network != other:
            raise ConfigError(
                f"the folder has results of another network of yours, {other}, than the judge {entry['judge']!r} "
                f"is now ({network}); keep these in another folder, or move its metrics.json away"
            )


def _alike(baseline: list[dict[str, object]], results: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the entries of a baseline without those that were judged otherwise than the set that they stand beside."""
    judging = {_key(entry): entry.get("judging") for entry in results}
    return [e for e in baseline if _key(e) not in judging or e.get("judging") == judging[_key(e)]]


def dropped_baselines(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the baselines with their judges of one content of ``metrics.json`` that a later one has no more."""

    def named(document: Mapping[str, Any]) -> list[str]:
        found = document.get("baselines", {}).items()
        return [f"{name} by {entry['judge']}" for name, entries in found for entry in entries]

    kept = named(after)
    return list(dict.fromkeys(name for name in named(before) if name not in kept))
