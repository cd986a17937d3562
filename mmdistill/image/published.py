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
    "frepo": "frepo",
    "rfad": "rfad",
    "kip": "kip",
    "kip-conv": "kip",
    "idc": "idc",
    "edd": "idc",
}
"""How judges train, where that is not the default protocol."""
MODEL_OF = {"frepo": "freponet-bn", "rfad": "convnet-w256-nn"}
"""The network, where it is not the ConvNet."""
_RIDGE: dict[str, tuple[int, ...]] = {"cifar10": (1, 10, 50), "cifar100": (1, 10, 50), "tiny-imagenet": (1, 10, 50)}
WHITENING_OF: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    **dict.fromkeys(("mtt", "ddpp"), ("mtt", {"cifar10": (1, 10), "cifar100": (1, 50)})),
    "ftd": ("mtt", {"cifar10": (1, 10), "cifar100": (1, 10, 50)}),
    "haba": ("mtt", {"cifar10": (1, 10, 50), "cifar100": (1, 50)}),
    "tesla": ("mtt", {"cifar10": (10,), "cifar100": (1, 50)}),
    "frepo": ("frepo", _RIDGE),
    **dict.fromkeys(("rfad", "kip", "kip-conv"), ("kip", _RIDGE)),
}
"""The whitening, and of which data sets at which ipc; where there is no command of TESLA's or HaBa's, MTT's."""


def conditions(method: str, data: str, ipc: int) -> dict[str, str]:
    """Return the options, by name, that published numbers of a method belong to, where they are not the default ones.

    Args:
        method: its name.
        data: the data set's name; for digits nothing is published.
        ipc: images per class.
    """
    if data == "digits":
        return {}
    whitening, at = WHITENING_OF.get(method, ("", {}))
    found = {
        "model": MODEL_OF.get(method, ""),
        "protocol": PROTOCOL_OF.get(method, ""),
        "whiten": whitening if ipc in at.get(data, ()) else "",
    }
    return {name: value for name, value in found.items() if value}
