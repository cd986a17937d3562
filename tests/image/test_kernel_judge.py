"""Judges in closed form, against ridge regression written out by hand."""

import math

import pytest
import torch
from torch import Tensor

from mmdistill.abilities import JUDGING, ask_teacher, is_solved, judge_title
from mmdistill.distill import distill
from mmdistill.errors import ConfigError, UnsupportedError
from mmdistill.evaluate import evaluate, find_judges
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.judges import JUDGES
from mmdistill.image.kernel_judge import NOTE, KernelJudge, kernel_judge
from mmdistill.objectives.infinite_width import ConvolutionalKernel, FullyConnectedKernel
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores, take

KEY = Draws(4)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", width=8, judge_epochs=3)


def by_hand(kernel: FullyConnectedKernel | ConvolutionalKernel, task: ImageTask, batch: Batch) -> float:
    """Return the accuracy of ridge regression, one test image after the other, by a general solver."""
    images, classes = batch.inputs, batch.targets
    assert isinstance(images, Tensor)
    assert isinstance(classes, Tensor)
    images = images.double()
    n = len(images)
    gram = torch.stack([torch.cat([kernel.matrix(a[None], b[None])[0] for b in images]) for a in images])
    targets = classes if classes.is_floating_point() else torch.eye(10, dtype=torch.float64)[classes] - 0.1
    weights = torch.linalg.solve(gram + 1e-6 * gram.trace() / n * torch.eye(n), targets.double())
    hits = 0
    for image, label in zip(task.data.test_images[:60], task.data.test_labels[:60], strict=True):
        row = kernel.matrix(task.data.normalise(image[None]).double(), images)
        hits += int((row @ weights).argmax() == label)
    return hits / 60


@pytest.mark.parametrize("name", ["ntk", "ntk-d2", "nngp", "ntk-conv-d2", "nngp-conv-d1"])
@pytest.mark.parametrize("soft", [False, True])
def test_scores_are_those_of_ridge_regression(name: str, soft: bool, digits: ImageTask) -> None:
    judge = kernel_judge(name)
    assert judge is not None
    assert isinstance(judge.kernel, FullyConnectedKernel | ConvolutionalKernel)
    batch = digits.select(torch.arange(20))
    if soft:
        batch = batch._replace(targets=KEY.normal(20, 10))
    test = digits.data.test_images[:60], digits.data.test_labels[:60]
    scores = judge.score(batch, 10, digits.data.normalise, test)
    expected = by_hand(judge.kernel, digits, batch)
    assert scores.values["accuracy"] == pytest.approx((expected,))
    assert scores.judge == name
    assert scores.notes == (NOTE,)
    if not soft:
        assert expected > 0.3


def test_the_unit_of_a_kernel_moves_no_prediction() -> None:
    batch = Batch(KEY.normal(6, 1, 4, 4), torch.arange(6) % 3, torch.ones(6))
    probe = KEY.fold("probe").normal(5, 1, 4, 4)
    kernels = (FullyConnectedKernel("ntk", w_std=w_std, b_std=0.0) for w_std in (1.0, 0.03))
    large, small = (KernelJudge("ntk", kernel).predictor(batch, 3)(probe) for kernel in kernels)
    torch.testing.assert_close(small, large, rtol=1e-8, atol=1e-10)


def test_names_say_the_kernel(digits: ImageTask) -> None:
    assert digits.describe_judge("NTK").name == digits.describe_judge("ntk-d1").name == "ntk"
    assert digits.describe_judge("nngp_conv-d3").name == "nngp-conv"
    assert digits.describe_judge("ntk-conv-d5").name == "ntk-conv-d5"
    kinds = {name: kernel_judge(name) for name in ("ntk-d4", "nngp", "ntk-conv", "nngp-conv-d2")}
    found = {name: (type(j.kernel), j.kernel.kind, j.kernel.depth) for name, j in kinds.items() if j is not None}
    assert found == {
        "ntk-d4": (FullyConnectedKernel, "ntk", 4),
        "nngp": (FullyConnectedKernel, "nngp", 1),
        "ntk-conv": (ConvolutionalKernel, "ntk", 3),
        "nngp-conv-d2": (ConvolutionalKernel, "nngp", 2),
    }
    assert kernel_judge("ntk-d0") is kernel_judge("ntkk") is kernel_judge("convnet") is None
    with pytest.raises(ConfigError, match="unknown judge 'ntk-cnv'; did you mean 'ntk-conv'"):
        find_judges(digits, ["ntk-cnv"])


def test_another_sort_of_judge_is_one_class(digits: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    class Guess:
        name, title, reads, teacher = "guess", "guess [always 3]", ("epochs",), "nobody, who trains first"

        def epochs(self, samples: int | None) -> int | None:
            return samples

        def require(self, samples: int) -> None:
            raise UnsupportedError(f"{samples} are too many")

        def score(self, batch: Batch, draws: Draws, n: int, learned: object, *, whole: bool) -> Scores:
            return Scores(self.title, {"accuracy": (len(batch.weight) / 100,) * n})

    monkeypatch.setitem(JUDGES, "guess", lambda task, name: Guess())
    assert isinstance(digits.describe_judge("Guess"), Guess)
    assert judge_title(digits, "guess") == "guess [always 3]"
    assert not is_solved(digits, "guess")
    assert ask_teacher(digits, ["mlp", "guess"])
    assert not ask_teacher(digits, ["mlp", "ntk"])
    assert digits.evaluate(digits.select(torch.arange(30)), "guess", KEY, 2, {}).values == {"accuracy": (0.3, 0.3)}
    with pytest.raises(UnsupportedError, match="1297 are too many"):
        digits.evaluate(None, "guess", KEY, 1, {})
    monkeypatch.setattr(Guess, "require", lambda self, samples: None)
    for _ in range(2):  # without an attribute of this name, and with one that is the judge's own
        (entry,) = evaluate(digits, digits.select(torch.arange(30)), judges=["guess"], n=1, baselines=()).results
        assert (entry.mean, entry.judging) == (0.3, {})
        monkeypatch.setattr(Guess, "network", torch.nn.Flatten(), raising=False)


def test_both_sorts_tell_what_they_read_by_name_and_by_title(digits: ImageTask) -> None:
    kip = image_task("digits", width=8, protocol="kip")
    names = ("mlp", "mlp [kip]", "ntk", "NNGP-d2")
    assert [kip.describe_judge(name).reads for name in names] == [JUDGING, JUDGING, (), ()]
    assert [digits.describe_judge(name).epochs(10) for name in ("mlp", "ntk")] == [3, None]


def test_no_protocol_and_no_learned_rate_moves_them(digits: ImageTask) -> None:
    batch = digits.select(torch.arange(30))
    rate = {"inner_lr": torch.tensor(-1.0)}
    other = image_task("digits", width=8, judge_epochs=7, protocol="kip")
    assert other.describe_judge("ntk").title == "ntk"
    assert other.describe_judge("mlp").title == "mlp [kip]"
    assert digits.evaluate(batch, "ntk", KEY, 2, rate) == other.evaluate(batch, "ntk", KEY.fold("other"), 2, {})


def test_what_they_cannot_do_is_refused(digits: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = digits.select(torch.arange(30))
    with pytest.raises(UnsupportedError, match="and ntk does not train"):
        digits.robust(batch, "ntk", KEY, 1, {}, None)
    monkeypatch.setattr("mmdistill.image.kernel_judge.MOST", 29)
    with pytest.raises(UnsupportedError, match="ntk solves for at most 29 samples at once, got 30"):
        digits.evaluate(batch, "ntk", KEY, 1, {})
    monkeypatch.setattr("mmdistill.image.kernel_judge.MOST_CONVOLUTIONAL", 10)
    with pytest.raises(UnsupportedError, match="ntk-conv solves for at most 10 samples"):
        digits.evaluate(batch, "ntk-conv", KEY, 1, {})


def test_too_large_a_training_set_is_refused_before_it_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    task = image_task("digits", width=8)
    monkeypatch.setattr("mmdistill.image.kernel_judge.MOST", 1000)
    monkeypatch.setattr(task, "select", None)
    with pytest.raises(UnsupportedError, match="ntk solves for at most 1,000 samples at once, got 1,297"):
        task.evaluate(None, "ntk", KEY, 1, {})


def test_kip_beats_real_images_under_its_own_kernel(digits: ImageTask) -> None:
    method = get_method(DOMAIN, "kip", "digits")
    assert method.judge == "ntk"
    assert get_method(DOMAIN, "kip-conv", "mnist", "reduced").judge == "ntk-conv"
    found = distill(digits, method, ipc=1, settings={"steps": 150})
    assert found.judge == "ntk"
    evaluation = evaluate(digits, found, n=2, baselines=["random", "herding", "whole"])
    assert {entry.judge for entry in evaluation.results} == {"ntk"}
    assert evaluation.headline().sd == 0
    best = max(evaluation.baselines[name][0].mean for name in ("random", "herding"))
    assert best + 0.05 < evaluation.headline().mean < evaluation.baselines["whole"][0].mean
    assert evaluation.baselines["random"][0].sd > 0  # each value is that of another subset
    assert math.isclose(evaluation.headline().mean * 500 % 1, 0, abs_tol=1e-6)


@pytest.mark.parametrize("name", ["ntk", "nngp-conv-d1"])
def test_samples_count_as_they_are_weighted(name: str, digits: ImageTask) -> None:
    judge, batch, probe = kernel_judge(name), digits.select(torch.arange(12)), digits.select(torch.arange(12, 20))
    assert judge is not None
    assert isinstance(probe.inputs, Tensor)
    weights = torch.tensor([2.0, 1.0, 0.0] * 4)
    found = judge.predictor(batch._replace(weight=weights), 10)(probe.inputs)
    twice = judge.predictor(take(batch, torch.arange(12).repeat_interleave(weights.long())), 10)(probe.inputs)
    torch.testing.assert_close(found, twice, rtol=1e-3, atol=1e-3)  # their ridges differ by a factor near 1
    scaled = judge.predictor(batch._replace(weight=7 * weights), 10)(probe.inputs)
    torch.testing.assert_close(scaled, found, rtol=1e-6, atol=1e-8)
    plain = judge.predictor(batch, 10)(probe.inputs)
    assert not torch.allclose(plain, found, atol=1e-2)
    torn = Batch(probe.inputs[:1].expand(2, -1, -1, -1), torch.arange(2), torch.tensor([1.0, 3.0]))
    between = judge.predictor(torn, 2)(probe.inputs[:1])  # of one image in two classes, their weighted mean
    torch.testing.assert_close(between, torch.tensor([[-0.25, 0.25]]).double(), rtol=1e-4, atol=1e-4)
