"""A run is taken further: what more steps than it had make of it is what they make of a run that had them at once."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from torch import Tensor

from mmdistill.cli import main
from mmdistill.commands import finished as run_commands
from mmdistill.commands import making as commands
from mmdistill.config import DistillConfig
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller, Gradients
from mmdistill.errors import CheckpointError
from mmdistill.labels import LabelKind
from mmdistill.method import Configured, Method
from mmdistill.methods import CORE_METHODS
from mmdistill.objectives.adversary import StyleAdversary
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.gradient import GradientMatching, WarmUp
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.runs.checkpoints import steps_of
from mmdistill.runs.keeper import Keeper
from mmdistill.runs.state import RunState
from mmdistill.runs.stepper import Stepper
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Task
from tests.runs.blobs import Undecided, Validated, method
from tests.toys import BlobTask, Uncompiled

SET = "distilled.safetensors"
CODES, RATE = OptimizerSpec("sgd", 0.2, 0.5), OptimizerSpec("sgd", 1.0, 0.5)


class Rising(BlobTask):
    """Scores each step that is validated better than the one before, whichever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        self.calls += 1
        return float(self.calls)


class Peaking(BlobTask):
    """Scores samples by how near they come to where they are after seven steps, in the settings below."""

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        return -abs(float(synthetic.inputs.detach().norm()) - 9.42)  # type: ignore[attr-defined]


def pairs(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    made = raw_samples(task, budget, settings.init, label, draws)
    made.styles = 2
    return made


def adversarial() -> Method:
    rates = {"codes": CODES, "objective": RATE}
    found = replace(
        CORE_METHODS["dd"],
        objective=lambda: StyleAdversary(UnrolledPerformance(2, InnerRate(0.1, learn=True)), styles=2),
        parameterization=pairs,
    )
    return found.with_settings(inner_steps=2, optimizers=rates)


KINDS: Mapping[str, tuple[Callable[[], BlobTask], Method]] = {
    "momentum": (BlobTask, method("dc", optimizers={"codes": CODES})),
    "average": (BlobTask, method("dm", ema=0.9)),
    "average of steps alone": (BlobTask, method("dm", ema=0.9, ema_start=False)),
    "adam": (BlobTask, method("dc", optimizers={"codes": OptimizerSpec("adam", 0.05)})),
    "soft labels": (BlobTask, method("dc", optimizers={"codes": CODES, "labels": RATE}).labelled("soft")),
    "learned rate": (BlobTask, method("dd", inner_steps=2, optimizers={"codes": CODES, "objective": RATE})),
    "adversary": (BlobTask, adversarial()),
    "validated": (Peaking, method("dm", validate_every=2)),
    "validated elsewhere": (Peaking, method("dm", validate_every=3)),
    "a teacher's labels": (Peaking, method("dm", validate_every=3, teacher_epochs=2).labelled("teacher")),
}


def interrupted_at(step: int) -> Callable[[int, int, float], None]:
    def stop(done: int, total: int, loss: float) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return stop


@pytest.mark.parametrize("steps", [pytest.param(6, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_that_ends_earlier_has_the_set_of_a_shorter_one(kind: str, steps: int, tmp_path: Path) -> None:
    task, full = KINDS[kind]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    distill(task(), full, ipc=2, seed=3, settings={"steps": steps}, out=whole)
    with pytest.raises(KeyboardInterrupt):
        distill(task(), full, ipc=2, seed=3, settings={"steps": 17}, out=stopped, progress=interrupted_at(5))
    with pytest.raises(CheckpointError, match="of a run of 17 steps and has taken 5, so it ends at 5 or later"):
        distill(task(), full, ipc=2, seed=3, settings={"steps": 4}, out=stopped, resume=True)
    found = distill(task(), full, ipc=2, seed=3, settings={"steps": steps}, out=stopped, resume=True)
    assert (stopped / SET).read_bytes() == (whole / SET).read_bytes()
    assert (found.taken, found.settings["steps"]) == (steps, steps)
    assert DistilledSet.load(stopped).steps == DistilledSet.load(whole).steps


@pytest.mark.parametrize("kind", ["validated", "validated elsewhere"])
def test_a_run_that_ends_where_it_was_stopped_has_its_last_step_validated(kind: str, tmp_path: Path) -> None:
    task, full = KINDS[kind]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    distill(task(), full, ipc=2, seed=3, settings={"steps": 7}, out=whole)
    with pytest.raises(KeyboardInterrupt):
        distill(task(), full, ipc=2, seed=3, settings={"steps": 17}, out=stopped, progress=interrupted_at(6))
    earlier = stopped / "checkpoints" / "step-00000006.safetensors"
    earlier.rename(tmp_path / "6")
    with pytest.raises(CheckpointError, match=r"17 steps, which did not validate step 7, .* let it end at 8 or later"):
        distill(task(), full, ipc=2, seed=3, settings={"steps": 7}, out=stopped, resume=True)
    (tmp_path / "6").rename(earlier)
    distill(task(), full, ipc=2, seed=3, settings={"steps": 7}, out=stopped, resume=True)
    assert (stopped / SET).read_bytes() == (whole / SET).read_bytes()
    assert DistilledSet.load(stopped).steps == DistilledSet.load(whole).steps == 7


@pytest.mark.parametrize("steps", [8, 9])
def test_checkpoints_that_a_run_went_back_behind_are_gone(steps: int, tmp_path: Path) -> None:
    full, whole, stopped = method("dm"), tmp_path / "whole", tmp_path / "stopped"
    distill(BlobTask(), full, ipc=1, settings={"steps": steps}, out=whole)
    with pytest.raises(KeyboardInterrupt):
        distill(
            BlobTask(),
            full,
            ipc=1,
            settings={"steps": 30},
            out=stopped,
            checkpoint_every=4 if steps == 8 else 7,
            progress=interrupted_at(9),
        )
    with pytest.raises(CheckpointError, match=rf"has taken {8 if steps == 8 else 7}, so it ends at"):
        distill(BlobTask(), full, ipc=1, settings={"steps": 6}, out=stopped, resume=True)
    distill(BlobTask(), full, ipc=1, settings={"steps": steps}, out=stopped, checkpoint_every=7, resume=True)
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir())[-1] == f"step-{steps:08d}.safetensors"
    (stopped / "distilled.json").write_text("{")
    distill(BlobTask(), full, ipc=1, settings={"steps": steps}, out=stopped, resume="auto")
    assert (stopped / SET).read_bytes() == (whole / SET).read_bytes()


@pytest.mark.parametrize("steps", [7, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_run_has_the_set_of_one_that_was_as_long_from_the_start(kind: str, steps: int, tmp_path: Path) -> None:
    task, full = KINDS[kind]
    whole, run, stopped = tmp_path / "whole", tmp_path / "run", tmp_path / "stopped"
    distill(task(), full, ipc=2, seed=3, settings={"steps": 17}, out=whole)
    distill(task(), full, ipc=2, seed=3, settings={"steps": steps}, out=run)
    if kind == "validated elsewhere":
        assert (DistilledSet.load(run).steps, DistilledSet.load(whole).steps) == (steps, 6)
    with pytest.raises(KeyboardInterrupt):
        distill(task(), full, ipc=2, seed=3, settings={"steps": steps}, out=stopped, progress=interrupted_at(5))
    for folder, resume in ((run, True), (stopped, "auto")):
        distill(task(), full, ipc=2, seed=3, settings={"steps": 17}, out=folder, resume=resume)  # type: ignore[arg-type]
        found, expected = DistilledSet.load(folder), DistilledSet.load(whole)
        assert (folder / SET).read_bytes() == (whole / SET).read_bytes()
        assert (found.steps, found.taken, found.settings) == (expected.steps, 17, expected.settings)
        shown = json.loads((folder / "history.json").read_text())["step"]
        assert shown == sorted(set(shown))
        assert shown[-1] == 17


def test_a_run_is_taken_further_again_and_again(tmp_path: Path) -> None:
    full = method("dc", optimizers={"codes": CODES})
    for steps in (1, 2, 7, 12):
        distill(
            BlobTask(),
            full,
            ipc=1,
            settings={"steps": steps},
            out=tmp_path / "run",
            resume="auto" if steps == 1 else True,
        )
    distill(BlobTask(), full, ipc=1, out=tmp_path / "whole")
    assert (tmp_path / "run" / SET).read_bytes() == (tmp_path / "whole" / SET).read_bytes()


def test_a_last_step_that_only_its_run_validates_is_gone_back_behind(tmp_path: Path) -> None:
    full = method("dm", validate_every=5)
    assert distill(Rising(), full, ipc=1, settings={"steps": 7}, out=tmp_path).steps == 7
    (tmp_path / "checkpoints" / "step-00000006.safetensors").rename(tmp_path / "6")
    with pytest.raises(CheckpointError, match=r"step-00000007.*has its run's last step as the best one"):
        distill(Rising(), full, ipc=1, settings={"steps": 9}, out=tmp_path, resume=True)
    assert distill(Rising(), full, ipc=1, settings={"steps": 7}, out=tmp_path, resume=True).steps == 7
    (tmp_path / "6").rename(tmp_path / "checkpoints" / "step-00000006.safetensors")
    assert distill(Undecided(), full, ipc=1, settings={"steps": 9}, out=tmp_path, resume=True).steps == 5


def test_what_patience_ended_stays_as_it_is(tmp_path: Path) -> None:
    full = method("dc", validate_every=2, patience=4)
    for folder, steps in (("run", 20), ("whole", 40)):
        distill(Validated(), full, ipc=2, settings={"steps": steps}, out=tmp_path / folder)
    found = distill(Validated(), full, ipc=2, settings={"steps": 40}, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / SET).read_bytes() == (tmp_path / "whole" / SET).read_bytes()
    assert (found.steps, found.taken, found.settings["steps"]) == (6, 14, 40)
    for steps in (13, 20):
        with pytest.raises(CheckpointError, match=f"is of a finished run of 40 steps, .* {steps} are fewer"):
            distill(Validated(), full, ipc=2, settings={"steps": steps}, out=tmp_path / "whole", resume=True)


@pytest.mark.parametrize("begun", ["eager", "compiled"])
def test_on_a_cpu_a_run_goes_on_as_its_steps_ran(begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else some of its steps would be rounded otherwise than the others."""
    monkeypatch.setattr("mmdistill.execution.compilation.WORTH_OPERATIONS", 1e30 if begun == "compiled" else 1.0)
    monkeypatch.setattr("mmdistill.objectives.compiled.Program", Uncompiled)
    distiller = Distiller(BlobTask(), method("dm", steps=400), 1)
    run = distiller.start()
    run.step, run.path = 3, begun
    stepper = Stepper(distiller)
    stepper(run)
    assert stepper.path == begun


def warmed(settings: Settings) -> GradientMatching:
    return GradientMatching(row_cosine, "class-sum", warm_up=WarmUp(settings.steps // 4, 10))


REFUSED = {
    "rate": (
        method("dc", optimizers={"codes": replace(CODES, cosine=True)}),
        "the rate of its codes is annealed over its steps, so such a run is another one from the first step",
    ),
    "objective": (
        replace(method("dc"), objective=Configured(warmed)),
        r"its described\.objective\.warm_up\.steps is 1, not 3, so such a run is another one",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_whose_steps_depend_on_their_number_is_refused(kind: str, tmp_path: Path) -> None:
    full, reason = REFUSED[kind]
    distill(BlobTask(), full, ipc=1, settings={"steps": 6}, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=f"of a run of 6 steps, which cannot be taken to 12: {reason}"):
        distill(BlobTask(), full, ipc=1, out=tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_no_step_learns_is_in_no_ones_way(tmp_path: Path) -> None:
    full = method("dc", optimizers={"codes": CODES, "labels": replace(RATE, cosine=True)})  # of hard labels
    distill(BlobTask(), full, ipc=1, settings={"steps": 6}, out=tmp_path)
    assert distill(BlobTask(), full, ipc=1, out=tmp_path, resume=True).steps == 12


def test_other_runs_and_fewer_steps_are_refused_by_name(tmp_path: Path) -> None:
    distill(BlobTask(), method(), ipc=1, out=tmp_path)
    with pytest.raises(CheckpointError, match="a finished run of 12 steps, which can only be taken further; 7 are"):
        distill(BlobTask(), method(steps=7), ipc=1, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"belongs to another run: its settings\.inner_lr is 0\.01, not 0\.5"):
        distill(BlobTask(), method(steps=20, inner_lr=0.5), ipc=1, out=tmp_path, resume=True)


def test_auto_takes_no_finished_run_further_but_goes_on_with_one_that_is(tmp_path: Path) -> None:
    short, full = method("dm", steps=6), method("dm")
    distill(BlobTask(), short, ipc=1, out=tmp_path)
    before = (tmp_path / SET).read_bytes()
    with pytest.raises(
        CheckpointError,
        match=r"steps is 6, not 12; name its own steps \(--steps 6\), take the run further with resume=True",
    ):
        distill(BlobTask(), full, ipc=1, out=tmp_path, resume="auto")
    with pytest.raises(CheckpointError) as fewer:
        distill(BlobTask(), method("dm", steps=3), ipc=1, out=tmp_path, resume="auto")
    assert "further" not in str(fewer.value)
    with pytest.raises(KeyboardInterrupt) as stopped:
        distill(BlobTask(), full, ipc=1, out=tmp_path, resume=True, progress=interrupted_at(9))
    assert "goes on from there" in stopped.value.__notes__[0]
    assert (tmp_path / SET).read_bytes() == before
    assert distill(BlobTask(), short, ipc=1, out=tmp_path, resume="auto").steps == 6  # which is still there
    with pytest.raises(CheckpointError, match="of a run of 12 steps and has taken 9, so it ends at 9 or later"):
        distill(BlobTask(), short, ipc=1, out=tmp_path, resume=True)
    assert distill(BlobTask(), full, ipc=1, out=tmp_path, resume="auto").steps == 12
    assert distill(BlobTask(), full, ipc=1, out=tmp_path, resume="auto").steps == 12


DERIVED = ("metrics.json", "report.md", "pictures/images.png", "export/export.json", "export/set.npz")


def judged(folder: Path) -> None:
    """Write what commands make of a finished set, each saying of which."""
    made = str(steps_of(json.loads((folder / "distilled.json").read_text())))
    for name in DERIVED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(made)
    (folder / "export" / "export.json").write_text(json.dumps({"set": made, "files": ["set.npz"]}))
    drawn = [name.removeprefix("pictures/") for name in DERIVED if name.startswith("pictures/")]
    (folder / "pictures" / "drawn.json").write_text(json.dumps({"files": drawn}))


def killed(patch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """Have the process killed at the so many-th call of a file's method: nothing is done afterwards."""
    original, calls = getattr(Path, name), [0]

    def limited(path: Path, *given: object, **named: object) -> object:
        if "checkpoints" not in path.parts:
            calls[0] += 1
            if calls[0] >= at:
                raise SystemExit("killed")
        return original(path, *given, **named)

    patch.setattr(Path, name, limited)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps with what commands make of it; beside it one of 12 steps."""
    folder = tmp_path_factory.mktemp("finished")
    distill(BlobTask(), method("dm", steps=6), ipc=1, out=folder / "run")
    judged(folder / "run")
    distill(BlobTask(), method("dm"), ipc=1, out=folder / "whole")
    return folder


@pytest.mark.parametrize("name", ["unlink", "replace"])
def test_a_kill_at_any_time_leaves_no_set_beside_what_was_made_of_another(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, done = 0, False
    while not done:
        at += 1
        folder = tmp_path / str(at)
        shutil.copytree(finished / "run", folder)
        with monkeypatch.context() as patch:
            killed(patch, name, at)
            patch.setattr(shutil, "rmtree", lambda *given, **named: None)  # nor is anything tidied up
            try:
                distill(BlobTask(), method("dm"), ipc=1, out=folder, resume=True)
                done = True
            except SystemExit:
                pass
        there = [path for path in DERIVED if (folder / path).exists()]
        if (folder / "distilled.json").exists():
            assert DistilledSet.load(folder).steps == 6 or not there  # which is whole
        else:
            assert not there
        assert distill(BlobTask(), method("dm"), ipc=1, out=folder, resume=True).steps == 12
        assert (folder / SET).read_bytes() == (finished / "whole" / SET).read_bytes()
        assert not any((folder / path).exists() for path in DERIVED)
        assert not (folder / ".finished").exists()
    assert at > 3


def test_what_was_made_of_a_set_stays_with_it_until_the_longer_run_is_finished(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts
    }
    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method("dm"), ipc=1, out=folder, resume=True, progress=interrupted_at(9))
    full = Mock(side_effect=OSError(28, "No space left on device"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistilledSet, "save", full)
        with pytest.raises(OSError, match="No space"):
            distill(BlobTask(), method("dm"), ipc=1, out=folder, resume=True)
    assert {path: path.read_bytes() for path in before} == before
    distill(BlobTask(), method("dm"), ipc=1, out=folder, resume=True)
    assert not any((folder / path).exists() for path in DERIVED)
    judged(folder)
    distill(BlobTask(), method("dm"), ipc=1, out=folder, resume=True)  # the same run again, which keeps its own
    assert all((folder / path).exists() for path in DERIVED)


FAST = ["--width", "8", "--networks", "1", "--judge-epochs", "1", "--real-batch", "8", "--baselines", "none"]


def distil(folder: Path, steps: int, *extra: str) -> int:
    what = ["--data", "digits", "--method", "dm", "--ipc", "1", "--steps", str(steps)]
    return main(["distill", *what, *FAST, *extra, "--out", str(folder)])


def resumed(folder: Path, *extra: str) -> int:
    return main(["distill", "--resume", str(folder), *extra])


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps by the command line, reported and exported; beside it one of 9 steps."""
    folder = tmp_path_factory.mktemp("commanded")
    assert distil(folder / "run", 6) == distil(folder / "whole", 9) == 0
    assert main(["report", str(folder / "run")]) == main(["export", str(folder / "run")]) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """What a folder holds beside checkpoints and options, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "config.yaml"}


def test_the_command_line_takes_a_run_further(
    commanded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(commanded / "run", folder)
    assert resumed(folder, "--steps", "6") == 0
    assert "already distilled" in capsys.readouterr().out
    assert content(folder) == content(commanded / "run")
    assert resumed(folder, "--steps", "9") == 0
    whole = commanded / "whole"
    assert (folder / SET).read_bytes() == (whole / SET).read_bytes()
    one, other = (json.loads((run / "metrics.json").read_text()) for run in (folder, whole))
    assert one["results"] == other["results"]
    assert DistillConfig.load(folder / "config.yaml").steps == 9
    assert not {"report.html", "export"} & {path.name for path in folder.iterdir()}
    assert list((folder / "pictures").glob("*.png"))
    capsys.readouterr()
    assert resumed(folder) == 0
    assert "already distilled" in capsys.readouterr().out


def test_fewer_steps_and_runs_that_are_annealed_are_refused_and_leave_all_as_it_was(
    commanded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in commanded.rglob("*") if path.is_file()}
    assert resumed(commanded / "run", "--steps", "3") == 2
    assert "of a finished run of 6 steps, which can only be taken further; 3 are fewer" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in commanded.rglob("*") if path.is_file()} == before
    what = ["--data", "digits", "--method", "frepo", "--ipc", "1", "--steps", "2", *FAST]
    assert main(["distill", *what, "--out", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert resumed(tmp_path, "--steps", "4") == 2
    assert "is annealed over its steps" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert resumed(tmp_path) == 0


def test_a_closed_form_and_a_run_without_checkpoints_are_not_taken_further(
    commanded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(commanded / "run", folder)
    shutil.rmtree(folder / "checkpoints")
    assert resumed(folder, "--steps", "9") == 2
    assert "holds no checkpoint to resume from" in capsys.readouterr().err
    assert DistillConfig.load(folder / "config.yaml").steps == 6
    assert content(folder) == content(commanded / "run")
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "".join(f"word{n} of {n % 2},{n % 2}\n" for n in range(40)))
    what = ["--data", str(texts), "--method", "k-means", "--ipc", "1", "--encoder", "tfidf", "--baselines", "none"]
    assert main(["distill", *what, "--networks", "1", "--judge-epochs", "1", "--out", str(tmp_path / "k")]) == 0
    assert resumed(tmp_path / "k", "--steps", "9") == 2
    assert "has a closed form and takes no steps" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_interrupted_on_its_way_further_goes_on_without_options(
    begun: bool,
    commanded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether a checkpoint of the longer run is on disk or not."""
    folder = tmp_path / "run"
    shutil.copytree(commanded / "run", folder)
    step = Distiller.step

    def stopped(distiller: Distiller, run: RunState, gradients: Gradients | None = None) -> tuple[RunState, Tensor]:
        if not begun:
            raise KeyboardInterrupt
        if run.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(distiller, run, gradients)

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "step", stopped)
        assert resumed(folder, "--steps", "9") == 130
    assert f"continue with: mmdistill distill --resume {folder} --steps 9" in capsys.readouterr().err
    assert content(folder) == content(commanded / "run")
    going_on = f"it goes on with: mmdistill distill --resume {folder}"
    note = f"note: this set is of 6 steps, and its run to 9 is unfinished; {going_on}"
    for command in (["evaluate", "--networks", "1", "--baselines", "none"], ["report"]):
        assert main([command[0], str(folder), *command[1:]]) == 0
        assert note in capsys.readouterr().out
    assert main(["compare", str(folder), str(commanded / "run")]) == 0
    assert main(["export", str(folder)]) == 0
    assert DistilledSet.load(folder).steps == 6
    assert resumed(folder) == 0
    assert (folder / SET).read_bytes() == (commanded / "whole" / SET).read_bytes()
    assert not (folder / "export").exists()
    metrics = (json.loads((run / "metrics.json").read_text()) for run in (folder, commanded / "whole"))
    assert next(metrics)["results"] == next(metrics)["results"]


@pytest.mark.parametrize("where", [(Keeper, "_remove_former"), (DistilledSet, "save"), (commands, "judge_missing")])
def test_a_command_that_is_killed_as_it_finishes_is_finished_by_the_next(
    where: tuple[object, str], commanded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(commanded / "run", folder)
    with monkeypatch.context() as patch:
        patch.setattr(*where, Mock(side_effect=SystemExit("killed")))
        with pytest.raises(SystemExit):
            resumed(folder, "--steps", "9")
    assert resumed(folder) == 0
    assert (folder / SET).read_bytes() == (commanded / "whole" / SET).read_bytes()
    metrics = (json.loads((run / "metrics.json").read_text()) for run in (folder, commanded / "whole"))
    assert next(metrics)["results"] == next(metrics)["results"]


def test_a_set_that_is_replaced_while_it_is_judged_keeps_no_scores(
    commanded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(commanded / "run", folder)
    read = run_commands.make_task

    def slowly(*given: Any) -> Any:  # while another process takes the run further
        for path in (commanded / "whole").glob("*.*"):
            shutil.copy(path, folder)
        return read(*given)

    monkeypatch.setattr(run_commands, "make_task", slowly)
    assert main(["evaluate", str(folder), "--networks", "1", "--baselines", "none"]) == 2
    assert "holds another set than was judged" in capsys.readouterr().err
    assert (folder / "metrics.json").read_bytes() == (commanded / "whole" / "metrics.json").read_bytes()


def test_steps_that_were_asked_for_and_never_begun_can_be_taken_back(commanded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(commanded / "run", folder)
    replace(DistillConfig.load(folder / "config.yaml"), steps=9).save(folder / "config.yaml")  # as a kill leaves it
    assert resumed(folder, "--steps", "6") == 0
    assert DistillConfig.load(folder / "config.yaml").steps == 6
    assert content(folder) == content(commanded / "run")


def test_an_unfinished_run_is_taken_further_too(
    commanded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Distiller.step

    def stopped(distiller: Distiller, run: RunState, gradients: Gradients | None = None) -> tuple[RunState, Tensor]:
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(distiller, run, gradients)

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "step", stopped)
        assert distil(tmp_path, 6) == 130
    assert resumed(tmp_path, "--steps", "9") == 0
    assert (tmp_path / SET).read_bytes() == (commanded / "whole" / SET).read_bytes()
