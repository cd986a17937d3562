"""Texts as points of a frozen sentence encoder, or as sequences of token embeddings, with labels."""

from typing import Any

from mmdistill.errors import ConfigError
from mmdistill.files.hub import HUB_PREFIX, on_hub
from mmdistill.files.tables import SUFFIXES
from mmdistill.method import MethodTable, Storage
from mmdistill.names import canonical
from mmdistill.registry import Domain
from mmdistill.task import Task
from mmdistill.text.callables import CallableEncoder
from mmdistill.text.data import SOURCES, TextData, TextSplit, accepts, load_text
from mmdistill.text.draw import draw
from mmdistill.text.encoder import SentenceEncoder, TransformerEncoder
from mmdistill.text.exports import export_embeds, export_tensors, export_texts
from mmdistill.text.imports import IMPORTS
from mmdistill.text.methods import METHODS
from mmdistill.text.models import MODELS, TOKEN_MODELS
from mmdistill.text.task import TextTask, text_task
from mmdistill.text.tfidf import TfidfEncoder
from mmdistill.text.token_methods import TOKEN_METHODS
from mmdistill.text.token_task import TokenTask, token_task
from mmdistill.text.words import WORD_RATES, token_samples, word_samples


def _make_task(
    data: str, *, model: str = "mlp", encoder: str = "minilm", length: int | None = None, **options: Any
) -> Task:
    """Build the task that fits the network: of sentence points, or of token embeddings."""
    model, encoder = canonical(model), encoder or "minilm"
    if model in TOKEN_MODELS:
        return token_task(data, model=model, encoder=encoder, length=length, **options)
    if length is not None and model in MODELS:
        raise ConfigError(f"--length counts tokens, and {model!r} reads sentence points; use --model textcnn, say")
    return text_task(data, model=model, encoder=encoder, **options)


DOMAIN = Domain(
    name="text",
    budget="ipc",
    datasets={
        name: f"{source.summary}; bring {name}/train.tsv and test.tsv with columns label and text"
        f"{source.published and f', or {source.published}'}, from {source.origin}"
        for name, source in SOURCES.items()
    },
    accepts=accepts,
    make_task=_make_task,
    methods=MethodTable(METHODS | TOKEN_METHODS),
    draw=draw,
    first="krr",
    exports={"tensors": export_tensors, "embeds": export_embeds, "texts": export_texts},
    imports=IMPORTS,
    accepted="a TSV, CSV, JSON or Parquet file with a text and a label column, a folder with such train and test "
    "files, a folder with one subfolder of text files per class (perhaps under train/ and test/), or "
    f"{HUB_PREFIX}NAME[:CONFIGURATION] for a data set of the Hugging Face hub",
    claims=on_hub,
    tables=SUFFIXES,
    options=("encoder", "length", "text_column", "label_column", "model", "judge_batch", "teacher"),
    instead={
        "augment": "leave it out, or add noise to sentence points in Python, by text_task(data, noise=0.1) and "
        "distill(..., settings={'augment': True})"
    },
    parameterizations={
        "embeddings": Storage(token_samples, "token embeddings, learned freely (--model textcnn, bilstm, ...)"),
        "words": Storage(word_samples, "real tokens, learned by straight-through projection: can be read", WORD_RATES),
    },
)

__all__ = [
    "DOMAIN",
    "CallableEncoder",
    "SentenceEncoder",
    "TextData",
    "TextSplit",
    "TextTask",
    "TfidfEncoder",
    "TokenTask",
    "TransformerEncoder",
    "load_text",
    "text_task",
    "token_task",
]
