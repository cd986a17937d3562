"""What the experts in a folder are: read, checked and compared."""

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
"""By the name of a training's value, the setting of a method that says it."""


def digest(manifest: dict[str, Any]) -> str:
    """Return a short name for a manifest."""
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what the experts in a folder are.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    found = read_json(folder / MANIFEST)
    training, architecture = found.get("training", {}), found.get("architecture", {})
    epochs = training.get("epochs", 0) if isinstance(training, dict) else None
    if not isinstance(architecture, dict) or type(epochs) is not int or not isinstance(found.get("layers", ""), str):
        raise CheckpointError(f"{folder / MANIFEST} is damaged; remove the folder, to make them anew")
    return found


def trained_epochs(manifest: dict[str, Any]) -> int:
    """Return how many epochs experts trained for."""
    return int(manifest.get("training", {}).get("epochs", 0))


def relatives(folder: Path, manifest: dict[str, Any]) -> list[tuple[int, Path]]:
    """Return the folders of the cache whose experts are others in their epochs alone, and these, in their order.

    Args:
        folder: where experts of the manifest are cached; of a folder of another name nothing is found.
        manifest: what they are.
    """
    stem, _, own = folder.name.rpartition("-")
    found = []
    for path in folder.parent.glob(f"{stem}-*") if own == digest(manifest) else ():
        try:
            there = read_manifest(path)
        except CheckpointError:  # none, or damaged
            continue
        epochs = trained_epochs(there)
        if path != folder and there == {**manifest, "training": {**manifest["training"], "epochs": epochs}}:
            found.append((epochs, path))
    return sorted(found)


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
        those, these = differing_lines(found["layers"], wanted["layers"])
        raise CheckpointError(
            f"the experts in {folder} are of another network: its parameters have the same shapes, but its layers are "
            f"{those} there and {these} in the task's network"
        )
    there = found["training"]
    for key, value in wanted["training"].items() if training else ():
        if there.get(key) != value:
            way = f", or change the setting {SETTING_OF[key]}" if key in SETTING_OF else ""
            raise CheckpointError(
                f"the experts in {folder} trained with {key} = {there.get(key)}, not {value}; use another folder{way}"
            )
