"""The command line as a person meets it, on the embedded digits: help, lists, spellings, and input that cannot be."""

import errno
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmdistill import cli, distill, graph_set_task, graph_task, image_task, recsys_task, text_task
from mmdistill.cli import FORMATS, build_parser, main, spelled
from mmdistill.commands import listings
from mmdistill.commands.wording import GROUPS
from mmdistill.config import SETTINGS, read_settings
from mmdistill.errors import ConfigError, MmdistillError, MmdistillWarning
from mmdistill.registry import DOMAIN_PACKAGES, StorageFamily, get_domain, get_method
from mmdistill.rules import RULES
from mmdistill.settings import TRAINING, Settings
from tests.commands.digits import distil


def test_help_names_what_the_domains_have(capsys: pytest.CaptureFixture[str]) -> None:
    formats = [re.findall(r"[a-z]+", line.partition(":")[2].replace(" or ", " ")) for line in FORMATS.split(";")]
    assert formats == [list(get_domain(name).exports) for name in DOMAIN_PACKAGES]
    with pytest.raises(SystemExit):
        main(["methods", "--help"])
    assert ", ".join(DOMAIN_PACKAGES).replace(", recsys", " or recsys") in " ".join(capsys.readouterr().out.split())


def test_help_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        return capsys.readouterr().out

    commands = shown()
    distill = shown("distill")
    sweep = shown("sweep")
    others = ("experts", "evaluate", "compare", "export", "data")
    for text in (commands, distill, sweep, *(shown(name) for name in others)):
        assert "type:" not in text
        assert "null" not in text
        assert "mmdistill [options]" not in text
        assert not re.search(r"--\w+_", text)
    assert "--bytes SIZE) [options]\n" in distill
    assert re.search(r"commands:\n.*--help' for a command's options\.\n\n    distill +distil a data set", commands)
    for text in (distill, sweep):
        plain = text.partition("\noptions:\n")[2].partition("\n\n")[0]
        assert plain.strip().startswith("-h, --help")
        assert "--" not in plain.partition("--help")[2]  # every option stands in a group
        for title in GROUPS:
            assert f"\n{title}:\n" in text
    assert "--init {real,noise,herding,k-center,k-means,craig}" in distill
    assert "--ipc N" in distill
    for name in DOMAIN_PACKAGES:
        for data, methods in get_domain(name).reduced.items():
            reduced = " ".join(distill.split()).partition("--schedule {published,reduced}")[2].partition("(default")[0]
            assert (data if data != "*" else next(iter(methods))) in reduced
    assert "(default: random,herding,whole)" in " ".join(distill.split())


def test_help_of_judging_names_the_scores_and_what_is_not_distilled(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(command: str) -> str:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        return capsys.readouterr().out

    assert "'accuracy' (or what the data have instead), or 'robust'" in " ".join(shown("evaluate").split())
    help_of_import = shown("import")
    assert "\nthe data and the network:\n" in help_of_import
    assert "distilled, and how" not in help_of_import
    assert "distil with" not in help_of_import
    assert "network that judges" in help_of_import


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--long"]) == 0
    methods = capsys.readouterr().out
    assert "  Table 1 of the survey: what is matched | on which networks" in methods
    rows = re.findall(r"^ {25}(\S.*)$", methods.partition("\ngraph ")[0], re.MULTILINE)
    assert {row.partition(":")[0] for row in rows} == {"Table 1", "no row of its own in Table 1"}
    for name in ("dm", "dc", "dsa", "krr", "gcond-x", "gcdm-x", "ridge-exact", "distill-cf", "distill-cf-meanfield"):
        assert f"  {name} " in methods
    assert main(["data"]) == 0
    data = capsys.readouterr().out
    for name in ("digits", "mnist", "cifar10", "cora", "sst2", "trec", "ml-1m"):
        assert f"  {name} " in data
    assert data.count("  PATH to import ") == len(DOMAIN_PACKAGES)
    for line in data.splitlines():
        if line.startswith("  ") and not line.startswith("  PATH"):
            assert any(words in line for words in ("; downloaded", "; bring ", "needs no download")), line


def test_methods_are_listed_in_a_line_each_above_their_row_of_table_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*given: str) -> list[str]:
        assert main(["methods", *given]) == 0
        return capsys.readouterr().out.splitlines()

    short = shown("image")
    assert shown("--domain", "image") == short
    rows = [line for line in short if re.match("  [a-z]", line) and "--" not in line]
    assert len(rows) == len(get_domain("image").methods)
    (cafe,) = [row for row in rows if row.startswith("  cafe ")]
    assert cafe.endswith(" classify real samples [Wang et al., CVPR 2022]")  # departures are for --long
    below = short[short.index(cafe) + 1]
    assert below.strip() == "Table 1: distribution (variant) | trained on S | raw or DSA | fixed"
    assert sum("Table 1: " in line for line in short) == 20
    assert "--long" in short[-1]
    protocols = [line for line in short if line.startswith("  --protocol")]
    assert protocols == [f"  --protocol {' | '.join(get_domain('image').protocols)}"]  # what each is, is for --long
    begun = re.findall(r"^([\w-]+) \(budget: --\w+; start with (.*)\)$", "\n".join(shown()), re.MULTILINE)
    assert [name for name, _ in begun] == [name for name in DOMAIN_PACKAGES if name != "graph-set"]  # which has one
    for name, methods in begun:
        assert set(methods.split(" or ")) <= set(get_domain(name).methods)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert all(len(line) <= 100 for line in shown("image") if "--" not in line)


def test_storages_of_many_numbers_are_listed_whatever_they_are_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = get_domain("text")
    families = {"words": StorageFamily(lambda number: next(iter(domain.parameterizations.values())), "N words a text")}
    monkeypatch.setattr("mmdistill.text.DOMAIN", replace(domain, families=families))
    assert main(["methods", "text"]) == 0
    assert re.search(r"^  --parameterization words-N +N words a text$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods", "imag"], "did you mean 'image'"),
        (["distill", "--data", "digit", "--method", "dm", "--ipc", "1"], "did you mean 'digits'"),
        (["distill", "--data", "digits", "--method", "dmm", "--ipc", "1"], "did you mean 'dm'?"),
        (["distill", "--data", "digits", "--method", "dn", "--ipc", "1"], "did you mean 'dc' or 'dd' or 'dm'?"),
        (
            ["distill", "--data", "digits", "--method", "qqqq", "--ipc", "1"],
            "unknown method for image data 'qqqq' (there",
        ),
        (["distill", "--data", "digits", "--method", "herding", "--ipc", "1"], "beside a method (--baselines herd"),
        (["distill", "--data", "digits", "--method", "dm", "--nodes", "7"], "--ipc N or --bytes SIZE"),
        (["distill", "--data", "digits", "--method", "dm"], "got no budget"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "0"], "the budget (--ipc) is between 1 and"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "9" * 20], "the budget (--ipc) is between 1"),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--judges", "convent"],
            "unknown judge 'convent'; did you mean 'convnet'?",
        ),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--validate-every", "5"],
            "cannot validate; leave --validate-every out",
        ),
        (
            ["distill", "--data", "digits", "--method", "random-soft", "--ipc", "1", "--steps", "5"],
            "Random, soft has a closed form and takes no steps, so --steps would do nothing",
        ),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--judge-batch", "0"], "--judge-batch is"),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--judge-epochs", "0"],
            "--judge-epochs is a whole number of at least 1",
        ),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--lr", "-1"], "lr is a number of at least 0"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--device", "mps"], "use cpu or cuda"),
        (
            ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--encoder", "tfidf"],
            "--encoder is for text data, and 'digits' is image data; leave it out",
        ),
        (
            ["distill", "--data", "cora", "--method", "dm", "--nodes", "70", "--augment", "true"],
            "--augment is for image data, and 'cora' is graph data; graphs are not augmented",
        ),
        (
            ["distill", "--data", "cora", "--method", "dm", "--nodes", "70", "--judge-batch", "3"],
            "--judge-batch is for image, text and recsys data",
        ),
        (
            ["distill", "--data", "cora", "--method", "dm", "--nodes", "70", "--judge-precision", "bf16"],
            "--judge-precision is for image data",
        ),
        (
            ["distill", "--data", "mutag", "--method", "doscond", "--ipc", "1", "--model", "gin"],
            "--model is for image, graph, text and recsys data",
        ),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--size", "9"], "a size is for the images of"),
        (["experts", "--data", "digits", "--experts", "0"], "--experts is a whole number of at least 1, got 0"),
        (["distill", "--data", "digits", "--method", "dm", "--ipc", "500"], "5,000 samples are more than the 1,297 of"),
        (["evaluate", "RUN", "--baselines", "rnadom"], "did you mean 'random'"),
        (["distill", "--method", "dm", "--ipc", "1"], "--data is needed"),
        (["distill", "--data", "no/such/file.csv", "--method", "dm", "--ipc", "1"], "neither a known data set nor"),
        (["distill", "--data", "./nofolder", "--method", "dm", "--ipc", "1"], "neither a known data set nor"),
        (
            ["distill", "--data", "digits", "--method", "gcond", "--ipc", "1"],
            "gcond is a method for graph data, and digits is image data",
        ),
        (["distill", "--resume", "nowhere"], "is no run folder"),
        (["evaluate", "nowhere"], "is no folder"),
        (["methods", "--domain", "imag"], "did you mean 'image'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    if arguments[0] == "distill" and "--resume" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("option", [("--ipc", "0"), ("--ipc", "1", "--lr", "-1"), ("--ipc", "1", "--networks", "0")])
def test_values_that_cannot_be_are_refused_before_anything_is_noted(
    option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), 20 * index).save(tmp_path / "pets" / name / f"{index}.png")
    given = ["distill", "--data", str(tmp_path / "pets"), "--method", "dm", "--out", str(tmp_path / "run")]
    assert main([*given, *option]) == 2
    assert capsys.readouterr().out == ""


def test_a_folder_of_runs_is_answered_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("digits", "mnist"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "distilled.json").write_text("{}")
    assert main(["export", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no distilled set" in (said := capsys.readouterr().err)
    assert said.endswith("; it holds the runs digits, mnist\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--ipc", "many"], "--ipc takes a whole number, got 'many' (see mmdistill distill --help)"),
        (["distill", "--lr", "nan"], "--lr takes a number, got 'nan'"),
        (["distill", "--augment", "perhaps"], "--augment takes true or false, got 'perhaps'"),
        (["distill", "--compile", "maybe"], "--compile takes auto, on, off, got 'maybe'"),
        (["distill", "--label", "warm"], "--label takes hard, soft, unrestricted, teacher, got 'warm'"),
        (["distill", "--real-bach", "3"], "unknown option --real-bach; did you mean '--real-batch'?"),
        (["distill", "--stesp=3"], "unknown option --stesp; did you mean '--steps'?"),
        (["distill", "--learning-rate", "1"], "unknown option --learning-rate; did you mean '--lr'?"),
        (["distill", "--batch_size", "1"], "unknown option --batch-size; did you mean '--real-batch'?"),
        (["distill", "--budget", "1"], "did you mean '--ipc'?"),
        (["evaluate", "runs/x", "--depth", "4"], "did you mean '--judges'?"),
        (["distill", "--verbose"], "unknown option --verbose (see"),
        (["export", "runs/x", "--out", "x"], "did you mean '--to'?"),
        (["evaluate", "runs/x", "--epochs=3"], "did you mean '--judge-epochs'?"),
        (["evaluate", "runs/x", "--seeds", "5"], "did you mean '--networks'?"),
        (["distill", "--seeds", "5"], "did you mean '--seed'?"),
        (["distill", "more"], "unexpected argument 'more'"),
        (["evaluate"], "required: runs (see mmdistill evaluate --help)"),
        (["distill", "--config", "absent.yaml"], "--config: File does not exist"),
        (["destill"], "unknown command 'destill'; did you mean 'distill'? (there are: distill, sweep, "),
    ],
)
def test_arguments_that_cannot_be_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_warnings_of_ours_are_notes_and_others_stay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = []

    def command() -> None:
        warnings.warn("compiling failed", MmdistillWarning, stacklevel=1)
        warnings.warn("something of another library", stacklevel=1)

    def shown(*given: object, **named: object) -> None:
        others.append(str(given[0]))

    monkeypatch.setattr(listings, "data_command", command)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", shown)
        assert main(["data"]) == 0
        assert warnings.showwarning is shown
    assert capsys.readouterr().err == "note: compiling failed\n"
    assert others == ["something of another library"]


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("task", [image_task, graph_task, graph_set_task, text_task, recsys_task])
def test_what_has_a_separator_is_a_path(task: Callable[[str], object]) -> None:
    with pytest.raises(MmdistillError, match=r"\./nofolder. is neither a known data set nor an existing"):
        task("./nofolder")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("client,product,stars,when\n1,2,5,7\n3,4,1,8\n", "Name it with --user-column (user_column)"),
        ("1,2,5,7\n3,4,1,8\n", "by their positions from 0, --user-column 0"),
    ],
)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method", "distill-cf-binary", "--users", "1"], ""),
        (["--method", "distill_ease"], ""),
        (["--method", "dm", "--users", "1"], ""),
        (["--method", "dm-tokens", "--ipc", "1"], "name their columns with --user-column and --item-column"),
    ],
)
def test_a_table_of_unknown_columns_is_what_its_method_or_budget_is_for(
    content: str, name: str, given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text(content)
    assert main(["distill", "--data", str(tmp_path / "log.csv"), *given, "--out", str(tmp_path / "run")]) == 2
    assert (said or name) in capsys.readouterr().err


def test_a_table_without_texts_names_the_options_of_interactions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text("who,what\n1,2\n3,4\n")
    given = ["--data", str(tmp_path / "log.csv"), "--ipc", "1", "--method", "dm"]
    assert main(["distill", *given, "--out", str(tmp_path / "run")]) == 2
    assert "recsys_task(data, user_column=..., item_column=...)" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_to_is_named_with_its_remedy(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    common = ["--data", "digits", "--model", "mlp", "--width", "4", "--ipc", "1"]
    assert main(["distill", *common, "--method", "mtt", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "file" / "cache") in said
    assert "set MMDISTILL_CACHE to a folder that can be written to" in said
    assert main(["export", str(run), "--to", str(tmp_path / "file" / "to")]) == 2
    assert "MMDISTILL_CACHE" not in capsys.readouterr().err


def test_both_spellings_of_options() -> None:
    assert spelled(["--real-batch", "3", "--Judge_Epochs=2", "runs/my-Run"]) == [
        "--real_batch", "3", "--judge_epochs=2", "runs/my-Run",
    ]  # fmt: skip
    names = ["--method", "GCond_X", "--init", "K_Center", "--compile=OFF", "--expert-precision", "BF16"]
    assert spelled([*names, "--out", "My_Run", "My_Run"]) == [
        "--method", "gcond-x", "--init", "k-center", "--compile=off", "--expert_precision", "bf16",
        "--out", "My_Run", "My_Run",
    ]  # fmt: skip


def test_starts_that_a_script_adds_stand_in_the_help_and_unknown_ones_name_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--dry-run", "--init"]
    assert main([*own, "outer"]) == 2
    said = capsys.readouterr().err
    assert "unknown start (--init) 'outer' (there are: craig, herding, k-center, k-means, noise, real); a rule" in said
    monkeypatch.setitem(RULES, "outer", RULES["herding"])
    monkeypatch.setattr(cli, "build_parser", inspect.unwrap(cli.build_parser))  # of each call, as out of tests
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    assert "--init {real,noise,herding,k-center,k-means,craig,outer}" in capsys.readouterr().out
    assert main([*own, "oter"]) == 2
    assert "unknown start (--init) 'oter'; did you mean 'outer'?" in capsys.readouterr().err
    assert main([*own, "OUTER"]) == 0


def test_a_word_behind_an_equals_sign_leaves_what_comes_next_as_it_is() -> None:
    assert spelled(["--scores=Accuracy", "My_Run", "--compile=ON", "x_Y"]) == [
        "--scores=accuracy", "My_Run", "--compile=on", "x_Y",
    ]  # fmt: skip


def test_words_count_however_they_are_spelled(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("compile: off\ninit: K_Center\nmethod: DM\nbaselines: [K_center]\n")
    assert read_settings(file) == {"compile": "off", "init": "k-center", "method": "dm", "baselines": "K_center"}
    assert distil(tmp_path / "run", "--config", str(file)) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["baselines"]) == ["k-center"]
    assert main(["compare", str(run), "--judge", "ConvNet", "--metric", "Accuracy"]) == 0
    assert main(["evaluate", str(run), "--scores", "Robust", "--networks", "1", "--judge-epochs", "1"]) == 0


def test_settings_that_a_method_does_not_read_are_named() -> None:
    given = {"inner_lr": 0.1, "inner_window": 3, "real_batch": 2, "outer_steps": 2}

    def unread(name: str) -> list[str]:
        return get_method(get_domain("image"), name).with_settings(**given).ignored_settings(1, given)

    assert unread("dm") == ["inner_lr", "inner_window", "outer_steps"]
    assert unread("dc") == ["inner_window"]
    assert unread("rat-bptt") == ["outer_steps"]
    assert get_method(get_domain("image"), "ld").ignored_settings(1, ["expert_steps", "inner_lr"]) == ["expert_steps"]
    assert get_method(get_domain("image"), "random-soft").ignored_settings(1, given) == []
    assert get_method(get_domain("image"), "tesla").ignored_settings(1, ["teacher_epochs"]) == ["teacher_epochs"]


@pytest.mark.parametrize("domain", DOMAIN_PACKAGES)
def test_no_method_sets_what_it_does_not_read(domain: str) -> None:
    for data in ("digits", "mnist", "cifar10") if domain == "image" else ("",):
        for name in get_domain(domain).methods:
            method = get_method(get_domain(domain), name, data)
            chosen = vars(method.settings(1))
            own = [name for name in TRAINING if chosen[name] != getattr(Settings(steps=1), name)]
            assert method.ignored_settings(1, own) == [], (name, data)


def test_settings_without_an_option_are_shown_of_methods(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dd", "pad"):
        assert main(["methods", name]) == 0
    shown = set(re.findall(r"--set (\w+)", capsys.readouterr().out))
    by_other_names = {"stored_bytes", "optimizers"}  # --bytes, and a line for each group
    assert shown >= set(Settings.__dataclass_fields__) - set(SETTINGS) - by_other_names


def test_an_ignored_option_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, idle in (("mtt", ["real_batch", "classes_at_once"]), ("dd", ["classes_at_once"]), ("edd", ["augment"])):
        found = get_method(get_domain("image"), name, "mnist")
        assert found.ignored_settings(1, ["real_batch", "classes_at_once", "augment", "steps"]) == idle
    distill(image_task("digits", width=8), "dd", ipc=1, settings={"steps": 1, "inner_steps": 2, "classes_at_once": 1})
    assert "DD does not read classes_at_once, which changes nothing" in caplog.text
    assert distil(tmp_path / "run", "--inner-lr", "0.1", "--baselines", "none", "--steps", "1") == 0
    assert "note: DM does not read --inner-lr, which changes nothing\n" in capsys.readouterr().out
    graph = {"x": torch.eye(6), "edge_index": torch.tensor([[0, 2], [1, 3]]), "y": torch.arange(6) % 2}
    masks = {f"{part}_mask": torch.arange(6) // 2 == index for index, part in enumerate(("train", "val", "test"))}
    settings = {"steps": 1, "outer_steps": 1, "inner_steps": 1, "augment": True}
    distill(graph_task({**graph, **masks}), "gcond-x", nodes=2, settings=settings)
    assert "augment changes nothing, since such data are not augmented" in caplog.text
    idle = "note: KIP reads no network, nor does its judge: --width changes nothing\n"
    given = ["--method", "kip", "--steps", "1", "--baselines", "none", "--width", "8"]
    others = (("--judges", "convnet"), ("--label", "teacher", "--teacher-epochs", "1"), ("--init", "herding"))
    for options, noted in (((), True), *((options, False) for options in others)):
        assert distil(tmp_path / "-".join(("kip", *options)), *given, *options) == 0
        assert (idle in capsys.readouterr().out) == noted


def test_an_option_of_true_or_false_is_true_where_it_stands_alone() -> None:
    def read(*options: str) -> tuple[bool, bool | None]:
        found = build_parser().parse_args(["distill", "--data", "digits", "--method", "dm", *options]).distill
        return found.overwrite, found.augment

    assert read() == (False, None)
    assert read("--overwrite", "--augment", "--ipc", "1") == (True, True)
    assert read("--augment", "false", "--overwrite") == (True, False)
    assert read("--overwrite=false") == (False, None)


def test_a_reduced_schedule_is_shorter_and_a_missing_one_is_named() -> None:
    domain = get_domain("image")
    assert get_method(domain, "dm", "mnist", "reduced").settings(1).steps < get_method(domain, "dm").settings(1).steps
    with pytest.raises(ConfigError, match="no reduced schedule"):
        get_method(domain, "dm", "cifar100", "reduced")
    with pytest.raises(
        ConfigError, match=r"for 'digits' \(image data that have: cifar10, fashion-mnist, mnist, svhn\)"
    ):
        get_method(domain, "dm", "digits", "reduced")


def test_output_that_cannot_be_written_stops_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ü ☃"
    shutil.copytree(run, folder)
    written = io.BytesIO()
    with monkeypatch.context() as patched, io.TextIOWrapper(written, encoding="ascii", write_through=True) as stream:
        patched.setattr(sys, "stdout", stream)  # as PYTHONIOENCODING=ascii makes it
        assert main(["report", str(folder)]) == 0
        assert b"\\xfc \\u2603" in written.getvalue()
    assert capsys.readouterr().err == ""
    command = [sys.executable, "-m", "mmdistill", "report", str(folder)]
    closed = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], check=False)
    assert closed.returncode == 0


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "mmdistill", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.close()
    assert listing.wait(timeout=120) == 0
    assert listing.stderr.read() == ""
    listing.stderr.close()


def test_a_command_whose_reader_goes_away_does_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    with open(descriptor, "w", buffering=1) as stream:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            patched.setattr(sys, "stderr", stream)
            assert distil(tmp_path / "run") == 0
            assert distil(tmp_path / "run") == 2
        assert vars(stream).keys() <= {"mode"}
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_reader_that_has_seen_enough_is_no_error_on_windows_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a closed pipe is an invalid argument."""

    class Closed(io.FileIO):
        def write(self, data: Any) -> int:
            if os.path.samestat(os.fstat(self.fileno()), os.stat(os.devnull)):
                return super().write(data)
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(sys, "platform", "win32")
    with Closed(tmp_path / "out", "w") as closed, io.TextIOWrapper(io.BufferedWriter(closed)) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["data"]) == 0
    assert (tmp_path / "out").read_text() == ""


@pytest.mark.parametrize("former", [None, "", "mine"])
@pytest.mark.parametrize("home", ["free", "file", "closed"])
def test_matplotlib_writes_into_the_cache_where_the_home_folder_cannot_be_written(
    home: str, former: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    stat, access = os.stat, os.access
    closed = tmp_path / "closed"
    closed.mkdir()

    def refusing_stat(path: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and closed in Path(os.fsdecode(path)).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    seen = []
    monkeypatch.setattr(os, "stat", refusing_stat)
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    monkeypatch.setattr(cli, "_dispatch", lambda options: seen.append(os.environ.get("MPLCONFIGDIR")))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    if former is not None:
        monkeypatch.setenv("MPLCONFIGDIR", former)
    monkeypatch.setenv("HOME", str({"free": tmp_path, "file": tmp_path / "file" / "home", "closed": closed}[home]))
    for cache in (tmp_path / "cache", tmp_path / "file" / "cache"):
        monkeypatch.setenv("MMDISTILL_CACHE", str(cache))
        assert main(["data"]) == 0
        assert os.environ.get("MPLCONFIGDIR") == former
    kept = former or home == "free"
    assert seen == [former if kept else str(tmp_path / "cache" / "matplotlib"), former]


def test_output_that_finds_no_space_stays_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [OSError(errno.ENOSPC, "No space left on device")]

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if errors:
                raise errors.pop()
            return super().write(data)

    with Full(tmp_path / "out", "w") as full, io.TextIOWrapper(io.BufferedWriter(full), line_buffering=True) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["data"]) == 2
