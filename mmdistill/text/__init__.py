"""Texts as points of a frozen sentence encoder, distilled into a few points with labels."""

from mmdistill.registry import Domain, TaskOptions
from mmdistill.task import Task
from mmdistill.text.data import HUB_PREFIX, SOURCES, TextData, TextSplit, accepts, load_text
from mmdistill.text.draw import draw, export_embeds, export_tensors
from mmdistill.text.encoder import CallableEncoder, SentenceEncoder, TfidfEncoder, TransformerEncoder
from mmdistill.text.methods import METHODS
from mmdistill.text.task import TextTask, text_task


def _make_task(data: str, options: TaskOptions) -> Task:
    return text_task(
        data,
        options.encoder or "minilm",
        options.model or "mlp",
        width=options.width,
        text_column=options.text_column,
        label_column=options.label_column,
        device=options.device,
        judge_epochs=options.judge_epochs,
        judge_batch=options.judge_batch,
        seed=options.seed,
    )


DOMAIN = Domain(
    name="text",
    budget="ipc",
    datasets={name: source.summary for name, source in SOURCES.items()},
    accepts=accepts,
    make_task=_make_task,
    methods=METHODS,
    draw=draw,
    exports={"tensors": export_tensors, "embeds": export_embeds},
    accepted="a TSV, CSV or JSON-lines file with a text and a label column, a folder with such train and test files, "
    f"or {HUB_PREFIX}NAME[:CONFIGURATION] for a data set of the Hugging Face hub",
    prefix=HUB_PREFIX,
)

__all__ = [
    "DOMAIN",
    "CallableEncoder",
    "SentenceEncoder",
    "TextData",
    "TextSplit",
    "TextTask",
    "TfidfEncoder",
    "TransformerEncoder",
    "load_text",
    "text_task",
]
