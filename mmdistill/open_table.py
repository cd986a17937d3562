"""Tables by name to which a user's code adds entries of its own."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

from mmdistill.errors import ConfigError
from mmdistill.names import canonical

Entry = TypeVar("Entry")
LISTED = ("", "all", "none")
"""What names no entry where entries are listed, as commas divide them."""


class OpenTable(MutableMapping[str, Entry]):
    """Entries by name, in one spelling whatever they are given and asked for in (``My_Rule`` is ``my-rule``).

    Args:
        shipped: the entries of this package.
        reserved: names that mean something else.
    """

    def __init__(self, shipped: Mapping[str, Entry] | None = None, reserved: Iterable[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self._shipped: dict[str, Entry] = {}
        self._entries: dict[str, Entry] = {}
        self.ship(shipped or {})

    def __getitem__(self, name: str) -> Entry:
        return self._entries[canonical(name)]

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Add an entry, or replace the one of a name.

        Raises:
            ConfigError: a name that means something else.
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
        """Take entries as those of this package."""
        self.update(entries)
        self._shipped.update({canonical(name): entry for name, entry in entries.items()})

    def added(self, name: str) -> bool:
        """Return whether an entry is of a user's code, which may change."""
        key = canonical(name)
        return self._entries.get(key) is not self._shipped.get(key)
