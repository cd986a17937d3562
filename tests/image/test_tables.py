"""The scripts that fill the survey's tables: how cells are spelled, and the page of what they found."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from mmdistill import distill, image_task
from mmdistill.abilities import overrides_of
from mmdistill.errors import ConfigError
from mmdistill.image.models import model_name
from mmdistill.image.protocols import PROTOCOLS
from mmdistill.method import Method
from mmdistill.registry import DOMAIN_PACKAGES, get_domain, get_method
from mmdistill.store import write_json

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
DOCS = SCRIPTS.parent / "docs"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import cells  # type: ignore[import-not-found]
    import pages  # type: ignore[import-not-found]
    import quality  # type: ignore[import-not-found]

    return cells, pages, quality


def finding(mean: float, sd: float, n: int = 2, judge: str = "convnet") -> dict[str, Any]:
    return {"judge": judge, "metric": "accuracy", "mean": mean, "sd": sd, "n": n}


def ran(folder: Path, metrics: dict[str, Any], samples: bytes = b"a set") -> None:
    """Leave what a run leaves that a table reads."""
    write_json(folder / "metrics.json", metrics)
    (folder / "distilled.safetensors").write_bytes(samples)


def document(mean: float, baselines: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "results": [finding(mean, 0.01)],
        "baselines": {name: [finding(value, 0.0)] for name, value in (baselines or {}).items()},
        "budget": {"ipc": 1, "stored_bytes": 7850},
        "samples": 10,
        "seconds": 12.0,
        "peak_memory_bytes": 2**20,
    }


def test_the_page_of_methods_has_the_accuracies_of_the_tables() -> None:
    measured = {}
    for data in ("mnist", "cifar10"):
        table = (DOCS / "tables.md").read_text().partition(f"## {data}, reduced schedule\n")[2].partition("\n## ")[0]
        for ipc, name, mean in re.findall(r"^\| (1|10) \| (.+?) \| (\d+\.\d) ± ", table, re.MULTILINE):
            measured[data, name, ipc] = mean
    page = (DOCS / "methods.md").read_text().partition("## Accuracies")[2].partition("\n## ")[0]
    shown = {
        row[0].strip("`"): row[1:] for line in page.splitlines() if (row := line.strip("| ").split(" | ")) and row[4:]
    }
    columns = [(data, ipc) for data in ("mnist", "cifar10") for ipc in ("1", "10")]
    shown.pop("method")
    assert set(shown) == {"*random real images*", "*herding real images*", *get_domain("image").methods}
    for name, row in shown.items():
        assert row == [measured.get((data, name, ipc), "-") for data, ipc in columns], name


def words(page: Path) -> str:
    """Return a page's text in one line."""
    return " ".join(page.read_text().split())


def listed(pattern: str, text: str) -> list[str]:
    """Return the names of a list like "DANCE, NCFM and IDM" or "`ld` and `rded`" that a pattern finds, sorted."""
    found = re.search(pattern, text)
    assert found is not None, pattern
    return sorted(name.strip("`") for name in re.split(", | and ", found[1]))


def of_images() -> dict[str, Method]:
    """Return the methods for images with their settings for CIFAR-10, by name."""
    domain = get_domain("image")
    return {name: get_method(domain, name, "cifar10") for name in domain.methods}


def test_the_page_of_methods_describes_each_once() -> None:
    page = (DOCS / "methods.md").read_text()
    headings = re.findall(r"^### (.+)$", page, re.MULTILINE)
    assert sorted(name for heading in headings for name in re.findall("`(.+?)`", heading)) == sorted(of_images())


def test_the_page_of_methods_tells_which_decode_several_samples() -> None:
    page, domain = words(DOCS / "methods.md"), get_domain("image")
    tiled = {name for name, method in of_images().items() if "2 x 2 tiles" in method.storage}
    filled = {name for name, method in of_images().items() if getattr(method.parameterization, "fills", False)}
    titles = sorted(domain.methods[name].title for name in tiled | filled)
    assert listed(r"\. ([^.]+) decode several samples from the bytes of one image", page) == titles
    on_digits = {name: get_method(domain, name, "digits") for name in tiled}
    plain = {name for name, method in on_digits.items() if "1 x 1 tiles" in method.storage}
    assert not any(on_digits[name].settings(10).augment for name in plain)
    titles = sorted(domain.methods[name].title for name in plain)
    assert listed(r"\(8 x 8 pixels\), ([^.]+) store plain images and do not augment", page) == titles


def test_the_page_of_methods_tells_which_labels_each_takes() -> None:
    page, methods = words(DOCS / "methods.md"), of_images()
    solved = {name for name, method in methods.items() if method.solve is not None}
    learn = {n for n in methods.keys() - solved if methods[n].make_objective(methods[n].settings(10)).reads_labels}
    matching = page.partition("## Matching distributions ")[2].partition(" ## ")[0]
    distributions = {name for heading in re.findall("### (`[^#]+?) - ", matching) for name in heading.split("`")[1::2]}
    assert listed(r"\| `soft` \| learned probabilities \| gradient matching, (.+?);", page) == sorted(
        distributions & learn
    )
    pattern = r"Other distribution matching \((.+?)\) and `sre2l` take `hard` and `teacher` alone"
    assert listed(pattern, page) == sorted(distributions - learn)
    assert methods.keys() - learn - solved - distributions == {"sre2l"}
    assert listed(r"alone; (.+?) have a teacher's labels", page) == sorted(solved)


def test_lists_of_methods_elsewhere_are_whole() -> None:
    later = of_images().keys() - get_domain("image").taxonomy.keys()
    changes = words(DOCS.parent / "CHANGELOG.md")
    assert listed(r"All methods of the survey's Table 1, and (.+?); `--schedule reduced`", changes) == sorted(later)
    unnamed = {"bptt", "cafe+dsa", "kip-conv", "krr", "ld", "random-soft"}  # variants, baselines and what is older
    titles = sorted(get_domain("image").methods[name].title for name in later - unnamed)
    assert listed(r"and later ones: ([^.]+)\.", words(DOCS.parent / "README.md")) == titles


def test_rows_of_all_data_sets_are_read(scripts: Any) -> None:
    for domain in map(get_domain, DOMAIN_PACKAGES):
        for data in domain.datasets:
            row = f"{data}-distill-cf-10:lr=0.5,parameterization=upsample-2"
            options = {"lr": 0.5, "parameterization": "upsample-2"}
            assert scripts[2].parse_row(row) == (data, "distill-cf", 10, options)
    assert scripts[2].parse_row("data/mine.pt-gcond-3") == ("data/mine.pt", "gcond", 3, {})


def test_a_rows_overrides_reach_its_task_and_method(scripts: Any) -> None:
    row = "digits-dm-1:width=4,judge_epochs=7,lr=0.5,steps=3,parameterization=upsample-2,label=teacher,precision=mixed"
    found = scripts[2].prepared(row)
    settings = found.method.settings(1)
    assert (settings.steps, settings.optimizers["codes"].lr) == (3, 0.5)
    assert (found.method.storage, found.method.label) == ("upsample-2", "teacher")
    assert (found.task.chosen.epochs, overrides_of(found.task), found.precision) == (7, {"epochs": 7}, "mixed")


def test_rows_are_split_by_semicolons_where_one_has_options(scripts: Any) -> None:
    quality = scripts[2]
    assert quality.split_rows("mnist-dm-1, mnist-dm-10") == ["mnist-dm-1", "mnist-dm-10"]
    assert quality.split_rows("mnist-dm-1:width=4,steps=2;mnist-dm-10") == ["mnist-dm-1:width=4,steps=2", "mnist-dm-10"]
    assert quality.split_rows("mnist-dm-1:width=4,steps=2") == ["mnist-dm-1:width=4,steps=2"]


def test_gaps_are_told_in_standard_errors_where_these_can_be_told(scripts: Any) -> None:
    quality = scripts[2]
    assert quality.paired([1.0, 2.0, 3.0]) == " (+3.5 s.e., p = 0.074)"
    assert quality.paired([-1.0, -2.0, -3.0]) == " (-3.5 s.e., p = 0.074)"
    assert quality.paired([1.0]) == quality.paired([1.0, 1.0]) == quality.paired([]) == ""


def test_a_row_of_texts_takes_as_many_tokens_as_it_says(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    domain = replace(get_domain("text"), make_task=lambda data, **options: made.append((data, options)))
    monkeypatch.setattr(scripts[2], "domain_of", lambda data: domain)
    scripts[2].prepared("trec-sldd-1:model=textcnn,length=12,width=32")
    assert made == [("trec", {"device": "cpu", "model": "textcnn", "length": 12, "width": 32})]


def compared(scripts: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["quality.py", "--networks", "1", "--device", "cpu", *options])
    scripts[2].main()


def test_rows_are_paired_by_seed_with_another_row_or_a_baseline(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quality = scripts[2]
    rows = "digits-dm-1", "digits-dc-1", "mnist-dm-1"
    means = {rows[0]: (0.5, 0.6, 0.7), rows[1]: (0.52, 0.64, 0.76), rows[2]: (0.9, 0.9, 0.9)}
    for row, values in means.items():
        for seed, mean in enumerate(values):
            found = document(mean, {"random": 0.4, "herding": 0.5}) | {"data": row.partition("-")[0]}
            write_json(quality.folder_of(tmp_path, row, seed) / "metrics.json", found)
    shared = ("--rows", ",".join(rows), "--seeds", "0,1,2", "--out", str(tmp_path), "--baselines", "random,herding")
    compared(scripts, monkeypatch, *shared)
    plain = capsys.readouterr().out
    assert f"{rows[1]} convnet accuracy: 64.0 +/- 12.0 | random 40.0 +/- 0.0 (+3.5 s.e., p = 0.074)" in plain
    compared(scripts, monkeypatch, *shared, "--against", rows[0])
    above = f"{rows[1]} convnet accuracy above {rows[0]}: +4.0, standard error 1.15 (+3.5 s.e., p = 0.074)\n"
    assert capsys.readouterr().out == plain + above
    compared(scripts, monkeypatch, *shared, "--against", "random")
    said = capsys.readouterr().out.removeprefix(plain).splitlines()
    assert said[0] == f"{rows[0]} convnet accuracy above random: +20.0, standard error 5.77 (+3.5 s.e., p = 0.074)"
    assert [line.partition(" ")[0] for line in said] == list(rows)
    compared(scripts, monkeypatch, *shared, "--seeds", "1", "--against", rows[0])
    assert capsys.readouterr().out.endswith(f"{rows[1]} convnet accuracy above {rows[0]}: +4.0\n")
    with pytest.raises(SystemExit):
        compared(scripts, monkeypatch, *shared, "--against", "digits-dsa-1")
    assert "--against: 'digits-dsa-1' is none of the rows or baselines" in capsys.readouterr().err


def test_published_cells_take_their_papers_networks_and_judging(scripts: Any) -> None:
    cells, _, quality = scripts
    for method in get_domain("image").methods:
        for ipc in (1, 50):
            row = cells.Cell("cifar10", method, ipc, "published").row
            data, name, budget, options = quality.parse_row(row)
            assert (data, name, budget) == ("cifar10", method, ipc)
            assert set(options) <= set(quality.TASK_OPTIONS)
            assert options.get("protocol", "default") in PROTOCOLS
            model_name(str(options.get("model", "convnet")))
    assert "whiten=mtt" in cells.Cell("cifar10", "mtt", 10, "published").row
    assert "whiten" not in cells.Cell("cifar10", "mtt", 50, "published").row
    assert "whiten" not in cells.Cell("mnist", "frepo", 10, "published").row
    assert cells.Cell("digits", "dc", 1, "published").row == "digits-dc-1"
    row = "mnist-dm-1:schedule=reduced,width=16,judge_epochs=300,steps=2"
    assert cells.Cell("mnist", "dm", 1, "reduced", "steps=2").row == row
    assert quality.parse_row(row)[3]["judge_epochs"] == 300
    row = "mnist-dm-1:schedule=reduced,width=64,precision=mixed,judge_epochs=300"
    assert cells.Cell("mnist", "dm", 1, "reduced", width=64).row == row


def test_the_page_pools_networks_and_says_what_failed_and_what_has_not_run(scripts: Any, tmp_path: Path) -> None:
    cells, pages, _ = scripts
    dm, haba = (cells.Cell("mnist", method, 1, "reduced") for method in ("dm", "haba"))
    for seed, mean in enumerate((0.8, 0.9)):
        write_json(dm.record(tmp_path, seed), document(mean, {"random": 0.5, "herding": 0.6}))
    kip = cells.Cell("mnist", "kip", 1, "reduced")
    write_json(kip.record(tmp_path), document(0.7, {"random": 0.6}))
    haba.fail(tmp_path, "too few bytes")
    step = {
        "data": "digits",
        "method": "kip",
        "ipc": 1,
        "schedule": "published",
        "judge": "mlp",
        "mean": 0.5,
        "sd": 0.01,
    }
    (tmp_path / "steps.json").write_text(json.dumps([step | {"steps": n, "seconds": n / 10} for n in (0, 100)]))
    text = pages.page(tmp_path, ["dm", "haba", "dc", "kip", "egm"], tmp_path)
    assert (
        "| digits | short | 1 | kip (judged by mlp) | 0 steps, 0 s: 50.0 ± 1.0; 100 steps, 10 s: 50.0 ± 1.0 |" in text
    )
    assert (tmp_path / "steps.png").exists()
    assert "| 1 | *random real images* | 50.0 ± 0.0 | 2 x 2 |" in text
    assert "| 1 | dm | 85.0 ± 5.8 | 2 x 2 | 89.9 ± 0.8 | 7.8 | 10 | 12 | 1 |" in text
    assert "| 1 | haba | too few bytes |" in text
    assert "| 1 | kip | 70.0 ± 1.0 (judged by convnet; random 60.0 ± 0.0, herding -) |" in text
    assert "| 1 | dc | - | - | 91.7 ± 0.5 |" in text
    assert "egm" not in text
    assert "published schedule" not in text
    assert "width 64" not in text
    wide = cells.Cell("mnist", "dm", 1, "reduced", width=64)
    ran(wide.folder(tmp_path / "out"), document(0.95, {"random": 0.5, "herding": 0.6}))
    wide.keep(tmp_path / "out", tmp_path, [0])
    cells.Cell("mnist", "dc", 1, "reduced", width=64).fail(tmp_path, "no memory")
    text = pages.page(tmp_path, ["dm", "dc"], tmp_path)
    table = text.partition("## mnist, reduced schedule, width 64\n")[2].partition("## ")[0]
    assert "| 1 | dm | 95.0 ± 1.0 | 1 x 2 | 89.9 ± 0.8 | 7.8 | 10 | 12 | 1 |" in table
    assert "| 1 | dc | no memory |" in table
    assert "egm" not in table
    assert "images per class]" not in text


def test_the_page_draws_accuracy_against_images_per_class_from_the_cells(scripts: Any, tmp_path: Path) -> None:
    cells, pages, _ = scripts
    for ipc, mean in ((1, 0.8), (10, 0.9)):
        cell = cells.Cell("mnist", "dm", ipc, "reduced")
        write_json(cell.record(tmp_path), document(mean, {"random": 0.5}))
    write_json(cells.Cell("mnist", "dc", 10, "reduced").record(tmp_path), document(0.7))
    (tmp_path / "figure-8-cifar10.png").write_bytes(b"of cells that have gone")
    text = pages.page(tmp_path, ["dm", "dc"], tmp_path)
    assert "![mnist: accuracy against images per class](figure-8-mnist.png)" in text
    assert "figure-8-cifar10.png" not in text
    assert drawn(tmp_path / "figure-8-mnist.png") == {
        "dm": [[1, 80.0, 1.0], [10, 90.0, 1.0]],
        "dc": [[10, 70.0, 1.0]],
        "random": [[1, 50.0, 0.0], [10, 50.0, 0.0]],
    }


def test_the_figures_of_the_documentation_show_what_the_cells_hold(scripts: Any) -> None:
    cells, pages, _ = scripts
    for data in ("mnist", "cifar10"):
        points = pages.figure_8(cells.Cell(data, "dm", 1, "reduced"), cells.CELLS)
        assert drawn(DOCS / f"figure-8-{data}.png") == json.loads(json.dumps(points))


@pytest.mark.slow
def test_the_page_of_the_documentation_is_that_of_the_cells(scripts: Any, tmp_path: Path) -> None:
    cells, pages, _ = scripts
    methods = sorted(get_domain("image").methods, key=cells.row)
    assert (DOCS / "tables.md").read_text(encoding="utf-8") == pages.page(cells.CELLS, methods, tmp_path) + "\n"
    assert {path.name for path in tmp_path.iterdir()} <= {path.name for path in DOCS.iterdir()}


def drawn(path: Path) -> Any:
    """Return the points that a figure says it shows."""
    with Image.open(path) as picture:
        return json.loads(picture.text["Description"])  # type: ignore[attr-defined]


def test_a_budget_that_is_too_small_is_told_in_short(scripts: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        distill(image_task("digits", width=8), "haba", ipc=1)
    assert scripts[1].in_short(str(refused.value)) == "does not fit: 736 bytes shared, budget 2,570"
    assert scripts[1].in_short("out of memory") == "out of memory"


def test_what_runs_found_is_kept_apart_from_them_and_not_measured_again(scripts: Any, tmp_path: Path) -> None:
    cells, _, _ = scripts
    out, kept = tmp_path / "out", tmp_path / "cells"
    cell, tried = (cells.Cell("mnist", "dm", 1, "reduced", options) for options in ("", "steps=2"))
    cell.fail(kept, "no memory")
    assert cell.failure(kept) == "no memory"
    for one in (cell, tried):
        ran(one.folder(out, 1), document(0.8))
        one.keep(out, kept, [0, 1])
    assert cells.other_kinds(kept) == [tried]
    (found,) = cell.documents(kept)
    assert {name: value for name, value in found.items() if name != "set"} == document(0.8)
    assert cell.finished(kept, [1])
    assert not cell.finished(kept, [0, 1])
    assert cell.failure(kept) == ""
    write_json(
        cell.record(kept, 1), document(0.7) | {"results": [finding(0.7, 0.01), finding(0.6, 0.02, judge="vgg11")]}
    )
    cell.keep(out, kept, [1])
    assert cell.documents(kept)[0]["results"] == [finding(0.8, 0.01), finding(0.6, 0.02, judge="vgg11")]
    ran(cell.folder(out, 1), document(0.9), samples=b"another set")
    cell.keep(out, kept, [1])
    assert cell.documents(kept)[0]["results"] == [finding(0.9, 0.01)]  # what judged the former set is gone


def test_cells_with_options_stand_in_tables_of_their_own(scripts: Any, tmp_path: Path) -> None:
    cells, pages, _ = scripts
    cell = cells.Cell("cifar10", "mtt", 1, "published", "experts=20")
    ran(cell.folder(tmp_path), document(0.4))
    cell.keep(tmp_path, tmp_path, [0])
    text = pages.page(tmp_path, ["dm", "mtt"], tmp_path)
    assert "## cifar10, published schedule, experts=20\n" in text
    assert "| 1 | mtt | 40.0 ± 1.0 (judged by convnet; random -, herding -) | 1 x 2 | 46.3 ± 0.8 |" in text
    assert "## cifar10, published schedule\n" not in text


def test_cheap_cells_come_first(scripts: Any) -> None:
    cells, _, _ = scripts
    order = sorted(
        (cells.Cell("cifar10", method, ipc, "published") for ipc in (10, 1) for method in ("frepo", "dd", "dm", "dc")),
        key=cells.cost,
    )
    assert [(cell.ipc, cell.method) for cell in order[:4]] == [(1, "dc"), (1, "dm"), (1, "frepo"), (1, "dd")]
    short = cells.Cell("cifar10", "frepo", 1, "published", "steps=10")
    assert cells.cost(short) < cells.cost(order[0])


def test_judges_are_known_by_their_network_whatever_protocol_trained_them(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, pages, _ = scripts
    import tables  # type: ignore[import-not-found]

    cell = cells.Cell("cifar10", "frepo", 10, "published")
    found = document(0.6) | {"results": [finding(0.6, 0.01, judge="freponet-w128-x2-nn [frepo]")]}
    ran(cell.folder(tmp_path), found)
    cell.keep(tmp_path, tmp_path, [0])
    asked = []

    def judge_cell(cell: Any, judge: str, folder: Path, *_: object) -> str:
        asked.append(judge)
        own = {"results": [*found["results"], finding(0.5, 0.01, judge=f"{judge} [frepo]")]}
        ran(folder, found | own)
        return ""

    monkeypatch.setattr(tables, "judge_cell", judge_cell)
    for _ in range(2):
        tables.judge_cells([cell], ["convnet", "vgg11"], tables.Places(tmp_path, tmp_path), "cpu", [0], 2, float("inf"))
    assert asked == ["vgg11"]
    row = next(line for line in pages.across(cell, tmp_path, ["frepo"], 10, 3) if line.startswith("| frepo"))
    assert row.startswith("| frepo | 60.0 ± 1.0 (65.6 ± 0.6) | - ")
    assert "| 50.0 ± 1.0 (35.0 ± 0.7) | - " in row


def test_a_cell_that_a_signal_ended_is_said_to_be_killed(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tables

    process = tmp_path / "process"
    process.write_text("#!/bin/sh\necho step 7 of 10, loss 0.5\nkill -KILL $$\n")
    process.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(process))
    cell, places = scripts[0].Cell("mnist", "dm", 1, "reduced"), tables.Places(tmp_path, tmp_path / "kept")
    said = tables.distil_cell(cell, places, "cpu", [0], 1, time.time() + 60)
    assert said == "failed: killed by SIGKILL"
    assert cell.failure(places.cells) == "killed by SIGKILL"


def test_other_networks_judge_sets_and_real_images_side_by_side(scripts: Any, tmp_path: Path) -> None:
    cells, pages, _ = scripts
    cell = cells.Cell("mnist", "dm", 1, "reduced")
    assert cell.judge("convnet") is None
    assert cell.judge("vgg11-bn") == "vgg11-w16-bn"
    assert cell.judge("mlp") == "mlp"
    assert cells.Cell("mnist", "kip", 1, "reduced").judge("convnet") == "convnet-w16"
    assert cells.Cell("mnist", "dm", 1, "published").judge("vgg11") == "vgg11"
    assert cells.Cell("mnist", "dm", 1, "reduced", width=64).judge("alexnet-in") == "alexnet-in"
    assert cells.Cell("mnist", "dm", 1, "reduced", width=128).judge("convnet-nn") == "convnet-nn"
    assert cells.Cell("mnist", "dm", 1, "reduced").judge("alexnet-in") == "alexnet-w32-in"
    write_json(cell.record(tmp_path / "kept"), document(0.8, {"random": 0.5}))
    vgg = {"results": [finding(0.8, 0.01), finding(0.6, 0.02, judge="vgg11-w16")]}
    herding = {"baselines": {name: [finding(0.4, 0.0, judge="vgg11-w16")] for name in ("random", "herding")}}
    ran(cell.folder(tmp_path / "out"), document(0.8) | vgg | herding)
    cell.keep(tmp_path / "out", tmp_path / "kept", [0])
    text = pages.page(tmp_path / "kept", ["dm"], tmp_path)
    assert "| *random real images* | 50.0 ± 0.0 | - | - | - | - | - | 40.0 ± 0.0 | - |" in text
    assert "| dm | 80.0 ± 1.0 | - | - | - | - | - | 60.0 ± 2.0 | - |" in text
    assert "| 1 | *random real images* | 50.0 ± 0.0 |" in text
    assert "| 1 | *herding real images* | - |" in text
