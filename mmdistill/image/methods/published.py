"""What published numbers belong to beside a method's settings: the network, the whitening, how judges train."""

PROTOCOL_OF = {
    "dc": "dc",
    "egm": "dc",
    "cafe": "cafe",
    "mtt": "mtt",
    "ftd": "mtt",
    "ddpp": "mtt",
    "tesla": "mtt",
    "haba": "mtt",
    "datm": "datm",
    "pad": "datm",
    "frepo": "frepo",
    "rfad": "rfad",
    "kip": "kip",
    "kip-conv": "kip",
    "idc": "idc",
    "edd": "idc",
    "dance": "dance",
    "ncfm": "ncfm",
    "addmem": "addmem",
    "bptt": "addmem",
    "rcig": "rcig",
    "rded": "rded",
    "sre2l": "sre2l",
}
"""How judges train, where that is not the default protocol."""
MODEL_OF = {
    "frepo": "freponet-bn",
    "rfad": "convnet-w256-nn",
    "rcig": "freponet-softplus",
    "rded": "convnet-bn",
    "sre2l": "resnet18-bn",
}
"""The network, where it is not the ConvNet."""
MODEL_ON: dict[str, dict[str, tuple[str, ...]]] = {"ld": {"lenet": ("mnist",)}}
"""The network, where it is not the ConvNet, by method, each with the data sets it is for.

LD's on CIFAR (AlexCifarNet, of two convolutions with local response norm) is not built.
"""
Cells = dict[str, tuple[int, ...]]
"""Data sets with their images per class."""
_CIFAR: Cells = {"cifar10": (1, 10, 50), "cifar100": (1, 10, 50)}
_MTT: dict[str, Cells] = {"mtt": {"cifar10": (1, 10), "cifar100": (1, 50)}}
_DATM: Cells = {"cifar10": (1, 10, 50, 500, 1000), "cifar100": (1, 10, 50, 100), "tiny-imagenet": (1, 10, 50)}
_KIP: dict[str, Cells] = {"kip": _CIFAR}
WHITENING_OF: dict[str, dict[str, Cells]] = {
    "mtt": _MTT,
    "ddpp": _MTT,
    "ftd": {"mtt": {"cifar10": (1, 10), "cifar100": (1, 10, 50)}},
    "haba": {"mtt": {"cifar10": (2, 10, 11, 50, 51), "cifar100": (2, 50, 51)}},  # of as many bases, or one fewer
    "tesla": {"mtt": {"cifar10": (10,), "cifar100": (1, 50)}},
    "datm": {"mtt": _DATM},
    "pad": {"mtt": _DATM},
    "frepo": {"frepo": {**_CIFAR, "tiny-imagenet": (1, 10)}},
    "rcig": {"frepo": {**_CIFAR, "tiny-imagenet": (1, 10)}},
    "rfad": {"frepo": _CIFAR, "kip": {"svhn": (1, 10, 50)}},
    "kip": _KIP,
    "kip-conv": _KIP,
    "bptt": {"kip": {"cifar10": (1,)}},
    "rat-bptt": {"kip": {"cifar10": (10,), "cifar100": (1, 10)}},
}
"""Whitenings by method, each with the cells it is for; where there is no command of TESLA's or HaBa's, MTT's.

RFAD's code does not subtract the mean image, BPTT's and RaT-BPTT's do not standardise channels before, and FRePo's does
so by other deviations. RaT-BPTT's commands for Tiny-ImageNet do not whiten, but its code takes images that are.
"""


def conditions(method: str, data: str, ipc: int) -> dict[str, str]:
    """Return the options, by name, that published numbers of a method belong to, where they are not the default ones.

    Args:
        method: its name.
        data: the data set's name; for digits nothing is published.
        ipc: images per class.
    """
    if data == "digits":
        return {}
    whitenings = WHITENING_OF.get(method, {})
    models = MODEL_ON.get(method, {})
    found = {
        "model": next((name for name, places in models.items() if data in places), MODEL_OF.get(method, "")),
        "protocol": PROTOCOL_OF.get(method, ""),
        "whiten": next((kind for kind, cells in whitenings.items() if ipc in cells.get(data, ())), ""),
    }
    return {name: value for name, value in found.items() if value}
