"""On CUDA no step waits for the device: nothing is read back, and nothing is copied between host and device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdistill.distiller import Distiller
from mmdistill.image import image_task, pixels
from mmdistill.registry import get_domain, get_method
from mmdistill.runs.state import RunState
from tests.meta import META, NoHostValues, NoTransfers, TransferError, on_meta
from tests.toys import RandomTargets

STEPS = 2
METHODS = (
    *("dm", "datadam", "dance", "ncfm", "idm", "dc", "dsa", "dcc", "idc", "edd"),
    *("dd", "rat-bptt", "bptt", "addmem", "ld", "mtt", "tesla", "ftd", "ddpp", "haba"),
    *("kip", "kip-conv", "krr", "frepo", "rfad", "rcig", "kfs"),
)
DECIDING = ("cafe", "cafe+dsa", "egm", "datm", "pad")
"""Those whose host decides in each step: whether networks train on, or whether a step counts (``skip_above``)."""
LEFT_OUT = ("it-gan", "random-soft", "rded", "sre2l")
"""Those that are not tried: a new method belongs here only if it takes no steps, or starts from long trainings."""
WITH_EXPERTS = ("mtt", "tesla", "ftd", "ddpp", "haba", "datm", "pad", "dance", "ncfm")
SECONDS = ("edd", "rcig")
"""Those that take some."""


def distiller_of(
    name: str, shape: tuple[int, int, int] = (1, 8, 8), masked: float = 0.0, masked_by: str = "depth", **options: Any
) -> Distiller:
    labels = torch.arange(10).repeat_interleave(16)
    images = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(0))
    task = image_task((images, labels), test=(images[::8], labels[::8]), **{"width": 8, **options})
    changes: dict[str, object] = {"steps": 5, "real_batch": 4, "inner_steps": 2, "outer_steps": 2}
    if name == "rat-bptt":
        changes["inner_window"] = 1
    if name == "rcig":
        changes |= {"solve_steps": 2, "pool": 2}
    if name == "dm":
        changes["syn_batch"] = 1
    if masked:
        changes |= {"masked": masked, "masked_by": masked_by}
    data = "digits" if name in ("datm", "pad") else ""  # for quick experts, which label the start
    method = get_method(get_domain("image"), name, data).with_settings(**changes)
    if name in WITH_EXPERTS:  # reading these from disk waits, of course
        method = replace(method, network=lambda settings: RandomTargets())
    budget = 4 if name in ("kfs", "haba") else 2  # what their codes share takes the bytes of three
    return Distiller(task, method, budget)


def test_each_method_is_tried_or_left_out() -> None:
    assert sorted((*METHODS, *DECIDING, *LEFT_OUT)) == sorted(get_domain("image").methods)


def begun(distiller: Distiller) -> RunState:
    """Return a run after its first step, the only one that looks at what it found."""
    run = distiller.start()
    run.step = 1
    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SECONDS else name for name in METHODS]
)
def test_a_step_waits_for_nothing(name: str) -> None:
    distiller = distiller_of(name)
    run = begun(distiller)
    with on_meta(distiller, run), NoTransfers(), NoHostValues():
        for _ in range(STEPS):
            run, loss = distiller.step(run)
        assert loss.device == META


@pytest.mark.parametrize("name", DECIDING)
def test_what_is_captured_of_a_deciding_step_waits_for_nothing(name: str) -> None:
    distiller = distiller_of(name)
    run = begun(distiller)
    with on_meta(distiller, run), NoTransfers(), NoHostValues(), distiller._numerics(run):
        key = distiller.key(run)
        network = distiller._fetch(run, run.schedule, key)
        loss, _ = distiller.gradients(run, network, distiller.real(run, key), key)
        assert loss.device == META


@pytest.mark.parametrize("by", ["depth", "distance"])
def test_a_masked_step_waits_for_nothing(by: str) -> None:
    distiller = distiller_of("mtt", masked=0.5, masked_by=by)
    run = begun(distiller)
    with on_meta(distiller, run), NoTransfers(), NoHostValues():
        for _ in range(STEPS):
            run, loss = distiller.step(run)
        assert loss.device == META


@pytest.mark.parametrize("name", ["dm", "frepo", "rfad"])
@pytest.mark.parametrize("options", [{"model": "convnet-bn", "width": 8}, {"whiten": "mtt"}], ids=["bn", "whitened"])
def test_a_step_with_batch_norms_or_whitened_images_waits_for_nothing(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pixels, "NORMALISED_MOST", 0)
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    distiller = distiller_of(name, **options)
    run = begun(distiller)
    with on_meta(distiller, run), NoTransfers(), NoHostValues():
        for _ in range(STEPS):
            run, loss = distiller.step(run)
        assert loss.device == META


def test_the_test_sees_waiting() -> None:
    there = torch.ones(3, device=META)
    with pytest.raises(RuntimeError, match="not on the expected device"), NoTransfers():
        there + torch.ones(3)
    with pytest.raises(TransferError), NoTransfers():
        torch.ones(3).to(META)
    with pytest.raises(RuntimeError, match="meta"):
        there.sum().item()
    with pytest.raises(TransferError, match="as_tensor copies"), NoHostValues():
        torch.as_tensor(0.5, device=META)
    with pytest.raises(TransferError, match="new_tensor copies"), NoHostValues():
        there.new_tensor([0.5])
    with pytest.raises(TransferError, match="factorisation"), NoTransfers():
        torch.linalg.solve(there.diag(), there)
