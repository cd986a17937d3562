"""From a configuration to the task and the method that it names."""

from mmdistill.config import DistillConfig, require_data_and_method
from mmdistill.errors import ConfigError
from mmdistill.method import LABELS, Method
from mmdistill.registry import Domain, TaskOptions, canonical, domain_of, get_method, get_parameterization
from mmdistill.runtime import choose_device
from mmdistill.task import Task

OPTIONS_OF_DOMAINS = {
    "protocol": "images",
    "whiten": "images",
    "size": "images",
    "augment": "images",
    "encoder": "texts",
    "length": "texts",
    "text_column": "texts",
    "label_column": "texts",
    "interactions_per_user": "interactions",
    "inductive": "graphs",
}
"""Options that mean something to the domains that list them, with what they are for."""


def make_task(config: DistillConfig, device: str | None = None) -> tuple[Domain, Task]:
    """Build the task that a configuration names.

    Raises:
        ConfigError: an option that means nothing to the data's domain.
    """
    data, _ = require_data_and_method(config)
    domain = domain_of(data)
    for option, kind in OPTIONS_OF_DOMAINS.items():
        if getattr(config, option) is not None and option not in domain.options:
            raise ConfigError(
                f"--{option.replace('_', '-')} is for {kind}, and {data!r} is {domain.name} data; leave it out"
            )
    options = TaskOptions(
        model=config.model,
        width=config.width,
        device=str(choose_device(device or config.device)),
        text_column=config.text_column,
        label_column=config.label_column,
        encoder=config.encoder,
        length=config.length,
        judge_epochs=config.judge_epochs,
        judge_batch=config.judge_batch,
        protocol=config.protocol,
        whiten=config.whiten,
        size=config.size,
        inductive=config.inductive,
        seed=config.seed,
    )
    return domain, domain.make_task(data, options)


def chosen_method(config: DistillConfig, domain: Domain) -> Method:
    """Return the configured method with its overrides."""
    data, name = require_data_and_method(config)
    method = get_method(domain, name, data, config.schedule)
    storage = None if config.parameterization is None else get_parameterization(domain, config.parameterization, data)
    label = None if config.label is None else LABELS[config.label]
    settings = config.overrides() | ({} if config.lr is None else {"lr": config.lr})
    return method.customised(storage, label, settings)


def unmet_conditions(config: DistillConfig, domain: Domain, budget: int) -> dict[str, str]:
    """Return the options that published numbers belong to and that a run with published settings does not have."""
    data, name = require_data_and_method(config)
    if config.schedule != "published" or canonical(data) not in domain.datasets:
        return {}
    wanted = domain.conditions(canonical(name), canonical(data), budget)
    return {option: value for option, value in wanted.items() if _parts(config, option) != set(value.split("-"))}


def _parts(config: DistillConfig, option: str) -> set[str]:
    """Return the parts of a name that a user has chosen; a width may stand in a model's or beside it."""
    chosen = getattr(config, option)
    width = {f"w{config.width}"} if option == "model" and config.width is not None else set()
    return width | (set() if chosen is None else set(canonical(chosen).split("-")))
