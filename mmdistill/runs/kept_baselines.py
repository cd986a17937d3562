"""A cache of baselines' scores, which depend on data, budget and judge but on no distilled set."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import mmdistill
from mmdistill.abilities import NamesNetwork
from mmdistill.config import DistillConfig
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.evaluate import JudgingRequest
from mmdistill.metrics import ENTRY, fits, judging_record
from mmdistill.registry import TASK_OPTIONS, get_domain
from mmdistill.rules import RULES
from mmdistill.runtime import cache_folder, describe_device, remove_stale_parts
from mmdistill.store import as_json, read_json, write_json
from mmdistill.task import Task
from mmdistill.versions import package_versions

Entries = list[dict[str, Any]]
"""Entries of ``metrics.json``, one for each metric."""
WITHOUT_BUDGET = ("whole",)
"""Baselines that do not depend on the budget."""
SHAPING = ("compile", "precision", "deterministic")
"""Options beside those of the task that a score depends on, to the bit."""
OF_SOME_JUDGES = ("teacher",)
"""Options of the task that only some judges read; :func:`~mmdistill.metrics.judging_record` has them for those."""


class KeptBaselines:
    """The cached scores of baselines for runs with these options, in the cache folder.

    A score is reused if all it depends on, to the bit, is the same: the data, the options of the task and of judging,
    the seed, the device, this library's code and the versions of the packages it calls. Nothing is cached for tasks
    outside this package, tasks without a fingerprint of their test data, and judges, networks and rules of selection
    that a user's code added.

    Args:
        config: the options of the run.
        task: of these options.
        request: how they are judged.
    """

    def __init__(self, config: DistillConfig, task: Task, request: JudgingRequest) -> None:
        info = task.describe()
        self._task = task
        self._cacheable = type(task).__module__.startswith(f"{mmdistill.__name__}.") and bool(info.test_fingerprint)
        options = {name: getattr(config, name) for name in (*TASK_OPTIONS, *SHAPING) if name not in OF_SOME_JUDGES}
        self._shared_key = {
            "data": [info.domain, info.data, info.prepared, info.fingerprint, info.test_fingerprint],
            "options": options | {"device": describe_device(torch.device(task.device))},
            "judged": [request.n, request.at_once, request.seed],
            "code": [package_digest(), torch.__version__, package_versions()],
        }

    def find(self, name: str, budget: int, judge: str) -> Entries:
        """Return a baseline's entries by a judge (spelled as in results); empty if they are not cached."""
        key = self._key(name, budget, judge)
        try:
            document = read_json(self._path(key)) if self._usable(name, judge) else {}
        except (CheckpointError, ConfigError, OSError):  # no cache folder; a missing or damaged file
            return []
        entries = document.get("entries")
        if document.get("key") != key or not isinstance(entries, list):
            return []
        return entries if all(fits(entry, ENTRY) and math.isfinite(entry["mean"]) for entry in entries) else []

    def keep(self, name: str, budget: int, entries: Sequence[Mapping[str, Any]]) -> None:
        """Cache a baseline's entries, by any judges; does nothing if the cache folder is not writable."""
        for judge in dict.fromkeys(str(entry["judge"]) for entry in entries):
            if not self._usable(name, judge):
                continue
            key = self._key(name, budget, judge)
            with suppress(ConfigError, OSError):
                path = self._path(key)
                remove_stale_parts(path.parent)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {"key": key, "entries": [entry for entry in entries if entry["judge"] == judge]})

    def _usable(self, name: str, judge: str) -> bool:
        """Return whether the key covers all that a judge's scores of a baseline depend on."""
        network = self._task.network_name if isinstance(self._task, NamesNetwork) else ""  # its features guide herding
        return (
            self._cacheable
            and not RULES.added(name)
            and not any(map(get_domain(self._task.describe().domain).network_added, (network, judge)))
        )

    def _key(self, name: str, budget: int, judge: str) -> dict[str, Any]:
        baseline = [name, None if name in WITHOUT_BUDGET else budget]
        key = self._shared_key | {"baseline": baseline, "judge": [judge, judging_record(self._task, judge)]}
        return as_json(key)  # as a file returns it, to be compared

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return cache_folder() / "baselines" / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json"


@functools.cache
def package_digest() -> str:
    """Return a digest of this package's source; commands call this first, before the source may be edited."""
    folder = Path(mmdistill.__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
