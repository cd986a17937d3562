"""The command line on texts, and the snippets of docs/text.md on what it exports."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmdistill.cli import main
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.text.tfidf import TfidfEncoder
from tests.text.corpus import sentences, tiny_transformer, write_tsv

PAGE = Path(__file__).parents[2] / "docs" / "text.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, seed in (("train", 0), ("dev", 1), ("test", 2)):
        write_tsv(folder / f"{split}.tsv", *sentences(20, seed))
    tiny_transformer(folder / "bert")
    return folder


def distil(corpus_folder: Path, out: Path, *options: str) -> int:
    common = ["--data", str(corpus_folder), "--encoder", str(corpus_folder / "bert"), "--networks", "1"]
    return main(["distill", *common, "--ipc", "1", "--baselines", "random", "--out", str(out), *options])


@pytest.fixture(scope="module")
def tokens(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tokens"
    fast = ["--steps", "2", "--width", "8", "--length", "7", "--real-batch", "8", "--judge-epochs", "2"]
    assert distil(corpus_folder, out, "--method", "sldd", "--model", "TextCNN", *fast) == 0
    return out


def test_a_run_finds_its_encoder_from_anywhere(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tfidf").mkdir()  # a name of this package's own stays one, whatever lies there
    shutil.copytree(corpus_folder / "bert", tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    common = ["--data", str(corpus_folder), "--method", "dm", "--ipc", "1", "--steps", "2", "--networks", "1"]
    quick = ["--judge-epochs", "1", "--baselines", "none"]
    for encoder, kept in (("bert", str(tmp_path / "bert")), ("TFIDF", "TFIDF")):
        assert main(["distill", *common, *quick, "--encoder", encoder, "--out", f"run-{encoder}"]) == 0
        assert DistillConfig.load(tmp_path / f"run-{encoder}" / "config.yaml").encoder == kept
    monkeypatch.chdir("/")
    assert main(["evaluate", str(tmp_path / "run-bert"), "--networks", "1", "--baselines", "none"]) == 0


def test_token_embeddings_from_the_command_line(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["evaluate", str(tokens), "--judges", "projected,read_tfidf", "--networks", "1", "--baselines", "none"])
        == 0
    )
    assert "read-tfidf" in capsys.readouterr().out
    judging = {e["judge"]: e.get("judging") for e in json.loads((tokens / "metrics.json").read_text())["results"]}
    assert (judging["projected"], judging["read-tfidf"]) == ({"epochs": 2}, None)
    assert main(["report", str(tokens)]) == 0
    assert "Its own words, in bold" in (tokens / "report.md").read_text()
    assert "longer than what is read" in (tokens / "report.md").read_text()


def test_what_was_learned_travels_with_an_export(tokens: Path, tmp_path: Path) -> None:
    assert main(["export", str(tokens), "--format", "embeds", "--to", str(tmp_path)]) == 0
    learned = json.loads((tmp_path / "learned.json").read_text())
    assert len(learned["inner_lr"]) == json.loads((tokens / "distilled.json").read_text())["settings"]["inner_steps"]


def test_labels_that_are_no_probabilities_are_exported_as_they_are(tmp_path: Path) -> None:
    table = write_tsv(tmp_path / "texts.tsv", *sentences(20))
    given = ["--data", str(table), "--encoder", "tfidf", "--method", "krr", "--ipc", "1", "--steps", "2"]
    given += ["--networks", "1", "--baselines", "none"]
    for label, expected in (("unrestricted", {"embeds", "soft_labels", "labels"}), ("soft", {"embeds", "soft_labels"})):
        run, to = tmp_path / label, tmp_path / f"export-{label}"
        assert main(["distill", *given, "--label", label, "--out", str(run)]) == 0
        assert main(["export", str(run), "--format", "embeds", "--to", str(to)]) == 0
        found = load_file(to / "embeds.safetensors")
        assert found.keys() == expected
        if "labels" in found:
            assert torch.equal(found["labels"], DistilledSet.load(run).batch.targets)


def test_a_method_of_its_own_judge_is_judged_by_it_and_held_out_texts_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_tsv(tmp_path / "texts.tsv", *sentences(20))
    given = ["--data", str(table), "--encoder", "tfidf", "--method", "ridge-exact", "--ipc", "1", "--networks", "1"]
    assert main(["distill", *given, "--baselines", "none", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "note: test: 20% of the data, stratified, seed 0\n" in printed
    assert "ridge-exact, ipc 1, 2 samples, seed 0: percent" in printed
    metrics = tmp_path / "run" / "metrics.json"
    assert {entry["judge"] for entry in json.loads(metrics.read_text())["results"]} == {"ridge"}
    metrics.unlink()
    assert main(["evaluate", str(tmp_path / "run"), "--networks", "1", "--baselines", "none"]) == 0
    assert {entry["judge"] for entry in json.loads(metrics.read_text())["results"]} == {"ridge"}


def test_names_and_texts_with_line_ends_survive_an_export(tmp_path: Path) -> None:
    texts, labels = sentences(20)
    names = {"food": "a\nb", "music": "c\u2028d", "space": "e"}
    rows = [{"text": f"{text}\x85x", "label": names[label]} for text, label in zip(texts, labels, strict=True)]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    given = ["--data", str(file), "--encoder", "tfidf", "--method", "k-means", "--ipc", "1", "--networks", "1"]
    assert main(["distill", *given, "--baselines", "none", "--out", str(tmp_path / "run")]) == 0
    for kind in ("embeds", "texts"):
        assert main(["export", str(tmp_path / "run"), "--format", kind, "--to", str(tmp_path / "export")]) == 0
    with safe_open(tmp_path / "export" / "embeds.safetensors", "np") as stored:
        assert json.loads(stored.metadata()["class_names"]) == sorted(names.values())
    lines = (tmp_path / "export" / "texts.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["label"] for line in lines} == set(names.values())


def test_words_and_labels_from_the_command_line(corpus_folder: Path, tmp_path: Path) -> None:
    fast = ["--model", "bigru", "--steps", "2", "--width", "8", "--real-batch", "8", "--judge-epochs", "2"]
    options = ["--method", "dc-tokens", "--parameterization", "words", "--label", "soft"]
    assert distil(corpus_folder, tmp_path / "words", *options, *fast) == 0
    assert main(["export", str(tmp_path / "words"), "--format", "texts"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "words" / "export" / "texts.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(0.9 < sum(line["soft_label"].values()) < 1.1 and line["text"].strip() for line in lines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "krr", "--length", "5"], "reads sentence points"),
        (["--method", "krr", "--model", "bigru", "--width", "8"], "distils sentence points"),
        (["--method", "sldd"], "choose a network that reads tokens"),
        (["--method", "sldd", "--model", "lstm"], "did you mean"),
        (["--method", "krr", "--label", "teachers"], None),
        (["--method", "k-means", "--label", "soft"], "labels are its own"),
        (["--method", "dm", "--augment"], "text data; leave it out, or add noise to sentence points in Python"),
    ],
)
def test_what_does_not_go_together(
    corpus_folder: Path, tmp_path: Path, options: list[str], words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if words is None:
        with pytest.raises(SystemExit):
            distil(corpus_folder, tmp_path / "run", *options)
    else:
        assert distil(corpus_folder, tmp_path / "run", *options) == 2
        assert words in capsys.readouterr().err


def test_the_snippets_of_the_docs(
    corpus_folder: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = tmp_path / "points"
    assert distil(corpus_folder, points, "--method", "k-means") == 0
    to = str(tmp_path / "export")
    assert main(["export", str(points), "--format", "embeds", "--to", to]) == 0
    assert main(["export", str(points), "--format", "texts", "--to", to]) == 0
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"MODEL": str(corpus_folder / "bert")}
    with_embeds, new_texts, new_words, with_texts, with_transformers = snippets()
    exec(with_embeds, scope)
    assert scope["class_names"] == ["food", "music", "space"]
    assert sorted(scope["classifier"].predict(scope["embeds"])) == [0, 1, 2]
    exec(new_texts, {**scope, "ENCODER": scope["MODEL"]})
    exec(with_texts, scope)
    assert set(scope["reader"].predict(["song drum", "bread"])) <= {"food", "music", "space"}
    shutil.rmtree(to)
    words = tmp_path / "words"
    assert distil(corpus_folder, words, "--method", "k-means", "--encoder", "tfidf") == 0
    assert main(["export", str(words), "--format", "embeds", "--to", to]) == 0
    scope["texts"], labels = sentences(20, seed=2)
    exec(new_words.replace('["a fine film"]', "texts"), scope)
    encoder = TfidfEncoder()
    encoder.fit(sentences(20, seed=0)[0])
    np.testing.assert_allclose(scope["points"], encoder.encode(scope["texts"]).points, atol=1e-5)
    exec(with_embeds, scope)
    reached = scope["classifier"].predict(scope["points"])
    assert np.mean(np.array(scope["class_names"])[reached] == np.array(labels)) > 0.9
    shutil.rmtree(to)
    assert main(["export", str(tokens), "--format", "embeds", "--to", to]) == 0
    exec(with_transformers, scope)
    assert np.isfinite(float(scope["loss"].detach()))
