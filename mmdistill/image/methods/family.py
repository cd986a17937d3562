"""What there is of methods of one kind: settings for all data, and what their published numbers belong to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmdistill.method import Method

Cells = Mapping[str, tuple[int, ...]]
"""Data sets with their images per class."""
CIFAR: Cells = {"cifar10": (1, 10, 50), "cifar100": (1, 10, 50)}
"""What methods of ridge regression whiten, among others."""


@dataclass(frozen=True)
class Conditions:
    """What published numbers of a method belong to beside its settings, where that is not the default.

    Args:
        protocol: how judges train.
        model: the network, where it is not the ConvNet.
        model_on: the data sets that the network is for; empty: all.
        whiten: whitenings, each with the cells it is for.
    """

    protocol: str = ""
    model: str = ""
    model_on: tuple[str, ...] = ()
    whiten: Mapping[str, Cells] = field(default_factory=dict)

    def options(self, data: str, ipc: int) -> dict[str, str]:
        """Return them for a cell, as the options that say so."""
        found = {
            "model": self.model if not self.model_on or data in self.model_on else "",
            "protocol": self.protocol,
            "whiten": next((kind for kind, cells in self.whiten.items() if ipc in cells.get(data, ())), ""),
        }
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class MethodFamily:
    """Methods of one kind, by name, as one module says all there is of them.

    What follows the first part may be of shared methods (``CORE_METHODS``) too.

    Args:
        methods: what it adds to the shared ones, with published settings.
        presets: by data set name, methods whose settings differ there: published ones, and short runs for the 8 x 8
            digits, for which none exist.
        reduced: what they do on images of 28 x 28 or 32 x 32 in minutes of one CPU core, with width 32.
        reduced_colour: the same for ten classes in colour, where that differs.
        conditions: what published numbers belong to.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Method]] = field(default_factory=dict)
    reduced: Mapping[str, Method] = field(default_factory=dict)
    reduced_colour: Mapping[str, Method] = field(default_factory=dict)
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
