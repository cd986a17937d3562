"""The commands that list what one can choose: methods, storages and protocols, and data sets."""

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from mmdistill.commands.method_page import domains_having, domains_reading, method_facts
from mmdistill.names import canonical
from mmdistill.registry import DOMAIN_PACKAGES, Domain, get_domain
from mmdistill.runtime import data_root

TABLE_1 = "Table 1 of the survey: what is matched | on which networks | how samples are stored | labels"
"""The columns of the row below a method."""
LEGEND = " (S: the synthetic set, T: the real training set; DSA: both augmented alike)"
NO_ROW = "no row of its own in Table 1"


def methods_command(
    name: str | None = None, domain: str | None = None, data: str | None = None, *, long: bool = False
) -> None:
    """List the methods of domains, or describe one method.

    Args:
        name: of a domain or a method; None: all methods.
        domain: the only domain to look at; None: all, or those that have the method.
        data: a data set: only its domain counts, and a method's settings are those for it.
        long: also name departures from the sources and the methods without a row in the survey's Table 1.
    Raises:
        UnknownNameError: there is no such domain or method.
        ConfigError: there is no such data set.
    """
    method = name if name is not None and canonical(name) not in DOMAIN_PACKAGES else None
    domain_names = [given for given in (domain, None if method else name) if given is not None]
    domains = [get_domain(given) for given in domain_names or DOMAIN_PACKAGES]
    if data is not None:
        domains = domains_reading(domains, data)
    if method is None:
        _list(domains, long)
        return
    for owner in domains_having(domains, method, data or ""):
        print(f"{owner.name} (budget: --{owner.budget}{f', --data {data}' if data else ''})")
        facts = method_facts(owner, method, data or "")
        for key, value in facts.items():
            print(_wrap(f"  {key:{max(map(len, facts))}}  ", value))


def _list(domains: Sequence[Domain], long: bool) -> None:
    """Print methods with their rows in the survey's Table 1, storages and protocols, in short or in full."""
    show = entry if long else short_entry
    for domain in domains:
        advice = f"; start with {domain.first}" if domain.first else ""
        print(f"{domain.name} (budget: --{domain.budget}{advice})")
        if domain.taxonomy:
            print(f"  {TABLE_1}{LEGEND if long else ''}")
        for key, method in domain.methods.items():
            source = method.source if long else re.split(r" \(|; ", method.source)[0]
            citation = f" [{source}]" if source else ""
            description = f"{method.title}: {method.summary}"
            print(entry(key, description + citation) if long else short_entry(key, description, end=citation))
            if key in domain.taxonomy:
                print(show("", f"Table 1: {' | '.join(domain.taxonomy[key])}"))
            elif domain.taxonomy and long:
                print(show("", NO_ROW))
        for key, storage in domain.parameterizations.items():
            print(show(key, storage.summary, "--parameterization "))
        for stem, family in domain.families.items():
            print(show(f"{stem}-N", family.summary, "--parameterization "))
        if domain.protocols and not long:
            print(_wrap("  --protocol ", " | ".join(domain.protocols)))
        for key, line in domain.protocols.items() if long else ():
            print(entry(key, line, "--protocol "))
    if not long:
        print("in full, with departures from the papers: mmdistill methods --long; one method: mmdistill methods NAME")


def short_entry(name: str, text: str, option: str = "", end: str = "") -> str:
    """Return an entry of a list as one line; on a terminal the text is cut to its width.

    Args:
        name: of the entry.
        text: its description.
        option: the option that takes the name; empty: none.
        end: follows the text, which is cut to leave room for it.
    """
    label = f"  {option}{name:22} "
    if not sys.stdout.isatty():
        return label + text + end
    width = max(shutil.get_terminal_size().columns - len(label) - len(end), 24)
    return label + textwrap.shorten(text, width, placeholder=" ...") + end


def entry(name: str, text: str, option: str = "") -> str:
    """Return an entry of a list as one line, or wrapped to the width of a terminal.

    Args:
        name: of the entry.
        text: its description.
        option: the option that takes the name; empty: none.
    """
    return _wrap(f"  {option}{name:22} ", text)


def _wrap(label: str, text: str) -> str:
    """Return a text behind its label, wrapped to the width of a terminal with the lines below one another."""
    if not sys.stdout.isatty():
        return label + text
    width = max(shutil.get_terminal_size().columns, len(label) + 40)
    return textwrap.fill(text, width, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False)


def data_command() -> None:
    """List the data sets, a line each."""
    for name in DOMAIN_PACKAGES:
        domain = get_domain(name)
        print(f"{domain.name} (budget: --{domain.budget})")
        for key, line in domain.datasets.items():
            print(entry(key, line))
        print(entry("PATH", domain.accepted))
        if domain.imports is not None:
            print(entry("PATH to import", domain.imports.accepted))
    print(f"what is to be brought goes below {data_root()} (MMDISTILL_DATA); the rest is downloaded when first used")
