"""Families of methods of one kind: their settings for all data, and the conditions of their published numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmdistill.method import Method

Cells = Mapping[str, tuple[int, ...]]
"""Cells of published tables: data sets with their images per class."""
CIFAR: Cells = {"cifar10": (1, 10, 50), "cifar100": (1, 10, 50)}
"""Cells that ridge regression methods whiten, among others."""


@dataclass(frozen=True)
class Conditions:
    """Options, beside the settings, under which a method's published numbers were made; empty ones are the default.

    Args:
        protocol: how judges train.
        model: the network, if it is not the ConvNet.
        model_on: the data sets with this network; empty: all.
        whiten: the cells of each whitening.
    """

    protocol: str = ""
    model: str = ""
    model_on: tuple[str, ...] = ()
    whiten: Mapping[str, Cells] = field(default_factory=dict)

    def options(self, data: str, ipc: int) -> dict[str, str]:
        """Return the options of a cell by name."""
        options = {
            "model": self.model if not self.model_on or data in self.model_on else "",
            "protocol": self.protocol,
            "whiten": next((kind for kind, cells in self.whiten.items() if ipc in cells.get(data, ())), ""),
        }
        return {name: value for name, value in options.items() if value}


@dataclass(frozen=True)
class MethodFamily:
    """Methods of one kind by name, all declared in one module.

    All but ``methods`` may hold those of ``CORE_METHODS`` too.

    Args:
        methods: the family's own methods, with published settings.
        presets: by data set name, methods whose settings differ there: published ones, and short runs for the 8 x 8
            digits, for which none are published.
        reduced: schedules for minutes of one CPU core on images of 28 x 28 or 32 x 32, at width 32.
        reduced_colour: the same for ten classes in colour, if they differ.
        conditions: of published numbers.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Method]] = field(default_factory=dict)
    reduced: Mapping[str, Method] = field(default_factory=dict)
    reduced_colour: Mapping[str, Method] = field(default_factory=dict)
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
