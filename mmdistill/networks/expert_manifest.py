"""The manifests that describe the experts in a folder: read, checked and compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mmdistill.errors import CheckpointError
from mmdistill.networks.architecture import differing_lines
from mmdistill.store import read_json

EXPERTS_VERSION = 4
MANIFEST = "experts.json"

SETTING_OF = {
    "lr": "expert_lr",
    "batch": "expert_batch",
    "sam": "expert_sam",
    "sam_gap": "expert_gap",
    "sam_adaptive": "expert_adaptive",
    "augment": "augment",
    "precision": "expert_precision",
    "curriculum": "expert_easy, expert_joining, expert_pacing or expert_leaving",
}
"""The method's setting for each value of a training, by the value's name."""


def digest(manifest: dict[str, Any]) -> str:
    """Return a short digest of a manifest."""
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder's experts.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    manifest = read_json(folder / MANIFEST)
    training, architecture = manifest.get("training", {}), manifest.get("architecture", {})
    layers = manifest.get("layers", "")
    epochs = training.get("epochs", 0) if isinstance(training, dict) else None
    if not isinstance(architecture, dict) or type(epochs) is not int or not isinstance(layers, str):
        raise CheckpointError(f"{folder / MANIFEST} is damaged; remove the folder, to make them anew")
    return manifest


def trained_epochs(manifest: dict[str, Any]) -> int:
    """Return for how many epochs the experts trained."""
    return int(manifest.get("training", {}).get("epochs", 0))


def relatives(folder: Path, manifest: dict[str, Any]) -> list[tuple[int, Path]]:
    """Return the epochs and folders of cached experts that differ from ``manifest`` in their epochs only, in order.

    Args:
        folder: the cache folder of the manifest's experts; a folder of another name has no relatives.
        manifest: what the experts are.
    """
    stem, _, suffix = folder.name.rpartition("-")
    related = []
    for path in folder.parent.glob(f"{stem}-*") if suffix == digest(manifest) else ():
        try:
            other = read_manifest(path)
        except CheckpointError:  # missing or damaged
            continue
        epochs = trained_epochs(other)
        if path != folder and other == {**manifest, "training": {**manifest["training"], "epochs": epochs}}:
            related.append((epochs, path))
    return sorted(related)


def require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any], *, training: bool = False) -> None:
    """Refuse experts of other data, another network or, on request, other training.

    Raises:
        CheckpointError: naming the first difference.
    """
    if found.get("version") != EXPERTS_VERSION:
        raise CheckpointError(
            f"{folder} holds experts of version {found.get('version')}, this mmdistill reads {EXPERTS_VERSION}; use "
            "another folder"
        )
    if missing := [key for key in wanted if key not in found]:
        raise CheckpointError(f"{folder / MANIFEST} lacks {', '.join(missing)}; remove the folder, to make them anew")
    if found["fingerprint"] != wanted["fingerprint"]:
        raise CheckpointError(
            f"the experts in {folder} trained on {found['data']!r} (fingerprint {found['fingerprint']}), the task's "
            f"data {wanted['data']!r} has fingerprint {wanted['fingerprint']}"
        )
    if found["preprocessing"] != wanted["preprocessing"]:
        raise CheckpointError(f"the experts in {folder} trained on {found['data']!r} with other preprocessing")
    old, new = found["architecture"], wanted["architecture"]
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            raise CheckpointError(
                f"the experts in {folder} are of another network: parameter {name} has shape {old.get(name)} there "
                f"and {new.get(name)} in the task's network"
            )
    if found["layers"] != wanted["layers"]:
        old_line, new_line = differing_lines(found["layers"], wanted["layers"])
        raise CheckpointError(
            f"the experts in {folder} are of another network: its parameters have the same shapes, but its layers are "
            f"{old_line} there and {new_line} in the task's network"
        )
    found_training = found["training"]
    for key, value in wanted["training"].items() if training else ():
        if found_training.get(key) != value:
            advice = f", or change the setting {SETTING_OF[key]}" if key in SETTING_OF else ""
            raise CheckpointError(
                f"the experts in {folder} trained with {key} = {found_training.get(key)}, not {value}; use another "
                f"folder{advice}"
            )
