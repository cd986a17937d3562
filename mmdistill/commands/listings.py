"""What there is to choose from, printed for a person: methods, storages, protocols and data sets."""

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from mmdistill.commands.method_page import having, method_facts, of_data
from mmdistill.names import canonical
from mmdistill.registry import DOMAIN_PACKAGES, Domain, domain_methods, get_domain
from mmdistill.runtime import data_root

TABLE_1 = "Table 1 of the survey: what is matched | on which networks | how samples are stored | labels"
"""What the columns say of the row below a method."""
LEGEND = " (S: the synthetic set, T: the real training set; DSA: both augmented alike)"
NO_ROW = "no row of its own in Table 1"


def methods_command(
    name: str | None = None, domain: str | None = None, data: str | None = None, *, long: bool = False
) -> None:
    """List the methods of domains, or say what one method is.

    Args:
        name: a domain or a method; None: of all domains.
        domain: one; None: all, or those that have the method.
        data: a data set, whose domain alone counts and whose settings of a method are shown.
        long: name departures from the sources too, and say which methods have no row in the survey's Table 1.
    Raises:
        UnknownNameError: no such domain or method.
        ConfigError: no such data set.
    """
    method = name if name is not None and canonical(name) not in DOMAIN_PACKAGES else None
    asked = [one for one in (domain, None if method else name) if one is not None]
    domains = [get_domain(one) for one in asked or DOMAIN_PACKAGES]
    if data is not None:
        domains = of_data(domains, data)
    if method is None:
        _list(domains, long)
        return
    for found in having(domains, method, data or ""):
        print(f"{found.name} (budget: --{found.budget}{f', --data {data}' if data else ''})")
        facts = method_facts(found, method, data or "")
        for told, value in facts.items():
            print(_filled(f"  {told:{max(map(len, facts))}}  ", value))


def _list(domains: Sequence[Domain], long: bool) -> None:
    """List methods, a line each and one for their row in the survey's Table 1; at length, all that is said of them."""
    show = entry if long else short_entry
    for found in domains:
        begun = f"; start with {found.first}" if found.first else ""
        print(f"{found.name} (budget: --{found.budget}{begun})")
        if found.taxonomy:
            print(f"  {TABLE_1}{LEGEND if long else ''}")
        for key, method in domain_methods(found).items():
            source = method.source if long else re.split(r" \(|; ", method.source)[0]
            cited = f" [{source}]" if source else ""
            said = f"{method.title}: {method.summary}"
            print(entry(key, said + cited) if long else short_entry(key, said, end=cited))
            if key in found.taxonomy:
                print(show("", f"Table 1: {' | '.join(found.taxonomy[key])}"))
            elif found.taxonomy and long:
                print(show("", NO_ROW))
        for key, storage in found.parameterizations.items():
            print(show(key, storage.summary, "--parameterization "))
        for stem, family in found.families.items():
            print(show(f"{stem}-N", family.summary, "--parameterization "))
        if found.protocols and not long:
            print(_filled("  --protocol ", " | ".join(found.protocols)))
        for key, line in found.protocols.items() if long else ():
            print(entry(key, line, "--protocol "))
    if not long:
        print("in full, with departures from the papers: mmdistill methods --long; one method: mmdistill methods NAME")


def short_entry(name: str, text: str, option: str = "", end: str = "") -> str:
    """Return an entry of a list in a line; on a terminal the text is cut where it is wider than that.

    Args:
        name: of the entry.
        text: what is said of it.
        option: the option that takes the name, where there is one.
        end: what stays behind the text, cut or not.
    """
    start = f"  {option}{name:22} "
    if not sys.stdout.isatty():
        return start + text + end
    width = max(shutil.get_terminal_size().columns - len(start) - len(end), 24)
    return start + textwrap.shorten(text, width, placeholder=" ...") + end


def entry(name: str, text: str, option: str = "") -> str:
    """Return an entry of a list, a line; on a terminal as many as its width takes, below one another.

    Args:
        name: of the entry.
        text: what is said of it.
        option: the option that takes the name, where there is one.
    """
    return _filled(f"  {option}{name:22} ", text)


def _filled(start: str, text: str) -> str:
    """Return a text behind what it is of; on a terminal in as many lines as its width takes, below one another."""
    if not sys.stdout.isatty():
        return start + text
    width = max(shutil.get_terminal_size().columns, len(start) + 40)
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


def data_command() -> None:
    """List the data sets, a line each."""
    for name in DOMAIN_PACKAGES:
        found = get_domain(name)
        print(f"{found.name} (budget: --{found.budget})")
        for key, line in found.datasets.items():
            print(entry(key, line))
        print(entry("PATH", found.accepted))
        if found.imports is not None:
            print(entry("PATH to import", found.imports.accepted))
    print(f"what is to be brought goes below {data_root()} (MMDISTILL_DATA); the rest is downloaded when first used")
