"""Sequences of token vectors as codes: free vectors, vectors with attention labels, and real tokens."""

import torch
from torch import Tensor, nn

from mmdistill.allocation import shares_of
from mmdistill.coresets import choose_samples
from mmdistill.errors import ConfigError, DataError
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.parameterizations.base import Parameterization, index_bytes, stored_tensor_bytes
from mmdistill.parameterizations.raw import Raw
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, Task, Tensors
from mmdistill.text.attention import AttendedSamples, AttentionLabels
from mmdistill.text.token_task import TokenTask
from mmdistill.text.vocabulary import Vocabulary

WORD_RATES = {"codes": OptimizerSpec("adam", 0.2)}
"""A code moves about 1 in each of its numbers before another token is nearest: larger steps than free codes take."""


def as_token_task(task: Task) -> TokenTask:
    """Return the task if it is one of token embeddings.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(task, TokenTask):
        raise ConfigError(
            "this method learns token embeddings, and this task has none: choose a network that reads tokens "
            "(--model textcnn, bilstm, bigru or transformer; in Python token_task(data, model='textcnn'))"
        )
    return task


def as_attended_task(task: Task) -> TokenTask:
    """Return the task if it is one of token embeddings that a transformer reads.

    Raises:
        ConfigError: it is of another kind, or of another network.
    """
    text = as_token_task(task)
    text.require_transformer()
    return text


def token_start(task: Task, budget: int, settings: Settings, draws: Draws) -> tuple[Tensors, Tensor]:
    """Return what synthetic sequences start from, and their classes.

    They are full of learned vectors: where a real text has ended, the zero vector follows (the mean of all tokens), and
    with ``init = "noise"`` all is N(0, 1).
    """
    text = as_token_task(task)
    counts, classes, _ = shares_of(text, budget)
    indices = choose_samples(text, settings.init, counts, draws)
    inputs = text.network_inputs(text.select(indices).inputs)
    if settings.init == "noise":
        inputs = {**inputs, "vectors": draws.fold("noise").to(text.device).normal(*inputs["vectors"].shape)}
    return inputs, classes


def token_samples(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Raw:
    """Build sequences of freely learned vectors."""
    inputs, classes = token_start(task, budget, settings, draws)
    count = as_token_task(task).class_count
    full = torch.ones_like(inputs["mask"])
    return Raw({**inputs, "mask": full}, make_labels(label, classes, count), classes, count)


def attended_samples(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> AttendedSamples:
    """Build freely learned vectors with labels for a transformer's attention, which start uniform.

    Raises:
        ConfigError: a network without attention, or labels of a teacher, which knows none.
    """
    text = as_attended_task(task)
    if label == "teacher":
        raise ConfigError("labels of attention are learned with those of the classes: choose --label soft or hard")
    config = text.require_transformer().body.config
    inputs, classes = token_start(task, budget, settings, draws)
    full = torch.ones_like(inputs["mask"])
    shape = (len(classes), config.num_hidden_layers, config.num_attention_heads, full.shape[1])
    labels = AttentionLabels(make_labels(label, classes, text.class_count), torch.zeros(shape, device=text.device))
    return AttendedSamples({**inputs, "mask": full}, labels, classes, text.class_count)


class Words(Parameterization):
    """Sequences of real tokens, learned by a straight-through projection.

    Codes are vectors; decoding replaces each by the nearest candidate token's, and passes gradients on as if it had
    not. What must be kept are the token numbers alone.

    Args:
        inputs: ``vectors`` ``(M, L, H)`` to start from, and ``mask`` ``(M, L)``; the length of each text stays.
        ids: ``(M, L)`` token numbers; special ones stay as they are.
        labels: the targets.
        classes: ``(M,)``.
        num_classes: C.
        vocabulary: tokens and vectors.
        candidates: ``(k,)`` the tokens that may be chosen.
    Source: Bengio, Leonard and Courville, 2013 (straight-through).
    """

    mask: Tensor
    _kept: Tensor
    _fixed: Tensor
    _candidates: Tensor

    even = False

    def __init__(
        self,
        inputs: Tensors,
        ids: Tensor,
        labels: Labels,
        classes: Tensor,
        num_classes: int,
        vocabulary: Vocabulary,
        candidates: Tensor,
    ) -> None:
        super().__init__(labels, classes, num_classes)
        self.vocabulary = vocabulary
        self.codes = nn.Parameter(inputs["vectors"].clone())
        self.register_buffer("mask", inputs["mask"].clone())
        self.register_buffer("_kept", ids.clone(), persistent=False)
        self.register_buffer("_fixed", vocabulary.special[ids] | ~inputs["mask"], persistent=False)
        self.register_buffer("_candidates", candidates, persistent=False)

    def ids(self) -> Tensor:
        """Return the token numbers, ``(M, L)``."""
        found = self.vocabulary.nearest(self.codes.detach(), self._candidates)
        return torch.where(self._fixed, self._kept, found)

    def forward(self, draws: Draws) -> Batch:
        """Return the real tokens' vectors, through which gradients reach the codes."""
        real = self.vocabulary.vectors[self.ids()] * self.mask[..., None]
        open_to = (~self._fixed)[..., None].to(self.codes)
        vectors = real + open_to * (self.codes - self.codes.detach())
        return Batch({"vectors": vectors, "mask": self.mask}, self.labels(), torch.ones(len(real), device=real.device))

    def stored_bytes(self) -> int:
        """Return the bytes of the token numbers that are not padding, and of the labels."""
        tokens = index_bytes(len(self.vocabulary.vectors)) * int(self.mask.sum())
        return tokens + sum(stored_tensor_bytes(tensor) for tensor in self.labels.state_dict().values())


def word_samples(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Words:
    """Build sequences of real tokens that start from real texts.

    Raises:
        ConfigError: a start from noise, which is no text.
        DataError: training texts without a token that is a word.
    """
    if settings.init == "noise":
        raise ConfigError("real tokens start from real texts; choose --init real, herding, k-center or k-means")
    text = as_token_task(task)
    inputs, classes = token_start(task, budget, settings, draws)
    # Padding looks up token 0's place, which the mask hides.
    _, ids = text.projected(inputs)
    labels = make_labels(label, classes, text.class_count)
    if not len(text.candidates):
        raise DataError("the training texts hold no token that is a word, so there is none to choose")
    return Words(inputs, ids, labels, classes, text.class_count, text.vocabulary, text.candidates)
