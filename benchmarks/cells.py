"""Cells of the survey's tables: a method, a data set and an ipc, how they are measured, where what they found lies."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quality import folder_of, parse_options

from mmdistill.image.methods import conditions
from mmdistill.image.models import model_name
from mmdistill.registry import get_domain, get_method
from mmdistill.runs.folder import METRICS, SAMPLES
from mmdistill.store import read_json, write_json

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
ROWS = ("dm", "krr", "frepo", "kip", "rfad", "kfs", "cafe", "dcc", "egm", "dc", "dsa", "edd", "idc", "mtt")
"""Methods in the order of a table's rows; those not named here follow in alphabetical order."""
TABLE_3 = ("convnet", "convnet-nn", "alexnet", "alexnet-in", "resnet18", "resnet18-bn", "vgg11", "vgg11-bn")
TABLE_5 = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
BASELINES = ("random", "herding")
CELLS = Path(__file__).parents[1] / "docs" / "cells"
"""What finished cells found, one small file for each seed; the tables are written from it."""
REDUCED_MODELS = {"kip": "mlp-w1024", "sre2l": "convnet-bn-w16"}
"""Networks that belong to a reduced schedule in place of a narrow ConvNet without batch norms."""
REDUCED_WIDTH = 16
"""Of a reduced schedule's ConvNet, where no other is asked for; wider ones run in mixed precision."""
OF_TABLES = (3, 32, 32)
"""Images of the size to which those of Tables 3 and 5 are padded, by which networks have their default width."""
WIDER = {"alexnet": 2}
"""By how much judges of Tables 3 and 5 are wider than a reduced schedule's ConvNet, where they are."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        data: the data set's name.
        method: the method's name, or one of the baselines.
        ipc: images per class.
        schedule: ``published`` or ``reduced``.
        options: overrides, as ``quality.py`` spells them; such cells stand in tables of their own.
        width: of a reduced schedule's ConvNet.
    """

    data: str
    method: str
    ipc: int
    schedule: str
    options: str = ""
    width: int = REDUCED_WIDTH

    @property
    def row(self) -> str:
        """The cell as ``quality.py`` spells it."""
        if self.schedule == "reduced":
            model = f"model={REDUCED_MODELS[self.method]}" if self.method in REDUCED_MODELS else f"width={self.width}"
            model += ",precision=mixed" if self.width > REDUCED_WIDTH else ""
            own = f"schedule=reduced,{model},judge_epochs=300" + (",judge_batch=25" if self.ipc >= 10 else "")
        else:
            own = ",".join(f"{name}={value}" for name, value in conditions(self.method, self.data, self.ipc).items())
        options = ",".join(filter(None, (own, self.options)))
        return f"{self.data}-{self.method}-{self.ipc}" + (f":{options}" if options else "")

    @property
    def published(self) -> list[float] | None:
        """Mean and deviation in the survey's Table 2, in percent, where it has them."""
        found: list[float] | None = PUBLISHED["table2"].get(self.data, {}).get(str(self.ipc), {}).get(self.method)
        return found

    @property
    def baselines(self) -> str:
        """The baselines that are judged with this cell: once for a data set, ipc and way of judging."""
        if self.schedule == "reduced":
            other = self.method in REDUCED_MODELS
        else:
            other = conditions(self.method, self.data, self.ipc) != conditions("dm", self.data, self.ipc)
        return ",".join(BASELINES) if self.method == "dm" or other else ""

    def judge(self, column: str) -> str | None:
        """Return the network that judges the cell in a column of Table 3 or 5, which a reduced schedule narrows.

        None is the cell's own judge, whatever its network.
        """
        if column == "convnet" and (self.schedule == "published" or self.method not in REDUCED_MODELS):
            return None
        if self.schedule == "published" or column not in (*TABLE_3, *TABLE_5):
            return column
        factor = next((factor for family, factor in WIDER.items() if column.startswith(family)), 1)
        return model_name(f"{column}-w{factor * self.width}", shape=OF_TABLES)

    def folder(self, out: Path, seed: int = 0) -> Path:
        """Return where the cell runs with a seed, and leaves the set and its metrics."""
        return folder_of(out, self.row, seed)

    def record(self, cells: Path, seed: int = 0) -> Path:
        """Return the file that keeps what the cell found with a seed."""
        return self.folder(cells, seed).with_suffix(".json")

    def reason(self, cells: Path) -> Path:
        """Return the file that keeps why the cell failed."""
        return self.folder(cells).with_name("failed.txt")

    def finished(self, cells: Path, seeds: Iterable[int]) -> bool:
        """Whether the cell has found something with each of some seeds."""
        return all(self.record(cells, seed).is_file() for seed in seeds)

    def fail(self, cells: Path, reason: str) -> None:
        """Keep why the cell failed, for the table's reader."""
        self.reason(cells).parent.mkdir(parents=True, exist_ok=True)
        self.reason(cells).write_text(reason + "\n", encoding="utf-8")

    def keep(self, out: Path, cells: Path, seeds: Iterable[int]) -> None:
        """Copy what finished runs found to where it is kept.

        Judges that are kept already and that a run has not asked again stay, with those of its baselines, where the set
        is the same one.
        """
        for seed in seeds:
            metrics, record = self.folder(out, seed) / METRICS, self.record(cells, seed)
            if metrics.is_file():
                self.reason(cells).unlink(missing_ok=True)
                found = read_json(metrics)
                found["set"] = hashlib.blake2b(metrics.with_name(SAMPLES).read_bytes(), digest_size=8).hexdigest()
                kept = read_json(record) if record.is_file() else {"results": [], "baselines": {}}
                if kept.get("set", found["set"]) == found["set"]:
                    _add_other_judges(found["results"], kept["results"])
                    for name, entries in kept["baselines"].items():
                        _add_other_judges(found["baselines"].setdefault(name, []), entries)
                plain = not self.options and self.width == REDUCED_WIDTH
                write_json(record, found if plain else found | {"cell": asdict(self)})

    def documents(self, cells: Path) -> list[dict[str, Any]]:
        """Return what all finished seeds found."""
        return [read_json(path) for path in sorted(self.folder(cells).parent.glob("seed-*.json"))]

    def failure(self, cells: Path) -> str:
        """Return why the cell failed, or nothing."""
        path = self.reason(cells)
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _add_other_judges(entries: list[dict[str, Any]], kept: Iterable[dict[str, Any]]) -> None:
    """Append the kept entries of judges that the others lack."""
    judges = {entry["judge"] for entry in entries}
    entries += [entry for entry in kept if entry["judge"] not in judges]


def network_of(judge: str) -> str:
    """Return the network of a judge as a result names it: without the protocol by which it trained."""
    return judge.partition(" [")[0]


def other_kinds(cells: Path) -> list[Cell]:
    """Return one kept cell of each data set, schedule, width and options, where width or options are not the usual."""
    found = {}
    for path in sorted(cells.glob("*/seed-*.json")):
        if spelled := read_json(path).get("cell"):
            cell = Cell(**spelled)
            found[cell.data, cell.schedule, cell.width, cell.options] = cell
    return [found[kind] for kind in sorted(found)]


def cost(cell: Cell) -> tuple[int, int, str]:
    """Return the key that sorts cells: few images first, then few steps times those of the network beside each."""
    settings = get_method(get_domain("image"), cell.method, cell.data, cell.schedule).settings(cell.ipc)  # type: ignore[arg-type]
    steps = {"steps": settings.steps, "inner_steps": settings.inner_steps} | parse_options(cell.options)
    return cell.ipc, int(steps["steps"]) * (1 + int(steps["inner_steps"])), cell.method


def row(method: str) -> tuple[int, str]:
    """Return the key that sorts methods as a table's rows."""
    return ROWS.index(method) if method in ROWS else len(ROWS), method
