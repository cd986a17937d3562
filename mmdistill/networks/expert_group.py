"""A group of experts in training, saved every minute, so that an interruption costs no more than that.

The networks and their optimizer are written at that interval, in the middle of an epoch too, together with the
snapshots taken since. So the memory of snapshots does not grow with the training either.
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
"""The metadata key of a file's manifest digest and, after a blank, the numbers of the experts that trained together.

It is one entry, since safetensors writes several in any order.
"""
EPOCH_DIGESTS = "digests"
"""The key of the digests of each epoch's tensors in a finished expert's file, ``(epochs + 1, 16)`` bytes."""
STATE = "state.safetensors"
"""The file in a group's folder with its progress, networks and optimizer, and the names of its snapshot files."""
KEPT_EVERY = 60.0
"""Seconds between two writes, the most training that an interruption may cost."""


class ExpertGroup:
    """The trajectories of experts that train together.

    Args:
        folder: the folder of all experts; a group that trains for long keeps a folder in it meanwhile.
        numbers: the numbers of the group's experts.
        manifest: the digest of the folder's manifest.
    """

    def __init__(self, folder: Path, numbers: Sequence[int], manifest: str) -> None:
        self.metadata = {OWN: f"{manifest} {','.join(map(str, numbers))}"}
        self.folder = folder / f"group-{numbers[0]:04d}-{len(numbers)}"
        self._files: list[str] = []
        self._pending: list[Tensors] = []
        self._written_at = time.monotonic()

    def load_state(self, device: torch.device) -> SavedTraining | None:
        """Return the last state on disk; None if there is none, or with a warning if it cannot be used."""
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
            networks = {name: tensor.to(device, copy=True) for name, tensor in tree["networks"].items()}
            saved = SavedTraining(int(tree["epoch"]), int(tree["step"]), state_of(networks), tree["optimizer"])
        except (CheckpointError, safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
            logger.warning("experts begin anew, since what is left of them cannot be used: %s", error)
            return None
        self._files = files
        return saved

    def start_from(self, epochs: Iterable[Tensors], device: torch.device) -> SavedTraining:
        """Take over the first epochs of other experts, whose optimizer has no state, and return their last state.

        Epochs are written one by one, so that only one is in memory.

        Args:
            epochs: for each epoch, the tensors of all experts of the group, ``(M, ...)`` each.
            device: the device of the training.
        """
        files: list[str] = []
        last: Tensors = {}
        for last in epochs:
            files.append(f"epochs-{len(files):04d}-{len(files):04d}.safetensors")
            write_tensors(self.folder / files[-1], {name: tensor[None] for name, tensor in last.items()}, self.metadata)
        self._files = files
        self._written_at = -KEPT_EVERY  # so that the next step writes the state
        networks = {name: tensor.to(device, copy=True) for name, tensor in last.items()}
        return SavedTraining(len(files) - 1, 0, state_of(networks), None)

    def note(self, at: LiveTraining) -> None:
        """Take a snapshot if an epoch has ended, and write snapshots and state if a minute has passed."""
        if not at.step:
            self._pending.append(_copy_to_host(at.state))
        if time.monotonic() - self._written_at < KEPT_EVERY:
            return
        files = self._files
        if self._pending:
            name = f"epochs-{at.epoch + 1 - len(self._pending):04d}-{at.epoch:04d}.safetensors"
            stacked = {key: torch.stack([epoch[key] for epoch in self._pending]) for key in self._pending[0]}
            write_tensors(self.folder / name, stacked, self.metadata)
            files = [*files, name]
        state = {
            "epoch": at.epoch,
            "step": at.step,
            "networks": _copy_to_host(at.state),
            "optimizer": at.optimizer.state_dict(),
            "files": files,
        }
        save_tree(self.folder / STATE, state)
        self._files, self._pending = files, []
        self._written_at = time.monotonic()

    def trajectory(self, position: int) -> Tensors:
        """Return an expert's tensors after each epoch, ``(epochs + 1, ...)`` each, from the files and from memory.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        parts = [_read_rows(self.folder / name, position) for name in self._files]
        parts += [{key: tensor[position][None] for key, tensor in epoch.items()} for epoch in self._pending]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def finish(self, position: int, path: Path) -> None:
        """Write an expert's whole trajectory to ``path``, with a digest of each epoch.

        Raises:
            CheckpointError: a file of the group is missing or damaged.
        """
        tensors = self.trajectory(position)
        epochs = zip(*tensors.values(), strict=True)
        digests = [epoch_digest(dict(zip(tensors, epoch, strict=True))) for epoch in epochs]
        write_tensors(path, tensors | {EPOCH_DIGESTS: torch.stack(digests)}, self.metadata)

    def remove(self) -> None:
        """Remove the group's folder."""
        if self.folder.is_dir():
            _remove(self.folder)


def epoch_digest(tensors: Tensors) -> Tensor:
    """Return a digest of one epoch's tensors, 16 bytes."""
    return torch.tensor(list(bytes.fromhex(digest_of(tensors))), dtype=torch.uint8)


def shard(folder: Path, index: int) -> Path:
    """Return the file of an expert's finished trajectory."""
    return folder / f"expert-{index:04d}.safetensors"


def open_groups(folder: Path, count: int, together: int) -> list[list[int]]:
    """Return the groups of experts still to train: those that lost a file or did not finish, and new ones.

    A group larger than ``together`` is not repeated as a whole; its missing experts join new groups and so differ.
    """
    missing = [index for index in range(count) if not shard(folder, index).exists()]
    incomplete = []
    trained = [*sorted(folder.glob("expert-*.safetensors")), *_unfinished(folder)]
    for path in trained if missing else ():
        group = numbers_in(path)
        if group not in incomplete and len(group) <= together and not set(group).isdisjoint(missing):
            incomplete.append(group)
    new = [index for index in missing if not any(index in group for group in incomplete)]
    return incomplete + [new[first : first + together] for first in range(0, len(new), together)]


def groups_of(folder: Path, count: int, together: int) -> list[list[int]]:
    """Return for each of ``count`` experts the group with which it trained, or will train if it is missing."""
    groups = {index: numbers_in(shard(folder, index)) for index in range(count) if shard(folder, index).exists()}
    for group in open_groups(folder, count, together):
        groups |= {index: group for index in group if index not in groups}
    return [groups[index] for index in range(count)]


def remove_finished(folder: Path) -> None:
    """Remove the folders of groups whose experts are all finished."""
    for group_folder in _unfinished(folder):
        if all(shard(folder, index).exists() for index in numbers_in(group_folder)):
            _remove(group_folder)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):  # another process may remove it at the same time
        shutil.rmtree(folder)


def numbers_in(path: Path) -> list[int]:
    """Return the numbers of the experts that trained together, from one's file or a group's folder.

    A damaged file gives none; reading its tensors reports the damage.
    """
    if path.is_dir():
        for file in sorted(path.glob("epochs-*.safetensors")):
            if numbers := numbers_in(file):
                return numbers
        return []
    try:
        with opened_tensors(path) as handle:
            text = (handle.metadata() or {}).get(OWN, "").partition(" ")[2]
        return [int(number) for number in text.split(",") if number]
    except (safetensors.SafetensorError, OSError, ValueError):
        return []


def _unfinished(folder: Path) -> list[Path]:
    """Return the folders that groups in training left, in order."""
    return sorted(path for path in folder.glob("group-*") if path.is_dir())


def _read_rows(path: Path, position: int) -> Tensors:
    """Read one expert's rows of a file of tensors ``(epochs, experts, ...)``.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with opened_tensors(path) as handle:
            return {name: handle.get_slice(name)[:, position].clone() for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove its folder, to train its experts anew") from error


def _copy_to_host(state: NetworkState) -> Tensors:
    """Return copies of a state's tensors on the host, by name."""
    # copy=True: on the CPU, to("cpu") alone returns the live networks' own tensors.
    return named(state.map(lambda tensor: tensor.detach().to("cpu", copy=True)))
