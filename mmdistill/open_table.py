"""Tables of named entries that a user's code can extend."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

from mmdistill.errors import ConfigError
from mmdistill.names import canonical

Entry = TypeVar("Entry")
LISTED = ("", "all", "none")
"""Names with another meaning in comma-separated lists of entries."""


class OpenTable(MutableMapping[str, Entry]):
    """Entries by name, in any spelling of the name (``My_Rule`` is ``my-rule``).

    Args:
        shipped: the entries of this package.
        reserved: names that no entry may have.
    """

    def __init__(self, shipped: Mapping[str, Entry] | None = None, reserved: Iterable[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self._shipped: dict[str, Entry] = {}
        self._entries: dict[str, Entry] = {}
        self.ship(shipped or {})

    def __getitem__(self, name: str) -> Entry:
        return self._entries[canonical(name)]

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Add or replace an entry.

        Raises:
            ConfigError: a reserved name.
        """
        key = canonical(name)
        if key in self._reserved or key in LISTED or "," in key:
            raise ConfigError(f"{name!r} means something else here; choose another name")
        self._entries[key] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[canonical(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def ship(self, entries: Mapping[str, Entry]) -> None:
        """Add entries of this package."""
        self.update(entries)
        self._shipped.update({canonical(name): entry for name, entry in entries.items()})

    def added(self, name: str) -> bool:
        """Return whether an entry comes from a user's code, which may change."""
        key = canonical(name)
        return self._entries.get(key) is not self._shipped.get(key)
