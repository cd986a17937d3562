"""Every option has its place: in one group of the help, and among those by which runs are told apart or not."""

from dataclasses import fields

from mmdistill.commands.wording import GROUPS
from mmdistill.config import ASIDE, BUDGETS, HOW_IT_RUNS, SETTINGS, DistillConfig, EvaluateConfig
from mmdistill.registry import EVERYWHERE, OF_SOME_DOMAINS, TaskOptions
from mmdistill.runs.judged import NOT_TOLD_APART, VALIDATING

OPTIONS = [entry.name for entry in fields(DistillConfig)]
APART = (
    *("method", "parameterization", "label", "schedule", "lr", "set", "precision", "deterministic", "split_seed"),
    *("model", "width", "encoder", "length", "protocol", "whiten", "size", "inductive", "split_by", "min_rating"),
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
    judging = {*GROUPS["judging"]} - {"protocol"}  # which scores are called by
    assert judging <= {*NOT_TOLD_APART}
    assert judging <= {entry.name for entry in fields(EvaluateConfig)}
    assert {*VALIDATING} <= judging


def test_what_tasks_are_told_are_options() -> None:
    told = {entry.name for entry in fields(TaskOptions)}
    assert told <= {*OPTIONS}
    assert told <= {*EVERYWHERE, *OF_SOME_DOMAINS}
    assert {*OF_SOME_DOMAINS} <= {*OPTIONS}
    assert {*GROUPS["reading the data"]} - {"split_seed"} <= told
