"""The options in which the runs of a sweep may differ beside method, budget and seed: values, folders and tables."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from mmdistill.cli import build_parser, main, spelled
from mmdistill.commands import sweep
from mmdistill.commands.making import distill_command
from mmdistill.commands.sweep import plan_runs
from mmdistill.commands.varied import require_effect, varied_settings
from mmdistill.config import DistillConfig, SweepConfig
from mmdistill.errors import ConfigError
from mmdistill.image import METHODS
from mmdistill.methods import CORE_METHODS
from mmdistill.settings import Settings
from tests.commands.digits import FAST
from tests.toys import BlobTask


def planned(*options: str) -> list[DistillConfig]:
    asked = ["sweep", "--data", "digits", "--methods", "dm", "--ipc", "1", "--out", "out", *options]
    given = vars(build_parser().parse_args(spelled(asked))["sweep"])
    values = {name: value for name, value in given.items() if name not in ("config", "dry_run")}
    of_sweep = {name: values.pop(name) for name in SweepConfig.__dataclass_fields__}
    return plan_runs(SweepConfig(**of_sweep), DistillConfig(**values))


BROKEN = ("[1],[2]", "(1, 2),(3, 4)", "'a','b'", "[1, 2", "[1]+[2]")
"""Texts that begin with a bracket or quote and are not one value."""


def folders(configs: list[DistillConfig]) -> list[str]:
    return [config.folder().name for config in configs]


def test_options_are_varied_like_budgets() -> None:
    configs = planned("--lr", "1,3,10", "--seeds", "0,1", "--init", "noise")
    assert [(config.lr, config.seed, config.init) for config in configs] == [
        (rate, seed, "noise") for seed in (0, 1) for rate in (1.0, 3.0, 10.0)
    ]
    assert folders(configs)[1:4] == ["digits-dm-1-lr3", "digits-dm-1-lr10", "digits-dm-1-lr1-seed1"]
    assert varied_settings(planned("--steps", "5,6", "--real-batch", "8")) == {"steps"}
    both = planned("--methods", "dm,dc", "--real-batch", "8,16", "--init", "real,noise", "--augment", "true,false")
    assert len(both) == 2 * 2 * 2 * 2
    assert {type(config.real_batch) for config in both} == {int}
    assert (both[-1].augment, both[-1].init) == (False, "noise")
    assert folders(both)[-1] == "digits-dc-1-real-batch16-init-noise-augment-false"
    assert folders(planned("--lr", "3")) == folders(planned("--lr", "3,3.0")) == ["digits-dm-1"]
    assert folders(planned("--lr", "1e-3,.25")) == ["digits-dm-1-lr0.001", "digits-dm-1-lr0.25"]
    assert folders(planned("--label", "hard,soft", "--parameterization", "upsample-2,raw")) == [
        f"digits-dm-{storage}-1-label-{label}" for storage in ("upsample-2", "raw") for label in ("hard", "soft")
    ]


def test_settings_without_an_option_are_varied_too_but_lists_are_one_value() -> None:
    configs = planned("--set", "inner_parts=2,3", "--set", "expert_leaving=[[1, 0.5]]")
    assert [config.set for config in configs] == [
        ("expert_leaving=[[1, 0.5]]", f"inner_parts={parts}") for parts in (2, 3)
    ]
    assert folders(configs) == ["digits-dm-1-inner-parts2", "digits-dm-1-inner-parts3"]
    for one in ("'a,b'", '"a"', "[1, 2]", "[(1, 2), (3, 4)]", "((1, 0.5),)", "()", "{a: 1}", ","):
        assert [config.set for config in planned("--set", f"own={one}")] == [(f"own={one}",)]


def test_a_file_lists_values(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("lr: [1, 3e-1]\ninit: [Real, noise]\naugment: [off, on]\nsteps: 7\ninner_parts: 1,2\n")
    configs = planned("--config", str(file))
    assert len(configs) == 16
    assert {config.init for config in configs} == {"real", "noise"}
    last = configs[-1]
    assert (last.lr, last.init, last.augment, last.steps, last.set) == (0.3, "noise", True, 7, ("inner_parts=2",))
    file.write_text("data: digits\nmethod: dm\nipc: 1\nlr: [1, 3]\n")
    with pytest.raises(SystemExit):
        main(["distill", "--config", str(file)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lr", "1,many"], "--lr takes a number, got 'many'"),
        (["--steps", "1,2.5"], "--steps takes a whole number, got '2.5'"),
        (["--lr", ","], "--lr takes a value or several, comma-separated, got ','"),
        (["--label", "hard,sft"], "--label takes hard, soft, unrestricted, teacher, got 'sft'"),
        *((["--set", f"own={text}"], "--set own takes one value in brackets or quotes") for text in BROKEN),
        (["--set", "own=a/b,a-b"], "two runs would be in out/digits-dm-1-own-a-b"),
    ],
)
def test_values_that_cannot_be_are_named(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        planned(*given)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return why a sweep is refused before anything runs."""
    out = tmp_path / "out"
    asked = ["sweep", "--data", "digits", "--methods", "dm,dc", "--ipc", "1", "--width", "8", "--out", str(out)]
    assert main([*asked, *options]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def test_what_is_varied_concerns_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True)
    class Powered(Settings):
        power: float = 2.0

    monkeypatch.setattr(sweep, "run_all", lambda *_: pytest.fail("a run has begun"))
    said = refused(tmp_path, capsys, "--outer-steps", "2,3")
    assert "DM does not read --outer-steps, which changes nothing" in said
    assert "what a sweep varies concerns all of its methods" in said
    assert "sweep dm apart" in said
    assert "got 'noize'; did you mean 'noise'?" in refused(tmp_path, capsys, "--init", "real,noize")
    assert "unknown parameterization" in refused(tmp_path, capsys, "--parameterization", "raw,upsampel-2")
    assert "steps would do nothing" in refused(tmp_path, capsys, "--methods", "dm,random-soft", "--steps", "5,6")
    monkeypatch.setattr(sweep, "own_program", lambda: ["its script"])
    monkeypatch.setitem(METHODS, "own", replace(CORE_METHODS["dm"], settings=lambda ipc: Powered(steps=1)))
    said = refused(tmp_path, capsys, "--methods", "own", "--set", "power=1,2")
    assert "does not read --set power" in said


def test_what_is_alike_in_all_runs_is_left_to_each() -> None:
    first, _ = planned("--steps", "5,6", "--outer-steps", "2")
    require_effect(CORE_METHODS["dm"], BlobTask(), first, {"steps"})
    with pytest.raises(ConfigError, match="--outer-steps"):
        require_effect(CORE_METHODS["dm"], BlobTask(), first, {"outer_steps"})
    require_effect(replace(CORE_METHODS["dm"], objective=None), BlobTask(), first, set())  # left to its own run


def test_each_combination_has_a_row_and_a_column_of_what_varies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def in_this_process(configs: list[DistillConfig], devices: list[str], total: int) -> list[DistillConfig]:
        for config in configs:
            started.append(config.folder().name)
            distill_command(config, None, False)
        return []

    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sweep, "run_all", in_this_process)
    out = tmp_path / "out"
    asked = ["sweep", "--data", "digits", "--methods", "dm", "--ipc", "1", *FAST, "--out", str(out)]
    asked += ["--lr", "1,10", "--steps", "2,4", "--baselines", "random"]
    assert main(asked) == 0
    assert capsys.readouterr().out.count("judged alike by an earlier run: random") == 3
    assert started == [f"digits-dm-1-steps{steps}-lr{rate}" for steps in (2, 4) for rate in (1, 10)]
    table = pd.read_csv(out / "comparison" / "comparison.csv")
    assert sorted(zip(table["steps"], table["codes_lr"], strict=True)) == [(2, 1.0), (2, 10.0), (4, 1.0), (4, 10.0)]
    assert table["title"].is_unique
    assert (out / "comparison" / "comparison.tex").read_text().count("codes lr 10.0) &") == 2
    assert main([*asked, "--dry-run"]) == 0
    assert capsys.readouterr().out.split()[1::2] == ["finished"] * 4
