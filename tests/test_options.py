"""Every option has its place: in one group of the help, and among those by which runs are told apart or not."""

from dataclasses import fields
from inspect import signature

import pytest

from mmdistill.commands.wording import GROUPS
from mmdistill.config import (
    ASIDE,
    BUDGETS,
    HOW_IT_RUNS,
    JUDGE_TRAINING,
    JUDGING_OPTIONS,
    SETTINGS,
    DistillConfig,
    EvaluateConfig,
)
from mmdistill.registry import DOMAIN_PACKAGES, EVERYWHERE, OF_SOME_DOMAINS, OF_SOME_TASKS, TASK_OPTIONS, get_domain
from mmdistill.reporting.judged import NOT_TOLD_APART
from mmdistill.text import text_task, token_task

OPTIONS = [entry.name for entry in fields(DistillConfig)]
APART = (
    *("method", "parameterization", "label", "schedule", "lr", "set", "precision", "deterministic", "split_seed"),
    *("model", "width", "encoder", "length", "protocol", "whiten", "size", "inductive", "split", "split_by"),
    "min_rating",
    *("text_column", "label_column", "user_column", "item_column", "rating_column", "time_column"),
)
"""What tells runs apart though no setting says it. A new option goes here, or to those that tell none apart."""


def test_every_option_is_in_one_group_of_the_help() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert {*OPTIONS, *ASIDE} <= {*grouped}


def test_every_option_tells_runs_apart_or_does_not() -> None:
    places = [set(NOT_TOLD_APART), set(SETTINGS) - set(HOW_IT_RUNS), set(APART)]
    for option in OPTIONS:
        assert sum(option in place for place in places) == 1, option
    assert set().union(*places) <= {*OPTIONS, *BUDGETS}


def test_how_a_run_is_judged_is_said_by_each_result() -> None:
    asked_again = {entry.name for entry in fields(EvaluateConfig)} & {*OPTIONS}
    by_name = {"protocol", "teacher"}  # scores are called by the one, and say which of the other
    assert {*JUDGING_OPTIONS} == asked_again - by_name - {"seed", "data", *HOW_IT_RUNS}


def test_judging_again_takes_the_runs_training_where_none_is_given() -> None:
    run = DistillConfig(judges="a", networks=3, networks_at_once=2, judge_epochs=7, judge_batch=8, teacher="t")
    again = EvaluateConfig(networks=4, judge_batch=9).replaced(run)
    assert [getattr(again, name) for name in JUDGING_OPTIONS] == [None, "random,herding,whole", 4, None, 7, 9, None]
    assert again.teacher == "t"
    by_protocol = EvaluateConfig(protocol="dm", teacher="u").replaced(run)
    assert [getattr(by_protocol, name) for name in (*JUDGE_TRAINING, "protocol", "teacher")] == [None] * 3 + ["dm", "u"]


def test_what_tasks_are_told_are_options() -> None:
    assert {*TASK_OPTIONS, *OF_SOME_DOMAINS} <= {*OPTIONS}
    assert {*GROUPS["reading the data"]} - {"split_seed"} <= {*TASK_OPTIONS}
    assert {*OF_SOME_DOMAINS} - {*OF_SOME_TASKS} == {*OF_SOME_DOMAINS} & {*SETTINGS}  # which are no task's


@pytest.mark.parametrize("name", DOMAIN_PACKAGES)
def test_builders_take_what_their_domain_names(name: str) -> None:
    domain = get_domain(name)
    told = {*EVERYWHERE, *domain.options} - {*SETTINGS}
    builders = {"text": (text_task, token_task)}.get(name, (domain.make_task,))
    taken = [signature(builder).parameters for builder in builders]
    assert told <= set().union(*taken)
    assert all(told - set(own) <= {"length"} for own in taken)  # which sentence points do not have
    for own in taken:  # and what is not given may be left out
        assert [one.name for one in own.values() if one.default is one.empty] == ["data"]
