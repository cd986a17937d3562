"""``mmdistill experts``: trains what is missing, says how long it took, and is what distilling then uses."""

import shutil
from pathlib import Path

import pytest

from mmdistill.cli import main
from mmdistill.config import DistillConfig
from mmdistill.networks import experts
from mmdistill.runs.checkpoints import Checkpoints

FAST = ["experts", "--data", "digits", "--model", "mlp", "--width", "4", "--device", "cpu", "--together", "2"]
OWN = ["--experts", "2", "--expert-steps", "1", "--start-epochs", "2"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    return tmp_path


def test_experts_are_trained_once_and_used_by_distilling(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*FAST, "--experts", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 expert(s) of" in said
    assert " s; " in said
    (folder,) = (cache / "experts").iterdir()
    assert len(list(folder.glob("expert-*.safetensors"))) == 3
    (folder / "expert-0001.safetensors").unlink()
    before = (folder / "expert-0000.safetensors").read_bytes()
    assert main([*FAST, "--experts", "3"]) == 0
    assert (folder / "expert-0001.safetensors").exists()
    assert (folder / "expert-0000.safetensors").read_bytes() == before
    assert main([*FAST, "--experts", "3"]) == 0
    assert "already in" in capsys.readouterr().out
    asked = []
    monkeypatch.setattr(experts, "is_complete", lambda where, count: asked.append(where) or False)
    monkeypatch.setattr(experts, "train_experts", stopped)
    common = ["--data", "digits", "--model", "mlp", "--width", "4", "--device", "cpu", "--ipc", "1"]
    assert main(["distill", *common, "--method", "mtt", "--out", str(cache / "run")]) == 130
    assert set(asked) == {folder}


def test_a_folder_of_fewer_longer_experts_is_distilled_from(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [*OWN, "--expert-folder", str(cache / "own")]
    assert main([*FAST, "--epochs", "5"]) == 2
    assert "go with an --expert-folder" in capsys.readouterr().err
    assert main([*FAST, *own, "--epochs", "1"]) == 2
    assert "epochs with these settings, got 1" in capsys.readouterr().err
    assert main([*FAST, *own, "--epochs", "5"]) == 0
    assert "2 expert(s) of 5 epochs" in capsys.readouterr().out
    made = {path.name for path in (cache / "own").iterdir()}
    assert made == {"experts.json", "expert-0000.safetensors", "expert-0001.safetensors"}
    common = ["--data", "digits", "--model", "mlp", "--width", "4", "--device", "cpu", "--ipc", "1", "--steps", "2"]
    quick = ["--networks", "1", "--judge-epochs", "1", "--baselines", "none", "--out", str(cache / "run")]
    assert main(["distill", *common, *quick, "--method", "mtt", *own]) == 0
    assert {path.name for path in (cache / "own").iterdir()} == made
    assert not (cache / "experts").exists()
    assert main([*FAST, *own, "--epochs", "6"]) == 2
    assert "trained for 5 epochs, 6 are needed" in capsys.readouterr().err
    assert main([*FAST, *own, "--experts", "3"]) == 0
    assert "3 expert(s) of 5 epochs" in capsys.readouterr().out
    assert main([*FAST, *own, "--experts", "4", "--epochs", "4"]) == 0
    assert "4 expert(s) of 5 epochs" in capsys.readouterr().out


def test_experts_of_a_later_start_serve_an_earlier_one(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for starts in ("1", "3"):
        assert main([*FAST, "--experts", "2", "--start-epochs", starts]) == 0
    assert len(list((cache / "experts").iterdir())) == 2
    assert main([*FAST, "--experts", "2", "--start-epochs", "2"]) == 0
    assert "2 expert(s) are already in" in capsys.readouterr().out
    assert len(list((cache / "experts").iterdir())) == 2


@pytest.fixture
def begun(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run, begun in its parent with experts beside it, that was interrupted after its first step."""
    place, save = cache / "place", Checkpoints.save
    place.mkdir()
    monkeypatch.chdir(place)
    common = ["--data", "digits", "--model", "mlp", "--width", "4", "--device", "cpu", "--ipc", "1", "--steps", "3"]
    quick = ["--networks", "1", "--judge-epochs", "1", "--baselines", "none", "--checkpoint-every", "1"]
    own = ["--method", "mtt", *OWN, "--expert-folder", "own"]
    assert main(["distill", *common, *quick, *own, "--out", "whole"]) == 0

    def saved(self: Checkpoints, *rest: object) -> None:
        save(self, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", saved)
        assert main(["distill", *common, *quick, *own, "--out", "cut"]) == 130
    (cache / "elsewhere").mkdir()
    monkeypatch.chdir(cache / "elsewhere")
    return place / "cut"


def samples(run: Path) -> bytes:
    return (run / "distilled.safetensors").read_bytes()


def test_a_run_finds_its_experts_from_anywhere(begun: Path) -> None:
    assert DistillConfig.load(begun / "config.yaml").expert_folder == str(begun.parent / "own")
    assert main(["distill", "--resume", str(begun)]) == 0
    assert samples(begun) == samples(begun.parent / "whole")
    assert not any(Path.cwd().iterdir())


def test_a_run_does_not_go_on_with_other_experts_than_it_began_with(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = begun.parent / "own"
    shutil.rmtree(own)
    assert main(["distill", "--resume", str(begun)]) == 2
    said = capsys.readouterr().err
    assert f"2 experts in {own}" in said
    assert "mmdistill experts" in said
    assert not own.exists()
    assert main([*FAST[:-2], *OWN, "--expert-folder", str(own)]) == 0  # as many together as distilling trains
    assert main(["distill", "--resume", str(begun)]) == 0
    assert samples(begun) == samples(begun.parent / "whole")


def stopped(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_methods_without_experts_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, "--method", "dm"]) == 2
    error = capsys.readouterr().err
    assert "DM matches no experts; methods that do: mtt, tesla" in error
    assert main([*FAST, "--experts", "0"]) == 2


def test_what_experts_depend_on_is_said_as_for_distilling(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(cache / "own")
    options = ["--experts", "2", "--expert-folder", folder, "--expert-steps", "3", "--start-epochs", "4"]
    assert main([*FAST, *options]) == 0
    assert "2 expert(s) of 6 epochs" in capsys.readouterr().out
    assert main([*FAST, "--inductive", "true"]) == 2
    assert "--inductive is for graph data" in capsys.readouterr().err
    assert main([*FAST, "--nodes", "0"]) == 2
    assert "--nodes is a whole number of at least 1, got 0" in capsys.readouterr().err
