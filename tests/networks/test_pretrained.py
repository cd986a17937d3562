"""A network that is trained already becomes a task's teacher, in whatever form it is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mmdistill.errors import ConfigError, DataError
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.pretrained import GivenTeacher, given_as_teacher
from mmdistill.runtime import Draws

KEY = Draws(3)
State = dict[str, Any]


class Plain(nn.Module):
    """Convolution and batch norm, with a buffer that no state dict holds."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), activation(), nn.Flatten())
        self.head = nn.Linear(2 * 2 * 2, 3)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x * self.scale))
        return logits


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(x))
        return logits


class Held(nn.Module):
    """What a training script keeps a module in, under a name of its own."""

    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self.net = made


class Compiled(nn.Module):
    """What holds a module as ``torch.compile`` does, which takes seconds to import."""

    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self._orig_mod = made


def trained(seed: int = 5) -> Plain:
    torch.manual_seed(seed)
    made = Plain().train()
    made(torch.randn(7, 1, 4, 4))  # moves the statistics
    return made.eval()


@pytest.fixture(scope="module")
def own() -> FunctionalModule:
    return FunctionalModule(Plain)


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def safe(state: State, path: Path) -> Path:
    save_file(state, path)
    return path


FORMS: dict[str, Callable[[Plain, Path], Any]] = {
    "state dict": lambda made, folder: made.state_dict(),
    "module": lambda made, folder: made,
    "parallel": lambda made, folder: nn.DataParallel(made),
    "compiled and parallel": lambda made, folder: nn.DataParallel(Compiled(made)),
    "a script's": lambda made, folder: {"state_dict": Held(made).state_dict(), "epoch": 3},
    "a script's module": lambda made, folder: nn.DataParallel(Held(made)),
    "averaged": lambda made, folder: AveragedModel(made),
    "averaged, state dict": lambda made, folder: AveragedModel(nn.DataParallel(made)).state_dict(),
    "averaged and compiled": lambda made, folder: Compiled(AveragedModel(made)),
    "module in a checkpoint": lambda made, folder: {"model": made, "epoch": 3},
    "safetensors": lambda made, folder: safe(made.state_dict(), folder / "a.safetensors"),
    "torch": lambda made, folder: str(saved(made.state_dict(), folder / "a.pt")),
    "checkpoint": lambda made, folder: saved(
        {"epoch": 3, "state_dict": nn.DataParallel(made).state_dict(), "optimizer": {"lr": [0.1]}}, folder / "a.pth"
    ),
    "tutorial": lambda made, folder: {"model_state_dict": made.state_dict(), "loss": 0.1},
    "model": lambda made, folder: {"model": made.state_dict(), "args": "resnet"},
    "without counts": lambda made, folder: {
        name: tensor for name, tensor in made.state_dict().items() if not name.endswith("num_batches_tracked")
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_network(form: str, own: FunctionalModule, tmp_path: Path) -> None:
    made, images = trained(), torch.randn(5, 1, 4, 4)
    found = given_as_teacher(FORMS[form](made, tmp_path), own)
    assert torch.equal(own(found.state, images)[0], made(images))
    fresh = own.init(KEY)
    assert [list(part) for part in found.state] == [list(part) for part in fresh]  # in the network's order
    assert found.digest == given_as_teacher(made.state_dict(), own).digest
    names = {"safetensors": "a.safetensors", "torch": "a.pt", "checkpoint": "a.pth", "module": "Plain"}
    assert names.get(form) in (None, found.name)
    assert str(found) == f"{found.name} ({found.digest[:8]})"


def test_other_weights_or_statistics_are_another_teacher(own: FunctionalModule) -> None:
    state = trained().state_dict()
    first = given_as_teacher(state, own)
    for name in ("head.bias", "body.1.running_mean"):
        assert given_as_teacher({**state, name: state[name] + 1e-6}, own).digest != first.digest
    assert given_as_teacher({**state, "body.1.num_batches_tracked": torch.tensor(9)}, own).digest == first.digest


def test_a_teacher_stays_as_it_was_given(own: FunctionalModule) -> None:
    made = trained()
    found = given_as_teacher(made, own)
    before = found.state.map(lambda tensor: tensor.clone())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 1
    assert all(torch.equal(tensor, before.params[name]) for name, tensor in found.state.params.items())
    assert not any(tensor.requires_grad for tensor in found.state.params.values())


def test_half_precision_becomes_the_networks_own(own: FunctionalModule) -> None:
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in trained().state_dict().items()
    }
    found = given_as_teacher(half, own)
    assert {tensor.dtype for tensor in found.state.params.values()} == {torch.float32}


def test_a_tied_weight_is_found_under_each_of_its_names() -> None:
    own, made = FunctionalModule(Tied), Tied()
    whole = made.state_dict()
    x = torch.randn(3, 4)
    for left_out in ((), ("first.weight",), ("second.weight",)):
        given = {name: tensor for name, tensor in whole.items() if name not in left_out}
        assert torch.equal(own(given_as_teacher(given, own).state, x)[0], made(x))


def test_a_network_whose_names_begin_like_a_wrappers_is_itself() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.module(x)
            return logits

    own, made = FunctionalModule(Wrapped), Wrapped()
    for given in (made, made.state_dict(), nn.DataParallel(made), AveragedModel(made)):
        found = given_as_teacher(given, own)
        assert torch.equal(found.state.params["module.weight"], made.module.weight)


def wrong(**changes: Any) -> State:
    state: State = {**trained().state_dict(), **changes}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "a teacher is a state dict, an nn.Module, or a file of the former, got int"),
        ({}, "the state dict holds no state dict: tensors by name"),
        ({"epoch": 3}, "holds no state dict"),
        (wrong(**{"head.bias": None}), r"not those of the network distilled with, Plain \(missing: head.bias\)"),
        (wrong(**{"body.1.running_var": None}), "missing: body.1.running_var"),
        (wrong(**{"fc.weight": torch.ones(2)}), r"\(unexpected: fc.weight\); choose the teacher's own network"),
        (wrong(**{"head.bias": torch.ones(4)}), r"\(of another form: head.bias, \(4,\) in place of \(3,\)\)"),
        (wrong(**{"head.bias": torch.ones(3).int()}), r"whole \(3,\) in place of \(3,\)"),
        (wrong(**{"head.bias": [1.0]}), r"head.bias, a list in place of \(3,\)"),
        (
            {f"layer{index}.weight": torch.ones(2) for index in range(9)},
            r"missing: .*, .*, .* and 5 more; unexpected: layer0.weight, layer1.weight, layer2.weight and 6 more",
        ),
        ({f"module.{key}": value for key, value in wrong(**{"head.bias": None}).items()}, r"\(missing: head.bias\)"),
        ({"model": Plain(nn.Tanh)}, r"Tanh\(\), not .*ReLU\(\)"),
        (Plain(nn.Tanh), r"it has \(2\): Tanh\(\), not \(2\): ReLU\(\); if its weights .* give its state_dict\(\)"),
        (nn.DataParallel(Plain(nn.Tanh)), r"Tanh\(\), not .*ReLU\(\)"),
    ],
)
def test_what_is_no_such_network_is_refused(given: Any, message: str, own: FunctionalModule) -> None:
    with pytest.raises(ConfigError, match=message):
        given_as_teacher(given, own)


@pytest.mark.filterwarnings("ignore")  # of torch, that both are no lasting kinds
def test_tensors_of_other_kinds_are_refused(own: FunctionalModule) -> None:
    kinds = (
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(3)]),
    )
    for tensor in kinds:
        with pytest.raises(ConfigError, match=r"head.bias, no dense tensor of real numbers in place of \(3,\)"):
            given_as_teacher(wrong(**{"head.bias": tensor}), own)


def test_complex_numbers_are_refused_also_of_a_network_that_has_some() -> None:
    own = FunctionalModule(lambda: nn.Linear(4, 3, dtype=torch.complex64))
    given = {"weight": torch.ones(5, 6, dtype=torch.complex64), "bias": torch.ones(3).to_sparse()}
    with pytest.raises(ConfigError, match=r"of another form: weight, no dense tensor of real numbers, bias, no dense"):
        given_as_teacher(given, own)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value: float, own: FunctionalModule) -> None:
    with pytest.raises(DataError, match=r"a state dict is no teacher: it holds NaN or infinite values \(head.bias\)"):
        given_as_teacher(wrong(**{"head.bias": torch.full((3,), value)}), own)


class Runs:
    """An object whose pickle would run code."""

    def __reduce__(self) -> Any:
        return print, ("code ran",)


def test_files_of_other_things_are_refused(
    own: FunctionalModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", weight=np.ones(3))
    (tmp_path / "a.yaml").write_text("x: 1")
    cases = {
        tmp_path / "none.pt": "there is no file",
        tmp_path: "is a folder",
        tmp_path / "a.npz": r"a.npz is no state dict; read are .safetensors, .pt, .pth",
        tmp_path / "a.yaml": "is no state dict",
        saved([1, 2], tmp_path / "list.pt"): "list.pt holds no state dict",
        saved(
            {"model": Runs()}, tmp_path / "code.pt"
        ): r"is not run; save the state dict alone, by torch.save\(network.st",
    }
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            given_as_teacher(path, own)
    assert "code ran" not in capsys.readouterr().out


def test_a_teacher_is_told_by_what_it_holds(own: FunctionalModule) -> None:
    found = given_as_teacher(trained(), own)
    assert isinstance(found, GivenTeacher)
    assert len(found.digest) == 32
