"""One run on several processes: the averaged gradient, one result, and a stop that every rank survives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError
from mmdistill.execution import ranks
from mmdistill.networks.schedules import EMPTY
from tests.runs.blobs import method, samples
from tests.toys import BlobTask


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def by_hand() -> Tensor:
    """Distribution matching with momentum on the mean of two ranks' gradients, one rank after the other."""
    distiller = Distiller(BlobTask(), method("dm"), 2, seed=4)
    run = distiller.start()
    (codes,) = run.parameterization.groups()["codes"]
    spec = distiller.settings.optimizers["codes"]
    velocity = torch.zeros_like(codes)
    for step in range(distiller.steps):
        run.step = step
        found = []
        for rank in range(2):
            key = distiller.draws.fold("step", step, "rank", rank)
            schedule = distiller.schedule.fetch(distiller.task, EMPTY, key.fold("network"))
            real = distiller.task.sample_real(key.fold("real"), distiller.classes, distiller.settings.real_batch)
            _, (gradient,) = distiller.gradients(run, schedule, real, key)
            assert gradient is not None
            found.append(gradient)
        velocity = spec.momentum * velocity + (found[0] + found[1]) / 2
        with torch.no_grad():
            codes -= spec.lr * velocity
    return codes.detach()


def test_alone_nothing_is_shared() -> None:
    assert (ranks.size(), ranks.rank(), ranks.is_first()) == (1, 0, True)
    with ranks.process_group("auto") as device, ranks.first_alone():
        assert device == "auto"
    tensor = torch.tensor([1.0, 2.0])
    assert ranks.averages([tensor])[0] is tensor
    ranks.share(tensor)
    assert tensor.tolist() == [1.0, 2.0]
    assert ranks.gathered("x") == ["x"]
    assert not ranks.all_true(torch.tensor(False))


@pytest.mark.ddp
def test_two_ranks_step_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    torchrun("-m", "tests.rank_worker", str(tmp_path), "dm", "whole")
    one, other = (load_file(tmp_path / f"whole-{rank}.safetensors")["samples"] for rank in range(2))
    assert torch.equal(one, other)
    assert torch.equal(samples(DistilledSet.load(tmp_path / "run")), one)
    torch.testing.assert_close(one, by_hand().reshape(one.shape), rtol=1e-5, atol=1e-6)
    alone = samples(distill(BlobTask(), method("dm"), ipc=2, seed=4))
    assert not torch.allclose(one, alone)


@pytest.mark.ddp
@pytest.mark.parametrize("towards", [0.5, -0.5])
def test_ranks_skip_a_step_together_by_the_mean_of_their_losses(tmp_path: Path, towards: float) -> None:
    distiller = Distiller(BlobTask(), method("dm"), 2, seed=4)
    run, losses = distiller.start(), []
    for rank in range(2):
        key = distiller.draws.fold("step", 0, "rank", rank)
        schedule = distiller.schedule.fetch(distiller.task, EMPTY, key.fold("network"))
        real = distiller.task.sample_real(key.fold("real"), distiller.classes, distiller.settings.real_batch)
        losses.append(float(distiller.gradients(run, schedule, real, key)[0]))
    mean, apart = sum(losses) / 2, abs(losses[1] - losses[0]) / 2
    assert apart > 1e-3 * mean
    torchrun("-m", "tests.rank_worker", str(tmp_path), "dm", f"skips:{mean + towards * apart}")  # between the losses
    one, other = (load_file(tmp_path / f"skips-{rank}.safetensors")["samples"] for rank in range(2))
    assert torch.equal(one, other)
    (start,) = run.parameterization.groups()["codes"]
    assert torch.equal(one, start.detach().reshape(one.shape)) == (towards < 0)


@pytest.mark.ddp
def test_tensors_of_any_layout_are_averaged_as_they_read(tmp_path: Path) -> None:
    torchrun("-m", "tests.rank_worker", str(tmp_path), "dm", "averages")
    for rank in range(2):
        found = load_file(tmp_path / f"averages-{rank}.safetensors")
        assert found["strided"].tolist() == [0.5, 2.5, 4.5]
        assert found["transposed"].tolist() == [[0.5, 3.5], [1.5, 4.5], [2.5, 5.5]]
        assert found["expanded"].tolist() == [0.5, 0.5]


@pytest.mark.ddp
def test_ranks_start_from_the_first_ones_samples(tmp_path: Path) -> None:
    torchrun("-m", "tests.rank_worker", str(tmp_path), "dm", "apart")
    one, other = (load_file(tmp_path / f"apart-{rank}.safetensors")["samples"] for rank in range(2))
    assert torch.equal(one, other)


@pytest.mark.ddp
def test_ranks_return_the_labels_of_one_teacher(tmp_path: Path) -> None:
    torchrun("-m", "tests.rank_worker", str(tmp_path), "dm", "labels")
    one, other = (load_file(tmp_path / f"labels-{rank}.safetensors")["targets"] for rank in range(2))
    assert one.is_floating_point()
    assert torch.equal(one, other)


@pytest.mark.ddp
def test_ranks_stop_together_and_resume_bit_identically(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    torchrun("-m", "tests.rank_worker", str(whole), "dc", "whole")
    torchrun("-m", "tests.rank_worker", str(stopped), "dc", "stop")
    assert not (stopped / "run" / "distilled.json").exists()
    steps = [{path.name for path in (stopped / "run" / "checkpoints" / own).glob("step-*")} for own in ("", "rank-1")]
    assert steps[0] == steps[1] != set()
    with pytest.raises(CheckpointError, match="processes is 2, not 1"):
        distill(BlobTask(), method("dc"), ipc=2, seed=4, out=stopped / "run", resume=True)
    torchrun("-m", "tests.rank_worker", str(stopped), "dc", "resume")
    expected = load_file(whole / "whole-0.safetensors")["samples"]
    assert torch.equal(load_file(stopped / "resume-0.safetensors")["samples"], expected)
    assert torch.equal(load_file(stopped / "resume-1.safetensors")["samples"], expected)


@pytest.mark.ddp
def test_ranks_take_a_run_further_together(tmp_path: Path) -> None:
    whole, taken = tmp_path / "whole", tmp_path / "taken"
    for folder, ways in ((whole, ["longer"]), (taken, ["whole", "further"])):
        folder.mkdir()
        for how in ways:
            torchrun("-m", "tests.rank_worker", str(folder), "dc", how)
    expected = load_file(whole / "longer-0.safetensors")["samples"]
    for rank in range(2):
        assert torch.equal(load_file(taken / f"further-{rank}.safetensors")["samples"], expected)
    assert DistilledSet.load(taken / "run").steps == 20


@pytest.mark.ddp
def test_where_one_rank_fails_all_do_and_distil_anew(tmp_path: Path) -> None:
    torchrun("-m", "tests.rank_worker", str(tmp_path), "dm", "failing")
    first, other = (json.loads((tmp_path / f"ends-{rank}.json").read_text()) for rank in range(2))
    assert first.pop("first") == ["RefusedError", "row 3"]
    assert other.pop("first") == ["DataError", "the first process failed: row 3"]
    assert first.pop("other") == ["MmdistillError", "process 1 (the first is 0) failed: OSError: no space"]
    assert other.pop("other") == ["OSError", "no space"]
    assert (first.pop("stop"), other.pop("stop")) == (
        ["KeyboardInterrupt", ""],
        ["KeyboardInterrupt", "the first process was interrupted"],
    )
    assert first.pop("start") == ["DataError", "no data"]
    assert other.pop("start") == ["DataError", "the first process failed: no data"]
    (kind, why), told = first.pop("taken"), other.pop("taken")
    assert told == [kind, f"the first process failed: {why}"]
    for full in ("full", "burst"):
        (_, why), (kind, words) = first.pop(full), other.pop(full)
        assert why == f"process 1 (the first is 0) failed: {kind}: {words}"
    for name, reason in (("finished", "seed is 1, not 0"), ("unread", "damaged"), ("resumed", "seed is 1, not 0")):
        (kind, why), (same, words) = first.pop(name), other.pop(name)
        assert kind == same == "CheckpointError"
        assert reason in words
        assert why == f"process 1 (the first is 0) failed: {words}"
    assert not first
    assert not other
    one, same = (load_file(tmp_path / f"failing-{rank}.safetensors")["samples"] for rank in range(2))
    assert torch.equal(one, same)


@pytest.mark.ddp
def test_ranks_whose_validations_differ_lose_patience_together(tmp_path: Path) -> None:
    torchrun("-m", "tests.rank_worker", str(tmp_path), "dc", "patience")
    one, other = (load_file(tmp_path / f"patience-{rank}.safetensors")["samples"] for rank in range(2))
    assert torch.equal(one, other)
    kept = DistilledSet.load(tmp_path / "run")
    assert (kept.steps, kept.taken) == (6, 14)


@pytest.mark.ddp
def test_the_command_line_under_torchrun_judges_once(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    what = ["--data", "digits", "--method", "dm", "--ipc", "1", "--steps", "6", "--width", "4"]
    judging = ["--judge-epochs", "1", "--networks", "2"]
    torchrun("-m", "mmdistill", "distill", *what, *judging, "--device", "cpu", "--out", run)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["results"][0]["n"] == 2
