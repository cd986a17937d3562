"""The file of a set's codes, decoders and labels, from which it is decoded again without the real data.

A distilled set is saved decoded, ready to use. Beside it lies ``codes.safetensors``, whose tensors take the bytes that
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
from mmdistill.parameterizations.memory import AddressedCodes
from mmdistill.parameterizations.upsample import MultiFormation
from mmdistill.runtime import Draws, checked_seed
from mmdistill.store import DIGEST, detached, digest_of, read_tensors, write_tensors
from mmdistill.task import Batch, Inputs, Targets, Tensors

logger = logging.getLogger(__name__)

CODES = "codes.safetensors"
CODES_VERSION = 2
KEY = "mmdistill"
"""Metadata entry that describes the file's tensors, as JSON."""
KINDS: dict[str, type[Parameterization]] = {
    "upsampled": MultiFormation,
    "decoded": DecodedCodes,
    "addressed-decoded": AddressedCodes,
    "canvas": Canvases,
    "combined": CombinedImages,
}
"""Parameterizations that can be rebuilt from tensors and plain values, by their name in files; users may add theirs."""
OWN_KINDS = frozenset(KINDS.values())
"""Kinds of this library, which are known to decode to the same samples again."""
CLOSE = 1e-3
"""Tolerance for rebuilt samples, relative to the largest value: half-precision decoders round coarsely."""
MOST = 64
"""Most samples per stored number that a file of this library's kinds may claim; they need only a few."""
LABELS = (FixedLabels, LearnedLabels, SoftmaxLabels, TeacherLabels)
"""Labels that can be rebuilt."""


def save_codes(path: Path, made: Parameterization, seed: int) -> bool:
    """Write a parameterization's codes atomically, if they can be rebuilt; return whether they were written.

    They are not written for raw samples, which are their own codes; for generators, decoders and labels of users,
    modules that a file cannot name; and for samples that are not sorted by class. Codes of a user's kind that do not
    decode to the set are not written either, with a warning.

    Args:
        path: the file.
        made: a finished parameterization.
        seed: the run's seed, from which decoders draw.
    """
    if reason := undecodable(made, seed):
        logger.warning("%s; no codes are kept beside the set", reason)
        return False
    if (described := _describe(made, seed)) is None:
        return False
    content, tensors = described
    text = json.dumps(content, allow_nan=False)
    write_tensors(path, tensors, {KEY: json.dumps({DIGEST: digest_of(tensors, text), "content": text})})
    return True


def undecodable(made: Parameterization, seed: int = 0) -> str:
    """Rebuild a user's kind; return why its codes do not decode to its samples, or an empty text if they do.

    The text is empty too where no codes are saved, and for this library's kinds.

    Args:
        made: a parameterization.
        seed: the run's seed, from which decoders draw.
    """
    if type(made) in OWN_KINDS or (described := _describe(made, seed)) is None:
        return ""
    name, key = type(made).__name__, Draws(seed).fold("decode")
    content, tensors = described
    try:
        on_cpu = made if all(t.device.type == "cpu" for t in made.state_dict().values()) else deepcopy(made).cpu()
        with torch.no_grad():
            original = detached(on_cpu.finished(key))
            rebuilt = detached(_rebuild(json.loads(json.dumps(content, allow_nan=False)), tensors).finished(key))
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        return f"{name} cannot be rebuilt from its codes ({type(error).__name__}: {error})"
    differing = [field for field, a, b in zip(Batch._fields, original, rebuilt, strict=True) if not _is_close(a, b)]
    if not differing:
        return ""
    return (
        f"the codes of {name} decode to other {' and '.join(differing)} than its own: what decoding reads must be a "
        "parameter, a buffer or among its plain_values"
    )


def _is_close(original: Inputs | Targets, rebuilt: Inputs | Targets) -> bool:
    """Return whether decoded tensors are the same, up to rounding."""
    if isinstance(original, dict) or isinstance(rebuilt, dict):
        if not (isinstance(original, dict) and isinstance(rebuilt, dict) and original.keys() == rebuilt.keys()):
            return False
        return all(_is_close(tensor, rebuilt[name]) for name, tensor in original.items())
    if original.shape != rebuilt.shape:
        return False
    scale = float(original.double().abs().max()) if original.numel() else 0.0
    return torch.allclose(original.double(), rebuilt.double(), rtol=CLOSE, atol=CLOSE * scale)


def _describe(made: Parameterization, seed: int) -> tuple[dict[str, object], Tensors] | None:
    """Return the plain content and the tensors of a parameterization's file; None where no codes are saved."""
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
    """Rebuild what :func:`save_codes` wrote; return it with the file's content (``seed``, ``label``, ...).

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
        entry = json.loads(metadata[KEY])
        if entry[DIGEST] != digest_of(tensors, entry["content"]):
            raise CheckpointError(f"{path} is damaged (its content has changed since it was written)")
        content = json.loads(entry["content"])
        if content["version"] != CODES_VERSION or content["kind"] not in KINDS:
            raise CheckpointError(
                f"{path} holds codes of version {content['version']} and kind {content['kind']!r}; this mmdistill "
                f"reads version {CODES_VERSION} of {', '.join(KINDS)} (a kind of your own once what adds it to "
                "mmdistill.parameterizations.codes.KINDS is imported)"
            )
        return _rebuild(content, tensors), {**content, "seed": checked_seed(content["seed"])}
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error  # JSON nested too deep is a RuntimeError


@isolated
def decode(path: Path | str, seed: int | None = None) -> Batch:
    """Decode the samples of a set from its codes, in the normalised units of the set, without the real data.

    Args:
        path: a run's ``codes.safetensors``, or its folder.
        seed: the seed of decoders that draw, such as crops of a canvas; None: the run's, which gives the run's samples.
    Returns:
        The samples, on the CPU.
    Raises:
        CheckpointError: the file is missing, damaged, or of another kind or version.
        UnsupportedError: a different seed where samples are drawn and a teacher labelled those of the run's seed.
    """
    path = users_path(path)
    seed = None if seed is None else checked_seed(seed)
    made, content = load_codes(path / CODES if path.is_dir() else path)
    run_seed = content["seed"]
    if made.redraws and content["label"] == TeacherLabels.title and seed not in (None, run_seed):
        raise UnsupportedError(f"a teacher labelled the samples of seed {run_seed}; others would need it again")
    with torch.no_grad():
        return detached(made.finished(Draws(run_seed if seed is None else seed).fold("decode")))


def _compact(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, with whole numbers in the smallest type that holds them."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.is_floating_point() else tensor.to(smallest_type(tensor))


def _rebuild(content: Mapping[str, Any], stored: Tensors) -> Parameterization:
    """Rebuild a parameterization from a file's content and tensors.

    Raises:
        ValueError: the content claims more samples than the tensors can decode to; their classes alone might take all
            memory.
    """
    kind, samples = KINDS[content["kind"]], content["samples"]
    most = MOST * sum(tensor.numel() for tensor in stored.values())
    if not are_numbers(samples, int) or min(samples) < 0 or (kind in OWN_KINDS and sum(samples) > most):
        raise ValueError(f"these codes are not those of {samples!r:.80} samples")
    tensors = {name: t if t.is_floating_point() else t.long() for name, t in stored.items()}
    without_labels = {name: tensor for name, tensor in tensors.items() if not name.startswith("labels.")}
    counts = torch.tensor(samples)
    classes = torch.arange(len(counts)).repeat_interleave(counts)
    return kind.rebuilt(content["plain"], without_labels, _labels(tensors), classes, len(counts))


def _labels(tensors: Tensors) -> Labels:
    """Return the labels of a file, as values to read rather than to learn."""
    if "labels.values" in tensors:
        return LearnedLabels(tensors["labels.values"])
    logits = tensors.get("labels.logits")
    return FixedLabels(tensors["labels.targets"] if logits is None else logits.softmax(1))
