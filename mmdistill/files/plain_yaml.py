"""YAML as settings are written in it: a file never takes more memory than its own size lets expect."""

from pathlib import Path
from typing import Any

import yaml

from mmdistill.errors import CheckpointError


class _Loader(yaml.SafeLoader):
    """Refuses an alias of a list or mapping: no setting needs one, and a few that are nested make a file endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node of the document."""
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
                raise yaml.MarkedYAMLError(problem="an alias (*) of a list or mapping", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def parsed(text: str) -> Any:
    """Return what a YAML text says in plain values.

    Raises:
        ValueError: it is malformed, too deep, or has an alias of a list or mapping.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # of "!!int ''", say
        raise ValueError(" ".join(str(error).split())) from error


def settings_by_name(path: Path) -> dict[str, Any]:
    """Return what a file of settings says in plain values.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged.
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
