"""Parameterizations by token vectors: free vectors, vectors with attention labels, and real tokens."""

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
"""Each number of a code must move by about 1 before another token is nearest, so the rate is larger than usual."""


def as_token_task(task: Task) -> TokenTask:
    """Return the task after checking that it is one of token embeddings.

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
    """Return the task after checking that it is one of token embeddings read by a transformer.

    Raises:
        ConfigError: it is of another kind, or has another network.
    """
    text = as_token_task(task)
    text.require_transformer()
    return text


def token_start(task: Task, budget: int, settings: Settings, draws: Draws) -> tuple[Tensors, Tensor]:
    """Return the initial vectors of synthetic sequences, and their classes.

    Sequences start from real texts, with the zero vector (the mean of all tokens) after a text's end; with
    ``init = "noise"`` all vectors are N(0, 1).
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
    num_classes = as_token_task(task).class_count
    full_mask = torch.ones_like(inputs["mask"])  # vectors after a text's end are learned too
    return Raw({**inputs, "mask": full_mask}, make_labels(label, classes, num_classes), classes, num_classes)


def attended_samples(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> AttendedSamples:
    """Build freely learned vectors with initially uniform labels for a transformer's attention.

    Raises:
        ConfigError: a network without attention, or teacher labels, which have no attention labels.
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

    Codes are vectors. Decoding replaces each by the nearest candidate token's vector, and gradients pass through
    unchanged. Only the token numbers need to be stored.

    Args:
        inputs: initial ``vectors`` ``(M, L, H)`` and ``mask`` ``(M, L)``; text lengths do not change.
        ids: ``(M, L)`` initial token numbers; special tokens do not change.
        labels: the targets.
        classes: ``(M,)``.
        num_classes: C.
        vocabulary: tokens and vectors.
        candidates: ``(k,)`` numbers of the tokens to choose from.
    Source: Bengio, Leonard and Courville, 2013 (straight-through).
    """

    mask: Tensor
    _initial_ids: Tensor
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
        self.register_buffer("_initial_ids", ids.clone(), persistent=False)
        self.register_buffer("_fixed", vocabulary.special[ids] | ~inputs["mask"], persistent=False)
        self.register_buffer("_candidates", candidates, persistent=False)

    def ids(self) -> Tensor:
        """Return the token numbers, ``(M, L)``."""
        nearest = self.vocabulary.nearest(self.codes.detach(), self._candidates)
        return torch.where(self._fixed, self._initial_ids, nearest)

    def forward(self, draws: Draws) -> Batch:
        """Return the real tokens' vectors; gradients pass straight through to the codes."""
        real = self.vocabulary.vectors[self.ids()] * self.mask[..., None]
        is_learned = (~self._fixed)[..., None].to(self.codes)
        vectors = real + is_learned * (self.codes - self.codes.detach())
        return Batch({"vectors": vectors, "mask": self.mask}, self.labels(), torch.ones(len(real), device=real.device))

    def stored_bytes(self) -> int:
        """Return the bytes of the token numbers, without padding, and of the labels."""
        tokens = index_bytes(len(self.vocabulary.vectors)) * int(self.mask.sum())
        return tokens + sum(stored_tensor_bytes(tensor) for tensor in self.labels.state_dict().values())


def word_samples(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Words:
    """Build sequences of real tokens that start from real texts.

    Raises:
        ConfigError: a start from noise, which is no text.
        DataError: the training texts hold only special tokens.
    """
    if settings.init == "noise":
        raise ConfigError("real tokens start from real texts; choose --init real, herding, k-center or k-means")
    text = as_token_task(task)
    inputs, classes = token_start(task, budget, settings, draws)
    _, ids = text.projected(inputs)  # the numbers of padding are arbitrary; the mask hides them
    labels = make_labels(label, classes, text.class_count)
    if not len(text.candidates):
        raise DataError("the training texts hold no token that is a word, so there is none to choose")
    return Words(inputs, ids, labels, classes, text.class_count, text.vocabulary, text.candidates)
