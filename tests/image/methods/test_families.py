"""Families of image methods: all are listed, none names another's methods, and each method has all that runs need."""

from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from itertools import chain
from pkgutil import iter_modules

from mmdistill.image import DOMAIN, methods
from mmdistill.image.methods import METHOD_FAMILIES
from mmdistill.image.methods.family import MethodFamily


def test_the_family_of_each_module_is_listed() -> None:
    modules = [import_module(f"{methods.__name__}.{found.name}") for found in iter_modules(methods.__path__)]
    defined = [[value for value in vars(module).values() if isinstance(value, MethodFamily)] for module in modules]
    assert {id(family) for families in defined for family in families} == {id(family) for family in METHOD_FAMILIES}
    for module, families in zip(modules, defined, strict=True):
        assert len(families) <= 1
        if families:
            assert list(vars(module).values())[-1] is families[0]  # at the end, below all that it has


def test_no_method_stands_in_two_families() -> None:
    def twice(tables: Iterable[Iterable[str]]) -> set[str]:
        return {name for name, times in Counter(chain.from_iterable(tables)).items() if times > 1}

    for part in ("methods", "reduced", "reduced_colour", "conditions"):
        assert not twice(getattr(family, part) for family in METHOD_FAMILIES), part
    for data in DOMAIN.presets:
        assert not twice(family.presets.get(data, {}) for family in METHOD_FAMILIES), data


def test_families_name_methods_that_there_are() -> None:
    known = set(DOMAIN.methods)
    for family in METHOD_FAMILIES:
        tables = (*family.presets.values(), family.reduced, family.reduced_colour, family.conditions)
        assert {name for table in tables for name in table} <= known
        assert set(family.presets) <= set(DOMAIN.datasets)
        assert set(family.reduced_colour) <= set(family.reduced)


def test_every_method_has_a_reduced_schedule_and_short_runs_for_digits() -> None:
    known = set(DOMAIN.methods)
    for data, reduced in DOMAIN.reduced.items():
        assert set(reduced) == known, data
    assert set(DOMAIN.presets["digits"]) == known - {"random-soft"}  # which takes no steps
