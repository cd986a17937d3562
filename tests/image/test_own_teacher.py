"""Users bring a trained teacher, which is asked wherever one would be trained."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from mmdistill.cli import main
from mmdistill.composition import is_teacher_idle, without_effect
from mmdistill.config import DistillConfig
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.evaluate import evaluate
from mmdistill.image import ImageTask, image_task
from mmdistill.image.protocols import PROTOCOLS
from mmdistill.image.relabelling import Relabelling
from mmdistill.metrics import judging_record
from mmdistill.networks.teacher import describe_teacher, soft_labels, trained_teacher
from mmdistill.objectives.base import Network, Objective, class_means
from mmdistill.parameterizations.from_experts import raw_samples
from mmdistill.registry import get_domain, get_method
from mmdistill.reporting.report import fact_rows
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import NetworkState, Task
from mmdistill.text import text_task
from tests.commands.digits import FAST

KEY = Draws(8)
NETWORK: dict[str, Any] = {"model": "convnet-bn-d2", "width": 4}
SHORT = replace(PROTOCOLS["rded"], fit=replace(PROTOCOLS["rded"].fit, epochs=2), teacher=Relabelling(epochs=3))


@pytest.fixture(autouse=True)
def _untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may train a teacher."""
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mmdistill.networks.teacher.open_experts", None)


def digits(teacher: Any = None, **options: Any) -> ImageTask:
    return image_task("digits", teacher=teacher, **{**NETWORK, **options})


def module_of(seed: int) -> nn.Module:
    """Return a network as the digits' task has it, with other weights and statistics than a fresh one."""
    torch.manual_seed(seed)
    made = digits().network.factory().train()
    made(torch.randn(20, 1, 8, 8))
    return made.eval()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return module_of(1)


@pytest.fixture(scope="module")
def other() -> nn.Module:
    return module_of(2)


def test_it_is_handed_out_in_place_of_one_that_trains(teacher: nn.Module) -> None:
    task = digits(teacher)
    real = task.select(torch.arange(30)).inputs
    assert isinstance(real, Tensor)
    wanted = (teacher(real) / 4.0).softmax(1)
    assert torch.equal(soft_labels(task, trained_teacher(task, 7), real, 4.0), wanted.detach())
    handed = trained_teacher(task, 7)
    handed.params["classifier.bias"] += 1  # a copy
    assert torch.equal(soft_labels(task, trained_teacher(task, 7), real, 4.0), wanted.detach())
    told = describe_teacher(task, 0)
    assert told.startswith("the given ConvNet (")
    assert "how accurate it is, nothing checks" in told
    assert task.judged_by(task.chosen).given_teacher is task.given_teacher


@pytest.mark.parametrize("method", ["sre2l", "rded", "random-soft", "dm"])
def test_whatever_form_it_is_given_in_the_runs_are_the_same(
    method: str, teacher: nn.Module, other: nn.Module, tmp_path: Path
) -> None:
    save_file(teacher.state_dict(), tmp_path / "kept.safetensors")
    options: dict[str, Any] = (
        {} if method in ("rded", "random-soft") else {"settings": {"steps": 2}, "label": "teacher"}
    )

    def made(given: Any) -> DistilledSet:
        return distill(digits(given), method, ipc=1, **options)

    sets = [made(given) for given in (teacher, teacher.state_dict(), tmp_path / "kept.safetensors")]
    assert all(torch.equal(one.batch.inputs, sets[0].batch.inputs) for one in sets)  # type: ignore[arg-type]
    assert all(torch.equal(one.batch.targets, sets[0].batch.targets) for one in sets)  # type: ignore[arg-type]
    assert torch.equal(soft_labels(digits(), state_of(teacher), sets[0].batch.inputs), sets[0].batch.targets)  # type: ignore[arg-type]
    assert [one.described for one in sets] == 3 * [sets[0].described]
    assert [one.teacher.partition(" ")[0] for one in sets] == ["ConvNet", "a", "kept.safetensors"]
    assert ["teacher", sets[2].teacher] in fact_rows(sets[2])
    assert not (tmp_path / "cache" / "experts").exists()
    assert made(other).described["teacher"] != sets[0].described["teacher"]


def state_of(module: nn.Module) -> NetworkState:
    return NetworkState(dict(module.named_parameters()), dict(module.named_buffers()))


def test_a_run_resumes_with_its_own_teacher_alone(teacher: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ipc": 1, "settings": {"steps": 4}, "checkpoint_every": 2}
    whole = distill(digits(teacher), "sre2l", **options)
    distill(digits(teacher), "sre2l", **options, out=tmp_path)
    saved = DistilledSet.load(tmp_path)
    assert saved.teacher == whole.teacher
    for given in (other, None):  # of a finished run, whose set is read
        with pytest.raises(CheckpointError, match=r"belongs to another run: its described\.teacher is "):
            distill(digits(given), "sre2l", **options, out=tmp_path, resume="auto")
    sorted((tmp_path / "checkpoints").glob("step-*"))[-1].unlink()
    (tmp_path / "distilled.json").unlink()
    with pytest.raises(CheckpointError, match=r"described\.teacher"):
        distill(digits(other), "sre2l", **options, out=tmp_path, resume=True)
    again = distill(digits(teacher.state_dict()), "sre2l", **options, out=tmp_path, resume=True)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]


def test_who_asks_no_teacher_does_not_depend_on_it(teacher: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    settings = {"steps": 1, "real_batch": 8}
    made = distill(digits(teacher), "dm", ipc=1, settings=settings, out=tmp_path)
    assert made.teacher == ""
    assert "teacher" not in made.described
    for given in (other, None):
        assert distill(digits(given), "dm", ipc=1, settings=settings, out=tmp_path, resume=True).seed == 0


class Asks(Objective):
    """Match the mean features of classes in the network that :func:`trained_teacher` hands out."""

    view = "classes"

    def describe_teacher(self, task: Task) -> str:
        return describe_teacher(task, 3)

    def begin(self, task: Task, draws: Draws) -> None:
        self.state = trained_teacher(task, 3)

    def forward(self, network: Network, syn: Any, real: Any, draws: Draws) -> Tensor:
        own = network._replace(state=self.state)
        return (class_means(own, syn)[-1] - class_means(own, real)[-1]).square().sum()


def labelled_by_its_teacher(task: Task, budget: int, settings: Settings, label: Any, draws: Draws) -> Any:
    """Build samples that a teacher labels, whatever labels the method names."""
    return raw_samples(task, budget, settings.init, "teacher", draws)


@pytest.mark.parametrize("changes", [{"objective": Asks}, {"parameterization": labelled_by_its_teacher}])
def test_who_asks_it_is_told_by_objectives_and_samples_too(
    changes: dict[str, Any], teacher: nn.Module, other: nn.Module, tmp_path: Path
) -> None:
    method = replace(get_method(get_domain("image"), "dm", "digits"), **changes)
    tasks = [digits(given) for given in (teacher, other)]
    assert not is_teacher_idle(tasks[0], method, 1, ["convnet-bn-d2"])
    options: dict[str, Any] = {"ipc": 1, "settings": {"steps": 2, "real_batch": 8}}
    first, second = (distill(task, method, **options) for task in tasks)
    assert not same_batch(first, second)
    assert first.described["teacher"] != second.described["teacher"]
    assert [found.teacher for found in (first, second)] == [str(task.given_teacher) for task in tasks]
    distill(tasks[0], method, **options, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"described\.teacher"):
        distill(tasks[1], method, **options, out=tmp_path, resume=True)


def same_batch(one: DistilledSet, other: DistilledSet) -> bool:
    """Return whether two sets have the same samples with the same labels."""
    pairs = zip((one.batch.inputs, one.batch.targets), (other.batch.inputs, other.batch.targets), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


def test_epochs_of_a_teacher_that_has_trained_are_not_read(
    teacher: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("sre2l", "rded"):
        method = get_method(get_domain("image"), name, "digits")
        assert without_effect(digits(teacher), method, 1, {"teacher_epochs": 3}) == {
            "teacher_epochs": "the given teacher is trained already: {} changes nothing"
        }
        assert without_effect(digits(teacher), method, 1, {}) == {}
        assert without_effect(digits(), method, 1, {"teacher_epochs": 3}) == {}
    unread = without_effect(digits(teacher), get_method(get_domain("image"), "dm", "digits"), 1, {"teacher_epochs": 3})
    assert unread == {"teacher_epochs": "DM does not read {}, which changes nothing"}
    labelled = {name: get_method(get_domain("image"), name).labelled("teacher") for name in ("dm", "tesla")}
    assert labelled["dm"].ignored_settings(1, ["teacher_epochs"]) == []
    assert labelled["tesla"].ignored_settings(1, ["teacher_epochs"]) == ["teacher_epochs"]  # its experts label
    distill(digits(teacher), "random-soft", ipc=1, settings={"teacher_epochs": 3})
    assert "the given teacher is trained already: teacher_epochs changes nothing" in caplog.text


def test_it_is_idle_where_neither_method_nor_judges_ask(teacher: nn.Module) -> None:
    methods = {name: get_method(get_domain("image"), name, "digits") for name in ("dm", "sre2l", "rded", "tesla")}
    own, asking = digits(teacher), digits(teacher, protocol="rded")
    network = own.judges[0]
    assert is_teacher_idle(own, methods["dm"], 1, [network])
    assert is_teacher_idle(own, methods["tesla"].labelled("teacher"), 1, [network])  # whose experts label
    assert not is_teacher_idle(digits(), methods["dm"], 1, [network])
    assert not is_teacher_idle(own, methods["dm"].labelled("teacher"), 1, [network])
    assert not is_teacher_idle(own, methods["sre2l"].labelled("hard"), 1, [network])
    assert not is_teacher_idle(own, methods["rded"], 1, [network])
    assert not is_teacher_idle(asking, methods["dm"], 1, [network])
    assert is_teacher_idle(asking, methods["dm"], 1, ["ntk"])


def test_judges_ask_the_given_one(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = digits(teacher, protocol=SHORT)
    asked: list[NetworkState] = []
    labelled = soft_labels

    def noted(task: ImageTask, state: NetworkState, *rest: Any) -> Tensor:
        asked.append(state)
        return labelled(task, state, *rest)

    monkeypatch.setattr("mmdistill.image.relabelling.soft_labels", noted)
    found = evaluate(task, task.select(torch.arange(10)), judges=["convnet-bn-d2"], n=2, baselines=[])
    assert len(asked) == 2  # epochs, of one minibatch each for both networks
    own = state_of(teacher)
    assert all(torch.equal(tensor, asked[0].params[name]) for name, tensor in own.params.items())
    assert "labelled anew by the given ConvNet (" in found.results[0].notes[0]
    assert not (tmp_path / "cache" / "experts").exists()


def test_scores_say_whose_teacher_they_were_made_with(teacher: nn.Module, other: nn.Module) -> None:
    asking = [digits(given, protocol="rded") for given in (teacher, teacher.state_dict(), other, None)]
    own = [judging_record(task, task.describe_judge(task.judges[0]).title, {}).get("teacher") for task in asking]
    assert own[0] == own[1] == asking[0].given_teacher.digest[:8]  # type: ignore[union-attr]
    assert own[2] not in (own[0], None)
    assert own[3] is None
    assert judging_record(asking[0], "ntk", {}) == {}
    assert judging_record(digits(teacher), "convnet-bn-d2", {}) == {}


def test_robust_scores_label_random_images_by_it(teacher: nn.Module) -> None:
    task = digits(teacher, judge_epochs=1)
    soft = task.select(torch.arange(10))._replace(targets=torch.full((10, 10), 0.1))
    subset = task.select(torch.arange(10, 20))
    scores = task.robust(soft, "mlp", KEY, 1, {}, lambda draws: subset)
    assert scores.notes == (f"random images were labelled by the given {task.given_teacher}",)


def test_a_first_layer_brings_images_into_a_teachers_own_units() -> None:
    """The factory of docs/images.md, whose moments are in no state dict."""

    class OwnUnits(nn.Sequential):
        def __init__(self, mean: float, std: float) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 10))
            self.register_buffer("moments", torch.tensor([mean, std]), persistent=False)

        def forward(self, images: Tensor) -> Tensor:
            mean, std = self.moments
            logits: Tensor = super().forward(images * std + mean)
            return logits

    data = digits().data
    mean, std = data.mean[0], data.std[0]
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    task = image_task(data, model=lambda: OwnUnits(mean, std), teacher=plain.state_dict())
    pixels = data.train_images[:5].float() / data.scale
    found = task.predict(trained_teacher(task, 1), task.select(torch.arange(5)).inputs)[0]
    torch.testing.assert_close(found, plain(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_documented_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    section = page.partition("## Your own teacher")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for index in range(2 * 12):
        folder = tmp_path / "photos" / f"kind{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        bright = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(bright.numpy()).save(folder / f"{index}.png")
    before, after = block.replace("224", "32").replace("ipc=10", "ipc=1").split("task = image_task(")
    names: dict[str, Any] = {"SHORT": SHORT}
    exec(before, names)
    plain = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=2).eval()
    torch.save(plain.state_dict(), "resnet18-photos.pth")
    exec("task = image_task(" + after.replace('protocol="rded"', "protocol=SHORT"), names)
    task, distilled = names["task"], names["distilled"]
    mean, std = (torch.tensor(moment).view(3, 1, 1) for moment in (task.data.mean, task.data.std))
    own_mean, own_std = (torch.tensor(moment).view(3, 1, 1) for moment in names["IMAGENET"])
    seen = (distilled.batch.inputs * std + mean - own_mean) / own_std
    wanted = plain(seen).softmax(1)
    torch.testing.assert_close(distilled.batch.targets, wanted.detach(), rtol=1e-3, atol=1e-5)
    assert "the given resnet18-photos.pth" in names["scores"].results[0].notes[0]


def test_texts_are_labelled_by_a_given_one_too(tmp_path: Path) -> None:
    texts = [f"{word} {index}" for word in ("good", "bad") for index in range(8)]
    classes = [index // 8 for index in range(16)]
    options: dict[str, Any] = {"encoder": "tfidf", "model": "linear"}
    task = text_task((texts, classes), **options)
    made = task.model.factory()
    given = text_task((texts, classes), **options, teacher=made.state_dict())
    found = distill(given, "dm", ipc=1, label="teacher", settings={"steps": 1, "real_batch": 4})
    wanted = soft_labels(task, state_of(made), found.batch.inputs)
    assert torch.equal(found.batch.targets, wanted.detach())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is no teacher for these data"):
        text_task((texts, classes), **options, teacher={"weight": torch.ones(2)})


# ---------------------------------------------------------------- the command line

NETWORK_OPTIONS = ["--data", "digits", "--model", "convnet-bn-d2", "--width", "4", "--ipc", "1"]
JUDGING = ["--networks", "1", "--judge-epochs", "1", "--judges", "convnet-bn-d2"]


@pytest.fixture
def file(teacher: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "my teacher.pt"
    torch.save({"state_dict": teacher.state_dict(), "epoch": 3}, path)
    return path


def command(method: str, file: Path, *options: str) -> list[str]:
    steps = [] if method in ("rded", "random-soft") else ["--steps", "1"]
    return ["distill", *NETWORK_OPTIONS, *JUDGING, "--method", method, *steps, "--teacher", str(file), *options]


def test_a_run_keeps_which_file_it_was(
    file: Path, other: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*command("random-soft", file, "--baselines", "none"), "--out", str(run)]) == 0
    assert str(DistillConfig.load(run / "config.yaml").teacher).startswith(f"{file}#")
    assert DistilledSet.load(run).teacher.startswith("my teacher.pt (")
    assert not (tmp_path / "cache" / "experts").exists()
    assert main(["distill", "--resume", str(run)]) == 0
    torch.save(other.state_dict(), file)
    assert main(["distill", "--resume", str(run)]) == 2
    assert "my teacher.pt has changed since these options were kept" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_finds_its_teacher_again_and_refuses_another_in_its_place(
    file: Path, other: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    run = tmp_path / "run"
    assert main(command("sre2l", Path(file.name), "--dry-run", "--protocol", "rded")) == 0
    said = capsys.readouterr().out
    assert said.count("the given my teacher.pt (") == 2  # of the method and of its judges
    options = ("--protocol", "rded", "--baselines", "random")
    assert main([*command("sre2l", Path(file.name), *options), "--out", str(run)]) == 0
    assert not (tmp_path / "cache" / "experts").exists()
    kept = DistillConfig.load(run / "config.yaml").teacher
    assert kept is not None
    assert kept.startswith(f"{file.absolute()}#")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert "**teacher**: my teacher.pt (" in (run / "report.md").read_text()
    again = ["evaluate", str(run), "--networks", "1", "--baselines", "none"]
    assert main(again) == 0
    assert main(["distill", "--resume", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    scores = [*metrics["results"], *metrics["baselines"]["random"]]
    digest = DistilledSet.load(run).described["teacher"]
    assert [entry["judging"]["teacher"] for entry in scores] == 2 * [str(digest)[:8]]
    capsys.readouterr()
    torch.save(other.state_dict(), file)
    for words in (again, ["distill", "--resume", str(run)]):
        assert main(words) == 2
        assert "my teacher.pt has changed since these options were kept" in capsys.readouterr().err
    assert main([*again, "--teacher", str(file)]) == 0
    assert "dropped, since judged otherwise than the set now is: random" in capsys.readouterr().out
    assert main([*again, "--teacher", str(file), "--protocol", "dm"]) == 0
    assert "note: no judge here asks a teacher: --teacher changes nothing" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0  # which asks no teacher
    assert main([*again, "--protocol", "dm"]) == 0
    file.unlink()
    assert main(["report", str(run)]) == 0
    assert main([*again, "--protocol", "dm"]) == 0
    capsys.readouterr()
    for words in (again, [*again, "--protocol", "dm", "--scores", "robust"]):
        assert main(words) == 2
        assert "my teacher.pt any more, the teacher that these options name: put it back" in capsys.readouterr().err


def test_a_run_whose_teacher_has_gone_is_told(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*command("random-soft", file, "--baselines", "none"), "--out", str(run)]) == 0
    moved = file.rename(tmp_path / "moved.pt")
    assert main(["report", str(run)]) == 0
    assert "**teacher**: my teacher.pt (" in (run / "report.md").read_text()
    assert main(["evaluate", str(run), "--networks", "1", "--baselines", "none"]) == 0
    capsys.readouterr()
    assert main(["distill", "--resume", str(run)]) == 2
    assert f"there is no file {file} any more" in capsys.readouterr().err
    moved.rename(file)
    assert main(["distill", "--resume", str(run)]) == 0


@pytest.mark.slow
def test_baselines_are_shared_where_no_judge_asks_it(
    file: Path, other: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second.safetensors"
    save_file(other.state_dict(), second)
    found: list[str] = []
    for index, (own, protocol) in enumerate(
        [(file, "default"), (second, "default"), (file, "rded"), (second, "rded"), (file, "rded")]
    ):
        options = ("--baselines", "random", "--protocol", protocol, "--seed", "3", "--out", str(tmp_path / str(index)))
        assert main(command("rded", own, *options)) == 0
        found.append(capsys.readouterr().out)
    assert ["judged alike by an earlier run: random" in said for said in found] == [False, True, False, False, True]


def test_an_option_that_nothing_reads_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    idle = "note: neither DM nor a judge here asks a teacher: --teacher changes nothing"
    assert main(command("dm", file, "--dry-run")) == 0
    assert idle in capsys.readouterr().out
    assert main(command("dm", file, "--protocol", "rded", "--dry-run")) == 0
    assert idle not in capsys.readouterr().out
    assert main(command("rded", file, "--teacher-epochs", "4", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "note: the given teacher is trained already: --teacher-epochs changes nothing" in said
    assert "does not read" not in said
    assert "--teacher changes nothing" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "digits", "--model", "mlp"], "my teacher.pt is no teacher for these data"),
        (["--data", "cora", "--method", "gcond", "--nodes", "7"], "--teacher is for image and text data"),
    ],
)
def test_wrong_teachers_end_the_command(
    options: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = options if "--nodes" in options else [*options, "--method", "dm", "--ipc", "1"]
    assert main(["distill", *own, "--teacher", str(file), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_sweeps_pass_it_to_their_runs(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", *NETWORK_OPTIONS, "--methods", "sre2l,random-soft", "--out", str(tmp_path / "sweep"), *JUDGING]
    assert main([*words, "--teacher", str(file), "--baselines", "none", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("new") == 2


def test_a_sweep_knows_its_runs_by_what_the_file_holds(
    file: Path, other: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "sweep" / "digits-random-soft-1"
    assert main([*command("random-soft", file, "--baselines", "none"), "--out", str(run)]) == 0
    moved = file.rename(tmp_path / "moved.pt")
    words = ["sweep", *NETWORK_OPTIONS, "--methods", "random-soft", "--out", str(run.parent), *JUDGING]
    words += ["--baselines", "none", "--dry-run", "--teacher"]
    assert main([*words, str(moved)]) == 0
    assert "finished" in capsys.readouterr().out
    torch.save(other.state_dict(), moved)
    assert main([*words, str(moved)]) == 2
    assert "holds another run, of teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["distill", "--ipc", "1", "--method", "dm"], ["sweep", "--ipc", "1", "--methods", "dm"]]
)
def test_an_empty_name_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("", " "):
        own = ["--data", "digits", "--teacher", name, "--out", str(tmp_path / "a"), "--dry-run"]
        assert main([*words, *own]) == 2
        assert "--teacher names the file of a trained network, got an empty name" in capsys.readouterr().err


def test_an_empty_name_is_none_of_a_finished_run(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*command("random-soft", file, "--baselines", "none"), "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--networks", "1", "--baselines", "none", "--teacher", ""]) == 2
    assert "--teacher names the file of a trained network, got an empty name" in capsys.readouterr().err


@pytest.mark.slow
def test_sets_of_other_tools_are_judged_with_it(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", *FAST, "--out", str(tmp_path / "a")]) == 0
    )
    assert main(["export", str(tmp_path / "a"), "--format", "pt"]) == 0
    files = [str(tmp_path / "a" / "export" / f"{name}.pt") for name in ("images", "labels")]
    own = [*NETWORK_OPTIONS[:-2], *JUDGING, "--protocol", "rded", "--teacher", str(file), "--baselines", "none"]
    assert main(["import", *files, *own, "--out", str(tmp_path / "b")]) == 0
    found = json.loads((tmp_path / "b" / "metrics.json").read_text())["results"][0]
    assert "the given my teacher.pt" in found["notes"][0]
    idle = "note: no judge here asks a teacher: --teacher changes nothing"
    assert idle not in capsys.readouterr().out
    assert main(["import", *files, *own, "--protocol", "dm", "--out", str(tmp_path / "c")]) == 0
    assert idle in capsys.readouterr().out


def test_experts_take_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["experts", "--data", "digits", "--teacher", "a.pt"])
    assert "unknown option --teacher" in capsys.readouterr().err
