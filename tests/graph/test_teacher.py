from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.graph import teacher
from mmdistill.graph.scene import Part, Scene
from mmdistill.graph.task import graph_task
from mmdistill.graph.teacher import TeacherRecipe, _Perceptron, teach, teacher_loss
from mmdistill.labels import one_hot
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.runtime import Draws
from tests.graph.toy import planted_fields, planted_graph
from tests.oracles.graph import averaged_hops, consistent_predictions

SHORT = TeacherRecipe(networks=2, epochs=60, hops=3, width=16)


def parts() -> tuple[Part, Part]:
    task = graph_task(planted_graph())
    return task.parts["train"], task.parts["val"]


def test_the_loss_is_that_of_the_paper() -> None:
    logits = Draws(0).normal(3, 7, 4, dtype=torch.float64)
    nodes, classes = torch.tensor([0, 2, 5]), torch.tensor([1, 3, 0])
    recipe = replace(SHORT, consistency=0.7, temperature=0.4)
    predictions = list(logits.softmax(2).numpy())
    expected = consistent_predictions(predictions, nodes.tolist(), classes.tolist(), 0.7, 0.4)
    assert float(teacher_loss(logits.log_softmax(2), nodes, classes, recipe)) == pytest.approx(expected, rel=1e-9)


def test_no_gradient_passes_what_predictions_shall_agree_with() -> None:
    logits = Draws(0).normal(2, 5, 3).requires_grad_(True)
    recipe, labelled = replace(SHORT, consistency=1.0), torch.tensor([0])
    loss = teacher_loss(logits.log_softmax(2), labelled, labelled, recipe)
    [found] = torch.autograd.grad(loss, logits)
    agreed = logits.detach().softmax(2).mean(0) ** (1 / recipe.temperature)
    agreed = agreed / agreed.sum(1, keepdim=True)
    supervised = teacher_loss(logits.log_softmax(2), labelled, labelled, replace(SHORT, consistency=0.0))
    by_hand = supervised + (logits.softmax(2) - agreed).square().sum(2).mean()
    assert torch.allclose(found, torch.autograd.grad(by_hand, logits)[0])


def halved(values: Tensor, chance: Tensor) -> Tensor:
    """What dropout at a rate of one half leaves."""
    return 2 * values * (chance >= 0.5)


def test_features_are_averaged_over_hops_and_dropped_sparse_and_dense() -> None:
    """Features, nodes and hidden units are dropped, each by a key of its own."""
    train, _ = parts()
    weights = train.scene.adjacency.among(torch.arange(len(train.scene))).numpy()
    few = train.scene.x * (Draws(1).uniform(*train.scene.x.shape) < 0.05)
    for x in (train.scene.x, few):
        scene = Scene(x, train.scene.adjacency, train.scene.y, train.scene.device)
        perceptron = _Perceptron(scene, 3, Draws(2), SHORT)
        assert perceptron.x.is_sparse == (x is few)
        first, second, *biases = (tensor.detach() for tensor in perceptron.params)
        for bias in biases:
            bias += Draws(4).normal(len(bias))
        features = x.clone()
        features[x != 0] = halved(x[x != 0], Draws(5).fold("features").uniform(int((x != 0).sum())))
        node, unit = Draws(5).fold("nodes").uniform(120, 1), Draws(5).fold("units").uniform(120, SHORT.width)
        for keys, hidden, chance in (([None], x @ first, None), ([Draws(5)], halved(features @ first, node), unit)):
            units = (torch.from_numpy(averaged_hops(weights, hidden.numpy(), SHORT.hops)) + biases[0]).relu()
            units = units if chance is None else halved(units, chance)
            expected = (units @ second.double() + biases[1]).log_softmax(1)
            assert torch.allclose(perceptron(keys)[0].double(), expected, atol=1e-5)
        dropping_nothing = _Perceptron(scene, 3, Draws(2), replace(SHORT, dropped=0.0))
        plain = _Perceptron(scene, 3, Draws(2), SHORT).read()
        assert torch.allclose(dropping_nothing([Draws(5), Draws(6)])[1], plain, atol=1e-6)


def test_what_dropout_keeps_is_scaled_up() -> None:
    scene = parts()[0].scene
    perceptron = _Perceptron(scene, 3, Draws(2), replace(SHORT, dropped=0.75))
    units = perceptron._kept_units(torch.full((40, 50), 2.0), Draws(3))
    assert set(units.unique().tolist()) == {0.0, 8.0}
    assert float(units.mean()) == pytest.approx(2.0, rel=0.1)


def test_every_prediction_of_every_epoch_drops_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    paths, taught = [], _Perceptron.taught

    def watched(self: _Perceptron, part: Part, keys: Sequence[Draws]) -> tuple[Tensor, Tensor, Tensor]:
        paths.extend(key.path for key in keys)
        return taught(self, part, keys)

    monkeypatch.setattr(_Perceptron, "taught", watched)
    train, val = parts()
    teach(train, val, 3, Draws(0), replace(SHORT, networks=2, epochs=3, samples=2))
    assert len(set(paths)) == len(paths) == 2 * 3 * 2


def test_a_teacher_keeps_known_labels_and_knows_most_others() -> None:
    train, val = parts()
    found = teach(train, val, 3, Draws(0), SHORT)
    assert torch.equal(found[train.nodes], one_hot(train.classes, 3))
    assert torch.allclose(found.sum(1), torch.ones(len(found)))
    others = torch.ones(len(found), dtype=torch.bool).index_fill(0, train.nodes, False)
    right = (found.argmax(1) == train.scene.y)[others].float().mean()
    assert float(right) > 0.9  # softmax regression on the labelled nodes' own features reaches two thirds
    few = replace(SHORT, epochs=10)
    found = teach(train, val, 3, Draws(0), few)
    assert torch.equal(found, teach(train, val, 3, Draws(0), few))
    assert not torch.equal(found, teach(train, val, 3, Draws(1), few))


def test_of_a_large_graph_features_are_propagated_once_and_batches_read(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = parts()
    scene = train.scene
    weights = scene.adjacency.among(torch.arange(len(scene))).numpy()
    expected = averaged_hops(weights, scene.x.double().numpy(), SHORT.hops)
    perceptron = teacher._SettledPerceptron(scene, 3, Draws(2), SHORT)
    assert torch.allclose(perceptron.x.double(), torch.from_numpy(expected), atol=1e-6)
    assert torch.allclose(perceptron.read(), _Perceptron(scene, 3, Draws(2), SHORT).read(), atol=1e-5)
    features, chance = Draws(5).fold("features").uniform(2, 12), Draws(5).fold("units").uniform(2, SHORT.width)
    units = halved((halved(perceptron.x[[7, 3]], features) @ perceptron.params[0]).relu(), chance)
    dropped = perceptron([Draws(5)], torch.tensor([7, 3]))[0]
    assert torch.allclose(dropped, (units @ perceptron.params[1]).log_softmax(1), atol=1e-6)
    monkeypatch.setattr(teacher, "LARGE", len(scene))
    monkeypatch.setattr(teacher, "BATCH", 20)
    outputs, labelled, classes = perceptron.taught(train, [Draws(5), Draws(6)])
    assert outputs.shape == (2, 20, 3)
    assert len(labelled) == 10
    assert torch.equal(classes, train.classes[Draws(5).fold("labelled").permutation(18)[:10]])
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "BATCH", 100)  # more than twice the labelled nodes
        outputs, labelled, _ = perceptron.taught(train, [Draws(5)])
        assert (outputs.shape[1], len(labelled)) == (100, 18)
    found = teach(train, val, 3, Draws(0), SHORT)
    others = torch.ones(len(found), dtype=torch.bool).index_fill(0, train.nodes, False)
    assert float((found.argmax(1) == scene.y)[others].float().mean()) > 0.9


def test_validation_nodes_choose_the_epoch_in_the_same_graph_alone() -> None:
    train, val = parts()
    recipe = replace(SHORT, networks=1, epochs=6, validate_every=1)
    elsewhere = val._replace(scene=Scene(val.scene.x, val.scene.adjacency, val.scene.y, val.scene.device))
    last = teach(train, elsewhere, 3, Draws(0), recipe)
    assert torch.equal(
        last, teach(train, val._replace(nodes=val.nodes[:0], classes=val.classes[:0]), 3, Draws(0), recipe)
    )
    assert torch.equal(last, teach(train, val, 3, Draws(0), replace(recipe, validate_every=6)))
    wrong = val._replace(classes=(val.classes + 1) % 3)  # the epoch that is worst for the true classes
    chosen, worst = (teach(train, which, 3, Draws(0), recipe) for which in (val, wrong))
    accuracy = [float((found[val.nodes].argmax(1) == val.classes).float().mean()) for found in (chosen, last, worst)]
    assert accuracy[0] >= accuracy[1]
    assert accuracy[0] > accuracy[2]
    sure, unsure = (torch.tensor([[chance, 1 - chance]]).log() for chance in (0.9, 0.6))  # both right
    assert teacher._score(sure, torch.tensor([0])) > teacher._score(unsure, torch.tensor([0]))


def test_a_teacher_is_the_mean_of_its_networks_whose_weights_decay() -> None:
    train, val = parts()
    recipe, unlabelled = replace(SHORT, epochs=5), torch.arange(18, 120)
    apart = [teacher._train(train, val, 3, Draws(0).fold("teacher", index), recipe) for index in range(2)]
    assert torch.equal(teach(train, val, 3, Draws(0), recipe)[unlabelled], torch.stack(apart).mean(0)[unlabelled])
    blind = teach(train, val._replace(nodes=val.nodes[:0]), 3, Draws(0), replace(SHORT, weight_decay=1e3))
    assert torch.allclose(blind[unlabelled], torch.tensor(1 / 3), atol=0.02)


def test_recipes_out_of_range_are_refused() -> None:
    for changes, message in (
        ({"networks": 0}, "networks is a whole number of at least 1, got 0"),
        ({"hops": 1.5}, "hops is a whole number of at least 1, got 1.5"),
        ({"dropped": 1.0}, "dropped is at least 0 and below 1, got 1"),
        ({"temperature": 0.0}, "temperature is above 0, got 0"),
        ({"lr": float("nan")}, "lr is a number of at least 0, got nan"),
        ({"consistency": -1.0}, "consistency is a number of at least 0, got -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            TeacherRecipe(**changes)  # type: ignore[arg-type]


def test_networks_of_a_graph_train_on_all_nodes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into minibatches, or augmented, its sparse rows would be read beyond their ends."""
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    task = graph_task(planted_fields(), model="gcn")
    labelled = distill(task, "gcond-x", nodes=6, label="teacher", settings={"steps": 1, "teacher_epochs": 2})
    assert isinstance(labelled.batch.targets, Tensor)
    torch.testing.assert_close(labelled.batch.targets.sum(1), torch.ones(6))
    whole = task.training_batch()
    with pytest.raises(ConfigError, match="samples that share inputs"):
        fit_networks(task.init, lambda *given: None, whole, FitProtocol(epochs=1, batch=2), 1, Draws(0))  # type: ignore[arg-type,return-value]
