"""Budgets: a count in the task's own unit, or bytes, which become the largest count that fits."""

import logging
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import NamedTuple

from mmdistill.allocation import ShortClassError
from mmdistill.checks import is_of
from mmdistill.composition import NOISE, can_start_from_noise
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError, MmdistillWarning
from mmdistill.execution import ranks
from mmdistill.method import Method, Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Task

logger = logging.getLogger(__name__)

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class GivenBudget(NamedTuple):
    """A budget as a user gives it, by one of its fields.

    Args:
        budget: how many synthetic samples, in the unit of the task.
        ipc: samples per class.
        nodes: nodes in all.
        users: users in all.
        bytes: the size in bytes, such as ``"100KB"``.
    """

    budget: int | None = None
    ipc: int | None = None
    nodes: int | None = None
    users: int | None = None
    bytes: str | int | None = None


def parse_bytes(text: str | int) -> int:
    """Parse a number of bytes: ``100KB`` is 100,000, ``100KiB`` 102,400, a bare number itself.

    Raises:
        ConfigError: anything else, less than one byte, or more than any file can have.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].upper() not in UNITS:
        raise ConfigError(f"bytes are a number with B, KB, MB, GB, KiB, MiB or GiB, such as 100KB; got {text!r}")
    size = float(match[1]) * UNITS[match[2].upper()]  # infinite if there are too many digits
    if not 1 <= size <= sys.maxsize:
        raise ConfigError(f"a budget is at least one byte and less than 8 EiB, got {text!r:.40}")
    return int(size)


def method_within_budget(task: Task, method: Method, given: GivenBudget, seed: int = 0) -> tuple[Method, int]:
    """Return the method and the budget in the task's own unit; a method that can fill bytes gets them as a setting.

    The run's seed matters if the samples' bytes depend on the real ones that they start from.

    Raises:
        ConfigError: no budget, several, one in another unit, or bytes too few for one sample per class.
    """
    count = given_count(task, given)
    if given.bytes is None:
        return method, count
    with warnings.catch_warnings():  # trial sets should not warn; the chosen one warns again when it is built
        warnings.simplefilter("ignore", MmdistillWarning)
        return budget_in_bytes(task, method, parse_bytes(given.bytes), seed)


def given_count(task: Task, given: GivenBudget) -> int:
    """Return a budget in the task's own unit; 0 if it is given in bytes.

    Raises:
        ConfigError: no budget, several, one in another unit, or not a whole number.
    """
    named = {"ipc": given.ipc, "nodes": given.nodes, "users": given.users}
    counts = {name: value for name, value in named.items() if value is not None}
    unit = task.describe().budget
    if given.budget is not None:
        if counts:
            raise ConfigError(f"the budget was given twice: {given.budget}, and {', '.join(counts)}")
        counts[unit] = given.budget
    if given.bytes is not None and not counts:
        return 0
    for name, value in counts.items():
        if not is_of(value, Integral):
            raise ConfigError(f"{name} is a whole number, got {value!r}")
    if set(counts) != {unit} or given.bytes is not None:
        shown = counts if given.bytes is None else {**counts, "bytes": given.bytes}
        got = ", ".join(f"{name}={value}" for name, value in shown.items()) or "no budget"
        raise ConfigError(
            f"{task.describe().domain} data take their budget as {unit}=N or bytes=SIZE (--{unit} N or --bytes SIZE), "
            f"got {got}"
        )
    return int(counts[unit])


def budget_in_bytes(task: Task, method: Method, limit: int, seed: int) -> tuple[Method, int]:
    """Return the method and the largest budget whose set fits into ``limit`` bytes, labels and decoders included.

    A storage that fills its bytes with codes gets all of them. The count, on which schedules depend, is then that of
    raw samples of these bytes, and at least the smallest. A set that does not grow with its budget has the smallest
    count too. If bytes stay unused because a class has no more samples to start from, a warning names it.

    Raises:
        ConfigError: even the smallest set does not fit.
    """
    key, unit = Draws(0, ("bytes",), task.device), task.describe().budget
    smallest = 1 if unit == "ipc" else task.num_classes or 1
    sizes, short = dict[int, int](), dict[int, ShortClassError]()

    def raw_bytes(count: int) -> int:
        return raw_samples(task, count, "real", "hard", key).stored_bytes()

    def build(count: int, settings: Settings) -> Parameterization:
        return Distiller(task, method, count, settings=settings, seed=seed).initial()

    def set_bytes(count: int) -> int:
        if method.sized is not None:
            return method.sized(task, count, method.settings(count), key).stored_bytes()
        settings = method.settings(count)
        if settings.init in ("noise", "k-means"):  # no class is too small for these, and some storages require them
            return build(count, settings).stored_bytes()
        # A random start is quicker than a selection; its bytes are the same if all samples take equally many.
        samples = build(count, replace(settings, init="real"))
        return (samples if samples.even or settings.init == "real" else build(count, settings)).stored_bytes()

    def record_bytes(count: int) -> int:
        try:
            sizes[count] = set_bytes(count)
        except ShortClassError as error:
            short[count] = error
            raise
        return sizes[count]

    if isinstance(method.parameterization, Storage) and method.parameterization.fills:
        return method.with_settings(stored_bytes=limit), largest_within(raw_bytes, smallest, limit)
    if (least := record_bytes(smallest)) > limit:
        raise ConfigError(
            f"{limit:,} bytes are too few for {method.title}: its smallest set ({unit} {smallest}) takes {least:,}"
        )
    count = largest_within(record_bytes, smallest, limit)
    if (error := short.get(count + 1)) is not None and ranks.is_first():
        noise = can_start_from_noise(task, method, count + 1, method.settings(count + 1))
        logger.warning(
            "the set takes %s of %s bytes (%s %d): %s%s",
            f"{sizes[count]:,}",
            f"{limit:,}",
            unit,
            count,
            error.fact,
            f"; samples that start from noise need no real ones: {NOISE}" if noise else "",
        )
    return method, count


def largest_within(size: Callable[[int], int], smallest: int, limit: int) -> int:
    """Return the largest count whose size is within a limit; the smallest if none is, or if larger ones take no more.

    Sizes mostly grow linearly, so each guess extrapolates the last two counts that fit; a guess out of bounds becomes
    the middle. Few counts are tried, since each size builds a set.

    Args:
        size: bytes by count; raises a ConfigError or DataError if there are too few samples.
        smallest: the least count.
        limit: in bytes.
    """

    def size_if_fits(count: int) -> int | None:
        try:
            count_size = size(count)
        except (ConfigError, DataError):
            return None
        return count_size if count_size <= limit else None

    low, low_size, high, guess = smallest, size(smallest), None, 2 * smallest
    while high is None or high - low > 1:
        guess_size, ahead = size_if_fits(guess), 0
        if guess_size is None:
            high = guess
        elif guess_size <= low_size:
            return low
        else:
            ahead = max((limit - guess_size) * (guess - low) // (guess_size - low_size), 1)
            low, low_size = guess, guess_size
        guess = low + ahead
        if high is not None and not low < guess < high:
            guess = (low + high) // 2
    return low
