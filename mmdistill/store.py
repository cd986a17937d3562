"""Checkpoints and other files on disk: safetensors and JSON, written atomically, never unpickled."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmdistill.errors import CheckpointError, VersionError
from mmdistill.names import encodable
from mmdistill.runtime import atomic_write
from mmdistill.task import Batch, Tensors

CHECKPOINT_VERSION = 2
TREE_KEY = "tree"
DIGEST = "digest"
"""The key of the digest of a file's content, which reveals damage that leaves the file readable."""


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically; undecodable bytes of file names in it are escaped."""
    with atomic_write(path) as handle:
        handle.write(encodable(text).encode())


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as handle:
        handle.write(json.dumps(content, indent=2, default=str).encode() + b"\n")


def as_json(content: Mapping[str, object]) -> dict[str, Any]:
    """Return content as :func:`read_json` would return it after :func:`write_json`."""
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain


def write_torch(path: Path, content: object) -> Path:
    """Write tensors in torch's own format, atomically; return the path."""
    with atomic_write(path) as handle:
        torch.save(content, handle)
    return path


def read_json(path: Path, *, version: int | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.
        version: the version to accept, if the file has one; None: any.
    Raises:
        CheckpointError: the file is missing, truncated or not an object.
        VersionError: the file has another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:  # malformed, not UTF-8, a number of too many digits, too deep
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    if version is not None and (actual := content.get("version", version)) != version:
        raise VersionError(
            f"{path} has version {actual}, this mmdistill reads {version}; use another folder, or the version that "
            "wrote it"
        )
    return content


def _pack(node: object, tensors: Tensors) -> object:
    """Return a JSON description of a tree, moving its tensors into ``tensors``."""
    if isinstance(node, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = node.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(node, Mapping):
        return {"$dict": [[key, _pack(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {"$list": [_pack(value, tensors) for value in node]}
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise CheckpointError(f"a checkpoint cannot hold a {type(node).__name__}")


def _unpack(node: Any, tensors: Tensors) -> Any:
    """Return the tree of a JSON description; tuples come back as lists."""
    if isinstance(node, dict):
        if "$tensor" in node:
            return tensors[node["$tensor"]]
        if "$dict" in node:
            return {key: _unpack(value, tensors) for key, value in node["$dict"]}
        return [_unpack(value, tensors) for value in node["$list"]]
    return node


def short_digest(*contents: str | bytes | memoryview) -> str:
    """Return eight characters that tell contents, one after the other, apart."""
    digest = hashlib.blake2b(digest_size=4)
    for content in contents:
        digest.update(content.encode() if isinstance(content, str) else content)
    return digest.hexdigest()


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return a digest of tensors on the CPU, with their names, types and shapes, and of a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tree(path: Path, tree: Mapping[str, object]) -> None:
    """Write a nested tree of dicts, lists, tensors and plain values to one safetensors file, atomically."""
    tensors: Tensors = {}
    root = _pack(tree, tensors)
    digest = digest_of(tensors, json.dumps(root))
    description = json.dumps({"version": CHECKPOINT_VERSION, DIGEST: digest, "root": root})
    write_tensors(path, tensors, {TREE_KEY: description})


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    For reproducible files, give at most one entry of metadata: safetensors writes several in an order that differs
    from run to run.
    """
    escaped = None if metadata is None else {name: encodable(value) for name, value in metadata.items()}
    with atomic_write(path) as handle:
        handle.write(safetensors.torch.save(tensors, metadata=escaped))


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; one whose name is not UTF-8, which its library requires, by a descriptor.

    Tensors from the handle map the file; copy them, so that the file can be replaced (on Windows too).
    """
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:  # names in another encoding, by the system's locale or a user's choice
        pass
    else:
        with safetensors.safe_open(path, framework="pt") as handle:
            yield handle
        return
    with path.open("rb") as file, safetensors.safe_open(f"/dev/fd/{file.fileno()}", framework="pt") as handle:
        yield handle


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Read a safetensors file; return copies of its tensors by name, and its metadata.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise CheckpointError(f"{path} is no file")
    try:
        with opened_tensors(path) as handle:
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
            return tensors, handle.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error})") from error


def load_tree(path: Path) -> dict[str, Any]:
    """Read a tree that :func:`save_tree` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or written by another version.
    """
    tensors, metadata = read_tensors(path)
    if TREE_KEY not in metadata:
        raise CheckpointError(f"{path} is no checkpoint of mmdistill")
    try:
        description = json.loads(metadata[TREE_KEY])
        version = description["version"]
        if version != CHECKPOINT_VERSION:
            raise CheckpointError(f"{path} has checkpoint version {version}, this mmdistill reads {CHECKPOINT_VERSION}")
        digest = digest_of(tensors, json.dumps(description["root"]))
        if description[DIGEST] != digest:
            raise CheckpointError(f"{path} is damaged (its content has changed since it was written)")
        root = _unpack(description["root"], tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if not isinstance(root, dict):
        raise CheckpointError(f"{path} is no checkpoint of mmdistill")
    return root


def kept_tree(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy of a nested tree with all tensors detached and on the CPU."""
    copied: Mapping[str, Any] = tree_map_only(Tensor, _detached, tree)
    return copied


def detached(batch: Batch) -> Batch:
    """Return a detached copy of a batch on the CPU."""
    return batch.map(_detached)


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
