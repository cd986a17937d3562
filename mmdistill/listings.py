"""What there is to choose from, printed for a person: methods, storages, protocols and data sets."""

from mmdistill.registry import DOMAIN_PACKAGES, domain_methods, get_domain
from mmdistill.report import entry
from mmdistill.runtime import data_root

TABLE_1 = (
    "Table 1 of the survey: what is matched | on which networks | how samples are stored | labels "
    "(S: the synthetic set, T: the real training set; DSA: both augmented alike)"
)
"""What the columns of a method's row say, for ``mmdistill methods``."""
NO_ROW = "no row of its own in Table 1"


def methods_command(domain: str | None) -> None:
    """List the methods, a line each, with their rows in the survey's Table 1."""
    for name in [domain] if domain else DOMAIN_PACKAGES:
        found = get_domain(name)
        print(f"{found.name} (budget: --{found.budget})")
        if found.taxonomy:
            print(f"  {TABLE_1}")
        for key, method in domain_methods(found).items():
            source = f" [{method.source}]" if method.source else ""
            print(entry(key, f"{method.title}: {method.summary}{source}"))
            if found.taxonomy:
                row = f"Table 1: {' | '.join(found.taxonomy[key])}" if key in found.taxonomy else NO_ROW
                print(entry("", row))
        for key, storage in found.parameterizations.items():
            print(entry(key, storage.summary, "--parameterization "))
        for stem in found.families:
            print(entry(f"{stem}-N", "images of N x N tiles, for any N", "--parameterization "))
        for key, line in found.protocols.items():
            print(entry(key, line, "--protocol "))


def data_command() -> None:
    """List the data sets, a line each."""
    for name in DOMAIN_PACKAGES:
        found = get_domain(name)
        print(f"{found.name} (budget: --{found.budget})")
        for key, line in found.datasets.items():
            print(entry(key, line))
        print(entry("PATH", found.accepted))
    print(f"what is to be brought goes below {data_root()} (MMDISTILL_DATA); the rest is downloaded when first used")
