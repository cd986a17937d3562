"""Long encodings: shown, kept while they go on, and taken up again after an interruption."""

import logging
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from mmdistill.networks import clock
from mmdistill.text import embeddings
from mmdistill.text import encoder as encoder_module
from mmdistill.text.callables import CallableEncoder
from mmdistill.text.embeddings import MANY, encode
from mmdistill.text.encoder import PAIR, Encoding, TransformerEncoder, mean_pool
from tests.text.corpus import sentences, tiny_transformer

TRAIN, _ = sentences(12)
TEXTS = [*TRAIN[:9], f"{TRAIN[0]}{PAIR}{TRAIN[1]}", "", " ".join(TRAIN[:6]), f"{TRAIN[2]}{PAIR}bread", *TRAIN[9:17]]
BATCH = 4
BATCHES = 1 + 5
"""Of the two pairs and the 19 single texts."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(embeddings, "KEPT_SECONDS", 0.0)
    return tmp_path / "embeddings"


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int | None = None) -> Callable[[], int]:
    """Interrupt encoding after some batches; returns what tells how many were begun."""
    begun, batches = list[int](), count()

    def pool(*arguments: torch.Tensor) -> torch.Tensor:
        begun.append(next(batches))
        if len(begun) - 1 == after:
            raise KeyboardInterrupt
        return mean_pool(*arguments)

    monkeypatch.setattr(encoder_module, "mean_pool", pool)
    return lambda: len(begun)


def interrupted(model: Path, monkeypatch: pytest.MonkeyPatch, after: int, texts: list[str] = TEXTS) -> None:
    encoder = TransformerEncoder(model, batch=BATCH)
    with monkeypatch.context() as patch:
        interrupting(patch, after)
        with pytest.raises(KeyboardInterrupt):
            encode(encoder, texts)


def in_one_go(model: Path, texts: list[str] = TEXTS) -> Encoding:
    return TransformerEncoder(model, batch=BATCH).encode(texts)


def test_pairs_and_single_texts_are_encoded_apart_and_by_length(model: Path) -> None:
    found = in_one_go(model)
    pairs = [index for index, text in enumerate(TEXTS) if PAIR in text]
    singles = [index for index in range(len(TEXTS)) if index not in pairs]
    for rows in (pairs, singles):
        assert torch.equal(found.points[rows], in_one_go(model, [TEXTS[index] for index in rows]).points)
    assert found.truncated == 1
    order = [rows[0] for rows in TransformerEncoder(model, batch=1).batches(TEXTS).rows]
    assert sorted(order[:2]) == pairs
    lengths = [len(TEXTS[index].split()) for index in order[2:]]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("after", [0, 1, 3, BATCHES - 1])
def test_an_interrupted_encoding_goes_on_where_it_was(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    caplog.set_level(logging.INFO, "mmdistill")
    interrupted(model, monkeypatch, after)
    assert not list(cache.glob("*.safetensors"))
    begun = interrupting(monkeypatch)
    found, whole = encode(TransformerEncoder(model, batch=BATCH), TEXTS), in_one_go(model)
    assert begun() == BATCHES - after + BATCHES
    assert torch.equal(found.points, whole.points)
    assert found.truncated == whole.truncated == 1
    assert len(list(cache.iterdir())) == 1
    done = 2 + (after - 1) * BATCH
    assert [f"{done} of 21 texts" in line for line in caplog.messages] == [True] * (after > 0)
    assert torch.equal(encode(TransformerEncoder(model, batch=BATCH), TEXTS).points, whole.points)


def test_what_two_interruptions_left_serves(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(model, monkeypatch, 2)
    interrupted(model, monkeypatch, 2)
    begun = interrupting(monkeypatch)
    found = encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert begun() == BATCHES - 4
    assert torch.equal(found.points, in_one_go(model).points)


def test_parts_are_of_these_texts_this_model_and_this_batch(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupted(model, monkeypatch, 3)
    begun = interrupting(monkeypatch)
    other = tiny_transformer(tmp_path / "other", layers=1)
    for encoder, texts in (
        (TransformerEncoder(model, batch=BATCH), [*TEXTS[:-1], "bread"]),
        (TransformerEncoder(other, batch=BATCH), TEXTS),
        (TransformerEncoder(model, batch=2 * BATCH), TEXTS),
    ):
        before = begun()
        encode(encoder, texts)
        assert begun() - before == (BATCHES if encoder.batch == BATCH else 1 + 3)
    assert len(list(cache.iterdir())) == 3  # what another batch left of the same points is of no more use


def test_parts_that_nobody_has_written_to_for_a_month_are_removed_but_for_those_to_go_on_with(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts_of(text: str, days: float) -> Path:
        before = set(cache.glob("*.parts"))
        interrupted(model, monkeypatch, 2, [*TEXTS[:-1], text])
        (folder,) = set(cache.glob("*.parts")) - before
        for path in (*folder.iterdir(), folder):
            os.utime(path, (time.time() - 86_400 * days,) * 2)
        return folder

    orphaned, recent, own = parts_of("old", 31), parts_of("new", 29), parts_of(TEXTS[-1], 31)
    (cache / "mine").mkdir()
    os.utime(cache / "mine", (0, 0))
    begun = interrupting(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert (begun(), len(list(own.iterdir()))) == (2, 3)
    assert sorted(cache.iterdir()) == sorted([recent, own, cache / "mine"])
    assert not orphaned.exists()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "a changed byte", "of another place", "of other texts"])
def test_a_damaged_or_foreign_part_is_ignored(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    interrupted(model, monkeypatch, 4)
    parts = sorted(cache.glob("*/*.safetensors"))
    assert len(parts) == 4
    if damage == "of other texts":
        other = [f"{text} bread" for text in TEXTS]
        interrupted(model, monkeypatch, 4, other)
        (foreign,) = {path.parent for path in cache.glob("*/*.safetensors")} - {parts[0].parent}
        parts[2].write_bytes((foreign / parts[2].name).read_bytes())
    else:
        content = parts[2].read_bytes()
        changed = bytes([content[-1] ^ 1])
        parts[2].write_bytes(
            {
                "truncated": content[:-3],
                "garbage": b"x" * 100,
                "a changed byte": content[:-1] + changed,
                "of another place": parts[3].read_bytes(),
            }[damage]
        )
    begun = interrupting(monkeypatch)
    found = encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert begun() == BATCHES - 2
    assert torch.equal(found.points, in_one_go(model).points)


def test_parts_go_too_where_the_whole_was_written_and_then_the_process_killed(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "_remove_parts", lambda path: None)
        encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert len(list(cache.iterdir())) == 2
    encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert len(list(cache.iterdir())) == 1


def test_a_short_encoding_keeps_no_parts(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "KEPT_SECONDS", 1000.0)
    interrupted(model, monkeypatch, 3)
    assert not cache.exists()


def test_parts_that_cannot_be_written_stop_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(embeddings, "KEPT_SECONDS", 0.0)
    found = encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert torch.equal(found.points, in_one_go(model).points)
    assert len(caplog.messages) == 2  # of the whole: it is neither read nor written


def test_an_encoder_that_gives_no_numbers_is_refused_at_once(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "mean_pool", lambda hidden, mask: mean_pool(hidden, mask) * torch.nan)
    with pytest.raises(embeddings.DataError, match=r"NaN or Inf for text 9$"):
        encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert not cache.exists()


def test_an_encode_of_the_users_own_is_called_with_all_texts(model: Path, cache: Path) -> None:
    class First(TransformerEncoder):
        def encode(self, texts: list[str]) -> Encoding:  # type: ignore[override]
            assert list(texts) == TEXTS
            return Encoding(torch.ones(len(texts), 3), 0)

    assert encode(First(model), TEXTS).points.shape == (21, 3)


def test_a_bar_on_a_terminal_shows_how_far_encoding_is(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(TransformerEncoder(model, batch=BATCH), TEXTS[2:])
    assert not capsys.readouterr().err
    monkeypatch.setattr(embeddings, "is_redrawn", lambda: True)
    encode(TransformerEncoder(model, batch=BATCH), TEXTS[1:])
    assert not capsys.readouterr().err  # too short to be shown
    monkeypatch.setattr(embeddings, "UNSHOWN_SECONDS", 0.0)
    interrupted(model, monkeypatch, 4)
    capsys.readouterr()
    encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    shown = capsys.readouterr().err
    total = sum(TransformerEncoder(model, batch=BATCH).batches(TEXTS).tokens)
    assert "encoding 21 texts: 100%" in shown
    assert f"{total}/{total}" in shown


def test_a_log_says_how_long_encoding_takes(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmdistill")
    monkeypatch.setattr(clock, "FIRST_REPORT", 0.0)
    encode(TransformerEncoder(model, batch=BATCH), TEXTS)
    assert len(caplog.messages) > 3
    assert all(" % encoded, about " in line for line in caplog.messages)
    assert caplog.messages[-1] == "texts: 100 % encoded, about 0 s left"


@pytest.mark.usefixtures("cache")
def test_a_function_that_gets_many_texts_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmdistill")
    calls = list[int]()

    def enc(texts: list[str]) -> torch.Tensor:
        calls.append(len(texts))
        return torch.ones(len(texts), 2)

    encode(CallableEncoder(enc), ["a text"] * MANY)
    encode(CallableEncoder(enc), ["a text"] * (MANY - 1))
    assert caplog.messages == ["calling the encoder 'enc' on 1,000 texts"]
    assert calls == [MANY, MANY - 1]  # all at once
