"""Describe one method for a person: what it is, its settings for each budget, and the options that it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from mmdistill.commands.assigned import spelled
from mmdistill.config import WITHOUT_TEXT, DistillConfig
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.method import Method
from mmdistill.names import as_option, canonical, unknown_data, unknown_name
from mmdistill.registry import DOMAIN_PACKAGES, OF_SOME_DOMAINS, Domain, domain_of, get_method
from mmdistill.reporting.report import optimizer_in_words
from mmdistill.settings import Settings, read_in_closed_form

SHOWN_BUDGETS = {"ipc": (1, 10, 50), "nodes": (35, 70, 140), "users": (50, 500)}
"""The budgets for which settings are shown, by unit: those of published tables."""
ALWAYS = ("steps", "real_batch", "init")
"""Settings that are shown even at their default values."""
USUAL = "also read, at defaults"
OPTIONS = frozenset(entry.name for entry in fields(DistillConfig))


def domains_reading(domains: Sequence[Domain], data: str) -> list[Domain]:
    """Return the domain that reads a data set, file or folder; all domains for a path that several might read.

    Raises:
        ConfigError: none of the domains has it.
    """
    try:
        name = domain_of(data).name
    except ConfigError:
        if not users_path(data).exists():
            raise
        return list(domains)  # such as a table whose columns the user has not named yet
    reading = [domain for domain in domains if domain.name == name]
    if not reading:
        raise unknown_data("data set", data, [dataset for domain in domains for dataset in domain.datasets])
    return reading


def domains_having(domains: Sequence[Domain], name: str, data: str) -> list[Domain]:
    """Return the domains that have a method.

    Raises:
        UnknownNameError: none has it.
    """
    methods_of = [{**domain.methods, **domain.presets.get(canonical(data), {})} for domain in domains]
    having = [domain for domain, methods in zip(domains, methods_of, strict=True) if canonical(name) in methods]
    if not having:
        names = dict.fromkeys(key for methods in methods_of for key in methods)
        raise unknown_name("domain or method", name, [*DOMAIN_PACKAGES, *names])
    return having


def method_facts(domain: Domain, name: str, data: str) -> dict[str, str]:
    """Return facts of a method as texts by their labels: sources, settings, options.

    Args:
        domain: that has the method.
        name: of the method.
        data: the data set whose settings to show; empty: those of data without settings of their own.
    """
    key, data = canonical(name), canonical(data)
    method, budgets = get_method(domain, key, data), SHOWN_BUDGETS[domain.budget]
    others = [dataset for dataset, methods in domain.presets.items() if key in methods and dataset != data]
    short = ["all data" if dataset == "*" else dataset for dataset, methods in domain.reduced.items() if key in methods]
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
        reduced = _settings(domain, get_method(domain, key, data, "reduced"))
        changed = {f"  {name}": value for name, value in reduced.items() if value != facts.get(name) and name != USUAL}
        facts |= {"short schedule": "--schedule reduced, which differs in:", **changed}
    return {name: value for name, value in facts.items() if value}


def _options(values: Mapping[str, str]) -> str:
    return " ".join(f"--{option} {value}" for option, value in values.items())


def _settings(domain: Domain, method: Method) -> dict[str, str]:
    """Return a method's settings by the option that sets each; those at their defaults together, under ``USUAL``."""
    settings_at = {budget: method.settings(budget) for budget in SHOWN_BUDGETS[domain.budget]}
    defaults, shown, at_defaults = Settings(steps=0), dict[str, str](), list[str]()
    for group in dict.fromkeys(group for settings in settings_at.values() for group in settings.optimizers):
        specs = {budget: settings.optimizers.get(group) for budget, settings in settings_at.items()}
        words = {budget: "" if spec is None else optimizer_in_words(asdict(spec)) for budget, spec in specs.items()}
        shown[_optimizer_label(group, method)] = _by_budget(domain, words)
    for name in _settings_read(domain, method):
        values = {budget: spelled(getattr(settings, name)) for budget, settings in settings_at.items()}
        value = _by_budget(domain, values)
        has_option = name in OPTIONS
        if name in ALWAYS or value != spelled(getattr(defaults, name, None)):
            shown[as_option(name) if has_option else f"--set {name}"] = value
        else:
            at_defaults.append(f"{as_option(name)} {value}" if has_option else f"--set {name}={value}")
    return {**shown, USUAL: ", ".join(at_defaults)}


def _optimizer_label(group: str, method: Method) -> str:
    """Return the label of a group's optimizer, with the option that sets its learning rate."""
    if group == "codes":
        return f"{'samples' if method.storage == 'raw' else group}' optimizer (--lr)"
    return f"{group}' optimizer" if group.endswith("s") else f"{group}'s optimizer"


def _settings_read(domain: Domain, method: Method) -> list[str]:
    """Return the names of the settings that a method reads at any of the shown budgets, in order."""
    budgets, foreign = SHOWN_BUDGETS[domain.budget], {name for name in OF_SOME_DOMAINS if name not in domain.options}
    settings = method.settings(budgets[0])
    names = [entry.name for entry in fields(settings) if entry.name not in (*WITHOUT_TEXT, "expert_folder", *foreign)]
    if method.solve is not None:
        read = read_in_closed_form(settings, method.label)
        return [name for name in names if name in read]
    ignored = set.intersection(*(set(method.ignored_settings(budget, names)) for budget in budgets))
    if method.make_objective(settings).view != "classes":
        ignored.add("syn_batch")  # flat objectives refuse it
    return [name for name in names if name not in ignored]


def _by_budget(domain: Domain, values: Mapping[int, str]) -> str:
    """Return the value that all budgets share, or else each value with its budgets."""
    budgets_of = {
        value: [str(budget) for budget, other in values.items() if other == value] for value in values.values()
    }
    if len(budgets_of) == 1:
        return next(iter(budgets_of))
    parts = (f"{value or 'none'} at {domain.budget} {', '.join(budgets)}" for value, budgets in budgets_of.items())
    return "; ".join(parts)
