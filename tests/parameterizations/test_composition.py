"""Every parameterization with every family of methods; what is stored is what is counted."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmdistill.budget import GivenBudget, method_within_budget, parse_bytes
from mmdistill.distill import distill, find_parameterization
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.generator import GeneratorRecipe, trained_generator
from mmdistill.image.methods.generative import DIGITS_LATENTS, generated, of_generator
from mmdistill.image.storage import (
    addressed,
    addressed_hallucinated,
    addressed_latent,
    canvas,
    coefficients,
    hallucinated,
    latent,
)
from mmdistill.labels import FixedLabels, LabelKind
from mmdistill.method import Method, Storage
from mmdistill.methods import CORE_METHODS
from mmdistill.parameterizations.decoder import DecodedCodes
from mmdistill.parameterizations.raw import Raw
from mmdistill.registry import get_domain, get_method, get_parameterization
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, Task

KEY = Draws(3)
IMAGE_BYTES = 64 * 4 + 1
SMALL = {
    **DOMAIN.parameterizations,
    "latent": latent(2, 2, 2),
    "hallucinated": hallucinated(2),
    "addressed-latent": addressed_latent(2, 2, 2, multiple=2),
    "addressed-hallucinated": addressed_hallucinated(2, 2),
    "addressed-upsample-2": addressed(multiple=1, tiles=2),
    "latent-upsample-2": latent(2, 2, 2, tiles=2),
    "addressed-latent-upsample-2": addressed_latent(2, 1, 2, multiple=1, tiles=2),
    "coefficients-upsample-2": coefficients(1, tiles=2),
    "canvas-upsample-2": canvas(1, tiles=2),
    "gan-latents": generated(GeneratorRecipe(latent_size=4, width=2, critic_width=2, steps=2)),
}
"""The parameterizations by name, with decoders that suit 8 x 8 pixels."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators are kept for this run alone."""
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=4)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """One expert of one epoch, for all that match trajectories."""
    folder = str(tmp_path_factory.mktemp("experts"))
    return {"experts": 1, "expert_steps": 1, "start_epochs": 1, "expert_folder": folder}


def quick(name: str) -> Method:
    """A family's representative with two cheap steps."""
    method = {**DOMAIN.methods, **DOMAIN.presets["digits"]}[name]
    own = method.settings

    def settings(budget: int) -> Settings:
        return replace(
            own(budget), steps=2, real_batch=4, inner_steps=2, inner_batch=8, inner_parts=1, outer_steps=1, init="noise"
        )

    return replace(method, settings=settings)


def stored(build: Storage, task: ImageTask, budget: int, label: LabelKind = "hard", limit: int = 0) -> int:
    """The bytes of the tensors that a file of all that is stored would hold."""
    settings = replace(CORE_METHODS["dm"].settings(budget), init="noise", stored_bytes=limit)
    made = build(task, budget, settings, label, KEY)
    written = 0
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            written += tensor.numel() * tensor.element_size()
        else:
            width = next(d for d in (torch.uint8, torch.uint16, torch.uint32) if tensor.max() <= torch.iinfo(d).max)
            written += tensor.numel() * torch.iinfo(width).bits // 8
    assert made.stored_bytes() == written
    return written


FAMILIES = ("dm", "dsa", "idc", "dd", "rfad", "mtt")
PAIRS = [(name, family) for name in sorted(SMALL) for family in FAMILIES]


def marked(name: str, family: str) -> object:
    """The pairs with DM or with latent codes run always, all others in the slow suite."""
    marks = () if family == "dm" or name == "latent" else (pytest.mark.slow,)
    return pytest.param(name, family, marks=marks)


@pytest.mark.parametrize(("name", "family"), [marked(*pair) for pair in PAIRS])
def test_every_parameterization_goes_with_every_family(
    task: ImageTask, name: str, family: str, experts: dict[str, object]
) -> None:
    method = quick(family).with_settings(**experts)
    found = distill(task, method, ipc=4, parameterization=SMALL[name])
    assert found.steps == 2
    assert torch.isfinite(found.batch.inputs).all()  # type: ignore[arg-type]
    if method.label == "hard":
        assert found.stored_bytes <= 40 * IMAGE_BYTES


@pytest.mark.parametrize("name", sorted(SMALL))
def test_samples_lie_class_after_class_equally_many_of_each(task: ImageTask, name: str) -> None:
    settings = replace(CORE_METHODS["dm"].settings(8), init="noise")
    made = SMALL[name](task, 8, settings, "hard", KEY)
    classes = torch.arange(10).repeat_interleave(made.largest_class)
    assert made.classes is not None
    assert torch.equal(made.classes, classes)
    assert torch.equal(made(KEY).targets, classes)  # type: ignore[arg-type]


def test_samples_of_uneven_classes_are_chosen_among_their_own() -> None:
    classes = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])
    made = Raw(torch.arange(8.0)[:, None], FixedLabels(classes), classes, 3)
    for index in range(20):
        chosen = made.choose(KEY.fold(index), 2)
        assert chosen.present.sum(1).tolist() == [2, 1, 2]
        for label, (rows, present) in enumerate(zip(chosen.rows, chosen.present, strict=True)):
            own = rows[present > 0]
            assert len(own.unique()) == len(own)
            assert bool((classes[own] == label).all())
        batch = chosen.by_class(made.part(chosen.rows.flatten(), KEY))
        assert torch.equal(batch.batch.weight, chosen.present)


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("label", ["hard", "unrestricted"])
def test_bytes_are_those_of_the_tensors(task: ImageTask, name: str, label: LabelKind) -> None:
    size = stored(SMALL[name], task, 8, label)
    budget = 80 * (IMAGE_BYTES if label == "hard" else 64 * 4 + 40)
    if name in ("upsample-2", "upsample-3") and label == "unrestricted":
        budget += (int(name[-1]) ** 2 - 1) * 80 * 40  # each tile has learned labels of its own
    assert size <= budget
    assert size > 0.8 * budget or name.startswith(("coefficients", "canvas"))


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("limit", [25_000, "16KiB"])
def test_a_budget_in_bytes_is_kept_and_used(task: ImageTask, name: str, limit: int | str) -> None:
    method = CORE_METHODS["dm"].with_settings(init="noise").stored_as(SMALL[name])
    found, count = method_within_budget(task, method, GivenBudget(bytes=limit))
    made = Distiller(task, found, count).start().parameterization.stored_bytes()
    allowed = parse_bytes(limit)
    assert made <= allowed
    if SMALL[name].fills:
        assert stored(SMALL[name], task, count, limit=allowed) == made
    else:
        assert made + 10 * IMAGE_BYTES > allowed


@pytest.mark.parametrize("within_budget", [True, False])
def test_bytes_include_the_generator(task: ImageTask, within_budget: bool) -> None:
    recipe = GeneratorRecipe(latent_size=4, width=2, critic_width=2, steps=2)
    build = generated(recipe, within_budget=within_budget)
    assert 0.9 * 25_000 < stored(build, task, 1, limit=25_000) <= 25_000
    given = of_generator(trained_generator(task, recipe), recipe.latent_size, conditional=True)
    assert stored(given, task, 1, limit=25_000) == stored(build, task, 1, limit=25_000)


def test_hallucinators_of_a_method_share_a_budget_in_bytes(task: ImageTask) -> None:
    method = get_method(DOMAIN, "haba", "digits").with_settings(init="noise")
    assert method.settings(1).inner_parts == 2
    found, count = method_within_budget(task, method, GivenBudget(bytes="10KB"))
    assert count == 3  # raw images per class
    made = Distiller(task, found, count).start().parameterization
    assert made.stored_bytes() == 3 * 10 * IMAGE_BYTES + 2 * 92 * 4  # as many bases, and two hallucinators
    assert made(KEY).weight.shape == (60,)


@pytest.mark.parametrize("name", ["it-gan", "haba", "kfs", "idc", "dm", "ld"])
def test_sizing_trains_nothing(task: ImageTask, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a set was sized by training")

    for place in (
        "image.methods.generative.trained_generator",
        "parameterizations.generated.train_briefly",
        "parameterizations.decoder.fit_to_images",
        "coresets.train_briefly",
        "distiller.trained_teacher",
    ):
        monkeypatch.setattr(f"mmdistill.{place}", refuse)
    method = get_method(DOMAIN, name, "digits")
    for labelled in (method, method.labelled("teacher")):
        assert method_within_budget(task, labelled, GivenBudget(bytes="50KB"))[1] >= 1


def test_bytes_in_words() -> None:
    assert [parse_bytes(text) for text in ("100KB", "1.5 MiB", "7", 12, "3b")] == [100_000, 1_572_864, 7, 12, 3]
    for wrong in ("100 apples", "-3KB", "KB", "0", "9" * 400, "9" * 30):
        with pytest.raises(ConfigError, match=r"such as 100KB|at least one byte"):
            parse_bytes(wrong)


def test_budgets_that_cannot_be_kept_are_refused(task: ImageTask) -> None:
    with pytest.raises(ConfigError, match=r"too few for DM: its smallest set \(ipc 1\) takes 2,570"):
        distill(task, "dm", bytes="2KB")
    with pytest.raises(ConfigError, match="too few are left for one code"):
        distill(task, "dm", bytes=900, parameterization=latent(2, 2, 4))
    with pytest.raises(ConfigError, match="got ipc=1, bytes=2KB"):
        distill(task, "dm", ipc=1, bytes="2KB")
    with pytest.raises(ConfigError, match="leave no room for two real images"):
        distill(task, "dm", ipc=1, parameterization=coefficients(multiple=50))
    with pytest.raises(ConfigError, match="hold no canvas"):
        distill(task, "dm", bytes=2000, parameterization=canvas())


def test_closed_forms_keep_their_own_storage() -> None:
    solved = replace(CORE_METHODS["dm"], solve=lambda task, budget, settings, draws: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="closed form"):
        solved.stored_as(canvas())


def test_a_storage_brings_the_rates_of_its_groups() -> None:
    own, other = CORE_METHODS["dm"].settings(1), CORE_METHODS["dm"].stored_as(latent()).settings(1)
    assert (own.optimizers["codes"].name, other.optimizers["codes"].name) == ("sgd", "adam")
    assert "decoder" in other.optimizers
    assert CORE_METHODS["dm"].stored_as(DOMAIN.parameterizations["raw"]).settings(1).optimizers == own.optimizers


class Doubled(Raw):
    """Decodes every image twice, and says nothing of it."""

    def forward(self, draws: Draws) -> Batch:
        """Return two batches in one."""
        inputs, targets, weight = super().forward(draws)
        assert isinstance(inputs, Tensor)
        assert isinstance(targets, Tensor)
        return Batch(inputs.repeat(2, 1, 1, 1), targets.repeat(2), weight.repeat(2))


def test_samples_unlike_real_ones_are_refused_in_words(task: ImageTask) -> None:
    codes, labels, classes = torch.zeros(10, 1, 4, 4), FixedLabels(torch.arange(10)), torch.arange(10)

    def thrice(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> DecodedCodes:
        return DecodedCodes(codes, [nn.Upsample(scale_factor=3)], labels, classes, 10)

    def doubled(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Doubled:
        return Doubled(torch.zeros(10, 1, 8, 8), labels, classes, 10)

    with pytest.raises(
        ShapeError, match=r"DecodedCodes decoded samples of \(1, 12, 12\), and real ones are \(1, 8, 8\)"
    ):
        distill(task, quick("dm"), ipc=1, parameterization=Storage(thrice))
    with pytest.raises(ShapeError, match="Doubled decoded 20 samples, and says the classes of 10"):
        distill(task, quick("dm"), ipc=1, parameterization=Storage(doubled))


def test_names_of_parameterizations(task: ImageTask) -> None:
    assert get_parameterization(DOMAIN, "Upsample_04").name == "upsample-4"
    for name in ("upsample-", "upsample--2", "upsample-0", "upsample-\u0663", "raw-2"):
        with pytest.raises(ConfigError, match="unknown parameterization of image data"):
            get_parameterization(DOMAIN, name)
    with pytest.raises(ConfigError, match="did you mean 'upsample-2'"):
        distill(task, "dm", ipc=1, parameterization="upsampel-2")
    with pytest.raises(ConfigError, match="graph data are stored as each method does it"):
        get_parameterization(get_domain("graph"), "raw")


def test_storage_has_settings_for_a_data_set() -> None:
    image = get_domain("image")
    digits, others = (get_parameterization(image, "gan-latents", data) for data in ("digits", "mnist"))
    assert digits.build is DIGITS_LATENTS.build
    assert others.build is image.parameterizations["gan-latents"].build
    assert find_parameterization(image_task("digits", width=4), "gan-latents").build is digits.build
