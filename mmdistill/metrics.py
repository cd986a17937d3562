"""The content of ``metrics.json``: the results of a set and its baselines."""

from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from mmdistill.abilities import Judging, ask_teacher, given_network, given_teacher, judge_facts, overrides_of
from mmdistill.distilled import DistilledSet, is_number
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.evaluation import Entry, Evaluation
from mmdistill.networks.architecture import OWN, own_network
from mmdistill.store import read_json
from mmdistill.task import BudgetKind, Task

METRICS_VERSION = 1
NETWORK, TEACHER = "network", "teacher"
"""Keys in an entry's ``judging`` for the identities of a user's own network and of a given teacher."""
ENTRY = {"judge": str, "metric": str, "mean": Real, "sd": Real, "n": int}
DOCUMENT = {"data": str, "method": str, "seconds": Real}
"""Required fields of an entry and of the document, with their types."""


def metrics_document(
    task: Task,
    distilled: DistilledSet,
    evaluation: Evaluation,
    previous: Mapping[str, Any] | None = None,
    judging: Judging | None = None,
) -> dict[str, object]:
    """Return the content of ``metrics.json``.

    Entries of the same judge and metric replace previous ones. Previous baselines stay if they were judged with the
    same settings as the results. Results on other test data are dropped.

    Args:
        task: the task that judged, with its settings of judging and its test data.
        distilled: the set.
        evaluation: its results and baselines.
        previous: the file's former content.
        judging: the user's settings of judging, for a task that does not keep them.
    """
    previous = of_same_test(previous or {}, task)

    record_of = partial(judging_record, task, judging=judging)

    def plain(entries: Sequence[Entry]) -> list[dict[str, object]]:
        records = [
            (entry.plain(), {**(judging or {}), **entry.judging} if entry.judging else record_of(entry.judge))
            for entry in entries
        ]
        return [values | ({"judging": record} if record else {}) for values, record in records]

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
    """Return the field with the hash of a task's test data; none if the task gives no hash."""
    fingerprint = task.describe().test_fingerprint
    return {"tested_on": fingerprint} if fingerprint else {}


def of_same_test(metrics: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
    """Return metrics unchanged, or empty if they are known to be from other test data than the task's."""
    return {} if any(metrics.get(name, value) != value for name, value in _tested_on(task).items()) else metrics


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a document of :func:`metrics_document`.

    Raises:
        CheckpointError: the file is damaged, or of another version.
    """
    document = read_json(path)
    if document.get("version") != METRICS_VERSION:
        found = f"has version {document['version']}" if "version" in document else "is no metrics.json of mmdistill"
        raise CheckpointError(f"{path} {found}, this one reads version {METRICS_VERSION}; move it away to judge anew")
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
    """Return the metrics in a file, or an empty dict if there is none."""
    return read_metrics(path) if path.exists() else {}


def fits(record: object, types: Mapping[str, type]) -> bool:
    """Return whether something is a mapping with the required fields, and with valid optional fields of an entry."""
    if not isinstance(record, Mapping):
        return False
    optional = {"judging": Mapping, "notes": list, "by_class": Mapping}
    numbers = [record.get(name) for name, kind in types.items() if kind in (Real, int)]
    return (
        all(isinstance(record.get(name), kind) for name, kind in types.items())
        and all(map(is_number, numbers))
        and all(isinstance(record[name], kind) for name, kind in optional.items() if name in record)
        and all(isinstance(note, str) for note in record.get("notes", ()))
        and all(map(is_number, record.get("by_class", {}).values()))
    )


def judging_record(task: Task, judge: str, judging: Judging | None = None) -> dict[str, int | str]:
    """Return the user's settings of judging that a judge reads, and the identities of its network and teacher.

    The network's is given for a user's own network, the teacher's for a judge that uses the task's given teacher: the
    first digits of its digest.

    Args:
        task: the judge's task.
        judge: by name or title.
        judging: the user's settings beside those that the task keeps.
    """
    facts = judge_facts(task, judge)
    record = {name: value for name, value in {**overrides_of(task), **(judging or {})}.items() if name in facts.reads}
    network = given_network(facts) or (own_network(task) if judge.partition(" [")[0] == OWN else "")
    record |= {NETWORK: network} if network else {}
    if (teacher := given_teacher(task)) is not None and ask_teacher(task, [judge]):
        record[TEACHER] = teacher.digest[:8]
    return record


def judge_in_words(entry: Mapping[str, Any]) -> str:
    """Return an entry's judge, with the user's settings of judging in brackets."""
    chosen = ", ".join(f"{name} {value}" for name, value in entry.get("judging", {}).items())
    return f"{entry['judge']} ({chosen})" if chosen else str(entry["judge"])


def recorded(document: Mapping[str, Any], failures: Mapping[str, str] | None = None) -> Evaluation:
    """Return the results in a document of ``metrics.json``, with the failures in judging them."""

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
    """Replace old entries by new ones of the same judge and metric, and append the other new ones."""
    _require_one_network(old, new)
    fresh = {_key(entry): entry for entry in new}
    updated = [fresh.pop(_key(entry), entry) for entry in old]
    return updated + list(fresh.values())


def _require_one_network(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to replace results of a user's own network by another network's, or to compare the two.

    Raises:
        ConfigError: the networks differ.
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
    """Return a baseline's entries without those that were judged with other settings than the set's results."""
    judging = {_key(entry): entry.get("judging") for entry in results}
    return [e for e in baseline if _key(e) not in judging or e.get("judging") == judging[_key(e)]]


def dropped_baselines(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the baselines, each with its judge, that are in ``before`` but not in ``after``."""

    def titles(document: Mapping[str, Any]) -> list[str]:
        baselines = document.get("baselines", {}).items()
        return [f"{name} by {entry['judge']}" for name, entries in baselines for entry in entries]

    kept = titles(after)
    return list(dict.fromkeys(title for title in titles(before) if title not in kept))
