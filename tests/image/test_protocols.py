"""How judges are trained: the declared protocol, the papers' presets, and what they are made of."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmdistill.errors import ConfigError, UnsupportedError
from mmdistill.evaluate import find_judges, readable_judges
from mmdistill.image import ImageTask, image_task
from mmdistill.image.cutmix import cut_and_mix
from mmdistill.image.data import ImageData
from mmdistill.image.dc_augment import crop_scale_rotate
from mmdistill.image.judge_training import JudgeTraining, squared_loss
from mmdistill.image.models import NetworkKind
from mmdistill.image.protocols import (
    CLASSIFICATION,
    DEEP_RATE,
    PROTOCOLS,
    REGRESSION,
    JudgingCase,
    JudgingChoices,
    Plan,
    Protocol,
    find_protocol,
    plan_for,
)
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol, rate_factor
from mmdistill.networks.module import FunctionalModule
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores
from tests.oracles import augment as oracle

KEY = Draws(7)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", width=8, judge_epochs=2, protocol="frepo")


@pytest.fixture(scope="module")
def photographs(digits: ImageTask) -> ImageData:
    return replace(digits.data, name="photographs", judge_epochs=None)


def plan(
    name: str,
    data: ImageData,
    images: int = 100,
    *,
    own: bool = True,
    scores: bool = False,
    whole: bool = False,
    kind: NetworkKind = "shallow",
    augment: bool | None = None,
    batch: int | None = None,
) -> Plan:
    case = JudgingCase(images, scores, whole, own, kind)
    return plan_for(PROTOCOLS[name], data, case, JudgingChoices(batch=batch, augment=augment))


def test_the_declared_protocol_is_the_fields(photographs: ImageData, digits: ImageTask) -> None:
    found = plan("default", photographs)
    fit = found.fit
    assert (fit.epochs, fit.lr, fit.momentum, fit.weight_decay, fit.batch) == (1000, 0.01, 0.9, 5e-4, 256)
    assert found.augment == "dsa"
    scores = plan("default", photographs, scores=True)
    assert (scores.fit.optimizer, scores.squared, scores.label_scale) == ("adam", True, 8)
    assert not found.squared
    assert plan("default", photographs, whole=True).fit.epochs == photographs.whole_epochs
    assert plan("default", digits.data).fit.epochs == 300
    assert plan("dsa", digits.data).fit.epochs == 1000


def test_deep_judges_regress_more_slowly(photographs: ImageData) -> None:
    assert plan("default", photographs, scores=True).fit.lr == REGRESSION.lr > DEEP_RATE
    assert plan("default", photographs, scores=True, kind="deep").fit == replace(REGRESSION, lr=DEEP_RATE)
    assert plan("default", photographs, kind="deep").fit == plan("default", photographs).fit
    assert plan("frepo", photographs, scores=True, kind="deep").fit == plan("frepo", photographs, scores=True).fit
    by_sgd = Protocol("mine", "", scores=None)
    found = plan_for(by_sgd, photographs, JudgingCase(10, scores=True, kind="deep")).fit
    assert found == replace(CLASSIFICATION, epochs=found.epochs)


def test_transformers_take_no_faster_rate_than_a_protocol_and_its_adam(photographs: ImageData) -> None:
    assert plan("rcig", photographs, kind="transformer").fit == plan("rcig", photographs).fit
    ncfm = plan("ncfm", photographs).fit
    assert plan("ncfm", photographs, kind="transformer").fit == replace(ncfm, lr=3e-4)


def test_presets_follow_their_papers(photographs: ImageData) -> None:
    assert (plan("dc", photographs).fit.epochs, plan("dc", photographs).augment) == (300, "none")
    mnist = replace(photographs, name="mnist")
    assert (plan("dc", mnist).fit.epochs, plan("dc", mnist).augment) == (1000, "dc")
    assert plan("dc", mnist, own=False).augment == "dsa"
    assert (plan("cafe", photographs).fit.epochs, plan("cafe", photographs).augment) == (600, "none")
    assert (plan("cafe", mnist).fit.epochs, plan("cafe", mnist).augment) == (1000, "dc")
    frepo = plan("frepo", photographs, 500)
    assert (frepo.fit.epochs, frepo.fit.optimizer, frepo.squared, frepo.label_scale) == (5000, "adam", True, 1)
    assert plan("frepo", photographs, 10).fit.epochs == 1000
    assert plan("frepo", photographs, 1000).fit.epochs == 5000  # 10,000 updates, two an epoch
    assert plan("frepo", photographs, 1000, batch=100).fit.epochs == 1000  # as many updates, ten an epoch
    idc = plan("idc", photographs)
    assert (idc.fit.batch, idc.cutmix, idc.fit.restart, idc.augment) == (64, 0.5, False, "idc")
    assert (plan("idc", mnist).cutmix, plan("idc", mnist).augment) == (0, "idc")
    assert plan("idc", photographs, own=False).augment == "dsa"
    dance = plan("dance", mnist)
    assert (dance.fit.batch, dance.cutmix, dance.augment) == (64, 0.5, "idc")
    ncfm = plan("ncfm", mnist)
    assert (ncfm.cutmix, ncfm.augment, plan("ncfm", mnist, whole=True).cutmix) == (0.5, "idc", 0)
    assert plan("addmem", photographs).augment == "none"
    rfad, kip = plan("rfad", photographs), plan("kip", photographs)
    assert (rfad.label_scale, rfad.bias_std) == (8, 0.1)
    assert kip == rfad
    assert plan("rfad", photographs, own=False).bias_std is None
    assert plan("rfad", photographs, whole=True).bias_std is None
    assert PROTOCOLS["frepo"].reported == PROTOCOLS["mtt"].reported
    assert PROTOCOLS["mtt"].line().endswith("its paper reports the best over the checkpoints of the run")
    assert PROTOCOLS["dsa"].line() == PROTOCOLS["dsa"].summary


def sgd(epochs: int, weight_decay: float, batch: int, decay_at: tuple[float, ...], **others: object) -> FitProtocol:
    fields = {"lr": 0.01, "optimizer": "sgd", "momentum": 0.9, "weight_decay": weight_decay, "batch": batch, **others}
    return FitProtocol(epochs, decay_at=decay_at, **fields)  # type: ignore[arg-type]


DC_FAMILY = sgd(1000, 5e-4, 256, (0.5,), decay=0.1, restart=True)
PUBLISHED_FITS = {
    **dict.fromkeys(("default", "dc", "cafe", "dsa", "dm", "mtt"), DC_FAMILY),
    "datm": sgd(1000, 5e-4, 128, (0.5,), decay=0.1, restart=True),
    **dict.fromkeys(("rfad", "kip"), sgd(2000, 0.0, 512, (), lr=1e-3)),
    "addmem": sgd(300, 0.0, 640, ()),
    "idc": sgd(1000, 5e-4, 64, (2 / 3, 5 / 6), decay=0.2, restart=False),
    "dance": sgd(1500, 5e-4, 64, (2 / 3, 5 / 6), decay=0.2, restart=False),
    "ncfm": FitProtocol(
        2000,
        lr=1e-3,
        optimizer="adamw",
        weight_decay=0.01,
        batch=128,
        decay_at=(1 / 5, 2 / 5, 3 / 5, 4 / 5),
        decay=0.5,
        restart=False,
    ),
    "frepo": FitProtocol(1000, 3e-4, "adam", 0.9, 0.0, 500, (), warmup=500, cosine=True),
    "rcig": FitProtocol(1000, 1e-4, "adam", 0.9, 0.0, 256, (), warmup=500, cosine=True),
    "rded": FitProtocol(300, 1e-3, "adamw-matrices", 0.9, 0.01, 50, (), cosine=True),
    "sre2l": FitProtocol(400, 1e-3, "adamw-matrices", 0.9, 0.01, 128, (), cosine=True),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_judges_are_fitted_as_published(name: str) -> None:
    assert PROTOCOLS[name].fit == PUBLISHED_FITS[name]


def test_convnets_of_rded_train_by_each_data_set_s_own_rate_and_minibatches(photographs: ImageData) -> None:
    data = {name: replace(photographs, name=name) for name in ("cifar10", "cifar100", "tiny-imagenet")}
    found = {name: plan("rded", own).fit for name, own in data.items()}
    usual = PUBLISHED_FITS["rded"]
    assert found["cifar10"] == usual
    assert found["cifar100"] == replace(usual, lr=2e-3, batch=25)
    assert found["tiny-imagenet"] == replace(usual, batch=100)
    hundred = data["cifar100"]
    assert plan("rded", hundred, kind="deep").fit == usual
    assert plan("rded", hundred, own=False).fit == usual
    assert plan("rded", hundred, own=False).augment == "rded"
    assert plan("rded", hundred, whole=True).fit == replace(CLASSIFICATION, epochs=hundred.whole_epochs)
    assert plan("rded", hundred, batch=7).fit == replace(usual, lr=2e-3, batch=7)
    assert plan("sre2l", hundred).fit == PUBLISHED_FITS["sre2l"]
    mine = replace(PROTOCOLS["rded"], fit=replace(usual, lr=0.1))
    assert plan_for(mine, hundred, JudgingCase(10)).fit == mine.fit


def test_judges_of_rfad_start_as_its_networks_do(digits: ImageTask) -> None:
    wide = FunctionalModule(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 900), nn.Linear(900, 10)))
    started = [
        JudgeTraining(wide, "own", 10, plan(name, digits.data), None)._start(KEY).params
        for name in ("rfad", "kip", "frepo")
    ]
    for params in started[:2]:
        assert float(params["1.weight"].std()) == pytest.approx((2 / 64) ** 0.5, rel=0.02)
        assert float(params["2.weight"].std()) == pytest.approx((2 / 900) ** 0.5, rel=0.02)
        assert float(params["1.bias"].std()) == pytest.approx(0.1, rel=0.1)
    assert float(started[2]["1.weight"].std()) == pytest.approx((1 / 64 / 3) ** 0.5, rel=0.02)  # torch's own


def test_the_users_numbers_come_first(photographs: ImageData) -> None:
    idc = PROTOCOLS["idc"]
    chosen = plan_for(idc, photographs, JudgingCase(10), JudgingChoices(epochs=7, batch=3, augment=False))
    assert (chosen.fit.epochs, chosen.fit.batch, chosen.augment) == (7, 3, "none")
    whole = plan_for(idc, photographs, JudgingCase(10, whole=True), JudgingChoices(epochs=7))
    assert (whole.fit.epochs, whole.cutmix) == (7, 0)
    long = plan_for(idc, photographs, JudgingCase(10, whole=True), JudgingChoices(epochs=10**4))
    assert long.fit.epochs == photographs.whole_epochs


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Return the optimizer and rate of each judge from here on, which train nothing."""
    found = []

    def score(self: JudgeTraining, *rest: object) -> Scores:
        found.append((self.plan.fit.optimizer, self.plan.fit.lr))
        return Scores(self.title, {"accuracy": (0.5,)})

    monkeypatch.setattr(JudgeTraining, "score", score)
    return found


def test_transformers_train_by_adam_whatever_the_protocol(fitted: list[tuple[str, float]]) -> None:
    digits = image_task("digits", model="convnet-w8")
    batch, rate = digits.select(torch.arange(10)), {"inner_lr": torch.tensor(0.02)}
    for judge, learned in (("convnet-w8", rate), ("vit", rate), ("vit", {})):
        digits.evaluate(batch, judge, Draws(0), 1, learned)
    assert fitted == [("sgd", pytest.approx(0.02)), ("adam", 3e-4), ("adam", 3e-4)]
    own = image_task("digits", model="vit")
    for learned in (rate, {}):  # that its own students learned is another matter
        own.evaluate(batch, "vit", Draws(0), 1, learned)
    assert fitted[3:] == [("sgd", pytest.approx(0.02)), ("adam", 3e-4)]


def test_vggs_and_resnets_are_deep(fitted: list[tuple[str, float]]) -> None:
    own = (torch.rand(8, 1, 32, 32), torch.arange(8) % 2)
    task = image_task(own, test=own, model="convnet-w8")
    batch = task.select(torch.arange(2))
    learned = batch._replace(targets=torch.eye(2) - 0.5)
    for judge in ("convnet-w8", "lenet", "alexnet", "vgg11", "resnet18", "resnet34-bn"):
        task.evaluate(learned, judge, Draws(0), 1, {})
    assert fitted == 3 * [("adam", REGRESSION.lr)] + 3 * [("adam", DEEP_RATE)]
    task.evaluate(batch, "resnet18", Draws(0), 1, {})
    assert fitted[-1] == ("sgd", CLASSIFICATION.lr)


def test_unknown_and_impossible_protocols() -> None:
    with pytest.raises(ConfigError, match="did you mean 'frepo'"):
        find_protocol("frpo")
    with pytest.raises(ConfigError, match="cutmix is a probability"):
        Protocol("mine", "", cutmix=2.0)
    own = Protocol("mine", "")
    assert find_protocol(own) is own


def test_rates_rise_and_anneal() -> None:
    fit = FitProtocol(epochs=10, warmup=4, cosine=True)
    assert [rate_factor(fit, step, 10) for step in (0, 1, 4)] == [0, 0.25, 1]
    assert rate_factor(fit, 7, 10) == pytest.approx(0.01 + 0.99 / 2)
    assert rate_factor(fit, 10, 10) == pytest.approx(0.01)
    assert rate_factor(FitProtocol(epochs=10), 9, 10) == 1


def test_a_schedule_without_restart_equals_torchs_own() -> None:
    data = Batch(torch.randn(5, 2), torch.randint(3, (5,)), torch.ones(5))

    def fitted(restart: bool) -> torch.Tensor:
        from mmdistill.networks.module import FunctionalModule

        network = FunctionalModule(lambda: nn.Linear(2, 3))

        def loss(state, batch, noise):  # type: ignore[no-untyped-def]
            output, buffers = network(state, batch.inputs)
            return nn.functional.cross_entropy(output, batch.targets), buffers

        protocol = FitProtocol(epochs=6, lr=0.1, batch=None, decay_at=(0.5,), decay=0.2, restart=restart)
        return fit_networks(network.init, loss, data, protocol, 1, KEY).params["weight"][0]

    from mmdistill.networks.module import FunctionalModule

    start = FunctionalModule(lambda: nn.Linear(2, 3)).init(KEY.fold("init", 0)).params
    module = nn.Linear(2, 3)
    module.load_state_dict(start)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3], 0.2)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(data.inputs), data.targets).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(fitted(False), module.weight.detach())
    assert not torch.allclose(fitted(True), module.weight)


def test_squared_loss_is_its_formula() -> None:
    logits, targets = torch.randn(4, 3), torch.randn(4, 3)
    expected = [sum((float(logits[i, c]) - 8 * float(targets[i, c])) ** 2 for c in range(3)) / 3 / 64 for i in range(4)]
    torch.testing.assert_close(squared_loss(logits, targets, 8.0), torch.tensor(expected))
    classes = squared_loss(torch.zeros(1, 2), torch.tensor([1]), 1.0)
    assert float(classes) == pytest.approx(0.25)


def test_dcs_augmentation_equals_its_loop_written_form() -> None:
    count, images = 30, KEY.normal(30, 2, 12, 10, dtype=torch.float64)
    found = crop_scale_rotate(KEY, images, 2)
    kinds, u = KEY.fold("operation").integers(3, count).tolist(), KEY.fold("strength").uniform(3, count).T.tolist()
    assert set(kinds) == {0, 1, 2}
    for index, (kind, (a, b, c)) in enumerate(zip(kinds, u, strict=True)):
        image = images[index].numpy()
        by_channel = images[:15].mean((0, 2, 3)) if index < 15 else images[15:].mean((0, 2, 3))
        if kind == 0:
            fill = by_channel.numpy()[:, None, None]
            expected = oracle.crop(image - fill, int(8 * a) - 4, int(8 * b) - 4) + fill
        elif kind == 1:
            expected = oracle.scale(image, 1 / (0.8 + 0.4 * a), 1 / (0.8 + 0.4 * b))
        else:
            fill = float(by_channel.mean())
            expected = oracle.rotate(image - fill, math.radians(int(90 * c) - 45)) + fill
        np.testing.assert_allclose(found[index].numpy(), expected, atol=1e-5)  # strengths are drawn in float32


def test_idcs_judges_mix_no_digits_whatever_else_augments_them(photographs: ImageData) -> None:
    mnist = replace(photographs, name="mnist")
    for own, augment in ((True, None), (False, None), (True, True), (True, False)):
        assert plan("idc", mnist, own=own, augment=augment).cutmix == 0
        assert plan("idc", photographs, own=own, augment=augment).cutmix == (0 if augment is False else 0.5)


def test_a_whole_set_says_how_long_it_trained_where_small_sets_train_otherwise(digits: ImageTask) -> None:
    data = replace(digits.data, whole_epochs=2)
    task = ImageTask(data, digits.network, "own", digits.device)
    updates = 2 * -(-len(data.train_labels) // 256)
    assert task.describe_judge("own").epochs(None) == 2
    assert task.describe_judge("own").epochs(10) == data.judge_epochs
    assert task.describe_judge("ntk").epochs(None) is None
    assert task.evaluate(None, "own", KEY, 1, {}).notes[0] == f"trained for 2 epochs ({updates} updates)"
    alike = ImageTask(data, digits.network, "own", digits.device, judge_epochs=2)
    assert not [note for note in alike.evaluate(None, "own", KEY, 1, {}).notes if "trained" in note]


@pytest.mark.parametrize("name", ["frepo", "rfad", "kip"])
def test_whole_sets_take_no_small_sets_rates(photographs: ImageData, name: str) -> None:
    """A warm-up of 500 steps may be all that the few epochs of a whole set take."""
    found = plan(name, photographs, whole=True)
    assert found.fit == replace(CLASSIFICATION, epochs=photographs.whole_epochs)
    assert not found.squared
    assert found.augment == PROTOCOLS[name].augment


def test_a_preset_judges_with_its_own_network_and_says_so(digits: ImageTask) -> None:
    batch = digits.select(torch.arange(20))
    scores = digits.evaluate(batch, "convnet", KEY, 1, {})
    assert scores.judge == "convnet-w128-nn-x2 [frepo]"
    for name in ("idc", "dc", "kip", "mtt"):
        task = ImageTask(digits.data, digits.network, "own", digits.device, judge_epochs=2, protocol=name)
        assert len(task.evaluate(batch, "own", KEY, 2, {}).values["accuracy"]) == 2


def test_idcs_judges_colour_and_warp_each_minibatch(digits: ImageTask) -> None:
    data = replace(digits.data, name="photographs", mirror=True)
    task = ImageTask(data, digits.network, "own", digits.device, protocol="idc")
    images = torch.randn(60, 1, 8, 8)
    flat = Batch(images, torch.zeros(60, dtype=torch.long), torch.ones(60))
    whole = plan("idc", data, whole=True)  # without CutMix
    found = [task.views(whole, 2, KEY.fold(index), flat).inputs for index in range(12)]
    changed = [(one - images).abs().flatten(1).amax(1) > 1e-3 for one in found]  # type: ignore[operator]
    assert all(bool(every.all()) for every in changed)  # colour changes every image, whatever else is drawn
    kept_zero = [(one == 0).flatten(1).double().mean(1).view(2, 30) for one in found]  # type: ignore[union-attr]
    # a shift brings in whole rows of zeros, which no cut-out of half the side adds to
    assert max(float(share.max()) for share in kept_zero) < 0.25
    apart = [bool((share[0].max() > 0) != (share[1].max() > 0)) for share in kept_zero]
    assert any(apart)  # the minibatches of two networks draw operations of their own


def test_judges_mix_within_the_minibatch_of_each_network(digits: ImageTask) -> None:
    flat = digits.select(torch.arange(60))
    mixing = replace(plan("idc", digits.data), augment="none", cutmix=1.0)
    mixed, expected = digits.views(mixing, 2, KEY, flat), cut_and_mix(KEY.fold("mix"), flat, 2, 1.0, 10)
    assert torch.equal(mixed.inputs, expected.inputs)  # type: ignore[arg-type]
    assert torch.equal(mixed.targets, expected.targets)  # type: ignore[arg-type]
    assert not torch.equal(mixed.inputs, flat.inputs)  # type: ignore[arg-type]


def test_any_network_of_the_grammar_can_judge(digits: ImageTask) -> None:
    assert digits.describe_judge("ConvNet").name == "convnet"
    assert digits.describe_judge("MLP-w8-d1").name == "mlp-d1-w8"
    assert digits.describe_judge("mlp-w128-d2").name == "mlp"
    with pytest.raises(UnsupportedError, match="resnet18 cannot judge digits: needs images of at least 16 x 16"):
        find_judges(digits, ["resnet18"])
    with pytest.raises(UnsupportedError, match="convnet-d9 cannot judge digits: images of 8 x 8 vanish in 9 poolings"):
        find_judges(digits, ["convnet-d9"])
    with pytest.raises(ConfigError, match="unknown judge"):
        find_judges(digits, ["resnet17"])


@pytest.mark.parametrize(
    ("model", "width", "own", "others"),
    [
        ("convnet", None, ["convnet-relu", "convnet-w32-in", "convnet-avgpool-d2"], {"convnet-w8": "convnet-w8"}),
        ("convnet-relu-w32", None, ["convnet", "convnet-w32"], {}),
        ("convnet", 8, ["convnet-relu", "convnet-w8", "convnet-d2-w8"], {"convnet-w32-relu": "convnet-w32"}),
        ("convnet-bn", 8, ["convnet-bn-w8"], {"convnet-w8": "convnet-w8", "convnet-bn-w32": "convnet-w32-bn"}),
        ("mlp", 4, ["mlp-d2", "mlp-w4"], {"mlp-w128": "mlp-w128", "mlp-d1-w4": "mlp-d1-w4"}),
        ("mlp", 128, ["mlp-w128"], {"mlp-w4": "mlp-w4", "vit-w128": "vit"}),
        ("mlp-w4", None, ["mlp-w4-d2"], {"mlp": "mlp", "mlp-w128": "mlp"}),
    ],
)
def test_a_judge_that_is_the_network_distilled_with_has_its_name(
    model: str, width: int | None, own: list[str], others: dict[str, str]
) -> None:
    task = image_task("digits", model=model, width=width)
    assert {task.describe_judge(name).name for name in own} == {task.judges[0]}
    assert {name: task.describe_judge(name).name for name in others} == others
    for name in own:
        assert task._networks.network(name) is task.network
    for name in others:
        assert task._networks.network(name) is not task.network


def test_own_judges_are_own_by_any_spelling(digits: ImageTask) -> None:
    task = image_task("digits", model="mlp", width=4, judge_epochs=2)
    batch, rate = task.select(torch.arange(20)), {"inner_lr": torch.tensor(0.02)}
    plain, spelled = (task.evaluate(batch, name, KEY, 2, rate) for name in ("mlp", "mlp-w4-d2"))
    assert plain.judge == spelled.judge == "mlp"
    assert plain.values == spelled.values
    with pytest.raises(ConfigError, match="the width is given twice"):
        image_task("digits", model="mlp-w128", width=4)


def test_frepo_judges_its_own_network_without_norm() -> None:
    found = {
        model: image_task("digits", model=model, protocol="frepo")._networks.network_name(model)
        for model in ("freponet-w8-bn", "convnet-w8-x2-bn")
    }
    assert found == {"freponet-w8-bn": "freponet-w128", "convnet-w8-x2-bn": "convnet-w128-nn-x2"}


def narrow(model: str, protocol: str | None = None) -> ImageTask:
    images, labels = torch.arange(12 * 3 * 40, dtype=torch.uint8).view(12, 1, 3, 40), torch.arange(12) % 2
    return image_task((images, labels), test=(images, labels), model=model, protocol=protocol, judge_epochs=1)


def test_judges_that_cannot_read_the_images_are_told_before_the_run() -> None:
    task = narrow("mlp")
    assert find_judges(task, ["all"]) == ["mlp", "ntk"]
    for asked in (["convnet"], ["mlp", "convnet"], ["convnet", "unknown"]):
        with pytest.raises(
            UnsupportedError, match=r"convnet cannot judge .* poolings; a depth of 1 fits \(the model con"
        ):
            find_judges(task, asked)
    assert find_judges(task, ["convnet-d1"]) == ["convnet-d1"]
    readable, refused = readable_judges(task, ["convnet", "mlp", "MLP"])
    assert (readable, list(refused)) == (["mlp"], ["convnet"])
    assert refused["convnet"].startswith("convnet cannot judge")
    with pytest.raises(UnsupportedError, match="convnet cannot judge"):
        readable_judges(task, ["convnet"])
    with pytest.raises(ConfigError, match="unknown judge 'unknown'"):
        readable_judges(task, ["convnet", "unknown"])
    with pytest.raises(
        UnsupportedError, match="the protocol frepo judges by convnet-w128-nn-x2; choose another, since"
    ):
        find_judges(narrow("convnet-nopool", "frepo"), [])


@pytest.mark.parametrize("protocol", ["frepo", "rfad", "kip"])
def test_a_protocols_network_keeps_the_depth_that_the_model_names(protocol: str) -> None:
    task = narrow("convnet-d1", protocol)
    title = task.describe_judge("convnet-d1").title
    assert title.startswith("convnet-d1-w")
    assert title.endswith(f" [{protocol}]")
    scores = task.evaluate(task.select(torch.arange(4)), "convnet-d1", KEY, 1, {})
    assert scores.judge == title


def test_images_of_one_pixel_are_told_which_networks_take_them() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1)
    with pytest.raises(UnsupportedError, match="vanish in 2 poolings; the models convnet-nopool and mlp take them"):
        image_task((images, torch.arange(4) % 2), test=(images, torch.arange(4) % 2))
