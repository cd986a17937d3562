"""A judged run as its folder holds it, and what tells it from others."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mmdistill.config import BUDGETS, HOW_IT_RUNS, SETTINGS
from mmdistill.settings import MEMORY_ONLY

RECORDED = ("parameterization", "network", "label")
"""What a set says of itself beside its method, by which runs of one method are told apart."""
TOLD = ("method", *BUDGETS, "parameterization", "model", "width", "label", "steps")
"""Options and settings that the rest of a row tells."""
NOT_TOLD_APART = (
    *HOW_IT_RUNS,
    *("data", "mirror", "seed", "teacher", *BUDGETS),
    *("judges", "baselines", "networks", "networks_at_once", "judge_epochs", "judge_batch", "judge_precision"),
)
"""Options in which runs may differ and still be repetitions of one another: the set says what its data, its budget and
its teacher are, and each result who judged and how."""
VALIDATING = ("judge_epochs", "judge_batch", "judge_precision")
"""Those of them by which validation trains its networks, and so what it keeps."""


class JudgedRun(NamedTuple):
    """A judged run: its folder, ``metrics.json``, ``distilled.json``, its options and the result that is compared."""

    folder: Path
    metrics: dict[str, Any]
    made: dict[str, Any]
    options: dict[str, Any]
    entry: Mapping[str, Any] = MappingProxyType({})

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings, where the set says them."""
        found: dict[str, Any] = self.made.get("settings") or {}
        return found

    @property
    def info(self) -> Mapping[str, Any]:
        """What the set says of its data."""
        found = self.made.get("info")
        return found if isinstance(found, Mapping) else {}

    @property
    def augmentation(self) -> Mapping[str, Any]:
        """How samples are changed at random, as the set says; nothing where they are not."""
        preprocessing = self.info.get("preprocessing")
        found = preprocessing.get("augmentation") if isinstance(preprocessing, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    @property
    def described(self) -> Mapping[str, Any]:
        """What the set says of its objective and schedule; nothing of closed forms."""
        found = self.made.get("described")
        return found if isinstance(found, Mapping) else {}

    @property
    def seed(self) -> str:
        """The run's seed, as text; a run that does not say it counts for itself."""
        return str(self.made.get("seed", self.folder))

    @property
    def fingerprint(self) -> str:
        """A hash of the data that the run was distilled from; empty where it does not say it."""
        return str(self.info.get("fingerprint") or "")

    @property
    def tested_on(self) -> str | None:
        """A hash of the data that it was tested on; None where it does not say it."""
        found = self.metrics.get("tested_on")
        return None if found is None else str(found)

    def options_beside(self) -> dict[str, str]:
        """Return the options that the run was given and that none of its recorded settings tells."""
        told = {*NOT_TOLD_APART, *(("lr", "set", *SETTINGS) if self.settings else ())}
        if self.settings.get("validate_every"):
            told -= {*VALIDATING}
        return {name: str(value) for name, value in self.options.items() if name not in told}

    def options_said(self) -> dict[str, str]:
        """Return the options that no setting tells, in words."""
        return {name: value for name, value in self.options_beside().items() if name not in TOLD}

    def settings_said(self) -> dict[str, str]:
        """Return the run's settings and what is set of its data, its objective and its schedule, in words."""
        found: dict[str, str] = {}
        for name, value in self.settings.items():
            if name in NOT_TOLD_APART:
                continue
            if isinstance(value, Mapping):
                groups = [(f"{group} {key}", one) for group, spec in value.items() for key, one in dict(spec).items()]
                found |= {key: str(one) for key, one in groups}
            else:
                found[name] = str(value)
        own = {name: value for name, value in found.items() if name not in TOLD}
        return self._augmented() | self._described() | own

    def _augmented(self) -> dict[str, str]:
        """Return by which numbers samples are changed at random, in words."""
        found = self.augmentation.items()
        return {name: str(value) for name, value in found if isinstance(value, int | float)}

    def _described(self) -> dict[str, str]:
        """Return what is set of the run's objective and schedule, in words, where no setting of the name tells it."""
        found: dict[str, str] = {}

        def note(words: str, value: object) -> None:
            if isinstance(value, Mapping):
                for name, one in value.items():
                    if not self._tells(str(name), one):
                        note(words if name == "class" else f"{words} {name}", one)
            else:
                found[words] = str(value)

        for part, value in self.described.items():
            note("networks" if part == "schedule" else str(part), value)
        return found

    def _tells(self, name: str, value: object) -> bool:
        """Return whether a setting says the same: that of the name, or the network's (``inner_lr`` for ``lr``)."""
        alike = (value or 0, value or "")  # None stands for a setting that is 0 or empty
        return any(
            self.settings[own] in alike for own in (name, f"inner_{name}", f"start_{name}") if own in self.settings
        )

    def identity(self) -> str:
        """Return what repetitions share, as text; the data by their name, size and classes."""
        metrics, entry = self.metrics, self.entry
        settings = {name: value for name, value in self.settings.items() if name not in MEMORY_ONLY}
        data = [metrics["data"], self.info.get("num_train"), self.info.get("class_names"), self.augmentation]
        judged = [entry["judge"], entry["metric"], entry.get("judging")]
        said = [*(self.made.get(name) for name in RECORDED), self.described]
        own = [data, metrics["method"], metrics["budget"], judged, self.options_beside(), settings, said]
        return json.dumps(own, sort_keys=True)
