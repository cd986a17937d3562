"""What a dry run says and refuses."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmdistill.cli import main
from mmdistill.commands import making
from mmdistill.config import DistillConfig


def test_experts_take_the_options_that_decide_whose_distilling_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DistillConfig] = []
    monkeypatch.setattr(making, "experts_command", lambda config, count, together: seen.append(config))
    assert main(["experts", "--data", "mnist", "--schedule", "reduced", "--whiten", "mtt", "--size", "32"]) == 0
    assert (seen[0].schedule, seen[0].whiten, seen[0].size) == ("reduced", "mtt", 32)


def test_a_dry_run_says_what_the_run_would_do_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["distill", "--data", "digits", "--method", "dc", "--ipc", "2", "--seed", "3", "--steps", "7"]
    assert main([*options, "--dry-run", "--judges", "mlp", "--networks", "1", "--label", "soft"]) == 0
    said = capsys.readouterr().out
    for line in (
        "10, of 124 to 133 training samples: 0, 1, 2",
        "DC, 7 steps, seed 3",
        "ipc 2",
        "soft",
        "mlp, 1 network each",
        "runs/digits-dc-2-seed3",
    ):
        assert line in said
    assert list(tmp_path.iterdir()) == []
    assert main([*options, "--dry-run", "--judges", "mpl"]) == 2
    with pytest.raises(SystemExit):
        main([*options, "--print-config"])
    (tmp_path / "own.yaml").write_text(capsys.readouterr().out)
    assert main(["distill", "--config", str(tmp_path / "own.yaml"), "--dry-run"]) == 0
    assert "DC, 7 steps, seed 3" in capsys.readouterr().out


def test_published_steps_are_told_to_be_many_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in "ab":
        for number in range(3):
            picture = Image.new("L", (16, 16), 20 * number + (100 if label == "b" else 0))
            (tmp_path / "own" / label).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "own" / label / f"{number}.png")
    own = ["distill", "--data", "own", "--ipc", "1", "--width", "4", "--dry-run"]
    assert main([*own, "--method", "dm"]) == 0
    assert "the 20,000 steps may take hours or days on a CPU; --steps N takes fewer" in capsys.readouterr().out
    assert main([*own, "--method", "dm", "--steps", "20000"]) == 0
    assert "hours or days" not in capsys.readouterr().out


def planned(capsys: pytest.CaptureFixture[str], *options: str, ipc: int = 1) -> str:
    given = ("distill", "--data", "digits", "--ipc", str(ipc), *options, "--dry-run")
    assert main(list(given)) == 0
    return capsys.readouterr().out


def test_a_dry_run_says_for_how_long_networks_train(capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, "--method", "dm")
    assert "convnet, 5 networks each, 300 epochs\n" in said
    assert "random, herding, whole (60 epochs)\n" in said
    stored = planned(capsys, "--method", "dm", "--judges", "ntk,mlp", "--parameterization", "upsample-2")
    assert "ntk, solved without training; mlp, 5 networks each, epochs that depend on the finished set\n" in stored
    said = planned(capsys, "--method", "dm", "--judges", "ntk,mlp", "--judge-epochs", "2", "--baselines", "random")
    assert "ntk, solved without training; mlp, 5 networks each, 2 epochs\n" in said
    assert "whole" not in said
    assert "convnet, 5 networks each\n" in planned(capsys, "--method", "dd")  # whose sets carry their own steps


def test_a_dry_run_names_things_by_words_of_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, "--method", "dm")
    assert "settings    samples: sgd, lr 1.0, momentum 0.5; real batch 64, init real, augment\n" in said
    assert "judges      ntk, solved without training\n" in planned(capsys, "--method", "kip")
    haba = planned(capsys, "--method", "haba", ipc=10)
    assert "settings    codes: adam, lr 0.03; " in haba
    assert "decoder: adam, lr 0.003; real batch" in haba
    assert "inner batch all" in haba
    assert "stored as" not in haba  # which has no name


def test_a_dry_run_says_which_steps_a_group_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    nodes = {"x": torch.eye(8), "edge_index": edges, "y": torch.arange(8) // 4}
    masks = {f"{name}_mask": torch.arange(8) % 4 == part for part, name in enumerate(("train", "val", "test"))}
    torch.save(nodes | masks, tmp_path / "own.pt")
    assert main(["distill", "--data", str(tmp_path / "own.pt"), "--method", "gcond", "--nodes", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "codes: adam, lr 0.02, steps 10 to 49 of each 50; decoder: adam, lr 0.001, steps 0 to 9 of each 50; " in said
    assert "inner batch all" in said


def test_a_dry_run_says_which_experts_it_would_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    options = ("--method", "mtt", "--model", "mlp", "--width", "4", "--experts", "2", "--start-epochs", "2")
    kept = tmp_path / "kept"
    own = (*options, "--expert-steps", "1", "--expert-folder", str(kept))
    assert f"2 of 2 epochs, to be trained first in {kept}\n" in planned(capsys, *own)
    assert "2 of 3 epochs, to be trained first in " in planned(capsys, *options)
    assert not kept.exists()
    common = ["--data", "digits", "--method", "mtt", "--model", "mlp", "--width", "4", "--experts", "2"]
    assert main(["experts", *common, "--start-epochs", "3", "--expert-steps", "1", "--expert-folder", str(kept)]) == 0
    capsys.readouterr()
    assert f"2 of 3 epochs, in {kept}\n" in planned(capsys, *own)
    assert f"3 of 3 epochs, 1 of them to be trained first in {kept}\n" in planned(capsys, *own, "--experts", "3")
    given = ("distill", "--data", "digits", "--ipc", "1", *own, "--set", "expert_lr=0.5", "--dry-run")
    for more in ((), ("--experts", "3")):
        assert main([*given, *more]) == 2
        assert "trained with lr = 0.02, not 0.5; use another folder, or change the" in capsys.readouterr().err
    assert "experts" not in planned(capsys, "--method", "dm")


def test_a_dry_run_says_which_teacher_it_would_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    options = ("--model", "mlp", "--width", "4", "--teacher-epochs", "2")
    row = r"^teacher +a network of 2 epochs, {}in .*cache"
    taught = ("--method", "random-soft", *options)
    for own in (taught, ("--method", "dm", "--label", "teacher", *options)):
        assert re.search(row.format("to be trained first "), planned(capsys, *own), re.MULTILINE)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    judged = ("--networks", "1", "--judge-epochs", "1", "--baselines", "none")
    assert main(["distill", "--data", "digits", "--ipc", "1", *taught, *judged, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert re.search(row.format(""), planned(capsys, *taught), re.MULTILINE)
    tesla = ("--method", "tesla", "--label", "teacher", "--experts", "1", "--start-epochs", "2", "--expert-steps", "1")
    for own in (("--method", "dm"), tesla):  # whose experts label
        assert "teacher  " not in planned(capsys, *own, "--model", "mlp", "--width", "4").replace("labels  ", "")


def test_a_dry_run_says_what_is_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "dm", "--out", str(tmp_path))
    (tmp_path / "distilled.json").write_text("{}")
    way = "already holds a finished run; choose another --out or begin anew with --overwrite"
    assert f"{tmp_path} {way}" in planned(capsys, *options)
    assert way not in planned(capsys, *options, "--overwrite")
    assert (
        main(["distill", "--data", "digits", "--ipc", "1", "--method", "dn", "--out", str(tmp_path), "--dry-run"]) == 2
    )
    assert "did you mean" in capsys.readouterr().err
    (tmp_path / "distilled.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-1.safetensors").write_text("")
    assert f"holds an unfinished run; continue it with --resume {tmp_path}, choose" in planned(capsys, *options)
    (tmp_path / "file").write_text("")
    assert "is a file" in planned(capsys, "--method", "dm", "--out", str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "digits", "--method", "dm", "--ipc", "0"], "the budget (--ipc) is between 1 and"),
        (["--data", "digits", "--method", "dm", "--ipc", "1000"], "10,000 samples are more than the 1,297"),
    ],
)
def test_a_dry_run_refuses_budgets_that_the_run_would(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *options, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "dm", "--label", "soft"], "never reads labels, only the class that groups the samples"),
        (["--method", "dm", "--label", "soft", "--parameterization", "upsample-2"], "never reads labels"),
        (["--method", "dc", "--label", "unrestricted"], "needs labels that are distributions"),
        (["--method", "haba", "--parameterization", "raw"], "as many decoders make of each code, and these have 1"),
        (["--method", "haba", "--parameterization", "hallucinated"], "compares the 2 samples .*, and these have 5"),
        (["--method", "ld", "--label", "hard"], "would learn nothing"),
        (["--method", "kip", "--precision", "bf16"], "computes nothing in bfloat16"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["distill", "--data", "digits", "--ipc", "4", "--steps", "1", *options, "--out", str(tmp_path / "run")]
    assert main([*given, "--dry-run"]) == 2
    planned = capsys.readouterr().err
    assert re.search(message, planned)
    assert main(given) == 2
    assert planned in capsys.readouterr().err


def test_a_dry_run_plans_bases_in_as_many_styles_as_the_method_compares(capsys: pytest.CaptureFixture[str]) -> None:
    assert "latent" in planned(capsys, "--method", "haba", "--parameterization", "latent", ipc=5)
    assert "teacher" in planned(capsys, "--method", "dm", "--label", "teacher")
