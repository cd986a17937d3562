"""Look-up of domains, data sets and methods by name; a domain is imported when it is first needed."""

from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mmdistill.choices import Schedule as Schedule
from mmdistill.choices import known_selections
from mmdistill.errors import ConfigError, UnknownNameError
from mmdistill.exporters import Exporter
from mmdistill.files.hub import located_on_hub, on_hub
from mmdistill.files.paths import users_path
from mmdistill.importers import Importer
from mmdistill.method import Method, Storage
from mmdistill.names import canonical, in_words, unknown_data, unknown_name
from mmdistill.task import Batch, BudgetKind, Task, require_task

Writer = Callable[[Task, Batch, Path], list[Path]]
"""Writes a batch of a task into a folder; returns the files' paths."""
DOMAIN_PACKAGES: dict[str, str] = {
    "image": "mmdistill.image",
    "graph": "mmdistill.graph",
    "graph-set": "mmdistill.graph.sets",
    "text": "mmdistill.text",
    "recsys": "mmdistill.recsys",
}
"""Modules that export a ``DOMAIN``, by its name; a script may add its own."""
SHIPPED = frozenset(DOMAIN_PACKAGES)
"""The domains of this package."""

EVERYWHERE = ("width", "device", "judge_epochs", "seed")
"""Options of tasks of every domain."""
OF_SOME_TASKS = (
    *("model", "text_column", "label_column", "user_column", "item_column", "rating_column", "time_column"),
    *("min_rating", "split_by", "encoder", "length", "judge_batch", "judge_precision", "protocol", "whiten"),
    *("mirror", "size", "split", "inductive", "teacher"),
)
"""Options of tasks of the domains whose ``options`` name them."""
TASK_OPTIONS = (*EVERYWHERE, *OF_SOME_TASKS)
"""All options of tasks, by the same names on the command line and in Python."""
OF_SOME_DOMAINS = (*OF_SOME_TASKS, "augment", "interactions_per_user")
"""All options that only some domains take; the last two are settings of methods."""


class Row(NamedTuple):
    """A method's row in the survey's Table 1.

    Args:
        objective: what is matched.
        network: how the networks for matching are updated.
        parameterization: how samples are stored, and whether they are augmented while matching (DSA).
        label: the samples' labels.
    """

    objective: str
    network: str
    parameterization: str
    label: str


class StorageFamily(NamedTuple):
    """Ways of storing samples whose names differ in a number at the end.

    Args:
        make: returns the way for a number.
        summary: one line, which calls the number N.
    """

    make: Callable[[int], Storage]
    summary: str


@dataclass(frozen=True)
class Domain:
    """One kind of data for the command line and the report; each domain package exports one as ``DOMAIN``.

    Args:
        name: ``image``, ``graph``, ``graph-set``, ``text`` or ``recsys``.
        budget: how synthetic size is counted.
        datasets: data set names with one line each.
        accepts: whether a user's file or folder looks like this domain's data.
        make_task: builds the task for a data set name or path; its keywords are the options that were given, of
            :data:`EVERYWHERE` and of the :data:`OF_SOME_TASKS` in ``options``. A device and a seed are always given.
        methods: its methods by name, in the order in which they are listed.
        first: the methods to start with, in words; empty if there is only one.
        draw: draws a synthetic batch for the report into a folder and returns the pictures' paths.
        exports: by format name, writes a set for other tools, see :func:`~mmdistill.exporters.exporter`.
        imports: reads sets of other tools; None: no sets can be imported.
        accepted: one line on the user's files and folders that it reads.
        claims: whether a name outside of its lists (``hf:NAME``, say) is this domain's.
        presets: by data set name, methods with other settings there.
        reduced: by data set name, methods with short schedules for a CPU; '*' is for data without an entry.
        parameterizations: by name, ways of storing samples that any method can use instead of its own.
        families: ways of storing samples with a number at the end of their name, by the name before it.
        storages: by data set name, ways of storing samples with other settings there.
        tables: file endings of the tables whose columns are named by options.
        options: the options in :data:`OF_SOME_DOMAINS` that it takes.
        instead: alternatives, in words, to options that it does not take.
        protocols: ways of training judges by name, a line each.
        taxonomy: by method name, the rows of Table 1.
        networks: by method name, the default network of the commands, if it differs from the domain's.
        conditions: the options, by name, behind the published numbers of a method, a data set and a budget.
        shortcoming: why a path that is nearly this domain's data cannot be read, in words; empty for others.
        network_added: whether the network or judge of a name comes from a user's code, which may change.
        shipped: the names of the methods and ways of storing that it was created with.
    """

    name: str
    budget: BudgetKind
    datasets: Mapping[str, str]
    accepts: Callable[[Path], bool]
    make_task: Callable[..., Task]
    methods: MutableMapping[str, Method]
    draw: Writer
    first: str = ""
    exports: Mapping[str, Exporter] = field(default_factory=dict)
    imports: Importer | None = None
    accepted: str = "a file or folder of your own"
    claims: Callable[[str], bool] = lambda data: False
    presets: MutableMapping[str, dict[str, Method]] = field(default_factory=dict)
    reduced: MutableMapping[str, dict[str, Method]] = field(default_factory=dict)
    parameterizations: MutableMapping[str, Storage] = field(default_factory=dict)
    families: Mapping[str, StorageFamily] = field(default_factory=dict)
    storages: Mapping[str, Mapping[str, Storage]] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    protocols: Mapping[str, str] = field(default_factory=dict)
    taxonomy: Mapping[str, Row] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    conditions: Callable[[str, str, int], Mapping[str, str]] = lambda method, data, budget: {}
    shortcoming: Callable[[Path], str] = lambda path: ""
    network_added: Callable[[str], bool] = lambda name: False
    shipped: frozenset[str] = field(init=False, default=frozenset())

    def __repr__(self) -> str:
        """Return the domain's name and its numbers of data sets and methods in one line."""
        return f"Domain({self.name}, {len(self.datasets)} data sets, {len(self.methods)} methods)"

    def __post_init__(self) -> None:
        """Record the names of methods and ways of storing before a user's code adds others."""
        object.__setattr__(self, "shipped", frozenset({*self.methods, *self.parameterizations}))


def get_domain(name: str) -> Domain:
    """Return a domain by name, importing its package.

    Raises:
        ConfigError: an unknown name, or a package that exports no Domain.
    """
    key = canonical(name)
    if key not in DOMAIN_PACKAGES:
        raise UnknownNameError(
            f"{unknown_name('domain', name, DOMAIN_PACKAGES)}; a task of a domain of your own takes methods as Method "
            f"values, or by name once mmdistill.registry.DOMAIN_PACKAGES[{key!r}] names the module whose DOMAIN lists "
            "them"
        )
    domain = import_module(DOMAIN_PACKAGES[key]).DOMAIN
    if not isinstance(domain, Domain):
        raise ConfigError(f"{DOMAIN_PACKAGES[key]} exports no Domain")
    return domain


def takers(option: str) -> list[str]:
    """Return the names of the domains that take an option; all domains are imported."""
    return [name for name in DOMAIN_PACKAGES if option in get_domain(name).options]


def domain_of(
    data: str, options: Collection[str] = (), budget: BudgetKind | None = None, method: str | None = None
) -> Domain:
    """Return the domain of a data set name or of a path.

    A table that names images is of images if their domain takes all that is given; what follows is of other tables.

    Args:
        data: the name or path.
        options: the given options of some domains: a table, or a folder of tables, belongs to the domain that takes
            those that name columns; without these, a table belongs to the only domain of tables that takes all.
        budget: the unit of the given budget: failing that, a table belongs to the only domain with this unit.
        method: the given method: failing that, a table, or a path that several domains accept, belongs to the only
            domain with this method. Otherwise a domain from a user's code comes first, as the more special one.
    Raises:
        ConfigError: neither a known name nor an existing path, or a path that no domain reads.
    """
    for name in DOMAIN_PACKAGES:  # import no domain in vain: each takes seconds
        domain = get_domain(name)
        if _knows(domain, data):
            return domain
    domains = [get_domain(name) for name in DOMAIN_PACKAGES]
    path = users_path(data)
    if not path.exists():
        raise unknown_data("data set", data, [name for domain in domains for name in domain.datasets])
    by_method = _only([domain for domain in domains if canonical(method or "") in domain.methods])
    accepting = [domain for domain in domains if domain.accepts(path)]
    columns = {option for option in options if option.endswith("_column")}
    by_options = [domain for domain in domains if columns and columns <= {*domain.options}]
    fitting = [each for each in accepting if {*options} <= {*each.options} and budget in (None, each.budget)]
    by_content = any(domain.name in SHIPPED and not domain.tables for domain in fitting)
    if path.is_file():
        of_tables = [domain for domain in domains if domain.tables and not by_content]
        only_shipped = all(domain.name in SHIPPED for domain in accepting)
        told = (
            by_options
            or _only([domain for domain in of_tables if options and {*options} <= {*domain.options}])
            or _only([domain for domain in domains if domain.budget == budget and not by_content])
            or by_method
            or _only([domain for domain in of_tables if domain.budget == budget and only_shipped])
        )
        if told and path.name.lower().removesuffix(".gz").endswith(told[0].tables):
            return told[0]
    elif by_options and all(domain.tables for domain in accepting):
        return by_options[0]
    if accepting:
        return min(accepting, key=lambda domain: (domain not in by_method, domain.name in SHIPPED))
    shortcoming = next(filter(None, (domain.shortcoming(path) for domain in domains)), "")
    raise ConfigError(
        shortcoming or f"no domain reads {data!r}; see 'mmdistill data' for the accepted files and folders"
    )


def _only(domains: list[Domain]) -> list[Domain]:
    """Return the list if it has exactly one domain, else an empty list."""
    return domains if len(domains) == 1 else []


def located(data: str) -> str:
    """Return a data set's canonical name, or an absolute path, which a run finds from any folder.

    Names that a domain claims (``hf:NAME``) stay as they are; those of a folder (``hf:FOLDER``) are paths.
    """
    if on_hub(data):
        return located_on_hub(data)
    for domain in map(get_domain, DOMAIN_PACKAGES):
        if _knows(domain, data):
            return canonical(data) if canonical(data) in domain.datasets else data
    path = users_path(data)
    return str(path.absolute()) if path.exists() else data


def _knows(domain: Domain, data: str) -> bool:
    """Return whether ``data`` is the name of one of a domain's data sets."""
    return canonical(data) in domain.datasets or domain.claims(data)


def _methods_for(domain: Domain, data: str) -> dict[str, Method]:
    """Return the methods of a domain, with a data set's own settings and methods."""
    return {**domain.methods, **domain.presets.get(canonical(data), {})}


def method_names(task: Task) -> list[str]:
    """Return the names of the methods that :func:`~mmdistill.distill` takes for a task.

    They are the methods in ``mmdistill methods KIND`` and those that a script adds, without methods for another kind of
    samples than the task's (of texts: points, or token embeddings). A method may still need more than the task's
    network offers; it then raises an error.

    Raises:
        ConfigError: not a task, or one of a domain that is not registered, which takes only :class:`Method` values.
    """
    require_task(task)
    info = task.describe()
    return [name for name, method in _methods_for(get_domain(info.domain), info.data).items() if _suits(method, task)]


def _suits(method: Method, task: Task) -> bool:
    try:
        method.requires(task)
    except ConfigError:
        return False
    return True


def has_method(name: str) -> bool:
    """Return whether any domain has a method of a name; all domains are imported if none has."""
    key = canonical(name)
    return any(
        key in domain.methods or any(key in methods for methods in domain.presets.values())
        for domain in map(get_domain, DOMAIN_PACKAGES)
    )


def get_method(domain: Domain, name: str, data: str = "", schedule: Schedule = "published") -> Method:
    """Return a method by name in a domain, with the settings for a data set.

    The error for an unknown name suggests the nearest, or tells which kinds of data have the method.

    Args:
        domain: of the data.
        name: the method's.
        data: the data set's name, for settings of its own.
        schedule: ``published`` settings, or ``reduced`` ones for a CPU.
    Raises:
        ConfigError: an unknown method, the name of a baseline, or a method without a reduced schedule.
    """
    methods = _methods_for(domain, data)
    key = canonical(name)
    if key not in methods:
        kinds = [other for other in DOMAIN_PACKAGES if key in get_domain(other).methods]
        if kinds:
            raise ConfigError(
                f"{key} is a method for {in_words(kinds)} data, and {data or 'this'} is {domain.name} data "
                f"(whose methods are: {', '.join(sorted(methods))})"
            )
        if key in (*known_selections(), "whole"):
            alone = f"; selection(task, {key!r}, ...) gives them as a set in Python" if key != "whole" else ""
            raise ConfigError(
                f"{key} is a baseline of real samples and no method: name it beside a method (--baselines {key}, "
                f"baselines=[{key!r}] in Python){alone}"
            )
        raise unknown_name(f"method for {domain.name} data", name, methods, scripts="a method")
    if schedule == "published":
        return methods[key]
    reduced = domain.reduced.get(canonical(data), domain.reduced.get("*", {}))
    if key not in reduced:
        known = f"methods that have: {', '.join(sorted(reduced))}"
        if not reduced:
            known = f"{domain.name} data that have: {', '.join(sorted(domain.reduced)) or 'none'}"
        raise ConfigError(
            f"{methods[key].title} has no reduced schedule for {data or domain.name!r} ({known}); leave --schedule "
            "out, and set --steps and --real-batch yourself"
        )
    return reduced[key]


def get_parameterization(domain: Domain, name: str, data: str = "") -> Storage:
    """Return a way of storing samples by name, with the settings for a data set.

    Raises:
        ConfigError: an unknown name (the nearest is suggested), or a domain with only its methods' own ways.
    """
    if not domain.parameterizations:
        raise ConfigError(f"{domain.name} data are stored as each method does it; leave the parameterization out")
    storages = {**domain.parameterizations, **domain.storages.get(canonical(data), {})}
    key = canonical(name)
    stem, _, number = key.rpartition("-")
    if stem in domain.families and number.isascii() and number.isdecimal() and int(number):
        key = f"{stem}-{int(number)}"
        storages = {key: domain.families[stem].make(int(number)), **storages}
    if key not in storages:
        known = [*storages, *(f"{stem}-N" for stem in domain.families)]
        raise unknown_name(f"parameterization of {domain.name} data", name, known, scripts="one")
    return replace(storages[key], name=key)
