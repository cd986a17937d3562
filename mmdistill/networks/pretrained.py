"""Teachers that users bring: networks of the task's own kind that are trained already."""

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
"""Under which training scripts keep a state dict among other things."""
COUNTED = "num_batches_tracked"
"""What batch norms count, which no prediction reads and old files lack."""
AVERAGED = "n_averaged"
"""What averages of a module over its training count, which is not the module's."""


@dataclass(frozen=True, eq=False)
class GivenTeacher:
    """A trained network that is asked in place of one that would be trained first.

    Args:
        state: the network.
        name: of the file, or what the network was given as.
        digest: of the parameters and buffers that predictions read, whatever they were given as.
    """

    state: NetworkState
    name: str
    digest: str

    def __str__(self) -> str:
        """Return the name and the first digits of the digest."""
        return f"{self.name} ({self.digest[:8]})"


def given_as_teacher(teacher: TeacherLike, network: FunctionalModule) -> GivenTeacher:
    """Return a teacher of a task's own network, whose tensors are copied.

    Modules that hold it as a part (parallel, compiled, averaged, a training script's own) are seen through, where all
    names begin alike, and a state dict or a module is found in a checkpoint that holds it as ``state_dict``,
    ``model_state_dict`` or ``model``. Buffers that no state dict holds are the network's own, as are the counts of
    batch norms.

    Args:
        teacher: its weights; no code is run from files.
        network: that it must be one of.
    Raises:
        ConfigError: something else, or another network.
        DataError: a file that is missing, damaged or holds something else, or weights that are not finite.
    """
    held, name = _held(teacher)
    given = held.state_dict() if isinstance(held, nn.Module) else held
    start = network.init(Draws(0, device=network.device))
    own: Tensors = {**start.params, **start.buffers}
    first: dict[int, str] = {}
    tensors = [
        *network.module.named_parameters(remove_duplicate=False),
        *network.module.named_buffers(remove_duplicate=False),
    ]
    shared = {other: first.setdefault(id(tensor), other) for other, tensor in tensors}  # tied ones under one name
    needed = {shared[key] for key in network.module.state_dict() if key in shared and not _is_count(key)}
    wrapper = _wrapper(given, shared, needed)
    if isinstance(held, nn.Module):
        _require_layers(held.get_submodule(wrapper.rstrip(".")), network.module)
    named = {key.removeprefix(wrapper): value for key, value in given.items() if not _is_count(key)}
    found = {shared.get(key, key): value for key, value in named.items() if key in shared or not _is_average(key)}
    _require_same(found, own, needed, name, type(network.module).__name__)
    taken = {key: found[key].detach().to(own[key].device, own[key].dtype, copy=True) for key in found}
    if broken := [key for key, tensor in taken.items() if not tensor.isfinite().all()]:
        raise DataError(f"{name} is no teacher: it holds NaN or infinite values ({first_few(broken)})")
    state = NetworkState(*({key: taken.get(key, tensor) for key, tensor in part.items()} for part in start))
    read = {key: tensor.cpu() for part in state for key, tensor in part.items() if not _is_count(key)}
    return GivenTeacher(state, name, digest_of(read))


def _held(teacher: object) -> tuple[Mapping[str, Any] | nn.Module, str]:
    """Return the module, or the tensors by their names, that are given, and what these were given as."""
    if isinstance(teacher, Mapping):
        teacher = next((teacher[key] for key in WITHIN if isinstance(teacher.get(key), nn.Module)), teacher)
    if isinstance(teacher, nn.Module):
        return teacher, type(teacher).__name__
    if isinstance(teacher, Mapping):
        return _state_dict(teacher, "the state dict", ConfigError), "a state dict"
    if not isinstance(teacher, str | PathLike):
        raise ConfigError(
            f"a teacher is a state dict, an nn.Module, or a file of the former, got {type(teacher).__name__}"
        )
    path = users_path(teacher)
    if path.is_file() and path.suffix.lower() not in (SAFETENSORS, *TORCH):
        raise DataError(f"{path} is no state dict; read are {', '.join((SAFETENSORS, *TORCH))}")
    alone = "the state dict alone, by torch.save(network.state_dict(), path)"
    return _state_dict(read_saved(path, instead=alone), str(path), DataError), path.name


def _state_dict(found: object, what: str, kind: type[ConfigError] | type[DataError]) -> Mapping[str, Any]:
    """Return a state dict that is given, by itself or within a checkpoint.

    Raises:
        ConfigError: something else was given.
        DataError: a file holds something else.
    """
    while isinstance(found, Mapping):
        inner = next((found[key] for key in WITHIN if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise kind(f"{what} holds no state dict: tensors by name, by themselves or under {', '.join(WITHIN)}")
    return {str(key): value for key, value in found.items()}


def _wrapper(given: Mapping[str, Any], own: Mapping[str, str], needed: set[str]) -> str:
    """Return the shortest part that all names begin with under which a network is found; empty where none is.

    Args:
        given: the tensors by name.
        own: the network's name of each tensor, of tied ones one for all.
        needed: names that must be there; where some are nowhere, the part under which there are any.
    """
    names = [key for key, value in given.items() if isinstance(value, Tensor) and not _is_average(key)]
    first = next(iter(names), "")
    begun = (first[: place + 1] for place, letter in enumerate(first) if letter == ".")
    parts = ["", *(part for part in begun if all(key.startswith(part) for key in names))]
    found = {part: {own[rest] for key in names if (rest := key.removeprefix(part)) in own} for part in parts}
    whole, some = ([part for part in parts if fits(found[part])] for fits in (needed.issubset, bool))
    return next(iter((*whole, *some)), "")


def _is_average(name: str) -> bool:
    return name.rpartition(".")[2] == AVERAGED


def _is_count(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTED


def _require_layers(given: nn.Module, own: nn.Module) -> None:
    """Refuse a module that describes itself otherwise than the task's own, since shapes do not tell activations.

    Raises:
        ConfigError: naming the first line that differs.
    """
    if str(given) != str(own):
        there, here = differing_lines(str(given), str(own))
        raise ConfigError(
            f"the teacher is another network than the one distilled with: it has {there}, not {here}; if its weights "
            "are meant for that, give its state_dict()"
        )


def _require_same(found: Mapping[str, Any], own: Tensors, needed: set[str], name: str, network: str) -> None:
    """Refuse tensors that are not those of a network.

    Args:
        found: the tensors by name.
        own: those of the network.
        needed: names that must be there.
        name: what the tensors were given as.
        network: whose network it is, in words.
    Raises:
        ConfigError: naming the first that are missing, unexpected or of another form.
    """
    missing = [key for key in own if key in needed and key not in found]
    unexpected = [key for key in found if key not in own]
    odd = [
        f"{key}, {_form(found[key])} in place of {_form(tensor)}"
        for key, tensor in own.items()
        if key in found and _form(found[key]) != _form(tensor)
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another form": odd}
    if said := "; ".join(f"{what}: {first_few(names, 3)}" for what, names in wrong.items() if names):
        raise ConfigError(
            f"{name} is no teacher for these data: its weights are not those of the network distilled with, "
            f"{network} ({said}); choose the teacher's own network as the model"
        )


def _form(value: object) -> str:
    """Return what must agree of a tensor in words: its shape, whether it counts, and that its numbers are there."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested or value.is_quantized or value.layout != torch.strided:
        return f"a {'nested' if value.is_nested else 'quantized' if value.is_quantized else 'sparse'} tensor"
    if value.is_meta:
        return "a tensor without numbers (on meta)"
    kind = "" if value.is_floating_point() else "complex " if value.is_complex() else "whole "
    return f"{kind}{tuple(value.shape)}"
