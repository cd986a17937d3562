import json
import statistics
from pathlib import Path

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.evaluate import evaluate, metrics_document, subset_bytes, summarise
from mmdistill.methods import CORE_METHODS
from mmdistill.store import DistilledSet
from mmdistill.task import Scores
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


def test_entries_are_mean_and_sample_deviation() -> None:
    scores = [Scores("a", {"accuracy": (0.5, 0.7)}, ("odd",)), Scores("a", {"accuracy": (0.9,)})]
    (entry,) = summarise(scores)
    assert entry.mean == pytest.approx(0.7)
    assert entry.sd == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert (entry.n, entry.notes) == (3, ("odd",))
    assert str(entry) == "70.0 +/- 20.0"
    assert summarise([Scores("a", {"accuracy": (0.5,)})])[0].sd == 0


def test_a_bare_batch_has_no_baselines_at_equal_count() -> None:
    task = BlobTask()
    found = evaluate(task, task.select(torch.tensor([0, 30, 60])), n=1)
    assert set(found.baselines) == {"whole"}


def test_bad_requests_are_named(result: DistilledSet) -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="unknown judge 'mpl'; did you mean 'mlp'"):
        evaluate(task, result, judges=["mpl"])
    with pytest.raises(ConfigError, match="unknown baseline"):
        evaluate(task, result, baselines=("best",))
    with pytest.raises(ConfigError, match="at least one network"):
        evaluate(task, result, n=0)
    other = BlobTask(per_class=10)
    changed = other.describe()
    object.__setattr__(changed, "fingerprint", "another")
    other.describe = lambda: changed  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="fingerprint"):
        evaluate(other, result)


def test_metrics_have_their_documented_layout(result: DistilledSet, tmp_path: Path) -> None:
    found = evaluate(BlobTask(), result, n=2)
    document = json.loads(json.dumps(metrics_document(result, found)))
    assert document["version"] == 1
    assert document["budget"] == {"ipc": 2, "stored_bytes": 6 * 4 * 4 + 6}
    assert set(document["results"][0]) == {"judge", "metric", "mean", "sd", "n"}
    assert set(document["baselines"]) == {"random", "herding", "whole"}
    assert {"data", "method", "seconds", "peak_memory_bytes", "device"} <= set(document)
    # judging again adds judges and replaces equal entries
    other = [{"judge": "other", "metric": "accuracy", "mean": 0.1, "sd": 0.0, "n": 1}]
    previous = {**document, "results": other + document["results"]}
    merged = metrics_document(result, evaluate(BlobTask(), result, n=1, baselines=()), previous)
    assert [(e["judge"], e["n"]) for e in merged["results"]] == [("other", 1), ("mlp", 1)]  # type: ignore[index,attr-defined]
    assert merged["baselines"] == document["baselines"]


def test_bytes_of_real_samples_at_equal_count() -> None:
    assert subset_bytes(BlobTask(), 2) == 6 * 4 * 4
