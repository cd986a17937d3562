"""A judged run as its folder holds it, and the key by which repetitions of a run are found."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mmdistill.config import BUDGETS, HOW_IT_RUNS, JUDGE_TRAINING, JUDGING_OPTIONS, SETTINGS
from mmdistill.files.hub import is_place
from mmdistill.settings import MEMORY_ONLY

RECORDED = ("parameterization", "network", "label")
"""The entries of ``distilled.json`` that, beside the method, tell runs apart."""
TOLD = ("method", *BUDGETS, "parameterization", "model", "width", "label")
"""Options and settings that other columns of a comparison show."""
NOT_TOLD_APART = (*HOW_IT_RUNS, "data", "mirror", "seed", "teacher", *BUDGETS, *JUDGING_OPTIONS)
"""Options in which repetitions of a run may differ; sets record their data, budget and teacher themselves, and results
their judges."""


class JudgedRun(NamedTuple):
    """A judged run: its folder, ``metrics.json``, ``distilled.json``, its options and the result to compare."""

    folder: Path
    metrics: dict[str, Any]
    set_record: dict[str, Any]
    options: dict[str, Any]
    entry: Mapping[str, Any] = MappingProxyType({})

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings; empty if the set does not record them."""
        settings: dict[str, Any] = self.set_record.get("settings") or {}
        return settings

    @property
    def info(self) -> Mapping[str, Any]:
        """The set's description of its data."""
        info = self.set_record.get("info")
        return info if isinstance(info, Mapping) else {}

    @property
    def augmentation(self) -> Mapping[str, Any]:
        """The augmentation that the set records; empty without one."""
        preprocessing = self.info.get("preprocessing")
        augmentation = preprocessing.get("augmentation") if isinstance(preprocessing, Mapping) else None
        return augmentation if isinstance(augmentation, Mapping) else {}

    @property
    def described(self) -> Mapping[str, Any]:
        """The set's description of its objective and schedule; empty for closed forms."""
        described = self.set_record.get("described")
        return described if isinstance(described, Mapping) else {}

    @property
    def data(self) -> str:
        """The name of the data, or where the run's options say that they are, since they may have moved."""
        name = str(self.metrics["data"])
        place = str(self.options.get("data", name))
        return place if is_place(name) and is_place(place) else name

    @property
    def seed(self) -> str:
        """The run's seed as text; a run without one gets its folder, which no other run shares."""
        return str(self.set_record.get("seed", self.folder))

    @property
    def repetition(self) -> str:
        """What no other repetition shares: the seed; of an imported set, whose seed only judges it, the set too."""
        return f"{self.seed} {self.set_record.get('digest')}" if self.is_imported else self.seed

    @property
    def is_imported(self) -> bool:
        """Whether another tool made the set."""
        return bool(self.set_record.get("origin"))

    @property
    def fingerprint(self) -> str:
        """A hash of the data that the run was distilled from; empty if the set does not record it."""
        return str(self.info.get("fingerprint") or "")

    @property
    def tested_on(self) -> str | None:
        """A hash of the data that the run was tested on; None if the metrics do not record it."""
        tested_on = self.metrics.get("tested_on")
        return None if tested_on is None else str(tested_on)

    @property
    def judge_network(self) -> dict[str, str]:
        """What tells the judge's network from others of its name, for the one that the set was distilled with.

        Other networks have their default width. So have judges of other data than images, whatever the run's width.
        """
        if self.info.get("domain") != "image" or not self.entry:
            return {}
        judge = str(self.entry["judge"]).partition(" [")[0]
        network, _, size = str(self.set_record.get("network") or "").partition(", ")
        model = network or self.options.get("model") or (None if self.options.get("judges") else judge)
        if model != judge:
            return {}
        width = self.options.get("width")
        by_option = {"width": f"width {width}" if width else "the default width"} if self.options else {}
        return by_option | ({"size": size} if size else {})

    def options_beside(self) -> dict[str, str]:
        """Return the options of the run that its recorded settings do not cover."""
        covered = {*NOT_TOLD_APART, *(("lr", "set", *SETTINGS) if self.settings else ())}
        if self.settings.get("validate_every"):
            covered -= {*JUDGE_TRAINING}
        return {name: str(value) for name, value in self.options.items() if name not in covered}

    def options_in_words(self) -> dict[str, str]:
        """Return the options that neither a setting nor another column shows, as texts."""
        return {name: value for name, value in self.options_beside().items() if name not in TOLD}

    def settings_in_words(self) -> dict[str, str]:
        """Return the settings of the run, of its augmentation, its objective and its schedule, as texts."""
        texts: dict[str, str] = {}
        for name, value in self.settings.items():
            if name in NOT_TOLD_APART:
                continue
            if isinstance(value, Mapping):  # the optimizers, by group
                for group, spec in value.items():
                    texts |= {f"{group} {key}": str(entry) for key, entry in dict(spec).items()}
            else:
                texts[name] = str(value)
        shown = {name: text for name, text in texts.items() if name not in TOLD}
        return self._augmentation_in_words() | self._described_in_words() | shown

    def _augmentation_in_words(self) -> dict[str, str]:
        """Return the values of the augmentation, as texts."""
        texts = {name: " ".join(value) for name, value in self.augmentation.items() if isinstance(value, list)}
        return texts | {n: str(value) for n, value in self.augmentation.items() if isinstance(value, int | float | str)}

    def _described_in_words(self) -> dict[str, str]:
        """Return the values of the run's objective and schedule that no setting repeats, as texts by their path."""
        texts: dict[str, str] = {}

        def note(path: str, value: object) -> None:
            if isinstance(value, Mapping):
                for name, entry in value.items():
                    if not self._repeats(str(name), entry):
                        note(path if name == "class" else f"{path} {name}", entry)
            else:
                texts[path] = str(value)

        for part, value in self.described.items():
            note("networks" if part == "schedule" else str(part), value)
        return texts

    def _repeats(self, name: str, value: object) -> bool:
        """Return whether a setting has this value: that of the name, or the network's (``inner_lr`` for ``lr``)."""
        equal = (value or 0, value or "")  # None stands for a setting that is 0 or empty
        settings = (name, f"inner_{name}", f"start_{name}")
        return any(self.settings[setting] in equal for setting in settings if setting in self.settings)

    def identity(self) -> str:
        """Return a text that repetitions share; it has the data's name, size and classes, not their hash."""
        metrics, entry = self.metrics, self.entry
        settings = {name: value for name, value in self.settings.items() if name not in MEMORY_ONLY}
        data = [self.data, self.info.get("num_train"), self.info.get("class_names"), self.augmentation]
        judged = [entry["judge"], entry["metric"], entry.get("judging")]
        recorded = [*(self.set_record.get(name) for name in RECORDED), self.described]
        parts = [data, metrics["method"], metrics["budget"], judged, self.options_beside(), settings, recorded]
        return json.dumps(parts, sort_keys=True)
