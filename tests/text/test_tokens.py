import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, ShapeError
from mmdistill.evaluate import evaluate
from mmdistill.labels import FixedLabels
from mmdistill.method import Method
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.schedules import sgd_step
from mmdistill.networks.teacher import soft_labels
from mmdistill.objectives.base import Network, class_gradients
from mmdistill.objectives.kernel_ridge import KernelRidgeMatching
from mmdistill.parameterizations.raw import Raw
from mmdistill.registry import get_domain, get_method, method_names
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState, Tensors, one_tensor, take
from mmdistill.testing import as_float64, check_objective, check_task
from mmdistill.text import token_judges
from mmdistill.text.attention import AttentionLabels, attention_loss
from mmdistill.text.draw import draw, nearest_texts
from mmdistill.text.encoder import PAIR, TransformerEncoder
from mmdistill.text.exports import export_embeds, export_tensors, export_texts
from mmdistill.text.methods import PointKernel, as_text_task
from mmdistill.text.reading import Reader
from mmdistill.text.token_methods import TOKEN_METHODS, EncodedRidgeMatching
from mmdistill.text.token_models import INPUT_SCALE, Recurrent, SequenceClassifier, TextCNN, TransformerClassifier
from mmdistill.text.token_task import TokenTask, token_task
from mmdistill.text.vocabulary import AverageEncoder, Vocabulary, in_model_units, load_vocabulary
from mmdistill.text.words import Words, as_token_task, attended_samples, token_samples, word_samples
from tests.oracles import text as oracle
from tests.text.corpus import corpus, sentences, small_task, tiny_transformer, token_corpus_task
from tests.toys import held


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    return load_vocabulary(TransformerEncoder(folder))


@pytest.fixture(scope="module")
def task(folder: Path) -> TokenTask:
    return token_corpus_task(folder)


@pytest.fixture(scope="module")
def transformer(folder: Path) -> TokenTask:
    return token_corpus_task(folder, "transformer", length=8)


def quick(name: str, **changes: object) -> Method:
    """Return a method with a few steps and small batches."""
    return TOKEN_METHODS[name].with_settings(**{"steps": 2, "real_batch": 8, "init": "real", **changes})


@pytest.mark.parametrize(("model", "features"), [("textcnn", 3 * 8), ("bigru", 2 * 8), ("transformer", 16)])
def test_conformance(folder: Path, model: str, features: int) -> None:
    task = token_corpus_task(folder, model, length=7, judge_epochs=2)
    check_task(task, judge=model)
    assert task.features(task.init(Draws(0)), task.select(torch.arange(4)).inputs)[-1].shape == (4, features)


def test_vectors_are_the_standardised_input_embeddings(folder: Path, vocabulary: Vocabulary) -> None:
    table = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert float(vocabulary.vectors.mean(0).abs().max()) < 1e-5
    assert float(vocabulary.vectors.square().mean()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(in_model_units(vocabulary.vectors, vocabulary.scale, vocabulary.mean), table)
    torch.testing.assert_close(vocabulary.in_own_units(table), vocabulary.vectors)


def test_tokens_are_cut_counted_and_masked(vocabulary: Vocabulary) -> None:
    tokens = vocabulary.tokenize(["bread soup", "the star was very good and new"], 6)
    assert tokens.ids.shape == (2, 6)
    assert tokens.mask.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert tokens.truncated == 1
    assert vocabulary.words(tokens.ids[0][tokens.mask[0]]) == "bread soup"
    assert tokens.ids[1, -1] == vocabulary.tokenizer.sep_token_id  # the end token survives the cut
    with pytest.raises(ConfigError, match="at least 3"):
        vocabulary.tokenize(["bread"], 2)


def test_the_default_length_holds_95_percent_whole(vocabulary: Vocabulary) -> None:
    texts = ["bread"] * 97 + ["bread " * 9] * 3
    tokens = vocabulary.tokenize(texts)
    assert tokens.ids.shape[1] == 3
    assert tokens.truncated == 3
    assert vocabulary.tokenize(["bread"] * 9 + ["bread soup"]).ids.shape[1] == 4
    assert vocabulary.tokenize(["bread " * 500]).ids.shape[1] == 128


def test_pairs_are_joined_as_the_tokenizer_does_it(vocabulary: Vocabulary) -> None:
    found = vocabulary.tokenize([f"bread soup{PAIR}star"], 8)
    expected = vocabulary.tokenizer("bread soup", "star")["input_ids"]
    assert found.ids[0, : len(expected)].tolist() == expected


def test_a_length_has_room_for_a_word_of_each_text_of_a_pair(vocabulary: Vocabulary) -> None:
    pair = f"bread soup{PAIR}star"
    with pytest.raises(ConfigError, match=r"a length of 4 tokens leaves no room for a word .* at least 5"):
        vocabulary.tokenize(["bread", pair], 4)
    tokens = vocabulary.tokenize([pair], 5)
    assert vocabulary.words(tokens.ids[0], pair=True) == f"bread{PAIR}star"
    assert vocabulary.tokenize(["bread"] * 99 + [pair]).ids.shape[1] == 5  # though 95 % need 3


def test_a_tokenizer_without_a_pad_token_serves_as_well(folder: Path, tmp_path: Path) -> None:
    texts = ["bread", "bread soup and salt"]
    tiny_transformer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["pad_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    points = [TransformerEncoder(place).encode(texts).points for place in (folder, tmp_path)]
    torch.testing.assert_close(points[0], points[1])
    encoder = TransformerEncoder(folder)
    without = load_vocabulary(encoder)
    without.tokenizer.pad_token = None
    tokens = without.tokenize(["bread", "bread soup"], 5)
    assert tokens.mask.sum(1).tolist() == [3, 4]


def test_nearest_tokens(vocabulary: Vocabulary) -> None:
    everything = torch.arange(len(vocabulary.vectors))
    ids = torch.tensor([[7, 9], [11, 30]])
    assert torch.equal(vocabulary.nearest(vocabulary.vectors[ids], everything), ids)
    some = torch.tensor([7, 8, 12])
    moved = vocabulary.vectors[ids] + 0.3
    distances = torch.cdist(moved, vocabulary.vectors[some])
    assert torch.equal(vocabulary.nearest(moved, some), some[distances.argmin(2)])
    with pytest.raises(ShapeError, match="whose have 16"):
        vocabulary.nearest(torch.ones(2, 3), some)


def test_the_lstm_and_the_gru_are_those_of_torch() -> None:
    for gates, kind in ((4, nn.LSTM), (3, nn.GRU)):
        own = Recurrent(5, 3, 4, gates).double()
        theirs = kind(5, 4, batch_first=True, bidirectional=True).double()
        with torch.no_grad():
            for index, suffix in enumerate(("", "_reverse")):
                getattr(theirs, f"weight_ih_l0{suffix}").copy_(own.inputs[index].weight * INPUT_SCALE)
                getattr(theirs, f"bias_ih_l0{suffix}").copy_(own.inputs[index].bias)
                getattr(theirs, f"weight_hh_l0{suffix}").copy_(own.hidden[index].weight)
                getattr(theirs, f"bias_hh_l0{suffix}").copy_(own.hidden[index].bias)
        x = Draws(0).normal(2, 6, 5, dtype=torch.float64)
        mask = torch.ones(2, 6, dtype=torch.bool)
        expected = own.head(theirs(x)[0].amax(1))
        torch.testing.assert_close(own({"vectors": x, "mask": mask}), expected)
        mask[1, 4:] = False
        short = own.head(theirs(x[1:, :4])[0].amax(1))  # what follows a text's end changes nothing
        torch.testing.assert_close(own({"vectors": x, "mask": mask})[1:], short)


def test_the_textcnn_against_loops() -> None:
    net = TextCNN(3, 2, 4, windows=(2, 3)).double()
    x = Draws(0).normal(1, 5, 3, dtype=torch.float64) / INPUT_SCALE
    filters = [(c.weight.tolist(), c.bias.tolist(), c.padding[0]) for c in net.convolutions]  # type: ignore[union-attr,operator,index]
    pooled = oracle.max_over_time((INPUT_SCALE * x[0]).tolist(), filters)
    expected = net.head(torch.tensor(pooled, dtype=torch.float64))
    torch.testing.assert_close(net({"vectors": x, "mask": torch.ones(1, 5, dtype=torch.bool)})[0], expected)


def test_what_follows_a_text_s_end_changes_nothing_for_the_textcnn() -> None:
    net = TextCNN(3, 2, 4, windows=(2, 3, 4, 5)).double()
    for convolution in net.convolutions:
        nn.init.ones_(convolution.bias)  # so large that windows without tokens would win
        nn.init.constant_(convolution.weight, -1.0)
    x = Draws(0).uniform(1, 5, 3).double()
    alone = net({"vectors": x, "mask": torch.ones(1, 5, dtype=torch.bool)})
    padded = nn.functional.pad(x, (0, 0, 0, 6), value=3.0)
    torch.testing.assert_close(net({"vectors": padded, "mask": torch.arange(11)[None] < 5}), alone)


def test_vectors_give_the_transformer_what_its_tokens_give(transformer: TokenTask, folder: Path) -> None:
    from transformers import AutoModel

    batch = transformer.select(torch.arange(4))
    ids = transformer.tokens.train.ids[:4]
    mask = transformer.tokens.train.mask[:4]
    hidden = AutoModel.from_pretrained(folder)(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    pooled = 4 * nn.functional.normalize((hidden * mask[..., None]).sum(1), dim=1)
    found = transformer.features(transformer.init(Draws(0)), batch.inputs)[-1]
    torch.testing.assert_close(found, pooled, rtol=1e-4, atol=1e-4)


def test_models_stored_in_half_precision_run_in_float32(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    half, whole = tiny_transformer(tmp_path / "half"), tiny_transformer(tmp_path / "whole")
    model = AutoModel.from_pretrained(folder).bfloat16()
    model.save_pretrained(half)
    model.float().save_pretrained(whole)
    task = token_corpus_task(half, "transformer", length=6)
    assert {tensor.dtype for tensor in task.init(Draws(0)).params.values()} == {torch.float32}
    points = [TransformerEncoder(place).encode(["bread soup", "star"]).points for place in (half, whole)]
    torch.testing.assert_close(points[0], points[1])


def test_each_network_has_the_pretrained_body_and_a_head_of_its_own(transformer: TokenTask) -> None:
    one, other = transformer.init(Draws(0)), transformer.init(Draws(1))
    for name, tensor in one.params.items():
        same = torch.equal(tensor, other.params[name])
        assert same == (name != "head.weight"), name
    assert float(one.params["head.weight"].std()) == pytest.approx(0.02, rel=0.3)
    assert not one.params["head.bias"].any()
    real = transformer.sample_real(Draws(0), None, 8)
    assert isinstance(real, Batch)
    sgd_step(transformer, one, {}, real, 0.5, 0.0, Draws(0))
    again = transformer.init(Draws(0))
    assert all(torch.equal(tensor, again.params[name]) for name, tensor in other.params.items() if "head" not in name)


def test_gradients_of_transformers_can_be_differentiated(transformer: TokenTask) -> None:
    real = transformer.sample_real(Draws(0), torch.arange(3), 2)
    assert isinstance(real, ClassBatch)
    vectors = real.batch.inputs["vectors"].clone().requires_grad_()  # type: ignore[call-overload,index]
    inputs = {**real.batch.inputs, "vectors": vectors}  # type: ignore[dict-item]
    batch = ClassBatch(real.batch._replace(inputs=inputs), real.dims)
    gradients = class_gradients(Network(transformer, transformer.init(Draws(0)), classes_at_once=1), batch)
    total = torch.stack([g.square().sum() for g in gradients.values()]).sum()
    (second,) = torch.autograd.grad(total, vectors)
    assert second.isfinite().all()
    assert float(second.abs().max()) > 0


def test_any_sequence_classifier_can_be_distilled_with(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from mmdistill.text.token_models import PretrainedModule

    encoder = TransformerEncoder(folder)
    vocabulary = load_vocabulary(encoder)

    def load() -> nn.Module:
        from mmdistill.text.encoder import quiet_transformers

        with quiet_transformers():
            return SequenceClassifier(
                AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, attn_implementation="eager"),
                vocabulary,
            )

    whole, tokens = load(), vocabulary.tokenize(["bread soup", "the star was very good"], 9)
    expected = whole.model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).logits  # type: ignore[operator]
    vectors = vocabulary.vectors[tokens.ids] * tokens.mask[..., None]
    torch.testing.assert_close(whole({"vectors": vectors, "mask": tokens.mask}), expected)
    module = PretrainedModule(load, head="model.classifier", features=("model.classifier",))
    task = token_task(corpus(12, 12), model=module, encoder=folder, length=6)
    one, other = task.init(Draws(0)), task.init(Draws(1))
    drawn = {name for name, tensor in one.params.items() if not torch.equal(tensor, other.params[name])}
    assert drawn == {"model.classifier.weight"}
    assert task.judges[0] == "model"
    result = distill(task, quick("dd", inner_steps=2), ipc=1)
    assert len(task.evaluate(result.batch, "model", Draws(0), 1, result.learned).values["accuracy"]) == 1


@pytest.mark.parametrize("name", [name for name in TOKEN_METHODS if name not in ("attention-labels", "krr-encoder")])
@pytest.mark.parametrize("model", ["textcnn", "bilstm"])
def test_methods_move_vectors(folder: Path, name: str, model: str) -> None:
    task = token_corpus_task(folder, model, length=7)
    before = distill(task, quick(name, steps=0), ipc=1)
    after = distill(task, quick(name), ipc=1)
    moved = after.batch.inputs["vectors"] - before.batch.inputs["vectors"]  # type: ignore[call-overload,index,operator]
    assert moved.isfinite().all()
    assert float(moved.abs().max()) > 1e-3
    assert after.stored_bytes == 3 * 7 * (4 * 16 + 1) + (3 * 3 * 4 if TOKEN_METHODS[name].label == "soft" else 3)


@pytest.fixture(scope="module")
def unrolled(task: TokenTask) -> DistilledSet:
    return distill(task, quick("sldd", steps=40, real_batch=60, inner_steps=6, inner_lr=0.5), ipc=1)


def test_unrolled_sets_are_judged_by_their_own_steps(task: TokenTask, unrolled: DistilledSet) -> None:
    result = unrolled
    assert result.learned["inner_lr"].shape == (6,)
    learned = task.evaluate(result.batch, "textcnn", Draws(0), 4, result.learned).values["accuracy"]
    slower = {**result.learned, "inner_lr": result.learned["inner_lr"] / 50}
    still = task.evaluate(result.batch, "textcnn", Draws(0), 4, slower).values["accuracy"]
    assert statistics.fmean(learned) > statistics.fmean(still) + 0.05
    validated = [task.validate(result.batch, Draws(0), values) for values in (result.learned, slower)]
    assert validated[0] > validated[1]
    other = task.evaluate(result.batch, "bigru", Draws(0), 1, slower)  # another network's steps are its own
    assert other.values == task.evaluate(result.batch, "bigru", Draws(0), 1, {}).values


def test_sets_beat_random_texts(task: TokenTask, unrolled: DistilledSet) -> None:
    judged = evaluate(task, unrolled, n=4, baselines=("random",))
    assert judged.headline().mean > judged.baselines["random"][0].mean + 0.1


def test_all_texts_train_a_judge_without_all_their_vectors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = token_corpus_task(folder, length=7, judge_epochs=2, judge_batch=16)
    expected = task.evaluate(task.select(torch.arange(90)), "textcnn", Draws(0), 2, {})
    look_up, sizes = task.look_up, []

    def counted(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(ids))
        return look_up(ids, mask)

    monkeypatch.setattr(task, "look_up", counted)
    assert task.evaluate(None, "textcnn", Draws(0), 2, {}) == expected
    assert task.evaluate(None, "projected", Draws(0), 2, {}).values == expected.values
    assert 16 in sizes
    assert max(sizes) < 90


class TrainedError(Exception):
    """Raised in place of a training."""

    def __init__(self, protocol: FitProtocol) -> None:
        super().__init__()
        self.protocol = protocol


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(
        init: object, loss: object, data: object, protocol: FitProtocol, *rest: object, **named: object
    ) -> None:
        raise TrainedError(protocol)

    monkeypatch.setattr(token_judges, "fit_networks", refused)


def trained_by(task: TokenTask, judge: str, samples: int | None) -> FitProtocol:
    """Return the protocol of a judge on so many texts, None: on all."""
    batch = None if samples is None else task.select(torch.arange(samples))
    with pytest.raises(TrainedError) as trained:
        task.evaluate(batch, judge, Draws(0), 1, {})
    return trained.value.protocol


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("judge", ["textcnn", "projected", "bigru", "transformer"])
def test_the_task_tells_for_how_many_epochs_judges_train(folder: Path, judge: str) -> None:
    task = token_corpus_task(folder, judge_epochs=None)
    for samples in (6, None):
        assert trained_by(task, judge, samples).epochs == task.describe_judge(judge).epochs(samples)
    assert task.describe_judge("read-alone").epochs(6) is None
    assert task.describe_judge(judge).epochs(6) == (40 if judge == "transformer" else 300)  # one update an epoch
    assert task.describe_judge(judge).epochs(10**6) == 2


def test_texts_of_any_length_are_read_whole_and_predicted_in_their_order(
    task: TokenTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_judges, "QUERY_CHUNK", 4)
    words = [text.split() for text in task.data.train.texts[::5]]
    tokens = task.vocabulary.tokenize([" ".join(own[: 1 + row % 8]) for row, own in enumerate(words)], task.length)
    state = task.init(Draws(0))
    expected = task.predict(state, task.look_up(tokens.ids, tokens.mask))[0].argmax(1)
    assert len(expected.unique()) > 1
    assert torch.equal(task._judge("textcnn", {}).predict(state, tokens), expected)


@pytest.mark.usefixtures("untrained")
def test_every_network_keeps_its_own_rate_for_other_epochs(folder: Path) -> None:
    task = token_corpus_task(folder, judge_epochs=3, judge_batch=5)
    found = {judge: trained_by(task, judge, 6) for judge in ("textcnn", "transformer")}
    assert {(protocol.epochs, protocol.batch) for protocol in found.values()} == {(3, 5)}
    assert {judge: protocol.lr for judge, protocol in found.items()} == {"textcnn": 2e-3, "transformer": 3e-5}
    assert {judge: protocol.faster for judge, protocol in found.items()} == {
        "textcnn": (),
        "transformer": (("head.", 100.0),),
    }
    own = FitProtocol(epochs=4, lr=0.5, optimizer="sgd", batch=None)
    for options, expected in (
        ({"judge_epochs": None}, own),
        ({"judge_epochs": 3}, dataclasses.replace(own, epochs=3)),
    ):
        task = token_corpus_task(folder, protocol=own, **options)
        assert trained_by(task, "textcnn", 6) == trained_by(task, "transformer", 6) == expected
    with pytest.raises(ConfigError, match="protocol is a FitProtocol, got 'default'"):
        token_corpus_task(folder, protocol="default")


def test_networks_that_read_sentence_points_are_refused_before_anything_is_read() -> None:
    for model, message in (
        ("mlp", "the network 'mlp' reads sentence points; text_task has it"),
        ("textcn", "did you mean 'textcnn'"),
        ("transformer", "transformer takes no width"),
    ):
        with pytest.raises(ConfigError, match=message):
            token_task("missing.tsv", model=model, width=5)
    with pytest.raises(ConfigError, match="textcnn takes none"):
        token_task("missing.tsv", model="textcnn", features="head")


def test_attention_labels_are_learned_and_used(transformer: TokenTask) -> None:
    method = quick("attention-labels", steps=3, real_batch=8)
    result = distill(transformer, method, ipc=1)
    assert isinstance(result.batch.targets, dict)
    attention = result.batch.targets["attention"]
    assert attention.shape == (3, 2, 2, 8)
    torch.testing.assert_close(attention.sum(3), torch.ones(3, 2, 2))
    assert float((attention - 1 / 8).abs().max()) > 1e-4
    assert transformer.evaluate(result.batch, "transformer", Draws(0), 1, result.learned).values["accuracy"][0] > 0
    assert "labels" in method.settings(1).optimizers
    assert result.label == "soft"
    transformer.loss(transformer.init(Draws(0)), result.batch)
    assert transformer.model._captured == {}  # no graph stays alive
    with pytest.raises(ConfigError, match="labels of attention are learned with those of the classes"):
        distill(transformer, method, ipc=1, label="teacher")


def test_each_kind_of_task_has_the_methods_of_its_samples(task: TokenTask, transformer: TokenTask) -> None:
    points = small_task()
    attended = {"attention-labels", "krr-encoder"}
    assert set(method_names(points)) == {"dm", "dc", "krr", "ridge-exact", "select", "k-means"}
    assert set(method_names(transformer)) == {"select", *TOKEN_METHODS}
    assert set(method_names(task)) == {"select", *TOKEN_METHODS} - attended
    with pytest.raises(ConfigError, match=r"in Python token_task\(data, model='textcnn'\)"):
        distill(points, "sldd", ipc=1)
    for name in ("dc", "dm", "krr", "ridge-exact"):
        with pytest.raises(ConfigError, match="in Python, make the task by text_task"):
            distill(task, name, ipc=1)
    with pytest.raises(ConfigError, match="in Python, make the task by text_task"):
        Distiller(task, get_method(get_domain("text"), "k-means"), 1).rehearse()
    settings = {"steps": 1, "real_batch": 8, "init": "real"}
    assert len(distill(task, "dm", ipc=1, parameterization="embeddings", settings=settings).batch.weight) == 3


def test_token_vectors_are_labelled_by_a_given_teacher(task: TokenTask, folder: Path) -> None:
    made = task.model.factory()
    given = token_corpus_task(folder, teacher=made)
    result = distill(given, "dm-tokens", ipc=1, label="teacher", settings={"steps": 1, "real_batch": 4})
    state = NetworkState(dict(made.named_parameters()), dict(made.named_buffers()))
    assert torch.equal(soft_labels(task, state, result.batch.inputs), one_tensor(result.batch.targets))
    assert given.given_teacher is not None
    assert result.teacher == str(given.given_teacher)


def test_attention_labels_need_attention(task: TokenTask) -> None:
    with pytest.raises(ConfigError, match="no attention"):
        distill(task, quick("attention-labels"), ipc=1)


def test_ridge_matching_through_the_encoder_looks_no_real_vector_up(
    transformer: TokenTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(transformer, transformer.init(Draws(0)))
    syn = transformer.select(torch.arange(0, 90, 20))
    monkeypatch.setattr(transformer, "look_up", None)
    assert EncodedRidgeMatching(1e-2)(network, syn, syn, Draws(0)).isfinite()


def test_ridge_matching_through_the_encoder_passes_the_battery(
    transformer: TokenTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = transformer.embedding().double()
    monkeypatch.setattr(transformer, "embedding", lambda: points)
    network = Network(transformer, as_float64(transformer.init(Draws(0))))
    syn = transformer.select(torch.arange(0, 90, 15))  # enough numbers to compare gradients along one direction
    assert isinstance(syn.inputs, dict)
    syn = Batch({**syn.inputs, "vectors": syn.inputs["vectors"].double()}, syn.targets, syn.weight.double())
    check_objective(EncodedRidgeMatching(1e-2).double(), network, syn, syn)


def test_ridge_matching_through_the_encoder(transformer: TokenTask, task: TokenTask) -> None:
    network = Network(transformer, transformer.init(Draws(0)))
    syn = transformer.select(torch.arange(0, 90, 20))
    vectors = syn.inputs["vectors"].clone().requires_grad_()  # type: ignore[call-overload,index,union-attr]
    syn = syn._replace(inputs={**syn.inputs, "vectors": vectors})  # type: ignore[dict-item]
    value = EncodedRidgeMatching(1e-2)(network, syn, syn, Draws(0))
    own = nn.functional.normalize(transformer.features(network.state, syn.inputs)[-1], dim=1)
    everything = transformer.select(torch.arange(90))._replace(inputs=transformer.embedding())
    same = KernelRidgeMatching(PointKernel(), 1e-2)(network, syn._replace(inputs=own), everything, Draws(0))
    torch.testing.assert_close(value, same, rtol=1e-5, atol=1e-6)
    assert float(torch.autograd.grad(value, vectors)[0].abs().max()) > 0
    before, after = (distill(transformer, quick("krr-encoder", steps=steps), ipc=1).batch for steps in (0, 3))
    assert not torch.equal(before.inputs["vectors"], after.inputs["vectors"])  # type: ignore[call-overload,index]
    with pytest.raises(ConfigError, match="no encoder"):
        distill(task, quick("krr-encoder"), ipc=1)


def test_the_attention_loss_against_loops() -> None:
    attention = Draws(0).normal(3, 2, 2, 5, dtype=torch.float64).softmax(3)
    labels = Draws(1).normal(3, 2, 2, 5, dtype=torch.float64).softmax(3)
    found = attention_loss(attention, labels)
    for row in range(3):
        expected = oracle.attention_divergence(attention[row].tolist(), labels[row].tolist())
        assert float(found[row]) == pytest.approx(expected, rel=1e-6)
    assert float(attention_loss(labels, labels).abs().max()) < 1e-12
    faint = torch.tensor([1.0, 1e-9], dtype=torch.float64).expand(1, 1, 1, 2)  # as little as real texts have
    divergence = oracle.attention_divergence([[[1.0, 1e-9]]], [[[0.5, 0.5]]])
    assert float(attention_loss(faint, torch.full_like(faint, 0.5))) == pytest.approx(divergence, rel=1e-4)
    with pytest.raises(ShapeError, match="against labels"):
        attention_loss(attention, labels[:, :1])


def test_attention_labels_learn_their_own_logits_alone() -> None:
    initial = torch.zeros(3, 2, 2, 5)
    own = AttentionLabels(FixedLabels(torch.tensor([0, 1, 2])), initial)
    assert {name for name, _ in own.named_parameters()} == {"logits"}
    with torch.no_grad():
        own.logits.add_(1)
    assert not initial.any()


def test_the_first_token_s_attention_is_the_transformer_s(transformer: TokenTask) -> None:
    module = transformer.model.module
    assert isinstance(module, TransformerClassifier)
    inputs = transformer.select(torch.arange(3)).inputs
    assert isinstance(inputs, dict)
    logits, attention = module.with_attention(inputs)
    torch.testing.assert_close(logits, module(inputs))
    torch.testing.assert_close(attention.sum(3), torch.ones(3, 2, 2))
    assert float(attention.detach()[~inputs["mask"][:, None, None].expand_as(attention)].sum()) == 0


def test_the_border_of_a_pair_is_kept_in_its_words(folder: Path) -> None:
    texts, labels = sentences(8)
    pairs = [f"{text}{PAIR}{other}" for text, other in zip(texts, texts[1:] + texts[:1], strict=True)]
    own = token_task(dict.fromkeys(("train", "dev", "test"), (pairs, labels)), model="textcnn", encoder=folder)
    read = own.readable(own.select(torch.arange(4)).inputs)
    assert [text.split(PAIR)[0] for text in read] == texts[:4]
    assert all(text.count(PAIR) == 1 for text in read)
    single = token_corpus_task(folder)
    assert not any(PAIR in text for text in single.readable(single.select(torch.arange(4)).inputs))


def test_the_length_is_no_more_than_the_longest_text(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {name: sentences(8) for name in ("train", "dev", "test")}
    own = token_task(given, model="textcnn", encoder=folder, length=100_000)
    assert own.length == 10
    assert "no training text has more than 10 tokens, so the length is not 100000" in caplog.text


def test_words_are_real_tokens_that_change(task: TokenTask) -> None:
    method = quick("dc-tokens", steps=40, real_batch=20)
    method = method.stored_as(word_storage())
    settings = method.settings(2)
    before, after = (distill(task, method, ipc=2, settings={"steps": steps}) for steps in (0, settings.steps))
    table = task.vocabulary.vectors
    for result in (before, after):
        vectors = result.batch.inputs["vectors"]  # type: ignore[call-overload,index]
        mask = result.batch.inputs["mask"]  # type: ignore[call-overload,index]
        assert all((row == table).all(1).any() for row in vectors[mask])
    texts = task.readable(before.batch.inputs)
    assert all(text in task.data.train.texts for text in texts)
    assert task.readable(after.batch.inputs) != texts
    # a byte for each of few tokens, and one a label
    mask = after.batch.inputs["mask"]  # type: ignore[call-overload,index]
    assert after.stored_bytes == int(mask.sum()) + 6
    projected = task.evaluate(after.batch, "projected", Draws(0), 1, {}).values
    assert projected == task.evaluate(after.batch, "textcnn", Draws(0), 1, {}).values


def word_storage() -> object:
    from mmdistill.text import DOMAIN

    return DOMAIN.parameterizations["words"]


@pytest.mark.parametrize(("build", "model"), [(token_samples, "textcnn"), (attended_samples, "transformer")])
def test_vectors_after_a_texts_end_are_learned_too(folder: Path, build: Callable[..., Raw], model: str) -> None:
    task = token_corpus_task(folder, model, length=12)
    assert not task.tokens.train.mask[:, 10:].any()
    batch = build(task, 1, quick("dd").settings(1), "hard", Draws(0))(Draws(0))
    assert batch.inputs["mask"].shape == (3, 12)  # type: ignore[call-overload,index,union-attr]
    assert batch.inputs["mask"].all()  # type: ignore[call-overload,index,union-attr]


def test_words_pass_gradients_straight_through(folder: Path) -> None:
    task = token_corpus_task(folder, length=12)
    settings = quick("dm-tokens").settings(1)
    words = word_samples(task, 1, settings, "hard", Draws(0))
    assert isinstance(words, Words)
    assert int(words.mask.sum()) == 3 * 10
    assert words.stored_bytes() == 3 * 10 + 3  # a byte for each token and each label, and none for padding
    assert not words(Draws(0)).inputs["vectors"][~words.mask].any()  # type: ignore[call-overload,index]
    weight = Draws(1).normal(*words.codes.shape)
    (gradient,) = torch.autograd.grad((words(Draws(0)).inputs["vectors"] * weight).sum(), words.codes)  # type: ignore[call-overload,index]
    ids = words.ids()
    free = words.mask & ~task.vocabulary.special[ids]
    torch.testing.assert_close(gradient[free], weight[free])
    assert float(gradient[~free].abs().max()) == 0  # special tokens and padding stay
    with pytest.raises(ConfigError, match="start from real texts"):
        word_samples(task, 1, dataclasses.replace(settings, init="noise"), "hard", Draws(0))


def test_validation_reads_no_test_label(task: TokenTask, folder: Path) -> None:
    data = corpus(30, 20)
    shifted = dataclasses.replace(data.test, labels=(data.test.labels + 1) % 3)
    other = token_task(
        dataclasses.replace(data, test=shifted), model="textcnn", encoder=folder, judge_epochs=12, width=8
    )
    batch = task.select(torch.arange(0, 90, 3))
    assert other.validate(batch, Draws(0), {}) == task.validate(batch, Draws(0), {})


def test_reading_judges(task: TokenTask) -> None:
    real = task.select(torch.arange(0, 90, 3))
    assert task.readable(real.inputs) == [task.data.train.texts[i] for i in range(0, 90, 3)]
    scores = task.evaluate(real, "read-tfidf", Draws(0), 3, {})
    assert scores.values["accuracy"][0] > 0.5
    texts = [task.data.train.texts[i] for i in range(0, 90, 3)]
    assert isinstance(real.targets, torch.Tensor)
    reader, weight = Reader(task.data, task.device), torch.linspace(0, 2, 30)
    assert scores.values == reader.score("read-tfidf", texts, real.targets, None).values
    weighted = task.evaluate(real._replace(weight=weight), "read-tfidf", Draws(0), 3, {}).values
    assert weighted == reader.score("read-tfidf", texts, real.targets, weight).values != scores.values
    for judge in ("textcnn", "read-alone"):  # samples without weight are as if they were not there
        few, half = take(real, torch.arange(15)), real._replace(weight=(torch.arange(30) < 15).float())
        one, other = (task.evaluate(batch, judge, Draws(0), 1, {}) for batch in (few, half))
        assert one.values == other.values, judge
    average = AverageEncoder(task.encoder)
    points = average.encode(["bread soup", "bread", "[SEP]"]).points
    torch.testing.assert_close(points.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    beside = average.encode(["bread soup", *["bread"] * 99]).points[0]
    torch.testing.assert_close(beside, points[0])  # other texts do not decide how much of a text is read


def test_pictures_and_exports(task: TokenTask, tmp_path: Path) -> None:
    batch = task.select(torch.tensor([0, 40, 80]))
    picture, table = draw(task, batch, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"**{task.data.train.texts[40]}**" in table.read_text()
    similarity, texts = nearest_texts(task, batch)
    assert [row[0] for row in texts] == [task.data.train.texts[i] for i in (0, 40, 80)]
    torch.testing.assert_close(similarity[:, 0], torch.ones(3))
    (path,) = export_embeds(held(task, batch), tmp_path)
    stored = load_file(path)
    table = load_file(Path(task.encoder.model) / "model.safetensors")["embeddings.word_embeddings.weight"]
    mask = task.tokens.train.mask[[0, 40, 80]]
    torch.testing.assert_close(stored["inputs_embeds"][mask], table[task.tokens.train.ids[[0, 40, 80]][mask]])
    assert stored["soft_labels"].argmax(1).tolist() == task.data.train.labels[[0, 40, 80]].tolist()
    (path,) = export_texts(held(task, batch), tmp_path, task)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["text"] for line in lines] == [task.data.train.texts[i] for i in (0, 40, 80)]
    assert lines[0]["label"] == "food"
    (path,) = export_tensors(held(task, batch), tmp_path)
    assert set(load_file(path)) == {"inputs.vectors", "inputs.mask", "targets", "weight"}


def test_sets_of_another_vocabulary_or_space_are_refused(task: TokenTask, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="dict of 'vectors'"):
        task.evaluate(small_task().select(torch.arange(3)), "textcnn", Draws(0), 1, {})
    batch = task.select(torch.arange(3))
    other = {**batch.inputs, "vectors": torch.ones(3, 4, 5)}  # type: ignore[dict-item]
    with pytest.raises(ShapeError, match="not of the tokens of"):
        task.evaluate(batch._replace(inputs=other), "textcnn", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="expected soft labels"):
        task.evaluate(batch._replace(targets=torch.ones(3, 2)), "textcnn", Draws(0), 1, {})
    elsewhere = token_corpus_task(tmp_path / "other", length=task.length)
    tiny_transformer(tmp_path / "deeper", layers=1)
    deeper = token_corpus_task(tmp_path / "deeper", length=task.length)
    result = distill(task, quick("dm-tokens"), ipc=1)
    evaluate(elsewhere, result, n=1, baselines=())  # the same model in another folder is the same space
    fewer = token_task(corpus(12, 20), model="textcnn", encoder=tmp_path / "other", length=task.length)
    with pytest.raises(CheckpointError, match="fingerprint"):
        evaluate(fewer, result, n=1)
    with pytest.raises(CheckpointError, match=r"fingerprint .* \(encoder '.*bert.*' there, '.*deeper' here\)"):
        evaluate(deeper, result, n=1)


def test_networks_and_encoders_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'textcnn'"):
        token_corpus_task(folder, "textcn")
    with pytest.raises(ConfigError, match="no table of token embeddings"):
        token_task(corpus(), model="textcnn", encoder="tfidf")
    with pytest.raises(ConfigError, match="cannot run on a dict"):
        token_corpus_task(folder, lambda: nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="transformer takes no width"):
        token_task(corpus(), model="transformer", encoder=folder, width=3)
    with pytest.raises(ConfigError, match="token embeddings"):
        as_token_task(small_task())
    points_only = token_corpus_task(folder)
    with pytest.raises(ConfigError, match="sentence points"):
        as_text_task(points_only)


def test_the_bilstm_has_the_gradient_of_finite_differences() -> None:
    net = Recurrent(3, 2, 2, 4).double()
    vectors = Draws(0).normal(2, 4, 3, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    assert torch.autograd.gradcheck(lambda x: net({"vectors": x, "mask": mask}), (vectors,))
    assert torch.autograd.gradgradcheck(lambda x: net({"vectors": x, "mask": mask}), (vectors,))


class Averaging(nn.Module):
    """A classifier of the mean token vector, with dropout."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(dim, 3))

    def forward(self, inputs: Tensors) -> torch.Tensor:
        mask = inputs["mask"][..., None].float()
        return self.head((inputs["vectors"] * mask).sum(1) / mask.sum(1).clamp(min=1))


def test_given_networks_of_tokens_judge_and_take_no_steps_that_others_learned(
    task: TokenTask, unrolled: DistilledSet
) -> None:
    judges = {"averaging": lambda: Averaging(task.vocabulary.dim), "bigru": None}
    found = evaluate(task, unrolled, judges=judges, n=1, baselines=())
    assert [entry.judge for entry in found.results if entry.metric == "accuracy"] == list(judges)
    assert str(found.results[0].judging["network"]).startswith("Averaging ")
    beside = task.with_judge("averaging", judges["averaging"])
    trained = [
        beside.evaluate(unrolled.batch, "averaging", Draws(0), 1, learned).values for learned in (unrolled.learned, {})
    ]
    assert trained[0] == trained[1]
