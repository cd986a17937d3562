"""One method for a person to read: what it is, what its settings are by budget, and which options it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from mmdistill.commands.assigned import spelled
from mmdistill.config import WITHOUT_TEXT, DistillConfig
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.method import Method
from mmdistill.names import as_option, canonical, unknown_data, unknown_name
from mmdistill.registry import DOMAIN_PACKAGES, OF_SOME_DOMAINS, Domain, domain_methods, domain_of, get_method
from mmdistill.reporting.report import optimizer_in_words
from mmdistill.settings import Settings, read_in_closed_form

SHOWN_BUDGETS = {"ipc": (1, 10, 50), "nodes": (35, 70, 140), "users": (50, 500)}
"""The budgets, by what they count, that settings are shown for: those of published tables."""
ALWAYS = ("steps", "real_batch", "init")
"""Settings that are shown even where they have their usual values."""
USUAL = "also read, at defaults"
OPTIONS = frozenset(entry.name for entry in fields(DistillConfig))


def of_data(domains: Sequence[Domain], data: str) -> list[Domain]:
    """Return the domain of a data set, or of a file or folder; where it is not clear which reads that, all of these.

    Raises:
        ConfigError: none of these has it.
    """
    try:
        own = domain_of(data).name
    except ConfigError:
        if not users_path(data).exists():
            raise
        return list(domains)  # a table, say, whose columns are still to be named
    found = [domain for domain in domains if domain.name == own]
    if not found:
        raise unknown_data("data set", data, [own for domain in domains for own in domain.datasets])
    return found


def having(domains: Sequence[Domain], name: str, data: str) -> list[Domain]:
    """Return the domains that have a method.

    Raises:
        UnknownNameError: none has it.
    """
    known = [{**domain_methods(domain), **domain.presets.get(canonical(data), {})} for domain in domains]
    found = [domain for domain, methods in zip(domains, known, strict=True) if canonical(name) in methods]
    if not found:
        methods = dict.fromkeys(own for methods in known for own in methods)
        raise unknown_name("domain or method", name, [*DOMAIN_PACKAGES, *methods])
    return found


def method_facts(domain: Domain, name: str, data: str) -> dict[str, str]:
    """Return what there is to say of a method of a domain, by what it is of.

    Args:
        domain: that has it.
        name: the method's.
        data: the data set whose settings are told; empty: those of data that have none of their own.
    """
    key, data = canonical(name), canonical(data)
    method, budgets = get_method(domain, key, data), SHOWN_BUDGETS[domain.budget]
    others = [own for own, methods in domain.presets.items() if key in methods and own != data]
    short = ["all data" if own == "*" else own for own, methods in domain.reduced.items() if key in methods]
    facts = {
        key: f"{method.title}: {method.summary}",
        "source": method.source,
        "Table 1": " | ".join(domain.taxonomy.get(key, ())),
        "stored as": method.storage,
        "labels": method.label,
        "judged by": method.judge,
        "published for": _by_budget(
            domain, {budget: _options(domain.conditions(key, data, budget)) for budget in budgets}
        ),
        **_settings(domain, method),
        "other settings": f"with --data {', '.join(others)}" if others else "",
        "short schedule": f"--schedule reduced, for {', '.join(short)}" if short and data not in short else "",
    }
    if data in short:
        own = _settings(domain, get_method(domain, key, data, "reduced"))
        changed = {f"  {name}": value for name, value in own.items() if value != facts.get(name) and name != USUAL}
        facts |= {"short schedule": "--schedule reduced, which differs in:", **changed}
    return {name: value for name, value in facts.items() if value}


def _options(given: Mapping[str, str]) -> str:
    return " ".join(f"--{option} {value}" for option, value in given.items())


def _settings(domain: Domain, method: Method) -> dict[str, str]:
    """Return a method's settings by the option that changes each; in one those that it reads at their usual values."""
    found = {budget: method.settings(budget) for budget in SHOWN_BUDGETS[domain.budget]}
    usual, shown, plain = Settings(steps=0), dict[str, str](), list[str]()
    for group in dict.fromkeys(group for own in found.values() for group in own.optimizers):
        specs = {budget: own.optimizers.get(group) for budget, own in found.items()}
        told = {budget: "" if spec is None else optimizer_in_words(asdict(spec)) for budget, spec in specs.items()}
        shown[_optimizer_of(group, method)] = _by_budget(domain, told)
    for name in _read(domain, method):
        values = _by_budget(domain, {budget: spelled(getattr(own, name)) for budget, own in found.items()})
        optional = name in OPTIONS
        if name in ALWAYS or values != spelled(getattr(usual, name, None)):
            shown[as_option(name) if optional else f"--set {name}"] = values
        else:
            plain.append(f"{as_option(name)} {values}" if optional else f"--set {name}={values}")
    return {**shown, USUAL: ", ".join(plain)}


def _optimizer_of(group: str, method: Method) -> str:
    """Return what a group's optimizer is called, with the option that changes its rate."""
    if group == "codes":
        return f"{'samples' if method.storage == 'raw' else group}' optimizer (--lr)"
    return f"{group}' optimizer" if group.endswith("s") else f"{group}'s optimizer"


def _read(domain: Domain, method: Method) -> list[str]:
    """Return the settings that runs with any of the budgets look at, in order; of a closed form those of its own."""
    budgets, foreign = SHOWN_BUDGETS[domain.budget], {name for name in OF_SOME_DOMAINS if name not in domain.options}
    own = method.settings(budgets[0])
    names = [entry.name for entry in fields(own) if entry.name not in (*WITHOUT_TEXT, "expert_folder", *foreign)]
    if method.solve is not None:
        read = read_in_closed_form(own, method.label)
        return [name for name in names if name in read]
    idle = set.intersection(*(set(method.ignored_settings(budget, names)) for budget in budgets))
    if method.make_objective(own).view != "classes":
        idle.add("syn_batch")  # which is refused there
    return [name for name in names if name not in idle]


def _by_budget(domain: Domain, values: Mapping[int, str]) -> str:
    """Return a value; where it differs between budgets, each with the budgets that have it."""
    having = {value: [str(budget) for budget, own in values.items() if own == value] for value in values.values()}
    if len(having) == 1:
        return next(iter(having))
    return "; ".join(f"{value or 'none'} at {domain.budget} {', '.join(own)}" for value, own in having.items())
