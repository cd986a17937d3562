"""YAML settings: writing, and safe reading, whose memory is bounded by the size of the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmdistill.errors import CheckpointError


class _Loader(yaml.SafeLoader):
    """Refuses aliases of lists and mappings: settings need none, and a few nested ones expand without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node of the document."""
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
                raise yaml.MarkedYAMLError(problem="an alias (*) of a list or mapping", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def parsed(text: str) -> Any:
    """Parse a YAML text into plain values.

    Raises:
        ValueError: the text is malformed, nested too deep, or has an alias of a list or mapping.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # such as of "!!int ''"
        raise ValueError(" ".join(str(error).split())) from error


def as_yaml(settings: Mapping[str, object]) -> str:
    """Return settings as a YAML text, in their order."""
    return yaml.safe_dump(dict(settings), sort_keys=False)


def settings_by_name(path: Path) -> dict[str, Any]:
    """Read a file of settings into plain values by name.

    Raises:
        FileNotFoundError: the file is missing.
        CheckpointError: the file is damaged.
    """
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no settings by name")
    return content
