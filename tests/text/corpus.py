"""A tiny generated corpus: three topics with their own words among shared ones."""

from inspect import signature
from pathlib import Path

import torch

from mmdistill.runtime import Draws
from mmdistill.text.data import TextData, load_text
from mmdistill.text.task import TextTask, text_task
from mmdistill.text.token_task import TokenModelLike, TokenTask, token_task

TOPICS = {
    "food": ["bread", "soup", "cheese", "apple", "oven", "salt", "cook", "taste", "plate", "sugar", "butter", "rice"],
    "space": [
        "star",
        "moon",
        "orbit",
        "rocket",
        "planet",
        "comet",
        "launch",
        "gravity",
        "telescope",
        "probe",
        "crater",
        "sun",
    ],
    "music": [
        "song",
        "drum",
        "guitar",
        "choir",
        "melody",
        "rhythm",
        "piano",
        "concert",
        "tune",
        "singer",
        "violin",
        "chord",
    ],
}
SHARED = [
    "the",
    "a",
    "very",
    "quite",
    "often",
    "people",
    "say",
    "that",
    "this",
    "one",
    "was",
    "with",
    "and",
    "it",
    "makes",
    "good",
    "bad",
    "new",
]


def sentences(count: int, seed: int = 0, topical: int = 2) -> tuple[list[str], list[str]]:
    """Return ``count`` texts of each topic with the topics as labels; few of the words tell the topic."""
    texts, labels = [], []
    for topic, words in TOPICS.items():
        for index in range(count):
            key = Draws(seed, ("corpus", topic, index))
            chosen = [words[i] for i in key.fold("own").integers(len(words), topical).tolist()]
            chosen += [SHARED[i] for i in key.fold("shared").integers(len(SHARED), 6).tolist()]
            order = key.fold("order").permutation(len(chosen)).tolist()
            texts.append(" ".join(chosen[i] for i in order))
            labels.append(topic)
    return texts, labels


def corpus(train: int = 60, test: int = 40) -> TextData:
    return load_text({"train": sentences(train, 0), "dev": sentences(20, 1), "test": sentences(test, 2)})


def small_task(**options: object) -> TextTask:
    return text_task(corpus(), encoder="tfidf", **{"judge_epochs": 60, **options})  # type: ignore[arg-type]


def tiny_transformer(folder: Path, layers: int = 2) -> Path:
    """Save a small BERT with random weights and a tokenizer of the corpus's words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({*SHARED, *(word for topic in TOPICS.values() for word in topic)})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    newer = "vocab" in signature(BertTokenizerFast.__init__).parameters  # transformers 5
    BertTokenizerFast(**{"vocab" if newer else "vocab_file": str(folder / "vocab.txt")}).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=5 + len(words),
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
        BertModel(config).save_pretrained(folder)
    return folder


def token_corpus_task(folder: Path, model: TokenModelLike = "textcnn", **options: object) -> TokenTask:
    """Return the corpus as a task of token embeddings of the small BERT."""
    encoder = tiny_transformer(folder) if not (folder / "config.json").exists() else folder
    sizes = {} if model == "transformer" or not isinstance(model, str) else {"width": 8}
    return token_task(corpus(30, 20), model=model, encoder=encoder, **{"judge_epochs": 12, **sizes, **options})  # type: ignore[arg-type]


def write_tsv(path: Path, texts: list[str], labels: list[str], header: str = "label\ttext") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{label}\t{text}" for label, text in zip(labels, texts, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path
