"""Networks between an expert's start and its end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.image import image_task
from mmdistill.method import Method
from mmdistill.methods import experts_by, fresh
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import train_experts
from mmdistill.networks.schedules import EMPTY
from mmdistill.networks.teacher import soft_labels
from mmdistill.networks.trajectories import InterpolatedExperts
from mmdistill.objectives.calibration import CalibratedMatching
from mmdistill.objectives.characteristic import CharacteristicMatching
from mmdistill.registry import get_domain, get_method
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import NetworkState
from tests.toys import BlobTask

KEY = Draws(4)
RECIPE = ExpertRecipe(replace(PUBLISHED, epochs=3, lr=0.1, batch=32), augment=False)


def test_networks_lie_anywhere_between_an_expert_s_ends(tmp_path: Path) -> None:
    task = BlobTask()
    experts = train_experts(task, tmp_path, 2, RECIPE)
    schedule = InterpolatedExperts(2, 1, 3, RECIPE, tmp_path)
    seen = []
    for step in range(40):
        found = schedule.fetch(task, EMPTY, KEY.fold(step))
        again = schedule.fetch(task, EMPTY, KEY.fold(step))
        assert found.network is not None
        assert found.target is not None
        assert again.network is not None
        ends = [[experts.snapshot(expert, epoch).params for epoch in (0, 3)] for expert in (0, 1)]
        expert = next(i for i in (0, 1) if torch.equal(ends[i][1]["0.weight"], found.target["0.weight"]))
        start, end = ends[expert]
        share = (found.network.params["0.weight"] - end["0.weight"]).norm() / (
            start["0.weight"] - end["0.weight"]
        ).norm()
        for name, tensor in found.network.params.items():
            assert torch.equal(tensor, again.network.params[name])
            assert torch.allclose(tensor, share * start[name] + (1 - share) * end[name], atol=1e-5)
        seen.append((expert, float(share)))
    assert {expert for expert, _ in seen} == {0, 1}
    shares = torch.tensor([share for _, share in seen])
    assert float(shares.min()) >= 0
    assert float(shares.max()) < 1
    assert 0.35 < float(shares.mean()) < 0.65
    assert float(shares.std()) > 0.2


def test_batch_norms_have_statistics_of_the_network_between(tmp_path: Path) -> None:
    task = image_task("digits", model="convnet-bn", width=4, judge_epochs=1)
    experts = train_experts(task, tmp_path, 1, replace(RECIPE, protocol=replace(RECIPE.protocol, epochs=1)))
    found = InterpolatedExperts(1, 1, 1, replace(RECIPE, protocol=replace(RECIPE.protocol, epochs=1)), tmp_path).fetch(
        task, EMPTY, KEY
    )
    assert found.network is not None
    end = experts.snapshot(0, 1)
    settled = task.settle(NetworkState(found.network.params, end.buffers), KEY.fold("statistics"))
    for name, buffer in found.network.buffers.items():
        assert torch.equal(buffer, settled.buffers[name])
    means = [name for name in end.buffers if name.endswith("running_mean")]
    assert means
    assert any(not torch.equal(end.buffers[name], found.network.buffers[name]) for name in means)
    assert found.target_buffers is not None  # by which the expert itself labels samples
    assert all(torch.equal(found.target_buffers[name], end.buffers[name]) for name in means)
    with pytest.raises(ConfigError, match="are at least 1"):
        InterpolatedExperts(1, 1, 0, RECIPE)


def test_an_expert_labels_by_its_own_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    task = image_task("digits", model="convnet-bn", width=4, judge_epochs=1)
    settings = {"steps": 1, "experts": 1, "expert_steps": 1, "real_batch": 4}
    method = get_method(get_domain("image"), "dance", "digits").customised(None, "teacher", settings)
    distiller = Distiller(task, method, 1)
    run = distiller.start()
    before = run.parameterization(KEY).inputs.clone()
    fetched = distiller.schedule.fetch(task, EMPTY, distiller.key(run).fold("network"))
    assert fetched.target is not None
    assert fetched.target_buffers is not None
    distiller.step(run)
    said = soft_labels(task, NetworkState(fetched.target, fetched.target_buffers), before)
    assert torch.allclose(run.parameterization.labels(), said, atol=1e-6)


@pytest.mark.parametrize("name", ["dance", "ncfm"])
def test_a_run_lowers_its_loss_and_resumes_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    task, losses = image_task("digits", width=8, judge_epochs=1), []
    settings = {"steps": 16, "real_batch": 16, "experts": 1, "expert_steps": 1, "init": "noise"}

    def note(done: int, total: int, loss: float) -> None:
        losses.append(loss)

    whole = distill(task, name, ipc=1, settings=settings, progress=note)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert whole.stored_bytes == 10 * 64 * 4 + 10
    folder = tmp_path / "run"
    distill(task, name, ipc=1, settings=settings, out=folder, checkpoint_every=8)
    sorted((folder / "checkpoints").glob("*.safetensors"))[-1].unlink()
    again = distill(task, name, ipc=1, settings=settings, out=folder, checkpoint_every=8, resume=True)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="calibration is a number"):
        distill(task, name, ipc=1, settings={**settings, "calibration": "much"})


def test_frequencies_and_the_share_of_amplitudes_are_settings() -> None:
    method = get_method(get_domain("image"), "ncfm", "digits")
    settings = method.with_settings(frequencies=7, amplitude=0.25, calibration=2.0).settings(1)
    objective = method.make_objective(settings)
    assert isinstance(objective, CalibratedMatching)
    assert isinstance(objective.matching, CharacteristicMatching)
    assert (objective.matching.frequencies, objective.matching.amplitude, objective.weight) == (7, 0.25, 2.0)
    assert objective.siamese  # digits' own augmentation, of which there is none


def test_a_sampler_of_frequencies_is_part_of_a_run_but_not_of_its_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    task = image_task("digits", width=8, judge_epochs=1)
    changes = {"steps": 4, "experts": 1, "expert_steps": 1, "real_batch": 4, "frequencies": 16, "minmax": True}
    method = get_method(get_domain("image"), "ncfm", "digits").with_settings(**changes)
    distiller = Distiller(task, method, 1)
    run = distiller.start()
    assert isinstance(run.objective, CalibratedMatching)
    before = [p.clone() for p in run.objective.parameters()]
    assert len(before) == 3
    run, _ = distiller.step(run)
    assert not any(torch.equal(p, old) for p, old in zip(run.objective.parameters(), before, strict=True))
    assert run.objective.learned() == {}
    assert len(run.tree()["objective"]) == 3


def test_a_schedule_without_ends_is_refused() -> None:
    settings = Settings(steps=1, optimizers={"codes": OptimizerSpec("sgd", 0.1)}, experts=1, expert_steps=1)
    method = Method("Calibrated", CalibratedMatching, fresh, lambda ipc: settings, summary="for this test")
    with pytest.raises(ConfigError, match="which FreshNetworks does not give"):
        Distiller(BlobTask(), method, 1).make_objective()
    between = experts_by(PUBLISHED, InterpolatedExperts)(replace(settings, start_epochs=1))
    assert isinstance(between, InterpolatedExperts)
    assert between.gives_target
