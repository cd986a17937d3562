"""Settings without an option of their own, by ``--set`` and in YAML: read by their types, recorded, told apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
import yaml

from mmdistill.cli import main
from mmdistill.commands.assigned import parse_assignments
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.image import METHODS
from mmdistill.method import Configured, Method
from mmdistill.methods import fresh
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.settings import OptimizerSpec, Settings


class Shape(Enum):
    round = 1
    flat = 2


@dataclass(frozen=True)
class Scaled(Settings):
    scale: float = 1.0
    levels: tuple[int, ...] = (1, 2)
    least: float | None = 0.5
    word: str = "a"
    words: tuple[str, ...] = ()
    kind: Literal["x", "y"] = "x"
    shape: Shape = Shape.round
    weights: Mapping[str, float] | None = None
    rate: OptimizerSpec | None = None
    derived: float = field(default=1.0, init=False)


class ScaledMeans(DistributionMatching):
    def __init__(self, scale: float) -> None:
        super().__init__("last")
        self.scale = scale


def settings(ipc: int) -> Scaled:
    return Scaled(steps=2, real_batch=4, optimizers={"codes": OptimizerSpec("sgd", 0.1)})


SCALED = Method("Scaled", Configured(lambda own: ScaledMeans(own.scale)), fresh, settings)  # type: ignore[attr-defined]
RUN = ["--data", "digits", "--method", "scaled", "--ipc", "1", "--model", "mlp", "--width", "4", "--networks", "1"]
RUN = ["distill", *RUN, "--judge-epochs", "1", "--baselines", "none"]


@pytest.fixture(autouse=True)
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "scaled", SCALED)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("scale=1e-2", 0.01),
        ("scale= 2", 2.0),
        ("words=['\U0001f600', 'é']", ("\U0001f600", "é")),
        ("levels=[3, 4]", (3, 4)),
        ("levels=(3, 4)", (3, 4)),
        ("levels=()", ()),
        ("expert_leaving=((41, 0.1), (61, .2))", ((41, 0.1), (61, 0.2))),
        ("expert_leaving=[(41, 0.1), (61, .2)]", ((41, 0.1), (61, 0.2))),
        ("word=(1, 2)", "(1, 2)"),
        ("least=null", None),
        ("word=1 = 2", "1 = 2"),
        ("kind=y", "y"),
        ("shape=flat", Shape.flat),
        ("weights={a: 2}", {"a": 2.0}),
        ("expert-sam=0.05", 0.05),
        ("inner_optimizer=adam", "adam"),
        ("expert_adaptive=true", True),
    ],
)
def test_values_are_of_the_fields_types(given: str, value: object) -> None:
    assert list(parse_assignments([given], settings(1), "Scaled").values()) == [value]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("scale", "--set takes NAME=VALUE, such as --set inner_parts=2, got 'scale'"),
        ("=1", "--set takes NAME=VALUE"),
        ("scale=big", "--set scale takes a number, got 'big'"),
        ("kind=z", "--set kind takes x, y, got 'z'"),
        ("expert_adaptive=maybe", "--set expert_adaptive takes true or false, got 'maybe'"),
        ("expert_leaving=3", "--set expert_leaving takes a list, got '3', such as 'expert_leaving=\\[\\[1, 0.5\\]\\]'"),
        ("levels=3", "takes a list, got '3', such as 'levels=\\[1\\]'"),
        ("levels=[1.5]", "--set levels"),
        ("levels={[1]: 2}", "--set levels"),
        ("levels=[{(1, 2): 3}]", "--set levels"),
        ("scael=1", r"Scaled has no setting 'scael' for --set; did you mean 'scale'\? \(it takes: .*levels.*scale"),
        ("real_batch=3", "no setting 'real_batch' for --set; there is the option --real-batch"),
        ("derived=2", "no setting 'derived' for --set"),
        ("optimizers={}", "no setting 'optimizers' for --set"),
        ("rate={lr: 1}", "cannot say a value of rate, which is of type .*; set it in Python"),
    ],
)
def test_what_cannot_be_set_is_refused_in_words(given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_assignments([given], settings(1), "Scaled")


def test_a_run_records_what_is_set_and_goes_on_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*RUN, "--set", "word=b", "--set", "scale=3", "--set=scale=2", "--dry-run"]) == 0
    assert "scale 2.0" in (plan := capsys.readouterr().out)
    assert "does not read --set word" in plan
    assert main([*RUN, "--set", "scale=2", "--out", str(out)]) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["set"] == ["scale=2"]
    assert main(["distill", "--resume", str(out), "--steps", "3"]) == 0
    made = DistilledSet.load(out)
    assert (made.settings["scale"], made.steps) == (2.0, 3)
    assert main(["distill", "--resume", str(out), "--set", "scale=3"]) == 2
    assert "a run resumes with its own options; omit --set" in capsys.readouterr().err


def test_a_file_names_settings_like_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.yaml", tmp_path / "run"
    path.write_text("scale: 1.0e-3\nlevels: [3]\nword: '7'\nset: [inner_parts=2]\nleast:\n")
    assert main([*RUN, "--config", str(path), "--set", "scale=0.5", "--out", str(out)]) == 0
    assert DistillConfig.load(out / "config.yaml").set == ("inner_parts=2", "levels=[3]", "scale=0.5", "word=7")
    made = DistilledSet.load(out).settings
    assert (made["scale"], made["levels"], made["word"], made["least"]) == (0.5, [3], "7", 0.5)
    path.write_text("scael: 1")
    assert main([*RUN, "--config", str(path)]) == 2
    assert "unknown setting 'scael'; did you mean 'scale'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*RUN, "--scale", "1"])
    assert "unknown option --scale; did you mean '--set scale=VALUE'?" in capsys.readouterr().err


def test_runs_are_told_apart_by_what_is_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for scale, seed in (("1", "0"), ("2", "0"), ("2.0", "1")):
        out = tmp_path / f"{scale}-{seed}"
        assert main([*RUN, "--set", f"scale={scale}", "--seed", seed, "--out", str(out)]) == 0
    assert main(["compare", str(tmp_path)]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.startswith("digits  scaled")]
    assert [row[1] for row in rows] == ["scaled (scale 1.0)", "scaled (scale 2.0)"]


def test_a_sweep_takes_what_is_set_and_knows_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdistill.commands.sweep.own_program", lambda: ["python", "my_methods.py"])
    common = ["--data", "digits", "--ipc", "1", "--model", "mlp", "--width", "4", "--networks", "1"]
    common += ["--judge-epochs", "1", "--baselines", "none"]
    asked = ["sweep", *common, "--methods", "scaled", "--out", str(tmp_path), "--dry-run", "--set", "scale=2"]
    assert main(asked) == 0
    assert "new" in capsys.readouterr().out
    folder = tmp_path / "digits-scaled-1"
    assert main(["distill", *common, "--method", "scaled", "--set", "scale=2", "--out", str(folder)]) == 0
    assert main(asked) == 0
    assert "finished" in capsys.readouterr().out
    assert main([*asked, "--set", "scale=3"]) == 2
    assert "holds another run, of set scale=2 in place of scale=3" in capsys.readouterr().err


def test_experts_take_settings_without_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["experts", "--data", "digits", "--method", "ftd", "--model", "mlp", "--width", "4", "--experts", "1"]
    asked += ["--expert-steps", "1", "--start-epochs", "1", "--expert-folder", str(tmp_path)]
    assert main([*asked, "--set", "expert_sam=0.02"]) == 0
    assert '"sam": 0.02' in (tmp_path / "experts.json").read_text()
    assert main([*asked, "--set", "scale=2"]) == 2
    assert "FTD has no setting 'scale' for --set" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["set: 7", "set: [7]", "set: scale"])
def test_a_damaged_line_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"data: digits\n{line}\n")
    with pytest.raises((CheckpointError, ConfigError), match=r"set: \[7\], which cannot be|--set takes NAME=VALUE"):
        DistillConfig.load(tmp_path / "config.yaml")


def test_a_field_named_as_the_rate_of_the_samples_does_not_set_that() -> None:
    @dataclass(frozen=True)
    class Rated(Settings):
        lr: float = 0.3

    with pytest.raises(ConfigError, match=r"no setting 'lr' for --set; there is the option --lr"):
        parse_assignments(["lr=0.7"], Rated(steps=1), "Rated")
