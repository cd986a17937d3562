"""Teachers that users provide: trained networks of the task's own architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError, DataError
from mmdistill.files.paths import users_path
from mmdistill.files.saved import SAFETENSORS, TORCH, read_saved
from mmdistill.names import first_few
from mmdistill.networks.architecture import differing_lines
from mmdistill.networks.module import FunctionalModule
from mmdistill.runtime import Draws
from mmdistill.store import digest_of
from mmdistill.task import NetworkState, Tensors

TeacherLike = Mapping[str, Tensor] | nn.Module | str | PathLike[str]
"""A state dict, a module, or the path of a file that holds a state dict."""
WITHIN = ("state_dict", "model_state_dict", "model")
"""The keys of a state dict in the checkpoints of training scripts."""
COUNTED = "num_batches_tracked"
"""The counter of batch norms, which no prediction reads and old files lack."""
UNREADABLE = "no dense tensor of real numbers"
"""The form of a tensor that no teacher may hold."""
AVERAGED = "n_averaged"
"""The counter of ``AveragedModel``, which is not part of the averaged module."""


@dataclass(frozen=True, eq=False)
class GivenTeacher:
    """A trained network that replaces the teacher that would otherwise be trained.

    Args:
        state: the network.
        name: the file's name, or the kind of object that was given.
        digest: digest of the parameters and buffers that predictions read, the same for a file or an object.
    """

    state: NetworkState
    name: str
    digest: str

    def __str__(self) -> str:
        """Return the name and the first digits of the digest."""
        return f"{self.name} ({self.digest[:8]})"


def given_as_teacher(teacher: TeacherLike, network: FunctionalModule) -> GivenTeacher:
    """Return a user's teacher as a state of the task's network, with copied tensors.

    Modules that wrap the network (parallel, compiled, averaged, a training script's own) are unwrapped by the common
    prefix of their names, and checkpoints by their entry ``state_dict``, ``model_state_dict`` or ``model``. Buffers
    that no state dict holds, and the counters of batch norms, are taken from a fresh network.

    Args:
        teacher: the teacher; no code is run from files.
        network: the network that it must match.
    Raises:
        ConfigError: no teacher, or one of another network.
        DataError: a file that is missing, damaged or holds something else, or weights that are not finite.
    """
    source, name = _read_teacher(teacher)
    given = source.state_dict() if isinstance(source, nn.Module) else source
    start = network.init(Draws(0, device=network.device))
    expected: Tensors = {**start.params, **start.buffers}
    canonical = _canonical_names(network.module)
    needed = {canonical[key] for key in network.module.state_dict() if key in canonical and not _is_count(key)}
    prefix = _find_prefix(given, canonical, needed)
    if isinstance(source, nn.Module):
        _require_layers(source.get_submodule(prefix.rstrip(".")), network.module)
    unwrapped = {key.removeprefix(prefix): value for key, value in given.items() if not _is_count(key)}
    matched = {
        canonical.get(key, key): value for key, value in unwrapped.items() if key in canonical or not _is_average(key)
    }
    _require_same(matched, expected, needed, name, type(network.module).__name__)
    copies = {key: matched[key].detach().to(expected[key].device, expected[key].dtype, copy=True) for key in matched}
    if broken := [key for key, tensor in copies.items() if not tensor.isfinite().all()]:
        raise DataError(f"{name} is no teacher: it holds NaN or infinite values ({first_few(broken)})")
    state = NetworkState(*({key: copies.get(key, tensor) for key, tensor in part.items()} for part in start))
    digested = {key: tensor.cpu() for part in state for key, tensor in part.items() if not _is_count(key)}
    return GivenTeacher(state, name, digest_of(digested))


def _canonical_names(module: nn.Module) -> dict[str, str]:
    """Return for each name of a parameter or buffer the first name of the same tensor; tied tensors have several."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _read_teacher(teacher: object) -> tuple[Mapping[str, Any] | nn.Module, str]:
    """Return the given module or state dict, read from a file if need be, and a name for it."""
    if isinstance(teacher, Mapping):
        teacher = next((teacher[key] for key in WITHIN if isinstance(teacher.get(key), nn.Module)), teacher)
    if isinstance(teacher, nn.Module):
        return teacher, type(teacher).__name__
    if isinstance(teacher, Mapping):
        return _find_state_dict(teacher, "the state dict", ConfigError), "a state dict"
    if not isinstance(teacher, str | PathLike):
        raise ConfigError(
            f"a teacher is a state dict, an nn.Module, or a file of the former, got {type(teacher).__name__}"
        )
    path = users_path(teacher)
    if path.is_file() and path.suffix.lower() not in (SAFETENSORS, *TORCH):
        raise DataError(f"{path} is no state dict; read are {', '.join((SAFETENSORS, *TORCH))}")
    advice = "the state dict alone, by torch.save(network.state_dict(), path)"
    return _find_state_dict(read_saved(path, instead=advice), str(path), DataError), path.name


def _find_state_dict(given: object, what: str, kind: type[ConfigError] | type[DataError]) -> Mapping[str, Any]:
    """Return a state dict that is given directly or within a checkpoint; raise an error of ``kind`` without one."""
    while isinstance(given, Mapping):
        inner = next((given[key] for key in WITHIN if isinstance(given.get(key), Mapping)), None)
        if inner is None:
            break
        given = inner
    if not isinstance(given, Mapping) or not any(isinstance(value, Tensor) for value in given.values()):
        raise kind(f"{what} holds no state dict: tensors by name, by themselves or under {', '.join(WITHIN)}")
    return {str(key): value for key, value in given.items()}


def _find_prefix(given: Mapping[str, Any], canonical: Mapping[str, str], needed: set[str]) -> str:
    """Return the shortest common prefix of all names after which the network's names follow; empty if there is none.

    Args:
        given: the tensors by name.
        canonical: see :func:`_canonical_names`.
        needed: names that must follow; if no prefix has all of them, one with any of the network's names is taken.
    """
    names = [key for key, value in given.items() if isinstance(value, Tensor) and not _is_average(key)]
    first = next(iter(names), "")
    dotted = (first[: place + 1] for place, letter in enumerate(first) if letter == ".")
    prefixes = ["", *(prefix for prefix in dotted if all(key.startswith(prefix) for key in names))]
    matched: dict[str, set[str]] = {}
    for prefix in prefixes:
        unwrapped = (key.removeprefix(prefix) for key in names)
        matched[prefix] = {canonical[name] for name in unwrapped if name in canonical}
        if needed <= matched[prefix]:
            return prefix
    return next((prefix for prefix in prefixes if matched[prefix]), "")


def _is_average(name: str) -> bool:
    return name.rpartition(".")[2] == AVERAGED


def _is_count(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTED


def _require_layers(given: nn.Module, expected: nn.Module) -> None:
    """Refuse a module whose description differs from the task's network, since shapes do not show activations.

    Raises:
        ConfigError: naming the first line that differs.
    """
    if str(given) != str(expected):
        given_line, own_line = differing_lines(str(given), str(expected))
        raise ConfigError(
            f"the teacher is another network than the one distilled with: it has {given_line}, not {own_line}; if its "
            "weights are meant for that, give its state_dict()"
        )


def _require_same(given: Mapping[str, Any], expected: Tensors, needed: set[str], name: str, network: str) -> None:
    """Refuse tensors that do not match those of a network.

    Args:
        given: the given tensors by name.
        expected: the network's tensors by name.
        needed: names that must be given.
        name: the teacher's name, for the message.
        network: the network's class, for the message.
    Raises:
        ConfigError: naming the first tensors that are missing, unexpected or of another form.
    """
    missing = [key for key in expected if key in needed and key not in given]
    unexpected = [key for key in given if key not in expected]
    forms = {key: (_form(given[key]), _form(tensor)) for key, tensor in expected.items() if key in given}
    mismatched = [
        f"{key}, {form}{f' in place of {own_form}' * (form != own_form)}"
        for key, (form, own_form) in forms.items()
        if form != own_form or form == UNREADABLE
    ]
    differences = {"missing": missing, "unexpected": unexpected, "of another form": mismatched}
    if details := "; ".join(f"{what}: {first_few(names, 3)}" for what, names in differences.items() if names):
        raise ConfigError(
            f"{name} is no teacher for these data: its weights are not those of the network distilled with, "
            f"{network} ({details}); choose the teacher's own network as the model"
        )


def _form(value: object) -> str:
    """Describe the form of a tensor that must match: its shape, whether its numbers are whole, and that it is dense."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested or value.is_quantized or value.is_meta or value.is_complex() or value.layout != torch.strided:
        return UNREADABLE
    return f"{'' if value.is_floating_point() else 'whole '}{tuple(value.shape)}"
