import copy
import json
import pickle
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.abilities import PlainJudge
from mmdistill.allocation import subset_bytes
from mmdistill.choices import CORESETS
from mmdistill.classification import pooled, scored
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MemoryExhaustedError,
    MmdistillWarning,
    ShapeError,
    UnsupportedError,
)
from mmdistill.evaluate import evaluate, find_baselines, find_judges
from mmdistill.evaluation import Entry, Evaluation, summarise
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.image import image_task
from mmdistill.methods import CORE_METHODS
from mmdistill.metrics import dropped_baselines, metrics_document, read_metrics, recorded
from mmdistill.names import known_name
from mmdistill.reporting.report import result_rows, summary, write_report
from mmdistill.runtime import Draws
from mmdistill.selections import known_bytes
from mmdistill.task import Batch, Scores
from mmdistill.testing import ConformanceError, check_task
from tests.toys import BlobTask


@pytest.fixture(scope="module")
def result() -> DistilledSet:
    return distill(BlobTask(), CORE_METHODS["dm"], ipc=2, settings={"steps": 20, "augment": False, "real_batch": 16})


def test_results_stand_beside_their_baselines(result: DistilledSet) -> None:
    found = evaluate(BlobTask(), result, n=3)
    assert [entry.metric for entry in found.results] == ["accuracy"]
    assert set(found.baselines) == {"random", "herding", "whole"}
    for entries in (found.results, *found.baselines.values()):
        assert entries[0].n == 3
        assert 0.3 < entries[0].mean <= 1
    again = evaluate(BlobTask(), result, n=3)
    assert again.results == found.results
    assert again.baselines == found.baselines
    assert evaluate(BlobTask(), result, n=3, seed=1).results != found.results


class Recorded(BlobTask):
    """Notes what is judged, with which key, and what was learned with it."""

    def __init__(self) -> None:
        super().__init__()
        self.sets: list[Batch | None] = []
        self.keys: list[object] = []
        self.learned: list[Mapping[str, Tensor]] = []

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        self.sets.append(synthetic)
        self.keys.append(draws.path)
        self.learned.append(learned)
        return super().evaluate(synthetic, judge, draws, n, learned)


def test_what_was_learned_with_a_set_is_given_to_its_own_judges_alone(result: DistilledSet) -> None:
    task, learned = Recorded(), {"inner_lr": torch.tensor(0.5)}
    evaluate(task, replace(result, learned=learned), n=1)
    assert task.learned == [learned, {}, {}, {}]


def test_every_network_gets_a_random_subset_of_its_own(result: DistilledSet) -> None:
    task = Recorded()
    evaluate(task, result, n=3, baselines=["random"], baselines_only=True)
    inputs = [batch.inputs for batch in task.sets if batch is not None]
    assert len(inputs) == 3
    assert not any(torch.equal(a, b) for a, b in combinations(inputs, 2))  # type: ignore[arg-type]


def test_the_set_and_every_baseline_have_networks_of_their_own(result: DistilledSet) -> None:
    task = Recorded()
    evaluate(task, result, n=1, baselines=["random", "herding", "whole"])
    assert len(set(task.keys)) == 4


def test_groups_of_networks_that_are_judged_one_after_the_other_are_drawn_apart(result: DistilledSet) -> None:
    task = Recorded()
    (entry,) = evaluate(task, result, n=4, at_once=2, baselines=()).results
    assert len(task.keys) == len(set(task.keys)) == 2
    assert entry.n == 4


class Solved(Recorded):
    """A task whose judges are solved, and draw nothing."""

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        super().evaluate(synthetic, judge, draws, n, learned)
        return Scores(judge, {"accuracy": (0.5,)})

    def describe_judge(self, judge: str) -> PlainJudge:
        return PlainJudge(judge, reads=())


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_solved_judge_counts_once_however_many_networks_would_train_at_once(
    result: DistilledSet, at_once: int
) -> None:
    task = Solved()
    (entry,) = evaluate(task, result, n=4, at_once=at_once, baselines=()).results
    assert (len(task.keys), entry.n) == (1, 1)


class Reporting(BlobTask):
    """Returns something from judging."""

    def __init__(self, found: object) -> None:
        super().__init__()
        self.found = found

    def evaluate(self, *given: object) -> Scores:  # type: ignore[override]
        return self.found  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"accuracy": 0.5}, "must return Scores with a metric, and returned {'accuracy': 0.5}"),
        (Scores("mlp", {}), "must return Scores with a metric"),
        (Scores("mlp", {"accuracy": 0.5}), "must give accuracy as a tuple of numbers, .* and gave 0.5"),  # type: ignore[dict-item]
        (Scores("mlp", {"accuracy": (torch.tensor(0.5),)}), "must give accuracy as a tuple of numbers"),  # type: ignore[dict-item]
        (Scores("mlp", {"accuracy": ()}), "must give accuracy as a tuple of numbers"),
        (Scores("mlp", {"accuracy": (97.0,)}), r"must give accuracy as fractions .* and gave \(97.0,\)"),
    ],
)
def test_what_a_task_returns_in_place_of_scores_is_named(result: DistilledSet, found: object, message: str) -> None:
    with pytest.raises(ShapeError, match=f"evaluate of Reporting {message}"):
        evaluate(Reporting(found), result, n=1, baselines=())
    with pytest.raises(ConformanceError, match=f"evaluate of Reporting {message}"):
        check_task(Reporting(found), judge="mlp")


def test_a_task_that_describes_judges_refuses_unknown_ones() -> None:
    task = BlobTask()
    task.describe_judge = lambda name: PlainJudge(known_name("judge", name, task.judges))  # type: ignore[attr-defined]
    check_task(task)
    for lenient, outcome in ((PlainJudge, "the judge 'no such judge'"), ({}.__getitem__, "a KeyError")):
        task.describe_judge = lenient  # type: ignore[attr-defined]
        with pytest.raises(ConformanceError, match=f"an unknown judge must raise a ConfigError, .*got {outcome}"):
            check_task(task)


def test_a_sum_that_rounds_to_above_one_is_a_score(result: DistilledSet) -> None:
    found = Scores("mlp", {"ndcg@20": (1.0000001192092896,)})
    (entry,) = evaluate(Reporting(found), result, n=1, baselines=()).results
    assert str(entry) == "100.0"


def test_scores_may_be_numbers_of_numpy(result: DistilledSet) -> None:
    numbers = tuple(np.full(2, 0.25, np.float32))
    (entry,) = evaluate(Reporting(Scores("mlp", {"accuracy": numbers})), result, n=2, baselines=()).results
    assert str(entry) == "25.0 +/- 0.0"


def test_entries_are_mean_and_sample_deviation() -> None:
    (entry,) = summarise([Scores("a", {"accuracy": (0.5, 0.7, 0.9)}, ("odd",))])
    assert entry.mean == pytest.approx(0.7)
    assert entry.sd == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert (entry.n, entry.notes) == (3, ("odd",))
    assert str(entry) == "70.0 +/- 20.0"
    (single,) = summarise([Scores("a", {"accuracy": (0.5,)})])
    assert (single.sd, str(single)) == (0, "50.0")


def test_notes_of_baselines_are_said_once() -> None:
    def entry(*notes: str) -> Entry:
        return Entry("mlp", "accuracy", 0.5, 0.1, 5, notes)

    found = Evaluation([entry("odd")], {"random": [entry("odd")], "whole": [entry("odd", "trained for 5 epochs")]})
    assert found.remarks() == ["note: mlp: odd", "note: whole by mlp: trained for 5 epochs"]
    failures = {"vit": "vit cannot judge these", "knn": "too large"}
    assert Evaluation([], {}, failures=failures).remarks() == [
        "failed: vit cannot judge these",
        "failed: knn: too large",
    ]


@pytest.mark.parametrize(
    "note", ["predicts only 1 of 3 classes", "class a is nearly never recognised (test accuracy 0.00)"]
)
def test_all_whose_judges_fail_alike_are_named_in_one_line(note: str) -> None:
    def entry(*notes: str) -> Entry:
        return Entry("mlp", "accuracy", 0.5, 0.1, 5, notes)

    found = Evaluation([entry(note)], {"random": [entry()], "whole": [entry(note)]})
    assert found.notes() == [f"mlp, whole by mlp: {note}"]
    assert Evaluation([entry()], found.baselines).notes() == [f"whole by mlp: {note}"]


def test_the_headline_of_baselines_alone_is_the_first_ones(result: DistilledSet) -> None:
    found = evaluate(BlobTask(), result, n=1, baselines=["Random", "k_center"], baselines_only=True)
    assert list(found.baselines) == ["random", "k-center"]
    assert found.headline() is found.baselines["random"][0]
    with pytest.raises(ConfigError, match="nothing was judged"):
        evaluate(BlobTask(), result, n=1, baselines=[], baselines_only=True).headline()


def test_a_headline_says_who_judged_unless_it_is_the_default_judge_alone(result: DistilledSet) -> None:
    task = image_task("digits", model="mlp-w8", judge_epochs=1, protocol="dsa")
    batch = task.select(torch.arange(40))
    usual, other = (evaluate(task, batch, judges=judges, n=1, baselines=()) for judges in (None, ["ntk"]))
    assert (usual.usual, usual.results[0].judge) == ("mlp-w8 [dsa]", "mlp-w8 [dsa]")
    assert str(usual.headline()) == str(usual.results[0]) == f"{100 * usual.results[0].mean:.1f}"
    assert str(other.headline()) == f"{other.results[0]} by ntk"
    assert other.headline() == other.results[0]
    assert other.headline().plain() == other.results[0].plain()
    both = Evaluation([*usual.results, *other.results], usual=usual.usual)
    assert str(both.headline()) == f"{usual.results[0]} by mlp-w8 [dsa]"
    unknown = Evaluation([Entry("mlp", "accuracy", 0.5, 0.25, 2), Entry("mlp", "f1", 0.5, 0.25, 2)])
    assert str(unknown.headline()) == "50.0 +/- 25.0 by mlp"


def test_a_bare_batch_has_no_baselines_at_equal_count() -> None:
    task = BlobTask()
    found = evaluate(task, task.select(torch.tensor([0, 30, 60])), n=1)
    assert set(found.baselines) == {"whole"}


class Elsewhere(BlobTask):
    """Blobs on another device, which note where samples lie that they are to judge."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("meta")
        self.places: list[torch.device] = []

    def evaluate(self, synthetic: Batch | None, *rest: object) -> Scores:
        assert synthetic is not None
        tensors = synthetic.inputs, synthetic.targets, synthetic.weight
        self.places += [tensor.device for tensor in tensors if isinstance(tensor, Tensor)]
        return Scores("mlp", {"accuracy": (1.0,)})


def test_samples_are_judged_on_the_device_of_their_task(result: DistilledSet) -> None:
    for samples in (result, result.batch):
        task = Elsewhere()
        evaluate(task, samples, n=1, baselines=())
        assert {place.type for place in task.places} == {"meta"}


def test_all_baselines_are_those_of_every_task_and_its_own() -> None:
    class Selecting(BlobTask):
        selections = ("head",)

        def selection(self, *given: object) -> None: ...

    every = ["random", *CORESETS, "whole"]
    assert find_baselines(BlobTask(), "All") == every
    without_classes = BlobTask()
    without_classes.num_classes = None
    assert find_baselines(without_classes, "all") == [name for name in every if name != "craig"]
    assert find_baselines(without_classes, "craig") == ["craig"]
    assert find_baselines(Selecting(), ["head", "all"]) == ["head", *every]


def test_bad_requests_are_named(result: DistilledSet) -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="unknown judge 'mpl'; did you mean 'mlp'"):
        evaluate(task, result, judges=["mpl"])
    with pytest.raises(ConfigError, match="unknown baseline"):
        evaluate(task, result, baselines=("best",))
    for judges in ([], (), "", {}):
        with pytest.raises(ConfigError, match="names none, so nothing would judge; None is the default judge"):
            evaluate(task, result, judges=judges)
    for n in (0, 1.5, True):
        with pytest.raises(ConfigError, match="the number of networks is a whole number of at least 1"):
            evaluate(task, result, n=n)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at once is a whole number of at least 1, got 0"):
        evaluate(task, result, at_once=0)
    with pytest.raises(ConfigError, match=r"judges are names, got 3; those of your own .*models\.FAMILIES .*JUDGES"):
        evaluate(task, result, judges=3)  # type: ignore[arg-type]
    own = r"rules\.RULES; a set of yours is judged by a call of its own"
    with pytest.raises(ConfigError, match=rf"baselines are names, got \[None\]; .*{own}"):
        evaluate(task, result, baselines=[None])  # type: ignore[list-item]


@pytest.mark.parametrize("asked", ["k-center,K_Center", ["k-center", "K_Center", "k-center"]])
def test_a_baseline_that_is_asked_for_twice_is_judged_once(result: DistilledSet, asked: str | list[str]) -> None:
    task = Recorded()
    found = evaluate(task, result, n=1, baselines=asked)
    assert list(found.baselines) == ["k-center"]
    assert len(task.keys) == 2
    with pytest.raises(ConfigError, match="seed is a whole number, got 'x'"):
        evaluate(task, result, seed="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a task is expected, got DistilledSet"):
        evaluate(result, task)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a DistilledSet or a Batch of samples is judged, got Tensor"):
        evaluate(task, torch.zeros(3))  # type: ignore[arg-type]
    assert [e.judge for e in evaluate(task, result, judges="mlp", n=1, baselines="random").results] == ["mlp"]
    found = evaluate(task, result, judges="mlp, mlp,", n=1, baselines="none")
    assert ([e.judge for e in found.results], found.baselines) == (["mlp"], {})
    other = BlobTask(per_class=10)
    changed = other.describe()
    object.__setattr__(changed, "fingerprint", "another")
    other.describe = lambda: changed  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="fingerprint"):
        evaluate(other, result)


def test_metrics_have_their_documented_layout(result: DistilledSet, tmp_path: Path) -> None:
    found = evaluate(BlobTask(), result, n=2)
    document = json.loads(json.dumps(metrics_document(BlobTask(), result, found)))
    assert document["version"] == 1
    assert document["budget"] == {"ipc": 2, "stored_bytes": 6 * 4 * 4 + 6}
    assert document["whole_bytes"] == BlobTask().describe().stored_bytes > document["budget"]["stored_bytes"]
    assert set(document["results"][0]) == {"judge", "metric", "mean", "sd", "n"}
    assert set(document["baselines"]) == {"random", "herding", "whole"}
    assert (document["data"], document["method"], document["device"]) == ("blobs", "dm", result.device)
    costs: dict[str, Any] = {"seconds": 9.0, "setup_seconds": 1.0, "compile_seconds": 2.0, "peak_memory_bytes": 5}
    timed = metrics_document(BlobTask(), replace(result, **costs, inner_seconds=3.0, taken=3), found)
    costs |= {"seconds_per_step": 2.0, "seconds_per_update": 1.0}
    assert {name: timed[name] for name in costs} == costs
    # judging again adds judges and replaces equal entries
    other = [{"judge": "other", "metric": "accuracy", "mean": 0.1, "sd": 0.0, "n": 1}]
    previous = {**document, "results": other + document["results"]}
    merged = metrics_document(BlobTask(), result, evaluate(BlobTask(), result, n=1, baselines=()), previous)
    assert [(e["judge"], e["n"]) for e in merged["results"]] == [("other", 1), ("mlp", 1)]  # type: ignore[index,attr-defined]
    assert merged["baselines"] == document["baselines"]


def test_what_is_judged_again_keeps_its_place(result: DistilledSet) -> None:
    def scores(*judges: str, mean: float) -> Evaluation:
        return Evaluation([Entry(judge, "accuracy", mean, 0.0, 1) for judge in judges])

    first = metrics_document(BlobTask(), result, scores("gcn", "sgc", mean=0.5))
    again = metrics_document(BlobTask(), result, scores("mlp", "gcn", mean=0.7), first)
    assert [(entry["judge"], entry["mean"]) for entry in again["results"]] == [  # type: ignore[attr-defined]
        ("gcn", 0.7), ("sgc", 0.5), ("mlp", 0.7),
    ]  # fmt: skip


def test_a_single_network_has_no_deviation(result: DistilledSet) -> None:
    one, two = (evaluate(BlobTask(), result, n=n, baselines=("random",)) for n in (1, 2))
    table = summary(result, one, {"random": 96})
    assert table.startswith("blobs, dm, ipc 2, seed 0: percent, 1 network\n")
    assert "+/-" not in table
    assert "percent, mean +/- sd of 2 networks\n" in summary(result, two, {"random": 96})
    mixed = Evaluation([*one.results, *two.results], two.baselines)
    assert "percent, mean +/- sd of 1 to 2 networks\n" in summary(result, mixed, {"random": 96})
    assert "±" not in " ".join(result_rows(metrics_document(BlobTask(), result, one))[1])
    assert " ".join(result_rows(metrics_document(BlobTask(), result, two))[1]).count("±") == 2
    mixed = Evaluation(one.results, two.baselines)
    assert result_rows(metrics_document(BlobTask(), result, mixed))[1][-2:] == [
        f"{two.baselines['random'][0]} (of 2)".replace("+/-", "±"),
        "1",
    ]


def test_an_evaluation_is_shown_as_a_table() -> None:
    entries = [
        Entry("mlp<x>", "accuracy", 0.5, 0.1, 2, ("few classes", "slow")),
        Entry("knn", "accuracy", 0.25, 0.0, 2, ("few classes",)),
    ]
    found = Evaluation(entries, {"random": [Entry("knn", "accuracy", 0.125, 0.0, 2)]}, failures={"vit": "too small"})
    head, columns, first, second, *remarks = repr(found).splitlines()
    assert head == "Evaluation: percent, mean +/- sd of 2 networks"
    assert columns.split() == ["judge", "metric", "distilled", "random"]
    assert first.split() == ["mlp<x>", "accuracy", "50.0", "+/-", "10.0", "-"]
    assert second.split() == ["knn", "accuracy", "25.0", "+/-", "0.0", "12.5", "+/-", "0.0"]
    assert columns.index("random") == first.index("-", first.index("10.0"))
    assert remarks == ["note: mlp<x>, knn: few classes", "note: mlp<x>: slow", "failed: vit: too small"]
    page = found._repr_html_()
    assert page.count("<tr>") == 3
    assert "<td>mlp&lt;x&gt;</td>" in page
    assert "mlp<x>" not in page
    only = Evaluation([], found.baselines)
    assert repr(only).splitlines()[-1].split() == ["knn", "accuracy", "-", "12.5", "+/-", "0.0"]
    assert "no networks" in repr(Evaluation([]))


def test_an_evaluation_becomes_a_data_frame(result: DistilledSet) -> None:
    found = evaluate(BlobTask(), result, n=2, baselines=("random", "whole"))
    frame = found.frame()
    assert list(frame["samples"]) == ["distilled", "random", "whole"]
    entries = [found.headline(), *(entries[0] for entries in found.baselines.values())]
    for row, entry in zip(frame.to_dict("records"), entries, strict=True):
        row.pop("samples")
        assert row == entry.plain()
    assert list(Evaluation([]).frame()) == list(frame)


def test_baselines_have_the_bytes_that_are_known_of_them(result: DistilledSet) -> None:
    names = ("random", "k-means", "clusters", "whole")
    entry = Entry("mlp", "accuracy", 0.5, 0.1, 2)
    found = Evaluation([entry], {name: [entry] for name in names})
    sizes = known_bytes(BlobTask(), 2)
    (row,) = (line.split() for line in summary(result, found, sizes).splitlines() if line.split()[0] == "bytes")
    assert row[1:] == [f"{result.stored_bytes:,}", "96", "96", "-", f"{result.info.stored_bytes:,}"]


def test_baselines_stay_where_they_were_judged_as_the_set_is(result: DistilledSet) -> None:
    first = evaluate(BlobTask(), result, n=1)
    short = metrics_document(BlobTask(), result, first, judging={"epochs": 2})
    assert [entry["judging"] for entry in short["results"]] == [{"epochs": 2}]  # type: ignore[attr-defined]
    other = {"judge": "other", "metric": "accuracy", "mean": 0.1, "sd": 0.0, "n": 1}
    short["baselines"]["whole"].append(other)  # type: ignore[index]
    again = evaluate(BlobTask(), result, n=1, baselines=("random",))
    assert metrics_document(BlobTask(), result, again, short, {"epochs": 2})["baselines"] == short["baselines"]
    longer = metrics_document(BlobTask(), result, again, short, {"epochs": 20})
    assert longer["baselines"]["whole"] == [other]  # type: ignore[index]
    assert "herding" not in longer["baselines"]  # type: ignore[operator]
    assert longer["baselines"]["random"][0]["judging"] == {"epochs": 20}  # type: ignore[index]
    assert dropped_baselines(short, longer) == ["herding by mlp", "whole by mlp"]


def test_bytes_of_real_samples_at_equal_count() -> None:
    assert subset_bytes(BlobTask(), 2) == 6 * 4 * 4


def test_bytes_of_large_real_samples_are_exact() -> None:
    task, blobs = BlobTask(), BlobTask().describe()
    task.describe = lambda: replace(blobs, stored_bytes=987_656_021)  # type: ignore[method-assign]
    assert subset_bytes(task, 3) == 98_765_603  # of a tenth of the samples, rounded up


def test_any_coreset_is_a_baseline(result: DistilledSet) -> None:
    names = ("k-center", "k-means", "craig")
    found = evaluate(BlobTask(), result, n=1, baselines=names)
    assert tuple(found.baselines) == names


def test_a_failing_judge_leaves_the_others_scores(result: DistilledSet) -> None:
    task = BlobTask()
    task.judges = ("large", "mlp")
    evaluated = task.evaluate

    def evaluate_or_fail(batch, judge, draws, n, learned):  # type: ignore[no-untyped-def]
        if judge == "large":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore")
        return evaluated(batch, judge, draws, n, learned)

    task.evaluate = evaluate_or_fail  # type: ignore[method-assign]
    found = evaluate(task, result, judges=["all"], n=1)
    assert [entry.judge for entry in found.results] == ["mlp"]
    assert "--networks" in found.failures["large"]
    assert [entry.judge for entry in found.baselines["whole"]] == ["mlp"]
    with pytest.raises(MemoryExhaustedError, match="out of memory in judging with large"):
        evaluate(task, result, judges=["large"], n=1)


def test_a_baseline_that_a_judge_refuses_is_reported(result: DistilledSet) -> None:
    task = BlobTask()
    task.judges = ("kernel", "mlp")
    evaluated = task.evaluate

    def evaluate_or_refuse(batch, judge, draws, n, learned):  # type: ignore[no-untyped-def]
        if judge == "kernel" and batch is None:
            raise UnsupportedError("kernel solves for at most 9 samples")
        return evaluated(batch, judge, draws, n, learned)

    task.evaluate = evaluate_or_refuse  # type: ignore[method-assign]
    found = evaluate(task, result, judges=["all"], n=1, baselines=("whole",))
    assert [entry.judge for entry in found.baselines["whole"]] == ["mlp"]
    assert found.failures == {"the whole baseline by kernel": "kernel solves for at most 9 samples"}
    alone = evaluate(task, result, judges=["kernel", "kernel"], n=1, baselines=("whole",))
    assert len(alone.results) == 1
    assert alone.failures == {"the whole baseline": "kernel solves for at most 9 samples"}
    with pytest.raises(KeyError, match=r"whole.*kernel solves for at most 9 samples"):
        alone.baselines["whole"]
    for copied in (copy.deepcopy(alone), pickle.loads(pickle.dumps(alone)), replace(alone, seconds=1.0)):
        with pytest.raises(KeyError, match="kernel solves for at most 9 samples"):
            copied.baselines["whole"]
    with pytest.raises(KeyError, match=r"^'random'$"):  # which was not asked for
        alone.baselines["random"]
    assert (alone.baselines, alone.baselines.get("whole"), asdict(alone)["baselines"]) == ({}, None, {})


def test_sets_are_judged_by_the_seeds_of_their_own_runs() -> None:
    made = distill(BlobTask(), CORE_METHODS["dm"], ipc=1, seed=3, settings={"steps": 1, "augment": False})
    found = evaluate(BlobTask(), made, n=2)
    assert found.results == evaluate(BlobTask(), made, n=2, seed=3).results
    assert found.baselines == evaluate(BlobTask(), made, n=2, seed=3).baselines
    assert found.baselines != evaluate(BlobTask(), replace(made, seed=4), n=2).baselines


def test_a_set_larger_than_a_class_is_judged_beside_all_of_its_samples() -> None:
    small = BlobTask(per_class=5)
    made = distill(small, CORE_METHODS["dm"], ipc=8, settings={"steps": 1, "augment": False, "init": "noise"})
    found = evaluate(small, made, n=1)
    assert [entry.judge for entry in found.results] == ["mlp"]
    assert set(found.baselines) == {"random", "herding", "whole"}
    assert not found.failures
    for name in ("random", "herding"):
        (note,) = (note for note in found.baselines[name][0].notes if "equal count" in note)
        assert re.fullmatch(
            r"class \w+ has 5 samples \(and 2 other classes too few\), fewer than the 8 at equal count.*", note
        )


def test_out_of_memory_says_what_to_lower() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        MemoryError(),
    ):
        with (
            pytest.raises(MemoryExhaustedError, match="out of memory in a step; try less"),
            out_of_memory_advice("a step", "less"),
        ):
            raise error
    with (
        pytest.raises(MemoryExhaustedError, match=r"^probably out of memory in a step; try less"),
        out_of_memory_advice("a step", "less"),
    ):
        raise RuntimeError("GET was unable to find an engine to execute this computation")
    with pytest.raises(RuntimeError, match="another"), out_of_memory_advice("a step", "less"):
        raise RuntimeError("another")


def test_a_task_may_name_judges_by_a_grammar() -> None:
    task = BlobTask()
    task.describe_judge = lambda name: PlainJudge(name.lower())  # type: ignore[attr-defined]
    assert find_judges(task, ["MLP", "mlp-w9", "MLP-W9"]) == ["mlp", "mlp-w9"]


def test_robust_scores_need_a_task_that_has_them(result: DistilledSet) -> None:
    with pytest.raises(UnsupportedError, match="no robust scores"):
        evaluate(BlobTask(), result, n=1, robust=True)


def test_progress_names_each_judgement_and_hands_over_what_is_finished(result: DistilledSet) -> None:
    told: list[tuple[int, int, str, int, int]] = []

    def progress(done: int, total: int, subject: str, so_far: Evaluation) -> None:
        told.append((done, total, subject, len(so_far.results), len(so_far.baselines)))

    found = evaluate(BlobTask(), result, n=1, baselines=("random", "whole"), progress=progress)
    judge = found.headline().judge
    assert told == [
        (0, 3, f"the distilled set by {judge}", 0, 0),
        (1, 3, "random", 1, 0),
        (1, 3, f"random by {judge}", 1, 0),
        (2, 3, "whole", 1, 1),
        (2, 3, f"whole by {judge}", 1, 1),
        (3, 3, "", 1, 2),
    ]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda b: b._replace(inputs=b.inputs * float("nan")), DataError, "inputs and targets hold NaN"),
        (lambda b: b._replace(targets=torch.full((len(b.weight), 3), torch.inf)), DataError, "targets hold NaN or inf"),
        (lambda b: b._replace(inputs=(b.inputs * 9).to(torch.uint8)), DataError, "inputs are floats"),
        (lambda b: b._replace(weight=0 * b.weight), DataError, "weights are finite numbers"),
        (lambda b: b._replace(weight=b.weight[1:]), ShapeError, "as many inputs, targets and weights"),
        (lambda b: b._replace(targets=b.targets.float()), ShapeError, "class indices"),
        (lambda b: b.map(lambda t: t[:0]), DataError, "weights are finite numbers"),
    ],
)
def test_samples_of_ones_own_are_checked(
    result: DistilledSet, change: Callable[[Batch], Batch], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evaluate(BlobTask(), change(result.batch), n=1, baselines=())
    double = result.batch.map(lambda t: t.double() if t.is_floating_point() else t)
    assert evaluate(BlobTask(), double, n=1, baselines=()).results


def test_metrics_that_some_subsets_lack_are_left_out() -> None:
    parts = [Scores("gcn", {"accuracy": (0.5,), "few": (0.1,)}), Scores("gcn", {"accuracy": (0.7,)})]
    assert pooled(parts).values == {"accuracy": (0.5, 0.7)}
    told = [Scores("gcn", {"accuracy": (0.5,)}, (), {0: (share,), 2: (0.0,)}) for share in (0.25, 0.75)]
    assert pooled(told).by_class == {0: (0.25, 0.75), 2: (0.0, 0.0)}
    assert pooled([*told, parts[1]]).by_class == {}


def by_class(**told: float) -> Entry:
    return Entry("mlp", "accuracy", 0.5, 0.1, 2, by_class=told)


def test_accuracies_of_classes_go_by_their_names() -> None:
    hits, truth = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]]), torch.tensor([0, 0, 2, 2])
    told = scored("own", hits, truth).by_class
    assert told == {0: (0.5, 1.0), 2: (1.0, 0.5)}  # class 1 has no test sample
    values = {"accuracy": (0.75, 0.75), "balanced_accuracy": (0.75, 0.75)}
    first, second = summarise([Scores("mlp", values, (), told)], ("a", "b"))
    assert first.by_class == {"a": 0.75, "2": 0.75}  # by its index, where it has no name
    assert second.by_class == {}


def test_accuracies_of_classes_stand_beside_those_of_baselines() -> None:
    found = Evaluation([by_class(a=0.5, b=0.25)], {"random": [by_class(b=0.125)], "whole": [by_class()]})
    assert found.class_rows() == [["class", "distilled", "random"], ["a", "50.0", "-"], ["b", "25.0", "12.5"]]
    assert found.class_rows("knn") == Evaluation([by_class()]).class_rows() == []
    many = Evaluation([by_class(**{f"c{index}": 1 - index / 60 for index in range(60)})])
    assert [row[0] for row in many.class_rows(most=50)] == ["class", *(f"c{index}" for index in range(59, 49, -1))]
    assert len(many.class_rows()) == 61


def test_metrics_and_reports_hold_the_accuracies_of_classes(result: DistilledSet, tmp_path: Path) -> None:
    found = Evaluation([by_class(a=0.5, b=0.25)], {"random": [by_class(a=0.75, b=0.125)]})
    document = metrics_document(BlobTask(), result, found)
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    metrics = read_metrics(tmp_path / "metrics.json")
    assert recorded(metrics) == found
    markdown, page = write_report(tmp_path, result, metrics, [])
    assert "## accuracy of each class by mlp, mean over networks in percent" in markdown.read_text()
    assert "| b | 25.0 | 12.5 |" in markdown.read_text()
    assert "<td>b</td><td>25.0</td><td>12.5</td>" in page.read_text()
    for entry in (*metrics["results"], *metrics["baselines"]["random"]):
        del entry["by_class"]  # as of judges that do not tell it
    write_report(tmp_path, result, metrics, [])
    assert "of each class" not in markdown.read_text()
    document["results"][0]["by_class"] = {"a": "much"}  # type: ignore[index]
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_metrics(tmp_path / "metrics.json")


def test_baselines_that_are_asked_for_beside_a_bare_batch_are_said_to_be_left_out() -> None:
    task = BlobTask()
    batch = task.select(torch.arange(6))
    with pytest.warns(MmdistillWarning, match="no budget at which random and herding could be chosen"):
        found = evaluate(task, batch, n=1, baselines=["random", "herding", "whole"])
    assert list(found.baselines) == ["whole"]
    evaluate(task, batch, n=1)  # which asks for nothing
