"""What a run is told to change so that it takes less time, or gives a better set."""

from dataclasses import replace

import pytest
import torch

from mmdistill.choices import Precision
from mmdistill.distiller import Distiller
from mmdistill.execution.precision import multiplies_bfloat16
from mmdistill.image import image_task
from mmdistill.registry import get_domain, get_method
from mmdistill.runs import advice
from mmdistill.runs.advice import BF16_FROM_CHANNELS, faster_precision, teacher_warning
from mmdistill.selections import selection


def said(name: str, width: int = BF16_FROM_CHANNELS, precision: Precision = "auto") -> str:
    labels = torch.arange(2).repeat_interleave(4)
    images = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    task = image_task((images, labels), test=(images, labels), width=width)
    distiller = Distiller(task, get_method(get_domain("image"), name), 1, precision=precision)
    return faster_precision(distiller, distiller.start())


@pytest.mark.parametrize(("name", "precision"), [("dm", "mixed"), ("dc", "mixed"), ("dd", "bf16")])
def test_wide_networks_may_compute_in_bfloat16(
    name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "multiplies_bfloat16", lambda: True)
    assert f"--precision {precision} " in said(name)
    assert said(name, precision=precision) == ""
    assert said(name, width=BF16_FROM_CHANNELS // 2) == ""
    monkeypatch.setattr(advice, "multiplies_bfloat16", lambda: False)
    assert said(name) == ""


@pytest.mark.parametrize("name", ["krr", "frepo"])
def test_what_computes_in_no_other_format_is_told_of_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "multiplies_bfloat16", lambda: True)
    assert said(name) == ""


def test_what_a_cpu_can_is_what_torch_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert multiplies_bfloat16() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bfloat16()


def test_labels_of_a_teacher_that_knows_no_classes_are_warned_of() -> None:
    labels = torch.arange(4).repeat_interleave(2)
    images = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    chosen = selection(image_task((images, labels), test=(images, labels)), "random", ipc=2)

    def said(seen: list[int], label: str = "teacher", by_expert: bool = False, given: str = "") -> str:
        targets = torch.full((8, 4), 0.2)
        targets[torch.arange(8), torch.tensor(seen)] = 0.4
        batch = chosen.batch._replace(targets=targets)
        return teacher_warning(replace(chosen, batch=batch, label=label, classes=labels, teacher=given), by_expert)

    assert "in 38% of the samples (by chance 25%)" in said([3, 3, 1, 0, 3, 3, 3, 3])
    assert "(--teacher-epochs)" in said([3] * 8)
    assert "--set expert_steps=N" in said([3] * 8, by_expert=True)
    assert "(--teacher)" in said([3] * 8, given="mine.pt")
    assert said([3, 3, 1, 1, 3, 3, 3, 3]) == ""  # half of them
    assert said([3] * 8, label="soft") == ""  # which are learned
    assert teacher_warning(replace(chosen, label="teacher"), False) == ""  # class indices
