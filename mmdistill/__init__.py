"""mmdistill: distil a large training set of images, graphs, text or interactions into a tiny one.

For example::

    from mmdistill import distill, evaluate, image_task

    task = image_task("digits")
    distilled = distill(task, "dm", ipc=10)
    print(evaluate(task, distilled))

Other kinds of data: ``graph_task``, ``graph_set_task``, ``text_task``, ``token_task`` and ``recsys_task``.
``method_names(task)`` lists the methods that ``distill`` takes by name, ``method_settings(task, "dm", ipc=10)`` returns
the settings of one. ``distill(..., out=folder)`` saves a set, ``DistilledSet.load`` reads it, ``export`` writes it for
other tools, and ``import_set`` reads theirs. ``save_evaluation`` saves scores, and ``compare`` puts runs side by side.
``METHODS`` holds the six methods that suit several kinds of data, with published settings.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from mmdistill import errors as errors

if TYPE_CHECKING:
    from mmdistill.distill import distill as distill
    from mmdistill.distill import method_settings as method_settings
    from mmdistill.distilled import DistilledSet as DistilledSet
    from mmdistill.errors import MmdistillError as MmdistillError
    from mmdistill.evaluate import evaluate as evaluate
    from mmdistill.export import export as export
    from mmdistill.graph.sets.task import graph_set_task as graph_set_task
    from mmdistill.graph.task import graph_task as graph_task
    from mmdistill.image.task import image_task as image_task
    from mmdistill.importing import import_set as import_set
    from mmdistill.methods import CORE_METHODS as METHODS
    from mmdistill.parameterizations.codes import decode as decode
    from mmdistill.recsys.builders import recsys_task as recsys_task
    from mmdistill.registry import method_names as method_names
    from mmdistill.reporting.compare import compare as compare
    from mmdistill.runs.saving import pictures as pictures
    from mmdistill.runs.saving import save_evaluation as save_evaluation
    from mmdistill.selections import selection as selection
    from mmdistill.text.task import text_task as text_task
    from mmdistill.text.token_task import token_task as token_task

__version__ = "0.1.0"

_HOMES = {
    "distill": ("mmdistill.distill", "distill"),
    "evaluate": ("mmdistill.evaluate", "evaluate"),
    "export": ("mmdistill.export", "export"),
    "compare": ("mmdistill.reporting.compare", "compare"),
    "import_set": ("mmdistill.importing", "import_set"),
    "pictures": ("mmdistill.runs.saving", "pictures"),
    "save_evaluation": ("mmdistill.runs.saving", "save_evaluation"),
    "selection": ("mmdistill.selections", "selection"),
    "method_names": ("mmdistill.registry", "method_names"),
    "method_settings": ("mmdistill.distill", "method_settings"),
    "decode": ("mmdistill.parameterizations.codes", "decode"),
    "DistilledSet": ("mmdistill.distilled", "DistilledSet"),
    "MmdistillError": ("mmdistill.errors", "MmdistillError"),
    "METHODS": ("mmdistill.methods", "CORE_METHODS"),
    "image_task": ("mmdistill.image.task", "image_task"),
    "graph_set_task": ("mmdistill.graph.sets.task", "graph_set_task"),
    "graph_task": ("mmdistill.graph.task", "graph_task"),
    "text_task": ("mmdistill.text.task", "text_task"),
    "token_task": ("mmdistill.text.token_task", "token_task"),
    "recsys_task": ("mmdistill.recsys.builders", "recsys_task"),
}
"""Public names are imported at their first use, so that the command line and one domain load only what they need."""

__all__ = [
    "METHODS",
    "DistilledSet",
    "MmdistillError",
    "compare",
    "decode",
    "distill",
    "errors",
    "evaluate",
    "export",
    "graph_set_task",
    "graph_task",
    "image_task",
    "import_set",
    "method_names",
    "method_settings",
    "pictures",
    "recsys_task",
    "save_evaluation",
    "selection",
    "text_task",
    "token_task",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmdistill' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    modules = {name for name in globals() if f"{__name__}.{name}" in sys.modules}
    return sorted({*modules, *__all__, *(name for name in globals() if name[:2] == name[-2:] == "__")})


class _Package(ModuleType):
    """Keeps ``mmdistill.distill`` the function, which importing the submodule of that name would replace."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, _HOMES[name][1])
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
