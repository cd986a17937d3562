"""What a set stores, as a file of its own: codes, decoders and labels, which are decoded without the real data.

A distilled set is kept decoded, ready to use. Beside it lies ``codes.safetensors``, whose tensors take the bytes that
the set claims: floats as they are, classes in the smallest type that holds them.
"""

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.checks import are_numbers
from mmdistill.errors import CheckpointError, UnsupportedError
from mmdistill.execution.isolation import isolated
from mmdistill.files.paths import users_path
from mmdistill.labels import FixedLabels, Labels, LearnedLabels, SoftmaxLabels, TeacherLabels
from mmdistill.parameterizations.base import Parameterization, smallest_type
from mmdistill.parameterizations.canvas import Canvases
from mmdistill.parameterizations.combination import CombinedImages
from mmdistill.parameterizations.decoder import DecodedCodes
from mmdistill.parameterizations.memory import AddressedCodes, AddressedMemory
from mmdistill.parameterizations.upsample import MultiFormation
from mmdistill.runtime import Draws, checked_seed
from mmdistill.store import DIGEST, detached, digest_of, read_tensors, write_tensors
from mmdistill.task import Batch, Inputs, Targets, Tensors

logger = logging.getLogger(__name__)

CODES = "codes.safetensors"
CODES_VERSION = 2
KEY = "mmdistill"
"""Under which the file keeps, as JSON, what its tensors are."""
KINDS: dict[str, type[Parameterization]] = {
    "upsampled": MultiFormation,
    "addressed": AddressedMemory,
    "decoded": DecodedCodes,
    "addressed-decoded": AddressedCodes,
    "canvas": Canvases,
    "combined": CombinedImages,
}
"""What can be rebuilt from tensors and plain values, by the name that files call it; a user's class may join."""
OWN_KINDS = frozenset(KINDS.values())
"""Those of this library, which are known to decode to the samples that they were."""
CLOSE = 1e-3
"""How far rebuilt samples may be from their own, of the largest: half-precision decoders round coarsely."""
MOST = 64
"""How many samples a number that is stored stands for at most, in files of this library's kinds; a few suffice them."""
LABELS = (FixedLabels, LearnedLabels, SoftmaxLabels, TeacherLabels)
"""The labels that can."""


def save_codes(path: Path, made: Parameterization, seed: int) -> bool:
    """Write what a parameterization stores, atomically, where tensors and plain values say it; returns whether it did.

    Raw samples are their own codes. Generators, decoders and labels of a user's own are modules that no file names, and
    samples that lie in another order than class after class are none of this library's.

    Those of a user's kind that do not decode to the set are not written either, which is warned of.

    Args:
        path: the file.
        made: a finished parameterization.
        seed: of the run, from which decoders draw.
    """
    if reason := undecodable(made, seed):
        logger.warning("%s; no codes are kept beside the set", reason)
        return False
    if (parts := _parts(made, seed)) is None:
        return False
    content, tensors = parts
    about = json.dumps(content, allow_nan=False)
    write_tensors(path, tensors, {KEY: json.dumps({DIGEST: digest_of(tensors, about), "content": about})})
    return True


def undecodable(made: Parameterization, seed: int = 0) -> str:
    """Return in words why the codes of a user's kind do not decode to its samples, by rebuilding it; empty if they do.

    It is empty too where no codes are kept, and for this library's kinds.

    Args:
        made: a parameterization.
        seed: of the run, from which decoders draw.
    """
    if type(made) in OWN_KINDS or (parts := _parts(made, seed)) is None:
        return ""
    name, key = type(made).__name__, Draws(seed).fold("decode")
    content, tensors = parts
    try:
        here = made if all(t.device.type == "cpu" for t in made.state_dict().values()) else deepcopy(made).cpu()
        with torch.no_grad():
            own = detached(here.finished(key))
            found = detached(_rebuilt(json.loads(json.dumps(content, allow_nan=False)), tensors).finished(key))
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        return f"{name} cannot be rebuilt from its codes ({type(error).__name__}: {error})"
    differing = [part for part, a, b in zip(Batch._fields, own, found, strict=True) if not _alike(a, b)]
    if not differing:
        return ""
    return (
        f"the codes of {name} decode to other {' and '.join(differing)} than its own: what decoding reads must be a "
        "parameter, a buffer or among its plain_values"
    )


def _alike(own: Inputs | Targets, found: Inputs | Targets) -> bool:
    """Return whether decoded tensors are the same, up to rounding."""
    if isinstance(own, dict) or isinstance(found, dict):
        if not (isinstance(own, dict) and isinstance(found, dict) and own.keys() == found.keys()):
            return False
        return all(_alike(tensor, found[name]) for name, tensor in own.items())
    if own.shape != found.shape or own.is_floating_point() != found.is_floating_point():
        return False
    scale = float(own.double().abs().max()) if own.numel() else 0.0
    return torch.allclose(own.double(), found.double(), rtol=CLOSE, atol=CLOSE * scale)


def _parts(made: Parameterization, seed: int) -> tuple[dict[str, object], Tensors] | None:
    """Return what a file says of a parameterization and its tensors; None where no codes are kept."""
    kind = next((name for name, known in KINDS.items() if type(made) is known), None)
    plain = made.plain_values() if kind and type(made.labels) in LABELS else None
    classes = made.classes
    if plain is None or classes is None or made.num_classes is None or not bool((classes.diff() >= 0).all()):
        return None
    tensors = {name: _compact(tensor) for name, tensor in made.state_dict().items()}
    content: dict[str, object] = {
        "version": CODES_VERSION,
        "kind": kind,
        "plain": plain,
        "label": made.labels.title,
        "samples": torch.bincount(classes.cpu(), minlength=made.num_classes).tolist(),
        "seed": seed,
    }
    return content, tensors


def load_codes(path: Path | str) -> tuple[Parameterization, Mapping[str, Any]]:
    """Rebuild what :func:`save_codes` wrote; returns it with what else the file says (``seed``, ``label``).

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind or version.
    """
    path = users_path(path)
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: here is no finished run, or one whose samples are raw, positions in the data, or made "
            "by modules of your own"
        )
    tensors, metadata = read_tensors(path)
    if KEY not in metadata:
        raise CheckpointError(f"{path} holds no codes")
    try:
        about = json.loads(metadata[KEY])
        if about[DIGEST] != digest_of(tensors, about["content"]):
            raise CheckpointError(f"{path} is damaged (its content has changed since it was written)")
        content = json.loads(about["content"])
        if content["version"] != CODES_VERSION or content["kind"] not in KINDS:
            raise CheckpointError(
                f"{path} holds codes of version {content['version']} and kind {content['kind']!r}; this mmdistill "
                f"reads version {CODES_VERSION} of {', '.join(KINDS)} (a kind of your own once what adds it to "
                "mmdistill.parameterizations.codes.KINDS is imported)"
            )
        return _rebuilt(content, tensors), {**content, "seed": checked_seed(content["seed"])}
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error  # too deep is a RuntimeError too


@isolated
def decode(path: Path | str, seed: int | None = None) -> Batch:
    """Decode the samples of a set from its codes, in the normalised units of the set, without the real data.

    Args:
        path: a run's ``codes.safetensors``, or its folder.
        seed: of decoders that draw, such as crops of a canvas; None is the run's own, which gives the run's samples.
    Returns:
        The samples, on the CPU.
    Raises:
        CheckpointError: the file is missing, damaged, or of another kind or version.
        UnsupportedError: another seed where samples are drawn and a teacher has labelled the run's own.
    """
    path = users_path(path)
    seed = None if seed is None else checked_seed(seed)
    made, content = load_codes(path / CODES if path.is_dir() else path)
    own = content["seed"]
    if made.redraws and content["label"] == TeacherLabels.title and seed not in (None, own):
        raise UnsupportedError(f"a teacher labelled the samples of seed {own}; others would need it again")
    with torch.no_grad():
        return detached(made.finished(Draws(own if seed is None else seed).fold("decode")))


def _compact(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, whole numbers in the smallest type that holds them."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.is_floating_point() else tensor.to(smallest_type(tensor))


def _rebuilt(content: Mapping[str, Any], stored: Tensors) -> Parameterization:
    """Return the parameterization of some tensors and plain values.

    Raises:
        ValueError: there are more samples than such tensors decode to, whose classes alone would take all memory.
    """
    kind, samples = KINDS[content["kind"]], content["samples"]
    most = MOST * sum(tensor.numel() for tensor in stored.values())
    if not are_numbers(samples, int) or min(samples) < 0 or (kind in OWN_KINDS and sum(samples) > most):
        raise ValueError(f"these codes are not those of {samples!r:.80} samples")
    tensors = {name: t if t.is_floating_point() else t.long() for name, t in stored.items()}
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("labels.")}
    counts = torch.tensor(samples)
    classes = torch.arange(len(counts)).repeat_interleave(counts)
    return kind.rebuilt(content["plain"], own, _labels(tensors), classes, len(counts))


def _labels(tensors: Tensors) -> Labels:
    """Return the labels of a file, as they are decoded: nothing is learned any more."""
    if "labels.values" in tensors:
        return LearnedLabels(tensors["labels.values"])
    logits = tensors.get("labels.logits")
    return FixedLabels(tensors["labels.targets"] if logits is None else logits.softmax(1))
