"""A group of experts in training: on disk as far as it came, so that an interruption costs no more than a minute.

After so many seconds the networks and their optimizer are written as they stand, in the middle of an epoch too, and
with them the snapshots since; so the memory that these take does not grow with the training either.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mmdistill.errors import CheckpointError
from mmdistill.networks.fit import LiveTraining, SavedTraining
from mmdistill.networks.stacked import named, state_of
from mmdistill.store import digest_of, load_tree, opened_tensors, save_tree, write_tensors
from mmdistill.task import NetworkState, Tensors

logger = logging.getLogger(__name__)

OWN = "experts"
"""Under which a file keeps its manifest's digest and, after a blank, the numbers of the experts that trained together.

One entry, since files write several in any order.
"""
EPOCH_DIGESTS = "digests"
"""Under which a finished expert's file keeps a digest of each epoch's tensors, ``(epochs + 1, 16)`` bytes."""
STATE = "state.safetensors"
"""In a group's folder: how far it came, its networks and their optimizer, and which files hold its snapshots."""
KEPT_EVERY = 60.0
"""Seconds of training that an interruption may cost."""


class ExpertGroup:
    """The trajectories of experts that train together.

    Args:
        folder: that of all experts; the group has a folder in it while it trains, if that takes long.
        numbers: of these experts.
        manifest: the digest of what all experts there are.
    """

    def __init__(self, folder: Path, numbers: Sequence[int], manifest: str) -> None:
        self.metadata = {OWN: f"{manifest} {','.join(map(str, numbers))}"}
        self.folder = folder / f"group-{numbers[0]:04d}-{len(numbers)}"
        self._files: list[str] = []
        self._pending: list[Tensors] = []
        self._kept = time.monotonic()

    def reached(self, device: torch.device) -> SavedTraining | None:
        """Return the last state that is on disk; None where there is none, or none that can be used."""
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            tree = load_tree(path)
            files = [str(name) for name in tree["files"]]
            for name in files:
                with opened_tensors(self.folder / name) as handle:
                    if handle.metadata() != self.metadata:
                        raise CheckpointError(f"{self.folder / name} is of other experts")
            placed = {name: tensor.to(device, copy=True) for name, tensor in tree["networks"].items()}
            found = SavedTraining(int(tree["epoch"]), int(tree["step"]), state_of(placed), tree["optimizer"])
        except (CheckpointError, safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
            logger.warning("experts begin anew, since what is left of them cannot be used: %s", error)
            return None
        self._files = files
        return found

    def begun(self, epochs: Iterable[Tensors], device: torch.device) -> SavedTraining:
        """Take the first epochs from elsewhere, of experts whose optimizer keeps nothing, and return where they end.

        They are written one by one, so that no more than one is in memory.

        Args:
            epochs: by epoch, the tensors of all experts of the group, ``(M, ...)`` each.
            device: of the training.
        """
        files: list[str] = []
        last: Tensors = {}
        for last in epochs:
            files.append(f"epochs-{len(files):04d}-{len(files):04d}.safetensors")
            write_tensors(self.folder / files[-1], {name: own[None] for name, own in last.items()}, self.metadata)
        self._files = files
        self._kept = -KEPT_EVERY  # so that the next step says what there is
        placed = {name: tensor.to(device, copy=True) for name, tensor in last.items()}
        return SavedTraining(len(files) - 1, 0, state_of(placed), None)

    def note(self, at: LiveTraining) -> None:
        """Take the snapshot of an epoch that is over, and write what there is once it is time."""
        if not at.step:
            self._pending.append(_kept(at.state))
        if time.monotonic() - self._kept < KEPT_EVERY:
            return
        files = self._files
        if self._pending:
            name = f"epochs-{at.epoch + 1 - len(self._pending):04d}-{at.epoch:04d}.safetensors"
            stacked = {key: torch.stack([own[key] for own in self._pending]) for key in self._pending[0]}
            write_tensors(self.folder / name, stacked, self.metadata)
            files = [*files, name]
        reached = {
            "epoch": at.epoch,
            "step": at.step,
            "networks": _kept(at.state),
            "optimizer": at.optimizer.state_dict(),
        }
        save_tree(self.folder / STATE, {**reached, "files": files})
        self._files, self._pending = files, []
        self._kept = time.monotonic()

    def trajectory(self, position: int) -> Tensors:
        """Return an expert's tensors after each epoch, ``(epochs + 1, ...)`` each, from the files and the memory.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        parts = [_rows(self.folder / name, position) for name in self._files]
        parts += [{key: tensor[position][None] for key, tensor in own.items()} for own in self._pending]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def finish(self, position: int, path: Path) -> None:
        """Write an expert's whole trajectory, with a digest of each epoch.

        Raises:
            CheckpointError: a file of the group is missing or damaged.
        """
        tensors = self.trajectory(position)
        rows = zip(*tensors.values(), strict=True)
        digests = [epoch_digest(dict(zip(tensors, row, strict=True))) for row in rows]
        write_tensors(path, tensors | {EPOCH_DIGESTS: torch.stack(digests)}, self.metadata)

    def remove(self) -> None:
        """Remove what lies in the group's folder."""
        if self.folder.is_dir():
            _remove(self.folder)


def epoch_digest(tensors: Tensors) -> Tensor:
    """Return a digest of one epoch's tensors, 16 bytes."""
    return torch.tensor(list(bytes.fromhex(digest_of(tensors))), dtype=torch.uint8)


def shard(folder: Path, index: int) -> Path:
    """Return where an expert's trajectory is, once it is finished."""
    return folder / f"expert-{index:04d}.safetensors"


def open_groups(folder: Path, count: int, together: int) -> list[list[int]]:
    """Return who shall train together: groups that lost a file or did not finish, and experts that never trained.

    A group that is larger than ``together`` is not trained whole; those that it lost become other experts.
    """
    missing = [index for index in range(count) if not shard(folder, index).exists()]
    lost = []
    trained = [*sorted(folder.glob("expert-*.safetensors")), *_unfinished(folder)]
    for path in trained if missing else ():
        group = numbers_in(path)
        if group not in lost and len(group) <= together and not set(group).isdisjoint(missing):
            lost.append(group)
    new = [index for index in missing if not any(index in group for group in lost)]
    return lost + [new[first : first + together] for first in range(0, len(new), together)]


def groups_of(folder: Path, count: int, together: int) -> list[list[int]]:
    """Return for each of so many experts who trained together with it, or shall where it is missing."""
    found = {index: numbers_in(shard(folder, index)) for index in range(count) if shard(folder, index).exists()}
    for group in open_groups(folder, count, together):
        found |= {index: group for index in group if index not in found}
    return [found[index] for index in range(count)]


def remove_finished(folder: Path) -> None:
    """Remove what is left of groups whose experts are all finished."""
    for left in _unfinished(folder):
        if all(shard(folder, index).exists() for index in numbers_in(left)):
            _remove(left)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):  # of what another process removes at the same time
        shutil.rmtree(folder)


def numbers_in(path: Path) -> list[int]:
    """Return which experts trained together with those of a file or a group's folder.

    A damaged one has none; it is found when it is read.
    """
    if path.is_dir():
        return next((found for inner in sorted(path.glob("epochs-*.safetensors")) if (found := numbers_in(inner))), [])
    try:
        with opened_tensors(path) as handle:
            numbers = (handle.metadata() or {}).get(OWN, "").partition(" ")[2]
        return [int(number) for number in numbers.split(",") if number]
    except (safetensors.SafetensorError, OSError, ValueError):
        return []


def _unfinished(folder: Path) -> list[Path]:
    """Return the folders of groups that did not finish, in order."""
    return sorted(path for path in folder.glob("group-*") if path.is_dir())


def _rows(path: Path, position: int) -> Tensors:
    """Return one expert's rows of a file ``(epochs, experts, ...)``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with opened_tensors(path) as handle:
            return {name: handle.get_slice(name)[:, position].clone() for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove its folder, to train its experts anew") from error


def _kept(state: NetworkState) -> Tensors:
    """Return copies of a state's tensors on the host, by name."""
    # Copies: to("cpu") alone returns the live networks as they are on the CPU.
    return named(state.map(lambda tensor: tensor.detach().to("cpu", copy=True)))
