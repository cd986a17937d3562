"""Judges that read distilled sets as texts, with other encoders than the set was distilled with."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.classification import scored
from mmdistill.task import Batch, Scores
from mmdistill.text.data import TextData
from mmdistill.text.embeddings import encode
from mmdistill.text.encoder import SentenceEncoder
from mmdistill.text.encoders import make_encoder
from mmdistill.text.judges import logistic_predictions

logger = logging.getLogger(__name__)

MANY = 0.5
"""Warn if more than this share of texts gets the zero vector."""
FAR = 20.0
"""Warn of points whose mean norm is more than so many times 1, or less than 1 over that."""
ALONE = "read-alone"
"""The judge whose encoder is learned from the set's own texts only; the others' encoders have seen more."""
READERS = {ALONE: "tfidf", "read-tfidf": "tfidf", "read-average": "average", "read-minilm": "minilm"}
"""Judges that see a set only through its texts, and the encoder that each reads with."""


class Encoded(NamedTuple):
    """Points of the three splits, and the number of truncated texts.

    Shapes:
        train, dev, test ``(n, d)`` float32 on the CPU.
    """

    train: Tensor
    dev: Tensor
    test: Tensor
    truncated: int


def encode_splits(encoder: SentenceEncoder, data: TextData) -> Encoded:
    """Encode the sorted distinct texts of all splits at once, so that all splits and seeds share a cache entry."""
    encoder.fit(data.train.texts)
    splits = (data.train, data.dev, data.test)
    distinct = sorted({text for split in splits for text in split.texts})
    points, truncated = encode(encoder, distinct)
    row = {text: index for index, text in enumerate(distinct)}
    train, dev, test = (points[[row[text] for text in split.texts]] for split in splits)
    for name, part in (("development", dev), ("test", test)):
        if (blank := int((part == 0).all(1).sum())) > MANY * len(part):
            logger.warning("%s gives %d of %d %s texts the zero vector", encoder.name, blank, len(part), name)
    norm = float(train.double().norm(dim=1).mean())
    if norm > 0 and not 1 / FAR <= norm <= FAR:
        logger.warning(
            "points of %s have a mean norm of %.3g, and the learning rates of methods and networks and the penalties "
            "of judges are for norms around 1: let the encoder return unit vectors",
            encoder.name,
            norm,
        )
    return Encoded(train, dev, test, truncated)


class Reader:
    """Judge texts by logistic regression on the points of an encoder.

    The encoder is fitted to all training texts, except that of :data:`ALONE`, which is fitted to the judged texts.

    Args:
        data: the texts, split.
        device: where transformer encoders run.
    """

    def __init__(self, data: TextData, device: torch.device) -> None:
        self.data = data
        self.device = device
        self._encoders: dict[str, tuple[SentenceEncoder, Encoded]] = {}

    def _encoder(self, judge: str) -> tuple[SentenceEncoder, Encoded]:
        if judge not in self._encoders:
            encoder = make_encoder(READERS[judge], self.device)
            self._encoders[judge] = (encoder, encode_splits(encoder, self.data))
        return self._encoders[judge]

    def score(self, judge: str, texts: Sequence[str], labels: Tensor, weight: Tensor | None) -> Scores:
        """Return the test scores of a logistic regression fitted on texts with (soft) labels.

        Args:
            judge: one of :data:`READERS`.
            texts: n texts.
            labels: ``(n,)`` or ``(n, C)``.
            weight: ``(n,)``; None is 1.
        """
        if judge == ALONE:
            encoder = make_encoder(READERS[judge], self.device)
            encoder.fit(texts)
            parts = (texts, self.data.dev.texts, self.data.test.texts)
            points, dev, test = (encoder.encode(part).points for part in parts)
        else:
            encoder, (train, dev, test, _) = self._encoder(judge)
            points = train if texts is self.data.train.texts else encoder.encode(texts).points
        weights = torch.ones(len(texts)) if weight is None else weight.cpu()
        batch = Batch(points, labels.cpu(), weights)
        predicted, penalty = logistic_predictions(batch, len(self.data.class_names), dev, self.data.dev.labels, test)
        truth = self.data.test.labels
        notes = (f"C = {penalty:g}, chosen on development data", *encoder.notes)
        return scored(judge, (predicted == truth)[None], truth, notes)
