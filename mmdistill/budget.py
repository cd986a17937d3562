"""How large a set may be: a count in the task's own unit, or bytes, which become the largest count that fits."""

import re
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral

from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError
from mmdistill.methods import Method, Storage
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.runtime import Draws
from mmdistill.task import Task

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str | int) -> int:
    """Return a number of bytes: ``100KB`` are 100,000, ``100KiB`` 102,400, a bare number is itself.

    Raises:
        ConfigError: anything else, or less than one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"bytes are a number with B, KB, MB, GB, KiB, MiB or GiB, such as 100KB; got {text!r}")
    size = int(float(found[1]) * UNITS[found[2].upper()])
    if size < 1:
        raise ConfigError(f"a budget is at least one byte, got {text!r}")
    return size


def find_budget(
    task: Task,
    method: Method,
    *,
    budget: int | None = None,
    ipc: int | None = None,
    nodes: int | None = None,
    users: int | None = None,
    bytes: str | int | None = None,
) -> tuple[Method, int]:
    """Return the budget in the task's own unit, and the method, which takes bytes on where it can fill them.

    Raises:
        ConfigError: none given, several given, one in another unit, or bytes that hold not even one sample per class.
    """
    given = {name: value for name, value in (("ipc", ipc), ("nodes", nodes), ("users", users)) if value is not None}
    unit = task.describe().budget
    if budget is not None:
        given[unit] = budget
    if bytes is not None and not given:
        return budget_in_bytes(task, method, parse_bytes(bytes))
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ConfigError(f"{name} is a whole number, got {value!r}")
    if set(given) != {unit} or bytes is not None:
        shown = given if bytes is None else {**given, "bytes": bytes}
        got = ", ".join(f"{name}={value}" for name, value in shown.items()) or "no budget"
        raise ConfigError(
            f"{task.describe().domain} data take their budget as {unit}=N or bytes=SIZE (--{unit} N or --bytes SIZE), "
            f"got {got}"
        )
    return method, int(given[unit])


def budget_in_bytes(task: Task, method: Method, limit: int) -> tuple[Method, int]:
    """Return the largest budget whose set takes no more than so many bytes, labels and decoders included.

    A storage that fills its bytes with codes takes them all; the count, on which schedules depend, is then that of
    raw samples of these bytes, and at least the smallest.

    Raises:
        ConfigError: not even the smallest set fits.
    """
    key = Draws(0, ("bytes",), task.device)
    smallest = 1 if task.describe().budget == "ipc" else task.num_classes or 1

    def raw(count: int) -> int:
        return raw_samples(task, count, "real", "fixed", key).stored_bytes()

    def built(count: int) -> int:
        settings = method.settings(count)
        if settings.init != "noise":  # which no class is too small for
            settings = replace(settings, init="real")  # of equal bytes, and quicker than selecting samples
        return Distiller(task, method, count, settings=settings).initial().stored_bytes()

    if isinstance(method.parameterization, Storage) and method.parameterization.fills:
        count = _largest(raw, smallest, limit) if raw(smallest) <= limit else smallest
        return method.with_settings(stored_bytes=limit), count
    if (least := built(smallest)) > limit:
        raise ConfigError(
            f"{limit:,} bytes are too few for {method.title}: its smallest set ({task.describe().budget} {smallest}) "
            f"takes {least:,}"
        )
    return method, _largest(built, smallest, limit)


def _largest(size: Callable[[int], int], smallest: int, limit: int) -> int:
    """Return the largest count whose size is within a limit, given that the smallest one's is; by bisection."""

    def fits(count: int) -> bool:
        try:
            return size(count) <= limit
        except (ConfigError, DataError):  # more samples than there are
            return False

    low, high = smallest, 2 * smallest
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
