"""Build recommendation tasks from the user's data and options."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from mmdistill.checks import require_kind, require_left_out, require_no_width, require_sizes
from mmdistill.execution.isolation import isolated
from mmdistill.names import called, known_name
from mmdistill.networks.module import ModuleFactory
from mmdistill.networks.trial import try_network
from mmdistill.recsys.data import DATASETS, Interactions, Source, load_interactions
from mmdistill.recsys.metrics import RankingProtocol
from mmdistill.recsys.splits import SplitBy
from mmdistill.recsys.task import TESTING, RecsysTask
from mmdistill.recsys.vae import VaeProtocol
from mmdistill.runtime import checked_seed, choose_device

MODELS = ("infinite", "infinite-d2", "infinite-d3", "autoencoder")
"""Networks that ``--model`` accepts: infinitely wide of depth 1 to 3, or one hidden layer of ``--width`` units."""
READING_OPTIONS = ("user_column", "item_column", "rating_column", "time_column", "min_rating", "split_by")
"""Options for reading a log, by their names in Python and on the command line."""


@isolated
def recsys_task(
    data: Source | Mapping[str, Source] | Interactions,
    *,
    test: Source | None = None,
    model: ModuleFactory | str | None = None,
    features: str | Sequence[str] = (),
    width: int | None = None,
    user_column: str | int | None = None,
    item_column: str | int | None = None,
    rating_column: str | int | None = None,
    time_column: str | int | None = None,
    min_rating: float | None = None,
    split_by: SplitBy | None = None,
    name: str | None = None,
    max_users: int | None = None,
    candidates: int = 0,
    judge_epochs: int | None = None,
    judge_batch: int | None = None,
    protocol: RankingProtocol | None = None,
    vae: VaeProtocol | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
) -> RecsysTask:
    """Make a task of interactions.

    Args:
        data: a data set's name, a file or folder, a data frame, a list with a dictionary per row, a tuple of users and
            items (and ratings, and times) with one entry per interaction, a list with such a tuple per interaction, a
            users x items matrix, a dictionary of these by split (train, test and perhaps valid), or loaded
            interactions.
        test: the test part, in any of these forms, if ``data`` is the training part.
        model: one of :data:`MODELS`, the first by default, or a function that returns a module from rows to logits.
        features: names of the module's submodules whose features are matched.
        width: hidden units of ``autoencoder``; 600 by default.
        user_column: name of a table's user column, or its position from 0 in a file without a header; guessed by
            default, like the next three.
        item_column: name of the item column.
        rating_column: name of the rating column.
        time_column: name of the time column.
        min_rating: the lowest rating that counts as an interaction; by default any above 0.
        split_by: ``random``, ``time`` or ``leave-one-out``; see :func:`~mmdistill.recsys.data.load_interactions`.
        name: name of in-memory data in reports and run comparisons.
        max_users: judge on this many users, drawn at random; None is all.
        candidates: see :class:`~mmdistill.recsys.metrics.RankingProtocol`.
        judge_epochs: passes of ``mult-vae`` over the real users; on a synthetic set it takes as many updates. None
            keeps its default number of updates.
        judge_batch: users in its minibatches; None keeps its default.
        protocol: how judges are tested, in place of ``max_users`` and ``candidates``; by default on all users and
            items, with three groups of users.
        vae: how ``mult-vae`` is built and trained; by default :class:`~mmdistill.recsys.vae.VaeProtocol`.
        seed: seed of a random split.
        device: where everything runs; ``auto`` is a CUDA device if there is one, else the CPU.
    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.
    Raises:
        ConfigError: an unknown name or model, a size out of range, arguments that exclude each other, or a network that
            cannot run on rows of this many items.
        DataError: missing, damaged or unusable data.
    """
    seed = checked_seed(seed)
    require_sizes(width=width, judge_epochs=judge_epochs, judge_batch=judge_batch)
    require_kind(RankingProtocol, protocol=protocol)
    require_kind(VaeProtocol, vae=vae)
    if protocol is None:
        protocol = replace(TESTING, candidates=candidates, max_users=max_users)
    else:
        reason = "the protocol says on whom and on what judges are tested"
        require_left_out(reason, max_users=max_users, candidates=candidates or None)
    units, depth = network(model, width)
    device = choose_device(device)
    reading: dict[str, Any] = {
        "user_column": user_column,
        "item_column": item_column,
        "rating_column": rating_column,
        "time_column": time_column,
        "min_rating": min_rating,
        "split_by": split_by,
    }
    if isinstance(data, Interactions):
        require_left_out("interactions that are loaded are read and divided", **reading, test=test)
    interactions = data if isinstance(data, Interactions) else load_interactions(data, test=test, **reading, seed=seed)
    data = called(interactions, name, data if test is None else {}, DATASETS)
    factory = None if isinstance(model, str) else model
    wide_autoencoder = None if units is None else partial(autoencoder, data.num_items, units)
    task = RecsysTask(
        data,
        model=factory or wide_autoencoder,
        features=features,
        depth=depth,
        protocol=protocol,
        vae=vae,
        judge_epochs=judge_epochs,
        judge_batch=judge_batch,
        device=device,
    )
    if factory is not None:
        users = task.select(torch.arange(min(2, data.num_users))).inputs
        try_network(task, users, f"users with rows of {data.num_items} items", data.num_items)
    return task


def network(model: ModuleFactory | str | None, width: int | None) -> tuple[int | None, int]:
    """Return the hidden units of ``autoencoder`` (None for other networks) and the depth of an infinitely wide one.

    Raises:
        ConfigError: an unknown name, or a width for anything but ``autoencoder``.
    """
    if model is not None and not isinstance(model, str):
        require_no_width(width, "a module of your own")
        return None, 1
    key = known_name("model for recsys data", model or MODELS[0], MODELS)
    if key == "autoencoder":
        return width or 600, 1
    require_no_width(width, key)
    return None, int(key.partition("-d")[2] or 1)


def autoencoder(num_items: int, width: int) -> nn.Module:
    """Return a network with one hidden layer that maps rows ``(n, items)`` to logits."""
    return nn.Sequential(nn.Linear(num_items, width), nn.Tanh(), nn.Linear(width, num_items))
